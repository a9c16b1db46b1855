"""The host: memory, folders, progress, previews, messages to the browser.

Nothing else imports it but text_encoders.py and qwen2.py, which build on the host's own text encoder classes.
"""

from __future__ import annotations

import base64
import logging
import os
import time
from functools import lru_cache
from pathlib import Path

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import numpy as np
import torch
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from comfy_api.latest import ComfyExtension, io, ui
from PIL import Image

from ..stepvar_core.checkpoints import LLM, SAFETENSORS, TOKENIZER, read_checkpoint, stamp
from ..stepvar_core.errors import CheckpointMismatch, LatentMismatch
from ..stepvar_core.registry import CODECS, MODELS, build, detect
from ..stepvar_core.trace import pack_mask

__all__ = ["ComfyExtension", "io", "ui"]

log = logging.getLogger(__name__)

FOLDER = "var"
MODEL_FOLDERS = (FOLDER, "diffusion_models")
BUNDLED = "demo (bundled)"
DEMO = Path(__file__).parent.parent / "stepvar_core" / "demo"
DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8_e4m3fn": torch.float8_e4m3fn}
COMPUTE = [torch.bfloat16, torch.float16, torch.float32]
# the VAE a family's model belongs with, by the channels of its latent; the last name is the public one
VAE_NAMES = {
    "var": {32: ("vae_ch160v4096z32",)},
    # the 2B model's: upstream writes both names; "reg" was trained apart from the plain d32
    "infinity": {14: ("infinity_vae_d56_f8_14_patchify",), 16: ("infinity_vae_d16",), 24: ("infinity_vae_d24",),
                 32: ("infinity_vae_d32_reg", "infinity_vae_d32reg"), 64: ("infinity_vae_d64",)},
}
SHARDS = SAFETENSORS | {".bin"}
PREVIEW_EDGE = 512    # pixels
PREVIEW_SHARE = 0.25  # previews may cost at most this share of the time the scales themselves take


# folders ------------------------------------------------------------------------------------------


def register_folder() -> None:
    """Adds models/var to the host's folders; one that the user's configuration made already is kept."""
    paths, extensions = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    own = os.path.join(folder_paths.models_dir, FOLDER)
    folder_paths.folder_names_and_paths[FOLDER] = ([*paths, *([] if own in paths else [own])],
                                                   set(extensions) | folder_paths.supported_pt_extensions)


def model_files(*keys: str) -> list[str]:
    """Files of the host's folders, and folders of shards or of a HART's parts (written with a trailing slash)."""
    return list(dict.fromkeys(n for key in keys for n in (*folder_paths.get_filename_list(key), *_shard_folders(key))))


def model_names() -> list[str]:
    """Choices of Load VAR Model: the bundled demo, files and folders."""
    return [BUNDLED, *model_files(*MODEL_FOLDERS)]


def vae_names() -> list[str]:
    names = [n for key in ("vae", FOLDER) for n in folder_paths.get_filename_list(key)]
    return ["auto", BUNDLED, *dict.fromkeys(names)]


def _shard_folders(key: str) -> list[str]:
    found = []
    for root in folder_paths.get_folder_paths(key):
        if os.path.isdir(root):
            found += [entry.name + "/" for entry in os.scandir(root)
                      if entry.is_dir() and (any(f.suffix in SHARDS for f in Path(entry.path).iterdir()) or Path(entry.path, LLM).is_dir())]
    return sorted(found)


def resolve(name: str, keys: tuple[str, ...], bundled: str | None = None) -> Path:
    """Path of a listed name. Names come from a workflow file, so only what the host lists is opened."""
    if name == BUNDLED and bundled is not None:
        return DEMO / bundled
    for key in keys:
        if name in _shard_folders(key):
            return next(Path(root) / name for root in folder_paths.get_folder_paths(key) if (Path(root) / name).is_dir())
        if name in folder_paths.get_filename_list(key):
            return Path(folder_paths.get_full_path_or_raise(key, name))
    raise CheckpointMismatch(f"There is no {name} in {' or '.join('models/' + k for k in keys)}.",
                             "Put the file there and press R to refresh, or choose another.")


