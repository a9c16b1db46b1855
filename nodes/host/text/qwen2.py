"""HART's text encoder: the host's Qwen2 class under the configuration of mit-han-lab/Qwen2-VL-1.5B-Instruct, and the
prompt as mit-han-lab/hart (MIT) prepares it.

A fixed instruction is read before every prompt, in one run with it, and cut off its features; the prompt itself is
padded to 300 tokens, on the side its tokenizer says, and HART reads the features of the pads too.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

import comfy.sd
import comfy.text_encoders.llama as llama
import torch
from comfy.sd1_clip import SDClipModel
from transformers import Qwen2Tokenizer

from ....stepvar_core.checkpoints import Checkpoint, read_json
from ....stepvar_core.errors import CheckpointMismatch
from .encoder import Encoder, File, clip_of, longest
from .prompts import PromptTokenizer

TYPE = "hart-qwen2"
KEY = "hart_qwen2"
FIRST = "model.layers.0.self_attn.q_proj.weight"
HEAD_DIM = 128
ROTARY_BASE = 1000000.0
PAD = "<|endoftext|>"
# widths of other Qwen models; HART's own is told by its layout alone, so that any width but these loads
OTHER_WIDTHS = {896: "Qwen2 0.5B", 2048: "Qwen2.5 3B", 3584: "Qwen2 7B", 8192: "Qwen2 72B"}
GET_IT = "Choose the folder of mit-han-lab/Qwen2-VL-1.5B-Instruct."
# the words of upstream's hart/utils/constants.py: the features of a prompt depend on every one of them
INSTRUCTION = """Given a user prompt, generate an "Enhanced prompt" that provides detailed visual descriptions suitable for image generation.

Examples:
- User Prompt: A cat sleeping -> A small, fluffy white cat curled up in a round shape, sleeping peacefully on a warm sunny windowsill, \
surrounded by pots of blooming red flowers.
- User Prompt: A busy city street -> A bustling city street scene at dusk, featuring glowing street lamps, a diverse crowd of people in colorful \
clothing, and a double-decker bus passing by towering glass skyscrapers.

Please generate only the enhanced description for the prompt below and DO NOT include any additional sentences. Start your response with \
"Enhanced Prompt:".

