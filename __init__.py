"""StepVAR for ComfyUI: visual autoregressive (next-scale prediction) models with token pruning."""

from importlib.util import find_spec

WEB_DIRECTORY = "./web"
NODE_CLASS_MAPPINGS = {}
NODE_DISPLAY_NAME_MAPPINGS = {}

if find_spec("comfy_api") is not None:  # absent outside ComfyUI, where stepvar_core is used on its own
    from .nodes import (
        EmptyVARLatent,
        StepVARExtension,
        StepVARMaskOverlay,
        StepVARPruning,
        StepVARReport,
        VARAccelerator,
        VARClassLabel,
        VARCompare,
        VAREncode,
        VARModelLoader,
        VARSampler,
        VARTextEncoderLoader,
        register_folder,
        register_routes,
    )

    register_folder()
    register_routes()
    NODE_CLASS_MAPPINGS = {  # in the order in which a dropped wire offers them
        "VARSampler": VARSampler,
        "VARModelLoader": VARModelLoader,
        "VARTextEncoderLoader": VARTextEncoderLoader,
        "VARClassLabel": VARClassLabel,
        "EmptyVARLatent": EmptyVARLatent,
        "StepVARPruning": StepVARPruning,
        "VARAccelerator": VARAccelerator,
        "VAREncode": VAREncode,
        "StepVARMaskOverlay": StepVARMaskOverlay,
        "StepVARReport": StepVARReport,
        "VARCompare": VARCompare,
    }
    NODE_DISPLAY_NAME_MAPPINGS = {
        "VARModelLoader": "Load VAR Model",
        "VARTextEncoderLoader": "Load VAR Text Encoder",
        "VARClassLabel": "VAR Class Label",
        "EmptyVARLatent": "Empty VAR Latent",
        "StepVARPruning": "StepVAR Pruning",
        "VARAccelerator": "VAR Accelerator",
        "VARSampler": "VAR Sampler",
        "VAREncode": "VAR Encode",
        "StepVARMaskOverlay": "StepVAR Mask Overlay",
        "StepVARReport": "StepVAR Report",
        "VARCompare": "VAR Compare",
    }

    async def comfy_entrypoint():
        return StepVARExtension()


__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
