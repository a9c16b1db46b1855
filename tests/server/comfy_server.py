"""A client for a real ComfyUI: queue a workflow, follow it on the websocket, look at what it left.

    run = comfy.run(workflow)                  # a workflow file's JSON, an API prompt, or a path to either
    run.status, run.error, run.previews, run.named("stepvar.scale"), comfy.images(run)

Starting the server and translating workflow files to prompts is launch.py's, so that tests prove what users run.
"""

from __future__ import annotations

import ctypes
import io
import json
import struct
import sys
import time
import urllib.error
import urllib.parse
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import websocket
from PIL import Image

import launch
from launch import Server, to_prompt

# ComfyUI's protocol.py
PREVIEW_IMAGE, PREVIEW_IMAGE_WITH_METADATA = 1, 4
ENDINGS = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "interrupted"}


def obey_permissions() -> None:
    """Servers that this process starts may read what a user may, where tests run as root: CAP_DAC_OVERRIDE and
    CAP_DAC_READ_SEARCH leave what programs can be given (prctl(2), PR_CAPBSET_DROP). Linux; elsewhere nothing."""
    if sys.platform == "linux":
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def start_comfyui(comfyui, tmp_path_factory, *options, environment: dict[str, str] | None = None):
    """Yields a running launch.Server of that ComfyUI and stops it; on the CPU, unless options or another environment
    are given."""
    python = launch.venv_python() if launch.venv_python().exists() else sys.executable
    server = launch.Server(
        comfyui,
        python,
        tmp_path_factory.mktemp("comfyui"),
        launch.any_free_port(),
        options=list(options) if options or environment else ["--cpu"],
        environment=environment or {},
    )
    obey_permissions()
    try:
        yield server.start()
    finally:
        server.stop()


class PromptRefused(Exception):
    """POST /prompt answered 400: validation failed before anything ran."""

    def __init__(self, answer: dict) -> None:
        self.answer = answer
        self.node_errors = answer.get("node_errors", {})
        super().__init__(self.text)

    @property
    def text(self) -> str:
        """All a user would see: the prompt's error, and each node's errors with their details."""
        error = self.answer.get("error") or {}
        lines = [f"{error.get('message', '')} {error.get('details', '')}".strip()]
        for node_id, found in self.node_errors.items():
            lines += [
                f"{node_id} {found['class_type']}: {e['message']} {e['details']}".strip() for e in found["errors"]
            ]
        return "\n".join(lines)


class RunFailed(AssertionError):
    """A run that was expected to succeed did not."""


@dataclass(frozen=True)
class Preview:
    node_id: str | None
    metadata: dict
    data: bytes

    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(self.data))


@dataclass(frozen=True)
class NodeError:
    node_id: str
    node_type: str
    kind: str  # the exception's type
    message: str
    traceback: str


@dataclass
class Run:
    """One prompt from queueing to its end, as a client saw it."""

    prompt_id: str
    prompt: dict
    events: list[tuple[str, dict]] = field(default_factory=list)  # every message, previews left out
    previews: list[Preview] = field(default_factory=list)
    outputs: dict[str, dict] = field(default_factory=dict)  # node id -> its `ui`
    status: str = "running"
    error: NodeError | None = None

    def named(self, event: str) -> list[dict]:
        return [data for name, data in self.events if name == event]

    @property
    def executed_nodes(self) -> list[str]:
        """Node ids that really ran, in order; cached ones are absent."""
        return [data["node"] for data in self.named("executing") if data.get("node")]

    @property
    def cached_nodes(self) -> list[str]:
        return [node for data in self.named("execution_cached") for node in data["nodes"]]

    def nodes_of(self, class_type: str) -> list[str]:
        return [node_id for node_id, node in self.prompt.items() if node["class_type"] == class_type]

    def output_of(self, class_type: str) -> dict:
        """The `ui` output of the only node of this type."""
        [node_id] = self.nodes_of(class_type)
        return self.outputs[node_id]

    def _take(self, name: str, data: dict) -> None:
        self.events.append((name, data))
        if name == "executed" and data.get("output"):
            self.outputs[data["node"]] = data["output"]
        if name == "execution_error":
            self.error = NodeError(
                data["node_id"],
                data["node_type"],
                data["exception_type"],
                data["exception_message"].strip(),
                "".join(data["traceback"]),
            )
        if name in ENDINGS:
            self.status = ENDINGS[name]


