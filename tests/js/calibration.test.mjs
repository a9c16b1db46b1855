import assert from "node:assert/strict";
import test from "node:test";
import { createCalibration, fit } from "../../web/lib/calibration.js";

const near = (a, b) => assert.ok(Math.abs(a - b) < 1e-9 * Math.max(1, Math.abs(b)), `${a} is not ${b}`);
const law = (flops) => ({ flops, seconds: 0.01 + flops * 1e-3 });

test("overhead and slope are found, and never below zero", () => {
  const found = fit([10, 100, 1000].map(law));
  near(found.overhead, 0.01);
  near(found.slope, 1e-3);
  assert.deepEqual(fit([{ flops: 5, seconds: 1 }]), { overhead: 0, slope: 0.2 });
  const falling = fit([{ flops: 1, seconds: 2 }, { flops: 2, seconds: 1 }]);
  assert.ok(falling.overhead >= 0 && falling.slope > 0);
  const steep = fit([{ flops: 1, seconds: 0 }, { flops: 2, seconds: 3 }]);
  assert.ok(steep.overhead === 0 && steep.slope > 0);
});

test("the run that was measured is predicted as it was", () => {
  const run = [{ flops: 10, seconds: 0.5 }, { flops: 100, seconds: 0.1 }, { flops: 0, seconds: 0 }, { flops: 900, seconds: 1 }];
  const calibration = createCalibration();
  assert.equal(calibration.predict("m", [1]), null);
  calibration.record("m", run);
  near(calibration.predict("m", run.map((t) => t.flops)), 1.6);
  assert.equal(calibration.predict("another", [1]), null);
});

test("other work takes other time, skipped work none, and a scale skipped then what the others say", () => {
  const calibration = createCalibration();
  calibration.record("m", [law(10), law(100), law(1000), { flops: 0, seconds: 0 }]);
  near(calibration.predict("m", [10, 100, 500, 0]), law(10).seconds + law(100).seconds + law(500).seconds);
  near(calibration.predict("m", [10, 100, 0, 0]), law(10).seconds + law(100).seconds);
  near(calibration.predict("m", [10, 100, 1000, 2000]), law(10).seconds + law(100).seconds + law(1000).seconds + law(2000).seconds);
  near(calibration.predict("m", [20, 30]), law(20).seconds + law(30).seconds); // another schedule
});

test("broken timings are not kept", () => {
  const calibration = createCalibration();
  for (const seconds of [NaN, -1, Infinity, 0]) calibration.record("m", [{ flops: 1, seconds }]);
  assert.equal(calibration.predict("m", [1]), null);
});
