"""Training pictures of the demo model: 3D emoji artwork on random backgrounds, made on the fly.

Artwork: (c) Microsoft Corporation, MIT, packaged by LobeHub (MIT); names: emojibase, (c) Miles Johnson, MIT.
Fetched with the npm client when the demo model is trained, never when it is used. See NOTICE beside this file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

IMAGE_SIZE = 128
SPRITE_SIZE = 256  # twice the picture: sprites are drawn at this size and averaged down

# name@version -> sha512 of the tarball: a changed package must not silently change the model or its licence
PACKAGES = {
    "@lobehub/fluent-emoji-3d@1.1.0": "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    "@iconify-json/fluent-emoji@1.2.7": "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
    "emojibase-data@17.0.0": "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
}

# emojibase names; few, filled, unlike each other: a small model draws 44 classes it has seen often better than 349
CLASSES = (
    "monkey face",
    "dog face",
    "fox",
    "cat face",
    "lion",
    "tiger face",
    "cow face",
    "pig face",
    "rabbit face",
    "bear",
    "koala",
    "panda",
    "penguin",
    "owl",
    "frog",
    "turtle",
    "spouting whale",
    "tropical fish",
    "crab",
    "butterfly",
    "lady beetle",
    "sunflower",
    "cactus",
    "four leaf clover",
    "mushroom",
    "watermelon",
    "lemon",
    "banana",
    "red apple",
    "pear",
    "strawberry",
    "avocado",
    "eggplant",
    "french fries",
    "hamburger",
    "pizza",
    "popcorn",
    "doughnut",
    "bus",
    "automobile",
    "tractor",
    "sailboat",
    "rocket",
    "flying saucer",
)
# upstream keeps flags, people and some trademarked signs back; these groups hold none of them
OPEN_SUBGROUPS = frozenset(
    (
        "animal-mammal",
        "animal-bird",
        "animal-amphibian",
        "animal-reptile",
        "animal-marine",
        "animal-bug",
        "plant-flower",
        "plant-other",
        "food-fruit",
        "food-vegetable",
        "food-prepared",
        "food-asian",
        "food-sweet",
        "drink",
        "transport-ground",
        "transport-water",
        "transport-air",
    )
)


@dataclass(frozen=True)
class Patterns:
    """Stripes, dots or checkers on a `share` of the backgrounds.

    waves: periods from edge to edge, lowest and highest. depth: how much darker, likewise.
    directions: 0 = any, else how many there are in a full turn.
    """

    share: float = 0.3
    waves: tuple[float, float] = (2.0, 5.0)
    depth: tuple[float, float] = (0.12, 0.35)
    directions: int = 0


ANY_PATTERN = Patterns()
# few enough for a small transformer to draw: of all patterns it learns the mean, which is none
FEW_PATTERNS = Patterns(share=0.5, waves=(3.0, 3.0), depth=(0.3, 0.3), directions=8)


@dataclass(frozen=True)
class Artwork:
    """sprites_N4HW: float32, colour already multiplied by alpha, alpha last. labels: {name, aliases, emoji} per
    class."""

    sprites_N4HW: Tensor
    labels: list[dict]


def fetch(work: Path) -> dict[str, Path]:
    """Downloads the pinned packages with the npm client into work/packages; returns their unpacked folders.

    Raises RuntimeError when a tarball is not the one the demo model was trained from.
    """
    folders = {}
    for package, digest in PACKAGES.items():
        folder = work / "packages" / re.sub(r"[^a-z0-9.]+", "-", package).strip("-")
        if not folder.is_dir():
            log.info("fetching %s with npm", package)
            folder.parent.mkdir(parents=True, exist_ok=True)
            run = subprocess.run(
                ["npm", "pack", package, "--json", "--pack-destination", str(folder.parent)],
                check=True,
                capture_output=True,
                text=True,
            )
            # older npm clients report scoped packages under a name the file does not have
            name = json.loads(run.stdout)[0]["filename"].replace("@", "").replace("/", "-")
            tarball = folder.parent / name
            found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
            if found != digest:
                raise RuntimeError(
                    f"{package} arrived with sha512 {found[:12]}..., expected {digest[:12]}...: not the pinned release."
                )
            with tarfile.open(tarball) as archive:
                archive.extractall(folder, filter="data")
        folders[package.rsplit("@", 1)[0]] = folder / "package"
    return folders


def load_artwork(work: Path, names=CLASSES) -> Artwork:
    """Sprites and labels of the classes, in the order of `names`. Raises KeyError for a name that is not openly
    licensed."""
    folders = fetch(work)
    emoji_folder = folders["emojibase-data"]
    subgroups = json.loads((emoji_folder / "meta" / "groups.json").read_text(encoding="utf-8"))["subgroups"]
    icons = json.loads((folders["@iconify-json/fluent-emoji"] / "icons.json").read_text(encoding="utf-8"))["icons"]
    emojis = {e["label"]: e for e in json.loads((emoji_folder / "en" / "data.json").read_text(encoding="utf-8"))}
    sprites = []
    for name in names:
        entry = emojis[name]
        # the Iconify set is built from the openly licensed upstream; the picture package holds more than that
        if (
            re.sub(r"[^a-z0-9]+", "-", name.lower()) not in icons
            or subgroups[str(entry["subgroup"])] not in OPEN_SUBGROUPS
        ):
            raise KeyError(f"{name} is not in the openly licensed set; choose another class.")
        sprites.append(_read_sprite(folders["@lobehub/fluent-emoji-3d"] / "assets", entry["hexcode"].lower()))
    return Artwork(torch.stack(sprites), label_entries([emojis[n] for n in names]))


def label_entries(entries: list[dict]) -> list[dict]:
    """{name, aliases, emoji} of emojibase entries; an alias belongs to one class only, so a search word is never
    ambiguous."""
    words = [[t for t in ([e["label"].removesuffix(" face")] + e.get("tags", [])) if t != e["label"]] for e in entries]
    names = {e["label"] for e in entries}
    owners = {}
    for i, tags in enumerate(words):
        for tag in tags:
            owners.setdefault(tag, set()).add(i)
    return [
        {
            "name": e["label"],
            "aliases": [t for t in dict.fromkeys(tags) if len(owners[t]) == 1 and t not in names and not t.isdigit()],
            "emoji": e["emoji"],
        }
        for e, tags in zip(entries, words)
    ]


def _read_sprite(folder: Path, code: str) -> Tensor:
    import numpy as np
    from PIL import Image

    plain = code.replace("-fe0f", "")
    path = next(p for p in (folder / f"{c}.webp" for c in (code, plain, f"{plain}-fe0f")) if p.is_file())
    with Image.open(path) as picture:
        x = torch.from_numpy(np.asarray(picture.convert("RGBA")).copy()).permute(2, 0, 1).float() / 255
    edge = min(x.shape[1:])
    top, left = (x.shape[1] - edge) // 2, (x.shape[2] - edge) // 2
    x = x[:, top : top + edge, left : left + edge]
    x = torch.cat([x[:3] * x[3:], x[3:]])  # before any resize, else dark fringes are learnt
    return F.interpolate(x[None], size=(SPRITE_SIZE, SPRITE_SIZE), mode="area")[0]


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def hsv_to_rgb(h_N: Tensor, s_N: Tensor, v_N: Tensor) -> Tensor:
    """(N, 3) colours in 0..1; hue wraps around 1."""
    k_N3 = (torch.tensor([5.0, 3.0, 1.0]) + h_N[:, None] * 6) % 6
    return v_N[:, None] * (1 - s_N[:, None] * torch.minimum(k_N3, 4 - k_N3).clamp(0, 1))


def turned(x: Tensor, y: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    angle = turns * 2 * math.pi
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def backgrounds(
    n: int,
    generator: torch.Generator,
    size: int = IMAGE_SIZE,
    patterns: Patterns = ANY_PATTERN,
    avoid_N3: Tensor | None = None,
) -> Tensor:
    """Two-colour gradients (n, 3, size, size) in 0..1, linear or radial, some with a pattern.

    avoid_N3: colours to stay away from; of three hues the one that differs most is taken.
    """
    hue = uniform(n, 0, 1, generator)
    if avoid_N3 is not None:
        hues_3N = torch.stack([hue, *(uniform(n, 0, 1, generator) for _ in range(2))])
        colours_3NC = torch.stack([hsv_to_rgb(h, torch.full((n,), 0.4), torch.full((n,), 0.8)) for h in hues_3N])
        hue = hues_3N.gather(0, (colours_3NC - avoid_N3).square().sum(2).argmax(0)[None])[0]
    colours = [
        hsv_to_rgb(
            hue + uniform(n, -0.1, 0.1, generator) * i,
            uniform(n, 0.15, 0.65, generator),
            uniform(n, 0.6, 1.0, generator),
        )
        for i in (0, 1)
    ]
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    turn = uniform(n, 0, 1, generator)[:, None, None]
    along, across = turned(x, y, turn)
    radius = (x * x + y * y).sqrt().expand(n, -1, -1)
    is_radial = (uniform(n, 0, 1, generator) < 0.35)[:, None, None]
    mix = torch.where(is_radial, radius / 1.42, along / 2.83 + 0.5).clamp(0, 1)[:, None]
    picture = colours[0][:, :, None, None] * (1 - mix) + colours[1][:, :, None, None] * mix

    if patterns.directions:
        along, across = turned(x, y, (turn * patterns.directions).round() / patterns.directions)
    wave = uniform(n, *patterns.waves, generator)[:, None, None] * math.pi
    a, b = (along * wave).sin(), (across * wave).sin()
    kind = torch.randint(3, (n,), generator=generator)[:, None, None]
    pattern = torch.where(kind == 0, a, torch.where(kind == 1, a * b, a + b - 0.9))
    depth = uniform(n, *patterns.depth, generator) * (uniform(n, 0, 1, generator) < patterns.share)
    return picture * (1 - depth[:, None, None, None] * (pattern * 6).sigmoid()[:, None])


def compose(
    sprites_N4HW: Tensor,
    ids_B: Tensor,
    generator: torch.Generator,
    size: int = IMAGE_SIZE,
    variety: float = 1.0,
    patterns: Patterns = ANY_PATTERN,
) -> Tensor:
    """Pictures (B, 3, size, size) in -1..1: each sprite turned, moved and scaled a little, over a shadow and a
    background.

    sprites_N4HW: twice as large as the pictures. variety: how far they are turned, moved and scaled; 1 = fully, 0 =
    never.
    """
    n = len(ids_B)
    zoom = 0.94 + variety * uniform(n, -0.1, 0.1, generator)
    angle = variety * uniform(n, -0.14, 0.14, generator)
    shift_N2 = variety * torch.stack([uniform(n, -0.1, 0.1, generator), uniform(n, -0.1, 0.1, generator)], 1)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    matrix = torch.stack([torch.stack([cos, -sin, -shift_N2[:, 0]], 1), torch.stack([sin, cos, -shift_N2[:, 1]], 1)], 1)
    grid = F.affine_grid(matrix, (n, 4, 2 * size, 2 * size), align_corners=False)
    layer = F.avg_pool2d(F.grid_sample(sprites_N4HW[ids_B], grid, mode="bilinear", align_corners=False), 2)
    alpha = layer[:, 3:]
    # moved by padding: rolling would leave a bar at the opposite edge
    drop = size // 20
    shadow = F.pad(alpha, (0, 0, drop, 0))[:, :, :size]
    blur = size // 18
    for _ in range(2):
        shadow = F.avg_pool2d(shadow, 2 * blur + 1, stride=1, padding=blur, count_include_pad=True)
    colour_N3 = layer[:, :3].sum((2, 3)) / alpha.sum((2, 3)).clamp(min=1)  # an object must not sink into its own colour
    picture = backgrounds(n, generator, size, patterns, colour_N3) * (1 - 0.35 * shadow)
    return (layer[:, :3] + picture * (1 - alpha)).clamp(0, 1) * 2 - 1


def endless(
    artwork: Artwork,
    batch: int,
    seed: int,
    variety: float = 1.0,
    size: int = IMAGE_SIZE,
    patterns: Patterns = ANY_PATTERN,
):
    """Yields (pictures, class ids) for ever; every class once before any class twice."""
    sprites_N4HW = F.avg_pool2d(artwork.sprites_N4HW, SPRITE_SIZE // (2 * size))
    generator = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.int64)
    while True:
        while len(queue) < batch:
            queue = torch.cat([queue, torch.randperm(len(artwork.labels), generator=generator)])
        ids, queue = queue[:batch], queue[batch:]
        yield compose(sprites_N4HW, ids, generator, size, variety, patterns), ids
