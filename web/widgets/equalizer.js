// @ts-check
// The equalizer of StepVAR Pruning: one bar per scale above the ratio widgets, as high as the share of tokens it keeps, and
// what that saves. The ratio widgets stay the only place where values live; without this module the node works the same.
import { createCalibration } from "../lib/calibration.js";
import { formatBytes, formatNumber, isMovable, moved, ratioAfterKey, ratioAt, rounded, viewOf } from "../lib/equalizer.js";
import { findDownstream, findUpstream, isLinked, nodeOfMessage, sourceWidget, widgetValue } from "../lib/graph.js";
import { localeOf, t } from "../lib/i18n.js";
import { after, around, on, oncePerFrame } from "../lib/listen.js";
import { costOf, estimate, passesOf } from "../lib/plan.js";
import { CUSTOM, ratiosOf } from "../lib/presets.js";
import { addElement } from "./dom.js";
import { buildFace } from "./equalizer_face.js";
import { keepMounted, passToCanvas } from "./mount.js";
import { createNames, hide, touch } from "./names.js";
import { plansOf, questionOf } from "./plans.js";

const HEIGHT = 236; // of the face, in CSS pixels
const FOOT = 22; // the fold below it, where the editor has none of its own
const GROWTH = 200; // a taller node gives its bars up to this much more
const [MUTED, BYPASSED] = [2, 4]; // the editor's modes of a node
const GRAB = 8; // a press this close to a bar's cap takes it where it is; elsewhere the cap jumps to the pointer
const SETTINGS = ["first_layer", "scope", "fill", "coverage", "guidance_late", "guidance_late_scales"];

/** What equalizers of one page share: answers of the server, and the times of the last runs. */
export function createEqualizer() {
  const calibration = createCalibration();
  return function attachEqualizer(/** @type {any} */ node, /** @type {{app: any, api: any}} */ host) {
    return attach(node, host, plansOf(host.api), calibration);
  };
}

/**
 * @param {any} node @param {{app: any, api: any}} host @param {ReturnType<typeof plansOf>} plans
 * @param {import("../lib/calibration.js").Calibration} calibration
 * @returns {(() => void) | void}
 */
