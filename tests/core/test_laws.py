"""Laws of the scale loop, held against every subject and every policy: nothing pruned is nothing changed, what runs is
what was planned, guidance, randomness, and grids of any size."""

import copy
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis.strategies import booleans, floats, integers, lists, sampled_from, tuples
from subjects import (
    FEW,
    FILLED,
    GOALS,
    MAIN,
    MAKERS,
    METHODS,
    ODD,
    OFF,
    POLICIES,
    PRUNED,
    RATIOS,
    VARIANTS,
    cases,
    every_family,
    every_subject,
    finished,
    same,
    same_codes,
    subject,
)

import stepvar_core as sv
from stepvar_core import methods
from stepvar_core.families import FAMILIES
from stepvar_core.methods.fills import FILLS
from stepvar_core.methods.presets import PRESETS
from stepvar_core.methods.selectors import SELECTORS
from stepvar_core.methods.stepvar import SCOPES
from stepvar_core.planning.goals import GOALS as NAMES_OF_GOALS

# nobody is left out --------------------------------------------------------------------------------


def test_every_family_has_a_subject():
    for family in FAMILIES:
        assert family.name in MAKERS, (
            f"{family.name} is held to no law: write its maker in tests/core/subjects.py and add it to MAKERS as "
            f"{family.name!r}, with policies=None."
        )
        one = subject(family.name)
        assert one.family == family.name and one.policies is None, f"the first subject of {family.name} runs them all"
    assert {name.split("-")[0] for name in MAKERS} == {family.name for family in FAMILIES}


def test_every_policy_is_held_to_the_laws():
    """Every method, fill in each scope, selector, preset, and goal but the one that switches goals off."""
    assert {method.id for method in methods.METHODS} <= POLICIES.keys()
    assert {f"{fill} {scope}" for fill in FILLS for scope in SCOPES} <= POLICIES.keys()
    assert {f"by {name}" for name in SELECTORS} | {f"preset {name}" for name in PRESETS} <= POLICIES.keys()
    assert set(NAMES_OF_GOALS) - {OFF} == GOALS.keys()


# what a run gives ----------------------------------------------------------------------------------


@every_subject()
def test_a_dense_run_gives_a_picture_of_every_scale(one):
    """Codes of several kinds, a latent of the right shape, and nothing in it but what codes and soft features say."""
    result = finished(one, OFF)
    assert [tuple(codes.shape[:2]) for codes in result.codes] == [(2, scale.tokens) for scale in one.schedule]
    everything = torch.cat([codes.flatten(1) for codes in result.codes], 1)
    if everything.dtype == torch.uint8:
        assert everything.max() <= 1 and 0.2 < everything.float().mean() < 0.8
    else:
        assert everything.dtype == torch.int64 and len(everything.unique()) >= 3
    assert tuple(result.latent.shape) == (2, *one.model.latent_shape(one.schedule))
    assert result.latent.dtype == torch.float32 and result.latent.isfinite().all()
    assert result.latent.is_inference()  # no graph is recorded, whatever the caller's mode


@cases()
def test_codes_hold_the_whole_picture(one, policy):
    """With the soft features, where there are any."""
    result = finished(one, policy)
    torch.testing.assert_close(one.added_up(result), result.latent, rtol=0, atol=1e-5)
    if not any(soft is not None for soft in result.soft):
        decoded = one.quantizer.decode_codes(result.codes, one.schedule)
        torch.testing.assert_close(decoded, result.latent, rtol=0, atol=1e-5)


# nothing pruned is nothing changed -----------------------------------------------------------------

# all three settings at once on one family, on the others one after the other
TOGETHER = [(subject(MAIN[0]), *choice) for choice in itertools.product(SELECTORS, FILLS, SCOPES)]
ONE_BY_ONE = (*itertools.product(["stepvar"], FILLS, SCOPES), *((s, "nearest", "scale") for s in SELECTORS))
APART = [(subject(name), *choice) for name in MAIN[1:] for choice in ONE_BY_ONE]
APART += [(subject(name), "stepvar", "nearest", scope) for name in VARIANTS for scope in SCOPES]


@pytest.mark.parametrize(("one", "selector", "fill", "scope"), TOGETHER + APART, ids=str)
def test_zero_ratios_are_no_pruning_bit_for_bit(one, selector, fill, scope):
    policy = sv.StepVAR((0.0, 0.0, 0.0), selector=selector, fill=fill, scope=scope)
    assert same(one.run(policy), finished(one, OFF))