User Prompt:
"""


def qwen2_config(checkpoint: Checkpoint) -> dict:
    """Sizes of a Qwen2 decoder from its tensors' shapes and config.json, in the host's words. Raises
    CheckpointMismatch for anything else."""
    keys = checkpoint.tensors
    if any(key.startswith(("encoder.block.", "text_model.")) for key in keys):
        raise CheckpointMismatch(f"{checkpoint.name} is a T5 or CLIP text encoder, not HART's Qwen2.", GET_IT)
    if "model.layers.0.self_attn.q_norm.weight" in keys or (
        FIRST in keys and "model.layers.0.self_attn.q_proj.bias" not in keys
    ):
        raise CheckpointMismatch(
            f"{checkpoint.name} is a language model of another kind, such as Qwen3 or Llama, not HART's Qwen2.", GET_IT
        )
    shapes = [
        checkpoint.shape(key) if key in checkpoint.tensors else None
        for key in (
            "model.embed_tokens.weight",
            FIRST,
            FIRST.replace("q_proj", "k_proj"),
            "model.layers.0.mlp.up_proj.weight",
        )
    ]
    if any(shape is None or len(shape) != 2 for shape in shapes):
        raise CheckpointMismatch(
            f"{checkpoint.name} is no whole Qwen2: it holds {len(keys)} tensors such as {', '.join(list(keys)[:3])}.",
            GET_IT,
        )
    (vocab, width), (queries, _), (key_width, _), (hidden, _) = shapes
    if width in OTHER_WIDTHS:
        raise CheckpointMismatch(
            f"{checkpoint.name} is {OTHER_WIDTHS[width]} ({width} channels); HART reads Qwen2-VL-1.5B-Instruct (1536 "
            "channels).",
            GET_IT,
        )
    heads = int(checkpoint.config.get("num_attention_heads", queries // HEAD_DIM))
    if heads < 1 or queries % heads or key_width % (queries // heads):
        raise CheckpointMismatch(
            f"{checkpoint.name} is a Qwen2 of unusual sizes ({queries} channels in {heads} heads).", GET_IT
        )
    base = (
        checkpoint.config.get("rope_theta")
        or (checkpoint.config.get("rope_parameters") or {}).get("rope_theta")
        or ROTARY_BASE
    )
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": checkpoint.count(r"model\.layers\.(\d+)\."),
        "num_attention_heads": heads,
        "num_key_value_heads": key_width * heads // queries,
        "head_dim": queries // heads,
        "rms_norm_eps": float(checkpoint.config.get("rms_norm_eps", 1e-6)),
        "rope_theta": float(base),
    }


def _tokenizer_config(path: Path) -> dict:
    """tokenizer_config.json beside the weights: where pads go changes every picture, and is written nowhere else."""
    file = (path if path.is_dir() else path.parent) / "tokenizer_config.json"
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointMismatch(
            f"There is no readable tokenizer_config.json beside {path.name}; it says on which side HART's prompts "
            "are padded.",
            "Download the whole folder of mit-han-lab/Qwen2-VL-1.5B-Instruct and choose it (its name ends with a "
            "slash).",
        ) from error
    content = content if isinstance(content, dict) else {}
    pad = content.get("pad_token")
    return content | {"pad_token": pad.get("content") if isinstance(pad, dict) else pad}


class Qwen2(llama.BaseLlama, torch.nn.Module):
    """The host's Qwen2 in the file's sizes."""

    def __init__(self, config_dict, dtype, device, operations):
        super().__init__()
        sizes = dict(config_dict)
        head_dim = sizes.pop("head_dim")  # a constant of the host's class, not one of its arguments
        config = llama.Qwen25_3BConfig(**sizes)
        config.head_dim = head_dim
        self.num_layers = config.num_hidden_layers
        self.model = llama.Llama2_(config, device=device, dtype=dtype, ops=operations)
        self.dtype = dtype


class QwenEncoder(SDClipModel):
    """Features behind the last norm of every position of the padded prompt, read after the instruction."""

    def __init__(self, config: dict, tokenizer: Tokenizer, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=config,
            special_tokens={"pad": tokenizer.pad},
            model_class=Qwen2,
            layer_norm_hidden_state=False,
            model_options=model_options or {},
        )
        self.instruction, self.pad = tokenizer.instruction, tokenizer.pad

    def forward(self, tokens):
        embed = self.transformer.get_input_embeddings()
        ids_BT = torch.tensor(
            [self.instruction + [int(token) for token in row] for row in tokens], device=embed.weight.device
        )
        before = len(self.instruction)
        mask_BT = ids_BT != self.pad
        mask_BT[:, :before] = True
        # not the base class's way: it takes everything behind the first pad for pads, and these may stand in front
        features_BTC = self.transformer(
            None, mask_BT.long(), embeds=embed(ids_BT, out_dtype=torch.float32), dtype=torch.float32
        )[0]
        return features_BTC[:, before:].float(), None, {"attention_mask": mask_BT[:, before:].long()}


class Tokenizer(PromptTokenizer):
    """Qwen2's, of always as many ids as HART reads. Prompt weights are unknown to HART: (word:1.3) is read as word."""

    key = KEY

    def __init__(self, padding_side: str, pad_token: str):
        folder = os.path.join(os.path.dirname(llama.__file__), "qwen25_tokenizer")
        self.tokenizer = Qwen2Tokenizer.from_pretrained(folder)
        self.padding_side, self.pad = padding_side, self.tokenizer.convert_tokens_to_ids(pad_token)
        self.instruction = self.tokenizer(INSTRUCTION)["input_ids"]
        self.length = longest(TYPE)

    def ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text, truncation=True, max_length=self.length)["input_ids"]
        pads = [self.pad] * (self.length - len(ids))
        return pads + ids if self.padding_side == "left" else ids + pads


def is_language_model(checkpoint: Checkpoint) -> bool:
    return any(re.match(r"(model\.|language_model\.)*layers\.0\.self_attn\.", key) for key in checkpoint.tensors)


def read(file: File) -> comfy.sd.CLIP:
    """CLIP of HART's Qwen2; gives its tensors the host's names. Raises CheckpointMismatch naming what the file is
    instead."""
    checkpoint = file.checkpoint
    checkpoint.tensors = {
        re.sub(r"^(model\.|language_model\.)*(layers\.|embed_tokens\.|norm\.)", r"model.\2", key): tensor
        for key, tensor in checkpoint.tensors.items()
        if "rotary_emb" not in key and ".visual." not in key
    }
    config, about = qwen2_config(checkpoint), _tokenizer_config(file.path)
    tokenizer = Tokenizer(about.get("padding_side", "right"), about.get("pad_token") or PAD)
    return clip_of(
        checkpoint,
        encoder=partial(QwenEncoder, config, tokenizer),
        tokenizer=lambda embedding_directory=None, tokenizer_data=None: tokenizer,
        key=KEY,
        first=FIRST,
        what=ENCODER.what,
    )


ENCODER = Encoder(type=TYPE, what="HART's Qwen2", fits=is_language_model, read=read, says="HART reads one encoder")
