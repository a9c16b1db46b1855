"""Switti as files: how its keys and config.json become a configuration, and what the family declares."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from ...checkpoints import Checkpoint
from ...codecs.vqvae import VQVAE, VQVAEConfig, configure_vqvae, is_vqvae, vqvae_name
from ...errors import CheckpointMismatch
from ..family import Family, Files, Prompt, Said, holds, norm_eps
from .model import PATCH_NUMS, Switti, SwittiConfig

log = logging.getLogger(__name__)

HEAD_DIM = 64
BY_LEVELS = {len(PATCH_NUMS[size]): PATCH_NUMS[size] for size in (512, 1024)}
CLIP_TOKENS = 77


def grids(checkpoint: Checkpoint, said: Said) -> tuple[int, ...]:
    """The scales: said, or those of the size that is said, or counted in the level buffer, or of the published model
    with as many levels."""
    edges, size, levels = said("patch_nums", None), said("reso", None), checkpoint.tensors.get("lvl_1L")
    if edges is None and size is not None:
        edges = PATCH_NUMS[int(size)]
    if edges is None and levels is not None and not levels.is_meta:
        edges = [math.isqrt(n) for n in levels.unique(return_counts=True)[1].tolist()]
    return tuple(int(p) for p in edges or BY_LEVELS[checkpoint.shape("lvl_embed.weight")[0]])


def configure(checkpoint: Checkpoint, said: Said) -> SwittiConfig:
    for setting in ("rope", "use_swiglu_ffn", "use_crop_cond"):
        if not said(setting, True):
            raise CheckpointMismatch(
                f"{checkpoint.name} is a Switti with {setting} {said(setting, True)!r}; only True was ever published.",
                "Use a published Switti, or correct config.json beside the file.",
            )
    is_causal = said("use_ar", None)
    if is_causal is None:
        # not told by the saved attention mask either: upstream overwrites it when training goes on at another size
        log.warning(
            "Nothing beside %s says use_ar: it is taken for a Switti whose scales see themselves alone. Keep its "
            "config.json in the same folder, above all for the AR models.",
            checkpoint.name,
        )
    width, pooled_dim = checkpoint.shape("text_pooler.weight")
    config = SwittiConfig(
        patch_nums=grids(checkpoint, said),
        depth=checkpoint.count(r"blocks\.(\d+)\."),
        width=width,
        heads=int(said("num_heads", width // HEAD_DIM)),
        hidden=checkpoint.shape("blocks.0.ffn.gate_proj.weight")[0],
        vocab_size=checkpoint.shape("head.weight")[0],
        code_dim=checkpoint.shape("word_embed.weight")[1],
        text_dim=checkpoint.shape("blocks.0.cross_attn.to_kv.weight")[1],
        pooled_dim=pooled_dim,
        is_causal=bool(is_causal),
        rotary_base=float(said("rope_theta", SwittiConfig.rotary_base)),
        rotary_span=float(said("rope_size", SwittiConfig.rotary_span)),
        norm_eps=norm_eps(said, SwittiConfig.norm_eps),
    )
    levels = checkpoint.shape("lvl_embed.weight")[0]
    if width % config.heads or config.head_dim % 4 or len(config.patch_nums) != levels or min(config.patch_nums) < 1:
        raise ValueError(f"width {width}, {config.heads} heads, scales {config.patch_nums}, {levels} levels")
    return config


def is_switti_vqvae(checkpoint: Checkpoint, said: Said) -> bool:
    """VAR's layout under a config.json that names a size."""
    return is_vqvae(checkpoint, said) and said("reso", None) is not None


def configure_switti_vqvae(checkpoint: Checkpoint, said: Said) -> VQVAEConfig:
    edges = said("patch_nums", PATCH_NUMS[int(said("reso", 1024))])
    return replace(configure_vqvae(checkpoint, said), patch_nums=tuple(int(p) for p in edges))


FAMILY = Family(
    title="Switti",
    transformer=Files(
        what="a Switti transformer",
        module=Switti,
        detect=holds("text_pooler.weight", "crop_embed.weight", "blocks.0.attention_y_norm.weight"),
        configure=configure,
        legacy=(r"lvl_1L", r"attn_bias_for_masking"),
    ),
    codecs=(
        Files(
            what="a Switti VQVAE",
            module=VQVAE,
            detect=is_switti_vqvae,
            configure=configure_switti_vqvae,
            legacy=(r"quantize\.ema_vocab_hit_SV",),
            rename=vqvae_name,
        ),
    ),
    reads=Prompt(
        encoder="switti-clip", named="CLIP-L and OpenCLIP bigG", longest=CLIP_TOKENS, pooled=True, joins=False
    ),
    vae_names=lambda config: ("VQVAE-Switti",),
)
