"""Infinity as a family: how its keys become a configuration, and what it declares."""

from __future__ import annotations

import re
from dataclasses import replace

from ...checkpoints import Checkpoint
from ..family import Family, Files, Prompt, Said, norm_eps
from .model import Infinity, InfinityConfig
from .vae import BSQVAE, configure_bsq_vae, is_bsq_vae, modern_name

INFINITY_8B_BITS = 56  # 14 of its VAE times 2 x 2 cells; no published VAE has 56 channels
FIRST_BLOCK = "block_chunks.0.module.0."
# the VAE a model belongs with, by the channels of its latent
VAE_NAMES = {
    14: ("infinity_vae_d56_f8_14_patchify",),
    16: ("infinity_vae_d16",),
    24: ("infinity_vae_d24",),
    32: ("infinity_vae_d32_reg", "infinity_vae_d32reg"),  # both the 2B's; "reg" was trained apart from the plain d32
    64: ("infinity_vae_d64",),
}


def block_name(key: str) -> str:
    """A file saved without chunks counts blocks.N: one chunk holds them all."""
    return re.sub(r"^blocks\.(\d+)\.", r"block_chunks.0.module.\1.", key)


def is_infinity(checkpoint: Checkpoint, said: Said) -> bool:
    keys = {block_name(key) for key in checkpoint.tensors}
    return {"cfg_uncond", "text_proj_for_sos.ca.mat_q", FIRST_BLOCK + "ca.mat_kv.weight"} <= keys


def configure(checkpoint: Checkpoint, said: Said) -> InfinityConfig:
    """Sizes of an Infinity transformer; its defaults are the 2B's, or the 8B's where a token has 2 x 2 cells."""
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
        heads=checkpoint.shape(FIRST_BLOCK + "sa.scale_mul_1H11")[1],
        hidden=checkpoint.shape(FIRST_BLOCK + "ffn.fc1.weight")[0],
        patch=2 if is_patched else 1,
        text_dim=text_dim,
        text_maxlen=text_maxlen,
        pool_heads=checkpoint.shape("text_proj_for_sos.ca.mat_q")[1],
        levels=checkpoint.shape("lvl_embed.weight")[0],
        norm_eps=norm_eps(said),
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


def vae_names(config: InfinityConfig) -> tuple[str, ...]:
    return VAE_NAMES.get(config.code_dim, ())


FAMILY = Family(
    title="Infinity",
    transformer=Files(
        what="an Infinity transformer",
        module=Infinity,
        detect=is_infinity,
        configure=configure,
        legacy=(r".*\.zero_k_bias", r"lvl_1L", r"attn_bias_for_masking", r"Infinity_(in)?visible_(kv|q)len"),
        rename=block_name,
    ),
    codecs=(
        Files(
            what="an Infinity VAE",
            module=BSQVAE,
            detect=is_bsq_vae,
            configure=configure_bsq_vae,
            # the bit mask is 2^k, and training leaves discriminators and losses behind
            legacy=(r"(?!encoder\.|decoder\.).*",),
            rename=modern_name,
        ),
    ),
    reads=Prompt(encoder="flan-t5-xl", named="FLAN-T5 XL", longest=512),
    vae_names=vae_names,
)
