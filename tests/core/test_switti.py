"""Laws of the Switti family on a seeded three-layer model, with scales that see themselves alone and with scales that
see all before them: prompts, guidance and temperature by scale, pruning, batches, resuming, cost."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers
from test_cost import FlopCounter
from tiny_models import SCHEDULE, TEXT_DIM, switti_prompts, tiny_hart_pair, tiny_switti, tiny_switti_pair

import stepvar_core as sv
from stepvar_core.door import prepare
from stepvar_core.families.switti.model import PATCH_NUMS, Switti, SwittiConfig, rotary_table
from stepvar_core.methods.fills import FILLS
from stepvar_core.methods.policy import HALVES
from stepvar_core.methods.presets import PRESETS
from stepvar_core.methods.stepvar import SCOPES

PLAIN = {"smooth": False, "guidance_off_from": 4, "last_temperature": 1.0}


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "causal"])
def pair(request):
    return tiny_switti_pair(is_causal=request.param)


def run(pair, condition=None, **arguments) -> sv.Result:
    model, vae = pair
    condition = condition or switti_prompts(model, 4, 9)
    negative = switti_prompts(model, *[2] * condition.batch, seed=8)
    arguments = {"schedule": SCHEDULE, "seed": 3, "cfg": 2.0, "top_k": 12, "negative": negative, **arguments}
    return sv.sample(model, vae, condition, **arguments)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.codes, b.codes, strict=True)) and torch.equal(a.latent, b.latent)


def test_what_a_run_gives(pair):
    result = run(pair)
    assert [tuple(c.shape) for c in result.codes] == [(2, s.tokens) for s in SCHEDULE]
    assert len(torch.cat(result.codes, 1).unique()) >= 5 and result.latent.dtype == torch.float32
    hard = run(pair, options={"smooth": False})
    assert torch.equal(hard.latent, pair[1].quantize.decode_codes(hard.codes, SCHEDULE)) and not any(
        s is not None for s in hard.soft
    )


# what a scale sees -----------------------------------------------------------------------------------


def test_only_causal_models_remember():
    """Without a cache the last scale depends on earlier ones through their sum alone."""
    for is_causal in (False, True):
        model, vae = tiny_switti_pair(is_causal=is_causal)
        cond, negative = switti_prompts(model, 4), switti_prompts(model, 2, seed=8)
        job = prepare(model, vae, cond, schedule=SCHEDULE, negative=negative)
        assert (job.new_cache().nbytes > 0) == is_causal
        assert job.new_cache().nbytes == sv.estimate(model, SCHEDULE).kv_bytes


def test_given_scales_that_nobody_sees_do_not_run(pair):
    model, _ = pair
    whole, tokens = run(pair, options=PLAIN), []
    hook = model.blocks[0].register_forward_hook(lambda module, inputs, out: tokens.append(out.shape[1]))
    resumed = run(pair, options=PLAIN, codes=whole, start_at_scale=3)
    hook.remove()
    assert (
        same(whole, resumed)
        if not model.config.is_causal
        else all(torch.equal(a, b) for a, b in zip(whole.codes, resumed.codes))
    )
    assert tokens == ([1 + 6 + 12, 35] if model.config.is_causal else [35])
    assert [s.is_forced for s in resumed.trace.scales] == [True, True, True, False]


# the prompt ------------------------------------------------------------------------------------------


def test_pads_are_dropped(pair):
    model, generator = pair[0], torch.Generator().manual_seed(1)
    features, pooled = torch.randn(1, 9, TEXT_DIM, generator=generator), torch.randn(1, 6, generator=generator)
    mask = torch.arange(9)[None] < 5
    padded = model.text_condition(features, mask, pooled)
    cut = model.text_condition(features[:, :5], torch.ones(1, 5), pooled)
    assert same(run(pair, padded), run(pair, cut))
    assert not same(run(pair, padded), run(pair, model.text_condition(features, torch.ones(1, 9), pooled)))
    assert not same(run(pair, padded), run(pair, model.text_condition(features, mask, pooled + 1)))


def test_the_negative_must_be_given(pair):
    """Of the empty prompt, which the model cannot encode; without guidance nobody asks for it."""
    with pytest.raises(sv.ConditionMismatch, match='the encoding of the empty prompt ""'):
        run(pair, negative=None)
    assert run(pair, negative=None, cfg=0.0).latent.isfinite().all()


@pytest.mark.parametrize("lost", ["mask", "pooled"])
def test_an_ordinary_sdxl_prompt_is_refused_by_name(pair, lost):
    given_ = {"mask_BT": torch.ones(1, 4), "pooled_BC": torch.zeros(1, 6)}
    del given_[{"mask": "mask_BT", "pooled": "pooled_BC"}[lost]]
    with pytest.raises(sv.ConditionMismatch, match="ordinary SDXL CLIP.*type switti-clip"):
        pair[0].text_condition(torch.zeros(1, 4, TEXT_DIM), **given_)


def test_other_bad_prompts(pair):
    model, pooled = pair[0], torch.zeros(1, 6)
    for shape in ((1, 4, TEXT_DIM + 1), (0, 4, TEXT_DIM), (4, TEXT_DIM)):
        with pytest.raises(sv.ConditionMismatch, match="this model reads"):
            model.text_condition(torch.zeros(shape), torch.ones(1, 4), pooled)
    for mask, wrong in (
        (torch.ones(1, 3), pooled),
        (torch.ones(1, 4), torch.zeros(1, 5)),
        (torch.ones(1, 4), pooled[0]),
    ):
        with pytest.raises(sv.ConditionMismatch, match="text mask"):
            model.text_condition(torch.zeros(1, 4, TEXT_DIM), mask, wrong)
    with pytest.raises(sv.ConditionMismatch, match="no tokens"):
        model.text_condition(torch.zeros(1, 4, TEXT_DIM), torch.zeros(1, 4), pooled)


@settings(max_examples=20)
@given(h=integers(1, 6), w=integers(1, 6))
def test_every_grid_reaches_equally_far(h, w):
    table = rotary_table(sv.ScaleSchedule([(1, h, w)]).final, 16, 10000.0, 128.0).view(h, w, 8, 2)
    whole = rotary_table(sv.ScaleSchedule([(1, 2, 2)]).final, 16, 10000.0, 128.0).view(2, 2, 8, 2)
    corner = whole[int(h > 1), int(w > 1)]
    torch.testing.assert_close(table[-1, -1], corner, rtol=0, atol=2e-5)
    torch.testing.assert_close(table[0, 0], whole[0, 0], rtol=0, atol=0)


# guidance, temperature and mixing by scale -----------------------------------------------------------


@pytest.mark.parametrize(("size", "late"), [(512, 8), (1024, 11)])
def test_the_published_settings(size, late):
    with torch.device("meta"):
        model = Switti(SwittiConfig(patch_nums=PATCH_NUMS[size], depth=1, width=64, heads=1, hidden=64))
    schedule = model.schedule()
    passes = model.per_pass(schedule, model.Options.read(None))
    last = len(schedule) - 1
    assert passes.weights == pytest.approx([6 * i / last if i < late else 0.0 for i in range(last + 1)])
    assert passes.smooth == [2 <= i < late for i in range(last + 1)]
    assert passes.temperature == [1.0 if i < late else 0.1 for i in range(last + 1)]
    # what is mixed is not filtered
    assert passes.top_k == [0 if s else 400 for s in passes.smooth]
    assert passes.top_p == [0.0 if s else 0.95 for s in passes.smooth]


def test_late_scales_run_the_prompt_alone(pair):
    model, rows = pair[0], []
    hook = model.blocks[0].register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    seen = {}
    result = run(pair, options={"guidance_off_from": 2}, on_scale=lambda s: seen.update({s.index: s.logits}))
    assert rows == [4, 4, 2, 2]
    rows.clear()
    # the same by hand
    lists = {"cfg": [0.0, 2 / 3, 0.0, 0.0], "temperature": [1.0, 1.0, 0.1, 0.1]}
    by_hand = run(pair, options={"smooth": False, "last_temperature": 1.0}, **lists)
    hook.remove()
    assert same(result, by_hand) and rows == [4, 4, 2, 2]


def test_mixing_takes_unfiltered_logits(pair):
    """Unlike VAR's: the top_k of 12 that the other scales have changes nothing where codes are mixed."""
    mixed = {"smooth": True, "smooth_from": 1, "guidance_off_from": 4}
    one, other = (run(pair, options=mixed, top_k=[12, k, k, k]) for k in (2, 12))
    assert same(one, other) and [s is not None for s in one.soft] == [False, True, True, True]
    assert all(s is None for s in run(pair, options=mixed, top_k=1).soft), "one choice is left: nothing to mix"
    assert [s is not None for s in run(pair, options=mixed | {"guidance_off_from": 3}).soft] == [
        False,
        True,
        True,
        False,
    ]


