"""Laws of the HART family on a seeded three-layer model: the prompt before the first scale, pruning, batches,
resuming, the residual, cost."""

import itertools
import json

import pytest
import torch
from hart_runs import GOLDEN
from hypothesis import given, settings
from hypothesis.strategies import integers
from tiny_models import LONGEST_TEXT, SCHEDULE, TEXT_DIM, hart_prompts, tiny_hart, tiny_hart_pair, tiny_vae
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import stepvar_core as sv
from stepvar_core.door import prepare
from stepvar_core.families.hart.model import HART, HARTConfig, image_rotary, turn
from stepvar_core.families.hart.prediction import maskgit_counts
from stepvar_core.methods.fills import FILLS
from stepvar_core.methods.policy import HALVES
from stepvar_core.methods.presets import PRESETS
from stepvar_core.methods.stepvar import SCOPES
from stepvar_core.planning.goals import LADDER, QualityGoal, Table
from stepvar_core.sampler import scale_steps

BRANCHES = {
    "none": {},
    "block": {
        "modulation": "block",
        "attn_l2_norm": True,
        "has_sinusoid_levels": False,
        "has_context_norm": False,
        "pooling": "avg",
    },
    "shared": {"modulation": "shared"},
}


@pytest.fixture(scope="module", params=BRANCHES)
def pair(request):
    return tiny_hart_pair(**BRANCHES[request.param])


def run(pair, condition=None, **arguments) -> sv.Result:
    model, vae = pair
    condition = condition or hart_prompts(model, 4, 9)
    return sv.sample(model, vae, condition, **{"schedule": SCHEDULE, "seed": 3, "cfg": 2.0, "top_k": 12, **arguments})


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.codes, b.codes, strict=True)) and torch.equal(a.latent, b.latent)


def test_what_a_run_gives(pair):
    result = run(pair, options={"smooth": False})
    assert [tuple(c.shape) for c in result.codes] == [(2, s.tokens) for s in SCHEDULE]
    assert len(torch.cat(result.codes, 1).unique()) >= 5 and result.latent.dtype == torch.float32
    assert [s is None for s in result.soft] == [True, True, True, False]
    # the codes and what the residual adds to the last scale's are all there is
    discrete = pair[1].quantize.decode_codes(result.codes, SCHEDULE)
    residual = result.soft[-1] - pair[1].quantize.lookup(result.codes[-1], SCHEDULE.final)
    torch.testing.assert_close(discrete + residual, result.latent, rtol=0, atol=1e-5)
    assert 0.05 < residual.abs().mean() and residual.abs().max() <= 0.6 + 1e-6  # clipped to [-1, 1], times 0.6
    alone = run(pair, options={"smooth": False, "residual": False})
    assert torch.equal(alone.latent, discrete) and all(torch.equal(a, b) for a, b in zip(alone.codes, result.codes))


def test_smoothing_is_on_unless_switched_off(pair):
    assert same(run(pair), run(pair, options={"smooth": True})) and not same(
        run(pair), run(pair, options={"smooth": False})
    )
    # one choice is left: there is nothing to smooth
    assert same(
        run(pair, top_k=1, options={"residual": False}),
        run(pair, top_k=1, options={"residual": False, "smooth": False}),
    )


# the prompt ----------------------------------------------------------------------------------------


def test_pads_are_read_and_places_count_real_tokens(pair):
    model, generator = pair[0], torch.Generator().manual_seed(1)
    features = torch.randn(1, LONGEST_TEXT, TEXT_DIM, generator=generator)
    mask = torch.arange(LONGEST_TEXT)[None] < 5
    other_pads = torch.where(mask[..., None], features, features + 1)
    first = run(pair, model.text_condition(features, mask))
    assert not same(first, run(pair, model.text_condition(other_pads, mask)))
    assert not same(first, run(pair, model.text_condition(features, mask.flip(1))))  # pads in front: other places
    assert same(
        run(pair, model.text_condition(features)),
        run(pair, model.text_condition(features, torch.ones(1, LONGEST_TEXT))),
    )
    assert (
        run(pair, model.text_condition(features, torch.zeros(1, LONGEST_TEXT))).latent.isfinite().all()
    )  # an empty prompt: nothing but pads


