"""The real web frontend in headless Chromium, driven by tests/js/drive.mjs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import launch

DRIVER = launch.ROOT / "tests" / "js" / "drive.mjs"


class Frontend:
    """drive() visits the editor and goes through jobs in it; drive.mjs documents a job and its result.

    One browser serves all visits, which share nothing but what it has cached. Close it, or use it as a context manager.
    Screenshots go to the folder that STEPVAR_SCREENSHOTS names; without it, of a failed job only, to `out`.
    """

    def __init__(self, server: launch.Server, out: Path) -> None:
        self.server = server
        folder = os.environ.get("STEPVAR_SCREENSHOTS")
        self.shoots = bool(folder)
        self.out = Path(folder or out).absolute()
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Frontend:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        if self.process is None:
            return
        try:
            self.process.stdin.close()  # the driver then closes its browser
            self.process.wait(30)
        except BrokenPipeError:  # it was stopped
            self.process.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdout.close()
        self.process = None

    def drive(
        self,
        renderer: str,
        jobs: list[dict],
        size: tuple[int, int] = (1600, 1000),
        timeout_seconds: float = 120,
        settings: dict | None = None,
    ) -> list[dict]:
        """Results in the order of the jobs. `renderer`: classic (LiteGraph's canvas) or vue (Nodes 2.0). `settings`:
        the editor's own."""
        task = {
            "url": self.server.url,
            "out": str(self.out),
            "shoots": self.shoots,
            "chromium": launch.find_chromium(),
            "size": size,
            "modules": str(launch.npm_folder()),
            "pack": launch.PACK_NAME,
            "renderer": renderer,
            "timeoutSeconds": timeout_seconds,
            "jobs": jobs,
            "settings": settings or {},
        }
        answer = self._answer(task, 60 + timeout_seconds * (1 + len(jobs)))
        if answer["failed"]:
            raise RuntimeError(
                f"{DRIVER.name} stopped after {len(answer['jobs'])} of {len(jobs)} jobs: {answer['failed']}\n"
                f"A screenshot may be in {self.out}."
            )
        return answer["jobs"]

    def _answer(self, task: dict, seconds: float) -> dict:
        if self.process is None:
            self.process = subprocess.Popen(
                [shutil.which("node"), str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        watchdog = threading.Timer(seconds, self.process.kill)
        watchdog.start()
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            self.close()
            raise RuntimeError(f"{DRIVER.name} ended without an answer, or gave none within {seconds:.0f} s.")
        return json.loads(line)