def test_a_list_of_strengths_says_itself_where_guidance_is_off(pair):
    ramp = [0.0, 2 / 3, 4 / 3, 2.0]
    assert same(run(pair, cfg=ramp, options=PLAIN), run(pair, options=PLAIN))
    assert pair[0].guidance_weights(2.0, SCHEDULE) == [0.0, 2 / 3, 4 / 3, 0.0]  # 4 scales: the last is late


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": True}, "This family knows: smooth, smooth_from, guidance_off_from, last_temperature"),
        ({"guidance_off_from": -1}, "guidance_off_from is -1"),
        ({"guidance_off_from": 2.5}, "guidance_off_from is 2.5"),
        ({"last_temperature": 0}, "last_temperature is 0"),
        ({"last_temperature": float("nan")}, "last_temperature is nan"),
        ({"smooth": 1}, "smooth is 1"),
    ],
)
def test_bad_options(pair, options, message):
    with pytest.raises(sv.OptionError, match=message):
        run(pair, options=options)


def test_bad_schedules_and_vaes(pair):
    model = pair[0]
    for wrong in ({"size": "2M"}, {"aspect_ratio": 1.5}, {"aspect_ratio": float("nan")}, {"seconds": 5.0}):
        with pytest.raises(sv.ScheduleMismatch):
            model.schedule(**wrong)
    for wrong in ([(2, 2, 2)], [(1, 1, 1)] + [(1, n, n) for n in range(2, 9)]):
        with pytest.raises(sv.ScheduleMismatch, match="not one of still pictures"):
            run(pair, schedule=wrong)
    with pytest.raises(sv.LatentMismatch, match="with residuals; this model predicts 24 codes of 8 channels"):
        run((model, tiny_hart_pair()[1]))


