"""What the scale loop asks of a quantiser: the canvas on which a run adds up its codes."""

from __future__ import annotations

from torch import Tensor

from ..schedule import Pass, Scale, ScaleSchedule
from ..token_sampling import Streams


class Quantizer:
    """Codes to features and back. Methods that take a Pass may tell passes of one scale, and clips, apart.

    nothing: the code of a position that adds nothing. code_format: what its codes are, for comparing with what a model
    predicts.
    """

    nothing: int

    @property
    def code_format(self) -> str:
        raise NotImplementedError

    # codes -----------------------------------------------------------------------------------

    def no_codes(self, batch: int, scale: Scale, device) -> Tensor:
        """Codes of positions that add nothing, for every token of a scale."""
        raise NotImplementedError

    def is_added(self, codes: Tensor) -> Tensor:
        """(B, L) bool: where the codes add something."""
        raise NotImplementedError

    def check_codes(self, codes: Tensor, batch: int, scale: Scale, name: str) -> None:
        """Raises LatentMismatch unless the codes are this quantiser's, one for each token of the scale, or none."""
        raise NotImplementedError

    def filtered(self, logits_BLV: Tensor, top_k: int, top_p: float) -> Tensor:
        """The choices that may be drawn."""
        raise NotImplementedError

    def best(self, choices: Tensor) -> Tensor:
        """The likeliest codes."""
        raise NotImplementedError

    def draw(self, choices: Tensor, streams: Streams, pass_index: int) -> Tensor:
        """Codes drawn at random, one for every position."""
        raise NotImplementedError

    # feature maps ----------------------------------------------------------------------------

    def empty(self, batch: int, schedule: ScaleSchedule, device) -> Tensor:
        """f_hat before the first pass."""
        raise NotImplementedError

    def next_input(self, f_hat: Tensor, step: Pass, schedule: ScaleSchedule) -> Tensor | None:
        """f_hat as a pass reads it, at its grid; None where nothing precedes."""
        raise NotImplementedError

    def vectors(self, codes: Tensor) -> Tensor:
        """(B, L, C): the codes as vectors, token by token, zeros where nothing is added."""
        raise NotImplementedError

    def lookup(self, codes: Tensor, scale: Scale) -> Tensor:
        """Features of codes, zeros where nothing is added."""
        raise NotImplementedError

    def expected(self, probs_BLV: Tensor, scale: Scale) -> Tensor:
        """Features of a mixture of codes, for smoothed sampling."""
        raise NotImplementedError

    def contribution(
        self, h_BChw: Tensor, step: Pass, schedule: ScaleSchedule, added_BL: Tensor | None = None
    ) -> Tensor:
        """What features of one pass add to f_hat. added_BL: bool, False where exactly nothing is added."""
        raise NotImplementedError

    def add(self, f_hat: Tensor, drawn, step: Pass, schedule: ScaleSchedule) -> Tensor:
        """f_hat with a pass's codes, or what stands for them, added. drawn: codes.Drawn."""
        h = drawn.soft if drawn.soft is not None else self.lookup(drawn.codes, step.scale)
        return f_hat + self.contribution(h, step, schedule, drawn.added)

    def encode(self, f_BCHW: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        """Codes per pass of a feature map. Raises LatentMismatch when its grid is not the schedule's."""
        raise NotImplementedError

    def soft_features(self, f_BCHW: Tensor, codes: list[Tensor], schedule: ScaleSchedule) -> list[Tensor | None]:
        """Per pass what a feature map holds beside its codes, (B, C, h, w); None for nothing."""
        return [None] * len(codes)

    def decode_codes(self, codes: list[Tensor], schedule: ScaleSchedule) -> Tensor:
        """f_hat of complete or partial codes, one tensor per pass; L = 0 for a skipped pass."""
        f_hat = self.empty(len(codes[0]), schedule, codes[0].device)
        for step, one in zip(schedule.passes, codes):
            if one.shape[1]:
                f_hat = f_hat + self.contribution(self.lookup(one, step.scale), step, schedule, self.is_added(one))
        return f_hat
