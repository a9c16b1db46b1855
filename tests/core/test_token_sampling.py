"""Filtering and drawing: every id that comes out was allowed, as often as its probability says."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis.strategies import floats, integers, lists, sampled_from

from stepvar_core.token_sampling import Streams, draw_ids, filtered, smooth_probs

few = settings(max_examples=40)
logit_rows = lists(integers(-3, 3), min_size=1, max_size=12)  # few values: ties in plenty


@dataclass(frozen=True)
class Fixed(Streams):
    """Streams whose every uniform number is `u`."""

    u: float = 0.0

    def uniform(self, name, pass_index, shape):
        return torch.full((len(self.rows), *shape), self.u)


def naive_filter(logits: list[float], top_k: int, top_p: float) -> list[float]:
    """The values that stay, ascending. Which of several equal ones a top_p cut drops is nobody's promise."""
    kept = sorted(logits)
    if 0 < top_k < len(kept):
        kept = [v for v in kept if v >= kept[-top_k]]
    if 0 < top_p < 1:
        weights = [math.exp(v - kept[-1]) for v in kept]
        total = sum(weights)
        dropped = sum(sum(weights[: i + 1]) / total <= 1 - top_p for i in range(len(kept) - 1))
        kept = kept[dropped:]
    return kept


@few
@given(values=logit_rows, top_k=integers(0, 14), top_p=sampled_from([0.0, 1e-9, 0.013, 0.31, 0.5003, 0.77, 0.951, 1.0]))
@example(values=[1, 1, 1, 1], top_k=2, top_p=0.0)
@example(values=[2, 1, 1, 0], top_k=2, top_p=0.31)
@example(values=[2, 0], top_k=0, top_p=1e-9)  # 1 - top_p rounds to 1: the best token must survive it
def test_filtering_follows_its_definition(values, top_k, top_p):
    logits = torch.tensor([[values, values[::-1]]], dtype=torch.float32)
    before = logits.clone()
    out = filtered(logits, top_k, top_p)
    assert torch.equal(logits, before)
    for row, given_ in zip(out[0], logits[0]):
        stays = row.isfinite()
        assert torch.equal(row[stays], given_[stays])
        assert sorted(row[stays].tolist()) == [float(v) for v in naive_filter(values, top_k, top_p)]
        assert stays[given_.argmax()] or row.max() == given_.max()


def test_the_switches_off_change_nothing():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    for top_k, top_p in ((0, 0.0), (7, 0.0), (900, 1.0)):
        assert torch.equal(filtered(logits, top_k, top_p), logits)


@few
@given(
    values=lists(floats(-30, 30, width=32), min_size=1, max_size=40),
    top_k=integers(0, 5),
    top_p=sampled_from([0.0, 0.4, 0.95]),
    u=sampled_from([0.0, 1e-9, 0.5, 1 - 2**-24, 1.0]),
    blocked=integers(0, 39),
)
@example(values=[0.0, -30.0, 0.0], top_k=1, top_p=0.0, u=1.0, blocked=2)
def test_an_id_that_was_filtered_never_comes_out(values, top_k, top_p, u, blocked):
    logits = torch.tensor([[values]])
    if len(values) > 1:
        logits[..., blocked % len(values)] = -torch.inf
    choices = filtered(logits, top_k, top_p)
    drawn = int(draw_ids(choices.softmax(-1), Fixed(0, (0,), u=u), 0))
    assert 0 <= drawn < len(values) and choices[0, 0, drawn] > -torch.inf


def test_the_inverse_cdf_is_exact_at_its_steps():
    probs = torch.tensor([[[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]])
    for u, expected in ((0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (0.9999, 4), (1.0, 4)):
        assert int(draw_ids(probs, Fixed(0, (0,), u=u), 0)) == expected


def test_ids_come_as_often_as_they_should():
    probs = torch.tensor([0.0, 0.5, 0.01, 0.2, 0.0, 0.29])
    n = 60_000
    drawn = draw_ids(probs.expand(1, n, -1), Streams(3, (0,)), 0)[0]
    counts = torch.bincount(drawn, minlength=6).double()
    deviation = (counts - n * probs) / (n * probs * (1 - probs)).sqrt().clamp(min=1)
    assert deviation.abs().max() < 4.5  # standard errors


def test_draws_of_neighbours_passes_and_rows_do_not_repeat():
    streams = Streams(0, (0, 1, 2))
    numbers = torch.cat([streams.uniform(name, i, (500,)) for name in ("token", "gumbel") for i in range(3)])
    assert torch.corrcoef(numbers).fill_diagonal_(0).abs().max() < 0.2
    assert numbers.min() >= 0 and numbers.max() < 1 and abs(numbers.mean() - 0.5) < 0.02


@pytest.mark.parametrize("name", ["uniform", "gumbel"])
def test_a_row_has_its_numbers_wherever_it_stands(name):
    def numbers(rows):
        return getattr(Streams(11, rows), name)("token", 2, (4, 5))

    both = numbers((8, 3))
    assert torch.equal(numbers((3, 8)).flip(0), both)
    assert torch.equal(numbers((3,))[0], both[1])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(numbers((9,)), numbers((8,)))


def test_the_streams_are_pinned():
    """Seeds in shared workflows must mean the same picture in every release."""
    assert [round(v, 6) for v in Streams(0, (0,)).uniform("token", 0, (3,))[0].tolist()] == [
        0.466983,
        0.260303,
        0.859918,
    ]


def test_gumbel_noise_is_gumbel():
    noise = Streams(0, (0,)).gumbel("gumbel", 0, (40_000,))
    assert noise.isfinite().all()
    assert abs(noise.mean() - 0.5772) < 0.03 and abs(noise.var() - math.pi**2 / 6) < 0.06


@few
@given(progress=floats(0, 1), seed=integers(0, 999))
def test_smoothed_weights_are_a_distribution_over_what_stays(progress, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 2, 9, generator=generator)
    logits[..., :3] = -torch.inf
    gumbel = torch.randn(1, 2, 9, generator=generator)
    probs = smooth_probs(logits, gumbel, progress)
    assert (probs[..., :3] == 0).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones(1, 2))
    temperature = max(0.27 * (1 - 0.95 * progress), 0.005)
    torch.testing.assert_close(probs, ((logits * (1 + progress) + gumbel) / temperature).softmax(-1))