# loading ------------------------------------------------------------------------------------------


def load_model(name: str, weight_dtype: str):
    """Patcher around the transformer of that name, in the dtypes the host would choose."""
    checkpoint = read_checkpoint(resolve(name, MODEL_FOLDERS, "demo_var.safetensors"), part=LLM)
    family = detect(checkpoint, MODELS, "a next-scale transformer")
    device, offload = management.get_torch_device(), management.unet_offload_device()
    stored, compute = _dtypes(checkpoint, weight_dtype)
    model = build(family, checkpoint, ops=comfy.ops.pick_operations(stored, compute, load_device=device), dtype=stored, device=offload)
    model.compute_dtype = compute
    return _patcher(model, device, offload)


def _dtypes(checkpoint, weight_dtype: str) -> tuple[torch.dtype, torch.dtype]:
    """How the host stores the transformer's weights, and computes with them."""
    device = management.get_torch_device()
    parameters = sum(t.numel() for t in checkpoint.tensors.values())
    stored = DTYPES[weight_dtype] or management.unet_dtype(device, parameters, COMPUTE)
    return stored, management.unet_manual_cast(stored, device, COMPUTE) or stored


def outline(name: str, weight_dtype: str):
    """The transformer of a listed name on the meta device: sizes, schedules and costs, but no weights."""
    path = resolve(name, MODEL_FOLDERS, "demo_var.safetensors")
    return _outline(path, stamp(path), weight_dtype)


@lru_cache(maxsize=16)
def _outline(path: Path, _stamp: tuple, weight_dtype: str):
    checkpoint = read_checkpoint(path, shapes_only=True, part=LLM)
    stored, compute = _dtypes(checkpoint, weight_dtype)
    model = build(detect(checkpoint, MODELS, "a next-scale transformer"), checkpoint, dtype=stored, device="meta")
    model.compute_dtype = compute
    return model


def load_vae(name: str, model, model_name: str):
    """The VAE of that name; `auto` is the bundled one for the bundled model, the tokenizer in HART's own folder, else the public one
    of the model's family and sizes."""
    keys = ("vae", FOLDER)
    own = _own_tokenizer(model_name) if name == "auto" and model.family == "hart" else None
    if name == "auto" and own is None:
        known = sorted({n for key in keys for n in folder_paths.get_filename_list(key)})
        wanted = VAE_NAMES.get(model.family, {}).get(model.config.code_dim, ())
        name = BUNDLED if model_name == BUNDLED else next(
            (n for stem in wanted for n in known if os.path.splitext(os.path.basename(n))[0] == stem), None)
        if name is None:
            remedy = f"Download {wanted[-1]}.pth into models/vae, or choose the file by hand." if wanted else "Choose the file by hand."
            if model.family == "hart":
                remedy = "Keep HART's folders llm and tokenizer side by side, as they were downloaded, or choose the tokenizer's file by hand."
            raise CheckpointMismatch(f"No VAE file of the {model.family} family, {model.config.code_dim} channels, was found in models/vae.", remedy)
    checkpoint = read_checkpoint(own or resolve(name, keys, "demo_vae.safetensors"))
    device, offload = management.vae_device(), management.vae_offload_device()
    dtype = management.vae_dtype(device, [torch.bfloat16, torch.float32])
    codec = build(detect(checkpoint, CODECS, "a next-scale VAE"), checkpoint, ops=comfy.ops.disable_weight_init, dtype=dtype, device=offload)
    codec.run_on = (device, dtype)
    return HostVAE(name if own is None else f"{own.parent.name}/{own.name}", _patcher(codec, device, offload))


