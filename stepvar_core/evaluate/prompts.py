"""Benchmarks: their prompts, and where their scorers look for pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import OptionError


@dataclass(frozen=True)
class Prompt:
    """index: place in the benchmark, and with --seed the pictures' identity. id: its name there. text: a prompt or a
    class label."""

    index: int
    id: str
    text: str
    category: str = ""
    metadata: str = ""


def read_geneval(path: Path) -> list[Prompt]:
    """evaluation_metadata.jsonl: an object per line with tag, include and prompt."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Prompt(i, f"{i:05}", json.loads(line)["prompt"], metadata=line) for i, line in enumerate(lines)]


def read_dpg(path: Path) -> list[Prompt]:
    """A folder with one prompt per .txt file."""
    return [
        Prompt(i, file.stem, file.read_text(encoding="utf-8").strip())
        for i, file in enumerate(sorted(path.glob("*.txt")))
    ]


def read_mjhq(path: Path) -> list[Prompt]:
    """meta_data.json: an object of {prompt, category} by picture id."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Prompt(i, name, about["prompt"], about["category"]) for i, (name, about) in enumerate(content.items())]


def read_text(path: Path) -> list[Prompt]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Prompt(i, f"{i:05}", line) for i, line in enumerate(lines)]


def geneval_files(prompt: Prompt, count: int) -> list[str]:
    return [f"{prompt.id}/samples/{n:05}.png" for n in range(count)]


def grid_file(prompt: Prompt, count: int) -> list[str]:
    return [f"{prompt.id}.png"]


def mjhq_files(prompt: Prompt, count: int) -> list[str]:
    return [f"{prompt.category}/{prompt.id}{f'_{n}' if n else ''}.png" for n in range(count)]


def flat_files(prompt: Prompt, count: int) -> list[str]:
    return [f"{prompt.id}_{n:03}.png" for n in range(count)]


@dataclass(frozen=True)
class Layout:
    """A benchmark's form. per_prompt: pictures it asks for; is_grid: all pictures of a prompt in one file of two
    columns."""

    read: Callable[[Path], list[Prompt]]
    files: Callable[[Prompt, int], list[str]]
    per_prompt: int
    scorer: str
    is_grid: bool = False


LAYOUTS = {
    "geneval": Layout(
        read_geneval,
        geneval_files,
        4,
        "python evaluation/evaluate_images.py {images} --outfile results.jsonl --model-path DETECTOR_FOLDER",
    ),
    "dpg": Layout(
        read_dpg, grid_file, 4, "PIC_NUM={count} bash dpg_bench/dist_eval.sh {images} {pixels}", is_grid=True
    ),
    "mjhq": Layout(read_mjhq, mjhq_files, 1, "clean-fid: fid.compute_fid(MJHQ_IMAGES, {images!r})"),
    "text": Layout(read_text, flat_files, 1, "any tool that reads a folder of pictures: {images}"),
}


def guess_layout(path: Path) -> str:
    if path.is_dir():
        return "dpg"
    return {".jsonl": "geneval", ".json": "mjhq"}.get(path.suffix, "text")


def read_prompts(path: str, layout: str, classes: int = 0) -> list[Prompt]:
    """The prompts of a benchmark; `classes` in place of a file is every class of the model. Raises OptionError for
    what it cannot read."""
    if path == "classes":
        if not classes:
            raise OptionError("This model has no classes.", "Give a file of prompts.")
        return [Prompt(i, f"{i:05}", str(i)) for i in range(classes)]
    file = Path(path)
    if not file.exists():
        raise OptionError(f"There is no {path}.", "Give the benchmark's prompt file or folder, or `classes`.")
    try:
        prompts = LAYOUTS[layout].read(file)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise OptionError(
            f"{path} is not in the form of {layout}: {type(error).__name__} {error}.",
            f"Choose another --format: {', '.join(LAYOUTS)}.",
        ) from error
    if not prompts:
        raise OptionError(f"{path} holds no prompt.", "Give the benchmark's prompt file or folder.")
    return prompts
