"""Laws of the scale loop: what must hold for every selector, fill and scope, with random weights and odd grids."""

import gc
import itertools
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis.strategies import booleans, floats, integers, lists, none, sampled_from, tuples
from tiny_models import SCHEDULE, tiny_var

import stepvar_core as sv
from stepvar_core.door import prepare
from stepvar_core.families.var.model import ClassCondition
from stepvar_core.memory import BlockCausal, KVCache
from stepvar_core.methods.fills import FILLS
from stepvar_core.methods.policy import About
from stepvar_core.methods.selectors import SELECTORS
from stepvar_core.methods.stepvar import SCOPES
from stepvar_core.sampler import scale_steps
from stepvar_core.tokens import DENSE

COMBINATIONS = list(itertools.product(SELECTORS, FILLS, SCOPES))
SAMPLED = {"top_k": 12, "top_p": 0.9}
GREEDY = {"top_k": 1}
policies = sampled_from(
    [None, *(sv.StepVAR((0.7, 0.4), fill=fill, scope=scope) for fill, scope in itertools.product(FILLS, SCOPES))]
)


def run(pair, labels=(1, 3), **arguments) -> sv.Result:
    model, vae = pair
    return sv.sample(
        model, vae, model.class_condition(labels), **{"schedule": SCHEDULE, "cfg": 2.0, **SAMPLED, **arguments}
    )


def same(one: sv.Result, other: sv.Result) -> bool:
    return (
        len(one.codes) == len(other.codes)
        and torch.equal(one.latent, other.latent)
        and all(torch.equal(a, b) for a, b in zip(one.codes, other.codes))
    )


@pytest.fixture(scope="module")
def dense(tiny):
    return run(tiny)


# switching pruning off ---------------------------------------------------------------------------


@pytest.mark.parametrize(("selector", "fill", "scope"), COMBINATIONS)
def test_zero_ratios_are_no_pruning_bit_for_bit(tiny, dense, selector, fill, scope):
    policy = sv.StepVAR((0.0, 0.0, 0.0), selector=selector, fill=fill, scope=scope)
    assert same(run(tiny, pruning=policy), dense)


@pytest.mark.parametrize("keep_scores", [False, True])
@pytest.mark.parametrize("pruning", [None, sv.StepVAR((0, 0)), sv.StepVAR((0.6, 0.3))])
def test_watching_changes_nothing(tiny, pruning, keep_scores):
    seen = []
    watched = run(
        tiny,
        pruning=pruning,
        keep_scores=keep_scores,
        on_scale=lambda s: seen.append((s.index, s.f_hat.clone(), s.seconds)),
    )
    assert same(watched, run(tiny, pruning=pruning))
    assert watched.latent.is_inference()  # no graph is recorded, whatever the caller's mode
    assert [index for index, *_ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[-1][1], watched.latent)


# what a pruned run does --------------------------------------------------------------------------


@pytest.mark.parametrize(("selector", "fill", "scope"), COMBINATIONS)
def test_a_pruned_run_keeps_its_promises(tiny, dense, selector, fill, scope):
    """K tokens run, the trace says which, every position gets a code, and nothing before the first pruned scale
    moves."""
    result = run(tiny, pruning=sv.StepVAR((0.7, 0.4), selector=selector, fill=fill, scope=scope), keep_scores=True)
    assert all(torch.equal(a, b) for a, b in zip(result.codes[:2], dense.codes[:2]))
    kept = [s.kept.flatten(1).sum(1).tolist() for s in result.trace.scales]
    assert kept == [[1, 1], [6, 6], [8, 8], [11, 11]]  # 12 - int(12 * .4) and 35 - int(35 * .7)
    assert [s.tokens_run for s in result.trace.scales] == [1, 6, 8, 11]
    assert [s.size for s in result.trace.scales] == [s.grid for s in SCHEDULE]
    for scale, codes, traced in zip(SCHEDULE, result.codes, result.trace.scales):
        assert codes.shape == (2, scale.tokens) and traced.kept.shape == (2, *scale.grid)
        is_blank = (codes < 0).view(2, *scale.grid)
        assert torch.equal(is_blank, ~traced.kept) if fill == "zero" and scope == "scale" else not is_blank.any()
    assert all((s.importance is not None) == (s.tokens_run < s.tokens) for s in result.trace.scales)
    assert result.latent.isfinite().all()
    assert not torch.equal(result.latent, dense.latent)


