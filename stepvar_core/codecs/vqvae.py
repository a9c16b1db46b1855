"""VAR's multi-scale VQVAE: autoencoder, codebook and phi convolutions (layout of FoundationVision/VAR, MIT)."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import Checkpoint
from ..schedule import ScaleSchedule
from .autoencoder import MOST_LEVELS, Decoder, Encoder
from .codec import Codec
from .multiscale import MultiScaleQuantizer

PHI = "quantize.quant_resi.qresi_ls.0.weight"  # the first phi convolution, under the name that VQVAE gives it


@dataclass(frozen=True)
class VQVAEConfig:
    """Sizes of a VQVAE. Everything but norm_groups and patch_nums can be read from the weights' shapes."""

    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 32
    vocab_size: int = 4096
    share_quant_resi: int = 4
    quant_resi: float = 0.5
    norm_groups: int = 32
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    has_attention: bool = True
    has_encoder: bool = True
    has_decoder: bool = True

    @property
    def stride(self) -> int:
        """Pixels per latent cell along each edge."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def token_stride(self) -> int:
        """Pixels per token of the schedule along each edge."""
        return self.stride


class VQVAE(Codec):
    """Encoder, multi-scale quantiser and decoder under upstream's key names."""

    Quantizer: type[MultiScaleQuantizer] = MultiScaleQuantizer

    def __init__(self, config: VQVAEConfig, ops=nn):
        super().__init__(config)
        if config.has_encoder:
            self.encoder = Encoder(config, ops)
            self.quant_conv = ops.Conv2d(config.z_channels, config.z_channels, 3, padding=1)
        self.quantize = self.Quantizer(
            config.vocab_size, config.z_channels, phi_count=config.share_quant_resi, phi_ratio=config.quant_resi
        )
        if config.has_decoder:
            self.post_quant_conv = ops.Conv2d(config.z_channels, config.z_channels, 3, padding=1)
            self.decoder = Decoder(config, ops)

    def analyse(self, x_B3HW: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x_B3HW))

    def synthesise(self, f_hat_BCHW: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(f_hat_BCHW))

    def own_schedule(self) -> ScaleSchedule:
        return ScaleSchedule.square(self.config.patch_nums)

    def quantizer_on(self, device) -> MultiScaleQuantizer:
        """A copy: under a megabyte, so a run owns its own and moves nothing shared."""
        return copy.deepcopy(self.quantize).to(device=device, dtype=torch.float32)


def vqvae_name(key: str) -> str:
    """VQVAE's name for a key. A phi shared by all scales, or one for each of them, has a name of its own upstream
    (share_quant_resi 1 and 0)."""
    return re.sub(r"^quantize\.quant_resi\.(?:qresi\.|(\d+)\.)", _phi_name, key)


def _phi_name(match: re.Match) -> str:
    return f"quantize.quant_resi.qresi_ls.{match[1] or 0}."


def is_vqvae(checkpoint: Checkpoint, said: Callable) -> bool:
    return {"quantize.embedding.weight", PHI} <= {vqvae_name(key) for key in checkpoint.tensors}


def configure_vqvae(checkpoint: Checkpoint, said: Callable) -> VQVAEConfig:
    """Sizes of a VQVAE under its own key names; said(key, default) is a setting by name, see checkpoints.settings."""
    vocab_size, dim = checkpoint.shape("quantize.embedding.weight")
    blend = float(said("quant_resi", 0.5))
    if not 0 <= blend <= 1:
        raise ValueError(f"quant_resi is {blend}")
    sizes: dict[str, Any] = dict(
        z_channels=dim,
        vocab_size=vocab_size,
        quant_resi=blend,
        share_quant_resi=checkpoint.count(r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
        norm_groups=int(said("norm_groups", 32)),
        has_encoder="encoder.conv_in.weight" in checkpoint.tensors,
        has_decoder="decoder.conv_in.weight" in checkpoint.tensors,
    )
    if said("patch_nums", None):
        sizes["patch_nums"] = tuple(int(p) for p in said("patch_nums", ()))
    if sizes["has_encoder"]:
        levels = checkpoint.count(r"encoder\.down\.(\d+)\.", MOST_LEVELS)
        ch = checkpoint.shape("encoder.conv_in.weight")[0]
        widths = [checkpoint.shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)]
        blocks = checkpoint.count(r"encoder\.down\.0\.block\.(\d+)\.", MOST_LEVELS)
    elif sizes["has_decoder"]:
        levels = checkpoint.count(r"decoder\.up\.(\d+)\.", MOST_LEVELS)
        widths = [checkpoint.shape(f"decoder.up.{i}.block.0.conv1.weight")[0] for i in range(levels)]
        ch = math.gcd(*widths)  # every level is a multiple of it
        blocks = checkpoint.count(r"decoder\.up\.0\.block\.(\d+)\.", MOST_LEVELS) - 1
    else:
        return VQVAEConfig(**sizes)
    return VQVAEConfig(ch=ch, ch_mult=tuple(w // ch for w in widths), num_res_blocks=blocks, **sizes)
