"""Reading checkpoint files safely: safetensors, or .pth with weights_only. No code in a file is ever run."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable
from contextlib import contextmanager
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
EMA = (
    "ema_model.safetensors",
    "ema_model.bin",
)  # of a folder with both, what upstream runs; the other file is a scaffold
DERIVED = {"attn_bias_for_masking"}  # a saved mask of every pair of tokens, 380 MB at 1024 pixels: never read
TELLING = {"lvl_1L"}  # buffers whose values say sizes: read even where only shapes are asked for
DTYPES = {
    "I64": torch.int64,
    "I32": torch.int32,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}  # it may come in
ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# What a file may cost before its weights are read. The largest public models have 2,500 tensors, a header of 300 kB and
# a config.json of 40 kB; a made-up file of a few MB must not cost minutes and gigabytes.
MOST_TENSORS = 20_000
MAX_HEADER = 4 << 20  # bytes of a safetensors header, of the buffers that tell sizes, and of an index
MAX_PICKLE = 2 << 20  # bytes of what names the tensors in a .pth file
MAX_CONFIG = 2 << 20  # bytes of config.json
MOST_REPEATS = 128  # blocks; the deepest public model has 48
MOST_VIEWS = 4  # tensors that share one storage, such as tied embeddings
# how training scripts and hubs wrap a flat state dict, outermost first
WRAPPERS = (
    ("trainer", "vae_local"),
    ("trainer", "var_wo_ddp"),
    ("trainer", "gpt_fsdp"),
    ("state_dict",),
    ("model",),
    ("vae",),
    ("ema",),
)


@dataclass
class Checkpoint:
    """Tensors by name, the file's metadata strings, and config.json beside it when there is one."""

    name: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict = field(default_factory=dict)

    def shape(self, key: str) -> tuple[int, ...]:
        """Raises KeyError for a key the file does not have."""
        return tuple(self.tensors[key].shape)

    def count(self, pattern: str, most: int = MOST_REPEATS) -> int:
        """How many numbers `pattern`'s group matches in the keys: layers, levels. Never more than there are keys, so
        that a made-up number costs nothing; its key then turns out unexpected. Raises CheckpointMismatch above
        `most`."""
        matches = [match for match in (re.match(pattern, key) for key in self.tensors) if match]
        found = len({match.group(1) for match in matches})
        if found > most:
            raise CheckpointMismatch(
                f"{self.name} counts {found} parts such as {matches[0].group(0)}; no known model has more than {most}.",
                "Download it again from where its authors publish it.",
            )
        return found


def _every_key(key: str) -> bool:
    return True


def read_checkpoint(path, shapes_only: bool = False, keep: Callable[[str], bool] = _every_key) -> Checkpoint:
    """Reads a file or a folder of shards. Raises CheckpointMismatch when it is missing or unreadable.

    keep(key): which tensors to read; the rest of a large file takes no memory. shapes_only: no weights are read,
    tensors are on the meta device; only buffers that tell sizes keep their values. Takes milliseconds whatever the
    file's size.
    """
    path = Path(path)
    if os.path.isdir(path):
        with _readable(path):
            tensors, metadata = _read_folder(path, shapes_only, keep)
    elif not os.path.isfile(path):
        raise CheckpointMismatch(f"There is no file {path.name}.", "Check the name and the folder.")
    else:
        tensors, metadata = _read_one(path, shapes_only, keep)
    if len(tensors) > MOST_TENSORS:
        raise CheckpointMismatch(
            f"{path.name} holds {len(tensors)} tensors; no known model has more than {MOST_TENSORS}.",
            "Choose a checkpoint file of the model.",
        )
    return Checkpoint(path.name, tensors, metadata, _config_beside(path))


@contextmanager
def _readable(path: Path):
    """A file or folder that cannot be opened becomes the package's error."""
    try:
        yield
    except OSError as error:
        raise CheckpointMismatch(
            f"{path.name} cannot be read ({error.strerror or type(error).__name__}).", "Check its permissions."
        ) from error


def stamp(path) -> tuple:
    """What changes when the files of a checkpoint do: names, times and sizes, config.json beside them included."""
    path = Path(path)
    with _readable(path):
        files = (
            [p for p in (*path.glob("*"), *path.glob("*/*")) if os.path.isfile(p)]
            if os.path.isdir(path)
            else [path, path.parent / "config.json"]
        )
        stats = [(p.name, p.stat()) for p in sorted(files) if os.path.exists(p)]
    return tuple((name, found.st_mtime_ns, found.st_size) for name, found in stats)


