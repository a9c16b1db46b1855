"""A trace as a picture: one bar per scale, how many tokens ran and how long it took."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..trace import Trace

WIDTH, ROW, MARGIN, LABEL = 900, 34, 24, 120
INK, FAINT, TRACK, KEPT, TIME, GROUND = "#e8eaf0", "#9aa3b5", "#2a3040", "#56b4e9", "#e69f00", "#161a22"


def draw_report(trace: Trace) -> Tensor:
    """(1, H, W, 3) float32: per scale the share of tokens that ran (blue) and the share of the time (orange)."""
    height = 2 * MARGIN + 64 + ROW * len(trace.scales)
    picture = Image.new("RGB", (WIDTH, height), GROUND)
    pen, font, small = ImageDraw.Draw(picture), ImageFont.load_default(17), ImageFont.load_default(14)
    total = sum(s.tokens for s in trace.scales)
    ran = sum(s.tokens_run for s in trace.scales)
    pen.text((MARGIN, MARGIN), f"{trace.family}   {trace.pruning}", INK, font)
    pen.text(
        (MARGIN, MARGIN + 26),
        f"{ran} of {total} tokens ran ({ran / total:.0%})   {in_words(trace.seconds)}   batch {trace.batch}",
        FAINT,
        small,
    )
    legend = WIDTH - MARGIN - 210
    for i, (colour, said) in enumerate(((KEPT, "tokens that ran"), (TIME, "time"))):
        pen.rounded_rectangle((legend, MARGIN + 6 + 22 * i, legend + 18, MARGIN + 16 + 22 * i), 3, colour)
        pen.text((legend + 28, MARGIN + 2 + 22 * i), said, FAINT, small)
    bars, slowest = WIDTH - LABEL - 2 * MARGIN - 210, max(s.seconds for s in trace.scales) or 1.0
    for i, scale in enumerate(trace.scales):
        top = MARGIN + 60 + i * ROW
        t, h, w = scale.size
        pen.text((MARGIN, top + 4), f"{h}\u00d7{w}" if t == 1 else f"{t}\u00d7{h}\u00d7{w}", INK, font)
        left = MARGIN + LABEL
        pen.rounded_rectangle((left, top, left + bars, top + 14), 4, TRACK)
        if scale.tokens_run:
            pen.rounded_rectangle((left, top, left + max(4, bars * scale.tokens_run / scale.tokens), top + 14), 4, KEPT)
        pen.rounded_rectangle((left, top + 18, left + max(2, bars * scale.seconds / slowest), top + 24), 3, TIME)
        said = "skipped" if scale.is_skipped else f"{scale.tokens_run}/{scale.tokens}"
        pen.text((left + bars + 14, top + 2), f"{said}   {in_words(scale.seconds)}", FAINT, small)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).unsqueeze(0)


def in_words(seconds: float) -> str:
    """As in "42 ms", "1.30 s", "2 min 5 s"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
