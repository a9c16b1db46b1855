"""Damaged checkpoints of every family and format: each loads, or is refused with the package's error.

Seeded; STEPVAR_MUTATIONS says how many (500, half a minute). The long run:
STEPVAR_MUTATIONS=10000 python3 launch.py test tests/core/test_mutations.py
"""

import io
import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from tiny_models import EDGES, tiny_hart, tiny_hart_pair, tiny_infinity, tiny_switti_pair, tiny_vae, tiny_var

import stepvar_core as sv
from stepvar_core.checkpoints import read_checkpoint
from stepvar_core.families.infinity.vae import BSQVAE, BSQVAEConfig
from stepvar_core.families.registry import CODECS, MODELS, build, detect
from stepvar_core.planning.cost import terms

MUTATIONS = int(os.environ.get("STEPVAR_MUTATIONS", "500"))
SUFFIXES = (".safetensors", ".pth")
ODD = ["NaN", "-1", "0", "1e999", "null", "[]", "{}", '"x"', "[1, 2, 3]", "true", "99999999999999999999", "[[[[", "0.5"]
SETTINGS = ["patch_nums", "norm_eps", "norm_groups", "quant_resi", "labels", "defaults", "num_heads", "heads", "rope"]
DTYPES = [torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.uint8, torch.complex64, torch.float64]


def _bsq() -> BSQVAE:
    return BSQVAE(BSQVAEConfig(ch=4, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, norm_groups=2))


SOURCES = {
    "VAR": tiny_var,
    "Infinity": tiny_infinity,
    "HART": tiny_hart,
    "Switti": lambda: tiny_switti_pair()[0],
    "VAR's VQVAE": lambda: tiny_vae(has_encoder=True, has_decoder=True),
    "HART's tokenizer": lambda: tiny_hart_pair()[1],
    "Infinity's VAE": _bsq,
}


def write_damaged(path: Path, weights: dict, dice: random.Random) -> None:
    """A file of these weights with one to three faults among its tensors, settings and bytes."""
    weights = dict(weights)
    said = {"patch_nums": json.dumps(EDGES), "norm_groups": "2", "num_heads": "2", "context_token": "12"}
    for _ in range(dice.randint(1, 3)):
        key = dice.choice(sorted(weights) or ["x"])
        tensor = weights.get(key, torch.zeros(1))
        kind = dice.choice(["drop", "rename", "reshape", "empty", "retype", "copy", "number", "setting", "scalar"])
        if kind == "drop":
            weights.pop(key, None)
        elif kind == "rename":
            weights[key[: dice.randrange(len(key))] + "x"] = weights.pop(key, tensor)
        elif kind == "reshape":
            weights[key] = torch.zeros([dice.choice([0, 1, 2, 3, 7, 64]) for _ in range(dice.randint(0, 5))])
        elif kind == "empty":
            weights[key] = torch.zeros(0)
        elif kind == "retype":
            weights[key] = tensor.to(dice.choice(DTYPES))
        elif kind == "copy":
            weights[key.replace("0", str(dice.choice([1, 7, 10**12])), 1)] = tensor.clone()
        elif kind == "number":
            weights[key] = torch.full_like(tensor, dice.choice([float("nan"), float("inf"), 1e38]))
        elif kind == "scalar":
            weights[key] = torch.tensor(1.0)
        else:
            said[dice.choice(SETTINGS)] = dice.choice(ODD)
    (path.parent / "config.json").unlink(missing_ok=True)
    if path.suffix == ".safetensors":
        content = bytearray(safetensors_bytes({k: v.contiguous() for k, v in weights.items()}, metadata=said))
    else:
        file = io.BytesIO()
        torch.save(weights, file)
        content = bytearray(file.getvalue())
        settings = ", ".join(f'"{name}": {value}' for name, value in said.items())
        (path.parent / "config.json").write_text(f"{{{settings}}}")
    if dice.random() < 0.4:
        for _ in range(dice.choice([1, 1, 8, 64])):
            near = dice.choice([64, 2048, len(content)])
            content[dice.randrange(min(near, len(content)))] = dice.randrange(256)
    if dice.random() < 0.1:
        del content[dice.randrange(len(content)) :]
    path.write_bytes(content)


def use(path, kinds, shapes_only: bool) -> str:
    """How reading a file ended: "loaded", or the package's error; whatever else is raised goes on to the test."""
    try:
        checkpoint = read_checkpoint(path, shapes_only=shapes_only)
        module = build(detect(checkpoint, kinds, "it"), checkpoint, device="meta" if shapes_only else "cpu")
        if kinds is MODELS:
            terms(module, module.schedule())
    except sv.StepVARError as error:
        assert len(str(error)) <= 2000
        return type(error).__name__
    return "loaded"


@pytest.mark.parametrize("source", SOURCES)
def test_damaged_files_load_or_are_refused(tmp_path, source):
    weights = SOURCES[source]().state_dict()
    kinds = MODELS if source in ("VAR", "Infinity", "HART", "Switti") else CODECS
    ends = set()
    for seed in range(-(-MUTATIONS // len(SOURCES))):
        path = tmp_path / f"damaged{SUFFIXES[seed % 2]}"
        write_damaged(path, weights, random.Random(f"{source}|{seed}"))
        for shapes_only in (False, True):
            try:
                ends.add(use(path, kinds, shapes_only))
            except Exception as error:
                raise AssertionError(f"{source}, seed {seed}, shapes_only {shapes_only}: {error!r}") from error
    assert {"CheckpointMismatch", "loaded"} <= ends  # both happen, or the mutations test nothing
