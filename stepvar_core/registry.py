"""Families by what their files look like. A new family adds one entry here and one file in models/."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from .bsq_vae import BSQVAE, BSQVAEConfig, modern_name
from .checkpoints import LLM, TOKENIZER, Checkpoint, fill_module, from_metadata, read_checkpoint
from .codec import VQVAE, VQVAEConfig
from .errors import CheckpointMismatch
from .models.base import Defaults, NextScaleModel
from .models.hart import HART, MODULATIONS, POOLINGS, HARTConfig
from .models.infinity import Infinity, InfinityConfig
from .models.infinity_schedules import PIXELS_PER_TOKEN
from .models.var import VAR, VARConfig

# schedules upstream publishes, by token count, for files that do not carry their own
KNOWN_PATCH_NUMS = {680: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 2240: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}
HYBRID = "var_hybrid"  # what config.json of a HART tokenizer calls its quantiser
INFINITY_8B_BITS = 56  # 14 of its VAE times 2 x 2 cells; no published VAE has 56 channels


@dataclass(frozen=True)
class Family:
    """detect(checkpoint) -> bool reads keys only; configure(checkpoint, overrides) -> config; build(config, ops) -> module.

    legacy: patterns of saved buffers that are dropped. what: the family's name in error messages. rename(key): the
    module's name for a key of an older or otherwise grouped file; detect and configure see the new names.
    """

    name: str
    what: str
    detect: Callable[[Checkpoint], bool]
    configure: Callable[[Checkpoint, dict | None], object]
    build: Callable[..., nn.Module]
    legacy: tuple[str, ...] = ()
    rename: Callable[[str], str] = str


def _said(checkpoint: Checkpoint, overrides: dict | None):
    """said(key, default): a setting by name, from whoever says it first."""
    def said(key: str, default=None):
        value = from_metadata(checkpoint, overrides, key)
        return default if value is None else value

    return said


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
    raise CheckpointMismatch(f"{checkpoint.name} has {tokens} positions and does not say which scales they belong to.",
                             "Put a config.json with patch_nums beside it, or keep the lvl_1L buffer in the file.")


def _configure_var(checkpoint: Checkpoint, overrides: dict | None) -> VARConfig:
    said = _said(checkpoint, overrides)
    width, depth = checkpoint.shape("pos_1LC")[2], checkpoint.count(r"blocks\.(\d+)\.")
    is_cosine = "blocks.0.attn.scale_mul_1H11" in checkpoint.tensors
    heads = checkpoint.shape("blocks.0.attn.scale_mul_1H11")[1] if is_cosine else int(said("heads", depth))
    config = VARConfig(
        patch_nums=_var_patch_nums(checkpoint, overrides), depth=depth, width=width, heads=heads,
        vocab_size=checkpoint.shape("head.weight")[0], code_dim=checkpoint.shape("word_embed.weight")[1],
        num_classes=checkpoint.shape("class_emb.weight")[0] - 1, shared_aln="blocks.0.ada_gss" in checkpoint.tensors,
        attn_l2_norm=is_cosine, mlp_ratio=checkpoint.shape("blocks.0.ffn.fc1.weight")[0] / width,
        norm_eps=float(said("norm_eps", 1e-6)), labels=tuple(_label_names(said("labels", ()))))
    if width % heads or config.num_classes < 1 or min(config.patch_nums) < 1:
        raise ValueError(f"width {width}, {heads} heads, {config.num_classes} classes, scales {config.patch_nums}")
    defaults = said("defaults", None)
    return replace(config, defaults=Defaults(**defaults)) if isinstance(defaults, dict) else config


def _label_names(labels) -> list[str]:
    """Class names, `;`-joined with their aliases, in index order."""
    return [entry if isinstance(entry, str) else ";".join([entry["name"], *entry.get("aliases", ())]) for entry in labels]


def _configure_vqvae(checkpoint: Checkpoint, overrides: dict | None) -> VQVAEConfig:
    said = _said(checkpoint, overrides)
    vocab_size, dim = checkpoint.shape("quantize.embedding.weight")
    sizes = dict(z_channels=dim, vocab_size=vocab_size, quant_resi=float(said("quant_resi", 0.5)),
                 share_quant_resi=checkpoint.count(r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
                 norm_groups=int(said("norm_groups", 32)), has_encoder="encoder.conv_in.weight" in checkpoint.tensors,
                 has_decoder="decoder.conv_in.weight" in checkpoint.tensors, has_residual=said("quantizer_type") == HYBRID)
    if said("patch_nums", None):
        sizes["patch_nums"] = tuple(int(p) for p in said("patch_nums", ()))
    if sizes["has_encoder"]:
        levels = checkpoint.count(r"encoder\.down\.(\d+)\.")
        ch = checkpoint.shape("encoder.conv_in.weight")[0]
        widths = [checkpoint.shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)]
        blocks = checkpoint.count(r"encoder\.down\.0\.block\.(\d+)\.")
    elif sizes["has_decoder"]:
        levels = checkpoint.count(r"decoder\.up\.(\d+)\.")
        widths = [checkpoint.shape(f"decoder.up.{i}.block.0.conv1.weight")[0] for i in range(levels)]
        ch = math.gcd(*widths)  # every level is a multiple of it
        blocks = checkpoint.count(r"decoder\.up\.0\.block\.(\d+)\.") - 1
    else:
        return VQVAEConfig(**sizes)
    return VQVAEConfig(ch=ch, ch_mult=tuple(w // ch for w in widths), num_res_blocks=blocks, **sizes)


def _infinity_block_name(key: str) -> str:
    """A file saved without chunks counts blocks.N: one chunk holds them all."""
    return re.sub(r"^blocks\.(\d+)\.", r"block_chunks.0.module.\1.", key)


def _configure_infinity(checkpoint: Checkpoint, overrides: dict | None) -> InfinityConfig:
    said, first = _said(checkpoint, overrides), "block_chunks.0.module.0."
    chunk = checkpoint.count(r"block_chunks\.0\.module\.(\d+)\.")
    last_chunk = checkpoint.count(r"block_chunks\.(\d+)\.") - 1
    width, bits = checkpoint.shape("word_embed.weight")
    text_maxlen, text_dim = checkpoint.shape("cfg_uncond")
    is_patched = bool(int(said("apply_spatial_patchify", bits == INFINITY_8B_BITS)))
    config = InfinityConfig(
        depth=chunk * last_chunk + checkpoint.count(rf"block_chunks\.{last_chunk}\.module\.(\d+)\."), chunk=chunk, width=width, bits=bits,
        heads=checkpoint.shape(first + "sa.scale_mul_1H11")[1], hidden=checkpoint.shape(first + "ffn.fc1.weight")[0],
        patch=2 if is_patched else 1, text_dim=text_dim, text_maxlen=text_maxlen,
        pool_heads=checkpoint.shape("text_proj_for_sos.ca.mat_q")[1], levels=checkpoint.shape("lvl_embed.weight")[0],
        norm_eps=float(said("norm_eps", 1e-6)))
    if config.head_dim * config.heads != width or config.head_dim % 4 or width % config.pool_heads or config.code_dim * config.patch ** 2 != bits:
        raise ValueError(f"width {width}, {config.heads} and {config.pool_heads} heads, {bits} bits")
    # the official notebook's settings of 8B
    return replace(config, defaults=replace(config.defaults, cfg=3.0, temperature=1.0)) if is_patched else config


def _configure_hart_tokenizer(checkpoint: Checkpoint, overrides: dict | None) -> VQVAEConfig:
    config, edges = _configure_vqvae(checkpoint, overrides), _said(checkpoint, overrides)("v_patch_nums", HARTConfig().patch_nums)
    return replace(config, has_residual=True, patch_nums=tuple(int(p) for p in edges))


def _hart_tokenizer_name(key: str) -> str:
    """The autoencoder's tensors lie under `vae.`; a single shared convolution has a name of its own."""
    return re.sub(r"^quantize\.quant_resi\.qresi\.", "quantize.quant_resi.qresi_ls.0.", key.removeprefix("vae."))


