"""Two models share the scales of a picture."""

import pytest
import torch
from tiny_models import EDGES, SCHEDULE, prompts, tiny_infinity, tiny_pair, tiny_var

import stepvar_core as sv

SAMPLED = {"top_k": 12, "top_p": 0.9, "cfg": 2.0, "seed": 4}


@pytest.fixture(scope="module")
def models():
    model, vae = tiny_pair()
    return model, tiny_var(depth=1, seed=9), vae


@pytest.mark.parametrize("arguments", [{}, {"pruning": sv.StepVAR((0.6, 0.4))}, {"options": {"smooth": True}}])
@pytest.mark.parametrize("at", range(1, len(EDGES) + 1))
def test_a_model_that_works_with_itself_draws_its_own_picture(models, at, arguments):
    model, _, vae = models
    cond = model.class_condition([1, 3])
    whole = sv.sample(model, vae, cond, schedule=model.schedule(), **SAMPLED, **arguments)
    seen = []
    shared = sv.collaborate(
        model, model, vae, cond, at=at, on_scale=lambda s: seen.append(s.index), **SAMPLED, **arguments
    )
    assert all(torch.equal(a, b) for a, b in zip(shared.codes, whole.codes, strict=True))
    torch.testing.assert_close(shared.latent, whole.latent, rtol=0, atol=1e-4)
    assert seen == list(range(len(EDGES)))
    assert [s.tokens_run for s in shared.trace.scales] == [s.tokens_run for s in whole.trace.scales]
    assert not any(s.is_forced for s in shared.trace.scales)


def test_each_model_draws_its_own_scales(models):
    """The first scales are the large model's, the others what the small one makes of them."""
    big, small, vae = models
    cond = big.class_condition([1, 3])
    alone = {model: sv.sample(model, vae, cond, schedule=SCHEDULE, **SAMPLED) for model in (big, small)}
    shared = sv.collaborate(big, small, vae=vae, cond=cond, at=2, schedule=SCHEDULE, **SAMPLED)
    assert all(torch.equal(a, b) for a, b in zip(shared.codes[:2], alone[big].codes[:2]))
    resumed = sv.sample(small, vae, cond, schedule=SCHEDULE, codes=alone[big], start_at_scale=2, **SAMPLED)
    assert all(torch.equal(a, b) for a, b in zip(shared.codes, resumed.codes, strict=True))
    assert not torch.equal(shared.codes[3], alone[big].codes[3])


def test_what_cannot_work_together_is_refused(models):
    big, small, vae = models
    cond = big.class_condition([1])
    for at in (0, len(EDGES) + 1, True, "2"):
        with pytest.raises(sv.OptionError, match="at is"):
            sv.collaborate(big, small, vae, cond, at=at)
    with pytest.raises(sv.OptionError, match="end_at_scale cannot be given"):
        sv.collaborate(big, small, vae, cond, at=2, end_at_scale=3)
    with pytest.raises(sv.ScheduleMismatch):
        sv.collaborate(big, tiny_var(edges=(1, 2)), vae, cond, at=1, schedule=SCHEDULE)
    other = tiny_infinity()
    with pytest.raises(sv.StepVARError, match="predicts"):
        sv.collaborate(other, small, vae, prompts(other, 4), at=1, schedule=SCHEDULE)
