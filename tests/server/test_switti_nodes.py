"""Switti among ComfyUI's own nodes, in a real server: the hub's folders, both text encoders, text to image end to end,
and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import stand_ins
import torch
from comfy_server import error_of, pixels
from graphs import TextPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import launch
import stepvar_core as sv

pytestmark = pytest.mark.server

MODEL, NARROW, WIDE, VAE = "tiny-switti/", "tiny-clip-l/", "tiny-clip-g/", "VQVAE-Switti/model.safetensors"
PROMPT = "a red fox in the snow, at dawn"
GREEDY = {"top_k": 1, "cfg": 3.0}


@pytest.fixture(scope="module")
def models(comfy_server):
    """A small Switti of 256 pixels, also AR, its VQVAE and both CLIPs, in the hub's layout; returns the CLIPs."""
    return write_models(comfy_server.base / "models")


def write_models(folder) -> tuple:
    stand_ins.write_switti(folder / "var" / "tiny-switti", 256)
    stand_ins.write_switti(folder / "var" / "tiny-switti-ar", 256, use_ar=True)
    stand_ins.write_switti_vae(folder / "vae" / "VQVAE-Switti")
    return tuple(
        stand_ins.write_clip(folder / "text_encoders" / name.rstrip("/"), width)
        for name, width in zip((NARROW, WIDE), stand_ins.CLIP_WIDTHS)
    )


class Pipeline(TextPipeline):
    """Both encoders, and the empty prompt as the negative."""

    def __init__(self, model: str = MODEL, vae: str = "auto", first: str = NARROW, second: str = WIDE, **more):
        super().__init__(model, vae, first, **{"prompt": PROMPT, "size": "auto", "kind": "switti-clip", **more})
        self.nodes[self.encoder]["inputs"]["encoder_name_2"] = second
        self.negative = self.prompt("")

    def sample(self, model=None, latent=None, **options) -> list:
        return super().sample(model, latent, **{"negative": self.negative, **options})


def tokenizer(comfy):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(comfy.server.comfyui / "comfy" / "sd1_tokenizer")


