// @ts-check
// What pruning saves, computed in the browser from the numbers GET /stepvar/plan gives once per model and size: the rule of
// stepvar_core/planning/cost.py and of StepVAR.plan, so that a bar can be dragged without asking the server. tests/server/test_plan.py
// holds the two against each other.

/**
 * What the server says of one model at one size. place: the n of ratio_n, 0 = never pruned. guided: per pass, whether
 * guidance runs there at a strength other than neutral_cfg. sees: per pass the earlier ones whose keys it reads, as
 * [first, behind the last]; without it, all of them.
 * @typedef {{layers: number, width: number, heads: number, head_dim: number, linear_per_token: number, cross_per_token: number,
 *   head_per_token: number, embed_per_token: number, per_run_and_row: number, lead_tokens?: number, tail_per_token?: number,
 *   per_run?: number}} Cost
 * @typedef {{size: number[], tokens: number, repeats: number, place: number, can_skip: boolean}} Scale
 * @typedef {{model: string, family: string, batch: number, scales: Scale[], cost: Cost, first_layer: number, itemsize: number,
 *   weights_bytes: number, default_cfg: number, neutral_cfg: number, guided: boolean[], sees?: number[][][],
 *   presets: Record<string, number[]>,
 *   labels?: string[], defaults?: {cfg: number, temperature: number, top_k: number[], top_p: number},
 *   canvases?: Record<string, string[]>, forecast?: import("./forecast.js").Forecast}} Plan
 *
 * The node's widgets that change the cost, under their own names; and the sampler's cfg, negative = the model's default.
 * @typedef {{first_layer?: number, scope?: string, fill?: string, coverage?: number, guidance_late?: string,
 *   guidance_late_scales?: number, cfg?: number, batch?: number}} Settings
 *
 * One pass of the transformer over one scale; a scale with repeats = n is n passes. kept 0 = skipped.
 * @typedef {{scale: number, tokens: number, kept: number, halves: string}} Pass
 * @typedef {{passes: (Pass & {flops: number})[], flops: number, denseFlops: number, speedup: number, kept: number,
 *   tokens: number, kvBytes: number, weightsBytes: number}} Estimate
 */

const HEAD_FILLS = ["nearest", "zero", "anchor", "repeat"]; // those whose head runs on kept tokens: Fill.on_head of methods/fills.py
const ANCHOR_STRIDE = 3;

/** Positions along an axis of n that the anchor fill always keeps. @param {number} n */
const anchors = (n) => Array.from({ length: n }, (_, i) => i).filter((i) => i % ANCHOR_STRIDE === Math.min(1, n - 1));

/** How many tokens of a grid stay whatever they score. @param {number[]} size @param {Settings} settings */
function forcedCount([t, h, w], { fill, coverage = 0 }) {
  const rows = fill === "anchor" ? anchors(h) : [];
  const columns = fill === "anchor" ? anchors(w) : [];
  const count = t * rows.length * columns.length;
  if (!coverage) return count;
  const covered = new Set(rows.map((y) => Math.floor(y / coverage))).size * new Set(columns.map((x) => Math.floor(x / coverage))).size;
  return count + t * (Math.ceil(h / coverage) * Math.ceil(w / coverage) - covered);
}

/**
 * The passes of a run. ratios[0] is the last scale's pruned share; 1 where a scale cannot be skipped keeps one token.
 * @param {Plan} plan @param {number[]} ratios @param {Settings} [settings] @returns {Pass[]}
 */
export function passesOf(plan, ratios, settings = {}) {
  return plan.scales.flatMap((scale, index) => {
    const ratio = scale.place ? ratios[scale.place - 1] ?? 0 : 0;
    const n = scale.tokens;
    let kept = ratio === 1 && scale.can_skip ? 0 : Math.max(1, n - Math.trunc(n * ratio));
    if (kept > 0 && kept < n) kept = Math.max(kept, forcedCount(scale.size, settings));
    const isLate = plan.scales.length - index <= (settings.guidance_late_scales ?? 0);
    const halves = isLate ? settings.guidance_late ?? "both" : "both";
    return Array.from({ length: scale.repeats }, () => ({ scale: index, tokens: n, kept, halves }));
  });
}

