// @ts-check
// Listening to the editor's objects in ways that can be taken back.

/**
 * Runs `after` once more whenever the object's own method runs, until the returned function is called. The method keeps its
 * result and its `this`.
 * @param {any} object @param {string} method @param {(...args: any[]) => void} after
 * @returns {() => void}
 */
export function after(object, method, after) {
  const before = object[method];
  let isOn = true;
  /** @this {any} @param {any[]} args */
  const chained = function (...args) {
    const result = before?.apply(this, args);
    if (isOn) after(...args);
    return result;
  };
  object[method] = chained;
  return () => {
    isOn = false;
    if (object[method] === chained) object[method] = before; // else someone chained on top of it, and it passes calls on
  };
}

/**
 * Says when the object's own method begins (true) and ends (false), until the returned function is called.
 * @param {any} object @param {string} method @param {(isUnderWay: boolean) => void} tell
 * @returns {() => void}
 */
export function around(object, method, tell) {
  const before = object[method];
  let isOn = true;
  /** @this {any} @param {any[]} args */
  const chained = function (...args) {
    if (isOn) tell(true);
    try {
      return before?.apply(this, args);
    } finally {
      if (isOn) tell(false);
    }
  };
  object[method] = chained;
  return () => {
    isOn = false;
    if (object[method] === chained) object[method] = before;
  };
}

/** @param {EventTarget} target @param {string} name @param {(event: any) => void} listener @returns {() => void} */
export function on(target, name, listener) {
  target.addEventListener(name, listener);
  return () => target.removeEventListener(name, listener);
}

/** `run` at most once per frame. @param {() => void} run @returns {{(): void, cancel: () => void}} */
export function oncePerFrame(run) {
  let frame = 0;
  const schedule = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      run();
    });
  };
  schedule.cancel = () => {
    cancelAnimationFrame(frame);
    frame = 0;
  };
  return schedule;
}
