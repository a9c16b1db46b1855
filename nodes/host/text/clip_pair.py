"""Switti's text encoders: the host's CLIP class twice, read as yandex-research/switti (Apache-2.0) reads CLIP-L and
OpenCLIP bigG.

The same two files as SDXL's, used otherwise: the last layer behind the final norm in place of the one before it, the
end token's state without the projection, and a mask that hides the padding. An SDXL CLIP of the host would make every
prompt another.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial

import comfy.sd
import comfy.sd1_clip
import torch
from comfy.sd1_clip import SDClipModel
from transformers import CLIPTokenizer

from ....stepvar_core.checkpoints import Checkpoint
from ....stepvar_core.errors import CheckpointMismatch
from .encoder import Encoder, File, fill, host_clip, longest, stored_types
from .prompts import PromptTokenizer

TYPE = "switti-clip"
KEY = "switti_clip"
HEAD_DIM = 64
START, END = 49406, 49407
LAYER = "text_model.encoder.layers.0."
OTHER_WIDTHS = {512: "CLIP ViT-B", 1024: "CLIP ViT-H"}
GET_THEM = (
    "Choose openai/clip-vit-large-patch14 (clip_l) and laion/CLIP-ViT-bigG-14-laion2B-39B-b160k (clip_g), in either "
    "order; SDXL's files of these names are the same."
)


@dataclass(frozen=True)
class Half:
    """One CLIP text encoder: its tensors under the host's names, and its sizes in the host's words."""

    checkpoint: Checkpoint
    config: dict

    @property
    def width(self) -> int:
        return self.config["hidden_size"]


def is_clip(checkpoint: Checkpoint) -> bool:
    return any(re.match(r"(.*\.)?text_model\.encoder\.layers\.0\.", key) for key in checkpoint.tensors)


def read(*files: File) -> comfy.sd.CLIP:
    """CLIP of both files, chosen in either order. Raises CheckpointMismatch naming what a file is instead."""
    narrow, wide = sorted((half_of(file.checkpoint) for file in files), key=lambda half: half.width)
    if narrow.width == wide.width:
        raise CheckpointMismatch(
            f"{' and '.join(file.checkpoint.name for file in files)} are encoders of the same size ({wide.width} "
            "channels); Switti reads one of 768 and one of 1280.",
            GET_THEM,
        )
    narrow.config.setdefault("hidden_act", "quick_gelu")
    wide.config.setdefault("hidden_act", "gelu")
    parameters = sum(tensor.numel() for half in (narrow, wide) for tensor in half.checkpoint.tensors.values())
    return host_clip(partial(ClipPair, narrow, wide), Tokenizer, parameters)


def half_of(checkpoint: Checkpoint) -> Half:
    """The text half of a CLIP checkpoint. Raises CheckpointMismatch for anything else."""
    if not is_clip(checkpoint):
        known = any(re.match(r"(.*\.)?transformer\.resblocks\.", key) for key in checkpoint.tensors)
        what = "a CLIP under OpenCLIP's own names" if known else "no CLIP text encoder"
        raise CheckpointMismatch(
            f"{checkpoint.name} is {what}; Switti reads two CLIPs in transformers' names.", GET_THEM
        )
    checkpoint.tensors = {
        re.sub(r"^.*?(?=text_model\.)", "", key): tensor
        for key, tensor in checkpoint.tensors.items()
        if re.match(r"(.*\.)?text_model\.", key) and not key.endswith("position_ids")
    }
    shapes = [
        checkpoint.shape(key) if key in checkpoint.tensors else None
        for key in (
            "text_model.embeddings.token_embedding.weight",
            "text_model.embeddings.position_embedding.weight",
            LAYER + "mlp.fc1.weight",
        )
    ]
    if any(shape is None or len(shape) != 2 for shape in shapes):
        found = ", ".join(list(checkpoint.tensors)[:3])
        raise CheckpointMismatch(
            f"{checkpoint.name} is no whole CLIP text encoder: it holds {len(checkpoint.tensors)} tensors such as "
            f"{found}.",
            GET_THEM,
        )
    (_, width), (positions, _), (hidden, _) = shapes
    if width in OTHER_WIDTHS or positions != longest(TYPE):
        raise CheckpointMismatch(
            f"{checkpoint.name} is {OTHER_WIDTHS.get(width, 'a CLIP')} ({width} channels, {positions} positions); "
            f"Switti reads CLIP-L (768) and OpenCLIP bigG (1280), {longest(TYPE)} positions each.",
            GET_THEM,
        )
    said = checkpoint.config.get("text_config") or checkpoint.config
    heads = int(said.get("num_attention_heads", max(width // HEAD_DIM, 1)))
    if heads < 1 or width % heads:
        raise CheckpointMismatch(
            f"{checkpoint.name} is a CLIP of unusual sizes ({width} channels in {heads} heads).", GET_THEM
        )
    config = {
        "hidden_size": width,
        "num_hidden_layers": checkpoint.count(r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "max_position_embeddings": positions,
        "eos_token_id": END,
    }
    if "hidden_act" in said:
        config["hidden_act"] = said["hidden_act"]
    return Half(checkpoint, config)


class ClipPair(torch.nn.Module):
    """Both encoders as the host wants one: features side by side, the wide one's end token and padding mask."""

    def __init__(self, narrow: Half, wide: Half, device="cpu", dtype=None, model_options=None):
        super().__init__()
        self.clip_l = _filled(narrow, device, dtype, model_options or {})
        self.clip_g = _filled(wide, device, dtype, model_options or {})
        self.dtypes = {p.dtype for p in self.parameters()}

    def set_clip_options(self, options) -> None:
        for clip in (self.clip_l, self.clip_g):
            clip.set_clip_options(options)

    def reset_clip_options(self) -> None:
        for clip in (self.clip_l, self.clip_g):
            clip.reset_clip_options()

    def encode_token_weights(self, tokens: dict) -> tuple:
        narrow, wide = (clip.encode_token_weights(tokens[KEY]) for clip in (self.clip_l, self.clip_g))
        return torch.cat([narrow[0], wide[0]], -1), wide[1], wide[2]


def _filled(half: Half, device, dtype, model_options: dict) -> SDClipModel:
    types = stored_types(half.checkpoint, dtype, device)
    clip = SDClipModel(
        device=device,
        dtype=types[LAYER + "mlp.fc1.weight"],
        textmodel_json_config=dict(half.config),
        special_tokens={"start": START, "end": END, "pad": END},
        enable_attention_masks=True,
        return_projected_pooled=False,
        return_attention_masks=True,
        model_options=model_options,
    )
    clip.transformer.text_projection = torch.nn.Identity()
    fill(clip.transformer, half.checkpoint, types, "a CLIP text encoder")
    return clip


class Tokenizer(PromptTokenizer):
    """CLIP's, of always 77 ids for both encoders, longer prompts cut. Prompt weights are unknown to Switti:
    (word:1.3) is read as word."""

    key = KEY

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        folder = os.path.join(os.path.dirname(comfy.sd1_clip.__file__), "sd1_tokenizer")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text, truncation=True, max_length=longest(TYPE))["input_ids"]
        return ids + [END] * (longest(TYPE) - len(ids))


ENCODER = Encoder(
    type=TYPE,
    what="a CLIP text encoder",
    fits=is_clip,
    read=read,
    says="Switti reads two CLIPs, clip_l and clip_g",
    files=2,
)
