import assert from "node:assert/strict";
import test from "node:test";
import { decibels, moveDivider, nth, pictureMeant, speedUp, tagOf } from "../../web/lib/compare.js";

test("the speed-up says which one is faster, and nothing without both times", () => {
  assert.deepEqual(speedUp([2, 1.25]), { key: "compare.faster", times: "1.60" });
  assert.deepEqual(speedUp([1, 2]), { key: "compare.slower", times: "2.00" });
  assert.deepEqual(speedUp([1, 1.001]), { key: "compare.equal", times: "1.00" });
  assert.equal(speedUp([null, 1]), null);
});

test("the divider moves in steps and stays within", () => {
  assert.equal(moveDivider(0.5, "ArrowRight", false), 0.51);
  assert.equal(moveDivider(0.5, "ArrowLeft", true), 0.4);
  assert.equal(moveDivider(0.98, "PageUp", false), 1);
  assert.equal(moveDivider(0.2, "Home", false), 0);
  assert.equal(moveDivider(0.2, "End", false), 1);
  assert.equal(moveDivider(0.2, "a", false), null);
});

test("equal pictures are said to be, and one picture stands for all", () => {
  assert.equal(decibels(null, "identical"), "identical");
  assert.equal(decibels(27.25, ""), "27.3 dB");
  assert.deepEqual([nth(["x"], 3), nth(["x", "y"], 1)], ["x", "y"]);
});

test("a picture is tagged with its method where a trace names one", () => {
  assert.equal(tagOf("B", "FastVAR 0.75/0.5"), "B · FastVAR");
  assert.deepEqual([tagOf("A", "off"), tagOf("A", null), tagOf("A")], ["A", "A", "A"]);
});

test("a menu is about the picture that was pointed at, else the one that shows more", () => {
  assert.deepEqual([["wipe", 0.5, 0.2], ["wipe", 0.5, 0.7], ["wipe", 0.9, 0.7], ["wipe", 1], ["wipe", 0.1], ["difference", 0.5, 0.2]].map((args) => pictureMeant(...args)),
    ["a", "b", "a", "a", "b", "difference"]);
});
