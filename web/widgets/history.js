// @ts-check
// A node's output, from wherever it is: the run just over, the editor's own memory, or the server's. The editor forgets
// outputs when its page is reloaded, the server does not.
import { on } from "../lib/listen.js";
import { compareRuns, locatorOf, nodeByExecutionId, outputFor } from "../lib/nodes.js";

const RUNS = 8;
const PAUSE = 400; // ms: a tab switch brings outputs back by itself, just after the graph

/**
 * Hands every new output of the node to `take`, which says whether it was one of its own; returns what ends that. isRecalled:
 * the server remembered it, from a run whose inputs were the node's own, but for the seed at most. isEarlier: it is not what
 * the node would give now; `age` says so later, when a run broke off before it came to the node.
 * @param {any} node @param {{app: any, api: any, graph: EventTarget}} host
 * @param {(output: any, from: {isRecalled: boolean, isEarlier: boolean}) => boolean} take
 * @param {{age?: () => void, viewing?: string[]}} [more] viewing: the node's inputs that change only how its output is looked at
 */
export function followOutput(node, { app, api, graph }, take, { age, viewing = [] } = {}) {
  let isGone = false;
  let hasAny = false;
  let isReached = true; // the run under way came to this node
  const root = () => app.rootGraph ?? app.graph;
  const accept = (/** @type {any} */ output, isRecalled = false, isEarlier = false) => {
    if (!isGone && output && take(output, { isRecalled, isEarlier })) hasAny = true;
  };
  const before = node.onExecuted;
  node.onExecuted = (/** @type {any[]} */ ...args) => {
    before?.apply(node, args);
    isReached = true;
    accept(args[0]);
  };
  const recall = async () => {
    if (!node.graph) return;
    accept(app.nodeOutputs?.[locatorOf(node, root())]);
    if (hasAny) return;
    const entries = (await lastRuns(api, graph)).map((entry) => outputFor(entry, node, root())).filter((found) => found !== null);
    const prompt = entries.length && (await currentPrompt(app, graph));
    for (const { id, output, prompt: stored } of entries) {
      const likeness = prompt ? compareRuns(stored, prompt, id, viewing) : "other";
      if (likeness === "other") continue;
      if (!hasAny && node.graph) accept(output, true, likeness === "reseeded");
      break;
    }
  };
  const isHere = (/** @type {any} */ id) => id !== undefined && nodeByExecutionId(root(), id) === node;
  const undo = [
    on(graph, "outputs", recall),
    on(graph, "loaded", recall),
    on(api, "execution_start", () => { isReached = false; }),
    on(api, "execution_cached", ({ detail }) => { isReached ||= (detail?.nodes ?? []).some(isHere); }),
    ...["execution_error", "execution_interrupted"].map((ending) => on(api, ending, ({ detail }) => {
      const culprit = nodeByExecutionId(root(), detail?.node_id ?? "");
      const isOurs = (culprit?.comfyClass ?? culprit?.type) === detail?.node_type; // other tabs run graphs of their own
      if (hasAny && !isReached && isOurs) age?.();
    })),
  ];
  return () => {
    isGone = true;
    undo.forEach((off) => off());
  };
}

/** One question to the server, and one to the editor, for all nodes of a graph. @type {WeakMap<EventTarget, Record<string, Promise<any>>>} */
const asked = new WeakMap();

/** @param {EventTarget} graph @param {string} name @param {() => Promise<any>} ask */
function once(graph, name, ask) {
  const questions = asked.get(graph) ?? {};
  asked.set(graph, questions);
  questions[name] ??= ask().finally(() => { delete questions[name]; });
  return questions[name];
}

/** The server's last runs, newest first; none where it does not say. @returns {Promise<any[]>} */
function lastRuns(/** @type {any} */ api, /** @type {EventTarget} */ graph) {
  return once(graph, "runs", async () => {
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    const answer = await api.fetchApi(`/history?max_items=${RUNS}`);
    return answer.ok ? Object.values(await answer.json()).sort((a, b) => b.prompt[0] - a.prompt[0]) : [];
  }).catch(() => []);
}

/** What Run would send; null where the editor cannot say. @returns {Promise<Record<string, any> | null>} */
function currentPrompt(/** @type {any} */ app, /** @type {EventTarget} */ graph) {
  return once(graph, "prompt", async () => (await app.graphToPrompt()).output).catch(() => null);
}
