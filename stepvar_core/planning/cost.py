"""What a run costs before it runs: FLOPs, cache bytes and peak memory per pass, from sizes alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from .. import guidance
from ..families.base import TEXT_TOKENS, Cost
from ..memory import cache_bytes
from ..methods.policy import About, NoPruning, PassPlan, Policy, rows_per_pass
from ..schedule import ScaleSchedule

STREAM_BYTES = 4  # per channel of the residual stream, at most
F_HATS = 6  # f_hat before and after a pass, what it adds, resized and blended


@dataclass(frozen=True)
class ScaleCost:
    """One pass, for the whole batch. flops: 2 per multiply-add. kv_bytes: keys and values the pass leaves in the
    cache."""

    size: tuple[int, int, int]
    tokens: int
    kept: int
    flops: int
    kv_bytes: int


@dataclass(frozen=True)
class Estimate:
    """scales per pass; flops of the run; speedup against the same run without pruning; peak_bytes = weights, cache,
    what the `cache` fill remembers and the largest activations, without what an allocator rounds up and a kernel's
    own workspace."""

    scales: tuple[ScaleCost, ...]
    flops: int
    dense_flops: int
    kv_bytes: int
    peak_bytes: int

    @property
    def speedup(self) -> float:
        return self.dense_flops / self.flops


@dataclass(frozen=True)
class Run:
    """A run as decided before it starts, per pass: its plan, the rows that run, guidance's weight, and the earlier
    passes whose keys it reads, of those that run."""

    schedule: ScaleSchedule
    batch: int
    plans: list[PassPlan]
    rows: list[int]
    weights: list[float]
    sees: list[list[int]]

    @property
    def running(self) -> list[int]:
        return [i for i, plan in enumerate(self.plans) if not plan.is_skipped]

    def tokens(self, i: int, layer: int, cost: Cost) -> int:
        """Tokens of a pass that run in one layer, a text that leads the first included."""
        return self.plans[i].layer_tokens(layer) + (cost.lead_tokens if i == self.running[0] else 0)

    def head_rows(self, i: int) -> int:
        """Rows the head answers for: both halves where guidance mixes their answers."""
        return 2 * self.batch if self.rows[i] == 2 * self.batch and self.weights[i] else self.batch


def decide(policy: Policy, model, about: About, weights: list[float]) -> Run:
    """What runs under a policy that is resolved. weights: per pass, of guidance.weights."""
    plans, schedule = policy.plan(about), about.schedule
    runs = {i for i, plan in enumerate(plans) if not plan.is_skipped}
    sees = [sorted(runs & set(model.sees(step, schedule))) for step in schedule.passes]
    rows = rows_per_pass(plans, weights, about.batch)
    return Run(schedule=schedule, batch=about.batch, plans=plans, rows=rows, weights=weights, sees=sees)


def estimate(
    model, schedule: ScaleSchedule, pruning=None, cfg=None, batch: int = 1, text_tokens: int = TEXT_TOKENS
) -> Estimate:
    """Cost of one run of `model`, without running it. Raises what the run itself would raise for these settings.

    text_tokens: length of the prompt, where the family reads one.
    """
    policy = (pruning or NoPruning()).resolve(model, schedule)
    weights = guidance.weights(model, cfg, schedule)
    cost, about = model.cost(text_tokens), About.of(model, schedule, batch)
    run, dense = (decide(one, model, about, weights) for one in (policy, NoPruning()))
    scales, itemsize = price(run, cost, model.dtype.itemsize), model.dtype.itemsize
    kv = _cache_bytes(run, cost, itemsize)
    f_hats = F_HATS * 4 * batch * math.prod(model.latent_shape(schedule))
    held = max(run.rows) * cost.held_bytes + max(r * plan.remembers for r, plan in zip(run.rows, run.plans))
    tail = run.rows[-1] * run.plans[-1].tokens * cost.tail_bytes
    working = max(*(_working_bytes(run, i, cost) for i in run.running), tail)
    weights_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    return Estimate(
        scales=scales,
        flops=_total(run, scales, cost),
        dense_flops=_total(dense, price(dense, cost, itemsize), cost),
        kv_bytes=kv,
        peak_bytes=weights_bytes + kv + f_hats + held + working,
    )


def price(run: Run, cost: Cost, itemsize: int) -> tuple[ScaleCost, ...]:
    """What every pass of a run costs."""
    read_again = {earlier for i in run.running for earlier in run.sees[i]}
    scales = []
    for i, (step, plan) in enumerate(zip(run.schedule.passes, run.plans)):
        stored = 0
        if i in read_again:
            tokens = sum(run.tokens(i, layer, cost) for layer in range(cost.layers))
            stored = 2 * run.rows[i] * tokens * cost.heads * cost.head_dim * itemsize
        flops = 0 if plan.is_skipped else _blocks_flops(run, i, cost) + _head_flops(run, i, cost)
        scales.append(ScaleCost(step.scale.grid, plan.tokens, plan.fewest, flops, stored))
    return tuple(scales)


def _blocks_flops(run: Run, i: int, cost: Cost) -> int:
    """Linears, cross-attention, and attention to the keys of earlier passes and of this one."""
    flops = 0
    for layer in range(cost.layers):
        tokens = run.tokens(i, layer, cost)
        keys = tokens + sum(run.tokens(earlier, layer, cost) for earlier in run.sees[i])
        per_token = cost.linear_per_token + cost.cross_per_token + 4 * keys * cost.heads * cost.head_dim
        flops += run.rows[i] * tokens * per_token
    return flops


def _head_flops(run: Run, i: int, cost: Cost) -> int:
    """The head, the embedding of what the pass reads, and what follows the last scale's codes, at every position."""
    plan, embedded = run.plans[i], run.batch * run.plans[i].tokens * cost.embed_per_token
    flops = run.head_rows(i) * plan.head * cost.head_per_token + (embedded if i else 0)
    if cost.tail_per_token and run.schedule.passes[i].scale_index == len(run.schedule) - 1:
        flops += plan.tokens * run.head_rows(i) * cost.tail_per_token + embedded  # it reads the codes
    return flops


