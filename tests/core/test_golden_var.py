"""VAR against the reference implementation: files, every sampled token, every feature map
(tests/golden/var/README.md)."""

import json
import re

import golden_runs
import pytest
import torch
from golden_runs import CONFIGS, RUNS, VAR_GOLDEN, Replay

import stepvar_core as sv
from stepvar_core.checkpoints import Checkpoint
from stepvar_core.door import prepare
from stepvar_core.families.registry import CODECS, MODELS, build, detect

# the README's tolerances: float32 on CPUs that sum in another order
FEATURES, LOGITS, F_HAT, IMAGE, SMOOTHED, ENCODED = 5e-4, 2e-3, 1e-3, 1e-4, 1e-3, 1e-4
DROPPED = r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias|quantize\.ema_vocab_hit_SV"


def close(ours, reference, tolerance: float) -> None:
    torch.testing.assert_close(ours.float(), reference.float(), rtol=0, atol=tolerance)


def per_scale(reference: dict, name: str) -> dict[int, torch.Tensor]:
    return {int(key.split(".")[1]): value for key, value in reference.items() if re.fullmatch(rf"{name}\.\d+", key)}


# files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_loads_tensor_for_tensor(golden, name, suffix):
    reference = golden(name)
    for module, weights in (
        (sv.load_model(reference.stem / f"var{suffix}"), reference.weights),
        (sv.load_vae(reference.stem / f"vae{suffix}"), reference.vae_weights),
    ):
        loaded = module.state_dict()
        assert [key for key in weights if key not in loaded and not re.fullmatch(DROPPED, key)] == []
        assert [key for key in loaded if not torch.equal(loaded[key], weights[key])] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_come_from_the_file(golden, name):
    config, model = CONFIGS[name], sv.load_model(golden(name).stem / "var.safetensors")
    found = model.config
    assert (found.patch_nums, found.depth, found.heads, found.width) == (
        tuple(config["patch_nums"]),
        config["depth"],
        config["heads"],
        config["width"],
    )
    assert (
        found.vocab_size,
        found.code_dim,
        found.num_classes,
        found.shared_aln,
        found.mlp_ratio,
        found.attn_l2_norm,
    ) == (
        config["V"],
        config["Cvae"],
        config["num_classes"],
        config["shared_aln"],
        config["mlp_ratio"],
        config["attn_l2_norm"],
    )
    assert model.schedule() == sv.ScaleSchedule.square(config["patch_nums"])


def official(name: str) -> tuple[Checkpoint, dict]:
    """An official checkpoint as keys and shapes; of the values only the level buffer's matter, and they are derived."""
    layout = json.loads((VAR_GOLDEN / "layouts" / f"{name}.json").read_text())
    tensors = {
        key: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
        for key, entry in layout["tensors"].items()
    }
    if "lvl_1L" in tensors:
        edges = layout["patch_nums"]
        tensors["lvl_1L"] = torch.repeat_interleave(torch.arange(len(edges)), torch.tensor([p * p for p in edges]))[
            None
        ]
    return Checkpoint(layout["file"], tensors), layout


@pytest.mark.parametrize("keeps_buffers", [True, False])
@pytest.mark.parametrize("depth", [16, 20, 24, 30, 36])
def test_official_transformers_fit(depth, keeps_buffers):
    checkpoint, layout = official(f"var_d{depth}")
    if not keeps_buffers:
        checkpoint.tensors = {key: value for key, value in checkpoint.tensors.items() if not re.fullmatch(DROPPED, key)}
    model = build(detect(checkpoint, MODELS, "a transformer"), checkpoint, device="meta")
    assert model.config.patch_nums == tuple(layout["patch_nums"])
    assert (model.config.depth, model.config.heads, model.config.width) == (
        layout["depth"],
        layout["heads"],
        layout["embed_dim"],
    )
    assert model.config.shared_aln is layout["shared_aln"]
    assert sum(p.numel() for p in model.parameters()) == layout["parameters"]
    assert {key for key in checkpoint.tensors if not re.fullmatch(DROPPED, key)} == set(model.state_dict())


def test_the_official_vae_fits():
    checkpoint, layout = official("vae_ch160v4096z32")
    vae = build(detect(checkpoint, CODECS, "a VAE"), checkpoint, device="meta")
    assert sum(p.numel() for p in vae.parameters()) == layout["parameters"]
    assert (vae.config.ch, vae.config.ch_mult, vae.config.vocab_size, vae.config.z_channels) == (
        160,
        (1, 1, 2, 2, 4),
        4096,
        32,
    )
    assert vae.config.stride == 16


