"""StepVAR Pruning: the settings of token pruning on a model's wire."""

from __future__ import annotations

from ..stepvar_core.methods.fills import FILLS
from ..stepvar_core.methods.policy import HALVES, Policy
from ..stepvar_core.methods.presets import CUSTOM, PRESET_SETTINGS, PRESETS, RATIO_WIDGETS, Preset
from ..stepvar_core.methods.selectors import NORMALISERS, SELECTORS
from ..stepvar_core.methods.stepvar import PROTECT_MODES, SCOPES, StepVAR
from ..stepvar_core.planning.goals import GOALS, OFF, toward
from .host import io
from .schema import VARModel, advanced, schema, with_options

DEFAULT_PRESET = "Balanced"


def _ratio(place: int):
    ratios = PRESETS[DEFAULT_PRESET]
    which = "the last scale" if place == 1 else f"scale {place} from the end"
    return advanced(
        io.Float,
        f"ratio_{place}",
        default=ratios[place - 1] if place <= len(ratios) else 0.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip=f"Share of tokens left out in {which}. 0 runs them all, 1 skips the scale. Higher is faster and "
        "loses fine "
        f"detail{'; this scale costs the most' if place == 1 else ''}. Counts when the preset is Custom.",
    )


class StepVARPruning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StepVARPruning",
            display_name="StepVAR Pruning",
            category="VAR/StepVAR",
            description="Makes a VAR model faster: in the last, expensive scales only the tokens that matter for "
            "structure and "
            "texture run, the others are filled from them (StepVAR, arXiv 2603.01757).",
            search_aliases=["StepVAR", "token pruning", "speed up VAR", "accelerate", "FastVAR"],
            inputs=[
                VARModel.Input(
                    "model",
                    tooltip="The model to speed up. Its weights are shared, not copied. A VAR Accelerator before "
                    "this node is replaced.",
                ),
                with_options(
                    {"stepvar_presets": PRESETS, "stepvar_preset_settings": PRESET_SETTINGS},
                    io.Combo,
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default=DEFAULT_PRESET,
                    tooltip="A named set of ratios. Custom uses the ratio sliders below; any other preset replaces "
                    "them. Faithful "
                    "skips no scale; Fastest and the paper's presets drop the most detail. A preset skips scales "
                    "only on the "
                    "family and size it was published for, and prunes them elsewhere. Best quality also sets "
                    "selector and fill: "
                    "closest to the full picture at the same speed as Balanced.",
                ),
                *(_ratio(n) for n in range(1, RATIO_WIDGETS + 1)),
                advanced(
                    io.Float,
                    "structure_weight",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="What to keep: 1 keeps shapes and layout (structure), 0 keeps fine detail (texture). The "
                    "time is the same.",
                ),
                advanced(
                    io.Combo,
                    "fill",
                    options=list(FILLS),
                    default="nearest",
                    tooltip="What goes where tokens were left out. nearest: a copy of the closest kept token (the "
                    "paper). delta: the "
                    "closest token's change. zero: nothing, softer. anchor: copies from a regular lattice. cache: an "
                    "earlier "
                    "scale's change (FastVAR). repeat: the codes of the scale before once more (LD-Pruning). delta and "
                    "cache cost slightly more time.",
                ),
                advanced(
                    io.Combo,
                    "guidance_late",
                    options=list(HALVES),
                    default="both",
                    tooltip="Which guidance half runs in the last scales (see the next setting). One half takes half "
                    "the time there "
                    "and weakens guidance in the finest detail.",
                ),
                advanced(
                    io.Int,
                    "guidance_late_scales",
                    default=0,
                    min=0,
                    max=20,
                    tooltip="How many of the last scales run only the half chosen above. 0 keeps full guidance. More "
                    "is faster.",
                ),
                advanced(
                    io.Int,
                    "first_layer",
                    default=-1,
                    min=-1,
                    max=100,
                    tooltip="Block at which tokens are chosen and dropped. -1 is the model's default. Later blocks "
                    "judge better and "
                    "save less time.",
                ),
                advanced(
                    io.Combo,
                    "scope",
                    options=list(SCOPES),
                    default="scale",
                    tooltip="scale: choose once per scale, fastest. sublayer: choose again in every layer on a full "
                    "stream, FastVAR's "
                    "way; closer to the full picture and slower.",
                ),
                advanced(
                    io.Combo,
                    "normalise",
                    options=list(NORMALISERS),
                    default="minmax",
                    tooltip="How structure and texture are made comparable before they are mixed. Changes which "
                    "tokens stay; the time "
                    "is the same.",
                ),
                advanced(
                    io.Int,
                    "iterations",
                    default=5,
                    min=1,
                    max=50,
                    tooltip="Steps of the power iteration that finds the main structure. More is steadier; the time "
                    "hardly changes.",
                ),
                advanced(
                    io.Int,
                    "kernel",
                    default=3,
                    min=1,
                    max=15,
                    step=2,
                    tooltip="Neighbourhood that counts as local average for texture, in tokens. Larger sees coarser "
                    "texture; the time "
                    "hardly changes.",
                ),
                advanced(
                    io.Combo,
                    "selector",
                    options=list(SELECTORS),
                    default="stepvar",
                    tooltip="How tokens are ranked: StepVAR; update, which keeps what the scale before changed most; "
                    "turn, the same by "
                    "direction (LazyVAR); detail, by the detail of the codes before (LD-Pruning); or a baseline to "
                    "compare with. Changes which tokens stay; the time is "
                    "nearly the same.",
                ),
                advanced(
                    io.Int,
                    "coverage",
                    default=0,
                    min=0,
                    max=16,
                    tooltip="Keep at least one token in every n x n cell, so that no area is left empty. 0 is off. "
                    "Small values keep "
                    "more tokens and take more time.",
                ),
                advanced(
                    io.Combo,
                    "protect_mode",
                    options=list(PROTECT_MODES),
                    default="add",
                    tooltip="add: painted areas are preferred, the count stays. keep: painted areas always run, "
                    "which takes more time.",
                ),
                io.Combo.Input(
                    "auto_goal",
                    options=list(GOALS),
                    default=OFF,
                    optional=True,  # optional: prompts saved before it was added
                    tooltip="Lets the pack choose the ratios; the sliders and the preset's ratios then count for "
                    "nothing. quality: as fast as "
                    "the likeness in auto_value allows, from a table measured on the demo model and from how much "
                    "this picture "
                    "still changes. seconds: as good as the time in auto_value allows, from the last runs on this "
                    "machine; the "
                    "first time, a probe of about half a run is timed.",
                ),
                io.Float.Input(
                    "auto_value",
                    default=0.9,
                    min=0.0,
                    max=3600.0,
                    step=0.01,
                    optional=True,
                    tooltip="For quality: SSIM to the full picture, 0 to 1; 0.95 is hard to tell apart, 0.8 visibly "
                    "softer. For seconds: what "
                    "the sampler may take for the whole batch, without loading and decoding. Higher prunes less and "
                    "takes more "
                    "time.",
                ),
                io.Mask.Input(
                    "protect",
                    optional=True,
                    tooltip="Paint what must stay sharp, for example a face. White areas are kept first.",
                ),
            ],
            outputs=[
                VARModel.Output(
                    display_name="VAR_MODEL", tooltip="The same model with pruning attached, for VAR Sampler."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        preset,
        structure_weight,
        fill,
        guidance_late,
        guidance_late_scales,
        first_layer,
        scope,
        normalise,
        iterations,
        kernel,
        selector,
        coverage,
        protect_mode,
        auto_goal=OFF,
        auto_value=0.9,
        protect=None,
        **ratios,
    ) -> io.NodeOutput:
        policy: Policy = StepVAR(
            ratios=tuple(ratios[f"ratio_{n}"] for n in range(1, RATIO_WIDGETS + 1)),
            selector=selector,
            structure_weight=structure_weight,
            normalise=normalise,
            iterations=iterations,
            kernel=kernel,
            first_layer=None if first_layer < 0 else first_layer,
            scope=scope,
            fill=fill,
            coverage=coverage,
            protect=protect,
            protect_mode=protect_mode,
            guidance_late=guidance_late,
            guidance_late_scales=guidance_late_scales,
        )
        if preset != CUSTOM:
            policy = Preset(preset, policy)
        return io.NodeOutput(model.with_policy(toward(auto_goal, auto_value, policy)))
