"""The table behind auto_goal: how alike pictures are on each rung of the ladder, and what their update index says
about it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from stepvar_core.planning.goals import LADDER, TABLES, Table, ladder_ratios

from .experiments import Setting

MODE = "sampled"
PAIRS = (("stepvar", "nearest"), ("update", "zero"))


def falling(values: np.ndarray) -> np.ndarray:
    """The falling sequence nearest in squares: neighbours that rise are averaged (pool adjacent violators)."""
    blocks = []
    for value in values:
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            mean, count = blocks.pop()
            blocks[-1] = [
                (blocks[-1][0] * blocks[-1][1] + mean * count) / (blocks[-1][1] + count),
                blocks[-1][1] + count,
            ]
    return np.concatenate([[mean] * count for mean, count in blocks])


def slope_of(index_N: np.ndarray, loss_RN: np.ndarray) -> float:
    """s of loss = rung's loss * (index / mean index) ** s, fitted over all rungs at once; never negative."""
    x = np.log(index_N) - np.log(index_N).mean()
    logs = np.log(loss_RN.clip(1e-6))
    y = logs - logs.mean(1, keepdims=True)
    return max(0.0, float((x * y).sum() / (len(y) * (x * x).sum())))


def rungs(selector: str, fill: str) -> list[Setting]:
    places = [i / (len(LADDER) - 1) for i in range(len(LADDER))]
    return [
        Setting(f"{selector}, {fill}, rung {i}", {"ratios": ladder_ratios(p), "selector": selector, "fill": fill})
        for i, p in enumerate(places)
    ][1:]


def calibrate(bench, path: str | None) -> None:
    """Measures every rung, prints what was found, and replaces this model's entries in the file of tables."""
    path = Path(path or TABLES)
    cost, final = bench.model.cost(), bench.schedule.final
    before = len(bench.schedule) - max(map(len, LADDER)) - 1  # the last pass that is never pruned
    found = []
    for selector, fill in PAIRS:
        settings = rungs(selector, fill)
        bench.run(settings, (MODE,))
        ssim_RN = np.stack([bench.column(MODE, s, "ssim") for s in settings])
        index_N = np.concatenate([bench.dense(MODE, start)["index"][:, before].numpy() for start in bench.starts(MODE)])
        means = np.concatenate([[1.0], falling(ssim_RN.mean(1))])
        found.append(
            Table(
                bench.model.family,
                (final.h, final.w),
                cost.layers,
                cost.width,
                selector,
                fill,
                tuple(round(float(m), 4) for m in means),
                round(float(np.exp(np.log(index_N).mean())), 4),
                round(slope_of(index_N, 1 - ssim_RN), 3),
                len(index_N),
            )
        )
        print(found[-1])
        related = [np.corrcoef(np.log(index_N), np.log((1 - r).clip(1e-6)))[0, 1] for r in ssim_RN]
        print("correlation of log index and log loss per rung:", " ".join(f"{r:.2f}" for r in related))
    known = json.loads(path.read_text())["tables"] if path.is_file() else []
    own = {k: v for k, v in asdict(found[0]).items() if k in ("family", "layers", "width")} | {
        "grid": list(found[0].grid)
    }
    others = [t for t in known if any(t[k] != v for k, v in own.items())]
    entries = ",\n  ".join(json.dumps(t) for t in [*others, *map(asdict, found)])
    path.write_text('{"made_by": "python -m tests.bench.quality --calibrate",\n "tables": [\n  ' + entries + "\n ]}\n")
    print(path)
