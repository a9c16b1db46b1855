import assert from "node:assert/strict";
import test from "node:test";
import { barsOf, costOf, estimate, gridName, passesOf } from "../../web/lib/plan.js";

const image = (edges) => edges.map((p, i) => ({ size: [1, p, p], tokens: p * p, repeats: 1, place: edges.length - i, can_skip: i > 0 }));
const plan = {
  model: "m", family: "var", batch: 1, scales: image([1, 2, 4, 8]), first_layer: 0, itemsize: 4, weights_bytes: 1000, default_cfg: 4, neutral_cfg: 0,
  guided: [false, true, true, true], presets: {},
  cost: { layers: 2, width: 8, heads: 2, head_dim: 4, linear_per_token: 1000, cross_per_token: 0, head_per_token: 100, embed_per_token: 10, per_run_and_row: 50 },
};
// an image clip, then two video clips whose last scale is predicted twice
const video = { ...plan, guided: Array(8).fill(true), scales: [
  { size: [1, 2, 2], tokens: 4, repeats: 1, place: 0, can_skip: false }, { size: [1, 4, 4], tokens: 16, repeats: 1, place: 0, can_skip: false },
  { size: [2, 2, 2], tokens: 8, repeats: 1, place: 2, can_skip: false }, { size: [2, 4, 4], tokens: 32, repeats: 2, place: 1, can_skip: false },
  { size: [3, 2, 2], tokens: 12, repeats: 1, place: 2, can_skip: false }, { size: [3, 4, 4], tokens: 48, repeats: 2, place: 1, can_skip: true }] };

test("tokens kept are N - int(N ratio), at least one, none where a scale is skipped", () => {
  const kept = (ratios, settings) => passesOf(plan, ratios, settings).map((p) => p.kept);
  assert.deepEqual(kept([]), [1, 4, 16, 64]);
  assert.deepEqual(kept([0.5, 0.75, 0.99]), [1, 1, 4, 32]);
  assert.deepEqual(kept([1, 1, 0, 1]), [1, 4, 0, 0], "the first scale is never skipped");
});

test("coverage and anchors raise what is kept, as StepVAR.plan says", () => {
  const kept = (settings) => passesOf(plan, [0.95, 0.9], settings).map((p) => p.kept);
  assert.deepEqual(kept({ coverage: 2 }), [1, 4, 4, 16]);
  assert.deepEqual(kept({ fill: "anchor" }), [1, 4, 2, 9]);
  assert.deepEqual(kept({ fill: "anchor", coverage: 2 }), [1, 4, 4, 16]);
  assert.deepEqual(kept({ fill: "anchor", coverage: 5 }), [1, 4, 2, 9]);
});

test("more pruning never costs more, and skipping costs nothing there", () => {
  const runs = [0, 0.2, 0.5, 0.9, 1].map((r) => estimate(plan, [r, r]));
  for (let i = 1; i < runs.length; i++) {
    assert.ok(runs[i].flops < runs[i - 1].flops && runs[i].kvBytes <= runs[i - 1].kvBytes && runs[i].speedup > runs[i - 1].speedup);
  }
  assert.equal(runs[0].speedup, 1);
  assert.deepEqual(runs[4].passes.map((p) => p.flops > 0), [true, true, false, false]);
  assert.deepEqual([runs[4].kept, runs[4].tokens], [5, 85]);
});

test("no guidance halves the rows; one half late saves its part", () => {
  const cost = (settings) => estimate(plan, [0.5], settings);
  assert.ok(cost({ cfg: 0 }).flops < 0.6 * cost({}).flops);
  assert.equal(cost({ cfg: -1 }).flops, cost({ cfg: 2 }).flops);
  const late = cost({ guidance_late: "conditional", guidance_late_scales: 1 });
  assert.ok(late.flops < cost({}).flops && late.denseFlops === cost({}).denseFlops);
});

test("the cost of a batch is that of its pictures", () => {
  assert.ok(Math.abs(estimate(plan, [0.5], { batch: 3 }).flops / estimate(plan, [0.5]).flops - 3) < 1e-9);
});

test("one bar per scale a widget reaches, one for all before; shares add up", () => {
  const bars = barsOf(plan, 2);
  assert.deepEqual(bars.map((b) => [b.place, b.scales, gridName(b.size)]), [[0, 2, "2×2"], [2, 1, "4×4"], [1, 1, "8×8"]]);
  assert.ok(Math.abs(bars.reduce((sum, b) => sum + b.share, 0) - 1) < 1e-9 && bars[2].share > 0.5);
});

test("a video's bars gather its clips; its image clip is never pruned", () => {
  const kept = passesOf(video, [0.5, 0.25]).map((p) => p.kept);
  assert.deepEqual(kept, [4, 16, 6, 16, 16, 9, 24, 24]);
  assert.deepEqual(barsOf(video, 6).map((b) => [b.place, b.tokens, gridName(b.size), b.canSkip]),
    [[0, 20, "4×4", false], [2, 20, "3×2×2", false], [1, 160, "3×4×4", true]]);
  assert.deepEqual(passesOf(video, [1]).map((p) => p.kept), [4, 16, 8, 1, 1, 12, 0, 0], "only the last clip's last scale can be skipped");
});

test("the cost of kept tokens needs no ratios", () => {
  const passes = passesOf(plan, [0.5, 0.5]);
  assert.equal(costOf(plan, passes).total, estimate(plan, [0.5, 0.5]).flops);
});
