// @ts-check
// VAR Compare: a divider to draw over two pictures, their difference, and the numbers beneath.
import { decibels, moveDivider, nth, speedUp, tagOf } from "../lib/compare.js";
import { localeOf, t } from "../lib/i18n.js";
import { duration, percent } from "../lib/timeline.js";
import { addDisplay, el, fileUrl, hideStockPreview, offerImages, oldBadge, picker, segments } from "./dom.js";
import { followOutput } from "./history.js";
import { passToCanvas } from "./mount.js";
import { STYLE } from "./style.js";

const TALLEST_STAGE = 420;
const NUMBERS = 22 + 34 + 36 + 3 * 6; // tools, figures, times and the gaps
const EMPTY_HEIGHT = 56;

/** @param {any} node @param {any} host {app, api, graph} */
export function attachCompare(node, { app, api, graph }) {
  const view = new CompareView((key, values) => t(localeOf(app), key, values), (file) => fileUrl(api, file));
  const height = () => view.minHeight(view.element.clientWidth || node.size[0] - 20);
  const retire = addDisplay(node, "comparison", view.element, height, { app, graph });
  view.element.style.minHeight = `${height()}px`;
  hideStockPreview(node);
  passToCanvas(view.element, () => app.canvas);
  view.onshape = () => {
    if (view.element.style.minHeight === `${height()}px`) return;
    view.element.style.minHeight = `${height()}px`;
    node.setDirtyCanvas?.(true, true);
  };
  const forget = followOutput(node, { app, api, graph }, (output, { isEarlier }) => {
    const [comparison] = output.stepvar_compare ?? [];
    if (comparison) {
      view.show(comparison);
      view.old.show(isEarlier);
      offerImages(node, comparison.difference.map((file) => fileUrl(api, file)), view.index);
    }
    return Boolean(comparison);
  }, { age: () => view.old.show(true) });
  return () => {
    forget();
    retire();
    view.destroy();
  };
}

class CompareView {
  /**
   * @param {(key: string, values?: Record<string, string | number>) => string} say
   * @param {(file: any) => string} address
   */
  constructor(say, address) {
    Object.assign(this, { say, address });
    /** @type {import("../lib/compare.js").Comparison | null} */
    this.data = null;
    this.at = 0.5;
    this.index = 0;
    this.mode = "wipe";
    this.onshape = () => {};

    this.modes = segments(say("compare.modes"), ["wipe", "difference"].map((mode) => ({
      value: mode, text: say(`compare.mode.${mode}`), title: say(`compare.mode.${mode}`) })), (mode) => this.update({ mode }));
    [this.a, this.b, this.heat] = ["a", "b", "difference"].map((name) => el("img", { alt: "", draggable: false, className: `stepvar-${name}` }));
    this.a.onload = () => { this.place(); this.onshape(); };
    this.divider = el("div", { role: "slider", tabIndex: 0, className: "stepvar-divider", "aria-label": say("compare.wipe"), "aria-valuemin": "0", "aria-valuemax": "100",
      onkeydown: (event) => this.key(event) });
    this.tags = [el("span", { className: "stepvar-tag stepvar-tag-a", textContent: "A" }), el("span", { className: "stepvar-tag stepvar-tag-b", textContent: "B" })];
    this.frame = el("div", { className: "stepvar-pair" }, this.a, this.b, this.heat, ...this.tags, this.divider);
    this.old = oldBadge(say("inspect.earlier"), say("inspect.earlier.tip"));
    this.stage = el("div", { className: "stepvar-stage", onpointerdown: (event) => this.drag(event, true), onpointermove: (event) => this.drag(event, false) }, this.frame, this.old.element);
    this.figures = Object.fromEntries(["psnr", "ssim", "edges"].map((name) => [name, el("b")]));
    const figures = el("div", { className: "stepvar-figures" }, ...Object.entries(this.figures).map(([name, value]) =>
      el("div", { title: say(`compare.${name}.tip`) }, value, el("span", { textContent: say(`compare.${name}`) }))));
    this.verdict = el("span", { className: "stepvar-verdict" });
    this.bars = ["A", "B"].map((name) => ({ bar: el("div", { className: "stepvar-time" }), text: el("span"), name }));
    this.times = el("div", { className: "stepvar-times" }, ...this.bars.map(({ bar, text, name }) =>
      el("div", {}, el("span", { textContent: name }), el("div", { className: "stepvar-lane" }, bar), text)));
    this.picker = picker(say("compare.pictures"), (index) => this.update({ index }));
    this.body = el("div", { style: "display: none" }, el("div", { className: "stepvar-tools" }, this.modes.element, this.verdict), this.stage, figures, this.times, this.picker.element);
    this.empty = el("div", { className: "stepvar-empty", textContent: say("compare.empty") });
    this.element = el("div", { className: "stepvar stepvar-compare" }, el("style", { textContent: STYLE }), this.empty, this.body);
    this.observer = new ResizeObserver(() => { this.place(); this.onshape(); });
    this.observer.observe(this.stage);
  }

