// @ts-check
// Finding what a node is connected to: along links, through Reroute nodes, bypassed nodes and the walls of subgraphs.
// Works on the editor's graph objects, reads only, and never throws on a half-built graph.

// ids the editor gives to the two walls inside a subgraph: numbers in some versions, texts in others
const isInputWall = (/** @type {any} */ id) => Number(id) === -10;
const isOutputWall = (/** @type {any} */ id) => Number(id) === -20;
const BYPASSED = 4;
const FAR = 100; // nodes on a path; a loop of links ends here

/** @param {any} graph @param {any} id */
function linkOf(graph, id) {
  return id == null ? null : graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id] ?? null;
}

/** Every graph of a workflow. @param {any} root @returns {any[]} */
function graphsOf(root) {
  return [root, ...(root?.subgraphs?.values?.() ?? [])];
}

/** The nodes that stand for a subgraph. @param {any} root @param {any} subgraph @returns {any[]} */
function hostsOf(root, subgraph) {
  return graphsOf(root).flatMap((graph) => (graph?.nodes ?? graph?._nodes ?? []).filter((/** @type {any} */ node) => node.subgraph === subgraph));
}

const isReroute = (/** @type {any} */ node) => node.type === "Reroute";

/** Which of its inputs a node that passes `type` on takes it from. @param {any} node @param {string} type */
function entryOf(node, type) {
  return isReroute(node) ? 0 : (node.inputs ?? []).findIndex((/** @type {any} */ input) => input.type === type);
}

/**
 * The node whose output arrives at an input, or null.
 * @param {any} root the workflow's outermost graph @param {any} node @param {number} slot @param {string} type
 * @returns {any}
 */
export function sourceOf(root, node, slot, type) {
  let graph = node?.graph;
  let link = linkOf(graph, node?.inputs?.[slot]?.link);
  for (let i = 0; link && i < FAR; i++) {
    if (isInputWall(link.origin_id)) {
      const [host] = hostsOf(root, graph);
      const entry = host?.inputs?.[link.origin_slot];
      [graph, link] = [host?.graph, linkOf(host?.graph, entry?.link)];
      continue;
    }
    const origin = graph?.getNodeById?.(link.origin_id);
    if (!origin) return null;
    if (origin.subgraph) {
      const exit = origin.subgraph.outputs?.[link.origin_slot];
      [graph, link] = [origin.subgraph, linkOf(origin.subgraph, exit?.linkIds?.[0])];
    } else if (isReroute(origin) || origin.mode === BYPASSED) {
      link = linkOf(graph, origin.inputs?.[entryOf(origin, type)]?.link);
    } else {
      return origin;
    }
  }
  return null;
}

/**
 * The nearest node of a kind that a node's wire of `type` comes from, through others that pass the type on.
 * @param {any} root @param {any} node @param {string} type @param {string} wanted node id, e.g. VARModelLoader
 * @returns {any}
 */
export function findUpstream(root, node, type, wanted) {
  let at = node;
  for (let i = 0; at && i < FAR; i++) {
    at = sourceOf(root, at, entryOf(at, type), type);
    if (at && (at.comfyClass ?? at.type) === wanted) return at;
  }
  return null;
}

/**
 * The first node of a kind that takes a node's output of `type`, through others that pass the type on.
 * @param {any} root @param {any} node @param {string} type @param {string} wanted
 * @returns {any}
 */
export function findDownstream(root, node, type, wanted) {
  const seen = new Set();
  /** @type {{graph: any, link: any}[]} */
  const open = [];
  const add = (/** @type {any} */ graph, /** @type {any} */ ids) => {
    for (const id of ids ?? []) {
      const link = linkOf(graph, id);
      if (link) open.push({ graph, link });
    }
  };
  const leave = (/** @type {any} */ from) => {
    for (const output of from.outputs ?? []) if (isReroute(from) || output.type === type) add(from.graph, output.links);
  };
  leave(node);
  while (open.length && seen.size < FAR) {
    const { graph, link } = /** @type {any} */ (open.shift());
    if (isOutputWall(link.target_id)) {
      for (const host of hostsOf(root, graph)) add(host.graph, host.outputs?.[link.target_slot]?.links);
      continue;
    }
    const target = graph?.getNodeById?.(link.target_id);
    if (!target || seen.has(target)) continue;
    if ((target.comfyClass ?? target.type) === wanted) return target;
    if (target.subgraph) {
      add(target.subgraph, target.subgraph.inputs?.[link.target_slot]?.linkIds);
      continue;
    }
    seen.add(target);
    leave(target);
  }
  return null;
}

/**
 * The widget that gives a widget its value when the workflow runs: itself, or the subgraph's promoted widget or Primitive node
 * linked to it. undefined where a link hides it.
 * @param {any} root @param {any} node @param {string} name
 * @returns {any}
 */
export function sourceWidget(root, node, name) {
  const own = (/** @type {any} */ at, /** @type {string} */ called) => at?.widgets?.find((/** @type {any} */ w) => w.name === called);
  let [at, called] = [node, name];
  for (let i = 0; at && i < FAR; i++) {
    const link = linkOf(at.graph, inputOf(at, called)?.link);
    if (!link) return own(at, called);
    if (!isInputWall(link.origin_id)) {
      const origin = at.graph?.getNodeById?.(link.origin_id);
      return /^Primitive/.test(origin?.type) ? origin.widgets?.[0] : undefined; // PrimitiveNode, PrimitiveFloat, …
    }
    const entry = at.graph.inputs?.[link.origin_slot];
    [at, called] = [hostsOf(root, at.graph)[0], entry?.name];
  }
  return undefined;
}

/**
 * The value a widget will have when the workflow runs, as far as the editor knows; undefined where a link hides it.
 * @param {any} root @param {any} node @param {string} name
 * @returns {any}
 */
export function widgetValue(root, node, name) {
  return sourceWidget(root, node, name)?.value;
}

/**
 * Whether a node shows pictures that a VAE decoded from a sampler's latent, one for each of its batch.
 * @param {any} root @param {any} node that has them @param {any} sampler @returns {boolean}
 */
export function showsDecoded(root, node, sampler) {
  const from = (/** @type {any} */ at, /** @type {string} */ type) => (at?.inputs ?? []).map((/** @type {any} */ input, /** @type {number} */ slot) =>
    (input.type === type ? sourceOf(root, at, slot, type) : null)).filter(Boolean);
  return from(node, "IMAGE").some((decoder) => from(decoder, "LATENT").includes(sampler));
}

/** The socket of a widget, or of an input. @param {any} node @param {string} name */
function inputOf(node, name) {
  return (node.inputs ?? []).find((/** @type {any} */ input) => (input.widget?.name ?? input.name) === name);
}

/** Whether a link gives a widget its value. @param {any} node @param {string} name @returns {boolean} */
export function isLinked(node, name) {
  return inputOf(node, name)?.link != null;
}

/**
 * A node by the id messages of a running prompt give it: "12", or "4:12" inside the subgraph of node 4.
 * @param {any} root @param {string} id
 * @returns {any}
 */
export function nodeOfMessage(root, id) {
  let graph = root;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById?.(Number(part)) ?? graph?.getNodeById?.(part) ?? null;
    graph = node?.subgraph;
  }
  return node;
}
