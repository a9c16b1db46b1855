// @ts-check
// Says behind the name of a widget at -1 which number the connected model runs: "cfg · auto 4.0".
import { inForce, namesOf } from "../lib/defaults.js";
import { isLinked } from "../lib/graph.js";
import { localeOf, t } from "../lib/i18n.js";
import { after, on, oncePerFrame } from "../lib/listen.js";
import { createNames } from "./names.js";
import { followPlan } from "./plans.js";

/** @param {any} node @param {{app: any, api: any, graph: EventTarget}} host @returns {(() => void) | void} */
export function attachDefaults(node, host) {
  const widgets = (node.widgets ?? []).filter((/** @type {any} */ w) => namesOf(node.comfyClass).includes(w.name));
  if (!widgets.length) return;
  /** @type {import("../lib/plan.js").Plan | null} */
  let plan = null;
  const names = createNames(node);

  function show() {
    const locale = localeOf(host.app);
    for (const widget of widgets) {
      const text = Number(widget.value) === -1 && !isLinked(node, widget.name)
        ? inForce(node.comfyClass, widget.name, plan, t(locale, "defaults.off")) : null;
      names.set(widget, text === null ? null : t(locale, "defaults.auto", { name: names.plain(widget), value: text }));
    }
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
