"""HART's tokenizer: VAR's VQVAE, whose codes leave a continuous residual that is added beside the last scale's
(Tang et al. 2024, section 3.1; layout of mit-han-lab/hart, MIT)."""

from __future__ import annotations

from torch import Tensor

from ...codecs.multiscale import MultiScaleQuantizer
from ...codecs.vqvae import VQVAE
from ...schedule import Pass, ScaleSchedule


class HybridQuantizer(MultiScaleQuantizer):
    """The last scale is added as it is, without phi, so that a continuous residual may follow its codes."""

    @property
    def code_format(self) -> str:
        return f"{super().code_format} with residuals"

    def refine(self, h_BCHW: Tensor, step: Pass, schedule: ScaleSchedule) -> Tensor:
        return h_BCHW if step.scale_index == len(schedule) - 1 else super().refine(h_BCHW, step, schedule)

    def soft_features(self, f_BCHW: Tensor, codes: list[Tensor], schedule: ScaleSchedule) -> list[Tensor | None]:
        """For the last pass all that the earlier ones left over, (B, C, h, w): its codes and their residual."""
        earlier = self.decode_codes(codes[:-1], schedule) if len(codes) > 1 else 0
        return [None] * (len(codes) - 1) + [f_BCHW.float() - earlier]


class HybridVQVAE(VQVAE):
    """VAR's VQVAE around the hybrid quantiser."""

    Quantizer = HybridQuantizer
