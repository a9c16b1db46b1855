// @ts-check
// The equalizer's elements: plain HTML and CSS, so that it is sharp at any zoom, follows the theme and speaks to screen
// readers. It knows columns and texts, nothing of nodes.

import { isMovable } from "../lib/equalizer.js";

const STYLE = `
.stepvar-equalizer {
  --ink: var(--input-text, #ddd);
  --dim: color-mix(in srgb, var(--ink) 62%, transparent);
  --line: color-mix(in srgb, var(--ink) 13%, transparent);
  --kept: color-mix(in srgb, #2a90dd 90%, var(--ink));
  --skip: color-mix(in srgb, #e08a00 80%, var(--ink));
  container-type: inline-size;
  display: flex; flex-direction: column; box-sizing: border-box;
  width: 100%; height: 100%; min-height: 236px; max-height: 436px; padding: 9px 10px 8px; overflow: hidden;
  border-radius: 8px; background: var(--component-node-widget-background, var(--comfy-input-bg, #222)); color: var(--ink);
  font: 11px/14px Inter, system-ui, sans-serif; font-variant-numeric: tabular-nums; user-select: none; cursor: default;
}
.stepvar-equalizer * { box-sizing: border-box; }
.stepvar-equalizer svg { display: block; fill: none; stroke: currentColor; stroke-width: 1.4; stroke-linecap: round; }
.stepvar-eq-readout { display: flex; flex: none; justify-content: space-between; gap: 8px; height: 14px; color: var(--dim); white-space: nowrap; }
.stepvar-eq-readout div { min-width: 0; overflow: hidden; text-overflow: ellipsis; }
.stepvar-eq-readout div + div { flex: none; font-size: 9.5px; opacity: .8; }
.stepvar-eq-readout.is-live { color: var(--ink); }
.stepvar-eq-columns { display: flex; flex: 1 1 auto; gap: 5px; min-height: 0; margin-top: 8px; }
.stepvar-eq-column { display: flex; flex: 1 1 0; flex-direction: column; min-width: 0; text-align: center; }
.stepvar-eq-value { display: flex; flex: none; align-items: center; justify-content: center; height: 14px; margin-bottom: 4px;
  font-size: 10.5px; line-height: 14px; white-space: nowrap; }
.stepvar-eq-label, .stepvar-eq-share { flex: none; height: 12px; margin: 0 -4px; font-size: 9.5px; line-height: 12px; white-space: nowrap; }
.stepvar-eq-label { margin-top: 6px; }
.stepvar-eq-label.is-long { letter-spacing: -.04em; }
.stepvar-eq-share { color: var(--dim); }
.stepvar-eq-track { position: relative; flex: 1 1 auto; min-height: 60px; margin: 0 3px; border-radius: 3px; outline: none;
  cursor: ns-resize; touch-action: none;
  background: repeating-linear-gradient(to top, var(--line) 0 4px, transparent 4px 6px); }
.stepvar-eq-track::after { position: absolute; inset: 0 -4px -7px; content: ""; }
.stepvar-eq-fill { position: absolute; inset: auto 0 0; height: calc(var(--level) * 100%); border-radius: 2px;
  background: repeating-linear-gradient(to top, var(--kept) 0 4px, transparent 4px 6px); }
.stepvar-eq-cap { position: absolute; right: -3px; bottom: calc(var(--level) * 100%); left: -3px; height: 5px;
  margin-bottom: -3px; border-radius: 2px;
  background: var(--ink); box-shadow: 0 0 0 2px var(--component-node-widget-background, var(--comfy-input-bg, #222)); }
.stepvar-eq-track:hover .stepvar-eq-cap { background: color-mix(in srgb, var(--kept) 45%, var(--ink)); }
.stepvar-eq-track:focus-visible { outline: 2px solid var(--kept); outline-offset: 4px; }
.stepvar-eq-column.is-whole .stepvar-eq-fill { opacity: .62; }
.stepvar-eq-column.is-whole .stepvar-eq-value { color: var(--dim); }
.stepvar-eq-column.is-skipped .stepvar-eq-track {
  background: repeating-linear-gradient(-45deg, color-mix(in srgb, var(--skip) 34%, transparent) 0 2px, transparent 2px 6px);
  box-shadow: inset 0 0 0 1px color-mix(in srgb, var(--skip) 70%, transparent); }
.stepvar-eq-column.is-skipped .stepvar-eq-value { color: var(--skip); }
.stepvar-eq-column.is-skipped .stepvar-eq-cap { background: var(--skip); }
.stepvar-eq-column:is(.is-linked, .is-ignored) .stepvar-eq-track { cursor: not-allowed; }
.stepvar-eq-column:is(.is-linked, .is-ignored) .stepvar-eq-fill { background: repeating-linear-gradient(to top, var(--dim) 0 4px, transparent 4px 6px); opacity: .6; }
.stepvar-eq-column:is(.is-linked, .is-ignored) .stepvar-eq-cap { display: none; }
.stepvar-eq-column.is-locked { flex: 0 0 auto; color: var(--dim); }
.stepvar-eq-bank { display: flex; flex: 1 1 auto; justify-content: center; gap: 2px; min-height: 60px; margin: 0 3px; opacity: .34; }
.stepvar-eq-bank div { width: 4px; border-radius: 1px; background: repeating-linear-gradient(to top, var(--ink) 0 4px, transparent 4px 6px); }
.stepvar-eq-summary { display: flex; flex: none; align-items: center; justify-content: space-between; gap: 10px; height: 48px; margin-top: 8px;
  padding-top: 8px;
  border-top: 1px solid var(--line); }
.stepvar-eq-speedup { font-size: 22px; font-weight: 600; line-height: 24px; letter-spacing: -.02em; }
.stepvar-eq-remark { display: -webkit-box; flex: 1 1 auto; overflow: hidden; color: var(--dim); -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; line-clamp: 3; user-select: text; }
.stepvar-eq-remark.is-error { color: color-mix(in srgb, #e5484d 75%, var(--ink)); }
.stepvar-eq-summary > [hidden] { display: none; }
.stepvar-eq-caption, .stepvar-eq-facts { font-size: 10.5px; line-height: 15px; white-space: nowrap; }
.stepvar-eq-caption { color: var(--dim); }
.stepvar-eq-facts { min-width: 0; overflow: hidden; text-align: right; }
.stepvar-eq-facts div { overflow: hidden; text-overflow: ellipsis; }
.stepvar-eq-facts div + div { color: var(--dim); }
.stepvar-equalizer.is-idle .stepvar-eq-columns { opacity: .35; filter: grayscale(1); pointer-events: none; }
.stepvar-equalizer.is-idle .stepvar-eq-speedup { color: var(--skip); }
.stepvar-equalizer.has-fold { min-height: 258px; }
.stepvar-equalizer .stepvar-eq-fold { all: unset; flex: none; height: 18px; margin-top: 4px; color: var(--dim); font-size: 10.5px; line-height: 18px; text-align: center; cursor: pointer; }
.stepvar-equalizer .stepvar-eq-fold:hover, .stepvar-equalizer .stepvar-eq-fold:focus-visible { color: var(--ink); text-decoration: underline; }
.stepvar-equalizer > [hidden] { display: none !important; }
@container (max-width: 250px) {
  .stepvar-eq-columns { gap: 1px; }
  .stepvar-eq-label, .stepvar-eq-share { font-size: 8px; letter-spacing: -.03em; }
  .stepvar-eq-caption { display: none; }
}
`;