@cases(main=tuple(METHODS))
def test_neutral_settings_are_no_acceleration_bit_for_bit(one, policy):
    """And the defaults are one, wherever they plan anything but the dense run."""
    method = METHODS[policy].method
    neutral = one.run(sv.accelerator(policy, **method.neutral))
    assert same(neutral, finished(one, OFF))
    if not one.decides(METHODS[policy]):  # a picture may decide that all of it runs
        assert same(finished(one, policy), neutral) == (one.plans(METHODS[policy]) == one.plans())


@every_subject()
def test_a_goal_in_seconds_runs_dense_until_it_is_timed(one):
    if one.policies is None:
        assert same(finished(one, "seconds"), finished(one, OFF))


@pytest.mark.parametrize("keep_scores", [False, True])
@cases(main=(*FEW, "last skipped"), variants=FEW[:2])
def test_watching_changes_nothing(one, policy, keep_scores):
    seen = []
    watched = one.run(
        POLICIES[policy],
        keep_scores=keep_scores,
        on_scale=lambda step: seen.append((step.index, step.f_hat.clone(), step.seconds)),
    )
    assert same(watched, finished(one, policy))
    assert [index for index, *_ in seen] == list(range(len(one.passes)))
    assert torch.equal(seen[-1][1], watched.latent)


# what a pruned run does ----------------------------------------------------------------------------


@cases()
def test_what_runs_is_what_was_planned(one, policy):
    """K tokens run, the trace says which, every position gets a code, and nothing before the first pruned scale
    moves."""
    result = one.run(POLICIES[policy], keep_scores=True)
    assert same(result, finished(one, policy))
    assert_as_planned(one, POLICIES[policy], result)
    if policy == "quality":
        assert result.trace.scales[-1].tokens_run < one.schedule.final.tokens, "else nothing was decided"
    if policy in FILLED and len(one.schedule) == 4:
        assert [scale.tokens_run for scale in result.trace.scales] == [1, 6, 8, 11]  # 12 - int(4.8), 35 - int(24.5)


@pytest.mark.parametrize(("one", "selector", "fill", "scope"), TOGETHER, ids=str)
def test_every_choice_goes_with_every_other(one, selector, fill, scope):
    policy = sv.StepVAR(RATIOS, selector=selector, fill=fill, scope=scope)
    assert_as_planned(one, policy, one.run(policy, keep_scores=True))


def assert_as_planned(one, policy, result: sv.Result) -> None:
    plans, dense, ran = one.plans(policy), finished(one, OFF), [scale.tokens_run for scale in result.trace.scales]
    settled = (policy or sv.NoPruning()).resolve(one.model, one.schedule)
    decides = one.decides(policy)
    if decides:  # at most what was planned
        assert all(n <= plan.fewest for n, plan in zip(ran, plans, strict=True))
    else:
        assert ran == [plan.fewest for plan in plans] == [scale.kept for scale in one.estimate(policy).scales]
        untouched = next((i for i, (a, b) in enumerate(zip(plans, one.plans())) if a != b), len(plans))
        assert all(torch.equal(a, b) for a, b in zip(result.codes[:untouched], dense.codes[:untouched]))
        assert same(result, dense) == (untouched == len(plans))
    assert [scale.size for scale in result.trace.scales] == [scale.grid for scale in one.schedule]
    is_blank = settled.shown() == {"fill": "zero", "scope": "scale"}
    for scale, codes, traced in zip(one.schedule, result.codes, result.trace.scales, strict=True):
        assert traced.kept.shape == (2, *scale.grid)
        assert_counts(traced, 2, decides)
        assert codes.shape[:2] == (2, scale.tokens if traced.tokens_run else 0)
        if traced.tokens_run:
            assert torch.equal(~one.quantizer.is_added(codes), ~traced.kept.flatten(1) & is_blank)
        assert (traced.importance is not None) == (0 < traced.tokens_run < scale.tokens)
    assert result.latent.isfinite().all() and result.trace.pruning == settled.describe()


def assert_counts(traced, batch: int, decides: bool) -> None:
    """Every picture keeps as many; where pictures decide, the one that keeps most says how many run."""
    counts = traced.kept.flatten(1).sum(1).tolist()
    assert max(counts) == traced.tokens_run and (decides or counts == [traced.tokens_run] * batch)


@cases(main=tuple(METHODS))
def test_the_trace_names_the_method(one, policy):
    title = METHODS[policy].method.title
    assert finished(one, policy).trace.pruning.startswith(title) and METHODS[policy].describe() == title


