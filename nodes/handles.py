"""What flows on the wires. Handles are immutable; a node that changes a setting returns a new one around the same
weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..stepvar_core.families.base import NextScaleModel
from ..stepvar_core.methods.policy import NoPruning, Policy
from ..stepvar_core.planning.goals import Timings


@dataclass(frozen=True)
class ModelHandle:
    """VAR_MODEL: the host's patcher around a transformer, the VAE it was loaded with, and what should run of it.

    policy: resolved when sampling, where model and schedule are known. timings: the last runs' passes, shared by all
    handles of one loaded model.
    """

    name: str
    patcher: Any
    vae: Any
    policy: Policy = NoPruning()
    timings: Timings = field(default_factory=Timings, compare=False)

    @property
    def model(self) -> NextScaleModel:
        return self.patcher.model

    def with_policy(self, policy: Policy) -> ModelHandle:
        return replace(self, policy=policy)
