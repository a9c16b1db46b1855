// @ts-check
// The forecast under VAR Accelerator: how much faster the chosen method makes the connected model, and what it leaves out. The
// server works it out, by the same estimate as everywhere; without this module the node works the same.
import { formatNumber } from "../lib/equalizer.js";
import { touched } from "../lib/forecast.js";
import { findDownstream, findUpstream, widgetValue } from "../lib/graph.js";
import { localeOf, t } from "../lib/i18n.js";
import { after, on } from "../lib/listen.js";
import { addElement, el } from "./dom.js";
import { keepMounted, passToCanvas } from "./mount.js";
import { plansOf, questionOf } from "./plans.js";
import { STYLE } from "./style.js";

const HEIGHT = 44;
const PAUSE = 150; // ms: a slider that is dragged asks once it rests

/** @param {any} node @param {{app: any, api: any}} host @returns {(() => void) | void} */
export function attachForecast(node, { app, api }) {
  const methods = node.constructor.nodeData?.input?.required?.method?.[1]?.stepvar_methods;
  if (!methods || !node.addDOMWidget) return;
  const [speed, kept] = [el("b"), el("span")];
  const element = el("div", { className: "stepvar stepvar-forecast", role: "status" }, el("style", { textContent: STYLE }), speed, kept);
  const mount = keepMounted(node, element);
  let timer = 0;
  let asked = "";

  function question() {
    const root = app.rootGraph ?? app.graph;
    const model = questionOf(root, node);
    if (!model) return null;
    const value = (/** @type {any} */ at, /** @type {string} */ name) => (at ? widgetValue(root, at, name) : undefined);
    const sampler = findDownstream(root, node, "VAR_MODEL", "VARSampler");
    const latent = sampler && findUpstream(root, sampler, "LATENT", "EmptyVARLatent");
    const method = value(node, "method");
    const own = Object.fromEntries((methods[method] ?? []).map((/** @type {string} */ name) => [name, value(node, name)]));
    return { ...model, size: value(latent, "size"), aspect_ratio: value(latent, "aspect_ratio"), cfg: value(sampler, "cfg"), method, ...own };
  }

  async function refresh() {
    const wanted = question();
    const key = JSON.stringify(wanted);
    mount.check();
    if (key === asked) return;
    asked = key;
    const { plan, error } = wanted ? await plansOf(api)(wanted) : { plan: null, error: null };
    if (asked !== key) return;
    if (!plan) asked = "";
    show(plan?.forecast ?? null, error);
  }

  /** @param {import("../lib/forecast.js").Forecast | null} forecast @param {string | null} error */
  function show(forecast, error) {
    const locale = localeOf(app);
    const say = (/** @type {string} */ key, /** @type {Record<string, string | number>} */ values = {}) => t(locale, key, values);
    const speeds = forecast ? [forecast.speedup].flat().map((speedup) => formatNumber(speedup, locale, 2)) : [];
    speed.textContent = speeds.length ? say("forecast.speed", { speedup: speeds.join("–") }) : "";
    const parts = (forecast ? touched(forecast) : []).map(({ grid, percent }) => (percent ? say("forecast.keeps", { grid, percent }) : say("forecast.skips", { grid })));
    kept.textContent = !forecast ? error ?? say("forecast.unknown") : parts.join(" · ") || say("forecast.all");
    element.title = kept.textContent;
    element.classList.toggle("is-error", Boolean(error));
  }

  const schedule = () => {
    clearTimeout(timer);
    timer = setTimeout(refresh, PAUSE);
  };
  addElement(node, app, "forecast", "stepvar_forecast", element, { margin: 10, getMinHeight: () => HEIGHT + 20, getMaxHeight: () => HEIGHT + 20 });
  show(null, null);
  const undo = [...["onConfigure", "onAdded", "onConnectionsChange"].map((method) => after(node, method, schedule)),
    ...node.widgets.map((/** @type {any} */ w) => after(w, "callback", schedule)), on(api, "graphChanged", schedule), passToCanvas(element, () => app.canvas)];
  schedule();
  return () => {
    clearTimeout(timer);
    undo.forEach((off) => off());
    mount.retire();
  };
}
