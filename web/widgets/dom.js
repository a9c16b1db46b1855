// @ts-check
// Small parts that the widgets share: building elements, a widget of the editor around one, segmented buttons, pickers.
import { keepMounted } from "./mount.js";

/**
 * An element with properties, attributes (names with a dash, role, for) and children.
 * @param {string} tag @param {Record<string, any>} [with_] @param {(Node | string | null)[]} children
 * @returns {any}
 */
export function el(tag, with_ = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(with_)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const SETTLED = 300; // ms after a graph was loaded, when the editor has put its nodes' elements in place
const MARGIN = 10; // of the editor's DOM widgets, above and below

/**
 * Adds a widget around an element that holds no value: it is saved neither in the workflow nor in the prompt, and it lives in
 * its node alone. The panel of properties would take the element away from the node, and a subgraph cannot promote what has
 * no value: it offers the widgets that are not disabled, so this one is whenever its graph is not the one in view.
 * @param {any} node @param {any} app @param {string} name @param {string} type @param {HTMLElement} element
 * @param {{getMinHeight: () => number, getMaxHeight?: () => number, margin?: number}} heights
 * @returns {any} the widget
 */
export function addElement(node, app, name, type, element, heights) {
  const widget = node.addDOMWidget(name, type, element, {
    serialize: false, hideOnZoom: false, hideInPanel: true, getValue: () => "", setValue: () => {}, ...heights });
  widget.serialize = false;
  const isOutOfView = () => Boolean(node.graph && app.canvas?.graph && node.graph !== app.canvas.graph);
  Object.defineProperty(widget, "computedDisabled", { configurable: true, enumerable: true, get: isOutOfView, set: () => {} });
  return widget;
}

/**
 * Adds a widget that only shows something.
 * @param {any} node @param {string} name @param {HTMLElement} element @param {() => number} minHeight in CSS pixels
 * @param {{app: any, graph: EventTarget}} host its graph says when one was "loaded"
 * @returns {() => void} to be called when the node goes
 */
export function addDisplay(node, name, element, minHeight, { app, graph }) {
  addElement(node, app, name, "stepvar-display", element, { getMinHeight: () => minHeight() + 2 * MARGIN });
  const mount = keepMounted(node, element);
  let timer = 0;
  const loaded = () => { timer = setTimeout(() => mount.check(), SETTLED); };
  graph.addEventListener("loaded", loaded);
  return () => {
    clearTimeout(timer);
    graph.removeEventListener("loaded", loaded);
    element.dataset.node = String(node.id); // where its successor looks for it, also when no graph was ever loaded
    mount.retire();
  };
}

/**
 * The node's own preview gives way to the widget's: the classic editor draws it in this hook, Nodes 2.0 asks for the flag,
 * and its live preview is hidden by the widget's style sheet.
 */
export function hideStockPreview(node) {
  node.onDrawBackground = () => {};
  node.hideOutputImages = true;
}

/** Pictures for the node's own menu: open, copy, save. @param {any} node @param {string[]} urls @param {number} index the one meant */
export function offerImages(node, urls, index) {
  const offered = (node.imgs ?? []).map((/** @type {HTMLImageElement} */ img) => img.getAttribute("src"));
  if (offered.join(" ") !== urls.join(" ")) node.imgs = urls.length ? urls.map((src) => el("img", { src })) : undefined;
  node.imageIndex = Math.min(index, Math.max(0, urls.length - 1));
}

/** A badge on a picture of an earlier run, hidden until told. @param {string} text @param {string} title */
export function oldBadge(text, title) {
  const element = el("div", { className: "stepvar-old", textContent: text, title, hidden: true });
  return { element, show(/** @type {boolean} */ isOld) { element.hidden = !isOld; } };
}

/**
 * Buttons of which one is pressed.
 * @param {string} label @param {{value: string, text: string, title: string}[]} choices @param {(value: string) => void} choose
 */
export function segments(label, choices, choose) {
  const buttons = choices.map(({ value, text, title }) => el("button", {
    type: "button", title, textContent: text, className: "stepvar-segment", "aria-pressed": "false", "data-value": value,
    onclick: () => choose(value) }));
  const element = el("div", { role: "group", "aria-label": label, className: "stepvar-segments" }, ...buttons);
  return { element, show(value) {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === value));
  } };
}

/**
 * A strip of thumbnails, or numbers where there is no picture, to choose one of a batch. Hidden for a single picture.
 * @param {string} label @param {(index: number) => void} choose
 */
export function picker(label, choose) {
  const element = el("div", { role: "group", "aria-label": label, className: "stepvar-picker" });
  let shown = "";
  return { element,
    /** @param {(string | null)[]} urls one per picture @param {number} chosen @param {(i: number) => string} say */
    show(urls, chosen, say) {
      const key = urls.join(" ");
      element.hidden = urls.length < 2;
      if (key !== shown) {
        shown = key;
        element.replaceChildren(...urls.map((url, i) => el("button", {
          type: "button", title: say(i), "aria-label": say(i), className: "stepvar-thumb", onclick: () => choose(i) },
        url ? el("img", { src: url, alt: "", draggable: false }) : String(i + 1))));
      }
      Array.from(element.children).forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
    } };
}

/** The address of a file in a node's output. */
export const fileUrl = (api, file) => api.apiURL(`/view?${new URLSearchParams({ filename: file.filename, subfolder: file.subfolder ?? "",
  type: file.type })}`);