def test_the_own_negative_is_zeros_of_one_token(pair):
    model = pair[0]
    condition = hart_prompts(model, 4, 9)
    negative = model.unconditional(condition)
    assert (
        not negative.features_BTC.any()
        and negative.mask_BT.sum(1).tolist() == [1, 1]
        and bool(negative.mask_BT[:, 0].all())
    )
    assert same(run(pair, condition), run(pair, condition, negative=negative))
    assert not same(run(pair, condition), run(pair, condition, negative=hart_prompts(model, 3, 3)))


def test_the_first_code_is_answered_at_the_last_position_of_the_prompt(pair):
    """The whole text runs, with full attention; scale 0 leaves one code and the keys of every position."""
    model, vae = pair
    job = prepare(model, vae, hart_prompts(model, 4), schedule=SCHEDULE)
    assert job.new_cache().lengths == [(LONGEST_TEXT, 6, 12, 35)] * 3
    features = torch.randn(1, LONGEST_TEXT, TEXT_DIM, generator=torch.Generator().manual_seed(1))
    logits = []
    for position in (0, LONGEST_TEXT - 1):
        changed = features.clone()
        changed[:, position] += 1
        for text in (features, changed):
            run(pair, model.text_condition(text), cfg=0.0, on_scale=lambda s: logits.append(s.logits), end_at_scale=1)
    assert logits[0].shape == (1, 1, 24) and all(not torch.equal(a, b) for a, b in zip(logits[::2], logits[1::2]))


