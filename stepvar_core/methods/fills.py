"""Filling the pruned positions of a grid from the kept ones (StepVAR 3.3; DESIGN 2.9)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..schedule import Scale

ANCHOR_STRIDE = 3


def kept_mask(index_BK: Tensor, tokens: int) -> Tensor:
    """(B, tokens) bool, True at the kept positions."""
    mask = torch.zeros(len(index_BK), tokens, dtype=torch.bool, device=index_BK.device)
    return mask.scatter_(1, index_BK, True)


def nearest_kept(mask_BN: Tensor, scale: Scale) -> Tensor:
    """For every position the raster index (B, N) of the nearest True one of its image.

    Euclidean grid distance in exact integers, ties to the lower index. Video: the same frame first; a frame that kept
    nothing takes the nearest in space and time. Every image must keep at least one token.

    One pass per axis over keys distance * tokens + index, as in a separable distance transform: their minimum is the
    nearest, then the lowest, position. O(N (t + h + w)) instead of N^2, and nothing leaves the device.
    """
    t, h, w = scale.grid
    tokens, device = scale.tokens, mask_BN.device
    far = torch.full((), 1 << 60, device=device)  # not torch.tensor: on a GPU that waits for a copy
    own = torch.where(mask_BN, torch.arange(tokens, device=device), far).view(-1, t, h, w)

    def closest(key: Tensor, axis: int) -> Tensor:
        """Minimum over one axis of key + squared distance along it."""
        n = key.shape[axis]
        place = torch.arange(n, device=device)
        step = (place[:, None] - place[None, :]).square() * tokens  # [to, from]
        key = key.movedim(axis, -1).unsqueeze(-2)
        return (key + step).amin(-1).movedim(-1, axis)

    key = closest(closest(own, 3), 2)
    if t > 1:
        key = torch.where(key < far, key, closest(key, 1))
    return (key % tokens).flatten(1)


def anchor_mask(scale: Scale, device=None) -> Tensor:
    """(N,) bool: the centres of 3 x 3 cells, at least one per axis: the lattice that `anchor` always keeps."""

    def centres(n: int) -> Tensor:
        place = torch.arange(n, device=device)
        return place % ANCHOR_STRIDE == min(ANCHOR_STRIDE // 2, n - 1)

    h, w = centres(scale.h), centres(scale.w)
    return (h[:, None] & w).expand(scale.t, -1, -1).flatten()


def gather_tokens(x_RLC: Tensor, index_BK: Tensor) -> Tensor:
    """Tokens (rows, K, C) at the images' indices; rows is a multiple of B, image-major within each guidance half."""
    return x_RLC[_places(x_RLC, index_BK)]


def scatter_tokens(base_RLC: Tensor, index_BK: Tensor, x_RKC: Tensor) -> Tensor:
    """base with the tokens at the images' indices replaced."""
    return base_RLC.index_put(_places(base_RLC, index_BK), x_RKC)


def _places(x_RLC: Tensor, index_BK: Tensor) -> tuple[Tensor, Tensor]:
    index_RK = index_BK.repeat(len(x_RLC) // len(index_BK), 1)
    return torch.arange(len(x_RLC), device=x_RLC.device).unsqueeze(1), index_RK
