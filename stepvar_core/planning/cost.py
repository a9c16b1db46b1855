"""What a run costs before it runs: FLOPs, cache bytes and peak memory per pass, from sizes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..families.base import TEXT_TOKENS, Cost
from ..memory import cache_bytes
from ..methods.policy import About, NoPruning, PassPlan, rows_per_pass
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
    """scales per pass; flops of the run; least_flops where a picture decides, of the least that may run, and then
    speedup is a pair, lowest and highest; speedup against the same run without pruning; peak_bytes = weights, cache,
    what the `cache` fill remembers and the largest activations, without what an allocator rounds up and a kernel's
    own workspace."""

    scales: tuple[ScaleCost, ...]
    flops: int
    dense_flops: int
    kv_bytes: int
    peak_bytes: int
    least_flops: int | None = None

    @property
    def speedup(self) -> float | tuple[float, float]:
        lowest = self.dense_flops / self.flops
        return lowest if self.least_flops is None else (lowest, self.dense_flops / self.least_flops)


@dataclass(frozen=True)
class Decided:
    """What a policy makes of a run, on the host. plans, rows, weights: one per pass. seen: per pass the earlier ones
    that run and whose keys it reads."""

    plans: list[PassPlan]
    rows: list[int]
    weights: list[float]
    seen: list[list[int]]

    @property
    def running(self) -> list[int]:
        return [i for i, plan in enumerate(self.plans) if not plan.is_skipped]

    @property
    def most_rows(self) -> int:
        return max(self.rows)


def estimate(
    model,
    schedule: ScaleSchedule,
    pruning=None,
    cfg=None,
    batch: int = 1,
    text_tokens: int = TEXT_TOKENS,
    options: dict | None = None,
) -> Estimate:
    """Cost of one run of `model`, without running it. Raises what the run itself would raise for these settings.

    text_tokens: length of the prompt, where the family reads one. options: the family's switches.
    """
    about, cost, itemsize = About.of(model, schedule, batch), model.cost(text_tokens), model.dtype.itemsize
    weights = model.per_pass(schedule, model.Options.read(options), cfg=cfg).weights

    def decide(plans: list[PassPlan]) -> Decided:
        runs = {i for i, plan in enumerate(plans) if not plan.is_skipped}
        seen = [sorted(runs & set(model.sees(step, schedule))) for step in schedule.passes]
        return Decided(plans, rows_per_pass(plans, weights, batch), weights, seen)

    policy = (pruning or NoPruning()).resolve(model, schedule)
    run, dense = decide(policy.plan(about)), decide(NoPruning().plan(about))
    least = policy.least(about)
    scales = price(run, cost, schedule, batch, itemsize)
    dense_scales = price(dense, cost, schedule, batch, itemsize)
    kv_bytes = cache_bytes(
        [[tokens_of(run, cost, i, layer) for i in run.running] for layer in range(cost.layers)],
        [[run.running.index(earlier) for earlier in run.seen[i]] for i in run.running],
        run.most_rows,
        cost.heads,
        cost.head_dim,
        itemsize,
    )
    return Estimate(
        scales=scales,
        flops=sum(s.flops for s in scales) + once(run, cost),
        dense_flops=sum(s.flops for s in dense_scales) + once(dense, cost),
        kv_bytes=kv_bytes,
        peak_bytes=weights_bytes(model) + kv_bytes + held_bytes(run, cost, model, schedule, batch),
        least_flops=None if least is None else flops_of(decide(least), cost, schedule, batch, itemsize),
    )


def price(run: Decided, cost: Cost, schedule: ScaleSchedule, batch: int, itemsize: int) -> tuple[ScaleCost, ...]:
    """Every pass of a run in FLOPs, and in bytes of keys and values that later passes read."""
    read = {earlier for i in run.running for earlier in run.seen[i]}
    scales = []
    for step, plan, rows, weight in zip(schedule.passes, run.plans, run.rows, run.weights):
        flops = kv_bytes = 0
        if not plan.is_skipped:
            for layer in range(cost.layers):
                tokens = tokens_of(run, cost, step.index, layer)
                keys = tokens + sum(tokens_of(run, cost, earlier, layer) for earlier in run.seen[step.index])
                attention = 4 * keys * cost.heads * cost.head_dim
                flops += rows * tokens * (cost.linear_per_token + cost.cross_per_token + attention)
                if step.index in read:
                    kv_bytes += 2 * rows * tokens * cost.heads * cost.head_dim * itemsize
            answering = 2 * batch if rows == 2 * batch and weight else batch
            flops += answering * plan.head * cost.head_per_token
            if step.index:
                flops += batch * plan.tokens * cost.embed_per_token
            if step.scale_index == len(schedule) - 1 and cost.tail_per_token:  # reads the codes, at every position
                flops += plan.tokens * (answering * cost.tail_per_token + batch * cost.embed_per_token)
        scales.append(ScaleCost(step.scale.grid, plan.tokens, plan.fewest, flops, kv_bytes))
    return tuple(scales)


def flops_of(run: Decided, cost: Cost, schedule: ScaleSchedule, batch: int, itemsize: int) -> int:
    """FLOPs of a whole run."""
    return sum(s.flops for s in price(run, cost, schedule, batch, itemsize)) + once(run, cost)


def tokens_of(run: Decided, cost: Cost, index: int, layer: int) -> int:
    """Tokens of a pass in one block; the first that runs carries the text before it."""
    return run.plans[index].layer_tokens(layer) + (cost.lead_tokens if index == run.running[0] else 0)


def once(run: Decided, cost: Cost) -> int:
    """FLOPs that are spent once, whatever the passes."""
    return cost.per_run_and_row * run.most_rows + cost.per_run


def weights_bytes(model) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def held_bytes(run: Decided, cost: Cost, model, schedule: ScaleSchedule, batch: int) -> int:
    """The most a run holds beside weights and cache: what is constant, what a method remembers, and one pass's work."""
    f_hats = F_HATS * 4 * batch * math.prod(model.latent_shape(schedule))
    remembered = max(rows * plan.remembers for rows, plan in zip(run.rows, run.plans))
    working = max(working_bytes(cost, plan, rows, batch) for plan, rows in zip(run.plans, run.rows))
    tail = run.rows[-1] * run.plans[-1].tokens * cost.tail_bytes
    return run.most_rows * cost.held_bytes + f_hats + remembered + max(working, tail)


