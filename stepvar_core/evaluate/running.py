"""A whole benchmark: folders checked, prompts shared out here or over Ray, progress, summary."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from ..errors import OptionError
from .drawing import Drawer, Plan
from .prompts import Prompt
from .text import TextEncoder

log = logging.getLogger(__name__)


def check_folder(plan: Plan) -> None:
    """Raises OptionError when the folder holds pictures of other settings."""
    file = Path(plan.out) / "run.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps(plan.header()))
    if file.is_file() and (found := json.loads(file.read_text())) != wanted:
        different = ", ".join(sorted(k for k in {**wanted, **found} if found.get(k) != wanted.get(k)))
        raise OptionError(
            f"{plan.out} holds pictures of another {different}.", "Choose another --out, or delete the folder."
        )
    file.write_text(json.dumps(wanted, indent=1))


def chunks(prompts: Sequence[Prompt], plan: Plan) -> Iterator[Sequence[Prompt]]:
    """Whole prompts, as many as fill a batch."""
    size = max(1, plan.batch // plan.per_prompt)
    return (prompts[i : i + size] for i in range(0, len(prompts), size))


def run(plan: Plan, prompts: Sequence[Prompt], with_ray: bool = False, workers: int = 0) -> int:
    """Draws what is missing and appends its timings to timings.jsonl; returns the number of prompts drawn."""
    check_folder(plan)
    todo = [p for p in prompts if not plan.is_finished(p)]
    if not todo:
        return 0
    records = ray_records(plan, todo, workers) if with_ray else local_records(plan, todo)
    with open(Path(plan.out) / "timings.jsonl", "a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
            file.flush()
    return len(todo)


def local_records(plan: Plan, prompts: Sequence[Prompt]) -> Iterator[dict]:
    drawer = Drawer(plan)
    with bar(len(prompts)) as progress:
        for part in chunks(prompts, plan):
            yield from drawer.draw(part)
            progress(len(part))


def ray_records(plan: Plan, prompts: Sequence[Prompt], workers: int) -> Iterator[dict]:
    """The same on every worker of a Ray cluster; each holds the models and one GPU where --device is cuda."""
    try:
        import ray
    except ImportError as error:
        raise OptionError(
            "--ray needs the Ray package.", 'pip install "ray[data]" on every machine, or leave --ray out.'
        ) from error
    needs: Any = {"num_gpus": 1} if plan.device.startswith("cuda") else {"num_cpus": 1}
    if not workers:
        ray.init(ignore_reinit_error=True)
        workers = max(1, int(ray.cluster_resources().get("GPU" if "num_gpus" in needs else "CPU", 1)))
    rows = ray.data.from_items([asdict(p) for p in prompts], override_num_blocks=min(len(prompts), 4 * workers))
    size = max(1, plan.batch // plan.per_prompt)
    drawn = rows.map_batches(
        Drawer, fn_constructor_args=(plan,), batch_size=size, concurrency=min(workers, len(prompts)), **needs
    )
    with bar(len(prompts)) as progress:
        for row in drawn.iter_rows():
            record = json.loads(row["records"])
            progress(len(set(record["ids"])))
            yield record


class bar:
    """tqdm's bar where it is installed, as beside ComfyUI; else a line now and then."""

    def __init__(self, total: int):
        self.total, self.done, self.began = total, 0, time.monotonic()
        try:
            from tqdm import tqdm

            self.tqdm = tqdm(total=total, unit="prompt")
        except ImportError:
            self.tqdm = None

    def __enter__(self) -> Callable[[int], None]:
        return self.step

    def step(self, count: int) -> None:
        self.done += count
        if self.tqdm is not None:
            self.tqdm.update(count)
        else:
            left = (time.monotonic() - self.began) / self.done * (self.total - self.done)
            log.info("%d of %d prompts, %.0f minutes left", self.done, self.total, left / 60)

    def __exit__(self, *error) -> None:
        if self.tqdm is not None:
            self.tqdm.close()


def pack_npz(files: Iterable[Path], target: Path) -> None:
    """arr_0 (N, H, W, 3) uint8, uncompressed, as the evaluator of openai/guided-diffusion maps it."""
    pictures = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    np.savez(target, arr_0=pictures)


def encode_all(plan: Plan, prompts: Sequence[Prompt], target: str) -> None:
    """Writes the features of all prompts for --features, so that the encoder need not share a GPU with the model."""
    encoder, found = TextEncoder(plan.text_encoder, plan.device), {}
    with bar(len(prompts)) as progress:
        for prompt in prompts:
            found[prompt.id] = encoder(prompt).half().cpu().contiguous()
            progress(1)
    save_file(found, target)


def summary(plan: Plan) -> str:
    file = Path(plan.out) / "timings.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    pictures = sum(r["pictures"] for r in records)
    if not pictures:
        return ""
    # the first batch of a run warms up; medians do not mind
    loop, whole = (float(np.median([r[k] / r["pictures"] for r in records])) for k in ("scale_seconds", "seconds"))
    return (
        f"{pictures} pictures timed: {loop:.3f} s a picture in the scale loop, {whole:.3f} s with decoding "
        f"(medians over batches of up to {plan.batch})."
    )
