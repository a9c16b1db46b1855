// @ts-check
// Asking the server for plans: GET /stepvar/plan, one answer per question and page.

/**
 * @typedef {import("./plan.js").Plan} Plan
 * @typedef {{model: string, weight_dtype?: string, aspect_ratio?: string, size?: string, labels?: string, canvases?: string}} Question
 * @typedef {{plan: Plan | null, error: string | null}} Answer plan and error are both null where there is no such route
 */

const MOST = 64; // answers kept

/** @param {Question} question @returns {string} path and query */
export function planPath(question) {
  const asked = Object.entries({ ...question, quiet: "1" }).filter(([, value]) => value !== undefined); // a missing model is no failed request
  return `/stepvar/plan?${new URLSearchParams(asked)}`;
}

/**
 * @param {(path: string) => Promise<{ok: boolean, json: () => Promise<any>}>} fetchApi
 * @returns {(question: Question) => Promise<Answer>} never rejects; a failed question is asked anew the next time
 */
export function createPlans(fetchApi) {
  /** @type {Map<string, Promise<Answer>>} */
  const answers = new Map();
  const ask = async (/** @type {string} */ path) => {
    try {
      const answer = await fetchApi(path);
      const content = await answer.json();
      if (answer.ok && Array.isArray(content?.scales)) return { plan: content, error: null };
      return { plan: null, error: typeof content?.error === "string" ? `${content.error} ${content.remedy ?? ""}`.trim() : null };
    } catch {
      return { plan: null, error: null }; // no such route, or no server: the widget goes on without
    }
  };
  return (question) => {
    const path = planPath(question);
    const known = answers.get(path);
    if (known) return known;
    const answer = ask(path);
    answers.set(path, answer);
    if (answers.size > MOST) answers.delete(/** @type {string} */ (answers.keys().next().value));
    answer.then(({ plan }) => plan ?? answers.delete(path));
    return answer;
  };
}
