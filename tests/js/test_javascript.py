"""Runs the *.test.mjs files beside it with Node's own test runner."""

import shutil
import subprocess
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("*.test.mjs"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_javascript(path, unavailable):
    node = shutil.which("node")
    if node is None:
        unavailable("browser", "no Node.js found: install Node 20 or newer")
    done = subprocess.run(
        [node, "--test", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
