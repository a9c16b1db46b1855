import assert from "node:assert/strict";
import test from "node:test";
import { offered } from "../../web/lib/canvases.js";
import { inForce, namesOf } from "../../web/lib/defaults.js";

const plan = { scales: Array(10), first_layer: 2, defaults: { cfg: 4, temperature: 0.5, top_k: [600, 300], top_p: 0 } };

test("the number behind -1 is the connected model's own", () => {
  const said = Object.fromEntries(namesOf("VARSampler").map((name) => [name, inForce("VARSampler", name, plan, "off")]));
  assert.deepEqual(said, { cfg: "4.0", temperature: "0.5", top_k: "600…300", top_p: "off", end_at_scale: "10" });
  assert.equal(inForce("StepVARPruning", "first_layer", plan, "off"), "2");
});

test("without a model, or on a server that does not say, there is none", () => {
  assert.equal(inForce("VARSampler", "cfg", null, "off"), null);
  assert.equal(inForce("VARSampler", "cfg", { scales: [] }, "off"), null);
  assert.deepEqual(namesOf("SaveImage"), []);
});

test("sizes and shapes are the model's, and what is chosen stays", () => {
  const all = { size: ["auto", "256", "1M"], aspect_ratio: ["1:1", "16:9", "2:1"] };
  const canvases = { auto: ["1:1", "16:9"], "1M": ["1:1"] };
  assert.deepEqual(offered(canvases, all, { size: "auto", aspect_ratio: "1:1" }), { size: ["auto", "1M"], aspect_ratio: ["1:1", "16:9"] });
  assert.deepEqual(offered(canvases, all, { size: "1M", aspect_ratio: "1:1" }), { size: ["auto", "1M"], aspect_ratio: ["1:1"] });
  assert.deepEqual(offered(canvases, all, { size: "256", aspect_ratio: "2:1" }), { size: ["auto", "256", "1M"], aspect_ratio: ["1:1", "16:9", "2:1"] });
  assert.deepEqual(offered(undefined, all, { size: "256", aspect_ratio: "2:1" }), all);
});
