"""StepVAR (arXiv 2603.01757): the last scales run on the tokens that matter, the others are filled from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError, ShapeMismatch
from ..schedule import Pass, Scale, ScaleSchedule
from ..tokens import DENSE, DenseTokens
from .fills import FILLS
from .kept import AroundSublayers, Earlier, RecordingStream, RecordingSublayers, SparseStream
from .policy import HALVES, About, PassPlan, Policy, PolicyRun
from .selectors import NORMALISERS, SELECTORS, ScoreContext, update_energy, update_turn

SCOPES = ("scale", "sublayer")
PROTECT_MODES = ("add", "keep")
CFG_MASKS = ("shared", "separate")
PROTECTED_SHARE = 0.25  # a cell is protected when at least this much of it is painted
START_SEED = 20260303  # the power iteration's private stream: the sampling streams must not notice it


@dataclass(frozen=True, eq=False)
class StepVAR(Policy):
    """StepVAR (arXiv 2603.01757): run the last scales on the tokens that matter, fill the rest.

    ratios: pruned fraction per scale, counted from the end: ratios[0] is the last scale's. 0 keeps all, 1 skips the
    scale.
    selector: one of SELECTORS. structure_weight: share of structure against texture. normalise: one of NORMALISERS.
    iterations: of the power iteration. kernel: edge of the high-pass mean, odd. first_layer: block whose input is
    scored, None = the family's. scope: "scale" or "sublayer". fill: one of FILLS. coverage: n keeps at least one token
    per n x n cell. protect: mask (B or 1, H, W), 1 = protect; protect_mode "add" raises the score, "keep" forces it.
    guidance_late: which guidance half runs in the last guidance_late_scales scales. With scope "sublayer" only:
    last_layer, the last block that leaves tokens out, None = the end; cfg_mask "separate", each guidance half chooses
    its own. Raises OptionError for anything out of range.
    """

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
        object.__setattr__(self, "structure_weight", _number("structure_weight", self.structure_weight, 0, 1))
        for name, choices in (
            ("selector", SELECTORS),
            ("normalise", NORMALISERS),
            ("scope", SCOPES),
            ("fill", FILLS),
            ("protect_mode", PROTECT_MODES),
            ("cfg_mask", CFG_MASKS),
            ("guidance_late", HALVES),
        ):
            if getattr(self, name) not in tuple(choices):
                raise OptionError(f"{name} is {getattr(self, name)!r}.", f"Choose one of {', '.join(choices)}.")
        for name, low, high in (
            ("iterations", 1, 100),
            ("kernel", 1, 31),
            ("coverage", 0, 64),
            ("guidance_late_scales", 0, 1000),
        ):
            _whole(name, getattr(self, name), low, high)
        if self.kernel % 2 == 0:
            raise OptionError(f"kernel is {self.kernel}.", "Use an odd number: the mean is centred on its token.")
        for name in ("first_layer", "last_layer"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0, 1000)
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
        """The pruned fraction of one pass. Of a video, the image clip is exempt (DESIGN 2.1)."""
        if schedule.final.clip > 0 and step.scale.clip == 0:
            return 0.0
        place = schedule.steps_from_end(step.scale_index)
        ratio = self.ratios[place - 1] if place <= len(self.ratios) else 0.0
        if ratio == 1 and schedule.final.clip > 0 and step.scale_index != len(schedule) - 1:
            raise OptionError(
                f"Ratio 1 would skip scale {step.scale_index + 1} of {len(schedule)}, in the middle of a video.",
                "Only the last scale of a video can be skipped: use at most 0.99 for the others.",
            )
        if ratio == 1 and step.scale_index == 0:
            raise OptionError(
                "Ratio 1 would skip the first scale, and nothing would be left to refine.",
                f"Use fewer ratios than the schedule's {len(schedule)} scales, or a ratio below 1.",
            )
        return ratio

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

    def observe(self, step) -> None:
        if step.tokens_run:
            self.f_hats = (self.f_hats[1], step.f_hat)

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
        policy = self.policy
        made = self.sparse if policy.scope == "scale" else self.around
        return made(
            self.plans[step.index],
            step,
            batch=self.about.batch,
            rows=rows,
            score=lambda x_BLC: self._score(x_BLC, step),
            fill=FILLS[policy.fill],
            earlier=self.earlier,
            is_separate=policy.cfg_mask == "separate",
        )

    def _score(self, x_BLC: Tensor, step: Pass):
        policy = self.policy
        context = ScoreContext(
            step.scale,
            self.start_C,
            lambda name, shape: self.about.noise(name, step.index, shape),
            policy.structure_weight,
            policy.normalise,
            policy.iterations,
            policy.kernel,
            lambda: self._update(step.scale),
            lambda: self._turn(step.scale),
        )
        scores = SELECTORS[policy.selector](x_BLC, context)
        hard, soft = self.masks[step.index]
        if soft is not None:
            scores = replace(scores, importance=NORMALISERS["minmax"](scores.importance) + soft)
        ranking = scores.importance if hard is None else scores.importance.masked_fill(hard, torch.inf)
        if policy.coverage:
            ranking = ranking.masked_fill(_best_of_cells(ranking, step.scale, policy.coverage), torch.inf)
        return replace(scores, ranking=ranking)

    def _update(self, scale: Scale) -> Tensor | None:
        before, after = self.f_hats
        return None if after is None else update_energy(after if before is None else after - before, scale)

    def _turn(self, scale: Scale) -> Tensor | None:
        before, after = self.f_hats
        return None if before is None else update_turn(before, after, scale)


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
    return tuple(_number("ratio", r, 0, 1) for r in values)


def _number(name: str, value, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:  # NaN fails too
        raise OptionError(f"{name} is {value!r}.", f"Use a number from {low:g} to {high:g}.")
    return float(value)


def _whole(name: str, value, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}.", f"Use a whole number from {low} to {high}.")
