"""Multi-scale residual vector quantiser of VAR (Tian et al. 2024, section 3.2; layout of FoundationVision/VAR, MIT).

A picture's feature map f is approximated by f_hat, a sum of one contribution per scale: look up the codes, resize to
the final grid, blend with a small convolution phi. The quantiser always works in float32: nearest-code decisions and
the running sum are what later scales read.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import LatentMismatch
from ..schedule import Pass, Scale, ScaleSchedule
from ..token_sampling import Streams, draw_ids, filtered
from .quantizer import Quantizer

NOTHING = -1  # the id of a position that added nothing to f_hat


def only_where(added_BL: Tensor, h_BCHW: Tensor, scale: Scale) -> Tensor:
    """A contribution with exact zeros in the cells of positions that must add nothing."""
    added = rearrange(added_BL.to(h_BCHW.dtype), "b (h w) -> b 1 h w", h=scale.h)
    return h_BCHW * F.interpolate(added, size=h_BCHW.shape[-2:], mode="nearest-exact")


class Phi(nn.Module):
    """Shared refinement convolutions: h -> (1 - r) h + r conv(h), the one nearest to the scale's place in the
    schedule."""

    def __init__(self, dim: int, count: int, ratio: float, ops=nn):
        super().__init__()
        self.ratio = ratio
        self.qresi_ls = nn.ModuleList(ops.Conv2d(dim, dim, 3, padding=1) for _ in range(count))
        # 1/12 … 11/12 for four convolutions: upstream's special case, not the midpoints of equal cells
        edge = 1 / 3 / count if count == 4 else 1 / 2 / count
        self.ticks = np.linspace(edge, 1 - edge, count)

    def index(self, scale_index: int, scales: int) -> int:
        place = scale_index / (scales - 1) if scales > 1 else 0.0
        # scales 3 and 8 of ten lie midway between two ticks: the winner is decided by this very float64 arithmetic
        return int(np.argmin(np.abs(self.ticks - place)))

    def forward(self, h_BCHW: Tensor, scale_index: int, scales: int) -> Tensor:
        conv = self.qresi_ls[self.index(scale_index, scales)]
        return h_BCHW.mul(1 - self.ratio).add_(conv(h_BCHW).mul_(self.ratio))


class MultiScaleQuantizer(nn.Module, Quantizer):
    """Codebook and phi convolutions. Codes are ids (B, L) int64 per scale, NOTHING (-1) where nothing was added.

    vocab_size codes of `dim` channels; phi_count convolutions; phi_ratio is upstream's quant_resi.
    """

    nothing = NOTHING

    def __init__(self, vocab_size: int, dim: int, phi_count: int = 4, phi_ratio: float = 0.5, ops=nn):
        super().__init__()
        self.vocab_size, self.dim = vocab_size, dim
        self.embedding = ops.Embedding(vocab_size, dim)
        self.quant_resi = Phi(dim, phi_count, phi_ratio, ops)

    @property
    def code_format(self) -> str:
        """What its codes are, for comparing with what a model predicts."""
        return f"{self.vocab_size} codes of {self.dim} channels"

    # codes -----------------------------------------------------------------------------------

    def no_codes(self, batch: int, scale: Scale, device) -> Tensor:
        """Codes (B, L) int64 of positions that add nothing."""
        return torch.full((batch, scale.tokens), NOTHING, dtype=torch.int64, device=device)

    def is_added(self, ids_BL: Tensor) -> Tensor:
        """(B, L) bool: where the codes add something."""
        return ids_BL >= 0

    def check_codes(self, ids_BL: Tensor, batch: int, scale: Scale, name: str) -> None:
        """Raises LatentMismatch unless the codes are ids of this quantiser, as many as the scale has tokens, or
        none."""
        if ids_BL.ndim != 2 or ids_BL.shape[0] != batch or ids_BL.shape[1] not in (0, scale.tokens):
            raise LatentMismatch(
                f"{name} are {tuple(ids_BL.shape)}; expected ({batch}, {scale.tokens}).",
                "Use codes of the same batch and schedule.",
            )
        if ids_BL.dtype == torch.bool or ids_BL.is_floating_point() or ids_BL.is_complex():
            raise LatentMismatch(
                f"{name} are {ids_BL.dtype}; expected whole numbers.", "Use the codes of a result or of vae.encode."
            )
        if ids_BL.numel() and not NOTHING <= int(ids_BL.min()) <= int(ids_BL.max()) < self.vocab_size:
            raise LatentMismatch(
                f"{name} are not all ids below {self.vocab_size}.", "Use codes made with this model's VAE."
            )

    def filtered(self, logits_BLV: Tensor, top_k: int, top_p: float) -> Tensor:
        """Logits with -inf at the codes that must not be drawn."""
        return filtered(logits_BLV, top_k, top_p)

    def best(self, choices_BLV: Tensor) -> Tensor:
        return choices_BLV.argmax(-1)

    def draw(self, choices_BLV: Tensor, streams: Streams, pass_index: int) -> Tensor:
        return draw_ids(choices_BLV.softmax(-1), streams, pass_index)

    # feature maps ----------------------------------------------------------------------------

    def empty(self, batch: int, schedule: ScaleSchedule, device) -> Tensor:
        """f_hat before the first scale: zeros (B, C, H, W)."""
        return torch.zeros(batch, self.dim, schedule.final.h, schedule.final.w, device=device)

    def lookup(self, ids_BL: Tensor, scale: Scale) -> Tensor:
        """Code features (B, C, h, w); zeros where the id is NOTHING."""
        return rearrange(self.vectors(ids_BL), "b (h w) c -> b c h w", h=scale.h)

    def vectors(self, ids_BL: Tensor) -> Tensor:
        """(B, L, C): rows of the codebook; zeros where the id is NOTHING."""
        return self.embedding(ids_BL.clamp(min=0)) * (ids_BL >= 0).unsqueeze(-1)

    def expected(self, probs_BLV: Tensor, scale: Scale) -> Tensor:
        """Probability-weighted code features (B, C, h, w): the soft step of smoothed sampling."""
        return rearrange(probs_BLV @ self.embedding.weight, "b (h w) c -> b c h w", h=scale.h)

    def contribution(
        self, h_BChw: Tensor, step: Pass, schedule: ScaleSchedule, added_BL: Tensor | None = None
    ) -> Tensor:
        """What one scale adds to f_hat, (B, C, H, W): bicubic to the final grid, then phi (VAR algorithm 1, line 8-9).

        added_BL: bool, False where the position must add nothing; those cells of the final grid stay exactly zero.
        """
        final = schedule.final
        h_BCHW = h_BChw.float()
        if h_BCHW.shape[-2:] != (final.h, final.w):
            h_BCHW = F.interpolate(h_BCHW, size=(final.h, final.w), mode="bicubic")
        h_BCHW = self.refine(h_BCHW, step, schedule)
        return h_BCHW if added_BL is None else only_where(added_BL, h_BCHW, step.scale)

    def refine(self, h_BCHW: Tensor, step: Pass, schedule: ScaleSchedule) -> Tensor:
        """A scale's features at the final grid, blended by its phi."""
        return self.quant_resi(h_BCHW, step.scale_index, len(schedule))

    def next_input(self, f_hat_BCHW: Tensor, step: Pass, schedule: ScaleSchedule) -> Tensor:
        """f_hat as a pass reads it, (B, C, h, w): area-averaged to its grid."""
        scale = step.scale
        if f_hat_BCHW.shape[-2:] == (scale.h, scale.w):
            return f_hat_BCHW
        return F.interpolate(f_hat_BCHW, size=(scale.h, scale.w), mode="area")

    def encode(self, f_BCHW: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        """Codes of a feature map, one (B, L) int64 tensor per pass: nearest code of the running residual (VAR
        algorithm 1).

        Raises LatentMismatch when the map's grid is not the schedule's final one.
        """
        final = schedule.final
        if f_BCHW.shape[1:] != (self.dim, final.h, final.w):
            raise LatentMismatch(
                f"The feature map is {tuple(f_BCHW.shape[1:])}; this schedule needs {(self.dim, final.h, final.w)}.",
                "Resize the picture to the schedule's size, or choose the schedule of this model.",
            )
        residual, codes = f_BCHW.float().clone(), []
        book_VC = self.embedding.weight.float()
        book_norm_V = book_VC.square().sum(-1)
        for step in schedule.passes:
            z_NC = rearrange(self.next_input(residual, step, schedule), "b c h w -> (b h w) c")
            distance_NV = torch.addmm(book_norm_V, z_NC, book_VC.T, alpha=-2)  # |z|^2 is the same for every code
            ids_BL = distance_NV.argmin(-1).view(len(f_BCHW), -1)
            codes.append(ids_BL)
            residual -= self.contribution(self.lookup(ids_BL, step.scale), step, schedule)
        return codes
