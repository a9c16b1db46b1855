"""Nothing survives a run: its memory goes with it, each scale goes with the next, and the model is what it was."""

import gc
import weakref

import pytest
import torch
from subjects import CACHED, FEW, KINDS, MAIN, OFF, POLICIES, PRUNED, Noting, cases, every_subject, finished

import stepvar_core as sv
from stepvar_core.memory import KVCache
from stepvar_core.methods.kept import Earlier
from stepvar_core.sampler import scale_steps


@cases(main=KINDS, variants=FEW)
def test_nothing_is_left_of_a_run(one, policy):
    assert_nothing_left(one, policy, "finished")


@pytest.mark.parametrize("how", ["closed", "raised"])
@cases(main=(*FEW, "quality"), variants=FEW[:2])
def test_nothing_is_left_of_a_run_that_was_stopped(one, policy, how):
    assert_nothing_left(one, policy, how)


def assert_nothing_left(one, policy, how):
    """By reference counting alone: no collector has to come round for a graphics card."""
    noting, at = Noting(POLICIES[policy]), len(one.schedule) // 2

    def watch(step: sv.ScaleStep) -> None:
        if step.index == at:
            assert any(type(held) is KVCache for held in noting.alive)
            if how == "raised":
                raise KeyboardInterrupt

    gc.disable()
    try:
        if how == "closed":
            steps = scale_steps(one.job(noting, keep_scores=True))
            for step in steps:
                watch(step)
                if step.index == at:
                    break
            del step
            steps.close()
        else:
            try:
                one.run(noting, keep_scores=policy == PRUNED, on_scale=watch)
            except KeyboardInterrupt:
                pass
        assert len(noting.held) >= 2 and noting.alive == []
    finally:
        gc.enable()


@pytest.mark.parametrize("policy", [CACHED, "fastvar"])
@every_subject(MAIN)
def test_no_object_of_a_run_is_left_anywhere(one, policy):
    """What a fill remembers and the cache, sought among all objects there are."""
    gc.collect()
    gc.disable()
    try:
        one.run(POLICIES[policy])
        assert not [held for held in gc.get_objects() if type(held) in (Earlier, KVCache)]
    finally:
        gc.enable()


@cases(main=(*FEW, "quality"), variants=FEW)
def test_each_scale_is_freed_when_the_next_one_is_done(one, policy):
    """Logits and f_hat of a large model are the biggest tensors of a run: a trace may not hold on to them."""
    logits, f_hats = [], []

    def watch(step: sv.ScaleStep) -> None:
        assert not any(held() is not None for held in logits)
        # the loop itself reads the last f_hat; a scale that is skipped makes none, and a method may hold two
        assert not any(held() is not None for held in f_hats[: -1 if step.tokens_run else -2])
        if step.tokens_run:
            logits.append(weakref.ref(step.logits))
            f_hats.append(weakref.ref(step.f_hat))

    result = one.run(POLICIES[policy], on_scale=watch)
    assert len(f_hats) > 1 and result.latent is f_hats[-1]()


@every_subject()
def test_a_stopped_loop_leaves_the_caller_in_its_own_grad_mode(one):
    steps = scale_steps(one.job())
    next(steps)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    steps.close()


@cases(main=KINDS, variants=FEW)
def test_a_model_is_used_and_not_changed(one, policy):
    parts = [part for part in (one.model, one.vae) if part is not None]
    before = {id(part): {key: value.clone() for key, value in part.state_dict().items()} for part in parts}
    attributes = {id(module): set(vars(module)) for part in parts for module in part.modules()}
    one.run(POLICIES[policy])
    for part in parts:
        assert all(torch.equal(before[id(part)][key], value) for key, value in part.state_dict().items())
        assert all(attributes[id(module)] == set(vars(module)) for module in part.modules())


@every_subject()
def test_pictures_follow_one_another_unchanged(one):
    """Another shape and batch in between: upstream's FastVAR keeps its caches on the model."""
    for policy in (*FEW, "sparsevar", "lazyvar") if one.policies is None else one.policies[:4]:
        one.run(POLICIES[policy], (1,), schedule=sv.ScaleSchedule([(1, 1, 1), (1, 3, 2), (1, 4, 7)]), seed=5)
        again = one.run(POLICIES[policy])
        assert torch.equal(again.latent, finished(one, policy).latent)
    assert torch.equal(one.run().latent, finished(one, OFF).latent)
