// @ts-check
// A finder under VAR Class Label: suggests the connected model's class names and adds the chosen one to the label.
import { addClass, matchClass, matchClasses, nearest } from "../lib/classes.js";
import { findUpstream, isLinked, widgetValue } from "../lib/graph.js";
import { localeOf, t } from "../lib/i18n.js";
import { after, on, oncePerFrame } from "../lib/listen.js";
import { addElement } from "./dom.js";
import { keepMounted } from "./mount.js";
import { plansOf } from "./plans.js";

const HEIGHT = 26;
const STYLE = `
.stepvar-classes { box-sizing: border-box; width: 100%; height: 100%; min-height: ${HEIGHT}px; max-height: ${HEIGHT}px; }
.stepvar-classes input { box-sizing: border-box; width: 100%; height: ${HEIGHT}px; padding: 0 10px; border: 1px solid transparent; border-radius: 8px;
  background: var(--component-node-widget-background, var(--comfy-input-bg, #222)); color: var(--input-text, #ddd);
  font: 12px Inter, system-ui, sans-serif; }
.stepvar-classes input::placeholder { color: inherit; opacity: .6; }
.stepvar-classes input:focus { outline: none; border-color: #3096e0; }
`;

/** What finders of one page share: answers of the server, and ids for their lists. */
export function createClassFinder() {
  let count = 0;
  return function attachClassFinder(/** @type {any} */ node, /** @type {{app: any, api: any}} */ host) {
    return attach(node, host, plansOf(host.api), `stepvar-classes-${++count}`);
  };
}

/**
 * @param {any} node @param {{app: any, api: any}} host @param {ReturnType<typeof plansOf>} plans @param {string} id
 * @returns {(() => void) | void}
 */
function attach(node, host, plans, id) {
  const label = node.widgets?.find((/** @type {any} */ w) => w.name === "label");
  if (!label || !node.addDOMWidget) return;
  const [element, style, input, list] = ["div", "style", "input", "datalist"].map((tag) => document.createElement(tag));
  const field = /** @type {HTMLInputElement} */ (input);
  element.className = "stepvar stepvar-classes";
  style.textContent = STYLE;
  list.id = id;
  field.setAttribute("list", id);
  field.autocomplete = "off";
  element.append(style, field, list);
  const mount = keepMounted(node, element);
  /** @type {string[]} */
  let names = [];
  let asked = "";
  let problem = ""; // why there are no names
  let hint = ""; // after a text that means no class

  async function refresh() {
    const root = host.app.rootGraph ?? host.app.graph;
    const loader = findUpstream(root, node, "VAR_MODEL", "VARModelLoader");
    const model = loader && widgetValue(root, loader, "model_name");
    const wanted = typeof model === "string" ? model : "";
    if (wanted !== asked) {
      asked = wanted;
      const { plan, error } = wanted ? await plans({ model: wanted, labels: "1" }) : { plan: null, error: null };
      if (asked !== wanted) return;
      [names, problem, hint] = [plan?.labels ?? [], error ?? "", ""];
      if (!plan) asked = ""; // a file may be there the next time
      list.replaceChildren(...[...new Set(names)].map((name) => Object.assign(document.createElement("option"), { value: name })));
    }
    const locale = localeOf(host.app);
    field.disabled = !names.length || isLinked(node, "label");
    field.placeholder = names.length ? hint || t(locale, "classes.find") : problem || t(locale, asked ? "classes.none" : "classes.connect");
    field.title = names.length ? hint || t(locale, "classes.title", { count: names.length }) : problem;
    field.setAttribute("aria-label", field.placeholder);
    mount.check();
  }
  const schedule = oncePerFrame(refresh);

  /** @param {boolean} isDone whether the user has finished writing, so that an unknown text is answered */
  function take(isDone) {
    const text = field.value;
    const found = matchClasses(names, text);
    if (!found) {
      if (isDone && text.trim() && names.length) suggest(text);
      return;
    }
    [field.value, hint] = ["", ""];
    host.app.canvas?.emitBeforeChange?.(); // one step of the editor's history
    label.value = found.reduce(addClass, String(label.value ?? ""));
    label.callback?.(label.value, host.app.canvas, node);
    host.app.canvas?.emitAfterChange?.();
    node.setDirtyCanvas?.(true, true);
    schedule();
  }

  /** Says what is near a text that means no class, in its place. @param {string} text */
  function suggest(text) {
    const near = nearest(names, text);
    const values = { text: text.trim(), names: near.join(", ") };
    hint = near.length ? t(localeOf(host.app), "classes.near", values) : t(localeOf(host.app), "classes.unknown", values);
    field.value = "";
    schedule();
  }

  addElement(node, host.app, "classes", "stepvar_classes", element, { // it stands last, so that saved values keep their places
    margin: 10, getMinHeight: () => HEIGHT + 20, getMaxHeight: () => HEIGHT + 20 });
  const undo = [
    on(field, "change", () => take(true)),
    // a choice from the list comes as a replacement, typing does not
    on(field, "input", (event) => (!event.inputType || event.inputType === "insertReplacementText") && matchClass(names, field.value) && take(true)),
    on(field, "keydown", (event) => event.stopPropagation()), // keys are text here, not the editor's commands
    ...["onConfigure", "onAdded", "onConnectionsChange"].map((method) => after(node, method, schedule)),
    on(host.api, "graphChanged", schedule),
  ];
  schedule();
  return () => {
    schedule.cancel();
    undo.forEach((off) => off());
    mount.retire();
  };
}
