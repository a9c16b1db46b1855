"""LD-Pruning (arXiv 2606.00310): tokens run where the codes of the scale before have detail, and guidance ends where
its two halves come to agree.

Here: the Haar energy of the previous codes, per picture the places that hold a share of it, the previous codes once
more elsewhere, and the guidance gap as printed or per number. A batch is ragged: a picture that needs fewer tokens
than another runs some more for its sake, which nobody sees. Not here: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..schedule import Pass, ScaleSchedule
from ..tokens import DENSE, DenseTokens
from .fills import FILLS, Kept, upsampled_codes
from .kept import SparseStream
from .method import Method, Option, skipped
from .policy import About, PassPlan
from .selectors import Scores, detail_energy, holding_energy, keep_top
from .stepvar import Rival, StepVARRun

GAPS = ("scale_free", "printed")
EPSILON = 1e-8  # keeps the first division finite

OPTIONS = (
    Option(
        "energy",
        0.5,
        1.0,
        "Share of the detail energy whose places run in each pruned scale; published .5. Lower is faster and repeats "
        "more of the scale before.",
        low=0.01,
    ),
    Option("scales", 3, 0, "How many of the last scales are pruned, skipped ones counted. More is faster.", high=20),
    Option(
        "gap",
        0.15,
        0.0,
        "Guidance ends for a picture once the gap between its halves changes by less than this share from scale to "
        "scale; published .15. Higher ends it earlier and is faster.",
        high=10,
    ),
    Option("gap_scales", 4, 0, "In how many of the last scales the gap is watched.", high=20),
    Option(
        "gap_measure",
        "scale_free",
        None,
        "scale_free: the gap of a single number, ours. printed: of the whole scale, which grows with it and so seldom "
        "ends guidance.",
        choices=GAPS,
    ),
    Option(
        "skip_scales",
        0,
        0,
        "How many of the last scales are left out besides, on Infinity at 1M only; the paper also shows 2. Each makes "
        "the picture softer.",
        high=6,
    ),
)


@dataclass(frozen=True, eq=False)
class LDPruning(Rival):
    """energy, scales, gap, gap_scales, gap_measure: see OPTIONS. ratios: those of skipped scales alone."""

    energy: float = field(default=0.5, kw_only=True)
    scales: int = field(default=3, kw_only=True)
    gap: float = field(default=0.15, kw_only=True)
    gap_scales: int = field(default=4, kw_only=True)
    gap_measure: str = field(default="scale_free", kw_only=True)

    def describe(self) -> str:
        parts = [f"energy {self.energy:g} in the last {self.scales}"] if self.scales and self.energy < 1 else []
        if self.gap and self.gap_scales:
            parts.append(f"gap {self.gap:g}")
        return f"{self.title} {', '.join(parts) or 'off'}"

    def pruned(self, schedule: ScaleSchedule) -> set[int]:
        """Passes whose tokens are chosen; nothing precedes the first one."""
        first = len(schedule) - self.scales if self.energy < 1 else len(schedule)
        return {step.index for step in schedule.passes if step.index and step.scale_index >= first}

    def watched(self, schedule: ScaleSchedule) -> set[int]:
        """Passes after which guidance may end."""
        first = len(schedule) - self.gap_scales if self.gap else len(schedule)
        last = schedule.passes[-1].index
        return {step.index for step in schedule.passes if step.scale_index >= first and 0 < step.index < last}

    def least(self, about: About) -> list[PassPlan]:
        """One token where tokens are chosen, and guidance to the first scale where it may end."""
        plans, ends = self.plan(about), min(self.watched(about.schedule), default=len(about.schedule.passes))
        for i, plan in enumerate(plans):
            if plan.is_skipped:
                continue
            if i in self.pruned(about.schedule):
                plan = plan.keeping((1,) * about.layers, head=1)
            plans[i] = replace(plan, halves="conditional") if i > ends else plan
        return plans

    def begin(self, about: About, plans: Sequence[PassPlan]) -> LDRun:
        return LDRun(self, about, plans)


@dataclass(frozen=True)
class Chosen:
    """Tokens of one pass. index_BK: those that run. own_BN: those of each picture. energy_BN: what they were chosen
    by."""

    index_BK: Tensor
    own_BN: Tensor
    energy_BN: Tensor

    @property
    def own_BK(self) -> Tensor:
        return self.own_BN.gather(1, self.index_BK)


class OwnTokens(SparseStream):
    """Tokens chosen before the pass; of those that run some may be there for other pictures alone."""

    def __init__(self, chosen: Chosen, *settings, **more):
        super().__init__(*settings, score=lambda x_BLC: Scores(chosen.energy_BN), **more)
        self.chosen = chosen

    def choose(self, x_RLC: Tensor, keep: int) -> Kept:
        self.first = Kept(self.scale, self.chosen.index_BK)
        self.scores = Scores(self.chosen.energy_BN.float())
        return self.first

    def kept_BN(self) -> Tensor:
        return self.chosen.own_BN


class LDRun(StepVARRun):
    """Holds the choice of the pass to come, and per picture the last gap and whether guidance has ended."""

    def __init__(self, policy: LDPruning, about: About, plans: Sequence[PassPlan]):
        super().__init__(policy, about, plans)
        self.policy: LDPruning = policy
        schedule = about.schedule
        self.pruned = {i for i in policy.pruned(schedule) if not plans[i].is_skipped}
        self.watched = policy.watched(schedule)
        self.decides_after = self.watched | {i - 1 for i in self.pruned}
        self.hears = self.watched | {i - 1 for i in self.watched}
        self.chosen: dict[int, Chosen] = {}
        self.gap_B: Tensor | None = None  # of the last pass heard
        self.changes_B: Tensor | None = None  # by what share it changed
        self.ended = torch.zeros(about.batch, dtype=torch.bool)  # on the host

    # tokens --------------------------------------------------------------------------------------

    def observe(self, step) -> None:
        super().observe(step)
        self.chosen.pop(step.index, None)
        if step.index + 1 in self.pruned and self.last is not None:
            self.choose(self.about.schedule.passes[step.index + 1])
        if step.index in self.watched:
            self.end_guidance(step.index)
        if step.index not in self.hears:
            self.gap_B = None

    def choose(self, step: Pass) -> None:
        """Plans a pass by the codes of the one before it: as many tokens as the picture that needs most."""
        energy_BN = detail_energy(self.last.vectors, self.last.scale, step.scale)
        own_BN = holding_energy(energy_BN, self.policy.energy)
        counts = own_BN.sum(1).tolist()
        keep, plan = max(counts), self.plans[step.index]
        if min(counts) == plan.tokens:
            return
        index_BK = keep_top(energy_BN.masked_fill(own_BN, torch.inf), keep)
        self.chosen[step.index] = Chosen(index_BK, own_BN, energy_BN)
        self.plans[step.index] = plan.keeping((keep,) * len(plan.kept), head=keep)

    def tokens(self, steps: tuple[Pass, ...], rows: slice) -> DenseTokens:
        step = steps[-1]
        if step.index not in self.chosen:
            return DENSE
        return OwnTokens(
            self.chosen[step.index],
            self.plans[step.index],
            step,
            batch=self.about.batch,
            rows=rows,
            fill=FILLS["repeat"],
            repeated=upsampled_codes(self.last.codes, self.last.scale, step.scale),
        )

    def memory(self, steps: tuple[Pass, ...], memory):
        chosen = self.chosen.get(steps[-1].index)
        if chosen is not None and self.about.batch > 1:
            memory.hide(~chosen.own_BK)
        return memory

    # guidance ------------------------------------------------------------------------------------

    def hear(self, step: Pass, logits_RLV: Tensor) -> None:
        conditional, unconditional = logits_RLV.float().chunk(2)
        energy_BL = (conditional - unconditional).square().sum(-1)
        chosen = self.chosen.get(step.index)
        own_BL = torch.ones_like(energy_BL) if chosen is None else chosen.own_BK.to(energy_BL)
        gap_B = guidance_gap(energy_BL, own_BL, logits_RLV.shape[-1], self.policy.gap_measure)
        self.changes_B = None if self.gap_B is None else gap_change(self.gap_B, gap_B)
        self.gap_B = gap_B

    def end_guidance(self, index: int) -> None:
        """After a watched pass: pictures whose gap hardly changed go on without guidance."""
        changes_B, self.changes_B = self.changes_B, None
        if changes_B is None:
            return
        self.ended |= (changes_B < self.policy.gap).cpu()
        if bool(self.ended.all()):
            later = range(index + 1, len(self.plans))
            self.plans[index + 1 :] = [replace(self.plans[i], halves="conditional") for i in later]

    def strength(self, steps: tuple[Pass, ...], t: float) -> float | Tensor:
        if not bool(self.ended.any()):
            return t
        return torch.where(self.ended, 0.0, t).view(-1, 1, 1).to(self.about.device)


def guidance_gap(energy_BL: Tensor, own_BL: Tensor, width: int, measure: str = "scale_free") -> Tensor:
    """(B,): how far the halves' logits are apart. energy_BL: squared distance at every token. own_BL:
    1 where it counts.

    printed: the L2 norm of the whole scale. scale_free: the root mean square of single logits, `width` a token.
    """
    total_B = (energy_BL * own_BL).sum(1)
    return total_B.sqrt() if measure == "printed" else (total_B / (own_BL.sum(1) * width)).sqrt()


def gap_change(before_B: Tensor, now_B: Tensor) -> Tensor:
    """(B,): gamma, the change of the gap as a share of what it was."""
    return (now_B - before_B).abs() / (before_B + EPSILON)


def settle(
    model,
    schedule: ScaleSchedule,
    *,
    energy: float,
    scales: int,
    gap: float,
    gap_scales: int,
    gap_measure: str,
    skip_scales: int,
) -> Rival:
    return LDPruning.over(
        schedule,
        title=METHOD.title,
        ratios=skipped(skip_scales, model, schedule),
        selector="detail",
        fill="repeat",
        first_layer=0,
        energy=energy,
        scales=scales,
        gap=gap,
        gap_scales=gap_scales,
        gap_measure=gap_measure,
    )


METHOD = Method(
    id="ldpruning",
    title="LD-Pruning",
    what="Runs the places where the scale before has detail, repeats its codes elsewhere, and ends guidance once its "
    "halves agree, for each picture by itself.",
    paper="arXiv 2606.00310",
    fidelity="As in the paper; no public code. How its map is resized and the guidance gap per number are ours.",
    options=OPTIONS,
    settle=settle,
)