@pytest.mark.parametrize("schedule", ODD, ids=lambda schedule: schedule.describe())
@pytest.mark.parametrize("policy", [PRUNED, *METHODS])
@every_family
def test_odd_schedules_run_as_planned(one, policy, schedule):
    if not one.accepts(schedule):
        with pytest.raises(sv.ScheduleMismatch):
            one.run(POLICIES[policy], schedule=schedule)
        return
    result = one.run(POLICIES[policy], schedule=schedule)
    plan = [p.fewest for p in one.plans(POLICIES[policy], schedule=schedule)]
    ran, decides = [scale.tokens_run for scale in result.trace.scales], one.decides(POLICIES[policy], schedule)
    assert all(n <= most for n, most in zip(ran, plan, strict=True)) if decides else ran == plan
    for traced in result.trace.scales:
        assert_counts(traced, 2, decides)
    assert policy == PRUNED or plan[0] == schedule.scales[0].tokens  # nothing precedes it
    assert result.latent.isfinite().all()


@every_family
@settings(max_examples=15)
@given(
    ratios=lists(floats(0.01, 0.99), min_size=1, max_size=2),
    fill=sampled_from(list(FILLS)),
    scope=sampled_from(SCOPES),
    first_layer=integers(0, 1),
    grid=tuples(integers(1, 6), integers(1, 6)),
    batch=integers(1, 2),
    is_guided=booleans(),
)
def test_any_ratios_on_any_grid_run_as_planned(one, ratios, fill, scope, first_layer, grid, batch, is_guided):
    schedule = sv.ScaleSchedule([(1, 1, 1), (1, 3, 2), (1, *grid)])
    policy = sv.StepVAR(tuple(ratios), fill=fill, scope=scope, first_layer=first_layer)
    cfg = one.cfg if is_guided else one.neutral
    result = one.run(policy, range(batch), schedule=schedule, cfg=cfg)
    plans = one.plans(policy, batch, schedule)
    for plan, scale, codes in zip(plans, result.trace.scales, result.codes, strict=True):
        assert scale.kept.flatten(1).sum(1).tolist() == [plan.fewest] * batch
        assert codes.shape[:2] == (batch, plan.tokens)


@every_family
def test_ratio_one_skips_the_scale(one):
    """What follows a skipped scale reads the same f_hat, resized to its own grid, and no keys of it."""
    last = finished(one, "two skipped")
    assert torch.equal(last.latent, one.run(end_at_scale=len(one.schedule) - 2).latent)
    assert not any(scale.kept.any() for scale in last.trace.scales[-2:]) and last.soft[-2:] == [None, None]
    seen = []
    middle = one.run(POLICIES["middle skipped"], on_scale=lambda step: seen.append(step.f_hat))
    assert torch.equal(seen[-3], seen[-2]) and not torch.equal(seen[-2], seen[-1])
    assert middle.codes[-2].shape[1] == 0 < middle.codes[-1].shape[1]
    runs = [plan.layer_tokens(0) for plan in one.plans(sv.StepVAR((0.0, 1.0))) if not plan.is_skipped]
    job = one.job(sv.StepVAR((0.0, 1.0)))
    assert job.new_cache().lengths[0] == (runs[0] + job.lead, *runs[1:])


@every_family
def test_a_skipped_first_scale_is_refused(one):
    with pytest.raises(sv.OptionError, match="Ratio 1 would skip the first scale"):
        one.run(sv.StepVAR((1,) * len(one.schedule)))


BLANK = list(itertools.product((*MAIN, "var-smooth", "hart-hard"), (1, 2, 3)))


@pytest.mark.parametrize(
    ("one", "scale"), [(subject(name), n) for name, n in (*BLANK, ("infinity-patched", 3))], ids=str
)
def test_a_blank_position_adds_exactly_nothing(one, scale):
    """The zero fill: f_hat keeps the value it had, to the bit, wherever the nearest cell of the pruned scale was
    blank."""
    ratios, seen = (*[0.0] * (len(one.schedule) - 1 - scale), 0.6), []
    result = one.run(sv.StepVAR(ratios, fill="zero"), on_scale=lambda step: seen.append(step.f_hat))
    kept = result.trace.scales[scale].kept[:, 0]
    rows, columns = (
        [int((i + 0.5) * small / large) for i in range(large)]
        for small, large in zip(kept.shape[1:], seen[scale].shape[2:])
    )
    changed_BHW = (seen[scale] != seen[scale - 1]).any(1)
    kept_BHW = kept[:, rows][:, :, columns]
    assert torch.equal(changed_BHW, kept_BHW) and not kept_BHW.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_family
