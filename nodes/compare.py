"""VAR Compare: two pictures of one seed side by side, in numbers and under a slider."""

from __future__ import annotations

import math

from ..stepvar_core.trace import Trace
from ..stepvar_core.viewing.metrics import gradient_similarity, heat_map, psnr, ssim
from .host import io
from .inspect import temporary
from .schema import VARTrace, schema


class VARCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="VARCompare",
            display_name="VAR Compare",
            category="VAR/StepVAR",
            description="Compares two pictures: a slider between them, where they differ, PSNR and SSIM, and how "
            "much faster one was drawn.",
            search_aliases=["A/B", "before after", "difference", "PSNR", "SSIM", "image compare", "speed-up"],
            inputs=[
                io.Image.Input("a", tooltip="The picture to measure against, for example drawn with every token."),
                io.Image.Input(
                    "b", tooltip="The picture to judge, for example drawn with StepVAR. The same size as a."
                ),
                VARTrace.Input(
                    "trace_a",
                    optional=True,
                    tooltip="From the VAR Sampler that drew a. With both traces the times are compared.",
                ),
                VARTrace.Input(
                    "trace_b",
                    optional=True,
                    tooltip="From the VAR Sampler that drew b. With both traces the times are compared.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="IMAGE",
                    tooltip="Where they differ: dark is the same, yellow a quarter of the full range or more.",
                ),
                io.String.Output(
                    display_name="STRING", tooltip="PSNR, SSIM and likeness of edges per picture, and the times."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, a, b, trace_a=None, trace_b=None) -> io.NodeOutput:
        heat = heat_map(a, b)
        numbers = {
            "psnr": psnr(a, b).tolist(),
            "ssim": ssim(a, b).tolist(),
            "edges": gradient_similarity(a, b).tolist(),
        }
        seconds = [None if trace is None else trace.seconds for trace in (trace_a, trace_b)]
        # `images` is for browsers without the comparing widget, which shows all three and hides them
        shown = temporary(heat, cls)
        message: dict[str, object] = {
            name: [round(v, 6) if math.isfinite(v) else None for v in values] for name, values in numbers.items()
        }
        message |= {
            "seconds": seconds,
            "pruning": [None if trace is None else trace.pruning for trace in (trace_a, trace_b)],
            "predicted": predicted_speedup(trace_a, trace_b),
            "a": temporary(a[..., :3], cls),
            "b": temporary(b[..., :3], cls),
            "difference": shown,
        }
        return io.NodeOutput(
            heat, in_words(numbers, trace_a, trace_b), ui={"images": shown, "stepvar_compare": [message]}
        )


def predicted_speedup(trace_a: Trace | None, trace_b: Trace | None) -> float | None:
    """How much faster b should be by the work both did; None where that is not known, or they are no runs of one model
    and size."""
    if trace_a is None or trace_b is None:
        return None
    a, b = ((t.family, t.batch, [s.size for s in t.scales], t.settings.get("dense_flops")) for t in (trace_a, trace_b))
    works = [t.settings.get("flops") for t in (trace_a, trace_b)]
    return round(works[0] / works[1], 4) if a == b and all(works) else None


def in_words(numbers: dict[str, list[float]], trace_a: Trace | None, trace_b: Trace | None) -> str:
    """One line per picture, one with the mean where there are several, and one with the times."""

    def line(name: str, values: tuple[float, float, float]) -> str:
        decibels, alike, edges = values
        said = "identical" if math.isinf(decibels) else f"PSNR {decibels:.2f} dB"
        return f"{name}{said}, SSIM {alike:.4f}, edges {edges:.4f}"

    rows = list(zip(numbers["psnr"], numbers["ssim"], numbers["edges"]))
    lines = [line(f"Picture {i + 1}: " if len(rows) > 1 else "", row) for i, row in enumerate(rows)]
    if len(rows) > 1:
        lines.append(line("Mean: ", tuple(sum(column) / len(rows) for column in zip(*rows))))
    if trace_a is not None and trace_b is not None:
        lines.append(
            f"Time: a ({trace_a.pruning}) {trace_a.seconds:.3f} s, b ({trace_b.pruning}) {trace_b.seconds:.3f} s; "
            f"b is {trace_a.seconds / max(trace_b.seconds, 1e-9):.2f}x as fast"
            + ("" if (predicted := predicted_speedup(trace_a, trace_b)) is None else f", predicted {predicted:.2f}x")
        )
    return "\n".join(lines)
