// @ts-check
// Shows only the chosen method's widgets on a VAR Accelerator node. Hidden ones keep their values and are saved as before.
import { hiddenOptions } from "../lib/accelerators.js";
import { isLinked } from "../lib/graph.js";
import { after, on } from "../lib/listen.js";
import { hide, touch } from "./names.js";

/** @param {any} node @param {{graph: EventTarget}} host @returns {(() => void) | void} */
export function attachMethods(node, host) {
  const method = node.widgets?.find((/** @type {any} */ w) => w.name === "method");
  const methods = node.constructor.nodeData?.input?.required?.method?.[1]?.stepvar_methods;
  if (!method || !methods) return;

  /** @param {boolean} fits whether the node takes the height its widgets need: not when a saved one is opened */
  function show(fits) {
    const hidden = hiddenOptions(methods, isLinked(node, "method") ? null : method.value); // a wire may bring any of them
    const changed = node.widgets.filter((/** @type {any} */ w) => hide(w, hidden.has(w.name)));
    if (!changed.length) return;
    touch(node);
    if (fits) node.setSize?.([node.size[0], node.computeSize?.()[1] ?? node.size[1]]);
  }

  const undo = [after(method, "callback", () => show(true)), after(node, "onConnectionsChange", () => show(true)),
    after(node, "onConfigure", () => show(false)), on(host.graph, "loaded", () => show(false))];
  show(true);
  return () => undo.forEach((leave) => leave());
}
