"""Drawing tokens from logits with randomness that belongs to the picture, not to the device or the batch.

Every random number comes from a CPU stream keyed by (seed, row, pass, name), for the full grid: the same seed gives the
same picture on any device, alone or in a batch, pruned runs differ from dense ones only by pruning (DESIGN 2.11).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMOOTH_TEMPERATURE = 0.27  # VAR's more_smooth: temperature max(0.27 (1 - 0.95 r), 0.005), r = s / (S - 1)
SMOOTH_FLOOR = 0.005


@dataclass(frozen=True)
class Streams:
    """The random streams of one run. rows: the identity of each picture of the batch (LATENT's batch_index).

    draw(probs_NV, pass_index) -> ids_N and noise(name, pass_index, shape) -> tensor replace ours: through them a test
    replays a reference implementation's own random numbers. part: which part of a pass that runs in several (MaskGIT).
    """

    seed: int
    rows: Sequence[int]
    draw: Callable | None = None
    noise: Callable | None = None
    part: int = 0

    def uniform(self, name: str, pass_index: int, shape: tuple[int, ...]) -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape) float32 on the CPU."""
        return torch.stack([torch.rand(shape, generator=self._generator(row, pass_index, name)) for row in self.rows])

    def gumbel(self, name: str, pass_index: int, shape: tuple[int, ...], device="cpu") -> Tensor:
        """Standard Gumbel numbers (B, *shape), float32 on the device: the logarithms of a whole vocabulary per token
        are its work."""
        if self.noise is not None:
            return upload(self.noise(name, pass_index, (len(self.rows), *shape)), torch.device(device))
        tiny, u = torch.finfo(torch.float32).tiny, upload(self.uniform(name, pass_index, shape), torch.device(device))
        return u.clamp_(min=tiny).log_().neg_().clamp_(min=tiny).log_().neg_()

    def gaussian(self, name: str, pass_index: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers (B, *shape), float32."""
        if self.noise is not None:
            return self.noise(name, pass_index, (len(self.rows), *shape))
        return torch.stack([torch.randn(shape, generator=self._generator(row, pass_index, name)) for row in self.rows])

    def orders(self, pass_index: int, tokens: int) -> Tensor:
        """A random order of the grid's positions for every picture, (B, tokens) int64: by the size of the numbers
        "order"."""
        numbers = self.noise("order", pass_index, (len(self.rows), tokens)) if self.noise is not None else None
        return (self.uniform("order", pass_index, (tokens,)) if numbers is None else numbers).argsort(-1)

    def _generator(self, row: int, pass_index: int, name: str) -> torch.Generator:
        name = f"{name}|{self.part}" if self.part else name
        digest = hashlib.sha256(f"{self.seed}|{row}|{pass_index}|{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Random numbers on the device; from pinned memory, so that the loop does not wait for what a GPU still has to
    do."""
    is_upload = values.device.type == "cpu" and device.type == "cuda"
    return values.pin_memory().to(device, non_blocking=True) if is_upload else values.to(device)


def filtered(logits_BLV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with -inf outside the top_k best (ties kept) and outside the smallest set of mass top_p.

    0 switches either off; the best token always stays. Upstream VAR's order: top_k first, then top_p.
    """
    vocabulary = logits_BLV.shape[-1]
    if 0 < top_k < vocabulary:
        smallest = logits_BLV.topk(top_k, dim=-1).values[..., -1:]
        logits_BLV = logits_BLV.masked_fill(logits_BLV < smallest, -torch.inf)
    if 0 < top_p < 1:
        ordered, index = logits_BLV.sort(dim=-1)
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[..., -1] = False
        logits_BLV = logits_BLV.masked_fill(drop.scatter(-1, index, drop), -torch.inf)
    return logits_BLV


def draw_ids(probs_BLV: Tensor, streams: Streams, pass_index: int) -> Tensor:
    """One id per position, (B, L) int64, by inverse CDF: the first id whose cumulative probability exceeds u."""
    if streams.draw is not None:
        return streams.draw(probs_BLV.flatten(0, 1), pass_index).view(probs_BLV.shape[:2])
    u_BL1 = upload(streams.uniform("token", pass_index, (probs_BLV.shape[1],)), probs_BLV.device).unsqueeze(-1)
    cdf_BLV = probs_BLV.cumsum(-1)
    total = cdf_BLV[..., -1:]
    # strictly below the total, so that rounding never lands on a filtered id behind the last possible one
    target = torch.minimum(u_BL1 * total, torch.nextafter(total, torch.zeros_like(total)))
    # no id lies behind the last one, not even where the probabilities are no numbers and nothing is found
    return torch.searchsorted(cdf_BLV, target, right=True).squeeze(-1).clamp_(max=probs_BLV.shape[-1] - 1)


def bit_odds(logits_BLX: Tensor, top_p: float) -> Tensor:
    """Log-odds (B, L, bits) of a set bit. logits_BLX: two a bit, columns 2i and 2i + 1 for bit i being 0 and 1.

    top_p in (0, 1) settles the bits whose rarer value has probability 1 - top_p or less: their odds become infinite.
    """
    zero_BLD, one_BLD = logits_BLX.unflatten(-1, (-1, 2)).unbind(-1)
    odds_BLD = one_BLD - zero_BLD
    if 0 < top_p < 1:
        limit = max(math.log(top_p / (1 - top_p)), 0.0)  # odds of top_p; below even ones there is no rarer value
        odds_BLD = odds_BLD.masked_fill(odds_BLD <= -limit, -torch.inf).masked_fill_(odds_BLD >= limit, torch.inf)
    return odds_BLD


def draw_bits(odds_BLD: Tensor, streams: Streams, pass_index: int) -> Tensor:
    """One value per bit, (B, L, bits) uint8, by inverse CDF: 0 while its probability exceeds u.

    That is while the odds stay below those of 1 - u: one comparison a bit. The draw seam sees a row of two
    probabilities for every bit, (B * L * bits, 2).
    """
    if streams.draw is not None:
        probs_NV = torch.stack([(-odds_BLD).sigmoid(), odds_BLD.sigmoid()], -1).flatten(0, -2)
        return streams.draw(probs_NV, pass_index).view(odds_BLD.shape).to(torch.uint8)
    least_BLD = -torch.logit(streams.uniform("token", pass_index, tuple(odds_BLD.shape[1:])))
    return (odds_BLD >= upload(least_BLD, odds_BLD.device)).to(torch.uint8)


def smooth_probs(filtered_BLV: Tensor, gumbel_BLV: Tensor, progress: float) -> Tensor:
    """Gumbel-softmax weights of VAR's more_smooth at r = progress: softmax((logits (1 + r) + gumbel) / temperature).

    The last scales divide by SMOOTH_FLOOR: what a batch rounds otherwise than a row alone, about 1e-6 in the logits, is
    up to (1 + r) / SMOOTH_FLOOR = 400 times as much in the exponent, and can tip a token of the next scale.
    """
    temperature = max(SMOOTH_TEMPERATURE * (1 - 0.95 * progress), SMOOTH_FLOOR)
    return ((filtered_BLV * (1 + progress) + gumbel_BLV) / temperature).softmax(-1)
