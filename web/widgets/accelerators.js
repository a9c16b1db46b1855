// @ts-check
// Shows only the chosen method's widgets on a VAR Accelerator node. Hidden ones keep their values and are saved as before.
import { hiddenOptions } from "../lib/accelerators.js";
import { isLinked } from "../lib/graph.js";
import { after, on } from "../lib/listen.js";

/** @param {any} node @param {{graph: EventTarget}} host @returns {(() => void) | void} */
export function attachMethods(node, host) {
  const method = node.widgets?.find((/** @type {any} */ w) => w.name === "method");
  const methods = node.constructor.nodeData?.input?.required?.method?.[1]?.stepvar_methods;
  if (!method || !methods) return;

  /** @param {boolean} fits whether the node takes the height its widgets need: not when a saved one is opened */
  function show(fits) {
    const hidden = hiddenOptions(methods, isLinked(node, "method") ? null : method.value); // a wire may bring any of them
    const changed = node.widgets.filter((/** @type {any} */ w) => Boolean(w.hidden) !== hidden.has(w.name));
    if (!changed.length) return;
    for (const widget of changed) {
      widget.hidden = hidden.has(widget.name); // the canvas asks the widget,
      (widget.options ??= {}).hidden = widget.hidden; // Nodes 2.0 this object, and looks again when the list is set
    }
    node.widgets = [...node.widgets];
    if (fits) node.setSize?.([node.size[0], node.computeSize?.()[1] ?? node.size[1]]);
    node.setDirtyCanvas?.(true, true);
  }

  const undo = [after(method, "callback", () => show(true)), after(node, "onConnectionsChange", () => show(true)),
    after(node, "onConfigure", () => show(false)), on(host.graph, "loaded", () => show(false))];
  show(true);
  return () => undo.forEach((leave) => leave());
}
