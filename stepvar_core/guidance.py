"""How every pass draws: classifier-free guidance, temperature and filters, and the combination of both halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from .errors import OptionError
from .schedule import ScaleSchedule


@dataclass(frozen=True)
class PassSettings:
    """How every pass draws. weights: the t of guidance.combine. smooth: whether it adds a mixture of features."""

    weights: list[float]
    temperature: list[float]
    top_k: list[int]
    top_p: list[float]
    smooth: list[bool]


def per_scale(name: str, value, default: float | Sequence[float], schedule: ScaleSchedule) -> list[float]:
    """One number per pass from None (the default), a number, or a list with one number per scale.

    Raises OptionError for NaN, infinities and lists of another length.
    """
    value = default if value is None else value
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value] * len(schedule)
    if len(values) != len(schedule):
        raise OptionError(
            f"{name} lists {len(values)} values; the schedule has {len(schedule)} scales.",
            "Give one value, or one per scale.",
        )
    for v in values:
        if isinstance(v, bool) or not isinstance(v, Real) or not abs(float(v)) < float("inf"):
            raise OptionError(f"{name} is {v!r}.", "Use a finite number.")
    return [values[step.scale_index] for step in schedule.passes]


def weights(model, cfg, schedule: ScaleSchedule) -> list[float]:
    """Per pass the t of `combine`. A number follows the family's own rule; a list is the final strength per scale, no
    ramp."""
    strengths = per_scale("cfg", cfg, model.config.defaults.cfg, schedule)
    if isinstance(cfg, Sequence):
        return [s - model.neutral_cfg for s in strengths]
    return model.guidance_weights(strengths[0], schedule)


Strength = float | Tensor  # the t of `combine`: one for all pictures, or (B, 1, 1), one for each


def is_on(t: Strength) -> bool:
    """Whether both halves count, for one picture at least."""
    return isinstance(t, Tensor) or bool(t)


def combine(logits_RLV: Tensor, t: Strength) -> Tensor:
    """(1 + t) conditional - t unconditional; the conditional half comes first. Both conventions in use are this one:

    VAR and HART give t itself (neutral 0), Infinity gives cfg = 1 + t (neutral 1).
    """
    conditional, unconditional = logits_RLV.chunk(2)
    return (1 + t) * conditional - t * unconditional


def positive(name: str, value: float) -> float:
    if value <= 0:
        raise OptionError(
            f"{name} is {value!r}.", "Use a number above 0; for the single most likely token set top_k to 1."
        )
    return float(value)


def count(name: str, value) -> int:
    if int(value) != value or value < 0:
        raise OptionError(f"{name} is {value!r}.", "Use a whole number; 0 switches it off.")
    return int(value)


def share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise OptionError(f"{name} is {value!r}.", "Use a number from 0 to 1; 0 switches it off.")
    return float(value)
