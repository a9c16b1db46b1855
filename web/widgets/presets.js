// @ts-check
// Keeps the preset of a StepVAR Pruning node and the widgets it sets in agreement.
import { CUSTOM, hasSettings, presetFor, ratiosOf, settingsOf } from "../lib/presets.js";

/** Runs `after` whenever the user changes the widget; what was there before still runs. */
function onChange(widget, after) {
  const before = widget.callback;
  widget.callback = function (...args) {
    const result = before?.apply(this, args);
    after();
    return result;
  };
}

/** Choosing a preset sets the ratios and the settings it names; moving one of them makes it Custom. */
export function attachPresets(node) {
  const preset = node.widgets?.find((w) => w.name === "preset");
  const inputs = node.constructor.nodeData?.input?.required ?? {};
  const { stepvar_presets: presets, stepvar_preset_settings: settings = {} } = inputs.preset?.[1] ?? {};
  const ratios = node.widgets?.filter((w) => /^ratio_\d+$/.test(w.name)) ?? [];
  if (!preset || !presets || !ratios.length) return;
  const named = new Set(Object.values(settings).flatMap(Object.keys));
  const others = node.widgets.filter((w) => named.has(w.name));
  const values = () => Object.fromEntries(others.map((w) => [w.name, w.value]));
  const defaults = Object.fromEntries(others.map((w) => [w.name, inputs[w.name]?.[1]?.default]));
  onChange(preset, () => {
    const wanted = ratiosOf(presets, preset.value, ratios.length);
    if (wanted) ratios.forEach((w, i) => { w.value = wanted[i]; });
    const changed = settingsOf(settings, preset.value, values(), defaults);
    for (const w of others) if (w.name in changed) w.value = changed[w.name];
    node.setDirtyCanvas?.(true, true);
  });
  // ratios say nothing while a setting moves: the equalizer writes what a preset runs on this model, which may be less
  const becomes = (/** @type {string} */ shown) => {
    preset.value = hasSettings(settings, shown, values()) ? shown : CUSTOM;
    node.setDirtyCanvas?.(true, true);
  };
  for (const widget of ratios) onChange(widget, () => becomes(presetFor(presets, preset.value, ratios.map((w) => w.value))));
  for (const widget of others) onChange(widget, () => becomes(preset.value));
}
