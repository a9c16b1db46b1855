// @ts-check
// VAR Compare: a divider to draw over two pictures, their difference, and the numbers beneath.
import { decibels, isContradicted, moveDivider, nth, panned, pictureMeant, speedUp, tagOf, WHOLE, zoomed } from "../lib/compare.js";
import { localeOf, t } from "../lib/i18n.js";
import { css, viridis } from "../lib/palette.js";
import { duration, percent } from "../lib/timeline.js";
import { addDisplay, el, fileUrl, hideStockPreview, offerImages, oldBadge, picker, segments } from "./dom.js";
import { followOutput } from "./history.js";
import { passToCanvas } from "./mount.js";
import { STYLE } from "./style.js";

const TALLEST_STAGE = 420;
const NUMBERS = 22 + 34 + 16 + 36 + 4 * 6; // tools, figures, verdict, times and the gaps
const EMPTY_HEIGHT = 56;
const STILL = 4; // px a press may move and still be a click

/** @param {any} node @param {any} host {app, api, graph} */
export function attachCompare(node, { app, api, graph }) {
  const view = new CompareView((key, values) => t(localeOf(app), key, values), (file) => fileUrl(api, file));
  const height = () => view.minHeight(view.element.clientWidth || node.size[0] - 20);
  const retire = addDisplay(node, "comparison", view.element, height, { app, graph });
  view.element.style.minHeight = `${height()}px`;
  hideStockPreview(node);
  passToCanvas(view.element, () => app.canvas);
  view.onoffer = (url) => offerImages(node, [url], 0);
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
    this.say = say;
    this.address = address;
    /** @type {import("../lib/compare.js").Comparison | null} */
    this.data = null;
    this.at = 0.5;
    this.index = 0;
    this.mode = "wipe";
    this.alone = ""; // a or b while a click shows one of the pair alone
    this.focus = WHOLE;
    /** @type {null | {x: number, y: number, isClick: boolean}} */
    this.press = null;
    this.onshape = () => {};
    this.onoffer = (/** @type {string} */ _url) => {}; // the picture that the node's menu opens, copies and saves

    this.modes = segments(say("compare.modes"), ["wipe", "difference"].map((mode) => ({
      value: mode, text: say(`compare.mode.${mode}`), title: say(mode === "wipe" ? "compare.stage" : "compare.mode.difference") })), (mode) => this.update({ mode, alone: "" }));
    const picture = (/** @type {string} */ name) => el("img", { alt: "", draggable: false, className: `stepvar-${name}` });
    this.a = picture("a");
    this.b = picture("b");
    this.heat = picture("difference");
    this.a.onload = () => { this.place(); this.onshape(); };
    this.divider = el("div", { role: "slider", tabIndex: 0, className: "stepvar-divider", "aria-label": say("compare.wipe"), "aria-valuemin": "0", "aria-valuemax": "100" });
    this.tags = [el("span", { className: "stepvar-tag stepvar-tag-a", textContent: "A" }), el("span", { className: "stepvar-tag stepvar-tag-b", textContent: "B" })];
    this.frame = el("div", { className: "stepvar-pair" }, this.a, this.b, this.heat, this.divider);
    this.old = oldBadge(say("inspect.earlier"), say("inspect.earlier.tip"));
    this.zoom = el("button", { type: "button", className: "stepvar-zoom", title: say("compare.whole"), hidden: true, onclick: () => this.look(WHOLE) });
    this.legend = el("div", { className: "stepvar-legend", hidden: true }, el("span", { textContent: say("compare.legend.same") }),
      el("div", { style: `background: linear-gradient(to right, ${[0, 1, 2, 3, 4].map((i) => css(viridis(i / 4))).join(", ")})` }),
      el("span", { textContent: say("compare.legend.most") }));
    this.stage = el("div", { className: "stepvar-stage", tabIndex: 0, role: "group", "aria-label": say("compare.stage"), "data-capture-wheel": "true",
      onpointerdown: (event) => this.drag(event, true), onpointermove: (event) => this.drag(event, false), onpointerup: (event) => this.release(event),
      onpointercancel: () => { this.press = null; }, onpointerleave: () => this.update({ alone: "" }), onwheel: (event) => this.wheel(event), onkeydown: (event) => this.command(event) },
    this.frame, ...this.tags, this.legend, this.zoom, this.old.element);
    this.figures = Object.fromEntries(["psnr", "ssim", "edges"].map((name) => [name, el("b")]));
    const figures = el("div", { className: "stepvar-figures" }, ...Object.entries(this.figures).map(([name, value]) =>
      el("div", { title: say(`compare.${name}.tip`) }, value, el("span", { textContent: say(`compare.${name}`) }))));
    this.verdict = el("div", { className: "stepvar-verdict" });
    this.bars = ["A", "B"].map((name) => ({ bar: el("div", { className: "stepvar-time" }), text: el("span"), name }));
    this.times = el("div", { className: "stepvar-times" }, ...this.bars.map(({ bar, text, name }) =>
      el("div", {}, el("span", { textContent: name }), el("div", { className: "stepvar-lane" }, bar), text)));
    this.picker = picker(say("compare.pictures"), (index) => this.update({ index }));
    this.body = el("div", { style: "display: none" }, el("div", { className: "stepvar-tools" }, this.modes.element), this.stage, figures, this.verdict, this.times, this.picker.element);
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
    Object.assign(this.element.dataset, { mode, picture: index, at: this.at, alone: this.alone });
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
    this.offer();
  }

  /** What the node's menu opens, copies and saves is what is seen. */
  offer() {
    this.onoffer(this.address(nth(this.data[pictureMeant(this.alone || this.mode, this.at)], this.index)));
  }

  showTimes() {
    const { seconds, pruning = [], predicted = null } = this.data;
    const faster = speedUp(seconds);
    const longest = Math.max(...seconds.map((s) => s ?? 0), 1e-9);
    const parts = [faster ? this.say(faster.key, faster) : this.say("compare.noTimes"),
      predicted ? this.say("compare.predicted", { times: predicted.toFixed(2) }) : "", isContradicted(seconds, predicted) ? this.say("compare.busy") : ""];
    this.verdict.textContent = parts.filter(Boolean).join(" · ");
    this.verdict.title = isContradicted(seconds, predicted) ? this.say("compare.busy.tip") : this.verdict.textContent;
    const { bars } = this;
    bars.forEach(({ bar, text }, i) => {
      bar.style.width = `${(100 * (seconds[i] ?? 0)) / longest}%`;
      text.textContent = seconds[i] === null ? "–" : duration(seconds[i]);
      this.tags[i].title = text.title = pruning[i] ?? "";
      this.tags[i].textContent = tagOf(bars[i].name, pruning[i]);
    });
  }

  showDivider() {
    const shown = this.alone || this.mode;
    const isWipe = shown === "wipe";
    this.heat.hidden = this.legend.hidden = shown !== "difference";
    this.b.hidden = !isWipe && shown !== "b";
    this.divider.hidden = !isWipe;
    this.tags.forEach((tag, i) => { tag.hidden = !isWipe && shown !== "ab"[i]; });
    const at = `${this.at * 100}%`;
    this.b.style.clipPath = isWipe ? `inset(0 0 0 ${at})` : "";
    this.divider.style.left = at;
    this.divider.setAttribute("aria-valuenow", String(Math.round(this.at * 100)));
    this.divider.setAttribute("aria-valuetext", this.say("compare.wipeAt", { share: percent(this.at, 1) }));
    this.element.dataset.at = String(this.at);
  }

  moveTo(at) {
    Object.assign(this, { at, alone: "" });
    this.element.dataset.alone = "";
    this.showDivider();
    this.offer();
  }

  /** @param {import("../lib/compare.js").Focus} focus */
  look(focus) {
    this.focus = focus;
    this.zoom.hidden = focus.zoom === 1;
    this.zoom.textContent = `${Math.round(100 * focus.zoom)} %`;
    this.element.dataset.zoom = String(Math.round(100 * focus.zoom) / 100);
    this.place();
  }

  /** The pictures' box within the stage before any zoom, in CSS pixels. */
  box() {
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    const fit = Math.min(width / this.a.naturalWidth, height / this.a.naturalHeight);
    const [w, h] = [Math.floor(this.a.naturalWidth * fit), Math.floor(this.a.naturalHeight * fit)];
    return { left: Math.floor((width - w) / 2), top: Math.floor((height - h) / 2), width: w, height: h };
  }

  place() {
    if (!this.stage.clientWidth || !this.a.naturalWidth) return;
    const { left, top, width, height } = this.box();
    const { zoom, x, y } = this.focus;
    Object.assign(this.frame.style, { left: `${left + width * (0.5 - zoom * x)}px`, top: `${top + height * (0.5 - zoom * y)}px`,
      width: `${width * zoom}px`, height: `${height * zoom}px` });
    this.stage.style.clipPath = zoom > 1 ? `inset(${top}px ${left}px ${top}px ${left}px)` : "";
    this.stage.style.setProperty("--x", `${left + 6}px`); // what lies on the pictures keeps to their box
    this.stage.style.setProperty("--y", `${top + 6}px`);
  }

  /** Where the pointer is in the picture's box, 0 to 1 each, and the size of that on the screen: the editor zooms with a transform. */
  pointAt(event) {
    const stage = this.stage.getBoundingClientRect();
    const scale = stage.width / this.stage.clientWidth;
    const { left, top, width, height } = this.box();
    return { x: (event.clientX - stage.left - left * scale) / (width * scale), y: (event.clientY - stage.top - top * scale) / (height * scale),
      width: width * scale, height: height * scale };
  }

  /** The divider follows the pointer; a drag moves a zoomed picture. */
  drag(event, isStart) {
    if (!this.data || (isStart && event.button !== 0)) return;
    if (isStart && event.target !== this.zoom) {
      this.stage.setPointerCapture(event.pointerId);
      this.press = { x: event.clientX, y: event.clientY, isClick: true };
      return;
    }
    const { press } = this;
    if (press?.isClick) press.isClick = Math.hypot(event.clientX - press.x, event.clientY - press.y) <= STILL;
    if (press && !press.isClick && this.focus.zoom > 1) {
      const { width, height } = this.pointAt(event);
      this.look(panned(this.focus, (event.clientX - press.x) / width, (event.clientY - press.y) / height));
      this.press = { x: event.clientX, y: event.clientY, isClick: false };
    } else if (this.mode === "wipe" && !this.alone && (press ? !press.isClick : event.buttons === 0)) {
      const box = this.frame.getBoundingClientRect();
      this.moveTo(Math.round(Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * 1000) / 1000);
    }
  }

  release(event) {
    if (event.button === 0 && this.press?.isClick) this.toggle();
    this.press = null;
  }

  /** One of the pair alone, then the other. */
  toggle() {
    if (this.mode === "wipe") this.update({ alone: this.alone === "a" ? "b" : "a" });
  }

  /** After a click on the picture the wheel is its own; before, it is the editor's. */
  wheel(event) {
    if (!this.data || !this.stage.contains(document.activeElement)) return;
    event.preventDefault();
    event.stopPropagation();
    const { x, y } = this.pointAt(event);
    this.look(zoomed(this.focus, Math.exp(-event.deltaY / 400), x, y));
  }

  /** Keys of the whole picture. */
  command(event) {
    const done = { " ": () => this.toggle(), Enter: () => this.toggle(), "+": () => this.look(zoomed(this.focus, 1.5)), "=": () => this.look(zoomed(this.focus, 1.5)),
      "-": () => this.look(zoomed(this.focus, 1 / 1.5)), 0: () => this.look(WHOLE), d: () => this.update({ mode: this.mode === "wipe" ? "difference" : "wipe", alone: "" }) }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (done && event.target !== this.zoom) {
      event.preventDefault();
      event.stopPropagation(); // the editor has commands of its own on them
      done();
    } else {
      this.key(event);
    }
  }

  key(event) {
    const to = this.mode === "wipe" && !event.defaultPrevented ? moveDivider(this.at, event.key, event.shiftKey) : null;
    if (to === null) return;
    event.preventDefault();
    event.stopPropagation(); // the editor would move the node
    this.moveTo(to);
  }
}
