"""Rebuilds the reference models' random weights from recipes, bit for bit on every platform.

A recipe lists a checkpoint's tensors in order: name, shape, dtype, kind, mean, std, crc32. Only the raw 64-bit stream
of PCG64 is used, which numpy keeps stable across versions:

    key   = first 16 bytes of sha256("seed|name"), little-endian
    u     = (PCG64(key).random_raw() >> 40) / 2^24               uniform in [0, 1), exact in float64
    value = float32(mean + (u - 0.5) * sqrt(12) * std)           arithmetic in float64, one rounding

    python tests/golden/synth_weights.py tests/golden/var/tiny4/var.recipe.json OUT      # OUT.pth and OUT.safetensors

The runs beside the recipes were computed with these weights by FoundationVision/VAR (MIT), commit 78b9539, and
FoundationVision/Infinity (MIT), commit 4c27bbb; only data of those projects is stored here. See the README.md of each
folder for the tensors.
"""

import hashlib
import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

SQRT12 = math.sqrt(12.0)


def uniform(seed: int, name: str, shape, mean: float, std: float) -> np.ndarray:
    key = int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:16], "little")
    raw = np.random.PCG64(key).random_raw(math.prod(shape))
    u = (raw >> np.uint64(40)).astype(np.float64) * 2.0**-24
    return (mean + (u - 0.5) * SQRT12 * std).astype(np.float32).reshape(shape)


def levels(patch_nums) -> np.ndarray:
    """The scale every token belongs to, (L,) int64."""
    return np.repeat(np.arange(len(patch_nums)), [p * p for p in patch_nums])


def tensor(seed: int, entry: dict) -> np.ndarray:
    kind, shape = entry["kind"], tuple(entry["shape"])
    if kind == "uniform":
        return uniform(seed, entry.get("alias_of", entry["name"]), shape, entry["mean"], entry["std"])
    if kind == "head_feedback":  # a bit head that answers against its input, so that random models draw diverse bits
        base = (
            uniform(seed, entry["name"], shape, entry["mean"], entry["std"])
            .astype(np.float64)
            .reshape(shape[0] // 2, 2, shape[1])
        )
        feedback = (
            entry["beta"]
            * uniform(seed, entry["from"], (shape[1], shape[0] // 2), 0.0, entry["from_std"]).astype(np.float64).T
        )
        return (base + np.stack([feedback, -feedback], 1)).astype(np.float32).reshape(shape)
    if kind == "pow2_desc":  # the value of every bit, highest first
        return 2 ** np.arange(shape[0] - 1, -1, -1, dtype=np.int64)
    if kind == "zeros":
        return np.zeros(shape, entry["dtype"])
    if kind == "var_lvl_1L":
        return levels(entry["patch_nums"])[None]
    if kind == "var_attn_bias":  # 0 where the query's scale is the key's or a later one, else -inf
        level_L = levels(entry["patch_nums"])
        return np.where(level_L[:, None] >= level_L[None, :], np.float32(0), np.float32(-np.inf))[None, None]
    raise ValueError(f"{entry['name']}: unknown kind {kind!r}")


def state_dict(recipe: dict) -> dict[str, torch.Tensor]:
    """Every tensor of a recipe. Raises ValueError when one is not what the recipe's author computed."""
    tensors = {}
    for entry in recipe["tensors"]:
        values = np.ascontiguousarray(tensor(recipe["seed"], entry))
        if (
            list(values.shape) != entry["shape"]
            or str(values.dtype) != entry["dtype"]
            or zlib.crc32(values.tobytes()) != entry.get("crc32", zlib.crc32(values.tobytes()))
        ):
            raise ValueError(f"{entry['name']} came out differently from the recipe.")
        tensors[entry["name"]] = torch.from_numpy(values)
    return tensors


def write_checkpoints(recipe: dict, stem: str) -> dict[str, torch.Tensor]:
    """stem.pth in upstream's own wrapping and stem.safetensors, flat. Returns the tensors."""
    tensors = state_dict(recipe)
    content = dict(tensors)
    for key in reversed(recipe.get("pth_wrap", [])):
        content = {key: content}
    torch.save(content, f"{stem}.pth")
    save_file(tensors, f"{stem}.safetensors")
    return tensors


if __name__ == "__main__":
    write_checkpoints(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2])
