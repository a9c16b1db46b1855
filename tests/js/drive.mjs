// Drives the real frontend of a running ComfyUI in headless Chromium, one visit for each line that comes in on stdin:
//
//   { "url": "http://127.0.0.1:8188", "out": "folder for screenshots", "shoots": take them all, else one where a job fails,
//     "chromium": "program", "modules": "folder with node_modules/playwright-core", "renderer": "classic" | "vue",
//     "size": [1600, 1000], "timeoutSeconds": 120, "pack": "its folder name under custom_nodes",
//     "settings": {more of the editor's settings},
//     "jobs": [{ "name": "demo",
//                "workflow": {...},                a workflow file's JSON, opened in place of the one before
//                "set": [["3", "seed", 42]],       node id, widget, value: as if a user had changed it
//                "queue": true,                    press Run and wait for the end
//                "steps": [...],                   what a user's hands do, see act() below
//                "evaluate": "return app.rootGraph.nodes.length"   the body of an async function, run last
//              }] }
//
// The order within a job is the order above; each part is optional. A line goes out on stdout for each that came in:
//
//   { "failed": null | "why the browser itself did not get on",
//     "jobs": [{ name, missing: [node types the editor does not know], dialogs: [visible texts], pageErrors: [stacks],
//                packErrors: [console errors and failed requests that name the pack], nodes, widgets: {id: {name: value}},
//                ending: "execution_success" | ... | null, events: {name: count}, error, prompt, value,
//                steps: [what each step gave, null where nothing] }] }
//
// The browser stays open between visits, which begin with an empty storage and a page of their own. What a job evaluates
// may call `await atEase()`. No other machine can be reached from the page.
import { mkdtempSync, mkdirSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";

/** Settings are kept by the server, so they are in place before the page asks for them. */
async function applySettings(task) {
  const settings = {
    "Comfy.TutorialCompleted": true, // else a first visit opens the template browser
    "Comfy.VueNodes.Enabled": task.renderer === "vue",
    "Comfy.Workflow.Persist": false, // else the last session's tab comes back
    "Comfy.Workflow.ShowMissingNodesWarning": true,
    "Comfy.Workflow.ShowMissingModelsWarning": false,
    "Comfy.Notification.ShowVersionUpdates": false,
    "Comfy.Queue.QPOV2": false,
    ...task.settings,
  };
  for (const [id, value] of Object.entries(settings)) {
    const answer = await fetch(`${task.url}/api/settings/${encodeURIComponent(id)}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
    if (!answer.ok) throw new Error(`setting ${id}: the server answered ${answer.status}`);
  }
}

/** What happens in the page from now on. */
function listen(page, pack) {
  const own = `/extensions/${pack}/`;
  const seen = { pageErrors: [], packErrors: [], underway: new Set() };
  page.on("request", (request) => seen.underway.add(request));
  page.on("requestfinished", (request) => seen.underway.delete(request));
  page.on("requestfailed", (request) => seen.underway.delete(request));
  page.on("pageerror", (error) => seen.pageErrors.push(String(error.stack ?? error)));
  page.on("console", (message) => {
    const text = message.text();
    const where = message.location()?.url ?? "";
    if (message.type() === "error" && (text.includes(own) || where.includes(own))) seen.packErrors.push(text);
  });
  page.on("response", (response) => {
    if (response.status() >= 400 && response.url().includes(own)) {
      seen.packErrors.push(`${response.status()} ${response.url()}`);
    }
  });
  return seen;
}

/** Whether nothing changed in the page for so long: no element, and no place, size or picture of a node. Runs in the page. */
async function unchanged({ quiet, most }) {
  const began = performance.now();
  let changed = began;
  const observer = new MutationObserver(() => { changed = performance.now(); });
  observer.observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
  const look = () => {
    const { canvas } = globalThis.app;
    const nodes = canvas.graph?.nodes.map((n) => [n.id, ...n.pos, ...n.size, n.imgs?.length]);
    return JSON.stringify([nodes, canvas.ds.scale, canvas.ds.offset[0], canvas.ds.offset[1]]);
  };
  let was = look();
  while (performance.now() - changed < quiet && performance.now() - began < most) {
    await new Promise((resolve) => requestAnimationFrame(resolve));
    const is = look();
    if (is !== was) [was, changed] = [is, performance.now()];
  }
  observer.disconnect();
  return performance.now() - changed >= quiet;
}

/** Waits until the page comes to rest: nothing is being fetched, nothing changes. At most `most` ms: some pages never do. */
async function atEase(page, seen, most = 2000, quiet = 150) {
  const end = Date.now() + most;
  while (Date.now() < end) {
    if (seen.underway.size) await page.waitForTimeout(20);
    else if (await page.evaluate(unchanged, { quiet, most: end - Date.now() }) && !seen.underway.size) return;
  }
}

async function openEditor(page, seen, task, timeout) {
  await page.goto(task.url, { waitUntil: "domcontentloaded", timeout });
  // The address, the graph and the node types are there one after the other.
  await page.waitForFunction(
    () => globalThis.app?.canvas && app.extensionManager && globalThis.LiteGraph?.registered_node_types?.SaveImage,
    null, { timeout });
  await atEase(page, seen, 3000, 300);
}

/** Texts of the dialogs in front of the editor, which are then closed. */
async function takeDialogs(page, seen, shoot = async () => {}) {
  const texts = [];
  for (let i = 0; i < 4; i++) {
    const dialogs = page.locator('[role="dialog"]:visible, .p-dialog:visible');
    if (!(await dialogs.count())) break;
    await shoot();
    texts.push((await dialogs.first().innerText()).slice(0, 500));
    await page.keyboard.press("Escape");
    await atEase(page, seen);
  }
  return texts;
}

async function queue(page, seen, timeout) {
  await page.evaluate(() => {
    const watched = (globalThis.__watched = { ending: null, error: null, events: {} });
    for (const name of ["executing", "executed", "progress_state", "b_preview", "b_preview_with_metadata",
      "execution_success", "execution_error", "execution_interrupted"]) {
      app.api.addEventListener(name, (event) => {
        watched.events[name] = (watched.events[name] ?? 0) + 1;
        if (/success|error|interrupted/.test(name)) watched.ending = name;
        if (name === "execution_error") watched.error = event.detail?.exception_message;
      });
    }
  });
  // queuePrompt answers false when the server refuses the prompt; no execution event follows then.
  if (!(await page.evaluate(() => app.queuePrompt(0)))) {
    const error = await page.evaluate(() => JSON.stringify(app.lastNodeErrors ?? app.extensionManager?.lastNodeErrors ?? null));
    return { ending: "refused", events: {}, error };
  }
  await page.waitForFunction(() => globalThis.__watched.ending, null, { timeout });
  await atEase(page, seen, 3000, 300); // pictures load after the last event
  return page.evaluate(() => globalThis.__watched);
}

/** The box of an element that stayed where it is for three frames: a hand waits for what it aims at, on a slow machine too. Runs in the page. */
async function atRest(element) {
  let box = null;
  for (let still = 0, frames = 0; still < 3; frames++) {
    if (frames > 600) throw new Error("it does not come to rest");
    await new Promise((resolve) => requestAnimationFrame(resolve));
    const { x, y, width, height } = element.getBoundingClientRect();
    still = box && box.x === x && box.y === y && box.width === width && box.height === height ? still + 1 : 0;
    box = { x, y, width, height };
  }
  return box;
}

/**
 * One thing a user does. A place is "css selector" or ["css selector", x, y] with x, y from 0 to 1 within the element
 * (its middle is 0.5, 0.5; beyond it is allowed), so that a test never counts pixels.
 *
 *   { "drag": place, "to": place, "hold": ["Shift"] }     press, move in steps, release
 *   { "click": place, "times": 2, "button": "right" }   { "hover": place }   { "press": "ArrowUp", "times": 3 }   { "type": "text" }
 *   { "focus": "css selector" }      { "evaluate": "body" }   { "wait": milliseconds }
 *   { "until": "expression" }        waits for it to become true
 *   { "rest": milliseconds }         waits until the page has come to rest, so long at most; also beside any other
 *   { "reload": true }               the page anew, as after F5
 *   { "shoot": "moment", "of": "css selector", "margin": 8 }   a screenshot, of the whole page without "of"
 */
async function act(page, step, { shoot, seen, task, timeout }) {
  const place = async (where) => {
    const [css, x, y] = Array.isArray(where) ? where : [where, 0.5, 0.5];
    const box = await page.locator(css).first().evaluate(atRest);
    if (!box.width || !box.height) throw new Error(`nothing visible matches ${css}`);
    return [box.x + x * box.width, box.y + y * box.height];
  };
  let answer = null;
  if ("drag" in step) {
    const [from, to] = [await place(step.drag), await place(step.to)];
    for (const key of step.hold ?? []) await page.keyboard.down(key);
    await page.mouse.move(...from);
    await page.mouse.down();
    await page.mouse.move(...to, { steps: 8 });
    await page.mouse.up();
    for (const key of step.hold ?? []) await page.keyboard.up(key);
  } else if ("click" in step) {
    await page.mouse.click(...(await place(step.click)), { clickCount: step.times ?? 1, button: step.button ?? "left" });
  } else if ("hover" in step) {
    await page.mouse.move(...(await place(step.hover)));
  } else if ("press" in step) {
    for (let i = 0; i < (step.times ?? 1); i++) await page.keyboard.press(step.press);
  } else if ("type" in step) {
    await page.keyboard.type(step.type);
  } else if ("focus" in step) {
    await page.locator(step.focus).first().focus();
  } else if ("evaluate" in step) {
    answer = (await page.evaluate(`(async () => { ${step.evaluate} })()`)) ?? null;
  } else if ("until" in step) {
    await page.waitForFunction(step.until, null, { timeout });
  } else if ("reload" in step) {
    await openEditor(page, seen, task, timeout);
  } else if ("shoot" in step) {
    const box = step.of && (await page.locator(step.of).first().boundingBox());
    const margin = step.margin ?? 8;
    await shoot(step.shoot, box && { x: box.x - margin, y: box.y - margin, width: box.width + 2 * margin, height: box.height + 2 * margin });
  } else if (!("wait" in step || "rest" in step)) {
    throw new Error(`unknown step ${JSON.stringify(step)}`);
  }
  if ("rest" in step) await atEase(page, seen, step.rest);
  else await page.waitForTimeout(step.wait ?? 80); // the editor answers in its next frames
  return answer;
}

async function run(page, job, seen, task, timeout) {
  const result = { name: job.name, ending: null, events: {}, error: null, dialogs: [] };
  seen.pageErrors.length = seen.packErrors.length = 0;
  const file = (moment) => path.join(task.out, `${job.name.replace(/[^\w.-]+/g, "_")}.${task.renderer}.${moment}.png`);
  const shoot = async (moment, clip) => {
    if (task.shoots || moment === "failed") await page.screenshot({ path: file(moment), ...(clip && { clip }) });
  };
  if (job.workflow) {
    await page.evaluate((workflow) => app.loadGraphData(workflow, true, true, null), job.workflow);
    await atEase(page, seen, 2000, 400); // the pack itself looks 300 ms after a graph was loaded
    result.dialogs = await takeDialogs(page, seen, () => shoot("dialog"));
    await page.evaluate(() => app.extensionManager.command.execute("Comfy.Canvas.FitView"));
    await atEase(page, seen);
    await shoot("loaded");
  }
  for (const [id, name, value] of job.set ?? []) {
    const found = await page.evaluate(([id, name, value]) => {
      const widget = app.rootGraph.getNodeById(Number(id))?.widgets?.find((w) => w.name === name);
      if (widget) {
        widget.value = value;
        widget.callback?.(value);
      }
      return Boolean(widget);
    }, [id, name, value]);
    if (!found) throw new Error(`node ${id} has no widget '${name}'`);
  }
  if (job.queue) {
    Object.assign(result, await queue(page, seen, timeout));
    await shoot("done");
  }
  result.steps = [];
  for (const [i, step] of (job.steps ?? []).entries()) {
    try {
      result.steps.push(await act(page, step, { shoot, seen, task, timeout }));
    } catch (error) {
      await shoot("failed");
      throw new Error(`job '${job.name}', step ${i + 1} ${JSON.stringify(step).slice(0, 300)}: ${error.message}`, { cause: error });
    }
  }
  Object.assign(result, await page.evaluate(async () => {
    const nodes = app.rootGraph.nodes;
    return {
      nodes: nodes.length,
      missing: nodes.filter((n) => !LiteGraph.registered_node_types[n.type]).map((n) => n.type),
      widgets: Object.fromEntries(nodes.map((n) => [n.id, Object.fromEntries((n.widgets ?? []).map((w) => [w.name, w.value]))])),
      prompt: (await app.graphToPrompt()).output,
    };
  }));
  if (job.evaluate) {
    result.value = await page.evaluate(`(async () => { ${job.evaluate} })()`);
    await shoot("evaluated");
  }
  return { ...result, pageErrors: [...seen.pageErrors], packErrors: [...seen.packErrors] };
}

let browser = null, profile = null;

async function openBrowser(task) {
  const { chromium } = createRequire(path.join(task.modules, "here.js"))("playwright-core");
  profile = mkdtempSync(path.join(tmpdir(), "stepvar-chromium-"));
  browser = await chromium.launchPersistentContext(profile, {
    executablePath: task.chromium, headless: true, permissions: ["clipboard-read", "clipboard-write"],
    // No sandbox: it does not start as root. No /dev/shm: containers give it 64 MB. No names but this machine's own.
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
      "--disable-component-update", "--no-first-run", "--no-proxy-server",
      "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"],
  });
}

async function closeBrowser() {
  await browser?.close().catch(() => {});
  if (profile) rmSync(profile, { recursive: true, force: true, maxRetries: 3 });
  browser = profile = null;
}

/** A page of its own, with nothing left of the visits before but what the browser has cached. */
async function openPage(task) {
  const page = await browser.newPage();
  for (const other of browser.pages()) if (other !== page) await other.close();
  const [width, height] = task.size ?? [1600, 1000];
  await page.setViewportSize({ width, height });
  const devtools = await browser.newCDPSession(page);
  await devtools.send("Storage.clearDataForOrigin", { origin: new URL(task.url).origin, storageTypes: "all" });
  await devtools.detach();
  return page;
}

async function visit(task) {
  const answer = { failed: null, jobs: [] };
  const timeout = 1000 * (task.timeoutSeconds ?? 120);
  try {
    mkdirSync(task.out, { recursive: true });
    await applySettings(task);
    if (!browser) await openBrowser(task);
    const page = await openPage(task);
    const seen = listen(page, task.pack);
    await page.exposeFunction("atEase", (most) => atEase(page, seen, most));
    await openEditor(page, seen, task, timeout);
    await takeDialogs(page, seen);
    for (const job of task.jobs) answer.jobs.push(await run(page, job, seen, task, timeout));
  } catch (error) {
    answer.failed = String(error.stack ?? error);
    await closeBrowser();
  }
  return answer;
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await visit(JSON.parse(line)))}\n`);
}
await closeBrowser();
