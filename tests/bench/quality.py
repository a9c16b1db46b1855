"""How far pruned pictures are from dense ones of the same seed, what they cost, and which setting is best: the
paper's ablations.

    python -m tests.bench.quality --out quality                      # every experiment on the bundled demo model,
    hours on a CPU python -m tests.bench.quality --out quality --experiments fill ratio --pictures 44 python -m
    tests.bench.quality --out quality --classifier .demo-work/classifier.pt python -m tests.bench.quality --out
    quality --calibrate          # the table behind auto_goal of StepVAR Pruning

Dense and pruned runs share batch, seed and noise, so pruning is the only difference; dense pictures are made once.
Results are appended to results.jsonl as they come and never computed twice: stop and start at will. Each experiment
becomes a Markdown table and a chart. Numbers are means with 95 % bootstrap intervals over pictures (pairs of label
and seed), differences are paired.

The demo model's classifier is not part of the pack (training leaves it in .demo-work): without --classifier the columns
"crops recognised" and "Frechet" are left out.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import stepvar_core as sv
from stepvar_core.checkpoints import read_checkpoint
from stepvar_core.demo import MODEL_FILE, VAE_FILE
from stepvar_core.demo.evaluate import PICTURE, Classifier, nine_crops
from stepvar_core.planning.goals import update_index
from stepvar_core.viewing.metrics import gradient_deviation, psnr, radial_spectrum_error, ssim

from .experiments import Experiment, FadingVAE, Peek, Setting, experiments
from .plots import Panel, Point, Series, draw, front

MODES = {"greedy": {"top_k": 1}, "sampled": {}}
LARGEST_PSNR = 60.0  # dB; equal pictures have no finite one
RESAMPLES = 1000
SAY_SECONDS = 20
DENSE = Setting("dense", {"ratios": ()})


@dataclass(frozen=True)
class Metric:
    title: str
    unit: str
    digits: int
    is_better_high: bool = True


METRICS = {
    "psnr": Metric("PSNR", "dB", 1),
    "ssim": Metric("SSIM", "", 3),
    "gmsd": Metric("gradient deviation", "", 4, False),
    "spectrum": Metric("spectrum error", "dB", 2, False),
    "codes": Metric("equal codes", "%", 0),
    "energy": Metric("residual energy kept", "%", 0),
    "label": Metric("crops recognised", "%", 1),
}


class Bench:
    """The models, the folder with results, and one generation of pictures at a time."""

    def __init__(self, a: argparse.Namespace):
        self.model, self.vae = sv.load_model(a.model, device=a.device), sv.load_vae(a.vae, device=a.device)
        self.schedule, self.device, self.batch, self.out = self.model.schedule(), a.device, a.batch, Path(a.out)
        classes = self.model.config.num_classes
        self.pictures = {
            mode: a.pictures if mode == "sampled" else min(a.pictures, classes) for mode in a.modes
        }  # greedy: one picture per label
        self.judge = load_classifier(a.classifier, a.device) if a.classifier else None
        self.out.mkdir(parents=True, exist_ok=True)
        self._check_header(
            {
                "model": digest(a.model),
                "vae": digest(a.vae),
                "batch": a.batch,
                "classifier": digest(a.classifier) if a.classifier else None,
            }
        )
        self.results = {}
        file = self.out / "results.jsonl"
        if file.is_file():
            for line in file.read_text().splitlines():
                record = json.loads(line)
                self.results[record["mode"], record["key"], record["start"]] = record

    def _check_header(self, header: dict) -> None:
        file = self.out / "run.json"
        if file.is_file() and (found := json.loads(file.read_text())) != header:
            different = ", ".join(k for k in header if found.get(k) != header[k])
            sys.exit(
                f"{file} belongs to a run with another {different}. Choose another folder with --out, or delete this "
                "one."
            )
        file.write_text(json.dumps(header, indent=1))

    def starts(self, mode: str) -> range:
        return range(0, self.pictures[mode], self.batch)

    def labels(self, mode: str, start: int) -> list[int]:
        return [
            (start + i) % self.model.config.num_classes for i in range(min(self.batch, self.pictures[mode] - start))
        ]

    def sample(self, mode: str, start: int, policy, vae=None, on_scale=None) -> tuple[sv.Result, float, float]:
        """The pictures `start`… of a mode, wall seconds and CPU seconds."""
        condition = self.model.class_condition(self.labels(mode, start))
        wall, cpu = time.perf_counter(), time.process_time()
        result = sv.sample(
            self.model,
            vae or self.vae,
            condition,
            schedule=self.schedule,
            seed=start,
            pruning=policy,
            on_scale=on_scale,
            **MODES[mode],
        )
        if self.device != "cpu":
            torch.cuda.synchronize()
        return result, time.perf_counter() - wall, time.process_time() - cpu

    @torch.inference_mode()
    def dense(self, mode: str, start: int) -> dict[str, Tensor]:
        """Of the run without pruning: pictures, codes, per pass the energy still to come at each position and the
        update index. Made once."""
        file = self.out / "dense" / f"{mode}_{start}.safetensors"
        if file.is_file():
            return load_file(file)
        f_hats = []
        result, _, _ = self.sample(mode, start, None, on_scale=lambda step: f_hats.append(step.f_hat.cpu()))
        final, before = f_hats[-1], [torch.zeros_like(f_hats[-1]), *f_hats]
        made = {"images": self.vae.decode(result.latent).cpu(), "codes": torch.cat(result.codes, 1).cpu()}
        for i, step in enumerate(self.schedule.passes):
            energy = (final - before[i]).square().sum(1, keepdim=True)
            made[f"energy_{i}"] = F.interpolate(energy, size=(step.scale.h, step.scale.w), mode="area").flatten(1)
        made["index"] = torch.stack([update_index(b, f_hat) for b, f_hat in zip(before, f_hats)], 1)
        if self.judge is not None:
            made["features"] = self.judge.features(made["images"])
        file.parent.mkdir(exist_ok=True)
        made = {k: v.contiguous() for k, v in made.items()}
        save_file(made, file)
        return made

    @torch.inference_mode()
    def measure(self, mode: str, setting: Setting, start: int) -> dict:
        """All numbers of one setting on one batch, computed or read."""
        known = self.results.get((mode, setting.key, start))
        if known is not None:
            return known
        dense = self.dense(mode, start)
        peek = Peek([dense[f"energy_{i}"] for i in range(len(self.schedule.passes))])
        vae = FadingVAE(self.vae, peek) if setting.blend else self.vae
        result, wall, cpu = self.sample(mode, start, setting.policy(peek), vae)
        images = self.vae.decode(result.latent).cpu()
        passes = zip(result.codes, self.schedule.passes)
        codes = torch.cat(
            [c.cpu() if c.shape[1] else torch.full((len(images), p.scale.tokens), -2) for c, p in passes], 1
        )
        shares = [
            (dense[f"energy_{i}"] * s.kept.flatten(1)).sum(1) / dense[f"energy_{i}"].sum(1)
            for i, s in enumerate(result.trace.scales)
            if s.tokens_run < s.tokens
        ]
        record = {
            "mode": mode,
            "key": setting.key,
            "start": start,
            "seconds": wall,
            "cpu": cpu,
            "psnr": numbers(psnr(dense["images"], images).clamp(max=LARGEST_PSNR)),
            "ssim": numbers(ssim(dense["images"], images)),
            "gmsd": numbers(gradient_deviation(dense["images"], images)),
            "spectrum": numbers(radial_spectrum_error(dense["images"], images)),
            "codes": numbers(100 * (codes == dense["codes"]).float().mean(1)),
            "energy": numbers(100 * torch.stack(shares).mean(0)) if shares else [100.0] * len(images),
        }
        if self.judge is not None:
            record["label"] = numbers(100 * self.judge.recognised(images, torch.tensor(self.labels(mode, start))))
            record["features"] = base64.b64encode(self.judge.features(images).half().numpy().tobytes()).decode()
        with open(self.out / "results.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        self.results[mode, setting.key, start] = record
        return record

    def run(self, wanted: list[Setting], modes: tuple[str, ...] = tuple(MODES)) -> None:
        """Everything that is missing, batch by batch, so that an early stop leaves all settings with as many
        pictures."""
        todo = [
            (mode, start, setting)
            for mode in self.pictures
            if mode in modes
            for start in self.starts(mode)
            for setting in wanted
            if (mode, setting.key, start) not in self.results
        ]
        began = said = time.monotonic()
        for done, (mode, start, setting) in enumerate(todo, 1):
            self.measure(mode, setting, start)
            now = time.monotonic()
            if now - said > SAY_SECONDS:
                said = now
                print(
                    f"{done}/{len(todo)} {mode} {start}, {(now - began) / done * (len(todo) - done) / 60:.0f} min left",
                    file=sys.stderr,
                    flush=True,
                )

    def column(self, mode: str, setting: Setting, name: str) -> np.ndarray:
        """One number per picture, in the order of labels and seeds."""
        found = [
            self.results[mode, setting.key, s][name]
            for s in self.starts(mode)
            if (mode, setting.key, s) in self.results
        ]
        return np.concatenate(found) if found and isinstance(found[0], list) else np.array(found)

    def features(self, mode: str, setting: Setting) -> np.ndarray:
        blobs = [self.results[mode, setting.key, s]["features"] for s in self.starts(mode)]
        rows = [np.frombuffer(base64.b64decode(b), dtype=np.float16).reshape(-1, self.judge.width) for b in blobs]
        return np.concatenate(rows).astype(np.float64)

    def speedups(self, mode: str, setting: Setting) -> tuple[float, float]:
        """Predicted from FLOPs, and measured: median over batches of the dense time over this one's. CPU time on the
        CPU, else wall."""
        clock = "cpu" if self.device == "cpu" else "seconds"
        predicted = sv.estimate(self.model, self.schedule, setting.policy(), batch=self.batch).speedup
        return predicted, float(np.median(self.column(mode, DENSE, clock) / self.column(mode, setting, clock)))


def digest(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def numbers(values: Tensor) -> list[float]:
    return [round(v, 5) for v in values.tolist()]


class Judge:
    """The demo model's classifier: what a picture shows, and features whose distribution the Frechet distance
    compares."""

    def __init__(self, classifier: Classifier, device: str):
        self.classifier, self.device = classifier, device
        self.width = classifier.head.in_features // 4

    def recognised(self, image_BHW3: Tensor, labels_B: Tensor) -> Tensor:
        """(B,): share of a picture's nine crops that are named right; a vote of all nine is too easy to tell settings
        apart."""
        named = [self.classifier(crop).argmax(1).cpu() == labels_B for crop in self._crops(image_BHW3)]
        return torch.stack(named).float().mean(0)

    def features(self, image_BHW3: Tensor) -> Tensor:
        """(B, width): the last maps' means. Fewer numbers than the head reads: a covariance needs more pictures than
        numbers."""
        return torch.stack([self.classifier.body(crop).mean((2, 3)) for crop in self._crops(image_BHW3)]).mean(0).cpu()

    def _crops(self, image_BHW3: Tensor) -> list[Tensor]:
        if image_BHW3.shape[1:3] != (PICTURE, PICTURE):
            sys.exit(
                f"The classifier judges pictures of {PICTURE} x {PICTURE} pixels; this model draws "
                f"{image_BHW3.shape[2]} x {image_BHW3.shape[1]}. "
                "Leave out --classifier."
            )
        return nine_crops(image_BHW3.to(self.device).movedim(-1, 1) * 2 - 1)


def load_classifier(path, device: str) -> Judge:
    tensors = read_checkpoint(path).tensors
    classifier = Classifier(len(tensors["head.bias"]))
    classifier.load_state_dict(tensors)
    return Judge(classifier.to(device).requires_grad_(False).train(False), device)


# statistics ---------------------------------------------------------------------------------------


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and its bootstrap interval (Efron 1979, percentiles)."""
    means = values[np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(values.mean()), float(low), float(high)


def frechet(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """|m - n|^2 + tr(A + B - 2 (A B)^1/2) of two sets of features (Heusel et al. 2017, equation 6)."""
    covariances = [np.cov(x, rowvar=False) for x in (a_ND, b_ND)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    return float(
        ((a_ND.mean(0) - b_ND.mean(0)) ** 2).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared
    )


def frechet_interval(a_ND: np.ndarray, b_ND: np.ndarray, resamples: int = 60) -> tuple[float, float, float]:
    """Pictures of both sets are drawn together: they are pairs."""
    rng = np.random.default_rng(0)
    found = [frechet(a_ND[i], b_ND[i]) for i in rng.integers(0, len(a_ND), (resamples, len(a_ND)))]
    return frechet(a_ND, b_ND), float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


# report -------------------------------------------------------------------------------------------


def cell(values: tuple[float, float, float], digits: int, sign: str = "") -> str:
    """Mean and half the interval's width, "27.2 +- 0.6" with the proper sign."""
    return f"{values[0]:{sign}.{digits}f} \u00b1 {(values[2] - values[1]) / 2:.{digits}f}"


def baseline(experiment: Experiment, series: str, x: float | None) -> Setting:
    """What a setting is compared with: the one of that name; else the baseline series at the same x; else, of a lone
    series, the first."""
    named = [s for _, _, s in experiment.settings if s.name == experiment.baseline]
    same = [s for other, at, s in experiment.settings if other == experiment.baseline and at == x]
    is_lone = len({other for other, _, _ in experiment.settings}) == 1
    return (
        named or ([] if is_lone else same) or [s for other, _, s in experiment.settings if other == experiment.baseline]
    )[0]


def table(bench: Bench, mode: str, name: str, experiment: Experiment) -> str:
    """Markdown: one row per setting."""
    shown = [m for m in METRICS if m != "label" or bench.judge]
    heads = ["setting", *(METRICS[m].title + (f", {METRICS[m].unit}" if METRICS[m].unit else "") for m in shown)]
    heads += ["Frechet to dense"] if bench.judge else []
    heads += [f"PSNR, paired difference to {experiment.baseline}", "FLOP speed-up", "measured speed-up"]
    lines = [
        f"### {experiment.title} ({name}, {mode}, {bench.pictures[mode]} pictures)",
        "",
        experiment.question,
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for series, x, setting in experiment.settings:
        row = [setting.name, *(cell(interval(bench.column(mode, setting, m)), METRICS[m].digits) for m in shown)]
        if bench.judge:
            row.append(cell(frechet_interval(bench.features(mode, DENSE), bench.features(mode, setting)), 2))
        base = baseline(experiment, series, x)
        difference = bench.column(mode, setting, "psnr") - bench.column(mode, base, "psnr")
        row.append("-" if base.key == setting.key else cell(interval(difference), 2, "+"))
        lines.append("| " + " | ".join([*row, *(f"{v:.2f}" for v in bench.speedups(mode, setting))]) + " |")
    return "\n".join(lines) + "\n"


def chart(bench: Bench, mode: str, experiment: Experiment, metric: str) -> Panel:
    about = METRICS[metric]
    x_name = f"{about.title}{f', {about.unit}' if about.unit else ''} to dense"
    title = f"{experiment.title}: {about.title}, {mode}"
    found = {(series, x, s.name): interval(bench.column(mode, s, metric)) for series, x, s in experiment.settings}
    if experiment.settings[0][1] is None:
        rows = [s.name for _, _, s in experiment.settings]
        points = [Point(m, i, x_low=low, x_high=high) for i, (m, low, high) in enumerate(found.values())]
        return Panel(
            title,
            x_name,
            "",
            [Series(title, points, is_line=False)],
            rows,
            (640, 90 + 22 * len(rows)),
            left=30 + 6 * max(map(len, rows)),
        )
    names = dict.fromkeys(series for series, _, _ in experiment.settings)
    lines = [Series(n, [Point(x, *v) for (series, x, _), v in found.items() if series == n]) for n in names]
    return Panel(title, experiment.x_label, x_name, lines)


def pareto(bench: Bench, mode: str, metric: str, clock: int, settings: dict[str, Setting]) -> tuple[Panel, str]:
    """Quality against speed-up as a chart and, numbered as there, the settings that nothing beats."""
    kind, about = ("FLOPs", "measured time")[clock], METRICS[metric]
    points = [
        Point(bench.speedups(mode, s)[clock], interval(bench.column(mode, s, metric))[0], label=name)
        for name, s in settings.items()
    ]
    best = front(points)
    shown = [
        Series("on the front", [replace(p, label=str(i)) for i, p in enumerate(best, 1)]),
        Series("beaten", [replace(p, label="") for p in points if p not in best], is_line=False),
    ]
    lines = [
        f"### Pareto front, {about.title} against {kind} ({mode})",
        "",
        f"| | setting | {kind} speed-up | {about.title} |",
        "|---|---|---|---|",
    ]
    lines += [f"| {i} | {p.label} | {p.x:.2f} | {p.y:.{about.digits}f} |" for i, p in enumerate(best, 1)]
    return Panel(
        f"{about.title} against {kind}, {mode}", f"speed-up by {kind}", f"{about.title} to dense", shown
    ), "\n".join(lines) + "\n"


def report(bench: Bench, chosen: dict[str, Experiment]) -> Path:
    """Writes report.md and the charts for whatever is complete."""
    parts = [
        "# Quality of pruned pictures",
        "",
        f"{bench.model.family}, {bench.schedule.describe()}, batch {bench.batch}, "
        f"threads: {torch.get_num_threads()}, torch {torch.__version__}. Measured speed-ups: "
        + ("CPU time." if bench.device == "cpu" else "wall time.")
        + f" Equal pictures count as {LARGEST_PSNR:g} dB. \u00b1 is half a 95 % "
        "bootstrap interval over pictures; differences are paired by label and seed.",
        "",
    ]
    if bench.judge is None:
        parts += ["No classifier was given (--classifier), so recognition and Frechet distance are left out.", ""]
    for mode in bench.pictures:
        complete = {
            n: e
            for n, e in chosen.items()
            if all((mode, s.key, start) in bench.results for _, _, s in e.settings for start in bench.starts(mode))
        }
        for name, experiment in complete.items():
            parts.append(table(bench, mode, name, experiment))
            file = f"{name}_{mode}.png"
            draw([chart(bench, mode, experiment, m) for m in ("psnr", "ssim")], 2, bench.out / file)
            parts += [f"![{experiment.title}]({file})", ""]
        named = ((n, s) for n, e in complete.items() for _, _, s in e.settings if s.peek != "oracle")
        settings = {s.name if any(c.isalpha() for c in s.name) else f"{n} {s.name}": s for n, s in named}
        settings = {n: s for n, s in {s.key: (n, s) for n, s in settings.items()}.values()}  # one name per setting
        settings = {
            n: s for n, s in settings.items() if bench.speedups(mode, s)[0] > 1.001
        }  # what prunes nothing would stretch the charts
        if settings:
            panels, tables = zip(
                *(pareto(bench, mode, m, clock, settings) for m in ("psnr", "ssim") for clock in (0, 1))
            )
            parts += tables
            file = f"pareto_{mode}.png"
            draw(panels, 2, bench.out / file)
            parts += [f"![Pareto fronts]({file})", ""]
    path = bench.out / "report.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.quality", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        default="quality",
        help="folder for results, tables and charts; a later run goes on where this one stopped",
    )
    parser.add_argument("--experiments", nargs="+", help="names, default all; --list shows them")
    parser.add_argument("--list", action="store_true")
    parser.add_argument(
        "--report", action="store_true", help="run nothing: tables and charts of every experiment that is complete"
    )
    parser.add_argument(
        "--pictures", type=int, default=176, help="pairs of label and seed; greedy runs draw each label once"
    )
    parser.add_argument("--batch", type=int, default=22)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument(
        "--threads", type=int, default=1, help="1 gives CPU times that other programs disturb least; 0 = all"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default=MODEL_FILE)
    parser.add_argument("--vae", default=VAE_FILE)
    parser.add_argument("--classifier", help="the demo training's classifier.pt")
    parser.add_argument(
        "--calibrate", action="store_true", help="measure the table of auto_goal and write it to --table"
    )
    parser.add_argument("--table", help="where --calibrate writes; default: the one the pack uses")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    a = parse(arguments)
    if a.threads:
        torch.set_num_threads(a.threads)
    bench = Bench(a)
    known = experiments(bench.model.cost().layers, bench.model.skips, bench.schedule, bench.model.full_scales)
    if a.list:
        for name, experiment in known.items():
            print(f"{name:18} {len(experiment.settings):3} settings   {experiment.title}. {experiment.question}")
        return
    if a.calibrate:
        from .calibrate import calibrate

        calibrate(bench, a.table)
        return
    unknown = sorted(set(a.experiments or ()) - set(known))
    if unknown:
        sys.exit(f"There is no experiment {', '.join(unknown)}. Choose from {', '.join(known)}.")
    chosen = {n: e for n, e in known.items() if not a.experiments or n in a.experiments}
    settings = {s.key: s for e in chosen.values() for _, _, s in e.settings}
    if not a.report:
        bench.run([DENSE, *settings.values()])
    print(report(bench, chosen))


if __name__ == "__main__":
    main()
