"""Families by what their files look like. A new family adds one entry here and one file in models/."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..checkpoints import LLM, TOKENIZER, Checkpoint, fill_module, read_checkpoint
from ..codecs.vqvae import VQVAE, _configure_vqvae
from ..errors import CheckpointMismatch
from .base import NextScaleModel
from .family import Family
from .hart.family import _configure_hart, _configure_hart_tokenizer, _hart_tokenizer_name
from .hart.model import HART
from .infinity.family import _configure_infinity, _infinity_block_name
from .infinity.model import Infinity
from .infinity.vae import BSQVAE, _configure_bsq_vae, _is_bsq_vae, modern_name
from .var.family import _configure_var
from .var.model import VAR

MODELS: dict[str, Family] = {
    "var": Family(
        "var",
        "a VAR transformer",
        lambda c: {"pos_1LC", "class_emb.weight", "head_nm.ada_lin.1.weight"} <= c.tensors.keys(),
        _configure_var,
        VAR,
        (r"lvl_1L", r"attn_bias_for_masking", r"blocks\.\d+\.attn\.zero_k_bias"),
    ),
    "infinity": Family(
        "infinity",
        "an Infinity transformer",
        lambda c: (
            {"cfg_uncond", "text_proj_for_sos.ca.mat_q", "block_chunks.0.module.0.ca.mat_kv.weight"} <= c.tensors.keys()
        ),
        _configure_infinity,
        Infinity,
        (r".*\.zero_k_bias", r"lvl_1L", r"attn_bias_for_masking", r"Infinity_(in)?visible_(kv|q)len"),
        _infinity_block_name,
    ),
    "hart": Family(
        "hart",
        "a HART transformer",
        lambda c: (
            {"context_embed.weight", "head_nm.ada_lin.1.weight", "diffloss.net.input_proj.weight"} <= c.tensors.keys()
        ),
        _configure_hart,
        HART,
        (r"lvl_1L", r"attn_bias_for_masking", r"blocks\.\d+\.attn\.zero_k_bias"),
    ),
}
CODECS: dict[str, Family] = {
    "vqvae": Family(
        "vqvae",
        "a VAR VQVAE",
        lambda c: {"quantize.embedding.weight", "quantize.quant_resi.qresi_ls.0.weight"} <= c.tensors.keys(),
        _configure_vqvae,
        VQVAE,
        (r"quantize\.ema_vocab_hit_SV",),
    ),
    "hart_tokenizer": Family(
        "hart_tokenizer",
        "a HART tokenizer",
        lambda c: {"quantize.embedding.weight", "quantize.quant_resi.qresi_ls.0.weight"} <= c.tensors.keys(),
        _configure_hart_tokenizer,
        VQVAE,
        (r"quantize\.ema_vocab_hit_SV", r"disc\..*", r"decoder2\..*"),
        _hart_tokenizer_name,
    ),
    "bsq_vae": Family(
        "bsq_vae",
        "an Infinity VAE",
        _is_bsq_vae,
        _configure_bsq_vae,
        BSQVAE,
        # the bit mask is 2^k, and training leaves discriminators and losses behind
        (r"(?!encoder\.|decoder\.).*",),
        modern_name,
    ),
}


def detect(checkpoint: Checkpoint, families: dict[str, Family], wanted: str) -> Family:
    """The family whose keys the file has. Raises CheckpointMismatch saying what the file is instead, if we know it."""
    for family in families.values():
        if family.detect(_renamed(checkpoint, family)):
            return family
    others = [
        f.what
        for table in (MODELS, CODECS)
        if table is not families
        for f in table.values()
        if f.detect(_renamed(checkpoint, f))
    ]
    found = (
        others[0]
        if others
        else f"a file with {len(checkpoint.tensors)} tensors such as {', '.join(list(checkpoint.tensors)[:3])}"
    )
    raise CheckpointMismatch(
        f"{checkpoint.name} is {found}, not {wanted}.", f"Known here: {', '.join(f.what for f in families.values())}."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _renamed(checkpoint: Checkpoint, family: Family) -> Checkpoint:
    return replace(checkpoint, tensors={family.rename(key): tensor for key, tensor in checkpoint.tensors.items()})


def build(
    family: Family, checkpoint: Checkpoint, *, ops=nn, dtype=torch.float32, device="cpu", config: dict | None = None
) -> nn.Module:
    """The family's module with the checkpoint's weights, in `dtype` on `device`, ready for inference."""
    checkpoint = _renamed(checkpoint, family)
    try:
        settings = family.configure(checkpoint, config)
        with torch.device("meta"):
            module = family.build(settings, ops)
    except (KeyError, TypeError, IndexError, ValueError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        if isinstance(error, CheckpointMismatch):
            raise
        raise CheckpointMismatch(
            f"{checkpoint.name} looks like {family.what}, but its sizes make no sense ({_first_line(error)}).",
            "Download it again, or check config.json beside it.",
        ) from error
    fill_module(module, checkpoint, family.legacy, family.what, assign=True)
    return module.place(device, dtype).requires_grad_(False).train(False)


def load_model(path, device="cpu", dtype=torch.float32, config: dict | None = None, ops=nn) -> NextScaleModel:
    """Loads a transformer; family and sizes come from the file (see DESIGN 1). Raises CheckpointMismatch.

    path: a .safetensors, .pth or .bin file, a folder of shards, or a folder of parts (HART: llm and tokenizer).
    config: overrides by name, unknown names are ignored.
    """
    checkpoint = read_checkpoint(path, part=LLM)
    return build(
        detect(checkpoint, MODELS, "a next-scale transformer"),
        checkpoint,
        ops=ops,
        dtype=dtype,
        device=device,
        config=config,
    )


def load_vae(path, device="cpu", dtype=torch.float32, config: dict | None = None, ops=nn):
    """Loads a codec; files that hold only the quantiser load too, decoding with them raises. Raises
    CheckpointMismatch."""
    checkpoint = read_checkpoint(path, part=TOKENIZER)
    return build(
        detect(checkpoint, CODECS, "a next-scale VAE"), checkpoint, ops=ops, dtype=dtype, device=device, config=config
    )
