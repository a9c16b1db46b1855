// @ts-check
// What VAR Accelerator's forecast says of the scales a method touches.
import { gridName } from "./plan.js";

/** speedup: lowest and highest where each picture decides. @typedef {{speedup: number | number[], passes: {size: number[], tokens: number, kept: number}[]}} Forecast */

/**
 * The passes that do not run every token, last to first, each as its grid and the share it keeps in whole percent; 0 = skipped.
 * @param {Forecast} forecast @returns {{grid: string, percent: number}[]}
 */
export function touched({ passes }) {
  return passes.filter(({ tokens, kept }) => kept < tokens).reverse()
    .map(({ size, tokens, kept }) => ({ grid: gridName(size), percent: kept ? Math.max(1, Math.round((100 * kept) / tokens)) : 0 }));
}
