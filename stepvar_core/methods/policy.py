"""What a method answers: six slots, each with a null object that changes nothing.

    resolve   presets, goals and published numbers become numbers              Policy.resolve
    plan      how many tokens each block of each pass runs, on the host        Policy.plan
    tokens    which tokens run, and how the others are filled                  PolicyRun.tokens
    strength  how strong guidance is, for every picture; `hear` before it      PolicyRun.strength
    memory    how the blocks attend, and which keys later passes find          PolicyRun.memory
    observe   what came out of a pass; later plans may change                  PolicyRun.observe

A policy is frozen settings, shared freely between runs; `begin` makes the object that holds one run's state and dies
with it. Nothing here knows a model family or a method.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import StepVARError
from ..schedule import Pass, ScaleSchedule
from ..tokens import DENSE, DenseTokens
from ..trace import ScaleStep

HALVES = ("both", "conditional", "unconditional")


@dataclass(frozen=True)
class About:
    """What a policy may know of a run. first_layer: where the family's features are worth judging. sublayers: changes a
    block makes to its stream. itemsize: bytes of one number of it. noise(name, pass_index, shape) -> (batch, *shape):
    uniform numbers of the run's own streams, None where nothing will be drawn."""

    schedule: ScaleSchedule
    batch: int = 1
    layers: int = 1
    width: int = 1
    first_layer: int = 0
    family: str = ""
    sublayers: int = 2
    itemsize: int = 4
    device: Any = None
    noise: Callable | None = None

    @classmethod
    def of(cls, model, schedule: ScaleSchedule, batch: int = 1, device=None, noise: Callable | None = None) -> About:
        """A run of `model` over `schedule`."""
        cost = model.cost()
        return cls(
            schedule=schedule,
            batch=batch,
            layers=cost.layers,
            width=cost.width,
            first_layer=model.first_layer,
            family=model.family,
            sublayers=3 if cost.cross_per_token else 2,
            itemsize=model.dtype.itemsize,
            device=device,
            noise=noise,
        )


@dataclass(frozen=True)
class PassPlan:
    """One pass in numbers, per picture: what the cache, the cost model and the progress bar are made of.

    tokens: of the grid. kept: how many run in each block, all 0 where the pass is skipped. head: how many the head
    answers for. halves: one of HALVES; a half that a pass leaves out stays out, since later ones would miss its keys.
    remembers: bytes a row that the method holds of the pass. stored: keys that later passes may read, per block; None =
    those of `kept`.

    TODO: memory reads `stored` once a method sets it; until then leave it None.
    """

    tokens: int
    kept: tuple[int, ...]
    head: int
    halves: str = "both"
    stored: tuple[int, ...] | None = None
    remembers: int = 0

    @classmethod
    def dense(cls, tokens: int, layers: int, halves: str = "both") -> PassPlan:
        return cls(tokens, (tokens,) * layers, tokens, halves)

    @property
    def fewest(self) -> int:
        """Tokens of the block that runs the fewest, of those that run any; 0 = the pass is skipped."""
        return min(filter(None, self.kept), default=0)

    @property
    def is_skipped(self) -> bool:
        return not any(self.kept)

    @property
    def is_dense(self) -> bool:
        return min(self.kept) == self.tokens

    def layer_tokens(self, layer: int) -> int:
        """Tokens that run in one block."""
        return self.kept[layer]

    def keeping(self, kept: Sequence[int], head: int | None = None) -> PassPlan:
        """The same pass with other counts. head: None = as many as before."""
        return replace(self, kept=tuple(kept), head=self.head if head is None else head)

    def skipped(self) -> PassPlan:
        """The same pass, left out."""
        return replace(self, kept=(0,) * len(self.kept), head=0, stored=None, remembers=0)

    def fits(self, planned: PassPlan) -> bool:
        """Whether memory made for `planned` suffices for this."""
        return (
            self.tokens == planned.tokens
            and all(mine <= theirs for mine, theirs in zip(self.kept, planned.kept, strict=True))
            and self.head <= planned.head
            and (self.halves == planned.halves or planned.halves == "both")
        )


def rows_per_pass(plans: Sequence[PassPlan], weights: Sequence[float], batch: int) -> list[int]:
    """Rows that run in each pass: both guidance halves until neither this nor a later pass needs the second one.

    weights: per pass the t of guidance.combine, 0 = no guidance.
    """
    has_guidance, needs_both, rows = any(weights), False, []
    for plan, t in zip(reversed(plans), reversed(weights)):
        is_guided = t != 0 and plan.halves == "both" and not plan.is_skipped
        needs_both |= is_guided or (plan.halves == "unconditional" and has_guidance)
        rows.append(0 if plan.is_skipped else 2 * batch if plan.halves == "both" and needs_both else batch)
    return rows[::-1]


