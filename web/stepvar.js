// @ts-check
// The pack's one extension. Everything it adds is optional: without it the nodes work with plain widgets.
import { app } from "../../scripts/app.js";
import { presetFor, ratiosOf } from "./lib/presets.js";

/** Runs `after` whenever the user changes the widget; what was there before still runs. */
function onChange(widget, after) {
  const before = widget.callback;
  widget.callback = function (...args) {
    const result = before?.apply(this, args);
    after();
    return result;
  };
}

/** Keeps the preset and the ratio widgets of one StepVAR Pruning node in agreement. */
function linkPreset(node, presets) {
  const preset = node.widgets?.find((w) => w.name === "preset");
  const ratios = node.widgets?.filter((w) => /^ratio_\d+$/.test(w.name)) ?? [];
  if (!preset || !ratios.length) return;
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

app.registerExtension({
  name: "stepvar.nodes",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "StepVARPruning") return;
    const presets = nodeData.input?.required?.preset?.[1]?.stepvar_presets;
    if (!presets) return;
    const created = nodeType.prototype.onNodeCreated;
    nodeType.prototype.onNodeCreated = function (...args) {
      const result = created?.apply(this, args);
      linkPreset(this, presets);
      return result;
    };
  },
});
