"""LATENT and CONDITIONING as VAR models use them, read so that stock nodes in between are honoured or refused by
name."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..stepvar_core.codes import Codes
from ..stepvar_core.errors import ConditionMismatch, LatentMismatch, ScheduleMismatch
from ..stepvar_core.families.registry import family_of
from ..stepvar_core.schedule import ScaleSchedule

# how far a mask's aspect ratio may be off, as a logarithm: photos of 3:2 and cameras' 16:9 fit their templates
MASK_STRETCH = 0.07


def fingerprints(samples: Tensor) -> list[str]:
    """One hash per row: stock nodes change or reorder `samples` without knowing of the codes beside them."""
    return [
        hashlib.sha256(row.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:32] for row in samples
    ]


def empty_latent(model, schedule: ScaleSchedule, batch: int, device) -> dict:
    return {"samples": torch.zeros(batch, *model.latent_shape(schedule), device=device), "var_schedule": schedule}


def pack_latent(codes: Codes, schedule: ScaleSchedule, rows: tuple[int, ...], samples: Tensor) -> dict:
    """LATENT of f_hat and the codes it was built from, with a fingerprint per picture."""
    return {
        "samples": samples,
        "var_schedule": schedule,
        "batch_index": list(rows),
        "var_codes": {
            "codes": [c.cpu() for c in codes],
            "soft": [None if s is None else s.cpu() for s in codes.soft],
            "rows": fingerprints(samples),
        },
    }


def schedule_of(latent: dict) -> ScaleSchedule:
    """The schedule a LATENT carries. Raises LatentMismatch when it comes from a node of another kind of model."""
    schedule = latent.get("var_schedule")
    if not isinstance(schedule, ScaleSchedule):
        raise LatentMismatch("The latent does not say which scales it has.", "Connect Empty VAR Latent.")
    return schedule


@dataclass(frozen=True)
class LatentInput:
    """What the sampler takes from a LATENT: batch, identities, schedule, and codes and mask where there are any."""

    batch: int
    rows: tuple[int, ...]
    schedule: ScaleSchedule
    samples: Tensor
    stored: dict | None
    mask: Tensor | None

    def codes(self, quantizer, device) -> Codes:
        """Codes of `samples`: a picture's stored ones where a stock node left it alone, else requantised ones."""
        known = {row: i for i, row in enumerate(self.stored["rows"])} if self.stored is not None else {}
        wanted = [known.get(row) for row in fingerprints(self.samples)]
        stored = Codes(self.stored["codes"], self.stored["soft"]) if known else Codes()
        if None not in wanted:
            return stored.rows(wanted)
        samples = self.samples.to(device)
        codes = quantizer.encode(samples, self.schedule)
        fresh = Codes(codes, quantizer.soft_features(samples, codes, self.schedule))
        rows = {row: i for row, i in enumerate(wanted) if i is not None}
        if not rows or any(f.shape[1] != c.shape[1] for f, c in zip(fresh, stored)):
            return fresh
        return fresh.with_rows(rows, stored, self.schedule, quantizer)