class Policy:
    """Settings of a method; this one is the null object: every token of every scale runs.

    calibrates: whether the time of its passes tells what StepVAR's will take.
    """

    calibrates = False

    def resolve(self, model, schedule: ScaleSchedule) -> Policy:
        """The policy that runs on `model` over `schedule`, where names and goals have become numbers."""
        return self

    def plan(self, about: About) -> list[PassPlan]:
        """Every pass in numbers, before anything runs: memory is made for this. Raises OptionError for settings that
        do not fit the run."""
        return [PassPlan.dense(step.scale.tokens, about.layers) for step in about.schedule.passes]

    def least(self, about: About) -> list[PassPlan] | None:
        """The least that may run where a picture decides, with `plan` as the most; None where nothing is decided."""
        return None

    def begin(self, about: About, plans: Sequence[PassPlan]) -> PolicyRun:
        """The state of one run of `plans`."""
        return PolicyRun(plans)

    def describe(self) -> str:
        """In a few words, for traces and the log."""
        return "off"

    def shown(self) -> dict:
        """What a trace and the browser tell of the settings, JSON-ready."""
        return {"fill": "nearest", "scope": "scale"}


@dataclass(frozen=True)
class NoPruning(Policy):
    """Every token of every scale."""

    calibrates = True


class Unsettled(Policy):
    """A name or a goal; what `resolve` answers is what runs."""

    def resolve(self, model, schedule: ScaleSchedule) -> Policy:
        raise NotImplementedError

    def plan(self, about: About) -> list[PassPlan]:
        raise StepVARError(f"{self.describe()} is not settled for a model yet.", "Ask the policy that resolve() gives.")


class PolicyRun:
    """One run of a policy, and the null object of its slots.

    plans: the live list. The loop reads a pass's plan when its turn comes, so `observe` may replace later ones in
    place, as long as each fits what `plan` answered (see PassPlan.fits).
    decides_after: passes whose `observe` does so. Given codes on both sides of one are not run together.
    hears: passes whose logits `hear` is given.
    """

    decides_after: Container[int] = ()
    hears: Container[int] = ()

    def __init__(self, plans: Sequence[PassPlan]):
        self.plans = list(plans)

    def tokens(self, steps: tuple[Pass, ...], rows: slice) -> DenseTokens:
        """The token plan of the passes that run next, mostly one. rows: those that run, of conditional rows first and
        unconditional ones second. Asking changes nothing: the loop may ask twice."""
        return DENSE

    def strength(self, steps: tuple[Pass, ...], t: float) -> float | Tensor:
        """The t of guidance.combine in these passes: the given one, or (B, 1, 1), one for each picture."""
        return t

    def hear(self, step: Pass, logits_RLV: Tensor) -> None:
        """The head's answers of both guidance halves, for the tokens it ran on; no call where one half runs."""

    def memory(self, steps: tuple[Pass, ...], cache):
        """What the blocks attend with in these passes."""
        return cache

    def observe(self, step: ScaleStep) -> None:
        """Called once after every pass, skipped ones too. Tensors of `step` are the loop's own; it may be kept no
        longer than this call, its f_hat may. The only place where a method may wait for the device."""


def due(run: PolicyRun, planned: Sequence[PassPlan], index: int) -> PassPlan:
    """The plan of the pass whose turn it is. Raises StepVARError where a method asks for more than memory was made
    for, or for keys of a guidance half that did not run."""
    plan = run.plans[index]
    ran = {p.halves for p in run.plans[:index] if not p.is_skipped and p.halves != "both"}
    if not plan.is_skipped and ran - {plan.halves}:
        raise StepVARError(
            f"Pass {index + 1} asks for guidance {plan.halves}; an earlier one ran {', '.join(sorted(ran))} alone.",
            "Leave a half out for good, or not at all.",
        )
    if plan is not planned[index] and not plan.fits(planned[index]):
        raise StepVARError(
            f"The plan of pass {index + 1} grew during the run: {plan.fewest} tokens, guidance {plan.halves}, "
            f"where {planned[index].fewest} and {planned[index].halves} were planned.",
            "Plan the most a run may take, and only shrink it in observe().",
        )
    return plan
