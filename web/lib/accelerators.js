// @ts-check
// Which widgets of VAR Accelerator belong to the chosen method.

/**
 * The widgets that have nothing to say: those of other methods. An unknown method hides none.
 * @param {Record<string, string[]>} methods widget names by method @param {unknown} chosen
 * @returns {Set<string>}
 */
export function hiddenOptions(methods, chosen) {
  const own = Object.hasOwn(methods, String(chosen)) ? methods[String(chosen)] : null;
  return new Set(own ? Object.values(methods).flat().filter((name) => !own.includes(name)) : []);
}
