"""Speed of the Infinity transformer and its decoder with random weights: the part of speed.py for that family.

On the CPU: a model of width 512, 4 heads and 8 blocks over the square 0.25M schedule, guidance 3, float32, CPU time
of one thread. On CUDA: the full 2B and 8B sizes at 1024 x 1024 in bfloat16, times from events. `--tiny` runs the same
code on toys.

In one process and in turns: the rate of a large square matmul, a naive dense loop (naive.py), the dense run, every
preset. A scale's ratio is its time over the time its FLOPs (of sv.estimate) need at the matmul rate measured around
that very run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F

import stepvar_core as sv
from stepvar_core.door import prepare
from stepvar_core.families.base import TEXT_TOKENS
from stepvar_core.families.infinity.model import Infinity, InfinityConfig
from stepvar_core.families.infinity.vae import BSQVAE, BSQVAEConfig
from stepvar_core.methods.presets import PRESETS, preset_ratios
from stepvar_core.sampler import scale_steps

from .measure import best_clock, hardware, matmul_rate, timed, verdict
from .naive import naive_steps

CFG, SEED = 3.0, 0
LATE = 3  # scales at the end that the bar is about
HIGHEST_LATE_RATIO, LEAST_SHARE_OF_PREDICTED = 1.43, 0.85
PAPER = "Paper · Infinity"


@dataclass(frozen=True)
class Size:
    """One model, its decoder and its picture. matmul: edge of the square product that sets the rate; has_bar: claims
    are judged."""

    name: str
    model: InfinityConfig
    vae: BSQVAEConfig
    picture: str
    dtype: torch.dtype
    matmul: int
    has_bar: bool = False


def vae_of(model: InfinityConfig, ch: int, levels: tuple[int, ...], groups: int = 32) -> BSQVAEConfig:
    return BSQVAEConfig(
        ch=ch, ch_mult=levels, z_channels=model.code_dim, patch=model.patch, norm_groups=groups, has_encoder=False
    )


def sizes(device: str, is_tiny: bool) -> list[Size]:
    if is_tiny:
        plain = InfinityConfig(depth=5, width=32, heads=2, hidden=64, bits=4, text_dim=16, pool_heads=2, chunk=3)
        patched = InfinityConfig(
            depth=5, width=32, heads=2, hidden=64, bits=16, patch=2, text_dim=16, pool_heads=2, chunk=3
        )
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        return [
            Size("tiny", plain, vae_of(plain, 8, (1, 1, 1, 2, 2), 4), "0.06M", dtype, 128),
            Size("tiny, patched", patched, vae_of(patched, 8, (1, 1, 2, 2), 4), "0.06M", dtype, 128),
        ]
    if device == "cpu":
        small = InfinityConfig(depth=8, width=512, heads=4, hidden=2048, bits=16, chunk=2)
        return [
            Size(
                "width 512, 8 blocks",
                small,
                vae_of(small, 32, (1, 2, 4, 4, 4)),
                "0.25M",
                torch.float32,
                2048,
                has_bar=True,
            )
        ]
    two, eight = (
        InfinityConfig(),
        InfinityConfig(depth=40, width=3584, heads=28, hidden=4 * 3584, bits=56, patch=2, chunk=5),
    )
    return [
        Size("2B", two, vae_of(two, 128, (1, 2, 4, 4, 4)), "1M", torch.bfloat16, 8192),
        Size("8B", eight, vae_of(eight, 128, (1, 2, 4, 4)), "1M", torch.bfloat16, 8192),
    ]


def random_weights(module: torch.nn.Module, device: str) -> torch.nn.Module:
    """A module made on the meta device, now on `device` with normal numbers; matrices by their inputs."""
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(1)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.normal_(
                std=1 / math.sqrt(p[0].numel())
                if name.endswith("weight") and p.ndim > 1 and "emb" not in name
                else 0.3,
                generator=generator,
            )
    return module.requires_grad_(False).train(False)


def random_pair(size: Size, device: str) -> tuple[Infinity, BSQVAE]:
    with torch.device("meta"):
        model, vae = Infinity(size.model).place("meta", size.dtype), BSQVAE(size.vae).place("meta", size.dtype)
    model = random_weights(model, device)
    model.head.weight *= 0.1  # undecided bits: else all would be settled before any number is drawn
    model.head.bias.zero_()
    return model, random_weights(vae, device)


@dataclass
class Run:
    """seconds: of the transformer, all scales. per_scale: seconds of each. rate: FLOP/s of a plain matmul around it."""

    seconds: float
    per_scale: list[float]
    codes: list[torch.Tensor]
    latent: torch.Tensor | None
    peak_bytes: int
    rate: float = 0.0


def watched(steps: Iterator, device: str) -> Run:
    """Runs a loop to its end. What precedes the first scale (text, modulation, the cache's memory) counts as its
    part."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begun, marks, seen = time.perf_counter(), [_mark(device)], []
    for step in steps:
        seen.append(step)
        marks.append(_mark(device))
    if device == "cuda":
        torch.cuda.synchronize()
        per_scale = [a.elapsed_time(b) / 1000 for a, b in zip(marks, marks[1:])]
        seconds, peak = time.perf_counter() - begun, torch.cuda.max_memory_allocated()
    else:
        per_scale, peak = [b - a for a, b in zip(marks, marks[1:])], 0
        seconds = sum(per_scale)
    is_ours = hasattr(seen[-1], "codes")
    return Run(
        seconds, per_scale, [s.codes for s in seen] if is_ours else seen, seen[-1].f_hat if is_ours else None, peak
    )


def _mark(device: str):
    if device != "cuda":
        return time.process_time()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@torch.inference_mode()
def rates_of_shapes(size: Size, schedule: sv.ScaleSchedule, device: str, repeats: int) -> dict[str, float]:
    """FLOP/s of the last scale's own products: linears with their bias, and attention to everything."""
    c, rows = size.model, 2 * schedule.final.tokens
    found = {}
    for name, inner, outer in (
        ("qkv", c.width, 3 * c.width),
        ("projections", c.width, c.width),
        ("mlp in", c.width, c.hidden),
        ("mlp out", c.hidden, c.width),
    ):
        x, w, b = (
            torch.randn(shape, device=device).to(size.dtype) for shape in ((rows, inner), (outer, inner), (outer,))
        )
        found[name] = _rate(lambda x=x, w=w, b=b: F.linear(x, w, b), 2 * rows * inner * outer, device, repeats)
    q, k, v = (
        torch.randn(2, c.heads, n, c.head_dim, device=device).to(size.dtype)
        for n in (schedule.final.tokens, schedule.tokens, schedule.tokens)
    )
    found["attention"] = _rate(
        lambda: F.scaled_dot_product_attention(q, k, v, scale=1.0),
        4 * rows * schedule.tokens * c.width,
        device,
        repeats,
    )
    return found


def _rate(product, flops: int, device: str, repeats: int) -> float:
    def products() -> None:
        for _ in range(repeats):
            product()

    product()
    return median(flops * repeats / timed(products, device)[best_clock(device)] for _ in range(3))


def report(size: Size, device: str, runs: int) -> None:
    torch.manual_seed(SEED)
    model, vae = random_pair(size, device)
    schedule, repeats = model.schedule(size=size.picture), 20 if device == "cuda" else 1
    condition = model.text_condition(0.3 * torch.randn(1, TEXT_TOKENS, size.model.text_dim))
    ratios = {name: preset_ratios(name, model.skips, schedule, model.full_scales) for name in PRESETS if PRESETS[name]}
    if ratios[PAPER] != PRESETS[PAPER]:
        ratios["its ratios at 1M"] = PRESETS[PAPER]
    policies = {"dense": None, **{name: sv.StepVAR(r) for name, r in ratios.items()}}
    estimates = {
        name: sv.estimate(model, schedule, policy, cfg=CFG, text_tokens=TEXT_TOKENS)
        for name, policy in policies.items()
    }

    def once(name: str) -> Run:
        if name == "naive":
            return watched(naive_steps(model, model.own_quantizer(), condition, schedule, CFG, SEED), device)
        job = prepare(model, vae, condition, schedule=schedule, seed=SEED, cfg=CFG, pruning=policies[name])
        return watched(scale_steps(job), device)

    def rate() -> float:
        return matmul_rate(size.matmul, size.matmul, size.matmul, size.dtype, device, repeats)

    names = ["naive", *policies]
    for name in names if device == "cuda" else ("naive", "dense"):
        once(name)
    vae.decode(once("dense").latent)
    measured, decoding = {name: [] for name in names}, []
    for _ in range(runs):
        before = rate()
        for name in names:
            run = once(name)
            after = rate()
            run.rate, before = 2 / (1 / before + 1 / after), after
            measured[name].append(run)
        decoding.append(timed(lambda: vae.decode(measured["dense"][-1].latent), device)[best_clock(device)])
    del run

    dense = measured["dense"]
    seconds = {name: median(r.seconds for r in found) for name, found in measured.items()}
    work = [s.flops for s in estimates["dense"].scales]
    per_scale = {
        name: [median(r.per_scale[i] for r in measured[name]) for i in range(len(schedule))]
        for name in ("naive", "dense")
    }
    ratio = [median(r.per_scale[i] * r.rate / work[i] for r in dense) for i in range(len(schedule))]
    late = median(sum(r.per_scale[-LATE:]) * r.rate / sum(work[-LATE:]) for r in dense)
    bits = [(a == b).float().mean().item() for a, b in zip(measured["naive"][-1].codes, dense[-1].codes)]
    giga = {name: f"{value / 1e9:.0f}" for name, value in rates_of_shapes(size, schedule, device, repeats).items()}

    h, w = (edge * size.vae.token_stride for edge in (schedule.final.h, schedule.final.w))
    clock = "times from CUDA events" if device == "cuda" else "CPU time"
    print(
        f"Infinity {size.name}, {h}x{w}, guidance {CFG:g}, batch 1, {TEXT_TOKENS} text tokens, "
        f"{str(size.dtype).removeprefix('torch.')}, random weights. "
        f"{hardware(device)}."
    )
    print(
        f"Medians of {runs} rounds in turns after a warm-up, {clock}. Plain {size.matmul}^3 matmul: "
        f"{median(r.rate for r in dense) / 1e9:.0f} GFLOP/s; the last scale's own: "
        f"{', '.join(f'{n} {g}' for n, g in giga.items())}.\n"
    )
    print("| scale | tokens | GFLOP | naive | dense | time / (FLOPs / rate) | share of the matmul rate |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for i, step in enumerate(schedule.passes):
        print(
            f"| {step.scale.h}x{step.scale.w} | {step.scale.tokens} | {work[i] / 1e9:.2f} | "
            f"{1000 * per_scale['naive'][i]:.1f} ms "
            f"| {1000 * per_scale['dense'][i]:.1f} ms | {ratio[i]:.2f} | {1 / ratio[i]:.0%} |"
        )
    print(
        "\n| run | ratios | transformer | speed-up | predicted | share | peak memory |\n| --- | --- | --- | --- | "
        "--- | --- | --- |"
    )
    shares = {}
    for name in names:
        peak = max(r.peak_bytes for r in measured[name])
        memory = f"{peak / 2**30:.2f} GiB" if peak else "–"
        if name in ratios:
            speedup = median(d.seconds / r.seconds for d, r in zip(dense, measured[name]))
            predicted = estimates[name].speedup
            shares[name] = speedup / predicted
            print(
                f"| {name} | {'/'.join(f'{r:g}' for r in ratios[name])} | {seconds[name]:.3f} s | {speedup:.2f}x | "
                f"{predicted:.2f}x | {shares[name]:.0%} | {memory} |"
            )
        else:
            print(
                f"| {name} | | {seconds[name]:.3f} s | "
                f"{median(d.seconds / r.seconds for d, r in zip(dense, measured[name])):.2f}x | | | {memory} |"
            )
    print(
        f"\nDecoder: {median(decoding):.3f} s. Whole picture, dense: {seconds['dense'] + median(decoding):.3f} s; "
        f"{PAPER}: "
        f"{seconds[PAPER] + median(decoding):.3f} s.\n"
    )
    if size.dtype == torch.float32:
        print(
            f"- {verdict(min(bits) == 1)}: the naive loop draws the same {sum(c.numel() for c in dense[-1].codes)} "
            f"bits, {torch.cat(dense[-1].codes, 1).float().mean():.0%} of them set"
        )
    else:
        print(
            f"- the naive loop draws {min(bits):.2%} or more of the same bits per scale: in half precision every "
            "order of sums rounds differently"
        )
    if size.has_bar:
        print(
            f"- {verdict(late <= HIGHEST_LATE_RATIO)}: the last {LATE} scales take {late:.2f} times what their FLOPs "
            "need at the matmul rate; "
            f"at most {HIGHEST_LATE_RATIO} wanted"
        )
        print(
            f"- {verdict(shares[PAPER] >= LEAST_SHARE_OF_PREDICTED)}: {PAPER} reaches {shares[PAPER]:.0%} of its "
            "predicted speed-up; "
            f"at least {LEAST_SHARE_OF_PREDICTED:.0%} wanted"
        )
    print()
