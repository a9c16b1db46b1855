"""Facts of the VAR family on a seeded two-layer model: attention against a run without a cache, its ramp of guidance,
the null class, and the quantiser. The laws that hold for every family are in test_laws, test_resuming and others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers
from tiny_models import SCHEDULE, tiny_var

import stepvar_core as sv
from stepvar_core.families.var.model import ClassCondition
from stepvar_core.memory import BlockCausal
from stepvar_core.tokens import DENSE


def run(pair, labels=(1, 3), **arguments) -> sv.Result:
    model, vae = pair
    settings_ = {"schedule": SCHEDULE, "cfg": 2.0, "top_k": 12, "top_p": 0.9, **arguments}
    return sv.sample(model, vae, model.class_condition(labels), **settings_)


def same(one: sv.Result, other: sv.Result) -> bool:
    return torch.equal(one.latent, other.latent) and all(
        torch.equal(a, b) for a, b in zip(one.codes, other.codes, strict=True)
    )


@pytest.mark.parametrize("ratios", [(), (0.7,), (0.7, 0.4), (0.5, 1.0), (0.8, 0.0, 0.5)])
def test_only_kept_tokens_run_and_are_remembered(tiny, ratios):
    """The reference: all kept tokens of all scales at once under a block-causal mask, without a cache (DESIGN 2.8)."""
    model, vae = tiny
    seen = {}
    result = run(tiny, pruning=sv.StepVAR(ratios), cfg=0.0, on_scale=lambda s: seen.update({s.index: s.logits}))
    quantizer, f_hat, streams, kept_K = vae.quantizer_on("cpu"), vae.quantize.empty(2, SCHEDULE, "cpu"), [], []
    lengths = [s.tokens_run for s in result.trace.scales]
    with torch.inference_mode():
        memory = BlockCausal([n for n in lengths if n], "cpu")
        reference = model.begin(model.class_condition([1, 3]), None, "cpu")
        for step, codes, traced in zip(SCHEDULE.passes, result.codes, result.trace.scales):
            if traced.is_skipped:
                continue
            features = quantizer.next_input(f_hat, step, SCHEDULE) if step.index else None
            x_BLC = model.embed(reference, features, step, SCHEDULE)
            kept_BK = torch.stack([row.flatten().nonzero().flatten() for row in traced.kept])
            streams.append(x_BLC.gather(1, kept_BK[..., None].expand(-1, -1, x_BLC.shape[-1])))
            kept_K.append(kept_BK.shape[1])
            f_hat = f_hat + quantizer.contribution(quantizer.lookup(codes, step.scale), step, SCHEDULE)
        x_RLC = model.blocks_forward(reference, torch.cat(streams, 1), DENSE, memory)
        logits = model.logits(reference, x_RLC, slice(0, 2)).split(kept_K, 1)
    for expected, index in zip(logits, [i for i, n in enumerate(lengths) if n]):
        torch.testing.assert_close(seen[index], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.latent, f_hat, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shared_aln", [False, True])
def test_cached_attention_is_uncached_attention(tiny, shared_aln):
    """Step by step with the cache, and the whole schedule at once as in training."""
    model, vae = tiny_var(shared_aln=shared_aln), tiny[1]
    schedule, seen = model.schedule(), []
    result = run((model, vae), schedule=schedule, cfg=0.0, on_scale=lambda s: seen.append(s.logits))
    partial = [vae.quantize.decode_codes(result.codes[: n + 1], schedule) for n in range(len(schedule) - 1)]
    inputs = [
        vae.quantize.next_input(f, step, schedule).flatten(2).transpose(1, 2)
        for f, step in zip(partial, schedule.passes[1:])
    ]
    with torch.no_grad():
        logits_BLV = model.teacher_forced(torch.tensor([1, 3]), torch.cat(inputs, 1))
    torch.testing.assert_close(torch.cat(seen, 1), logits_BLV, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fill", ["nearest", "cache"])
def test_a_flat_picture_of_a_batch_is_the_single_one(tiny, fill):
    """Label 3 is flat when nothing is drawn at random: many tokens of equal energy, of which the first stay."""
    settings_ = {"pruning": sv.StepVAR((0.7, 0.4), selector="update", fill=fill), "cfg": 0.0, "top_k": 1}
    both = run(tiny, **settings_)
    for row, label in enumerate((1, 3)):
        single = run(tiny, (label,), **settings_)
        assert all(torch.equal(s[0], b[row]) for s, b in zip(single.codes, both.codes))
        torch.testing.assert_close(single.latent[0], both.latent[row], rtol=0, atol=1e-4)


# guidance ------------------------------------------------------------------------------------------


def test_a_list_of_strengths_is_final_and_a_number_ramps(tiny):
    assert same(run(tiny, cfg=3.0), run(tiny, cfg=[0.0, 1.0, 2.0, 3.0]))
    assert not same(run(tiny, cfg=3.0), run(tiny, cfg=[3.0] * 4))
    assert same(run(tiny, cfg=0.0), run(tiny, cfg=[0.0] * 4))


def test_guidance_is_a_line_through_both_rows(tiny):
    seen, rows = {}, {}
    first = run(
        tiny,
        (1,),
        cfg=[0.0, 2.5],
        end_at_scale=2,
        schedule=sv.ScaleSchedule([(1, 1, 1), (1, 2, 3)]),
        on_scale=lambda s: seen.update({s.index: s.logits}),
    )
    for label in (1, -1):
        run(
            tiny,
            (label,),
            cfg=0.0,
            schedule=sv.ScaleSchedule([(1, 1, 1), (1, 2, 3)]),
            codes=first.codes,
            start_at_scale=1,
            on_scale=lambda s, label=label: rows.update({label: s.logits}),
        )
    torch.testing.assert_close(seen[1], 3.5 * rows[1] - 2.5 * rows[-1], rtol=1e-4, atol=1e-4)


def test_an_own_negative_takes_the_null_class_place(tiny):
    model = tiny[0]
    assert same(run(tiny, negative=model.class_condition([-1, -1])), run(tiny))
    assert not same(run(tiny, negative=model.class_condition([2, 2])), run(tiny))


# conditions and codes -----------------------------------------------------------------------------


@settings(max_examples=25)
@given(h=integers(1, 7), w=integers(1, 7), seed=integers(0, 2**20))
def test_a_code_looked_up_is_found_again(tiny, h, w, seed):
    quantizer, schedule = tiny[1].quantize, sv.ScaleSchedule([(1, h, w)])
    ids = torch.randint(quantizer.vocab_size, (2, h * w), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(quantizer.encode(quantizer.lookup(ids, schedule.final), schedule)[0], ids)


def test_a_blank_code_has_no_features(tiny):
    """Else resizing and phi would smear code 0 from blank cells into their neighbours."""
    quantizer, scale = tiny[1].quantize, sv.Scale(1, 2, 3)
    h = quantizer.lookup(torch.tensor([[3, -1, 0, -1, 2, 1]]), scale)[0].flatten(1).T
    assert torch.equal(h[[1, 3]], torch.zeros(2, 8)) and torch.equal(h[[0, 2]], quantizer.embedding.weight[[3, 0]])


def test_conditions(tiny):
    model = tiny[0]
    assert model.class_condition([0, 4]).batch == 2
    assert model.class_condition(torch.tensor([-1])).labels_B.tolist() == [5]
    assert model.unconditional(ClassCondition(torch.tensor([1, 2]))).labels_B.tolist() == [5, 5]
