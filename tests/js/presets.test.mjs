import assert from "node:assert/strict";
import test from "node:test";
import { CUSTOM, presetFor, ratiosOf } from "../../web/lib/presets.js";

const presets = { Off: [], Half: [0.5, 0.25] };

test("a preset fills every ratio widget, missing ones with zero", () => {
  assert.deepEqual(ratiosOf(presets, "Half", 4), [0.5, 0.25, 0, 0]);
  assert.deepEqual(ratiosOf(presets, "Off", 2), [0, 0]);
});

test("Custom and unknown presets change nothing", () => {
  assert.equal(ratiosOf(presets, CUSTOM, 3), null);
  assert.equal(ratiosOf(presets, "Gone", 3), null);
});

test("the preset stays while the ratios match it and becomes Custom when they do not", () => {
  assert.equal(presetFor(presets, "Half", [0.5, 0.25, 0]), "Half");
  assert.equal(presetFor(presets, "Half", [0.5, 0.3, 0]), CUSTOM);
  assert.equal(presetFor(presets, CUSTOM, [0, 0, 0]), CUSTOM);
});