class Client:
    """One browser tab's worth of connection. Close it, or use it as a context manager."""

    def __init__(self, server: Server, feature_flags: dict | None = None) -> None:
        self.server = server
        self.id = uuid.uuid4().hex
        self.socket = websocket.create_connection(
            f"ws://127.0.0.1:{server.port}/ws?clientId={self.id}", timeout=60, http_no_proxy=["127.0.0.1"]
        )
        # Must be the first message; without this flag previews come without the id of their node.
        flags = {"supports_preview_metadata": True} if feature_flags is None else feature_flags
        self.socket.send(json.dumps({"type": "feature_flags", "data": flags}))
        self._object_info = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # -- what the server knows

    def object_info(self, refresh: bool = False) -> dict:
        """Every node's inputs and outputs. Ask with refresh=True after adding model files."""
        if self._object_info is None or refresh:
            self._object_info = self.server.get("/object_info")
        return self._object_info

    def choices(self, node_type: str, input_name: str) -> list:
        """The entries of a combo, read anew."""
        inputs = self.object_info(refresh=True)[node_type]["input"]
        spec = (inputs.get("required", {}) | inputs.get("optional", {}))[input_name]
        return spec[0] if isinstance(spec[0], list) else spec[1]["options"]

    def templates(self) -> dict[str, list[str]]:
        """Pack folder name -> names of the workflows its template browser page lists."""
        return self.server.get("/api/workflow_templates")

    def history(self, run: Run) -> dict:
        return self.server.get(f"/history/{run.prompt_id}")[run.prompt_id]

    # -- what tests put in place

    def model_folder(self, key: str) -> Path:
        folder = self.server.base / "models" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add_model(self, key: str, name: str, content: bytes | Path) -> Path:
        """Write or copy a file to models/<key>/<name> (folders in the name are made); returns its path."""
        path = self.model_folder(key) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
        return path

    def add_input(self, name: str, image: Image.Image) -> str:
        """Put an image where Load Image finds it; returns the name to give to Load Image."""
        image.save(self.server.base / "input" / name)
        return name

    # -- running

    def prompt_of(self, workflow) -> dict:
        """A path or JSON, of a workflow file or an API prompt, as an API prompt."""
        if isinstance(workflow, (str, Path)):
            workflow = json.loads(Path(workflow).read_text(encoding="utf-8"))
        return to_prompt(workflow, self.object_info()) if "nodes" in workflow else workflow

    def queue(self, workflow, preview_method: str | None = None) -> Run:
        """POST /prompt. Raises PromptRefused when validation fails."""
        prompt = self.prompt_of(workflow)
        extra = {"preview_method": preview_method} if preview_method else {}
        if isinstance(workflow, dict) and "nodes" in workflow:
            extra["extra_pnginfo"] = {"workflow": workflow}
        try:
            answer = self.server.post("/prompt", {"prompt": prompt, "client_id": self.id, "extra_data": extra})
        except urllib.error.HTTPError as refusal:
            raise PromptRefused(json.loads(refusal.read())) from None
        if answer.get("node_errors"):  # some outputs are valid and run, others are refused
            raise PromptRefused(answer)
        return Run(answer["prompt_id"], prompt)

    def follow(self, run: Run, on_event=None, timeout: float = 180) -> Run:
        """Read the websocket until the run ends. on_event(run, name, data) sees each message as it comes; a preview's
        name is "preview" and its data the Preview."""
        deadline = time.monotonic() + timeout
        while run.status == "running":
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"The prompt was still running after {timeout:.0f} s; last events: "
                    f"{[name for name, _ in run.events[-5:]]}. Log:\n{self.server.log()[-2000:]}"
                )
            self.socket.settimeout(1)
            try:
                message = self.socket.recv()
            except websocket.WebSocketTimeoutException:
                self.server.check_alive()
                continue
            if isinstance(message, bytes):
                preview = _preview(message)
                if preview is not None:
                    run.previews.append(preview)
                    if on_event:
                        on_event(run, "preview", preview)
                continue
            event = json.loads(message)
            name, data = event["type"], event.get("data") or {}
            if isinstance(data, dict) and data.get("prompt_id", run.prompt_id) == run.prompt_id:
                run._take(name, data)
                if on_event:
                    on_event(run, name, data)
        return run

    def run(self, workflow, on_event=None, timeout: float = 180, preview_method: str | None = None) -> Run:
        """Queue, follow to the end and expect success; raises RunFailed with the node's error and the log's end."""
        run = self.attempt(workflow, on_event, timeout, preview_method)
        if run.status != "success":
            raise RunFailed(
                f"The run ended as '{run.status}' instead of 'success': {run.error}\n"
                f"The end of the server's log:\n{self.server.log()[-3000:]}"
            )
        return run

    def attempt(self, workflow, on_event=None, timeout: float = 180, preview_method: str | None = None) -> Run:
        """Like run(), for tests that want to look at an error or an interruption."""
        return self.follow(self.queue(workflow, preview_method), on_event, timeout)

    def interrupt(self, run: Run) -> None:
        self.server.open("/interrupt", {"prompt_id": run.prompt_id})

    def forget(self) -> None:
        """Unload models and empty the cache of node results, so that the next run computes everything."""
        self.server.open("/free", {"unload_models": True, "free_memory": True})

    # -- results

    def view(self, image: dict) -> bytes:
        return self.server.open("/view?" + urllib.parse.urlencode(image))

    def images(self, run: Run, node_id: str | None = None) -> list[Image.Image]:
        """The pictures a run saved or showed, of one node or of all in the order of their ids."""
        chosen = [run.outputs[node_id]] if node_id else [run.outputs[key] for key in sorted(run.outputs, key=_order)]
        return [Image.open(io.BytesIO(self.view(image))) for output in chosen for image in output.get("images", [])]


