import assert from "node:assert/strict";
import test from "node:test";
import { addClass, matchClass, matchClasses, nearest } from "../../web/lib/classes.js";

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

test("several classes stand between commas or semicolons, unless a name holds one", () => {
  assert.deepEqual(matchClasses(names, "panda, cat"), ["panda", "cat"]);
  assert.deepEqual(matchClasses(names, "pen; panda ,"), ["penguin", "panda"]);
  assert.equal(matchClasses(names, "panda, dog"), null);
  assert.deepEqual(matchClasses([...names, "crane, bird"], "crane, bird"), ["crane, bird"]);
});

test("a text that means no class is answered with what is near", () => {
  assert.deepEqual(nearest(names, "pengiun"), ["penguin"]);
  assert.deepEqual(nearest(names, "face"), ["cat face"]);
  assert.deepEqual(nearest(names, "panda, catt"), ["cat face", "cat"]);
  assert.deepEqual(nearest(names, "aeroplane"), []);
});
