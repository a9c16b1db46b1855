// @ts-check
// The plan of the model that a node's wire comes from, kept up to date for widgets that show it.
import { findUpstream, widgetValue } from "../lib/graph.js";
import { after, on, oncePerFrame } from "../lib/listen.js";
import { createPlans } from "../lib/plans.js";

/** One per page, so that no question is asked twice. @type {ReturnType<typeof createPlans> | null} */
let shared = null;

/** @param {any} api the host's @returns {ReturnType<typeof createPlans>} */
export function plansOf(api) {
  shared ??= createPlans((path) => api.fetchApi(path));
  return shared;
}

/** The model a node's wire comes from, as a question to the server; null without one. @param {any} root @param {any} node */
export function questionOf(root, node) {
  const loader = findUpstream(root, node, "VAR_MODEL", "VARModelLoader");
  const model = loader && widgetValue(root, loader, "model_name");
  return typeof model === "string" ? { model, weight_dtype: widgetValue(root, loader, "weight_dtype") } : null;
}

/**
 * Calls `take` with the plan of the connected model at its full size, and with null without one; whenever it changes.
 * @param {any} node @param {{app: any, api: any}} host @param {(plan: import("../lib/plan.js").Plan | null, error: string | null) => void} take
 * @param {Record<string, string>} [more] what else to ask
 * @returns {() => void} ends it
 */
export function followPlan(node, { app, api }, take, more = {}) {
  let asked = "";
  let isGone = false;
  async function refresh() {
    const question = questionOf(app.rootGraph ?? app.graph, node);
    const key = JSON.stringify(question);
    if (key === asked) return;
    asked = key;
    const { plan, error } = question ? await plansOf(api)({ ...question, ...more }) : { plan: null, error: null };
    if (isGone || asked !== key) return;
    if (question && !plan) asked = ""; // a file may be there the next time
    take(plan, error);
  }
  const schedule = oncePerFrame(refresh);
  const undo = [...["onConfigure", "onAdded", "onConnectionsChange"].map((method) => after(node, method, schedule)), on(api, "graphChanged", schedule)];
  schedule();
  return () => {
    isGone = true;
    schedule.cancel();
    undo.forEach((off) => off());
  };
}
