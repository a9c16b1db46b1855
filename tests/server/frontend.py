"""The real web frontend in headless Chromium, driven by tests/js/drive.mjs."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import launch

DRIVER = launch.ROOT / "tests" / "js" / "drive.mjs"


class Stuck(RuntimeError):
    """The editor did not get where a job wanted it within the time."""


class Frontend:
    """drive() opens the editor once and goes through jobs in it; drive.mjs documents a job and its result.

    Screenshots go to the folder named by STEPVAR_SCREENSHOTS, else to pytest's temporary one.
    """

    def __init__(self, server: launch.Server, out: Path) -> None:
        self.server = server
        self.out = Path(os.environ.get("STEPVAR_SCREENSHOTS") or out).absolute()

    def drive(self, renderer: str, jobs: list[dict], size: tuple[int, int] = (1600, 1000),
              timeout_seconds: float = 120, settings: dict | None = None, pixel_ratio: float = 1) -> list[dict]:
        """Results in the order of the jobs. `renderer`: classic (LiteGraph's canvas) or vue (Nodes 2.0). `settings`: the editor's own.

        A visit that gets stuck is made once more, with a warning in pytest's summary: a busy machine's browser drops an event now and then.
        """
        task = {"url": self.server.url, "out": str(self.out), "chromium": launch.find_chromium(), "size": size,
                "modules": str(launch.playwright_folder()), "pack": launch.PACK_NAME, "renderer": renderer,
                "timeoutSeconds": timeout_seconds, "jobs": jobs, "settings": settings or {}, "pixelRatio": pixel_ratio}
        longest = 60 + timeout_seconds * (1 + len(jobs))
        try:
            return self._visit(task, longest)
        except Stuck as stuck:
            warnings.warn(f"The visit is made once more. {stuck}", stacklevel=2)
            return self._visit(task, longest)

    def _visit(self, task: dict, longest_seconds: float) -> list[dict]:
        done = subprocess.run([shutil.which("node"), str(DRIVER)], input=json.dumps(task), capture_output=True, text=True, timeout=longest_seconds)
        if done.returncode != 0:
            raise RuntimeError(f"{DRIVER.name} ended with code {done.returncode}:\n{done.stderr}")
        answer = json.loads(done.stdout)
        if answer["failed"]:
            raise Stuck(f"{DRIVER.name} stopped after {len(answer['jobs'])} of {len(task['jobs'])} jobs: {answer['failed']}\n"
                        f"Screenshots are in {self.out}.")
        return answer["jobs"]
