"""Small random checkpoints with exactly the public files' keys, so that workflows made for those files run here."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from stepvar_core.codec import VQVAE, VQVAEConfig
from stepvar_core.models.var import VAR, VARConfig

CODES, CHANNELS = 64, 32


def _random(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Normal numbers scaled by their inputs; gains about 1, so that a picture is neither blank nor clipped."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, like: torch.Tensor) -> torch.Tensor:
        numbers = torch.randn(like.shape, generator=generator)
        if like.ndim > 1:
            return numbers / math.sqrt(like[0].numel())
        return numbers * 0.1 + (1.0 if name.endswith("weight") else 0.0)

    return {name: draw(name, tensor) for name, tensor in module.state_dict().items()}


def write_var_d30(path: Path) -> None:
    """var_d30.pth with depth 30, 30 heads, 1000 classes and the official scales, but 60 channels; legacy buffers included."""
    config = VARConfig(depth=30, width=60, heads=30, vocab_size=CODES, code_dim=CHANNELS)
    tensors = _random(VAR(config), 30)
    levels = torch.repeat_interleave(torch.arange(10), torch.tensor([p * p for p in config.patch_nums]))
    tensors["lvl_1L"] = levels.view(1, -1)
    tensors["attn_bias_for_masking"] = torch.where(levels[:, None] >= levels, 0.0, -torch.inf).view(1, 1, 680, 680)
    for i in range(config.depth):
        tensors[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(60)
    torch.save(tensors, path)


def write_vae(path: Path) -> None:
    """vae_ch160v4096z32.pth with the official depth, but 32 channels and 64 codes."""
    tensors = _random(VQVAE(VQVAEConfig(ch=32, z_channels=CHANNELS, vocab_size=CODES)), 31)
    tensors["quantize.ema_vocab_hit_SV"] = torch.zeros(10, CODES)
    torch.save(tensors, path)
