"""VAR as a family: how its keys become a configuration, and what it declares."""

from __future__ import annotations

import math
from dataclasses import replace

from ...checkpoints import Checkpoint
from ...codecs.vqvae import VQVAE, configure_vqvae, is_vqvae, vqvae_name
from ...errors import CheckpointMismatch
from ..base import Defaults
from ..family import Family, Files, Labels, Said, holds, norm_eps
from .model import VAR, VARConfig

# schedules upstream publishes, by token count, for files that do not carry their own
KNOWN_PATCH_NUMS = {680: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 2240: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}


def _patch_nums(checkpoint: Checkpoint, said: Said) -> tuple[int, ...]:
    if edges := said("patch_nums"):
        return tuple(int(p) for p in edges)
    tokens = checkpoint.shape("pos_1LC")[1]
    if "lvl_1L" in checkpoint.tensors:
        counts = checkpoint.tensors["lvl_1L"].unique(return_counts=True)[1].tolist()
        edges = tuple(math.isqrt(n) for n in counts)
        if all(e * e == n for e, n in zip(edges, counts)):
            return edges
    if tokens in KNOWN_PATCH_NUMS:
        return KNOWN_PATCH_NUMS[tokens]
    raise CheckpointMismatch(
        f"{checkpoint.name} has {tokens} positions and does not say which scales they belong to.",
        "Put a config.json with patch_nums beside it, or keep the lvl_1L buffer in the file.",
    )


def configure(checkpoint: Checkpoint, said: Said) -> VARConfig:
    """Sizes of a VAR transformer. Raises CheckpointMismatch when the file does not say its scales."""
    width, depth = checkpoint.shape("pos_1LC")[2], checkpoint.count(r"blocks\.(\d+)\.")
    is_cosine = "blocks.0.attn.scale_mul_1H11" in checkpoint.tensors
    heads = checkpoint.shape("blocks.0.attn.scale_mul_1H11")[1] if is_cosine else int(said("heads", depth))
    config = VARConfig(
        patch_nums=_patch_nums(checkpoint, said),
        depth=depth,
        width=width,
        heads=heads,
        vocab_size=checkpoint.shape("head.weight")[0],
        code_dim=checkpoint.shape("word_embed.weight")[1],
        num_classes=checkpoint.shape("class_emb.weight")[0] - 1,
        shared_aln="blocks.0.ada_gss" in checkpoint.tensors,
        attn_l2_norm=is_cosine,
        mlp_ratio=checkpoint.shape("blocks.0.ffn.fc1.weight")[0] / width,
        norm_eps=norm_eps(said),
        labels=tuple(_label_names(said("labels", ()))),
    )
    if width % heads or config.num_classes < 1 or min(config.patch_nums) < 1:
        raise ValueError(f"width {width}, {heads} heads, {config.num_classes} classes, scales {config.patch_nums}")
    defaults = said("defaults", None)
    return replace(config, defaults=Defaults(**defaults)) if isinstance(defaults, dict) else config


def _label_names(labels) -> list[str]:
    """Class names, `;`-joined with their aliases, in index order."""
    return [
        entry if isinstance(entry, str) else ";".join([entry["name"], *entry.get("aliases", ())]) for entry in labels
    ]


def vae_names(config: VARConfig) -> tuple[str, ...]:
    return ("vae_ch160v4096z32",) if config.code_dim == 32 else ()


FAMILY = Family(
    title="VAR",
    transformer=Files(
        what="a VAR transformer",
        module=VAR,
        detect=holds("pos_1LC", "class_emb.weight", "head_nm.ada_lin.1.weight"),
        configure=configure,
        legacy=(r"lvl_1L", r"attn_bias_for_masking", r"blocks\.\d+\.attn\.zero_k_bias"),
    ),
    codecs=(
        Files(
            what="a VAR VQVAE",
            module=VQVAE,
            detect=is_vqvae,
            configure=configure_vqvae,
            legacy=(r"quantize\.ema_vocab_hit_SV",),
            rename=vqvae_name,
        ),
    ),
    reads=Labels(),
    vae_names=vae_names,
)
