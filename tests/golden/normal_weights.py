"""Rebuilds normally distributed reference weights from a recipe, bit for bit on every platform.

A recipe is {seed, crc32, tensors: [[name, shape, start, mean, std], …]} beside a `rest.safetensors` with the tensors
too small for it, and `patch.place` and `patch.value`: the few numbers that round to the other neighbour. torch's
stream of uniforms from `seed` is exact everywhere; its normals are made of it in float64 as torch does in float32, 16
at a time from 8 radii and 8 angles, and are then rounded to float16:

    u = rand(…)[start : start + n]        value = mean + std * sqrt(-2 ln(1 - u_j)) * (cos | sin)(2 pi u_(j + 8))
"""

import json
import math
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file


def normals(uniform: torch.Tensor) -> torch.Tensor:
    """Box-Muller in torch's order: (n,) float64 in [0, 1), n a multiple of 16."""
    radius_angle = uniform.view(-1, 2, 8)
    radius, angle = (-2 * torch.log1p(-radius_angle[:, 0])).sqrt(), 2 * math.pi * radius_angle[:, 1]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1).flatten()


def rebuild(folder: Path) -> dict[str, torch.Tensor]:
    """The weights by name, float16. Raises ValueError where they are not the reference's."""
    recipe, rest = json.loads((folder / "weights.recipe.json").read_text()), load_file(folder / "rest.safetensors")
    place, value = rest.pop("patch.place"), rest.pop("patch.value")
    end = max(start + math.prod(shape) for _, shape, start, _, _ in recipe["tensors"])
    uniform = torch.rand(end, generator=torch.Generator().manual_seed(recipe["seed"])).double()
    flat = torch.cat(
        [
            (mean + std * normals(uniform[start : start + math.prod(shape)])).half()
            for _, shape, start, mean, std in recipe["tensors"]
        ]
    )
    flat[place.long()] = value
    if zlib.crc32(flat.numpy().tobytes()) != recipe["crc32"]:
        raise ValueError(f"The weights rebuilt from {folder} are not the reference's.")
    parts = flat.split([math.prod(shape) for _, shape, *_ in recipe["tensors"]])
    return rest | {name: part.view(shape) for (name, shape, *_), part in zip(recipe["tensors"], parts)}
