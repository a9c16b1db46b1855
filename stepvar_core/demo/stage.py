"""A time-boxed, resumable training loop: the demo model's stages differ only in their step."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

SAVE_SECONDS, LOG_SECONDS = 60, 10
SHOW_SECONDS = 240  # of training: on a busy machine drawing must not take the time of the steps


def choose_threads(limit: int) -> int:
    """Sets and returns the number of threads, up to `limit`, that multiplies matrices fastest right now.

    Threads wait for each other: on a core that another process wants, two were measured at half the speed of one.
    """
    x, speeds = torch.ones(768, 768, dtype=torch.bfloat16), {}
    for threads in range(1, limit + 1):
        torch.set_num_threads(threads)
        start = time.monotonic()
        for _ in range(16):
            x @ x
        speeds[threads] = 1 / (time.monotonic() - start)
    torch.set_num_threads(best := max(speeds, key=speeds.get))
    return best


def cosine(progress: float, floor: float = 0.03) -> float:
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))


def hold_then_linear(progress: float, hold: float = 0.3, floor: float = 0.02) -> float:
    return 1.0 if progress < hold else max(floor, 1 - (1 - floor) * (progress - hold) / (1 - hold))


class Worker:
    """Computes gradients of its own small batch on one core, in bfloat16, against the stage's float32 weights.

    Workers meet once a step; threads inside every operation would meet a thousand times and, on a machine shared with
    other work, mostly wait for each other. Subclasses define gradients(...) -> (gradients, loss, numbers).
    """

    def __init__(self, stage: Stage):
        self.stage, self.copy = stage, copy.deepcopy(stage.module).bfloat16()

    def refresh(self) -> None:
        torch.set_num_threads(1)  # holds for the calling thread
        with torch.no_grad():
            for fast, master in zip(self.copy.parameters(), self.stage.module.parameters()):
                fast.copy_(master)

    def gradients_of(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, list(self.copy.parameters()))


def work_together(pool: ThreadPoolExecutor, workers: Sequence[Worker], *arguments) -> tuple[Tensor, dict[str, float]]:
    """Mean loss and numbers of all workers; their mean gradients are left in the stage's module."""
    gradients, losses, numbers = zip(*pool.map(lambda worker: worker.gradients(*arguments), workers))
    for parameter, *parts in zip(workers[0].stage.module.parameters(), *gradients):
        parameter.grad = torch.stack([part.float() for part in parts]).mean(0)
    return torch.stack(losses).mean(), {k: sum(n[k] for n in numbers) / len(numbers) for k in numbers[0]}


@dataclass
class Stage:
    """One time-boxed training run of `module`.

    minutes: training time in all, over every resumption, in processor time per thread: on a machine busy with other
    work a stage takes longer and ends as well trained. rate: learning-rate factor of the progress in 0..1.
    ema: a second copy of the weights, averaged; it is what later stages and the export use.
    """

    name: str
    work: Path
    module: nn.Module
    optimizer: torch.optim.Optimizer
    minutes: float
    rate: Callable[[float], float] = cosine
    warmup: int = 100
    clip: float = 1.0
    ema_decay: float = 0.999
    steps: int = 0
    pictures: int = 0
    seconds: float = 0.0
    is_threaded: bool = True  # False: the step brings its own workers
    averages: dict[str, float] = field(default_factory=dict)
    show: Callable[[Stage], None] | None = None

    def __post_init__(self):
        self.ema = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.base_rates = [g["lr"] for g in self.optimizer.param_groups]
        if self.path.is_file():
            saved = torch.load(self.path, weights_only=True)
            self.module.load_state_dict(saved["module"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.ema, self.steps, self.pictures, self.seconds = (
                saved["ema"],
                saved["steps"],
                saved["pictures"],
                saved["seconds"],
            )
            log.info(
                "%s: resumed at step %d, %.1f of %.1f minutes", self.name, self.steps, self.seconds / 60, self.minutes
            )

    @property
    def path(self) -> Path:
        return self.work / f"{self.name}.pt"

    @property
    def progress(self) -> float:
        return min(self.seconds / (60 * self.minutes), 1.0)

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        torch.save(
            {
                "module": self.module.state_dict(),
                "ema": self.ema,
                "optimizer": self.optimizer.state_dict(),
                "steps": self.steps,
                "pictures": self.pictures,
                "seconds": self.seconds,
            },
            part,
        )
        part.replace(self.path)

    def run(self, step: Callable[[Stage], tuple[Tensor, int, dict[str, float]]]) -> None:
        """Calls step(stage) -> (loss, pictures, numbers to log), which leaves gradients in the module, until the time
        is spent."""
        saved = logged = time.monotonic()
        shown = self.seconds
        limit = threads = torch.get_num_threads()
        while self.progress < 1:
            start = time.process_time()
            factor = self.rate(self.progress) * min(1.0, (self.steps + 1) / self.warmup)
            for group, rate in zip(self.optimizer.param_groups, self.base_rates):
                group["lr"] = rate * factor
            self.optimizer.zero_grad(set_to_none=True)
            loss, pictures, numbers = step(self)
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
            if torch.isfinite(norm):  # one broken batch must not reach the weights
                self.optimizer.step()
                self._average()
            self.steps, self.pictures = self.steps + 1, self.pictures + pictures
            for key, value in {"loss": float(loss.detach()), **numbers}.items():
                self.averages[key] = 0.95 * self.averages.get(key, value) + 0.05 * value
            self.seconds += (time.process_time() - start) / threads
            now = time.monotonic()
            if now - logged > LOG_SECONDS:
                logged = now
                threads = choose_threads(limit) if self.is_threaded else limit
                log.info(
                    "%s %4.1f/%.0f min step %d, %d pictures (%.1f/s, %d threads) %s",
                    self.name,
                    self.seconds / 60,
                    self.minutes,
                    self.steps,
                    self.pictures,
                    self.pictures / self.seconds,
                    threads,
                    " ".join(f"{k} {v:.3f}" for k, v in self.averages.items()),
                )
            if now - saved > SAVE_SECONDS:
                saved = now
                self.save()
            if self.show and self.seconds - shown > SHOW_SECONDS:
                shown = self.seconds
                self.show(self)
        torch.set_num_threads(limit)
        self.save()

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.ema_decay, (1 + self.steps) / (10 + self.steps))
        for key, value in self.module.state_dict().items():
            self.ema[key].lerp_(value.to(self.ema[key].dtype), 1 - decay)
