// @ts-check
// Reading what a run did: kept tokens arrive as packed bits and scores as bytes, both in base64, row by row.

export const SCORES = ["structure", "texture", "importance"];
export const LAYERS = ["kept", ...SCORES];

/**
 * One scale of a run. size: [t, h, w]. kept: a 0 or 1 per picture and token, null while the scale has not run.
 * @typedef {{low: number[], high: number[], bytes: Uint8Array}} Score
 * @typedef {{size: number[], tokens: number, tokensRun: number, planned: number, seconds: number, forced: boolean,
 *   kept: Uint8Array | null, scores: Record<string, Score>}} Scale
 * @typedef {{filename: string, subfolder: string, type: string}} File
 * @typedef {{scales: Scale[], batch: number, scored: number, fill: string, scope: string, pruning: string, seconds: number,
 *   pictures: File[], done: number}} Run
 */

/** @param {string} text base64 @returns {Uint8Array} */
export function decodeBytes(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

/**
 * Bits, most significant first, one per entry. Throws when there are fewer than `count`.
 * @param {string} text base64 @param {number} count @returns {Uint8Array}
 */
export function decodeBits(text, count) {
  const bytes = decodeBytes(text);
  if (bytes.length * 8 < count) throw new RangeError(`${bytes.length} bytes hold fewer than ${count} bits`);
  const bits = new Uint8Array(count);
  for (let i = 0; i < count; i++) bits[i] = (bytes[i >> 3] >> (7 - (i & 7))) & 1;
  return bits;
}

const volume = (size) => size.reduce((product, n) => product * n, 1);

/**
 * The finished run in a node's output. Throws on anything that is not one.
 * @param {any} message @returns {Run}
 */
export function readRun(message) {
  const { batch } = message;
  const scales = message.scales.map((scale) => ({
    size: scale.size, tokens: scale.tokens, tokensRun: scale.tokens_run, planned: scale.tokens_run, seconds: scale.seconds,
    forced: Boolean(scale.forced), kept: decodeBits(scale.kept, batch * volume(scale.size)), scores: readScores(scale.scores),
  }));
  return { scales, batch, scored: message.scored ?? 0, fill: message.settings?.fill ?? "nearest", scope: message.settings?.scope ?? "scale",
    pruning: message.pruning ?? "", seconds: message.seconds, pictures: message.pictures ?? [], done: scales.length };
}

function readScores(scores = {}) {
  return Object.fromEntries(Object.entries(scores).map(([name, { low, high, data }]) => [name, { low, high, bytes: decodeBytes(data) }]));
}

/**
 * A running run after one more scale: the first message of a run lays all scales out, and each fills in its own.
 * @param {Run | null} before @param {any} message @returns {Run}
 */
export function addScale(before, message) {
  const { index, batch } = message;
  const fresh = !before || index === 0 || before.scales.length !== message.count || before.done === before.scales.length;
  const scales = fresh
    ? message.plan.map(([t, h, w, planned]) => ({
      size: [t, h, w], tokens: t * h * w, tokensRun: 0, planned, seconds: 0, forced: false, kept: null, scores: {} }))
    : before.scales.slice();
  scales[index] = { ...scales[index], tokensRun: message.tokens_run, seconds: message.seconds,
    kept: decodeBits(message.kept, batch * volume(message.size)) };
  return { scales, batch, scored: 0, fill: message.fill ?? "nearest", scope: message.scope ?? "scale", pruning: "", pictures: [], done: index + 1,
    seconds: scales.reduce((sum, scale) => sum + scale.seconds, 0) };
}

/** @param {Scale} scale @param {number} picture @returns {Uint8Array | null} all frames of one picture */
export function keptOf(scale, picture) {
  const n = scale.tokens;
  return scale.kept && scale.kept.subarray(picture * n, (picture + 1) * n);
}

/**
 * A score of every token, in bytes of its picture's own range; null where the run sent none.
 * @param {Scale} scale @param {string} layer @param {number} picture @returns {Uint8Array | null}
 */
export function scoreBytes(scale, layer, picture) {
  const score = scale.scores[layer];
  return score && picture < score.low.length ? score.bytes.subarray(picture * scale.tokens, (picture + 1) * scale.tokens) : null;
}

/** The score of one token, to within half of 1/255 of its picture's range. @returns {number | null} */
export function scoreAt(scale, layer, picture, token) {
  const bytes = scoreBytes(scale, layer, picture);
  if (!bytes) return null;
  const { low, high } = scale.scores[layer];
  return low[picture] + (bytes[token] / 255) * (high[picture] - low[picture]);
}

/** @param {Scale} scale */
export const isPruned = (scale) => scale.planned < scale.tokens;

/**
 * The last scale that was pruned but not skipped, else the last one that ran: what is worth looking at first.
 * @param {Run} run
 */
export function bestScale(run) {
  const places = run.scales.map((_, i) => i).slice(0, run.done).reverse();
  return places.find((i) => isPruned(run.scales[i]) && run.scales[i].planned > 0) ?? places.find((i) => run.scales[i].planned > 0) ?? 0;
}

/** Tokens that ran and tokens there are, over the scales done so far. @param {Run} run */
export function totals(run) {
  const done = run.scales.filter((scale) => scale.kept);
  return { ran: done.reduce((sum, s) => sum + s.tokensRun, 0), tokens: done.reduce((sum, s) => sum + s.tokens, 0) };
}
