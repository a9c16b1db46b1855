// @ts-check
// Words and numbers of a comparison.

/**
 * @typedef {{psnr: (number | null)[], ssim: number[], edges: number[], seconds: (number | null)[], pruning?: (string | null)[],
 *   a: any[], b: any[], difference: any[]}} Comparison pruning: how each was drawn, null without its trace
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
 * Which picture a menu is about: in the difference mode that; over the pair the side of the divider that was pointed at, else
 * the one that shows more.
 * @param {string} mode @param {number} at of the divider, 0 to 1 @param {number | null} [pointed] 0 to 1 across the pair
 * @returns {"a" | "b" | "difference"}
 */
export function pictureMeant(mode, at, pointed = null) {
  if (mode === "difference") return "difference";
  return (pointed === null ? at >= 0.5 : pointed < at) ? "a" : "b";
}
