// @ts-check
// The scales of a run side by side: wider where there are more tokens, filled by the share that ran, and a bar for the time.

/** @typedef {{left: number, width: number, share: number, time: number, state: "done" | "running" | "waiting"}} Bar */

const GAP = 2;
const NARROWEST = 6;

/**
 * One bar per scale, in pixels of a strip of that width. share: of the tokens that ran or will run. time: against the
 * slowest scale so far.
 * @param {import("./trace.js").Run} run @param {number} width @param {boolean} isRunning
 * @returns {Bar[]}
 */
export function layoutTimeline(run, width, isRunning) {
  const weights = run.scales.map((scale) => Math.sqrt(scale.tokens)); // by token count the first scales would vanish
  const total = weights.reduce((sum, v) => sum + v, 0) || 1;
  const room = Math.max(0, width - GAP * (weights.length - 1));
  const narrowest = Math.min(NARROWEST, room / weights.length);
  const spare = room - narrowest * weights.length;
  const slowest = Math.max(...run.scales.map((scale) => scale.seconds), 1e-9);
  let left = 0;
  return run.scales.map((scale, i) => {
    const right = left + narrowest + (spare * weights[i]) / total;
    const bar = { left: Math.round(left), width: Math.max(1, Math.round(right) - Math.round(left)),
      share: scale.tokens ? (scale.kept ? scale.tokensRun : scale.planned) / scale.tokens : 0, time: scale.seconds / slowest,
      state: /** @type {Bar["state"]} */ (i < run.done ? "done" : i === run.done && isRunning ? "running" : "waiting") };
    left = right + GAP;
    return bar;
  });
}

/** The scale whose bar is nearest to x; -1 without bars. @param {Bar[]} bars @param {number} x */
export function barAt(bars, x) {
  const next = bars.findIndex((bar) => x < bar.left + bar.width + GAP / 2);
  return next < 0 ? bars.length - 1 : next;
}

/** "42 ms", "1.3 s", "2 min 5 s", "1 h 3 min". @param {number} seconds */
export function duration(seconds) {
  const ms = seconds * 1000;
  const whole = Math.round(seconds);
  if (whole >= 3600) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  if (whole >= 100) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return ms < 1 ? "<1 ms" : ms < 999.5 ? `${Math.round(ms)} ms` : ms < 9950 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
}

/** A percentage without decimals that says 0 and 100 only where it is so. @param {number} part @param {number} whole */
export function percent(part, whole) {
  if (part <= 0 || !whole) return "0%";
  return part >= whole ? "100%" : `${Math.min(99, Math.max(1, Math.round((100 * part) / whole)))}%`;
}
