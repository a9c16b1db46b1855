// @ts-check
// Keeps the preset and the ratio widgets of a StepVAR Pruning node in agreement.
import { presetFor, ratiosOf } from "../lib/presets.js";

/** Runs `after` whenever the user changes the widget; what was there before still runs. */
function onChange(widget, after) {
  const before = widget.callback;
  widget.callback = function (...args) {
    const result = before?.apply(this, args);
    after();
    return result;
  };
}

/** Choosing a preset sets the ratios; moving a ratio makes it Custom. */
export function attachPresets(node) {
  const preset = node.widgets?.find((w) => w.name === "preset");
  const presets = node.constructor.nodeData?.input?.required?.preset?.[1]?.stepvar_presets;
  const ratios = node.widgets?.filter((w) => /^ratio_\d+$/.test(w.name)) ?? [];
  if (!preset || !presets || !ratios.length) return;
  onChange(preset, () => {
    const values = ratiosOf(presets, preset.value, ratios.length);
    if (values) ratios.forEach((w, i) => { w.value = values[i]; });
    node.setDirtyCanvas?.(true, true);
  });
  for (const ratio of ratios) {
    onChange(ratio, () => {
      preset.value = presetFor(presets, preset.value, ratios.map((w) => w.value));
      node.setDirtyCanvas?.(true, true);
    });
  }
}
