"""Infinity among ComfyUI's own nodes, in a real server: text to image end to end, and what is refused with which words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import stand_ins
import torch
from graphs import Pipeline, TextPipeline
from safetensors.torch import load_file, save_file

import stepvar_core as sv

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import synth_weights  # noqa: E402

pytestmark = pytest.mark.server

GOLDEN = Path(__file__).parent.parent / "golden" / "infinity"
SMALL = {"i2b": ("tiny/i2b.pth", "tiny_i2b_vae.pth"), "i8b": ("tiny/i8b.pth", "tiny_i8b_vae.pth")}
T5 = "tiny-t5/"
PROMPT = "a red fox in the snow, at dawn"
GREEDY = {"top_k": 1, "cfg": 3.0, "temperature": 0.5}


@pytest.fixture(scope="module")
def models(comfy_server):
    """The tiny reference models in upstream's own format, and a T5 as wide as they read; returns the T5 encoder."""
    folder = comfy_server.base / "models"
    for name in ("var/tiny", "vae", "text_encoders"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, (model, vae) in SMALL.items():
        for part, target, wrap in (("model", f"var/{model}", None), ("vae", f"vae/{vae}", "vae")):
            tensors = synth_weights.state_dict(json.loads((GOLDEN / name / f"{part}.recipe.json").read_text()))
            torch.save({wrap: tensors} if wrap else tensors, folder / target)
    return stand_ins.write_t5(folder / "text_encoders" / "tiny-t5", width=256, shard_bytes="20MB")


@pytest.fixture
def pipe(comfy, models):
    return TextPipeline(*SMALL["i2b"], T5, PROMPT)


def pixels(pictures) -> np.ndarray:
    return np.stack([np.asarray(p.convert("RGB"), dtype=np.int64) for p in pictures])


def features(encoder, comfy, *prompts: str) -> torch.Tensor:
    """What transformers makes of prompts of one length, (B, T, C)."""
    from transformers import T5TokenizerFast

    tokenizer = T5TokenizerFast.from_pretrained(comfy.server.comfyui / "comfy" / "text_encoders" / "t5_tokenizer")
    with torch.inference_mode():
        return encoder(torch.tensor(tokenizer(list(prompts))["input_ids"])).last_hidden_state


def error_of(comfy, graph) -> str:
    run = comfy.attempt(graph)
    assert run.status == "error", f"the run ended as {run.status}"
    return run.error.message


# what works ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_the_server_draws_what_the_core_draws_from_transformers_features(comfy, models, name):
    """Prompt to picture: transformers' T5 and the headless core on one side, the nodes on the other."""
    folder = comfy.server.base / "models"
    model, vae = sv.load_model(folder / "var" / SMALL[name][0]), sv.load_vae(folder / "vae" / SMALL[name][1])
    text, negative = (model.text_condition(features(models, comfy, p)) for p in (PROMPT, "blurry"))
    pipe = TextPipeline(*SMALL[name], T5, PROMPT, dtype="fp32")
    saved, expected = [], []
    for against in (None, negative):
        result = sv.sample(model, vae, text, schedule=model.schedule(size="0.06M"), negative=against, **GREEDY)
        expected.append(vae.decode(result.latent))
        given = {} if against is None else {"negative": pipe.prompt("blurry")}
        saved.append(pipe.add("SaveImage", images=pipe.decode(pipe.sample(**GREEDY, **given)), filename_prefix="infinity"))
    run = comfy.run(pipe.nodes)
    for node, picture in zip(saved, expected):
        assert np.abs(pixels(comfy.images(run, node)) - (picture.numpy() * 255).astype(np.int64)).max() <= 1
    assert (expected[0] - expected[1]).abs().mean() > 0.01, "a negative prompt changes the picture"
