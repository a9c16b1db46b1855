"""The cache: as large as computed, equal to attention over everything so far, and the last pass costs no slot."""

import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis.strategies import booleans, data, integers, lists, sampled_from
from tiny_models import SCHEDULE

import stepvar_core as sv
from stepvar_core.door import prepare
from stepvar_core.memory import KVCache, cache_bytes, everything_before

HEADS, DIM = 2, 4


def tokens(generator, rows: int, length: int) -> torch.Tensor:
    return torch.randn(rows, HEADS, length, DIM, generator=generator)


@settings(max_examples=30)
@given(
    lengths=lists(lists(integers(1, 5), min_size=3, max_size=3), min_size=1, max_size=3),
    late=integers(0, 2),
    seed=integers(0, 99),
)
@example(lengths=[[1, 5, 3], [1, 2, 2]], late=1, seed=0)
def test_attention_sees_everything_so_far(lengths, late, seed):
    """Layers of different lengths; from pass `late` on only the second half of the rows runs."""
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(lengths, everything_before(3), 4, HEADS, DIM, torch.float32, "cpu")
    remembered = [[] for _ in lengths]
    for i in range(3):
        memory = cache.opened([i], slice(2, 4) if i >= late else slice(0, 4))
        rows = 2 if i >= late else 4
        for layer, per_pass in enumerate(lengths):
            q, k, v = (tokens(generator, rows, per_pass[i]) for _ in range(3))
            remembered[layer] = [(a[-rows:], b[-rows:]) for a, b in remembered[layer]] + [(k, v)]
            keys, values = (torch.cat(part, 2) for part in zip(*remembered[layer]))
            expected = F.scaled_dot_product_attention(q, keys, values, scale=0.7)
            torch.testing.assert_close(memory.attend(layer, q, k, v, scale=0.7), expected)


@settings(max_examples=30)
@given(
    lengths=lists(lists(integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=4).filter(
        lambda ls: len({len(x) for x in ls}) == 1
    ),
    rows=integers(1, 4),
)
def test_it_is_as_large_as_computed_and_never_grows(lengths, rows):
    for dtype in (torch.float32, torch.bfloat16):
        sees = everything_before(len(lengths[0]))
        cache = KVCache(lengths, sees, rows, HEADS, DIM, dtype, "cpu")
        assert cache.nbytes == cache_bytes(lengths, sees, rows, HEADS, DIM, dtype.itemsize)
        # what any pass reads again, plus one workspace for the pass nobody reads again
        assert [k.shape[2] for k, _ in cache.stored] == [sum(per_pass[:-1]) for per_pass in lengths]
        largest = max(sum(per_pass) for per_pass in lengths)
        assert cache.workspace[0].shape[2] == (largest if len(lengths[0]) > 1 else 0)  # alone it lays nothing together


def test_the_last_pass_leaves_nothing():
    cache = KVCache([[2, 3]], everything_before(2), 1, HEADS, DIM, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(0)
    first = tokens(generator, 1, 2)
    cache.opened([0], slice(0, 1)).attend(0, first, first, first)
    stored = cache.stored[0][0].clone()
    last = tokens(generator, 1, 3)
    cache.opened([1], slice(0, 1)).attend(0, last, last, last)
    assert torch.equal(cache.stored[0][0], stored) and torch.equal(stored, first)


@settings(max_examples=60)
@given(data=data())
def test_a_run_reads_what_it_sees_and_nothing_else(data):
    """Any visibility, fewer key heads than query heads, several runs at once, runs that are shorter than planned or do
    not come: attention is that over the keys listed, and no more is kept than somebody reads."""
    runs = data.draw(integers(1, 5))
    lengths = [data.draw(lists(integers(1, 4), min_size=runs, max_size=runs)) for _ in range(2)]
    sees = [[i for i in range(run) if data.draw(booleans())] for run in range(runs)]
    ran = [data.draw(integers(0, 4)) for _ in range(runs)]  # tokens at most; 0 = the run does not come
    together = data.draw(integers(1, runs)) if all(n == 4 for n in ran) else 1
    generator, heads = torch.Generator().manual_seed(data.draw(integers(0, 99))), data.draw(sampled_from([1, 2]))
    cache = KVCache(lengths, sees, 2, heads, DIM, torch.float32, "cpu")
    assert cache.nbytes == cache_bytes(lengths, sees, 2, heads, DIM, 4)
    read = {i for seen in sees for i in seen}
    assert [k.shape[2] for k, _ in cache.stored] == [sum(per_run[i] for i in read) for per_run in lengths]
    known = [{}, {}]
    for group in (range(together), *([i] for i in range(together, runs))):
        group = [run for run in group if ran[run]]
        if not group:
            continue
        memory = cache.opened(group, slice(0, 2))
        for layer, per_run in enumerate(lengths):
            own = [min(per_run[run], ran[run]) for run in group]
            q = torch.randn(2, HEADS, sum(own), DIM, generator=generator)
            k, v = (torch.randn(2, heads, sum(own), DIM, generator=generator) for _ in range(2))
            answer = memory.attend(layer, q, k, v, scale=0.7)
            for run, k_run, v_run in zip(group, k.split(own, 2), v.split(own, 2)):
                known[layer][run] = (k_run, v_run)
            for run, q_run, found in zip(group, q.split(own, 2), answer.split(own, 2)):
                seen = [known[layer][i] for i in (*sees[run], run) if i in known[layer]]
                keys, values = (torch.cat(part, 2).repeat_interleave(HEADS // heads, 1) for part in zip(*seen))
                expected = ((q_run @ keys.transpose(-1, -2)) * 0.7).softmax(-1) @ values
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_run_allocates_what_the_estimate_says(tiny):
    model, vae = tiny
    for pruning in (
        None,
        sv.StepVAR((0.7, 0.4)),
        sv.StepVAR((0.7, 0.4), first_layer=1),
        sv.StepVAR((1, 0.5)),
        sv.StepVAR((0.5, 1)),
        sv.StepVAR((0.5,), guidance_late="conditional", guidance_late_scales=2),
    ):
        for batch, cfg in ((1, 0.0), (3, 2.0)):
            job = prepare(model, vae, model.class_condition([1] * batch), schedule=SCHEDULE, pruning=pruning, cfg=cfg)
            assert job.new_cache().nbytes == sv.estimate(model, SCHEDULE, pruning, cfg=cfg, batch=batch).kv_bytes
