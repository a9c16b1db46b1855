"""Load VAR Model, Load VAR Text Encoder, VAR Class Label."""

from __future__ import annotations

from ..stepvar_core.errors import ConditionMismatch
from ..stepvar_core.families.registry import family_of
from ..stepvar_core.labels import class_names, parse_labels
from .handles import ModelHandle
from .host import io, loading
from .host.text import encoders
from .latents import pack_labels
from .schema import VARModel, schema

VARIANTS = ["auto", "480p", "720p", "interactive"]


class VARModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="VARModelLoader",
            display_name="Load VAR Model",
            category="VAR/loaders",
            description="Loads a next-scale prediction (VAR) model and its VAE. 'demo (bundled)' needs no download.",
            search_aliases=[
                "VAR",
                "visual autoregressive",
                "next-scale",
                "Infinity",
                "HART",
                "Switti",
                "load checkpoint",
            ],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=loading.model_names(),
                    tooltip="The transformer: the bundled demo, or a file or folder in "
                    "models/var or models/diffusion_models; for HART the folder that holds llm and tokenizer, for "
                    "Switti the one with config.json. Larger models draw better and slower.",
                ),
                io.Combo.Input(
                    "vae_name",
                    options=loading.vae_names(),
                    default="auto",
                    tooltip="The VAE that turns tokens into pixels. "
                    "'auto' takes the one that belongs to the model (HART: the tokenizer in its own folder); another "
                    "one gives noise or an error.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(loading.DTYPES),
                    default="auto",
                    tooltip="How the weights are stored. 'auto' "
                    "lets ComfyUI choose for your hardware; fp32 is exact and takes twice the memory and time; fp8 "
                    "takes half the memory and costs a little quality.",
                ),
                io.Combo.Input(
                    "variant",
                    options=VARIANTS,
                    default="auto",
                    tooltip="Only for files that cannot tell what they were "
                    "trained for (video models). Leave on 'auto' otherwise; it changes neither picture nor time.",
                ),
            ],
            outputs=[
                VARModel.Output(
                    display_name="VAR_MODEL", tooltip="For StepVAR Pruning, VAR Sampler and the label and latent nodes."
                ),
                io.Vae.Output(display_name="VAE", tooltip="For the stock VAE Decode."),
            ],
        )

    @classmethod
    def execute(cls, model_name, vae_name="auto", weight_dtype="auto", variant="auto") -> io.NodeOutput:
        patcher = loading.load_model(model_name, weight_dtype)
        vae = loading.load_vae(vae_name, patcher.model, model_name)
        return io.NodeOutput(ModelHandle(model_name, patcher, vae), vae)


class VARTextEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        names = encoders.names()
        return schema(
            node_id="VARTextEncoderLoader",
            display_name="Load VAR Text Encoder",
            category="VAR/loaders",
            description="Loads the text encoder of a text-to-image VAR model, for the stock CLIP Text Encode. "
            "ComfyUI's own Load CLIP "
            "takes FLAN-T5 XL for another T5 and encodes prompts wrongly.",
            search_aliases=[
                "FLAN-T5",
                "T5",
                "Qwen2",
                "load CLIP",
                "text encoder",
                "CLIP",
                "Infinity",
                "HART",
                "Switti",
                "prompt",
            ],
            inputs=[
                io.Combo.Input(
                    "encoder_name",
                    options=names,
                    tooltip="A file or a folder of shards (its name ends with a slash) in "
                    "models/text_encoders: for Infinity google/flan-t5-xl, for HART the folder of "
                    "mit-han-lab/Qwen2-VL-1.5B-Instruct, for Switti clip_l or clip_g. The whole model "
                    "or its encoder alone; fp16, bf16 and fp8 files stay as small as they are.",
                ),
                io.Combo.Input(
                    "type",
                    options=encoders.TYPES,
                    default="auto",
                    tooltip="Which model it encodes for. Infinity: auto or "
                    "flan-t5-xl; HART: auto or hart-qwen2; Switti: auto or switti-clip. The other is for a "
                    "model family "
                    "still to come. Changes neither time nor memory.",
                ),
                io.Combo.Input(
                    "encoder_name_2",
                    options=[encoders.NONE, *names],
                    default=encoders.NONE,
                    tooltip="Switti's second CLIP, in either order: clip_l and clip_g. Infinity and HART read "
                    "one encoder: "
                    "leave on none.",
                ),
            ],
            outputs=[
                io.Clip.Output(
                    display_name="CLIP",
                    tooltip="For CLIP Text Encode. Prompts of up to 512 tokens (HART 300, Switti 77), the rest "
                    "is cut off. "
                    "None of them knows prompt weights: (word:1.3) is read as word.",
                )
            ],
        )

    @classmethod
    def execute(cls, encoder_name, type="auto", encoder_name_2=encoders.NONE) -> io.NodeOutput:
        return io.NodeOutput(encoders.load(encoder_name, type, encoder_name_2))


class VARClassLabel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="VARClassLabel",
            display_name="VAR Class Label",
            category="VAR/conditioning",
            description="Says which class a class-conditional VAR model should draw.",
            search_aliases=["class label", "ImageNet", "class conditional", "prompt"],
            inputs=[
                VARModel.Input("model", tooltip="The model whose class names are meant."),
                io.String.Input(
                    "label",
                    default="panda",
                    tooltip="What to draw: a class name or its number. Write several with ';' or ',' between "
                    "them and the pictures of a batch take turns. -1 draws without a class. Costs no time.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="CONDITIONING", tooltip="For VAR Sampler, positive or negative.")
            ],
        )

    @classmethod
    def execute(cls, model, label) -> io.NodeOutput:
        config = model.model.config
        if family_of(model.model).reads_text:
            raise ConditionMismatch(
                f"{model.name} reads text, not class labels.",
                "Use CLIP Text Encode, with the CLIP of Load VAR Text Encoder.",
            )
        return io.NodeOutput(pack_labels(parse_labels(label, class_names(config), config.num_classes)))
