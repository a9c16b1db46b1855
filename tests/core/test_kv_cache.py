"""The cache: as large as computed, equal to attention over everything so far, and the last pass costs no slot."""

import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis.strategies import integers, lists
from tiny_models import SCHEDULE

import stepvar_core as sv
from stepvar_core.memory import KVCache, cache_bytes
from stepvar_core.sampler import prepare

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
    cache = KVCache(lengths, 4, HEADS, DIM, torch.float32, "cpu")
    remembered = [[] for _ in lengths]
    for i in range(3):
        cache.rows = slice(2, 4) if i >= late else slice(0, 4)
        rows = 2 if i >= late else 4
        for layer, per_pass in enumerate(lengths):
            q, k, v = (tokens(generator, rows, per_pass[i]) for _ in range(3))
            remembered[layer] = [(a[-rows:], b[-rows:]) for a, b in remembered[layer]] + [(k, v)]
            keys, values = (torch.cat(part, 2) for part in zip(*remembered[layer]))
            expected = F.scaled_dot_product_attention(q, keys, values, scale=0.7)
            torch.testing.assert_close(cache.attend(layer, q, k, v, scale=0.7), expected)


@settings(max_examples=30)
@given(
    lengths=lists(lists(integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=4).filter(
        lambda ls: len({len(x) for x in ls}) == 1
    ),
    rows=integers(1, 4),
)
def test_it_is_as_large_as_computed_and_never_grows(lengths, rows):
    for dtype in (torch.float32, torch.bfloat16):
        cache = KVCache(lengths, rows, HEADS, DIM, dtype, "cpu")
        assert cache.nbytes == cache_bytes(lengths, rows, HEADS, DIM, dtype.itemsize)
        # what any pass reads again, plus one workspace for the pass nobody reads again
        assert [k.shape[2] for k, _ in cache.stored] == [sum(per_pass[:-1]) for per_pass in lengths]
        assert cache.workspace[0].shape[2] == max(sum(per_pass) for per_pass in lengths)


def test_the_last_pass_leaves_nothing():
    cache = KVCache([[2, 3]], 1, HEADS, DIM, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(0)
    first = tokens(generator, 1, 2)
    cache.attend(0, first, first, first)
    stored = cache.stored[0][0].clone()
    last = tokens(generator, 1, 3)
    cache.attend(0, last, last, last)
    assert torch.equal(cache.stored[0][0], stored) and torch.equal(stored, first)


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