/** @param {Plan} plan @param {Settings} settings @returns {boolean[]} per pass, whether guidance runs there */
function guidedPasses(plan, { cfg = -1 }) {
  const strength = cfg < 0 ? plan.default_cfg : cfg;
  return plan.guided.map((runs) => runs && strength !== plan.neutral_cfg);
}

/** rows_per_pass of methods/policy.py. @param {Pass[]} passes @param {boolean[]} guided @param {number} batch */
function rowsPerPass(passes, guided, batch) {
  const any = guided.some(Boolean);
  const needsBoth = passes.map((p, i) => (guided[i] && p.halves === "both" && p.kept > 0) || (p.halves === "unconditional" && any));
  return passes.map((p, i) => (!p.kept ? 0 : p.halves === "both" && needsBoth.slice(i).some(Boolean) ? 2 * batch : batch));
}

/** The earlier passes that run and whose keys pass i reads. @param {Plan} plan @param {Pass[]} passes @param {number} i */
function earlierRunning(plan, passes, i) {
  const seen = plan.sees?.[i] ?? [[0, i]];
  return seen.flatMap(([from, to]) => Array.from({ length: to - from }, (_, n) => from + n)).filter((j) => passes[j].kept);
}

/**
 * Keys of one layer that the cache has room for, Layout of memory.py: those of passes that a later one reads, and the most
 * that must be laid side by side because it does not lie so.
 * @param {number[]} lengths tokens per pass, 0 = skipped @param {number[][]} seen per pass the earlier ones it reads
 */
function roomFor(lengths, seen) {
  const read = new Set(seen.filter((_, i) => lengths[i]).flat());
  let stored = 0;
  let workspace = 0;
  const starts = lengths.map((n, i) => {
    const start = stored;
    stored += n && read.has(i) ? n : 0;
    return start;
  });
  lengths.forEach((n, i) => {
    if (!n || !seen[i].length) return;
    let end = 0;
    const isInOrder = [...seen[i], i].every((j) => starts[j] === end && (end += lengths[j], true));
    if (!read.has(i) || !isInOrder) workspace = Math.max(workspace, seen[i].reduce((sum, j) => sum + lengths[j], n));
  });
  return { stored, workspace };
}

/**
 * FLOPs of every pass and bytes of the cache, for passes whose kept tokens are known.
 * @param {Plan} plan @param {Pass[]} passes @param {Settings} [settings]
 */
