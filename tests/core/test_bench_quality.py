"""The quality bench itself: its statistics against known answers, and a run that stops and goes on."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import save, tiny_vae, tiny_var

import stepvar_core as sv
from stepvar_core.planning.goals import LADDER, read_tables
from tests.bench import calibrate, quality
from tests.bench.experiments import Setting, experiments
from tests.bench.plots import Panel, Point, Series, draw, front, nice_ticks

numbers = st.floats(-100, 100, allow_nan=False)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30))
def test_the_front_is_what_nothing_beats(pairs):
    points = [Point(x, y) for x, y in pairs]
    best = front(points)
    for p in points:
        is_beaten = any(q.x >= p.x and q.y >= p.y and (q.x > p.x or q.y > p.y) for q in points)
        assert is_beaten == ((p.x, p.y) not in [(b.x, b.y) for b in best])
    assert [p.x for p in best] == sorted(p.x for p in best)


@given(numbers, st.floats(1e-3, 1e3))
def test_ticks_are_round_and_cover_the_range(low, spread):
    ticks = nice_ticks(low, low + spread)
    assert ticks[0] <= low + 1e-6 * spread and ticks[-1] >= low + spread - 1e-6 * spread and 3 <= len(ticks) <= 10


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = [low <= 5 <= high for _, low, high in (quality.interval(rng.normal(5, 2, 40)) for _ in range(200))]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_the_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(2)
    a = rng.normal(0, 1, (4000, 3))
    b = rng.normal(0, 1, (4000, 3)) * [1, 2, 3] + [1, 0, 0]
    assert quality.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert quality.frechet(a, b) == pytest.approx(1 + 1 + 4, rel=0.1)  # |m|^2 + sum (s - 1)^2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_the_falling_fit_falls_and_keeps_the_mean(values):
    fitted = calibrate.falling(np.array(values))
    assert (np.diff(fitted) <= 1e-12).all() and fitted.mean() == pytest.approx(np.mean(values), abs=1e-9)
    if sorted(values, reverse=True) == values:
        assert fitted.tolist() == pytest.approx(values)


def test_the_slope_is_the_power_that_was_put_in():
    index = np.array([0.1, 0.2, 0.5, 0.9])
    losses = np.stack([scale * index**0.6 for scale in (0.01, 0.1)])
    assert calibrate.slope_of(index, losses) == pytest.approx(0.6)
    assert calibrate.slope_of(index, losses[:, ::-1]) == 0


def test_every_experiment_is_made_of_valid_settings():
    schedule = sv.ScaleSchedule.square((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    model, known = (
        tiny_var(depth=6, edges=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
        experiments(6, "var", schedule, len(schedule)),
    )
    for name, experiment in known.items():
        for _, _, setting in experiment.settings:
            sv.estimate(model, schedule, setting.policy(), batch=2)
        names = [s.name for _, _, s in experiment.settings]
        assert len(set(names)) == len(names), name
        assert experiment.baseline in names or experiment.baseline in {
            series for series, _, _ in experiment.settings
        }, name


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, edges = tmp_path_factory.mktemp("models"), (1, 2, 3, 4, 5, 6, 8)
    about = {"patch_nums": json.dumps(edges), "norm_groups": "2"}
    return [
        "--model",
        str(save(tiny_var(edges=edges), folder / "var.safetensors", **about)),
        "--vae",
        str(save(tiny_vae(edges=edges, has_encoder=True, has_decoder=True), folder / "vae.safetensors", **about)),
    ]


def test_a_stopped_bench_goes_on_and_reports(tmp_path, models, monkeypatch):
    arguments = ["--out", str(tmp_path), "--experiments", "normalise", "kernel", "--batch", "2", *models]
    quality.main([*arguments, "--pictures", "2"])
    first, made, real = (tmp_path / "results.jsonl").read_text(), [], quality.Bench.sample
    monkeypatch.setattr(
        quality.Bench,
        "sample",
        lambda self, mode, start, *a, **k: made.append((mode, start)) or real(self, mode, start, *a, **k),
    )
    quality.main([*arguments, "--pictures", "4"])
    assert (tmp_path / "results.jsonl").read_text().startswith(first) and {start for _, start in made} == {2}
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    for said in (
        "How scores are made comparable (normalise, greedy, 4 pictures)",
        "Neighbourhood of texture (kernel, sampled",
        "No classifier was given",
        "Pareto front, SSIM against measured time (sampled)",
    ):
        assert said in report
    for chart in ("normalise_sampled.png", "kernel_greedy.png", "pareto_sampled.png"):
        assert len(set(Image.open(tmp_path / chart).convert("L").tobytes())) > 30


def test_settings_of_the_bench_alone(tmp_path, models):
    """Nothing pruned is the dense picture; the oracle keeps at least the energy of any other choice; fades and sure
    copies draw."""
    bench = quality.Bench(
        quality.parse(["--out", str(tmp_path), "--pictures", "2", "--batch", "2", "--modes", "sampled", *models])
    )
    half = {"ratios": (0.5,)}

    def measured(**options) -> dict:
        return bench.measure("sampled", Setting("", **options), 0)

    dense = measured(options={"ratios": (0.0, 0.0)})
    assert (
        dense["psnr"] == [60.0] * 2
        and dense["ssim"] == pytest.approx([1.0] * 2, abs=1e-6)
        and dense["codes"] == dense["energy"] == [100.0] * 2
    )
    oracle = measured(options=half, peek="oracle")["energy"]
    for other in ("update_two", "update_texture"):
        assert all(a >= b for a, b in zip(oracle, measured(options=half, peek=other)["energy"]))
    zero, faint, copy = (
        measured(options=half | {"fill": "zero"}),
        measured(options=half, blend=0.05),
        measured(options=half),
    )
    assert faint["ssim"] == pytest.approx(zero["ssim"], abs=1e-4), "a fade of no width adds nothing"
    assert (
        measured(options=half, blend=50.0)["ssim"] == pytest.approx(copy["ssim"], abs=1e-2)
        and copy["ssim"] != zero["ssim"]
    )
    assert measured(options=half, sure=True)["psnr"] != copy["psnr"]


def test_results_of_another_model_are_not_mixed(tmp_path, models):
    (tmp_path / "run.json").write_text(json.dumps({"model": "other"}))
    with pytest.raises(SystemExit, match="another model"):
        quality.main(["--out", str(tmp_path), *models])


def test_calibration_writes_a_table_the_node_reads(tmp_path, models):
    table = tmp_path / "tables.json"
    arguments = ["--calibrate", "--table", str(table), "--pictures", "4", "--batch", "2", *models]
    quality.main(["--out", str(tmp_path / "a"), *arguments])
    quality.main(["--out", str(tmp_path / "a"), *arguments])  # replaces its own entries
    tables = read_tables(table)
    assert [(t.selector, t.fill) for t in tables] == [("stepvar", "nearest"), ("update", "zero")]
    for t in tables:
        assert (t.family, t.grid, t.layers, t.width, t.pictures) == ("var", (8, 8), 2, 32, 4)
        assert len(t.ssim) == len(LADDER) and t.ssim[0] == 1 and list(t.ssim) == sorted(t.ssim, reverse=True)


def test_an_empty_chart_is_drawn_too(tmp_path):
    draw([Panel("nothing", "x", "y", [Series("a", [])])], 1, tmp_path / "empty.png")
    assert Image.open(tmp_path / "empty.png").size == (560, 380)