def _read_one(path: Path, shapes_only: bool, keep: Callable[[str], bool]) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix in SAFETENSORS:
        return _read_safetensors(path, shapes_only, keep)
    if path.suffix in TORCH:
        return _read_torch(path, shapes_only, keep), {}
    raise CheckpointMismatch(f"{path.name} is not a checkpoint this package reads.", "Use a .safetensors or .pth file.")


def _read_safetensors(
    path: Path, shapes_only: bool, keep: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        header = _read_header(path)
        if shapes_only:
            return header
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if keep(key) and key not in DERIVED}, dict(
                file.metadata() or {}
            )
    except OSError as error:
        with _readable(path):
            raise error
    except (SafetensorError, ValueError) as error:
        raise CheckpointMismatch(f"{path.name} is damaged or incomplete: {error}.", "Download it again.") from error


def _read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors on the meta device from a safetensors header: u64 length, then JSON of dtype, shape and data_offsets
    per key.

    Not by safe_open, which maps the whole file: a machine with less memory than the file has bytes refuses that.
    Raises ValueError for a header that makes no sense.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, path.stat().st_size - 8):
            raise ValueError("its header has no sensible length")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            if len(header) > MOST_TENSORS:
                raise ValueError(f"its header names {len(header)} tensors")
            room = path.stat().st_size - 8 - length
            tensors = {key: _outline(key, entry, room) for key, entry in header.items() if key not in DERIVED}
            for key in TELLING & header.keys():
                start, end = header[key]["data_offsets"]
                if not 0 <= start < end <= start + MAX_HEADER:
                    raise ValueError(f"{key} lies at {start} to {end}")
                file.seek(8 + length + start)
                values = torch.frombuffer(bytearray(file.read(end - start)), dtype=DTYPES[header[key]["dtype"]])
                tensors[key] = values.reshape(header[key]["shape"])
        except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"its header makes no sense ({type(error).__name__})") from error
    return tensors, {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}


def _outline(key: str, entry: dict, room: int) -> Tensor:
    """A tensor of a header on the meta device. room: bytes behind the header. Raises ValueError, besides what a header
    that is none of the format brings about, for one that is larger than its place in the file."""
    shape, (start, end) = [int(n) for n in entry["shape"]], entry["data_offsets"]
    nbytes = math.prod(shape) * ITEM_BYTES.get(entry["dtype"], 0)
    if not 0 <= start <= end <= room or (entry["dtype"] in ITEM_BYTES and nbytes != end - start):
        raise ValueError(f"{key} of shape {shape} lies at {start} to {end} of {room} bytes")
    return torch.empty(shape, device="meta")


