import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { LOCALES, localeOf, t } from "../../web/lib/i18n.js";
import en from "../../web/lib/messages/en.js";

const tables = await Promise.all(LOCALES.map(async (name) => [name, (await import(`../../web/lib/messages/${name}.js`)).default]));
const places = (text) => [...text.matchAll(/\{\w+\}/g)].map((m) => m[0]).sort();

test("every language has every text, with the same places to fill", () => {
  for (const [name, table] of tables) {
    assert.deepEqual(Object.keys(table).sort(), Object.keys(en).sort(), name);
    for (const key of Object.keys(en)) assert.deepEqual(places(table[key]), places(en[key]), `${name} ${key}`);
  }
});

test("a text falls back to its language without region, to English, to its key", () => {
  const key = Object.keys(en)[0];
  const zh = Object.fromEntries(tables).zh;
  assert.equal(t("zh", key), zh[key]);
  assert.equal(t("zh-TW", key), zh[key]);
  assert.equal(t("xx", key), en[key]);
  assert.equal(t("en", "nobody.says {n}", { n: 3 }), "nobody.says 3");
  assert.equal(t("en", "nobody.says {n}"), "nobody.says {n}");
});

test("the language is the editor's setting, English where it has none", () => {
  assert.equal(localeOf({ extensionManager: { setting: { get: (id) => (id === "Comfy.Locale" ? "zh" : null) } } }), "zh");
  assert.equal(localeOf({ ui: { settings: { getSettingValue: () => "fr" } } }), "fr");
  assert.equal(localeOf({}), "en");
  assert.equal(localeOf(undefined), "en");
});

test("the equalizer and the class finder say every text they have, and no other", () => {
  const source = (name) => readFileSync(new URL(`../../web/widgets/${name}.js`, import.meta.url), "utf8");
  const said = [...source("equalizer").matchAll(/\bsay\("(\w+)"/g)].map((m) => `equalizer.${m[1]}`)
    .concat([...source("classes").matchAll(/"(classes\.\w+)"/g)].map((m) => m[1]));
  const known = Object.keys(en).filter((key) => /^(equalizer|classes)\./.test(key));
  assert.deepEqual([...new Set(said)].sort(), known.sort());
});
