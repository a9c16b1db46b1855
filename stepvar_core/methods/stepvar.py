"""StepVAR (arXiv 2603.01757): the last scales run on the tokens that matter, the others are filled from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError, ShapeMismatch
from ..schedule import Pass, Scale, ScaleSchedule
from ..tokens import DENSE, DenseTokens
from .fills import FILLS, upsampled_codes
from .kept import AroundSublayers, Earlier, RecordingStream, RecordingSublayers, SparseStream
from .method import Option
from .policy import HALVES, About, PassPlan, Policy, PolicyRun
from .selectors import NORMALISERS, SELECTORS, LastCodes, ScoreContext, Scores

SCOPES = ("scale", "sublayer")
PROTECT_MODES = ("add", "keep")
CFG_MASKS = ("shared", "separate")
PROTECTED_SHARE = 0.25  # a cell is protected when at least this much of it is painted
START_SEED = 20260303  # the power iteration's private stream: the sampling streams must not notice it


RATIO = Option("ratio", 0.5, 0.0, "Share of a scale's tokens left out. Higher is faster and loses fine detail.")

# name, good value, neutral value, what it does, range: the important ones first, then those to tinker with
OPTIONS = (
    Option("fill", "nearest", None, "What goes where tokens were left out.", choices=tuple(FILLS)),
    Option("selector", "stepvar", None, "What ranks tokens: StepVAR's score, or another.", choices=tuple(SELECTORS)),
    Option("structure_weight", 0.5, None, "1 keeps shapes and layout, 0 fine detail. The time is the same."),
    Option("guidance_late", "both", "both", "Half that runs late; one half takes half the time.", choices=HALVES),
    Option("guidance_late_scales", 0, 0, "How many of the last scales guidance_late is about.", high=1000),
    # to tinker with
    Option("first_layer", None, None, "Block whose input is judged. Later judges better, saves less.", high=1000),
    Option("scope", "scale", None, "Choose once a scale, or around each sub-layer: closer, slower.", choices=SCOPES),
    Option("coverage", 0, 0, "n keeps a token in every n x n cell. Small n keep more, and take more time.", high=64),
    Option("protect_mode", "add", None, "Painted places are preferred, or always run.", choices=PROTECT_MODES),
    Option("normalise", "minmax", None, "How structure and texture are made comparable.", choices=tuple(NORMALISERS)),
    Option("iterations", 5, None, "Steps of the power iteration. More is steadier.", low=1, high=100),
    Option("kernel", 3, None, "Odd edge of the mean that texture stands out from. Larger is coarser.", low=1, high=31),
    # with scope "sublayer" only
    Option("last_layer", None, None, "Last block that leaves tokens out. Lower is closer, and slower.", high=1000),
    Option("cfg_mask", "shared", None, "Whether the guidance halves choose together.", choices=CFG_MASKS),
)


@dataclass(frozen=True, eq=False)
class StepVAR(Policy):
    """StepVAR (arXiv 2603.01757): run the last scales on the tokens that matter, fill the rest.

    ratios: pruned fraction per scale, counted from the end: ratios[0] is the last scale's. 0 keeps all, 1 skips the
    scale. protect: mask (B or 1, H, W), 1 = protect. All others: OPTIONS, with range, good value and effect; a layer of
    None is the family's first and the end. Raises OptionError for anything out of range.
    """

    calibrates = True

    ratios: tuple[float, ...]
    selector: str = "stepvar"
    structure_weight: float = 0.5
    normalise: str = "minmax"
    iterations: int = 5
    kernel: int = 3
    first_layer: int | None = None
    scope: str = "scale"
    fill: str = "nearest"
    coverage: int = 0
    protect: Tensor | None = field(default=None, repr=False)
    protect_mode: str = "add"
    cfg_mask: str = "shared"
    guidance_late: str = "both"
    guidance_late_scales: int = 0
    last_layer: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "ratios", _ratios(self.ratios))
        for option in OPTIONS:
            object.__setattr__(self, option.name, option.checked(getattr(self, option.name)))
        if self.kernel % 2 == 0:
            raise OptionError(f"kernel is {self.kernel}.", "Use an odd number: the mean is centred on its token.")
        for name, usual in (("last_layer", None), ("cfg_mask", "shared")):
            if self.scope == "scale" and getattr(self, name) != usual:
                raise OptionError(
                    f"{name} is {getattr(self, name)!r} with scope 'scale', which drops tokens once for all layers "
                    "and both halves.",
                    "Use scope 'sublayer' with it.",
                )
        if self.protect is not None and (
            self.protect.ndim != 3 or not self.protect.numel() or not bool(self.protect.isfinite().all())
        ):
            raise ShapeMismatch(
                f"The protect mask is {tuple(self.protect.shape)}.",
                "Give finite values of shape (B, H, W), 1 = protect.",
            )

    def describe(self) -> str:
        used = self.ratios[: max((i + 1 for i, r in enumerate(self.ratios) if r), default=0)]
        return f"{self.selector} {'/'.join(f'{r:g}' for r in used)} fill {self.fill}" if used else "off"

    # host ------------------------------------------------------------------------------------

    def shown(self) -> dict:
        return {"fill": self.fill, "scope": self.scope}

    def ratio(self, step: Pass, schedule: ScaleSchedule) -> float:
        """The pruned fraction of one pass."""
        place = schedule.place(step.scale_index)
        ratio = self.ratios[place - 1] if 0 < place <= len(self.ratios) else 0.0
        if ratio < 1 or schedule.may_skip(step.scale_index):
            return ratio
        if schedule.is_video:
            raise OptionError(
                f"Ratio 1 would skip scale {step.scale_index + 1} of {len(schedule)}, in the middle of a video.",
                "Only the last scale of a video can be skipped: use at most 0.99 for the others.",
            )
        raise OptionError(
            "Ratio 1 would skip the first scale, and nothing would be left to refine.",
            f"Use fewer ratios than the schedule's {len(schedule)} scales, or a ratio below 1.",
        )

    def plan(self, about: About) -> list[PassPlan]:
        """Tokens of every pass, K = N - int(N ratio) and at least 1 unless skipped (DESIGN 2.1), raised for what must
        stay."""
        layers, schedule = self.layers(about), about.schedule
        if self.guidance_late == "unconditional" and self.guidance_late_scales >= len(schedule):
            raise OptionError(
                f"guidance_late_scales is {self.guidance_late_scales} of {len(schedule)} scales: nothing would "
                "follow the condition.",
                "Use fewer scales; for a picture without a condition, give it none.",
            )
        plans = [self._plan_pass(step, about, layers) for step in schedule.passes]
        if FILLS[self.fill].reads_earlier and not plans[0].is_dense:
            raise OptionError(
                "The cache fill copies from an earlier dense scale, and the first scale is pruned already.",
                "Use fewer ratios or another fill.",
            )
        if FILLS[self.fill].repeats and not plans[0].is_dense:
            raise OptionError(
                "The repeat fill takes the codes of an earlier scale, and the first scale is pruned already.",
                "Use fewer ratios or another fill.",
            )
        sites = 1 if self.scope == "scale" else about.sublayers * len(layers)
        for i in self.remembered(plans):
            plans[i] = replace(plans[i], remembers=plans[i].tokens * about.width * about.itemsize * sites)
        return plans

    def layers(self, about: About) -> range:
        """Blocks that leave tokens out. Raises OptionError where there is none."""
        first = about.first_layer if self.first_layer is None else self.first_layer
        if first >= about.layers:
            raise OptionError(
                f"first_layer is {first}; the model has {about.layers} blocks.", f"Use 0 to {about.layers - 1}."
            )
        if self.last_layer is not None and self.last_layer < first:
            raise OptionError(
                f"last_layer is {self.last_layer}, before first_layer {first}: no layer would leave tokens out.",
                f"Use {first} or more, or ratios of 0.",
            )
        return range(first, about.layers if self.last_layer is None else min(self.last_layer + 1, about.layers))

    def _plan_pass(self, step: Pass, about: About, layers: range) -> PassPlan:
        n, ratio = step.scale.tokens, self.ratio(step, about.schedule)
        is_late = len(about.schedule) - step.scale_index <= self.guidance_late_scales
        dense = PassPlan.dense(n, about.layers, self.guidance_late if is_late else "both")
        if ratio == 1:
            return dense.skipped()
        kept = max(1, n - int(n * ratio))
        if kept < n:
            kept = max(kept, self._forced_count(step.scale, about.batch))
        if kept == n:
            return dense
        on_kept = self.scope == "scale" and FILLS[self.fill].on_head
        return replace(
            dense,
            kept=tuple(kept if layer in layers else n for layer in range(about.layers)),
            head=kept if on_kept else n,
        )

    def remembered(self, plans: Sequence[PassPlan]) -> set[int]:
        """Passes whose changes a fill of later ones reads: dense ones that a pruned one follows."""
        if not FILLS[self.fill].reads_earlier:
            return set()
        running = [i for i, plan in enumerate(plans) if not plan.is_skipped]
        return {a for a, b in zip(running, running[1:]) if plans[a].is_dense and not plans[b].is_dense}

    def _protected_BN(self, scale: Scale, batch: int) -> Tensor | None:
        """Painted share of every cell, (B, N), on the CPU."""
        if self.protect is None:
            return None
        mask = self.protect.detach().float().cpu().clamp(0, 1)
        if len(mask) not in (1, batch):
            raise ShapeMismatch(
                f"The protect mask holds {len(mask)} pictures; the batch has {batch}.",
                "Give one mask, or one per picture.",
            )
        cells = F.adaptive_avg_pool2d(mask.unsqueeze(1), (scale.h, scale.w)).flatten(1)
        return cells.expand(batch, -1).repeat(1, scale.t)

    def masks(self, scale: Scale, about: About) -> tuple[Tensor | None, Tensor | None]:
        """(B, N) on the run's device: what stays whatever it scores, and what is added to the scores."""
        hard, soft = self._hard_BN(scale, about.batch), None
        if self.protect is not None and self.protect_mode == "add":
            soft = self._protected_BN(scale, about.batch).to(about.device)
        return None if hard is None else hard.to(about.device), soft

    def _hard_BN(self, scale: Scale, batch: int) -> Tensor | None:
        """Positions that stay whatever they score: protected ones and the anchor fill's lattice."""
        hard = None
        if self.protect is not None and self.protect_mode == "keep":
            hard = self._protected_BN(scale, batch) >= PROTECTED_SHARE
        stays = FILLS[self.fill].stays(scale)
        if stays is not None:
            hard = stays.expand(batch, -1) if hard is None else hard | stays
        return hard

    def _forced_count(self, scale: Scale, batch: int) -> int:
        """The largest number of positions any image of the batch must keep."""
        hard = self._hard_BN(scale, batch)
        count = torch.zeros(batch, dtype=torch.int64) if hard is None else hard.sum(1)
        if self.coverage:
            covered = _cells(hard.float(), scale, self.coverage).amax(-1) > 0 if hard is not None else None
            cells = scale.t * math.ceil(scale.h / self.coverage) * math.ceil(scale.w / self.coverage)
            count = count + (cells if covered is None else (~covered).sum(1))
        return int(count.max())

    # device ----------------------------------------------------------------------------------

    def begin(self, about: About, plans: Sequence[PassPlan]) -> StepVARRun:
        return StepVARRun(self, about, plans)