# pruning ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
def test_zero_ratios_change_no_bit(pair, scope):
    assert same(run(pair), run(pair, pruning=sv.StepVAR((0.0, 0.0, 0.0), scope=scope)))


@pytest.mark.parametrize(("scope", "fill"), list(itertools.product(SCOPES, FILLS)))
def test_every_fill_in_both_scopes(pair, scope, fill):
    result = run(pair, pruning=sv.StepVAR((0.7, 0.4), scope=scope, fill=fill))
    assert [s.tokens_run for s in result.trace.scales] == [1, 6, 8, 11]
    for trace, codes in zip(result.trace.scales, result.codes):
        kept = trace.kept.flatten(1)
        assert torch.equal(codes < 0, ~kept if fill == "zero" and scope == "scale" else torch.zeros_like(kept))
    assert result.latent.isfinite().all() and not same(result, run(pair))


@pytest.mark.parametrize("ratios", [(), (0.7, 0.4), (0.5, 1.0)])
def test_kept_tokens_stand_at_their_own_places(ratios):
    """A scale pruned to some tokens is those tokens run alone: nobody else reads them."""
    pair = tiny_switti_pair()
    seen, streams = {}, []
    model = pair[0]
    hook = model.blocks[0].register_forward_pre_hook(
        lambda module, inputs: streams.append((inputs[0], inputs[2].rows(inputs[1].rotary_1LX)))
    )
    run(pair, pruning=sv.StepVAR(ratios), on_scale=lambda s: seen.update({s.index: s.kept}))
    hook.remove()
    for (x_RLC, rotary), kept in zip(streams, (k for k in seen.values() if k.any())):
        table = rotary_table(sv.ScaleSchedule([(1, *kept.shape[2:])]).final, 16, 10000.0, 128.0)[0]
        for picture in range(2):
            expected = table[kept[picture].flatten()]
            assert x_RLC.shape[1] == len(expected)
            own = rotary[0] if len(rotary) == 1 else rotary[picture]
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("half", ["conditional", "unconditional"])
def test_late_guidance_runs_one_half(pair, half):
    policy = sv.StepVAR((0.5,), guidance_late=half, guidance_late_scales=2)
    result = run(pair, pruning=policy, options=PLAIN)
    assert result.latent.isfinite().all() and not same(result, run(pair, pruning=sv.StepVAR((0.5,)), options=PLAIN))


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "off"])
def test_every_preset_draws(pair, name):
    result = run(pair, pruning=sv.StepVAR(PRESETS[name]))
    assert result.latent.isfinite().all() and len(result.codes) == len(SCHEDULE)


