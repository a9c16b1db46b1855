"""Class names: what a label text means for a class-conditional model."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConditionMismatch

IMAGENET = Path(__file__).parent / "imagenet.json"


def class_names(config) -> tuple[str, ...]:
    """Names of a model's classes in index order, aliases joined by `;`. ImageNet's for an unnamed 1000-class model."""
    if config.labels:
        return tuple(config.labels)
    if config.num_classes == 1000:
        return tuple(json.loads(IMAGENET.read_text(encoding="utf-8")))
    return ()


def parse_labels(text: str, names: Sequence[str], num_classes: int) -> list[int]:
    """Class ids of a label text: names or indices, `;` or `,` between several, -1 for no class. Case and spaces do not
    matter, and the first words of one name are enough.

    Raises ConditionMismatch with the nearest names for one that is unknown, and for an empty text.
    """
    ids = [_one(part, names, num_classes) for part in _parts(text, names)]
    if not ids:
        raise ConditionMismatch("The label is empty.", "Write a class name or its number, several separated by ';'.")
    return ids


def _parts(text: str, names: Sequence[str]) -> list[str]:
    """The labels in a text. A comma separates too, but not within a name that holds one."""
    known = {_plain(alias) for name in names for alias in name.split(";")}
    wholes = [part for part in text.split(";") if part.strip()]
    return [p for part in wholes for p in ([part] if _plain(part) in known else part.split(",")) if p.strip()]


def _one(text: str, names: Sequence[str], num_classes: int) -> int:
    text = text.strip()
    if re.fullmatch(r"[+-]?\d{1,9}", text):
        number = int(text)
        if -1 <= number < num_classes:
            return number
        raise ConditionMismatch(
            f"Class {number} does not exist: this model has {num_classes} classes.",
            f"Use 0 to {num_classes - 1}, or -1 for no class.",
        )
    known = {_plain(alias): i for i, name in reversed(list(enumerate(names))) for alias in name.split(";")}
    if _plain(text) in known:
        return known[_plain(text)]
    longer = {i for i, name in enumerate(names) if _plain(name.split(";")[0]).startswith(_plain(text) + " ")}
    if len(longer) == 1:  # "cat" where only "cat face" begins with it
        return longer.pop()
    near = difflib.get_close_matches(_plain(text), known, 3, 0.5)
    hint = (
        f"Nearest: {', '.join(near)}."
        if near
        else f"Use a number from 0 to {num_classes - 1}" + (", or one of the model's names." if names else ".")
    )
    raise ConditionMismatch(f"No class is called {text!r}.", hint)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
