"""What the scale loop must not do: wait for the device, or compute again what is constant for an image."""

from collections import Counter

import pytest
import torch
from tiny_models import (
    SCHEDULE,
    hart_prompts,
    switti_prompts,
    tiny_hart_pair,
    tiny_infinity,
    tiny_switti_pair,
    tiny_vae,
    tiny_var,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import stepvar_core as sv
from stepvar_core.codecs.bits import BitwiseQuantizer
from stepvar_core.door import prepare
from stepvar_core.families.infinity.model import Infinity
from stepvar_core.sampler import scale_steps
from stepvar_core.token_sampling import Streams
from tests.bench.naive import naive_steps

POLICIES = {
    "dense": None,
    "sparse": sv.StepVAR((0.6, 0.5)),
    "anchor": sv.StepVAR((0.6, 0.5), fill="anchor", coverage=2),
    "cache": sv.StepVAR((0.6, 0.5), fill="cache", scope="sublayer"),
    "skipped": sv.StepVAR((1.0, 0.5), fill="zero"),
}


def infinity() -> Infinity:
    model = tiny_infinity()
    model.head.weight *= 0.02  # undecided bits: else all are settled before any number is drawn
    return model


def family(name: str, device: str = "cpu"):
    """(model, vae or None, condition) with everything on one device."""
    if name == "infinity":
        model = infinity().to(device)
        return model, None, model.text_condition(torch.ones(1, 4, 8))
    if name == "hart":
        model, vae = (part.to(device) for part in tiny_hart_pair())
        return model, vae, hart_prompts(model, 5)
    if name == "switti":
        model, vae = (part.to(device) for part in tiny_switti_pair())
        return model, vae, switti_prompts(model, 5)
    model = tiny_var().to(device)
    return model, tiny_vae().to(device), model.class_condition([1])


def negative_of(name: str, condition):
    """For the family that has none of its own."""
    return condition if name == "switti" else None


class Operations(TorchDispatchMode):
    """Names of the operations that ran while entered, and of those that brought a tensor from the CPU to the meta
    device."""

    def __init__(self):
        super().__init__()
        self.names, self.copies = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        devices = {a.device.type for a in args if isinstance(a, torch.Tensor)}
        if (
            isinstance(out, torch.Tensor)
            and "cpu" in devices | {out.device.type}
            and "meta" in devices | {out.device.type}
        ):
            self.copies.append(self.names[-1])
        return out


class FromPython(TorchFunctionMode):
    """Counts tensors made of Python numbers: on a GPU each is a copy that the loop waits for."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.tensor, torch.as_tensor, torch.from_numpy)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_greedy", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["var", "infinity", "hart", "switti"])
def test_the_loop_never_waits_for_the_device(name, policy, is_greedy):
    """On the meta device tensors have no values: to read one, to count one or to fetch one raises. What goes the other
    way is the random numbers of the pass, whose transfer from pinned memory nobody waits for, and nothing else."""
    model, vae, condition = family(name, "meta")
    settings = {"negative": negative_of(name, condition), "pruning": POLICIES[policy]}
    job = prepare(model, vae, condition, schedule=SCHEDULE, top_k=int(is_greedy), top_p=0.9, **settings)
    steps = scale_steps(job)
    next(steps)  # with it goes what is sent once: the condition, masks and the like
    with FromPython() as from_python, Operations() as operations:
        ran = sum(step.tokens_run > 0 for step in steps)
    expected = 0 if is_greedy else ran
    if name == "hart":  # Gumbel noise for every token drawn, and of the residual the start and four steps
        expected += expected + (0 if policy == "skipped" else 5)
    if name == "switti" and not is_greedy:  # Gumbel noise of the one scale whose codes are mixed
        expected += 1
    assert ran >= 2 and len(operations.copies) == expected and from_python.count == 0


@pytest.mark.parametrize("policy", ["dense", "sparse"])
@pytest.mark.parametrize("name", ["var", "infinity", "hart", "switti"])
def test_what_is_constant_for_an_image_is_computed_once(name, policy):
    model, vae, condition = family(name)
    calls = Counter()
    for part, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, out, part=part: calls.update([part]))
    negative = negative_of(name, condition)
    job = prepare(model, vae, condition, schedule=SCHEDULE, pruning=POLICIES[policy], negative=negative)
    steps = scale_steps(job)
    next(steps)
    with Operations() as operations:
        passes = 1 + len(list(steps))
    constant = [
        p
        for p in calls
        if p.startswith(
            ("text_", "shared_ada_lin", "head_nm.ada_lin", "class_emb", "context_", "diffloss.net.time_embed")
        )
        or "ada_lin" in p
        or p.endswith(("ca.mat_kv", "to_kv", "lvl_embed.mlp"))
        or p.startswith("crop_")
    ]
    assert len(constant) > 6 and all(calls[p] == 1 for p in constant)
    per_pass = [
        p
        for p in calls
        if p.endswith(("mat_qkv", "qkv_proj", "to_qkv", "fc1", "fc2", "gate_proj", "down_proj")) or p == "head"
    ]
    assert len(per_pass) > 6 and all(calls[p] == passes == 4 for p in per_pass)
    # no table of positions, no temperature, no concatenation: neither a bias nor a cache grows
    assert not {"cos", "sin", "polar", "cat", *(["exp"] if name != "hart" else [])} & set(
        operations.names
    )  # a residual has a variance
    if name == "var":
        assert calls["lvl_embed"] == 1


# counted when attention, token plans and the loop were one piece of code each: seams must cost nothing
OPERATIONS = {"var": 394, "infinity": 1030, "hart": 837}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_dense_loop_costs_no_operation_more_than_without_seams(name):
    model, vae, condition = family(name)
    steps = scale_steps(prepare(model, vae, condition, schedule=SCHEDULE, top_k=1))
    next(steps)
    with Operations() as operations:
        list(steps)
    assert len(operations.names) <= OPERATIONS[name]


@pytest.mark.parametrize("lengths", [(4,), (4, 9)], ids=["one", "two of different length"])
def test_a_loop_that_computes_everything_again_draws_the_same_bits(lengths):
    """Nothing is constant in the naive loop of the benchmark, nothing preallocated and nothing left out."""
    model, generator = infinity(), torch.Generator().manual_seed(2)
    texts = torch.randn(len(lengths), max(lengths), 8, generator=generator)
    condition = model.text_condition(texts, torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None])
    ours = sv.sample(model, None, condition, schedule=SCHEDULE, cfg=3.0, seed=5)
    theirs = list(naive_steps(model, model.own_quantizer(), condition, SCHEDULE, 3.0, 5))
    assert all(torch.equal(a, b) for a, b in zip(ours.codes, theirs, strict=True))
    assert 0.1 < torch.cat(ours.codes, 1).float().mean() < 0.9


@pytest.mark.parametrize("policy", POLICIES)
def test_the_cache_is_of_the_linears_type_and_never_holds_the_last_pass(policy):
    model, _, condition = family("infinity")
    model.place("cpu", torch.bfloat16)
    job = prepare(model, None, condition, schedule=SCHEDULE, pruning=POLICIES[policy])
    cache, running = job.new_cache(), [p for p in job.plans if not p.is_skipped]
    assert {t.dtype for pair in (*cache.stored, cache.workspace) for t in pair} == {torch.bfloat16}
    assert [keys.shape[2] for keys, _ in cache.stored] == [
        sum(p.layer_tokens(layer) for p in running[:-1]) for layer in range(5)
    ]
    assert cache.nbytes == sv.estimate(model, SCHEDULE, POLICIES[policy]).kv_bytes


def test_a_bit_is_drawn_by_one_comparison():
    quantizer, generator = BitwiseQuantizer(6), torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 500, 12, generator=generator)
    streams = Streams(4, (0, 1))
    with Operations() as operations:
        bits = quantizer.draw(quantizer.filtered(logits.to("meta"), 900, 0.0), streams, 2)
    arithmetic = [
        n
        for n in operations.names
        if n in ("sub", "sigmoid", "softmax", "exp", "log", "sort", "topk", "cumsum", "multinomial", "ge")
    ]
    assert arithmetic == ["sub", "ge"] and bits.shape == (2, 500, 6)
    # and it is the inverse CDF: 0 while the probability of 0 exceeds u
    u, odds = streams.uniform("token", 2, (500, 6)).double(), (logits[..., 1::2] - logits[..., ::2]).double()
    drawn, zero = quantizer.draw(quantizer.filtered(logits, 900, 0.0), streams, 2), (-odds).sigmoid()
    is_clear = (u - zero).abs() > 1e-6
    assert is_clear.float().mean() > 0.99 and torch.equal(drawn[is_clear] == 1, (u >= zero)[is_clear])
