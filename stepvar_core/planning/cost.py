"""What a run costs before it runs: FLOPs, cache bytes and peak memory per pass, from sizes alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from .. import guidance
from ..families.base import TEXT_TOKENS, Cost
from ..memory import cache_bytes
from ..methods.policy import About, NoPruning, PassPlan, rows_per_pass
from ..schedule import Pass, ScaleSchedule

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


def estimate(
    model, schedule: ScaleSchedule, pruning=None, cfg=None, batch: int = 1, text_tokens: int = TEXT_TOKENS
) -> Estimate:
    """Cost of one run of `model`, without running it. Raises what the run itself would raise for these settings.

    text_tokens: length of the prompt, where the family reads one.
    """
    policy = (pruning or NoPruning()).resolve(model, schedule)
    weights = guidance.weights(model, cfg, schedule)
    cost = model.cost(text_tokens)
    layers = cost.layers
    about = About.of(model, schedule, batch)
    plans, dense = policy.plan(about), NoPruning().plan(about)
    rows, dense_rows = rows_per_pass(plans, weights, batch), rows_per_pass(dense, weights, batch)
    itemsize = model.dtype.itemsize
    scales = _scales(cost, itemsize, schedule, plans, rows, weights, batch)
    run_flops = sum(s.flops for s in scales) + cost.per_run_and_row * max(rows) + cost.per_run
    dense_scales = _scales(cost, itemsize, schedule, dense, dense_rows, weights, batch)
    dense_flops = sum(s.flops for s in dense_scales) + cost.per_run_and_row * max(dense_rows) + cost.per_run
    running = [step for step, plan in zip(schedule.passes, plans) if not plan.is_skipped]
    lead = [cost.lead_tokens] + [0] * (len(running) - 1)
    kv = cache_bytes(
        [[plans[step.index].layer_tokens(i) + n for step, n in zip(running, lead)] for i in range(layers)],
        _seen(model, running, schedule),
        max(rows),
        cost.heads,
        cost.head_dim,
        itemsize,
    )
    held = max(rows) * cost.held_bytes + F_HATS * 4 * batch * math.prod(model.latent_shape(schedule))
    weights_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    working = max(
        *(_working_bytes(cost, plan, r, batch) for plan, r in zip(plans, rows)),
        rows[-1] * plans[-1].tokens * cost.tail_bytes,
    )
    return Estimate(
        scales,
        run_flops,
        dense_flops,
        kv,
        weights_bytes + kv + held + max(r * p.remembers for r, p in zip(rows, plans)) + working,
    )


def _seen(model, running: list[Pass], schedule: ScaleSchedule) -> list[list[int]]:
    """Per pass that runs, which of the others it reads, as places in `running`."""
    return [[n for n, earlier in enumerate(running) if earlier.index in model.sees(step, schedule)] for step in running]


def _working_bytes(cost: Cost, plan: PassPlan, rows: int, batch: int) -> int:
    """The most one pass holds at a time, inside a block or between head and code."""
    if plan.is_skipped:
        return 0
    running = max(plan.layer_tokens(layer) for layer in range(cost.layers))
    stream = STREAM_BYTES * rows * plan.tokens * cost.width
    block = rows * running * cost.block_bytes + (3 * stream if running < plan.tokens else 0)
    spread = cost.spread_bytes or cost.draw_bytes // 2  # between kept tokens' logits and a draw at every position
    return max(block, stream + batch * max(plan.head * cost.draw_bytes, plan.tokens * spread))


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


def _scales(
    cost: Cost,
    itemsize: int,
    schedule: ScaleSchedule,
    plans: list[PassPlan],
    rows: list[int],
    weights: list[float],
    batch: int,
) -> tuple[ScaleCost, ...]:
    seen = [0] * cost.layers
    last = max(i for i, p in enumerate(plans) if not p.is_skipped)
    scales = []
    for i, (step, plan, r, t) in enumerate(zip(schedule.passes, plans, rows, weights)):
        flops = kv = 0
        if not plan.is_skipped:
            for layer in range(cost.layers):
                n = plan.layer_tokens(layer) + (0 if i else cost.lead_tokens)
                seen[layer] += n
                flops += (
                    r
                    * n
                    * (cost.linear_per_token + cost.cross_per_token + 4 * seen[layer] * cost.heads * cost.head_dim)
                )
                kv += 0 if i == last else 2 * r * n * cost.heads * cost.head_dim * itemsize
            head_rows = 2 * batch if r == 2 * batch and t else batch
            flops += head_rows * plan.head * cost.head_per_token + (
                batch * plan.tokens * cost.embed_per_token if i else 0
            )
            if (
                cost.tail_per_token and step.scale_index == len(schedule) - 1
            ):  # reads the codes, and runs at every position
                flops += plan.tokens * (head_rows * cost.tail_per_token + batch * cost.embed_per_token)
        scales.append(ScaleCost(step.scale.grid, plan.tokens, plan.fewest, flops, kv))
    return tuple(scales)
