"""StepVAR Mask Overlay and StepVAR Report: looking at what a run did."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

from ..stepvar_core.planning.cost import Estimate
from ..stepvar_core.trace import Trace, pack_mask, pack_score, pictures_within, score_maps
from ..stepvar_core.viewing.overlay import LAYERS, draw, layer_map, pick_scale, to_pixels
from ..stepvar_core.viewing.report import draw_report
from .host import io, ui
from .schema import VARTrace, schema

SCORE_BYTES = 3 << 19  # 2 MB as base64: the host keeps what is shown of every run in its history


def trace_message(trace: Trace, pictures: list[dict] | None = None) -> dict:
    """The trace for the browser: the summary; per scale the kept tokens as packed bits, and the scores as bytes.

    pictures: temporary files of the decoded pictures, as many as there are. Scores that would make the message too
    large are left out, the later pictures' first; `scored` says how many pictures have them.
    """
    message = trace.as_dict()
    scored = pictures_within(trace, SCORE_BYTES)
    for scale, summary in zip(trace.scales, message["scales"]):
        summary["kept"] = base64.b64encode(pack_mask(scale.kept)).decode()
        if scored and (maps := score_maps(scale)):
            summary["scores"] = {name: packed(score[:scored]) for name, score in maps.items()}
    return message | {"scored": scored, "pictures": pictures or []}


def with_work(trace: Trace, cost: Estimate) -> Trace:
    """The trace with the work its run took, where the run kept what the estimate says: not one that was continued,
    stopped early or judged while it ran."""
    if [(s.tokens, s.tokens_run) for s in trace.scales] != [(s.tokens, s.kept) for s in cost.scales]:
        return trace
    return replace(trace, settings=trace.settings | {"flops": cost.flops, "dense_flops": cost.dense_flops})


def packed(score_BTHW) -> dict:
    low, high, data = pack_score(score_BTHW)
    return {
        "low": [round(v, 5) for v in low],
        "high": [round(v, 5) for v in high],
        "data": base64.b64encode(data).decode(),
    }


def temporary(pictures, cls) -> list[dict]:
    """The pictures (B, H, W, 3) as files the browser can fetch until the host stops."""
    return ui.PreviewImage(pictures, cls=cls).as_dict()["images"]


class StepVARMaskOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StepVARMaskOverlay",
            display_name="StepVAR Mask Overlay",
            category="VAR/StepVAR",
            description="Shows over the picture which tokens ran, or how they scored.",
            search_aliases=["token mask", "kept tokens", "visualize pruning", "overlay"],
            inputs=[
                io.Image.Input("image", tooltip="The decoded picture of the same run."),
                VARTrace.Input("trace", tooltip="From VAR Sampler."),
                io.Int.Input(
                    "scale",
                    default=-1,
                    min=-100,
                    max=100,
                    tooltip="Which scale to show: 0 is the first, -1 the last, -2 the one before it. Changes only "
                    "the overlay.",
                ),
                io.Combo.Input(
                    "layer",
                    options=list(LAYERS),
                    default="kept",
                    tooltip="kept: tokens that ran stay bright, the others turn dark. structure, texture, "
                    "importance: the scores "
                    "as colours, yellow is high. Changes only the overlay.",
                ),
                io.Float.Input(
                    "opacity",
                    default=0.65,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How strongly the overlay covers the picture.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="IMAGE", tooltip="The picture with the overlay."),
                io.Mask.Output(
                    display_name="MASK",
                    tooltip="The layer alone at the picture's size: 1 is kept, or the highest score.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image, trace, scale=-1, layer="kept", opacity=0.65) -> io.NodeOutput:
        shown = pick_scale(trace, scale)
        cells = layer_map(shown, layer)
        picture = draw(image, cells, layer, opacity)
        # `images` is for browsers without the overlay widget, which draws over the plain pictures and hides them
        output = ui.PreviewImage(picture, cls=cls).as_dict() | {
            "stepvar": [trace_message(trace, temporary(image[..., :3], cls))]
        }
        return io.NodeOutput(picture, to_pixels(cells, *image.shape[1:3]), ui=output)


class StepVARReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StepVARReport",
            display_name="StepVAR Report",
            category="VAR/StepVAR",
            description="One bar per scale: how many tokens ran and how long it took. The same as JSON for scripts.",
            search_aliases=["timing", "benchmark", "speed", "statistics"],
            inputs=[VARTrace.Input("trace", tooltip="From VAR Sampler.")],
            outputs=[
                io.Image.Output(display_name="IMAGE", tooltip="The bars."),
                io.String.Output(display_name="JSON", tooltip="Sizes, tokens and seconds per scale."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trace) -> io.NodeOutput:
        picture = draw_report(trace)
        return io.NodeOutput(picture, json.dumps(trace.as_dict(), indent=1), ui=ui.PreviewImage(picture, cls=cls))
