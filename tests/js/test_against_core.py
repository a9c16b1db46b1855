"""The browser reads traces as the core packed them, and fills pruned tokens from where the core fills them."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stepvar_core as sv
from stepvar_core.codecs.vqvae import VQVAE, VQVAEConfig
from stepvar_core.door import prepare
from stepvar_core.families.var.model import VAR, VARConfig
from stepvar_core.methods.fills import anchor_mask, nearest_kept
from stepvar_core.planning.cost import terms
from stepvar_core.schedule import Scale
from stepvar_core.trace import LAYERS, ScaleTrace, Trace, pack_mask, pack_score, pictures_within
from stepvar_core.viewing.overlay import viridis

SCRIPT = Path(__file__).with_name("against_core.mjs")


@pytest.fixture(scope="module", autouse=True)
def node(unavailable):
    if shutil.which("node") is None:
        unavailable("browser", "no Node.js found: install Node 20 or newer")


def in_browser(trace: Trace, scored: int, shades=()) -> dict:
    """What the widgets' modules read of a trace sent as the nodes send it."""

    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    message = trace.as_dict() | {"scored": scored}
    for scale, summary in zip(trace.scales, message["scales"]):
        summary["kept"] = text(pack_mask(scale.kept))
        packed = (
            {name: pack_score(getattr(scale, name)[:scored]) for name in LAYERS}
            if scored and scale.structure is not None
            else {}
        )
        summary["scores"] = {
            name: {"low": low, "high": high, "data": text(data)} for name, (low, high, data) in packed.items()
        }
    task = {"message": message, "fills": ["nearest", "anchor", "zero", "cache", "delta"], "shades": list(shades)}
    done = subprocess.run(["node", str(SCRIPT)], input=json.dumps(task), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def traced(size, batch: int, share: float, generator) -> ScaleTrace:
    kept = torch.rand(batch, *size, generator=generator) < share
    scores = {name: torch.rand(batch, *size, generator=generator) * 3 - 1 for name in LAYERS}
    return ScaleTrace(size, kept, int(kept[0].sum()), 0.01, **scores)


sizes = st.one_of(
    st.tuples(st.just(1), st.integers(1, 19), st.integers(1, 19)),
    st.tuples(st.integers(2, 4), st.integers(1, 7), st.integers(1, 7)),
)


@settings(max_examples=12)
@given(st.lists(st.tuples(sizes, st.floats(0.02, 1)), min_size=4, max_size=8), st.integers(1, 3), st.integers(0, 2**31))
def test_the_browser_fills_from_the_cores_neighbours(shapes, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    trace = Trace(tuple(traced(size, batch, share, generator) for size, share in shapes))
    read = in_browser(trace, batch)
    for scale, pictures in zip(trace.scales, read["scales"]):
        grid = Scale(*scale.size)
        lattice = anchor_mask(grid)
        for kept, picture in zip(scale.kept.flatten(1), pictures):
            own = torch.arange(grid.tokens)
            assert picture["kept"] == kept.int().tolist()
            assert (
                picture["sources"]["zero"] == picture["sources"]["cache"] == own.where(kept, torch.tensor(-1)).tolist()
            )
            assert picture["alpha"] == [0 if k else 128 for k in kept.tolist()]
            if kept.any():
                nearest = nearest_kept(kept[None], grid)[0]
                assert picture["sources"]["nearest"] == picture["sources"]["delta"] == nearest.tolist()
            if (kept & lattice).any():
                assert (
                    picture["sources"]["anchor"]
                    == own.where(kept, nearest_kept((kept & lattice)[None], grid)[0]).tolist()
                )


def test_scores_come_back_to_within_half_a_step_of_their_range():
    trace = Trace(
        (
            traced((1, 16, 16), 3, 0.5, torch.Generator().manual_seed(3)),
            traced((2, 3, 5), 3, 0.5, torch.Generator().manual_seed(4)),
        )
    )
    read = in_browser(trace, scored=2)
    for scale, pictures in zip(trace.scales, read["scales"]):
        for name in LAYERS:
            scores = getattr(scale, name).flatten(1)
            for row, picture in zip(scores[:2], pictures):
                allowed = (row.max() - row.min()).item() / 255 / 2 + 1e-5
                assert (torch.tensor(picture["scores"][name]) - row).abs().max() <= allowed
            assert set(pictures[2]["scores"][name]) == {None}, "scores of the third picture were not sent"


def test_a_constant_score_is_sent_as_it_is():
    flat = torch.full((2, 1, 2, 2), 0.25)
    assert pack_score(flat) == ([0.25, 0.25], [0.25, 0.25], bytes(8))


def test_a_message_holds_as_many_pictures_scores_as_its_bytes_allow():
    trace = Trace(
        (
            traced((1, 4, 4), 5, 0.5, torch.Generator().manual_seed(0)),
            ScaleTrace((1, 8, 8), torch.ones(5, 1, 8, 8, dtype=torch.bool), 64, 0.0),
        )
    )
    per_picture = 4 * 4 * len(LAYERS)
    assert [pictures_within(trace, n) for n in (0, per_picture - 1, per_picture, 4 * per_picture + 1, 10**9)] == [
        0,
        0,
        1,
        4,
        5,
    ]
    assert pictures_within(Trace(trace.scales[1:]), 10**9) == 0


def test_scores_have_the_same_colours_as_a_saved_overlay():
    shades = [i / 64 for i in range(65)]
    trace = Trace((traced((1, 2, 2), 1, 0.5, torch.Generator().manual_seed(0)),))
    expected = viridis(torch.tensor(shades)[None, None])[0, 0] * 255
    assert (torch.tensor(in_browser(trace, 1, shades)["shades"]) - expected).abs().max() <= 0.5 + 1e-4


VISIBLE = {
    "everything before": lambda i: range(i),
    "nothing": lambda i: (),
    "the one before": lambda i: range(max(i - 1, 0), i),
    "first and third": lambda i: [j for j in (0, 2) if j < i],
}


@pytest.mark.parametrize("ratios", [(), (0.7, 0.4), (1.0, 0.5), (0.5, 1.0)])
@pytest.mark.parametrize("visible", VISIBLE)
def test_the_browser_prices_any_visibility_as_the_core_and_the_cache_do(visible, ratios):
    class Sighted(VAR):
        def sees(self, step, schedule):
            return VISIBLE[visible](step.index)

    model = Sighted(VARConfig(patch_nums=(1, 2, 3, 5, 6), depth=2, width=32, heads=2, vocab_size=16, code_dim=8))
    schedule, policy = model.schedule(), sv.StepVAR(ratios, first_layer=1)
    expected = sv.estimate(model, schedule, policy)
    plan = json.loads(json.dumps(terms(model, schedule) | {"model": "m", "family": "f", "batch": 1, "presets": {}}))
    case = {"plan": plan, "ratios": list(ratios), "settings": {"first_layer": 1}}
    done = subprocess.run(
        ["node", SCRIPT.with_name("estimate.mjs")], input=json.dumps([case]), capture_output=True, text=True, check=True
    )
    [found] = json.loads(done.stdout)
    assert [p["flops"] for p in found["passes"]] == [s.flops for s in expected.scales]
    assert found["flops"] == expected.flops and found["denseFlops"] == expected.dense_flops
    assert found["kvBytes"] == expected.kv_bytes
    vae = VQVAE(VQVAEConfig(z_channels=8, vocab_size=16, has_encoder=False, has_decoder=False))
    job = prepare(model, vae, model.class_condition([1]), schedule=schedule, pruning=policy)
    assert job.new_cache().nbytes == expected.kv_bytes
