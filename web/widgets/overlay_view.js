// @ts-check
// The picture with the kept tokens over it, and the timeline of scales beneath. Draws what it is told and says what the
// user chose; it knows no node.
import { placeOf, sources } from "../lib/fill.js";
import { borders, cellColours, edges, fit, tokenAt } from "../lib/grid.js";
import { css, EDGE } from "../lib/palette.js";
import { gridName } from "../lib/plan.js";
import { barAt, duration, layoutTimeline, percent } from "../lib/timeline.js";
import { isPruned, keptOf, LAYERS, scoreAt, scoreBytes, SCORES, totals } from "../lib/trace.js";
import { el, oldBadge, picker, segments } from "./dom.js";
import { STYLE } from "./style.js";

/**
 * What is shown. phase: nothing yet, a run under way, over, or broken off. urls: one per file of the decoded pictures.
 * @typedef {{run: import("../lib/trace.js").Run | null, phase: "empty" | "running" | "done" | "stopped", scale: number, layer: string,
 *   opacity: number, picture: number, frame: number, urls: string[], isEarlier: boolean}} View
 */

const TALLEST_STAGE = 360;
const BELOW_AND_ABOVE = 22 + 48 + 38 + 3 * 6; // tools, lines, timeline and the gaps
const EMPTY_HEIGHT = 56;

export class OverlayView {
  /**
   * @param {(key: string, values?: Record<string, string | number>) => string} say
   * @param {(change: Partial<View>) => void} change called with what the user chose
   */
  constructor(say, change) {
    this.say = say;
    this.change = change;
    /** @type {View} */
    this.view = { run: null, phase: "empty", scale: 0, layer: "kept", opacity: 0.65, picture: 0, frame: 0, urls: [], isEarlier: false };
    this.hovered = -1;
    this.width = 0;
    this.onwidth = () => {}; // the height that is asked for depends on it

    this.layers = segments(say("overlay.layers"), LAYERS.map((layer) => ({
      value: layer, text: say(`overlay.${layer}`), title: say(`overlay.${layer}.tip`) })), (layer) => change({ layer }));
    this.opacity = el("input", { type: "range", min: "0", max: "1", step: "0.05", title: say("overlay.opacity"), "aria-label": say("overlay.opacity"),
      oninput: () => change({ opacity: Number(this.opacity.value) }) });
    this.ground = el("div", { className: "stepvar-ground" });
    this.image = el("img", { alt: "", draggable: false });
    this.cells = el("canvas", { className: "stepvar-cells" });
    this.marks = el("canvas", { className: "stepvar-marks" });
    this.note = el("div", { className: "stepvar-note", hidden: true });
    this.old = oldBadge(say("inspect.earlier"), say("inspect.earlier.tip"));
    this.stage = el("div", { className: "stepvar-stage", onpointermove: (event) => this.hover(event), onpointerleave: () => this.hoverToken(-1) },
      this.ground, this.image, this.cells, this.marks, this.note, this.old.element);
    this.first = el("div", { className: "stepvar-said" });
    this.second = el("div");
    this.timeline = el("div", { role: "slider", tabIndex: 0, "aria-label": say("overlay.timeline"), "aria-valuemin": "1", className: "stepvar-timeline",
      onpointerdown: (event) => this.scrub(event, true), onpointermove: (event) => this.scrub(event, false), onkeydown: (event) => this.step(event) });
    this.picker = picker(say("overlay.pictures"), (picture) => change({ picture }));
    this.frame = el("input", { type: "range", min: "0", step: "1", oninput: () => change({ frame: Number(this.frame.value) }) });
    this.frameText = el("span");
    this.frames = el("label", { className: "stepvar-frames" }, this.frameText, this.frame);
    this.body = el("div", { hidden: true, style: "display: contents" },
      el("div", { className: "stepvar-tools" }, this.layers.element, this.opacity), this.stage,
      el("div", { className: "stepvar-lines" }, this.first, this.second), this.timeline, this.frames, this.picker.element);
    this.empty = el("div", { className: "stepvar-empty", textContent: say("overlay.empty") });
    this.element = el("div", { className: "stepvar stepvar-overlay" }, el("style", { textContent: STYLE }), this.empty, this.body);
    this.observer = new ResizeObserver(() => this.resized());
    this.observer.observe(this.stage);
    this.image.onerror = () => { this.image.hidden = true; };
    this.update({});
  }

