"""Codecs, pictures to feature maps and back, and the first of them: VAR's VQVAE (layout of FoundationVision/VAR's
vae_ch160v4096z32, MIT).

A convolutional autoencoder in the line of VQGAN (Esser et al. 2021): residual blocks, one-head attention at the lowest
level and in the middle, stride-2 downsampling, nearest upsampling.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .errors import CheckpointMismatch, LatentMismatch, ShapeMismatch
from .quantizer import MultiScaleQuantizer
from .schedule import ScaleSchedule

NORM_EPS = 1e-6


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


class ResBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, groups: int, ops):
        super().__init__()
        self.norm1 = ops.GroupNorm(groups, c_in, eps=NORM_EPS)
        self.conv1 = ops.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = ops.GroupNorm(groups, c_out, eps=NORM_EPS)
        self.conv2 = ops.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = ops.Conv2d(c_in, c_out, 1)
        self.is_projected = c_in != c_out

    def forward(self, x: Tensor) -> Tensor:
        # in place: the maps of the last levels are far larger than any cache, and a new one costs more than its arithmetic
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return h.add_(self.nin_shortcut(x) if self.is_projected else x)


class AttnBlock(nn.Module):
    """One-head self-attention over the pixels of a map."""

    def __init__(self, c: int, groups: int, ops):
        super().__init__()
        self.norm = ops.GroupNorm(groups, c, eps=NORM_EPS)
        self.qkv = ops.Conv2d(c, 3 * c, 1)
        self.proj_out = ops.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b (h w) c", three=3)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    def __init__(self, c: int, ops):
        super().__init__()
        self.conv = ops.Conv2d(c, c, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only, as the weights were trained


class Upsample(nn.Module):
    def __init__(self, c: int, ops):
        super().__init__()
        self.conv = ops.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, with attention after each where `attend`, and an optional resampling."""

    def __init__(self, c_in: int, c_out: int, blocks: int, attend: bool, groups: int, ops, resample=None):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(c_in if i == 0 else c_out, c_out, groups, ops) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(c_out, groups, ops) for _ in range(blocks if attend else 0))
        if resample is Downsample:
            self.downsample = Downsample(c_out, ops)
        elif resample is Upsample:
            self.upsample = Upsample(c_out, ops)
        self.resample_name = {Downsample: "downsample", Upsample: "upsample"}.get(resample)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return getattr(self, self.resample_name)(x) if self.resample_name else x


class Middle(nn.Module):
    def __init__(self, c: int, attend: bool, groups: int, ops):
        super().__init__()
        self.block_1 = ResBlock(c, c, groups, ops)
        self.attn_1 = AttnBlock(c, groups, ops) if attend else nn.Identity()
        self.block_2 = ResBlock(c, c, groups, ops)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, config, ops):
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = ops.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, c_out in enumerate(widths):
            is_lowest = i == len(widths) - 1
            self.down.append(Level(config.ch if i == 0 else widths[i - 1], c_out, config.num_res_blocks,
                                   is_lowest and config.has_attention, config.norm_groups, ops, None if is_lowest else Downsample))
        self.mid = Middle(widths[-1], config.has_attention, config.norm_groups, ops)
        self.norm_out = ops.GroupNorm(config.norm_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = ops.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x)), inplace=True))


class Decoder(nn.Module):
    def __init__(self, config, ops):
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = ops.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.has_attention, config.norm_groups, ops)
        # up[0] is the full resolution and runs last, as in the checkpoint's numbering
        self.up = nn.ModuleList()
        for i, c_out in enumerate(widths):
            is_lowest = i == len(widths) - 1
            self.up.append(Level(widths[-1] if is_lowest else widths[i + 1], c_out, config.num_res_blocks + 1,
                                 is_lowest and config.has_attention, config.norm_groups, ops, Upsample if i else None))
        self.norm_out = ops.GroupNorm(config.norm_groups, widths[0], eps=NORM_EPS)
        self.conv_out = ops.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            z = level(z)
        return self.conv_out(F.silu(self.norm_out(z), inplace=True))


