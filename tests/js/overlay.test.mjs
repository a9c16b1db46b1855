import assert from "node:assert/strict";
import test from "node:test";
import { nearestKept, placeOf, sources } from "../../web/lib/fill.js";
import { borders, cellColours, edges, fit, tokenAt } from "../../web/lib/grid.js";
import { compareRuns, locatorOf, nodeByExecutionId, outputFor } from "../../web/lib/nodes.js";
import { css, PRUNED, viridis } from "../../web/lib/palette.js";
import { gridName } from "../../web/lib/plan.js";
import { barAt, duration, layoutTimeline, percent } from "../../web/lib/timeline.js";
import { addScale, bestScale, decodeBits, keptOf, readRun, totals } from "../../web/lib/trace.js";

const plan = [[1, 1, 1, 1], [1, 2, 2, 4], [1, 4, 4, 8]];
const step = (index, kept, more = {}) => ({ index, count: 3, batch: 1, size: plan[index].slice(0, 3), tokens_run: plan[index][3], seconds: 0.5,
  kept: Buffer.from(kept).toString("base64"), plan, ...more });

test("bits come most significant first, and too few are refused", () => {
  assert.deepEqual(Array.from(decodeBits(Buffer.from([0b10110000]).toString("base64"), 5)), [1, 0, 1, 1, 0]);
  assert.throws(() => decodeBits("", 1), RangeError);
});

test("a run is laid out by its first message and filled in by the others", () => {
  let run = addScale(null, step(0, [0x80]));
  assert.deepEqual(run.scales.map((s) => [s.tokens, s.planned, s.kept !== null]), [[1, 1, true], [4, 4, false], [16, 8, false]]);
  run = addScale(run, step(1, [0xf0]));
  run = addScale(run, step(2, [0xaa, 0xaa]));
  assert.equal(run.done, 3);
  assert.equal(run.seconds, 1.5);
  assert.deepEqual(totals(run), { ran: 13, tokens: 21 });
  assert.deepEqual(Array.from(keptOf(run.scales[2], 0)), Array(8).fill([1, 0]).flat());
  const next = addScale(run, step(0, [0x80]));
  assert.equal(next.done, 1, "a finished run is followed by a new one");
  assert.equal(next.scales[2].kept, null);
});

test("messages that came before the page did leave their scales open", () => {
  const run = addScale(null, step(1, [0xf0]));
  assert.deepEqual(run.scales.map((s) => s.kept !== null), [false, true, false]);
});

test("a finished run with skipped and dense scales opens on the last one that was pruned", () => {
  const scale = (n, run) => ({ size: [1, n, n], tokens: n * n, tokens_run: run, seconds: 0, forced: false,
    kept: Buffer.from(new Uint8Array(Math.ceil((n * n) / 8)).fill(run ? 0xff : 0)).toString("base64") });
  const message = { batch: 1, seconds: 1, settings: {}, pruning: "", scales: [scale(1, 1), scale(2, 2), scale(4, 0)] };
  assert.equal(bestScale(readRun(message)), 1);
  assert.equal(bestScale(readRun({ ...message, scales: message.scales.slice(0, 1) })), 0);
  assert.equal(readRun(message).fill, "nearest");
});

test("ties go to the lower index, and a frame without kept tokens looks to the others", () => {
  assert.deepEqual(Array.from(nearestKept([1, 0, 1], [1, 1, 3])), [0, 0, 2]);
  assert.deepEqual(Array.from(nearestKept([0, 1, 1, 0], [1, 2, 2])), [1, 1, 2, 1]);
  assert.deepEqual(Array.from(nearestKept([0, 0, 0, 1, 1, 0], [3, 1, 2])), [3, 3, 3, 3, 4, 4]);
  assert.deepEqual(Array.from(nearestKept([0, 0], [1, 1, 2])), [-1, -1]);
  assert.deepEqual(Array.from(sources([1, 0], [1, 1, 2], "zero")), [0, -1]);
  assert.deepEqual(placeOf(27, [2, 4, 5]), { row: 2, column: 3, frame: 2 });
});