def working_bytes(cost: Cost, plan: PassPlan, rows: int, batch: int) -> int:
    """The most one pass holds at a time, inside a block or between head and code."""
    if plan.is_skipped:
        return 0
    running = max(plan.kept)
    stream = STREAM_BYTES * rows * plan.tokens * cost.width
    block = rows * running * cost.block_bytes + (3 * stream if running < plan.tokens else 0)
    spread = cost.spread_bytes or cost.draw_bytes // 2  # between kept tokens' logits and a draw at every position
    return max(block, stream + batch * max(plan.head * cost.draw_bytes, plan.tokens * spread))


def terms(model, schedule: ScaleSchedule, text_tokens: int = TEXT_TOKENS) -> dict:
    """The numbers `estimate` computes with, JSON-ready, so that a browser can do the same for any ratios:
    web/lib/plan.js.

    scales: per scale its size, its tokens, `place` (the n of ratio_n, 0 = always dense), and whether it may be skipped.
    guided: per pass whether guidance runs there for a strength other than `neutral_cfg`. sees: per pass the earlier
    ones it reads, as [first, behind the last].
    """
    scales = [
        {
            "size": list(scale.grid),
            "tokens": scale.tokens,
            "repeats": scale.repeats,
            "place": schedule.place(i),
            "can_skip": schedule.may_skip(i),
        }
        for i, scale in enumerate(schedule)
    ]
    settings = model.per_pass(schedule, model.Options.read(None), cfg=model.neutral_cfg + 1)
    return {
        "scales": scales,
        "cost": asdict(model.cost(text_tokens)),
        "first_layer": model.first_layer,
        "itemsize": model.dtype.itemsize,
        "weights_bytes": weights_bytes(model),
        "default_cfg": model.config.defaults.cfg,
        "neutral_cfg": model.neutral_cfg,
        "guided": [t != 0 for t in settings.weights],
        "sees": [as_ranges(model.sees(step, schedule)) for step in schedule.passes],
    }


def as_ranges(indices: Sequence[int]) -> list[list[int]]:
    """Ascending numbers as runs of neighbours, [first, behind the last]."""
    if isinstance(indices, range) and indices.step == 1:
        return [[indices.start, indices.stop]] if indices else []
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1][1] += 1
        else:
            ranges.append([index, index + 1])
    return ranges
