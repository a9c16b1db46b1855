"""What workflows saved by a version of the pack draw, recorded from a checkout of that version:

python tests/server/saved_workflows.py 0.1.0 path/to/the/checkout

The pack of that checkout runs in the ComfyUI of these tests, on the CPU and in float32. Recorded are the workflows of the
bundled model, whose weights are the same everywhere: of every sampler which tokens ran, exactly, and of every saved
picture the means of 8 x 8 pixels.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "tests" / "saved_workflows"
DEMO, CELL = "demo (bundled)", 8


def record_of(version: str) -> Path:
    return FOLDER / f"{version}.drawn.json"


def loads_the_demo(prompt: dict) -> bool:
    return {node["inputs"]["model_name"] for node in prompt.values() if node["class_type"] == "VARModelLoader"} == {
        DEMO
    }


def tokens_of(run) -> dict[str, str]:
    """Sampler's node id -> digest of sizes and masks of all its scales."""
    digests = {}
    for node in run.nodes_of("VARSampler"):
        said = hashlib.sha256()
        for scale in run.outputs[node]["stepvar"][0]["scales"]:
            said.update(json.dumps([scale["size"], scale["tokens_run"]]).encode() + base64.b64decode(scale["kept"]))
        digests[node] = said.hexdigest()
    return digests


def pictures_of(client, run) -> dict[str, np.ndarray]:
    """Node id of a Save Image -> its pictures' means, (B, H / 8, W / 8, 3)."""
    found = {}
    for node in run.nodes_of("SaveImage"):
        pictures = np.stack([np.asarray(p.convert("RGB"), dtype=np.float64) for p in client.images(run, node)])
        b, h, w, _ = pictures.shape
        found[node] = pictures.reshape(b, h // CELL, CELL, w // CELL, CELL, 3).mean((2, 4))
    return found


def pack(means: np.ndarray) -> dict:
    return {"shape": list(means.shape), "levels": base64.b64encode(means.round().astype(np.uint8)).decode()}


def unpack(packed: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["levels"]), dtype=np.uint8).reshape(packed["shape"]).astype(np.float64)


def record(version: str, checkout: Path) -> None:
    from comfy_server import Client

    import launch

    with tempfile.TemporaryDirectory() as base:
        server = launch.Server(
            launch.find_comfyui(),
            launch.venv_python(),
            Path(base),
            launch.any_free_port(),
            options=["--cpu"],
            packs={launch.PACK_NAME: checkout.resolve()},
            environment={"OMP_NUM_THREADS": "1"},
        )
        drawn = {}
        try:
            with Client(server.start()) as client:
                for path in sorted((FOLDER / version).glob("*.json")):
                    if loads_the_demo(client.prompt_of(path)):
                        run = client.run(path)
                        pictures = {node: pack(means) for node, means in pictures_of(client, run).items()}
                        drawn[path.stem] = {"tokens": tokens_of(run), "pictures": pictures}
        finally:
            server.stop()
    record_of(version).write_text(json.dumps(drawn, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    record(sys.argv[1], Path(sys.argv[2]))
