"""Small functions the model families share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def on(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter owned by a container, where x lives and in its dtype: hosts that stream weights leave these behind."""
    return parameter.to(device=x.device, dtype=x.dtype)


def modulated_norm(x_RLC: Tensor, gain_R1C: Tensor, shift_R1C: Tensor, eps: float) -> Tensor:
    """LayerNorm without affine, times gain (already 1 + scale), plus shift: the AdaLN of DiT and VAR."""
    return (shift_R1C + F.layer_norm(x_RLC, x_RLC.shape[-1:], eps=eps) * gain_R1C).to(x_RLC.dtype)


def split_heads(x_RLC: Tensor, heads: int) -> Tensor:
    """(rows, L, heads * dim) -> (rows, heads, L, dim)."""
    rows, length, width = x_RLC.shape
    return x_RLC.view(rows, length, heads, width // heads).transpose(1, 2)


def merge_heads(x_RHLD: Tensor) -> Tensor:
    """(rows, heads, L, dim) -> (rows, L, heads * dim)."""
    return x_RHLD.transpose(1, 2).flatten(2)
