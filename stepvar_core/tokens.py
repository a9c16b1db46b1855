"""The seam between models and pruning: a token plan is an argument of the forward.

A model calls enter, through, leave and rows; the sampler calls spread, kept_BN and reads added_BN and scores after the
blocks. Pruning plans answer the same calls (methods/kept.py), so no model asks whether pruning is on.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class DenseTokens:
    """The null token plan: every token runs."""

    scores: Any = None  # how the choice was made, where one was

    @property
    def added_BN(self) -> Tensor | None:
        """Bool, False where the codes drawn must not stay: nothing is added, or `instead`; None = all stay."""
        return None

    @property
    def instead(self) -> Tensor | None:
        """Codes (B, N) or (B, N, bits) that are added where drawn ones do not stay; None = nothing."""
        return None

    def enter(self, layer: int, x_RLC: Tensor) -> Tensor:
        """The residual stream as block `layer` should see it."""
        return x_RLC

    def through(self, fn, x_RLC: Tensor, site) -> Tensor:
        """The change fn makes to x. site: (layer, name of the sub-layer)."""
        return fn(x_RLC)

    def leave(self, x_RLC: Tensor) -> Tensor:
        """The residual stream as the head should see it."""
        return x_RLC

    def rows(self, table_RLX: Tensor) -> Tensor:
        """A (rows or 1, L, …) table at the tokens that run now."""
        return table_RLX

    def spread(self, values_BKX: Tensor) -> Tensor:
        """What the head gave, at every position of the grid."""
        return values_BKX

    def kept_BN(self) -> Tensor | None:
        """Bool map of the tokens that ran; None = all."""
        return None


class TrailingTokens(DenseTokens):
    """The grid's tokens behind a lead of others that always run: `tokens`, under which every token runs, sees the
    grid's alone."""

    def __init__(self, tokens: DenseTokens, lead: int):
        self.tokens, self.lead = tokens, lead

    def enter(self, layer: int, x_RLC: Tensor) -> Tensor:
        self.tokens.enter(layer, x_RLC[:, self.lead :])
        return x_RLC

    def through(self, fn, x_RLC: Tensor, site) -> Tensor:
        change_RLC = fn(x_RLC)
        self.tokens.through(lambda x: change_RLC[:, self.lead :], x_RLC[:, self.lead :], site)
        return change_RLC

    def leave(self, x_RLC: Tensor) -> Tensor:
        return self.tokens.leave(x_RLC[:, self.lead :])


DENSE = DenseTokens()
