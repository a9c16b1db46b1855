"""One tiny model per family, with what it takes to run it: what laws over all families are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import torch
from tiny_models import (
    SCHEDULE,
    hart_prompts,
    prompts,
    switti_prompts,
    tiny_hart_pair,
    tiny_infinity,
    tiny_pair,
    tiny_switti_pair,
)

import stepvar_core as sv

# 13 scales, as many as Infinity's 1M has, so that what is skipped there is skipped here; no square but the first
FULL = sv.ScaleSchedule(
    [
        (1, 1, 1),
        (1, 1, 2),
        (1, 2, 2),
        (1, 2, 3),
        (1, 3, 3),
        (1, 3, 4),
        (1, 4, 4),
        (1, 4, 5),
        (1, 4, 6),
        (1, 5, 6),
        (1, 6, 7),
        (1, 7, 8),
        (1, 8, 9),
    ]
)


@dataclass(frozen=True)
class Subject:
    """condition_of(pictures): the condition of some of two pictures, by number. alike: two of the same length, whose
    tokens can be counted without rounding; text_tokens: how many. negative: of one picture, where the model has none of
    its own."""

    model: object
    vae: object | None
    schedule: sv.ScaleSchedule
    condition_of: Callable[[Sequence[int]], object]
    alike: object
    text_tokens: int = 4
    negative: object | None = None

    def run(self, pruning=None, pictures: Sequence[int] = (0, 1), condition=None, **arguments) -> sv.Result:
        """pruning: a policy, or the id of a method."""
        policy = sv.accelerator(pruning) if isinstance(pruning, str) else pruning
        condition = self.condition_of(pictures) if condition is None else condition
        settings = {"schedule": self.schedule, "cfg": 3.0, "negative": self.negatives(condition.batch), **arguments}
        return sv.sample(self.model, self.vae, condition, pruning=policy, **settings)

    def negatives(self, pictures: int):
        return None if self.negative is None else reduce(type(self.negative).joined, [self.negative] * pictures)


def _var() -> Subject:
    model, vae = tiny_pair()

    def condition_of(pictures):
        return model.class_condition([(1, 3)[n] for n in pictures])

    return Subject(model, vae, SCHEDULE, condition_of, condition_of((0, 1)))


def _infinity() -> Subject:
    model = tiny_infinity()
    whole = prompts(model, 3, 5)

    def condition_of(pictures):
        return replace(whole, texts=tuple(whole.texts[n] for n in pictures))

    return Subject(model, None, FULL, condition_of, prompts(model, 4, 4))


def _hart() -> Subject:
    model, vae = tiny_hart_pair()
    whole = hart_prompts(model, 5, 9)

    def condition_of(pictures):
        index = list(pictures)
        return replace(whole, features_BTC=whole.features_BTC[index], mask_BT=whole.mask_BT[index])

    return Subject(model, vae, SCHEDULE, condition_of, whole, model.config.text_tokens)


def _switti(is_causal: bool = False) -> Subject:
    model, vae = tiny_switti_pair(is_causal=is_causal)
    whole = switti_prompts(model, 3, 5)

    def condition_of(pictures):
        index = list(pictures)
        return replace(whole, texts=tuple(whole.texts[n] for n in index), pooled_BC=whole.pooled_BC[index])

    negative = switti_prompts(model, 4, seed=8)
    return Subject(model, vae, SCHEDULE, condition_of, switti_prompts(model, 4, 4), negative=negative)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "var": _var,
    "infinity": _infinity,
    "hart": _hart,
    "switti": _switti,
    "switti, causal": partial(_switti, is_causal=True),
}


def same(one: sv.Result, other: sv.Result) -> bool:
    """Bit for bit."""
    return torch.equal(one.latent, other.latent) and all(
        torch.equal(a, b) for a, b in zip(one.codes, other.codes, strict=True)
    )
