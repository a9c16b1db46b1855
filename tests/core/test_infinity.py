"""Laws of the Infinity family on a seeded five-layer model: pruning, batches, resuming, bits, cost."""

import copy
import itertools
import json

import pytest
import torch
from infinity_runs import GOLDEN
from tiny_models import LONGEST_TEXT, TEXT_DIM, prompts, tiny_infinity
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import stepvar_core as sv
from stepvar_core.codecs.bits import NOTHING, BitwiseQuantizer
from stepvar_core.families.infinity.model import Infinity, InfinityConfig
from stepvar_core.methods.fills import FILLS
from stepvar_core.methods.policy import HALVES, About
from stepvar_core.methods.presets import PRESETS
from stepvar_core.methods.stepvar import SCOPES
from stepvar_core.token_sampling import Streams

SCHEDULE = sv.ScaleSchedule([(1, 1, 1), (1, 2, 3), (1, 4, 3), (1, 5, 7)])


@pytest.fixture(scope="module", params=[1, 2], ids=["plain", "patched"])
def model(request) -> Infinity:
    return tiny_infinity(request.param)


def run(model, condition, **arguments):
    return sv.sample(
        model, None, condition, schedule=SCHEDULE, **{"seed": 3, "temperature": 4.0, "cfg": 2.0, **arguments}
    )


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.codes, b.codes, strict=True)) and torch.equal(a.latent, b.latent)


def test_what_a_run_gives(model):
    result = run(model, prompts(model, 4, 9))
    bits = model.config.bits
    assert [tuple(c.shape) for c in result.codes] == [(2, s.tokens, bits) for s in SCHEDULE]
    assert (
        all(c.dtype == torch.uint8 and c.max() <= 1 for c in result.codes)
        and 0.2 < torch.cat(result.codes, 1).float().mean() < 0.8
    )
    assert tuple(result.latent.shape) == (2, *model.latent_shape(SCHEDULE)) and result.latent.dtype == torch.float32
    torch.testing.assert_close(
        model.own_quantizer().decode_codes(result.codes, SCHEDULE), result.latent, rtol=0, atol=1e-6
    )


def test_zero_ratios_change_no_bit(model):
    assert same(run(model, prompts(model, 4, 9)), run(model, prompts(model, 4, 9), pruning=sv.StepVAR((0.0, 0.0, 0.0))))


@pytest.mark.parametrize(("scope", "fill"), list(itertools.product(SCOPES, FILLS)))
def test_every_fill_in_both_scopes(model, scope, fill):
    pruning = sv.StepVAR((0.6, 0.5), scope=scope, fill=fill)
    result = run(model, prompts(model, 4, 9), pruning=pruning)
    # StepVAR reads the family's features at block 3 unless told otherwise: only blocks 3 and 4 run on fewer tokens
    plans = pruning.plan(About.of(model, SCHEDULE))
    assert [[kept < p.tokens for kept in p.kept] for p in plans] == [[False] * 5] * 2 + [[False] * 3 + [True] * 2] * 2
    for trace, codes, scale in zip(result.trace.scales, result.codes, SCHEDULE):
        kept = trace.kept.flatten(1)
        assert (trace.tokens_run < scale.tokens) == (scale.tokens >= 12) and kept.sum(1).eq(trace.tokens_run).all()
        is_nothing = (codes == NOTHING).all(-1)
        assert torch.equal(is_nothing, ~kept if fill == "zero" and scope == "scale" else torch.zeros_like(kept))
    assert result.latent.isfinite().all()
    if fill == "zero" and scope == "scale":
        # with every earlier scale's part taken away, pruned cells of the last scale hold exact zeros
        quantizer = model.own_quantizer()
        last = result.latent - quantizer.decode_codes(result.codes[:-1], SCHEDULE)
        cells = torch.nn.functional.interpolate(
            result.trace.scales[-1].kept.float(), scale_factor=quantizer.patch, mode="nearest-exact"
        )
        assert last.masked_select(cells.expand_as(last) == 0).abs().max() < 1e-6 < last.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("scope", "fill"), list(itertools.product(SCOPES, FILLS)))
def test_every_fill_in_half_precision(model, scope, fill, dtype):
    """The stream is float32 and what blocks add to it is not."""
    half = copy.deepcopy(model).place("cpu", dtype)
    assert (
        run(half, prompts(half, 4, 9), pruning=sv.StepVAR((0.6, 0.5), scope=scope, fill=fill)).latent.isfinite().all()
    )


def test_first_scales_are_untouched_by_later_pruning(model):
    dense, pruned = run(model, prompts(model, 4)), run(model, prompts(model, 4), pruning=sv.StepVAR((0.5,)))
    assert all(torch.equal(a, b) for a, b in zip(dense.codes[:3], pruned.codes[:3])) and not torch.equal(
        dense.codes[3], pruned.codes[3]
    )


