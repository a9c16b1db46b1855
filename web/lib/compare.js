// @ts-check
// Words and numbers of a comparison.

/**
 * @typedef {{psnr: (number | null)[], ssim: number[], edges: number[], seconds: (number | null)[], pruning?: (string | null)[],
 *   predicted?: number | null, a: any[], b: any[], difference: any[]}} Comparison pruning: how each was drawn, null without its trace; predicted:
 * how much faster b should be by the work it did, null where that is not known
 */

/** Decibels with one decimal; null, which stands for infinity, is said in words. @param {number | null} value @param {string} same */
export const decibels = (value, same) => (value === null ? same : `${value.toFixed(1)} dB`);

/**
 * How much faster b was: the key of the sentence and its number; null without both times.
 * @param {(number | null)[]} seconds of a and b
 * @returns {{key: "compare.faster" | "compare.slower" | "compare.equal", times: string} | null}
 */
export function speedUp([a, b]) {
  if (!a || !b) return null;
  const ratio = a / b;
  const times = (ratio >= 1 ? ratio : 1 / ratio).toFixed(2);
  return { key: times === "1.00" ? "compare.equal" : ratio > 1 ? "compare.faster" : "compare.slower", times };
}

const FAR_OFF = 1.25; // a measured speed-up beyond this factor of the predicted one says more of the machine than of the method

/** Whether one timing contradicts what the work says. @param {(number | null)[]} seconds of a and b @param {number | null} [predicted] */
export function isContradicted([a, b], predicted) {
  if (!a || !b || !predicted) return false;
  const off = a / b / predicted;
  return off > FAR_OFF || off < 1 / FAR_OFF;
}

/**
 * The part of a picture in view: zoom from 1 to 16, x and y of its middle from 0 to 1, so that no edge leaves the stage.
 * @typedef {{zoom: number, x: number, y: number}} Focus
 */
/** @type {Focus} */
export const WHOLE = { zoom: 1, x: 0.5, y: 0.5 };
const MOST = 16;

/** @param {Focus} focus @returns {Focus} the nearest one that shows nothing beyond the picture */
function within({ zoom, x, y }) {
  const half = 0.5 / zoom;
  const clamp = (/** @type {number} */ v) => Math.min(Math.max(v, half), 1 - half);
  return { zoom, x: clamp(x), y: clamp(y) };
}

/**
 * Zooms by a factor about a point of the view, which stays where it is.
 * @param {Focus} focus @param {number} factor @param {number} [px] 0 to 1 across the view @param {number} [py] @returns {Focus}
 */
export function zoomed(focus, factor, px = 0.5, py = 0.5) {
  const zoom = Math.min(MOST, Math.max(1, focus.zoom * factor));
  const move = 1 / focus.zoom - 1 / zoom;
  return within({ zoom, x: focus.x + (px - 0.5) * move, y: focus.y + (py - 0.5) * move });
}

/** The view moved with the pointer. @param {Focus} focus @param {number} dx in shares of the view @param {number} dy @returns {Focus} */
export function panned(focus, dx, dy) {
  return within({ ...focus, x: focus.x - dx / focus.zoom, y: focus.y - dy / focus.zoom });
}

/** What stands on a picture: its letter, and how it was drawn where a trace says so. @param {string} letter @param {string | null} [pruning] */
export const tagOf = (letter, pruning) => (pruning && pruning !== "off" ? `${letter} · ${pruning.split(/[ ,]/)[0]}` : letter);

/** The entry for a picture of a list that holds one, or one for each. @template T @param {T[]} list @param {number} index */
export const nth = (list, index) => list[Math.min(index, list.length - 1)];

/**
 * Where the divider goes on a key: a step of 1 %, 10 % with Shift or Page, the ends with Home and End; null for other keys.
 * @param {number} at 0 to 1 @param {string} key @param {boolean} isShift
 */
export function moveDivider(at, key, isShift) {
  const step = isShift ? 0.1 : 0.01;
  const to = { ArrowLeft: at - step, ArrowDown: at - step, ArrowRight: at + step, ArrowUp: at + step, PageDown: at - 0.1, PageUp: at + 0.1,
    Home: 0, End: 1 }[key];
  return to === undefined ? null : Math.round(Math.min(Math.max(to, 0), 1) * 1000) / 1000;
}

/**
 * Which picture a menu is about: the one shown alone, or that of the pair of which more is seen.
 * @param {string} shown wipe, a, b or difference @param {number} at of the divider, 0 to 1
 * @returns {"a" | "b" | "difference"}
 */
export function pictureMeant(shown, at) {
  if (shown !== "wipe") return /** @type {"a" | "b" | "difference"} */ (shown);
  return at >= 0.5 ? "a" : "b";
}
