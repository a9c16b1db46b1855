"""The stock mask editor drives `protect`: a picture is copied, painted on and drawn again, in both renderers."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

import launch
from stepvar_core.methods.stepvar import PROTECTED_SHARE

pytestmark = [pytest.mark.server, pytest.mark.browser]

PICTURE, SAMPLER, SAVED = 5, 9, 12  # nodes of StepVAR_painted_protection
EDITOR = ".mask-editor-dialog"
CANVAS = f"{EDITOR} canvas.z-30"  # where the mask is drawn
# places an invisible #name over a node's picture for the mouse
MARK = """
const node = app.rootGraph.getNodeById(%d), [w, h] = node.size;
const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 0.5 * w, node.pos[1] + 0.6 * h]);
const mark = document.body.appendChild(document.createElement("i"));
mark.id = "%s";
mark.style.cssText = `position: fixed; width: 2px; height: 2px; pointer-events: none; left: ${x}px; top: ${y}px`;
"""
NAME = f"app.rootGraph.getNodeById({PICTURE}).widgets.find((w) => w.name === 'image').value"
PASTED, SAVED_MASK = {"until": f"{NAME}.includes('pasted')"}, {"until": f"{NAME}.includes('clipspace')"}
OUTPUT = f"return app.nodeOutputs[{SAMPLER}].stepvar[0].scales.at(-1)"


def entry(renderer: str, words: str) -> str:
    return f".litemenu-entry:has-text('{words}')" if renderer == "classic" else f"[role=menuitem]:has-text('{words}')"


COPIED = {"until": "navigator.clipboard.read().then((items) => items.some((item) => item.types.includes('image/png')))"}
PASTE = {
    "classic": [{"click": "#picture", "wait": 400}, {"press": "Control+v"}],
    "vue": [{"click": "#picture", "button": "right", "wait": 600}, {"click": entry("vue", "Paste Image")}],
}


@pytest.fixture(scope="module", params=["classic", "vue"])
def by_hand(request, frontend):
    """What the workflow's note says: run, copy the picture, paste it, paint, save, run again.

    The last scale before and after, the saved file's name, and drive.mjs' results of both runs.
    """
    workflow = json.loads((launch.ROOT / "workflows" / "StepVAR_painted_protection.json").read_text(encoding="utf-8"))
    renderer = request.param
    steps = [
        {"evaluate": MARK % (SAVED, "saved")},
        {"evaluate": MARK % (PICTURE, "picture")},
        {"click": "#saved", "button": "right", "wait": 600},
        {"click": entry(renderer, "Copy Image"), "wait": 300},
        COPIED,
        *PASTE[renderer],
        PASTED,
        {"wait": 300},
        {"click": "#picture", "button": "right", "wait": 600},
        {"click": entry(renderer, "Open in Mask")},
        {"until": f"document.querySelector('{CANVAS}')?.getBoundingClientRect().width > 300", "wait": 500},
        {"drag": [CANVAS, 0.2, 0.2], "to": [CANVAS, 0.2, 0.7], "wait": 500},
        {"shoot": "painting"},
        {"click": f"{EDITOR} button:has-text('Save')"},
        SAVED_MASK,
        {"until": f"!document.querySelector('{EDITOR}')"},
        {"evaluate": f"return {NAME}"},
    ]
    before, after = frontend.drive(
        renderer,
        [
            {"name": "mask editor", "workflow": workflow, "queue": True, "steps": [{"evaluate": OUTPUT}, *steps]},
            {"name": "mask editor ran", "queue": True, "evaluate": OUTPUT},
        ],
    )
    first, saved = [answer for answer in before["steps"] if answer]
    return {"first": first, "second": after["value"], "saved": saved, "runs": [before, after]}


def kept(scale: dict) -> np.ndarray:
    return (
        np.unpackbits(np.frombuffer(base64.b64decode(scale["kept"]), dtype=np.uint8))[: 16 * 16]
        .reshape(16, 16)
        .astype(bool)
    )


def test_a_painted_mask_is_where_every_token_runs(comfy, by_hand):
    folder, _, name = by_hand["saved"].removesuffix(" [input]").rpartition("/")
    saved = Image.open(io.BytesIO(comfy.view({"filename": name, "subfolder": folder, "type": "input"})))
    alpha = np.asarray(saved.getchannel("A"), dtype=np.float64)
    cells = (1 - alpha / 255).reshape(16, alpha.shape[0] // 16, 16, -1).mean((1, 3))
    painted = cells >= PROTECTED_SHARE
    assert 20 < painted.sum() < 128, "the stroke covers a part of the picture"
    before, after = kept(by_hand["first"]), kept(by_hand["second"])
    assert not before[painted].all() and after[painted].all()
    assert after.sum() == by_hand["second"]["tokens_run"] and before.sum() == by_hand["first"]["tokens_run"]


def test_the_pack_breaks_nothing_on_the_way(by_hand):
    assert [run["ending"] for run in by_hand["runs"]] == ["execution_success"] * 2
    assert [run["packErrors"] for run in by_hand["runs"]] == [[], []]
