// Reads what stepvar_core packed from stdin, one JSON object, and writes what the widgets' modules make of it to stdout.
import { readFileSync } from "node:fs";
import { sources } from "../../web/lib/fill.js";
import { cellColours } from "../../web/lib/grid.js";
import { viridis } from "../../web/lib/palette.js";
import { keptOf, LAYERS, readRun, scoreAt } from "../../web/lib/trace.js";

const { message, fills, shades } = JSON.parse(readFileSync(0, "utf8"));
const run = readRun(message);
process.stdout.write(JSON.stringify({
  batch: run.batch,
  scored: run.scored,
  shades: shades.map(viridis),
  scales: run.scales.map((scale) => Array.from({ length: run.batch }, (_, picture) => {
    const kept = keptOf(scale, picture);
    return {
      kept: Array.from(kept),
      sources: Object.fromEntries(fills.map((fill) => [fill, Array.from(sources(kept, scale.size, fill))])),
      scores: Object.fromEntries(LAYERS.slice(1).map((layer) => [layer, Array.from(kept, (_, token) => scoreAt(scale, layer, picture, token))])),
      alpha: Array.from(cellColours("kept", kept, 0.5)).filter((_, i) => i % 4 === 3),
    };
  })),
}));
