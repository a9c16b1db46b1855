// @ts-check
// Preset and other widgets of StepVAR Pruning agree: choosing a preset sets the ratios, and the settings it names; moving one of
// them makes it Custom.

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

/**
 * What choosing a preset writes into the widgets it has settings for. Where the settings of another preset hold, they go back to
 * their defaults first, so that they do not stay on in a preset that knows nothing of them.
 * @param {Record<string, Record<string, unknown>>} settings by preset @param {string} name
 * @param {Record<string, unknown>} values of the widgets now @param {Record<string, unknown>} defaults
 * @returns {Record<string, unknown>} new values by widget; Custom changes nothing
 */
export function settingsOf(settings, name, values, defaults) {
  if (name === CUSTOM) return {};
  const left = Object.keys(settings).filter((other) => hasSettings(settings, other, values)).flatMap((other) => Object.keys(settings[other]));
  return { ...Object.fromEntries(left.map((key) => [key, defaults[key]])), ...settings[name] };
}

/**
 * Whether every setting a preset names is at its value.
 * @param {Record<string, Record<string, unknown>>} settings @param {string} name @param {Record<string, unknown>} values
 * @returns {boolean}
 */
export function hasSettings(settings, name, values) {
  return Object.entries(settings[name] ?? {}).every(([key, value]) => values[key] === value);
}
