"""Bitwise residual quantiser of Infinity (Han et al. 2024, section 3; binary spherical quantisation; layout of
FoundationVision/Infinity, MIT).

A token is a string of bits; a bit b stands for the coordinate (2 b - 1) / sqrt(dim). There is no table and no weight.
With patch = 2 the model predicts one token for 2 x 2 latent cells, with all their bits: `grid` below is the model's
scale, `cells` the latent's. Sums are float32: they are what later scales read.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import LatentMismatch
from ..schedule import Pass, Scale, ScaleSchedule
from ..token_sampling import Streams, bit_odds, draw_bits
from .multiscale import only_where
from .quantizer import Quantizer

NOTHING = 255  # every bit of a position that added nothing to f_hat


class BitwiseQuantizer(Quantizer):
    """dim: channels of the latent; patch: latent cells along each edge of a token."""

    nothing = NOTHING

    def __init__(self, dim: int, patch: int = 1):
        self.dim, self.patch = dim, patch
        self.bits = dim * patch * patch

    @property
    def code_format(self) -> str:
        return f"{self.bits} bits a token"

    # codes -----------------------------------------------------------------------------------

    def no_codes(self, batch: int, scale: Scale, device) -> Tensor:
        """Codes (B, L, bits) uint8 of positions that add nothing."""
        return torch.full((batch, scale.tokens, self.bits), NOTHING, dtype=torch.uint8, device=device)

    def is_added(self, codes_BLD: Tensor) -> Tensor:
        """(B, L) bool: where the codes add something."""
        return codes_BLD[..., 0] != NOTHING

    def check_codes(self, codes_BLD: Tensor, batch: int, scale: Scale, name: str) -> None:
        """Raises LatentMismatch unless the codes are bits of this quantiser, as many as the scale has tokens, or
        none."""
        if (
            codes_BLD.ndim != 3
            or codes_BLD.shape[0] != batch
            or codes_BLD.shape[1] not in (0, scale.tokens)
            or codes_BLD.shape[2] != self.bits
        ):
            raise LatentMismatch(
                f"{name} are {tuple(codes_BLD.shape)}; expected ({batch}, {scale.tokens}, {self.bits}).",
                "Use codes of the same batch, model and schedule.",
            )
        is_nothing = codes_BLD == NOTHING
        if bool((is_nothing.any(-1) != is_nothing.all(-1)).any()) or not bool(
            ((codes_BLD == 0) | (codes_BLD == 1) | is_nothing).all()
        ):
            raise LatentMismatch(
                f"{name} hold values other than bits.", f"Give 0 and 1, or {NOTHING} for a position that adds nothing."
            )

    def filtered(self, logits_BLX: Tensor, top_k: int, top_p: float) -> Tensor:
        """Log-odds (B, L, bits) of a set bit, infinite where top_p leaves no choice. Two ids: every top_k above 1 is
        off."""
        return bit_odds(logits_BLX, top_p)

    def best(self, odds_BLD: Tensor) -> Tensor:
        return (odds_BLD > 0).to(torch.uint8)

    def draw(self, odds_BLD: Tensor, streams: Streams, pass_index: int) -> Tensor:
        return draw_bits(odds_BLD, streams, pass_index)

    # feature maps ----------------------------------------------------------------------------

    def cells(self, scale: Scale) -> tuple[int, int]:
        return scale.h * self.patch, scale.w * self.patch

    def empty(self, batch: int, schedule: ScaleSchedule, device) -> Tensor:
        """f_hat before the first scale: zeros (B, C, H, W)."""
        return torch.zeros(batch, self.dim, *self.cells(schedule.final), device=device)

    def lookup(self, codes_BLD: Tensor, scale: Scale) -> Tensor:
        """Code features (B, C, h, w) at the latent's resolution; zeros where nothing is added."""
        return self.unpatch(self.vectors(codes_BLD), scale)

    def vectors(self, codes_BLD: Tensor) -> Tensor:
        """(B, L, bits): the coordinates of a token's bits; zeros where nothing is added."""
        return (codes_BLD.float() * 2 - 1) / math.sqrt(self.dim) * self.is_added(codes_BLD).unsqueeze(-1)

    def patchify(self, x_BCHW: Tensor) -> Tensor:
        """Latent cells as the model reads them, (B, C patch^2, H / patch, W / patch): pixel_unshuffle."""
        return rearrange(x_BCHW, "b c (h dy) (w dx) -> b (c dy dx) h w", dy=self.patch, dx=self.patch)

    def unpatch(self, x_BLD: Tensor, scale: Scale) -> Tensor:
        """Tokens (B, L, bits) as latent cells (B, C, h, w)."""
        return rearrange(x_BLD, "b (h w) (c dy dx) -> b c (h dy) (w dx)", h=scale.h, dy=self.patch, dx=self.patch)

    def contribution(
        self, h_BChw: Tensor, step: Pass, schedule: ScaleSchedule, added_BL: Tensor | None = None
    ) -> Tensor:
        """What one scale adds to f_hat, (B, C, H, W): linear interpolation to the final grid.

        added_BL: bool, False where the position must add nothing; those cells of the final grid stay exactly zero.
        """
        size = self.cells(schedule.final)
        h_BCHW = h_BChw.float()
        if h_BCHW.shape[-2:] != size:
            h_BCHW = F.interpolate(h_BCHW, size=size, mode="bilinear", align_corners=False)
        return h_BCHW if added_BL is None else only_where(added_BL, h_BCHW, step.scale)

    def next_input(self, f_hat_BCHW: Tensor, step: Pass, schedule: ScaleSchedule) -> Tensor:
        """f_hat as a pass reads it, (B, bits, h, w). Linear and not antialiased: so the weights were trained."""
        size = self.cells(step.scale)
        if f_hat_BCHW.shape[-2:] != size:
            f_hat_BCHW = F.interpolate(f_hat_BCHW, size=size, mode="bilinear", align_corners=False)
        return self.patchify(f_hat_BCHW)

    def encode(self, f_BCHW: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        """Codes of a feature map, (B, L, bits) per pass: the signs of the running residual, area-averaged to each grid.

        Raises LatentMismatch when the map's size is not the schedule's.
        """
        wanted = (self.dim, *self.cells(schedule.final))
        if f_BCHW.shape[1:] != wanted:
            raise LatentMismatch(
                f"The feature map is {tuple(f_BCHW.shape[1:])}; this schedule needs {wanted}.",
                "Resize the picture to the schedule's size, or choose the schedule of this model.",
            )
        codes: list[Tensor] = []
        residual: Tensor = f_BCHW.float().clone()
        for step in schedule.passes:
            size = self.cells(step.scale)
            z_BChw = residual if size == residual.shape[-2:] else F.interpolate(residual, size=size, mode="area")
            bits_BLD = rearrange(self.patchify(z_BChw).gt(0), "b d h w -> b (h w) d").to(torch.uint8)
            codes.append(bits_BLD)
            residual -= self.contribution(self.lookup(bits_BLD, step.scale), step, schedule)
        return codes
