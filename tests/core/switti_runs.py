"""The reference runs of tests/golden/switti: files as the hub has them, and upstream's one random stream."""

import json
from dataclasses import dataclass
from pathlib import Path

import normal_weights
import torch
from safetensors.torch import load_file, save_file

import stepvar_core as sv

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "switti"
CONFIG = json.loads((GOLDEN / "config.json").read_text())
RUNS = CONFIG["runs"]
SIZES = {"patch_nums": CONFIG["patch_nums"], "num_heads": CONFIG["heads"]}


class Replay:
    """Upstream's stream in upstream's order: one multinomial draw or one Gumbel noise per scale."""

    def __init__(self, settings: dict):
        self.stream = torch.Generator().manual_seed(settings["seed"])
        self.smoothed = range(settings.get("smooth_start_si", 0), settings["turn_off_cfg_start_si"])
        self.smoothed = self.smoothed if settings["more_smooth"] else ()

    def draw(self, probs_NV, pass_index: int):
        if pass_index in self.smoothed:
            return torch.zeros(len(probs_NV), dtype=torch.int64)  # must not be seen in the sum
        return torch.multinomial(probs_NV, 1, replacement=True, generator=self.stream)[:, 0]

    def noise(self, name: str, pass_index: int, shape):
        assert name == "gumbel" and pass_index in self.smoothed
        return -torch.empty(shape).exponential_(generator=self.stream).log()


@dataclass(frozen=True)
class Reference:
    """folder: the hub's layout, without what only config.json says. weights: float32."""

    folder: Path
    weights: dict
    text: dict

    @classmethod
    def write(cls, folder: Path) -> "Reference":
        weights, tokens = normal_weights.rebuild(GOLDEN / "transformer"), sum(p * p for p in CONFIG["patch_nums"])
        bias = {"attn_bias_for_masking": torch.zeros(1, 1, tokens, tokens)}
        for name, tensors, config in (
            ("switti", weights | bias, {"use_ar": False, "rope": True, "use_swiglu_ffn": True} | SIZES),
            ("switti-ar", weights | bias, {"use_ar": True} | SIZES),
            ("vae", normal_weights.rebuild(GOLDEN / "vae"), {"patch_nums": CONFIG["patch_nums"]}),
        ):
            (folder / name).mkdir()
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name / "model.safetensors")
            (folder / name / "config.json").write_text(json.dumps(config))
        text = {key: value.float() for key, value in normal_weights.rebuild(GOLDEN / "text").items()}
        return cls(folder, {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}, text)

    def model(self, is_causal: bool = False):
        return sv.load_model(self.folder / ("switti-ar" if is_causal else "switti"))

    def vae(self):
        return sv.load_vae(self.folder / "vae")

    def prompts(self, model, *names: str):
        features_BTC = torch.stack(
            [torch.cat([self.text[f"clip_l/{n}/hidden"], self.text[f"clip_bigg/{n}/hidden"]], -1) for n in names]
        )
        mask_BT = torch.stack([self.text[f"clip_bigg/{n}/valid"] for n in names]).bool()
        return model.text_condition(
            features_BTC, mask_BT, torch.stack([self.text[f"clip_bigg/{n}/pooled"] for n in names])
        )

    def run(self, model, name: str, replay: Replay, **arguments) -> sv.Result:
        settings = RUNS[name]
        options = {
            "guidance_off_from": settings["turn_off_cfg_start_si"],
            "last_temperature": settings.get("last_scale_temp", 1.0),
            "smooth": settings["more_smooth"],
            "smooth_from": settings.get("smooth_start_si", 0),
        }
        return sv.sample(
            model,
            self.vae(),
            self.prompts(model, "p0", "p1"),
            **{
                "negative": self.prompts(model, "null", "null"),
                "schedule": model.schedule(),
                "cfg": settings["cfg"],
                "temperature": 1.0,
                "top_k": settings["top_k"],
                "top_p": settings["top_p"],
                "options": options,
                "draw": replay.draw,
                "noise": replay.noise,
                **arguments,
            },
        )


def read_run(name: str) -> dict:
    return load_file(GOLDEN / "runs" / f"{name}.safetensors")
