"""Files become models: told by what their keys look like, configured and filled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints import Checkpoint, fill_module, read_checkpoint, settings
from ..errors import CheckpointMismatch
from . import FAMILIES
from .base import NextScaleModel
from .family import Family, Files

MODELS: tuple[Files, ...] = tuple(family.transformer for family in FAMILIES)
CODECS: tuple[Files, ...] = tuple(files for family in FAMILIES for files in family.codecs)


def family_of(model: NextScaleModel) -> Family:
    """What a model's family declares."""
    return next(family for family in FAMILIES if family.name == model.family)


def detect(checkpoint: Checkpoint, kinds: Sequence[Files], wanted: str, config: dict | None = None) -> Files:
    """The kind of file this is, of MODELS or CODECS. config: settings that win over the file's own.

    Raises CheckpointMismatch saying what the file is instead, if we know it.
    """
    said = settings(checkpoint, config)
    # a younger family's files often look like an older one's and have more: it is asked first
    known = [files for files in reversed((*MODELS, *CODECS)) if files.detect(checkpoint, said)]
    for files in known:
        if files in kinds:
            return files
    found = f"a file with {len(checkpoint.tensors)} tensors such as {', '.join(list(checkpoint.tensors)[:3])}"
    raise CheckpointMismatch(
        f"{checkpoint.name} is {known[0].what if known else found}, not {wanted}.",
        f"Known here: {', '.join(files.what for files in kinds)}.",
    )


def transformer_path(path) -> Path:
    """The transformer's folder of a model that comes in parts, from the folder of them all; else `path` itself."""
    folders = [Path(path) / family.parts[0] for family in FAMILIES if family.parts]
    return next((folder for folder in folders if os.path.isdir(folder)), Path(path))


def codec_path(path) -> Path:
    """The codec's folder of a model that comes in parts, from the folder of them all or the transformer's; else `path`
    itself."""
    path, folders = Path(path), []
    for transformer, codec in (family.parts for family in FAMILIES if family.parts):
        folders += [path / codec] + ([path.parent / codec] if path.name == transformer else [])
    return next((folder for folder in folders if os.path.isdir(folder)), path)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def build(
    files: Files, checkpoint: Checkpoint, *, ops=nn, dtype=torch.float32, device="cpu", config: dict | None = None
) -> Any:
    """The module of this kind of file with the checkpoint's weights, in `dtype` on `device`, ready for inference.

    config: settings by name that win over the file's own; unknown names are ignored. Raises CheckpointMismatch.
    """
    tensors = {files.rename(key): tensor for key, tensor in checkpoint.tensors.items()}
    checkpoint = replace(checkpoint, tensors=tensors)
    try:
        sizes = files.configure(checkpoint, settings(checkpoint, config))
        with torch.device("meta"):
            module = files.module(sizes, ops)
    except (KeyError, TypeError, IndexError, ValueError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        if isinstance(error, CheckpointMismatch):
            raise
        raise CheckpointMismatch(
            f"{checkpoint.name} looks like {files.what}, but its sizes make no sense ({_first_line(error)}).",
            "Download it again, or check config.json beside it.",
        ) from error
    fill_module(module, checkpoint, files.legacy, files.what, assign=True)
    return module.place(device, dtype).requires_grad_(False).train(False)


def load_model(path, device="cpu", dtype=torch.float32, config: dict | None = None, ops=nn) -> NextScaleModel:
    """Loads a transformer; family and sizes come from the file (see DESIGN 1). Raises CheckpointMismatch.

    path: a .safetensors, .pth or .bin file, a folder of shards, or a folder of parts (Family.parts).
    config: overrides by name, unknown names are ignored.
    """
    checkpoint = read_checkpoint(transformer_path(path))
    files = detect(checkpoint, MODELS, "a next-scale transformer", config)
    return build(files, checkpoint, ops=ops, dtype=dtype, device=device, config=config)


def load_vae(path, device="cpu", dtype=torch.float32, config: dict | None = None, ops=nn):
    """Loads a codec; files that hold only the quantiser load too, decoding with them raises. Raises
    CheckpointMismatch."""
    checkpoint = read_checkpoint(codec_path(path))
    files = detect(checkpoint, CODECS, "a next-scale VAE", config)
    return build(files, checkpoint, ops=ops, dtype=dtype, device=device, config=config)
