"""Text encoders as stock CLIP objects: the stock CLIP Text Encode works with them, and the host manages their memory.

The host's own loader takes FLAN-T5 XL for a T5 of the same sizes with another tokenizer and position biases in every
layer, and would encode every prompt wrongly without a word; so the file is read here and put into the host's T5 class
under the right configuration.
"""

from __future__ import annotations

import os
import re
from functools import partial
from types import SimpleNamespace

import comfy.model_management as management
import comfy.sd
import comfy.text_encoders.t5
import folder_paths
from comfy.sd1_clip import SD1ClipModel, SDClipModel
from transformers import T5TokenizerFast

from ....stepvar_core.checkpoints import Checkpoint, fill_module, read_checkpoint
from ....stepvar_core.errors import CheckpointMismatch
from ..loading import model_files, resolve
from . import qwen2
from .prompts import PromptTokenizer

FOLDER = "text_encoders"
NONE = "none"
HART = "hart-qwen2"
LATER = {"infinitystar": "InfinityStar", "switti-clip": "Switti"}
TYPES = ["auto", "flan-t5-xl", "infinitystar", HART, "switti-clip"]
MAX_TOKENS = 512  # Infinity was trained on prompts of up to so many, its end token included
BUCKETS = 32  # relative distances the host's T5 class tells apart
KEY = "flan_t5"
FIRST = "encoder.block.0.layer."
POSITIONS = "0.SelfAttention.relative_attention_bias.weight"
# widths of other T5 models; ours is told by its layout alone, so that any width but these loads
OTHER_WIDTHS = {512: "T5 small", 768: "T5 base", 1024: "T5 large", 4096: "T5 XXL"}
LANGUAGE_MODEL = r"(model\.|language_model\.)*layers\.0\.self_attn\."
FOREIGN = (
    (
        r"encoder\.block\.1\.layer\." + re.escape(POSITIONS),
        "a UMT5 or Pile-T5 encoder (a position bias in every layer)",
    ),
    (re.escape(FIRST) + r"1\.DenseReluDense\.wi\.weight", "a T5 of the first generation (an MLP without gate)"),
    (r".*text_model\.|.*transformer\.resblocks\.|text_projection", "a CLIP text encoder"),
    (LANGUAGE_MODEL, "a language model such as Qwen or Llama"),
)


def names() -> list[str]:
    return model_files(FOLDER)


def load(name: str, kind: str, second: str) -> comfy.sd.CLIP:
    """CLIP of a listed file or folder. Raises CheckpointMismatch naming what the file is instead."""
    if kind in LATER:
        raise CheckpointMismatch(
            f"Text encoders of type {kind} are for {LATER[kind]} models, which have no nodes yet.",
            "For Infinity choose flan-t5-xl, for HART hart-qwen2.",
        )
    path = resolve(name, (FOLDER,))
    checkpoint = read_checkpoint(path, keep=lambda key: not key.startswith(("decoder.", "lm_head.", "visual.")))
    is_qwen = kind == HART or (kind == "auto" and any(re.match(LANGUAGE_MODEL, key) for key in checkpoint.tensors))
    if second != NONE:
        raise CheckpointMismatch(
            f"encoder_name_2 is {second}, but {'HART reads one encoder' if is_qwen else 'FLAN-T5 XL is one encoder'}.",
            "Set encoder_name_2 to none.",
        )
    if is_qwen:
        clip, tokenizer = qwen2.parts(checkpoint, path)
    else:
        clip, tokenizer = partial(T5Encoder, t5_config(checkpoint)), Tokenizer
    key, first, what = (
        (qwen2.KEY, qwen2.FIRST, "HART's Qwen2")
        if is_qwen
        else (KEY, FIRST + "0.SelfAttention.q.weight", "a FLAN-T5 encoder")
    )
    target = SimpleNamespace(params={}, clip=partial(_encoder, checkpoint, clip, key, first, what), tokenizer=tokenizer)
    return comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=sum(t.numel() for t in checkpoint.tensors.values()),
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
        checkpoint.shape(key)
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


def _encoder(
    checkpoint: Checkpoint, clip, clip_key: str, first: str, what: str, dtype, device, model_options
) -> SD1ClipModel:
    """The encoder with its weights: stored as in the file (fp8 stays fp8), or as the host wants where the file is
    wider.

    The host casts them per call: it computes text encoders in float32; FLAN-T5's activations overflow float16. first: a
    matrix, whose type is the encoder's.
    """
    picked = {
        key: management.pick_weight_dtype(tensor.dtype, dtype, device) for key, tensor in checkpoint.tensors.items()
    }
    model = SD1ClipModel(
        device=device, dtype=picked[first], model_options=model_options, clip_name=clip_key, clip_model=clip
    )
    transformer = getattr(model, model.clip).transformer
    for key, parameter in transformer.named_parameters():
        parameter.data = parameter.data.to(picked.get(key, parameter.dtype))
    fill_module(transformer, checkpoint, (), what)
    return model


class Tokenizer(PromptTokenizer):
    """T5's. T5 knows no weights: (word:1.3) is read as word."""

    key = KEY

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        folder = os.path.join(os.path.dirname(comfy.text_encoders.t5.__file__), "t5_tokenizer")
        self.tokenizer = T5TokenizerFast.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
