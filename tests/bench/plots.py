"""Plain charts with pillow: lines with confidence bars, rows of points, and scatter plots with their Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours, told apart by most colour-blind readers
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c5c5c", "#8c6d00", "#4b0082", "#a33b20")
INK, FAINT, GRID, GROUND = "#1c2230", "#5a6375", "#e2e5ea", "#ffffff"
SHARPEN = 2  # everything is drawn this much larger and averaged down: pillow draws no smooth lines itself
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 54, 52


@dataclass(frozen=True)
class Point:
    """x, y and their intervals; label: a word or number written beside it."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    x_low: float | None = None
    x_high: float | None = None


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[Point]
    is_line: bool = True


@dataclass(frozen=True)
class Panel:
    """One chart. rows: names of horizontal rows, y is then the row's number and x carries the interval."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    rows: Sequence[str] = ()
    size: tuple[int, int] = (560, 380)
    left: int = LEFT
    ticks_x: Sequence[float] = field(default_factory=tuple)


def front(points: Iterable[Point]) -> list[Point]:
    """The points no other one beats: none has both a larger or equal x and a larger or equal y. By growing x."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.x, -p.y)):
        if not kept or point.y > kept[-1].y:
            kept.append(point)
    return kept[::-1]


def nice_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers that cover low..high, about `wanted` of them."""
    spread = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(spread / wanted))
    step *= next((m for m in (1, 2, 2.5, 5, 10) if spread / (step * m) <= wanted), 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def draw(panels: Sequence[Panel], columns: int, path: Path) -> None:
    """Writes the panels as one PNG, `columns` to a row."""
    widths = [max(p.size[0] for p in panels[i::columns]) for i in range(min(columns, len(panels)))]
    lines = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [max(p.size[1] for p in line) for line in lines]
    picture = Image.new("RGB", (sum(widths) * SHARPEN, sum(heights) * SHARPEN), GROUND)
    for r, line in enumerate(lines):
        for c, panel in enumerate(line):
            picture.paste(_panel(panel), (sum(widths[:c]) * SHARPEN, sum(heights[:r]) * SHARPEN))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width // SHARPEN, picture.height // SHARPEN), Image.Resampling.LANCZOS).save(
        path, optimize=True
    )


def _panel(panel: Panel) -> Image.Image:
    width, height = (n * SHARPEN for n in panel.size)
    picture = Image.new("RGB", (width, height), GROUND)
    pen = ImageDraw.Draw(picture)
    font, small, bold = (ImageFont.load_default(n * SHARPEN) for n in (12, 11, 14))
    box = (panel.left * SHARPEN, TOP * SHARPEN, width - RIGHT * SHARPEN, height - BOTTOM * SHARPEN)
    points = [p for s in panel.series for p in s.points]
    xs = [v for p in points for v in (p.x, p.x_low, p.x_high) if v is not None and math.isfinite(v)]
    ys = [v for p in points for v in (p.y, p.low, p.high) if v is not None and math.isfinite(v)]
    if not xs or not ys:
        return picture
    x_ticks = list(panel.ticks_x) or nice_ticks(min(xs), max(xs))
    y_ticks = list(range(len(panel.rows))) if panel.rows else nice_ticks(min(ys), max(ys))
    x_range = (min(x_ticks[0], min(xs)), max(x_ticks[-1], max(xs)))
    y_range = (-0.6, len(panel.rows) - 0.4) if panel.rows else (min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys)))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / ((x_range[1] - x_range[0]) or 1)
        up = (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1)
        up = 1 - up if panel.rows else up  # the first row is the top one
        return box[0] + across * (box[2] - box[0]), box[3] - up * (box[3] - box[1])

    pen.text((12 * SHARPEN, 10 * SHARPEN), panel.title, INK, bold)
    for x in x_ticks:
        left = at(x, y_range[0])[0]
        pen.line((left, box[1], left, box[3]), GRID, SHARPEN)
        pen.text((left, box[3] + 6 * SHARPEN), f"{x:g}", FAINT, small, anchor="mt")
    for i, y in enumerate(y_ticks):
        top = at(x_range[0], y)[1]
        pen.line((box[0], top, box[2], top), GRID, SHARPEN)
        pen.text(
            (box[0] - 7 * SHARPEN, top),
            panel.rows[i] if panel.rows else f"{round(y, 10):g}",
            FAINT if not panel.rows else INK,
            small,
            anchor="rm",
        )
    pen.line((box[0], box[1], box[0], box[3], box[2], box[3]), FAINT, SHARPEN)
    pen.text(((box[0] + box[2]) / 2, height - 14 * SHARPEN), panel.x_label, INK, font, anchor="mm")
    if panel.y_label:
        pen.text((box[0], box[1] - 6 * SHARPEN), panel.y_label, FAINT, small, anchor="lb")
    for i, series in enumerate(panel.series):
        _series(pen, series, COLOURS[i % len(COLOURS)], at, small)
    if len(panel.series) > 1:
        _legend(pen, panel, box, points, at, small)
    return picture


def _series(pen: ImageDraw.ImageDraw, series: Series, colour: str, at, font) -> None:
    drawn = [p for p in series.points if math.isfinite(p.x) and math.isfinite(p.y)]
    if series.is_line and len(drawn) > 1:
        pen.line([at(p.x, p.y) for p in drawn], colour, 2 * SHARPEN, joint="curve")
    for p in drawn:
        x, y = at(p.x, p.y)
        if p.low is not None:
            pen.line((x, at(p.x, p.low)[1], x, at(p.x, p.high)[1]), colour, SHARPEN)
        if p.x_low is not None:
            pen.line((at(p.x_low, p.y)[0], y, at(p.x_high, p.y)[0], y), colour, SHARPEN)
        r = 3.2 * SHARPEN
        pen.ellipse((x - r, y - r, x + r, y + r), colour)
        if p.label:
            pen.text((x + 4 * SHARPEN, y - 5 * SHARPEN), p.label, INK, font, anchor="lb")


def _legend(pen: ImageDraw.ImageDraw, panel: Panel, box, points, at, font) -> None:
    """In the corner that covers the fewest points."""
    row, names = 16 * SHARPEN, [s.name for s in panel.series]
    width = 26 * SHARPEN + max(int(pen.textlength(n, font)) for n in names)
    height = row * len(names) + 8 * SHARPEN
    places = [at(p.x, p.y) for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    gap = 6 * SHARPEN
    corners = [(x, y) for y in (box[1] + gap, box[3] - height - gap) for x in (box[2] - width - gap, box[0] + gap)]

    def covered(corner) -> int:
        return sum(corner[0] <= x <= corner[0] + width and corner[1] <= y <= corner[1] + height for x, y in places)

    left, top = min(corners, key=covered)
    pen.rectangle((left, top, left + width, top + height), "#ffffff", GRID, SHARPEN)
    for i, name in enumerate(names):
        middle = top + 4 * SHARPEN + row * (i + 0.5)
        pen.ellipse(
            (left + 6 * SHARPEN, middle - 3 * SHARPEN, left + 12 * SHARPEN, middle + 3 * SHARPEN),
            COLOURS[i % len(COLOURS)],
        )
        pen.text((left + 18 * SHARPEN, middle), name, INK, font, anchor="lm")