def test_half_precision_stays_near(one, dtype):
    """On the same codes; the logits are float32 whatever the weights are."""
    exact, seen = [], []
    result = one.run(cfg=one.neutral, on_scale=lambda step: exact.append(step.logits))
    half = half_precision(one, dtype)
    mask = torch.zeros(1, 5, 7)
    sv.sample(
        half,
        one.vae,
        one.pictures((0, 1)),
        **one.arguments(
            (0, 1), cfg=one.neutral, codes=result, mask=mask, on_scale=lambda step: seen.append(step.logits)
        ),
    )
    for a, b in zip(exact, seen, strict=True):
        assert b.dtype == torch.float32
        assert F.cosine_similarity(a.flatten(1), b.flatten(1)).min() > 0.995


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@cases(main=[f"{fill} {scope}" for fill in FILLS for scope in SCOPES], names=(*MAIN, "infinity-patched"))
def test_every_fill_in_half_precision(one, policy, dtype):
    arguments = one.arguments((0, 1), pruning=POLICIES[policy])
    result = sv.sample(half_precision(one, dtype), one.vae, one.pictures((0, 1)), **arguments)
    assert result.latent.isfinite().all() and result.latent.dtype == torch.float32


@functools.cache
def half_precision(one, dtype):
    return copy.deepcopy(one.model).place("cpu", dtype)


# guidance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratios", [(), (0.7, 0.4)])
@pytest.mark.parametrize("late", [1, 2])
@every_subject()
def test_late_conditional_guidance_is_no_guidance_late(one, ratios, late):
    if one.policies and PRUNED not in one.policies and ratios:
        ratios = (0.0, 0.4)
    policy = sv.StepVAR(ratios, guidance_late="conditional", guidance_late_scales=late)
    stops = [*one.strengths[:-late], *[one.neutral] * late]
    assert same(one.run(policy, cfg=one.strengths), one.run(sv.StepVAR(ratios), cfg=stops))


@every_subject()
def test_no_guidance_is_the_neutral_strength(one):
    off = one.run(cfg=one.neutral)
    assert same(off, one.run(cfg=[one.neutral] * len(one.schedule))) and not same(off, finished(one, OFF))


@every_subject()
def test_late_unconditional_guidance_follows_the_negative_alone(one):
    """What the last scale answers is what the negative alone answers over the same codes; not so the condition."""
    seen, last = {}, len(one.schedule) - 1
    policy = sv.StepVAR((), guidance_late="unconditional", guidance_late_scales=1)
    result = one.run(policy, on_scale=lambda step: seen.update({"late": step.logits}))
    condition = one.pictures((0, 1))
    negative = one.negatives((0, 1)) if one.negatives else one.model.unconditional(condition)
    for name, alone in (("null", negative), ("conditional", condition)):
        arguments = one.arguments((0, 1), cfg=one.neutral, codes=result, start_at_scale=last)
        arguments["on_scale"] = lambda step, name=name: seen.update({name: step.logits})
        sv.sample(one.model, one.vae, alone, **arguments)
    if one.settings.get("options", {}).get("guidance_layers") is None:
        torch.testing.assert_close(seen["late"], seen["null"], rtol=1e-4, atol=1e-4)
    assert (seen["late"] - seen["conditional"]).abs().max() > 0.1


@every_subject()
def test_the_own_negative_is_what_none_stands_for(one):
    condition = one.pictures((0, 1))
    if one.negatives is None:
        assert same(one.run(negative=one.model.unconditional(condition)), finished(one, OFF))
    assert not same(one.run(negative=one.pictures((1, 0))), finished(one, OFF))


# randomness ----------------------------------------------------------------------------------------


@every_subject()
def test_a_seed_is_a_picture(one):
    dense = finished(one, OFF)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = one.run()
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's random stream is not touched
    assert same(again, dense)
    assert not same(one.run(seed=1), dense)
    assert not same(one.run(rows=[7, 8]), dense)
    assert same(one.run(rows=None), dense)
    # equal conditions in one batch are different pictures
    twins = one.run(None, (1, 1), rows=[0, 1])
    assert not torch.equal(twins.latent[0], twins.latent[1])


@every_subject()
def test_greedy_draws_no_code(one):
    greedy, other = one.run(top_k=1), one.run(top_k=1, seed=123, rows=[5, 6])
    assert same_codes(greedy, other)
    assert same(greedy, other) or any(soft is not None for soft in greedy.soft)


@every_subject()
def test_temperature_and_lists_apply_per_scale(one):
    greedy = one.run(top_k=1)
    n = len(one.schedule)
    mixed = one.run(temperature=([1.0, 1e-6] * n)[:n], top_k=([1, 0] * n)[:n], top_p=0.0)
    assert all(torch.equal(a, b) for a, b in zip(mixed.codes, greedy.codes))