# sampling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_every_run_matches(golden, name, run):
    reference = golden(name)
    settings, expected = CONFIGS[name]["runs"][run], reference.tensors(f"run_{run}")
    model, vae = reference.model(), reference.vae()
    schedule, replay = model.schedule(), Replay(settings.get("g_seed", 0))
    label = settings["label"]
    if label is None:
        label = replay.labels(model.config.num_classes, settings["B"])
    labels = label if isinstance(label, list) else [label] * settings.get("B", 1)
    editing = {}
    if "edit" in settings:
        editing = {
            "mask": 1 - expected["edit_mask"][None].float(),
            "codes": list(expected["gt_idx"].long().split([s.tokens for s in schedule], 1)),
        }
    steps = []
    result = sv.sample(
        model,
        vae,
        model.class_condition(labels),
        schedule=schedule,
        cfg=settings["cfg"],
        top_k=settings.get("top_k", 0),
        top_p=settings.get("top_p", 0.0),
        options={"smooth": settings.get("more_smooth", False)},
        draw=replay.draw,
        noise=replay.noise,
        on_scale=lambda step: steps.append((step.logits, step.f_hat)),
        **editing,
    )

    codes = torch.cat(result.codes, 1)
    if editing:
        # what the picture keeps and what is drawn: kept cells are the given picture's, all others the reference's draw
        job = prepare(model, vae, model.class_condition(labels), schedule=schedule, **editing)
        is_given = torch.cat([~redraw for redraw in job.given.redraw], 1)
        assert torch.equal(codes, torch.where(is_given, expected["gt_idx"], expected["idx"]).long())
        assert is_given.any() and not is_given.all()
    else:
        assert torch.equal(codes, expected["idx"].long())

    batch = len(labels)
    for part, tolerance in (("x_in", FEATURES), ("x_out", FEATURES), ("logits_raw", LOGITS)):
        for s, tensor in per_scale(expected, part).items():
            ours = model.passes[s][part]
            if len(tensor) == batch and len(ours) == 2 * batch:
                assert torch.equal(ours[:batch], ours[batch:])  # the reference stores one of two equal halves
            close(ours[: len(tensor)], tensor, tolerance)
    for s, tensor in per_scale(expected, "logits_cfg").items():
        close(steps[s][0], tensor, LOGITS)
    if "logits_cfg.last" in expected:
        close(steps[-1][0], expected["logits_cfg.last"], LOGITS)
    f_hat_tolerance, image_tolerance = (SMOOTHED, SMOOTHED) if settings.get("more_smooth") else (F_HAT, IMAGE)
    for s, tensor in per_scale(expected, "f_hat").items():
        close(steps[s][1], tensor, f_hat_tolerance)
    close(result.latent, expected["f_hat_last"], f_hat_tolerance)
    image_B3HW = vae.decode(result.latent).permute(0, 3, 1, 2)
    if "image" in expected:
        close(image_B3HW, expected["image"], image_tolerance)
    else:
        close(image_B3HW[:, :, ::4, ::4], expected["image_sub4"], image_tolerance)


def test_the_runs_cover_what_they_should():
    """A fixture dropped by mistake must not pass silently."""
    parts = {
        part
        for name, run in RUNS
        for part in (k.split(".")[0] for k in golden_runs.load_file(VAR_GOLDEN / name / f"run_{run}.safetensors"))
    }
    assert {
        "idx",
        "x_in",
        "x_out",
        "logits_raw",
        "logits_cfg",
        "f_hat",
        "f_hat_last",
        "image",
        "image_sub4",
        "edit_mask",
        "gt_idx",
    } <= parts
    assert len(RUNS) == 14
    settings = [CONFIGS[name]["runs"][run] for name, run in RUNS]
    assert any(s["label"] is None for s in settings) and any(s.get("more_smooth") for s in settings)
    assert any(s.get("top_k") not in (0, 1) for s in settings) and sum("edit" in s for s in settings) == 2


# the codec ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_encoding_matches(golden, name):
    reference = golden(name)
    vae, expected = reference.vae(), reference.tensors("vae_codec")
    schedule = sv.ScaleSchedule.square(CONFIGS[name]["patch_nums"])
    image_1HW3 = expected["image_u8"][None].float() / 255
    with torch.inference_mode():
        close(vae.features(image_1HW3.permute(0, 3, 1, 2) * 2 - 1), expected["f"], ENCODED)
    codes = vae.encode(image_1HW3, schedule)
    assert torch.equal(torch.cat(codes, 1), expected["idx"].long())
    f_hats = [vae.quantize.decode_codes(codes[: n + 1], schedule) for n in range(len(schedule))]
    for s, tensor in per_scale(expected, "f_hat").items():
        close(f_hats[s], tensor, F_HAT)
    close(f_hats[-1], expected["f_hat_last"], F_HAT)
    inputs = [
        vae.quantize.next_input(f_hat, step, schedule).flatten(2).transpose(1, 2)
        for f_hat, step in zip(f_hats, schedule.passes[1:])
    ]
    close(torch.cat(inputs, 1), expected["teacher_input"], ENCODED)
    recon_B3HW = vae.decode(f_hats[-1]).permute(0, 3, 1, 2) * 2 - 1
    close(
        recon_B3HW if "recon" in expected else recon_B3HW[:, :, ::4, ::4],
        expected.get("recon", expected.get("recon_sub4")),
        2 * IMAGE,
    )


@pytest.mark.parametrize("name", ["tiny4", "saln6"])
def test_teacher_forcing_matches(golden, name):
    reference = golden(name)
    model, expected = sv.load_model(reference.stem / "var.pth"), reference.tensors("vae_codec")
    inputs_BLC = expected["teacher_input"].expand(len(expected["teacher_labels"]), -1, -1)
    with torch.inference_mode():
        close(model.teacher_forced(expected["teacher_labels"].long(), inputs_BLC), expected["teacher_logits"], LOGITS)
