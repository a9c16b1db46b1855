"""Other training-free accelerators of next-scale models, to compare StepVAR with on the same model and seed.

    result = sv.sample(model, vae, condition, schedule=schedule, pruning=sv.accelerator("fastvar"))

A method is one function and one entry of METHODS: its options, and the settings of StepVAR's machinery (selector,
fill, scope, ratios, guidance) they amount to on a model and a schedule. Written from published descriptions and from
reading public code; `fidelity` says where a method is less than its paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real

from ..errors import OptionError
from ..schedule import ScaleSchedule
from .policy import HALVES, Policy
from .stepvar import StepVAR

PUBLISHED = -1.0  # option value that stands for the number published for the family
FASTVAR_LAST_LAYER = 27  # of Infinity 2B's 32: the last blocks run every token


@dataclass(frozen=True)
class Option:
    """One setting. choices, or low to high; a whole number where the default is one. neutral: the value at which it
    does nothing, None where it only says how."""

    name: str
    default: float | int | str
    neutral: float | int | str | None
    what: str
    low: float = 0
    high: float = 1
    choices: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        return isinstance(self.default, int)

    def checked(self, value, method: str):
        """The value as the method reads it. Raises OptionError for one that is not allowed."""
        if self.choices:
            if value not in self.choices:
                raise OptionError(f"{self.name} of {method} is {value!r}.", f"Choose one of {', '.join(self.choices)}.")
            return value
        kind, said = (Integral, "a whole number") if self.is_whole else (Real, "a number")
        if (
            isinstance(value, bool) or not isinstance(value, kind) or not self.low <= value <= self.high
        ):  # NaN fails too
            raise OptionError(
                f"{self.name} of {method} is {value!r}.", f"Use {said} from {self.low:g} to {self.high:g}."
            )
        if PUBLISHED < value < 0:
            raise OptionError(
                f"{self.name} of {method} is {value!r}.",
                f"Use {PUBLISHED:g} for the published number, or one from 0 to {self.high:g}.",
            )
        return int(value) if self.is_whole else float(value)


@dataclass(frozen=True)
class Method:
    """title: as shown. what: one sentence. paper: whom to credit. fidelity: what of the paper is here, and what is not.

    settings(options, model, schedule) -> arguments of StepVAR.
    """

    title: str
    what: str
    paper: str
    fidelity: str
    options: tuple[Option, ...]
    settings: Callable[[dict, object, ScaleSchedule], dict]

    @property
    def neutral(self) -> dict:
        """Options at which nothing is accelerated."""
        return {o.name: o.neutral for o in self.options if o.neutral is not None}


@dataclass(frozen=True, eq=False)
class Rival(StepVAR):
    """StepVAR's machinery with another method's settings, under that method's name."""

    title: str = field(default="", kw_only=True)

    def describe(self) -> str:
        ratios = self.ratios[: max((i + 1 for i, r in enumerate(self.ratios) if r), default=0)]
        late = self.guidance_late_scales and self.guidance_late != "both"
        parts = (["/".join(f"{r:.4g}" for r in ratios)] if ratios else []) + (
            [f"{self.guidance_late} in the last {self.guidance_late_scales}"] if late else []
        )
        return " ".join([self.title, ", ".join(parts) or "off"])


@dataclass(frozen=True)
class Accelerator(Policy):
    """A policy: one of METHODS and its options, all of them. Made by `accelerator`, which checks them."""

    method: str
    options: tuple[tuple[str, object], ...]

    def describe(self) -> str:
        return METHODS[self.method].title

    def resolve(self, model, schedule: ScaleSchedule) -> Rival:
        """What the method does on `model` over `schedule`. The first scale always runs whole: nothing precedes it."""
        method = METHODS[self.method]
        settings = method.settings(dict(self.options), model, schedule)
        most = len(schedule) - 1
        settings["ratios"] = settings.get("ratios", ())[:most]
        settings["guidance_late_scales"] = min(settings.get("guidance_late_scales", 0), most)
        return Rival(**settings, title=method.title)


def accelerator(method: str, **options) -> Accelerator:
    """A rival method as a policy, for `pruning=` of sample and estimate. Options left out keep their defaults.

    Raises OptionError for an unknown method or option, or a value out of range.
    """
    if method not in METHODS:
        raise OptionError(f"There is no accelerator {method!r}.", f"Choose one of {', '.join(METHODS)}.")
    known = {o.name: o for o in METHODS[method].options}
    if unknown := sorted(set(options) - set(known)):
        raise OptionError(f"{method} has no option {', '.join(unknown)}.", f"It knows {', '.join(known)}.")
    values = {name: o.default for name, o in known.items()} | options
    return Accelerator(method, tuple((name, known[name].checked(value, method)) for name, value in values.items()))


# methods -------------------------------------------------------------------------------------------


def _skipped(count: int, model, schedule: ScaleSchedule) -> tuple[float, ...]:
    """Ratios of the last scales a method skips: at full size, where papers do so on the family; elsewhere none is."""
    return (1.0,) * count if model.skips and len(schedule) >= model.full_scales else ()


