"""The source itself: linter, formatter and types, as pyproject.toml sets them."""

import sys

import pytest

import launch


@pytest.mark.parametrize("check", [["check"], ["format", "--check", "--diff"]], ids=["linter", "formatter"])
def test_ruff(check):
    done = launch.quiet([sys.executable, "-m", "ruff", *check], cwd=launch.ROOT, timeout=300)
    assert done.returncode == 0, done.stdout


def test_types(tmp_path):
    """As a package called like the pack, whatever the folder it lies in is called."""
    launch.link_folder(launch.ROOT, tmp_path / launch.PACK_NAME)
    packages = [part for name in ("stepvar_core", "nodes") for part in ("--package", f"{launch.PACK_NAME}.{name}")]
    settings = ["--config-file", launch.ROOT / "pyproject.toml", "--cache-dir", launch.CACHE / "mypy"]
    done = launch.quiet([sys.executable, "-m", "mypy", *settings, *packages], cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout
