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
 * What a stored run left for this node; null if it left nothing, or belongs to another workflow.
 * @param {any} entry of the server's history @param {any} node @param {any} rootGraph
 */
export function outputFor(entry, node, rootGraph) {
  const [, , prompt, extra] = entry?.prompt ?? [];
  if (!rootGraph?.id || extra?.extra_pnginfo?.workflow?.id !== rootGraph.id) return null;
  const id = Object.keys(entry.outputs ?? {}).find(
    (key) => prompt?.[key]?.class_type === node.comfyClass && nodeByExecutionId(rootGraph, key) === node);
  return id === undefined ? null : entry.outputs[id];
}