def _own_or(published: tuple[float, ...], own: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(p if o == PUBLISHED else o for p, o in zip(published, own))


def fastvar(options: dict, model, schedule: ScaleSchedule) -> dict:
    is_infinity = model.family == "infinity"
    ratios = _own_or((0.5, 0.4) if is_infinity else (0.75, 0.5), (options["ratio_1"], options["ratio_2"]))
    return dict(
        ratios=_skipped(options["skip_scales"], model, schedule) + ratios,
        selector="distance",
        scope="sublayer",
        fill="cache",
        cfg_mask="separate",
        last_layer=FASTVAR_LAST_LAYER if is_infinity else None,
    )


def sparsevar(options: dict, model, schedule: ScaleSchedule) -> dict:
    return dict(ratios=(options["ratio"],) * options["scales"], selector="texture", fill="anchor")


def fastervar(options: dict, model, schedule: ScaleSchedule) -> dict:
    return dict(
        ratios=_skipped(options["skip_scales"], model, schedule),
        guidance_late=options["half"],
        guidance_late_scales=options["one_half_scales"],
    )


def skipvar(options: dict, model, schedule: ScaleSchedule) -> dict:
    return dict(
        ratios=(1.0,) * options["skip_scales"],
        guidance_late="conditional",
        guidance_late_scales=options["no_guidance_scales"],
    )


def lazyvar(options: dict, model, schedule: ScaleSchedule) -> dict:
    published = (0.01, 0.05, 0.10, 0.20) if model.family == "infinity" else (0.20, 0.30, 1.0, 1.0)
    kept = _own_or(published, tuple(options[f"keep_{n}"] for n in range(1, 5)))
    return dict(ratios=tuple(1 - k for k in kept), selector="turn", fill="zero")


SKIP = (
    "How many of the last scales are left out, on Infinity at 1M only, where that was published; elsewhere every "
    "scale runs. "
    "Each makes the picture softer and takes much less time."
)


def _keep(n: int, where: str) -> Option:
    return Option(
        f"keep_{n}",
        PUBLISHED,
        1.0,
        f"Share of tokens that runs in {where}. -1 is the published one (Infinity .01, .05, .10, .20 from the "
        "last scale; elsewhere HART's .20, .30). Lower is faster and leaves more of the picture as it was; 0 skips "
        "the scale.",
        low=-1.0,
    )


METHODS: dict[str, Method] = {
    "fastvar": Method(
        "FastVAR",
        "Runs the tokens farthest from the mean token, chosen again for each sub-layer; the others take an earlier "
        "scale's change.",
        "Guo et al. 2025, arXiv 2503.23367",
        "As in the released code, with ratios counted from the end of the schedule: the code's rule by width leaves "
        "most shapes other than "
        "square dense, or fails.",
        (
            Option("skip_scales", 2, 0, SKIP, high=6),
            Option(
                "ratio_1",
                PUBLISHED,
                0.0,
                "Share of tokens left out in the last scale that is not skipped. -1 is the published one (Infinity "
                ".5, elsewhere "
                "HART's .75). Higher is faster and loses fine detail.",
                low=-1.0,
            ),
            Option(
                "ratio_2",
                PUBLISHED,
                0.0,
                "The same for the scale before that one. -1 is the published one (Infinity .4, elsewhere HART's .5).",
                low=-1.0,
            ),
        ),
        fastvar,
    ),
    "sparsevar": Method(
        "SparseVAR",
        "Runs the tokens that differ most from their neighbours and a regular lattice of anchors; the others are "
        "copied from the anchors.",
        "arXiv 2507.20454",
        "After the paper's description; no public code. The paper finds the share to leave out by a threshold and "
        "treats blocks differently, "
        "neither of which is published in numbers: here the share is fixed and the same in all blocks.",
        (
            Option(
                "ratio",
                0.7,
                0.0,
                "Share of tokens left out in each pruned scale; one in nine always stays as an anchor. Higher is "
                "faster and flatter.",
                high=0.99,
            ),
            Option("scales", 4, 0, "How many of the last scales are pruned. More is faster.", high=20),
        ),
        sparsevar,
    ),
    "fastervar": Method(
        "FasterVAR",
        "Runs one guidance half in the last scales and skips the very last ones; formerly StageVAR.",
        "arXiv 2512.16483",
        "The guidance and skipping of the released code. Its random low-rank projection of the late scales is left "
        "out, so it is slower than "
        "published.",
        (
            Option("skip_scales", 2, 0, SKIP, high=6),
            Option(
                "one_half_scales",
                3,
                0,
                "How many of the last scales run one guidance half only, skipped ones counted. Each takes half its "
                "time.",
                high=20,
            ),
            Option(
                "half",
                "unconditional",
                None,
                "Which half runs there. unconditional: without the prompt, as released. conditional: without guidance.",
                choices=tuple(h for h in HALVES if h != "both"),
            ),
        ),
        fastervar,
    ),
    "skipvar": Method(
        "SkipVAR plan",
        "Stops some scales early, or drops guidance in the last ones, by fixed numbers.",
        "arXiv 2506.08908",
        "The two means of the paper with fixed numbers. On HART the residual goes with the last scale. Its "
        "classifiers, which choose them for each picture, are pickled files for "
        "Infinity 2B alone and not used.",
        (
            Option(
                "skip_scales",
                1,
                0,
                "How many of the last scales are left out, on any model. Each makes the picture softer and takes "
                "much less time.",
                high=6,
            ),
            Option(
                "no_guidance_scales",
                0,
                0,
                "How many of the last scales run without guidance, skipped ones counted. Each takes half its time.",
                high=20,
            ),
        ),
        skipvar,
    ),
    "lazyvar": Method(
        "LazyVAR",
        "Runs the places where the picture so far turned most in the scale before, and adds nothing elsewhere.",
        "CVPR 2026",
        "After second-hand descriptions of the paper; no public code. Its parallel decoding of several scales is "
        "left out, so it is slower than "
        "published.",
        (
            _keep(1, "the last scale"),
            _keep(2, "the scale before it"),
            _keep(3, "scale 3 from the end"),
            _keep(4, "scale 4 from the end"),
        ),
        lazyvar,
    ),
}
