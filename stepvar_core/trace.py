"""What a run did, scale by scale: which tokens were kept, how many ran, how long it took; live, and afterwards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .schedule import Pass


class Clock:
    """Seconds between two points of the device's work; with CUDA, events that are read once the loop is over."""

    def __init__(self, device: torch.device):
        self.is_cuda = device.type == "cuda"

    def mark(self):
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start, stop) -> float:
        if not self.is_cuda:
            return stop - start
        stop.synchronize()
        return start.elapsed_time(stop) / 1000


@dataclass
class ScaleStep:
    """What one pass produced. Tensors are the loop's own, on its device: read them, do not change them.

    codes: (B, L) ids or (B, L, bits), the quantiser's `nothing` where nothing was added, L = 0 for a skipped pass.
    vectors(): the same as vectors (B, L, C).
    f_hat: accumulated so far. logits: (B, L, V) after guidance, before filtering, for the tokens the head ran on;
    None when the codes were given. soft: features added where they are not the codes' own. kept: (B, t, h, w) bool.
    tokens_run: per picture; of given codes, the tokens they stand for. plans: of all passes, as the method plans them
    now. Reading `seconds` waits for the device.
    """

    step: Pass
    codes: Tensor
    f_hat: Tensor
    kept: Tensor
    tokens_run: int
    passes: int
    clock: Clock
    marks: tuple
    plans: Sequence  # of methods.policy.PassPlan
    quantizer: Any  # a codecs.quantizer.Quantizer
    logits: Tensor | None = None
    soft: Tensor | None = None
    scores: Any = None  # of methods.selectors.Scores, where they are kept
    is_forced: bool = False

    @property
    def index(self) -> int:
        return self.step.index

    @property
    def seconds(self) -> float:
        return self.clock.seconds(*self.marks)

    def vectors(self) -> Tensor:
        return self.quantizer.vectors(self.codes)


@dataclass(frozen=True)
class ScaleTrace:
    """One pass. size: (t, h, w). kept (B, t, h, w) bool on the CPU, all False when the scale was skipped.

    tokens_run: tokens per image that went through the pruned blocks. structure, texture, importance: (B, t, h, w)
    float32 scores, where the run kept them.
    """

    size: tuple[int, int, int]
    kept: Tensor
    tokens_run: int
    seconds: float
    is_forced: bool = False
    structure: Tensor | None = None
    texture: Tensor | None = None
    importance: Tensor | None = None

    @property
    def tokens(self) -> int:
        return self.size[0] * self.size[1] * self.size[2]

    @property
    def is_skipped(self) -> bool:
        return self.tokens_run == 0


def trace_of(step: ScaleStep) -> ScaleTrace:
    grid = step.step.scale.grid

    def mapped(values):
        return None if values is None else values.view(-1, *grid).float().cpu()

    scores = step.scores
    return ScaleTrace(
        size=grid,
        kept=step.kept.cpu(),
        tokens_run=step.tokens_run,
        seconds=step.seconds,
        is_forced=step.is_forced,
        structure=mapped(scores and scores.structure),
        texture=mapped(scores and scores.texture),
        importance=mapped(scores and scores.importance),
    )


@dataclass(frozen=True)
class Trace:
    """The passes of one run, first to last, and what was asked of it."""

    scales: tuple[ScaleTrace, ...]
    family: str = ""
    pruning: str = ""
    settings: dict = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(s.seconds for s in self.scales)

    @property
    def batch(self) -> int:
        return self.scales[0].kept.shape[0] if self.scales else 0

    def as_dict(self) -> dict:
        """JSON-ready summary, without the maps."""
        return {
            "family": self.family,
            "pruning": self.pruning,
            "settings": self.settings,
            "batch": self.batch,
            "seconds": round(self.seconds, 4),
            "scales": [
                {
                    "size": list(s.size),
                    "tokens": s.tokens,
                    "tokens_run": s.tokens_run,
                    "seconds": round(s.seconds, 4),
                    "forced": s.is_forced,
                }
                for s in self.scales
            ],
        }


LAYERS = ("structure", "texture", "importance")


def score_maps(scale: ScaleTrace) -> dict[str, Tensor]:
    """The scores the pass has, by name, (B, t, h, w)."""
    return {name: score for name in LAYERS if (score := getattr(scale, name)) is not None}


def pictures_within(trace: Trace, nbytes: int) -> int:
    """How many pictures' scores, at one byte each, fit in so many bytes."""
    per_picture = sum(score[0].numel() for scale in trace.scales for score in score_maps(scale).values())
    return min(trace.batch, nbytes // per_picture) if per_picture else 0


def pack_score(score_BTHW: Tensor) -> tuple[list[float], list[float], bytes]:
    """Lowest and highest score per picture, and every score as a byte between them: 0 the lowest, 255 the highest.

    Row-major, picture by picture. A byte q stands for low + q / 255 (high - low), so it is off by at most half of
    1/255 of the range.
    """
    flat = score_BTHW.flatten(1).float().nan_to_num()
    low, high = flat.amin(1), flat.amax(1)
    spread = (high - low).clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    quantised = ((flat - low.unsqueeze(1)) / spread * 255).round().clamp(0, 255).to(torch.uint8)
    return low.tolist(), high.tolist(), bytes(quantised.cpu().contiguous().numpy())


def pack_mask(mask: Tensor) -> bytes:
    """Bits of a bool tensor in row-major order, most significant bit first, padded with zeros to whole bytes."""
    bits = torch.nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    return bytes((bits.cpu() * weights).sum(-1, dtype=torch.uint8).numpy())
