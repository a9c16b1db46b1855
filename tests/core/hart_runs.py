"""The reference runs of tests/golden/hart: the official folders with the file nobody should read, and upstream's
random streams."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import normal_weights
import torch
from safetensors.torch import load_file, save_file

import stepvar_core as sv
from stepvar_core.checkpoints import read_checkpoint
from stepvar_core.families.hart.family import FAMILY
from stepvar_core.families.hart.model import HART
from stepvar_core.families.registry import build

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "hart"
CASES = json.loads((GOLDEN / "config.json").read_text())["cases"]
RUNS = [(case, run) for case, settings in CASES.items() for run in settings["runs"]]


class RecordingHART(HART):
    """A HART that writes down what enters its blocks, what leaves the first and the last, and the head's answer for
    every row."""

    def __init__(self, config, ops=torch.nn):
        super().__init__(config, ops)
        self.passes, self.first_block, self.text, self.z = [], [], None, []
        self.blocks[0].register_forward_hook(lambda module, inputs, out: self.first_block.append(out))
        self.decoder_norm.register_forward_hook(lambda module, inputs, out: self.z.append(out))

    def begin(self, *arguments):
        run = super().begin(*arguments)
        self.text = run.text_RTC
        return run

    def blocks_forward(self, run, x_RLC, tokens, memory):
        out_RLC = super().blocks_forward(run, x_RLC, tokens, memory)
        self.passes.append({"block_in": x_RLC, "hidden": out_RLC, "logits_2b": self.logits(run, out_RLC, run.running)})
        return out_RLC


class Replay:
    """Upstream's two streams, in upstream's order: tokens and Gumbel noise of every scale; noise of the residual, of
    which every step draws twice as much as it uses."""

    def __init__(self, seed: int, orders=None):
        self.tokens, self.residual = (torch.Generator().manual_seed(seed) for _ in range(2))
        self.orders, self.starts = orders, []

    def draw(self, probs_NV, pass_index: int):
        return torch.multinomial(probs_NV, 1, replacement=True, generator=self.tokens)[:, 0]

    def noise(self, name: str, pass_index: int, shape):
        if name == "order":
            return self.orders.argsort(1).float()
        if name == "gumbel":
            return -torch.empty(shape).exponential_(generator=self.tokens).log()
        batch, length, channels = shape
        is_start = name == "residual"
        numbers = torch.randn((1 if is_start else 2) * batch * length, channels, generator=self.residual)[
            : batch * length
        ]
        if is_start:
            self.starts.append(numbers)
        return numbers.view(shape)


@dataclass(frozen=True)
class Reference:
    """One reference case. folder: holds llm/ and tokenizer/. weights: of llm/ema_model.bin, float32."""

    case: str
    settings: dict
    folder: Path
    weights: dict

    @classmethod
    def write(cls, case: str, folder: Path) -> "Reference":
        for part in ("llm", "tokenizer"):
            (folder / part).mkdir()
            shutil.copy(GOLDEN / case / part / "config.json", folder / part)
        weights = normal_weights.rebuild(GOLDEN / case / "llm")
        torch.save(weights, folder / "llm" / "ema_model.bin")
        save_file(
            {key: tensor.contiguous() for key, tensor in normal_weights.rebuild(GOLDEN / case / "tokenizer").items()},
            folder / "tokenizer" / "model.safetensors",
        )
        length = weights["lvl_1L"].shape[1]
        decoy = {key: value + 1 for key, value in weights.items()} | {
            "attn_bias_for_masking": torch.zeros(1, 1, length, length)
        }
        torch.save(decoy, folder / "llm" / "pytorch_model.bin")
        return cls(
            case,
            CASES[case],
            folder,
            {key: value.float() if value.is_floating_point() else value for key, value in weights.items()},
        )

    def model(self) -> RecordingHART:
        return build(replace(FAMILY.transformer, module=RecordingHART), read_checkpoint(self.folder / "llm"))

    def tensors(self, file: str) -> dict:
        return load_file(GOLDEN / self.case / f"{file}.safetensors")

    def text(self, model, batch: int):
        units = self.tensors("inputs_and_units")
        return model.text_condition(units["context"][:batch], units["context_mask"][:batch])

    def run(self, model, name: str, replay: Replay, **arguments) -> sv.Result:
        settings = self.settings["runs"][name]
        options = {
            "smooth": settings["more_smooth"],
            "residual": settings["final_stage"] == 0,
            "maskgit_steps": settings["num_maskgit_iters"],
        }
        return sv.sample(
            model,
            sv.load_vae(self.folder),
            self.text(model, settings["B"]),
            schedule=model.schedule(),
            cfg=settings["cfg"],
            top_k=1 if settings["greedy"] else None,
            options=options,
            draw=replay.draw,
            noise=replay.noise,
            **arguments,
        )