class StepVARRun(PolicyRun):
    """Hands out token plans for one run; holds the start vector, the masks, the last two f_hats and, for the cache
    fill, one scale's changes."""

    sparse, around = SparseStream, AroundSublayers

    def __init__(self, policy: StepVAR, about: About, plans: Sequence[PassPlan]):
        super().__init__(plans)
        self.policy, self.about, self.layers = policy, about, policy.layers(about)
        generator = torch.Generator().manual_seed(START_SEED)
        self.start_C = F.normalize(torch.randn(about.width, generator=generator), dim=0).to(about.device)
        self.masks = {
            step.index: policy.masks(step.scale, about)
            for step, plan in zip(about.schedule.passes, plans)
            if not plan.is_skipped and not plan.is_dense
        }
        self.earlier = Earlier()
        self.f_hats: tuple[Tensor | None, Tensor | None] = (None, None)  # before and after the last pass that ran
        self.last: LastCodes | None = None
        self.reads_codes = FILLS[policy.fill].repeats or policy.selector == "detail"

    def observe(self, step) -> None:
        if step.tokens_run:
            self.f_hats = (self.f_hats[1], step.f_hat)
            if self.reads_codes:
                self.last = LastCodes(step.codes, step.vectors(), step.step.scale)

    def tokens(self, steps: tuple[Pass, ...], rows: slice) -> DenseTokens:
        step = steps[-1]  # of dense passes that run together only the last can be followed by a pruned one
        if not self.plans[step.index].is_dense:
            return self.kept_tokens(step, rows)
        if step.index not in self.policy.remembered(self.plans):
            return DENSE
        if self.policy.scope == "scale":
            return RecordingStream(step, self.layers.start, self.earlier)
        return RecordingSublayers(step, self.layers, self.earlier)

    def kept_tokens(self, step: Pass, rows: slice) -> DenseTokens:
        policy, last = self.policy, self.last
        made = self.sparse if policy.scope == "scale" else self.around
        repeats = FILLS[policy.fill].repeats and last is not None
        return made(
            self.plans[step.index],
            step,
            batch=self.about.batch,
            rows=rows,
            score=partial(self.score, step=step),
            fill=FILLS[policy.fill],
            earlier=self.earlier,
            is_separate=policy.cfg_mask == "separate",
            repeated=upsampled_codes(last.codes, last.scale, step.scale) if repeats else None,
        )

    def score(self, x_BLC: Tensor, step: Pass) -> Scores:
        """Importance of every token of one guidance half, with what must stay ranked above everything."""
        scores = SELECTORS[self.policy.selector](x_BLC, self.context(step))
        if step.index not in self.masks:  # pruned by a replan alone
            self.masks[step.index] = self.policy.masks(step.scale, self.about)
        must_stay_BN, bonus_BN = self.masks[step.index]
        if bonus_BN is not None:
            scores = replace(scores, importance=NORMALISERS["minmax"](scores.importance) + bonus_BN)
        ranking = scores.importance
        if must_stay_BN is not None:
            ranking = ranking.masked_fill(must_stay_BN, torch.inf)
        if self.policy.coverage:
            ranking = ranking.masked_fill(_best_of_cells(ranking, step.scale, self.policy.coverage), torch.inf)
        return replace(scores, ranking=ranking)

    def context(self, step: Pass) -> ScoreContext:
        return ScoreContext(
            scale=step.scale,
            start_C=self.start_C,
            noise=lambda name, shape: self.about.noise(name, step.index, shape),
            structure_weight=self.policy.structure_weight,
            normalise=self.policy.normalise,
            iterations=self.policy.iterations,
            kernel=self.policy.kernel,
            f_hats=self.f_hats,
            last=self.last,
        )


