"""The nodes, by the ids that shared workflows depend on."""

from __future__ import annotations

from .accelerators import VARAccelerator
from .canvas import EmptyVARLatent, VAREncode
from .compare import VARCompare
from .host import ComfyExtension
from .host.loading import register_folder
from .inspect import StepVARMaskOverlay, StepVARReport
from .loaders import VARClassLabel, VARModelLoader, VARTextEncoderLoader
from .pruning import StepVARPruning
from .routes import register_routes
from .sampling import VARSampler

NODES = [
    VARSampler,
    VARModelLoader,
    VARTextEncoderLoader,
    VARClassLabel,
    EmptyVARLatent,
    StepVARPruning,
    VARAccelerator,
    VAREncode,
    StepVARMaskOverlay,
    StepVARReport,
    VARCompare,
]


class StepVARExtension(ComfyExtension):
    async def get_node_list(self):
        return NODES


__all__ = ["NODES", "StepVARExtension", "register_folder", "register_routes", *(node.__name__ for node in NODES)]
