// @ts-check
// The mask overlay on VAR Sampler, live while it runs, and on StepVAR Mask Overlay, over the decoded pictures.
import { showsDecoded } from "../lib/graph.js";
import { localeOf, t } from "../lib/i18n.js";
import { nodeByExecutionId } from "../lib/nodes.js";
import { addScale, bestScale, readRun } from "../lib/trace.js";
import { addDisplay, fileUrl, hideStockPreview, offerImages } from "./dom.js";
import { followOutput } from "./history.js";
import { passToCanvas } from "./mount.js";
import { OverlayView } from "./overlay_view.js";

/** The overlay of a VAR Sampler, which follows its run. @param {any} node @param {any} host {app, api, graph} */
export function attachSamplerOverlay(node, host) {
  const { app, api } = host;
  const overlay = new Overlay(node, host);
  let preview = ""; // object URL of the live preview
  let own = ""; // the prompt of the run that is shown
  /** @type {{prompt: string | null, urls: string[]}} */
  let decoded = { prompt: null, urls: [] }; // all its pictures
  const keep = (url) => {
    if (preview) URL.revokeObjectURL(preview);
    preview = url;
  };
  const isOwn = (id, workflow) => {
    const root = app.rootGraph ?? app.graph;
    return (!workflow || !root.id || workflow === root.id) && nodeByExecutionId(root, id) === node;
  };
  const stop = () => {
    if (overlay.view.view.phase === "running") overlay.show({ phase: "stopped" });
  };
  const listeners = {
    execution_start: () => { overlay.isLiveOld = true; },
    "stepvar.scale": ({ detail }) => {
      if (isOwn(detail.node, detail.workflow)) overlay.add(detail);
    },
    b_preview_with_metadata: ({ detail }) => {
      if (!isOwn(detail.displayNodeId ?? detail.nodeId)) return;
      keep(URL.createObjectURL(detail.blob));
      Object.assign(overlay, { live: preview, isLiveOld: false });
      if (overlay.view.view.phase === "running") overlay.show({ urls: [preview] });
    },
    // the sampler decodes its first picture only; where the graph decodes them all, they are here for nothing
    executed: ({ detail }) => {
      const from = nodeByExecutionId(app.rootGraph ?? app.graph, detail.display_node ?? detail.node);
      if (from === node) own = detail.prompt_id;
      else if (detail.output?.images?.length > 1 && showsDecoded(app.rootGraph ?? app.graph, from, node)) {
        decoded = { prompt: detail.prompt_id, urls: detail.output.images.map((/** @type {any} */ file) => fileUrl(api, file)) };
      }
      const { run, phase, picture } = overlay.view.view;
      if (phase !== "done" || decoded.prompt !== own || decoded.urls.length !== run?.batch) return;
      offerImages(node, decoded.urls, picture);
      overlay.show({ urls: decoded.urls });
    },
    execution_error: stop,
    execution_interrupted: stop,
  };
  for (const [name, listener] of Object.entries(listeners)) api.addEventListener(name, listener);
  const forget = overlay.follow();
  return () => {
    for (const [name, listener] of Object.entries(listeners)) api.removeEventListener(name, listener);
    keep("");
    forget();
  };
}

/** The overlay of a StepVAR Mask Overlay: its widgets and the node's own say the same. */
export function attachMaskOverlay(node, host) {
  const overlay = new Overlay(node, host, Object.fromEntries(
    ["scale", "layer", "opacity"].map((name) => [name, node.widgets?.find((widget) => widget.name === name)])));
  return overlay.follow();
}

class Overlay {
  /** @param {Record<string, any> | null} linked the node's own widgets for the same choices */
  constructor(node, host, linked = null) {
    const { app } = host;
    this.node = node;
    this.host = host;
    this.linked = linked;
    this.live = ""; // address of the live preview; isLiveOld: it belongs to an earlier run
    this.isLiveOld = false;
    this.chosen = null; // the scale the user picked, counted from the end; null follows the run
    this.view = new OverlayView((key, values) => t(localeOf(app), key, values), (change) => this.choose(change));
    this.retire = addDisplay(node, "overlay", this.view.element, () => this.view.minHeight(node.size[0]), host);
    this.view.onwidth = () => this.fitHeight();
    this.fitHeight();
    hideStockPreview(node);
    passToCanvas(this.view.element, () => app.canvas);
    if (linked) this.listenToWidgets();
  }