@dataclass(frozen=True, eq=False)
class Rival(StepVAR):
    """StepVAR's machinery with another method's settings, under that method's name."""

    calibrates = False

    title: str = field(default="", kw_only=True)

    @classmethod
    def over(
        cls,
        schedule: ScaleSchedule,
        *,
        title: str,
        ratios: tuple[float, ...] = (),
        guidance_late_scales: int = 0,
        **settings,
    ) -> Rival:
        """For one schedule, whose first scale always runs whole: nothing precedes it."""
        most = len(schedule) - 1
        late = min(guidance_late_scales, most)
        return cls(ratios[:most], guidance_late_scales=late, title=title, **settings)

    def describe(self) -> str:
        ratios = self.ratios[: max((i + 1 for i, r in enumerate(self.ratios) if r), default=0)]
        parts = ["/".join(f"{r:.4g}" for r in ratios)] if ratios else []
        if self.guidance_late_scales and self.guidance_late != "both":
            parts.append(f"{self.guidance_late} in the last {self.guidance_late_scales}")
        return " ".join([self.title, ", ".join(parts) or "off"])


def _cells(values_BN: Tensor, scale: Scale, n: int) -> Tensor:
    """(B, cells, n * n): the values of each n x n cell of each frame, -inf beyond the grid's edge."""
    grid = values_BN.view(-1, scale.t, scale.h, scale.w)
    grid = F.pad(grid, (0, -scale.w % n, 0, -scale.h % n), value=-torch.inf)
    return grid.unfold(2, n, n).unfold(3, n, n).flatten(4).flatten(1, 3)


def _best_of_cells(importance_BN: Tensor, scale: Scale, n: int) -> Tensor:
    """(B, N) bool, True at the first best token of each n x n cell."""
    index_BN = torch.arange(scale.tokens, device=importance_BN.device, dtype=torch.float64).expand(
        len(importance_BN), -1
    )
    best = _cells(importance_BN.double(), scale, n)
    place = _cells(index_BN, scale, n).gather(-1, best.argmax(-1, keepdim=True)).squeeze(-1).long()
    return torch.zeros_like(importance_BN, dtype=torch.bool).scatter_(1, place, True)


def _ratios(values) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise OptionError(f"ratios is {values!r}.", "Give a list of pruned fractions, the last scale's first.")
    return tuple(RATIO.checked(r) for r in values)
