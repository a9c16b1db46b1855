"""Runs the *.test.mjs files beside it with Node's own test runner, and TypeScript over the JavaScript that we ship."""

import shutil
from pathlib import Path

import pytest

import launch

FILES = sorted(Path(__file__).parent.glob("*.test.mjs"))


@pytest.fixture
def node(unavailable):
    program = shutil.which("node")
    if program is None:
        unavailable("browser", "no Node.js found: install Node 20 or newer")
    return program


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_javascript(node, path):
    done = launch.quiet([node, "--test", path], timeout=120)
    assert done.returncode == 0, done.stdout


def test_types(node, unavailable):
    """What the JSDoc of web/ says of its types holds, see tsconfig.json."""
    if not launch.npm_version("typescript"):
        unavailable("browser", "TypeScript is not installed: run 'python3 launch.py test' where npm is available")
    compiler = launch.npm_folder() / "node_modules" / "typescript" / "lib" / "tsc.js"
    done = launch.quiet([node, compiler, "--project", Path(__file__).parent], timeout=300)
    assert done.returncode == 0, done.stdout
