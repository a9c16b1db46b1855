"""FLAN-T5 XL, which Infinity reads, in the host's T5 class.

The host's own loader takes it for a T5 of the same sizes with another tokenizer and position biases in every layer,
and would encode every prompt wrongly without a word; so the file is read here and put into the host's class under the
right configuration.
"""

from __future__ import annotations

import os
import re
from functools import partial

import comfy.sd
import comfy.text_encoders.t5
from comfy.sd1_clip import SDClipModel
from transformers import T5TokenizerFast  # type: ignore[attr-defined]  # newer versions keep it as another name

from ....stepvar_core.checkpoints import Checkpoint
from ....stepvar_core.errors import CheckpointMismatch
from .encoder import Encoder, File, clip_of, longest
from .prompts import PromptTokenizer

TYPE = "flan-t5-xl"
BUCKETS = 32  # relative distances the host's T5 class tells apart
KEY = "flan_t5"
FIRST = "encoder.block.0.layer."
POSITIONS = "0.SelfAttention.relative_attention_bias.weight"
# widths of other T5 models; ours is told by its layout alone, so that any width but these loads
OTHER_WIDTHS = {512: "T5 small", 768: "T5 base", 1024: "T5 large", 4096: "T5 XXL"}
FOREIGN = (
    (
        r"encoder\.block\.1\.layer\." + re.escape(POSITIONS),
        "a UMT5 or Pile-T5 encoder (a position bias in every layer)",
    ),
    (re.escape(FIRST) + r"1\.DenseReluDense\.wi\.weight", "a T5 of the first generation (an MLP without gate)"),
    (r".*text_model\.|.*transformer\.resblocks\.|text_projection", "a CLIP text encoder"),
    (r"(model\.|language_model\.)*layers\.0\.self_attn\.", "a language model such as Qwen or Llama"),
)


def t5_config(checkpoint: Checkpoint) -> dict:
    """Sizes of a T5 v1.1 or FLAN-T5 encoder from its tensors' shapes, in the host's words; puts the embedding under
    one name.

    Raises CheckpointMismatch for anything else.
    """
    tensors = checkpoint.tensors
    alias = tensors.pop("encoder.embed_tokens.weight", None)
    if alias is not None:
        tensors.setdefault("shared.weight", alias)
    for pattern, what in FOREIGN:
        if any(re.match(pattern, key) for key in tensors):
            raise CheckpointMismatch(
                f"{checkpoint.name} is {what}, not FLAN-T5 XL.",
                "Choose google/flan-t5-xl: its folder, or a file of its encoder.",
            )
    shapes = [
        checkpoint.shape(key) if key in checkpoint.tensors else None
        for key in (
            "shared.weight",
            FIRST + POSITIONS,
            FIRST + "0.SelfAttention.q.weight",
            FIRST + "1.DenseReluDense.wi_0.weight",
        )
    ]
    if any(shape is None or len(shape) != 2 for shape in shapes):
        found = (
            f"{len(tensors)} tensors such as {', '.join(list(tensors)[:3])}" if tensors else "no tensors of an encoder"
        )
        raise CheckpointMismatch(
            f"{checkpoint.name} is no whole T5 encoder: it holds {found}.",
            "Choose google/flan-t5-xl; where it is cut into shards, choose the folder (its name ends with a slash).",
        )
    (vocab, width), (buckets, heads), (inner, _), (hidden, _) = shapes
    if width in OTHER_WIDTHS:
        raise CheckpointMismatch(
            f"{checkpoint.name} is {OTHER_WIDTHS[width]} ({width} channels); Infinity reads FLAN-T5 XL (2048 "
            "channels).",
            "Choose google/flan-t5-xl.",
        )
    if buckets != BUCKETS or inner % heads:
        raise CheckpointMismatch(
            f"{checkpoint.name} is a T5 of unusual sizes ({buckets} distances, {inner} channels in {heads} heads).",
            "Choose google/flan-t5-xl.",
        )
    return {
        "vocab_size": vocab,
        "d_model": width,
        "num_heads": heads,
        "d_kv": inner // heads,
        "d_ff": hidden,
        "num_layers": checkpoint.count(r"encoder\.block\.(\d+)\."),
        "is_gated_act": True,
        "dense_act_fn": "gelu_pytorch_tanh",
        "model_type": "t5",
    }  # not "umt5": the first layer's position biases serve all


class T5Encoder(SDClipModel):
    """No attention mask: prompts are never padded."""

    def __init__(self, config: dict, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=config,
            special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5,
            model_options=model_options or {},
        )


class Tokenizer(PromptTokenizer):
    """T5's. T5 knows no weights: (word:1.3) is read as word."""

    key = KEY

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        folder = os.path.join(os.path.dirname(comfy.text_encoders.t5.__file__), "t5_tokenizer")
        self.tokenizer = T5TokenizerFast.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, truncation=True, max_length=longest(TYPE))["input_ids"]


def is_t5(checkpoint: Checkpoint) -> bool:
    return any(key.startswith("encoder.block.") for key in checkpoint.tensors)


def read(file: File) -> comfy.sd.CLIP:
    """CLIP of a FLAN-T5 XL's file. Raises CheckpointMismatch naming what it is instead."""
    config = t5_config(file.checkpoint)
    return clip_of(
        file.checkpoint,
        encoder=partial(T5Encoder, config),
        tokenizer=Tokenizer,
        key=KEY,
        first=FIRST + "0.SelfAttention.q.weight",
        what=ENCODER.what,
    )


ENCODER = Encoder(type=TYPE, what="a FLAN-T5 encoder", fits=is_t5, read=read, says="FLAN-T5 XL is one encoder")