# batches, resuming, redrawing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pruning", [None, sv.StepVAR((0.7, 0.4)), sv.StepVAR((0.7, 0.4), scope="sublayer", fill="cache")]
)
@pytest.mark.parametrize("arguments", [{"top_k": 1}, {}, {"cfg": 0.0}])
def test_a_batch_of_two_is_two_single_runs(pair, arguments, pruning):
    model = pair[0]
    texts = [
        (torch.randn(1, n, TEXT_DIM, generator=torch.Generator().manual_seed(n)), torch.ones(1, n)) for n in (4, 9)
    ]
    pooled = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    singles = [model.text_condition(*text, pooled[i : i + 1]) for i, text in enumerate(texts)]
    together = run(pair, singles[0].joined(singles[1]), rows=[4, 9], pruning=pruning, **arguments)
    negative = switti_prompts(model, 2, 2, seed=8)
    for i, condition in enumerate(singles):
        own = type(negative)(negative.texts[i : i + 1], negative.pooled_BC[i : i + 1])
        single = run(pair, condition, rows=[(4, 9)[i]], pruning=pruning, negative=own, **arguments)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(single.codes, together.codes))
        torch.testing.assert_close(single.latent[0], together.latent[i], rtol=0, atol=1e-4)


@pytest.mark.parametrize("start", [1, 2, 3, 4])
@pytest.mark.parametrize("pruning", [None, sv.StepVAR((0.6, 0.5)), sv.StepVAR((0.5, 0.4), fill="cache")])
def test_a_resumed_run_is_the_uninterrupted_one(pair, start, pruning):
    whole = run(pair, pruning=pruning)
    resumed = run(pair, pruning=pruning, codes=whole, start_at_scale=start)
    assert all(torch.equal(a, b) for a, b in zip(resumed.codes, whole.codes))
    torch.testing.assert_close(resumed.latent, whole.latent, rtol=0, atol=1e-4)


def test_a_masked_redraw_keeps_what_it_should(pair):
    first = run(pair)
    nothing = run(pair, codes=first, mask=torch.zeros(1, 5, 7), seed=8)
    assert all(torch.equal(a, b) for a, b in zip(nothing.codes, first.codes))
    torch.testing.assert_close(nothing.latent, first.latent, rtol=0, atol=1e-5)
    half = torch.zeros(1, 5, 7)
    half[..., :3] = 1
    redrawn = run(pair, codes=first, mask=half, seed=8)
    last = redrawn.codes[-1].view(2, 5, 7), first.codes[-1].view(2, 5, 7)
    assert torch.equal(last[0][..., 4:], last[1][..., 4:]) and not torch.equal(last[0][..., :3], last[1][..., :3])


def test_a_seed_is_a_picture(pair):
    assert same(run(pair), run(pair)) and not same(run(pair), run(pair, seed=4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype):
    pair, exact, seen = tiny_switti_pair(), [], []
    result = run(pair, on_scale=lambda s: exact.append(s.logits))
    half = (tiny_switti().place("cpu", dtype), pair[1])
    run(half, codes=result, mask=torch.zeros(1, 5, 7), on_scale=lambda s: seen.append(s.logits))
    for a, b in zip(exact, seen):
        assert b.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).min() > 0.99


# cost ------------------------------------------------------------------------------------------------


ESTIMATED = [
    None,
    sv.StepVAR((1.0, 0.5), selector="random", fill="delta"),
    sv.StepVAR((0.6, 0.5), selector="random", scope="sublayer"),
    *(
        sv.StepVAR(ratios, selector="random", guidance_late=half, guidance_late_scales=2)
        for ratios in PRESETS.values()
        for half in HALVES
    ),
]


@pytest.mark.parametrize("policy", ESTIMATED)
@pytest.mark.parametrize("cfg", [0.0, 3.0, [0, 3, 3, 0]])
def test_the_estimate_is_what_runs(pair, policy, cfg):
    """Exactly, where 1 % would do: a term forgotten shows at once."""
    model, text = pair[0], 9
    condition, negative = switti_prompts(model, text, text), switti_prompts(model, text, text, seed=8)
    with FlopCounter() as counter:
        run(pair, condition, negative=negative, pruning=policy, cfg=cfg, options={"smooth": False})
    assert counter.flops == sv.estimate(model, SCHEDULE, policy, cfg=cfg, batch=2, text_tokens=text).flops


def test_the_published_size_costs_what_the_notes_of_its_makers_say():
    """41 TFLOP a picture at 1024 pixels, 84 % of it in the last four scales (paper, section 4.3: late guidance is what
    costs)."""
    with torch.device("meta"):
        model = Switti(SwittiConfig())
    estimate = sv.estimate(model, model.schedule())
    assert estimate.flops == pytest.approx(41e12, rel=0.05)
    flops = [s.flops for s in estimate.scales]
    assert sum(flops[-4:]) / sum(flops) == pytest.approx(0.84, abs=0.01) and estimate.kv_bytes == 0