  /** Takes outputs as they come, and what earlier runs left; returns what ends all. */
  follow() {
    const forget = followOutput(this.node, this.host,
      (output, { isRecalled, isEarlier }) => Boolean(isRecalled && this.view.view.run) || this.take(output, isEarlier),
      { age: () => this.view.view.phase === "done" && this.show({ isEarlier: true }), viewing: Object.keys(this.linked ?? {}) });
    return () => {
      forget();
      this.retire();
      this.view.destroy();
      this.node = null;
    };
  }

  /** @param {any} output a node's `ui` output @param {boolean} isEarlier @returns {boolean} whether it holds a run */
  take(output, isEarlier) {
    const message = output.stepvar?.[0];
    if (!message || message === this.message) return Boolean(message);
    this.message = message;
    const run = readRun(message);
    const files = run.pictures.map((file) => fileUrl(this.host.api, file));
    const saved = (output.images ?? []).map((file) => fileUrl(this.host.api, file)); // with the overlay, where the node makes them
    offerImages(this.node, saved.length ? saved : files, 0);
    const urls = files.length || !this.live ? files : [this.live];
    this.show({ run, phase: "done", urls, isEarlier, ...this.placeIn(run), ...(this.linked ? this.fromWidgets(run) : {}) });
    return true;
  }

  /** @param {any} message one `stepvar.scale` */
  add(message) {
    const { view } = this.view;
    if (this.isLiveOld) this.live = "";
    const run = addScale(view.phase === "running" ? view.run : null, message);
    this.show({ run, phase: "running", isEarlier: false, urls: this.live ? [this.live] : [],
      scale: this.chosen === null ? message.index : Math.max(0, run.scales.length + this.chosen) });
  }

  placeIn(run) {
    return { scale: this.chosen === null ? bestScale(run) : Math.max(0, run.scales.length + this.chosen) };
  }

  choose(change) {
    const { run } = this.view.view;
    if (change.scale !== undefined && run) this.chosen = change.scale - run.scales.length;
    this.show(change);
    if (this.linked) this.tellWidgets();
  }

  show(change) {
    this.view.update(change);
    if (this.node?.imgs) this.node.imageIndex = Math.min(this.view.view.picture, this.node.imgs.length - 1);
    this.fitHeight();
  }

  fitHeight() {
    if (!this.node) return;
    const height = `${this.view.minHeight(this.node.size[0])}px`;
    if (this.view.element.style.minHeight === height) return;
    this.view.element.style.minHeight = height;
    this.node.setDirtyCanvas?.(true, true);
  }

  // the node's own widgets ------------------------------------------------------------------------

  listenToWidgets() {
    for (const widget of Object.values(this.linked)) {
      if (!widget) continue;
      const before = widget.callback;
      widget.callback = (...args) => {
        const result = before?.apply(widget, args);
        const { run } = this.view.view;
        if (run && !this.isTelling) this.show(this.fromWidgets(run));
        return result;
      };
    }
  }

  fromWidgets(run) {
    const { scale, layer, opacity } = this.linked;
    const index = Number(scale?.value ?? -1);
    return { scale: index < 0 ? run.scales.length + index : index, layer: layer?.value ?? "kept", opacity: Number(opacity?.value ?? 0.65) };
  }

  /** Hands a choice to the node's widgets, unless the node would refuse it: scores of a scale that has none. */
  tellWidgets() {
    const { run, scale, layer, opacity } = this.view.view;
    if (layer !== "kept" && !run.scales[scale].scores[layer]) return;
    const index = Number(this.linked.scale?.value) < 0 ? scale - run.scales.length : scale;
    this.isTelling = true;
    for (const [name, value] of Object.entries({ scale: index, layer, opacity })) {
      const widget = this.linked[name];
      if (!widget || widget.value === value) continue;
      widget.value = value;
      widget.callback?.(value, this.host.app.canvas, this.node);
    }
    this.isTelling = false;
  }
}
