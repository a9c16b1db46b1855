"""One real ComfyUI for all tests of a session, on the CPU, in a base directory of its own."""

from contextlib import contextmanager

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


FLOAT32 = ("--force-fp32", "--fp32-vae")
KEPT = {FLOAT32, (*FLOAT32, "--novram")}  # what tests of several families ask for


@pytest.fixture(scope="session")
def on_second_device(comfy_server, second_device, tmp_path_factory):
    """on_second_device(*options, memory=4096): a context with a client of a ComfyUI on the second device, which has
    that many MiB. Of KEPT options and with all the memory it is one server for all tests."""
    kept = {}

    def started(options: tuple, memory: int):
        environment = second_device | {"SECOND_DEVICE_MIB": str(memory)}
        return start_comfyui(comfy_server.comfyui, tmp_path_factory, *options, environment=environment)

    @contextmanager
    def client(*options, memory: int = 4096):
        if options in KEPT and memory == 4096:
            if options not in kept:
                running = started(options, memory)
                kept[options] = running, next(running)
            with Client(kept[options][1]) as client:
                yield client
        else:
            for server in started(options, memory):
                with Client(server) as client:
                    yield client

    yield client
    for running, _ in kept.values():
        running.close()


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
