"""One real ComfyUI for all tests of a session, on the CPU, in a base directory of its own."""

import pytest
from comfy_server import Client, start_comfyui
from frontend import Frontend

import launch


@pytest.fixture(scope="session")
def comfy_server(tmp_path_factory, unavailable):
    """launch.Server; its `base` holds models/, input/ and output/, its log() all it printed."""
    comfyui = launch.find_comfyui()
    if comfyui is None:
        unavailable("server", "no ComfyUI here: run 'python3 launch.py test', or name a source folder in COMFYUI_PATH")
    yield from start_comfyui(comfyui, tmp_path_factory)


@pytest.fixture
def comfy(comfy_server):
    """A fresh client of the shared server, see comfy_server.Client."""
    with Client(comfy_server) as client:
        yield client


@pytest.fixture(scope="session")
def frontend(comfy_server, tmp_path_factory, unavailable):
    """The real web frontend in headless Chromium, see frontend.Frontend."""
    reason = launch.why_no_browser()
    if reason:
        unavailable("browser", reason)
    with Frontend(comfy_server, tmp_path_factory.mktemp("browser")) as frontend:
        yield frontend
