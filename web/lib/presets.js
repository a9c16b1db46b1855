// @ts-check
// Preset and ratio widgets of StepVAR Pruning agree: choosing a preset sets the ratios, moving a ratio makes it Custom.

export const CUSTOM = "Custom";

/**
 * Ratio values of a preset, one per widget; null for Custom or an unknown name, which change nothing.
 * @param {Record<string, number[]>} presets @param {string} name @param {number} count
 * @returns {number[] | null}
 */
export function ratiosOf(presets, name, count) {
  const ratios = presets[name];
  return ratios ? Array.from({ length: count }, (_, i) => ratios[i] ?? 0) : null;
}

/**
 * What the preset widget should show for these ratios: the name it has while they match it, else Custom.
 * @param {Record<string, number[]>} presets @param {string} shown @param {number[]} ratios
 * @returns {string}
 */
export function presetFor(presets, shown, ratios) {
  const wanted = ratiosOf(presets, shown, ratios.length);
  return wanted && wanted.every((r, i) => Math.abs(r - ratios[i]) < 1e-6) ? shown : CUSTOM;
}