function attach(node, host, plans, calibration) {
  const find = (/** @type {string} */ name) => node.widgets?.find((/** @type {any} */ w) => w.name === name);
  const preset = find("preset");
  const faders = node.widgets?.filter((/** @type {any} */ w) => /^ratio_\d+$/.test(w.name)) ?? [];
  const { stepvar_presets: presets = {}, stepvar_preset_settings: presetSettings = {} } = node.constructor.nodeData?.input?.required?.preset?.[1] ?? {};
  if (!preset || !faders.length || !node.addDOMWidget) return;

  const root = () => host.app.rootGraph ?? host.app.graph;
  const names = createNames(node);
  const hasFold = () => !globalThis.LiteGraph?.vueNodesMode; // Nodes 2.0 has its own
  const face = buildFace({ onFold, onPress, onMove, onRelease, onReset, onKey, onKeyEnd });
  const mount = keepMounted(node, face.element);
  /** @type {import("../lib/plan.js").Plan | null} */
  let plan = null;
  /** @type {string | null} */
  let error = null;
  /** @type {string | null} */
  let asked = null; // the question that plan and error answer, or will
  let isReading = false;
  let lastPreset = preset.value; // what bars go back to; Custom = to every token
  /** @type {import("../lib/equalizer.js").View} */
  let view = read();
  /** @type {null | {place: number, start: number[], offset: number}} */
  let drag = null;
  let isOpen = false; // a change of the editor's history that is under way
  let isConfiguring = false; // saved values and links are coming in: nobody changed anything
  let labelled = ""; // the speeds that the preset's menu says
  let isSaved = false; // what the widgets hold came from a file and the model's answer is still to come

  // the picture of the node's state ------------------------------------------------------------------------------

  function settings() {
    const sampler = findDownstream(root(), node, "VAR_MODEL", "VARSampler");
    const latent = sampler && findUpstream(root(), sampler, "LATENT", "EmptyVARLatent");
    const own = Object.fromEntries(SETTINGS.map((name) => [name, find(name)?.value]));
    const value = (/** @type {any} */ at, /** @type {string} */ name) => (at ? widgetValue(root(), at, name) : undefined);
    return { ...own, cfg: value(sampler, "cfg") ?? -1, batch: value(latent, "batch_size") ?? 1, size: value(latent, "size"),
      aspect_ratio: value(latent, "aspect_ratio") };
  }

  /** The preset that will run: a link may bring another than the widget's own. */
  function presetNow() {
    return widgetValue(root(), node, "preset") ?? preset.value;
  }

  function read() {
    const said = (/** @type {any} */ w) => ({ ratio: Number(widgetValue(root(), node, w.name) ?? w.value), linked: isLinked(node, w.name) });
    return viewOf({ plan, presets, preset: presetNow(), settings: settings(), faders: faders.map(said) });
  }

  /** Whether a link brings the bar's ratio only as the workflow runs. @param {number} place */
  function isUnknown(place) {
    return place > 0 && widgetValue(root(), node, faders[place - 1].name) === undefined;
  }

  /** The model this node's wire comes from, as a question to the server; null without one. */
  function question() {
    const asked = questionOf(root(), node);
    if (!asked) return null;
    const { size, aspect_ratio } = settings();
    return { ...asked, aspect_ratio, size };
  }

  async function refresh() {
    const wanted = question();
    const key = JSON.stringify(wanted);
    if (key !== asked) {
      asked = key;
      [plan, error, isReading] = [wanted && plan?.model === wanted.model ? plan : null, null, Boolean(wanted)];
      if (wanted) {
        draw();
        const answer = await plans(wanted);
        if (asked !== key) return; // another model was connected meanwhile
        [plan, error, isReading] = [answer.plan, answer.error, false];
        if (plan && !isSaved) settle();
        isSaved &&= !plan;
      }
    }
    draw();
  }
  const schedule = oncePerFrame(refresh);

  function draw() {
    view = read();
    const locale = localeOf(host.app);
    const say = (/** @type {string} */ key, /** @type {Record<string, string | number>} */ values = {}) => t(locale, `equalizer.${key}`, values);
    face.draw(view, texts(say, locale));
    nameAll(say, locale);
    mount.check();
  }

  /** What decides the ratios in place of the bars: a goal, a bypass; null where the bars do. @param {(key: string, values?: any) => string} say */
  function overruling(say) {
    if (node.mode === BYPASSED || node.mode === MUTED) return { speedup: "1.00×", caption: say("bypassed"), note: say("bypassed") };
    const goal = widgetValue(root(), node, "auto_goal") ?? find("auto_goal")?.value ?? "off";
    if (goal === "off") return null;
    const value = widgetValue(root(), node, "auto_value") ?? find("auto_value")?.value;
    const target = goal === "seconds" ? { speedup: say("goal_seconds", { value }), caption: say("goal_time") } : { speedup: String(value), caption: say("goal_quality") };
    return { ...target, note: say("auto", { goal }) };
  }

  /** Names of ratios by their scale's grid, of presets with their speed; and only what counts is in sight. @param {(key: string, values?: any) => string} say @param {string} locale */
  function nameAll(say, locale) {
    faders.forEach((/** @type {any} */ widget, /** @type {number} */ i) => {
      const label = view.columns.find((c) => c.place === i + 1)?.label;
      names.set(widget, label ? say("pruned", { grid: label }) : null);
    });
    const known = plan;
    const speedOf = (/** @type {string} */ name) => {
      const ratios = known && ratiosOf(known.presets, name, faders.length);
      return ratios ? ` · ${formatNumber(estimate(known, ratios, { ...settings(), ...presetSettings[name] }).speedup, locale, 2)}×` : "";
    };
    const speeds = Object.fromEntries(Object.keys(presets).map((name) => [name, speedOf(name)]));
    const key = JSON.stringify(speeds);
    const isNewSpeed = key !== labelled;
    labelled = key;
    preset.options.getOptionLabel = (/** @type {string | null | undefined} */ name) => `${name ?? ""}${speeds[name ?? ""] ?? ""}`;
    if ([foldAll(), isNewSpeed].some(Boolean)) touch(node);
  }

  /** Hides what does not count: the goal's value without a goal, and what is folded. @returns {boolean} whether that changed */
  function foldAll() {
    const value = find("auto_value");
    const goal = widgetValue(root(), node, "auto_goal") ?? find("auto_goal")?.value;
    return [value && hide(value, goal === "off" && !isLinked(node, "auto_value")), ...node.widgets.map(fold)].some(Boolean);
  }

  /**
   * Nodes 2.0 folds what is advanced, and counts by the widget's mark how high a node is; the canvas leaves a gap there, so that
   * on it such a widget is hidden. One with a link stays in sight.
   * @param {any} widget @returns {boolean} whether that changed
   */
  function fold(widget) {
    if (!widget.options?.advanced) return false;
    const isInSight = isLinked(node, widget.name);
    const wanted = hasFold() ? { hidden: !node.showAdvanced && !isInSight, advanced: false } : { hidden: false, advanced: !isInSight };
    if (Boolean(widget.hidden) === wanted.hidden && Boolean(widget.advanced) === wanted.advanced) return false;
    Object.assign(widget, wanted);
    return true;
  }

  /** A goal brings its value into sight, which takes room. */
  function onGoal() {
    draw();
    node.setSize?.([node.size[0], Math.max(node.size[1], node.computeSize?.()[1] ?? 0)]);
  }

  function onFold() {
    node.showAdvanced = !node.showAdvanced;
    draw();
    node.setSize?.([node.size[0], node.computeSize()[1]]);
  }

  /** @param {(key: string, values?: Record<string, string | number>) => string} say @param {string} locale */
  function texts(say, locale) {
    const cost = view.cost;
    const number = (/** @type {number} */ n) => formatNumber(n, locale);
    const percent = (/** @type {number} */ share) => number(Math.round(100 * share));
    const overruled = overruling(say);
    const has = (/** @type {string} */ state) => view.columns.some((c) => c.state === state);
    const notes = [overruled?.note ?? null, has("ignored") ? say("ignores", { preset: presetNow() }) : null,
      isLinked(node, "preset") ? say("preset_linked") : null, view.isAdjusted ? say("adjusted") : null,
      view.columns.some((c) => c.state === "linked" && isUnknown(c.place)) ? say("guesses") : null];
    const remark = cost ? "" : error ?? (asked === "null" ? say("connect") : isReading ? say("reading") : say("unknown"));
    const seconds = cost && calibration.predict(modelKey(), cost.passes.map((p) => p.flops));
    return {
      title: say("title"), legend: view.cost ? say("legend") : "", hint: say("hint"), note: notes.find(Boolean) ?? null,
      remark, isError: Boolean(error),
      isIdle: Boolean(overruled), fold: hasFold() ? (node.showAdvanced ? say("fewer") : say("more")) : "",
      speedup: overruled?.speedup ?? (cost ? `${formatNumber(cost.speedup, locale, cost.speedup < 10 ? 2 : 1)}×` : "–"), speedupCaption: overruled?.caption ?? say("speedup"),
      tokens: cost && !overruled ? say("tokens", { kept: number(cost.kept), tokens: number(cost.tokens) }) : "",
      time: !cost || overruled ? "" : seconds == null ? say("run_once")
        : seconds < 0.995 ? say("milliseconds", { milliseconds: number(Math.round(seconds * 1000)) })
          : say("seconds", { seconds: formatNumber(seconds, locale, seconds < 10 ? 2 : 1) }),
      memory: cost ? formatBytes(cost.weightsBytes + cost.kvBytes, locale) : "",
      memoryParts: cost ? say("memory_parts", { weights: formatBytes(cost.weightsBytes, locale), cache: formatBytes(cost.kvBytes, locale),
        batch: number(Number(settings().batch)) }) : "",
      columns: view.columns.map((c) => {
        const share = c.share === null ? "" : percent(c.share);
        const kept = keptText(c, say, number);
        const name = c.index ? say("scale", { n: c.index, count: view.scales })
          : c.place === 1 ? say("place_last") : say("place", { place: c.place });
        const bar = c.label ? say("bar", { grid: c.label, share }) : "";
        const linked = linkText(c, say);
        return {
          value: c.state === "skipped" ? say("skip") : c.state === "locked" ? "" : number(Math.round(100 * c.kept)),
          label: c.state === "locked" ? (c.scales > 1 ? `≤${c.label}` : c.label) : c.label || (c.place === 1 ? say("last") : ""),
          share: c.share === null ? "" : say("percent", { n: share }),
          name: [name, bar].filter(Boolean).join(", "), state: [kept, linked].filter(Boolean).join(", "),
          readout: c.state === "locked" ? say("locked", { count: c.scales, share }) : [bar || name, kept, linked].filter(Boolean).join(" · "),
        };
      }),
    };
  }

  /** @param {import("../lib/equalizer.js").Column} c @param {(key: string, values?: any) => string} say @param {(n: number) => string} number */
  function keptText(c, say, number) {
    if (c.state === "skipped") return say("skipped");
    if (c.tokens === null) return c.kept === 1 ? say("all_percent") : say("keeps_percent", { percent: number(Math.round(100 * c.kept)) });
    return c.keptTokens === c.tokens ? say("all", { tokens: number(c.tokens) })
      : say("keeps", { kept: number(c.keptTokens ?? 0), tokens: number(c.tokens) });
  }

  /** @param {import("../lib/equalizer.js").Column} c @param {(key: string, values?: any) => string} say */
  function linkText(c, say) {
    if (c.state === "ignored") return say("ignored");
    if (c.state !== "linked") return "";
    return isUnknown(c.place) ? say("linked_later") : say("linked");
  }

  /** Whose times count here. */
  function modelKey() {
    const loader = findUpstream(root(), node, "VAR_MODEL", "VARModelLoader");
    return loader ? timingKey(loader) : "";
  }

  /** Times belong to a model in a precision. @param {any} loader */
  function timingKey(loader) {
    return `${widgetValue(root(), loader, "model_name")} ${widgetValue(root(), loader, "weight_dtype")}`;
  }

  // what the user does -------------------------------------------------------------------------------------------

  /** @param {Map<number, number>} ratios by place */
  function write(ratios) {
    const target = view.ratios.map((ratio, i) => ratios.get(i + 1) ?? ratio);
    if (target.every((ratio, i) => ratio === view.ratios[i])) return;
    take(target);
  }

  /** Makes these ratios the ones that run, as Custom: all of them, so that it goes on from what was seen. @param {number[]} target */
  function take(target) {
    faders.forEach((/** @type {any} */ widget, /** @type {number} */ i) => {
      if (isLinked(node, widget.name) || Number(widget.value) === target[i]) return;
      widget.value = target[i];
      widget.callback?.(target[i], host.app.canvas, node);
    });
    const holder = sourceWidget(root(), node, "preset"); // a subgraph may have promoted it
    if (holder && holder.value !== CUSTOM) holder.value = CUSTOM; // where the widgets already held these ratios, no callback saw a change
    node.setDirtyCanvas?.(true, true);
    draw();
  }

  /** Writes into the widgets what the preset runs on this model, which may be less than its name says: both say the same. */
  function settle() {
    const ratios = ratiosOf(presetNow() === preset.value ? plan?.presets ?? {} : {}, preset.value, faders.length);
    faders.forEach((/** @type {any} */ widget, /** @type {number} */ i) => {
      if (ratios && !isLinked(node, widget.name) && Number(widget.value) !== ratios[i]) widget.value = ratios[i];
    });
  }

  /**
   * A link to a ratio, or to a setting that the preset holds, counts as Custom only: connecting it says so.
   * @param {number} type 1 = an input @param {number} slot @param {boolean} isConnected
   */
  function onConnected(type, slot, isConnected) {
    const name = node.inputs?.[slot]?.widget?.name;
    const isHeld = faders.some((/** @type {any} */ w) => w.name === name) || name in (presetSettings[presetNow()] ?? {});
    if (type === 1 && isConnected && !isConfiguring && name && isHeld && isLinked(node, name) && presetNow() !== CUSTOM) take(view.ratios);
    schedule();
  }

  /** The editor keeps everything from here to release() as one step of its history. */
  function begin() {
    if (!isOpen) host.app.canvas?.emitBeforeChange?.();
    isOpen = true;
  }

  function release() {
    drag = null;
    if (isOpen) host.app.canvas?.emitAfterChange?.();
    isOpen = false;
  }

  const columnOf = (/** @type {number} */ place) => view.columns.find((c) => c.place === place);

  /** @param {number} place @param {{y: number, height: number, shift: boolean}} pointer */
  function onPress(place, pointer) {
    const pressed = columnOf(place);
    if (!pressed || !isMovable(pressed)) return false;
    const start = view.ratios.slice();
    const gap = start[place - 1] * pointer.height - pointer.y;
    drag = { place, start, offset: Math.abs(gap) < GRAB ? gap : 0 };
    begin();
    onMove(pointer);
    return true;
  }

  /** @param {{y: number, height: number, shift: boolean}} pointer */
  function onMove({ y, height, shift }) {
    const pressed = drag && columnOf(drag.place);
    if (!drag || !pressed) return;
    const ratio = ratioAt(y + drag.offset, height, pressed);
    write(moved(drag.start, view.columns, drag.place, ratio - drag.start[drag.place - 1], shift));
  }

  function onRelease() {
    release();
    schedule();
  }

  /** Where a bar goes back to: the preset chosen last, which a moved bar turned into Custom, else every token. @param {number} place */
  function home(place) {
    return ratiosOf(plan?.presets ?? {}, lastPreset, faders.length)?.[place - 1] ?? ratiosOf(presets, lastPreset, faders.length)?.[place - 1] ?? 0;
  }

  /** @param {number} place */
  function onReset(place) {
    const column = columnOf(place);
    if (!column || !isMovable(column)) return;
    begin();
    write(new Map([[place, home(place)]]));
    backToPreset();
    release();
  }

  /** Bars that are all where the last preset has them are that preset again. */
  function backToPreset() {
    if (preset.value !== CUSTOM || lastPreset === CUSTOM || isLinked(node, "preset")) return;
    if (!faders.every((/** @type {any} */ w, /** @type {number} */ i) => rounded(Number(w.value)) === home(i + 1) && !isLinked(node, w.name))) return;
    preset.value = lastPreset;
    preset.callback?.(lastPreset, host.app.canvas, node);
    draw();
  }

  /** @param {number} place @param {string} key @param {boolean} shift @returns {boolean} whether the key was for the bar */
  function onKey(place, key, shift) {
    const column = columnOf(place);
    const ratio = column && ratioAfterKey(key, shift, view.ratios[place - 1], column, home(place));
    if (!column || ratio === null || ratio === undefined) return false;
    if (isMovable(column)) {
      begin();
      write(new Map([[place, ratio]]));
      if (key === "Delete" || key === "Backspace") backToPreset();
    }
    return true;
  }

  /** A preset was chosen, or came with a workflow. */
  function onPreset() {
    lastPreset = preset.value;
    settle();
    schedule();
  }

  /** Saved values came in. */
  function onConfigure() {
    lastPreset = preset.value;
    isSaved = true;
    schedule();
  }

  /** Other nodes' widgets and links, undo, paste. What failed is asked anew: a file may be there now. */
  function onGraphChanged() {
    if (!plan && !isReading) asked = null;
    schedule();
  }

  /** A key came up, or the focus left a bar, as it does when another one is pressed. */
  function onKeyEnd() {
    if (!drag) release();
  }

  // what the server says of a run --------------------------------------------------------------------------------

  /** Keeps how long each pass of a finished run of this node's model took. @param {any} event */
  function onExecuted({ detail }) {
    const trace = detail?.output?.stepvar?.[0];
    const sampler = trace && nodeOfMessage(root(), detail.node);
    const loader = (sampler?.comfyClass ?? sampler?.type) === "VARSampler" && findUpstream(root(), sampler, "VAR_MODEL", "VARModelLoader");
    if (!plan || !loader || timingKey(loader) !== modelKey()) return;
    const passes = passesOf(plan, []);
    const isWhole = trace.scales?.length === passes.length
      && passes.every((p, i) => !trace.scales[i].forced && trace.scales[i].tokens === p.tokens);
    if (!isWhole) return; // continued, stopped early, or of another size
    const pruning = findUpstream(root(), sampler, "VAR_MODEL", "StepVARPruning");
    const accelerator = findUpstream(root(), sampler, "VAR_MODEL", "VARAccelerator");
    const isReplaced = accelerator && pruning && findUpstream(root(), pruning, "VAR_MODEL", "VARAccelerator") === accelerator;
    if (accelerator && !isReplaced) return; // these widgets do not say what such a run costs
    const options = Object.fromEntries(pruning ? SETTINGS.map((name) => [name, widgetValue(root(), pruning, name)]) : []);
    const cfg = widgetValue(root(), sampler, "cfg") ?? -1;
    const run = passesOf(plan, [], options).map((p, i) => ({ ...p, kept: trace.scales[i].tokens_run }));
    const { flops } = costOf(plan, run, { ...options, cfg, batch: trace.batch });
    calibration.record(modelKey(), flops.map((work, i) => ({ flops: work, seconds: trace.scales[i].seconds })));
    schedule();
  }

  // in and out of the node ---------------------------------------------------------------------------------------

  const widget = addElement(node, host.app, "equalizer", "stepvar_equalizer", face.element, {
    margin: 10, getMinHeight: () => HEIGHT + (hasFold() ? FOOT : 0) + 20, getMaxHeight: () => HEIGHT + GROWTH + 20 });
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  node.widgets.splice(node.widgets.indexOf(faders[0]), 0, widget);
  foldAll(); // before the host measures the node
  const undo = [
    // The editor leaves a hole in `widgets_values` where an unsaved widget stands, and would read it back as a value.
    after(node, "onSerialize", (data) => {
      if (Array.isArray(data?.widgets_values)) data.widgets_values = data.widgets_values.filter(() => true); // passes over holes
    }),
    around(node, "configure", (isUnderWay) => { isConfiguring = isUnderWay; }),
    after(node, "onConfigure", onConfigure),
    after(preset, "callback", onPreset),
    after(node, "onAdded", schedule),
    after(node, "onConnectionsChange", onConnected),
    ...[find("auto_goal")].filter(Boolean).map((w) => after(w, "callback", onGoal)),
    ...[...faders, ...[...SETTINGS, "auto_value"].map(find).filter(Boolean)].map((w) => after(w, "callback", schedule)),
    on(host.api, "graphChanged", onGraphChanged),
    passToCanvas(face.element, () => host.app.canvas),
    on(host.api, "executed", onExecuted),
  ];
  schedule();
  return () => {
    schedule.cancel();
    release();
    undo.forEach((off) => off());
    mount.retire();
  };
}
