"""Scale schedules: which token grids a model predicts, one after the other (VAR section 3.1, "next-scale")."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .errors import ScheduleMismatch

MAX_TOKENS = 1 << 22  # a bound for hand-written schedules: far above any model, far below what exhausts a host


MOST_PASSES = 1024  # a checkpoint or a caller may ask for; what plans them looks at every pair


@dataclass(frozen=True)
class Scale:
    """One token map of t x h x w tokens. Images have t = 1, clip = 0.

    clip: which video clip the scale belongs to (0 = the image clip). repeats: how often the scale is predicted.
    """

    t: int
    h: int
    w: int
    clip: int = 0
    repeats: int = 1

    def __post_init__(self):
        for name, low in (("t", 1), ("h", 1), ("w", 1), ("clip", 0), ("repeats", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ScheduleMismatch(
                    f"Scale {name} is {value!r}; expected a whole number of at least {low}.",
                    "Give each scale as (t, h, w) in tokens.",
                )
        if self.tokens > MAX_TOKENS:
            raise ScheduleMismatch(
                f"Scale {self.grid} holds {self.tokens} tokens; the limit is {MAX_TOKENS}.", "Choose a smaller size."
            )

    @property
    def tokens(self) -> int:
        return self.t * self.h * self.w

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.t, self.h, self.w


@dataclass(frozen=True)
class Pass:
    """One run of the transformer over one scale; a scale with repeats = n is n passes."""

    index: int
    scale_index: int
    repeat: int
    scale: Scale


class ScaleSchedule:
    """The scales of one picture or video, first to last.

    scales: Scale objects or (t, h, w) triples. Raises ScheduleMismatch for an empty schedule, a malformed scale, or
    clips out of order. `.scales` is the tuple of scales, `.passes` the same with repeats expanded.
    """

    def __init__(self, scales: Iterable[Scale | tuple[int, ...]]):
        self.scales: tuple[Scale, ...] = tuple(s if isinstance(s, Scale) else _scale(s) for s in scales)
        if not self.scales:
            raise ScheduleMismatch("The schedule has no scale.", "Give at least one (t, h, w).")
        if [s.clip for s in self.scales] != sorted(s.clip for s in self.scales):
            raise ScheduleMismatch("The schedule's clips are not in order.", "List the scales clip by clip.")
        runs = sum(s.repeats for s in self.scales)
        if runs > MOST_PASSES:
            raise ScheduleMismatch(f"The schedule has {runs} passes.", f"At most {MOST_PASSES} are planned.")
        expanded = [(i, r, s) for i, s in enumerate(self.scales) for r in range(s.repeats)]
        self.passes: tuple[Pass, ...] = tuple(Pass(n, i, r, s) for n, (i, r, s) in enumerate(expanded))

    @classmethod
    def square(cls, edges: Iterable[int]) -> ScaleSchedule:
        """A still-image schedule of p x p grids, VAR's `patch_nums`."""
        return cls((1, p, p) for p in edges)

    @property
    def final(self) -> Scale:
        return self.scales[-1]

    @property
    def tokens(self) -> int:
        return sum(p.scale.tokens for p in self.passes)

    def steps_from_end(self, scale_index: int) -> int:
        """1 for the last scale of its clip, 2 for the one before it: the n of `ratio_n`."""
        clip = self.scales[scale_index].clip
        return sum(s.clip == clip for s in self.scales[scale_index:])

    @property
    def is_video(self) -> bool:
        return self.final.clip > 0

    def place(self, scale_index: int) -> int:
        """The n of the `ratio_n` that prunes a scale; 0 = none does: a video's image clip is exempt (DESIGN 2.1)."""
        is_exempt = self.is_video and self.scales[scale_index].clip == 0
        return 0 if is_exempt else self.steps_from_end(scale_index)

    def may_skip(self, scale_index: int) -> bool:
        """Whether a scale may be left out: never the first, and in a video only the last, or a clip would lack its
        end."""
        return scale_index > 0 and (not self.is_video or scale_index == len(self) - 1)

    def describe(self) -> str:
        return " ".join(f"{s.h}x{s.w}" if s.t == 1 else f"{s.t}x{s.h}x{s.w}" for s in self.scales)

    def __len__(self) -> int:
        return len(self.scales)

    def __iter__(self) -> Iterator[Scale]:
        return iter(self.scales)

    def __eq__(self, other) -> bool:
        return isinstance(other, ScaleSchedule) and self.scales == other.scales

    def __hash__(self) -> int:
        return hash(self.scales)

    def __repr__(self) -> str:
        return f"ScaleSchedule([{self.describe()}])"


def _scale(grid) -> Scale:
    grid = tuple(grid)
    if len(grid) != 3:
        raise ScheduleMismatch(
            f"Scale {grid!r} has {len(grid)} numbers; expected three, (t, h, w).",
            "Write an image scale of 4x6 tokens as (1, 4, 6).",
        )
    return Scale(*(int(n) if hasattr(n, "__index__") and not isinstance(n, bool) else n for n in grid))
