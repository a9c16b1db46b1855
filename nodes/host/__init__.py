"""The host: everything that imports ComfyUI lies in this folder."""

from comfy_api.latest import ComfyExtension, io, ui

__all__ = ["ComfyExtension", "io", "ui"]
