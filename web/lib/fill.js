// @ts-check
// Where pruned tokens take their value from: the same rule as stepvar_core's nearest_kept, tie for tie.

const ANCHOR_STRIDE = 3;

/**
 * For every token the index of the nearest kept one of its picture, in raster order; -1 everywhere if none was kept.
 * Exact integer distance, ties to the lower index; in a video the same frame first, and a frame that kept nothing takes
 * the nearest in space and time. One pass per axis over keys distance * tokens + index, as a separable distance transform.
 * @param {ArrayLike<number>} kept 0 or 1 per token @param {number[]} size [t, h, w]
 * @returns {Int32Array}
 */
export function nearestKept(kept, [t, h, w]) {
  const tokens = t * h * w;
  let keys = Float64Array.from({ length: tokens }, (_, i) => (kept[i] ? i : Infinity));
  keys = closest(keys, tokens, w, 1);
  keys = closest(keys, tokens, h, w);
  if (t > 1) {
    const anywhere = closest(keys, tokens, t, h * w);
    keys = keys.map((key, i) => (key < Infinity ? key : anywhere[i]));
  }
  return Int32Array.from(keys, (key) => (key < Infinity ? key % tokens : -1));
}

/** Minimum, along one axis of so many places a stride apart, of key + squared distance. */
function closest(keys, tokens, places, stride) {
  const out = new Float64Array(tokens);
  for (let i = 0; i < tokens; i++) {
    const place = Math.floor(i / stride) % places;
    let best = Infinity;
    for (let other = 0; other < places; other++) {
      const key = keys[i + (other - place) * stride] + (other - place) ** 2 * tokens;
      if (key < best) best = key;
    }
    out[i] = best;
  }
  return out;
}

/** The tokens of the lattice that the `anchor` fill always keeps. @param {number[]} size @returns {Uint8Array} */
export function anchors([t, h, w]) {
  const isCentre = (place, n) => place % ANCHOR_STRIDE === Math.min(ANCHOR_STRIDE >> 1, n - 1);
  return Uint8Array.from({ length: t * h * w }, (_, i) => Number(isCentre(Math.floor(i / w) % h, h) && isCentre(i % w, w)));
}

/**
 * The token each token takes its value from: itself where it was kept; -1 where the fill copies from no token.
 * @param {ArrayLike<number>} kept @param {number[]} size @param {string} fill a fill of StepVAR Pruning
 * @returns {Int32Array}
 */
export function sources(kept, size, fill) {
  if (fill === "zero" || fill === "cache" || fill === "repeat") return Int32Array.from(kept, (is, i) => (is ? i : -1));
  if (fill !== "anchor") return nearestKept(kept, size);
  const lattice = anchors(size);
  const nearest = nearestKept(Uint8Array.from(kept, (is, i) => is && lattice[i]), size);
  return nearest.map((from, i) => (kept[i] ? i : from));
}

/** Row, column and frame of a token, from 1. @param {number} token @param {number[]} size */
export function placeOf(token, [, h, w]) {
  return { row: (Math.floor(token / w) % h) + 1, column: (token % w) + 1, frame: Math.floor(token / (h * w)) + 1 };
}