const LOCK = ["M3.5 5.5h5v4h-5z", "M4.5 5.5v-1.5a1.5 1.5 0 0 1 3 0v1.5"];
const LINK = ["M5 7l2-2", "M4.2 5.6 2.9 6.9a1.6 1.6 0 0 0 2.3 2.3l1.3-1.3", "M7.8 6.4l1.3-1.3a1.6 1.6 0 0 0-2.3-2.3L5.5 4.1"];

/** @param {string} tag @param {string} className @param {(Node | string)[]} [content] */
function make(tag, className, content = []) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...content);
  return element;
}

/** A sign of 12 x 12. @param {string[]} paths */
function sign(paths) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of [["viewBox", "0 0 12 12"], ["width", "12"], ["height", "12"], ["aria-hidden", "true"]]) svg.setAttribute(name, value);
  for (const d of paths) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", d);
    svg.append(path);
  }
  return svg;
}

/**
 * @typedef {{y: number, height: number, shift: boolean}} Pointer y from the top of the bar's track, which is `height` high
 * @typedef {{onFold: () => void, onPress: (place: number, pointer: Pointer) => boolean, onMove: (pointer: Pointer) => void, onRelease: () => void,
 *   onReset: (place: number) => void, onKey: (place: number, key: string, shift: boolean) => boolean, onKeyEnd: () => void}} Handlers
 * @typedef {{value: string, label: string, share: string, name: string, state: string, readout: string}} ColumnTexts
 * @typedef {{title: string, legend: string, hint: string, note: string | null, remark: string, isError: boolean, isIdle: boolean, fold: string,
 *   speedup: string, speedupCaption: string, tokens: string, time: string, memory: string, memoryParts: string, columns: ColumnTexts[]}} Texts
 */

