"""Class names: what a label text means for a class-conditional model."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConditionMismatch

IMAGENET = Path(__file__).parent / "imagenet.json"
LONGEST = 10_000  # characters of a label text: far more than a batch has pictures
LONGEST_NAME = 100  # characters that are looked for among the names


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

    Raises ConditionMismatch with the nearest names for one that is unknown, and for an empty or endless text.
    """
    if len(text) > LONGEST:
        raise ConditionMismatch(
            f"The label has {len(text)} characters; at most {LONGEST} are read.",
            "Write class names or numbers, several separated by ';'.",
        )
    known = {_plain(alias): i for i, name in reversed(list(enumerate(names))) for alias in name.split(";")}
    first = [_plain(name.split(";")[0]) for name in names]
    ids = [_one(part.strip(), known, first, num_classes) for part in _parts(text, known)]
    if not ids:
        raise ConditionMismatch("The label is empty.", "Write a class name or its number, several separated by ';'.")
    return ids


def _parts(text: str, known: dict[str, int]) -> list[str]:
    """The labels in a text. A comma separates too, but not within a name that holds one."""
    wholes = [part for part in text.split(";") if part.strip()]
    return [p for part in wholes for p in ([part] if _plain(part) in known else part.split(",")) if p.strip()]


def _one(text: str, known: dict[str, int], first: Sequence[str], num_classes: int) -> int:
    """One id. known: ids by plain name and alias. first: the plain first name of every class."""
    if re.fullmatch(r"[+-]?\d{1,9}", text):
        number = int(text)
        if -1 <= number < num_classes:
            return number
        raise ConditionMismatch(
            f"Class {number} does not exist: this model has {num_classes} classes.",
            f"Use 0 to {num_classes - 1}, or -1 for no class.",
        )
    wanted = _plain(text)
    if wanted in known:
        return known[wanted]
    longer = {i for i, name in enumerate(first) if name.startswith(wanted + " ")}
    if len(longer) == 1:  # "cat" where only "cat face" begins with it
        return longer.pop()
    near = difflib.get_close_matches(wanted[:LONGEST_NAME], known, 3, 0.5)
    hint = (
        f"Nearest: {', '.join(near)}."
        if near
        else f"Use a number from 0 to {num_classes - 1}" + (", or one of the model's names." if known else ".")
    )
    raise ConditionMismatch(f"No class is called {text!r}.", hint)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
