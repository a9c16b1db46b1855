"""What flows on the wires. Handles are immutable; a node that changes a setting returns a new one around the same
weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..stepvar_core.families.base import NextScaleModel
from ..stepvar_core.methods.policy import NoPruning
from ..stepvar_core.planning.goals import OFF, Timings


@dataclass(frozen=True)
class ModelHandle:
    """VAR_MODEL: the host's patcher around a transformer, the VAE it was loaded with, and what StepVAR should do.

    preset: a named ratio set that is resolved against the schedule when sampling, None = the policy's own ratios.
    auto: what chooses the ratios instead, a goal and its value. timings: the last runs' passes, shared by all handles
    of one loaded model.
    """

    name: str
    patcher: object
    vae: object
    policy: object = NoPruning()
    preset: str | None = None
    auto: tuple[str, float] = (OFF, 0.0)
    timings: Timings = field(default_factory=Timings, compare=False)

    @property
    def model(self) -> NextScaleModel:
        return self.patcher.model

    def with_policy(self, policy, preset: str | None = None, auto: tuple[str, float] = (OFF, 0.0)) -> ModelHandle:
        return replace(self, policy=policy, preset=preset, auto=auto)
