"""Contact sheets of training pictures and samples."""

from __future__ import annotations

from pathlib import Path

from einops import rearrange
from torch import Tensor


def save_sheet(path: Path, pictures_B3HW: Tensor, columns: int, zoom: int = 1) -> None:
    """Writes pictures in -1..1 as one image, `columns` to a row, enlarged `zoom` times."""
    from PIL import Image

    rows = len(pictures_B3HW) // columns
    sheet = rearrange(pictures_B3HW[: rows * columns].float().clamp(-1, 1), "(r c) d h w -> (r h) (c w) d", c=columns)
    image = Image.fromarray(((sheet + 1) * 127.5).round().byte().numpy())
    if zoom > 1:
        image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=88)
