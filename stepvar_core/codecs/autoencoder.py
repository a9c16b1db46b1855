"""The convolutional autoencoder of VQGAN (Esser et al. 2021), under the names VAR's checkpoints use."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

NORM_EPS = 1e-6
MOST_LEVELS = 8  # of resolution, and of residual blocks in each: what a checkpoint is believed


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
        # in place: the maps of the last levels are far larger than any cache, and a new one costs more than its
        # arithmetic
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
            self.down.append(
                Level(
                    config.ch if i == 0 else widths[i - 1],
                    c_out,
                    config.num_res_blocks,
                    is_lowest and config.has_attention,
                    config.norm_groups,
                    ops,
                    None if is_lowest else Downsample,
                )
            )
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
            self.up.append(
                Level(
                    widths[-1] if is_lowest else widths[i + 1],
                    c_out,
                    config.num_res_blocks + 1,
                    is_lowest and config.has_attention,
                    config.norm_groups,
                    ops,
                    Upsample if i else None,
                )
            )
        self.norm_out = ops.GroupNorm(config.norm_groups, widths[0], eps=NORM_EPS)
        self.conv_out = ops.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            z = level(z)
        return self.conv_out(F.silu(self.norm_out(z), inplace=True))
