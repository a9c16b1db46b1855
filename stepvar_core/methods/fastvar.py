"""FastVAR (Guo et al. 2025, arXiv 2503.23367): cached token pruning.

Here: in each pruned scale every sub-layer runs the tokens farthest from the mean token, each guidance half its own, and
the others take the change an earlier scale made; on Infinity the very last scales are skipped. Not here: the code's
rule by width, in whose place ratios are counted from the end of the schedule, and, for families without published
numbers, anything but HART's.
"""

from __future__ import annotations

from ..schedule import ScaleSchedule
from .method import PUBLISHED, SKIP_SCALES, Method, Option, own_or, skipped
from .stepvar import Rival

RATIOS = {"infinity": (0.5, 0.4), "hart": (0.75, 0.5)}  # the last scale that is not skipped, and the one before it
LAST_LAYER = {"infinity": 27}  # of 2B's 32 blocks: the last ones run every token

OPTIONS = (
    SKIP_SCALES,
    Option(
        "ratio_1",
        PUBLISHED,
        0.0,
        "Share of tokens left out in the last scale that is not skipped. -1 is the published one (Infinity "
        ".5, elsewhere HART's .75). Higher is faster and loses fine detail.",
        low=PUBLISHED,
    ),
    Option(
        "ratio_2",
        PUBLISHED,
        0.0,
        "The same for the scale before that one. -1 is the published one (Infinity .4, elsewhere HART's .5).",
        low=PUBLISHED,
    ),
)


def settle(model, schedule: ScaleSchedule, *, skip_scales: int, ratio_1: float, ratio_2: float) -> Rival:
    published = RATIOS.get(model.family, RATIOS["hart"])
    return Rival.over(
        schedule,
        title=METHOD.title,
        ratios=skipped(skip_scales, model, schedule) + own_or(published, ratio_1, ratio_2),
        selector="distance",
        scope="sublayer",
        fill="cache",
        cfg_mask="separate",
        last_layer=LAST_LAYER.get(model.family),
    )


METHOD = Method(
    id="fastvar",
    title="FastVAR",
    what="Runs the tokens farthest from the mean token, chosen again for each sub-layer; the others take an earlier "
    "scale's change.",
    paper="Guo et al. 2025, arXiv 2503.23367",
    fidelity="As in the released code, with ratios counted from the end of the schedule: the code's rule by width "
    "leaves most shapes other than square dense, or fails.",
    options=OPTIONS,
    settle=settle,
)
