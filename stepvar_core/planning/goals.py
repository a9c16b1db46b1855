"""Auto: ratios from a goal, the likeness to the full picture (SSIM) or the seconds a run may take.

Ratios move along a ladder, from no pruning to the strongest the pack recommends, each rung pruning every scale at
least as much as the one before it. Both goals are a search for a place on it:

* quality: a calibrated table says how alike pictures were on each rung (auto_tables.json, made by `python -m
tests.bench.quality
  --calibrate`). Pictures differ: where the scales before the pruned ones still change f_hat much, pruning costs more.
  That update index is free; it is read on the host once per run, before the first scale that may be pruned, since how
  many tokens run must be known there. It is the loop's only wait for the device, and no other setting has one.
* seconds: the cost model's FLOPs, turned into seconds with a rate fitted to the last runs on this machine, or to a
short probe.
"""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import OptionError
from ..methods.policy import About, PassPlan, Policy, PolicyRun
from ..methods.stepvar import StepVAR
from ..schedule import Pass, ScaleSchedule
from ..tokens import DenseTokens
from ..trace import Trace
from .cost import Estimate, estimate

log = logging.getLogger(__name__)

OFF, QUALITY, SECONDS = "off", "quality", "seconds"
GOALS = (OFF, QUALITY, SECONDS)
TABLES = Path(__file__).parent / "auto_tables.json"
# the last scales first, and only as much of the earlier ones as the speed asks for: errors there are carried on
LADDER = (
    (),
    (0.25,),
    (0.5,),
    (0.5, 0.25),
    (0.5, 0.5),
    (0.6, 0.6, 0.15),
    (0.75, 0.65, 0.3),
    (0.8, 0.75, 0.5, 0.25),
    (0.9, 0.8, 0.7, 0.5),
    (0.95, 0.9, 0.85, 0.7),
)
PLACES = max(map(len, LADDER))
# the update index moves an expected loss by at most this factor: beyond what calibration saw it would be a guess
REFINEMENT = 3.0
STEPS = 200  # places on the ladder that are tried


def ladder_ratios(place: float) -> tuple[float, ...]:
    """Ratios at a place of the ladder, 0 = nothing pruned, 1 = its end; linear between rungs."""
    at = min(max(place, 0.0), 1.0) * (len(LADDER) - 1)
    low = min(int(at), len(LADDER) - 2)
    a, b = (rung + (0.0,) * (PLACES - len(rung)) for rung in LADDER[low : low + 2])
    return tuple(round(x + (at - low) * (y - x), 4) for x, y in zip(a, b))


def check_goal(goal: str, value: float) -> None:
    """Raises OptionError for an unknown goal, or a value that no run can have."""
    if goal not in GOALS:
        raise OptionError(f"auto_goal is {goal!r}.", f"Choose one of {', '.join(GOALS)}.")
    if goal == QUALITY and not 0 < value < 1:
        raise OptionError(
            f"auto_value is {value!r} for a quality.",
            "Use an SSIM between 0 and 1: 0.95 is hard to tell from the full picture, 0.8 is visibly softer.",
        )
    if goal == SECONDS and not 0 < value < math.inf:
        raise OptionError(f"auto_value is {value!r} for a time.", "Use a number of seconds above 0.")


# quality ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Measured likeness along the ladder for one model, selector and fill.

    ssim: mean SSIM to the dense run per rung, falling. index: geometric mean of the pictures' update indices; a
    picture's expected 1 - SSIM is the rung's times (its index / this one) ** slope.
    """

    family: str
    grid: tuple[int, int]
    layers: int
    width: int
    selector: str
    fill: str
    ssim: tuple[float, ...]
    index: float
    slope: float
    pictures: int = 0

    def likeness(self, place: float, index: float | None = None) -> float:
        """Expected SSIM at a place of the ladder; index: the picture's update index, None = an average picture."""
        at = min(max(place, 0.0), 1.0) * (len(self.ssim) - 1)
        low = min(int(at), len(self.ssim) - 2)
        loss = 1 - (self.ssim[low] + (at - low) * (self.ssim[low + 1] - self.ssim[low]))
        if index is not None and index > 0:
            loss *= min(max((index / self.index) ** self.slope, 1 / REFINEMENT), REFINEMENT)
        return 1 - loss

    def place(self, ssim: float, index: float | None = None) -> float:
        """The farthest place whose expected SSIM is at least this."""
        return max((i / STEPS for i in range(STEPS + 1) if self.likeness(i / STEPS, index) >= ssim), default=0.0)


