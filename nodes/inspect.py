"""StepVAR Mask Overlay and StepVAR Report: looking at what a run did."""

from __future__ import annotations

import base64
import json

from ..stepvar_core.overlay import LAYERS, draw, layer_map, pick_scale, to_pixels
from ..stepvar_core.report import draw_report
from ..stepvar_core.trace import Trace, pack_mask
from .bridge import io, ui
from .schema import VARTrace, schema


def trace_message(trace: Trace) -> dict:
    """The trace for the browser: the summary, and per scale the kept tokens as packed bits."""
    message = trace.as_dict()
    for scale, summary in zip(trace.scales, message["scales"]):
        summary["kept"] = base64.b64encode(pack_mask(scale.kept)).decode()
    return message


class StepVARMaskOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StepVARMaskOverlay", display_name="StepVAR Mask Overlay", category="VAR/StepVAR",
            description="Shows over the picture which tokens ran, or how they scored.",
            search_aliases=["token mask", "kept tokens", "visualize pruning", "overlay"],
            inputs=[
                io.Image.Input("image", tooltip="The decoded picture of the same run."),
                VARTrace.Input("trace", tooltip="From VAR Sampler."),
                io.Int.Input("scale", default=-1, min=-100, max=100,
                             tooltip="Which scale to show: 0 is the first, -1 the last, -2 the one before it. Changes only the overlay."),
                io.Combo.Input("layer", options=list(LAYERS), default="kept",
                               tooltip="kept: tokens that ran stay bright, the others turn dark. structure, texture, importance: the scores "
                                       "as colours, yellow is high. Changes only the overlay."),
                io.Float.Input("opacity", default=0.65, min=0.0, max=1.0, step=0.05, tooltip="How strongly the overlay covers the picture."),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="The picture with the overlay."),
                     io.Mask.Output(display_name="MASK", tooltip="The layer alone at the picture's size: 1 is kept, or the highest score.")],
            is_output_node=True)

    @classmethod
    def execute(cls, image, trace, scale=-1, layer="kept", opacity=0.65) -> io.NodeOutput:
        shown = pick_scale(trace, scale)
        cells = layer_map(shown, layer)
        picture = draw(image, cells, layer, opacity)
        preview = ui.PreviewImage(picture, cls=cls).as_dict()
        return io.NodeOutput(picture, to_pixels(cells, *image.shape[1:3]), ui=preview | {"stepvar": [trace_message(trace)]})


class StepVARReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StepVARReport", display_name="StepVAR Report", category="VAR/StepVAR",
            description="One bar per scale: how many tokens ran and how long it took. The same as JSON for scripts.",
            search_aliases=["timing", "benchmark", "speed", "statistics"],
            inputs=[VARTrace.Input("trace", tooltip="From VAR Sampler.")],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="The bars."),
                     io.String.Output(display_name="JSON", tooltip="Sizes, tokens and seconds per scale.")],
            is_output_node=True)

    @classmethod
    def execute(cls, trace) -> io.NodeOutput:
        picture = draw_report(trace)
        return io.NodeOutput(picture, json.dumps(trace.as_dict(), indent=1), ui=ui.PreviewImage(picture, cls=cls))
