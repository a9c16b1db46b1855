// @ts-check
// Which sizes and shapes Empty VAR Latent offers: those the connected model can draw.

/**
 * @param {Record<string, string[]> | undefined} canvases aspect ratios by size, as the plan says them
 * @param {{size: string[], aspect_ratio: string[]}} all the node's own choices @param {{size: string, aspect_ratio: string}} chosen
 * @returns {{size: string[], aspect_ratio: string[]}} in the order of `all`, with what is chosen: the model itself says why it cannot
 */
export function offered(canvases, all, chosen) {
  if (!canvases) return all;
  const ratios = canvases[chosen.size] ?? Object.values(canvases).flat();
  return { size: all.size.filter((size) => size in canvases || size === chosen.size),
    aspect_ratio: all.aspect_ratio.filter((ratio) => ratios.includes(ratio) || ratio === chosen.aspect_ratio) };
}
