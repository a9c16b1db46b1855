"""Infinity against the reference implementation: files, every sampled bit, every feature map
(tests/golden/infinity/README.md)."""

import gzip
import json
import re

import infinity_runs
import pytest
import synth_weights
import torch
from infinity_runs import CODECS, CONFIGS, GOLDEN, RUNS, Replay, per_scale_codes
from safetensors.torch import load_file, save_file

import stepvar_core as sv
from stepvar_core.checkpoints import Checkpoint
from stepvar_core.families.infinity.model import rotary_table, rotate
from stepvar_core.families.infinity.schedules import TEMPLATES, full_grid
from stepvar_core.families.registry import CODECS as CODEC_FAMILIES
from stepvar_core.families.registry import MODELS, build, detect

# the README's tolerances: float32 on CPUs that sum in another order; upstream's bf16 cross-attention moves logits more
FEATURES, LOGITS, BF16_LOGITS, SUMS, IMAGE, ENCODED, TABLE = 5e-4, 2e-3, 0.5, 1e-5, 1e-3, 2e-4, 1e-6
OUT = 1e-3
DROPPED = r".*\.zero_k_bias|lvl_1L|attn_bias_for_masking|.*lfq\.mask"
SCHEDULES = json.loads((GOLDEN / "scale_schedules.json").read_text())


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """reference(name) -> a reference configuration with its checkpoints written out, once for this file."""
    built = {}

    def get(name: str) -> infinity_runs.Reference:
        if name not in built:
            built[name] = infinity_runs.Reference.write(name, tmp_path_factory.mktemp(name))
        return built[name]

    return get


def close(ours, theirs, tolerance: float) -> None:
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=tolerance)


def per_scale(tensors: dict, name: str) -> dict[int, torch.Tensor]:
    return {int(key.split(".")[1]): value for key, value in tensors.items() if re.fullmatch(rf"{name}\.\d+", key)}


# files -------------------------------------------------------------------------------------------


