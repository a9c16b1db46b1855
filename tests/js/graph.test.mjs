import assert from "node:assert/strict";
import test from "node:test";
import { findDownstream, findUpstream, isLinked, nodeOfMessage, showsDecoded, widgetValue } from "../../web/lib/graph.js";

/** A graph in the editor's shape from nodes and links [id, from, slot, to, slot]. */
function graphOf(nodes, links, more = {}) {
  const graph = { nodes, links: new Map(), ...more, getNodeById: (id) => nodes.find((n) => n.id === id) ?? null };
  for (const node of nodes) node.graph = graph;
  for (const [id, origin_id, origin_slot, target_id, target_slot] of links) {
    graph.links.set(id, { id, origin_id, origin_slot, target_id, target_slot });
    const output = origin_id > 0 ? graph.getNodeById(origin_id).outputs[origin_slot] : graph.inputs[origin_slot];
    (output.links ??= output.linkIds ??= []).push(id);
    if (target_id > 0) graph.getNodeById(target_id).inputs[target_slot].link = id;
    else (graph.outputs[target_slot].linkIds ??= []).push(id);
  }
  return graph;
}

const node = (id, comfyClass, inputs, outputs, widgets = {}) => ({ id, comfyClass, type: comfyClass,
  inputs: inputs.map((type) => (typeof type === "string" ? { type, name: type, link: null } : { link: null, ...type })),
  outputs: outputs.map((type) => ({ type })), widgets: Object.entries(widgets).map(([name, value]) => ({ name, value })) });

const loader = (id) => node(id, "VARModelLoader", [], ["VAR_MODEL", "VAE"], { model_name: "demo" });
const pruning = (id) => node(id, "StepVARPruning", ["VAR_MODEL", "MASK"], ["VAR_MODEL"]);
const sampler = (id) => node(id, "VARSampler", ["VAR_MODEL", "CONDITIONING", "LATENT"], ["LATENT", "VAR_TRACE"]);
const latent = (id) => node(id, "EmptyVARLatent", ["VAR_MODEL"], ["LATENT"], { size: "auto" });

test("the model is found through other nodes, reroutes and bypassed nodes", () => {
  const bypassed = { ...node(4, "VARAccelerator", ["VAR_MODEL"], ["VAR_MODEL"]), mode: 4 };
  const nodes = [loader(1), node(2, "Reroute", ["*"], ["*"]), node(3, "VARAccelerator", ["VAR_MODEL"], ["VAR_MODEL"]), bypassed, pruning(5)];
  const graph = graphOf(nodes, [[1, 1, 0, 2, 0], [2, 2, 0, 3, 0], [3, 3, 0, 4, 0], [4, 4, 0, 5, 0]]);
  assert.equal(findUpstream(graph, nodes[4], "VAR_MODEL", "VARModelLoader"), nodes[0]);
});

test("no connection, a broken link and a circle find nothing", () => {
  const [a, b] = [pruning(1), pruning(2)];
  assert.equal(findUpstream(graphOf([a, b], []), a, "VAR_MODEL", "VARModelLoader"), null);
  assert.equal(findUpstream(graphOf([a, b], [[1, 1, 0, 2, 0], [2, 2, 0, 1, 0]]), a, "VAR_MODEL", "VARModelLoader"), null);
  assert.equal(findDownstream(a.graph, a, "VAR_MODEL", "VARSampler"), null);
  a.inputs[0].link = 77;
  assert.equal(findUpstream(a.graph, a, "VAR_MODEL", "VARModelLoader"), null);
  assert.equal(findUpstream(null, { inputs: [], outputs: [] }, "VAR_MODEL", "VARModelLoader"), null);
});

test("the sampler is found down the wire, and the latent up from it past other nodes", () => {
  const nodes = [pruning(1), node(2, "Reroute", ["*"], ["*"]), sampler(3), latent(4), node(5, "RepeatLatentBatch", ["LATENT"], ["LATENT"])];
  const graph = graphOf(nodes, [[1, 1, 0, 2, 0], [2, 2, 0, 3, 0], [3, 4, 0, 5, 0], [4, 5, 0, 3, 2]]);
  assert.equal(findDownstream(graph, nodes[0], "VAR_MODEL", "VARSampler"), nodes[2]);
  assert.equal(findUpstream(graph, nodes[2], "LATENT", "EmptyVARLatent"), nodes[3]);
});

