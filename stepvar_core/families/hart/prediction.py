"""HART's last scale: predicted in several steps (MaskGIT), and followed by a continuous residual (Tang et al. 2024)."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from ...codes import Drawn
from ...errors import OptionError
from ...schedule import Scale
from ...token_sampling import Streams, upload
from ...tokens import DenseTokens

log = logging.getLogger(__name__)


def decide(job):
    """The job with the last scale's parts. Warns where the residual goes with a skipped scale.

    Raises OptionError where several steps predict a pruned scale: the positions of a step are no grid to choose from,
    or to fill.
    """
    last, steps = job.schedule.passes[-1], job.options.maskgit_steps
    plan = job.plans[last.index]
    if job.stop < len(job.schedule.passes):
        return job
    if job.options.residual and plan.is_skipped:
        log.warning(
            "The last scale is skipped, and with it the continuous residual that %s adds to it: expect a softer "
            "picture.",
            job.model.family,
        )
    if steps == 1 or plan.is_skipped or job.given.is_whole(last):
        return job
    if not plan.is_dense:
        raise OptionError(
            f"maskgit_steps is {steps} and the last scale is pruned: a step's positions are no grid to copy over.",
            "Use maskgit_steps 1, or ratio 0 for the last scale.",
        )
    parts = positions(job.streams, last.index, plan.tokens, steps)
    return replace(job, parts={last.index: tuple(part.to(job.device) for part in parts)})


def predict(turn) -> list[Drawn]:
    """Codes of a turn: as any model's, but for the last scale."""
    job, step = turn.job, turn.step
    if turn.parts:
        turn.policy.plans[step.index] = job.plans[step.index]  # whatever a method decided since: the parts run it whole
        return [turn.lay_over(draw_in_parts(turn))]
    model = job.model
    x_RLC = model.blocks_forward(turn.run, turn.enter(), turn.tokens, turn.memory())
    if turn.given[0] is not None or step.scale_index < len(job.schedule) - 1 or not job.options.residual:
        return turn.answer(x_RLC)
    drawn = turn.draw(x_RLC, turn.tokens)
    return [turn.lay_over(add_residual(turn, drawn, turn.tokens.spread(x_RLC), step, job.streams))]


def add_residual(turn, drawn: Drawn, x_RLC: Tensor, step, streams: Streams) -> Drawn:
    """What the codes leave out, drawn by the diffusion head. x_RLC: the stream at every position of the step."""
    job, quantizer = turn.job, turn.job.quantizer

    def gaussian(name: str, shape: tuple[int, ...]) -> Tensor:
        """Normal numbers on the device for one step of the residual, which may be stopped before it."""
        if job.heartbeat is not None:
            job.heartbeat()
        return upload(streams.gaussian(name, step.index, shape), job.device)

    hard = quantizer.lookup(drawn.codes, step.scale)
    residual = job.model.residual(turn.run, x_RLC, hard, gaussian)
    return replace(drawn, soft=(hard if drawn.soft is None else drawn.soft) + residual)


# several steps ------------------------------------------------------------------------------------


def maskgit_counts(tokens: int, steps: int) -> list[int]:
    """How many positions each step predicts: the cosine schedule of MaskGIT, at least one left for every later step."""
    masked = [tokens]
    for step in range(1, steps):
        share = math.floor(tokens * math.cos(math.pi / 2 * step / steps))
        masked.append(max(1, min(masked[-1] - 1, share)))
    return [n for n in (a - b for a, b in zip(masked, [*masked[1:], 0])) if n > 0]


def positions(streams: Streams, pass_index: int, tokens: int, steps: int) -> list[Tensor]:
    """The positions (B, K) of every step, in raster order within a step."""
    order_BL = streams.orders(pass_index, tokens)
    # the end of the order is predicted first
    return [part.sort(-1).values for part in order_BL.flip(1).split(maskgit_counts(tokens, steps), 1)]


class PartTokens(DenseTokens):
    """Some positions of the grid run, index_BK of every picture, the same ones in both guidance halves."""

    def __init__(self, index_BK: Tensor):
        self.index_BK = index_BK

    def enter(self, layer: int, x_RLC: Tensor) -> Tensor:
        return self.rows(x_RLC) if layer == 0 else x_RLC

    def rows(self, table_RLX: Tensor) -> Tensor:
        index_RK = self.index_BK.repeat(max(len(table_RLX) // len(self.index_BK), 1), 1)
        index_RKX = index_RK.unsqueeze(-1).expand(-1, -1, table_RLX.shape[-1])
        return table_RLX.expand(len(index_RK), -1, -1).gather(1, index_RKX)


def draw_in_parts(turn) -> Drawn:
    """The positions in several steps, each of which sees the keys of those before it."""
    job, model, step = turn.job, turn.job.model, turn.step
    entry_RLC, drawn = turn.enter(), []
    for n, index_BK in enumerate(turn.parts):
        part = replace(step, scale=Scale(1, 1, index_BK.shape[1]))  # a row of tokens: a step has no grid
        tokens, streams = PartTokens(index_BK), replace(job.streams, part=n)
        x_RKC = model.blocks_forward(turn.run, entry_RLC, tokens, turn.memory(n))
        one = turn.draw(x_RKC, tokens, streams, part)
        drawn.append(add_residual(turn, one, x_RKC, part, streams) if job.options.residual else one)
    return in_raster_order(drawn, turn.parts, step.scale)


def in_raster_order(drawn: list[Drawn], parts: tuple[Tensor, ...], scale: Scale) -> Drawn:
    """The answers of all steps as one pass over the grid."""
    place_BL = torch.cat(parts, 1).argsort(-1)  # of every position among those drawn one after the other

    def in_place(values_BLX: Tensor) -> Tensor:
        return values_BLX.gather(1, place_BL.unsqueeze(-1).expand(-1, -1, values_BLX.shape[-1]))

    soft = None
    if drawn[0].soft is not None:
        soft_BLC = in_place(torch.cat([rearrange(one.soft, "b c h w -> b (h w) c") for one in drawn], 1))
        soft = rearrange(soft_BLC, "b (h w) c -> b c h w", h=scale.h)
    codes = torch.cat([one.codes for one in drawn], 1).gather(1, place_BL)
    return Drawn(codes, soft, logits=in_place(torch.cat([one.logits for one in drawn], 1)))