@settings(max_examples=20)
@given(h=integers(1, 6), w=integers(1, 6), offset=integers(0, 40))
def test_image_positions_are_shifted_by_the_prompt(h, w, offset):
    scale = sv.ScaleSchedule([(1, h, w)]).final
    near, far = image_rotary(scale, torch.tensor([0, offset]), 8, 16)
    assert torch.equal(image_rotary(scale, torch.tensor([offset]), 8, 16)[0], far) and (offset == 0) == torch.equal(
        near, far
    )
    x = torch.randn(1, h * w, 2, 1, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(turn(x, near[None])[:, :1], x[:, :1])  # the first cell stands at the origin


# pruning -------------------------------------------------------------------------------------------


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


# `repeat` puts the codes of the scale before there, which have no residual
@pytest.mark.parametrize("fill", [name for name in FILLS if name != "repeat"])
def test_every_position_has_a_residual_but_blank_ones(pair, fill):
    """The residual head is dense: on hidden states that were filled; a position that adds nothing adds no residual
    either."""
    seen = []
    result = run(
        pair, pruning=sv.StepVAR((0.7,), fill=fill), options={"smooth": False}, on_scale=lambda s: seen.append(s.f_hat)
    )
    residual = (result.soft[-1] - pair[1].quantize.lookup(result.codes[-1], SCHEDULE.final)).flatten(2)
    added = (seen[-1] - seen[-2]).flatten(2).abs().amax(1)
    kept = result.trace.scales[-1].kept.flatten(1)
    assert torch.equal(added > 0, kept if fill == "zero" else torch.ones_like(kept))
    assert residual.abs().amax(1).gt(0).all()


def test_the_cache_fill_copies_the_grids_change_not_the_texts(pair):
    """The scale before the pruned one is the prompt's: only its last position is a cell."""
    schedule = sv.ScaleSchedule([(1, 1, 1), (1, 3, 3)])
    policy = sv.StepVAR((0.7,), fill="cache")
    model, vae = pair
    job = prepare(model, vae, hart_prompts(model, 4, 9), schedule=schedule, pruning=policy, cfg=[2.0, 2.0])
    result = run(pair, schedule=schedule, pruning=policy, cfg=[2.0, 2.0])
    assert result.trace.scales[1].tokens_run == 3 and len(list(scale_steps(job))) == 2
    recorded = job.policy.begin(job.about, job.plans)
    tokens = recorded.tokens(schedule.passes[:1], slice(0, 4))
    run_state = model.begin(job.condition, job.negative, job.device, job.options)
    memory = job.new_cache().opened([0], slice(0, 4))
    model.blocks_forward(run_state, model.embed(run_state, None, schedule.passes[0], schedule), tokens, memory)
    assert {tuple(change.shape) for change in recorded.earlier.changes.values()} == {(4, 1, 32)}


@pytest.mark.parametrize("ratios", [(), (0.7, 0.4), (0.5, 1.0)])
def test_kept_tokens_stand_at_their_own_places(ratios):
    """A grid pruned to its kept cells is what running those cells alone gives: rotary rows gathered for both guidance
    halves, which differ."""
    pair = tiny_hart_pair()
    model, vae = pair
    seen = {}
    result = run(pair, pruning=sv.StepVAR(ratios), on_scale=lambda s: seen.update({s.index: s.logits}))
    again = {}
    run(
        pair,
        codes=result,
        pruning=sv.StepVAR(ratios),
        mask=torch.zeros(1, 5, 7),
        on_scale=lambda s: again.update({s.index: s.logits}),
    )
    for index, logits in seen.items():
        if logits is not None:
            torch.testing.assert_close(again[index], logits, rtol=1e-4, atol=1e-4)
    job = prepare(model, vae, hart_prompts(model, 4, 9), schedule=SCHEDULE)
    state = model.begin(job.condition, job.negative, job.device, job.options)
    model.embed(state, torch.zeros(2, 8, 2, 3), SCHEDULE.passes[1], SCHEDULE)
    assert (
        state.table.shape[:2] == (4, 6) and len({row.sum().item() for row in state.table}) == 3
    )  # both negatives are alike


@pytest.mark.parametrize("half", ["conditional", "unconditional"])
def test_late_guidance_runs_one_half(pair, half):
    result = run(pair, pruning=sv.StepVAR((0.5,), guidance_late=half, guidance_late_scales=2))
    assert result.latent.isfinite().all() and not same(result, run(pair, pruning=sv.StepVAR((0.5,))))
    if half == "conditional":
        weights = [0.0, 2 / 3, 0.0, 0.0]
        assert same(result, run(pair, cfg=weights, pruning=sv.StepVAR((0.5,))))


def test_a_skipped_last_scale_leaves_no_residual(pair):
    result = run(pair, pruning=sv.StepVAR((1.0,)))
    assert torch.equal(result.latent, run(pair, end_at_scale=3).latent) and result.soft[-1] is None


# guidance ------------------------------------------------------------------------------------------


def test_the_last_scale_is_guided_like_the_one_before(pair):
    model = pair[0]
    assert model.guidance_weights(3.0, SCHEDULE) == [0.0, 1.0, 2.0, 2.0]
    assert same(run(pair, cfg=3.0), run(pair, cfg=[0.0, 1.0, 2.0, 2.0]))
    assert same(run(pair, cfg=0.0), run(pair, cfg=[0.0] * 4))


def test_fewer_choices_at_fine_scales():
    model = HART(HARTConfig(depth=1, width=64, heads=1, hidden=64, residual_width=16, residual_depth=1, text_dim=8))
    assert model.default_top_k(model.schedule()) == [600] * 7 + [300] * 7


# batches, resuming, MaskGIT ------------------------------------------------------------------------


# scored behind the first block: before it a token has no position, and in the flat pictures of greedy random models
# many are equal
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    "pruning",
    [
        None,
        sv.StepVAR((0.7, 0.4), first_layer=1),
        sv.StepVAR((0.7, 0.4), scope="sublayer", fill="cache", first_layer=1),
    ],
)
@pytest.mark.parametrize("arguments", [{"top_k": 1}, {}])
def test_a_batch_of_two_is_two_single_runs(pair, arguments, pruning, steps):
    if pruning is not None and steps > 1:
        pruning = sv.StepVAR(
            (0.0, 0.4), scope=pruning.scope, fill=pruning.fill, first_layer=1
        )  # the last scale in several steps is dense
    model, options = pair[0], {"maskgit_steps": steps}
    both = hart_prompts(model, 4, 9)
    together = run(pair, both, rows=[4, 9], pruning=pruning, options=options, **arguments)
    for i in range(2):
        condition = model.text_condition(both.features_BTC[i : i + 1], both.mask_BT[i : i + 1])
        single = run(pair, condition, rows=[(4, 9)[i]], pruning=pruning, options=options, **arguments)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(single.codes, together.codes))
        difference = (single.latent[0] - together.latent[i]).abs()
        assert difference.mean() < 1e-4 and difference.max() < 5e-2  # the first diffusion step multiplies by 20291


