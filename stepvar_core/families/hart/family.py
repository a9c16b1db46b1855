"""HART as a family: how its keys and config.json become a configuration, and what it declares."""

from __future__ import annotations

import math
from dataclasses import replace

from ...checkpoints import Checkpoint
from ...codecs.vqvae import PHI, VQVAEConfig, configure_vqvae, vqvae_name
from ...errors import CheckpointMismatch
from ..family import Family, Files, Prompt, Said, holds, norm_eps
from .codec import HybridVQVAE
from .model import HART, POOLINGS, HARTConfig

HYBRID = "var_hybrid"  # what config.json of a tokenizer calls its quantiser
ONLY_HERE = ("vae.", "disc.", "decoder2.")  # how keys begin in a tokenizer's file, and in no other VQVAE's
# what config.json may say of a transformer, and what draws pictures from text
WANTED = {"attn_type": "llama", "mlp_type": "llama", "use_cross_attn": False, "sampler": "iddpm"}


def tokenizer_name(key: str) -> str:
    """The autoencoder's tensors lie under `vae.`."""
    return vqvae_name(key.removeprefix("vae."))


def is_tokenizer(checkpoint: Checkpoint, said: Said) -> bool:
    """A VAR VQVAE with HART's leftovers of training, or with a config.json that names its quantiser."""
    if not {"quantize.embedding.weight", PHI} <= {tokenizer_name(key) for key in checkpoint.tensors}:
        return False
    return said("quantizer_type") == HYBRID or any(key.startswith(ONLY_HERE) for key in checkpoint.tensors)


def configure_tokenizer(checkpoint: Checkpoint, said: Said) -> VQVAEConfig:
    """Sizes of a HART tokenizer; its scales are the published ones where config.json is missing."""
    edges = said("v_patch_nums", HARTConfig().patch_nums)
    return replace(configure_vqvae(checkpoint, said), patch_nums=tuple(int(p) for p in edges))


def _grids(checkpoint: Checkpoint, said: Said) -> tuple[tuple[int, ...], int]:
    """patch_nums and the prompt's length: said, or counted in the level buffer, or the published ones."""
    levels = checkpoint.tensors.get("lvl_1L")
    edges, text_tokens = HARTConfig().patch_nums, HARTConfig().text_tokens
    if levels is not None and not levels.is_meta:
        counts = levels.unique(return_counts=True)[1].tolist()
        text_tokens, edges = counts[0], (1, *(math.isqrt(n) for n in counts[1:]))
    return tuple(int(p) for p in said("patch_nums", edges)), int(said("context_token", text_tokens))


def _modulation(checkpoint: Checkpoint) -> str:
    if "blocks.0.ada_lin.1.weight" in checkpoint.tensors:
        return "block"
    return "shared" if "blocks.0.scale_shift_table" in checkpoint.tensors else "none"


def configure(checkpoint: Checkpoint, said: Said) -> HARTConfig:
    """Sizes of a HART transformer. Raises CheckpointMismatch for one that does not draw pictures from text."""
    for setting, wanted in WANTED.items():
        found = said(setting, wanted)
        if found != wanted:
            raise CheckpointMismatch(
                f"{checkpoint.name} is a HART with {setting} {found!r}; only {wanted!r} draws pictures from text.",
                "Use the published HART, or correct config.json beside the file.",
            )
    keys = checkpoint.tensors
    width, text_dim = checkpoint.shape("context_embed.weight")
    is_cosine = "blocks.0.attn.scale_mul_1H11" in keys
    heads = checkpoint.shape("blocks.0.attn.scale_mul_1H11")[1] if is_cosine else int(said("num_heads", width // 64))
    patch_nums, text_tokens = _grids(checkpoint, said)
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
        modulation=_modulation(checkpoint),
        pooling=str(said("sep_aln_pooling_mode", POOLINGS[0])),
        attn_l2_norm=is_cosine,
        has_sinusoid_levels="lvl_embed.weight" not in keys,
        has_context_norm="context_norm.weight" in keys,
        residual_width=checkpoint.shape("diffloss.net.input_proj.weight")[0],
        residual_depth=checkpoint.count(r"diffloss\.net\.res_blocks\.(\d+)\."),
        residual_steps=int(said("num_sampling_steps", 8)),
        norm_eps=norm_eps(said),
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


FAMILY = Family(
    title="HART",
    transformer=Files(
        what="a HART transformer",
        module=HART,
        detect=holds("context_embed.weight", "head_nm.ada_lin.1.weight", "diffloss.net.input_proj.weight"),
        configure=configure,
        legacy=(r"lvl_1L", r"attn_bias_for_masking", r"blocks\.\d+\.attn\.zero_k_bias"),
    ),
    codecs=(
        Files(
            what="a HART tokenizer",
            module=HybridVQVAE,
            detect=is_tokenizer,
            configure=configure_tokenizer,
            legacy=(r"quantize\.ema_vocab_hit_SV", r"disc\..*", r"decoder2\..*"),
            rename=tokenizer_name,
        ),
    ),
    reads=Prompt(
        encoder="hart-qwen2",
        named="Qwen2-VL-1.5B-Instruct",
        longest=HARTConfig.text_tokens,
        keeps_pads=True,
        joins=False,
    ),
    parts=("llm", "tokenizer"),
)