def same_tensors(module, weights: dict) -> bool:
    loaded = module.state_dict()
    return set(loaded) == {key for key in weights if not re.fullmatch(DROPPED, key)} and all(
        torch.equal(loaded[k], weights[k]) for k in loaded
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_loads_tensor_for_tensor(reference, name, suffix):
    ref = reference(name)
    assert same_tensors(sv.load_model(ref.stem / f"model{suffix}"), ref.weights)
    assert same_tensors(sv.load_vae(ref.stem / f"vae{suffix}"), ref.vae_weights)


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_come_from_the_file(reference, name):
    config, model, vae = (
        CONFIGS[name],
        sv.load_model(reference(name).stem / "model.pth"),
        sv.load_vae(reference(name).stem / "vae.pth"),
    )
    found = model.config
    assert (
        found.depth,
        found.width,
        found.heads,
        found.bits,
        found.text_dim,
        found.text_maxlen,
        found.norm_eps,
    ) == tuple(config[key] for key in ("depth", "width", "heads", "head_bits", "Ct5", "text_maxlen", "norm_eps"))
    assert (found.chunk, found.hidden, found.patch) == (
        config["depth"] // config["block_chunks"],
        4 * config["width"],
        1 + config["patchify"],
    )
    assert (vae.config.z_channels, vae.config.ch, vae.config.ch_mult, vae.config.patch) == (
        config["vae_dim"],
        config["base_ch"],
        tuple(config["enc_mult"]),
        1 + config["patchify"],
    )
    assert vae.config.token_stride == 16
    assert model.code_format == vae.quantize.code_format


def test_other_ways_a_file_is_saved(reference, tmp_path):
    """Training checkpoints, shards of both kinds, a single chunk, and a VAE with old names and leftovers of its
    training."""
    ref = reference("i2b")
    torch.save({"trainer": {"gpt_fsdp": ref.weights}, "epoch": 3}, tmp_path / "ar-ckpt.pth")
    assert same_tensors(sv.load_model(tmp_path / "ar-ckpt.pth"), ref.weights)
    keys = sorted(ref.weights)
    for folder, index, part, write in (
        ("st", "model.safetensors.index.json", "model-{}.safetensors", save_file),
        ("bin", "pytorch_model.bin.index.json", "pytorch_model-{}.bin", torch.save),
    ):
        (tmp_path / folder).mkdir()
        shards = {part.format(i): {k: ref.weights[k] for k in keys[i::3]} for i in range(3)}
        for file, tensors in shards.items():
            write(tensors, tmp_path / folder / file)
        (tmp_path / folder / index).write_text(
            json.dumps({"weight_map": {k: file for file, tensors in shards.items() for k in tensors}})
        )
        assert same_tensors(sv.load_model(tmp_path / folder), ref.weights)
    single = {
        re.sub(r"block_chunks\.(\d+)\.module\.(\d+)", lambda m: f"blocks.{2 * int(m[1]) + int(m[2])}", k): v
        for k, v in ref.weights.items()
    }
    torch.save(single, tmp_path / "single.pth")
    model = sv.load_model(tmp_path / "single.pth")
    assert (model.config.depth, model.config.chunk) == (6, 6)
    assert torch.equal(model.blocks[5].ada_gss, ref.weights["block_chunks.2.module.1.ada_gss"])
    old = {re.sub(r"\.(conv|norm)\.(weight|bias)$", r".\2", k): v for k, v in ref.vae_weights.items()}
    torch.save({"ema": old | {"discriminator.0.weight": torch.zeros(1)}}, tmp_path / "old_vae.pth")
    assert same_tensors(sv.load_vae(tmp_path / "old_vae.pth"), ref.vae_weights)


def official(name: str) -> tuple[Checkpoint, dict]:
    """An official checkpoint as keys and shapes, on the meta device."""
    file = GOLDEN / "layouts" / f"{name}.json"
    layout = json.loads(
        file.read_text() if file.is_file() else gzip.decompress(file.with_suffix(".json.gz").read_bytes())
    )
    tensors = {
        key: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
        for key, entry in layout["tensors"].items()
    }
    return Checkpoint(name, tensors), layout


@pytest.mark.parametrize(
    "name", ["infinity_2b_reg", "infinity_8b", *(f"infinity_layer{n}" for n in (12, 16, 24, 40, 48))]
)
def test_official_transformers_fit(name):
    checkpoint, layout = official(name)
    model = build(detect(checkpoint, MODELS, "a transformer"), checkpoint, device="meta", dtype=torch.bfloat16)
    c = model.config
    assert (c.depth, c.width, c.heads, c.head_dim, c.chunk, c.bits, c.text_dim, c.text_maxlen, c.pool_heads) == tuple(
        layout[key]
        for key in (
            "depth",
            "embed_dim",
            "heads",
            "head_dim",
            "blocks_per_chunk",
            "head_bits",
            "text_channels",
            "text_maxlen",
            "text_pool_heads",
        )
    )
    assert (c.patch, c.code_dim) == (1 + layout["apply_spatial_patchify"], layout["vae_dim"])
    assert sum(p.numel() for p in model.parameters()) == layout["parameters"]
    assert {key for key in checkpoint.tensors if not re.fullmatch(DROPPED, key)} == set(model.state_dict())
    assert model.dtype == torch.bfloat16 and model.head.weight.dtype == model.blocks[0].ada_gss.dtype == torch.float32


@pytest.mark.parametrize(
    "name",
    [
        "infinity_vae_d16",
        "infinity_vae_d24",
        "infinity_vae_d32reg",
        "infinity_vae_d64",
        "infinity_vae_d56_f8_14_patchify",
    ],
)
def test_official_vaes_fit(name):
    checkpoint, layout = official(name)
    vae = build(detect(checkpoint, CODEC_FAMILIES, "a VAE"), checkpoint, device="meta")
    assert (vae.config.z_channels, vae.config.stride, vae.config.ch, vae.config.ch_mult) == (
        layout["vae_dim"],
        layout["patch_size"],
        layout["base_ch"],
        tuple(layout["ch_mult"]),
    )
    assert vae.quantize.bits == layout.get("transformer_dim", layout["vae_dim"])
    assert sum(p.numel() for p in vae.parameters()) == layout["parameters"]
    assert {key for key in checkpoint.tensors if not re.fullmatch(DROPPED, key)} == set(vae.state_dict())


# schedules and positions ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(reference):
    return sv.load_model(reference("i2b").stem / "model.pth")


def test_all_sixty_schedules(small):
    assert list(TEMPLATES) == SCHEDULES["templates_in_upstream_order"]
    assert [name for name, _ in small.sizes()] == SCHEDULES["size_names"]
    for ratio, sizes in SCHEDULES["ratios"].items():
        for size, entry in sizes.items():
            schedule = small.schedule(1 / float(ratio), size)
            assert [[s.h, s.w] for s in schedule] == entry["scales_hw"]
            assert (schedule.tokens, [schedule.final.h * 16, schedule.final.w * 16]) == (
                entry["total_tokens"],
                entry["pixel_hw"],
            )
    assert small.full_scales == 13
    assert small.schedule(16 / 9) == small.schedule(1 / 0.571)


def test_every_position_index(small):
    """Read off the table itself: the slowest row frequency of head_dim 4 is 1, so its angle is the index."""
    indices = SCHEDULES["rope_index"]["by_edge_pair"]
    for ratio, sizes in SCHEDULES["ratios"].items():
        for size in sizes:
            schedule = small.schedule(1 / float(ratio), size)
            full = full_grid(schedule)
            assert [*full] == sizes["1M"]["scales_hw"][-1]
            for scale in schedule:
                expected = (
                    torch.tensor(indices[f"{scale.h}/{full[0]}"])[:, None],
                    torch.tensor(indices[f"{scale.w}/{full[1]}"])[None],
                )
                angles = torch.stack([e.expand(scale.h, scale.w).flatten() for e in expected], -1).float()
                assert torch.equal(
                    rotary_table(scale, full, 4)[0], torch.stack([angles.cos(), angles.sin()], -1).flatten(1)
                )


def test_rotary_tables(small):
    expected = load_file(GOLDEN / "rope.safetensors")
    for key, ratio, size, dim in (
        ("hd128.1.0.0.06M", 1.0, "0.06M", 128),
        ("hd128.1.5.0.06M", 1.5, "0.06M", 128),
        ("hd64.1.0.1M.last_row", 1.0, "1M", 64),
    ):
        schedule, theirs = (
            small.schedule(1 / ratio, size),
            expected[key].movedim(0, -1).flatten(1),
        )  # upstream: all cosines, then all sines
        ours = torch.cat([rotary_table(scale, full_grid(schedule), dim)[0] for scale in schedule])
        close(ours[-len(theirs) :] if "last" in key else ours[: len(theirs)], theirs, TABLE)
    schedule = small.schedule(1.0, "0.06M")
    table = rotary_table(schedule.scales[2], full_grid(schedule), 128)
    for part in "qk":
        turned = rotate(expected[f"apply.{part}_in"].transpose(1, 2).unsqueeze(2).contiguous(), table)
        close(turned.squeeze(2).transpose(1, 2), expected[f"apply.{part}_out"], 1e-5)


# sampling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_every_run_matches(reference, name, run):
    ref = reference(name)
    settings, expected = CONFIGS[name]["runs"][run], ref.tensors(f"run_{run}")
    model, vae = ref.model(), ref.vae()
    schedule = model.schedule(1 / settings["ratio"], settings["pn"])
    assert [list(s.grid) for s in schedule] == settings["schedule"]
    replay, forced, editing = Replay(settings.get("g_seed", 0), schedule), settings.get("gt_leak", 0), {}
    if forced:
        editing = {"codes": per_scale_codes(expected["gt_bits_vae"], vae.quantize, schedule), "start_at_scale": forced}
    steps = []
    result = sv.sample(
        model,
        None,
        ref.text(model, settings["texts"]),
        schedule=schedule,
        cfg=settings["cfg"],
        temperature=settings["tau"],
        negative=ref.text(model, settings["neg"]) if "neg" in settings else None,
        top_k=settings["top_k"],
        top_p=settings.get("top_p", 0.0),
        options={"guidance_layers": settings["ins"]},
        draw=replay.draw,
        on_scale=lambda step: steps.append((step.logits, step.f_hat)),
        **editing,
    )

    start = sum(s.tokens for s in schedule.scales[:forced])
    codes, count = torch.cat(result.codes, 1), expected["bits"].shape[1]  # the bf16 run stores its first scales only
    assert torch.equal(codes[:, start:count], expected["bits"][:, start:])
    if forced:
        assert torch.equal(codes[:, :start], torch.cat(editing["codes"][:forced], 1))
    if "bits_vae" in expected:
        assert torch.equal(codes, torch.cat(per_scale_codes(expected["bits_vae"], vae.quantize, schedule), 1))

    batch = len(settings["texts"])
    for part, tolerance in (("x_in", FEATURES), ("x_out", OUT), ("logits_raw", LOGITS)):
        for s, tensor in per_scale(expected, part).items():
            ours = model.passes[s][part]
            if len(tensor) == batch and len(ours) == 2 * batch:
                assert torch.equal(ours[:batch], ours[batch:])  # the reference stores one of two equal halves
            close(ours[: len(tensor)], tensor, tolerance)
    for s, tensor in per_scale(expected, "blk0_out").items():
        close(model.first_block[s], tensor, FEATURES)
    for key, tensor in expected.items():
        if key.startswith("logits_cfg"):
            ours = steps[int(key.split(".")[1])][0]
            close(
                ours[:, ::4] if key.endswith("every4") else ours,
                tensor,
                BF16_LOGITS if settings.get("ca_bf16") else LOGITS,
            )
    for s, tensor in per_scale(expected, "summed").items():
        close(steps[s][1], tensor, SUMS)
    if "cond_BD" in expected:
        close(model.run.pooled_R1C[:, 0], expected["cond_BD"], FEATURES)
    if "z" not in expected:
        return
    close(result.latent, expected["z"], SUMS)
    picture_B3HW = vae.decode(result.latent).permute(0, 3, 1, 2)
    key = next(k for k in expected if k.startswith("image_sub"))
    every = int(key.removeprefix("image_sub"))
    close(picture_B3HW[:, :, ::every, ::every] * 2 - 1, expected[key], IMAGE)
    theirs_u8 = expected[f"image_u8_bgr_sub{every}"].flip(-1).int()
    off = ((picture_B3HW[:, :, ::every, ::every].permute(0, 2, 3, 1) * 255).int() - theirs_u8).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 0.01


@pytest.mark.parametrize("name", CONFIGS)
def test_the_text_side_matches(reference, name):
    """Packed text after the norm and after the MLP, and the shared modulation, recomputed from the model's own
    parts."""
    ref, expected = reference(name), reference(name).tensors(f"run_{next(iter(CONFIGS[name]['runs']))}")
    model = sv.load_model(ref.stem / "model.pth")
    condition = ref.text(model, ["short"])
    with torch.inference_mode():
        text = torch.cat(condition.joined(model.unconditional(condition)).texts)
        close(model.text_norm(text), expected["kv_norm"], FEATURES)
        close(model.text_proj_for_ca(model.text_norm(text)), expected["kv_compact"], FEATURES)
        close(model.shared_ada_lin(expected["cond_BD"]).view(2, 1, 6, -1), expected["gss"], FEATURES)


def test_the_runs_cover_what_they_should():
    """A fixture dropped by mistake must not pass silently."""
    parts = {key.split(".")[0] for name, run in RUNS for key in load_file(GOLDEN / name / f"run_{run}.safetensors")}
    assert {
        "bits",
        "gt_bits_vae",
        "bits_vae",
        "logits_cfg",
        "logits_raw",
        "x_in",
        "x_out",
        "blk0_out",
        "kv_norm",
        "kv_compact",
        "cond_BD",
        "gss",
        "summed",
        "z",
        "image_sub4",
        "image_sub8",
        "image_u8_bgr_sub8",
    } <= parts
    settings = [CONFIGS[name]["runs"][run] for name, run in RUNS]
    assert len(RUNS) == 19 and sum("gt_leak" in s for s in settings) == 2 and any("neg" in s for s in settings)
    assert any(isinstance(s["cfg"], list) for s in settings) and any(len(s["texts"]) == 2 for s in settings)
    assert {tuple(s["ins"]) for s in settings} == {(0,), (-5,), (0, -5)} and len({s["ratio"] for s in settings}) == 4


# the codec ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec"), CODECS)
def test_encoding_matches(reference, name, codec):
    ref, settings = reference(name), CONFIGS[name]["codec"][codec]
    model, vae, expected = ref.model(), ref.vae(), ref.tensors(codec)
    schedule = model.schedule(1 / settings["ratio"], settings["pn"])
    image_1HW3 = expected["image_u8"][None].float() / 255
    with torch.inference_mode():
        close(vae.features(image_1HW3.permute(0, 3, 1, 2) * 2 - 1), expected["h"], ENCODED)
    codes = vae.encode(image_1HW3, schedule)
    assert torch.equal(torch.cat(codes, 1), torch.cat(per_scale_codes(expected["bits_vae"], vae.quantize, schedule), 1))
    assert torch.equal(torch.cat(codes, 1), expected["teacher_bits"])
    f_hats = [vae.quantize.decode_codes(codes[: n + 1], schedule) for n in range(len(schedule))]
    close(f_hats[-1], expected["z"], SUMS)
    inputs = [
        vae.quantize.next_input(f_hat, step, schedule).flatten(2).transpose(1, 2)
        for f_hat, step in zip(f_hats, schedule.passes[1:])
    ]
    close(torch.cat(inputs, 1), expected["teacher_input"], SUMS)
    close(vae.decode(f_hats[-1]).permute(0, 3, 1, 2)[:, :, ::4, ::4] * 2 - 1, expected["recon_sub4"], IMAGE)

    # upstream's masked forward over all scales at once answers like ours, scale by scale over the cache
    sv.sample(
        model,
        vae,
        ref.text(model, [settings["teacher_text"]]),
        schedule=schedule,
        cfg=1,
        codes=codes,
        start_at_scale=len(schedule),
    )
    logits = torch.cat([p["logits_raw"] for p in model.passes], 1)
    close(logits[:, :265], expected["teacher_logits_head"], OUT)
    close(logits[:, -32:], expected["teacher_logits_tail"], OUT)


def test_recipes_are_this_file_formats():
    """The rebuilt tensors are checked against the recipe's checksums while they are written; a flipped bit must
    raise."""
    recipe = json.loads((GOLDEN / "i2b" / "model.recipe.json").read_text())
    recipe["tensors"] = recipe["tensors"][:1]
    recipe["tensors"][0]["crc32"] ^= 1
    with pytest.raises(ValueError, match="differently"):
        synth_weights.state_dict(recipe)
