"""Does auto_goal `seconds` keep its promise? Asks for several times and reports how far the runs were off.

    python -m tests.bench.budget                          # the bundled demo model
    python -m tests.bench.budget --model var_d16.pth --vae vae_ch160v4096z32.pth --device cuda --dtype bfloat16

As in the sampler node: one probe first, then each run is timed, remembered and used for the next. The median of
--runs is compared with the budget; other programs on the machine count, so a busy one fails. --cpu-time counts what
this process computed instead.
"""

from __future__ import annotations

import argparse
import statistics
import time
from types import SimpleNamespace

import torch

import stepvar_core as sv
from stepvar_core import sampler
from stepvar_core.demo import MODEL_FILE, VAE_FILE
from stepvar_core.planning.goals import SECONDS, Timings, choose_ratios, ladder_ratios, probe

ALLOWED = 0.10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.budget", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL_FILE)
    parser.add_argument("--vae", default=VAE_FILE)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--cpu-time", action="store_true", help="on a CPU shared with other programs")
    a = parser.parse_args()
    if a.cpu_time:
        sampler.time = SimpleNamespace(perf_counter=time.process_time)
    torch.set_num_threads(a.threads)
    model, vae = (
        sv.load_model(a.model, device=a.device, dtype=getattr(torch, a.dtype)),
        sv.load_vae(a.vae, device=a.device),
    )
    schedule, timings, key = model.schedule(), Timings(), (a.device, a.dtype, a.batch)
    condition = model.class_condition([i % model.config.num_classes for i in range(a.batch)])
    base = sv.StepVAR((), selector="update", fill="zero")

    def run(policy) -> sv.Trace:
        return sv.sample(model, vae, condition, schedule=schedule, pruning=policy).trace

    def cost_of(policy) -> sv.Estimate:
        return sv.estimate(model, schedule, policy, batch=a.batch)

    run(None)
    dense = statistics.median(run(None).seconds for _ in range(a.runs))
    fastest = statistics.median(run(sv.StepVAR(ladder_ratios(1.0))).seconds for _ in range(a.runs))
    probe(run, cost_of, schedule, base, timings, key)
    print(
        f"{model.family}, batch {a.batch}, {a.dtype} on {a.device}, {torch.get_num_threads()} "
        f"threads{', CPU time' if a.cpu_time else ''}: "
        f"dense {dense:.3f} s, strongest {fastest:.3f} s\n"
    )
    print("| budget | ratios | predicted | taken, median | off |\n|---|---|---|---|---|")
    worst = 0.0
    for share in (0.9, 0.75, 0.6, 0.45):
        budget = max(share * dense, 1.02 * fastest)
        taken = []
        for _ in range(a.runs):
            rate = timings.rate(key)
            policy = sv.StepVAR(
                choose_ratios(model, schedule, SECONDS, budget, base, batch=a.batch, rate=rate),
                selector="update",
                fill="zero",
            )
            trace = run(policy)
            timings.add(key, cost_of(policy), trace)
            taken.append(trace.seconds)
        off = statistics.median(taken) / budget - 1
        worst = max(worst, abs(off))
        ratios = "/".join(f"{r:.2f}" for r in policy.ratios)
        print(
            f"| {budget:.3f} s | {ratios} | {rate.seconds(cost_of(policy)):.3f} s | {statistics.median(taken):.3f} s "
            f"| {off:+.1%} |"
        )
    print(f"\n{'PASS' if worst <= ALLOWED else 'FAIL'}: at most {worst:.1%} off; {ALLOWED:.0%} allowed")


if __name__ == "__main__":
    main()