@pytest.mark.parametrize("start", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("pruning", "steps"), [(None, 1), (None, 3), (sv.StepVAR((0.6, 0.5)), 1), (sv.StepVAR((0.5, 0.4), fill="cache"), 1)]
)
def test_a_resumed_run_is_the_uninterrupted_one(pair, start, pruning, steps):
    """From the result, whose soft features the codes alone do not hold; dense forced scales run as one block-causal
    pass."""
    options = {"maskgit_steps": steps}
    whole = run(pair, pruning=pruning, options=options)
    resumed = run(pair, pruning=pruning, options=options, codes=whole, start_at_scale=start)
    assert all(torch.equal(a, b) for a, b in zip(resumed.codes, whole.codes))
    difference = (resumed.latent - whole.latent).abs()
    assert difference.mean() < 1e-4 and difference.max() < 5e-2


@pytest.mark.parametrize(
    "change",
    [
        {"top_k": 1},
        {"options": {"smooth": False}},
        {"options": {"residual": False}},
        {"top_k": 1, "options": {"residual": False}},
    ],
)
def test_a_masked_redraw_keeps_what_was_drawn_in_another_way(pair, change):
    """Soft features of the picture stay where this run makes none of its own, and the other way about."""
    nothing = torch.zeros(1, 5, 7)
    for first, again in ((run(pair), change), (run(pair, **change), {})):
        redrawn = run(pair, codes=first, mask=nothing, **{"seed": 8, **again})
        torch.testing.assert_close(redrawn.latent, first.latent, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_masked_redraw_keeps_what_it_should(pair, steps):
    first, options = run(pair), {"maskgit_steps": steps}
    nothing = run(pair, codes=first, mask=torch.zeros(1, 5, 7), options=options, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(nothing.codes, first.codes))
    torch.testing.assert_close(nothing.latent, first.latent, rtol=0, atol=1e-5)
    half = torch.zeros(1, 5, 7)
    half[..., :3] = 1
    redrawn = run(pair, codes=first, mask=half, options=options, seed=8)
    last = redrawn.codes[-1].view(2, 5, 7), first.codes[-1].view(2, 5, 7)
    assert torch.equal(last[0][..., 4:], last[1][..., 4:]) and not torch.equal(last[0][..., :3], last[1][..., :3])
    torch.testing.assert_close(redrawn.soft[-1][..., 4:], first.soft[-1][..., 4:], rtol=0, atol=1e-5)


def test_maskgit_predicts_every_position_once():
    assert (
        maskgit_counts(81, 4) == [7, 17, 27, 30] and maskgit_counts(3, 8) == [1, 1, 1] and maskgit_counts(5, 1) == [5]
    )
    assert all(
        sum(maskgit_counts(n, s)) == n and min(maskgit_counts(n, s)) > 0 for n in range(1, 40) for s in range(1, 20)
    )


def test_maskgit_steps_see_those_before_them(pair):
    model, vae = pair
    job = prepare(model, vae, hart_prompts(model, 4, 9), schedule=SCHEDULE, options={"maskgit_steps": 4})
    assert job.new_cache().lengths[0] == (LONGEST_TEXT, 6, 12, *maskgit_counts(35, 4))
    assert all(torch.equal(torch.cat(job.parts[3], 1)[row].sort().values, torch.arange(35)) for row in range(2))
    in_steps = run(pair, options={"maskgit_steps": 4})
    assert torch.equal(in_steps.codes[2], run(pair).codes[2]) and not torch.equal(in_steps.codes[3], run(pair).codes[3])
    assert in_steps.trace.scales[-1].tokens_run == 35
    with pytest.raises(sv.OptionError, match="the last scale is pruned"):
        run(pair, options={"maskgit_steps": 4}, pruning=sv.StepVAR((0.5,)))
    assert run(pair, options={"maskgit_steps": 4}, pruning=sv.StepVAR((0.0, 0.5))).trace.scales[2].tokens_run == 6


def test_a_seed_is_a_picture(pair):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert same(run(pair), run(pair)) and not same(run(pair), run(pair, seed=4))
    assert torch.equal(
        torch.random.get_rng_state(), before
    )  # upstream's residual draws from the global stream; ours does not


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype):
    pair, exact, seen = tiny_hart_pair(), [], []
    result = run(pair, on_scale=lambda s: exact.append(s.logits))
    half = (tiny_hart().place("cpu", dtype), pair[1])
    run(half, codes=result, mask=torch.zeros(1, 5, 7), on_scale=lambda s: seen.append(s.logits))
    for a, b in zip(exact, seen):
        assert (
            b.dtype == torch.float32 and torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).min() > 0.99
        )


# errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"guidance_layers": 0}}, "This family knows: smooth, smooth_from, residual, maskgit_steps"),
        ({"options": {"maskgit_steps": 0}}, "maskgit_steps is 0"),
        ({"options": {"maskgit_steps": 2.5}}, "maskgit_steps is 2.5"),
    ],
)
def test_bad_options(pair, arguments, message):
    with pytest.raises(sv.OptionError, match=message):
        run(pair, **arguments)


def test_bad_conditions_schedules_and_vaes(pair):
    model = pair[0]
    for shape in ((1, LONGEST_TEXT, TEXT_DIM + 1), (1, LONGEST_TEXT - 1, TEXT_DIM), (0, LONGEST_TEXT, TEXT_DIM)):
        with pytest.raises(sv.ConditionMismatch, match="pads included"):
            model.text_condition(torch.zeros(shape))
    with pytest.raises(sv.ConditionMismatch, match="text mask"):
        model.text_condition(torch.zeros(1, LONGEST_TEXT, TEXT_DIM), torch.ones(1, 3))
    for wrong in ({"size": "2M"}, {"aspect_ratio": 1.5}, {"aspect_ratio": float("nan")}, {"seconds": 5.0}):
        with pytest.raises(sv.ScheduleMismatch):
            model.schedule(**wrong)
    for wrong in ([(2, 2, 2)], [(1, 2, 2), (1, 4, 4)], [(1, 1, 1)] + [(1, n, n) for n in range(2, 9)]):
        with pytest.raises(sv.ScheduleMismatch, match="the first of one token"):
            run(pair, schedule=wrong)
    with pytest.raises(sv.LatentMismatch, match="this model predicts 24 codes of 8 channels with residuals"):
        run((model, tiny_vae()))


# cost ----------------------------------------------------------------------------------------------


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


