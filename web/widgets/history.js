// @ts-check
// A node's output, from wherever it is: the run just over, the editor's own memory, or the server's. The editor forgets
// outputs when its page is reloaded, the server does not.
import { locatorOf, outputFor } from "../lib/nodes.js";

const RUNS = 8;
const PAUSE = 400; // ms: a tab switch brings outputs back by itself, just after the graph

/**
 * Hands every new output of the node to `take`, which says whether it was one of its own; returns what ends that. isOld:
 * the server remembered it.
 * @param {any} node @param {{app: any, api: any, graph: EventTarget}} host @param {(output: any, isOld: boolean) => boolean} take
 */
export function followOutput(node, { app, api, graph }, take) {
  let isGone = false;
  let hasAny = false;
  const root = () => app.rootGraph ?? app.graph;
  const accept = (output, isOld = false) => {
    if (!isGone && output && take(output, isOld)) hasAny = true;
  };
  const before = node.onExecuted;
  node.onExecuted = (...args) => {
    before?.apply(node, args);
    accept(args[0]);
  };
  const recall = async () => {
    if (!node.graph) return;
    accept(app.nodeOutputs?.[locatorOf(node, root())]);
    if (!hasAny) {
      const entries = await lastRuns(api, graph);
      if (!hasAny && node.graph) accept(entries.map((entry) => outputFor(entry, node, root())).find(Boolean), true);
    }
  };
  graph.addEventListener("outputs", recall);
  graph.addEventListener("loaded", recall);
  return () => {
    isGone = true;
    graph.removeEventListener("outputs", recall);
    graph.removeEventListener("loaded", recall);
  };
}

/** One question to the server for all nodes of a graph. @type {WeakMap<EventTarget, Promise<any[]>>} */
const asked = new WeakMap();

/** The server's last runs, newest first; none where it does not say. */
function lastRuns(api, graph) {
  const question = asked.get(graph) ?? (async () => {
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    asked.delete(graph);
    const answer = await api.fetchApi(`/history?max_items=${RUNS}`);
    return answer.ok ? Object.values(await answer.json()).sort((a, b) => b.prompt[0] - a.prompt[0]) : [];
  })().catch(() => []);
  asked.set(graph, question);
  return question;
}