def read_tables(path: Path = TABLES) -> list[Table]:
    content = json.loads(path.read_text(encoding="utf-8"))
    tables: list[dict[str, Any]] = [
        {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()} for entry in content["tables"]
    ]
    return [Table(**table) for table in tables]


def find_table(model, schedule: ScaleSchedule, policy: StepVAR, tables: Sequence[Table] | None = None) -> Table:
    """The table measured on what is most like this model and policy. Raises OptionError for a family nobody
    calibrated."""
    tables = [t for t in (read_tables() if tables is None else tables) if t.family == model.family]
    if not tables:
        raise OptionError(
            f"No {model.family} model was calibrated: which ratios reach a quality is not known.",
            "Set auto_goal to seconds or off, or calibrate: python -m tests.bench.quality --calibrate --model FILE "
            "--vae FILE.",
        )
    cost, wanted = model.cost(), (schedule.final.h, schedule.final.w)

    def likeness(t: Table) -> tuple:
        is_same_model = t.grid == wanted and (t.layers, t.width) == (cost.layers, cost.width)
        return (
            is_same_model,
            t.fill == policy.fill,
            t.selector == policy.selector,
            -abs(math.log(t.grid[0] * t.grid[1] / (wanted[0] * wanted[1]))),
        )

    best = max(tables, key=likeness)
    if not likeness(best)[0]:
        log.warning(
            "auto_goal quality: this model was not calibrated; the nearest table is of %d blocks, width %d, %d x %d "
            "tokens.",
            best.layers,
            best.width,
            *best.grid,
        )
    return best


def update_index(before: Tensor, after: Tensor) -> Tensor:
    """How much one pass changed f_hat, relative to what it is, (B,): |after - before| / |after|, float32."""
    change, whole = ((x.float().flatten(1).square().sum(1)).sqrt() for x in (after - before, after))
    return change / whole.clamp(min=1e-12)


@dataclass(frozen=True, eq=False)
class Goal(Policy):
    """StepVAR whose ratios something else chooses. own: its other settings.

    `plan` answers for no pruning, so that memory and cache suffice for any choice.
    """

    own: Any

    def resolve(self, model, schedule: ScaleSchedule) -> Goal:
        return replace(self, own=self.own.resolve(model, schedule))

    def plan(self, about: About) -> list[PassPlan]:
        return self.with_ratios(()).plan(about)

    def begin(self, about: About, plans: Sequence[PassPlan]) -> PolicyRun:
        return self.with_ratios(()).begin(about, plans)

    def describe(self) -> str:
        return self.with_ratios(()).describe()

    def shown(self) -> dict:
        return self.own.shown()

    def with_ratios(self, ratios: Sequence[float]) -> StepVAR:
        return replace(self.own, ratios=tuple(ratios))

    @property
    def protect(self) -> Tensor | None:
        return self.own.protect


@dataclass(frozen=True, eq=False)
class QualityGoal(Goal):
    """Ratios chosen during the run, for an SSIM of at least `ssim` expected of every picture of the batch.

    table: the likeness that was measured, None = the one nearest to the model. `resolve` raises OptionError for a bad
    value or an uncalibrated family.
    """

    ssim: float
    table: Table | None = None

    def resolve(self, model, schedule: ScaleSchedule) -> QualityGoal:
        check_goal(QUALITY, self.ssim)
        own = self.own.resolve(model, schedule)
        return replace(self, own=own, table=self.table or find_table(model, schedule, own))

    def begin(self, about: About, plans: Sequence[PassPlan]) -> QualityRun:
        return QualityRun(self, about, plans)

    def describe(self) -> str:
        return f"auto, SSIM {self.ssim:g}, {self.own.selector} fill {self.own.fill}"