# the branches differ in what runs once: two policies show that
@pytest.mark.parametrize(
    ("branch", "policy"),
    [("none", policy) for policy in ESTIMATED] + list(itertools.product(("block", "shared"), ESTIMATED[:2])),
)
@pytest.mark.parametrize("cfg", [0.0, 3.0, [0, 3, 3, 0]])
def test_the_estimate_is_what_runs(branch, policy, cfg):
    pair = tiny_hart_pair(**BRANCHES[branch])
    # the counter knows attention as matrix products only, not the CPU's fused kernel; the quantiser's convolutions
    # are no part of the estimate
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(pair, pruning=policy, cfg=cfg, options={"smooth": False})
    counted = counter.get_total_flops() - counter.get_flop_counts()["Global"].get(torch.ops.aten.convolution, 0)
    estimate = sv.estimate(pair[0], SCHEDULE, policy, cfg=cfg, batch=2)
    assert counted == pytest.approx(estimate.flops, rel=0.01)
    assert (
        prepare(*pair, hart_prompts(pair[0], 4, 9), schedule=SCHEDULE, pruning=policy, cfg=cfg).new_cache().nbytes
        == estimate.kv_bytes
    )


def test_the_published_size_costs_what_the_reference_says():
    """The reference answers at all 300 positions of the prompt, and embeds the residual's condition and times again
    at every step; we do once."""
    table = json.loads((GOLDEN / "costs.json").read_text())
    with torch.device("meta"):
        model = HART(HARTConfig())
    c, schedule, cost = model.config, model.schedule(), model.cost()
    again = (c.residual_steps - 1) * 2 * c.width * c.residual_width + c.residual_steps * 2 * (
        256 + c.residual_width
    ) * c.residual_width

    def per_scale(estimate, rows):
        """Blocks, head and residual of every scale, as the reference counts them."""
        for i, ours in enumerate(estimate.scales):
            embedding = cost.embed_per_token * ours.tokens * ((i > 0) + (i == len(schedule) - 1))
            yield (
                ours.flops - embedding + (rows[i] * 299 * cost.head_per_token if i == 0 else 0),
                2 * ours.tokens * again,
            )

    cfg = [1.0] * len(schedule)
    dense = sv.estimate(model, schedule, cfg=cfg)
    for i, ((flops, saved), theirs) in enumerate(zip(per_scale(dense, [2] * 14), table["dense"], strict=True)):
        assert flops + (saved if theirs["diffusion"] else 0) == theirs["total"], i
    assert table["dense"][-1]["diffusion"] == 2 * 4096 * (cost.tail_per_token + again)
    paper = sv.estimate(model, schedule, sv.StepVAR((0.75, 0.5)), cfg=cfg)
    expected = table["variants"]["48:0.5,64:0.75|diffusion_dense"]
    left_out = 2 * (1152 + 3072) * cost.head_per_token  # the reference's head runs on every position
    total = sum(flops for flops, _ in per_scale(paper, [2] * 14)) + 2 * 4096 * again + left_out
    assert total == pytest.approx(expected["total"], rel=1e-6)
    assert paper.speedup == pytest.approx(expected["speedup_all"], rel=0.02)
    # float32 here, and the last scale leaves no keys
    kv_bytes = sum(s.kv_bytes for s in dense.scales)
    assert kv_bytes == 2 * 2 * c.depth * c.width * 4 * sum(s["tokens"] for s in table["dense"][:-1])


def test_a_goal_that_prunes_leaves_a_scale_in_steps_whole(pair):
    """What may be left out is known only during the run, and a step's positions are no grid: all of them run."""
    table = Table(
        "hart", (5, 7), 3, 32, "stepvar", "nearest", tuple(1 - 0.01 * i for i in range(len(LADDER))), 0.5, 0.0
    )
    goal = QualityGoal(sv.StepVAR(()), 0.5, table)
    result = run(pair, options={"maskgit_steps": 3}, pruning=goal)
    last, before = result.trace.scales[-1], result.trace.scales[-2]
    assert before.tokens_run < before.tokens  # the goal does prune
    assert last.tokens_run == last.tokens and last.kept.all() and (result.codes[-1] >= 0).all()
