"""The nodes, by the ids that shared workflows depend on."""

from __future__ import annotations

from .bridge import ComfyExtension, register_folder
from .canvas import EmptyVARLatent, VAREncode
from .inspect import StepVARMaskOverlay, StepVARReport
from .loaders import VARClassLabel, VARModelLoader, VARTextEncoderLoader
from .pruning import StepVARPruning
from .sampling import VARSampler

NODES = [VARModelLoader, VARTextEncoderLoader, VARClassLabel, EmptyVARLatent, StepVARPruning, VARSampler, VAREncode, StepVARMaskOverlay,
         StepVARReport]


class StepVARExtension(ComfyExtension):
    async def get_node_list(self):
        return NODES


__all__ = ["NODES", "StepVARExtension", "register_folder", *(node.__name__ for node in NODES)]
