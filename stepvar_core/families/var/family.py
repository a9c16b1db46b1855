"""VAR as files: how its keys become a configuration."""

from __future__ import annotations

import math
from dataclasses import replace

from ...checkpoints import Checkpoint, from_metadata, settings
from ...errors import CheckpointMismatch
from ..base import Defaults
from .model import VARConfig

# schedules upstream publishes, by token count, for files that do not carry their own
KNOWN_PATCH_NUMS = {680: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 2240: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}


def _var_patch_nums(checkpoint: Checkpoint, overrides: dict | None) -> tuple[int, ...]:
    said = from_metadata(checkpoint, overrides, "patch_nums")
    if said:
        return tuple(int(p) for p in said)
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


def _configure_var(checkpoint: Checkpoint, overrides: dict | None) -> VARConfig:
    said = settings(checkpoint, overrides)
    width, depth = checkpoint.shape("pos_1LC")[2], checkpoint.count(r"blocks\.(\d+)\.")
    is_cosine = "blocks.0.attn.scale_mul_1H11" in checkpoint.tensors
    heads = checkpoint.shape("blocks.0.attn.scale_mul_1H11")[1] if is_cosine else int(said("heads", depth))
    config = VARConfig(
        patch_nums=_var_patch_nums(checkpoint, overrides),
        depth=depth,
        width=width,
        heads=heads,
        vocab_size=checkpoint.shape("head.weight")[0],
        code_dim=checkpoint.shape("word_embed.weight")[1],
        num_classes=checkpoint.shape("class_emb.weight")[0] - 1,
        shared_aln="blocks.0.ada_gss" in checkpoint.tensors,
        attn_l2_norm=is_cosine,
        mlp_ratio=checkpoint.shape("blocks.0.ffn.fc1.weight")[0] / width,
        norm_eps=float(said("norm_eps", 1e-6)),
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