def _total(run: Run, scales: tuple[ScaleCost, ...], cost: Cost) -> int:
    return sum(s.flops for s in scales) + cost.per_run_and_row * max(run.rows) + cost.per_run


def _cache_bytes(run: Run, cost: Cost, itemsize: int) -> int:
    lengths = [[run.tokens(i, layer, cost) for i in run.running] for layer in range(cost.layers)]
    place = {i: n for n, i in enumerate(run.running)}
    sees = [[place[earlier] for earlier in run.sees[i]] for i in run.running]
    return cache_bytes(lengths, sees, max(run.rows), cost.heads, cost.head_dim, itemsize)


def _working_bytes(run: Run, i: int, cost: Cost) -> int:
    """The most one pass holds at a time, inside a block or between head and code."""
    plan, rows = run.plans[i], run.rows[i]
    stream = STREAM_BYTES * rows * plan.tokens * cost.width
    block = rows * max(plan.kept) * cost.block_bytes + (3 * stream if max(plan.kept) < plan.tokens else 0)
    spread = cost.spread_bytes or cost.draw_bytes // 2  # between kept tokens' logits and a draw at every position
    return max(block, stream + run.batch * max(plan.head * cost.draw_bytes, plan.tokens * spread))


def terms(model, schedule: ScaleSchedule, text_tokens: int = TEXT_TOKENS) -> dict:
    """The numbers `estimate` computes with, JSON-ready, so that a browser can do the same for any ratios:
    web/lib/plan.js.

    scales: per scale its size, its tokens, `place` (the n of ratio_n, 0 = always dense), and whether it may be skipped.
    guided: per pass whether guidance runs there for a strength other than `neutral_cfg`.
    """
    is_video = schedule.final.clip > 0
    scales = [
        {
            "size": list(s.grid),
            "tokens": s.tokens,
            "repeats": s.repeats,
            "place": 0 if is_video and s.clip == 0 else schedule.steps_from_end(i),
            "can_skip": i > 0 and (not is_video or i == len(schedule) - 1),
        }
        for i, s in enumerate(schedule)
    ]
    return {
        "scales": scales,
        "cost": asdict(model.cost(text_tokens)),
        "first_layer": model.first_layer,
        "itemsize": model.dtype.itemsize,
        "weights_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "default_cfg": model.config.defaults.cfg,
        "neutral_cfg": model.neutral_cfg,
        "guided": [t != 0 for t in guidance.weights(model, model.neutral_cfg + 1, schedule)],
    }
