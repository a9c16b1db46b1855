"""Load VAR Text Encoder: which kind of encoder a file is, and reading it."""

from __future__ import annotations

import comfy.model_management as management
import comfy.sd

from ....stepvar_core.checkpoints import Checkpoint, read_checkpoint
from ....stepvar_core.errors import CheckpointMismatch, StepVARError
from ....stepvar_core.families import FAMILIES
from ..loading import model_files, resolve
from . import clip_pair, flan_t5, qwen2
from .encoder import Encoder, File

FOLDER = "text_encoders"
NONE = "none"
AUTO = "auto"
TYPES = [AUTO, "flan-t5-xl", "infinitystar", "hart-qwen2", "switti-clip"]  # workflows know them: append only
ENCODERS: dict[str, Encoder] = {
    encoder.type: encoder for encoder in (flan_t5.ENCODER, qwen2.ENCODER, clip_pair.ENCODER)
}
LATER = {"infinitystar": "InfinityStar"}  # types without an encoder yet, and their models
# parts of a whole model that no prompt goes through
LEFT_OUT = ("decoder.", "lm_head.", "visual.", "vision_model.", "visual_projection.")


def names() -> list[str]:
    return model_files(FOLDER)


def load(name: str, kind: str, second: str) -> comfy.sd.CLIP:
    """CLIP of a listed file or folder, or of two. Raises CheckpointMismatch naming what a file is instead."""
    if kind in LATER:
        known = [f"{family.reads.encoder} for {family.title}" for family in FAMILIES if family.reads_text]
        raise CheckpointMismatch(
            f"Text encoders of type {kind} are for {LATER[kind]} models, which have no nodes yet.",
            f"Choose {', '.join(known)}.",
        )
    file = _read(name)
    encoder = _choose(kind, file.checkpoint, files=1 if second == NONE else 2)
    if second == NONE:
        if encoder.files == 1:
            return _made(encoder, file)
        raise CheckpointMismatch(
            f"{name} is {encoder.what}; {encoder.says}.", "Choose the other one in encoder_name_2, in either order."
        )
    if encoder.files == 2:
        return _made(encoder, file, _read(second))
    raise CheckpointMismatch(f"encoder_name_2 is {second}, but {encoder.says}.", "Set encoder_name_2 to none.")


def _made(encoder: Encoder, *files: File) -> comfy.sd.CLIP:
    """CLIP of these files; what their sizes and settings trip up in the host's classes becomes the package's error."""
    try:
        return encoder.read(*files)
    except (StepVARError, management.OOM_EXCEPTION):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointMismatch(
            f"{' and '.join(file.path.name for file in files)} looks like {encoder.what}, but its sizes or settings "
            f"make no sense ({found}).",
            "Download it again, config.json and tokenizer_config.json included.",
        ) from error


def _read(name: str) -> File:
    path = resolve(name, (FOLDER,))
    return File(path, read_checkpoint(path, keep=lambda key: not key.startswith(LEFT_OUT)))


def _choose(kind: str, checkpoint: Checkpoint, files: int) -> Encoder:
    """The encoder of a type; of `auto` the one that looks like the file, rather one that reads so many. A file that
    looks like none is for the first to name."""
    if kind != AUTO:
        return ENCODERS[kind]
    fitting = [encoder for encoder in ENCODERS.values() if encoder.fits(checkpoint)] or [flan_t5.ENCODER]
    return next((encoder for encoder in fitting if encoder.files == files), fitting[0])
