// @ts-check
// The pack's one extension, and the only module that imports the host. Everything it adds is optional: without it, or
// where a widget fails to start, the nodes work with plain widgets.
// @ts-ignore the host serves it, without types
import { api } from "../../scripts/api.js";
// @ts-ignore the same
import { app } from "../../scripts/app.js";
import { attachMethods } from "./widgets/accelerators.js";
import { attachCanvases } from "./widgets/canvases.js";
import { createClassFinder } from "./widgets/classes.js";
import { attachCompare } from "./widgets/compare.js";
import { attachDefaults } from "./widgets/defaults.js";
import { createEqualizer } from "./widgets/equalizer.js";
import { attachForecast } from "./widgets/forecast.js";
import { attachMaskOverlay, attachSamplerOverlay } from "./widgets/overlay.js";
import { attachPresets } from "./widgets/presets.js";
import { attachReport } from "./widgets/report.js";

/** Tells attachments that a graph was "loaded", or that the editor holds other "outputs" than before. */
const graph = new EventTarget();

/**
 * What each node gets, by node id. An attachment is called once per node, after its widgets were made and before saved
 * values come in; it returns what undoes it, or nothing.
 * @type {Record<string, ((node: any, host: {app: any, api: any, graph: EventTarget}) => (() => void) | void)[]>}
 */
const ATTACHMENTS = {
  VARClassLabel: [createClassFinder()],
  EmptyVARLatent: [attachCanvases],
  StepVARPruning: [attachPresets, createEqualizer(), attachDefaults],
  VARAccelerator: [attachMethods, attachForecast],
  VARSampler: [attachSamplerOverlay, attachDefaults],
  StepVARMaskOverlay: [attachMaskOverlay],
  StepVARReport: [attachReport],
  VARCompare: [attachCompare],
};

/** How wide a new node is, in the editor's units, where the host's own width leaves no room to read: names, bars, pictures. */
const FIRST_WIDTHS = { VARModelLoader: 320, VARTextEncoderLoader: 320, StepVARPruning: 340, VARAccelerator: 320, VARSampler: 340, StepVARMaskOverlay: 340,
  StepVARReport: 440, VARCompare: 380 };
/** How high, where the host has no picture to measure yet. */
const FIRST_HEIGHTS = { StepVARReport: 380, VARCompare: 460 };

app.registerExtension({
  name: "stepvar.nodes",
  setup() {
    const suggested = globalThis.LiteGraph?.slot_types_default_out?.VAR_MODEL; // what a dropped wire of our type offers
    if (Array.isArray(suggested)) suggested.sort((a, b) => Number(b === "VARSampler") - Number(a === "VARSampler"));
  },
  nodeCreated(node) {
    for (const attach of ATTACHMENTS[node.comfyClass] ?? []) {
      try {
        const detach = attach(node, { app, api, graph });
        if (detach) chain(node, "onRemoved", detach);
      } catch (error) {
        console.error(`StepVAR: ${attach.name} could not start on ${node.comfyClass}; the node works without it.`, error);
      }
    }
    const [width, height] = [FIRST_WIDTHS[node.comfyClass], FIRST_HEIGHTS[node.comfyClass] ?? 0];
    if (width) node.setSize?.([Math.max(width, node.size[0]), Math.max(height, node.computeSize?.()[1] ?? 0, node.size[1])]); // a saved size comes later
  },
  afterConfigureGraph() {
    graph.dispatchEvent(new Event("loaded"));
  },
  onNodeOutputsUpdated() {
    graph.dispatchEvent(new Event("outputs"));
  },
});

/** Runs `after` once more whenever the node's own method runs. */
function chain(node, method, after) {
  const before = node[method];
  node[method] = function (...args) {
    const result = before?.apply(this, args);
    after();
    return result;
  };
}