def pixels(pictures) -> np.ndarray:
    """Pictures of one size as (B, H, W, 3) int64, so that differences do not wrap."""
    return np.stack([np.asarray(p.convert("RGB"), dtype=np.int64) for p in pictures])


def error_of(comfy: Client, graph) -> str:
    """The message in the error box of a run that must fail."""
    run = comfy.attempt(graph)
    assert run.status == "error", f"the run ended as {run.status}"
    return run.error.message


def opens_nothing(comfy: Client, graph: dict, node_id: str, name: str) -> None:
    """A path in place of a listed file is refused: by newer hosts before the run, on older ones by the node."""
    graph[node_id]["inputs"][name] = "../../../etc/passwd"
    try:
        run = comfy.attempt(graph)
    except PromptRefused as refusal:
        assert name in refusal.text
    else:
        assert run.status == "error" and "There is no ../../../etc/passwd" in run.error.message


def _order(node_id: str) -> list[int]:
    return [int(part) for part in node_id.replace(".", ":").split(":") if part.isdigit()]


def _preview(message: bytes) -> Preview | None:
    [kind] = struct.unpack_from(">I", message)
    if kind == PREVIEW_IMAGE_WITH_METADATA:
        [length] = struct.unpack_from(">I", message, 4)
        metadata = json.loads(message[8 : 8 + length])
        return Preview(metadata.get("node_id"), metadata, message[8 + length :])
    if kind == PREVIEW_IMAGE:
        return Preview(None, {}, message[8:])
    return None