/** A loader outside, the pruning in a subgraph, and the sampler outside again. */
function nested() {
  const inner = pruning(10);
  inner.inputs.push({ name: "ratio_1", type: "FLOAT", widget: { name: "ratio_1" }, link: null });
  inner.widgets = [{ name: "ratio_1", value: 0.1 }];
  const subgraph = graphOf([inner], [[1, -10, 0, 10, 0], [2, 10, 0, "-20", 0], [3, "-10", 1, 10, 2]],
    { inputs: [{ name: "model", type: "VAR_MODEL" }, { name: "ratio_1", type: "FLOAT" }], outputs: [{ name: "out", type: "VAR_MODEL" }] });
  const host = { ...node(2, "uuid", ["VAR_MODEL", { name: "ratio_1", type: "FLOAT", widget: { name: "ratio_1" } }], ["VAR_MODEL"], { ratio_1: 0.7 }), subgraph };
  const nodes = [loader(1), host, sampler(3)];
  return { inner, host, nodes, root: graphOf(nodes, [[1, 1, 0, 2, 0], [2, 2, 0, 3, 0]], { subgraphs: new Map([["x", subgraph]]) }) };
}

test("walls of subgraphs are passed both ways, from inside and from outside", () => {
  const { inner, nodes, root } = nested();
  assert.equal(findUpstream(root, inner, "VAR_MODEL", "VARModelLoader"), nodes[0]);
  assert.equal(findDownstream(root, inner, "VAR_MODEL", "VARSampler"), nodes[2]);
  assert.equal(findUpstream(root, nodes[2], "VAR_MODEL", "StepVARPruning"), inner);
  assert.equal(findDownstream(root, nodes[0], "VAR_MODEL", "StepVARPruning"), inner);
  assert.equal(nodeOfMessage(root, "2:10"), inner);
  assert.equal(nodeOfMessage(root, "3"), nodes[2]);
  assert.equal(nodeOfMessage(root, "9:9"), null);
});

test("a promoted widget's value is the host's, a Primitive's its own, another link's unknown", () => {
  const { inner, root } = nested();
  assert.equal(widgetValue(root, inner, "ratio_1"), 0.7);
  assert.ok(isLinked(inner, "ratio_1") && !isLinked(inner, "MASK"));
  const target = node(2, "X", [{ name: "seed", type: "INT", widget: { name: "seed" } }], [], { seed: 5 });
  const primitive = graphOf([node(1, "PrimitiveNode", [], ["INT"], { value: 9 }), target], [[1, 1, 0, 2, 0]]);
  assert.equal(widgetValue(primitive, target, "seed"), 9);
  const other = node(2, "X", [{ name: "seed", type: "INT", widget: { name: "seed" } }], [], { seed: 5 });
  assert.equal(widgetValue(graphOf([node(1, "Math", [], ["INT"]), other], [[1, 1, 0, 2, 0]]), other, "seed"), undefined);
  assert.equal(widgetValue(null, node(3, "X", [], [], { seed: 5 }), "seed"), 5);
});

test("a node that shows a sampler's decoded pictures is told from others", () => {
  const decoder = node(3, "VAEDecode", ["LATENT", "VAE"], ["IMAGE"]);
  const [save, other] = [node(4, "SaveImage", ["IMAGE"], []), node(5, "PreviewImage", ["IMAGE"], [])];
  const samplers = [sampler(1), sampler(2)];
  const graph = graphOf([...samplers, decoder, save, other], [[1, 1, 0, 3, 0], [2, 3, 0, 4, 0]]);
  assert.deepEqual([showsDecoded(graph, save, samplers[0]), showsDecoded(graph, save, samplers[1]), showsDecoded(graph, other, samplers[0])], [true, false, false]);
});
