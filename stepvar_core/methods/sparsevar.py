"""SparseVAR (arXiv 2507.20454): the tokens of high frequency, and a lattice of anchors for the rest.

Here: the tokens that differ most from their neighbours run, and one in nine as an anchor that the others copy. Not
here: the threshold that finds the share to leave out and the different treatment of blocks, neither published in
numbers; the share is fixed, the same in all blocks and for every family.
"""

from __future__ import annotations

from ..schedule import ScaleSchedule
from .method import Method, Option
from .stepvar import Rival

OPTIONS = (
    Option(
        "ratio",
        0.7,
        0.0,
        "Share of tokens left out in each pruned scale; one in nine always stays as an anchor. Higher is "
        "faster and flatter.",
        high=0.99,
    ),
    Option("scales", 4, 0, "How many of the last scales are pruned. More is faster.", high=20),
)


def settle(model, schedule: ScaleSchedule, *, ratio: float, scales: int) -> Rival:
    return Rival.over(schedule, title=METHOD.title, ratios=(ratio,) * scales, selector="texture", fill="anchor")


METHOD = Method(
    id="sparsevar",
    title="SparseVAR",
    what="Runs the tokens that differ most from their neighbours and a regular lattice of anchors; the others are "
    "copied from the anchors.",
    paper="arXiv 2507.20454",
    fidelity="After the paper's description; no public code. The paper finds the share to leave out by a threshold and "
    "treats blocks differently, neither of which is published in numbers: here the share is fixed and the same in all "
    "blocks.",
    options=OPTIONS,
    settle=settle,
)