def _check_archive(path: Path) -> None:
    """Raises ValueError for a zip that is not as torch.save writes it: records are stored one after the other, so that
    no part of the file stands for more than its own bytes."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    packed = next((r.filename for r in records if r.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise ValueError(f"{packed} in it is compressed")
    if len(records) > MOST_TENSORS or sum(r.file_size for r in records) > path.stat().st_size:
        raise ValueError(f"its {len(records)} records overlap, or are too many")
    names = max((r.file_size for r in records if r.filename.endswith(".pkl")), default=0)
    if names > MAX_PICKLE:
        raise ValueError(f"what names its tensors takes {names} bytes")


def _check_plain(tensors: dict[str, Tensor], name: str) -> None:
    """Raises CheckpointMismatch for tensors that are more, or other, than numbers in the file."""
    odd = next((key for key, tensor in tensors.items() if not _is_plain(tensor)), None)
    if odd is not None:
        raise CheckpointMismatch(
            f"{name} holds {odd} in a form without plain numbers: sparse, quantised, nested, or larger than what is "
            "stored.",
            "Download it again, or convert it to .safetensors.",
        )
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > MOST_VIEWS * sum(storages.values()):
        raise CheckpointMismatch(
            f"{name} holds {total} bytes of tensors in {sum(storages.values())} bytes of storage.", "Download it again."
        )


def _is_plain(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _read_torch(path: Path, shapes_only: bool, keep: Callable[[str], bool]) -> dict[str, Tensor]:
    try:
        # mapped, not read: pages of the file come into memory when they are touched, and shapes touch none
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            _check_archive(path)
        is_mapped = shapes_only or is_archive
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True if is_mapped else None)
    except Exception as error:  # a zip, pickle or tensor error, depending on where the file is cut
        if shapes_only and "mmap" in str(error):  # a file of the old format, or larger than this machine's memory
            raise CheckpointMismatch(
                f"{path.name} cannot be looked into without reading all of it.",
                "Convert it to .safetensors, or run it.",
            ) from error
        raise CheckpointMismatch(
            f"{path.name} could not be read as plain weights: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}.",
            "Download it again; a file that holds code instead of weights is refused on purpose.",
        ) from error
    tensors = _unwrapped(content, path.name)
    tensors = {key: tensor for key, tensor in tensors.items() if keep(key) and key not in DERIVED}
    _check_plain(tensors, path.name)
    if shapes_only:
        return {
            key: tensor.clone() if key in TELLING else torch.empty(tensor.shape, device="meta")
            for key, tensor in tensors.items()
        }
    # copied one by one: a mapped file that changes would change the weights
    return {key: tensor.clone() if is_mapped else tensor for key, tensor in tensors.items()}


def _unwrapped(content, name: str) -> dict[str, Tensor]:
    for keys in WRAPPERS:
        inner = content
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            content = inner
    tensors = (
        {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise CheckpointMismatch(f"{name} holds no weights by name.", "Choose a checkpoint file of the model.")
    return tensors


def _shards(index: Path) -> list[str]:
    try:
        return sorted({Path(name).name for name in read_json(index, MAX_HEADER)["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointMismatch(
            f"{index.name} in {index.parent.name} is not a shard index.", "Download the folder again."
        ) from error


def _read_folder(
    path: Path, shapes_only: bool, keep: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All shards an index names; a folder may hold the index of a format whose shards were not downloaded. Without
    one, all safetensors files, or all .bin files. A file of averaged weights wins over everything."""
    ema = next((path / name for name in EMA if (path / name).is_file()), None)
    if ema is not None:
        return _read_one(ema, shapes_only, keep)
    listed = [_shards(path / name) for name in INDEXES if (path / name).is_file()]
    lacking = [[name for name in shards if not (path / name).is_file()] for shards in listed]
    if not listed:
        names = sorted(p.name for p in path.iterdir() if p.is_file())
        listed = [[n for n in names if Path(n).suffix in SAFETENSORS] or [n for n in names if Path(n).suffix == ".bin"]]
        lacking = [[]]
    shards = next((shards for shards, missing in zip(listed, lacking) if shards and not missing), None)
    if shards is None:
        raise CheckpointMismatch(
            f"Folder {path.name} lacks {', '.join(lacking[0]) or 'safetensors files'}.", "Download the whole folder."
        )
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name in shards:
        part, about = _read_one(path / name, shapes_only, keep)
        tensors |= part
        metadata |= about
    return tensors, metadata


def read_json(file: Path, limit: int = MAX_CONFIG):
    """What a JSON file says. Raises ValueError where it is none, nests without end or has more than `limit` bytes, and
    OSError."""
    if file.stat().st_size > limit:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes; at most {limit} are read")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{file.name} nests without end") from error


def _config_beside(path: Path) -> dict:
    file = (path if os.path.isdir(path) else path.parent) / "config.json"
    if not os.path.isfile(file):
        return {}
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        log.warning("config.json beside %s was ignored: %s", path.name, error)
        return {}
    return content if isinstance(content, dict) else {}


def from_metadata(checkpoint: Checkpoint, overrides: dict | None, key: str):
    """A setting by name: the caller's override first, then the file's metadata, then config.json; None when nobody
    says."""
    if overrides and key in overrides:
        return overrides[key]
    if key in checkpoint.metadata:
        try:
            return json.loads(checkpoint.metadata[key])
        except ValueError:
            return checkpoint.metadata[key]
    return checkpoint.config.get(key)


def settings(checkpoint: Checkpoint, overrides: dict | None):
    """said(key, default): a setting by name, from whoever says it first."""

    def said(key: str, default=None):
        value = from_metadata(checkpoint, overrides, key)
        return default if value is None else value

    return said


def fill_module(
    module: nn.Module, checkpoint: Checkpoint, legacy: Iterable[str], what: str, assign: bool = False
) -> None:
    """Loads every tensor into its place. legacy: patterns of buffers that old files carry and nobody needs.

    Raises CheckpointMismatch naming what is missing, unexpected or of another shape.
    """
    wanted = module.state_dict()
    tensors = {
        k: v for k, v in checkpoint.tensors.items() if k in wanted or not any(re.fullmatch(p, k) for p in legacy)
    }
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    common = wanted.keys() & tensors.keys()
    reshaped = sorted(k for k in common if wanted[k].shape != tensors[k].shape)
    whole = sorted(k for k in common if wanted[k].is_floating_point() and not tensors[k].is_floating_point())
    if missing or unexpected or reshaped or whole:
        parts = [
            f"{len(names)} {label} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for label, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", reshaped),
                ("of whole numbers", whole),
            )
            if names
        ]
        raise CheckpointMismatch(
            f"{checkpoint.name} does not fit {what}: {'; '.join(parts)}.",
            "Choose the checkpoint of this family, or download it again.",
        )
    module.load_state_dict(tensors, assign=assign)
