"""Laws of the five slots: what any method may do to a run while it runs, on every family."""

import random
from dataclasses import dataclass, field, replace

import pytest
import subjects
import torch
from subjects import MAIN, Subject, same

import stepvar_core as sv
from stepvar_core.methods.fills import FILLS
from stepvar_core.methods.policy import About, PassPlan, Policy, PolicyRun, due, rows_per_pass
from stepvar_core.methods.stepvar import StepVARRun


@pytest.fixture(params=[*MAIN, "infinity-long", "switti-causal"])
def subject(request) -> Subject:
    return subjects.subject(request.param)


@dataclass(frozen=True, eq=False)
class Replanning(sv.StepVAR):
    """Shrinks later passes at random after every pass, and writes down what ran."""

    chance: int = field(default=0, kw_only=True)
    log: list = field(default_factory=list, kw_only=True)

    def begin(self, about, plans):
        return ReplanningRun(self, about, plans)


class ReplanningRun(StepVARRun):
    def __init__(self, policy, about, plans):
        super().__init__(policy, about, plans)
        self.random, self.decides_after = random.Random(policy.chance), range(len(plans))
        self.head_follows = policy.scope == "scale" and FILLS[policy.fill].on_head

    def observe(self, step):
        super().observe(step)
        self.policy.log.append((self.plans[step.index], step))
        later = range(step.index + 1, len(self.plans))
        for i in later:
            if self.random.random() < 0.3 and not self.plans[i].is_skipped:
                keep = self.random.randint(1, self.plans[i].fewest)
                kept = [min(n, keep) if layer in self.layers else n for layer, n in enumerate(self.plans[i].kept)]
                self.plans[i] = self.plans[i].keeping(kept, head=keep if self.head_follows else None)
        if later and self.random.random() < 0.15:
            skipped = self.random.choice(later)
            self.plans[skipped] = self.plans[skipped].skipped()
        if later and self.random.random() < 0.2:
            for i in later:
                self.plans[i] = replace(self.plans[i], halves="conditional")


@dataclass(frozen=True, eq=False)
class Planned(sv.StepVAR):
    """StepVAR's choice of tokens under plans made by hand."""

    plans: tuple = field(default=(), kw_only=True)

    def plan(self, about):
        return list(self.plans)


SETTINGS = [{}, {"fill": "zero", "selector": "update"}, {"fill": "delta", "coverage": 2}, {"scope": "sublayer"}]


@pytest.mark.parametrize("chance", range(4))
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_run_that_replans_is_the_run_it_ended_up_planning(subject, settings, chance):
    policy = Replanning((0.3,), chance=chance, **settings)
    result = subject.run(policy)
    plans = tuple(plan for plan, _ in policy.log)
    assert len(plans) == len(subject.schedule) and any(not plan.is_dense for plan in plans)
    assert [s.tokens_run for s in result.trace.scales] == [plan.fewest for plan in plans]
    for plan, traced in zip(plans, result.trace.scales):
        assert traced.kept.flatten(1).sum(1).tolist() == [plan.fewest] * 2
    planned = subject.run(Planned((0.3,), plans=plans, **settings))
    assert all(torch.equal(a, b) for a, b in zip(result.codes, planned.codes, strict=True))
    # not bit for bit: a half that nobody needs from the start on leaves fewer rows to a matrix product
    torch.testing.assert_close(result.latent, planned.latent, rtol=0, atol=1e-4)


@pytest.mark.parametrize("chance", range(3))
def test_a_run_that_replans_can_be_resumed(subject, chance):
    whole = subject.run(Replanning((0.3,), chance=chance))
    for k in range(1, len(subject.schedule) + 1, 2):
        again = subject.run(Replanning((0.3,), chance=chance), codes=whole, start_at_scale=k)
        assert all(torch.equal(a, b) for a, b in zip(again.codes, whole.codes, strict=True))
        assert [s.tokens_run for s in again.trace.scales] == [s.tokens_run for s in whole.trace.scales]


def test_a_dropped_half_takes_its_rows_along(subject):
    """What runs in the last pass is a batch of conditional rows, as if guidance had stopped there from the start."""

    class Dropping(PolicyRun):
        decides_after = (1,)

        def observe(self, step):
            if step.index == 1:
                self.plans[2:] = [replace(plan, halves="conditional") for plan in self.plans[2:]]

    class Drops(Policy):
        def begin(self, about, plans):
            return Dropping(plans)

    model, rows = subject.model, []
    hook = model.head.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    try:
        dropped = subject.run(Drops())
    finally:
        hook.remove()
    assert rows[-1] == 2 and max(rows) == 4
    late = sv.StepVAR((), guidance_late="conditional", guidance_late_scales=len(subject.schedule) - 2)
    assert same(dropped, subject.run(late)) and not same(dropped, subject.run(None))


def test_a_plan_that_grows_is_refused(subject):
    class Growing(PolicyRun):
        def observe(self, step):
            self.plans[-1] = PassPlan.dense(self.plans[-1].tokens, len(self.plans[-1].kept))

    class Grows(sv.StepVAR):
        def begin(self, about, plans):
            return Growing(plans)

    with pytest.raises(sv.StepVARError, match="grew during the run"):
        subject.run(Grows((0.5,)))


def test_a_half_that_was_left_out_is_not_asked_for_again():
    plans = [PassPlan.dense(n, 2) for n in (1, 4, 9)]
    plans[1] = replace(plans[1], halves="conditional")
    with pytest.raises(sv.StepVARError, match="Pass 3 asks for guidance both; an earlier one ran conditional alone"):
        due(PolicyRun(plans), plans, 2)
    plans[2] = replace(plans[2], halves="conditional")
    assert due(PolicyRun(plans), plans, 2) is plans[2]


def test_the_null_method_is_the_dense_run(subject):
    assert same(subject.run(Policy()), subject.run(None))
    about = About.of(subject.model, subject.schedule, 2)
    run = Policy().begin(about, Policy().plan(about))
    assert all(plan.is_dense and plan.fewest == plan.head == plan.tokens for plan in run.plans)
    cache = object()
    assert run.memory(subject.schedule.passes[:1], cache) is cache


def test_rows_follow_the_halves():
    """Both halves until nothing needs the second one; a skipped pass runs none."""
    dense = [PassPlan.dense(n, 1) for n in (1, 4, 9, 16)]
    halved = [replace(dense[-1], halves="conditional")]
    assert rows_per_pass(dense, [1, 1, 1, 1], 2) == [4, 4, 4, 4]
    assert rows_per_pass(dense, [1, 1, 0, 0], 2) == [4, 4, 2, 2]
    assert rows_per_pass(dense[:3] + halved, [1, 1, 1, 1], 2) == [4, 4, 4, 2]
    assert rows_per_pass([*dense[:3], dense[3].skipped()], [0, 0, 0, 1], 2) == [2, 2, 2, 0]
    late = replace(dense[-1], halves="unconditional")
    assert rows_per_pass([*dense[:3], late], [1, 0, 0, 0], 2) == [4, 4, 4, 2]
    assert rows_per_pass([*dense[:3], late], [0, 0, 0, 0], 2) == [2, 2, 2, 2]
