"""HART as files: how its keys and config.json become a configuration."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from ...checkpoints import Checkpoint, settings
from ...codecs.vqvae import VQVAEConfig, _configure_vqvae
from ...errors import CheckpointMismatch
from .model import MODULATIONS, POOLINGS, HARTConfig


def _configure_hart_tokenizer(checkpoint: Checkpoint, overrides: dict | None) -> VQVAEConfig:
    config, edges = (
        _configure_vqvae(checkpoint, overrides),
        settings(checkpoint, overrides)("v_patch_nums", HARTConfig().patch_nums),
    )
    return replace(config, has_residual=True, patch_nums=tuple(int(p) for p in edges))


def _hart_tokenizer_name(key: str) -> str:
    """The autoencoder's tensors lie under `vae.`; a single shared convolution has a name of its own."""
    return re.sub(r"^quantize\.quant_resi\.qresi\.", "quantize.quant_resi.qresi_ls.0.", key.removeprefix("vae."))


def _hart_grids(checkpoint: Checkpoint, overrides: dict | None) -> tuple[tuple[int, ...], int]:
    """patch_nums and the prompt's length: said, or counted in the level buffer, or the published ones."""
    said, levels = settings(checkpoint, overrides), checkpoint.tensors.get("lvl_1L")
    edges, text_tokens = HARTConfig().patch_nums, HARTConfig().text_tokens
    if levels is not None and not levels.is_meta:
        counts = levels.unique(return_counts=True)[1].tolist()
        text_tokens, edges = counts[0], (1, *(math.isqrt(n) for n in counts[1:]))
    return tuple(int(p) for p in said("patch_nums", edges)), int(said("context_token", text_tokens))


def _configure_hart(checkpoint: Checkpoint, overrides: dict | None) -> HARTConfig:
    said, keys = settings(checkpoint, overrides), checkpoint.tensors
    for setting, wanted in (
        ("attn_type", "llama"),
        ("mlp_type", "llama"),
        ("use_cross_attn", False),
        ("sampler", "iddpm"),
    ):
        found = said(setting, wanted)
        if found != wanted:
            raise CheckpointMismatch(
                f"{checkpoint.name} is a HART with {setting} {found!r}; only {wanted!r} draws pictures from text.",
                "Use the published HART, or correct config.json beside the file.",
            )
    width, text_dim = checkpoint.shape("context_embed.weight")
    is_cosine = "blocks.0.attn.scale_mul_1H11" in keys
    heads = checkpoint.shape("blocks.0.attn.scale_mul_1H11")[1] if is_cosine else int(said("num_heads", width // 64))
    is_block, is_shared = "blocks.0.ada_lin.1.weight" in keys, "blocks.0.scale_shift_table" in keys
    patch_nums, text_tokens = _hart_grids(checkpoint, overrides)
    config = HARTConfig(
        patch_nums=patch_nums,
        depth=checkpoint.count(r"blocks\.(\d+)\."),
        width=width,
        heads=heads,
        hidden=checkpoint.shape("blocks.0.ffn.gate_proj.weight")[0],
        vocab_size=checkpoint.shape("head.weight")[0],
        code_dim=checkpoint.shape("word_embed.weight")[1],
        text_dim=text_dim,
        text_tokens=text_tokens,
        modulation=MODULATIONS[1 if is_block else 2 if is_shared else 0],
        pooling=str(said("sep_aln_pooling_mode", POOLINGS[0])),
        attn_l2_norm=is_cosine,
        has_sinusoid_levels="lvl_embed.weight" not in keys,
        has_context_norm="context_norm.weight" in keys,
        residual_width=checkpoint.shape("diffloss.net.input_proj.weight")[0],
        residual_depth=checkpoint.count(r"diffloss\.net\.res_blocks\.(\d+)\."),
        residual_steps=int(said("num_sampling_steps", 8)),
        norm_eps=float(said("norm_eps", 1e-6)),
    )
    if (
        width % heads
        or config.head_dim % 4
        or patch_nums[0] != 1
        or min(patch_nums) < 1
        or text_tokens < 2
        or config.pooling not in POOLINGS
    ):
        raise ValueError(
            f"width {width}, {heads} heads, scales {patch_nums}, {text_tokens} text tokens, pooling {config.pooling}"
        )
    return config
