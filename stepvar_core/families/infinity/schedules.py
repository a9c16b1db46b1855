"""Infinity's scale schedules: 15 aspect ratios, four sizes (facts from FoundationVision/Infinity, MIT).

A smaller size is the beginning of the 1M schedule of the same ratio, and a wide picture's schedule is the tall one's
with height and width exchanged, so eight rows hold all sixty.
"""

from __future__ import annotations

from ...errors import ScheduleMismatch
from ...schedule import ScaleSchedule

PIXELS_PER_TOKEN = 16
SIZES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}  # scales that run
EDGES = {"256": "0.06M", "512": "0.25M", "768": "0.60M", "1024": "1M"}  # the square picture's edge, in pixels

# height / width: h x w of every scale, and the name of the ratio turned on its side
TALL = (
    (1.0, 1.0, "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64"),
    (1.25, 0.8, "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56"),
    (1.333, 0.75, "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54"),
    (1.5, 0.666, "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52"),
    (1.75, 0.571, "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48"),
    (2.0, 0.5, "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45"),
    (2.5, 0.4, "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40"),
    (3.0, 0.333, "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37"),
)


def _templates() -> dict[float, tuple[tuple[int, ...], ...]]:
    """height / width -> (h, w) of the 13 scales of 1M, in upstream's order: ties go to the earlier one."""
    found = {}
    for tall, wide, text in TALL:
        grids = tuple(tuple(int(n) for n in grid.split("x")) for grid in text.split())
        found[tall] = grids
        found[wide] = tuple((w, h) for h, w in grids)
    return found


TEMPLATES = _templates()


def _nearest(height_over_width: float, ratios) -> float:
    return min(ratios, key=lambda ratio: abs(ratio - height_over_width))


def published(aspect_ratio: float, size: str | None) -> ScaleSchedule:
    """The schedule nearest to width / height = aspect_ratio. Raises ScheduleMismatch for an unknown size."""
    if not aspect_ratio > 0 or aspect_ratio == float("inf"):
        raise ScheduleMismatch(
            f"Aspect ratio {aspect_ratio!r} is no picture's.", "Give width / height, a number above 0."
        )
    name = "1M" if size is None else EDGES.get(str(size), str(size))
    if name not in SIZES:
        raise ScheduleMismatch(f"Size {size!r} is not one Infinity knows.", f"Choose one of {', '.join(SIZES)}.")
    grids = TEMPLATES[_nearest(1 / aspect_ratio, TEMPLATES)]
    return ScaleSchedule((1, h, w) for h, w in grids[: SIZES[name]])


def full_grid(schedule: ScaleSchedule) -> tuple[int, int]:
    """(h, w) of the last 1M scale of the schedule's aspect ratio, whatever part of it runs: rotary positions count in
    it.

    A schedule that is the beginning of no template, or of several, goes with the nearest one in shape.
    """
    grids = tuple((s.h, s.w) for s in schedule)
    matching = [ratio for ratio, full in TEMPLATES.items() if full[: len(grids)] == grids]
    h, w = TEMPLATES[_nearest(grids[-1][0] / grids[-1][1], matching or TEMPLATES)][-1]
    # a hand-written schedule may be finer than any published one: its positions must not collide
    return max(h, grids[-1][0]), max(w, grids[-1][1])
