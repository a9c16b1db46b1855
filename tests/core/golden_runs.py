"""The reference runs of tests/golden/var: rebuild the weights, write them as upstream does, replay its random
stream."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from synth_weights import write_checkpoints

import stepvar_core as sv
from stepvar_core.checkpoints import read_checkpoint
from stepvar_core.families.registry import build
from stepvar_core.families.var.family import FAMILY
from stepvar_core.families.var.model import VAR

VAR_GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "var"
CONFIGS = {name: json.loads((VAR_GOLDEN / name / "config.json").read_text()) for name in ("tiny4", "saln6", "ten")}
RUNS = [(name, run) for name, config in CONFIGS.items() for run in config["runs"]]


class RecordingVAR(VAR):
    """A VAR that writes down what enters and leaves its blocks, and the head's answer for every row, guided or not."""

    def __init__(self, config, ops=torch.nn):
        super().__init__(config, ops)
        self.passes = []

    def blocks_forward(self, run, x_RLC, tokens, memory):
        out_RLC = super().blocks_forward(run, x_RLC, tokens, memory)
        self.passes.append({"x_in": x_RLC, "x_out": out_RLC, "logits_raw": self.logits(run, out_RLC, run.running)})
        return out_RLC


class Replay:
    """Upstream's single random stream, in upstream's order: labels, then per scale the tokens, then the Gumbel
    noise."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def labels(self, classes: int, count: int) -> list[int]:
        return torch.multinomial(
            torch.full((classes,), 1 / classes), count, replacement=True, generator=self.generator
        ).tolist()

    def draw(self, probs_NV, pass_index: int):
        return torch.multinomial(probs_NV, 1, replacement=True, generator=self.generator)[:, 0]

    def noise(self, name: str, pass_index: int, shape):
        return -torch.empty(shape).exponential_(generator=self.generator).log()


@dataclass(frozen=True)
class Reference:
    """One reference configuration. weights / vae_weights: the recipe's tensors; *_path: its files, .pth and
    .safetensors."""

    name: str
    config: dict
    weights: dict
    vae_weights: dict
    stem: Path

    @classmethod
    def write(cls, name: str, folder: Path) -> "Reference":
        weights, vae_weights = (
            write_checkpoints(json.loads((VAR_GOLDEN / name / f"{part}.recipe.json").read_text()), str(folder / part))
            for part in ("var", "vae")
        )
        return cls(name, CONFIGS[name], weights, vae_weights, folder)

    def model(self) -> RecordingVAR:
        return build(replace(FAMILY.transformer, module=RecordingVAR), read_checkpoint(self.stem / "var.safetensors"))

    def vae(self):
        return sv.load_vae(self.stem / "vae.safetensors", config=self.config)

    def tensors(self, file: str) -> dict:
        return load_file(VAR_GOLDEN / self.name / f"{file}.safetensors")
