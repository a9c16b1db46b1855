// @ts-check
// Colours of the overlays: the same as stepvar_core/viewing/overlay.py draws, so that a saved picture looks like the widget.
// Okabe and Ito's orange and a dark blue, and viridis: told apart with any kind of colour vision.

/** @typedef {[number, number, number]} Colour red, green, blue, 0 to 255 */

/** @param {number[]} share 0 to 1 @returns {Colour} */
const bytes = (share) => /** @type {Colour} */ (share.map((v) => Math.round(v * 255)));

export const EDGE = bytes([0.902, 0.624, 0.0]);
export const PRUNED = bytes([0.06, 0.09, 0.25]);
const VIRIDIS = [[0.267, 0.005, 0.329], [0.229, 0.322, 0.546], [0.128, 0.567, 0.551], [0.369, 0.789, 0.383], [0.993, 0.906, 0.144]];

/** @param {number} value 0 to 1 @returns {Colour} */
export function viridis(value) {
  const place = Math.min(Math.max(value, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return bytes(VIRIDIS[low].map((v, i) => v + (place - low) * (VIRIDIS[low + 1][i] - v)));
}

/** @param {Colour} colour @param {number} [alpha] @returns {string} for CSS and canvas */
export const css = (colour, alpha = 1) => `rgb(${colour.join(" ")} / ${alpha})`;
