"""SkipVAR (arXiv 2506.08908): scales stopped early, or guidance dropped, by fixed numbers.

Here: the two means of the paper. Not here: its classifiers, which choose them for each picture and are pickled files
for Infinity 2B alone.
"""

from __future__ import annotations

from ..schedule import ScaleSchedule
from .method import Method, Option
from .stepvar import Rival

OPTIONS = (
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
)


def settle(model, schedule: ScaleSchedule, *, skip_scales: int, no_guidance_scales: int) -> Rival:
    return Rival.over(
        schedule,
        title=METHOD.title,
        ratios=(1.0,) * skip_scales,
        guidance_late="conditional",
        guidance_late_scales=no_guidance_scales,
    )


METHOD = Method(
    id="skipvar",
    title="SkipVAR plan",
    what="Stops some scales early, or drops guidance in the last ones, by fixed numbers.",
    paper="arXiv 2506.08908",
    fidelity="The two means of the paper with fixed numbers. On HART the residual goes with the last scale. Its "
    "classifiers, which choose them for each picture, are pickled files for Infinity 2B alone and not used.",
    options=OPTIONS,
    settle=settle,
)
