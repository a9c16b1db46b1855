"""A published method as a user meets it: a name, options with their ranges, and the policy they amount to.

A method's file has a fixed order: docstring (paper, what is here, what is not) · options · plan · run ·
`METHOD = Method(...)`, which methods/__init__.py lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ..errors import OptionError
from ..schedule import ScaleSchedule
from .policy import Policy, Unsettled

PUBLISHED = -1.0  # option value that stands for the number published for the family


@dataclass(frozen=True)
class Option:
    """One setting: what it does, its range and a good value.

    default: the good value; None = what the model decides, and then None is allowed. neutral: the one at which it does
    nothing, None where it only says how. what: its effect on picture and time. choices, or low to high; a whole number
    where the default is one or None.
    """

    name: str
    default: float | int | str | None
    neutral: float | int | str | None
    what: str
    low: float = 0
    high: float = 1
    choices: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        return self.default is None or isinstance(self.default, int)

    def checked(self, value: Any, method: str = "") -> Any:
        """The value as the method reads it. Raises OptionError for one that is not allowed."""
        if value is None and self.default is None:
            return None
        problem = f"{self.name}{f' of {method}' if method else ''} is {value!r}."
        if self.choices:
            if value not in self.choices:
                raise OptionError(problem, f"Choose one of {', '.join(self.choices)}.")
            return value
        kind, said = (Integral, "a whole number") if self.is_whole else (Real, "a number")
        # NaN is in no range
        if isinstance(value, bool) or not isinstance(value, kind) or not self.low <= value <= self.high:
            raise OptionError(problem, f"Use {said} from {self.low:g} to {self.high:g}.")
        if PUBLISHED < value < 0:
            raise OptionError(problem, f"Use {PUBLISHED:g} for the published number, or one from 0 to {self.high:g}.")
        number: Any = value
        return int(number) if self.is_whole else float(number)


@dataclass(frozen=True)
class Method:
    """id: in workflows and on the command line. title: as shown. what: one sentence. paper: whom to credit. fidelity:
    what of the paper is here, and what is not.

    settle(model, schedule, **options) -> Policy: what the options amount to on a model and a schedule. With all options
    neutral it must be no acceleration.
    """

    id: str
    title: str
    what: str
    paper: str
    fidelity: str
    options: tuple[Option, ...]
    settle: Callable[..., Policy]

    @property
    def neutral(self) -> dict:
        """Options at which nothing is accelerated."""
        return {o.name: o.neutral for o in self.options if o.neutral is not None}

    def checked(self, options: Mapping) -> tuple[tuple[str, object], ...]:
        """All options, those left out at their defaults. Raises OptionError for an unknown one or a bad value."""
        known = {o.name: o for o in self.options}
        if unknown := sorted(set(options) - set(known)):
            raise OptionError(f"{self.id} has no option {', '.join(unknown)}.", f"It knows {', '.join(known)}.")
        return tuple((name, o.checked(options.get(name, o.default), self.id)) for name, o in known.items())


@dataclass(frozen=True)
class Accelerator(Unsettled):
    """A policy: a method and its options, all of them, as `Method.checked` gives them."""

    method: Method
    options: tuple[tuple[str, object], ...]

    def describe(self) -> str:
        return self.method.title

    def resolve(self, model, schedule: ScaleSchedule) -> Policy:
        return self.method.settle(model, schedule, **dict(self.options))


# what several methods share --------------------------------------------------------------------------


def own_or(published: tuple[float, ...], *own: float) -> tuple[float, ...]:
    """The user's numbers, and the published ones where he asked for those."""
    return tuple(p if o == PUBLISHED else o for p, o in zip(published, own, strict=True))


def skipped(count: int, model, schedule: ScaleSchedule) -> tuple[float, ...]:
    """Ratios of the last scales a method skips: at full size, where papers do so on the family; elsewhere none is."""
    return (1.0,) * count if model.skips and len(schedule) >= model.full_scales else ()


SKIP_SCALES = Option(
    "skip_scales",
    2,
    0,
    "How many of the last scales are left out, on Infinity at 1M only, where that was published; elsewhere every "
    "scale runs. Each makes the picture softer and takes much less time.",
    high=6,
)
