"""Reading checkpoint files safely: safetensors, or .pth with weights_only. No code in a file is ever run."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import CheckpointMismatch

log = logging.getLogger(__name__)

SAFETENSORS = {".safetensors", ".sft"}
TORCH = {".pth", ".pt", ".bin", ".ckpt"}
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# how training scripts and hubs wrap a flat state dict, outermost first
WRAPPERS = (("trainer", "vae_local"), ("trainer", "var_wo_ddp"), ("trainer", "gpt_fsdp"), ("state_dict",), ("model",), ("vae",), ("ema",))


@dataclass
class Checkpoint:
    """Tensors by name, the file's metadata strings, and config.json beside it when there is one."""

    name: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict = field(default_factory=dict)

    def shape(self, key: str) -> tuple[int, ...] | None:
        return tuple(self.tensors[key].shape) if key in self.tensors else None

    def count(self, pattern: str) -> int:
        """How many numbers `pattern`'s group matches in the keys: layers, levels. Never more than there are keys, so
        that a made-up number costs nothing; its key then turns out unexpected."""
        return len({m.group(1) for m in (re.match(pattern, key) for key in self.tensors) if m})


def _every_key(key: str) -> bool:
    return True


def read_checkpoint(path, keep: Callable[[str], bool] = _every_key) -> Checkpoint:
    """Reads a file or a folder of shards. keep(key): which tensors to read; the rest of a large file takes no memory.

    Raises CheckpointMismatch when it is missing or unreadable.
    """
    path = Path(path)
    if path.is_dir():
        tensors, metadata = _read_folder(path, keep)
    elif not path.is_file():
        raise CheckpointMismatch(f"There is no file {path.name}.", "Check the name and the folder.")
    else:
        tensors, metadata = _read_one(path, keep)
    return Checkpoint(path.name, tensors, metadata, _config_beside(path))


def _read_one(path: Path, keep: Callable[[str], bool]) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix in SAFETENSORS:
        return _read_safetensors(path, keep)
    if path.suffix in TORCH:
        return {key: tensor for key, tensor in _read_torch(path).items() if keep(key)}, {}
    raise CheckpointMismatch(f"{path.name} is not a checkpoint this package reads.", "Use a .safetensors or .pth file.")


def _read_safetensors(path: Path, keep: Callable[[str], bool]) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if keep(key)}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointMismatch(f"{path.name} is damaged or incomplete: {error}.", "Download it again.") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a zip, pickle or tensor error, depending on where the file is cut
        raise CheckpointMismatch(
            f"{path.name} could not be read as plain weights: {str(error).splitlines()[0] if str(error) else type(error).__name__}.",
            "Download it again; a file that holds code instead of weights is refused on purpose.") from error
    return _unwrapped(content, path.name)


def _unwrapped(content, name: str) -> dict[str, Tensor]:
    for keys in WRAPPERS:
        inner = content
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            content = inner
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise CheckpointMismatch(f"{name} holds no weights by name.", "Choose a checkpoint file of the model.")
    return tensors


def _shards(index: Path) -> list[str]:
    try:
        return sorted({Path(name).name for name in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointMismatch(f"{index.name} in {index.parent.name} is not a shard index.", "Download the folder again.") from error


def _read_folder(path: Path, keep: Callable[[str], bool]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All shards an index names; a folder may hold the index of a format whose shards were not downloaded. Without one, all
    safetensors files, or all .bin files."""
    listed = [_shards(path / name) for name in INDEXES if (path / name).is_file()]
    lacking = [[name for name in shards if not (path / name).is_file()] for shards in listed]
    if not listed:
        names = sorted(p.name for p in path.iterdir() if p.is_file())
        listed = [[n for n in names if Path(n).suffix in SAFETENSORS] or [n for n in names if Path(n).suffix == ".bin"]]
        lacking = [[]]
    shards = next((shards for shards, missing in zip(listed, lacking) if shards and not missing), None)
    if shards is None:
        raise CheckpointMismatch(f"Folder {path.name} lacks {', '.join(lacking[0]) or 'safetensors files'}.", "Download the whole folder.")
    tensors, metadata = {}, {}
    for name in shards:
        part, about = _read_one(path / name, keep)
        tensors |= part
        metadata |= about
    return tensors, metadata


def _config_beside(path: Path) -> dict:
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        log.warning("config.json beside %s is not JSON and was ignored", path.name)
        return {}
    return content if isinstance(content, dict) else {}


def from_metadata(checkpoint: Checkpoint, overrides: dict | None, key: str):
    """A setting by name: the caller's override first, then the file's metadata, then config.json; None when nobody says."""
    if overrides and key in overrides:
        return overrides[key]
    if key in checkpoint.metadata:
        try:
            return json.loads(checkpoint.metadata[key])
        except ValueError:
            return checkpoint.metadata[key]
    return checkpoint.config.get(key)


def fill_module(module: nn.Module, checkpoint: Checkpoint, legacy: Iterable[str], what: str, assign: bool = False) -> None:
    """Loads every tensor into its place. legacy: patterns of buffers that old files carry and nobody needs.

    Raises CheckpointMismatch naming what is missing, unexpected or of another shape.
    """
    wanted = module.state_dict()
    tensors = {k: v for k, v in checkpoint.tensors.items() if k in wanted or not any(re.fullmatch(p, k) for p in legacy)}
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    reshaped = sorted(k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape)
    if missing or unexpected or reshaped:
        parts = [f"{len(names)} {label} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" for label, names in
                 (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)) if names]
        raise CheckpointMismatch(f"{checkpoint.name} does not fit {what}: {'; '.join(parts)}.",
                                 "Choose the checkpoint of this family, or download it again.")
    module.load_state_dict(tensors, assign=assign)