class Codec(nn.Module):
    """What every codec offers: pictures to feature maps and codes, and back.

    A subclass makes `encoder` and `decoder` as its config says, `quantize`, and where there is more around them than
    calling them, `analyse` and `synthesise`.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.run_on: tuple[torch.device, torch.dtype] | None = None  # where a host streams the weights to; None = where they are

    def analyse(self, x_B3HW: Tensor) -> Tensor:
        return self.encoder(x_B3HW)

    def synthesise(self, f_hat_BCHW: Tensor) -> Tensor:
        return self.decoder(f_hat_BCHW)

    def quantizer_on(self, device):
        """The quantiser, in float32 on `device`, for one run to own."""
        raise NotImplementedError

    def own_schedule(self) -> ScaleSchedule:
        """The schedule pictures are encoded to when nobody says."""
        raise NotImplementedError

    def place(self, device, dtype: torch.dtype):
        """Moves and casts the weights; the quantiser stays float32, its nearest-code decisions would flip."""
        for name, child in self.named_children():
            child.to(device=device, dtype=torch.float32 if name == "quantize" else dtype)
        return self

    def input_place(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype the convolutions expect their input in."""
        if self.run_on is not None:
            return self.run_on
        parts = [getattr(self, name) for name in ("decoder", "encoder", "quantize") if hasattr(self, name)]
        weight = next(p for part in parts for p in part.parameters())
        return weight.device, weight.dtype

    def _placed(self, x_BCHW: Tensor) -> Tensor:
        """A map as the convolutions expect it."""
        device, dtype = self.input_place()
        # a fifth off the decoder's time on the CPU; on a GPU the group norms would undo the layout at every step
        layout = torch.channels_last if device.type == "cpu" else torch.preserve_format
        return x_BCHW.to(device, dtype, memory_format=layout)

    def features(self, x_B3HW: Tensor) -> Tensor:
        """Feature map f (B, C, H/stride, W/stride), float32, of pictures in [-1, 1]."""
        if not self.config.has_encoder:
            raise CheckpointMismatch("This VAE file holds no encoder.", "Load a full VAE file to turn pictures into codes.")
        return self.analyse(self._placed(x_B3HW)).float()

    def pixels(self, f_hat_BCHW: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), unclamped, about [-1, 1], in the decoder's dtype."""
        if not self.config.has_decoder:
            raise CheckpointMismatch("This VAE file holds no decoder.", "Load a full VAE file to turn latents into pictures.")
        if f_hat_BCHW.ndim != 4 or f_hat_BCHW.shape[1] != self.config.z_channels:
            raise LatentMismatch(
                f"The latent is {tuple(f_hat_BCHW.shape)}; this VAE decodes (B, {self.config.z_channels}, H, W).",
                "Connect a VAR Sampler's latent, made with the model this VAE belongs to.")
        return self.synthesise(self._placed(f_hat_BCHW))

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) float32 in 0..1, RGB, of f_hat (B, C, h, w).

        Raises LatentMismatch for another channel count, CheckpointMismatch when the file holds no decoder.
        """
        x = self.pixels(latent).float().clamp_(-1, 1).add_(1).mul_(0.5)
        return rearrange(x, "b c h w -> b h w c").contiguous()

    @torch.inference_mode()
    def encode(self, image: Tensor, schedule: ScaleSchedule | None = None, seed: int = 0) -> list[Tensor]:
        """Codes of pictures (B, H, W, 3) in 0..1, one tensor per pass of `schedule` (default: the file's own).

        seed is part of the interface and unused: these quantisers draw nothing. Raises ShapeMismatch unless the picture
        is the schedule's size in pixels.
        """
        return self.encode_all(image, schedule)[0]

    @torch.inference_mode()
    def encode_all(self, image: Tensor, schedule: ScaleSchedule | None = None) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
        """encode's codes; per pass what the picture holds beside them, None for nothing (Result.soft); and f_hat of both."""
        schedule = schedule or self.own_schedule()
        expected = (schedule.final.h * self.config.token_stride, schedule.final.w * self.config.token_stride, 3)
        if image.ndim != 4 or tuple(image.shape[1:]) != expected:
            raise ShapeMismatch(f"The picture is {tuple(image.shape)}; this schedule needs (B, {expected[0]}, {expected[1]}, 3).",
                                f"Scale and crop it to {expected[1]}x{expected[0]} pixels.")
        f_BCHW = self.features(rearrange(image, "b h w c -> b c h w") * 2 - 1)
        quantizer = self.quantizer_on(f_BCHW.device)
        codes = quantizer.encode(f_BCHW, schedule)
        soft = quantizer.soft_features(f_BCHW, codes, schedule)
        return codes, soft, quantizer.decode_codes(codes, schedule) if soft[-1] is None else f_BCHW.float()


class VQVAE(Codec):
    """Encoder, multi-scale quantiser and decoder under upstream's key names."""

    def __init__(self, config: VQVAEConfig, ops=nn):
        super().__init__(config)
        if config.has_encoder:
            self.encoder = Encoder(config, ops)
            self.quant_conv = ops.Conv2d(config.z_channels, config.z_channels, 3, padding=1)
        self.quantize = MultiScaleQuantizer(config.vocab_size, config.z_channels, config.share_quant_resi, config.quant_resi,
                                            has_residual=config.has_residual)
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
