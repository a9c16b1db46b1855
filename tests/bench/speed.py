"""Speed of StepVAR against the dense run, in one process, with random weights of a real size.

    python -m tests.bench.speed                       # VAR-d16 at 256 px, all threads of this machine
    python -m tests.bench.speed --threads 1 --runs 5  # CPU time of one thread, repeatable on a shared machine
    python -m tests.bench.speed --family infinity     # Infinity: see infinity.py; --device cuda for its full sizes
    python -m tests.bench.speed --family switti       # Switti: see switti.py

Random weights cost what trained ones cost. Dense and pruned runs alternate, so that a busy minute hits both; medians
after a warm-up. It prints a markdown report, and checks three claims: the measured speed-up reaches at least 85 % of
the predicted one, choosing and filling tokens takes less than 3 % of a dense run, and the cache is as large as
computed.
"""

from __future__ import annotations

import argparse
import statistics

import torch

import stepvar_core as sv
from stepvar_core.codecs.vqvae import VQVAE, VQVAEConfig
from stepvar_core.door import prepare
from stepvar_core.families.var.model import VAR, VARConfig
from stepvar_core.methods.policy import About
from stepvar_core.trace import pack_mask

from . import infinity, switti
from .measure import hardware, timed, verdict

EDGES = {256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}
LEAST_SHARE_OF_PREDICTED, LARGEST_OVERHEAD = 0.85, 0.03


def random_pair(depth: int, pixels: int, device: str, dtype: torch.dtype) -> tuple[VAR, VQVAE]:
    """A VAR of official proportions and the quantiser that goes with it, both with random weights."""
    torch.manual_seed(0)
    config = VARConfig(patch_nums=EDGES[pixels], depth=depth, width=64 * depth, heads=depth, shared_aln=pixels == 512)
    with torch.device(device):
        model, vae = VAR(config), VQVAE(VQVAEConfig(patch_nums=EDGES[pixels], has_encoder=False, has_decoder=False))
    with torch.no_grad():
        model.pos_1LC.normal_(std=0.5)  # else all tokens of a scale would score alike
    return model.to(dtype).requires_grad_(False).train(False), vae.requires_grad_(False).train(False)


