"""Next-scale (visual autoregressive) image models with StepVAR token pruning, torch only.

import stepvar_core as sv
vae, model = sv.load_vae(vae_path), sv.load_model(model_path)
result = sv.sample(model, vae, model.class_condition([207]), schedule=model.schedule(), pruning=sv.StepVAR((0.75, 0.5)))
image_BHW3 = vae.decode(result.latent)
"""

from . import least_torch  # noqa: F401  first: an older torch is refused before anything else is looked at
from .collaborate import collaborate
from .door import sample
from .errors import (
    CheckpointMismatch,
    ConditionMismatch,
    LatentMismatch,
    OptionError,
    ScheduleMismatch,
    ShapeMismatch,
    StepVARError,
)
from .families.registry import load_model, load_vae
from .methods import accelerator
from .methods.policy import NoPruning
from .methods.stepvar import StepVAR
from .planning.cost import Estimate, estimate
from .sampler import Result
from .schedule import Pass, Scale, ScaleSchedule
from .trace import ScaleStep, ScaleTrace, Trace

__all__ = [
    "CheckpointMismatch",
    "ConditionMismatch",
    "Estimate",
    "LatentMismatch",
    "NoPruning",
    "OptionError",
    "Pass",
    "Result",
    "Scale",
    "ScaleSchedule",
    "ScaleStep",
    "ScaleTrace",
    "ScheduleMismatch",
    "ShapeMismatch",
    "StepVAR",
    "StepVARError",
    "Trace",
    "accelerator",
    "collaborate",
    "estimate",
    "load_model",
    "load_vae",
    "sample",
]
