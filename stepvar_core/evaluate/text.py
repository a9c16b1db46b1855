"""Features of prompts: stored ones, or those of a text encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import ConditionMismatch
from ..families import Family
from .prompts import Prompt

ENCODER = "flan-t5-xl"  # what TextEncoder is, in the words of Prompt.encoder
LONGEST_TEXT = 512  # FLAN-T5's tokens, as Infinity was trained


def reader(family: Family, features: str, folder: str, device: str) -> Callable[[Prompt], Tensor]:
    """What turns prompts into a family's features: the stored ones where a file is named, else FLAN-T5 from `folder`.

    Raises ConditionMismatch for a family whose prompts this tool cannot prepare.
    """
    if family.reads.keeps_pads:
        raise ConditionMismatch(
            f"The {family.name} family reads its prompts' pads; this tool knows features without any.",
            "Draw with sv.sample, or in ComfyUI.",
        )
    if family.reads.pooled:
        raise ConditionMismatch(
            f"The {family.name} family reads a vector of the whole prompt too; this tool knows features alone.",
            "Draw with sv.sample, or in ComfyUI.",
        )
    if features:
        return stored_features(features)
    if family.reads.encoder != ENCODER:
        raise ConditionMismatch(
            f"The {family.name} family reads {family.reads.named}; this tool encodes with FLAN-T5 XL alone.",
            "Draw with sv.sample, or in ComfyUI.",
        )
    return TextEncoder(folder, device)


def stored_features(path: str) -> Callable[[Prompt], Tensor]:
    """Reads (T, C) features of a prompt, stored under its id in one .safetensors file."""
    file = safe_open(path, framework="pt")
    known = set(file.keys())

    def read(prompt: Prompt) -> Tensor:
        if prompt.id not in known:
            raise ConditionMismatch(
                f"{path} holds no features of prompt {prompt.id}.", "Make it with --encode-only from the same prompts."
            )
        return file.get_tensor(prompt.id).float()

    return read


class TextEncoder:
    """FLAN-T5's encoder through the transformers package, which is optional: a folder as published, read from disk
    alone."""

    def __init__(self, folder: str, device: str):
        if not folder:
            raise ConditionMismatch(
                "This model reads text, and nothing encodes it.",
                "Give --text-encoder FOLDER (google/flan-t5-xl) or --features FILE.",
            )
        try:
            from transformers import AutoTokenizer, T5EncoderModel
        except ImportError as error:
            raise ConditionMismatch(
                "--text-encoder needs the transformers package.",
                "pip install transformers sentencepiece, or give --features FILE.",
            ) from error
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder: Any = T5EncoderModel.from_pretrained(folder, local_files_only=True)
        self.encoder = encoder.to(device).requires_grad_(False)
        self.device = device

    @torch.inference_mode()
    def __call__(self, prompt: Prompt) -> Tensor:
        """(T, C) features, without padding."""
        ids = self.tokenizer(prompt.text, max_length=LONGEST_TEXT, truncation=True, return_tensors="pt").input_ids.to(
            self.device
        )
        return self.encoder(ids).last_hidden_state[0].float()
