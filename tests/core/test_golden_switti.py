"""Switti against the reference implementation: files, every token, every feature map
(tests/golden/switti/README.md)."""

import gzip
import json
import re

import pytest
import switti_runs
import torch
from safetensors.torch import load_file, save_file
from switti_runs import CONFIG, GOLDEN, RUNS, SIZES, Replay, read_run

import stepvar_core as sv
from stepvar_core.checkpoints import read_checkpoint
from stepvar_core.families.switti.model import CROP, PATCH_NUMS, SwittiConfig, rotary_table
from stepvar_core.schedule import Scale

# the README's tolerances, the second where codes are mixed
RAW, GUIDED, MAPS, BLOCKS, TABLE = (5e-5, 5e-4), (2e-4, 5e-3), (1e-4, 5e-4), 2e-5, 1e-6
DROPPED = {"lvl_1L", "attn_bias_for_masking"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return switti_runs.Reference.write(tmp_path_factory.mktemp("switti"))


def close(ours, theirs, tolerance: float) -> None:
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=tolerance)


# files -------------------------------------------------------------------------------------------


def same_tensors(module, weights: dict) -> bool:
    loaded = module.state_dict()
    return set(loaded) == set(weights) - DROPPED and all(torch.equal(loaded[k], weights[k]) for k in loaded)


def test_folder_and_file_load_tensor_for_tensor(reference):
    for path in (reference.folder / "switti", reference.folder / "switti" / "model.safetensors"):
        model = sv.load_model(path)
        assert same_tensors(model, reference.weights) and not model.config.is_causal
    assert reference.model(is_causal=True).config.is_causal
    vae = reference.vae()
    assert vae.quantize.code_format == model.code_format
    assert vae.own_schedule() == model.schedule()


def test_a_file_that_lost_its_configuration(reference, tmp_path, caplog):
    """The level buffer says the scales; nothing says what scales see, so the released default is taken, aloud."""
    torch.save(reference.weights, tmp_path / "switti.pth")
    save_file({k: v.contiguous() for k, v in reference.weights.items()}, tmp_path / "switti.safetensors")
    for name in ("switti.pth", "switti.safetensors"):
        model = sv.load_model(tmp_path / name, config={"num_heads": CONFIG["heads"]})
        assert model.config.patch_nums == tuple(CONFIG["patch_nums"]) and not model.config.is_causal
        assert "use_ar" in caplog.text
        caplog.clear()
        assert sv.load_model(tmp_path / name, config=SIZES | {"use_ar": True}).config.is_causal
        assert not caplog.text


def test_the_mask_of_all_pairs_is_never_read(reference):
    """357 MB at full size, in a buffer nobody needs."""
    file = reference.folder / "switti" / "model.safetensors"
    assert "attn_bias_for_masking" in load_file(file)
    assert "attn_bias_for_masking" not in read_checkpoint(file).tensors
    assert "attn_bias_for_masking" not in read_checkpoint(file, shapes_only=True).tensors


def hollow(path, keys: dict):
    """A safetensors file of these keys and shapes whose weights are a hole: it takes no room on the disk."""
    header, end = {}, 0
    for key, (shape, dtype) in keys.items():
        size = torch.Size(shape).numel() * getattr(torch, dtype).itemsize
        header[key] = {
            "dtype": {"float32": "F32", "int64": "I64"}[dtype],
            "shape": shape,
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def layout(name: str) -> dict:
    return json.loads(gzip.decompress((GOLDEN / "layouts" / f"{name}.json.gz").read_bytes()))


@pytest.mark.parametrize(("reso", "is_causal"), [(512, False), (1024, False), (1024, True)])
def test_the_official_transformers_fit(tmp_path, reso, is_causal):
    keys = layout(f"switti_{reso}")
    hollow(tmp_path / "model.safetensors", keys)
    said = {"depth": 30, "rope": True, "rope_theta": 10000, "rope_size": 128, "use_swiglu_ffn": True}
    (tmp_path / "config.json").write_text(json.dumps(said | {"use_ar": is_causal, "use_crop_cond": True, "reso": reso}))
    model = sv.load_model(tmp_path, device="meta", dtype=torch.bfloat16)
    assert model.config == SwittiConfig(patch_nums=PATCH_NUMS[reso], is_causal=is_causal)
    assert {key: list(t.shape) for key, t in model.state_dict().items()} == {
        key: shape for key, (shape, _) in keys.items() if key not in DROPPED
    }
    assert model.schedule().final.h * 16 == reso and model.latent_shape(model.schedule()) == (
        32,
        reso // 16,
        reso // 16,
    )
    kept = {name: p.dtype for name, p in model.named_parameters()}
    assert kept["blocks.3.ffn.up_proj.weight"] == model.dtype == torch.bfloat16
    assert {kept[name] for name in ("crop_embed.weight", "crop_proj.weight", "blocks.3.ffn_norm1.weight")} == {
        torch.float32
    }


def test_the_official_vqvae_fits(tmp_path):
    keys = layout("vqvae_1024")
    hollow(tmp_path / "model.safetensors", keys)
    (tmp_path / "config.json").write_text(json.dumps({"reso": 1024, "ch": 160, "vocab_size": 4096, "z_channels": 32}))
    vae = sv.load_vae(tmp_path, device="meta")
    wanted = {key: shape for key, (shape, _) in keys.items() if "ema_vocab_hit_SV" not in key}
    assert {key: list(t.shape) for key, t in vae.state_dict().items()} == wanted
    assert vae.own_schedule() == SwittiConfig().schedule() and vae.config.stride == 16


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rope": False}, "rope False; only True"),
        ({"use_swiglu_ffn": False}, "use_swiglu_ffn False; only True"),
        ({"use_crop_cond": False}, "use_crop_cond False; only True"),
        ({"num_heads": 7}, "7 heads"),
        ({"patch_nums": [1, 2, 3]}, "sizes make no sense"),
    ],
)
def test_what_cannot_run_is_refused_by_name(reference, config, words):
    with pytest.raises(sv.CheckpointMismatch, match=words):
        sv.load_model(reference.folder / "switti", config=config)


