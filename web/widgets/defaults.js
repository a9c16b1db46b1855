// @ts-check
// Says behind the name of a widget at -1 which number the connected model runs: "cfg · auto 4.0". A name is all that both
// renderers draw as it is told; it is saved nowhere, and one that the user gave stays.
import { inForce, namesOf } from "../lib/defaults.js";
import { isLinked } from "../lib/graph.js";
import { localeOf, t } from "../lib/i18n.js";
import { after, on, oncePerFrame } from "../lib/listen.js";
import { followPlan } from "./plans.js";

/** @param {any} node @param {{app: any, api: any, graph: EventTarget}} host @returns {(() => void) | void} */
export function attachDefaults(node, host) {
  const names = namesOf(node.comfyClass);
  const widgets = (node.widgets ?? []).filter((/** @type {any} */ w) => names.includes(w.name));
  if (!widgets.length) return;
  /** @type {import("../lib/plan.js").Plan | null} */
  let plan = null;
  /** @type {Map<string, string>} */
  const given = new Map(); // the names that stand there because of this

  function show() {
    const locale = localeOf(host.app);
    let isChanged = false;
    for (const widget of widgets) {
      const slot = node.inputs?.find((/** @type {any} */ input) => input.widget?.name === widget.name);
      const isOwn = widget.label !== undefined && widget.label === given.get(widget.name);
      if (slot?.label || (widget.label && !isOwn && widget.label !== slot?.localized_name && widget.label !== widget.name)) continue; // the user's
      const text = Number(widget.value) === -1 && !isLinked(node, widget.name)
        ? inForce(node.comfyClass, widget.name, plan, t(locale, "defaults.off")) : null;
      const plain = slot?.localized_name ?? widget.name;
      const label = text === null ? plain : t(locale, "defaults.auto", { name: plain, value: text });
      if (text === null && !given.has(widget.name)) continue;
      given.set(widget.name, label);
      isChanged ||= widget.label !== label;
      widget.label = label;
    }
    if (isChanged) node.setDirtyCanvas?.(true, true);
  }
  const schedule = oncePerFrame(show);
  const forget = followPlan(node, host, (found) => { plan = found; show(); });
  const undo = [...widgets.map((/** @type {any} */ w) => after(w, "callback", schedule)), after(node, "onConfigure", schedule),
    after(node, "onConnectionsChange", schedule), on(host.api, "graphChanged", schedule), on(host.graph, "loaded", schedule)];
  return () => {
    schedule.cancel();
    forget();
    undo.forEach((off) => off());
  };
}