class QualityRun(PolicyRun):
    """Every token runs until the update index is known; then StepVAR with the ratios it allows."""

    def __init__(self, goal: QualityGoal, about: About, plans: Sequence[PassPlan]):
        super().__init__(plans)
        self.goal, self.about = goal, about
        self.f_hat: Tensor | None = None
        strongest = goal.with_ratios(ladder_ratios(1.0)[: len(about.schedule)])
        self.run = strongest.begin(about, strongest.plan(about))  # ready for whatever is chosen
        last = next((i for i, p in enumerate(self.run.plans) if not p.is_dense), len(plans)) - 1
        self.decides_after = (last,)
        if last < 0:
            self._replan()

    def tokens(self, steps: tuple[Pass, ...], rows: slice) -> DenseTokens:
        return self.run.tokens(steps, rows)

    def observe(self, step) -> None:
        self.run.observe(step)
        if step.index in self.decides_after:
            before = step.f_hat.new_zeros(()) if self.f_hat is None else self.f_hat
            # the one host read: the most changing picture speaks for the batch
            self._replan(float(update_index(before, step.f_hat).max()))
        self.f_hat = step.f_hat

    def _replan(self, index: float | None = None) -> None:
        """The plans of the strongest ratios that keep the likeness; index: the picture's, None = an average one's."""
        ratios = ladder_ratios(self.goal.table.place(self.goal.ssim, index))[: len(self.about.schedule)]
        log.info(
            "auto: update index %s (calibrated on %.3f), ratios %s",
            "unknown" if index is None else f"{index:.3f}",
            self.goal.table.index,
            "/".join(f"{r:g}" for r in ratios),
        )
        self.plans[:] = self.run.plans[:] = self.goal.with_ratios(ratios).plan(self.about)