def selection_seconds(
    model: VAR, schedule: sv.ScaleSchedule, policy: sv.StepVAR, batch: int, device: str, runs: int
) -> float:
    """Seconds one picture batch spends on choosing, gathering, filling and tracing, on tensors of the run's own
    sizes."""
    config = model.config

    def uniform(name: str, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.rand(batch, *shape)

    about = About.of(model, schedule, batch, device, uniform)
    plans = policy.plan(about)

    def overhead(inputs) -> None:
        state = policy.begin(about, plans)
        for step, x_RLC, head_BKV in inputs:
            tokens = state.tokens((step,), slice(0, 2 * batch))
            tokens.leave(tokens.enter(tokens.entry_layer, x_RLC))
            tokens.spread(head_BKV)
            pack_mask(tokens.kept_BN().cpu())

    with torch.inference_mode():
        inputs = [
            (
                step,
                torch.randn(2 * batch, plan.tokens, config.width, device=device, dtype=model.dtype),
                torch.randn(batch, plan.head, config.vocab_size, device=device),
            )
            for step, plan in zip(schedule.passes, plans)
            if not plan.is_dense and not plan.is_skipped
        ]
        overhead(inputs)
        return statistics.median(timed(lambda: overhead(inputs), device)[0] for _ in range(max(runs, 5)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="var", choices=("var", "infinity", "switti"))
    parser.add_argument(
        "--tiny", action="store_true", help="with --family infinity or switti: toy sizes, to see it run"
    )
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=256, choices=sorted(EDGES))
    parser.add_argument(
        "--ratios", type=float, nargs="+", default=[0.75, 0.5], help="pruned fractions, last scale first"
    )
    parser.add_argument("--fill", default="nearest")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="1 is repeatable; 0 = all")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    a = parser.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    if a.family == "switti":
        switti.report(a.device, a.runs, a.tiny)
        return
    if a.family == "infinity":
        for size in infinity.sizes(a.device, a.tiny):
            infinity.report(size, a.device, a.runs)
        return

    model, vae = random_pair(a.depth, a.pixels, a.device, getattr(torch, a.dtype))
    schedule = model.schedule()
    condition = model.class_condition(range(a.batch))
    policy = sv.StepVAR(tuple(a.ratios), fill=a.fill)
    policies = {"dense": None, "StepVAR": policy}

    def run(pruning) -> sv.Result:
        return sv.sample(model, vae, condition, schedule=schedule, pruning=pruning)

    for pruning in policies.values():
        run(pruning)
    measured = {name: [] for name in policies}
    for _ in range(a.runs):
        for name, pruning in policies.items():
            measured[name].append(timed(lambda p=pruning: run(p), a.device))
    wall = {name: statistics.median(m[0] for m in rounds) for name, rounds in measured.items()}
    cpu = {name: statistics.median(m[1] for m in rounds) for name, rounds in measured.items()}
    per_scale = {
        name: [statistics.median(m[2].trace.scales[i].seconds for m in rounds) for i in range(len(schedule))]
        for name, rounds in measured.items()
    }

    cost, dense_cost = (sv.estimate(model, schedule, p, batch=a.batch) for p in (policy, None))
    caches = [prepare(model, vae, condition, schedule=schedule, pruning=p).new_cache().nbytes for p in (policy, None)]
    overhead = selection_seconds(model, schedule, policy, a.batch, a.device, a.runs)
    speedup = wall["dense"] / wall["StepVAR"]
    share = overhead / wall["dense"]

    ratios = "/".join(f"{r:g}" for r in a.ratios)
    print(
        f"VAR-d{a.depth}, {a.pixels}x{a.pixels}, batch {a.batch}, {a.dtype}, StepVAR {ratios} fill {a.fill}. "
        f"{hardware(a.device)}."
    )
    print(f"Medians of {a.runs} alternating runs after one warm-up each.\n")
    print("| run | wall | CPU time | transformer TFLOP | KV cache |")
    print("| --- | --- | --- | --- | --- |")
    for name, estimate, nbytes in (("dense", dense_cost, caches[1]), ("StepVAR", cost, caches[0])):
        print(
            f"| {name} | {wall[name]:.2f} s | {cpu[name]:.2f} s | {estimate.flops / 1e12:.3f} | {nbytes / 2**20:.1f} "
            "MiB |"
        )
    print(f"| speed-up | {speedup:.2f}x | {cpu['dense'] / cpu['StepVAR']:.2f}x | {cost.speedup:.2f}x | |\n")
    print("| scale | tokens | run | dense | StepVAR |")
    print("| --- | --- | --- | --- | --- |")
    for i, scale in enumerate(cost.scales):
        print(
            f"| {scale.size[1]}x{scale.size[2]} | {scale.tokens} | {scale.kept} | {1000 * per_scale['dense'][i]:.0f} "
            "ms "
            f"| {1000 * per_scale['StepVAR'][i]:.0f} ms |"
        )
    print()
    for name, reached in (("wall", speedup), ("CPU time", cpu["dense"] / cpu["StepVAR"])):
        print(
            f"- {verdict(reached >= LEAST_SHARE_OF_PREDICTED * cost.speedup)}: {name} speed-up {reached:.2f}x is "
            f"{reached / cost.speedup:.0%} of the predicted {cost.speedup:.2f}x; at least "
            f"{LEAST_SHARE_OF_PREDICTED:.0%} wanted"
        )
    print(
        f"- {verdict(share < LARGEST_OVERHEAD)}: choosing, filling and tracing take {1000 * overhead:.1f} ms, "
        f"{share:.2%} of a "
        f"dense run; below {LARGEST_OVERHEAD:.0%} wanted"
    )
    print(
        f"- {verdict(caches == [cost.kv_bytes, dense_cost.kv_bytes])}: the caches hold {caches[0]} and {caches[1]} "
        "bytes; "
        f"computed {cost.kv_bytes} and {dense_cost.kv_bytes}"
    )


if __name__ == "__main__":
    main()
