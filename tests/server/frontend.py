"""The real web frontend in headless Chromium, driven by tests/js/drive.mjs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import launch

DRIVER = launch.ROOT / "tests" / "js" / "drive.mjs"


class Frontend:
    """drive() opens the editor once and goes through jobs in it; drive.mjs documents a job and its result.

    Screenshots go to the folder named by STEPVAR_SCREENSHOTS, else to pytest's temporary one.
    """

    def __init__(self, server: launch.Server, out: Path) -> None:
        self.server = server
        self.out = Path(os.environ.get("STEPVAR_SCREENSHOTS") or out).absolute()

    def drive(
        self,
        renderer: str,
        jobs: list[dict],
        size: tuple[int, int] = (1600, 1000),
        timeout_seconds: float = 120,
        settings: dict | None = None,
        pixel_ratio: float = 1,
    ) -> list[dict]:
        """Results in the order of the jobs. `renderer`: classic (LiteGraph's canvas) or vue (Nodes 2.0). `settings`:
        the editor's own."""
        task = {
            "url": self.server.url,
            "out": str(self.out),
            "chromium": launch.find_chromium(),
            "size": size,
            "modules": str(launch.playwright_folder()),
            "pack": launch.PACK_NAME,
            "renderer": renderer,
            "timeoutSeconds": timeout_seconds,
            "jobs": jobs,
            "settings": settings or {},
            "pixelRatio": pixel_ratio,
        }
        done = subprocess.run(
            [shutil.which("node"), str(DRIVER)],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=60 + timeout_seconds * (1 + len(jobs)),
        )
        if done.returncode != 0:
            raise RuntimeError(f"{DRIVER.name} ended with code {done.returncode}:\n{done.stderr}")
        answer = json.loads(done.stdout)
        if answer["failed"]:
            raise RuntimeError(
                f"{DRIVER.name} stopped after {len(answer['jobs'])} of {len(jobs)} jobs: {answer['failed']}\n"
                f"Screenshots are in {self.out}."
            )
        return answer["jobs"]
