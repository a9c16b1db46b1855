"""Small random checkpoints with exactly the public files' keys, so that workflows made for those files run here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from stepvar_core.codecs.vqvae import VQVAE, VQVAEConfig
from stepvar_core.families.hart.model import HART, HARTConfig
from stepvar_core.families.infinity.model import Infinity, InfinityConfig
from stepvar_core.families.infinity.vae import BSQVAE, BSQVAEConfig
from stepvar_core.families.switti.model import PATCH_NUMS, Switti, SwittiConfig
from stepvar_core.families.var.model import VAR, VARConfig

CODES, CHANNELS = 64, 32
TEXT = 32  # channels of the small T5


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
    """var_d30.pth with depth 30, 30 heads, 1000 classes and the official scales, but 60 channels; legacy buffers
    included."""
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


def write_t5(folder: Path, width: int = TEXT, shard_bytes: str = "3MB", **sizes) -> torch.nn.Module:
    """A folder as google/flan-t5-xl has it, decoder included, with a small T5; returns its encoder. The vocabulary is
    T5's own.

    Weights are numbers that float16 holds, so that a host which stores the encoder in float16 changes nothing.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        **{
            "vocab_size": 32128,
            "d_model": width,
            "d_kv": 8,
            "d_ff": 2 * width,
            "num_layers": 3,
            "num_decoder_layers": 1,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 0,
            **sizes,
        }
    )
    model = T5ForConditionalGeneration(config).train(False).requires_grad_(False)
    generator = torch.Generator().manual_seed(32)
    for name, parameter in model.named_parameters():
        spread = 1.0 if parameter.ndim == 1 or "shared" in name else 1 / math.sqrt(parameter.shape[1])
        parameter.copy_((torch.randn(parameter.shape, generator=generator) * spread).half().float())
    model.save_pretrained(folder, max_shard_size=shard_bytes)
    return model.encoder


def _infinity(seed: int, **sizes) -> dict[str, torch.Tensor]:
    """Infinity with two narrow blocks, each its own chunk; the bits, the levels and the text's length are official."""
    return _random(
        Infinity(InfinityConfig(depth=2, chunk=1, width=64, heads=2, hidden=128, text_dim=TEXT, pool_heads=2, **sizes)),
        seed,
    )


def write_infinity_2b(path: Path) -> None:
    """infinity_2b_reg.pth: a flat dict, legacy buffers included."""
    tensors = _infinity(33, bits=32)
    tensors["lvl_1L"] = torch.zeros(1, 10521, dtype=torch.int64)
    torch.save(tensors, path)


def write_infinity_8b(folder: Path, form: str = "safetensors") -> None:
    """infinity_8b_weights: an index and two shards, `form` safetensors or bin."""
    tensors = _infinity(34, bits=56, patch=2)
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    keys, weight_map = list(tensors), {}
    for i, part in enumerate((keys[::2], keys[1::2])):
        name = f"{stem}-0000{i + 1}-of-00002.{suffix}"
        weight_map |= dict.fromkeys(part, name)
        (save_file if form == "safetensors" else torch.save)(
            {key: tensors[key].contiguous() for key in part}, folder / name
        )
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _bsq_vae(path: Path, levels: int, dim: int, seed: int) -> None:
    """An Infinity VAE as upstream saves it, of the official depth with 32 channels and as few convolutions as there
    can be in every level."""
    patch = 2 if levels == 4 else 1
    tensors = _random(
        BSQVAE(BSQVAEConfig(ch=32, ch_mult=(1,) * levels, num_res_blocks=0, z_channels=dim, patch=patch)), seed
    )
    mask = 2 ** torch.arange(dim - 1, -1, -1)
    torch.save({"vae": tensors | {"quantizer.lfq.mask": mask, "quantize.lfq.mask": mask}}, path)


def write_vae_2b(path: Path) -> None:
    _bsq_vae(path, 5, 32, 35)


def write_vae_8b(path: Path) -> None:
    _bsq_vae(path, 4, 14, 36)


HART_SMALL = (1, 2, 3, 4, 5, 7, 9, 12, 16)  # of the official scales those up to 256 pixels


def write_hart(folder: Path, patch_nums: tuple[int, ...] = HARTConfig().patch_nums) -> None:
    """hart-0.7b-1024px with two narrow blocks: llm with averaged and other weights, tokenizer with encoder and
    discriminator."""
    config = HARTConfig(
        patch_nums=patch_nums,
        depth=2,
        width=64,
        heads=2,
        hidden=128,
        vocab_size=CODES,
        text_dim=TEXT,
        residual_width=32,
        residual_depth=1,
    )
    tensors = _random(HART(config), 37)
    levels = torch.repeat_interleave(
        torch.arange(len(patch_nums)), torch.tensor([config.text_tokens, *(p * p for p in patch_nums[1:])])
    )
    (folder / "llm").mkdir(parents=True, exist_ok=True)
    torch.save(tensors | {"lvl_1L": levels[None]}, folder / "llm" / "ema_model.bin")
    torch.save(
        {key: tensor + 1 for key, tensor in tensors.items()} | {"lvl_1L": levels[None]},
        folder / "llm" / "pytorch_model.bin",
    )
    (folder / "llm" / "config.json").write_text(
        json.dumps(
            {
                "model_type": "hart_transformer_t2i",
                "patch_nums": patch_nums,
                "context_token": config.text_tokens,
                "num_heads": config.heads,
                "attn_type": "llama",
                "mlp_type": "llama",
                "num_sampling_steps": "8",
                "sampler": "iddpm",
                "use_cross_attn": False,
                "sep_aln_pooling_mode": "max",
            }
        )
    )
    vae = _random(
        VQVAE(VQVAEConfig(ch=32, ch_mult=(1,) * 5, num_res_blocks=1, z_channels=CHANNELS, vocab_size=CODES)), 38
    )
    (folder / "tokenizer").mkdir(exist_ok=True)
    save_file(
        {f"vae.{key}": tensor.contiguous() for key, tensor in vae.items()}
        | {"disc.main.0.weight": torch.zeros(2, 3, 4, 4)},
        folder / "tokenizer" / "model.safetensors",
    )
    (folder / "tokenizer" / "config.json").write_text(
        json.dumps(
            {
                "model_type": "hart_autoencoder_with_disc",
                "quantizer_type": "var_hybrid",
                "v_patch_nums": patch_nums,
                "quant_resi": 0.5,
            }
        )
    )


