"""VAE of Infinity: pictures to feature maps and back (layout of FoundationVision/Infinity's infinity_vae_d*, MIT).

The convolutional autoencoder of codecs/autoencoder.py without attention and without convolutions around the
quantiser; every convolution and norm sits one name deeper in the checkpoint (`conv1.conv.weight`,
`norm1.norm.weight`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from ...checkpoints import Checkpoint
from ...codecs.autoencoder import MOST_LEVELS, Decoder, Encoder
from ...codecs.bits import BitwiseQuantizer
from ...codecs.codec import Codec
from ...schedule import ScaleSchedule
from ..family import Said
from .schedules import PIXELS_PER_TOKEN, published


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
    key = re.sub(
        r"\.(conv_in|conv_out|conv1|conv2|nin_shortcut|(?:down|up)sample\.conv)\.(weight|bias)$", r".\1.conv.\2", key
    )
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


def is_bsq_vae(checkpoint: Checkpoint, said: Said) -> bool:
    keys = {modern_name(key) for key in checkpoint.tensors}
    return any(f"{part}.mid.block_1.norm1.norm.weight" in keys for part in ("encoder", "decoder")) and not any(
        k.startswith(("quant_conv.", "quantize.embedding.", "encoder.mid.attn_1.", "decoder.mid.attn_1.")) for k in keys
    )


def configure_bsq_vae(checkpoint: Checkpoint, said: Said) -> BSQVAEConfig:
    """Sizes of an Infinity VAE, from the weights' shapes."""
    has_encoder = "encoder.conv_in.conv.weight" in checkpoint.tensors
    has_decoder = "decoder.conv_in.conv.weight" in checkpoint.tensors
    part, side, extra = ("decoder", "up", 1) if has_decoder else ("encoder", "down", 0)
    levels = checkpoint.count(rf"{part}\.{side}\.(\d+)\.", MOST_LEVELS)
    widths = [checkpoint.shape(f"{part}.{side}.{i}.block.0.conv1.conv.weight")[0] for i in range(levels)]
    dim = (
        checkpoint.shape("decoder.conv_in.conv.weight")[1]
        if has_decoder
        else checkpoint.shape("encoder.conv_out.conv.weight")[0]
    )
    # every model sees one token per 16 pixels: a VAE of stride 8 belongs to one that reads 2 x 2 cells at once
    is_patched = bool(int(said("apply_spatial_patchify", 2 ** (levels - 1) < PIXELS_PER_TOKEN)))
    return BSQVAEConfig(
        ch=widths[0],
        ch_mult=tuple(w // widths[0] for w in widths),
        z_channels=dim,
        patch=2 if is_patched else 1,
        num_res_blocks=checkpoint.count(rf"{part}\.{side}\.0\.block\.(\d+)\.", MOST_LEVELS) - extra,
        norm_groups=int(said("norm_groups", 32)),
        has_encoder=has_encoder,
        has_decoder=has_decoder,
    )
