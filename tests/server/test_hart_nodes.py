"""HART among ComfyUI's own nodes, in a real server: its folders, its text encoder, text to image end to end, and what
is refused."""

from __future__ import annotations

import ast
import json
import shutil

import numpy as np
import pytest
import stand_ins
import torch
from comfy_server import error_of, pixels
from graphs import TextPipeline
from safetensors.torch import load_file, save_file

import launch
import stepvar_core as sv

pytestmark = pytest.mark.server

FOLDER, ENCODER = "tiny-hart/", "tiny-qwen2/"
PROMPT = "a red fox in the snow, at dawn"
GREEDY = {"top_k": 1, "cfg": 3.0}


@pytest.fixture(scope="module")
def models(comfy_server):
    """A small HART in the official folders and Qwen2 with pads on the left and on the right; returns the Qwen2."""
    folder = comfy_server.base / "models"
    (folder / "var").mkdir(parents=True, exist_ok=True)
    stand_ins.write_hart(folder / "var" / "tiny-hart", stand_ins.HART_SMALL)
    stand_ins.write_qwen2(folder / "text_encoders" / "tiny-qwen2-right", padding_side="right")
    return stand_ins.write_qwen2(folder / "text_encoders" / "tiny-qwen2")


def pipeline(
    model: str = FOLDER, vae: str = "auto", encoder: str = ENCODER, prompt: str = PROMPT, **more
) -> TextPipeline:
    return TextPipeline(model, vae, encoder, prompt, size="auto", **more)


