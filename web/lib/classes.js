// @ts-check
// Class names into label texts, as VAR Class Label reads them: `;` between several.

/**
 * The one class a text means: its name in any case, or the only one that begins with it. null where there is none or several.
 * @param {string[]} names @param {string} text @returns {string | null}
 */
export function matchClass(names, text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return null;
  const same = names.find((name) => name.toLowerCase() === wanted);
  if (same) return same;
  const longer = names.filter((name) => name.toLowerCase().startsWith(wanted));
  return longer.length === 1 ? longer[0] : null;
}

/** @param {string} label @param {string} name @returns {string} the label with one more class at its end */
export function addClass(label, name) {
  const kept = label.replace(/[;\s]+$/, "");
  return kept ? `${kept}; ${name}` : name;
}
