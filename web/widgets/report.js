// @ts-check
// StepVAR Report's picture: the node's own, shown by a widget that brings it back after a reload.
import { localeOf, t } from "../lib/i18n.js";
import { addDisplay, el, fileUrl, hideStockPreview, offerImages, oldBadge } from "./dom.js";
import { followOutput } from "./history.js";
import { passToCanvas } from "./mount.js";
import { STYLE } from "./style.js";

const HEIGHT = 56; // at the least: the node is as high as its user makes it

/** @param {any} node @param {any} host {app, api, graph} */
export function attachReport(node, host) {
  const { app, api } = host;
  const say = (/** @type {string} */ key) => t(localeOf(app), key);
  const old = oldBadge(say("inspect.earlier"), say("inspect.earlier.tip"));
  const image = el("img", { alt: "", draggable: false });
  const empty = el("div", { className: "stepvar-empty", textContent: say("report.empty") });
  const stage = el("div", { className: "stepvar-stage", hidden: true }, image, old.element);
  const element = el("div", { className: "stepvar stepvar-report" }, el("style", { textContent: STYLE }), empty, stage);
  element.style.minHeight = `${HEIGHT}px`;
  const retire = addDisplay(node, "report", element, () => HEIGHT, host);
  hideStockPreview(node);
  const leave = passToCanvas(element, () => app.canvas);
  const forget = followOutput(node, host, (output, { isEarlier }) => {
    const urls = (output.images ?? []).map((/** @type {any} */ file) => fileUrl(api, file));
    if (!urls.length) return false;
    if (image.getAttribute("src") !== urls[0]) image.src = urls[0];
    [empty.hidden, stage.hidden] = [true, false];
    old.show(isEarlier);
    offerImages(node, urls, 0);
    return true;
  }, { age: () => old.show(true) });
  return () => {
    forget();
    leave();
    retire();
  };
}
