// @ts-check
// Texts of the widgets in the language the editor is set to. Tables are web/lib/messages/<language>.js; a key begins
// with its widget's name, and English has them all.
import en from "./messages/en.js";
import zh from "./messages/zh.js";

/** @type {Record<string, Record<string, string>>} */
const TABLES = { en, zh };
export const LOCALES = Object.keys(TABLES);

/**
 * A text with its `{name}` places filled. Falls back from "zh-TW" to "zh", then to English, then to the key itself.
 * @param {string} locale as localeOf gives it @param {string} key @param {Record<string, string | number>} [values]
 * @returns {string}
 */
export function t(locale, key, values = {}) {
  const text = TABLES[locale]?.[key] ?? TABLES[locale.split("-")[0]]?.[key] ?? en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (place, name) => (name in values ? String(values[name]) : place));
}

/**
 * The editor's language, "en" where it does not say.
 * @param {any} app the host's app
 * @returns {string}
 */
export function localeOf(app) {
  const locale = app?.extensionManager?.setting?.get?.("Comfy.Locale") ?? app?.ui?.settings?.getSettingValue?.("Comfy.Locale");
  return typeof locale === "string" && locale ? locale : "en";
}
