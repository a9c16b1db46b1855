"""Filling the pruned positions of a grid from the kept ones (StepVAR 3.3; DESIGN 2.9)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

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


class Kept:
    """The tokens of a grid that run. index_BK: ascending, per image; twice as many rows where the guidance halves chose
    separately."""

    def __init__(self, scale: Scale, index_BK: Tensor):
        self.scale, self.index_BK = scale, index_BK

    @cached_property
    def mask_BN(self) -> Tensor:
        """True at the kept positions."""
        return kept_mask(self.index_BK, self.scale.tokens)

    def gather(self, x_RLC: Tensor) -> Tensor:
        """The kept tokens (rows, K, C) of a whole grid."""
        return gather_tokens(x_RLC, self.index_BK)

    def lay_over(self, base_RNC: Tensor, x_RKC: Tensor) -> Tensor:
        """The base with the kept positions replaced."""
        return base_RNC.index_put(_places(base_RNC, self.index_BK), x_RKC)

    @cached_property
    def place_BN(self) -> Tensor:
        """Of every kept position its place among the kept ones."""
        return self.mask_BN.cumsum(1) - 1


class Fill:
    """What pruned positions get: here, and for `delta`, the change of the nearest kept token.

    on_head: the head runs on kept tokens and its answers are copied; else hidden states are rebuilt for the whole grid.
    adds_nothing: where tokens were left out, the pass adds nothing to f_hat.
    repeats: there it adds the codes of the last pass that ran once more.
    reads_earlier: takes an earlier dense scale's change, which must be remembered.
    """

    on_head = False
    adds_nothing = False
    repeats = False
    reads_earlier = False

    def stays(self, scale: Scale) -> Tensor | None:
        """(N,) bool on the CPU: positions that must run whatever they score."""
        return None

    def sources_BN(self, kept: Kept) -> Tensor:
        """For every position the place, among the kept tokens, that it copies from."""
        return kept.place_BN.gather(1, nearest_kept(kept.mask_BN, kept.scale))

    def spread(self, values_RKX: Tensor, kept: Kept) -> Tensor:
        """Values of the kept tokens at every position of the grid."""
        return gather_tokens(values_RKX, self.sources_BN(kept))

    def rebuild(self, change_RKC: Tensor, kept: Kept, earlier: Callable[[], Tensor]) -> Tensor:
        """The change of the stream at every position. earlier() -> (rows, N, C): an earlier scale's, at this grid."""
        return self.spread(change_RKC, kept)


class CopyNearest(Fill):
    """The answer of the nearest kept token (StepVAR 3.3)."""

    on_head = True


class AddNothing(CopyNearest):
    adds_nothing = True

    def rebuild(self, change_RKC: Tensor, kept: Kept, earlier: Callable[[], Tensor]) -> Tensor:
        rows, _, width = change_RKC.shape
        return kept.lay_over(change_RKC.new_zeros(rows, kept.scale.tokens, width), change_RKC)


class RepeatCodes(AddNothing):
    """The codes of the last pass that ran, nearest-upsampled, once more (LD-Pruning). Around sub-layers, where no
    codes are drawn, as `zero`."""

    adds_nothing = False
    repeats = True


class CopyAnchor(CopyNearest):
    """The answer of the nearest anchor, a lattice that always runs (SparseVAR)."""

    def stays(self, scale: Scale) -> Tensor | None:
        return anchor_mask(scale)

    def sources_BN(self, kept: Kept) -> Tensor:
        anchors = (kept.mask_BN & anchor_mask(kept.scale, kept.mask_BN.device)).expand_as(kept.mask_BN)
        copied_BN = kept.place_BN.gather(1, nearest_kept(anchors, kept.scale))
        return kept.place_BN.where(kept.mask_BN, copied_BN)


class EarlierChange(Fill):
    """An earlier dense scale's change, resized (FastVAR)."""

    reads_earlier = True

    def rebuild(self, change_RKC: Tensor, kept: Kept, earlier: Callable[[], Tensor]) -> Tensor:
        return kept.lay_over(earlier().to(change_RKC.dtype), change_RKC)


FILLS: dict[str, Fill] = {
    "nearest": CopyNearest(),
    "delta": Fill(),
    "zero": AddNothing(),
    "anchor": CopyAnchor(),
    "cache": EarlierChange(),
    "repeat": RepeatCodes(),
}


def upsampled_codes(codes: Tensor, old: Scale, new: Scale) -> Tensor:
    """Codes (B, L) or (B, L, bits) of one grid at every position of another, the nearest one's."""
    axes = []
    for before, after in zip(old.grid, new.grid):
        axes.append(torch.arange(after, device=codes.device) * before // after)
    t, h, w = axes
    index = ((t[:, None, None] * old.h + h[:, None]) * old.w + w).flatten()
    return codes[:, index]


def gather_tokens(x_RLC: Tensor, index_BK: Tensor) -> Tensor:
    """Tokens (rows, K, C) at the images' indices; rows is a multiple of B, image-major within each guidance half."""
    return x_RLC[_places(x_RLC, index_BK)]


def _places(x_RLC: Tensor, index_BK: Tensor) -> tuple[Tensor, Tensor]:
    index_RK = index_BK.repeat(len(x_RLC) // len(index_BK), 1)
    return torch.arange(len(x_RLC), device=x_RLC.device).unsqueeze(1), index_RK