@settings(max_examples=25)
@given(
    ratios=lists(floats(0.01, 0.99), min_size=1, max_size=3),
    fill=sampled_from(list(FILLS)),
    first_layer=integers(0, 1),
    grid=tuples(integers(1, 6), integers(1, 6)),
    labels=lists(integers(0, 4), min_size=1, max_size=2),
    cfg=sampled_from([0.0, 3.0]),
)
def test_any_ratios_on_any_grid_run_as_planned(tiny, ratios, fill, first_layer, grid, labels, cfg):
    schedule = sv.ScaleSchedule([(1, 1, 1), (1, 3, 2), (1, *grid)])
    policy = sv.StepVAR(tuple(ratios[:2]), fill=fill, first_layer=first_layer)
    result = run(tiny, labels, schedule=schedule, pruning=policy, cfg=cfg)
    plans = policy.plan(About(schedule, batch=len(labels), layers=2))
    for plan, scale, codes in zip(plans, result.trace.scales, result.codes):
        assert scale.kept.flatten(1).sum(1).tolist() == [plan.fewest] * len(labels)
        assert codes.shape == (len(labels), plan.tokens)


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


def test_half_precision_stays_near(tiny):
    exact, seen = [], []
    result = run(tiny, cfg=0.0, on_scale=lambda s: exact.append(s.logits))
    half = (tiny_var().to(torch.bfloat16), tiny[1])
    run(half, cfg=0.0, codes=result.codes, mask=torch.zeros(1, 5, 7), on_scale=lambda s: seen.append(s.logits))
    for a, b in zip(exact, seen):
        assert b.dtype == torch.float32
        assert F.cosine_similarity(a.flatten(1), b.flatten(1)).min() > 0.995


# ratio 1 -----------------------------------------------------------------------------------------


def test_ratio_one_skips_the_scale(tiny, dense):
    result = run(tiny, pruning=sv.StepVAR((1, 1)))
    shorter = run(tiny, end_at_scale=2)
    assert [c.shape[1] for c in result.codes] == [1, 6, 0, 0]
    assert [s.tokens_run for s in result.trace.scales] == [1, 6, 0, 0]
    assert [bool(s.kept.any()) for s in result.trace.scales] == [True, True, False, False]
    assert torch.equal(result.latent, shorter.latent)
    # a skipped scale in the middle: the next one reads the same f_hat, resized to its own grid, and no keys of it
    middle, seen = run(tiny, pruning=sv.StepVAR((0.0, 1.0))), []
    run(tiny, pruning=sv.StepVAR((0.0, 1.0)), on_scale=lambda s: seen.append(s.f_hat))
    assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[2], seen[3])
    assert [c.shape[1] for c in middle.codes] == [1, 6, 0, 35]
    model, vae = tiny
    job = prepare(model, vae, model.class_condition([1]), schedule=SCHEDULE, pruning=sv.StepVAR((0.0, 1.0)))
    assert job.new_cache().lengths[0] == (1, 6, 35)


# guidance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratios", [(), (0.7, 0.4)])
@pytest.mark.parametrize("late", [1, 2])
def test_late_conditional_guidance_is_no_guidance_late(tiny, ratios, late):
    strengths = [0.0, 1.0, 2.0, 3.0]
    policy = sv.StepVAR(ratios, guidance_late="conditional", guidance_late_scales=late)
    stops = [*strengths[: 4 - late], *[0.0] * late]
    assert same(run(tiny, cfg=strengths, pruning=policy), run(tiny, cfg=stops, pruning=sv.StepVAR(ratios)))


def test_late_unconditional_guidance_runs_the_null_row(tiny):
    """The last scale sees the null class and its keys alone: what a null-class run over the same codes computes."""
    seen, null, labels = [], [], (1, 3)
    policy = sv.StepVAR((), guidance_late="unconditional", guidance_late_scales=1)
    result = run(tiny, labels, pruning=policy, on_scale=lambda s: seen.append(s.logits))
    run(tiny, (-1, -1), cfg=0.0, codes=result.codes, start_at_scale=3, on_scale=lambda s: null.append(s.logits))
    torch.testing.assert_close(seen[3], null[3], rtol=1e-4, atol=1e-4)
    conditional = []
    run(tiny, labels, cfg=0.0, codes=result.codes, start_at_scale=3, on_scale=lambda s: conditional.append(s.logits))
    assert (seen[3] - conditional[3]).abs().max() > 0.1


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


