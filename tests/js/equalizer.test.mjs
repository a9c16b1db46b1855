import assert from "node:assert/strict";
import test from "node:test";
import { effectiveRatios, formatBytes, formatNumber, isMovable, moved, ratioAfterKey, ratioAt, rounded, viewOf } from "../../web/lib/equalizer.js";

const presets = { Off: [], Half: [0.5, 0.5], Skip: [1, 1, 0.5] };
const plan = {
  model: "m", family: "var", batch: 1, first_layer: 0, itemsize: 4, weights_bytes: 1000, default_cfg: 4, neutral_cfg: 0, guided: [false, true, true, true],
  presets: { Off: [], Half: [0.5, 0.5], Skip: [0.5, 0.5, 0.5] },
  scales: [1, 2, 4, 8].map((p, i) => ({ size: [1, p, p], tokens: p * p, repeats: 1, place: 4 - i, can_skip: i > 0 })),
  cost: { layers: 2, width: 8, heads: 2, head_dim: 4, linear_per_token: 1000, cross_per_token: 0, head_per_token: 100, embed_per_token: 10, per_run_and_row: 50 },
};
const faders = (...ratios) => ratios.map((ratio) => ({ ratio, linked: false }));
const view = (more) => viewOf({ plan, presets, preset: "Custom", faders: faders(0.25, 0, 0), settings: {}, ...more });

test("bars show what will run: the preset as resolved for the model, else the widgets", () => {
  assert.deepEqual(effectiveRatios(plan, presets, "Skip", [1, 1, 0.5]), [0.5, 0.5, 0.5]);
  assert.deepEqual(effectiveRatios(null, presets, "Skip", [1, 1, 0.5]), [1, 1, 0.5]);
  assert.deepEqual(effectiveRatios(plan, presets, "Custom", [0.123, NaN, 7]), [0.12, 0, 1]);
  assert.deepEqual(effectiveRatios(plan, presets, "gone", [0.2, 0, 0]), [0.2, 0, 0]);
  const skip = view({ preset: "Skip", faders: faders(1, 1, 0.5) });
  assert.ok(skip.isAdjusted && skip.columns.every((c) => c.state !== "skipped"));
  assert.ok(!view({ preset: "Half", faders: faders(0.5, 0.5, 0) }).isAdjusted);
});

test("columns go from the first scale to the last, locked where no widget reaches", () => {
  const { columns, cost, scales } = view({ faders: [{ ratio: 1, linked: false }, { ratio: 0.5, linked: true }, { ratio: 0, linked: false }] });
  assert.deepEqual(columns.map((c) => [c.state, c.label, c.index]), [["locked", "1×1", 0], ["free", "2×2", 2], ["linked", "4×4", 3], ["skipped", "8×8", 4]]);
  assert.deepEqual([cost.kept, cost.tokens, scales], [13, 85, 4]);
});

test("a preset overrules links: its bars are its own, and stay where they are", () => {
  const linked = [{ ratio: 0.95, linked: true }, { ratio: 0, linked: false }, { ratio: 0, linked: false }];
  const { columns, ratios } = view({ preset: "Half", faders: linked });
  assert.deepEqual(ratios, [0.5, 0.5, 0]);
  assert.deepEqual(columns.map((c) => [c.state, isMovable(c)]), [["locked", false], ["free", true], ["free", true], ["ignored", false]]);
  assert.deepEqual([...moved(ratios, columns, 1, 0.1, true)], [[3, 0.1], [2, 0.6]]);
  assert.deepEqual(view({ preset: "Custom", faders: linked }).columns.map((c) => c.state), ["locked", "free", "free", "linked"]);
});

test("without a model the bars are the widgets alone", () => {
  const { columns, cost } = view({ plan: null, faders: faders(0.9, 0.5, 0) });
  assert.deepEqual(columns.map((c) => [c.place, c.label, c.share, Math.round(100 * c.kept)]), [[3, "", null, 100], [2, "", null, 50], [1, "", null, 10]]);
  assert.equal(cost, null);
});

test("dragging moves one bar, or all free ones together, each within its own ends", () => {
  const { columns } = view({ faders: [{ ratio: 0.25, linked: false }, { ratio: 0.5, linked: true }, { ratio: 0, linked: false }] });
  assert.deepEqual([...moved([0.25, 0.5, 0], columns, 1, 0.1, false)], [[1, 0.35]]);
  assert.deepEqual([...moved([0.25, 0.5, 0], columns, 1, -0.4, true)], [[3, 0], [1, 0]]);
  assert.deepEqual([...moved([0.25, 0.5, 0], columns, 1, 2, true)], [[3, 1], [1, 1]]);
});

test("a track's end keeps something; only beyond it a scale is skipped, where it can be", () => {
  const column = { canSkip: true };
  assert.deepEqual([-5, 0, 25, 50, 100, 103, 105].map((y) => ratioAt(y, 100, column)), [0, 0, 0.25, 0.5, 0.99, 0.99, 1]);
  assert.equal(ratioAt(200, 100, { canSkip: false }), 0.99);
});

test("keys move by one and ten percent, to the ends, and back", () => {
  const column = { canSkip: true };
  const after = (key, shift = false) => ratioAfterKey(key, shift, 0.5, column, 0.75);
  assert.deepEqual([after("ArrowUp"), after("ArrowDown"), after("ArrowUp", true), after("ArrowDown", true)], [0.49, 0.51, 0.4, 0.6]);
  assert.deepEqual([after("Home"), after("End"), after("Delete"), after("Backspace"), after("x"), after("Tab")], [1, 0, 0.75, 0.75, null, null]);
  assert.equal(ratioAfterKey("Home", false, 0.5, { canSkip: false }, 0), 0.99);
});

test("a hundred steps of one percent leave no dust", () => {
  let ratio = 0;
  for (let i = 0; i < 100; i++) ratio = ratioAfterKey("ArrowDown", false, ratio, { canSkip: true }, 0);
  assert.equal(ratio, 1);
  for (let i = 0; i < 43; i++) ratio = ratioAfterKey("ArrowUp", false, ratio, { canSkip: true }, 0);
  assert.equal(ratio, 0.57);
  assert.equal(rounded(0.1 + 0.2), 0.3);
});

test("numbers are written in the language, also in one the browser does not know", () => {
  assert.equal(formatBytes(57e6, "en"), "57 MB");
  assert.equal(formatBytes(2.13e9, "de"), "2,1 GB");
  assert.equal(formatNumber(1234.5, "not a locale", 1), "1,234.5");
});
