"""What a kind of text encoder declares, and what all of them need: files become stock CLIP objects, so that the stock
CLIP Text Encode works with them and the host manages their memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management as management
import comfy.sd
import folder_paths
import torch
from comfy.sd1_clip import SD1ClipModel

from ....stepvar_core.checkpoints import Checkpoint, fill_module
from ....stepvar_core.families import FAMILIES


@dataclass(frozen=True)
class File:
    """A chosen file or folder, and what it holds."""

    path: Path
    checkpoint: Checkpoint


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One type of Load VAR Text Encoder; each declares itself at the end of its own file.

    type: as families name it (Prompt.encoder). what: its file in messages. fits(checkpoint): whether a file looks like
    it, by its keys. read(*files) -> the host's CLIP; raises CheckpointMismatch naming what a file is instead. files:
    how many it takes. says: what to answer where another number was chosen.
    """

    type: str
    what: str
    fits: Callable[[Checkpoint], bool]
    read: Callable[..., comfy.sd.CLIP]
    says: str
    files: int = 1


def longest(encoder: str) -> int:
    """Tokens of a prompt, end token and pads included, that the families of an encoder read."""
    return max(family.reads.longest for family in FAMILIES if family.reads_text and family.reads.encoder == encoder)


def host_clip(clip, tokenizer, parameters: int) -> comfy.sd.CLIP:
    """The host's CLIP around a model and a tokenizer, both made by the host. parameters: numbers the model holds."""
    target = SimpleNamespace(params={}, clip=clip, tokenizer=tokenizer)
    folders = folder_paths.get_folder_paths("embeddings")
    return comfy.sd.CLIP(target, embedding_directory=folders, parameters=parameters)


def clip_of(checkpoint: Checkpoint, *, encoder, tokenizer, key: str, first: str, what: str) -> comfy.sd.CLIP:
    """The host's CLIP of one encoder in one file, whose tensors have the names of `encoder`, an SDClipModel.

    key: what tokens go by in a prompt. first: a matrix, whose type is the encoder's. what: the file in messages.
    """
    filled = partial(_filled, checkpoint, encoder, key, first, what)
    return host_clip(filled, tokenizer, parameters=sum(tensor.numel() for tensor in checkpoint.tensors.values()))


def _filled(
    checkpoint: Checkpoint, encoder, key: str, first: str, what: str, dtype, device, model_options
) -> SD1ClipModel:
    """The encoder with its weights, in the host's wrapper."""
    types = stored_types(checkpoint, dtype, device)
    model = SD1ClipModel(
        device=device, dtype=types[first], model_options=model_options, clip_name=key, clip_model=encoder
    )
    fill(getattr(model, model.clip).transformer, checkpoint, types, what)
    return model


def stored_types(checkpoint: Checkpoint, dtype, device) -> dict[str, torch.dtype]:
    """What every tensor is stored in: as in the file (fp8 stays fp8), or as the host wants where the file is wider.

    The host casts them per call: it computes text encoders in float32; FLAN-T5's activations overflow float16.
    """
    return {
        name: management.pick_weight_dtype(tensor.dtype, dtype, device) for name, tensor in checkpoint.tensors.items()
    }


def fill(transformer, checkpoint: Checkpoint, types: dict[str, torch.dtype], what: str) -> None:
    """Puts the weights into an encoder of the host, each in its type. Raises CheckpointMismatch."""
    for name, parameter in transformer.named_parameters():
        parameter.data = parameter.data.to(types.get(name, parameter.dtype))
    fill_module(transformer, checkpoint, (), what)
