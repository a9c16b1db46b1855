"""Ratios from a goal: monotone, within the predicted budget, refused for nonsense, and chosen during the run by the
update index."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_vae, tiny_var

import stepvar_core as sv
from stepvar_core.planning import goals as auto
from stepvar_core.planning.cost import estimate
from stepvar_core.planning.goals import (
    LADDER,
    Auto,
    QualityGoal,
    Rate,
    Table,
    Timings,
    check_goal,
    choose_ratios,
    find_table,
    ladder_ratios,
    probe,
    read_tables,
    toward,
    update_index,
)

EDGES = (1, 2, 3, 4, 5, 6, 8)  # three scales before the four that may be pruned
TABLE = Table("var", (8, 8), 2, 32, "update", "zero", tuple(1 - 0.04 * i for i in range(len(LADDER))), 0.5, 0.7)
RATE = Rate(1e-3, 1e-9, 1e-6)


@pytest.fixture(scope="module")
def pair():
    return tiny_var(edges=EDGES), tiny_vae(edges=EDGES)


def sample(pair, policy, **options):
    model, vae = pair
    return sv.sample(model, vae, model.class_condition([1, 3]), schedule=model.schedule(), pruning=policy, **options)


places = st.floats(0, 1)


@given(places, places)
def test_further_up_the_ladder_no_scale_is_pruned_less(a, b):
    low, high = sorted((a, b))
    assert all(x <= y + 1e-9 for x, y in zip(ladder_ratios(low), ladder_ratios(high)))
    assert all(0 <= r < 1 for r in ladder_ratios(high)), "auto never skips a scale"


def test_the_ladders_rungs_are_places_on_it():
    for i, rung in enumerate(LADDER):
        assert ladder_ratios(i / (len(LADDER) - 1)) == rung + (0.0,) * (auto.PLACES - len(rung))


@given(st.floats(0.3, 0.99), st.floats(0.3, 0.99), st.floats(0.05, 5.0), st.floats(0.05, 5.0))
def test_more_quality_or_a_livelier_picture_prunes_less(goal_a, goal_b, index_a, index_b):
    low, high = sorted((goal_a, goal_b))
    assert TABLE.place(high, index_a) <= TABLE.place(low, index_a)
    calm, lively = sorted((index_a, index_b))
    assert TABLE.place(low, lively) <= TABLE.place(low, calm)
    assert TABLE.likeness(TABLE.place(low, calm), calm) >= low or TABLE.place(low, calm) == 0


@given(st.floats(1e-3, 1.0))
def test_the_least_pruning_within_the_budget_is_taken(share):
    model = tiny_var(edges=EDGES)
    schedule = model.schedule()

    def seconds(ratios) -> float:
        return RATE.seconds(estimate(model, schedule, sv.StepVAR(ratios), 1.5, 2))

    budget = share * 1.2 * seconds(())
    ratios = choose_ratios(model, schedule, "seconds", budget, cfg=1.5, batch=2, rate=RATE)
    if seconds(()) <= budget:
        assert not any(ratios)
    elif seconds(ladder_ratios(1.0)) > budget:
        assert ratios == ladder_ratios(1.0)
    else:
        assert seconds(ratios) <= budget
        place = next(i for i in range(auto.STEPS + 1) if ladder_ratios(i / auto.STEPS) == ratios)
        assert seconds(ladder_ratios((place - 1) / auto.STEPS)) > budget


def test_too_short_a_budget_takes_the_strongest_and_says_so(pair, caplog):
    ratios = choose_ratios(pair[0], pair[0].schedule(), "seconds", 1e-9, rate=RATE)
    assert ratios == ladder_ratios(1.0) and "even the strongest pruning" in caplog.text


@pytest.mark.parametrize(
    "goal, value, said",
    [
        ("fast", 1, "Choose one of off, quality, seconds"),
        ("quality", 0, "between 0 and 1"),
        ("quality", 1.0, "between 0 and 1"),
        ("quality", math.nan, "between 0 and 1"),
        ("seconds", 0, "above 0"),
        ("seconds", -3, "above 0"),
        ("seconds", math.inf, "above 0"),
        ("seconds", math.nan, "above 0"),
    ],
)
def test_nonsense_is_refused(pair, goal, value, said):
    with pytest.raises(sv.OptionError, match=said):
        choose_ratios(pair[0], pair[0].schedule(), goal, value, rate=RATE)
    check_goal("off", value)


def test_a_time_without_timings_is_refused(pair):
    with pytest.raises(sv.OptionError, match="nothing was timed"):
        choose_ratios(pair[0], pair[0].schedule(), "seconds", 1.0)


# the rate -----------------------------------------------------------------------------------------


def timed(policy, rate: Rate, model):
    """(estimate, trace) of a run that took exactly what a rate says."""
    schedule = model.schedule()
    cost = estimate(model, schedule, policy, batch=2)
    scales = tuple(
        sv.ScaleTrace(
            s.size,
            torch.ones(2, *s.size, dtype=torch.bool),
            s.kept,
            rate.per_pass + rate.per_flop * s.flops + rate.per_token * s.tokens,
        )
        for s in cost.scales
    )
    return cost, sv.Trace(scales)


@pytest.mark.parametrize("rate", [Rate(1e-3, 2e-9, 3e-6), Rate(0.0, 2e-9, 0.0), Rate(5e-3, 1e-12, 0.0)])
def test_the_rate_is_recovered_from_dense_and_pruned_runs(pair, rate):
    timings = Timings()
    for policy in (sv.StepVAR(()), sv.StepVAR((0.75, 0.5))):
        timings.add(("cpu",), *timed(policy, rate, pair[0]))
    other = estimate(pair[0], pair[0].schedule(), sv.StepVAR((0.3, 0.9, 0.2)), batch=2)
    assert timings.rate(("cpu",)).seconds(other) == pytest.approx(rate.seconds(other), rel=0.01)
    assert timings.rate(("cuda",)) is None


def test_one_kind_of_run_tells_no_rate(pair):
    """From dense passes alone, what drawing takes and what the blocks take cannot be told apart."""
    timings = Timings()
    timings.add(("cpu",), *timed(sv.StepVAR(()), RATE, pair[0]))
    assert timings.rate(("cpu",)) is None


def test_timings_are_bounded_and_skip_forced_passes(pair):
    timings = Timings(runs=2, keys=3)
    for i in range(10):
        timings.add((i,), *timed(sv.StepVAR(()), RATE, pair[0]))
        timings.add((0,), *timed(sv.StepVAR(()), RATE, pair[0]))
    assert set(timings.seen) == {(0,), (8,), (9,)}
    assert len(timings.seen[(0,)]) == 2
    cost, trace = timed(sv.StepVAR(()), RATE, pair[0])
    forced = tuple(sv.ScaleTrace(s.size, s.kept, s.tokens_run, s.seconds, True) for s in trace.scales)
    timings.add(("forced",), cost, sv.Trace(forced))
    assert ("forced",) not in timings.seen


def test_a_probe_tells_the_rate_of_a_real_run(pair):
    model, schedule, timings = pair[0], pair[0].schedule(), Timings()
    tried = []

    def run(policy):
        tried.append(policy.ratios)
        return sample(pair, policy).trace

    probe(
        run,
        lambda policy: estimate(model, schedule, policy, batch=2),
        schedule,
        sv.StepVAR((0.5,), fill="zero"),
        timings,
        ("cpu",),
    )
    assert [r[0] for r in tried] == [0.75, 0.0, 0.75] and all(r[1:] == (1.0,) * 5 for r in tried)
    assert timings.rate(("cpu",)).seconds(estimate(model, schedule, sv.StepVAR(()), batch=2)) > 0


def test_a_goal_in_seconds_probes_once_and_keeps_learning(pair):
    model, key, timings, tried = pair[0], ("cpu",), Timings(), []

    def run(policy):
        tried.append(policy.ratios)
        return timed(policy, RATE, model)[1]

    def goal_of(goal, value):
        policy = toward(goal, value, sv.StepVAR((0.5,), fill="zero"))
        return Auto(policy=policy, timings=timings, model=model, schedule=model.schedule(), batch=2)

    dense = RATE.seconds(goal_of("off", 0).cost(sv.StepVAR(())))
    first = goal_of("seconds", 0.8 * dense)
    assert first.cost() == first.cost(sv.StepVAR((), fill="zero"))  # memory is planned for no pruning
    chosen = first.choose(key, run)
    assert len(tried) == 3 and chosen.fill == "zero" and 0.7 * dense < RATE.seconds(first.cost()) <= 0.8 * dense * 1.001
    goal_of("seconds", 0.9 * dense).choose(key, run)
    assert len(tried) == 3  # the probe is remembered
    off = goal_of("off", 0)
    assert off.choose(key, run).ratios == (0.5,) and len(tried) == 3
    passes = len(timings.seen[key])
    off.learn(key, timed(off.policy, RATE, model)[1])
    assert len(timings.seen[key]) == passes + 1


# quality during the run ---------------------------------------------------------------------------


def goal(ssim: float, table: Table = TABLE, **options) -> QualityGoal:
    return QualityGoal(sv.StepVAR((), **options), ssim, table)


def kept(result) -> list[int]:
    return [s.tokens_run for s in result.trace.scales]


@pytest.mark.parametrize(
    "options", [{}, {"fill": "zero", "selector": "update"}, {"fill": "cache"}, {"scope": "sublayer"}]
)
def test_the_run_equals_one_with_the_ratios_it_chose(pair, options):
    f_hats = []
    chosen = sample(pair, goal(0.85, **options), on_scale=lambda step: f_hats.append(step.f_hat))
    index = float(update_index(f_hats[1], f_hats[2]).max())
    ratios = ladder_ratios(TABLE.place(0.85, index))
    assert any(ratios)
    plain = sample(pair, sv.StepVAR(ratios, **options))
    assert kept(chosen) == kept(plain)
    assert all(torch.equal(a, b) for a, b in zip(chosen.codes, plain.codes))


def test_the_liveliest_picture_of_a_batch_decides(pair):
    steep = Table(**{**vars(TABLE), "slope": 2.0})
    model, vae = pair
    single = [
        sum(
            kept(
                sv.sample(
                    model,
                    vae,
                    model.class_condition([label]),
                    schedule=model.schedule(),
                    pruning=goal(0.9, steep),
                    rows=[row],
                )
            )
        )
        for row, label in enumerate((1, 3))
    ]
    assert sum(kept(sample(pair, goal(0.9, steep)))) == max(single)


def test_a_goal_out_of_reach_prunes_nothing(pair):
    flat = Table(**{**vars(TABLE), "ssim": (1.0,) + (0.5,) * (len(LADDER) - 1)})
    dense = sample(pair, None)
    result = sample(pair, goal(0.9999, flat))
    assert all(torch.equal(a, b) for a, b in zip(result.codes, dense.codes))


def test_a_resumed_run_decides_the_same(pair):
    whole = sample(pair, goal(0.85), top_k=1)
    again = sample(pair, goal(0.85), top_k=1, codes=whole, start_at_scale=4)
    assert kept(again) == kept(whole) and all(torch.equal(a, b) for a, b in zip(whole.codes, again.codes))


def test_short_schedules_decide_without_an_index():
    pair = tiny_var(edges=(1, 2, 3)), tiny_vae(edges=(1, 2, 3))
    table = Table(**{**vars(TABLE), "grid": (3, 3)})
    assert kept(sample(pair, goal(0.7, table)))[-1] < 9


# tables -------------------------------------------------------------------------------------------


def test_the_shipped_tables_fall_and_start_at_no_loss():
    tables = read_tables()
    assert {(t.selector, t.fill) for t in tables} >= {("stepvar", "nearest"), ("update", "zero")}
    for table in tables:
        assert len(table.ssim) == len(LADDER) and table.ssim[0] == 1
        assert list(table.ssim) == sorted(table.ssim, reverse=True) and table.slope >= 0 < table.index


def test_the_nearest_table_is_taken_and_another_model_said(pair, caplog):
    model, schedule = pair[0], pair[0].schedule()
    own = Table(**{**vars(TABLE), "fill": "nearest"})
    far = Table(**{**vars(TABLE), "layers": 30, "width": 1920, "grid": (16, 16)})
    assert find_table(model, schedule, sv.StepVAR(()), [far, own, TABLE]) is own
    assert find_table(model, schedule, sv.StepVAR((), fill="zero"), [far, own, TABLE]) is TABLE
    assert not caplog.records
    assert find_table(model, schedule, sv.StepVAR(()), [far]) is far and "not calibrated" in caplog.text


def test_an_uncalibrated_family_is_refused_with_a_remedy(pair):
    with pytest.raises(sv.OptionError, match="Set auto_goal to seconds or off"):
        find_table(pair[0], pair[0].schedule(), sv.StepVAR(()), [Table(**{**vars(TABLE), "family": "other"})])


def test_settings_pass_through_a_goal_untouched(pair):
    own = sv.StepVAR(
        (0.3,), structure_weight=0.1, fill="zero", coverage=2, guidance_late="conditional", guidance_late_scales=1
    )
    found = QualityGoal(own, 0.9).resolve(pair[0], pair[0].schedule()).with_ratios((0.5,))
    assert vars(found) == {**vars(own), "ratios": (0.5,)}


def test_the_file_of_tables_is_json_with_a_note_of_its_origin():
    assert "calibrate" in json.loads(auto.TABLES.read_text())["made_by"]
