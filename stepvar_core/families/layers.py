"""Small functions the model families share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_LOG_SCALE = math.log(100)  # upstream clamps the learned attention temperature here


def on(parameter: Any, x: Tensor) -> Tensor:
    """A parameter owned by a container, where x lives and in its dtype: hosts that stream weights leave these
    behind."""
    return parameter.to(device=x.device, dtype=x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * on(self.weight, x)


class AffineNorm(nn.Module):
    """LayerNorm in its input's dtype, whatever the weights are stored in."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], on(self.weight, x), on(self.bias, x), self.eps)


class Modulation(nn.Sequential):
    """SiLU then linear; `1` is the linear's name in the checkpoint."""

    def __init__(self, width: int, chunks: int, ops):
        super().__init__(nn.SiLU(), ops.Linear(width, chunks * width))


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear."""

    def __init__(self, width: int, hidden: int, ops):
        super().__init__()
        self.fc1, self.fc2 = ops.Linear(width, hidden), ops.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class HeadNorm(nn.Module):
    """Holder of the head's modulation, under its name in the checkpoint."""

    def __init__(self, width: int, ops):
        super().__init__()
        self.ada_lin = Modulation(width, 2, ops)


def place_blocks(model: nn.Module, blocks, device, dtype: torch.dtype) -> None:
    """Moves a model and casts the linears of its blocks alone: everything around them sets all tokens at once and is
    small.

    In one byte per number (fp8) only their matrices are stored; the rest is float32.
    """
    linears = {m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            is_cast = module in linears and (dtype.itemsize > 1 or parameter.ndim == 2)
            placed = parameter.detach().to(device=device, dtype=dtype if is_cast else torch.float32)
            setattr(module, name, nn.Parameter(placed, requires_grad=parameter.requires_grad))


def modulated_norm(x_RLC: Tensor, gain_R1C: Tensor, shift_R1C: Tensor, eps: float) -> Tensor:
    """LayerNorm without affine, times gain (already 1 + scale), plus shift: the AdaLN of DiT and VAR."""
    return torch.addcmul(shift_R1C, F.layer_norm(x_RLC, x_RLC.shape[-1:], eps=eps), gain_R1C).to(x_RLC.dtype)


def unit_heads(qk_RL2HD: Tensor, gain_2H1: Tensor) -> Tensor:
    """Queries and keys scaled to length gain, float32: half precision loses the small angles a gain of up to 100 then
    multiplies."""
    length = torch.linalg.vector_norm(qk_RL2HD, dim=-1, keepdim=True, dtype=torch.float32)
    return qk_RL2HD * (gain_2H1 / length.clamp(min=1e-12))  # one pass over the heads, not one for each factor


def attention_gain(log_temperature_1H11: Tensor) -> Tensor:
    """(2, heads, 1) float32 for unit_heads: queries carry the learned temperature, keys stay unit vectors."""
    gain_1H1 = log_temperature_1H11.float().clamp(max=MAX_LOG_SCALE).exp().flatten(1).unsqueeze(-1)
    return torch.cat([gain_1H1, torch.ones_like(gain_1H1)])


def split_heads(x_RLC: Tensor, heads: int) -> Tensor:
    """(rows, L, heads * dim) -> (rows, heads, L, dim)."""
    rows, length, width = x_RLC.shape
    return x_RLC.view(rows, length, heads, width // heads).transpose(1, 2)


def merge_heads(x_RHLD: Tensor) -> Tensor:
    """(rows, heads, L, dim) -> (rows, L, heads * dim)."""
    return x_RHLD.transpose(1, 2).flatten(2)


def rotate(x_RL2HD: Tensor, table_RLX: Tensor) -> Tensor:
    """Turns the pairs (2i, 2i + 1) of every head. table: (rows, L, D), with rows 1, those of x, or one guidance
    half's."""
    if len(table_RLX) not in (1, len(x_RL2HD)):
        table_RLX = table_RLX.repeat(len(x_RL2HD) // len(table_RLX), 1, 1)

    def pairs(y: Tensor) -> Tensor:
        return torch.view_as_complex(y.unflatten(-1, (-1, 2)))

    # a product of complex numbers: one pass over memory where the four real products take ten
    return torch.view_as_real(pairs(x_RL2HD) * pairs(table_RLX)[:, :, None, None]).flatten(-2)


def padded(texts: Sequence[Tensor], device) -> tuple[Tensor, Tensor | None]:
    """Texts (length, C) of any lengths as (rows, T, C) float32, and what is real of it, bool (rows, 1, 1, T); None
    when all of it is."""
    lengths = [len(text) for text in texts]
    features_RTC = nn.utils.rnn.pad_sequence([text.to(device, torch.float32) for text in texts], batch_first=True)
    if min(lengths) == max(lengths):
        return features_RTC, None
    is_real_RT = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return features_RTC, is_real_RT.to(device)[:, None, None]
