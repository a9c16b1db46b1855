"""Seeded models of two layers: small enough for hundreds of runs, sharp enough that a wrong number changes a token."""

import math

import torch

import stepvar_core as sv
from stepvar_core.codecs.vqvae import VQVAE, VQVAEConfig
from stepvar_core.families.hart.codec import HybridVQVAE
from stepvar_core.families.hart.model import HART, HARTConfig
from stepvar_core.families.infinity.model import Infinity, InfinityConfig
from stepvar_core.families.switti.model import Switti, SwittiConfig
from stepvar_core.families.var.model import VAR, VARConfig

SCHEDULE = sv.ScaleSchedule([(1, 1, 1), (1, 2, 3), (1, 4, 3), (1, 5, 7)])  # 54 tokens, no square among the larger ones
EDGES = (1, 2, 3, 4, 6)
TEXT_DIM, LONGEST_TEXT = 8, 12


def seeded(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fills a module with normal numbers, matrices scaled by their inputs, ready for inference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            spread = 1 / math.sqrt(parameter[0].numel()) if name.endswith("weight") and "emb" not in name else 0.5
            parameter.normal_(std=spread, generator=generator)
            if "scale_mul" in name:
                parameter.add_(math.log(4))
            if name == "head.weight":
                parameter.mul_(3)  # clear winners: token choices must not hang on rounding
    return module.requires_grad_(False).train(False)


def tiny_var(
    depth: int = 2,
    heads: int = 2,
    edges=EDGES,
    vocab: int = 24,
    dim: int = 8,
    classes: int = 5,
    shared_aln: bool = False,
    seed: int = 1,
) -> VAR:
    config = VARConfig(
        patch_nums=tuple(edges),
        depth=depth,
        width=16 * heads,
        heads=heads,
        vocab_size=vocab,
        code_dim=dim,
        num_classes=classes,
        shared_aln=shared_aln,
    )
    return seeded(VAR(config), seed)


def tiny_vae(vocab: int = 24, dim: int = 8, edges=EDGES, seed: int = 2, kind=VQVAE, **parts) -> VQVAE:
    """Quantiser only, unless `parts` says has_encoder and has_decoder. kind: VQVAE or HybridVQVAE."""
    parts = {
        "has_encoder": False,
        "has_decoder": False,
        "ch": 4,
        "ch_mult": (1, 2),
        "norm_groups": 2,
        "num_res_blocks": 1,
        **parts,
    }
    return seeded(kind(VQVAEConfig(z_channels=dim, vocab_size=vocab, patch_nums=tuple(edges), **parts)), seed)


def tiny_pair(**sizes) -> tuple[VAR, VQVAE]:
    return tiny_var(**sizes), tiny_vae()


def tiny_infinity(patch: int = 1, seed: int = 11) -> Infinity:
    """Five layers, 4 bits a token (16 with patch 2)."""
    config = InfinityConfig(
        depth=5,
        width=32,
        heads=2,
        hidden=64,
        bits=4 * patch**2,
        patch=patch,
        text_dim=TEXT_DIM,
        text_maxlen=LONGEST_TEXT,
        pool_heads=2,
        chunk=3,
    )
    model = seeded(Infinity(config), seed)
    # a head that answers against its input, as a trained one does to a residual: else random models repeat one
    # pattern of bits
    model.word_embed.weight *= 6
    model.head.weight *= 0.1
    model.head.weight.view(-1, 2, 32)[:, 0] += 0.2 * model.word_embed.weight.T
    model.head.weight.view(-1, 2, 32)[:, 1] -= 0.2 * model.word_embed.weight.T
    model.head.bias.zero_()
    model.head_nm.ada_lin[1].bias.zero_()
    return model


def tiny_hart(seed: int = 21, **sizes) -> HART:
    """Three layers, 24 codes, prompts of 12 positions."""
    config = HARTConfig(
        **{
            "patch_nums": EDGES,
            "depth": 3,
            "width": 32,
            "heads": 2,
            "hidden": 64,
            "vocab_size": 24,
            "code_dim": 8,
            "text_dim": TEXT_DIM,
            "text_tokens": LONGEST_TEXT,
            "residual_width": 16,
            "residual_depth": 2,
            "residual_steps": 4,
            **sizes,
        }
    )
    model = seeded(HART(config), seed)
    for name, gain in model.named_parameters():
        if name.endswith(("ln_wo_grad.weight", "norm.weight")):
            gain.fill_(1.0)
    model.head.weight *= 0.15  # undecided: else random models repeat one code
    for parameter in model.diffloss.parameters():
        parameter.mul_(
            0.4
        )  # tame, as a trained one is: half of what it predicts is an exponent, and the first step multiplies by 20291
    return model


def tiny_hart_pair(**sizes) -> tuple[HART, VQVAE]:
    return tiny_hart(**sizes), tiny_vae(kind=HybridVQVAE)


def hart_prompts(model: HART, *lengths: int):
    """Text condition of random features, one prompt per length, padded to the model's own with other numbers that do
    count."""
    generator = torch.Generator().manual_seed(7)
    positions, width = model.config.text_tokens, model.config.text_dim
    features_BTC = torch.stack([torch.randn(positions, width, generator=generator) for _ in lengths])
    return model.text_condition(features_BTC, torch.arange(positions)[None] < torch.tensor(lengths)[:, None])


def prompts(model: Infinity, *lengths: int):
    """Text condition of random features, one prompt per length, padded with a number that must never count."""
    generator = torch.Generator().manual_seed(7)
    texts = [torch.randn(length, TEXT_DIM, generator=generator) for length in lengths]
    features_BTC = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=5.0)
    return model.text_condition(features_BTC, torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None])


def tiny_switti(seed: int = 31, **sizes) -> Switti:
    """Three layers, 24 codes; a scale sees itself alone unless sizes say is_causal."""
    config = SwittiConfig(
        **{
            "patch_nums": EDGES,
            "depth": 3,
            "width": 32,
            "heads": 2,
            "hidden": 48,
            "vocab_size": 24,
            "code_dim": 8,
            "text_dim": TEXT_DIM,
            "pooled_dim": 6,
            **sizes,
        }
    )
    model = seeded(Switti(config), seed)
    for name, gain in model.named_parameters():
        if "norm" in name and gain.ndim == 1:
            gain.fill_(1.0)
    model.head.weight *= 0.3  # undecided: else random models repeat one code
    return model


def tiny_switti_pair(**sizes) -> tuple[Switti, VQVAE]:
    return tiny_switti(**sizes), tiny_vae()


def switti_prompts(model: Switti, *lengths: int, seed: int = 7):
    """Text condition of random features, one prompt per length, padded with a number that must never count."""
    generator, c = torch.Generator().manual_seed(seed), model.config
    texts = [torch.randn(length, c.text_dim, generator=generator) for length in lengths]
    features_BTC = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=5.0)
    mask_BT = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return model.text_condition(features_BTC, mask_BT, torch.randn(len(lengths), c.pooled_dim, generator=generator))


def save(module: torch.nn.Module, path, **metadata: str):
    """Writes a module's weights as safetensors and returns the path."""
    from safetensors.torch import save_file

    save_file({k: v.contiguous().clone() for k, v in module.state_dict().items()}, path, metadata=metadata or None)
    return path
