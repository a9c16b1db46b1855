"""A picture is the same alone, in a batch, resumed, and outside of what a mask repaints: on every subject, with every
policy."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from
from subjects import (
    CACHED,
    EARLIER,
    FEW,
    KINDS,
    MAIN,
    METHODS,
    OFF,
    POLICIES,
    PRUNED,
    RATIOS,
    VARIANTS,
    Noting,
    assert_near,
    cases,
    every_family,
    every_subject,
    finished,
    same,
    same_codes,
    subject,
)

import stepvar_core as sv
from stepvar_core.codes import KEEP_WHOLE
from stepvar_core.methods.fills import FILLS
from stepvar_core.methods.selectors import SELECTORS
from stepvar_core.methods.stepvar import SCOPES

# how pictures are drawn, by what sample is told beside the subject's own settings
DRAWN = ("greedy", "unguided", "strengths", "gaps")


def drawing(one, name: str) -> dict:
    gaps = [one.neutral] * len(one.schedule)
    gaps[-2:-1] = [one.cfg]
    return {
        "greedy": {"top_k": 1},
        "unguided": {"cfg": one.neutral},
        "strengths": {"cfg": one.strengths},
        "gaps": {"cfg": gaps},
    }[name]


def assert_singles(one, policy, both: sv.Result, **arguments) -> None:
    for row in range(2):
        single = one.run(policy, (row,), **arguments)
        assert all(torch.equal(a[0], b[row]) for a, b in zip(single.codes, both.codes, strict=True))
        assert_near(one, single.latent[0], both.latent[row])


# batches -------------------------------------------------------------------------------------------


@cases(main=[policy for policy in POLICIES if policy != "quality"])  # there the liveliest picture decides for all
def test_a_batch_of_two_is_two_single_runs(one, policy):
    assert_singles(one, POLICIES[policy], finished(one, policy))


# scored behind the first block: before it some families' tokens have no position, and in the flat pictures of greedy
# random models many are equal
BEHIND = {
    OFF: None,
    PRUNED: sv.StepVAR(RATIOS, first_layer=1),
    CACHED: sv.StepVAR(RATIOS, scope="sublayer", fill="cache", first_layer=1),
    EARLIER[0]: sv.StepVAR((0.0, 0.4), first_layer=1),
    EARLIER[1]: sv.StepVAR((0.0, 0.4), scope="sublayer", fill="cache", first_layer=1),
}


@pytest.mark.parametrize("drawn", DRAWN)
@cases(main=(OFF, PRUNED, CACHED), variants=tuple(BEHIND))
def test_however_it_is_drawn(one, policy, drawn):
    arguments = drawing(one, drawn)
    assert_singles(one, BEHIND[policy], one.run(BEHIND[policy], **arguments), **arguments)


@every_family
@settings(max_examples=10)
@given(
    fill=sampled_from(list(FILLS)),
    scope=sampled_from(SCOPES),
    selector=sampled_from(list(SELECTORS)),
    drawn=sampled_from(DRAWN),
    seed=integers(0, 99),
)
def test_whatever_is_kept(one, fill, scope, selector, drawn, seed):
    policy = sv.StepVAR(RATIOS, fill=fill, scope=scope, selector=selector, first_layer=1)
    arguments = {"seed": seed, **drawing(one, drawn)}
    assert_singles(one, policy, one.run(policy, **arguments), **arguments)


# resuming ------------------------------------------------------------------------------------------


def places(one) -> range:
    """Scales to resume from: all of a short schedule."""
    return range(0, len(one.schedule) + 1, 1 if len(one.schedule) < 6 else 3)


@cases(main=KINDS)
def test_resuming_anywhere_is_never_having_stopped(one, policy):
    whole = finished(one, policy)
    for k in places(one):
        again = one.run(POLICIES[policy], codes=whole, start_at_scale=k)
        assert same_codes(again, whole)
        assert_near(one, again.latent, whole.latent)
        assert [s.tokens_run for s in again.trace.scales] == [s.tokens_run for s in whole.trace.scales]
        assert [s.is_forced for s in again.trace.scales] == [
            i < k and s.tokens_run > 0 for i, s in enumerate(again.trace.scales)
        ]


@cases(main=(*FEW, "zero scale", "last skipped"), variants=FEW)
def test_codes_alone_are_enough_where_nothing_is_soft(one, policy):
    whole, softened = finished(one, policy), finished(one, policy).soft
    hard = next((i for i, soft in enumerate(softened) if soft is not None), len(one.schedule))
    for k in range(1, hard + 1):
        again = one.run(POLICIES[policy], codes=list(whole.codes), start_at_scale=k)
        assert same_codes(again, whole)
        assert_near(one, again.latent, whole.latent)


@cases(main=(*FEW, "zero scale"), variants=(*FEW, "zero scale"))
def test_two_halves_make_a_whole(one, policy):
    whole = finished(one, policy)
    for k in places(one)[1:]:
        half = one.run(POLICIES[policy], end_at_scale=k)
        assert len(half.codes) == len(half.trace.scales) == k
        assert all(torch.equal(a, b) for a, b in zip(half.codes, whole.codes))
        rest = one.run(POLICIES[policy], codes=half, start_at_scale=k)
        assert same_codes(rest, whole)
        assert_near(one, rest.latent, whole.latent)


@pytest.mark.parametrize(
    ("ratios", "together"), [((), [0, 1, 2, 3]), ((0.5,), [0, 1, 2]), ((0.5, 0.5, 0.5), [0, 1])], ids=str
)
@every_family
def test_given_dense_scales_run_as_one(one, ratios, together):
    """Five scales, four of them given: the dense ones in front share one block-causal run as long as together they are
    no larger than the largest pass, and none runs where nobody sees it. Pruned ones run alone."""
    schedule, policy = sv.ScaleSchedule([(1, n, n) for n in (1, 2, 3, 4, 6)]), sv.StepVAR(ratios)
    whole, noting = one.run(policy, schedule=schedule), Noting(policy)
    again = one.run(noting, schedule=schedule, codes=whole, start_at_scale=4)
    alone = [(i,) for i in range(len(together), 5)]
    if one.model.sees(schedule.passes[4], schedule):
        assert noting.groups == [tuple(together), *alone]
    else:  # nobody reads the keys of a given pass: those run that a method chooses tokens in
        assert noting.groups == [(i,) for (i,) in alone if i == 4 or len(ratios) > 4 - i]
    assert [scale.is_forced for scale in again.trace.scales] == [True] * 4 + [False]
    assert [scale.tokens_run for scale in again.trace.scales] == [scale.tokens_run for scale in whole.trace.scales]
    assert same_codes(again, whole)
    assert_near(one, again.latent, whole.latent)


# masks ---------------------------------------------------------------------------------------------


@cases(main=(*FEW, "zero scale"), variants=(*FEW, "zero scale"))
def test_masks_at_their_ends(one, policy):
    """Nothing, everything, and one mask per picture."""
    final, pruning = one.schedule.final, POLICIES[policy]
    everything, nothing = torch.ones(1, final.h, final.w), torch.zeros(1, final.h, final.w)
    given_ = finished(one, OFF)
    kept = one.run(pruning, codes=given_, mask=nothing, seed=9)
    if policy == OFF:
        torch.testing.assert_close(kept.latent, given_.latent, rtol=0, atol=1e-5)
        assert same(kept, given_) or any(soft is not None for soft in given_.soft)
    ran = [scale.tokens_run > 0 for scale in kept.trace.scales]
    assert all(torch.equal(a, b) for a, b, is_run in zip(kept.codes, given_.codes, ran) if is_run)
    redrawn = one.run(pruning, codes=given_, mask=everything, seed=9)
    whole = sum(scale.tokens <= KEEP_WHOLE for scale in one.schedule)
    assert same_codes(redrawn, one.run(pruning, codes=given_, start_at_scale=whole, seed=9))
    rows = one.run(pruning, codes=given_, mask=torch.cat([everything, nothing]), seed=9)
    for i, is_run in enumerate(ran):
        if is_run:
            assert torch.equal(rows.codes[i][1], given_.codes[i][1])
            assert torch.equal(rows.codes[i][0], redrawn.codes[i][0])


@cases(main=KINDS)
def test_a_masked_redraw_keeps_the_picture_elsewhere(one, policy):
    final, given_ = one.schedule.final, finished(one, OFF)
    mask = torch.zeros(1, final.h, final.w)
    mask[:, :, final.w // 2 :] = 1
    result = one.run(POLICIES[policy], codes=given_, mask=mask, seed=8)
    assert_kept(one, result, given_, mask)
    last, before = result.codes[-1], given_.codes[-1]
    if last.shape[1]:
        is_redrawn = mask[0].bool().flatten()
        assert not torch.equal(last[:, is_redrawn], before[:, is_redrawn])
        if result.soft[-1] is not None and given_.soft[-1] is not None:
            one_soft, other = (soft[-1].flatten(2)[..., ~is_redrawn] for soft in (result.soft, given_.soft))
            torch.testing.assert_close(one_soft, other, rtol=0, atol=1e-5)
    assert result.latent.isfinite().all()


def assert_kept(one, result: sv.Result, given_: sv.Result, mask, first: int = 0) -> None:
    for step, codes, before in zip(one.passes, result.codes, given_.codes, strict=True):
        scale = step.scale
        if not codes.shape[1]:
            continue
        cells = F.interpolate(1 - mask[:, None], size=(scale.h, scale.w), mode="bilinear").flatten(1).expand(2, -1)
        is_kept = (cells > 0.5) | (scale.tokens <= KEEP_WHOLE) | (step.index < first)
        assert torch.equal(codes[is_kept], before[is_kept])


@every_subject(MAIN + ["var-smooth"])
@settings(max_examples=10)
@given(
    policy=sampled_from(KINDS),
    start_at_scale=integers(0, 3),
    left=integers(0, 6),
    top=integers(0, 4),
    seed=integers(0, 99),
)
def test_any_rectangle_is_kept(one, policy, start_at_scale, left, top, seed):
    mask = torch.zeros(1, 5, 7)
    mask[:, top:, left:] = 1
    given_ = finished(one, OFF)
    result = one.run(POLICIES[policy], codes=given_, mask=mask, seed=seed, start_at_scale=start_at_scale)
    assert_kept(one, result, given_, mask, start_at_scale)
    torch.testing.assert_close(one.added_up(result), result.latent, rtol=0, atol=1e-5)
    if policy not in ("zero scale", "lazyvar"):
        assert all(one.quantizer.is_added(codes).all() for codes in result.codes)


@every_family
def test_what_was_drawn_in_another_way_is_kept_too(one):
    """Soft features of a picture stay where this run makes none of its own, and the other way about."""
    nothing, variants = torch.zeros(1, 5, 7), (subject(name) for name in VARIANTS)
    known = [v.settings["options"] for v in variants if v.family == one.family and "options" in v.settings]
    for other in ({"top_k": 1}, *({"options": o} for o in known), *({"options": o, "top_k": 1} for o in known)):
        for first, again in ((finished(one, OFF), other), (one.run(**other), {})):
            kept = one.run(codes=first, mask=nothing, seed=8, **again)
            torch.testing.assert_close(kept.latent, first.latent, rtol=0, atol=1e-5)


# stopping ------------------------------------------------------------------------------------------


@cases(main=KINDS, variants=FEW)
def test_a_run_that_was_stopped_leaves_the_next_one_fresh(one, policy):
    """In the middle of a scale, at a different place each time; another run in between changes nothing either."""
    layers = one.model.cost().layers
    for stop in (1, layers + 1, 2 * layers):
        beats, done = [], []

        def heartbeat(beats=beats, stop=stop):
            beats.append(1)
            if len(beats) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            one.run(
                POLICIES[policy], heartbeat=heartbeat, on_scale=lambda step, done=done: done.append(step.tokens_run)
            )
        assert len([n for n in done if n]) == (stop - 1) // layers, "called once per layer and pass"
    if policy in METHODS:
        one.run(POLICIES[policy], (1,), schedule=sv.ScaleSchedule([(1, 1, 1), (1, 1, 9), (1, 5, 1), (1, 4, 7)]), seed=5)
    assert same(one.run(POLICIES[policy]), finished(one, policy))
