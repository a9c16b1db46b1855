"""Speed of StepVAR on Switti against the dense run, with random weights; run by `python -m tests.bench.speed --family
switti`.

Dense and pruned runs take turns; medians of each round's own ratio. Timed is the whole loop, drawing and quantising
included; predicted is the transformer alone.
"""

from __future__ import annotations

from statistics import median

import torch

import stepvar_core as sv
from stepvar_core.codecs.vqvae import VQVAE, VQVAEConfig
from stepvar_core.families.switti.model import PATCH_NUMS, Switti, SwittiConfig
from stepvar_core.methods.presets import preset_ratios

from .infinity import random_weights
from .measure import best_clock, hardware, timed

TEXT_TOKENS, SEED = 50, 7
RUNS_OF = ("Balanced", "Paper \u00b7 HART", "Faithful")


def config_of(device: str, is_tiny: bool) -> SwittiConfig:
    """The published 1024 model on a GPU; its proportions at width 512, 8 blocks and 512 pixels elsewhere."""
    if is_tiny:
        small = {"depth": 2, "width": 32, "heads": 2, "hidden": 64, "vocab_size": 64, "text_dim": 16, "pooled_dim": 8}
        return SwittiConfig(patch_nums=PATCH_NUMS[256], **small)
    if device == "cpu":
        return SwittiConfig(patch_nums=PATCH_NUMS[512], depth=8, width=512, heads=8, hidden=1365)
    return SwittiConfig()


def report(device: str, runs: int, is_tiny: bool = False) -> None:
    torch.manual_seed(SEED)
    config, dtype = config_of(device, is_tiny), torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device("meta"):
        model = Switti(config).place("meta", dtype)
        vae = VQVAE(
            VQVAEConfig(
                vocab_size=config.vocab_size, patch_nums=config.patch_nums, has_encoder=False, has_decoder=False
            )
        )
    model, vae, schedule = random_weights(model, device), random_weights(vae, device), model.schedule()
    text, mask = 0.3 * torch.randn(2, TEXT_TOKENS, config.text_dim), torch.ones(1, TEXT_TOKENS)
    prompt, empty = (model.text_condition(one[None], mask, torch.randn(1, config.pooled_dim)) for one in text)
    ratios = {name: preset_ratios(name, model.skips, schedule, model.full_scales) for name in RUNS_OF}
    policies = {"dense": None, **{name: sv.StepVAR(r) for name, r in ratios.items()}}
    predicted = {
        name: sv.estimate(model, schedule, policy, text_tokens=TEXT_TOKENS).speedup for name, policy in policies.items()
    }

    def once(name: str) -> float:
        def run():
            return sv.sample(model, vae, prompt, schedule=schedule, negative=empty, seed=SEED, pruning=policies[name])

        return timed(run, device)[best_clock(device)]

    once("dense")
    rounds = [{name: once(name) for name in policies} for _ in range(runs)]
    print(f"Switti at width {config.width}, {config.depth} blocks, {len(schedule)} scales, {hardware(device)}\n")
    print("| run | ratios | loop | speed-up | predicted |\n|---|---|---|---|---|")
    for name in policies:
        seconds, speedup = median(r[name] for r in rounds), median(r["dense"] / r[name] for r in rounds)
        shown = "/".join(f"{r:g}".lstrip("0") for r in ratios.get(name, ()))
        print(f"| {name} | {shown} | {seconds:.2f} s | {speedup:.2f}x | {predicted[name]:.2f}x |")