def test_files_in_each_others_place(reference):
    with pytest.raises(sv.CheckpointMismatch, match="not a next-scale transformer"):
        sv.load_model(reference.folder / "vae")
    with pytest.raises(sv.CheckpointMismatch, match="is a Switti transformer, not a next-scale VAE"):
        sv.load_vae(reference.folder / "switti")


# units -------------------------------------------------------------------------------------------


def test_positions_and_crop(reference):
    units, head_dim = load_file(GOLDEN / "units.safetensors"), CONFIG["head_dim"]
    tables = [rotary_table(Scale(1, p, p), head_dim, 10000.0, 128.0) for p in CONFIG["patch_nums"]]
    close(torch.cat(tables, 1)[0].unflatten(-1, (-1, 2)), units["rope_cos_sin"], TABLE)
    assert units["crop_condition"][0].tolist() == list(CROP)


def test_the_crop_is_float32_whatever_the_weights_are(reference):
    """Of numbers near 3000 half precision keeps multiples of 16: another picture altogether."""
    whole, half = (sv.load_model(reference.folder / "switti", dtype=d) for d in (torch.float32, torch.bfloat16))
    assert torch.equal(whole.crop_embed(torch.device("cpu")), half.crop_embed(torch.device("cpu")))


# runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_references(reference, name):
    expected, settings, model = read_run(name), RUNS[name], reference.model(RUNS[name]["use_ar"])
    quantizer, is_soft = reference.vae().quantize, settings["more_smooth"]
    raw, blocks, steps = [], [], {}
    model.head.register_forward_hook(lambda module, inputs, out: raw.append(out))
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, out: blocks.append(out))
    result = reference.run(
        model, name, Replay(settings), on_scale=lambda s: steps.update({s.index: (s.logits, s.f_hat)})
    )
    seen = set()
    for key, theirs in expected.items():
        what, _, rest = key.partition("/")
        index = int(rest) if rest.isdigit() else None
        if what == "indices":
            assert torch.equal(result.codes[index], theirs)
        elif what == "raw_logits":
            close(raw[index], theirs[: len(raw[index])], RAW[is_soft])  # unguided scales ask for the prompt alone
        elif what == "guided":
            close(steps[index][0], theirs, GUIDED[is_soft])
        elif what == "embedded":
            soft = result.soft[index]
            assert (soft is not None) == (f"indices/{index:02d}" not in expected)
            ours = quantizer.lookup(result.codes[index], result.schedule.scales[index]) if soft is None else soft
            close(ours, theirs, MAPS[is_soft])
        elif what == "next_input":
            close(next_input(quantizer, steps[index][1], result.schedule, index + 1), theirs, MAPS[is_soft])
        elif what == "f_hat":
            close(result.latent, theirs, MAPS[is_soft])
        else:
            scale, block = (int(n) for n in re.fullmatch(r"scale(\d)/block(\d)", rest).groups())
            close(blocks[scale * CONFIG["depth"] + block], theirs, BLOCKS)
        seen.add(what)
    assert {"indices", "raw_logits", "guided", "embedded", "next_input", "f_hat"} <= seen


def next_input(quantizer, f_hat, schedule, index: int):
    return quantizer.next_input(f_hat, schedule.passes[index], schedule)
