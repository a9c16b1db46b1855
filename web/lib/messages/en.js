// @ts-check
import { en as inspect } from "./inspect.js";
// Keys are sorted by widget; {names} are filled in by i18n.t.
/** @type {Record<string, string>} */
export default {
  ...inspect,
  "equalizer.title": "Tokens kept per scale",
};
