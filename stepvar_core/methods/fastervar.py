"""FasterVAR (arXiv 2512.16483), formerly StageVAR: guidance and whole scales left out at the end.

Here: one guidance half in the last scales, and the very last ones skipped where a family's papers skip them. Not here:
the random low-rank projection of the late scales.
"""

from __future__ import annotations

from ..schedule import ScaleSchedule
from .method import SKIP_SCALES, Method, Option, skipped
from .policy import HALVES
from .stepvar import Rival

OPTIONS = (
    SKIP_SCALES,
    Option(
        "one_half_scales",
        3,
        0,
        "How many of the last scales run one guidance half only, skipped ones counted. Each takes half its time.",
        high=20,
    ),
    Option(
        "half",
        "unconditional",
        None,
        "Which half runs there. unconditional: without the prompt, as released. conditional: without guidance.",
        choices=tuple(half for half in HALVES if half != "both"),
    ),
)


def settle(model, schedule: ScaleSchedule, *, skip_scales: int, one_half_scales: int, half: str) -> Rival:
    return Rival.over(
        schedule,
        title=METHOD.title,
        ratios=skipped(skip_scales, model, schedule),
        guidance_late=half,
        guidance_late_scales=one_half_scales,
    )


METHOD = Method(
    id="fastervar",
    title="FasterVAR",
    what="Runs one guidance half in the last scales and skips the very last ones; formerly StageVAR.",
    paper="arXiv 2512.16483",
    fidelity="The guidance and skipping of the released code. Its random low-rank projection of the late scales is "
    "left out, so it is slower than published.",
    options=OPTIONS,
    settle=settle,
)