def features(clips, comfy, prompt: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """What transformers makes of a prompt the way upstream prepares it: both last layers, mask, pooled, and the ids."""
    words = tokenizer(comfy)(prompt, truncation=True, max_length=77, padding="max_length", return_tensors="pt")
    with torch.inference_mode():
        narrow, wide = (clip(**words) for clip in clips)
    hidden = torch.cat([narrow.last_hidden_state, wide.last_hidden_state], -1)
    return hidden, words["attention_mask"], wide.pooler_output, words["input_ids"][0].tolist()


# the text ------------------------------------------------------------------------------------------


def test_both_encoders_are_transformers(comfy, models, tmp_path):
    """Ids, hidden states of both behind their final norms, padding included, and the end token without projection; in
    either order, by name and by looks. The host's own SDXL CLIP gives the same widths, and is refused by name."""
    prompts = [PROMPT, "", "a cat", "very long " * 60]
    task = {"encoders": [[NARROW, WIDE, "switti-clip"], [WIDE, NARROW, "auto"]], "prompts": prompts}
    script, out = launch.ROOT / "tests" / "server" / "compare_clip.py", tmp_path / "found.safetensors"
    folders = [str(launch.ROOT), str(comfy.server.comfyui), str(comfy.model_folder("text_encoders")), str(out)]
    done = subprocess.run(
        [sys.executable, str(script), *folders], input=json.dumps(task), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with safe_open(out, "pt") as found:
        ids = json.loads(found.metadata()["ids"])
        assert "ordinary SDXL CLIP" in found.metadata()["sdxl"] and "type switti-clip" in found.metadata()["sdxl"]
        for i, prompt in enumerate(prompts):
            hidden, mask, pooled, expected_ids = features(models, comfy, prompt)
            assert ids[str(i)] == expected_ids
            for order in range(2):
                for name, expected in (("hidden", hidden), ("mask", mask), ("pooled", pooled)):
                    ours = found.get_tensor(f"{order}|{i}|{name}")
                    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


# what works ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, "tiny-switti-ar/"])
def test_the_server_draws_what_the_core_draws_from_transformers_features(comfy, models, model):
    """Prompt to picture: transformers' CLIPs and the headless core on one side, the nodes on the other."""
    folder = comfy.server.base / "models"
    network, vae = sv.load_model(folder / "var" / model), sv.load_vae(folder / "vae" / "VQVAE-Switti")
    text, empty = (network.text_condition(*features(models, comfy, p)[:3]) for p in (PROMPT, ""))
    result = sv.sample(network, vae, text, negative=empty, schedule=network.schedule(), seed=1, **GREEDY)
    pipe = Pipeline(model, dtype="fp32")
    sample = pipe.sample(**GREEDY)
    latent = pipe.add("SaveLatent", samples=sample, filename_prefix="switti")
    picture = pipe.add("SaveImage", images=pipe.decode(sample), filename_prefix="switti")
    run = comfy.run(pipe.nodes)
    found = load_file(comfy.server.base / "output" / run.outputs[latent]["latents"][0]["filename"])["latent_tensor"]
    torch.testing.assert_close(found, result.latent, rtol=0, atol=1e-4)
    ours = pixels(comfy.images(run, picture))
    assert ours.shape[-3:-1] == (256, 256)
    assert np.abs(ours - (vae.decode(result.latent).numpy() * 255).astype(np.int64)).mean() < 0.5


def test_wherever_the_user_points(comfy, models):
    """The hub's folder or the file in it; the VQVAE is found by its folder's name, or chosen by hand; the encoders in
    either order."""
    found = {}
    for given in ((MODEL, "auto", NARROW, WIDE), ("tiny-switti/model.safetensors", VAE, WIDE, NARROW)):
        pipe = Pipeline(*given)
        found[given] = pixels(comfy.images(comfy.run(pipe.save(pipe.decode(pipe.sample(**GREEDY))))))
    first, other = found.values()
    assert (first == other).all()
    different = pixels(comfy.images(comfy.run(Pipeline("tiny-switti-ar/").picture())))
    assert (first != different).any()


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_e4m3fn"])
def test_every_weight_dtype_draws(comfy, models, dtype):
    assert comfy.images(comfy.run(Pipeline(dtype=dtype).picture()))[0].size == (256, 256)


def test_pruned_with_a_preset(comfy, models):
    pipe = Pipeline(batch=2)
    sample = pipe.sample(pipe.prune(preset="Balanced"), seed=5, top_k=-1)
    run = comfy.run(pipe.picture(sample), preview_method="auto")
    steps = [s for s in run.named("stepvar.scale") if s["node"] == sample[0]]
    assert len(steps) == 10 and steps[-1]["tokens_run"] < 256 and steps[0]["tokens_run"] == 1
    assert run.previews and len(comfy.images(run)) == 2


def test_the_equalizer_is_told_what_a_run_costs(comfy, models):
    plan = comfy.server.get(f"/stepvar/plan?model={MODEL}")
    network = sv.load_model(comfy.server.base / "models" / "var" / "tiny-switti")
    assert (plan["family"], plan["default_cfg"]) == ("switti", 6.0)
    assert [s["tokens"] for s in plan["scales"]] == [p * p for p in network.config.patch_nums]
    assert plan["sees"] == [[]] * 10 and plan["guided"] == [False] + [True] * 7 + [False] * 2
    assert {k: v for k, v in plan["cost"].items() if "bytes" not in k} == {
        k: v for k, v in vars(network.cost()).items() if "bytes" not in k
    }  # bytes follow the dtype the host chose
    causal = comfy.server.get("/stepvar/plan?model=tiny-switti-ar/")
    assert causal["sees"] == [[[0, i]] if i else [] for i in range(10)]


def test_a_picture_is_encoded_redrawn_and_continued(comfy, models):
    pipe = Pipeline()
    first = pipe.sample(seed=3, top_k=-1)
    image = pipe.decode(first)
    encoded = [pipe.add("VAREncode", vae=pipe.vae, image=image, latent=pipe.latent, seed=0), 0]
    nothing = [pipe.add("SolidMask", value=0.0, width=256, height=256), 0]
    kept = [pipe.add("SetLatentNoiseMask", samples=first, mask=nothing), 0]
    latents = [
        first,
        pipe.sample(latent=first, start_at_scale=10, seed=3, top_k=-1),
        pipe.sample(latent=first, start_at_scale=4, seed=3, top_k=-1),
        pipe.sample(latent=kept, seed=9, top_k=-1),
        pipe.sample(latent=encoded, start_at_scale=7),
    ]
    saved = [pipe.add("SaveLatent", samples=x, filename_prefix="switti_again") for x in latents]
    run = comfy.run(pipe.nodes)
    whole, given, continued, redrawn, fresh = (
        load_file(comfy.server.base / "output" / run.outputs[n]["latents"][0]["filename"])["latent_tensor"]
        for n in saved
    )
    for same in (given, continued, redrawn):
        assert (whole - same).abs().max() < 1e-4
    assert (whole - fresh).abs().mean() > 1e-3


@pytest.mark.parametrize("options", [(), ("--novram",)], ids=["all of it fits", "nothing fits"])
def test_on_a_device_beside_the_cpu(comfy, models, on_second_device, options):
    """Weights that stay on the host and are cast call by call give the picture; text, noise and codes cross where
    they must."""

    def drawn(client):
        pipe = Pipeline(dtype="fp32")
        pruned = pipe.sample(pipe.prune(preset="Balanced"), seed=4, top_k=-1)
        return pixels(client.images(client.run(pipe.save(pipe.decode(pruned)))))

    here = drawn(comfy)
    with on_second_device("--force-fp32", "--fp32-vae", *options) as client:
        write_models(client.server.base / "models")
        assert client.server.get("/system_stats")["devices"][0]["type"] == "npu"
        client.object_info(refresh=True)
        assert np.abs(drawn(client) - here).mean() < 0.5


# what is refused -----------------------------------------------------------------------------------


def test_parts_that_do_not_belong(comfy, models):
    folder = comfy.model_folder("text_encoders")
    narrow = load_file(folder / NARROW / "model.safetensors")
    text = {k: v for k, v in narrow.items() if k.startswith("text_model.")}
    layer = "text_model.encoder.layers.0.mlp.fc1.weight"
    files = {
        "twin.safetensors": (text, "of the same size (8 channels)"),
        "vit_h.safetensors": (
            text | {"text_model.embeddings.token_embedding.weight": torch.zeros(4, 1024)},
            "CLIP ViT-H (1024 channels, 77 positions)",
        ),
        "openclip.safetensors": ({"transformer.resblocks.0.ln_1.weight": torch.ones(4)}, "under OpenCLIP's own names"),
        "t5.safetensors": (
            {"encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(4, 4)},
            "no CLIP text encoder",
        ),
        "part.safetensors": ({layer: text[layer]}, "no whole CLIP text encoder"),
        "holes.safetensors": ({k: v for k, v in text.items() if "layer_norm1" not in k}, "missing"),
    }
    for name, (tensors, words) in files.items():
        save_file({k: v.clone() for k, v in tensors.items()}, folder / name)
        comfy.object_info(refresh=True)
        second = NARROW if name == "twin.safetensors" else WIDE
        message = error_of(comfy, Pipeline(first=name, second=second).picture())
        assert words in message and "clip-vit-large-patch14" in message or words == "missing", f"{name}: {message}"
    message = error_of(comfy, Pipeline(second="none").picture())
    assert "Switti reads two CLIPs" in message and "encoder_name_2" in message
    stand_ins.write_vae(comfy.model_folder("vae") / "vae_ch160v4096z32.pth")
    lonely = comfy.model_folder("vae") / "VQVAE-Switti"
    aside = lonely.rename(lonely.with_name("aside"))
    try:
        pipe = Pipeline("tiny-switti/model.safetensors", dtype="bf16")  # a choice no other test loaded
        assert "Download VQVAE-Switti into models/vae" in error_of(comfy, pipe.picture())
    finally:
        aside.rename(lonely)
    pipe = Pipeline()
    pipe.latent = [
        pipe.add("EmptyVARLatent", model=pipe.model, aspect_ratio="16:9", size="auto", seconds=5.0, batch_size=1),
        0,
    ]
    assert "Switti makes square pictures" in error_of(comfy, pipe.picture())


def test_the_negative_must_be_an_empty_prompt(comfy, models):
    pipe = Pipeline()
    without = TextPipeline.sample(pipe)
    assert "Connect CLIP Text Encode with an empty prompt" in error_of(comfy, pipe.picture(without))
    pipe = Pipeline()
    zeroed = [pipe.add("ConditioningZeroOut", conditioning=pipe.label), 0]
    assert "empty prompt" in error_of(comfy, pipe.picture(pipe.sample(negative=zeroed)))
    pipe = Pipeline()
    assert comfy.run(pipe.picture(TextPipeline.sample(pipe, cfg=0.0))).status == "success"


def test_joined_prompts_say_what_to_do(comfy, models):
    pipe = Pipeline()
    pipe.label = [pipe.add("ConditioningConcat", conditioning_to=pipe.label, conditioning_from=pipe.prompt("a dog")), 0]
    assert "write them as one" in error_of(comfy, pipe.picture())