# randomness --------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    pruning=policies,
    cfg=sampled_from([0.0, 3.0]),
    is_greedy=booleans(),
    selector=sampled_from(list(SELECTORS)),
    seed=integers(0, 99),
)
@example(
    pruning=sv.StepVAR((0.7, 0.4)), cfg=0.0, is_greedy=True, selector="update", seed=0
)  # label 3 is flat: many equal energies
def test_a_batch_of_two_is_two_single_runs(tiny, pruning, cfg, is_greedy, selector, seed):
    if pruning is not None:
        pruning = sv.StepVAR(pruning.ratios, fill=pruning.fill, scope=pruning.scope, selector=selector)
    settings_ = {"pruning": pruning, "cfg": cfg, "seed": seed, **(GREEDY if is_greedy else SAMPLED)}
    both = run(tiny, (1, 3), rows=[4, 9], **settings_)
    for row, label in enumerate((1, 3)):
        single = run(tiny, (label,), rows=[(4, 9)[row]], **settings_)
        assert all(torch.equal(s[0], b[row]) for s, b in zip(single.codes, both.codes))
        torch.testing.assert_close(single.latent[0], both.latent[row], rtol=0, atol=1e-4)


def test_a_seed_is_a_picture(tiny, dense):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = run(tiny)
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's random stream is not touched
    assert same(again, dense)
    assert not same(run(tiny, seed=1), dense)
    assert not same(run(tiny, rows=[7, 8]), dense)
    assert same(run(tiny, rows=[0, 1]), dense)
    # equal labels in one batch are different pictures
    twins = run(tiny, (2, 2))
    assert not torch.equal(twins.codes[-1][0], twins.codes[-1][1])


def test_greedy_draws_nothing(tiny):
    assert same(run(tiny, **GREEDY), run(tiny, seed=123, rows=[5, 6], **GREEDY))


def test_temperature_and_lists_apply_per_scale(tiny):
    greedy = run(tiny, **GREEDY)
    mixed = run(tiny, temperature=[1.0, 1e-6, 1.0, 1e-6], top_k=[1, 0, 1, 0], top_p=0.0)
    assert all(torch.equal(a, b) for a, b in zip(mixed.codes, greedy.codes))