def test_a_skipped_scale_leaves_no_codes(model):
    result = run(model, prompts(model, 4), pruning=sv.StepVAR((1.0, 0.5)))
    assert tuple(result.codes[-1].shape) == (1, 0, model.config.bits) and result.trace.scales[-1].is_skipped


@pytest.mark.parametrize(
    "arguments",
    [{}, {"pruning": sv.StepVAR((0.6, 0.5))}, {"cfg": [1, 1, 3, 1]}, {"options": {"guidance_layers": [-2]}}],
)
def test_a_batch_of_two_is_two_singles(model, arguments):
    both = prompts(model, 4, 9)
    batch = run(model, both, rows=(0, 1), **arguments)
    for row, text in enumerate(both.texts):
        single = run(model, model.text_condition(text[None]), rows=(row,), **arguments)
        assert all(torch.equal(a[row : row + 1], b) for a, b in zip(batch.codes, single.codes))
        torch.testing.assert_close(batch.latent[row : row + 1], single.latent, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pruning", [None, sv.StepVAR((0.6, 0.5)), sv.StepVAR((0.5, 0.5), fill="zero")])
@pytest.mark.parametrize("start", [1, 3])
def test_resuming_equals_the_uninterrupted_run(model, pruning, start):
    whole = run(model, prompts(model, 4, 9), pruning=pruning)
    stopped = run(model, prompts(model, 4, 9), pruning=pruning, end_at_scale=start)
    resumed = run(model, prompts(model, 4, 9), pruning=pruning, codes=stopped, start_at_scale=start)
    assert all(torch.equal(a, b) for a, b in zip(resumed.codes, whole.codes, strict=True))
    torch.testing.assert_close(resumed.latent, whole.latent, rtol=0, atol=1e-4)


def test_a_mask_redraws_where_it_is_painted(model):
    given = run(model, prompts(model, 4), seed=8)
    mask = torch.zeros(1, 10, 14)
    mask[:, :, 7:] = 1
    edited = run(model, prompts(model, 4), codes=given, mask=mask)
    last, before = edited.codes[-1].view(5, 7, -1), given.codes[-1].view(5, 7, -1)
    assert torch.equal(last[:, :3], before[:, :3]) and not torch.equal(last[:, 4:], before[:, 4:])


def test_the_negative_replaces_the_learned_text(model):
    condition = prompts(model, 4)
    learned = model.unconditional(condition)
    assert [len(t) for t in learned.texts] == [4] and torch.equal(learned.texts[0], model.cfg_uncond[:4])
    assert same(run(model, condition), run(model, condition, negative=learned))
    assert not same(run(model, condition), run(model, condition, negative=prompts(model, 9)))


def test_guidance_of_one_is_no_guidance(model):
    condition = prompts(model, 4)
    assert same(run(model, condition, cfg=1), run(model, condition, cfg=[1, 1, 1, 1]))
    assert same(run(model, condition, cfg=1), run(model, condition, cfg=3.0, options={"guidance_layers": 1}))
    assert not same(run(model, condition, cfg=1), run(model, condition, cfg=3.0, options={"guidance_layers": -2}))


# bits --------------------------------------------------------------------------------------------


def test_bits_follow_their_probabilities():
    quantizer, streams = BitwiseQuantizer(2), Streams(5, (0,))
    logits = torch.tensor([0.0, 1.0, 3.0, 0.0]).expand(1, 20000, 4)
    mean = quantizer.draw(quantizer.filtered(logits, 0, 0.0), streams, 0).float().mean((0, 1))
    torch.testing.assert_close(mean, torch.tensor([1.0, -3.0]).sigmoid(), rtol=0, atol=0.01)
    # the second bit's rarer value has probability 0.047: within top_p 0.96 there is no choice left
    assert quantizer.draw(quantizer.filtered(logits, 900, 0.95), streams, 0)[..., 1].max() == 0
    assert quantizer.draw(quantizer.filtered(logits, 900, 0.96), streams, 0)[..., 1].max() == 1
    assert quantizer.best(quantizer.filtered(logits, 1, 0.0)).flatten(0, 1).unique(dim=0).tolist() == [[1, 0]]


def test_an_infinite_certainty_is_no_accident():
    """u may be 0 and a probability 1 exactly: neither may flip a settled bit."""
    quantizer = BitwiseQuantizer(1)
    odds = torch.tensor([[[-torch.inf], [torch.inf]]]).expand(1, 2, 1)
    for seed in range(50):
        assert quantizer.draw(odds, Streams(seed, (0,)), 0).flatten().tolist() == [0, 1]


@pytest.mark.parametrize("patch", [1, 2])
def test_codes_survive_the_way_through_features(patch):
    quantizer, scale = BitwiseQuantizer(3, patch), SCHEDULE.final
    codes = torch.randint(
        0, 2, (2, scale.tokens, quantizer.bits), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    single = sv.ScaleSchedule([scale])
    assert torch.equal(quantizer.encode(quantizer.lookup(codes, scale), single)[0], codes)
    assert quantizer.lookup(codes, scale).square().sum(1).allclose(torch.ones(()))


# errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"options": {"smooth": True}}, sv.OptionError, "Unknown option smooth. This family knows: guidance_layers."),
        ({"options": {"guidance_layers": [-5]}}, sv.OptionError, "guidance_layers is"),
        ({"options": {"guidance_layers": "all"}}, sv.OptionError, "guidance_layers is 'all'"),
        (
            {"codes": [torch.zeros(1, 1, 3, dtype=torch.uint8)], "start_at_scale": 1},
            sv.LatentMismatch,
            "The codes of pass 1 are",
        ),
        ({"codes": [torch.full((1, 1, 4), 7, dtype=torch.uint8)], "start_at_scale": 1}, sv.LatentMismatch, "pass 1"),
    ],
)
def test_bad_arguments(model, arguments, error, message):
    if model.config.patch == 2 and "codes" in arguments:
        arguments = {**arguments, "codes": [c.repeat(1, 1, 4) for c in arguments["codes"]]}
    with pytest.raises(error, match=message.replace("[", r"\[")):
        run(model, prompts(model, 4), **arguments)