def read_latent(latent: dict, model) -> LatentInput:
    """Raises LatentMismatch for a latent of another kind of model, another size, or without a picture."""
    samples = latent.get("samples")
    if not isinstance(samples, Tensor) or samples.ndim != 4 or not len(samples):
        raise LatentMismatch("The latent holds no picture of a VAR model.", "Connect Empty VAR Latent.")
    schedule = latent.get("var_schedule")
    if not isinstance(schedule, ScaleSchedule):
        schedule = _schedule_of_size(model, samples)
    wanted = model.latent_shape(schedule)
    if tuple(samples.shape[1:]) != wanted:
        raise LatentMismatch(
            f"The latent is {tuple(samples.shape[1:])} (channels, height, width); this model needs {wanted}.",
            "Connect Empty VAR Latent with this model, or a latent that a VAR Sampler made with it.",
        )
    if not samples.isfinite().all():
        raise LatentMismatch("The latent holds values that are not finite numbers.", "Connect a sampler's own latent.")
    rows = latent.get("batch_index")
    rows = tuple(rows) if rows is not None and len(rows) == len(samples) else tuple(range(len(samples)))
    mask = latent.get("noise_mask")
    if mask is not None:
        check_mask(mask, samples.shape[-1] / samples.shape[-2], "noise mask of the latent")
        mask = mask.reshape(-1, *mask.shape[-2:])[
            torch.arange(len(samples), device=mask.device) % (mask.numel() // mask[0].numel())
        ]
    return LatentInput(len(samples), rows, schedule, samples, latent.get("var_codes"), mask)


def _schedule_of_size(model, samples: Tensor) -> ScaleSchedule:
    """The model's schedule for a latent that lost its own (Load Latent), by its size; the default where none fits."""
    try:
        known = [model.schedule(samples.shape[-1] / samples.shape[-2], name) for name, _ in model.sizes()]
    except ScheduleMismatch:
        known = []
    return next((s for s in known if model.latent_shape(s) == tuple(samples.shape[1:])), model.schedule())


def check_mask(mask: Tensor, aspect_ratio: float, what: str) -> None:
    """Raises LatentMismatch for a mask of another shape than the picture: stretched over it, it would mark the wrong
    places."""
    height, width = mask.shape[-2:]
    if not mask.numel() or (abs(math.log(width / height / aspect_ratio)) > MASK_STRETCH and mask.min() != mask.max()):
        raise LatentMismatch(
            f"The {what} is {width}x{height} pixels; the picture's width is {aspect_ratio:.2f} times its height.",
            "Use a mask of the picture's shape: VAR Encode crops a picture in the middle, so crop picture and mask "
            "alike before.",
        )


def check_holds_picture(given: LatentInput, start_at_scale: int) -> None:
    """Raises LatentMismatch for an empty latent, whose first scales are blank, where they are to be kept."""
    if given.stored is None and not given.samples.any():
        raise LatentMismatch(
            f"start_at_scale is {start_at_scale}, but the latent is empty: there are no first scales to keep.",
            "Set start_at_scale to 0, or connect the LATENT of VAR Encode or of another VAR Sampler.",
        )


def pack_labels(ids: list[int]) -> list:
    """CONDITIONING of class ids, one per picture, cycled over the batch."""
    return [[torch.tensor(ids, dtype=torch.float32).view(-1, 1, 1), {"var_labels": list(ids)}]]


def read_condition(conditioning, model, batch: int, name: str):
    """The model's condition for a batch; None for a negative without content, which is the model's own.

    Raises ConditionMismatch for what this model cannot honour, by name.
    """
    family = family_of(model)
    source = "CLIP Text Encode" if family.reads_text else "VAR Class Label"
    if not conditioning:
        raise ConditionMismatch(f"The {name} conditioning is empty.", f"Connect {source}.")
    if len(conditioning) > 1:
        instead = "write several labels separated by ';'"
        if family.reads_text:
            instead = "write one prompt" + (", or join two with Conditioning Concat" if family.reads.joins else "")
        raise ConditionMismatch(
            f"The {name} conditioning combines {len(conditioning)} entries.",
            f"A VAR model takes one: remove Conditioning Combine, or {instead}.",
        )
    tensor, options = conditioning[0]
    for key, what in UNKNOWN_OPTIONS.items():
        if key in options:
            raise ConditionMismatch(
                f"The {name} conditioning {what}.", f"A VAR model cannot honour that: connect {source} directly."
            )
    return (_read_text if family.reads_text else _read_labels)(tensor, options, model, batch, name)


# what stock nodes attach to a conditioning, by key
UNKNOWN_OPTIONS = {
    "area": "is limited to an area",
    "mask": "is limited to a mask",
    "start_percent": "is limited to a part of the run",
    "control": "carries a ControlNet",
    "gligen": "carries GLIGEN boxes",
    "hooks": "carries hooks (LoRA or masks by prompt)",
}


def _read_labels(tensor: Tensor, options: dict, model, batch: int, name: str):
    labels = options.get("var_labels")
    if labels is None:
        raise ConditionMismatch(
            f"The {name} conditioning is text; this model takes class labels.", "Use VAR Class Label."
        )
    if tuple(tensor.flatten().tolist()) != tuple(float(i) for i in labels):
        raise ConditionMismatch(
            f"The {name} conditioning was changed on its way (Conditioning Average or Zero Out).",
            "Class labels cannot be blended: connect VAR Class Label directly; -1 is the label for no class.",
        )
    return model.class_condition([labels[i % len(labels)] for i in range(batch)])


def _read_text(tensor: Tensor, options: dict, model, batch: int, name: str):
    """Features (1 or B, T, C) of prompts; concatenated and averaged ones are features too."""
    if "var_labels" in options:
        raise ConditionMismatch(
            f"The {name} conditioning is class labels; this model reads text.",
            "Connect CLIP Text Encode, with the CLIP of Load VAR Text Encoder.",
        )
    if tensor.ndim != 3 or tensor.shape[-1] != model.config.text_dim:
        raise ConditionMismatch(
            f"The {name} conditioning has {tensor.shape[-1]} channels; this model reads {model.config.text_dim}.",
            f"It comes from another text encoder: connect the CLIP of Load VAR Text Encoder "
            f"({family_of(model).reads.named}) to CLIP Text Encode.",
        )
    if not tensor.any():
        if name == "negative":
            return None
        raise ConditionMismatch(
            f"The {name} conditioning holds nothing (Conditioning Zero Out).",
            "Connect CLIP Text Encode; an empty prompt works.",
        )
    if len(tensor) not in (1, batch):
        raise ConditionMismatch(
            f"The {name} conditioning holds {len(tensor)} prompts; the batch has {batch} pictures.",
            "Give one prompt for all, or one per picture.",
        )
    mask, pooled = options.get("attention_mask"), options.get("pooled_output")
    for what, value in (("mask", mask), ("pooled vector", pooled)):
        if value is not None and len(value) not in {len(tensor), batch}:
            raise ConditionMismatch(
                f"The {name} conditioning holds {len(tensor)} prompts and a {what} of {len(value)}.",
                "Encode the prompts together.",
            )
    condition = model.text_condition(
        tensor.expand(batch, -1, -1),
        None if mask is None else mask.expand(batch, -1),
        None if pooled is None else pooled.expand(batch, -1),
    )
    if not tensor.isfinite().all():
        raise ConditionMismatch(
            f"The {name} conditioning holds values that are not finite numbers.",
            "Connect CLIP Text Encode directly, with the CLIP of Load VAR Text Encoder.",
        )
    return condition
