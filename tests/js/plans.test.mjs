import assert from "node:assert/strict";
import test from "node:test";
import { createPlans, planPath } from "../../web/lib/plans.js";

const answer = (ok, content) => async () => ({ ok, json: async () => content });

test("a question is a path with its values escaped, unknown ones left out", () => {
  assert.equal(planPath({ model: "a&b=../c.pth", size: "auto", aspect_ratio: undefined }), "/stepvar/plan?model=a%26b%3D..%2Fc.pth&size=auto&quiet=1");
});

test("an answer is asked for once, a failure again", async () => {
  let asked = 0;
  const good = createPlans((path) => { asked++; return answer(true, { scales: [], path })(); });
  const [a, b] = await Promise.all([good({ model: "m" }), good({ model: "m" })]);
  assert.ok(asked === 1 && a === b && a.plan.path.includes("model=m") && a.error === null);
  const bad = createPlans(() => { asked++; return answer(false, { error: "There is no x.", remedy: "Put it there." })(); });
  assert.deepEqual(await bad({ model: "x" }), { plan: null, error: "There is no x. Put it there." });
  assert.equal((await createPlans(answer(true, { error: "There is no y." }))({ model: "y" })).error, "There is no y.");
  await bad({ model: "x" });
  assert.equal(asked, 3);
});

test("no route, no server and nonsense are no error to the user", async () => {
  for (const fetchApi of [async () => { throw new Error("offline"); }, answer(false, null), answer(true, {}), async () => ({ ok: false, json: async () => JSON.parse("<html>") })]) {
    assert.deepEqual(await createPlans(fetchApi)({ model: "x" }), { plan: null, error: null });
  }
});
