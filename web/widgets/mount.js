// @ts-check
// Keeping a DOM widget's element in its node. Nodes 2.0 (seen in 1.47) reuses the components of a node that undo replaced by
// another of the same id: they go on showing the element of the widget that is gone, and never ask for the new one.
import { on } from "../lib/listen.js";

/**
 * @param {any} node @param {HTMLElement} element
 * @returns {{check: () => void, retire: () => void}} check() after the node got its id, and whenever it is drawn: takes the
 *   place of a retired element; retire() when the node is removed
 */
export function keepMounted(node, element) {
  const kind = element.className;
  return {
    check() {
      element.dataset.node = String(node.id);
      if (element.isConnected) return;
      const left = [...document.getElementsByClassName(kind)].find((other) =>
        other instanceof HTMLElement && other.dataset.retired === "true" && other.dataset.node === element.dataset.node);
      left?.replaceWith(element);
    },
    retire() {
      element.dataset.retired = "true"; // the host takes it away with the node's component
    },
  };
}

/**
 * Zooming by wheel, panning by middle button and the node's own menu go on over an element that lies on the classic canvas;
 * within a Nodes 2.0 node the editor does that itself. A text field keeps the browser's menu.
 * @param {HTMLElement} element @param {() => any} canvas the editor's canvas
 * @returns {() => void} undoes it
 */
export function passToCanvas(element, canvas) {
  const isOnCanvas = () => element.closest(".dom-widget") !== null;
  const undo = [on(element, "wheel", (event) => {
    if (!isOnCanvas()) return;
    event.preventDefault();
    canvas()?.processMouseWheel?.(event);
  })];
  const isField = (/** @type {Event} */ event) => event.target instanceof HTMLInputElement && event.target.type !== "range";
  for (const [name, method] of [["pointerdown", "processMouseDown"], ["pointermove", "processMouseMove"], ["pointerup", "processMouseUp"]]) {
    const isCanvas = (/** @type {PointerEvent} */ event) => (name === "pointermove" ? event.buttons === 4
      : event.button === 1 || (event.button === 2 && !isField(event)));
    undo.push(on(element, name, (event) => isCanvas(event) && isOnCanvas() && canvas()?.[method]?.(event)));
  }
  undo.push(on(element, "contextmenu", (event) => isOnCanvas() && !isField(event) && event.preventDefault()));
  return () => undo.forEach((off) => off());
}