# seconds ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """Seconds of a pass: per_pass + per_flop * FLOPs + per_token * tokens of the whole grid (drawing and filling
    prune nothing)."""

    per_pass: float
    per_flop: float
    per_token: float

    def seconds(self, cost: Estimate) -> float:
        running = [s for s in cost.scales if s.kept]
        return sum(self.per_pass + self.per_flop * s.flops + self.per_token * s.tokens for s in running)


class Timings:
    """The last passes measured on this machine, per key (device, dtype, batch). Bounded; holds numbers only."""

    def __init__(self, runs: int = 6, keys: int = 8):
        self.runs, self.keys = runs, keys
        self.seen: dict[tuple, deque] = {}

    def add(self, key: tuple, cost: Estimate, trace: Trace) -> None:
        """Remembers the passes of a run; forced ones are left out, since several of them ran as one."""
        passes = [
            (s.flops, s.tokens, t.seconds, s.kept / s.tokens)
            for s, t in zip(cost.scales, trace.scales)
            if s.kept and not t.is_forced
        ]
        if passes:
            kept = self.seen.pop(key, deque(maxlen=self.runs))
            kept.append(passes)
            self.seen[key] = kept  # last used, last to go
            while len(self.seen) > self.keys:
                del self.seen[next(iter(self.seen))]

    def rate(self, key: tuple) -> Rate | None:
        """Least squares with no negative term; None until passes with and without pruning were seen, which tell
        drawing from running."""
        passes = list(chain.from_iterable(self.seen.get(key, ())))
        if not passes or min(p[3] for p in passes) > 0.75 or max(p[3] for p in passes) < 1:
            return None
        x = np.array([(1.0, p[0], p[1]) for p in passes])
        y, size = np.array([p[2] for p in passes]), np.abs(x).max(0)
        found = []
        for used in map(list, chain.from_iterable(combinations(range(3), n) for n in (1, 2, 3))):
            answer = np.linalg.lstsq(x[:, used] / size[used], y, rcond=None)[0]
            if (answer >= 0).all():
                terms = np.zeros(3)
                terms[used] = answer / size[used]
                found.append((float(((x @ terms - y) ** 2).sum()), tuple(terms)))
        return Rate(*map(float, min(found)[1])) if found else None


def probe(
    run: Callable[[StepVAR], Trace],
    cost_of: Callable[[StepVAR], Estimate],
    schedule: ScaleSchedule,
    policy: StepVAR,
    timings: Timings,
    key: tuple,
) -> None:
    """Times the first and the last scale alone, the last one dense and mostly pruned: together about half of a dense
    run.

    The first of three runs warms up and is not counted.
    """
    skip = 0.99 if schedule.is_video else 1.0
    between = (skip,) * (len(schedule) - 2)
    plain = replace(
        policy, guidance_late="both", guidance_late_scales=0, fill="nearest" if policy.fill == "cache" else policy.fill
    )
    for is_counted, ratio in ((False, 0.75), (True, 0.0), (True, 0.75)):
        tried = replace(plain, ratios=(ratio, *between))
        trace = run(tried)
        if is_counted:
            timings.add(key, cost_of(tried), trace)
    log.info("auto: timed the first and last scale, %s", timings.rate(key))


def choose_ratios(
    model,
    schedule: ScaleSchedule,
    goal: str,
    value: float,
    policy: StepVAR | None = None,
    cfg=None,
    batch: int = 1,
    rate: Rate | None = None,
    index: float | None = None,
) -> tuple[float, ...]:
    """Ratios for a goal: the least pruning whose predicted time is within `value` seconds, or the most whose expected
    SSIM is `value`.

    policy: the other settings. rate: from Timings, needed for seconds. index: the picture's update index, None = an
    average picture. Where even the strongest pruning is too slow it is returned, with a warning. Raises OptionError
    for bad values.
    """
    check_goal(goal, value)
    policy = policy or StepVAR(())
    if goal == OFF:
        return policy.ratios
    if goal == QUALITY:
        return ladder_ratios(find_table(model, schedule, policy).place(value, index))[: len(schedule)]
    if rate is None:
        raise OptionError(
            "A time was asked for, but nothing was timed on this machine yet.", "Time a run or a probe first (Timings)."
        )

    def seconds(place: float) -> float:
        ratios = ladder_ratios(place)[: len(schedule)]
        return rate.seconds(estimate(model, schedule, replace(policy, ratios=ratios), cfg, batch))

    low, high = 0, STEPS  # the answer lies in (low, high] unless nothing needs to be pruned
    if seconds(0.0) <= value:
        return ladder_ratios(0.0)[: len(schedule)]
    if seconds(1.0) > value:
        log.warning(
            "auto: even the strongest pruning is predicted to take %.2f s; %.2f s were asked for.", seconds(1.0), value
        )
        return ladder_ratios(1.0)[: len(schedule)]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if seconds(middle / STEPS) <= value else (middle, high)
    return ladder_ratios(high / STEPS)[: len(schedule)]


@dataclass(frozen=True, eq=False)
class SecondsGoal(Goal):
    """Ratios chosen once the device is known, for a run of at most so many seconds: see Auto.choose."""

    seconds: float


def toward(goal: str, value: float, own: Policy) -> Policy:
    """The policy of a goal: one of GOALS with its value. Raises OptionError for a bad one."""
    check_goal(goal, value)
    return {OFF: own, QUALITY: QualityGoal(own, value), SECONDS: SecondsGoal(own, value)}[goal]


class Auto:
    """One run on the way to what its policy aims at. `policy` may run whatever is chosen later: memory is planned for
    it.

    timings: this machine's, which learn() adds to whatever the goal, so that a later goal in seconds needs no probe.
    """

    def __init__(self, *, policy: Policy, timings: Timings, model, schedule: ScaleSchedule, cfg=None, batch: int = 1):
        self.policy, self.timings = policy.resolve(model, schedule), timings
        self.model, self.schedule, self.cfg, self.batch = model, schedule, cfg, batch

    def cost(self, policy: Policy | None = None) -> Estimate:
        return estimate(self.model, self.schedule, policy or self.policy, self.cfg, self.batch)

    def choose(self, key: tuple, run: Callable[[StepVAR], Trace]) -> Policy:
        """The policy to run, now that the model is loaded. run(policy) -> Trace is called where seconds were never
        timed for this key."""
        if isinstance(self.policy, SecondsGoal):
            own = self.policy.with_ratios(())
            if self.timings.rate(key) is None:
                probe(run, self.cost, self.schedule, own, self.timings, key)
            ratios = choose_ratios(
                self.model,
                self.schedule,
                SECONDS,
                self.policy.seconds,
                policy=own,
                cfg=self.cfg,
                batch=self.batch,
                rate=self.timings.rate(key),
            )
            self.policy = self.policy.with_ratios(ratios)
        return self.policy

    def learn(self, key: tuple, trace: Trace) -> None:
        """Remembers how long the run's passes took, where that tells what StepVAR's will."""
        if self.policy.calibrates:
            self.timings.add(key, self.cost(), trace)
