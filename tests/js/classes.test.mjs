import assert from "node:assert/strict";
import test from "node:test";
import { addClass, matchClass } from "../../web/lib/classes.js";

const names = ["cat face", "cat", "panda", "penguin"];

test("a text means one class by its name, or by the only beginning of one", () => {
  assert.equal(matchClass(names, " CAT "), "cat");
  assert.equal(matchClass(names, "pan"), "panda");
  for (const text of ["p", "", "  ", "dog"]) assert.equal(matchClass(names, text), null, text);
});

test("a class is added behind the others", () => {
  assert.equal(addClass("", "cat"), "cat");
  assert.equal(addClass("panda", "cat"), "panda; cat");
  assert.equal(addClass("panda; fox; ", "cat"), "panda; fox; cat");
});
