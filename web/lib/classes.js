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

/**
 * The classes a text means, with commas or semicolons between several; null where one of them is unknown.
 * @param {string[]} names @param {string} text @returns {string[] | null}
 */
export function matchClasses(names, text) {
  const whole = matchClass(names, text); // a name may hold a comma itself
  if (whole) return [whole];
  const found = text.split(/[;,]/).filter((part) => part.trim()).map((part) => matchClass(names, part));
  return found.length && found.every((name) => name !== null) ? /** @type {string[]} */ (found) : null;
}

/** Letters to change, add or leave out between two words. @param {string} a @param {string} b */
function distance(a, b) {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + Number(a[i - 1] !== b[j - 1]));
    row = next;
  }
  return row[b.length];
}

/**
 * The names nearest to the first part of a text that means none: those that hold it, else those a few letters away.
 * @param {string[]} names @param {string} text @param {number} [most] @returns {string[]}
 */
export function nearest(names, text, most = 3) {
  const part = text.split(/[;,]/).map((p) => p.trim().toLowerCase()).find((p) => p && !matchClass(names, p));
  if (!part) return [];
  const rated = [...new Set(names)].map((name) => {
    const plain = name.toLowerCase();
    return { name, far: plain.includes(part) ? 0 : Math.min(...plain.split(/\s+/).map((word) => distance(part, word)), distance(part, plain)) };
  });
  return rated.filter(({ far }) => far <= Math.max(1, Math.floor(part.length / 3))).sort((a, b) => a.far - b.far).slice(0, most).map(({ name }) => name);
}
