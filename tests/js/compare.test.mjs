import assert from "node:assert/strict";
import test from "node:test";
import { decibels, isContradicted, moveDivider, nth, panned, pictureMeant, speedUp, tagOf, WHOLE, zoomed } from "../../web/lib/compare.js";

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

test("a menu is about the picture that is seen, or more of it", () => {
  assert.deepEqual([["wipe", 0.5], ["wipe", 1], ["wipe", 0.1], ["a", 0.1], ["b", 0.9], ["difference", 0.5]].map((args) => pictureMeant(...args)),
    ["a", "a", "b", "a", "b", "difference"]);
});

test("one timing that the work done contradicts is called so", () => {
  assert.deepEqual([[[3, 2], 1.6], [[2, 2.5], 1.6], [[9, 2], 1.6], [[2, 2.5], null], [[null, 2], 1.6]].map((args) => isContradicted(...args)),
    [false, true, true, false, false]);
});

test("zooming keeps what is under the pointer, and no edge comes into view", () => {
  const near = zoomed(WHOLE, 4, 0.75, 0.5);
  assert.equal(near.zoom, 4);
  const seen = (focus, px) => focus.x + (px - 0.5) / focus.zoom; // the picture's place under a point of the view
  assert.ok(Math.abs(seen(near, 0.75) - seen(WHOLE, 0.75)) < 1e-9);
  assert.deepEqual(zoomed(near, 0.01), WHOLE);
  assert.equal(zoomed(WHOLE, 1000).zoom, 16);
  assert.deepEqual(panned(near, 10, -10), { zoom: 4, x: 0.125, y: 0.875 });
  assert.deepEqual(panned(WHOLE, 0.3, 0.3), WHOLE);
});
