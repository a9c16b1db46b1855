// @ts-check
// Keys are sorted by widget; {names} are filled in by i18n.t.
/** @type {Record<string, string>} */
export default {
  "equalizer.title": "Tokens kept per scale",
};
