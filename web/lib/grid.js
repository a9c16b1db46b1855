// @ts-check
// Where the cells of a grid lie on a canvas, in whole pixels, and what colour each has.
import { PRUNED, viridis } from "./palette.js";

const MOST_OF = 0.92; // of the room: a picture gives up no more than the rest for cells of one size

/**
 * The largest size of that shape within a box, in whole pixels, and a whole multiple of the grid where that costs little.
 * @param {{width: number, height: number}} box in pixels @param {{width: number, height: number}} picture its shape
 * @param {number[]} size [t, h, w] of the grid the cells are for
 * @returns {{left: number, top: number, width: number, height: number}} centred
 */
export function fit(box, picture, [, h, w]) {
  const zoom = Math.min(box.width / picture.width, box.height / picture.height);
  const [wide, high] = [picture.width * zoom, picture.height * zoom].map((length) => Math.max(1, Math.floor(length + 1e-9)));
  const snap = (length, cells) => (length >= cells ? Math.floor(length / cells) * cells : length);
  let [width, height] = [snap(wide, w), snap(high, h)];
  if (Math.abs(picture.width / picture.height - w / h) < 1e-6 && width >= w && height >= h) {
    const cell = Math.min(width / w, height / h); // square cells stay square
    [width, height] = [cell * w, cell * h];
  }
  if (width < MOST_OF * wide || height < MOST_OF * high) [width, height] = [wide, high]; // a fine grid's cells may differ by a pixel
  return { left: Math.floor((box.width - width) / 2), top: Math.floor((box.height - height) / 2), width, height };
}

/** Whole-pixel borders of n cells over a length, n + 1 of them. @param {number} n @param {number} length @returns {number[]} */
export function edges(n, length) {
  return Array.from({ length: n + 1 }, (_, i) => Math.round((i * length) / n));
}

/**
 * The token under a point, -1 outside.
 * @param {number} x of the canvas's left @param {number} y of its top @param {{width: number, height: number}} canvas
 * @param {number[]} size @param {number} frame from 0
 */
export function tokenAt(x, y, canvas, [, h, w], frame) {
  if (x < 0 || y < 0 || x >= canvas.width || y >= canvas.height) return -1;
  const cell = (place, n, length) => edges(n, length).findIndex((edge) => place < edge) - 1;
  return frame * h * w + cell(y, h, canvas.height) * w + cell(x, w, canvas.width);
}

/**
 * Red, green, blue and alpha of every cell of one frame.
 * kept: clear where a token ran, dark where it was filled. Scores: viridis, yellow is high.
 * @param {string} layer @param {ArrayLike<number>} values of the frame: 0 or 1, or score bytes @param {number} opacity 0 to 1
 * @returns {Uint8ClampedArray} 4 per cell
 */
export function cellColours(layer, values, opacity) {
  const out = new Uint8ClampedArray(4 * values.length);
  const alpha = Math.round(opacity * 255);
  for (let i = 0; i < values.length; i++) {
    if (layer === "kept" && values[i]) continue;
    out.set(layer === "kept" ? PRUNED : viridis(values[i] / 255), 4 * i);
    out[4 * i + 3] = alpha;
  }
  return out;
}

/**
 * The lines between kept and filled cells, as [x, y, width, height] in pixels, all on the kept side.
 * @param {ArrayLike<number>} kept of one frame @param {number[]} size @param {{width: number, height: number}} canvas
 * @param {number} thickness in pixels
 * @returns {number[][]}
 */
export function borders(kept, [, h, w], canvas, thickness) {
  const xs = edges(w, canvas.width);
  const ys = edges(h, canvas.height);
  const lines = [];
  for (let r = 0; r < h; r++) {
    for (let c = 0; c < w; c++) {
      if (!kept[r * w + c]) continue;
      const [left, right, top, bottom] = [xs[c], xs[c + 1], ys[r], ys[r + 1]];
      const across = Math.min(thickness, right - left);
      const along = Math.min(thickness, bottom - top);
      if (c > 0 && !kept[r * w + c - 1]) lines.push([left, top, across, bottom - top]);
      if (c < w - 1 && !kept[r * w + c + 1]) lines.push([right - across, top, across, bottom - top]);
      if (r > 0 && !kept[(r - 1) * w + c]) lines.push([left, top, right - left, along]);
      if (r < h - 1 && !kept[(r + 1) * w + c]) lines.push([left, bottom - along, right - left, along]);
    }
  }
  return lines;
}
