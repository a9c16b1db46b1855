"""VAR Accelerator: other methods' ways to make a model faster, on the same wire as StepVAR Pruning."""

from __future__ import annotations

from ..stepvar_core.methods import METHODS, accelerator, method_of
from ..stepvar_core.methods.method import Option
from .host import io
from .schema import VARModel, schema, with_options

# Workflows save values by position: names are only ever added, and only at the end, whatever method they belong to.
WIDGETS = (
    "fastvar_skip_scales",
    "fastvar_ratio_1",
    "fastvar_ratio_2",
    "sparsevar_ratio",
    "sparsevar_scales",
    "fastervar_skip_scales",
    "fastervar_one_half_scales",
    "fastervar_half",
    "skipvar_skip_scales",
    "skipvar_no_guidance_scales",
    "lazyvar_keep_1",
    "lazyvar_keep_2",
    "lazyvar_keep_3",
    "lazyvar_keep_4",
    "ldpruning_energy",
    "ldpruning_scales",
    "ldpruning_gap",
    "ldpruning_gap_scales",
    "ldpruning_gap_measure",
    "ldpruning_skip_scales",
)
FIRST = 14  # those of the first release; later ones are optional, so that prompts saved before them run


def _name(method: str, option: Option) -> str:
    return f"{method}_{option.name}"


def _widget(place: int, name: str):
    method, _, short = name.partition("_")
    title, option = next((m.title, o) for m in METHODS if m.id == method for o in m.options if o.name == short)
    about = {"default": option.default, "tooltip": f"{title}: {option.what}", "optional": place >= FIRST}
    if option.choices:
        return io.Combo.Input(name, options=list(option.choices), **about)
    if option.is_whole:
        return io.Int.Input(name, min=int(option.low), max=int(option.high), **about)
    return io.Float.Input(name, min=option.low, max=option.high, step=0.01, **about)


class VARAccelerator(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        widgets = {method.id: [_name(method.id, option) for option in method.options] for method in METHODS}
        described = " ".join(f"{method.id}: {method.what} {method.fidelity}" for method in METHODS)
        return schema(
            node_id="VARAccelerator",
            display_name="VAR Accelerator",
            category="VAR/StepVAR",
            description="Makes a VAR model faster by another published method, to compare StepVAR with on the same "
            "model and seed. Takes the place "
            "of a StepVAR Pruning before it; of two on one wire the later one counts.",
            search_aliases=[
                "speed up VAR",
                "accelerate",
                "baseline",
                "rival",
                *(method.title for method in METHODS),
                "StageVAR",
            ],
            inputs=[
                VARModel.Input(
                    "model",
                    tooltip="The model to speed up. Its weights are shared, not copied. What a StepVAR Pruning or "
                    "VAR Accelerator "
                    "before this node says is replaced.",
                ),
                with_options(
                    {"stepvar_methods": widgets},
                    io.Combo,
                    "method",
                    options=[method.id for method in METHODS],
                    default="fastvar",
                    tooltip=f"Whose method to use; only its own settings below count. {described}",
                ),
                *(_widget(place, name) for place, name in enumerate(WIDGETS)),
            ],
            outputs=[
                VARModel.Output(
                    display_name="VAR_MODEL",
                    tooltip="The same model with this method attached, for VAR Sampler. A StepVAR Pruning "
                    "after it would replace it.",
                )
            ],
        )

    @classmethod
    def execute(cls, model, method, **settings) -> io.NodeOutput:
        options = method_of(method).options
        own = {option.name: settings.get(_name(method, option), option.default) for option in options}
        return io.NodeOutput(model.with_policy(accelerator(method, **own)))