test("a picture takes whole cells of the finest grid, in the middle of its box", () => {
  assert.deepEqual(fit({ width: 395, height: 320 }, { width: 16, height: 16 }, [1, 16, 16]), { left: 37, top: 0, width: 320, height: 320 });
  assert.deepEqual(fit({ width: 100, height: 50 }, { width: 3, height: 2 }, [1, 2, 3]), { left: 12, top: 0, width: 75, height: 50 });
  const tiny = fit({ width: 5, height: 5 }, { width: 16, height: 16 }, [1, 16, 16]);
  assert.ok(tiny.width >= 1 && tiny.width <= 5);
});

test("cells of any grid tile a picture without gaps, and a point finds its own", () => {
  const canvas = { width: 331, height: 207 };
  for (const size of [[1, 1, 1], [1, 13, 16], [3, 10, 7]]) {
    const [, h, w] = size;
    const [xs, ys] = [edges(w, canvas.width), edges(h, canvas.height)];
    assert.deepEqual([xs[0], xs[w], ys[0], ys[h]], [0, canvas.width, 0, canvas.height]);
    for (let r = 0; r < h; r++) {
      for (let c = 0; c < w; c++) {
        assert.equal(tokenAt(xs[c], ys[r], canvas, size, 0), r * w + c);
        assert.equal(tokenAt(xs[c + 1] - 0.01, ys[r + 1] - 0.01, canvas, size, size[0] - 1), (size[0] - 1) * h * w + r * w + c);
      }
    }
  }
  assert.equal(tokenAt(-1, 0, canvas, [1, 2, 2], 0), -1);
  assert.equal(tokenAt(canvas.width, 0, canvas, [1, 2, 2], 0), -1);
});

test("kept cells stay clear, filled ones go dark, scores run from purple to yellow", () => {
  assert.deepEqual(Array.from(cellColours("kept", [1, 0], 0.4)), [0, 0, 0, 0, ...PRUNED, 102]);
  assert.deepEqual(Array.from(cellColours("texture", [0, 255], 1)), [...viridis(0), 255, ...viridis(1), 255]);
  assert.equal(css([1, 2, 3], 0.5), "rgb(1 2 3 / 0.5)");
});

test("border lines lie on the kept side, never outside", () => {
  const lines = borders([1, 0, 1, 1], [1, 2, 2], { width: 10, height: 10 }, 2);
  assert.deepEqual(lines, [[3, 0, 2, 5], [5, 5, 5, 2]]);
  assert.deepEqual(borders([1, 1, 1, 1], [1, 2, 2], { width: 10, height: 10 }, 2), []);
});

test("the timeline fills its width, widens with the grid and shows what will run", () => {
  let run = addScale(null, step(0, [0x80]));
  const bars = layoutTimeline(run, 200, true);
  assert.deepEqual(bars.map((bar) => bar.state), ["done", "running", "waiting"]);
  assert.deepEqual(bars.map((bar) => bar.share), [1, 1, 0.5]);
  assert.equal(bars[0].left, 0);
  assert.equal(bars[2].left + bars[2].width, 200);
  assert.ok(bars[0].width < bars[1].width && bars[1].width < bars[2].width);
  for (let i = 1; i < 3; i++) assert.ok(bars[i].left > bars[i - 1].left + bars[i - 1].width, "bars do not touch");
  assert.deepEqual([0, bars[1].left, 199, 500].map((x) => barAt(bars, x)), [0, 1, 2, 2]);
  run = addScale(run, step(1, [0xf0], { seconds: 0.25 }));
  assert.deepEqual(layoutTimeline(run, 200, false).map((bar) => bar.time), [1, 0.5, 0]);
  assert.ok(layoutTimeline(run, 3, false).every((bar) => bar.width >= 1), "a sliver of a node breaks nothing");
});

