"""One process's share of a benchmark: a model, and the pictures it draws."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..door import sample
from ..families.registry import family_of, load_model, load_vae
from ..labels import class_names, parse_labels
from ..methods import accelerator
from ..methods.policy import Policy
from ..methods.presets import Preset
from ..methods.stepvar import StepVAR
from .prompts import LAYOUTS, Prompt
from .text import reader


@dataclass(frozen=True)
class Plan:
    """Everything a machine needs to draw a prompt's pictures; plain values, so that it travels."""

    out: str
    layout: str
    per_prompt: int
    model: str
    vae: str
    device: str = "cpu"
    dtype: str = "float32"
    batch: int = 4
    seed: int = 0
    preset: str = ""
    pruning: dict = field(default_factory=dict)
    sampling: dict = field(default_factory=dict)
    aspect_ratio: float = 1.0
    size: str | None = None
    features: str = ""
    text_encoder: str = ""
    method: str = ""  # an id of METHODS, whose options `pruning` then holds

    @property
    def images(self) -> Path:
        return Path(self.out) / "images"

    def files(self, prompt: Prompt) -> list[Path]:
        return [self.images / name for name in LAYOUTS[self.layout].files(prompt, self.per_prompt)]

    def is_finished(self, prompt: Prompt) -> bool:
        return all(file.is_file() for file in self.files(prompt))

    def header(self) -> dict:
        """What pictures of one folder must share; machines and batches may differ."""
        return {
            k: v for k, v in asdict(self).items() if k not in ("out", "device", "batch", "features", "text_encoder")
        }


class Drawer:
    """The loaded models; draws prompts and writes their files. Also what each Ray worker holds."""

    def __init__(self, plan: Plan):
        self.plan = plan
        dtype = getattr(torch, plan.dtype)
        self.model = load_model(plan.model, device=plan.device, dtype=dtype)
        self.vae = load_vae(plan.vae, device=plan.device)
        self.schedule = self.model.schedule(plan.aspect_ratio, plan.size)
        self.policy: Policy = (
            accelerator(plan.method, **plan.pruning) if plan.method else StepVAR(**{"ratios": (), **plan.pruning})
        )
        if plan.preset:
            self.policy = Preset(plan.preset, self.policy)
        family = family_of(self.model)
        # None: a class label is read as it is
        self.read = reader(family, plan.features, plan.text_encoder, plan.device) if family.reads_text else None

    def condition(self, prompts: Sequence[Prompt]):
        """One row per prompt given."""
        if self.read is None:
            config = self.model.config
            names = class_names(config)
            return self.model.class_condition([parse_labels(p.text, names, config.num_classes)[0] for p in prompts])
        rows = [self.read(p).to(self.plan.device) for p in prompts]
        features_BTC = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths_B1 = torch.tensor([len(r) for r in rows], device=self.plan.device).unsqueeze(1)
        return self.model.text_condition(
            features_BTC, torch.arange(features_BTC.shape[1], device=self.plan.device) < lengths_B1
        )

    @torch.inference_mode()
    def draw(self, prompts: Sequence[Prompt]) -> list[dict]:
        """Writes the pictures of whole prompts; returns one record of timings per batch."""
        count = self.plan.per_prompt
        wanted = [(prompt, n) for prompt in prompts for n in range(count)]
        pictures, records = [], []
        for start in range(0, len(wanted), self.plan.batch):
            part = wanted[start : start + self.plan.batch]
            began = time.perf_counter()
            result = sample(
                self.model,
                self.vae,
                self.condition([p for p, _ in part]),
                schedule=self.schedule,
                seed=self.plan.seed,
                rows=[p.index * count + n for p, n in part],
                pruning=self.policy,
                **self.plan.sampling,
            )
            loop_seconds = result.trace.seconds  # waits for the device
            decoding = time.perf_counter()
            images = self.vae.decode(result.latent)
            pictures += [(image.float().clamp(0, 1) * 255).round().byte().cpu().numpy() for image in images]
            ended = time.perf_counter()
            records.append(
                {
                    "ids": [p.id for p, _ in part],
                    "pictures": len(part),
                    "scale_seconds": round(loop_seconds, 4),
                    "decode_seconds": round(ended - decoding, 4),
                    "seconds": round(ended - began, 4),
                    "tokens_run": [s.tokens_run for s in result.trace.scales],
                }
            )
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._write, prompts, [pictures[i * count : (i + 1) * count] for i in range(len(prompts))]))
        return records

    def _write(self, prompt: Prompt, pictures: list[np.ndarray]) -> None:
        files = self.plan.files(prompt)
        if prompt.metadata:
            about = files[0].parent.parent / "metadata.jsonl"
            about.parent.mkdir(parents=True, exist_ok=True)
            about.write_text(prompt.metadata + "\n", encoding="utf-8")
        for file, picture in zip(files, [two_columns(pictures)] if LAYOUTS[self.plan.layout].is_grid else pictures):
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            Image.fromarray(picture).save(part, format="PNG")
            part.replace(file)  # a file with its final name is a whole picture, whenever the run was stopped

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list]:
        """A batch of Ray Data: prompts as columns in, timings out."""
        names = list(Prompt.__dataclass_fields__)
        columns: list[dict[str, Any]] = [
            {name: int(rows[name][i]) if name == "index" else str(rows[name][i]) for name in names}
            for i in range(len(rows["id"]))
        ]
        prompts = [Prompt(**column) for column in columns]
        return {"records": [json.dumps(record) for record in self.draw(prompts)]}


def two_columns(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """One picture of all, row by row, two to a row; a single one stays itself."""
    if len(pictures) == 1:
        return pictures[0]
    h, w, _ = pictures[0].shape
    sheet = np.zeros((h * ((len(pictures) + 1) // 2), 2 * w, 3), np.uint8)
    for i, picture in enumerate(pictures):
        sheet[i // 2 * h : (i // 2 + 1) * h, i % 2 * w : (i % 2 + 1) * w] = picture
    return sheet
