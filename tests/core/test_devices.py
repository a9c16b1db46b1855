"""The scale loop never waits for its device, and everything it reads is there.

The models run on torch's meta device, whose tensors hold no numbers: reading one on the host (`item`, `cpu`, indexing
by a mask) raises, which on a GPU would stop the queue. A dispatch mode refuses operations that mix devices.
"""

import copy
from dataclasses import asdict, replace

import pytest
import torch
from tiny_models import (
    hart_prompts,
    prompts,
    switti_prompts,
    tiny_hart_pair,
    tiny_infinity,
    tiny_pair,
    tiny_switti_pair,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import stepvar_core as sv
from stepvar_core import methods
from stepvar_core.codes import Given
from stepvar_core.door import prepare
from stepvar_core.methods.fills import FILLS
from stepvar_core.methods.selectors import SELECTORS
from stepvar_core.methods.stepvar import SCOPES
from stepvar_core.sampler import scale_steps

METHODS = {method.id: method for method in methods.METHODS}

SCHEDULE = sv.ScaleSchedule([(1, 1, 1), (1, 2, 3), (1, 4, 4)])
META = torch.device("meta")
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OneDevice(TorchDispatchMode):
    """Raises where an operation other than a copy gets tensors of two devices; a CPU tensor without axes is a
    number."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        devices = {x.device for x in tensors if x.ndim or x.device.type != "cpu"}
        if len(devices) > 1 and func not in COPIES:
            raise RuntimeError(f"{func} got tensors on {sorted(map(str, devices))}")
        return func(*args, **(kwargs or {}))


def negative_of(model, condition):
    """For the family that has none of its own."""
    return condition if model.family == "switti" else None


def run_without_numbers(model, vae, condition, **arguments) -> list:
    job = prepare(
        model, vae, condition, schedule=SCHEDULE, negative=negative_of(model, condition), keep_scores=True, **arguments
    )
    quantizer = copy.deepcopy(job.quantizer)
    quantizer = quantizer.to(META) if isinstance(quantizer, torch.nn.Module) else quantizer
    given = {name: [t if t is None else t.to(META) for t in getattr(job.given, name)] for name in asdict(job.given)}
    job = replace(
        job,
        model=copy.deepcopy(model).to(META),
        quantizer=quantizer,
        device=META,
        about=replace(job.about, device=META),
        given=Given(**given),
        parts={i: tuple(part.to(META) for part in parts) for i, parts in job.parts.items()},
    )
    with OneDevice():
        return [(s.codes.device, s.f_hat.device, s.kept.device) for s in scale_steps(job)]


def families():
    model, vae = tiny_pair()
    yield pytest.param(model, vae, model.class_condition([1, 2]), id="var")
    model, vae = tiny_hart_pair()
    yield pytest.param(model, vae, hart_prompts(model, 3, 5), id="hart")
    model, vae = tiny_switti_pair()
    yield pytest.param(model, vae, switti_prompts(model, 3, 5), id="switti")
    for patch in (1, 2):
        model = tiny_infinity(patch)
        yield pytest.param(model, None, prompts(model, 3, 5), id=f"infinity-{patch}")


POLICIES = [
    *(sv.StepVAR((0.5,), scope=scope, fill=fill) for scope in SCOPES for fill in FILLS),
    *(sv.StepVAR((0.5,), selector=name) for name in SELECTORS),
    sv.StepVAR((0.5,), coverage=2),
    sv.StepVAR((0.5,), protect=torch.ones(1, 4, 4), protect_mode="keep"),
    sv.StepVAR((0.5,), guidance_late="conditional", guidance_late_scales=2),
]


@pytest.mark.parametrize(("model", "vae", "condition"), [*families()])
def test_sampling_waits_for_nothing_and_finds_all_where_it_runs(model, vae, condition):
    for arguments in ({}, {"top_k": 1}, {"top_k": 5 if vae else 0, "top_p": 0.9}):
        for devices in run_without_numbers(model, vae, condition, **arguments):
            assert set(devices) == {META}


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.scope}-{p.fill}-{p.selector}-{p.coverage}")
@pytest.mark.parametrize(("model", "vae", "condition"), [p for p in families() if p.id != "infinity-2"])
def test_pruning_neither(model, vae, condition, policy):
    for devices in run_without_numbers(model, vae, condition, pruning=policy):
        assert set(devices) == {META}


# where each picture decides, a method reads numbers between scales (PolicyRun.observe), and none are there
@pytest.mark.parametrize("method", [name for name in METHODS if name != "ldpruning"])
@pytest.mark.parametrize(("model", "vae", "condition"), [*families()][:2])
def test_accelerators_neither(model, vae, condition, method):
    for devices in run_without_numbers(model, vae, condition, pruning=sv.accelerator(method)):
        assert set(devices) == {META}


@pytest.mark.parametrize(("model", "vae", "condition"), [*families()])
def test_forced_and_masked_runs_neither(model, vae, condition):
    codes = sv.sample(model, vae, condition, schedule=SCHEDULE, negative=negative_of(model, condition)).codes
    mask = torch.zeros(1, 8, 8)
    mask[:, :4] = 1
    for arguments in ({"start_at_scale": 2}, {"mask": mask}):
        assert len(run_without_numbers(model, vae, condition, codes=codes, **arguments)) == len(SCHEDULE)


def test_several_steps_for_one_scale_neither():
    model, vae = tiny_hart_pair()
    for options in ({"maskgit_steps": 3}, {"maskgit_steps": 3, "residual": False, "smooth": False}):
        assert len(run_without_numbers(model, vae, hart_prompts(model, 3, 5), options=options)) == len(SCHEDULE)


def test_the_watch_sees_what_it_should():
    with pytest.raises(RuntimeError, match="got tensors on"), OneDevice():
        torch.zeros(2, 3, device=META).gather(1, torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(2, device=META).sum().item()
