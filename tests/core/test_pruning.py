"""Which tokens stay, and how the others are filled: scores, counts and fills against naive references."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis.strategies import booleans, floats, integers, lists, sampled_from

import stepvar_core as sv
from stepvar_core.methods.fills import FILLS, anchor_mask, kept_mask, nearest_kept
from stepvar_core.methods.kept import AroundSublayers, Earlier, RecordingStream, RecordingSublayers, SparseStream
from stepvar_core.methods.policy import About, PassPlan
from stepvar_core.methods.selectors import (
    NORMALISERS,
    SELECTORS,
    ScoreContext,
    Scores,
    high_pass_score,
    keep_top,
    structure_score,
)
from stepvar_core.methods.stepvar import OPTIONS

few = settings(max_examples=30)
edges, ratios, seeds = integers(1, 9), floats(0.01, 0.999), integers(0, 2**20)


def features(seed: int, batch: int, tokens: int, width: int = 16) -> torch.Tensor:
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed))


def start(width: int = 16) -> torch.Tensor:
    return F.normalize(torch.randn(width, generator=torch.Generator().manual_seed(3)), dim=0)


def context(scale: sv.Scale, batch: int = 1, width: int = 16, **options) -> ScoreContext:
    generator = torch.Generator().manual_seed(9)
    return ScoreContext(
        scale, start(width), lambda name, shape: torch.rand(batch, *shape, generator=generator), **options
    )


def pruned(tokens: int, kept: int, first_layer: int = 0, layers: int = 2) -> PassPlan:
    return PassPlan(tokens, (tokens,) * first_layer + (kept,) * (layers - first_layer), kept)


def run_pass(policy: sv.StepVAR, schedule: sv.ScaleSchedule, index: int, rows: slice, batch: int = 1, noise=None):
    """(plan, tokens) of one pass of a model of two blocks."""
    about = About(schedule, batch=batch, layers=2, width=16, device="cpu", noise=noise)
    plans = policy.plan(about)
    return plans[index], policy.begin(about, plans).tokens((schedule.passes[index],), rows)


def places(scale: sv.Scale) -> list[tuple[int, int, int]]:
    return list(itertools.product(range(scale.t), range(scale.h), range(scale.w)))


# scores ------------------------------------------------------------------------------------------


@few
@given(t=integers(1, 3), h=edges, w=edges, kernel=sampled_from([1, 3, 5]), seed=seeds)
@example(t=1, h=1, w=1, kernel=5, seed=0)
def test_texture_is_what_the_local_mean_leaves(t, h, w, kernel, seed):
    scale, x = sv.Scale(t, h, w), features(seed, 2, t * h * w)
    grid, reach = x.view(2, t, h, w, -1), kernel // 2
    expected = torch.stack(
        [
            (
                grid[:, f, i, j]
                - grid[:, f, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1].flatten(1, 2).mean(1)
            ).norm(dim=-1)
            for f, i, j in places(scale)
        ],
        dim=1,
    )
    torch.testing.assert_close(high_pass_score(x, scale, kernel), expected, rtol=1e-4, atol=1e-5)


def test_texture_refuses_a_grid_of_another_size():
    with pytest.raises(sv.ShapeMismatch, match="5 tokens do not fill the grid"):
        high_pass_score(features(0, 1, 5), sv.Scale(1, 2, 3))


@few
@given(tokens=integers(2, 60), width=integers(2, 40), gap=floats(1.2, 4), seed=seeds)
@example(tokens=40, width=16, gap=1.2, seed=0)
def test_structure_is_the_first_singular_direction(tokens, width, gap, seed):
    x = features(seed, 1, tokens, width)[0]
    u, s, vt = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    assume(len(s) > 1 and s[1] > 1e-3)
    s = torch.cat([s[1:2] * gap, s[1:]])  # the first direction stands out by exactly `gap`
    x = u @ s.diag() @ vt
    # power iteration has converged when enough rounds shrank the rest; five of them are the published speed, not
    # exactness
    score = structure_score(x[None], start(width), iterations=100)[0]
    expected = (x @ vt[0]).abs()
    assert F.cosine_similarity(score, expected, dim=0) > 1 - 1e-3
    torch.testing.assert_close(score, expected, rtol=2e-2, atol=2e-2 * float(s[0]))


def test_five_rounds_suffice_for_a_clear_direction():
    x, direction = features(1, 1, 64)[0] * 0.3, start(16)
    x = x + torch.linspace(-2, 2, 64)[:, None] * direction.roll(1)
    first = torch.linalg.svd(x - x.mean(0)).Vh[0]
    score = structure_score(x[None], direction, iterations=5)[0]
    assert F.cosine_similarity(score, ((x - x.mean(0)) @ first).abs(), dim=0) > 1 - 1e-3


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 3), (1, 7, 9), (2, 5, 3)])
def test_equal_tokens_score_alike_and_finite(selector, shape):
    scale = sv.Scale(*shape)
    x = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(1)).expand(2, scale.tokens, 16)
    scores = SELECTORS[selector](x, context(scale, 2))
    for part in (scores.importance, scores.structure, scores.texture):
        if part is not None and selector not in ("random", "checkerboard"):
            assert part.isfinite().all()
            torch.testing.assert_close(part, torch.zeros_like(part), rtol=0, atol=1e-5)


@few
@given(values=lists(floats(-1e6, 1e6, width=32), min_size=1, max_size=30))
@example(values=[0.0])
@example(values=[3.5] * 7)
def test_normalisers_stay_in_range_and_keep_the_order(values):
    s_BL = torch.tensor([values])
    low, high = s_BL.amin(), s_BL.amax()
    for name, normalise in NORMALISERS.items():
        out = normalise(s_BL)
        assert out.isfinite().all()
        order = s_BL[0].argsort(stable=True)
        assert (out[0][order].diff() >= 0).all(), name
        if name != "none" and low == high:
            assert (out == 0).all()
    assert ((NORMALISERS["minmax"](s_BL) >= 0) & (NORMALISERS["minmax"](s_BL) <= 1)).all()
    assert ((NORMALISERS["rank"](s_BL) >= 0) & (NORMALISERS["rank"](s_BL) <= 1)).all()
    if high - low > max(1e-3 * max(abs(high), abs(low)), 1e-6):  # what float32 tells apart, and can square
        assert NORMALISERS["minmax"](s_BL).amax() == 1 and NORMALISERS["minmax"](s_BL).amin() == 0
        torch.testing.assert_close(NORMALISERS["zscore"](s_BL).square().mean(), torch.tensor(1.0), rtol=1e-3, atol=0)


def test_the_fusion_weighs_structure_against_texture():
    scale, x = sv.Scale(1, 6, 5), features(2, 2, 30)
    for normalise in NORMALISERS:
        structure = NORMALISERS[normalise](structure_score(x, start(), 5))
        texture = NORMALISERS[normalise](high_pass_score(x, scale, 3))
        scores = SELECTORS["stepvar"](x, context(scale, 2, structure_weight=0.3, normalise=normalise))
        torch.testing.assert_close(scores.importance, 0.3 * structure + 0.7 * texture)
        torch.testing.assert_close(scores.structure, structure)
        torch.testing.assert_close(scores.texture, texture)
    assert torch.equal(
        SELECTORS["lowest_texture"](x, context(scale)).importance, -SELECTORS["texture"](x, context(scale)).importance
    )


@pytest.mark.parametrize("selector", SELECTORS)
@few
@given(t=integers(1, 2), h=edges, w=edges, seed=seeds)
def test_a_picture_scores_the_same_alone_and_in_a_batch(selector, t, h, w, seed):
    scale, x = sv.Scale(t, h, w), features(seed, 2, t * h * w)
    noise = torch.rand(2, scale.tokens, generator=torch.Generator().manual_seed(seed))

    def importance(rows: slice) -> torch.Tensor:
        return SELECTORS[selector](x[rows], ScoreContext(scale, start(), lambda name, shape: noise[rows])).importance

    both = importance(slice(0, 2))
    for row in range(2):
        torch.testing.assert_close(importance(slice(row, row + 1)), both[row : row + 1], rtol=1e-4, atol=1e-4)


@few
@given(values=lists(integers(-2, 2), min_size=1, max_size=40), keep=integers(1, 40), seed=seeds)
def test_the_highest_scores_stay_and_ties_go_to_the_lower_index(values, keep, seed):
    keep = min(keep, len(values))
    expected = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep])
    assert keep_top(torch.tensor([values], dtype=torch.float32), keep)[0].tolist() == expected


def test_a_score_that_is_no_number_goes_first():
    nan = float("nan")
    assert keep_top(torch.tensor([[nan, 1.0, -5.0, nan, 0.0, float("inf")]]), 4)[0].tolist() == [1, 2, 4, 5]


# counts ------------------------------------------------------------------------------------------


@few
@given(h=edges, w=edges, ratio_1=ratios, ratio_2=ratios)
@example(h=10, w=10, ratio_1=0.29, ratio_2=0.57)  # 100 * 0.29 is 28.999…: the published K is the float arithmetic's
def test_kept_counts_are_exact(h, w, ratio_1, ratio_2):
    schedule = sv.ScaleSchedule([(1, 1, 1), (1, w, h), (1, h, w)])
    plans = sv.StepVAR((ratio_1, ratio_2)).plan(About(schedule, layers=2))
    n = h * w
    assert [p.fewest for p in plans] == [1, max(1, n - int(n * ratio_2)), max(1, n - int(n * ratio_1))]
    assert [p.tokens for p in plans] == [1, n, n]


def test_ratios_count_from_the_end_of_every_clip():
    clips = [
        sv.Scale(1, 1, 1),
        sv.Scale(1, 4, 4),
        sv.Scale(2, 2, 2, clip=1),
        sv.Scale(2, 4, 4, clip=1, repeats=2),
        sv.Scale(2, 2, 2, clip=2),
        sv.Scale(2, 4, 4, clip=2),
    ]
    schedule = sv.ScaleSchedule(clips)
    kept = [p.fewest for p in sv.StepVAR((0.5, 0.25)).plan(About(schedule, layers=2))]
    assert kept == [1, 16, 6, 16, 16, 6, 16]  # the image clip is exempt, a repeat is pruned like its first pass
    without_the_middle = About(sv.ScaleSchedule([*clips[:2], *clips[4:]]), layers=2)
    assert [p.fewest for p in sv.StepVAR((1, 0.25)).plan(without_the_middle)] == [1, 16, 6, 0]
    with pytest.raises(sv.OptionError, match="in the middle of a video"):
        sv.StepVAR((1,)).plan(About(schedule, layers=2))


@few
@given(
    h=edges,
    w=edges,
    n=integers(1, 4),
    ratio=ratios,
    paint=floats(0, 1),
    uses_anchors=booleans(),
    seed=seeds,
    selector=sampled_from(list(SELECTORS)),
    size=sampled_from([1.0, 1e5]),
)
def test_coverage_protection_and_anchors_hold(h, w, n, ratio, paint, uses_anchors, seed, selector, size):
    """Every cell keeps a token, every protected place stays, and K grows no further than they demand."""
    scale = sv.Scale(1, h, w)
    schedule = sv.ScaleSchedule([(1, 1, 1), scale])
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(2, 2 * h, 2 * w, generator=generator) < paint).float()
    policy = sv.StepVAR(
        (ratio,),
        selector=selector,
        normalise="none",
        coverage=n,
        protect=mask,
        protect_mode="keep",
        fill="anchor" if uses_anchors else "nearest",
    )
    plan, tokens = run_pass(
        policy,
        schedule,
        1,
        slice(0, 4),
        batch=2,
        noise=lambda name, index, shape: torch.rand(2, *shape, generator=generator),
    )
    assume(not plan.is_dense)
    x = features(seed, 2, h * w) * size
    tokens.enter(0, torch.cat([x, x]))
    kept = tokens.kept_BN()
    assert kept.sum(1).tolist() == [plan.fewest] * 2

    painted = F.adaptive_avg_pool2d(mask[:, None], (h, w)).flatten(1) >= 0.25
    must = painted | anchor_mask(scale) if uses_anchors else painted
    assert kept[must].all()
    cells = [
        torch.tensor([i * w + j for i in range(a, min(a + n, h)) for j in range(b, min(b + n, w))])
        for a in range(0, h, n)
        for b in range(0, w, n)
    ]
    assert all(kept[:, cell].any(1).all() for cell in cells)
    needed = max(int(must[row].sum()) + sum(not must[row, cell].any() for cell in cells) for row in range(2))
    assert plan.fewest == max(1, h * w - int(h * w * ratio), needed)


def test_protection_adds_to_the_score():
    """A painted place wins over any unpainted one of the same score, without changing K."""
    scale = sv.Scale(1, 4, 4)
    schedule = sv.ScaleSchedule([(1, 1, 1), scale])
    mask = torch.zeros(1, 4, 4)
    mask[0, 3, 2:] = 1
    policy = sv.StepVAR((0.75,), protect=mask)
    _, tokens = run_pass(policy, schedule, 1, slice(0, 1))
    tokens.enter(0, torch.ones(1, 16, 16))
    assert tokens.kept_BN()[0].nonzero().flatten().tolist() == [0, 1, 14, 15]


def test_protection_holds_in_every_frame():
    schedule = sv.ScaleSchedule([sv.Scale(1, 1, 1), sv.Scale(3, 2, 2, clip=1)])
    mask = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    policy = sv.StepVAR((0.9,), protect=mask, protect_mode="keep")
    _, tokens = run_pass(policy, schedule, 1, slice(0, 1))
    tokens.enter(0, features(0, 1, 12))
    assert tokens.kept_BN()[0].nonzero().flatten().tolist() == [3, 7, 11]


# fills -------------------------------------------------------------------------------------------


@few
@given(t=integers(1, 3), h=edges, w=edges, share=floats(0, 1), seed=seeds)
@example(t=1, h=1, w=1, share=0.0, seed=0)
@example(t=3, h=2, w=4, share=0.05, seed=1)
def test_the_nearest_kept_token_is_the_nearest(t, h, w, share, seed):
    scale = sv.Scale(t, h, w)
    kept = torch.rand(2, scale.tokens, generator=torch.Generator().manual_seed(seed)) < share
    kept[:, seed % scale.tokens] = True
    found, at = nearest_kept(kept, scale), places(scale)
    for row in range(2):
        stays = [j for j in range(scale.tokens) if kept[row, j]]
        for i in range(scale.tokens):
            same_frame = [j for j in stays if at[j][0] == at[i][0]]
            expected = min(same_frame or stays, key=lambda j: (sum((a - b) ** 2 for a, b in zip(at[j], at[i])), j))
            assert found[row, i] == expected


def test_distances_stay_exact_on_large_grids():
    scale = sv.Scale(1, 3, 1200)
    kept = torch.zeros(1, scale.tokens, dtype=torch.bool)
    kept[0, [0, 1199]] = True
    found = nearest_kept(kept, scale)[0].view(3, 1200)
    assert (found[:, :600] == 0).all() and (found[:, 600:] == 1199).all()


@few
@given(h=edges, w=edges)
def test_anchors_form_a_lattice_of_stride_three(h, w):
    lattice = anchor_mask(sv.Scale(2, h, w)).view(2, h, w)
    rows, columns = lattice[0].any(1).nonzero().flatten(), lattice[0].any(0).nonzero().flatten()
    assert torch.equal(lattice[0], lattice[1]) and lattice[0].sum() == len(rows) * len(columns) > 0
    assert (rows.diff() == 3).all() and (columns.diff() == 3).all()
    # the centres of 3 x 3 cells: nothing is further than the cell's corner, but for a rest at the far edge
    assert rows[0] == min(1, h - 1) and columns[0] == min(1, w - 1)
    assert len(rows) >= math.floor(h / 3) and len(columns) >= math.floor(w / 3)


@pytest.mark.parametrize("fill", FILLS)
@few
@given(h=edges, w=edges, ratio=ratios, first_layer=integers(0, 1), seed=seeds)
def test_fills_follow_their_definition_and_leave_kept_tokens_alone(fill, h, w, ratio, first_layer, seed):
    scale, before, batch = sv.Scale(1, h, w), sv.Scale(1, 3, 2), 2
    n, rows = scale.tokens, slice(0, 2 * batch)
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(batch, n, generator=generator)
    if fill == "anchor":
        score = score + anchor_mask(scale)
    kept = max(1, n - int(n * ratio), int(anchor_mask(scale).sum()) if fill == "anchor" else 1)
    assume(kept < n)
    earlier = Earlier()
    first, step = sv.ScaleSchedule([before, scale]).passes
    entry_6, change_6 = features(seed + 1, 2 * batch, 6), features(seed + 2, 2 * batch, 6)
    recording = RecordingStream(first, first_layer, earlier)
    recording.enter(first_layer, entry_6)
    recording.leave(entry_6 + change_6)

    tokens = SparseStream(
        pruned(n, kept, first_layer),
        step,
        batch=batch,
        rows=rows,
        score=lambda x: Scores(score),
        fill=FILLS[fill],
        earlier=earlier,
    )
    x_RNC, change_RKC = features(seed, 2 * batch, n), features(seed + 3, 2 * batch, kept)
    if first_layer:
        assert tokens.enter(0, x_RNC) is x_RNC
    index_RK = keep_top(score, kept).repeat(2, 1)
    picked = tokens.enter(first_layer, x_RNC)
    take = index_RK[..., None].expand(-1, -1, 16)
    assert torch.equal(picked, x_RNC.gather(1, take))
    assert torch.equal(tokens.kept_BN(), kept_mask(index_RK[:batch], n))
    stream = tokens.leave(picked + change_RKC)

    is_kept = kept_mask(index_RK, n)
    origin = nearest_kept(is_kept & anchor_mask(scale) if fill == "anchor" else is_kept, scale)
    origin = torch.where(is_kept, torch.arange(n), origin)
    change_RNC = torch.zeros(2 * batch, n, 16).scatter(1, take, change_RKC)
    copied_change = change_RNC.gather(1, origin[..., None].expand(-1, -1, 16))
    if FILLS[fill].on_head:
        assert torch.equal(stream, picked + change_RKC)
        full = tokens.spread(stream[:batch])
        expected = (x_RNC + change_RNC).gather(1, origin[..., None].expand(-1, -1, 16))[:batch]
        assert torch.equal(full, expected)
    else:
        assert stream.shape == x_RNC.shape and tokens.spread(stream) is stream
        if fill == "delta":
            expected = x_RNC + copied_change
        else:  # cache: the earlier scale's change, resized by area
            grid = change_6.view(2 * batch, 3, 2, 16).permute(0, 3, 1, 2)
            resized = F.interpolate(grid, size=(h, w), mode="area").flatten(2).transpose(1, 2)
            expected = x_RNC + torch.where(is_kept[..., None], change_RNC, resized)
        torch.testing.assert_close(stream, expected, rtol=1e-4, atol=1e-5)
    assert (tokens.added_BN is None) == (fill not in ("zero", "repeat"))
    if fill == "zero":
        assert torch.equal(tokens.added_BN, is_kept[:batch])


@pytest.mark.parametrize(
    ("stored", "rows", "served"),
    [
        (4, slice(0, 4), slice(0, 4)),
        (4, slice(0, 2), slice(0, 2)),
        (4, slice(2, 4), slice(2, 4)),  # late guidance runs one half
        (2, slice(0, 2), slice(0, 2)),
        (2, slice(2, 4), slice(0, 2)),
    ],
)
def test_the_cache_fill_serves_the_rows_that_run(stored, rows, served):
    scale = sv.Scale(1, 3, 3)
    step = sv.ScaleSchedule([scale]).passes[0]
    earlier = Earlier({"all": features(5, stored, 9)}, scale)
    index_BK = torch.tensor([[0, 4, 8], [1, 2, 3]])
    score = kept_mask(index_BK, 9).float()
    tokens = SparseStream(
        pruned(9, 3), step, batch=2, rows=rows, score=lambda x: Scores(score), fill=FILLS["cache"], earlier=earlier
    )
    x_RNC = features(6, rows.stop - rows.start, 9)
    stream = tokens.leave(tokens.enter(0, x_RNC))
    expected = x_RNC + earlier.changes["all"][served] * (1 - score.repeat(len(x_RNC) // 2, 1))[..., None]
    torch.testing.assert_close(stream, expected)


@pytest.mark.parametrize("fill", FILLS)
def test_sublayer_fills_act_on_the_change_of_each_sublayer(fill):
    """Scope sublayer: the stream stays whole, each sub-layer sees kept tokens only and its change is filled."""
    scale, before = sv.Scale(1, 5, 4), sv.Scale(1, 3, 2)
    first, step = sv.ScaleSchedule([before, scale]).passes
    earlier = Earlier()
    recording = RecordingSublayers(first, range(2), earlier)
    score = torch.rand(1, 20, generator=torch.Generator().manual_seed(4)) + anchor_mask(scale)
    tokens = AroundSublayers(
        pruned(20, 9), step, batch=1, rows=slice(0, 2), score=lambda x: Scores(score), fill=FILLS[fill], earlier=earlier
    )
    x, x_6 = features(1, 2, 20), features(2, 2, 6)
    for layer, name in itertools.product(range(2), ("attn", "ffn")):
        recording.enter(layer, x_6)
        recording.through(torch.tanh, x_6, site=(layer, name))
        assert tokens.enter(layer, x) is x
        change = tokens.through(torch.tanh, x, site=(layer, name))
        is_kept = tokens.kept_BN().expand(2, -1)
        origin = nearest_kept(is_kept & anchor_mask(scale) if fill == "anchor" else is_kept, scale)
        origin = torch.where(is_kept, torch.arange(20), origin)
        if fill in ("zero", "repeat"):
            expected = torch.tanh(x) * is_kept[..., None]
        elif fill == "cache":
            grid = torch.tanh(x_6).view(2, 3, 2, 16).permute(0, 3, 1, 2)
            resized = F.interpolate(grid, size=(5, 4), mode="area").flatten(2).transpose(1, 2)
            expected = torch.where(is_kept[..., None], torch.tanh(x), resized)
        else:
            expected = torch.tanh(x).gather(1, origin[..., None].expand(-1, -1, 16))
        torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-6)
    assert tokens.leave(x) is x and tokens.spread(x) is x and tokens.added_BN is None


def test_the_conditional_row_chooses_for_both():
    """One index set per image, scored in float32 on the conditional rows, or on the rows that run (DESIGN 2.7)."""
    scale, seen = sv.Scale(1, 3, 4), []

    def score(x_BLC):
        seen.append(x_BLC)
        return Scores(x_BLC.sum(-1))

    x = features(0, 4, 12).to(torch.bfloat16)
    step = sv.ScaleSchedule([scale]).passes[0]
    for rows in (slice(0, 4), slice(0, 2), slice(2, 4)):
        x_RLC = x[rows]
        tokens = SparseStream(pruned(12, 5), step, batch=2, rows=rows, score=score, fill=FILLS["nearest"])
        picked = tokens.enter(0, x_RLC)
        assert torch.equal(seen[-1], x_RLC[:2].float()) and seen[-1].dtype == torch.float32
        index_RK = keep_top(x_RLC[:2].float().sum(-1), 5).repeat(len(x_RLC) // 2, 1)
        assert torch.equal(picked, x_RLC.gather(1, index_RK[..., None].expand(-1, -1, 16)))


def test_tables_are_gathered_where_the_stream_is_sparse():
    """Rotary rows and positions follow their tokens (DESIGN 2.8)."""
    scale = sv.Scale(1, 4, 3)
    step = sv.ScaleSchedule([scale]).passes[0]
    score = torch.rand(2, 12, generator=torch.Generator().manual_seed(1))
    tokens = SparseStream(
        pruned(12, 5), step, batch=2, rows=slice(0, 4), score=lambda x: Scores(score), fill=FILLS["nearest"]
    )
    table = torch.arange(12.0).view(1, 12, 1)
    assert tokens.rows(table) is table
    tokens.enter(0, features(0, 4, 12))
    gathered = tokens.rows(table)[..., 0]
    assert gathered.tolist() == keep_top(score, 5).float().tolist()


def test_asking_for_the_tokens_of_a_pass_changes_nothing():
    """The loop asks before it knows whether passes run together: what is remembered stays until another pass runs."""
    schedule = sv.ScaleSchedule([(1, 1, 1), (1, 2, 2), (1, 3, 3)])
    for scope, x in itertools.product(("scale", "sublayer"), (features(0, 1, 4),)):
        policy = sv.StepVAR((0.5,), scope=scope, fill="cache")
        about = About(schedule, layers=2, width=16, device="cpu")
        run = policy.begin(about, policy.plan(about))
        tokens = run.tokens(schedule.passes[1:2], slice(0, 1))
        for layer in range(2):
            tokens.through(torch.tanh, tokens.enter(layer, x), (layer, "attn"))
        tokens.leave(x + 1)
        before = dict(run.earlier.changes)
        assert len(before) == (1 if scope == "scale" else 2)
        for step in schedule.passes:
            run.tokens((step,), slice(0, 1))
        assert run.earlier.changes == before and run.earlier.scale == schedule.scales[1]


def test_every_setting_of_stepvar_is_an_option_and_has_its_default():
    settings = vars(sv.StepVAR(()))
    assert {option.name for option in OPTIONS} | {"ratios", "protect"} == set(settings)
    for option in OPTIONS:
        assert settings[option.name] == option.default == option.checked(option.default)
