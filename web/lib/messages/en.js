// @ts-check
import { en as inspect } from "./inspect.js";

// Sorted by widget; i18n.t fills in the {names}.
/** @type {Record<string, string>} */
export default {
  ...inspect,
  "equalizer.title": "Tokens kept, %",
  "equalizer.legend": "below: share of the time",
  "equalizer.hint": "Drag a bar. Shift moves all, double-click resets. Pull below the end to skip a scale.",
  "equalizer.percent": "{n} %",
  "equalizer.bar": "{grid} · {share} % of the time",
  "equalizer.last": "last",
  "equalizer.place": "Scale {place} from the end",
  "equalizer.place_last": "Last scale",
  "equalizer.scale": "Scale {n} of {count}",
  "equalizer.keeps": "keeps {kept} of {tokens}",
  "equalizer.keeps_percent": "keeps {percent} %",
  "equalizer.all": "keeps all {tokens}",
  "equalizer.all_percent": "keeps all",
  "equalizer.skip": "skip",
  "equalizer.skipped": "skipped",
  "equalizer.linked": "set by a link",
  "equalizer.locked": "The first {count} scales always run in full · {share} % of the time",
  "equalizer.speedup": "predicted speed-up",
  "equalizer.tokens": "{kept} of {tokens} tokens",
  "equalizer.seconds": "≈ {seconds} s",
  "equalizer.milliseconds": "≈ {milliseconds} ms",
  "equalizer.run_once": "run once for seconds",
  "equalizer.memory_parts": "{weights} weights and {cache} of keys and values for a batch of {batch}",
  "equalizer.reading": "Reading the model …",
  "equalizer.connect": "Connect a model to see its scales",
  "equalizer.adjusted": "No scale is skipped here: pruned instead",
  "equalizer.unknown": "Speed and tokens appear once the model is known",
  "equalizer.preset_linked": "A link sets the preset; bars count when it is Custom",
  "classes.find": "Find a class …",
  "classes.connect": "Connect a model to find its classes",
  "classes.title": "Adds one of the model's {count} classes to the label",
};
