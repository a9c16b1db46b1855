"""Named ratio sets."""

import pytest
import torch
from tiny_models import SCHEDULE, tiny_pair

import stepvar_core as sv
from stepvar_core.families import FAMILIES
from stepvar_core.families.infinity.model import Infinity, InfinityConfig
from stepvar_core.families.infinity.schedules import SIZES
from stepvar_core.families.var.model import VAR, VARConfig
from stepvar_core.methods.policy import About
from stepvar_core.methods.presets import PRESET_SETTINGS, PRESETS, RATIO_WIDGETS, Preset, preset_ratios

FULL = sv.ScaleSchedule.square(range(1, 14))
SHORT = sv.ScaleSchedule.square(range(1, 11))


@pytest.mark.parametrize("name", PRESETS)
def test_a_full_schedule_gets_the_preset_itself(name):
    assert preset_ratios(name, Infinity.skips, FULL, len(FULL)) == PRESETS[name]
    assert len(PRESETS[name]) <= RATIO_WIDGETS and all(0 <= r <= 1 for r in PRESETS[name])


@pytest.mark.parametrize("name", PRESETS)
def test_a_shorter_schedule_keeps_its_final_scales(name):
    """Skipping them would leave nothing at full resolution: they are pruned as the next strongest ratio says."""
    ratios = preset_ratios(name, Infinity.skips, SHORT, len(FULL))
    assert all(r < 1 for r in ratios) and len(ratios) == len(PRESETS[name])
    assert [r for r in PRESETS[name] if r < 1] == [r for r, whole in zip(ratios, PRESETS[name]) if whole < 1]


def test_the_papers_infinity_preset_skips_at_full_size_only():
    model_scales = len(FULL)
    paper = "Paper \u00b7 Infinity"
    plan = sv.StepVAR(preset_ratios(paper, Infinity.skips, FULL, model_scales)).plan(
        About(FULL, layers=32, first_layer=3)
    )
    assert [p.fewest for p in plan[-4:]] == [100 - int(100 * 0.4), 121 - int(121 * 0.5), 0, 0]
    plan = sv.StepVAR(preset_ratios(paper, Infinity.skips, SHORT, model_scales)).plan(
        About(SHORT, layers=32, first_layer=3)
    )
    assert all(p.fewest for p in plan)


def test_an_unknown_preset_is_refused():
    with pytest.raises(sv.OptionError, match="Choose one of Off"):
        preset_ratios("Fast", VAR.skips, FULL, 13)


def test_a_condition_that_nothing_would_follow_is_refused():
    with pytest.raises(sv.OptionError, match="nothing would follow the condition"):
        sv.StepVAR((), guidance_late="unconditional", guidance_late_scales=10).plan(About(SHORT, layers=2))
    assert sv.StepVAR((), guidance_late="conditional", guidance_late_scales=10).plan(About(SHORT, layers=2))


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.skips])
@pytest.mark.parametrize("name", PRESETS)
def test_other_families_keep_their_full_resolution(name, family):
    ratios = preset_ratios(name, family.skips, FULL, len(FULL))
    assert all(r < 1 for r in ratios)
    assert [r for r in PRESETS[name] if r < 1] == [r for r, whole in zip(ratios, PRESETS[name]) if whole < 1]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_what_it_names_and_nothing_else(name):
    own = sv.StepVAR(
        (0.3,),
        structure_weight=0.1,
        kernel=5,
        selector="structure",
        fill="delta",
        guidance_late="conditional",
        guidance_late_scales=1,
    )
    for model, schedule in full_size_models():
        policy = Preset(name, own).resolve(model, schedule)
        ratios = preset_ratios(name, model.skips, schedule, model.full_scales)
        assert vars(policy) == {**vars(own), **PRESET_SETTINGS.get(name, {}), "ratios": ratios}


def test_a_preset_runs_as_its_ratios_do():
    pair = tiny_pair()
    with pytest.raises(sv.StepVARError, match="Balanced is not settled"):
        Preset("Balanced").plan(About(SCHEDULE, layers=2))
    by_name, by_ratios = (
        sv.sample(*pair, pair[0].class_condition([1]), schedule=SCHEDULE, pruning=policy)
        for policy in (Preset("Balanced"), sv.StepVAR(PRESETS["Balanced"]))
    )
    assert all(torch.equal(a, b) for a, b in zip(by_name.codes, by_ratios.codes, strict=True))
    assert by_name.trace.pruning == by_ratios.trace.pruning


def test_every_setting_of_a_preset_belongs_to_a_preset():
    assert set(PRESET_SETTINGS) <= set(PRESETS)


def full_size_models():
    """(model without weights, schedule): the public sizes of every family with presets."""
    with torch.device("meta"):
        infinity, var = Infinity(InfinityConfig()), VAR(VARConfig())
    return [(infinity, infinity.schedule(ratio, size)) for ratio in (1.0, 1.75, 1 / 3) for size in SIZES] + [
        (var, var.schedule())
    ]


def test_fastest_is_the_fastest_everywhere_and_skips_only_where_that_was_published():
    for model, schedule in full_size_models():
        ratios = {name: preset_ratios(name, model.skips, schedule, model.full_scales) for name in PRESETS}
        speedups = {name: sv.estimate(model, schedule, sv.StepVAR(r)).speedup for name, r in ratios.items()}
        assert max(speedups, key=speedups.get) == "Fastest", (model.family, schedule, speedups)
        assert (max(ratios["Fastest"]) == 1) == (model.family == "infinity" and len(schedule) == 13)


def test_late_guidance_multiplies_with_every_preset():
    [(model, schedule), *_] = full_size_models()
    for name in PRESETS:
        ratios = preset_ratios(name, model.skips, schedule, model.full_scales)
        both, late = (
            sv.estimate(model, schedule, sv.StepVAR(ratios, guidance_late="conditional", guidance_late_scales=n))
            for n in (0, 4)
        )
        assert late.flops < both.flops, name