export function costOf(plan, passes, settings = {}) {
  const { cost } = plan;
  const { lead_tokens = 0, tail_per_token = 0, per_run = 0 } = cost;
  const batch = settings.batch ?? plan.batch;
  const guided = guidedPasses(plan, settings);
  const rows = rowsPerPass(passes, guided, batch);
  const own = settings.first_layer ?? -1;
  const first = Math.min(own < 0 ? plan.first_layer : own, cost.layers);
  const headOnKept = (settings.scope ?? "scale") === "scale" && HEAD_FILLS.includes(settings.fill ?? "nearest");
  // layers before `first` see every token, the others the kept ones: two kinds of layer, not one term per layer
  const lead = (/** @type {Pass} */ p) => (p === passes[0] ? lead_tokens : 0);
  const kinds = [{ layers: first, tokens: (/** @type {Pass} */ p) => p.tokens + lead(p) },
    { layers: cost.layers - first, tokens: (/** @type {Pass} */ p) => p.kept + lead(p) }];
  const seen = passes.map((_, i) => earlierRunning(plan, passes, i));
  const flops = passes.map((p, i) => {
    if (!p.kept) return 0;
    let sum = 0;
    for (const kind of kinds) {
      const n = kind.tokens(p);
      const keys = seen[i].reduce((keys, j) => keys + kind.tokens(passes[j]), n);
      sum += kind.layers * rows[i] * n * (cost.linear_per_token + cost.cross_per_token + 4 * keys * cost.heads * cost.head_dim);
    }
    const headRows = rows[i] === 2 * batch && guided[i] ? 2 * batch : batch;
    const isTail = tail_per_token && p.scale === plan.scales.length - 1;
    const tail = isTail ? p.tokens * (headRows * tail_per_token + batch * cost.embed_per_token) : 0;
    return sum + tail + headRows * (headOnKept ? p.kept : p.tokens) * cost.head_per_token + (i ? batch * p.tokens * cost.embed_per_token : 0);
  });
  const room = kinds.map((kind) => roomFor(passes.map((p) => (p.kept ? kind.tokens(p) : 0)), seen));
  const longest = Math.max(...kinds.map((kind, k) => (kind.layers ? room[k].workspace : 0)));
  const numbers = kinds[0].layers * room[0].stored + kinds[1].layers * room[1].stored + longest;
  const most = Math.max(0, ...rows);
  return { flops, total: flops.reduce((a, b) => a + b, 0) + cost.per_run_and_row * most + per_run,
    kvBytes: 2 * most * cost.heads * cost.head_dim * numbers * plan.itemsize };
}

/**
 * What `sv.estimate` says, for these ratios.
 * @param {Plan} plan @param {number[]} ratios @param {Settings} [settings] @returns {Estimate}
 */
export function estimate(plan, ratios, settings = {}) {
  const passes = passesOf(plan, ratios, settings);
  const run = costOf(plan, passes, settings);
  const dense = costOf(plan, passesOf(plan, []), { cfg: settings.cfg, batch: settings.batch });
  const sum = (/** @type {(p: Pass) => number} */ what) => passes.reduce((total, p) => total + what(p), 0);
  return { passes: passes.map((p, i) => ({ ...p, flops: run.flops[i] })), flops: run.total, denseFlops: dense.total, speedup: dense.total / run.total,
    kept: sum((p) => p.kept), tokens: sum((p) => p.tokens), kvBytes: run.kvBytes, weightsBytes: plan.weights_bytes };
}

/**
 * One bar per scale that ratios address, first to last; scales of several clips with the same ratio share one, labelled as
 * the last of them. place 0: all that no ratio widget reaches.
 * @typedef {{place: number, size: number[], scales: number, tokens: number, share: number, canSkip: boolean}} Bar
 * @param {Plan} plan @param {number} widgets how many ratio widgets there are @param {Settings} [settings] @returns {Bar[]}
 */
export function barsOf(plan, widgets, settings = {}) {
  const passes = passesOf(plan, []);
  const dense = costOf(plan, passes, { cfg: settings.cfg, batch: settings.batch });
  const sum = dense.flops.reduce((a, b) => a + b, 0);
  /** @type {Map<number, Bar>} */
  const bars = new Map();
  plan.scales.forEach((scale, index) => {
    const place = scale.place <= widgets ? scale.place : 0;
    const bar = bars.get(place) ?? { place, size: scale.size, scales: 0, tokens: 0, share: 0, canSkip: false };
    const mine = dense.flops.filter((_, i) => passes[i].scale === index).reduce((a, b) => a + b, 0);
    bars.set(place, { ...bar, size: scale.size, scales: bar.scales + 1, tokens: bar.tokens + scale.tokens * scale.repeats,
      share: bar.share + mine / sum, canSkip: bar.canSkip || scale.can_skip });
  });
  return [...bars.values()].sort((a, b) => (b.place || Infinity) - (a.place || Infinity));
}

/** "16×16", "3×16×16" for a video. @param {number[]} size @returns {string} */
export function gridName([t, h, w]) {
  return t === 1 ? `${h}×${w}` : `${t}×${h}×${w}`;
}