  destroy() {
    this.observer.disconnect();
  }

  /** Height the widget asks for, in CSS pixels. @param {number} nodeWidth where the widget itself is not laid out yet */
  minHeight(nodeWidth) {
    const { run } = this.view;
    if (!run) return EMPTY_HEIGHT;
    const width = this.element.clientWidth || nodeWidth - 20;
    const { width: w, height: h } = this.shape();
    const stage = Math.min(TALLEST_STAGE, Math.max(120, Math.round((width * h) / w)));
    return stage + BELOW_AND_ABOVE + (run.batch > 1 ? 38 : 0) + (this.isVideo() ? 24 : 0);
  }

  /** @param {Partial<View>} change */
  update(change) {
    Object.assign(this.view, change);
    const { run, phase, layer, opacity, picture, urls, isEarlier } = this.view;
    this.element.dataset.phase = phase;
    this.empty.hidden = Boolean(run);
    this.body.hidden = !run;
    this.body.style.display = run ? "contents" : "none";
    if (!run) return;
    this.view.scale = Math.min(Math.max(this.view.scale, 0), run.scales.length - 1);
    this.view.picture = Math.min(picture, run.batch - 1);
    this.view.frame = Math.min(this.view.frame, this.frameCount() - 1);
    Object.assign(this.element.dataset, { scale: this.view.scale, layer, picture: this.view.picture, done: run.done });
    this.old.show(isEarlier);
    this.layers.show(layer);
    this.opacity.value = String(opacity);
    this.picker.show(Array.from({ length: run.batch }, (_, i) => urls[this.fileOf(i, 0)] ?? null), this.view.picture,
      (i) => this.say("overlay.picture", { n: i + 1, count: run.batch }));
    this.showFrames();
    const url = urls[this.fileOf(this.view.picture, this.view.frame)] ?? "";
    if (this.image.getAttribute("src") !== url) {
      if (url) this.image.src = url;
      else this.image.removeAttribute("src");
    }
    this.image.hidden = !url;
    this.source = null;
    if (this.hovered >= this.scale().tokens) this.hovered = -1;
    this.drawTimeline();
    this.draw();
    this.write();
  }

  scale() {
    return this.view.run.scales[this.view.scale];
  }

  /** Frames of the shown grid, one for a picture. */
  frameCount() {
    return this.view.run ? this.scale().size[0] : 1;
  }

  isVideo() {
    return Boolean(this.view.run?.scales.some((scale) => scale.size[0] > 1));
  }

  /** Which decoded file belongs to a picture at one of its frames: a video has more of them than the grid has frames. */
  fileOf(picture, frame) {
    const { run, urls } = this.view;
    const each = Math.max(1, Math.floor(urls.length / run.batch));
    return picture * each + Math.min(each - 1, Math.floor(((frame + 0.5) * each) / this.frameCount()));
  }

  /** The picture's shape: that of the last, finest grid. */
  shape() {
    const [, height, width] = this.view.run.scales[this.view.run.scales.length - 1].size;
    return { width, height };
  }

  showFrames() {
    const count = this.frameCount();
    this.frames.hidden = !this.isVideo();
    this.frame.disabled = count < 2;
    this.frame.max = String(count - 1);
    this.frame.value = String(this.view.frame);
    this.frameText.textContent = this.say("overlay.frame", { n: this.view.frame + 1, count });
  }

