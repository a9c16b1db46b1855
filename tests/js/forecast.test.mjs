import assert from "node:assert/strict";
import test from "node:test";
import { touched } from "../../web/lib/forecast.js";

test("a forecast names what a method leaves out, the last scale first", () => {
  const passes = [[[1, 1, 1], 1, 1], [[1, 13, 13], 169, 85], [[1, 16, 16], 256, 0], [[1, 20, 20], 400, 1]].map(([size, tokens, kept]) => ({ size, tokens, kept }));
  assert.deepEqual(touched({ speedup: 2, passes }), [{ grid: "20×20", percent: 1 }, { grid: "16×16", percent: 0 }, { grid: "13×13", percent: 50 }]);
});
