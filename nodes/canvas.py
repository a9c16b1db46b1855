"""Empty VAR Latent and VAR Encode: what a run starts from."""

from __future__ import annotations

from ..stepvar_core.errors import StepVARError
from .host import io, running
from .host.vae import encode_codes
from .latents import empty_latent, pack_latent, schedule_of
from .schema import VARModel, schema, with_options

# width : height, as the text-to-image families name them
ASPECT_RATIOS = {
    "1:1": 1.0,
    "5:4": 1.25,
    "4:5": 0.8,
    "4:3": 4 / 3,
    "3:4": 0.75,
    "3:2": 1.5,
    "2:3": 2 / 3,
    "16:9": 1.75,
    "9:16": 4 / 7,
    "2:1": 2.0,
    "1:2": 0.5,
    "5:2": 2.5,
    "2:5": 0.4,
    "3:1": 3.0,
    "1:3": 1 / 3,
}
SIZES = ["auto", "0.06M", "0.25M", "0.60M", "1M", "256", "512", "480p", "720p"]


def canvases(model) -> dict[str, list[str]]:
    """The canvases a model can draw on: of every size it knows, the aspect ratios."""

    def draws(aspect_ratio: float, size: str) -> bool:
        try:
            model.check_schedule(model.schedule(aspect_ratio, size=None if size == "auto" else size))
        except StepVARError:
            return False
        return True

    found = {size: [name for name, ratio in ASPECT_RATIOS.items() if draws(ratio, size)] for size in SIZES}
    return {size: ratios for size, ratios in found.items() if ratios}


class EmptyVARLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="EmptyVARLatent",
            display_name="Empty VAR Latent",
            category="VAR/latent",
            description="An empty canvas in one of the sizes the model knows.",
            search_aliases=["empty latent", "size", "aspect ratio", "batch"],
            inputs=[
                VARModel.Input("model", tooltip="The model whose sizes are offered."),
                io.Combo.Input(
                    "aspect_ratio",
                    options=list(ASPECT_RATIOS),
                    default="1:1",
                    tooltip="Width to height. At 1M Infinity "
                    "draws 1:1 1024x1024, 4:3 1152x864, 3:2 1248x832, 16:9 1344x768, 2:1 1440x720, 3:1 1776x592 and "
                    "the same upright. "
                    "Class-conditional VAR, HART and Switti make square pictures only. The time hardly changes.",
                ),
                io.Combo.Input(
                    "size",
                    options=SIZES,
                    default="auto",
                    tooltip="How large the picture gets, by the model's own names; 'auto' is its "
                    "full size. Infinity, in pixels when square: 0.06M 256, 0.25M 512, 0.60M 768, 1M 1024. Time "
                    "grows faster than "
                    "the area.",
                ),
                io.Float.Input(
                    "seconds",
                    default=5.0,
                    min=0.0,
                    max=60.0,
                    step=0.5,
                    tooltip="Length, for video models; pictures ignore it. Time grows with it.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many pictures at once. Time and memory grow with it, a "
                    "little less than in proportion.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="For VAR Sampler.")],
        )

    @classmethod
    def execute(cls, model, aspect_ratio="1:1", size="auto", seconds=5.0, batch_size=1) -> io.NodeOutput:
        schedule = model.model.schedule(ASPECT_RATIOS[aspect_ratio], size=None if size == "auto" else size)
        return io.NodeOutput(empty_latent(model.model, schedule, batch_size, running.host_device()))


class VAREncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="VAREncode",
            display_name="VAR Encode",
            category="VAR/latent",
            description="Turns a picture into the model's tokens, scale by scale: to keep its first scales "
            "(start_at_scale of VAR Sampler) "
            "or to redraw a masked part (Set Latent Noise Mask).",
            search_aliases=["image to image", "img2img", "inpaint", "VAE encode", "image to tokens"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of Load VAR Model."),
                io.Image.Input(
                    "image", tooltip="The picture; it is scaled and cropped in the middle to the latent's size."
                ),
                io.Latent.Input("latent", tooltip="Gives size and scales, from Empty VAR Latent."),
                # fixed: a seed that changes after every run would make every run encode and sample again
                with_options(
                    {"control_after_generate": "fixed"},
                    io.Int,
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    tooltip="For tokenisers that draw while they encode; VAR's, HART's and Infinity's do not.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="LATENT", tooltip="For VAR Sampler, or VAE Decode to see what the tokens hold."
                )
            ],
        )

    @classmethod
    def execute(cls, vae, image, latent, seed=0) -> io.NodeOutput:
        schedule = schedule_of(latent)
        codes, samples = encode_codes(vae, image, schedule)
        return io.NodeOutput(pack_latent(codes, schedule, tuple(range(len(samples))), samples))
