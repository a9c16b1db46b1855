"""The launcher: what `demo` does once its server is up, and what it says when something is in the way."""

import socket
import sys

import pytest
from comfy_server import Client

import launch

pytestmark = pytest.mark.server


def test_the_demo_leaves_pictures_and_the_first_run_draws_others(comfy_server):
    pictures = launch.draw(comfy_server, launch.DEMO_WORKFLOW)
    assert pictures and all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    with Client(comfy_server) as comfy:
        run = comfy.run(launch.DEMO_WORKFLOW)
    [sampler] = run.nodes_of("VARSampler")
    assert sampler in run.executed_nodes and len(run.named("stepvar.scale")) == 10, "live, not from the cache"


def test_a_taken_port_is_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(launch.Failure, match=f"Port {other.getsockname()[1]} is taken"):
            launch.choose_port(other.getsockname()[1])


def test_a_wrong_comfyui_path_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(launch.Failure, match="holds no main.py"):
        launch.find_comfyui()


def test_a_server_that_ends_shows_its_last_words(tmp_path):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "cli_args.py").touch()
    (tmp_path / "main.py").write_text("import a_module_nobody_has\n")
    server = launch.Server(tmp_path, sys.executable, tmp_path / "base", launch.any_free_port())
    with pytest.raises(launch.Failure, match="No module named 'a_module_nobody_has'"):
        server.start()


def test_linking_twice_keeps_the_source(tmp_path):
    source, link = tmp_path / "source", tmp_path / "custom_nodes" / "pack"
    source.mkdir()
    (source / "__init__.py").touch()
    for _ in range(2):
        launch.link_folder(source, link)
        assert (link / "__init__.py").is_file()
    assert (source / "__init__.py").is_file()


def test_requirements_are_read_as_pip_reads_them(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("torch\naiohttp>=3.11.8  # server\n\n# optional\ncomfy-angle\npydantic~=2.0\n")
    assert launch.requirement_lines(file) == ["torch", "aiohttp>=3.11.8", "pydantic~=2.0"]
    assert [launch.requirement_name(line) for line in launch.requirement_lines(file)] == [
        "torch",
        "aiohttp",
        "pydantic",
    ]


def test_the_reason_for_missing_browser_tests_says_what_to_do(monkeypatch):
    monkeypatch.delenv("CHROMIUM_PATH", raising=False)
    monkeypatch.setenv("PATH", "")
    assert "'launch.py test' installs it as root" in launch.why_no_browser()