def test_bad_conditions_and_schedules(model):
    with pytest.raises(sv.ConditionMismatch, match="FLAN-T5"):
        model.text_condition(torch.zeros(1, 4, TEXT_DIM + 1))
    with pytest.raises(sv.ConditionMismatch, match="0, 4 tokens"):
        model.text_condition(torch.zeros(2, 4, TEXT_DIM), torch.tensor([[False] * 4, [True] * 4]))
    with pytest.raises(sv.ConditionMismatch, match="13 tokens"):
        model.text_condition(torch.zeros(1, LONGEST_TEXT + 1, TEXT_DIM))
    with pytest.raises(sv.ConditionMismatch, match="9 pictures|2 pictures"):
        run(model, prompts(model, 4), negative=prompts(model, 4, 4))
    for wrong in ({"size": "2M"}, {"aspect_ratio": 0.0}, {"aspect_ratio": float("nan")}, {"seconds": 5.0}):
        with pytest.raises(sv.ScheduleMismatch):
            model.schedule(**wrong)
    with pytest.raises(sv.ScheduleMismatch, match="still pictures"):
        sv.sample(model, None, prompts(model, 4), schedule=[(2, 2, 2)])


# cost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        None,
        sv.StepVAR((1.0, 0.5), selector="random", fill="delta"),
        *(
            sv.StepVAR(ratios, selector="random", guidance_late=half, guidance_late_scales=2)
            for ratios in PRESETS.values()
            for half in HALVES
        ),
    ],
)
@pytest.mark.parametrize("cfg", [1.0, 3.0, [3, 3, 3, 1]])
def test_the_estimate_is_what_runs(model, policy, cfg):
    # the counter knows attention as matrix products only, not the CPU's fused kernel
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(model, prompts(model, 6, 6), pruning=policy, cfg=cfg)
    estimate = sv.estimate(model, SCHEDULE, policy, cfg=cfg, batch=2, text_tokens=6)
    assert counter.get_total_flops() == pytest.approx(estimate.flops, rel=0.01)


TABLE = {entry["model"]: entry for entry in json.loads((GOLDEN / "costs.json").read_text())["models"]}
CONFIGS = {
    "infinity_2b": InfinityConfig(),
    "infinity_8b": InfinityConfig(depth=40, width=3584, heads=28, hidden=4 * 3584, bits=56, patch=2, chunk=5),
}


@pytest.mark.parametrize("name", TABLE)
def test_published_sizes_cost_what_the_reference_says(name):
    """The reference computes the text's keys and values again at every scale; we do once."""
    family, size, _ = name.split()
    with torch.device("meta"):
        model = Infinity(CONFIGS[family])
    estimate, expected = sv.estimate(model, model.schedule(size=size)), TABLE[name]
    parts = expected["tflop_by_part"]
    once = parts["text_kv_recomputed"] / len(estimate.scales)
    assert estimate.flops / 1e12 == pytest.approx(
        expected["tflop_total"] - parts["text_kv_recomputed"] + once, rel=0.01
    )
    for scale, theirs in zip(estimate.scales, expected["scales"]):
        assert scale.flops == pytest.approx(
            sum(theirs[part] for part in ("linear", "self_attn", "cross_attn", "head_and_embed")), rel=1e-3
        )
    # float32 here, without the last scale's slot; the reference's table counts it
    kv_gib = sum(s.kv_bytes for s in estimate.scales) / 2**30
    last_share = expected["scales"][-1]["tokens"] / expected["total_tokens"]
    assert kv_gib == pytest.approx(expected["kv_cache"]["fp32_gib"] * (1 - last_share), rel=1e-3)
