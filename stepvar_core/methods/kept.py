"""Token plans that run part of a grid: the counterpart on the device of one pass's PassPlan (tokens.py has the calls).

`SparseStream` chooses once and runs the other blocks on the tokens chosen; `AroundSublayers` keeps a whole stream and
chooses again around each sub-layer, FastVAR's way. Both read from the plan how many tokens a block runs.
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
from .fills import Fill, Kept
from .policy import PassPlan
from .selectors import Scores, keep_top

Score = Callable[[Tensor], Scores]  # of (B, L, C) float32 features of one guidance half


@dataclass
class Earlier:
    """Changes of an earlier dense scale, by site, kept for the `cache` fill while the image lasts."""

    changes: dict = field(default_factory=dict)
    scale: Scale | None = None

    def start(self, scale: Scale) -> None:
        """Forgets what was stored, before another scale's changes come in."""
        self.changes, self.scale = {}, scale

    def resized(self, site, scale: Scale, rows: slice) -> Tensor:
        """The stored change of one site, (rows, N, C), area-resized to another grid. rows: those that run now."""
        change = self.changes[site]
        change = change[rows if rows.stop <= len(change) else slice(0, len(change))]
        grid = rearrange(change, "b (t h w) c -> b c t h w", t=self.scale.t, h=self.scale.h)
        if self.scale.grid != scale.grid:
            grid = F.interpolate(grid, size=scale.grid, mode="area")
        return rearrange(grid, "b c t h w -> b (t h w) c")


class RecordingStream(DenseTokens):
    """Every token runs; what the blocks from `first` on change together is remembered for later scales."""

    def __init__(self, step: Pass, first: int, earlier: Earlier):
        self.scale, self.first, self.earlier = step.scale, first, earlier

    def enter(self, layer: int, x_RLC: Tensor) -> Tensor:
        if layer == self.first:
            self.earlier.start(self.scale)
            self.entry_RLC = x_RLC
        return x_RLC

    def leave(self, x_RLC: Tensor) -> Tensor:
        self.earlier.changes["all"] = x_RLC - self.entry_RLC
        return x_RLC


class RecordingSublayers(DenseTokens):
    """Every token runs; what each sub-layer of `layers` changes is remembered for later scales."""

    def __init__(self, step: Pass, layers: range, earlier: Earlier):
        self.scale, self.layers, self.earlier = step.scale, layers, earlier

    def enter(self, layer: int, x_RLC: Tensor) -> Tensor:
        if layer == self.layers.start:
            self.earlier.start(self.scale)
        return x_RLC

    def through(self, fn, x_RLC: Tensor, site) -> Tensor:
        change = fn(x_RLC)
        if site[0] in self.layers:
            self.earlier.changes[site] = change
        return change


class KeptTokens(DenseTokens):
    """What both ways share: choosing by score, tables at the tokens that run, and what is shown of the choice.

    One set per image, chosen on the first rows (the conditional ones when both halves run) and shared with the other
    half, ascending. `is_separate`: each half chooses its own, and what is shown is the first one's. repeated: codes of
    the whole grid, for a fill that adds those again.
    """

    def __init__(
        self,
        plan: PassPlan,
        step: Pass,
        *,
        batch: int,
        rows: slice,
        score: Score,
        fill: Fill,
        earlier: Earlier | None = None,
        is_separate: bool = False,
        repeated: Tensor | None = None,
    ):
        self.plan, self.step, self.scale = plan, step, step.scale
        self.batch, self.run_rows, self.is_separate = batch, rows, is_separate
        self.score, self.fill, self.earlier, self.repeated = score, fill, earlier, repeated
        self.running: Kept | None = None  # the tokens the stream holds now; None = all
        self.first: Kept | None = None  # the first choice
        self.scores: Scores | None = None

    def rows(self, table_RLX: Tensor) -> Tensor:
        if self.running is None:
            return table_RLX
        if len(table_RLX) == 1:
            table_RLX = table_RLX.expand(len(self.running.index_BK), -1, -1)
        return self.running.gather(table_RLX)

    def kept_BN(self) -> Tensor | None:
        return None if self.first is None else self.first.mask_BN[: self.batch]

    def choose(self, x_RLC: Tensor, keep: int) -> Kept:
        """The `keep` tokens of every image that score highest."""
        halves = x_RLC.split(self.batch) if self.is_separate else (x_RLC[: self.batch],)
        scores = [self.score(x_BLC.float()) for x_BLC in halves]
        chosen = [keep_top(s.importance if s.ranking is None else s.ranking, keep) for s in scores]
        kept = Kept(self.scale, chosen[0] if len(chosen) == 1 else torch.cat(chosen))
        if self.first is None:
            self.first, self.scores = kept, scores[0]
        return kept

    def rebuild(self, change_RKC: Tensor, kept: Kept, site) -> Tensor:
        """The change of every position: the kept ones' own, the others' by the fill."""
        return self.fill.rebuild(change_RKC, kept, lambda: self.earlier.resized(site, self.scale, self.run_rows))


class SparseStream(KeptTokens):
    """Chooses once, at the first block that runs fewer tokens, and goes on with those chosen."""

    def __init__(self, plan: PassPlan, step: Pass, **settings):
        super().__init__(plan, step, **settings)
        self.entry_layer = next((layer for layer, kept in enumerate(plan.kept) if kept < plan.tokens), 0)
        self.entry_RNC: Tensor | None = None

    def enter(self, layer: int, x_RLC: Tensor) -> Tensor:
        if layer != self.entry_layer:
            return x_RLC
        self.running = self.choose(x_RLC, self.plan.kept[layer])
        self.entry_RNC = None if self.fill.on_head else x_RLC
        return self.running.gather(x_RLC)

    def leave(self, x_RLC: Tensor) -> Tensor:
        if self.fill.on_head:
            return x_RLC
        change_RKC = x_RLC - self.running.gather(self.entry_RNC)
        return self.entry_RNC + self.rebuild(change_RKC, self.running, "all")

    @property
    def added_BN(self) -> Tensor | None:
        return self.kept_BN() if self.fill.adds_nothing or self.fill.repeats else None

    @property
    def instead(self) -> Tensor | None:
        return self.repeated if self.fill.repeats else None

    def spread(self, values_BKX: Tensor) -> Tensor:
        return self.fill.spread(values_BKX, self.running) if self.fill.on_head else values_BKX


class AroundSublayers(KeptTokens):
    """The stream stays whole; each sub-layer of a block that runs fewer tokens sees its own choice, and the fill says
    what it changes elsewhere."""

    def through(self, fn, x_RLC: Tensor, site) -> Tensor:
        keep = self.plan.kept[site[0]]
        if keep == self.plan.tokens:
            return fn(x_RLC)
        kept = self.running = self.choose(x_RLC, keep)
        change_RKC = fn(kept.gather(x_RLC))
        self.running = None
        return self.rebuild(change_RKC, kept, site)
