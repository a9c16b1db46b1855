"""Infinity among ComfyUI's own nodes, in a real server: text to image end to end, and what is refused with which
words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import stand_ins
import torch
from comfy_server import error_of, opens_nothing, pixels
from graphs import Pipeline, TextPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import launch
import stepvar_core as sv
from stepvar_core.families.infinity.schedules import published

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import synth_weights  # noqa: E402

pytestmark = pytest.mark.server

GOLDEN = Path(__file__).parent.parent / "golden" / "infinity"
SMALL = {"i2b": ("tiny/i2b.pth", "tiny_i2b_vae.pth"), "i8b": ("tiny/i8b.pth", "tiny_i8b_vae.pth")}
T5 = "tiny-t5/"
PROMPT = "a red fox in the snow, at dawn"
ASPECT_RATIOS = {
    "1:1": 1.0,
    "5:4": 1.25,
    "4:5": 0.8,
    "4:3": 4 / 3,
    "3:4": 0.75,
    "3:2": 1.5,
    "2:3": 2 / 3,
    "16:9": 1.75,
    "9:16": 4 / 7,
    "2:1": 2.0,
    "1:2": 0.5,
    "5:2": 2.5,
    "2:5": 0.4,
    "3:1": 3.0,
    "1:3": 1 / 3,
}
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


def features(encoder, comfy, *prompts: str) -> torch.Tensor:
    """What transformers makes of prompts of one length, (B, T, C)."""
    from transformers import T5TokenizerFast

    tokenizer = T5TokenizerFast.from_pretrained(comfy.server.comfyui / "comfy" / "text_encoders" / "t5_tokenizer")
    with torch.inference_mode():
        return encoder(torch.tensor(tokenizer(list(prompts))["input_ids"])).last_hidden_state


def trace_of(run, sample) -> dict:
    return run.outputs[sample[0]]["stepvar"][0]


def saved_latents(comfy, run, nodes) -> list[torch.Tensor]:
    return [
        load_file(comfy.server.base / "output" / run.outputs[n]["latents"][0]["filename"])["latent_tensor"]
        for n in nodes
    ]


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
        saved.append(
            pipe.add("SaveImage", images=pipe.decode(pipe.sample(**GREEDY, **given)), filename_prefix="infinity")
        )
    run = comfy.run(pipe.nodes)
    for node, picture in zip(saved, expected):
        assert np.abs(pixels(comfy.images(run, node)) - (picture.numpy() * 255).astype(np.int64)).max() <= 1
    assert (expected[0] - expected[1]).abs().mean() > 0.01, "a negative prompt changes the picture"


# as typed, and what T5 reads
WEIGHTED = {
    "a (red:1.3) fox ((in the snow:0.8), at dawn :1.2)": "a red fox in the snow, at dawn ",
    "a (red) fox (at 12:30)": "a (red) fox (at 12:30)",
    "a \\(red\\) fox": "a (red) fox",
    "(a:.5) (b:-1)(c: 2.)": "a bc",
    "((((:1": "((((:1",
}
PROMPTS = ["", PROMPT, "Ein Fuchs \u2013 na\u00efve caf\u00e9, 12:30 (at noon); <b>\n\n two  spaces", "word " * 700]


@pytest.fixture(scope="module")
def encoded(comfy_server, models, tmp_path_factory):
    """encoded(names): features our CLIP objects give, and what they say of themselves, from a process of its own."""

    def run(*names: str) -> tuple[dict, dict]:
        out = tmp_path_factory.mktemp("t5") / "found.safetensors"
        task = {"encoders": names, "prompts": PROMPTS, "tokenize": list(WEIGHTED)}
        done = subprocess.run(
            [
                sys.executable,
                str(Path(__file__).with_name("compare_t5.py")),
                str(launch.ROOT),
                str(comfy_server.comfyui),
                str(comfy_server.base / "models" / "text_encoders"),
                str(out),
            ],
            input=json.dumps(task),
            text=True,
            capture_output=True,
            timeout=300,
            cwd=tmp_path_factory.mktemp("cwd"),
        )
        assert done.returncode == 0, done.stderr[-3000:]
        with safe_open(out, framework="pt") as file:
            return load_file(out), json.loads(file.metadata()["about"])

    return run


def encoder_files(folder: Path) -> dict[str, str]:
    """The small T5 in the forms people have it in, by form."""
    tensors = {}
    for shard in sorted((folder / "tiny-t5").glob("*.safetensors")):
        tensors |= load_file(shard)
    encoder = {k: v for k, v in tensors.items() if not k.startswith(("decoder.", "lm_head."))}
    renamed = {("encoder.embed_tokens.weight" if k == "shared.weight" else k): v for k, v in encoder.items()}
    matrices = {
        k: v.to(torch.float8_e4m3fn) if v.ndim == 2 and "relative" not in k and "shared" not in k else v.half()
        for k, v in encoder.items()
    }
    save_file(encoder, folder / "t5_fp32.safetensors")
    save_file({k: v.half() for k, v in renamed.items()}, folder / "t5_fp16.safetensors")
    save_file(matrices, folder / "t5_fp8.safetensors")
    torch.save(tensors, folder / "t5_whole.pth")
    bins = folder / "tiny-t5-bin"
    bins.mkdir(exist_ok=True)
    keys = list(tensors)
    for i in (0, 1):
        torch.save({k: tensors[k] for k in keys[i::2]}, bins / f"pytorch_model-0000{i + 1}-of-00002.bin")
    (bins / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {k: f"pytorch_model-0000{n % 2 + 1}-of-00002.bin" for n, k in enumerate(keys)}})
    )
    return {
        "folder": T5,
        "fp32": "t5_fp32.safetensors",
        "fp16": "t5_fp16.safetensors",
        "whole": "t5_whole.pth",
        "bin": "tiny-t5-bin/",
        "fp8": "t5_fp8.safetensors",
    }


def test_our_clip_agrees_with_transformers(comfy_server, models, encoded):
    """Ids and hidden states of every form of the file; eight-bit matrices stay eight bits and are read as rounded,
    not more."""
    from transformers import T5TokenizerFast

    files = encoder_files(comfy_server.base / "models" / "text_encoders")
    found, about = encoded(*files.values())
    assert set(files.values()) <= set(about["listed"])
    tokenizer = T5TokenizerFast.from_pretrained(comfy_server.comfyui / "comfy" / "text_encoders" / "t5_tokenizer")
    rounded = stand_ins.write_t5(comfy_server.base / "rounded-t5", width=256)
    for name, parameter in rounded.named_parameters():
        if parameter.ndim == 2 and "relative" not in name and "embed" not in name:
            parameter.copy_(parameter.to(torch.float8_e4m3fn).float())
    for i, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, truncation=True, max_length=512)["input_ids"]
        assert about["ids"][str(i)] == ids and len(ids) == (1, len(ids), len(ids), 512)[i] and ids[-1] == 1
        with torch.inference_mode():
            expected = {
                form: (rounded if form == "fp8" else models)(torch.tensor([ids])).last_hidden_state for form in files
            }
        for form, name in files.items():
            assert found[f"{name}|{i}"].shape == (1, len(ids), 256)
            assert (found[f"{name}|{i}"] - expected[form]).abs().max() < 1e-5 * expected[form].abs().max(), (
                form,
                prompt[:20],
            )
    assert about["tokenized"] == [tokenizer(text)["input_ids"] for text in WEIGHTED.values()]
    refusal = about["read"].pop("two for three")
    assert (
        about["read"] == {"one for three": [5, 5, 5], "two, masked": [2, 5]}
        and "holds 2 prompts; the batch has 3 pictures" in refusal
    )
    assert about["stored"][files["fp8"]] == ["torch.float16", "torch.float8_e4m3fn"]
    assert about["stored"][files["fp32"]] == about["stored"][files["fp16"]] == ["torch.float16"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp8_e4m3fn"])
def test_every_weight_dtype_draws(comfy, models, dtype):
    pipe = TextPipeline(*SMALL["i2b"], T5, PROMPT, dtype=dtype)
    assert comfy.images(comfy.run(pipe.picture()))[0].size == (256, 256)


def test_progress_and_previews_of_every_scale(comfy, pipe):
    sample = pipe.sample(pipe.prune(ratio_1=0.5), seed=5)
    run = comfy.run(pipe.picture(sample), preview_method="auto")
    steps = [s for s in run.named("stepvar.scale") if s["node"] == sample[0]]
    assert [s["size"][1] for s in steps] == [1, 2, 4, 6, 8, 12, 16]
    assert [s["tokens_run"] for s in steps] == [1, 4, 16, 36, 64, 144, 128]
    assert run.previews and all(p.node_id == sample[0] for p in run.previews)


def test_a_large_preview_is_small_and_a_wide_one_is_wide(comfy, models):
    """The decoder sees at most 512 pixels; the picture itself is whole."""
    pipe = TextPipeline("small_2b.pth", "small_vae_2b.pth", "small-t5/", size="1M", ratio="16:9")
    stand_ins.write_infinity_2b(comfy.model_folder("var") / "small_2b.pth")
    stand_ins.write_vae_2b(comfy.model_folder("vae") / "small_vae_2b.pth")
    stand_ins.write_t5(comfy.model_folder("text_encoders") / "small-t5")
    comfy.object_info(refresh=True)
    run = comfy.run(pipe.picture(pipe.sample(pipe.prune(preset="Fastest"))), preview_method="auto")
    width, height = run.previews[-1].image().size
    assert max(width, height) <= 512 and width / height == pytest.approx(
        1344 / 768, abs=0.05
    )  # whole cells of 16 pixels
    assert comfy.images(run)[0].size == (1344, 768)


PRESETS_AT_1M = {"Fastest": (200, 173, 205, 160, 0, 0), "Paper \u00b7 Infinity": (400, 576, 615, 800, 0, 0)}


def test_presets_skip_the_last_scales_at_full_size_only(comfy, models):
    """Tokens of the last scales at 1M, and at 0.25M, where nothing may be skipped."""
    stand_ins.write_infinity_2b(comfy.model_folder("var") / "small_2b.pth")
    stand_ins.write_t5(comfy.model_folder("text_encoders") / "small-t5")
    comfy.object_info(refresh=True)
    for size in ("1M", "0.25M"):
        pipe = TextPipeline("small_2b.pth", SMALL["i2b"][1], "small-t5/", size=size)
        pipe.nodes[pipe.loader]["inputs"]["vae_name"] = "auto"
        stand_ins.write_vae_2b(comfy.model_folder("vae") / "infinity_vae_d32_reg.pth")
        samples = {name: pipe.sample(pipe.prune(preset=name)) for name in PRESETS_AT_1M}
        for sample in samples.values():
            pipe.add("SaveLatent", samples=sample, filename_prefix="preset")
        run = comfy.run(pipe.nodes, timeout=300)
        for name, sample in samples.items():
            run_tokens = [s["tokens_run"] for s in trace_of(run, sample)["scales"]]
            if size == "1M":
                assert tuple(run_tokens[-6:]) == PRESETS_AT_1M[name], name
            else:
                assert min(run_tokens) > 0 and run_tokens[-1] < 1024, name


def test_late_guidance_composes_with_a_preset(comfy, pipe):
    """One half in the last two scales: another picture of the same tokens, and still the same one twice."""
    latents = [
        pipe.sample(pipe.prune(preset="Faithful", guidance_late=half, guidance_late_scales=n), **GREEDY)
        for half, n in (("both", 0), ("conditional", 2), ("conditional", 2))
    ]
    saved = [pipe.add("SaveLatent", samples=latent, filename_prefix="late") for latent in latents]
    run = comfy.run(pipe.nodes)
    both, late, again = saved_latents(comfy, run, saved)
    assert (
        trace_of(run, latents[0])["scales"][-1]["tokens_run"]
        == trace_of(run, latents[1])["scales"][-1]["tokens_run"]
        == 26
    )
    assert not torch.equal(both, late) and torch.equal(late, again)


def test_one_prompt_serves_a_batch_and_each_row_is_its_own_picture(comfy, pipe):
    """Row 1 of two equals the row alone; the rows differ."""
    alone = pipe.sample(seed=11, top_k=-1)
    pipe.nodes[pipe.latent[0]]["inputs"]["batch_size"] = 2
    run = comfy.run(pipe.save(pipe.decode(alone)))
    pictures = pixels(comfy.images(run))
    assert len(pictures) == 2 and np.abs(pictures[0] - pictures[1]).mean() > 1
    second = [pipe.add("LatentFromBatch", samples=alone, batch_index=1, length=1), 0]
    again = pipe.add(
        "SaveImage",
        images=pipe.decode(pipe.sample(latent=second, seed=11, top_k=-1, start_at_scale=3)),
        filename_prefix="row",
    )
    assert np.abs(pixels(comfy.images(comfy.run(pipe.nodes), again))[0] - pictures[1]).max() <= 1


def test_joined_averaged_and_emptied_prompts(comfy, pipe):
    """Concat reads both, Average blends, a zeroed negative is none at all; all of them draw."""
    fox, dog = pipe.prompt("a red fox"), pipe.prompt("dogs at noon")
    positives = {
        "fox": fox,
        "dog": dog,
        "both": [pipe.add("ConditioningConcat", conditioning_to=fox, conditioning_from=dog), 0],
        "blend": [
            pipe.add("ConditioningAverage", conditioning_to=fox, conditioning_from=dog, conditioning_to_strength=0.5),
            0,
        ],
        "all fox": [
            pipe.add("ConditioningAverage", conditioning_to=fox, conditioning_from=dog, conditioning_to_strength=1.0),
            0,
        ],
    }
    nodes = {
        name: pipe.add("SaveLatent", samples=pipe.sample(positive=positive, **GREEDY), filename_prefix="joined")
        for name, positive in positives.items()
    }
    zero = [pipe.add("ConditioningZeroOut", conditioning=dog), 0]
    nodes["zero negative"] = pipe.add(
        "SaveLatent", samples=pipe.sample(positive=fox, negative=zero, **GREEDY), filename_prefix="joined"
    )
    found = dict(zip(nodes, saved_latents(comfy, comfy.run(pipe.nodes), nodes.values())))
    assert torch.equal(found["fox"], found["all fox"]) and torch.equal(found["fox"], found["zero negative"])
    distinct = [found[name] for name in ("fox", "dog", "both", "blend")]
    assert not any(torch.equal(a, b) for i, a in enumerate(distinct) for b in distinct[:i])


@pytest.mark.parametrize("name", SMALL)
def test_image_to_image_keeps_the_first_scales(comfy, models, name):
    pipe = TextPipeline(*SMALL[name], T5, PROMPT)
    image = [pipe.add("LoadImage", image=ramp(comfy)), 0]
    encoded = [pipe.add("VAREncode", vae=pipe.vae, image=image, latent=pipe.latent, seed=0), 0]
    saved = [
        pipe.add("SaveImage", images=pipe.decode(x), filename_prefix="i")
        for x in (
            encoded,
            pipe.sample(latent=encoded, start_at_scale=7),
            pipe.sample(latent=encoded, start_at_scale=4),
            pipe.sample(),
        )
    ]
    run = comfy.run(pipe.nodes)
    whole, kept, part, fresh = (pixels(comfy.images(run, node)) for node in saved)
    assert np.abs(whole - kept).max() <= 1
    assert 0 < np.abs(whole - part).mean() < np.abs(whole - fresh).mean()


@pytest.mark.parametrize("name", SMALL)
def test_masked_redraw_leaves_the_rest_alone(comfy, models, name):
    pipe = TextPipeline(*SMALL[name], T5, PROMPT)
    image = [pipe.add("LoadImage", image=ramp(comfy)), 0]
    encoded = [pipe.add("VAREncode", vae=pipe.vae, image=image, latent=pipe.latent, seed=0), 0]
    half = [pipe.add("SolidMask", value=1.0, width=128, height=256), 0]
    empty = [pipe.add("SolidMask", value=0.0, width=256, height=256), 0]
    left = [pipe.add("MaskComposite", destination=empty, source=half, x=0, y=0, operation="add"), 0]
    latents = [
        encoded,
        *(pipe.sample(latent=[pipe.add("SetLatentNoiseMask", samples=encoded, mask=m), 0]) for m in (empty, left)),
    ]
    saved = [pipe.add("SaveLatent", samples=x, filename_prefix="masked") for x in latents]
    given, nothing, redrawn = saved_latents(comfy, comfy.run(pipe.nodes), saved)
    assert (nothing - given).abs().max() < 1e-5
    changed = (redrawn - given).abs().mean((0, 1, 2)).unflatten(0, (4, -1)).mean(1)  # quarters from left to right
    assert changed[0] > 3 * changed[3]


def ramp(comfy) -> str:
    edge = np.linspace(0, 255, 256, dtype=np.uint8)
    grid = np.stack([np.tile(edge, (256, 1)), np.tile(edge[:, None], (1, 256)), np.full((256, 256), 90, np.uint8)], -1)
    return comfy.add_input("ramp.png", Image.fromarray(grid))


def test_empty_latents_of_every_ratio_and_size(comfy, pipe):
    """15 ratios and four sizes, as the published table has them; an edge in pixels names a size too."""
    wanted, nodes = [], []
    for ratio, value in ASPECT_RATIOS.items():
        for size in ("0.06M", "0.25M", "0.60M", "1M"):
            final = published(value, size).final
            wanted.append((16, final.h, final.w))
            latent = [
                pipe.add("EmptyVARLatent", model=pipe.model, aspect_ratio=ratio, size=size, seconds=0.0, batch_size=1),
                0,
            ]
            nodes.append(pipe.add("SaveLatent", samples=latent, filename_prefix="empty"))
    for size, edge in (("auto", 64), ("256", 16), ("512", 32)):
        wanted.append((16, edge, edge))
        latent = [
            pipe.add("EmptyVARLatent", model=pipe.model, aspect_ratio="1:1", size=size, seconds=0.0, batch_size=1),
            0,
        ]
        nodes.append(pipe.add("SaveLatent", samples=latent, filename_prefix="empty"))
    assert [tuple(x.shape[1:]) for x in saved_latents(comfy, comfy.run(pipe.nodes), nodes)] == wanted
    assert len({(h, w) for _, h, w in wanted}) == 60


def test_shard_folders_fine_tunes_and_vaes_are_found(comfy, models):
    """Shards in .bin and safetensors, a fine-tune nested as upstream's trainer saves it, and the VAE by the model's
    channels."""
    stand_ins.write_t5(comfy.model_folder("text_encoders") / "small-t5")
    stand_ins.write_vae_2b(comfy.model_folder("vae") / "infinity_vae_d32_reg.pth")
    stand_ins.write_vae_8b(comfy.model_folder("vae") / "infinity_vae_d56_f8_14_patchify.pth")
    var = comfy.model_folder("var")
    stand_ins.write_infinity_8b(var / "eight_bin", "bin")
    stand_ins.write_infinity_8b(var / "eight_safe", "safetensors")
    stand_ins.write_infinity_2b(var / "small_2b.pth")
    torch.save(
        {"epoch": 1, "trainer": {"gpt_fsdp": torch.load(var / "small_2b.pth", weights_only=True)}}, var / "tuned.pth"
    )
    comfy.object_info(refresh=True)
    found = {}
    for name in ("eight_bin/", "eight_safe/", "small_2b.pth", "tuned.pth"):
        pipe = TextPipeline(name, "auto", "small-t5/")
        run = comfy.run(pipe.save(pipe.decode(pipe.sample(**GREEDY))))
        found[name] = pixels(comfy.images(run))
    assert (found["eight_bin/"] == found["eight_safe/"]).all() and (found["small_2b.pth"] == found["tuned.pth"]).all()


# what is refused ----------------------------------------------------------------------------------


def test_a_missing_vae_is_named(comfy, models):
    """The 16-channel model wants infinity_vae_d16, which is not there."""
    message = error_of(comfy, TextPipeline(SMALL["i2b"][0], "auto", T5).picture())
    assert (
        "No VAE file of the infinity family, 16 channels" in message
        and "Download infinity_vae_d16 into models/vae" in message
    )


def test_another_familys_vae(comfy, models):
    message = error_of(comfy, TextPipeline(SMALL["i2b"][0], SMALL["i8b"][1], T5).picture())
    assert "The VAE has 56 bits a token; this model predicts 16 bits a token" in message


@pytest.mark.parametrize(
    "change, words",
    [
        ("ConditioningCombine", "remove Conditioning Combine, or write one prompt"),
        ("ConditioningZeroOut", "holds nothing (Conditioning Zero Out)"),
        ("ConditioningSetArea", "is limited to an area"),
        ("ConditioningSetMask", "is limited to a mask"),
        ("ConditioningSetTimestepRange", "is limited to a part of the run"),
    ],
)
def test_conditionings_it_cannot_honour_are_named(comfy, pipe, change, words):
    more = {
        "ConditioningCombine": {"conditioning_1": pipe.label, "conditioning_2": pipe.label},
        "ConditioningSetArea": {"width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0},
        "ConditioningSetTimestepRange": {"start": 0.0, "end": 0.5},
    }.get(change, {})
    if change == "ConditioningSetMask":
        more = {
            "mask": [pipe.add("SolidMask", value=1.0, width=64, height=64), 0],
            "strength": 1.0,
            "set_cond_area": "default",
        }
    if change != "ConditioningCombine":
        more["conditioning"] = pipe.label
    pipe.label = [pipe.add(change, **more), 0]
    assert words in error_of(comfy, pipe.picture())


def test_labels_text_and_other_encoders_on_the_wrong_model(comfy, pipe):
    """A label on Infinity, text on VAR, a label node on Infinity, features of another width: each says what to
    connect."""
    demo = [
        pipe.add("VARModelLoader", model_name="demo (bundled)", vae_name="auto", weight_dtype="auto", variant="auto"),
        0,
    ]
    text, label = pipe.label, [pipe.add("VARClassLabel", model=demo, label="0"), 0]
    pipe.label = label
    assert "is class labels; this model reads text" in error_of(comfy, pipe.picture())

    classes = Pipeline("demo (bundled)", "auto", label="0", batch=1)
    encoder = classes.add("VARTextEncoderLoader", encoder_name=T5, type="auto", encoder_name_2="none")
    classes.label = [classes.add("CLIPTextEncode", clip=[encoder, 0], text="a fox"), 0]
    assert "is text; this model takes class labels" in error_of(comfy, classes.picture())

    pipe = TextPipeline(*SMALL["i2b"], T5)
    pipe.label = [pipe.add("VARClassLabel", model=pipe.model, label="panda"), 0]
    assert "reads text, not class labels" in error_of(comfy, pipe.picture())

    stand_ins.write_t5(comfy.model_folder("text_encoders") / "small-t5")
    comfy.object_info(refresh=True)
    for where in ("positive", "negative"):
        pipe = TextPipeline(*SMALL["i2b"], T5)
        narrow = pipe.add("VARTextEncoderLoader", encoder_name="small-t5/", type="flan-t5-xl", encoder_name_2="none")
        foreign = [pipe.add("CLIPTextEncode", clip=[narrow, 0], text="a fox"), 0]
        message = error_of(comfy, pipe.picture(pipe.sample(**{where: foreign})))
        assert (
            f"The {where} conditioning has 32 channels; this model reads 256" in message
            and "Load VAR Text Encoder" in message
        )
    assert comfy.run(TextPipeline(*SMALL["i2b"], T5).picture()).status == "success"
    assert text != label


def test_a_prompt_longer_than_the_models_text(comfy, models):
    """The tiny reference models read 24 tokens; the official ones 512, where the tokenizer cuts."""
    pipe = TextPipeline(*SMALL["i2b"], T5, prompt="word " * 100)
    assert "The prompts have 101 tokens; the model reads 1 to 24" in error_of(comfy, pipe.picture())


def wrong_encoders(folder: Path) -> dict[str, tuple[str, ...]]:
    """Files a user might take for FLAN-T5 XL, and the words of the refusal."""
    encoder_files(folder)
    whole = load_file(folder / "t5_fp32.safetensors")
    bias = "layer.0.SelfAttention.relative_attention_bias.weight"

    class Code:
        def __reduce__(self):
            return (open, (str(folder / "was_run"), "w"))

    files = {
        "umt5.safetensors": whole
        | {f"encoder.block.{i}.{bias}": whole[f"encoder.block.0.{bias}"].clone() for i in (1, 2)},
        "xxl.safetensors": {k: v for k, v in whole.items() if k != "shared.weight"}
        | {"shared.weight": torch.zeros(4, 4096)},
        "old.safetensors": whole | {"encoder.block.0.layer.1.DenseReluDense.wi.weight": torch.zeros(2, 2)},
        "clip_l.safetensors": {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(4, 4)},
        "qwen.safetensors": {"model.layers.0.self_attn.q_proj.weight": torch.zeros(4, 4)},
        "foreign.safetensors": {"conv.weight": torch.zeros(3, 3)},
        "holes.safetensors": {k: v for k, v in whole.items() if "block.1.layer.1" not in k},
        "scaled.safetensors": whole | {"scaled_fp8": torch.zeros(1)},
    }
    for name, tensors in files.items():
        save_file({k: v.clone() for k, v in tensors.items()}, folder / name)
    torch.save({"model": Code()}, folder / "code.pt")
    (folder / "cut.safetensors").write_bytes((folder / "t5_fp32.safetensors").read_bytes()[:2000])
    half = folder / "half"
    half.mkdir(exist_ok=True)
    (half / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {key: f"model-0000{i}-of-00002.safetensors" for key, i in (("a", 1), ("b", 2))}})
    )
    save_file({"a": torch.zeros(1)}, half / "model-00001-of-00002.safetensors")
    return {
        "umt5.safetensors": ("UMT5 or Pile-T5",),
        "xxl.safetensors": ("T5 XXL (4096 channels)", "2048 channels"),
        "old.safetensors": ("first generation",),
        "clip_l.safetensors": ("a CLIP text encoder",),
        "qwen.safetensors": ("a language model",),
        "foreign.safetensors": ("no whole T5", "conv.weight"),
        "holes.safetensors": ("missing",),
        "scaled.safetensors": ("unexpected (scaled_fp8)",),
        "code.pt": ("refused on purpose",),
        "cut.safetensors": ("damaged or incomplete",),
        "half/": ("lacks model-00002-of-00002.safetensors",),
        "half/model-00001-of-00002.safetensors": ("choose the folder",),
    }


def test_wrong_text_encoders_are_named_and_never_run(comfy, models):
    folder = comfy.model_folder("text_encoders")
    for name, words in wrong_encoders(folder).items():
        assert name in comfy.choices("VARTextEncoderLoader", "encoder_name")
        message = error_of(comfy, TextPipeline(*SMALL["i2b"], name).picture())
        for word in words:
            assert word in message, f"{name}: {message}"
    assert not (folder / "was_run").exists(), "code in a checkpoint was run"


def test_a_type_of_a_later_family_says_so(comfy, pipe):
    pipe.nodes[pipe.encoder]["inputs"]["type"] = "infinitystar"
    message = error_of(comfy, pipe.picture())
    assert "InfinityStar" in message and "have no nodes yet" in message


def test_a_second_encoder_is_refused(comfy, pipe):
    pipe.nodes[pipe.encoder]["inputs"]["encoder_name_2"] = T5
    assert "FLAN-T5 XL is one encoder" in error_of(comfy, pipe.picture())


def test_a_path_in_a_workflow_opens_nothing(comfy, pipe):
    opens_nothing(comfy, pipe.picture(), pipe.encoder, "encoder_name")
