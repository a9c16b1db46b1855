"""Codes: what a run draws and a picture is made of, one tensor per pass, and what they leave out.

Codes are kilobytes: they are what a run is resumed, edited, picked and combined by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import LatentMismatch, OptionError, ShapeMismatch
from .schedule import Pass, ScaleSchedule

KEEP_WHOLE = 3  # a grid of at most this many tokens is never redrawn in part: VAR's editing takes it from the picture


class Codes(list):
    """Codes per pass, (B, L) int64 ids or (B, L, bits) uint8; L = 0 for a skipped pass.

    soft: per pass the features (B, C, h, w) added where they are not the codes' own, smoothed or with a residual, else
    None.
    """

    def __init__(self, codes: Iterable[Tensor] = (), soft: Iterable[Tensor | None] | None = None):
        super().__init__(codes)
        self.soft: list[Tensor | None] = [None] * len(self) if soft is None else list(soft)

    @classmethod
    def read(cls, given) -> Codes:
        """From codes, a plain list of tensors, or a whole Result."""
        given = getattr(given, "codes", given)
        return given if isinstance(given, Codes) else cls(given)

    def rows(self, index: Sequence[int]) -> Codes:
        """Of some pictures of the batch, in any order."""
        rows = torch.as_tensor(list(index))
        return Codes([c[rows] for c in self], [None if s is None else s[rows] for s in self.soft])

    def with_rows(self, rows: dict[int, int], other: Codes, schedule: ScaleSchedule, quantizer) -> Codes:
        """The same with some pictures' codes taken from other: rows[n] = m puts its picture m in place of picture n.

        Where only one of the two holds soft features, the other's codes are looked up.
        """
        codes, soft = [], []
        for step, mine, theirs, s_mine, s_theirs in zip(schedule.passes, self, other, self.soft, other.soft):
            mine = mine.clone()
            is_soft = s_mine is not None or s_theirs is not None
            features = quantizer.lookup(mine, step.scale) if s_mine is None and is_soft else s_mine
            features = None if features is None else features.clone()
            for n, m in rows.items():
                mine[n] = theirs[m]
                if features is not None:
                    own = quantizer.lookup(mine[n : n + 1], step.scale)[0] if s_theirs is None else s_theirs[m]
                    features[n] = own
            codes.append(mine)
            soft.append(features)
        return Codes(codes, soft)

    def first(self, passes: int) -> Codes:
        """The first passes alone."""
        return Codes(self[:passes], self.soft[:passes])


@dataclass
class Drawn:
    """Codes of one pass and how they came about.

    soft: what to add instead of the codes' own features. added: bool (B, L), False where nothing is added; None =
    everywhere. logits: (B, L, V) after guidance, None where the codes were given.
    """

    codes: Tensor
    soft: Tensor | None = None
    added: Tensor | None = None
    logits: Tensor | None = None
    is_given: bool = False


@dataclass(frozen=True)
class Given:
    """Codes that replace drawn ones, per pass: all of a pass, or what a mask keeps.

    codes, soft: None where a pass is drawn freely. redraw: bool (B, L), where drawn codes stay; None = the whole pass.
    """

    codes: list[Tensor | None]
    soft: list[Tensor | None]
    redraw: list[Tensor | None]

    @classmethod
    def nothing(cls, schedule: ScaleSchedule) -> Given:
        none: list[Tensor | None] = [None] * len(schedule.passes)
        return cls(none, none, none)

    @classmethod
    def read(
        cls, codes, mask: Tensor | None, schedule: ScaleSchedule, first: int, batch: int, device, quantizer
    ) -> Given:
        """What a caller gives: codes of the first passes, or of all with a mask (B, H, W), 1 = redraw.

        first: passes that are kept whole. Raises OptionError, LatentMismatch or ShapeMismatch for what does not fit.
        """
        passes = schedule.passes
        if codes is None:
            if first or mask is not None:
                raise OptionError(
                    "start_at_scale or a mask was given, but no codes to keep.",
                    "Pass the codes of an earlier result or of vae.encode.",
                )
            return cls.nothing(schedule)
        given = Codes.read(codes)
        needed = len(passes) if mask is not None else first
        if len(given) < needed:
            raise LatentMismatch(
                f"Codes of {len(given)} passes were given; {needed} are needed.",
                "Encode the picture with this schedule.",
            )
        used: list[Tensor | None] = [None] * len(passes)
        soft: list[Tensor | None] = [None] * len(passes)
        for step, one, features in zip(passes[:needed], given, given.soft):
            quantizer.check_codes(one, batch, step.scale, f"The codes of pass {step.index + 1}")
            blank = quantizer.no_codes(batch, step.scale, device)
            used[step.index] = one.to(blank) if one.shape[1] else blank
            soft[step.index] = None if features is None else features.to(device)
        return cls(used, soft, _where_to_redraw(mask, passes, first, batch, device))

    def is_whole(self, step: Pass) -> bool:
        """Whether nothing of a pass is drawn."""
        return self.codes[step.index] is not None and self.redraw[step.index] is None

    def whole(self, step: Pass, quantizer) -> Drawn | None:
        """A pass of which nothing is drawn; None for any other."""
        if not self.is_whole(step):
            return None
        codes = self.codes[step.index]
        return Drawn(codes, self.soft[step.index], quantizer.is_added(codes), is_given=True)

    def over(self, drawn: Drawn, step: Pass, quantizer) -> Drawn:
        """Drawn codes where they may stay, the given ones elsewhere."""
        is_drawn = self.redraw[step.index]
        if is_drawn is None:
            return drawn
        codes, soft, kept = drawn.codes, drawn.soft, self.soft[step.index]
        if (
            soft is not None or kept is not None
        ):  # a smoothed picture may be redrawn without smoothing, and without soft
            soft = quantizer.lookup(codes, step.scale) if soft is None else soft
            kept = quantizer.lookup(self.codes[step.index], step.scale) if kept is None else kept
            soft = torch.where(is_drawn.view(len(codes), 1, *kept.shape[2:]), soft, kept)
        codes = torch.where(per_token(is_drawn, codes), codes, self.codes[step.index])
        return replace(drawn, codes=codes, soft=soft, added=quantizer.is_added(codes))


def repeated(drawn: Drawn, stays_BL: Tensor, instead: Tensor, step: Pass, quantizer) -> Drawn:
    """Drawn codes where they stay, others elsewhere; there nothing continuous is added."""
    codes = torch.where(per_token(stays_BL, drawn.codes), drawn.codes, instead)
    soft = drawn.soft
    if soft is not None:
        plain = quantizer.lookup(codes, step.scale)
        grid = plain.shape[-2:]
        stays = F.interpolate(stays_BL.view(-1, 1, step.scale.h, step.scale.w).float(), size=grid, mode="nearest")
        soft = torch.where(stays.bool(), soft, plain)
    return replace(drawn, codes=codes, soft=soft, added=quantizer.is_added(codes))


def per_token(mask_BL: Tensor, codes: Tensor) -> Tensor:
    """The mask with as many axes as the codes have."""
    return mask_BL.view(mask_BL.shape + (1,) * (codes.ndim - 2))


def _where_to_redraw(
    mask: Tensor | None, passes: Sequence[Pass], first: int, batch: int, device
) -> list[Tensor | None]:
    redraw: list[Tensor | None] = [None] * len(passes)
    if mask is None:
        return redraw
    if mask.ndim != 3 or len(mask) not in (1, batch) or not mask.numel() or not bool(mask.isfinite().all()):
        raise ShapeMismatch(
            f"The mask is {tuple(mask.shape)}; expected finite values of shape ({batch}, H, W).",
            "1 = redraw, 0 = keep.",
        )
    kept = 1 - mask.detach().float().to(device).expand(batch, -1, -1).unsqueeze(1)
    for step in passes[first:]:
        # a grid kept whole is drawn all the same, and then replaced: upstream's random stream counts on it
        cells = F.interpolate(kept, size=(step.scale.h, step.scale.w), mode="bilinear", align_corners=False)
        is_kept = (cells > 0.5) | (step.scale.tokens <= KEEP_WHOLE)
        redraw[step.index] = ~is_kept.flatten(1).repeat(1, step.scale.t)
    return redraw
