"""The reference runs of tests/golden/infinity: rebuild the weights and texts, replay upstream's random stream."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import synth_weights
import torch
from safetensors.torch import load_file

import stepvar_core as sv
from stepvar_core.checkpoints import read_checkpoint
from stepvar_core.families.infinity.family import FAMILY
from stepvar_core.families.infinity.model import Infinity
from stepvar_core.families.registry import build

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "infinity"
CONFIGS = {name: json.loads((GOLDEN / name / "config.json").read_text()) for name in ("i2b", "i8b")}
RUNS = [(name, run) for name, config in CONFIGS.items() for run in config["runs"]]
CODECS = [(name, codec) for name, config in CONFIGS.items() for codec in config["codec"]]


class RecordingInfinity(Infinity):
    """An Infinity that writes down what enters and leaves its blocks, and the head's answer for every row, guided or
    not."""

    def __init__(self, config, ops=torch.nn):
        super().__init__(config, ops)
        self.passes, self.run, self.first_block = [], None, []
        self.block_chunks[0].module[0].register_forward_hook(lambda module, inputs, out: self.first_block.append(out))

    def begin(self, *arguments):
        self.run = super().begin(*arguments)
        return self.run

    def blocks_forward(self, run, x_RLC, tokens, memory):
        out_RLC = super().blocks_forward(run, x_RLC, tokens, memory)
        self.passes.append({"x_in": x_RLC, "x_out": out_RLC, "logits_raw": self.logits(run, out_RLC, run.running)})
        return out_RLC


class Replay:
    """Upstream's single random stream: one multinomial per scale, also for scales whose bits are then replaced."""

    def __init__(self, seed: int, schedule):
        self.generator, self.tokens, self.next_pass = (
            torch.Generator().manual_seed(seed),
            [s.tokens for s in schedule],
            0,
        )

    def draw(self, probs_NV, pass_index: int):
        for skipped in range(self.next_pass, pass_index):
            # how much of the stream is used depends on how many numbers are drawn, not on their probabilities
            count = len(probs_NV) // self.tokens[pass_index] * self.tokens[skipped]
            torch.multinomial(torch.full((count, 2), 0.5), 1, replacement=True, generator=self.generator)
        self.next_pass = pass_index + 1
        return torch.multinomial(probs_NV, 1, replacement=True, generator=self.generator)[:, 0]


@dataclass(frozen=True)
class Reference:
    """One reference configuration. weights / vae_weights: the recipe's tensors; stem: folder of its .pth and
    .safetensors."""

    name: str
    config: dict
    weights: dict
    vae_weights: dict
    stem: Path

    @classmethod
    def write(cls, name: str, folder: Path) -> "Reference":
        recipes = (json.loads((GOLDEN / name / f"{part}.recipe.json").read_text()) for part in ("model", "vae"))
        weights, vae_weights = (
            synth_weights.write_checkpoints(recipe, str(folder / part))
            for recipe, part in zip(recipes, ("model", "vae"))
        )
        return cls(name, CONFIGS[name], weights, vae_weights, folder)

    def model(self) -> RecordingInfinity:
        return build(
            replace(FAMILY.transformer, module=RecordingInfinity), read_checkpoint(self.stem / "model.safetensors")
        )

    def vae(self):
        return sv.load_vae(self.stem / "vae.safetensors")

    def tensors(self, file: str) -> dict:
        return load_file(GOLDEN / self.name / f"{file}.safetensors")

    def text(self, model, names):
        """Condition of prompts by name, padded to the longest and masked."""
        lengths = [self.config["texts"][name] for name in names]
        features_BTC = torch.full((len(names), max(lengths), self.config["Ct5"]), 9.0)
        for row, name, length in zip(features_BTC, names, lengths):
            row[:length] = torch.from_numpy(
                synth_weights.uniform(self.config["seed"], f"text.{name}", (length, self.config["Ct5"]), 0.0, 0.3)
            )
        return model.text_condition(features_BTC, torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None])


def per_scale_codes(bits_BLD, quantizer, schedule) -> list[torch.Tensor]:
    """Upstream's bits at the VAE's resolution, all scales concatenated, as codes per pass."""
    maps = bits_BLD.split([s.tokens * quantizer.patch**2 for s in schedule], 1)
    grids = [m.unflatten(1, quantizer.cells(s)).permute(0, 3, 1, 2) for m, s in zip(maps, schedule)]
    return [quantizer.patchify(grid).flatten(2).transpose(1, 2) for grid in grids]
