"""VAE of Infinity: pictures to feature maps and back (layout of FoundationVision/Infinity's infinity_vae_d*, MIT).

The convolutional autoencoder of codec.py without attention and without convolutions around the quantiser; every
convolution and norm sits one name deeper in the checkpoint (`conv1.conv.weight`, `norm1.norm.weight`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from .bitwise_quantizer import BitwiseQuantizer
from .codec import Codec, Decoder, Encoder
from .models.infinity_schedules import published
from .schedule import ScaleSchedule


@dataclass(frozen=True)
class BSQVAEConfig:
    """Sizes of an Infinity VAE. Everything but norm_groups can be read from the weights' shapes.

    patch: latent cells along each edge of a token of the model it belongs to.
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 32
    patch: int = 1
    norm_groups: int = 32
    has_encoder: bool = True
    has_decoder: bool = True
    has_attention: bool = False

    @property
    def stride(self) -> int:
        """Pixels per latent cell along each edge."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def token_stride(self) -> int:
        """Pixels per token of the schedule along each edge."""
        return self.stride * self.patch


class Conv(nn.Module):
    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Norm(nn.Module):
    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class WrappedOps:
    """Layer classes whose layers sit inside a module of their own, for its name in the checkpoint."""

    def __init__(self, ops):
        self.ops = ops

    def Conv2d(self, *sizes, **more) -> Conv:
        return Conv(self.ops.Conv2d(*sizes, **more))

    def GroupNorm(self, *sizes, **more) -> Norm:
        return Norm(self.ops.GroupNorm(*sizes, **more))


def modern_name(key: str) -> str:
    """Old files name convolutions and norms without the inner `.conv` and `.norm`."""
    key = re.sub(r"\.(conv_in|conv_out|conv1|conv2|nin_shortcut|(?:down|up)sample\.conv)\.(weight|bias)$", r".\1.conv.\2", key)
    return re.sub(r"\.(norm1|norm2|norm_out)\.(weight|bias)$", r".\1.norm.\2", key)


class BSQVAE(Codec):
    """Encoder and decoder under upstream's key names; the quantiser has no weights."""

    def __init__(self, config: BSQVAEConfig, ops=nn):
        super().__init__(config)
        if config.has_encoder:
            self.encoder = Encoder(config, WrappedOps(ops))
        if config.has_decoder:
            self.decoder = Decoder(config, WrappedOps(ops))

    @property
    def quantize(self) -> BitwiseQuantizer:
        return BitwiseQuantizer(self.config.z_channels, self.config.patch)

    def quantizer_on(self, device) -> BitwiseQuantizer:
        return self.quantize

    def own_schedule(self) -> ScaleSchedule:
        return published(1.0, None)
