// @ts-check
// What -1 stands for on the connected model: the number in force, for the name of its widget.

/**
 * @typedef {import("./plan.js").Plan} Plan
 *
 * The number that -1 stands for, as the plan says it: a number, a list of numbers from the first scale to the last, or null
 * where it is not known.
 * @type {Record<string, Record<string, (plan: Plan) => number | number[] | null | undefined>>}
 */
const IN_FORCE = {
  VARSampler: { cfg: (plan) => plan.defaults?.cfg, temperature: (plan) => plan.defaults?.temperature, top_k: (plan) => plan.defaults?.top_k,
    top_p: (plan) => plan.defaults?.top_p, end_at_scale: (plan) => plan.scales.length },
  StepVARPruning: { first_layer: (plan) => plan.first_layer },
};
const IS_OFF_AT_ZERO = ["top_k", "top_p"];
const ALWAYS_A_FRACTION = ["cfg", "temperature"];

/** Names of the widgets of a kind of node whose -1 has a number behind it. @param {string} kind @returns {string[]} */
export const namesOf = (kind) => Object.keys(IN_FORCE[kind] ?? {});

/**
 * The text in force for a widget at -1: "4.0", "900", "600…300", "off"; null where the model is not known.
 * @param {string} kind @param {string} name @param {Plan | null} plan @param {string} off the word for a setting that is off
 * @returns {string | null}
 */
export function inForce(kind, name, plan, off) {
  const said = plan && IN_FORCE[kind]?.[name]?.(plan);
  if (said === null || said === undefined) return null;
  const numbers = Array.isArray(said) ? said : [said];
  const text = (/** @type {number} */ n) => (n === 0 && IS_OFF_AT_ZERO.includes(name) ? off
    : ALWAYS_A_FRACTION.includes(name) && Number.isInteger(n) ? n.toFixed(1) : String(n));
  return [...new Set(numbers.map(text))].join("…");
}
