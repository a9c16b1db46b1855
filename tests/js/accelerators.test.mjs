import assert from "node:assert/strict";
import test from "node:test";
import { hiddenOptions } from "../../web/lib/accelerators.js";

const METHODS = { one: ["one_a", "one_b"], two: ["two_a"], none: [] };

test("only the other methods' widgets are hidden", () => {
  assert.deepEqual([...hiddenOptions(METHODS, "one")], ["two_a"]);
  assert.deepEqual([...hiddenOptions(METHODS, "none")].sort(), ["one_a", "one_b", "two_a"]);
});

test("a method nobody knows hides nothing", () => {
  for (const name of ["other", undefined, 3, "toString"]) assert.equal(hiddenOptions(METHODS, name).size, 0);
});
