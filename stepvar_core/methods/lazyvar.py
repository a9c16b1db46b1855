"""LazyVAR (CVPR 2026): only the places where the picture still turns.

Here: the tokens run where f_hat turned most in the scale before; elsewhere nothing is added. Not here: the parallel
decoding of several scales, and, for families without published numbers, anything but HART's.
"""

from __future__ import annotations

from ..schedule import ScaleSchedule
from .method import PUBLISHED, Method, Option, own_or
from .stepvar import Rival

KEPT = {"infinity": (0.01, 0.05, 0.10, 0.20), "hart": (0.20, 0.30, 1.0, 1.0)}  # shares, the last scale's first


def _keep(n: int, where: str) -> Option:
    return Option(
        f"keep_{n}",
        PUBLISHED,
        1.0,
        f"Share of tokens that runs in {where}. -1 is the published one (Infinity .01, .05, .10, .20 from the "
        "last scale; elsewhere HART's .20, .30). Lower is faster and leaves more of the picture as it was; 0 skips "
        "the scale.",
        low=PUBLISHED,
    )


OPTIONS = (
    _keep(1, "the last scale"),
    _keep(2, "the scale before it"),
    _keep(3, "scale 3 from the end"),
    _keep(4, "scale 4 from the end"),
)


def settle(model, schedule: ScaleSchedule, *, keep_1: float, keep_2: float, keep_3: float, keep_4: float) -> Rival:
    kept = own_or(KEPT.get(model.family, KEPT["hart"]), keep_1, keep_2, keep_3, keep_4)
    return Rival.over(schedule, title=METHOD.title, ratios=tuple(1 - k for k in kept), selector="turn", fill="zero")


METHOD = Method(
    id="lazyvar",
    title="LazyVAR",
    what="Runs the places where the picture so far turned most in the scale before, and adds nothing elsewhere.",
    paper="CVPR 2026",
    fidelity="After second-hand descriptions of the paper; no public code. Its parallel decoding of several scales is "
    "left out, so it is slower than published.",
    options=OPTIONS,
    settle=settle,
)