/** @param {Handlers} handlers */
export function buildFace(handlers) {
  const style = make("style", "");
  style.textContent = STYLE;
  const [message, legend] = [make("div", ""), make("div", "")];
  const readout = make("div", "stepvar-eq-readout", [message, legend]);
  const columns = make("div", "stepvar-eq-columns");
  const [speedup, caption, tokens, time] = ["speedup", "caption", "tokens", "time"].map((name) => make("div", `stepvar-eq-${name}`));
  const numbers = [make("div", "", [speedup, caption]), make("div", "stepvar-eq-facts", [tokens, time])];
  const remark = make("div", "stepvar-eq-remark"); // in place of the numbers, where there is no model
  remark.setAttribute("role", "status");
  const summary = make("div", "stepvar-eq-summary", [...numbers, remark]);
  const fold = make("button", "stepvar-eq-fold");
  fold.setAttribute("type", "button");
  fold.addEventListener("click", () => handlers.onFold());
  const element = make("div", "stepvar stepvar-equalizer", [style, readout, columns, summary, fold]);
  element.setAttribute("role", "group");
  readout.setAttribute("aria-hidden", "true"); // each slider says the same itself

  /** @type {{root: HTMLElement, track: HTMLElement, value: HTMLElement, label: HTMLElement, share: HTMLElement}[]} */
  let built = [];
  let shape = "";
  let live = -1; // the column whose text the readout shows
  /** @type {Texts | null} */
  let texts = null;

  function showReadout() {
    const text = texts?.columns[live]?.readout;
    message.textContent = text ?? texts?.note ?? texts?.title ?? "";
    legend.textContent = text || texts?.note ? "" : texts?.legend ?? "";
    readout.title = text ? "" : [texts?.note, texts?.hint].filter(Boolean).join("\n");
    readout.classList.toggle("is-live", Boolean(text));
  }

  function point(/** @type {number} */ index) {
    live = index;
    showReadout();
  }

  /** @param {import("../lib/equalizer.js").Column} column @param {number} index */
  function buildColumn(column, index) {
    const [value, label, share] = ["value", "label", "share"].map((name) => make("div", `stepvar-eq-${name}`));
    const track = column.place ? make("div", "stepvar-eq-track", [make("div", "stepvar-eq-fill"), make("div", "stepvar-eq-cap")])
      : make("div", "stepvar-eq-bank", Array.from({ length: column.scales }, () => make("div", "")));
    const root = make("div", "stepvar-eq-column", [value, track, label, share]);
    root.addEventListener("pointerenter", () => point(index));
    root.addEventListener("pointerleave", () => point(built.findIndex((b) => b.track === document.activeElement)));
    if (column.place) listen(track, column.place, index);
    for (const part of [value, label, share]) part.setAttribute("aria-hidden", "true");
    track.setAttribute("role", column.place ? "slider" : "img");
    if (column.place) {
      const fixed = { tabindex: "0", "aria-orientation": "vertical", "aria-valuemin": column.canSkip ? "0" : "1", "aria-valuemax": "100" };
      for (const [name, text] of Object.entries(fixed)) track.setAttribute(name, text);
      track.dataset.place = String(column.place);
    } else {
      value.append(sign(LOCK));
    }
    return { root, track, value, label, share };
  }

  /** @param {HTMLElement} track @param {number} place @param {number} index */
  function listen(track, place, index) {
    const pointer = (/** @type {PointerEvent} */ event) => {
      const box = track.getBoundingClientRect();
      return { y: event.clientY - box.top, height: box.height, shift: event.shiftKey };
    };
    let isHeld = false;
    track.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.stopPropagation();
      isHeld = handlers.onPress(place, pointer(event));
      if (isHeld) track.setPointerCapture(event.pointerId);
    });
    track.addEventListener("pointermove", (event) => isHeld && handlers.onMove(pointer(event)));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      track.addEventListener(end, () => {
        if (isHeld) handlers.onRelease();
        isHeld = false;
      });
    }
    track.addEventListener("dblclick", () => handlers.onReset(place));
    track.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !handlers.onKey(place, event.key, event.shiftKey)) return;
      event.preventDefault();
      event.stopPropagation(); // the editor would delete the node, or move it
    });
    track.addEventListener("keyup", () => handlers.onKeyEnd());
    track.addEventListener("focus", () => point(index));
    track.addEventListener("blur", () => {
      handlers.onKeyEnd();
      point(-1);
    });
  }

  return {
    element,

    /** @param {import("../lib/equalizer.js").View} view @param {Texts} now */
    draw(view, now) {
      texts = now;
      const wanted = view.columns.map((c) => `${c.place}:${c.scales}:${c.canSkip}`).join(" ");
      if (wanted !== shape) {
        shape = wanted;
        live = -1;
        built = view.columns.map(buildColumn);
        columns.replaceChildren(...built.map((b) => b.root));
      }
      element.setAttribute("aria-label", now.title);
      element.classList.toggle("is-idle", now.isIdle);
      element.classList.toggle("has-fold", Boolean(now.fold));
      [fold.textContent, fold.hidden] = [now.fold, !now.fold];
      view.columns.forEach((column, i) => {
        const { root, track, value, label, share } = built[i];
        const text = now.columns[i];
        root.className = `stepvar-eq-column is-${column.state}${column.kept === 1 ? " is-whole" : ""}`;
        track.style.setProperty("--level", String(column.kept));
        track.setAttribute("aria-label", column.place ? text.name : text.readout);
        [label.textContent, share.textContent] = [text.label, text.share];
        label.classList.toggle("is-long", text.label.length > 5);
        if (!column.place) return;
        value.replaceChildren(column.state === "linked" ? sign(LINK) : text.value);
        track.setAttribute("aria-valuenow", String(Math.round(100 * column.kept)));
        track.setAttribute("aria-valuetext", text.state);
        track.setAttribute("aria-disabled", String(!isMovable(column)));
      });
      [speedup.textContent, caption.textContent, tokens.textContent] = [now.speedup, now.speedupCaption, now.tokens];
      time.textContent = [now.time, now.memory].filter(Boolean).join(" · ");
      time.title = now.memoryParts;
      remark.textContent = now.remark;
      remark.classList.toggle("is-error", now.isError);
      for (const part of numbers) part.hidden = Boolean(now.remark);
      remark.hidden = !now.remark;
      showReadout();
    },
  };
}
