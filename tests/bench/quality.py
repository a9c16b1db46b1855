"""How far pruned pictures of the demo model are from dense ones of the same seed, and what they cost.

    python -m tests.bench.quality [--pictures 128] [--batch 32]

One table: ratio sets, selectors and fills; PSNR to the dense run (mean and standard error over pictures), share of equal
final codes, predicted speed-up. Dense and pruned runs share batch, seed and noise, so pruning is the only difference.
"""

from __future__ import annotations

import argparse
import math

import torch

import stepvar_core as sv
from stepvar_core.demo import MODEL_FILE, VAE_FILE
from stepvar_core.metrics import psnr
from stepvar_core.pruning.plan import FILLS
from stepvar_core.pruning.presets import PRESETS
from stepvar_core.pruning.selectors import SELECTORS

HALF = (0.5, 0.5)


def variants() -> dict[str, sv.StepVAR]:
    named = {f"preset {name}": sv.StepVAR(ratios) for name, ratios in PRESETS.items() if ratios}
    named |= {f"ratios {a:g}/{b:g}": sv.StepVAR((a, b)) for a, b in ((0.25, 0), (0.5, 0), (0.5, 0.25), HALF, (0.75, 0.25), (0.75, 0.75), (0.9, 0.5))}
    named |= {f"selector {name}": sv.StepVAR(HALF, selector=name) for name in SELECTORS}
    named |= {f"fill {name}": sv.StepVAR(HALF, fill=name) for name in FILLS}
    named |= {f"fill zero, selector {name}": sv.StepVAR(HALF, fill="zero", selector=name) for name in ("texture", "checkerboard", "random", "lowest_texture")}
    named |= {f"coverage 2, {fill}": sv.StepVAR(HALF, selector="texture", coverage=2, fill=fill) for fill in ("nearest", "zero")}
    named |= {f"guidance late {n}": sv.StepVAR((), guidance_late="conditional", guidance_late_scales=n) for n in (1, 2)}
    return named


def pictures(model, vae, count: int, batch: int, policy) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, H, W, 3) pictures and their last codes; classes in turn, the batch's seed and rows decide the noise."""
    images, codes = [], []
    for start in range(0, count, batch):
        labels = [(start + i) % model.config.num_classes for i in range(batch)]
        result = sv.sample(model, vae, model.class_condition(labels), schedule=model.schedule(), seed=start, pruning=policy)
        images.append(vae.decode(result.latent))
        codes.append(torch.cat(result.codes[-2:], 1) if result.codes[-1].shape[1] else torch.full((batch, 1), -2))
    return torch.cat(images), torch.cat(codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    model, vae = sv.load_model(MODEL_FILE), sv.load_vae(VAE_FILE)
    dense, dense_codes = pictures(model, vae, arguments.pictures, arguments.batch, None)
    print(f"{arguments.pictures} pictures, {torch.get_num_threads()} threads\n")
    print("| variant | PSNR to dense, dB | equal codes, last two scales | predicted speed-up |\n|---|---|---|---|")
    for name, policy in variants().items():
        images, codes = pictures(model, vae, arguments.pictures, arguments.batch, policy)
        quality = psnr(dense, images).clamp(max=100)  # equal pictures have no finite one
        error = quality.std() / math.sqrt(len(quality))
        equal = f"{(codes == dense_codes).float().mean():.0%}" if codes.shape == dense_codes.shape else "-"
        speedup = sv.estimate(model, model.schedule(), policy, batch=arguments.batch).speedup
        print(f"| {name} | {quality.mean():.1f} ± {error:.1f} | {equal} | {speedup:.2f} |", flush=True)


if __name__ == "__main__":
    main()
