// What the browser computes for each case: [{plan, ratios, settings}] on stdin, [{flops, denseFlops, ...}] on stdout.
import { readFileSync } from "node:fs";
import { estimate } from "../../web/lib/plan.js";

const cases = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(cases.map(({ plan, ratios, settings }) => estimate(plan, ratios, settings))));