  resized() {
    const width = this.timeline.clientWidth;
    if (width !== this.width) {
      this.width = width;
      this.drawTimeline();
      this.onwidth();
    }
    this.draw();
  }

  // the picture ---------------------------------------------------------------------------------

  draw() {
    const { run, layer, opacity, picture, frame } = this.view;
    if (!run || !this.stage.clientWidth) return;
    const dpr = globalThis.devicePixelRatio || 1;
    const finest = run.scales[run.scales.length - 1];
    const box = { width: this.stage.clientWidth * dpr, height: this.stage.clientHeight * dpr };
    const place = fit(box, this.shape(), finest.size);
    for (const part of [this.ground, this.image, this.cells, this.marks]) {
      Object.assign(part.style, { left: `${place.left / dpr}px`, top: `${place.top / dpr}px`, width: `${place.width / dpr}px`, height: `${place.height / dpr}px` });
    }
    for (const canvas of [this.cells, this.marks]) {
      if (canvas.width !== place.width) canvas.width = place.width;
      if (canvas.height !== place.height) canvas.height = place.height;
    }
    const scale = this.scale();
    const pen = this.cells.getContext("2d");
    pen.clearRect(0, 0, place.width, place.height);
    const values = layer === "kept" ? keptOf(scale, picture) : scoreBytes(scale, layer, picture);
    this.note.textContent = this.why(scale, values);
    this.note.hidden = !this.note.textContent;
    if (values) {
      const [, h, w] = scale.size;
      const shown = values.subarray(frame * h * w, (frame + 1) * h * w);
      const colours = cellColours(layer, shown, opacity);
      const [xs, ys] = [edges(w, place.width), edges(h, place.height)];
      for (let i = 0; i < shown.length; i++) {
        if (!colours[4 * i + 3]) continue;
        const [x, y] = [i % w, Math.floor(i / w)];
        pen.fillStyle = css([colours[4 * i], colours[4 * i + 1], colours[4 * i + 2]], colours[4 * i + 3] / 255);
        pen.fillRect(xs[x], ys[y], xs[x + 1] - xs[x], ys[y + 1] - ys[y]);
      }
      if (layer === "kept") {
        pen.fillStyle = css(EDGE, Math.min(1, opacity * 1.3));
        for (const [x, y, wide, high] of borders(shown, scale.size, place, Math.max(1, Math.round(1.25 * dpr)))) {
          pen.clearRect(x, y, wide, high);
          pen.fillRect(x, y, wide, high);
        }
      }
    }
    this.drawMarks();
  }

  /** What keeps the wished layer from being shown; empty when nothing does. */
  why(scale, values) {
    const { run, layer, picture, phase, urls } = this.view;
    if (layer !== "kept" && !values) {
      if (phase === "running" || phase === "stopped") return this.say("overlay.scoresLater");
      if (!isPruned(scale)) return this.say("overlay.noScores");
      if (picture >= run.scored && scale.tokensRun) return this.say("overlay.scoresLeftOut", { n: run.scored });
      return this.say(scale.tokensRun ? "overlay.noLayer" : "overlay.skipped", { layer: this.say(`overlay.${layer}`) });
    }
    return phase === "done" && urls.length && !urls[this.fileOf(picture, this.view.frame)] ? this.say("overlay.noPicture") : "";
  }

  // hovering ------------------------------------------------------------------------------------

  hover(event) {
    if (!this.view.run) return;
    const box = this.cells.getBoundingClientRect(); // the editor zooms with a transform, so this is not its own size
    if (!box.width || !box.height) return;
    const x = ((event.clientX - box.left) / box.width) * this.cells.width;
    const y = ((event.clientY - box.top) / box.height) * this.cells.height;
    this.hoverToken(tokenAt(x, y, this.cells, this.scale().size, this.view.frame));
  }

  hoverToken(token) {
    if (token === this.hovered) return;
    this.hovered = token;
    this.drawMarks();
    this.write();
  }

