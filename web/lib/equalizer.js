// @ts-check
// What the equalizer shows and does, as data: web/widgets/equalizer.js draws it and passes on what the user did.
import { barsOf, estimate, gridName } from "./plan.js";
import { CUSTOM, ratiosOf } from "./presets.js";

/**
 * @typedef {import("./plan.js").Plan} Plan
 * @typedef {import("./plan.js").Settings} Settings
 * @typedef {{ratio: number, linked: boolean}} Fader what a ratio widget says, or the link that sets it
 *
 * One column. place 0 = the scales no widget reaches; ignored = a preset that is not Custom overrules its link. kept and share
 * from 0 to 1; tokens, keptTokens null without a model.
 * @typedef {{place: number, state: "free" | "linked" | "ignored" | "locked" | "skipped", label: string, scales: number,
 *   index: number, kept: number, share: number | null, tokens: number | null, keptTokens: number | null, canSkip: boolean}} Column
 *
 * @typedef {{columns: Column[], ratios: number[], isAdjusted: boolean, scales: number,
 *   cost: import("./plan.js").Estimate | null}} View
 */

/** A ratio as widgets and files hold it: two decimals, from 0 to 1. @param {number} ratio @returns {number} */
export function rounded(ratio) {
  return Number.isFinite(ratio) ? Math.min(1, Math.max(0, Math.round(ratio * 100) / 100)) : 0;
}

/**
 * The ratios that will run: the preset's as the server resolved them for this model and size, else as they are named, else
 * the widgets' own.
 * @param {Plan | null} plan @param {Record<string, number[]>} presets @param {string} preset @param {number[]} own
 * @returns {number[]}
 */
export function effectiveRatios(plan, presets, preset, own) {
  return (preset === CUSTOM ? null : ratiosOf(plan?.presets ?? {}, preset, own.length) ?? ratiosOf(presets, preset, own.length)) ?? own.map(rounded);
}

/**
 * @param {{plan: Plan | null, presets: Record<string, number[]>, preset: string, faders: Fader[], settings: Settings}} state
 * @returns {View}
 */
export function viewOf({ plan, presets, preset, faders, settings }) {
  const own = faders.map((f) => f.ratio);
  const ratios = effectiveRatios(plan, presets, preset, own);
  const named = ratiosOf(presets, preset, own.length);
  const isAdjusted = Boolean(named) && ratios.some((r, i) => r !== named?.[i]);
  const link = preset === CUSTOM ? /** @type {const} */ ("linked") : /** @type {const} */ ("ignored");
  const isFixed = (/** @type {number} */ place) => (place > 0 && faders[place - 1].linked ? link : null);
  if (!plan) {
    const columns = faders.map((_, i) => faders.length - i).map((place) => column(place, ratios[place - 1], isFixed(place), { canSkip: true }));
    return { columns, ratios, isAdjusted, scales: 0, cost: null };
  }
  const cost = estimate(plan, ratios, settings);
  const keptIn = (/** @type {number} */ place) =>
    cost.passes.filter((p) => placeOf(plan, p.scale, faders.length) === place).reduce((sum, p) => sum + p.kept, 0);
  const columns = barsOf(plan, faders.length, settings).map((bar) => column(bar.place, bar.place ? ratios[bar.place - 1] : 0, isFixed(bar.place), {
    label: gridName(bar.size), scales: bar.scales, share: bar.share, tokens: bar.tokens, keptTokens: keptIn(bar.place),
    canSkip: bar.canSkip, index: bar.place ? plan.scales.length - bar.place + 1 : 0 }));
  return { columns, ratios, isAdjusted, scales: plan.scales.length, cost };
}

/** @param {Plan} plan @param {number} scale @param {number} widgets */
function placeOf(plan, scale, widgets) {
  return plan.scales[scale].place <= widgets ? plan.scales[scale].place : 0;
}

/** @param {number} place @param {number} ratio @param {"linked" | "ignored" | null} link @param {Partial<Column>} more @returns {Column} */
function column(place, ratio, link, more) {
  const skipped = ratio === 1 && more.canSkip;
  const kept = more.tokens ? (more.keptTokens ?? 0) / more.tokens : 1 - ratio;
  return { place, state: !place ? "locked" : link ?? (skipped ? "skipped" : "free"), kept, label: "", scales: 1, index: 0,
    share: null, tokens: null, keptTokens: null, canSkip: false, ...more };
}

/** Whether the user may move a column's bar: not where a link holds it. @param {Column} column */
export function isMovable({ place, state }) {
  return place > 0 && state !== "linked" && state !== "ignored";
}

/**
 * Ratios after a bar, or with `together` every free bar, moved by `delta` from where they were at the start.
 * @param {number[]} start @param {Column[]} columns @param {number} place @param {number} delta in ratio @param {boolean} together
 * @returns {Map<number, number>} place -> ratio of those that move
 */
export function moved(start, columns, place, delta, together) {
  const free = columns.filter((c) => isMovable(c) && (together || c.place === place));
  return new Map(free.map((c) => [c.place, limited(start[c.place - 1] + delta, c)]));
}

/** A ratio the scale can have: where skipping is refused, the most is 0.99. @param {number} ratio @param {Column} column */
export function limited(ratio, column) {
  return Math.min(rounded(ratio), column.canSkip ? 1 : 0.99);
}

/**
 * The ratio for a pointer at `y` from the top of a track: the least is kept down to its end, and a scale is skipped only
 * by going clearly beyond it.
 * @param {number} y @param {number} height in the same unit @param {Column} column @returns {number}
 */
export function ratioAt(y, height, column) {
  const ratio = y / height;
  return limited(ratio > 1.04 ? 1 : Math.min(0.99, ratio), column);
}

/**
 * What a key does to a ratio; null where it does nothing.
 * @param {string} key @param {boolean} shift @param {number} ratio @param {Column} column @param {number} reset
 * @returns {number | null}
 */
export function ratioAfterKey(key, shift, ratio, column, reset) {
  const step = shift ? 0.1 : 0.01;
  switch (key) {
    case "ArrowUp": case "ArrowRight": return limited(ratio - step, column);
    case "ArrowDown": case "ArrowLeft": return limited(ratio + step, column);
    case "PageUp": return limited(ratio - 0.1, column);
    case "PageDown": return limited(ratio + 0.1, column);
    case "Home": return limited(1, column);
    case "End": return limited(0, column);
    case "Delete": case "Backspace": return limited(reset, column);
    default: return null;
  }
}

/** "57 MB", "2.1 GB". @param {number} bytes @param {string} locale @returns {string} */
export function formatBytes(bytes, locale) {
  const [size, unit] = bytes < 1e9 ? [bytes / 1e6, "MB"] : [bytes / 1e9, "GB"];
  return `${formatNumber(size, locale, size < 10 ? 1 : 0)} ${unit}`;
}

/** @param {number} value @param {string} locale @param {number} [digits] @returns {string} */
export function formatNumber(value, locale, digits = 0) {
  const options = { maximumFractionDigits: digits, minimumFractionDigits: digits };
  try {
    return new Intl.NumberFormat(locale, options).format(value);
  } catch {
    return new Intl.NumberFormat("en", options).format(value); // a locale name the browser does not know
  }
}