# quantiser ---------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(h=integers(1, 7), w=integers(1, 7), seed=integers(0, 2**20))
def test_a_code_looked_up_is_found_again(tiny, h, w, seed):
    quantizer, schedule = tiny[1].quantize, sv.ScaleSchedule([(1, h, w)])
    ids = torch.randint(quantizer.vocab_size, (2, h * w), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(quantizer.encode(quantizer.lookup(ids, schedule.final), schedule)[0], ids)


@pytest.mark.parametrize(
    "pruning", [None, sv.StepVAR((0.7, 0.4)), sv.StepVAR((0.7, 0.4), fill="zero"), sv.StepVAR((0.5, 1))]
)
def test_codes_hold_the_whole_picture(tiny, pruning):
    result = run(tiny, pruning=pruning)
    torch.testing.assert_close(tiny[1].quantize.decode_codes(result.codes, SCHEDULE), result.latent, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("ratios", "index"), [((0.7,), 3), ((0.0, 0.6), 2), ((0.0, 0.0, 0.5), 1)])
def test_a_blank_position_adds_exactly_nothing(tiny, ratios, index):
    """The zero fill: f_hat keeps the value it had, to the bit, wherever the nearest cell of the pruned scale was
    blank."""
    seen = []
    result = run(tiny, pruning=sv.StepVAR(ratios, fill="zero"), on_scale=lambda s: seen.append(s.f_hat))
    scale, final = SCHEDULE.scales[index], SCHEDULE.final
    rows, columns = (
        [int((i + 0.5) * small / large) for i in range(large)]
        for small, large in ((scale.h, final.h), (scale.w, final.w))
    )
    kept_BHW = result.trace.scales[index].kept[:, 0][:, rows][:, :, columns]
    changed_BHW = (seen[index] != seen[index - 1]).any(1)
    assert torch.equal(changed_BHW, kept_BHW) and not kept_BHW.all()


def test_a_blank_code_has_no_features(tiny):
    """Else resizing and phi would smear code 0 from blank cells into their neighbours."""
    quantizer, scale = tiny[1].quantize, sv.Scale(1, 2, 3)
    h = quantizer.lookup(torch.tensor([[3, -1, 0, -1, 2, 1]]), scale)[0].flatten(1).T
    assert torch.equal(h[[1, 3]], torch.zeros(2, 8)) and torch.equal(h[[0, 2]], quantizer.embedding.weight[[3, 0]])


# resuming and editing ----------------------------------------------------------------------------


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(
    "pruning",
    [
        None,
        *(sv.StepVAR((0.7, 0.4), fill=f) for f in FILLS),
        sv.StepVAR((0.5, 0.3), scope="sublayer"),
        sv.StepVAR((0.5, 1)),
        sv.StepVAR((1,)),
        sv.StepVAR((0.5,), guidance_late="conditional", guidance_late_scales=2),
        sv.StepVAR((0.7, 0.4), scope="sublayer", fill="cache", cfg_mask="separate", last_layer=0),
    ],
)
def test_resuming_anywhere_is_never_having_stopped(tiny, pruning, smooth):
    arguments = {"pruning": pruning, "options": {"smooth": smooth}}
    whole = run(tiny, **arguments)
    for k in range(len(SCHEDULE) + 1):
        again = run(tiny, **arguments, codes=whole if smooth else whole.codes, start_at_scale=k)
        assert all(torch.equal(a, b) for a, b in zip(again.codes, whole.codes))
        torch.testing.assert_close(again.latent, whole.latent, rtol=0, atol=1e-4)
        assert [s.is_forced for s in again.trace.scales] == [
            i < k and s.tokens_run > 0 for i, s in enumerate(again.trace.scales)
        ]


@pytest.mark.parametrize("pruning", [None, sv.StepVAR((0.7, 0.4))])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_two_halves_make_a_whole(tiny, pruning, k):
    whole = run(tiny, pruning=pruning)
    half = run(tiny, pruning=pruning, end_at_scale=k)
    assert len(half.codes) == len(half.trace.scales) == k
    assert all(torch.equal(a, b) for a, b in zip(half.codes, whole.codes))
    rest = run(tiny, pruning=pruning, codes=half, start_at_scale=k)
    assert all(torch.equal(a, b) for a, b in zip(rest.codes, whole.codes))
    torch.testing.assert_close(rest.latent, whole.latent, rtol=0, atol=1e-4)


@settings(max_examples=25)
@given(
    pruning=policies,
    smooth=booleans(),
    start_at_scale=integers(0, 3),
    left=integers(0, 6),
    top=integers(0, 4),
    seed=integers(0, 99),
)
def test_a_masked_redraw_keeps_the_picture_elsewhere(tiny, dense, pruning, smooth, start_at_scale, left, top, seed):
    mask = torch.zeros(1, 5, 7)
    mask[:, top:, left:] = 1
    result = run(
        tiny,
        codes=dense,
        mask=mask,
        pruning=pruning,
        seed=seed,
        start_at_scale=start_at_scale,
        options={"smooth": smooth},
    )
    blank_ok = pruning is not None and pruning.fill == "zero" and pruning.scope == "scale"
    for step, codes, given_ in zip(SCHEDULE.passes, result.codes, dense.codes):
        scale = step.scale
        cells = F.interpolate(1 - mask[:, None], size=(scale.h, scale.w), mode="bilinear").flatten(1).expand(2, -1)
        is_kept = (cells > 0.5) | (scale.tokens <= 3) | (step.index < start_at_scale)
        assert torch.equal(codes[is_kept], given_[is_kept])
        assert blank_ok or (codes >= 0).all()
    if not smooth:
        torch.testing.assert_close(
            tiny[1].quantize.decode_codes(result.codes, SCHEDULE), result.latent, rtol=0, atol=1e-5
        )


def test_masks_at_their_ends(tiny, dense):
    everything, nothing = torch.ones(1, 5, 7), torch.zeros(1, 5, 7)
    assert same(run(tiny, codes=dense, mask=nothing, seed=9), dense)
    redrawn = run(tiny, codes=dense, mask=everything, seed=9)
    fresh = run(tiny, seed=9, codes=dense, start_at_scale=1)
    assert all(torch.equal(a, b) for a, b in zip(redrawn.codes, fresh.codes))
    # one mask per picture
    rows = run(tiny, codes=dense, mask=torch.cat([everything, nothing]), seed=9)
    assert torch.equal(rows.codes[-1][1], dense.codes[-1][1]) and torch.equal(rows.codes[-1][0], redrawn.codes[-1][0])


# nothing survives --------------------------------------------------------------------------------


def caches() -> list[weakref.ref]:
    return [weakref.ref(o) for o in gc.get_objects() if type(o) is KVCache]


def cached_pruning():
    return sampled_from([None, sv.StepVAR((0.7, 0.4)), sv.StepVAR((0.7, 0.4), fill="cache")])


@settings(max_examples=8)
@given(
    pruning=cached_pruning(),
    how=sampled_from(["finished", "closed", "raised"]),
    at=integers(0, 3),
    scores=none() | booleans(),
)
def test_nothing_is_left_of_a_run(tiny, pruning, how, at, scores):
    """The cache goes with the run by reference counting alone: no collector has to come round for a graphics card."""
    model, vae = tiny
    alive = []

    def watch(step: sv.ScaleStep) -> None:
        if step.index == at:
            alive.extend(caches())
            if how == "raised":
                raise KeyboardInterrupt

    gc.collect()
    gc.disable()
    try:
        if how == "closed":
            steps = scale_steps(
                prepare(
                    model, vae, model.class_condition([1]), schedule=SCHEDULE, pruning=pruning, keep_scores=bool(scores)
                )
            )
            for step in steps:
                watch(step)
                if step.index == at:
                    break
            steps.close()
        else:
            try:
                run(tiny, pruning=pruning, keep_scores=bool(scores), on_scale=watch)
            except KeyboardInterrupt:
                pass
        assert len(alive) == 1 and alive[0]() is None
        assert caches() == []
    finally:
        gc.enable()


def test_each_scale_is_freed_when_the_next_one_is_done(tiny):
    """Logits and f_hat of a large model are the biggest tensors of a run: a trace may not hold on to them."""
    held, alive = [], []

    def watch(step: sv.ScaleStep) -> None:
        alive.append([reference() is not None for reference in held])
        held.extend([weakref.ref(step.logits), weakref.ref(step.f_hat)])

    result = run(tiny, on_scale=watch)
    assert (
        alive[2] == [False, False, False, True] and result.latent is held[-1]()
    )  # the loop itself reads the last f_hat


def test_a_stopped_loop_leaves_the_caller_in_its_own_grad_mode(tiny):
    model, vae = tiny
    steps = scale_steps(prepare(model, vae, model.class_condition([1]), schedule=SCHEDULE))
    next(steps)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    steps.close()


def test_a_model_is_used_and_not_changed(tiny):
    model, vae = tiny
    before = {k: v.clone() for k, v in (*model.state_dict().items(), *vae.state_dict().items())}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    run(tiny, pruning=sv.StepVAR((0.7, 0.4), fill="cache", scope="sublayer"), options={"smooth": True})
    assert all(torch.equal(before[k], v) for k, v in (*model.state_dict().items(), *vae.state_dict().items()))
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}


