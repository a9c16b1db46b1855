"""What the speed benchmarks share: time of a call, the machine's name, its matmul rate."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch


def timed(run: Callable[[], object], device: str) -> tuple[float, float, object]:
    """Wall seconds, CPU seconds and the answer of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    answer = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu, answer


def best_clock(device: str) -> int:
    """Which of timed's two numbers measures computing alone: wall on a GPU, CPU time of the one thread elsewhere."""
    return 0 if device == "cuda" else 1


@torch.inference_mode()
def matmul_rate(rows: int, inner: int, columns: int, dtype: torch.dtype, device: str, repeats: int = 1) -> float:
    """FLOP per second of a (rows, inner) times (inner, columns) product into memory that is there already."""
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    torch.mm(a, b, out=out)

    def products() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    return 2 * rows * inner * columns * repeats / timed(products, device)[best_clock(device)]


def hardware(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def verdict(holds: bool) -> str:
    return "PASS" if holds else "FAIL"