def _hart_grids(checkpoint: Checkpoint, overrides: dict | None) -> tuple[tuple[int, ...], int]:
    """patch_nums and the prompt's length: said, or counted in the level buffer, or the published ones."""
    said, levels = _said(checkpoint, overrides), checkpoint.tensors.get("lvl_1L")
    edges, text_tokens = HARTConfig().patch_nums, HARTConfig().text_tokens
    if levels is not None and not levels.is_meta:
        counts = levels.unique(return_counts=True)[1].tolist()
        text_tokens, edges = counts[0], (1, *(math.isqrt(n) for n in counts[1:]))
    return tuple(int(p) for p in said("patch_nums", edges)), int(said("context_token", text_tokens))


def _configure_hart(checkpoint: Checkpoint, overrides: dict | None) -> HARTConfig:
    said, keys = _said(checkpoint, overrides), checkpoint.tensors
    for setting, wanted in (("attn_type", "llama"), ("mlp_type", "llama"), ("use_cross_attn", False), ("sampler", "iddpm")):
        found = said(setting, wanted)
        if found != wanted:
            raise CheckpointMismatch(f"{checkpoint.name} is a HART with {setting} {found!r}; only {wanted!r} draws pictures from text.",
                                     "Use the published HART, or correct config.json beside the file.")
    width, text_dim = checkpoint.shape("context_embed.weight")
    is_cosine = "blocks.0.attn.scale_mul_1H11" in keys
    heads = checkpoint.shape("blocks.0.attn.scale_mul_1H11")[1] if is_cosine else int(said("num_heads", width // 64))
    is_block, is_shared = "blocks.0.ada_lin.1.weight" in keys, "blocks.0.scale_shift_table" in keys
    patch_nums, text_tokens = _hart_grids(checkpoint, overrides)
    config = HARTConfig(
        patch_nums=patch_nums, depth=checkpoint.count(r"blocks\.(\d+)\."), width=width, heads=heads,
        hidden=checkpoint.shape("blocks.0.ffn.gate_proj.weight")[0], vocab_size=checkpoint.shape("head.weight")[0],
        code_dim=checkpoint.shape("word_embed.weight")[1], text_dim=text_dim, text_tokens=text_tokens,
        modulation=MODULATIONS[1 if is_block else 2 if is_shared else 0], pooling=str(said("sep_aln_pooling_mode", POOLINGS[0])),
        attn_l2_norm=is_cosine, has_sinusoid_levels="lvl_embed.weight" not in keys, has_context_norm="context_norm.weight" in keys,
        residual_width=checkpoint.shape("diffloss.net.input_proj.weight")[0],
        residual_depth=checkpoint.count(r"diffloss\.net\.res_blocks\.(\d+)\."), residual_steps=int(said("num_sampling_steps", 8)),
        norm_eps=float(said("norm_eps", 1e-6)))
    if width % heads or config.head_dim % 4 or patch_nums[0] != 1 or min(patch_nums) < 1 or text_tokens < 2 or config.pooling not in POOLINGS:
        raise ValueError(f"width {width}, {heads} heads, scales {patch_nums}, {text_tokens} text tokens, pooling {config.pooling}")
    return config


def _is_bsq_vae(checkpoint: Checkpoint) -> bool:
    keys = checkpoint.tensors.keys()
    return (any(f"{part}.mid.block_1.norm1.norm.weight" in keys for part in ("encoder", "decoder"))
            and not any(k.startswith(("quant_conv.", "quantize.embedding.", "encoder.mid.attn_1.", "decoder.mid.attn_1.")) for k in keys))


def _configure_bsq_vae(checkpoint: Checkpoint, overrides: dict | None) -> BSQVAEConfig:
    said = _said(checkpoint, overrides)
    has_encoder, has_decoder = ("encoder.conv_in.conv.weight" in checkpoint.tensors, "decoder.conv_in.conv.weight" in checkpoint.tensors)
    part, side, extra = ("decoder", "up", 1) if has_decoder else ("encoder", "down", 0)
    levels = checkpoint.count(rf"{part}\.{side}\.(\d+)\.")
    widths = [checkpoint.shape(f"{part}.{side}.{i}.block.0.conv1.conv.weight")[0] for i in range(levels)]
    dim = checkpoint.shape("decoder.conv_in.conv.weight")[1] if has_decoder else checkpoint.shape("encoder.conv_out.conv.weight")[0]
    # every model sees one token per 16 pixels: a VAE of stride 8 belongs to one that reads 2 x 2 cells at once
    is_patched = bool(int(said("apply_spatial_patchify", 2 ** (levels - 1) < PIXELS_PER_TOKEN)))
    return BSQVAEConfig(ch=widths[0], ch_mult=tuple(w // widths[0] for w in widths), z_channels=dim, patch=2 if is_patched else 1,
                        num_res_blocks=checkpoint.count(rf"{part}\.{side}\.0\.block\.(\d+)\.") - extra,
                        norm_groups=int(said("norm_groups", 32)), has_encoder=has_encoder, has_decoder=has_decoder)


MODELS: dict[str, Family] = {
    "var": Family("var", "a VAR transformer", lambda c: {"pos_1LC", "class_emb.weight", "head_nm.ada_lin.1.weight"} <= c.tensors.keys(),
                  _configure_var, VAR, (r"lvl_1L", r"attn_bias_for_masking", r"blocks\.\d+\.attn\.zero_k_bias")),
    "infinity": Family("infinity", "an Infinity transformer",
                       lambda c: {"cfg_uncond", "text_proj_for_sos.ca.mat_q", "block_chunks.0.module.0.ca.mat_kv.weight"} <= c.tensors.keys(),
                       _configure_infinity, Infinity,
                       (r".*\.zero_k_bias", r"lvl_1L", r"attn_bias_for_masking", r"Infinity_(in)?visible_(kv|q)len"), _infinity_block_name),
    "hart": Family("hart", "a HART transformer",
                   lambda c: {"context_embed.weight", "head_nm.ada_lin.1.weight", "diffloss.net.input_proj.weight"} <= c.tensors.keys(),
                   _configure_hart, HART, (r"lvl_1L", r"attn_bias_for_masking", r"blocks\.\d+\.attn\.zero_k_bias")),
}
CODECS: dict[str, Family] = {
    "vqvae": Family("vqvae", "a VAR VQVAE", lambda c: {"quantize.embedding.weight", "quantize.quant_resi.qresi_ls.0.weight"} <= c.tensors.keys(),
                    _configure_vqvae, VQVAE, (r"quantize\.ema_vocab_hit_SV",)),
    "hart_tokenizer": Family("hart_tokenizer", "a HART tokenizer",
                             lambda c: {"quantize.embedding.weight", "quantize.quant_resi.qresi_ls.0.weight"} <= c.tensors.keys(),
                             _configure_hart_tokenizer, VQVAE, (r"quantize\.ema_vocab_hit_SV", r"disc\..*", r"decoder2\..*"), _hart_tokenizer_name),
    "bsq_vae": Family("bsq_vae", "an Infinity VAE", _is_bsq_vae, _configure_bsq_vae, BSQVAE,
                      # the bit mask is 2^k, and training leaves discriminators and losses behind
                      (r"(?!encoder\.|decoder\.).*",), modern_name),
}


def detect(checkpoint: Checkpoint, families: dict[str, Family], wanted: str) -> Family:
    """The family whose keys the file has. Raises CheckpointMismatch saying what the file is instead, if we know it."""
    for family in families.values():
        if family.detect(_renamed(checkpoint, family)):
            return family
    others = [f.what for table in (MODELS, CODECS) if table is not families for f in table.values() if f.detect(_renamed(checkpoint, f))]
    found = others[0] if others else f"a file with {len(checkpoint.tensors)} tensors such as {', '.join(list(checkpoint.tensors)[:3])}"
    raise CheckpointMismatch(f"{checkpoint.name} is {found}, not {wanted}.",
                             f"Known here: {', '.join(f.what for f in families.values())}.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _renamed(checkpoint: Checkpoint, family: Family) -> Checkpoint:
    return replace(checkpoint, tensors={family.rename(key): tensor for key, tensor in checkpoint.tensors.items()})


def build(family: Family, checkpoint: Checkpoint, *, ops=nn, dtype=torch.float32, device="cpu", config: dict | None = None) -> nn.Module:
    """The family's module with the checkpoint's weights, in `dtype` on `device`, ready for inference."""
    checkpoint = _renamed(checkpoint, family)
    try:
        settings = family.configure(checkpoint, config)
        with torch.device("meta"):
            module = family.build(settings, ops)
    except (KeyError, TypeError, IndexError, ValueError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        if isinstance(error, CheckpointMismatch):
            raise
        raise CheckpointMismatch(f"{checkpoint.name} looks like {family.what}, but its sizes make no sense ({_first_line(error)}).",
                                 "Download it again, or check config.json beside it.") from error
    fill_module(module, checkpoint, family.legacy, family.what, assign=True)
    return module.place(device, dtype).requires_grad_(False).train(False)


def load_model(path, device="cpu", dtype=torch.float32, config: dict | None = None, ops=nn) -> NextScaleModel:
    """Loads a transformer; family and sizes come from the file (see DESIGN 1). Raises CheckpointMismatch.

    path: a .safetensors, .pth or .bin file, a folder of shards, or a folder of parts (HART: llm and tokenizer). config: overrides by name, unknown names are ignored.
    """
    checkpoint = read_checkpoint(path, part=LLM)
    return build(detect(checkpoint, MODELS, "a next-scale transformer"), checkpoint, ops=ops, dtype=dtype, device=device, config=config)


def load_vae(path, device="cpu", dtype=torch.float32, config: dict | None = None, ops=nn):
    """Loads a codec; files that hold only the quantiser load too, decoding with them raises. Raises CheckpointMismatch."""
    checkpoint = read_checkpoint(path, part=TOKENIZER)
    return build(detect(checkpoint, CODECS, "a next-scale VAE"), checkpoint, ops=ops, dtype=dtype, device=device, config=config)
