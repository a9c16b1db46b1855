// @ts-check
// Empty VAR Latent offers what the connected model can draw.
import { offered } from "../lib/canvases.js";
import { after, on } from "../lib/listen.js";
import { touch } from "./names.js";
import { followPlan } from "./plans.js";

/** @param {any} node @param {{app: any, api: any, graph: EventTarget}} host @returns {(() => void) | void} */
export function attachCanvases(node, host) {
  const find = (/** @type {string} */ name) => node.widgets?.find((/** @type {any} */ w) => w.name === name);
  const [size, ratio] = [find("size"), find("aspect_ratio")];
  if (!Array.isArray(size?.options?.values) || !Array.isArray(ratio?.options?.values)) return;
  const all = { size: [...size.options.values], aspect_ratio: [...ratio.options.values] };
  /** @type {Record<string, string[]> | undefined} */
  let canvases;

  function show() {
    const now = offered(canvases, all, { size: size.value, aspect_ratio: ratio.value });
    const changed = [[size, now.size], [ratio, now.aspect_ratio]].filter(([widget, values]) => widget.options.values.join() !== values.join());
    for (const [widget, values] of changed) widget.options.values = values;
    if (changed.length) touch(node);
  }
  const undo = [followPlan(node, host, (plan) => { canvases = plan?.canvases; show(); }, { canvases: "1" }), after(size, "callback", show), after(ratio, "callback", show),
    after(node, "onConfigure", show), on(host.graph, "loaded", show)];
  return () => undo.forEach((off) => off());
}