  /** Where every token of the shown scale and picture comes from, worked out on the first hover. */
  sources() {
    const kept = keptOf(this.scale(), this.view.picture);
    const { fill, scope } = this.view.run;
    if (!this.source && kept) this.source = sources(kept, this.scale().size, scope === "sublayer" ? "cache" : fill); // no one source there
    return this.source;
  }

  drawMarks() {
    const pen = this.marks.getContext("2d");
    pen.clearRect(0, 0, this.marks.width, this.marks.height);
    const from = this.hovered >= 0 ? this.sources() : null;
    if (!from) return;
    const [, h, w] = this.scale().size;
    const [xs, ys] = [edges(w, this.marks.width), edges(h, this.marks.height)];
    const start = this.view.frame * h * w;
    const box = (token) => {
      const [x, y] = [(token - start) % w, Math.floor((token - start) / w)];
      return [xs[x], ys[y], xs[x + 1] - xs[x], ys[y + 1] - ys[y]];
    };
    const isShown = (token) => token >= start && token < start + h * w;
    const origin = from[this.hovered];
    pen.fillStyle = "rgb(255 255 255 / 0.28)";
    if (origin >= 0) {
      for (let token = start; token < start + h * w; token++) {
        if (from[token] === origin && token !== origin) pen.fillRect(...box(token));
      }
    }
    const frame = (token, colour, thickness) => {
      const [x, y, wide, high] = box(token);
      const line = Math.min(thickness, Math.ceil(Math.min(wide, high) / 2));
      pen.strokeStyle = colour;
      pen.lineWidth = line;
      pen.strokeRect(x + line / 2, y + line / 2, wide - line, high - line);
    };
    const dpr = globalThis.devicePixelRatio || 1;
    if (origin >= 0 && origin !== this.hovered && isShown(origin)) {
      const middle = (token) => {
        const [x, y, wide, high] = box(token);
        return [x + wide / 2, y + high / 2];
      };
      pen.strokeStyle = "#fff";
      pen.lineWidth = Math.max(1, dpr);
      pen.beginPath();
      pen.moveTo(...middle(origin));
      pen.lineTo(...middle(this.hovered));
      pen.stroke();
      frame(origin, css(EDGE), Math.round(2 * dpr));
    }
    frame(this.hovered, "#fff", Math.round(2 * dpr));
  }

  // words ---------------------------------------------------------------------------------------

  write() {
    const { run } = this.view;
    const [first, second] = this.hovered >= 0 ? this.aboutToken() : [this.aboutScale(), this.aboutRun()];
    Object.assign(this.first, { textContent: first, title: first });
    Object.assign(this.second, { textContent: second, title: second });
    Object.entries({ "aria-valuemax": run.scales.length, "aria-valuenow": this.view.scale + 1, "aria-valuetext": `${this.aboutScale()} · ${this.aboutRun()}` })
      .forEach(([name, value]) => this.timeline.setAttribute(name, String(value)));
  }

  aboutScale() {
    const scale = this.scale();
    const values = { ran: scale.tokensRun, tokens: scale.tokens, share: percent(scale.tokensRun, scale.tokens) };
    const state = !scale.kept ? "waiting" : !scale.tokensRun ? "skipped" : isPruned(scale) ? "ran" : scale.tokens > 1 ? "all" : "one";
    return [gridName(scale.size), this.say(`overlay.${state}`, values), ...(scale.kept ? [duration(scale.seconds)] : [])].join(" · ");
  }

  aboutRun() {
    const { run, phase, scale } = this.view;
    const { ran, tokens } = totals(run);
    const values = { n: scale + 1, count: run.scales.length, done: run.done, share: percent(ran, tokens), time: duration(run.seconds) };
    const how = run.pruning && run.pruning !== "off" ? ` · ${run.pruning}` : "";
    return `${this.say("overlay.scale", values)} · ${this.say(`overlay.${phase === "done" ? "total" : phase}`, values)}${how}`;
  }

