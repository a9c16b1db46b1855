"""HART's residual head: what the last scale's codes leave out, drawn by a few steps of diffusion for every token alone
(Tang et al. 2024, section 3.3; MAR's diffusion head, layout of mit-han-lab/hart, MIT).

Always float32: the first step multiplies the predicted noise by 20291.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...guidance import Strength, combine, is_on
from ..layers import AffineNorm, Modulation

TRAINED_STEPS = 1000
FREQUENCIES = 256  # channels of a sinusoid
EPS = 1e-6
RESIDUAL_SCALE = 0.6  # residuals were divided by it for training
MAX_BETA = 0.999


def sinusoids(places_N: Tensor, channels: int = FREQUENCIES) -> Tensor:
    """cos, then sin, of every place at falling frequencies, (N, channels) float32."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=places_N.device) / half)
    angle_NX = places_N.float()[:, None] * frequencies
    return torch.cat([angle_NX.cos(), angle_NX.sin()], -1)


class SinusoidEmbedding(nn.Module):
    """An embedding of numbers: sinusoid, linear, SiLU, linear."""

    def __init__(self, width: int, ops):
        super().__init__()
        self.mlp = nn.Sequential(ops.Linear(FREQUENCIES, width), nn.SiLU(), ops.Linear(width, width))

    def forward(self, places_N: Tensor) -> Tensor:
        return self.mlp(sinusoids(places_N))


@dataclass(frozen=True)
class DiffusionStep:
    """Numbers of one denoising step from time `time` of 1000: x0 = x_gain x - noise_gain noise; mean = x0_share x0 +
    x_share x."""

    time: int
    x_gain: float
    noise_gain: float
    x0_share: float
    x_share: float
    log_low: float  # bounds of the learned variance
    log_high: float
    is_last: bool


def diffusion_steps(count: int) -> list[DiffusionStep]:
    """The cosine schedule of 1000 steps (beta at most 0.999) respaced to `count`, in sampling order: time falls to 0.

    Raises ValueError unless 2 <= count <= 1000.
    """
    if not 2 <= count <= TRAINED_STEPS:
        raise ValueError(f"{count} diffusion steps")

    def signal(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    times = [round(i * (TRAINED_STEPS - 1) / (count - 1)) for i in range(count)]
    kept, product = [], 1.0  # the product of 1 - beta up to every time
    for i in range(TRAINED_STEPS):
        product *= 1 - min(1 - signal((i + 1) / TRAINED_STEPS) / signal(i / TRAINED_STEPS), MAX_BETA)
        kept += [product] if i in times else []
    before = [1.0, *kept[:-1]]
    betas = [1 - now / earlier for now, earlier in zip(kept, before)]
    variances = [beta * (1 - earlier) / (1 - now) for beta, now, earlier in zip(betas, kept, before)]
    variances[0] = variances[1]  # the first is zero
    steps = [
        DiffusionStep(
            time,
            now**-0.5,
            (1 / now - 1) ** 0.5,
            beta * earlier**0.5 / (1 - now),
            (1 - earlier) * (1 - beta) ** 0.5 / (1 - now),
            math.log(variance),
            math.log(beta),
            time == 0,
        )
        for time, now, earlier, beta, variance in zip(times, kept, before, betas, variances)
    ]
    return steps[::-1]


class ResidualBlock(nn.Module):
    def __init__(self, width: int, ops):
        super().__init__()
        self.in_ln = AffineNorm(width, EPS)
        self.mlp = nn.Sequential(ops.Linear(width, width), nn.SiLU(), ops.Linear(width, width))
        self.adaLN_modulation = Modulation(width, 3, ops)

    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(about).chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, self.in_ln(x), scale + 1)))


class FinalLayer(nn.Module):
    def __init__(self, width: int, channels: int, ops):
        super().__init__()
        self.linear = ops.Linear(width, channels)
        self.adaLN_modulation = Modulation(width, 2, ops)

    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(about).chunk(2, dim=-1)
        return self.linear(torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), scale + 1))


class ResidualNet(nn.Module):
    """Noise and variance (rows, L, 2 channels) predicted for a noisy residual (rows, L, channels)."""

    def __init__(self, channels: int, cond_dim: int, width: int, depth: int, ops):
        super().__init__()
        self.time_embed = SinusoidEmbedding(width, ops)
        self.cond_embed = ops.Linear(cond_dim, width)
        self.input_proj = ops.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width, ops) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels, ops)

    def forward(self, x_RLC: Tensor, about_RLW: Tensor) -> Tensor:
        x = self.input_proj(x_RLC)
        for block in self.res_blocks:
            x = block(x, about_RLW)
        return self.final_layer(x, about_RLW)


class ResidualDiffusion(nn.Module):
    """The head under its name in the checkpoint (`diffloss`). steps: how many denoising steps it takes."""

    def __init__(self, channels: int, cond_dim: int, width: int, depth: int, steps: int, ops):
        super().__init__()
        self.net = ResidualNet(channels, cond_dim, width, depth, ops)
        self.channels, self.steps = channels, diffusion_steps(steps)

    def times(self, device) -> Tensor:
        """The embedding of every step's time, (steps, width)."""
        return self.net.time_embed(torch.tensor([step.time for step in self.steps], device=device))

    def sample(self, z_RLC: Tensor, times_SW: Tensor, t: Strength, noise) -> Tensor:
        """Residuals (B, L, channels) float32 on the condition z: B rows, or with guidance t the conditional rows,
        then the others.

        noise(name, shape) -> (B, *shape): one call for the start and one for every step, the last of which counts for
        nothing.
        """
        cond_RLW, shape = self.net.cond_embed(z_RLC), (z_RLC.shape[1], self.channels)
        x = noise("residual", shape)
        for number, (step, time_W) in enumerate(zip(self.steps, times_SW), 1):
            out_RLX = self.net(x.repeat(2, 1, 1) if is_on(t) else x, cond_RLW + time_W)
            predicted, spread = out_RLX.chunk(2, dim=-1)
            if is_on(t):
                predicted, spread = combine(predicted, t), spread[: len(x)]  # the variance stays the conditional half's
            x0 = (step.x_gain * x - step.noise_gain * predicted).clamp(-1, 1)
            fresh = noise(f"residual {number}", shape)
            x = step.x0_share * x0 + step.x_share * x
            if not step.is_last:
                share = (spread + 1) / 2
                x = x + (0.5 * (share * step.log_high + (1 - share) * step.log_low)).exp() * fresh
        return x * RESIDUAL_SCALE

    def flops_per_token(self) -> int:
        """Linears of all steps, one token of one row; the times' embedding apart."""
        width, depth = self.net.input_proj.weight.shape[0], len(self.net.res_blocks)
        once = 2 * self.net.cond_embed.weight.numel()
        return once + len(self.steps) * 2 * (
            self.channels * width + depth * 5 * width**2 + 2 * width**2 + width * 2 * self.channels
        )