  destroy() {
    this.observer.disconnect();
  }

  count() {
    return this.data ? this.data.psnr.length : 0;
  }

  /** @param {number} width of the widget, in CSS pixels */
  minHeight(width) {
    if (!this.data) return EMPTY_HEIGHT;
    const shape = this.a.naturalWidth ? this.a.naturalHeight / this.a.naturalWidth : 1;
    return Math.min(TALLEST_STAGE, Math.max(120, Math.round(width * shape))) + NUMBERS + (this.count() > 1 ? 38 : 0);
  }

  /** @param {import("../lib/compare.js").Comparison} data a node's output */
  show(data) {
    this.data = data;
    this.empty.hidden = true;
    this.body.style.display = "contents";
    this.update({ index: Math.min(this.index, this.count() - 1) });
    this.onshape();
  }

  update(change) {
    Object.assign(this, change);
    const { data, index, mode } = this;
    if (!data) return;
    Object.assign(this.element.dataset, { mode, picture: index, at: this.at });
    this.modes.show(mode);
    for (const [image, files] of [[this.a, data.a], [this.b, data.b], [this.heat, data.difference]]) {
      const url = this.address(nth(files, index));
      if (image.getAttribute("src") !== url) image.src = url;
    }
    this.figures.psnr.textContent = decibels(data.psnr[index], this.say("compare.same"));
    this.figures.ssim.textContent = data.ssim[index].toFixed(4);
    this.figures.edges.textContent = data.edges[index].toFixed(4);
    this.picker.show(data.b.length > 1 || data.a.length > 1 ? data.psnr.map((_, i) => this.address(nth(data.b, i))) : [], index,
      (i) => this.say("compare.picture", { n: i + 1, count: this.count() }));
    this.showTimes();
    this.showDivider();
  }

  showTimes() {
    const { seconds, pruning = [] } = this.data;
    const faster = speedUp(seconds);
    const longest = Math.max(...seconds.map((s) => s ?? 0), 1e-9);
    this.verdict.textContent = faster ? this.say(faster.key, faster) : "";
    const { bars } = this;
    bars.forEach(({ bar, text }, i) => {
      bar.style.width = `${(100 * (seconds[i] ?? 0)) / longest}%`;
      text.textContent = seconds[i] === null ? "–" : duration(seconds[i]);
      this.tags[i].title = text.title = pruning[i] ?? "";
      this.tags[i].textContent = tagOf(bars[i].name, pruning[i]);
    });
    this.times.title = faster ? "" : this.say("compare.noTimes");
  }

  showDivider() {
    const isWipe = this.mode === "wipe";
    this.heat.hidden = isWipe;
    for (const part of [this.b, this.divider, ...this.tags]) part.hidden = !isWipe;
    const at = `${this.at * 100}%`;
    this.b.style.clipPath = `inset(0 0 0 ${at})`;
    this.divider.style.left = at;
    this.divider.setAttribute("aria-valuenow", String(Math.round(this.at * 100)));
    this.divider.setAttribute("aria-valuetext", this.say("compare.wipeAt", { share: percent(this.at, 1) }));
    this.element.dataset.at = String(this.at);
  }

  place() {
    if (!this.stage.clientWidth || !this.a.naturalWidth) return;
    const box = { width: this.stage.clientWidth, height: this.stage.clientHeight };
    const shape = { width: this.a.naturalWidth, height: this.a.naturalHeight };
    const zoom = Math.min(box.width / shape.width, box.height / shape.height);
    const [width, height] = [Math.floor(shape.width * zoom), Math.floor(shape.height * zoom)];
    Object.assign(this.frame.style, { left: `${Math.floor((box.width - width) / 2)}px`, top: `${Math.floor((box.height - height) / 2)}px`,
      width: `${width}px`, height: `${height}px` });
  }

  drag(event, isStart) {
    if (!this.data || this.mode !== "wipe") return;
    if (isStart ? event.button !== 0 : !this.stage.hasPointerCapture(event.pointerId)) return;
    if (isStart) this.stage.setPointerCapture(event.pointerId);
    const box = this.frame.getBoundingClientRect();
    this.at = Math.round(Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * 1000) / 1000;
    this.showDivider();
  }

  key(event) {
    const to = moveDivider(this.at, event.key, event.shiftKey);
    if (to === null) return;
    event.preventDefault();
    event.stopPropagation(); // the editor would move the node
    this.at = to;
    this.showDivider();
  }
}
