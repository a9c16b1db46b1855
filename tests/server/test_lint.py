"""The registry's own source checks find nothing to forbid."""

import shutil

import pytest

import launch

pytestmark = pytest.mark.server


def test_comfy_test_lint_is_clean(tmp_path, unavailable):
    program = launch.venv_python().with_name("comfy-test")
    if not program.exists():
        unavailable("server", "comfy-test is not installed: run 'python3 launch.py test'")
    pack = tmp_path / launch.PACK_NAME
    shutil.copytree(launch.ROOT, pack, ignore=shutil.ignore_patterns(".*", "__pycache__", "golden"))
    done = launch.quiet([program, "lint", "--strict", pack])
    assert done.returncode == 0, done.stdout
    assert "[SYNTAX] PASSED" in done.stdout and "[JAVASCRIPT] PASSED" in done.stdout
