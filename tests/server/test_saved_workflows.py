"""Workflows saved by earlier versions load as they are, and those of the bundled model draw what they drew then."""

from __future__ import annotations

import json

import numpy as np
import pytest
import saved_workflows
import stand_ins

pytestmark = pytest.mark.server

SAVED = sorted(saved_workflows.FOLDER.glob("*/*.json"))


@pytest.fixture(scope="module", autouse=True)
def public_files(comfy_server):
    stand_ins.write_public_files(comfy_server.base / "models")


@pytest.mark.parametrize("path", SAVED, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_a_saved_workflow_draws_what_it_drew(comfy, path):
    comfy.object_info(refresh=True)
    prompt = comfy.prompt_of(path)
    recorded = json.loads(saved_workflows.record_of(path.parent.name).read_text(encoding="utf-8"))
    run = comfy.run(path, timeout=300)
    pictures = saved_workflows.pictures_of(comfy, run)
    assert pictures and all(means.std() > 5 for means in pictures.values()), "a picture is blank"
    assert (path.stem in recorded) == saved_workflows.loads_the_demo(prompt)
    if path.stem in recorded:
        assert saved_workflows.tokens_of(run) == recorded[path.stem]["tokens"], "other tokens ran"
        assert set(pictures) == set(recorded[path.stem]["pictures"])
        for node, packed in recorded[path.stem]["pictures"].items():
            # a level: the mean is rounded, and another machine's sums end in other digits
            assert np.abs(pictures[node] - saved_workflows.unpack(packed)).max() <= 1, f"node {node}"
