"""Every workflow the pack ships runs in a real ComfyUI, as a user who has its files would see it."""

from __future__ import annotations

import json

import pytest
import stand_ins

import launch

pytestmark = pytest.mark.server

WORKFLOWS = sorted((launch.ROOT / "workflows").glob("*.json"))


@pytest.fixture(scope="module", autouse=True)
def public_files(comfy_server):
    stand_ins.write_public_files(comfy_server.base / "models")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_it_runs_and_leaves_pictures(comfy, path):
    comfy.object_info(refresh=True)
    comfy.forget()
    run = comfy.run(path, timeout=300)
    pictures = comfy.images(run)
    assert pictures and all(len(set(p.convert("L").resize((64, 64)).tobytes())) > 20 for p in pictures), (
        "a picture is blank"
    )
    pruned = [
        s for s in run.nodes_of("VARSampler") if run.prompt[s]["inputs"]["model"][0] in run.nodes_of("StepVARPruning")
    ]
    scales = [run.outputs[sampler]["stepvar"][0]["scales"] for sampler in pruned]
    assert scales and all(s[-1]["tokens_run"] < s[-1]["tokens"] for s in scales), "the workflow shows pruning"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_it_is_listed_with_a_thumbnail(comfy, path):
    [names] = [names for pack, names in comfy.templates().items() if pack == launch.PACK_NAME]
    assert path.stem in names
    assert path.with_suffix(".jpg").read_bytes()[:2] == b"\xff\xd8"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_every_saved_value_fits_its_widget(comfy, path):
    """The saved widget values, in order, are choices and ranges of today's nodes: an inserted widget would shift
    them."""
    info = comfy.object_info()
    for node_id, node in launch.to_prompt(json.loads(path.read_text(encoding="utf-8")), info).items():
        inputs = info[node["class_type"]]["input"]
        for name, spec in (inputs.get("required", {}) | inputs.get("optional", {})).items():
            value = node["inputs"].get(name)
            if isinstance(value, list) or value is None:
                continue
            kind, options = spec[0], spec[1] if len(spec) > 1 else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            if choices:
                assert value in choices, f"{node_id}.{name}"
            elif kind in ("INT", "FLOAT"):
                assert options["min"] <= value <= options["max"], f"{node_id}.{name}"


def test_one_seed_one_picture_with_and_without_the_model_loaded(comfy):
    path = launch.ROOT / "workflows" / "StepVAR_overlay_and_report.json"
    first = comfy.images(comfy.run(path))
    comfy.forget()
    again = comfy.images(comfy.run(path))
    assert [a.tobytes() for a in first[:8]] == [b.tobytes() for b in again[:8]]
