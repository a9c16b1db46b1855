// @ts-check
// What the server remembers of a workflow's last runs: the editor forgets outputs when its page is reloaded.
import { outputFor } from "../lib/nodes.js";

const RUNS = 8;
const PAUSE = 400; // ms: a tab switch brings outputs back by itself, just after the graph

/** One question at a time, shared by the nodes of a graph. */
let asked = null;

/**
 * The newest output the server holds for this node of this workflow, or null.
 * @param {any} api @param {any} node @param {() => any} rootGraph
 */
export async function storedOutput(api, node, rootGraph) {
  asked ??= ask(api).finally(() => { asked = null; });
  const entries = await asked;
  for (const entry of entries) {
    const output = outputFor(entry, node, rootGraph());
    if (output) return output;
  }
  return null;
}

/** Newest first. */
async function ask(api) {
  await new Promise((resolve) => setTimeout(resolve, PAUSE));
  const answer = await api.fetchApi(`/history?max_items=${RUNS}`);
  return answer.ok ? Object.values(await answer.json()).sort((a, b) => b.prompt[0] - a.prompt[0]) : [];
}
