// @ts-check
// Seconds before a run, from the last real run of the same model: what each pass took then, scaled by what it would cost now.

/**
 * @typedef {{flops: number, seconds: number}} Timing
 * @typedef {{record: (model: string, timings: Timing[]) => void, predict: (model: string, flops: number[]) => number | null}} Calibration
 */

/**
 * seconds = overhead + slope * flops over the passes of one run, neither below 0: small scales take their time in
 * launching work, large ones in doing it.
 * @param {Timing[]} timings
 */
export function fit(timings) {
  const n = timings.length;
  const mean = (/** @type {(t: Timing) => number} */ what) => timings.reduce((sum, t) => sum + what(t), 0) / n;
  const [f, s] = [mean((t) => t.flops), mean((t) => t.seconds)];
  const spread = mean((t) => (t.flops - f) ** 2);
  const slope = spread > 0 ? mean((t) => (t.flops - f) * (t.seconds - s)) / spread : 0;
  if (slope <= 0) return { overhead: 0, slope: f > 0 ? s / f : 0 };
  const overhead = s - slope * f;
  return overhead >= 0 ? { overhead, slope } : { overhead: 0, slope: s / f };
}

/** @returns {Calibration} one per browser session; keyed by the model's name, forgotten with the page */
export function createCalibration() {
  /** @type {Map<string, Timing[]>} */
  const runs = new Map();
  return {
    record(model, timings) {
      const isUsable = timings.some((t) => t.seconds > 0) && timings.every((t) => t.seconds >= 0 && Number.isFinite(t.seconds) && t.flops >= 0);
      if (isUsable) runs.set(model, timings);
    },
    predict(model, flops) {
      const run = runs.get(model);
      if (!run) return null;
      const { overhead, slope } = fit(run.filter((t) => t.flops > 0));
      const expected = (/** @type {number} */ work) => (work > 0 ? overhead + slope * work : 0);
      return flops.reduce((sum, work, i) => {
        const then = run.length === flops.length && run[i].flops > 0 ? run[i] : null;
        return sum + (then && expected(then.flops) > 0 ? then.seconds * (expected(work) / expected(then.flops)) : expected(work));
      }, 0);
    },
  };
}
