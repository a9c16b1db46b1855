"""How many tokens of each pass run, and the token plans that carry a choice through the blocks.

PassPlan is known on the host before the loop: the cache, the cost model and the progress bar are built from it.
KeptTokens is its counterpart on the device for one pass, an argument of the model's forward (tokens.py has the
interface). Nothing here knows a model family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..schedule import Pass, Scale
from ..tokens import DenseTokens
from .fills import anchor_mask, gather_tokens, kept_mask, nearest_kept, scatter_tokens
from .selectors import Scores, keep_top

HALVES = ("both", "conditional", "unconditional")


@dataclass(frozen=True)
class Fill:
    """How pruned positions are filled. See DESIGN 2.9 and FILLS.

    on_head: the head runs on kept tokens and its output is copied; else hidden states are rebuilt for the whole grid.
    """

    on_head: bool = False
    adds_nothing: bool = False
    from_anchors: bool = False
    from_earlier: bool = False


FILLS = {
    "nearest": Fill(on_head=True),
    "delta": Fill(),
    "zero": Fill(on_head=True, adds_nothing=True),
    "anchor": Fill(on_head=True, from_anchors=True),
    "cache": Fill(from_earlier=True),
}


@dataclass(frozen=True)
class PassPlan:
    """One pass on the host: `kept` of `tokens` run from `first_layer` to `last_layer` (None = the end); 0 kept = the
    pass is skipped.

    cfg_mask: whether the guidance halves share one choice of tokens.
    """

    tokens: int
    kept: int
    first_layer: int = 0
    scope: str = "scale"
    fill: str = "nearest"
    halves: str = "both"
    last_layer: int | None = None
    cfg_mask: str = "shared"

    @property
    def is_skipped(self) -> bool:
        return self.kept == 0

    @property
    def is_dense(self) -> bool:
        return self.kept == self.tokens

    @property
    def head_tokens(self) -> int:
        """Tokens the head runs on."""
        return self.kept if self.scope == "scale" and FILLS[self.fill].on_head else self.tokens

    def layer_tokens(self, layer: int) -> int:
        """Tokens that run, and enter the KV cache, in one layer."""
        return self.kept if self.prunes(layer) else self.tokens

    def prunes(self, layer: int) -> bool:
        """Whether a layer is among those that leave tokens out."""
        return self.first_layer <= layer and (self.last_layer is None or layer <= self.last_layer)


def dense_plan(scale: Scale, halves: str = "both") -> PassPlan:
    return PassPlan(scale.tokens, scale.tokens, halves=halves)


def remembered(plans: list[PassPlan]) -> set[int]:
    """Passes whose changes the `cache` fill of later ones reads: dense ones that a pruned one follows."""
    running = [i for i, plan in enumerate(plans) if not plan.is_skipped]
    return {
        a
        for a, b in zip(running, running[1:])
        if FILLS[plans[b].fill].from_earlier and plans[a].is_dense and not plans[b].is_dense
    }


@dataclass
class Earlier:
    """Changes of an earlier dense scale, kept for the `cache` fill while the image lasts."""

    changes: dict = field(default_factory=dict)
    scale: Scale | None = None

    def resized(self, site, scale: Scale, rows: slice) -> Tensor:
        """The stored change of one site, (rows, N, C), area-resized to another grid."""
        change = self.changes[site][rows]
        grid = rearrange(change, "b (t h w) c -> b c t h w", t=self.scale.t, h=self.scale.h)
        if self.scale.grid != scale.grid:
            grid = F.interpolate(grid, size=scale.grid, mode="area")
        return rearrange(grid, "b c t h w -> b (t h w) c")


class RecordingTokens(DenseTokens):
    """Every token runs, and the changes are remembered for the `cache` fill of later scales."""

    def __init__(self, plan: PassPlan, step: Pass, earlier: Earlier):
        self.plan, self.earlier = plan, earlier
        earlier.changes, earlier.scale = {}, step.scale

    def enter(self, layer: int, x_RLC: Tensor) -> Tensor:
        if layer == self.plan.first_layer:
            self.entry = x_RLC
        return x_RLC

    def through(self, fn, x_RLC: Tensor, site) -> Tensor:
        change = fn(x_RLC)
        if self.plan.scope == "sublayer" and self.plan.prunes(site[0]):
            self.earlier.changes[site] = change
        return change

    def leave(self, x_RLC: Tensor) -> Tensor:
        if self.plan.scope == "scale":
            self.earlier.changes["all"] = x_RLC - self.entry
        return x_RLC


class KeptTokens(DenseTokens):
    """Runs one pass on the tokens that score highest. score(x_BLC) -> Scores of one guidance half.

    One index set per image, chosen on the first rows (the conditional ones when both halves run), shared with the
    other half, ascending; with cfg_mask `separate` each half chooses its own, and what is shown is the first one's.
    Scope `scale` chooses once and keeps a sparse stream; `sublayer` chooses and fills around each sub-layer on a
    dense stream, FastVAR's way.
    """

    def __init__(
        self, plan: PassPlan, step: Pass, batch: int, rows: slice, score: Callable[[Tensor], Scores], earlier: Earlier
    ):
        self.plan, self.scale, self.batch, self.run_rows = plan, step.scale, batch, rows
        self.score, self.earlier, self.fill = score, earlier, FILLS[plan.fill]
        self.is_sparse = False
        self.index_BK: Tensor | None = None
        self.first_mask_BN: Tensor | None = None
        self.scores: Scores | None = None

    # during the forward --------------------------------------------------------------------------

    def enter(self, layer: int, x_RLC: Tensor) -> Tensor:
        if self.plan.scope != "scale" or layer != self.plan.first_layer:
            return x_RLC
        self._select(x_RLC)
        self.is_sparse = True
        self.entry = None if self.fill.on_head else x_RLC
        return gather_tokens(x_RLC, self.index_BK)

    def through(self, fn, x_RLC: Tensor, site) -> Tensor:
        if self.plan.scope == "scale" or not self.plan.prunes(site[0]):
            return fn(x_RLC)
        self._select(x_RLC)
        self.is_sparse = True
        change_RKC = fn(gather_tokens(x_RLC, self.index_BK))
        self.is_sparse = False
        return self._rebuild(change_RKC, x_RLC, site)

    def leave(self, x_RLC: Tensor) -> Tensor:
        if self.plan.scope == "sublayer" or self.fill.on_head:
            return x_RLC
        change_RKC = x_RLC - gather_tokens(self.entry, self.index_BK)
        return self.entry + self._rebuild(change_RKC, self.entry, "all")

    def rows(self, table_RLX: Tensor) -> Tensor:
        if not self.is_sparse:
            return table_RLX
        if len(table_RLX) == 1:
            table_RLX = table_RLX.expand(len(self.index_BK), -1, -1)
        return gather_tokens(table_RLX, self.index_BK)

    # after the blocks ----------------------------------------------------------------------------

    @property
    def added_BN(self) -> Tensor | None:
        """False where the pass must add nothing to f_hat."""
        return self.first_mask_BN if self.fill.adds_nothing and self.plan.scope == "scale" else None

    def kept_BN(self) -> Tensor:
        return self.first_mask_BN

    def spread(self, values_BKX: Tensor) -> Tensor:
        """What the head gave for the kept tokens, copied to every position of the grid, (B, N, X)."""
        if self.plan.head_tokens == self.plan.tokens:
            return values_BKX
        return gather_tokens(values_BKX, self._source_BN())

    # ---------------------------------------------------------------------------------------------

    def _select(self, x_RLC: Tensor) -> None:
        halves = x_RLC.split(self.batch) if self.plan.cfg_mask == "separate" else (x_RLC[: self.batch],)
        scores = [self.score(x_BLC.float()) for x_BLC in halves]
        chosen = [keep_top(s.importance if s.ranking is None else s.ranking, self.plan.kept) for s in scores]
        self.index_BK = (
            chosen[0] if len(chosen) == 1 else torch.cat(chosen)
        )  # (2B, K) where the halves choose separately
        self.mask_BN = kept_mask(self.index_BK, self.plan.tokens)
        if self.first_mask_BN is None:
            self.first_mask_BN, self.scores = self.mask_BN[: self.batch], scores[0]

    def _source_BN(self) -> Tensor:
        """For every position the place, among the kept tokens, it copies from."""
        origins = self.mask_BN
        if self.fill.from_anchors:
            origins = (self.mask_BN & anchor_mask(self.scale, self.mask_BN.device)).expand_as(self.mask_BN)
        nearest_BN = nearest_kept(origins, self.scale)
        place_BN = self.mask_BN.cumsum(1) - 1
        if self.fill.from_anchors:
            return place_BN.where(self.mask_BN, place_BN.gather(1, nearest_BN))
        return place_BN.gather(1, nearest_BN)

    def _rebuild(self, change_RKC: Tensor, stream_RNC: Tensor, site) -> Tensor:
        """The change of every position: the kept ones' own, the others' by the fill."""
        if self.fill.from_earlier:
            base = self.earlier.resized(site, self.scale, self._stored_rows()).to(change_RKC.dtype)
        elif self.fill.adds_nothing:
            base = change_RKC.new_zeros(stream_RNC.shape)
        else:
            return gather_tokens(change_RKC, self._source_BN())
        return scatter_tokens(base, self.index_BK, change_RKC)

    def _stored_rows(self) -> slice:
        """This pass's rows within the rows the earlier scale stored."""
        stored = len(next(iter(self.earlier.changes.values())))
        return self.run_rows if self.run_rows.stop <= stored else slice(0, stored)