test("times, sizes and shares are short and never claim too much", () => {
  assert.deepEqual([0.0002, 0.042, 0.9996, 1.26, 12.4].map(duration), ["<1 ms", "42 ms", "1.0 s", "1.3 s", "12 s"]);
  assert.deepEqual([[1, 4, 5], [3, 4, 5]].map(gridName), ["4×5", "3×4×5"]);
  assert.deepEqual([[0, 9], [1, 1000], [999, 1000], [1000, 1000]].map(([a, b]) => percent(a, b)), ["0%", "1%", "99%", "100%"]);
});

test("nodes are found within subgraphs, and stored outputs by workflow, node and type", () => {
  const inner = { id: 5, comfyClass: "VARSampler" };
  const subgraph = { id: "uuid", getNodeById: (id) => (Number(id) === 5 ? inner : null) };
  const root = { id: "flow", getNodeById: (id) => (Number(id) === 12 ? { id: 12, subgraph } : null) };
  inner.graph = subgraph;
  assert.equal(nodeByExecutionId(root, "12:5"), inner);
  assert.equal(nodeByExecutionId(root, "12:6"), null);
  assert.equal(nodeByExecutionId(root, 3), null);
  assert.equal(locatorOf(inner, root), "uuid:5");
  assert.equal(locatorOf({ id: 12, graph: root }, root), "12");
  const entry = { prompt: [1, "id", { "12:5": { class_type: "VARSampler" } }, { extra_pnginfo: { workflow: { id: "flow" } } }], outputs: { "12:5": { stepvar: [1] } } };
  assert.deepEqual(outputFor(entry, inner, root), { id: "12:5", output: { stepvar: [1] }, prompt: entry.prompt[2] });
  assert.equal(outputFor(entry, inner, { ...root, id: "other" }), null);
  assert.equal(outputFor(entry, { ...inner, comfyClass: "StepVARReport" }, root), null);
});

test("a stored run is the node's own only while everything above it is as it was", () => {
  const prompt = (more = {}, seed = 5) => ({ 1: { class_type: "Load", inputs: { model_name: "demo" } }, 2: { class_type: "Label", inputs: { label: "panda" } },
    6: { class_type: "Sampler", inputs: { model: ["1", 0], positive: ["2", 0], seed } }, 9: { class_type: "Show", inputs: { trace: ["6", 1], layer: "kept" } },
    7: { class_type: "Save", inputs: { prefix: "x" } }, ...more });
  assert.equal(compareRuns(prompt(), prompt(), "9"), "same");
  assert.equal(compareRuns(prompt(), prompt({ 7: { class_type: "Save", inputs: { prefix: "y" } } }), "9"), "same", "not above the node");
  assert.equal(compareRuns(prompt(), prompt({}, 6), "9"), "reseeded");
  assert.equal(compareRuns(prompt(), prompt({ 2: { class_type: "Label", inputs: { label: "fox" } } }), "9"), "other");
  assert.equal(compareRuns(prompt(), prompt({ 2: { class_type: "Label", inputs: { label: "fox" } } }, 6), "9"), "other");
  assert.equal(compareRuns(prompt(), prompt({ 1: { class_type: "Other", inputs: { model_name: "demo" } } }), "9"), "other");
  const { 6: gone, ...without } = prompt();
  assert.ok(gone && compareRuns(prompt(), without, "9") === "other");
  const looked = prompt({ 9: { class_type: "Show", inputs: { trace: ["6", 1], layer: "texture" } } });
  assert.deepEqual([compareRuns(prompt(), looked, "9"), compareRuns(prompt(), looked, "9", ["layer"])], ["other", "same"]);
});

test("long times are said in minutes and hours", () => {
  assert.deepEqual([0.0004, 0.042, 1.34, 42, 99, 125, 3780].map(duration), ["<1 ms", "42 ms", "1.3 s", "42 s", "99 s", "2 min 5 s", "1 h 3 min"]);
});

test("a fine grid does not shrink the picture", () => {
  const place = fit({ width: 250, height: 250 }, { width: 1, height: 1 }, [1, 128, 128]);
  assert.deepEqual([place.width, place.height], [250, 250]);
  assert.equal(fit({ width: 250, height: 250 }, { width: 1, height: 1 }, [1, 16, 16]).width, 240);
});