def _own_tokenizer(model_name: str) -> Path | None:
    """HART's tokenizer folder beside or in what was chosen: its whole folder, llm, or a file in llm."""
    path = resolve(model_name, MODEL_FOLDERS)
    return next((p / TOKENIZER for p in (path, path.parent, path.parent.parent) if (p / TOKENIZER).is_dir()), None)


def _patcher(module, device, offload):
    core = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return core(module, load_device=device, offload_device=offload)


class HostVAE:
    """A VAE as the stock VAE nodes call it. It decodes and encodes latents of VAR models only."""

    def __init__(self, name: str, patcher):
        self.name, self.patcher = name, patcher

    @property
    def codec(self):
        return self.patcher.model

    @property
    def latent_channels(self) -> int:
        return self.codec.config.z_channels

    def decode(self, samples, vae_options=None):
        """Pictures (B, H, W, 3) of f_hat, on the host's intermediate device."""
        self._check(samples)
        stride = self.codec.config.stride
        needed = samples.shape[-2] * samples.shape[-1] * stride ** 2 * self.codec.config.ch * 16
        management.load_models_gpu([self.patcher], memory_required=needed)
        try:
            return self.codec.decode(samples).to(management.intermediate_device())
        except management.OOM_EXCEPTION:
            log.warning("Not enough memory to decode %d pictures at once; decoding one at a time.", len(samples))
        # not within `except`: what failed stays allocated as long as its traceback is alive
        management.soft_empty_cache()
        return torch.cat([self.codec.decode(row).to(management.intermediate_device()) for row in samples.split(1)])

    def decode_tiled(self, samples, **tiling):
        """The whole picture at once: attention at the lowest level makes tiles differ, and the pictures are small."""
        return self.decode(samples)

    def encode(self, pixels):
        """Feature maps (B, C, h, w), not yet quantised, of pictures (B, H, W, 3). Edges are cropped to whole cells."""
        stride = self.codec.config.stride
        height, width = (n // stride * stride for n in pixels.shape[1:3])
        management.load_models_gpu([self.patcher], memory_required=height * width * self.codec.config.ch * 16)
        with torch.inference_mode():
            x = pixels[:, :height, :width, :3].movedim(-1, 1) * 2 - 1
            return self.codec.features(x).to(management.intermediate_device())

    def encode_tiled(self, pixels, **tiling):
        return self.encode(pixels)

    def spacial_compression_decode(self) -> int:
        return self.codec.config.stride

    def spacial_compression_encode(self) -> int:
        return self.codec.config.stride

    def temporal_compression_decode(self) -> None:
        return None

    def _check(self, samples) -> None:
        if samples.ndim != 4 or samples.shape[1] != self.latent_channels:
            raise LatentMismatch(f"The latent is {tuple(samples.shape)}; the VAE {self.name} decodes {self.latent_channels} channels.",
                                 "Connect the latent of a VAR Sampler that ran the model this VAE belongs to.")


def encode_codes(vae, image: torch.Tensor, schedule) -> tuple[list[torch.Tensor], list[torch.Tensor | None], torch.Tensor]:
    """Codes per pass of pictures (B, H, W, 3), scaled and cropped to the schedule's size, what else they hold, and their f_hat (B, C, h, w)."""
    if not isinstance(vae, HostVAE):
        raise LatentMismatch("This VAE belongs to another kind of model and has no scale-by-scale tokens.", "Connect the VAE of Load VAR Model.")
    stride, final = vae.codec.config.token_stride, schedule.final
    fitted = comfy.utils.common_upscale(image[..., :3].movedim(-1, 1), final.w * stride, final.h * stride, "lanczos", "center").movedim(1, -1)
    management.load_models_gpu([vae.patcher], memory_required=fitted.numel() * vae.codec.config.ch * 8)
    codes, soft, f_hat = vae.codec.encode_all(fitted, schedule)
    return codes, soft, to_host(f_hat)


# running ------------------------------------------------------------------------------------------


def load_for_sampling(handle, peak_bytes: int) -> torch.device:
    """Makes room for a run that takes peak_bytes, weights included; returns the device to compute on."""
    patchers = [handle.patcher] + ([handle.vae.patcher] if wants_previews() else [])
    management.load_models_gpu(patchers, memory_required=max(peak_bytes - handle.patcher.model_size(), 0))
    return handle.patcher.load_device


def wants_previews() -> bool:
    return args.preview_method != LatentPreviewMethod.NoPreviews


class Progress:
    """Progress bar, live preview and one message per scale for the node that is running.

    Called after every scale; the host raises out of it when the user cancelled. A preview is the picture so far, from
    the real decoder, and is left out while previews have taken more than their share of the time. `last` is the final
    one, (1, H, W, 3): the first picture of the batch as it came out; None without previews.
    """

    def __init__(self, handle, hidden, job):
        self.handle, self.node_id, self.total = handle, hidden.unique_id, len(job.passes)
        self.workflow = ((hidden.extra_pnginfo or {}).get("workflow") or {}).get("id")  # other tabs may have nodes of the same id
        self.bar = comfy.utils.ProgressBar(self.total, node_id=self.node_id)
        self.started, self.spent = time.perf_counter(), 0.0
        self.last = None
        # what will run, so that the browser can lay out a scale's place before it ran: t, h, w, tokens that will run
        self.fill, self.scope = job.plans[0].fill, job.plans[0].scope
        self.plan = [[*step.scale.grid, plan.kept] for step, plan in zip(job.passes, job.plans)]

    def __call__(self, step) -> None:
        management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(step.index + 1, self.total, self._preview(step))
        send("stepvar.scale", {
            "node": self.node_id, "workflow": self.workflow, "index": step.index, "count": self.total, "size": list(step.step.scale.grid),
            "tokens": step.step.scale.tokens, "tokens_run": step.tokens_run, "seconds": round(step.seconds, 4),
            "batch": len(step.kept), "kept": base64.b64encode(pack_mask(step.kept)).decode(), "plan": self.plan,
            "fill": self.fill, "scope": self.scope})

    def _preview(self, step):
        is_final = step.index + 1 == self.total
        if not wants_previews() or not (step.tokens_run or is_final):
            return None
        began = time.perf_counter()
        if not is_final and self.spent > PREVIEW_SHARE * (began - self.started - self.spent):
            return None
        try:
            pixels = self.handle.vae.codec.decode(self._small(step.f_hat[:1])).cpu()
        except management.OOM_EXCEPTION:  # the run itself may still fit
            log.warning("Not enough memory for a preview; going on without.")
            return None
        finally:
            self.spent += time.perf_counter() - began
        picture = Image.fromarray((pixels[0].numpy() * 255).round().astype(np.uint8))
        self.last = pixels if is_final else None
        return "JPEG", picture, args.preview_size if hasattr(args, "preview_size") else 512

    def _small(self, f_hat_1CHW: torch.Tensor) -> torch.Tensor:
        """The latent of a preview: a megapixel takes the decoder longer than a scale takes the model."""
        longest = max(f_hat_1CHW.shape[-2:]) * self.handle.vae.codec.config.stride
        return f_hat_1CHW if longest <= PREVIEW_EDGE else F.interpolate(f_hat_1CHW, scale_factor=PREVIEW_EDGE / longest, mode="area")


def _server():
    from server import PromptServer  # the server module starts up with the process; importing it early would be a cycle

    return getattr(PromptServer, "instance", None)


def send(event: str, payload: dict) -> None:
    """A message to the browser tab that queued the prompt; nothing happens without a server."""
    instance = _server()
    if instance is not None:
        instance.send_sync(event, payload, instance.client_id)


def add_route(path: str, handler) -> None:
    """Answers GET `path` with `handler`; nothing happens without a server."""
    instance = _server()
    if instance is not None:
        instance.routes.get(path)(handler)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(management.intermediate_device())