  aboutToken() {
    const scale = this.scale();
    const place = placeOf(this.hovered, scale.size);
    const where = this.say(scale.size[0] > 1 ? "overlay.placeInFrame" : "overlay.place", { ...place, grid: gridName([1, ...scale.size.slice(1)]) });
    const scores = SCORES.flatMap((name) => {
      const score = scoreAt(scale, name, this.view.picture, this.hovered);
      return score === null ? [] : [`${this.say(`overlay.${name}`)} ${score.toFixed(2)}`];
    });
    const gridText = `${where} · ${this.aboutFill(scale, place)}`;
    return [gridText, scores.join(" · ") || this.aboutScale()];
  }

  aboutFill(scale, place) {
    const from = this.sources();
    if (!from) return this.say("overlay.waiting");
    if (!scale.tokensRun) return this.say("overlay.wasSkipped");
    const origin = from[this.hovered];
    if (this.view.run.scope === "sublayer" && isPruned(scale)) return this.say(origin === this.hovered ? "overlay.keptFirst" : "overlay.leftFirst");
    if (origin === this.hovered) {
      const others = from.reduce((count, token) => count + Number(token === origin), -1);
      return others ? this.say("overlay.isKeptFor", { n: others }) : this.say("overlay.isKept");
    }
    const { fill } = this.view.run;
    if (origin < 0) return this.say(fill === "cache" || fill === "repeat" ? "overlay.filledEarlier" : "overlay.leftEmpty");
    const there = placeOf(origin, scale.size);
    if (there.frame !== place.frame) return this.say("overlay.filledFromFrame", there);
    return this.say(fill === "delta" ? "overlay.changedFrom" : "overlay.filledFrom", there);
  }

  // the timeline --------------------------------------------------------------------------------

  drawTimeline() {
    const { run, phase, scale: chosen } = this.view;
    if (!run || !this.width) return;
    this.bars = layoutTimeline(run, this.width, phase === "running");
    if (this.timeline.childElementCount !== this.bars.length) {
      this.timeline.replaceChildren(...this.bars.map(() => el("div", { className: "stepvar-scale" },
        el("div", { className: "stepvar-track" }, el("div", { className: "stepvar-share" })), el("div", { className: "stepvar-time" }), el("div", { className: "stepvar-size" }))));
    }
    this.bars.forEach((bar, i) => {
      const part = /** @type {any} */ (this.timeline.children[i]);
      const [track, time, size] = part.children;
      part.dataset.state = bar.state;
      part.setAttribute("aria-current", String(i === chosen));
      Object.assign(part.style, { left: `${bar.left}px`, width: `${bar.width}px` });
      track.firstChild.style.height = bar.share ? `max(1px, ${bar.share * 100}%)` : "0";
      time.style.width = bar.state === "done" ? `${Math.max(1, Math.round(bar.time * bar.width))}px` : "0";
      const grid = gridName(run.scales[i].size);
      size.textContent = bar.width >= 6 * grid.length || i === chosen ? grid : bar.width >= 13 ? grid.split("×").at(-1) : "";
    });
  }

  scrub(event, isStart) {
    if (!this.bars || (isStart ? event.button !== 0 : !(event.buttons & 1) || !this.timeline.hasPointerCapture(event.pointerId))) return;
    if (isStart) this.timeline.setPointerCapture(event.pointerId);
    const box = this.timeline.getBoundingClientRect();
    const scale = barAt(this.bars, ((event.clientX - box.left) / box.width) * this.width);
    if (scale !== this.view.scale || isStart) this.change({ scale });
  }

  step(event) {
    if (!this.view.run) return;
    const last = this.view.run.scales.length - 1;
    const to = { ArrowLeft: this.view.scale - 1, ArrowDown: this.view.scale - 1, ArrowRight: this.view.scale + 1, ArrowUp: this.view.scale + 1,
      Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation(); // the editor would move the node
    this.change({ scale: Math.min(Math.max(to, 0), last) });
  }
}