def features(encoder, comfy, prompt: str, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers makes of a prompt the way upstream prepares it: (1, 300, C) and the mask of real tokens."""
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer.from_pretrained(comfy.server.comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer")
    tokenizer.padding_side, tokenizer.pad_token = side, "<|endoftext|>"
    words = tokenizer(prompt, return_tensors="pt", padding="max_length", max_length=300, truncation=True)["input_ids"]
    source = ast.parse((launch.ROOT / "nodes" / "host" / "text" / "qwen2.py").read_text(encoding="utf-8"))
    [instruction] = [
        ast.literal_eval(n.value) for n in source.body if isinstance(n, ast.Assign) and n.targets[0].id == "INSTRUCTION"
    ]
    before = tokenizer(instruction, return_tensors="pt")["input_ids"]
    mask = words != tokenizer.pad_token_id
    whole = torch.cat([torch.ones_like(before, dtype=torch.bool), mask], 1)
    with torch.inference_mode():
        hidden = encoder(
            torch.cat([before, words], 1), attention_mask=whole.long(), output_hidden_states=True
        ).hidden_states[-1]
    return hidden[:, before.shape[1] :], mask


# what works ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_server_draws_what_the_core_draws_from_transformers_features(comfy, models, side):
    """Prompt to picture: transformers' Qwen2, upstream's preparation and the headless core on one side, the nodes on
    the other."""
    folder = comfy.server.base / "models" / "var" / "tiny-hart"
    model, vae = sv.load_model(folder), sv.load_vae(folder)
    text, negative = (model.text_condition(*features(models, comfy, p, side)) for p in (PROMPT, "blurry"))
    pipe = pipeline(dtype="fp32", encoder=ENCODER if side == "left" else "tiny-qwen2-right/")
    saved, expected = [], []
    for against in (None, negative):
        expected.append(sv.sample(model, vae, text, schedule=model.schedule(), negative=against, seed=1, **GREEDY))
        given = {} if against is None else {"negative": pipe.prompt("blurry")}
        sample = pipe.sample(**GREEDY, **given)
        saved.append(
            (
                pipe.add("SaveLatent", samples=sample, filename_prefix="hart"),
                pipe.add("SaveImage", images=pipe.decode(sample), filename_prefix="hart"),
            )
        )
    run = comfy.run(pipe.nodes)
    for (latent, picture), result in zip(saved, expected):
        found = load_file(comfy.server.base / "output" / run.outputs[latent]["latents"][0]["filename"])["latent_tensor"]
        difference = (found - result.latent).abs()
        # the residual's first step multiplies rounding by 20291
        assert (difference < 1e-3).float().mean() > 0.99 and difference.max() < 0.2
        ours = pixels(comfy.images(run, picture))
        assert (
            ours.shape[-3:-1] == (256, 256)
            and np.abs(ours - (vae.decode(result.latent).numpy() * 255).astype(np.int64)).mean() < 0.5
        )
    assert (expected[0].latent - expected[1].latent).abs().mean() > 0.01, "a negative prompt changes the picture"


def test_wherever_the_user_points(comfy, models):
    """The whole folder, its llm, the averaged file; the tokenizer is found beside them or chosen by hand."""
    found = {}
    for model, vae in (
        (FOLDER, "auto"),
        ("tiny-hart/llm/ema_model.bin", "auto"),
        (FOLDER, "tiny-hart/tokenizer/model.safetensors"),
    ):
        assert model in comfy.choices("VARModelLoader", "model_name")
        pipe = pipeline(model, vae)
        found[model, vae] = pixels(comfy.images(comfy.run(pipe.save(pipe.decode(pipe.sample(**GREEDY))))))
    first, *others = found.values()
    assert all((picture == first).all() for picture in others)
    # the other file's weights are off by one, so that its numbers run away
    pipe = pipeline("tiny-hart/llm/pytorch_model.bin")
    run = comfy.attempt(pipe.save(pipe.decode(pipe.sample(**GREEDY))))
    assert run.status == "error" and "not made of finite numbers" in run.error.message


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_e4m3fn"])
def test_every_weight_dtype_draws(comfy, models, dtype):
    assert comfy.images(comfy.run(pipeline(dtype=dtype).picture()))[0].size == (256, 256)


def test_pruned_with_the_papers_preset(comfy, models):
    pipe = pipeline(batch=2)
    sample = pipe.sample(pipe.prune(preset="Paper \u00b7 HART"), seed=5, top_k=-1)
    run = comfy.run(pipe.picture(sample), preview_method="auto")
    steps = [s for s in run.named("stepvar.scale") if s["node"] == sample[0]]
    assert [s["tokens_run"] for s in steps] == [1, 4, 9, 16, 25, 49, 81, 72, 64]
    assert run.previews and len(comfy.images(run)) == 2


def test_the_equalizer_is_told_what_a_run_costs(comfy, models):
    plan = comfy.server.get(f"/stepvar/plan?model={FOLDER}")
    folder = comfy.server.base / "models" / "var" / "tiny-hart"
    assert (
        plan["family"] == "hart"
        and plan["default_cfg"] == 4.5
        and [s["tokens"] for s in plan["scales"]] == [p * p for p in stand_ins.HART_SMALL]
    )
    assert plan["cost"]["lead_tokens"] == 299 and {k: v for k, v in plan["cost"].items() if "bytes" not in k} == {
        k: v for k, v in vars(sv.load_model(folder).cost()).items() if "bytes" not in k
    }  # bytes follow the dtype the host chose


def test_a_picture_is_encoded_redrawn_and_continued(comfy, models):
    pipe = pipeline()
    first = pipe.sample(seed=3, top_k=-1)
    image = pipe.decode(first)
    encoded = [pipe.add("VAREncode", vae=pipe.vae, image=image, latent=pipe.latent, seed=0), 0]
    latents = [
        first,
        pipe.sample(latent=first, start_at_scale=9, seed=3, top_k=-1),
        pipe.sample(latent=first, start_at_scale=4, seed=3, top_k=-1),
        pipe.sample(latent=encoded, start_at_scale=7),
    ]
    saved = [pipe.add("SaveLatent", samples=x, filename_prefix="hart_again") for x in latents]
    run = comfy.run(pipe.nodes)
    whole, kept, continued, fresh = (
        load_file(comfy.server.base / "output" / run.outputs[n]["latents"][0]["filename"])["latent_tensor"]
        for n in saved
    )
    assert (
        (whole - kept).abs().max() < 1e-4
        and (whole - continued).abs().mean() < 1e-3
        and (whole - fresh).abs().mean() > 1e-2
    )


def test_what_codes_do_not_hold_survives_editing(comfy, models):
    """Smoothed features and residuals: of the other pictures when one of a batch is changed, of a saved latent, of an
    encoded picture."""
    pipe = pipeline(batch=2)
    first = pipe.sample(seed=3, top_k=-1)
    nothing = [pipe.add("SolidMask", value=0.0, width=256, height=256), 0]

    def redrawn(latent) -> list:
        return pipe.sample(latent=[pipe.add("SetLatentNoiseMask", samples=latent, mask=nothing), 0], seed=9, top_k=-1)

    rows = [[pipe.add("LatentFromBatch", samples=first, batch_index=i, length=1), 0] for i in range(2)]
    turned = [pipe.add("LatentFlip", samples=rows[1], flip_method="x-axis: vertically"), 0]
    mixed = [pipe.add("LatentComposite", samples_to=first, samples_from=turned, x=0, y=0, feather=0), 0]
    encoded = [pipe.add("VAREncode", vae=pipe.vae, image=pipe.decode(first), latent=pipe.latent, seed=0), 0]
    latents = [first, redrawn(first), mixed, redrawn(mixed), encoded, redrawn(encoded)]
    saved = [pipe.add("SaveLatent", samples=x, filename_prefix="hart_edited") for x in latents]
    run = comfy.run(pipe.nodes)
    files = [comfy.server.base / "output" / run.outputs[n]["latents"][0]["filename"] for n in saved]
    before, kept, edited, after, picture, still = (load_file(file)["latent_tensor"] for file in files)
    assert (
        (before - kept).abs().max() < 1e-4
        and (edited - after).abs().max() < 1e-4
        and (picture - still).abs().max() < 1e-4
    )
    assert (before - edited).abs().max() > 0.1
    (comfy.server.base / "input" / "again.latent").write_bytes(files[0].read_bytes())
    pipe = pipeline(batch=2)
    loaded = [pipe.add("LoadLatent", latent="again.latent"), 0]
    again = pipe.add(
        "SaveLatent",
        samples=pipe.sample(
            latent=[
                pipe.add(
                    "SetLatentNoiseMask",
                    samples=loaded,
                    mask=[pipe.add("SolidMask", value=0.0, width=256, height=256), 0],
                ),
                0,
            ],
            seed=9,
            top_k=-1,
        ),
        filename_prefix="hart_loaded",
    )
    found = load_file(comfy.server.base / "output" / comfy.run(pipe.nodes).outputs[again]["latents"][0]["filename"])[
        "latent_tensor"
    ]
    assert (found - before).abs().max() < 1e-4


@pytest.mark.parametrize("options", [(), ("--novram",)], ids=["all of it fits", "nothing fits"])
def test_on_a_device_beside_the_cpu(comfy, models, on_second_device, options):
    """Weights that stay on the host and are cast call by call give the picture; text, noise and codes cross where
    they must."""

    def drawn(client):
        pipe = pipeline(dtype="fp32")
        run = client.run(pipe.save(pipe.decode(pipe.sample(pipe.prune(preset="Paper \u00b7 HART"), **GREEDY))))
        return pixels(client.images(run))

    here = drawn(comfy)
    with on_second_device("--force-fp32", "--fp32-vae", *options) as client:
        folder = client.server.base / "models"
        for name in ("var", "text_encoders"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        stand_ins.write_hart(folder / "var" / "tiny-hart", stand_ins.HART_SMALL)
        stand_ins.write_qwen2(folder / "text_encoders" / "tiny-qwen2")
        assert client.server.get("/system_stats")["devices"][0]["type"] == "npu"
        client.object_info(refresh=True)
        assert np.abs(drawn(client) - here).mean() < 0.5


# what is refused ----------------------------------------------------------------------------------


def test_parts_that_do_not_belong(comfy, models):
    stand_ins.write_vae(comfy.model_folder("vae") / "vae_ch160v4096z32.pth")
    comfy.object_info(refresh=True)
    assert "this model predicts 64 codes of 32 channels with residuals" in error_of(
        comfy, pipeline(vae="vae_ch160v4096z32.pth").picture()
    )
    lonely = comfy.model_folder("var") / "lonely-hart"
    (lonely / "llm").mkdir(parents=True, exist_ok=True)
    for file in ("ema_model.bin", "config.json"):
        (lonely / "llm" / file).write_bytes((comfy.model_folder("var") / "tiny-hart" / "llm" / file).read_bytes())
    comfy.object_info(refresh=True)
    assert "Keep HART's folders llm and tokenizer side by side" in error_of(comfy, pipeline("lonely-hart/").picture())
    pipe = pipeline()
    pipe.latent = [
        pipe.add("EmptyVARLatent", model=pipe.model, aspect_ratio="16:9", size="auto", seconds=5.0, batch_size=1),
        0,
    ]
    assert "HART makes square pictures" in error_of(comfy, pipe.picture())


def test_wrong_text_encoders_are_named(comfy, models):
    folder = comfy.model_folder("text_encoders")
    whole = load_file(folder / "tiny-qwen2" / "model.safetensors")
    q = "layers.0.self_attn.q_proj"
    files = {
        "without_tokenizer/model.safetensors": (whole, "no readable tokenizer_config.json"),
        "qwen3.safetensors": (whole | {"layers.0.self_attn.q_norm.weight": torch.ones(8)}, "such as Qwen3 or Llama"),
        "llama.safetensors": (
            {k: v for k, v in whole.items() if not k.startswith(q + ".bias")},
            "such as Qwen3 or Llama",
        ),
        "qwen7b.safetensors": (whole | {"embed_tokens.weight": torch.zeros(4, 3584)}, "Qwen2 7B (3584 channels)"),
        "part.safetensors": ({k: v for k, v in whole.items() if "embed" not in k}, "no whole Qwen2"),
        "t5.safetensors": (
            {"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(4, 4)},
            "a T5 or CLIP text encoder",
        ),
        "holes/model.safetensors": ({k: v for k, v in whole.items() if "mlp.gate" not in k}, "missing"),
    }
    for name, (tensors, words) in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        save_file({k: v.clone() for k, v in tensors.items()}, folder / name)
        if "/" in name:
            (folder / name).with_name("config.json").write_text(json.dumps({"num_attention_heads": 4}))
        if name.startswith("holes"):
            (folder / "holes" / "tokenizer_config.json").write_text(json.dumps({"padding_side": "left"}))
        comfy.object_info(refresh=True)
        message = error_of(comfy, pipeline(encoder=name, kind="hart-qwen2").picture())
        assert words in message, f"{name}: {message}"
    assert "HART reads one encoder" in error_of(comfy, second_encoder().picture())


def second_encoder() -> TextPipeline:
    pipe = pipeline()
    pipe.nodes[pipe.encoder]["inputs"]["encoder_name_2"] = ENCODER
    return pipe


def test_other_conditionings_say_what_to_connect(comfy, models):
    pipe = pipeline()
    pipe.label = [pipe.add("ConditioningConcat", conditioning_to=pipe.label, conditioning_from=pipe.prompt("a dog")), 0]
    assert "reads (B, 300, 32), pads included" in error_of(comfy, pipe.picture())
    pipe = pipeline()
    pipe.label = [pipe.add("VARClassLabel", model=pipe.model, label="panda"), 0]
    assert "reads text, not class labels" in error_of(comfy, pipe.picture())
    pipe = pipeline()
    demo = pipe.add("VARModelLoader", model_name="demo (bundled)", vae_name="auto", weight_dtype="auto", variant="auto")
    pipe.label = [pipe.add("VARClassLabel", model=[demo, 0], label="0"), 0]
    assert "is class labels; this model reads text" in error_of(comfy, pipe.picture())


def test_an_empty_prompt_draws(comfy, models):
    assert comfy.run(pipeline(prompt="").picture()).status == "success"


@pytest.mark.parametrize(
    "config",
    [
        {"num_attention_heads": "many"},
        {"num_attention_heads": 1e999},
        {"rms_norm_eps": "tiny"},
        {"rope_theta": [1]},
        {"rope_parameters": [1]},
    ],
    ids=lambda config: next(iter(config)),
)
def test_an_encoders_odd_settings_are_refused_by_name(comfy, models, config):
    folder = comfy.model_folder("text_encoders")
    odd = folder / "odd-qwen2"
    shutil.copytree(folder / "tiny-qwen2", odd)
    try:
        (odd / "config.json").write_text(json.dumps(json.loads((odd / "config.json").read_text()) | config))
        comfy.object_info(refresh=True)
        message = error_of(comfy, pipeline(encoder="odd-qwen2/", kind="hart-qwen2").picture())
        assert "odd-qwen2" in message and "make no sense" in message, message
    finally:
        shutil.rmtree(odd)
