// @ts-check
// The look of the widgets. Each widget carries this sheet inside its own element; colours come from the editor's theme.
// The three data colours are Okabe and Ito's: told apart with any kind of colour vision.
export const STYLE = `
.stepvar { --sv-ran: #56b4e9; --sv-time: #e69f00; --sv-fg: var(--input-text, #ddd); --sv-dim: var(--descrip-text, #999);
  --sv-field: var(--component-node-widget-background, var(--comfy-input-bg, #222)); --sv-line: var(--border-color, #4e4e4e);
  box-sizing: border-box; display: flex; flex-direction: column; gap: 6px; width: 100%; height: 100%; overflow: hidden;
  color: var(--sv-fg); font: 11px/16px Inter, system-ui, sans-serif; font-variant-numeric: tabular-nums; user-select: none; text-align: left; }
.stepvar *, .stepvar *::before { box-sizing: border-box; }
.stepvar [hidden] { display: none !important; }
.stepvar button { all: unset; box-sizing: border-box; cursor: pointer; }
.stepvar :focus-visible { outline: 2px solid var(--sv-ran); outline-offset: 1px; }
.stepvar-tools { display: flex; align-items: center; gap: 8px; flex: none; height: 22px; }
.stepvar-segments { display: flex; flex: 1 1 auto; min-width: 0; height: 22px; padding: 2px; border-radius: 6px; background: var(--sv-field); }
.stepvar .stepvar-segment { flex: 1 1 auto; min-width: 0; padding: 0 5px; border-radius: 4px; line-height: 18px; text-align: center;
  color: var(--sv-dim); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.stepvar .stepvar-segment:hover { color: var(--sv-fg); }
.stepvar .stepvar-segment[aria-pressed="true"] { color: var(--sv-fg); background: color-mix(in srgb, var(--sv-fg) 16%, transparent); }
.stepvar input[type="range"] { flex: 0 1 64px; min-width: 32px; height: 16px; margin: 0; accent-color: var(--sv-ran); cursor: pointer; }
.stepvar-stage { position: relative; flex: 1 1 0; min-height: 0; border-radius: 6px; overflow: hidden; background: var(--sv-field); }
.stepvar-stage > img, .stepvar-stage > canvas { position: absolute; display: block; pointer-events: none; max-width: none; }
.stepvar-stage > canvas { image-rendering: pixelated; }
.stepvar-stage > .stepvar-ground { background: #9aa1ad; position: absolute; pointer-events: none; }
.stepvar-note { position: absolute; left: 6px; right: 6px; bottom: 6px; width: fit-content; max-width: calc(100% - 12px); margin: 0 auto; padding: 2px 8px; border-radius: 4px;
  color: #fff; background: rgb(16 20 32 / 0.78); text-align: center; pointer-events: none; }
.stepvar-old { position: absolute; left: 0; right: 0; top: 6px; width: fit-content; margin: 0 auto; padding: 1px 8px; border-radius: 4px; color: #10141f; background: var(--sv-time); font-weight: 600; }
.stepvar-empty { flex: 1 1 0; display: flex; align-items: center; justify-content: center; padding: 8px 12px; border: 1px dashed var(--sv-line);
  border-radius: 6px; color: var(--sv-dim); text-align: center; }
.stepvar-lines { flex: none; height: 48px; }
.stepvar-lines > div { height: 16px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.stepvar-lines > div + div { height: 32px; white-space: normal; color: var(--sv-dim); }
.stepvar-timeline { position: relative; flex: none; height: 38px; margin: 0 2px; cursor: pointer; border-radius: 3px; touch-action: none; }
.stepvar-scale { position: absolute; top: 0; height: 38px; }
.stepvar-scale > .stepvar-track { position: absolute; left: 0; right: 0; top: 2px; height: 18px; border-radius: 2px; overflow: hidden;
  background: repeating-linear-gradient(135deg, transparent 0 3px, color-mix(in srgb, var(--sv-fg) 22%, transparent) 3px 4px) var(--sv-field); }
.stepvar-scale .stepvar-share { position: absolute; left: 0; right: 0; bottom: 0; background: var(--sv-ran); }
.stepvar-scale[data-state="waiting"] .stepvar-share { opacity: 0.22; }
.stepvar-scale[data-state="running"] .stepvar-share { animation: stepvar-pulse 0.9s ease-in-out infinite alternate; }
@keyframes stepvar-pulse { from { opacity: 0.3; } to { opacity: 0.75; } }
@media (prefers-reduced-motion: reduce) { .stepvar-scale[data-state="running"] .stepvar-share { animation: none; opacity: 0.5; } }
.stepvar-scale > .stepvar-time { position: absolute; left: 0; top: 22px; height: 3px; min-width: 1px; border-radius: 1.5px; background: var(--sv-time); }
.stepvar-scale > .stepvar-size { position: absolute; left: -4px; right: -4px; top: 26px; height: 12px; font-size: 9px; line-height: 12px; text-align: center; color: var(--sv-dim); }
.stepvar-scale[aria-current="true"] > .stepvar-track { box-shadow: 0 0 0 2px var(--sv-fg); }
.stepvar-scale[aria-current="true"] > .stepvar-size { color: var(--sv-fg); font-weight: 600; }
.stepvar-picker { display: flex; flex: none; gap: 4px; height: 32px; overflow-x: auto; overflow-y: hidden; scrollbar-width: thin; }
.stepvar .stepvar-thumb { flex: none; width: 32px; height: 32px; border-radius: 4px; overflow: hidden; line-height: 32px; text-align: center; color: var(--sv-dim); background: var(--sv-field); opacity: 0.75; }
.stepvar .stepvar-thumb > img { display: block; width: 100%; height: 100%; object-fit: cover; pointer-events: none; }
.stepvar .stepvar-thumb:hover { opacity: 1; }
.stepvar .stepvar-thumb[aria-pressed="true"] { opacity: 1; color: var(--sv-fg); box-shadow: inset 0 0 0 2px var(--sv-fg); }
.stepvar .stepvar-thumb[aria-pressed="true"] > img { border: 2px solid var(--sv-fg); border-radius: 4px; }
.stepvar-frames { display: flex; align-items: center; gap: 8px; flex: none; height: 18px; color: var(--sv-dim); white-space: nowrap; }
.stepvar .stepvar-frames > input { flex: 1 1 auto; }
.stepvar-compare .stepvar-stage { cursor: ew-resize; touch-action: none; outline-offset: -2px; }
.stepvar .stepvar-zoom { position: absolute; right: var(--x, 6px); bottom: var(--y, 6px); padding: 0 6px; border-radius: 4px; line-height: 18px; color: #fff; background: rgb(16 20 32 / 0.7); }
.stepvar-legend { position: absolute; left: 6px; right: 6px; bottom: var(--y, 6px); width: fit-content; margin: 0 auto; display: flex; align-items: center; gap: 6px; padding: 1px 8px;
  border-radius: 4px; color: #fff; background: rgb(16 20 32 / 0.78); pointer-events: none; white-space: nowrap; }
.stepvar-legend > div { width: 72px; height: 8px; border-radius: 2px; }
.stepvar-compare[data-mode="difference"] .stepvar-stage { cursor: default; }
.stepvar-pair { position: absolute; }
.stepvar-pair > img { position: absolute; inset: 0; width: 100%; height: 100%; display: block; pointer-events: none; max-width: none; }
.stepvar-divider { position: absolute; top: 0; bottom: 0; width: 20px; margin-left: -10px; }
.stepvar-divider::before { content: ""; position: absolute; left: 9px; top: 0; bottom: 0; width: 2px; background: #fff; box-shadow: 0 0 3px rgb(0 0 0 / 0.6); }
.stepvar-divider::after { content: ""; position: absolute; left: 1px; top: 50%; width: 18px; height: 18px; margin-top: -9px; border-radius: 50%;
  background: #fff; box-shadow: 0 0 4px rgb(0 0 0 / 0.5); clip-path: none; }
.stepvar-tag { position: absolute; top: var(--y, 6px); min-width: 18px; padding: 0 5px; border-radius: 4px; line-height: 18px; text-align: center; font-weight: 600;
  color: #fff; background: rgb(16 20 32 / 0.7); pointer-events: none; }
.stepvar-tag-a { left: var(--x, 6px); }
.stepvar-tag-b { right: var(--x, 6px); }
.stepvar-verdict { flex: none; height: 16px; font-weight: 600; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.stepvar-figures { flex: none; display: grid; grid-template-columns: repeat(3, 1fr); height: 34px; }
.stepvar-figures > div { display: flex; flex-direction: column; }
.stepvar-figures b { font-size: 13px; line-height: 18px; font-weight: 600; white-space: nowrap; }
.stepvar-figures span { color: var(--sv-dim); }
.stepvar-times { flex: none; height: 36px; display: flex; flex-direction: column; gap: 4px; }
.stepvar-times > div { display: grid; grid-template-columns: 12px 1fr 48px; gap: 6px; align-items: center; height: 16px; }
.stepvar-times > div > span { color: var(--sv-dim); white-space: nowrap; }
.stepvar-times > div > span:last-child { color: var(--sv-fg); text-align: right; }
.stepvar-lane { height: 6px; border-radius: 3px; overflow: hidden; background: var(--sv-field); }
.stepvar-lane > .stepvar-time { height: 6px; border-radius: 3px; background: var(--sv-time); }
.stepvar-forecast { min-height: 44px; max-height: 44px; gap: 2px; padding: 5px 10px; border-radius: 8px; background: var(--sv-field); }
.stepvar-forecast > b { font-weight: 600; }
.stepvar-forecast > span { color: var(--sv-dim); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.stepvar-forecast.is-error > span { color: #e5484d; white-space: normal; }
.stepvar-report .stepvar-stage > img { inset: 0; width: 100%; height: 100%; object-fit: contain; }
.lg-node-widgets:has(.stepvar-overlay) ~ img, .lg-node-widgets:has(.stepvar-overlay) ~ img + div { display: none; }
`;
