"""VAR Sampler: runs the scale loop on the host's device."""

from __future__ import annotations

from ..stepvar_core.door import prepare, sample
from ..stepvar_core.errors import OptionError
from ..stepvar_core.families import FAMILIES
from ..stepvar_core.planning.goals import Auto
from .host import io, running
from .inspect import temporary, trace_message, with_work
from .latents import check_holds_picture, check_mask, pack_latent, read_condition, read_latent
from .schema import VARModel, VARTrace, schema


class VARSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="VARSampler",
            display_name="VAR Sampler",
            category="VAR/sampling",
            description="Draws pictures scale by scale, from a single token to the full grid.",
            search_aliases=[
                "next-scale sampler",
                "VAR sample",
                "KSampler",
                "autoregressive",
                *(f.title for f in FAMILIES),
            ],
            inputs=[
                VARModel.Input("model", tooltip="The model, with or without StepVAR Pruning or VAR Accelerator."),
                io.Conditioning.Input("positive", tooltip="What to draw."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What guidance steers away from. Without it, the model's own 'no class' "
                    "or 'no text', which is what it was trained with. Needs guidance to have an effect.",
                ),
                io.Latent.Input(
                    "latent", tooltip="Size and batch, from Empty VAR Latent; or an earlier result to continue."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="The same seed draws the same picture, on any device and in any batch. Pruning changes "
                    "only what it prunes.",
                ),
                io.Float.Input(
                    "cfg",
                    default=-1.0,
                    min=-1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance: how strictly the class or prompt is followed. -1 is the model's default (VAR "
                    "4, HART 4.5, Switti 6, Infinity 2B 4, "
                    "8B 3). VAR, HART and Switti ramp it up from scale to scale, and 0 is none; Infinity "
                    "applies it to every "
                    "scale, and 1 is none. "
                    "None takes half the time.",
                ),
                io.Float.Input(
                    "temperature",
                    default=-1.0,
                    min=-1.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Above 1 more varied, below 1 calmer. -1 is the model's default (VAR, HART and "
                    "Switti 1, Infinity 2B 0.5, 8B 1). The time "
                    "is the same.",
                ),
                io.Int.Input(
                    "top_k",
                    default=-1,
                    min=-1,
                    max=100000,
                    tooltip="Draw among the k likeliest tokens. Lower is cleaner, higher more varied; 1 leaves "
                    "nothing to chance (HART's residual is drawn all the same). 0 is off, "
                    "-1 the model's default (VAR 900; HART 600 in the first seven scales, then 300; Switti 400). "
                    "Infinity draws "
                    "bits: only 1 makes a difference.",
                ),
                io.Float.Input(
                    "top_p",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Draw among the likeliest tokens that together reach this probability. Lower is cleaner. "
                    "0 is off, -1 the "
                    "model's default (VAR and Switti 0.95, HART off). Infinity: a bit whose unlikelier value "
                    "falls below 1 - "
                    "top_p is not "
                    "left to chance (0.97).",
                ),
                io.Int.Input(
                    "start_at_scale",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="Keep the latent's first scales and draw from this one on: 0 draws everything, higher "
                    "keeps more of the picture "
                    "and takes little less time.",
                ),
                io.Int.Input(
                    "end_at_scale",
                    default=-1,
                    min=-1,
                    max=100,
                    tooltip="Stop before this scale; -1 runs all. An early stop is a quick, blurry draft that can be "
                    "continued.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="LATENT", tooltip="For VAE Decode, or another VAR Sampler."),
                VARTrace.Output(
                    display_name="VAR_TRACE",
                    tooltip="What ran and how long it took, for StepVAR Mask Overlay and Report.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            has_intermediate_output=True,
        )  # a cached run still hands its trace to the browser, on hosts from 0.18.1

    @classmethod
    def execute(
        cls,
        model,
        positive,
        latent,
        seed,
        negative=None,
        cfg=-1.0,
        temperature=-1.0,
        top_k=-1,
        top_p=-1.0,
        start_at_scale=0,
        end_at_scale=-1,
    ) -> io.NodeOutput:
        network, codec, given = model.model, model.vae.codec, read_latent(latent, model.model)
        auto = Auto(
            policy=model.policy,
            timings=model.timings,
            model=network,
            schedule=given.schedule,
            cfg=_or_default("cfg", cfg),
            batch=given.batch,
        )
        if (protect := getattr(auto.policy, "protect", None)) is not None:
            aspect_ratio = given.samples.shape[-1] / given.samples.shape[-2]
            check_mask(protect, aspect_ratio, "mask that StepVAR Pruning protects")
        if 0 < start_at_scale < len(given.schedule):
            check_holds_picture(given, start_at_scale)
        device = running.load_for_sampling(model, auto.cost().peak_bytes)
        condition = read_condition(positive, network, given.batch, "positive")
        drawing = dict(
            schedule=given.schedule,
            negative=None if negative is None else read_condition(negative, network, given.batch, "negative"),
            seed=seed,
            rows=given.rows,
            cfg=_or_default("cfg", cfg),
            temperature=_or_default("temperature", temperature),
            top_k=_or_default("top_k", top_k),
            top_p=_or_default("top_p", top_p),
            device=device,
            heartbeat=running.stop_if_cancelled,
        )
        needs_codes = start_at_scale > 0 or given.mask is not None
        keeping = dict(
            codes=given.codes(codec.quantizer_on(device), device) if needs_codes else None,
            start_at_scale=start_at_scale,
            end_at_scale=_or_default("end_at_scale", end_at_scale),
            mask=given.mask,
        )
        timed_as = (str(device), str(network.dtype), given.batch)
        policy = auto.choose(timed_as, lambda tried: sample(network, codec, condition, pruning=tried, **drawing).trace)
        job = prepare(network, codec, condition, pruning=policy, keep_scores=True, **keeping, **drawing)
        result, picture = running.run(model, cls.hidden, job)
        auto.learn(timed_as, result.trace)
        trace = with_work(result.trace, auto.cost(policy))
        packed = pack_latent(result.codes, result.schedule, given.rows, running.to_host(result.latent))
        seen = [] if picture is None else temporary(picture, cls)
        return io.NodeOutput(packed, trace, ui={"stepvar": [trace_message(trace, seen)]})


def _or_default(name: str, value):
    """None, the model's own, for the -1 of a widget. Raises OptionError for another negative number, which would
    silently mean the same."""
    if value < 0 and value != -1:
        raise OptionError(f"{name} is {value:g}.", f"Use 0 or more, or -1 for the model's own {name}.")
    return None if value == -1 else value
