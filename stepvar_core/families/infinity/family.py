"""Infinity as files: how its keys become a configuration."""

from __future__ import annotations

import re
from dataclasses import replace

from ...checkpoints import Checkpoint, settings
from .model import InfinityConfig

INFINITY_8B_BITS = 56  # 14 of its VAE times 2 x 2 cells; no published VAE has 56 channels


def _infinity_block_name(key: str) -> str:
    """A file saved without chunks counts blocks.N: one chunk holds them all."""
    return re.sub(r"^blocks\.(\d+)\.", r"block_chunks.0.module.\1.", key)


def _configure_infinity(checkpoint: Checkpoint, overrides: dict | None) -> InfinityConfig:
    said, first = settings(checkpoint, overrides), "block_chunks.0.module.0."
    chunk = checkpoint.count(r"block_chunks\.0\.module\.(\d+)\.")
    last_chunk = checkpoint.count(r"block_chunks\.(\d+)\.") - 1
    width, bits = checkpoint.shape("word_embed.weight")
    text_maxlen, text_dim = checkpoint.shape("cfg_uncond")
    is_patched = bool(int(said("apply_spatial_patchify", bits == INFINITY_8B_BITS)))
    config = InfinityConfig(
        depth=chunk * last_chunk + checkpoint.count(rf"block_chunks\.{last_chunk}\.module\.(\d+)\."),
        chunk=chunk,
        width=width,
        bits=bits,
        heads=checkpoint.shape(first + "sa.scale_mul_1H11")[1],
        hidden=checkpoint.shape(first + "ffn.fc1.weight")[0],
        patch=2 if is_patched else 1,
        text_dim=text_dim,
        text_maxlen=text_maxlen,
        pool_heads=checkpoint.shape("text_proj_for_sos.ca.mat_q")[1],
        levels=checkpoint.shape("lvl_embed.weight")[0],
        norm_eps=float(said("norm_eps", 1e-6)),
    )
    if (
        config.head_dim * config.heads != width
        or config.head_dim % 4
        or width % config.pool_heads
        or config.code_dim * config.patch**2 != bits
    ):
        raise ValueError(f"width {width}, {config.heads} and {config.pool_heads} heads, {bits} bits")
    # the official notebook's settings of 8B
    return replace(config, defaults=replace(config.defaults, cfg=3.0, temperature=1.0)) if is_patched else config
