"""Models ride the host's memory management: weights that do not fit, memory that runs out, the host's own switches."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from comfy_server import Client, start_comfyui

import launch

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def inside(comfy_server):
    """Runs a check of inside_comfyui.py and returns what it found."""

    def run(check: str) -> dict:
        environment = os.environ | {"PYTHONUTF8": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [str(comfy_server.python), str(Path(__file__).with_name("inside_comfyui.py")), str(launch.ROOT), check],
            cwd=comfy_server.comfyui,
            env=environment | {"PYTHONPATH": str(comfy_server.comfyui)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


def test_weights_that_do_not_fit_draw_the_same_picture(inside):
    found = inside("partial_load")
    assert found["1.0"]["loaded"] == 1 and found["0.5"]["loaded"] < 0.7 and found["0.02"]["loaded"] < 0.1
    assert found["1.0"]["codes"] == found["0.5"]["codes"] == found["0.02"]["codes"]


def test_a_decode_that_does_not_fit_goes_picture_by_picture(inside):
    found = inside("decode_out_of_memory")
    assert found["rows"] == [3, 1, 1, 1]
    assert found["difference"] < 1e-5
    assert found["other"] == "another fault"


@pytest.mark.parametrize("switch", ["--disable-smart-memory", "--fp16-intermediates"])
def test_the_hosts_switches_are_taken(comfy_server, tmp_path_factory, switch):
    if switch not in (comfy_server.comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8"):
        pytest.skip(f"this ComfyUI has no {switch}")
    draws_the_demo(comfy_server, tmp_path_factory, "--cpu", switch)


@pytest.mark.gpu
@pytest.mark.parametrize("switch", ["--lowvram", "--novram", "--highvram", "--disable-dynamic-vram"])
def test_the_hosts_video_memory_switches_are_taken(comfy_server, tmp_path_factory, switch):
    """The host refuses these beside --cpu."""
    draws_the_demo(comfy_server, tmp_path_factory, switch)


def draws_the_demo(comfy_server, tmp_path_factory, *options):
    for server in start_comfyui(comfy_server.comfyui, tmp_path_factory, *options):
        with Client(server) as client:
            assert client.images(client.run(launch.DEMO_WORKFLOW))