def write_qwen2(folder: Path, padding_side: str = "left") -> torch.nn.Module:
    """A folder as mit-han-lab/Qwen2-VL-1.5B-Instruct has it, with a small Qwen2; returns the model. The vocabulary is
    Qwen2's own."""
    from transformers import Qwen2Config, Qwen2Model

    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=TEXT,
        intermediate_size=2 * TEXT,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    model = Qwen2Model(config).train(False).requires_grad_(False)
    generator = torch.Generator().manual_seed(39)
    for parameter in model.parameters():
        spread = 0.5 if parameter.ndim == 1 else 1 / math.sqrt(parameter.shape[1])
        parameter.copy_((torch.randn(parameter.shape, generator=generator) * spread).half().float())
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"padding_side": padding_side, "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"})
    )
    return model


CLIP_WIDTHS = (8, 24)  # of the small CLIP-L and bigG; together what the small Switti reads


def write_switti(folder: Path, size: int = 1024, use_ar: bool = False) -> None:
    """Switti-1024 as the hub has it, or of another size or kind, with two narrow blocks; buffers included."""
    config = SwittiConfig(
        patch_nums=PATCH_NUMS[size],
        depth=2,
        width=128,
        heads=2,
        hidden=341,
        vocab_size=CODES,
        text_dim=sum(CLIP_WIDTHS),
        pooled_dim=CLIP_WIDTHS[1],
    )
    tensors = _random(Switti(config), 43)
    levels = torch.repeat_interleave(
        torch.arange(len(config.patch_nums)), torch.tensor([p * p for p in config.patch_nums])
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}
        | {"lvl_1L": levels[None], "attn_bias_for_masking": torch.zeros(1, 1, 4, 4)},
        folder / "model.safetensors",
    )
    said = {"depth": 2, "rope": True, "rope_theta": 10000, "rope_size": 128, "use_swiglu_ffn": True}
    (folder / "config.json").write_text(json.dumps(said | {"use_ar": use_ar, "use_crop_cond": True, "reso": size}))


def write_switti_vae(folder: Path) -> None:
    """VQVAE-Switti as the hub has it, with as few and as narrow convolutions as there can be."""
    tensors = _random(
        VQVAE(VQVAEConfig(ch=32, ch_mult=(1,) * 5, num_res_blocks=1, z_channels=CHANNELS, vocab_size=CODES)), 44
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}
        | {"quantize.ema_vocab_hit_SV": torch.zeros(14, CODES)},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"ch": 32, "vocab_size": CODES, "z_channels": 32, "reso": 1024}))


def write_clip(folder: Path, width: int, shard_bytes: str = "5GB") -> torch.nn.Module:
    """A folder as openai/clip-vit-large-patch14 (narrow) or laion/CLIP-ViT-bigG-14 (wide) has it, with a small CLIP;
    returns its text half. The vocabulary is CLIP's own."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "quick_gelu" if width == CLIP_WIDTHS[0] else "gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "projection_dim": width,
    }
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))
    model.train(False).requires_grad_(False)
    generator = torch.Generator().manual_seed(40 + width)
    for name, parameter in model.text_model.named_parameters():
        spread = 1 / math.sqrt(parameter.shape[1]) if parameter.ndim > 1 and "embedding" not in name else 0.5
        parameter.copy_((torch.randn(parameter.shape, generator=generator) * spread).half().float())
    model.save_pretrained(folder, max_shard_size=shard_bytes)
    return model.text_model


def write_public_files(models: Path) -> None:
    """Every file the shipped workflows name, where their notes say it goes."""
    for folder in ("var", "vae", "text_encoders"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    write_var_d30(models / "var" / "var_d30.pth")
    write_vae(models / "vae" / "vae_ch160v4096z32.pth")
    write_infinity_2b(models / "var" / "infinity_2b_reg.pth")
    write_vae_2b(models / "vae" / "infinity_vae_d32reg.pth")
    write_infinity_8b(models / "var" / "infinity_8b_weights")
    write_vae_8b(models / "vae" / "infinity_vae_d56_f8_14_patchify.pth")
    write_t5(models / "text_encoders" / "flan-t5-xl")
    write_hart(models / "var" / "hart-0.7b-1024px")
    write_qwen2(models / "text_encoders" / "Qwen2-VL-1.5B-Instruct")
    write_switti(models / "var" / "Switti-1024")
    write_switti_vae(models / "vae" / "VQVAE-Switti")
    for name, width in zip(("clip-vit-large-patch14", "CLIP-ViT-bigG-14-laion2B-39B-b160k"), CLIP_WIDTHS):
        write_clip(models / "text_encoders" / name, width)
