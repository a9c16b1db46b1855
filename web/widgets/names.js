// @ts-check
// What a node's widgets look like. Names of widgets that say more than the node's own: all that both renderers draw as it is told. They are saved nowhere, and a
// name that the user gave stays.

/** @param {any} node @returns {{set: (widget: any, name: string | null) => void, plain: (widget: any) => string}} set: null = the node's own name */
export function createNames(node) {
  /** @type {Map<any, string>} */
  const given = new Map();
  const slotOf = (/** @type {any} */ widget) => node.inputs?.find((/** @type {any} */ input) => input.widget?.name === widget.name);
  const plain = (/** @type {any} */ widget) => slotOf(widget)?.localized_name ?? widget.name;
  return {
    plain,
    set(widget, name) {
      const isUsers = slotOf(widget)?.label || (widget.label && ![given.get(widget), plain(widget), widget.name].includes(widget.label));
      if (isUsers || (name === null && !given.has(widget))) return;
      const label = name ?? plain(widget);
      given.set(widget, label);
      if (widget.label === label) return;
      widget.label = label;
      node.setDirtyCanvas?.(true, true);
    },
  };
}

/**
 * Shows or hides a widget, in both renderers; it keeps its value and is saved as before. touch() makes Nodes 2.0 look.
 * @param {any} widget @param {boolean} isHidden @returns {boolean} whether that changed
 */
export function hide(widget, isHidden) {
  if (Boolean(widget.hidden) === isHidden) return false;
  widget.hidden = isHidden; // the canvas asks the widget,
  (widget.options ??= {}).hidden = isHidden; // Nodes 2.0 this object
  return true;
}

/** Makes Nodes 2.0 read the options of a node's widgets again: it looks when the list becomes another. @param {any} node */
export function touch(node) {
  const all = [...node.widgets];
  node.widgets = all.slice(0, -1);
  node.widgets = all;
  node.setDirtyCanvas?.(true, true);
}
