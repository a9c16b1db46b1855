// @ts-check
import { zh as inspect } from "./inspect.js";
/** @type {Record<string, string>} */
export default {
  ...inspect,
  "equalizer.title": "各尺度保留的 token",
};