def test_conditions(tiny):
    model = tiny[0]
    assert model.class_condition([0, 4]).batch == 2
    assert model.class_condition(torch.tensor([-1])).labels_B.tolist() == [5]
    assert model.unconditional(ClassCondition(torch.tensor([1, 2]))).labels_B.tolist() == [5, 5]


def test_a_heartbeat_stops_within_a_scale(tiny):
    """Called once per layer and pass; raising out of it ends the run there."""
    model, vae = tiny
    beats = []

    def heartbeat():
        beats.append(1)
        if len(beats) == 3:
            raise KeyboardInterrupt

    job = prepare(model, vae, model.class_condition([1]), schedule=model.schedule(), heartbeat=heartbeat)
    done = []
    with pytest.raises(KeyboardInterrupt):
        for step in scale_steps(job):
            done.append(step.index)
    assert done == [0], "two layers: the third beat falls into the second scale"


@pytest.mark.parametrize("ratios, passes_run", [((), 2), ((0.5,), 3), ((0.5, 0.5, 0.5), 4)])
def test_forced_dense_scales_run_as_one(tiny, ratios, passes_run):
    """Five scales, four of them forced: the dense ones in front share one block-causal run as long as no other is
    larger, pruned ones run alone."""
    model, vae = tiny
    arguments = dict(schedule=model.schedule(), pruning=sv.StepVAR(ratios), seed=5)
    condition = model.class_condition([1, 2])
    whole = sv.sample(model, vae, condition, **arguments)
    beats = []
    job = prepare(
        model, vae, condition, codes=whole.codes, start_at_scale=4, heartbeat=lambda: beats.append(1), **arguments
    )
    steps = list(scale_steps(job))
    assert len(beats) == passes_run * len(model.blocks)
    assert [s.index for s in steps] == [0, 1, 2, 3, 4] and [s.is_forced for s in steps] == [True] * 4 + [False]
    assert all(torch.equal(a.codes, b) for a, b in zip(steps, whole.codes))
    assert (steps[-1].f_hat - whole.latent).abs().max() <= 1e-4
    assert [s.tokens_run for s in steps] == [s.tokens_run for s in whole.trace.scales]
