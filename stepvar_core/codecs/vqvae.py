"""VAR's multi-scale VQVAE: autoencoder, codebook and phi convolutions (layout of FoundationVision/VAR, MIT)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checkpoints import Checkpoint, settings
from ..schedule import ScaleSchedule
from .autoencoder import Decoder, Encoder
from .codec import Codec
from .multiscale import MultiScaleQuantizer


@dataclass(frozen=True)
class VQVAEConfig:
    """Sizes of a VQVAE. Everything but norm_groups and patch_nums can be read from the weights' shapes.

    has_residual: the tokenizer of HART, see MultiScaleQuantizer.
    """

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
    has_residual: bool = False

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

    def __init__(self, config: VQVAEConfig, ops=nn):
        super().__init__(config)
        if config.has_encoder:
            self.encoder = Encoder(config, ops)
            self.quant_conv = ops.Conv2d(config.z_channels, config.z_channels, 3, padding=1)
        self.quantize = MultiScaleQuantizer(
            config.vocab_size,
            config.z_channels,
            config.share_quant_resi,
            config.quant_resi,
            has_residual=config.has_residual,
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


HYBRID = "var_hybrid"  # what config.json of a HART tokenizer calls its quantiser


def _configure_vqvae(checkpoint: Checkpoint, overrides: dict | None) -> VQVAEConfig:
    said = settings(checkpoint, overrides)
    vocab_size, dim = checkpoint.shape("quantize.embedding.weight")
    sizes = dict(
        z_channels=dim,
        vocab_size=vocab_size,
        quant_resi=float(said("quant_resi", 0.5)),
        share_quant_resi=checkpoint.count(r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
        norm_groups=int(said("norm_groups", 32)),
        has_encoder="encoder.conv_in.weight" in checkpoint.tensors,
        has_decoder="decoder.conv_in.weight" in checkpoint.tensors,
        has_residual=said("quantizer_type") == HYBRID,
    )
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
