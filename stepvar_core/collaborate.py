"""CoDe (arXiv 2411.17787): a large model draws the first scales, a small one the rest.

Here: the training-free variant of the released code, on any two models that share VAE, schedule and what they read. The
small model reads the large one's scales in one pass, as any resumed run does. Not here: weights tuned for either part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .door import sample
from .errors import OptionError
from .sampler import Result
from .schedule import ScaleSchedule
from .trace import ScaleStep


def collaborate(
    big,
    small,
    vae,
    cond,
    *,
    at: int,
    schedule: ScaleSchedule | None = None,
    on_scale: Callable[[ScaleStep], None] | None = None,
    **arguments,
) -> Result:
    """Scales 0 to at - 1 by `big`, the others by `small`; the same model twice is that model's own run, code for code.

    vae: the one both belong to. cond: read by both. schedule: None = the small model's own. on_scale is called once per
    pass, as by `sample`, whose other arguments are passed on to both runs.
    Returns a Result whose trace holds every pass once, with the time of the model that drew it; reading big's scales
    counts for small's first pass. Raises the package's errors: where the two do not share codes or schedule, and
    OptionError for `at` out of range, or codes of an earlier run.
    """
    schedule = small.schedule() if schedule is None else schedule
    schedule = schedule if isinstance(schedule, ScaleSchedule) else ScaleSchedule(schedule)
    if isinstance(at, bool) or not isinstance(at, int) or not 1 <= at <= len(schedule):
        raise OptionError(f"at is {at!r}; the schedule has {len(schedule)} scales.", f"Use 1 to {len(schedule)}.")
    taken = sorted({"codes", "start_at_scale", "end_at_scale", "mask"} & arguments.keys())
    if taken:
        raise OptionError(f"{', '.join(taken)} cannot be given: the scales are shared out already.", "Use sample().")
    for model in (big, small):
        model.check_schedule(schedule)
    draft = sample(big, vae, cond, schedule=schedule, end_at_scale=at, on_scale=on_scale, **arguments)
    passes = len(draft.codes)

    def tell(step: ScaleStep) -> None:
        if on_scale is not None and step.index >= passes:
            on_scale(step)

    if at == len(schedule):
        return draft
    result = sample(small, vae, cond, schedule=schedule, codes=draft, start_at_scale=at, on_scale=tell, **arguments)
    reading, drawn = result.trace.scales[:passes], result.trace.scales[passes:]
    first = replace(drawn[0], seconds=drawn[0].seconds + sum(scale.seconds for scale in reading))
    return replace(result, trace=replace(result.trace, scales=(*draft.trace.scales, first, *drawn[1:])))
