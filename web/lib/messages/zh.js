// @ts-check
/** @type {Record<string, string>} */
export default {
  "equalizer.title": "各尺度保留的 token",
};
