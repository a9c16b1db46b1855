"""The update index: what the last pass changed in the picture so far decides which tokens of the next one run."""

import pytest
import torch
import torch.nn.functional as F

import stepvar_core as sv
from stepvar_core.methods.selectors import SELECTORS, ScoreContext, update_energy, update_turn


def run(model, vae, policy, **options):
    f_hats = []
    result = sv.sample(
        model,
        vae,
        model.class_condition([1, 3]),
        schedule=model.schedule(),
        top_k=1,
        pruning=policy,
        on_scale=lambda step: f_hats.append(step.f_hat),
        **options,
    )
    return result, f_hats


def keeps_the_largest(energy_BN, kept_BN) -> bool:
    """Up to the step that energies are compared with; what is equal to it goes by place."""
    step_B = energy_BN.amax(1) * 2**-14
    return bool(
        (energy_BN.where(kept_BN, torch.inf).amin(1) + step_B >= energy_BN.where(~kept_BN, -torch.inf).amax(1)).all()
    )


def test_the_places_that_changed_most_are_kept(tiny):
    result, f_hats = run(*tiny, sv.StepVAR((0.5, 0.25), selector="update"))
    for place, edge in ((-1, 6), (-2, 4)):
        change = (f_hats[place - 1] - f_hats[place - 2]).square().sum(1, keepdim=True)
        energy = F.interpolate(change, size=(edge, edge), mode="area").flatten(1)
        kept = result.trace.scales[place].kept.flatten(1)
        assert keeps_the_largest(energy, kept)
        assert kept.sum(1).tolist() == [edge * edge - int(edge * edge * (0.5 if place == -1 else 0.25))] * 2


def test_a_skipped_scale_leaves_the_last_change_standing(tiny):
    """Nothing was added there, and a map of zeros would keep the first tokens of the raster."""
    result, f_hats = run(*tiny, sv.StepVAR((0.5, 1.0), selector="update"))
    energy = (f_hats[-2] - f_hats[-4]).square().sum(1).flatten(1)
    kept = result.trace.scales[-1].kept.flatten(1)
    assert keeps_the_largest(energy, kept)


def test_rounding_ranks_nothing():
    """Places that moved alike but for rounding are kept in the order of the raster."""
    energy = torch.tensor([[1.0, 3.0, 2.0, 3.0 * (1 + 1e-6), 0.0, 2.0 * (1 + 1e-6)], [0.0] * 6])
    context = ScoreContext(
        scale=sv.Scale(1, 2, 3),
        start_C=torch.zeros(1),
        noise=lambda name, shape: torch.zeros(shape),
        f_hats=(None, energy.sqrt().view(2, 1, 2, 3)),
    )
    importance = SELECTORS["update"](torch.zeros(2, 6, 1), context).importance
    assert (
        importance[0, 1]
        == importance[0, 3]
        > importance[0, 2]
        == importance[0, 5]
        > importance[0, 0]
        > importance[0, 4]
        == 0
    )
    assert importance[1].eq(0).all()


def test_before_anything_ran_texture_stands_in(tiny):
    model, vae = tiny
    kept = [
        run(model, vae, sv.StepVAR((0, 0, 0, 0, 0.5), selector=s))[0].trace.scales[0].kept
        for s in ("update", "turn", "texture")
    ]
    assert torch.equal(kept[0], kept[2]) and torch.equal(kept[1], kept[2])


def test_turn_keeps_the_places_whose_direction_changed_most(tiny):
    """Not the largest change: a picture that grows where it stands has turned nowhere."""
    result, f_hats = run(*tiny, sv.StepVAR((0.5,), selector="turn"))
    turn = 1 - F.cosine_similarity(f_hats[-2], f_hats[-3], dim=1).flatten(1)
    kept = result.trace.scales[-1].kept.flatten(1)
    assert keeps_the_largest(turn, kept) and not torch.equal(
        kept, run(*tiny, sv.StepVAR((0.5,), selector="update"))[0].trace.scales[-1].kept.flatten(1)
    )
    f = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    grown, turned = 2 * f, f.clone()
    turned[..., 1, 0] *= -1
    assert update_turn(f, grown, sv.Scale(1, 2, 2)).abs().max() < 1e-6
    torch.testing.assert_close(
        update_turn(f, turned, sv.Scale(1, 2, 2)), torch.tensor([[0.0, 0.0, 2.0, 0.0]]), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("selector", ["update", "turn"])
@pytest.mark.parametrize("start", [2, 3, 4])
def test_a_resumed_run_keeps_the_same_tokens(tiny, start, selector):
    model, vae = tiny
    policy = sv.StepVAR((0.5, 0.5), selector=selector, fill="zero")
    whole, _ = run(model, vae, policy)
    again, _ = run(model, vae, policy, codes=whole, start_at_scale=start)
    assert all(torch.equal(a, b) for a, b in zip(whole.codes, again.codes))
    assert all(torch.equal(a.kept, b.kept) for a, b in zip(whole.trace.scales, again.trace.scales))


def test_video_maps_are_resized_over_time_too():
    change = torch.zeros(1, 2, 4, 4, 4)
    change[0, :, 3, 0, 0] = 1.0
    energy = update_energy(change, sv.Scale(2, 2, 2)).view(2, 2, 2)
    assert energy[1, 0, 0] == energy.max() > 0 and energy[0].eq(0).all()
