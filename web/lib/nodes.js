// @ts-check
// Finding a node of the editor's graph by the ids the server and the editor use, subgraphs included.

/**
 * The node that runs under an execution id: "5", or "12:5" for node 5 within the subgraph of node 12. Null if there is none.
 * @param {any} graph the outermost graph @param {string | number} id
 */
export function nodeByExecutionId(graph, id) {
  const path = String(id).split(":");
  let node = null;
  for (const part of path) {
    node = graph?.getNodeById?.(part) ?? graph?.getNodeById?.(Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/**
 * The id under which the editor keeps the node's output: "5", or "<subgraph's id>:5".
 * @param {any} node @param {any} rootGraph
 */
export function locatorOf(node, rootGraph) {
  return !node.graph || node.graph === rootGraph || node.graph.isRootGraph ? String(node.id) : `${node.graph.id}:${node.id}`;
}

/**
 * What a stored run left for this node, and under which execution id; null if it left nothing, or belongs to another workflow.
 * @param {any} entry of the server's history @param {any} node @param {any} rootGraph
 * @returns {{id: string, output: any, prompt: Record<string, any>} | null}
 */
export function outputFor(entry, node, rootGraph) {
  const [, , prompt, extra] = entry?.prompt ?? [];
  if (!rootGraph?.id || extra?.extra_pnginfo?.workflow?.id !== rootGraph.id) return null;
  const id = Object.keys(entry.outputs ?? {}).find(
    (key) => prompt?.[key]?.class_type === node.comfyClass && nodeByExecutionId(rootGraph, key) === node);
  return id === undefined ? null : { id, output: entry.outputs[id], prompt };
}

const isLink = (/** @type {unknown} */ value) => Array.isArray(value) && value.length === 2 && typeof value[0] === "string";

/**
 * Whether a node of a stored prompt ran on what it would run on now, all the way up its links: the "same", "reseeded" where
 * only seeds differ, which the editor rolls after a run, or "other".
 * @param {Record<string, any>} stored a prompt @param {Record<string, any>} current a prompt @param {string} id of the node in both
 * @param {string[]} [viewing] the node's own inputs that change only how its output is looked at
 * @returns {"same" | "reseeded" | "other"}
 */
export function compareRuns(stored, current, id, viewing = []) {
  const seen = new Set();
  let isReseeded = false;
  const isOther = (/** @type {string} */ at, /** @type {string[]} */ ignored) => {
    if (seen.has(at)) return false;
    seen.add(at);
    const [was, is] = [stored[at], current[at]];
    if (!was || !is || was.class_type !== is.class_type) return true;
    return [...new Set([...Object.keys(was.inputs), ...Object.keys(is.inputs)])].some((name) => {
      const [before, now] = [was.inputs[name], is.inputs[name]];
      if (ignored.includes(name)) return false;
      if (isLink(before) && isLink(now)) return before[0] !== now[0] || before[1] !== now[1] || isOther(before[0], []);
      if (JSON.stringify(before) === JSON.stringify(now)) return false;
      if (!/seed$/.test(name) || typeof before !== "number" || typeof now !== "number") return true;
      isReseeded = true;
      return false;
    });
  };
  if (isOther(id, viewing)) return "other";
  return isReseeded ? "reseeded" : "same";
}
