"""Shared by all tests: which may run here, which share a process, and the pack's root package as ComfyUI would load it.

Set STEPVAR_REQUIRE=server,browser,second_device to turn a skip of those kinds into a failure, as .ci/run does.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

import launch

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = set(filter(None, os.environ.get("STEPVAR_REQUIRE", "").split(",")))

# One thread in each test process and in each server it starts: threads of more processes than there are cores spend
# their time on waiting for each other, and the same sums in the same order give the same pictures everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: a machine shared with other work is slow now and then, and a slow example is no wrong one.
hypothesis.settings.register_profile("stepvar", deadline=None, print_blob=True)
hypothesis.settings.load_profile("stepvar")


# Tests that share a server, a browser or a device stay together, in one process of those that pytest-xdist starts; so
# does each other file. Long groups come first, so that no process works alone at the end.
GROUPS = {"tests/server/test_floor.py": "floor"}
LONG_FIRST = ("device", "classic", "vue", "server", "floor")


def group_of(item: pytest.Item) -> str:
    path = item.path.relative_to(ROOT).as_posix()
    if path in GROUPS:
        return GROUPS[path]
    if "second_device" in item.fixturenames:
        return "device"
    if item.get_closest_marker("browser"):
        # a renderer is a setting of the server's, so each has a server of its own
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        return "vue" if "vue" in parameters else "classic"
    return "server" if item.get_closest_marker("server") else path


def pytest_collection_modifyitems(items):
    def rank(item: pytest.Item) -> int:
        group = group_of(item)
        return LONG_FIRST.index(group) if group in LONG_FIRST else len(LONG_FIRST)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    items.sort(key=rank)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_items:
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device here"))


@pytest.fixture(scope="session")
def unavailable():
    """unavailable("browser", reason): skip the test, or fail it where STEPVAR_REQUIRE names that kind."""

    def stop(kind: str, reason: str):
        if kind in REQUIRED:
            pytest.fail(f"{kind} tests are required here, but cannot run: {reason}", pytrace=False)
        pytest.skip(reason)

    return stop


def build_device(compiler: str, source: Path, installed: Path, library: Path, unavailable) -> None:
    import torch

    library.parent.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}")
    options = [
        "-shared",
        "-fPIC",
        "-std=c++20",
        "-O1",
        "-w",
        f"-L{installed / 'lib'}",
        f"-Wl,-rpath,{installed / 'lib'}",
    ]
    includes = [f"-I{installed / 'include' / part}" for part in ("", "torch/csrc/api/include")]
    done = subprocess.run(
        [compiler, str(source), "-o", str(unfinished), *options, *includes, "-ltorch", "-ltorch_cpu", "-lc10"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        found = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-300:])
        unavailable(
            "second_device",
            f"g++ could not build the second device for torch {torch.__version__} (it needs C++20 and torch "
            f"2.13): {found}",
        )
    unfinished.replace(library)


@pytest.fixture(scope="session")
def second_device(unavailable):
    """The environment in which `import torch_npu` gives torch a device beside the CPU, see second_device/device.cpp."""
    import torch

    compiler, source, installed = (
        shutil.which("g++"),
        ROOT / "tests" / "second_device" / "device.cpp",
        Path(torch.__file__).parent,
    )
    if compiler is None or sys.platform != "linux":
        unavailable(
            "second_device",
            "no g++ found: 'launch.py test' installs it as root on Debian or Ubuntu"
            if sys.platform == "linux"
            else "the second device is built on Linux only",
        )
    name = hashlib.sha256(source.read_bytes() + f"{torch.__version__} {installed}".encode()).hexdigest()[:16]
    library = ROOT / ".comfyui" / "second_device" / f"{name}.so"
    with launch.one_at_a_time("second_device"):
        if not library.exists():
            build_device(compiler, source, installed, library, unavailable)
    return {"PYTHONPATH": str(source.parent), "SECOND_DEVICE": str(library)}


@pytest.fixture(scope="session")
def pack():
    """The root package, loaded from its file outside ComfyUI, where it must import without one.

    Core tests import stepvar_core by that name instead: through the pack it would be a second copy of every class.
    """
    name = "stepvar_pack"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
