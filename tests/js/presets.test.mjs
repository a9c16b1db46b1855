import assert from "node:assert/strict";
import test from "node:test";
import { CUSTOM, hasSettings, presetFor, ratiosOf, settingsOf } from "../../web/lib/presets.js";

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

const settings = { Best: { selector: "update", fill: "zero" } };
const defaults = { selector: "stepvar", fill: "nearest" };

test("a preset sets what it names, and leaves alone what it does not", () => {
  assert.deepEqual(settingsOf(settings, "Best", { ...defaults }, defaults), { selector: "update", fill: "zero" });
  assert.deepEqual(settingsOf(settings, "Half", { selector: "random", fill: "cache" }, defaults), {});
  assert.deepEqual(settingsOf(settings, CUSTOM, { selector: "update", fill: "zero" }, defaults), {});
});

test("leaving a preset takes back its settings, unless the user changed them", () => {
  assert.deepEqual(settingsOf(settings, "Half", { selector: "update", fill: "zero" }, defaults), defaults);
  assert.deepEqual(settingsOf(settings, "Half", { selector: "update", fill: "delta" }, defaults), {});
  assert.deepEqual(settingsOf(settings, "Best", { selector: "update", fill: "zero" }, defaults), { selector: "update", fill: "zero" });
});

test("a preset is shown only while its settings hold", () => {
  assert.equal(hasSettings(settings, "Best", { selector: "update", fill: "zero" }), true);
  assert.equal(hasSettings(settings, "Best", { selector: "update", fill: "delta" }), false);
  assert.equal(hasSettings(settings, "Half", { selector: "random", fill: "delta" }), true);
});
