"""The host's folders, and models and VAEs loaded from them the way the host loads its own."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch

from ...stepvar_core.checkpoints import LLM, SAFETENSORS, TOKENIZER, read_checkpoint, stamp
from ...stepvar_core.errors import CheckpointMismatch
from ...stepvar_core.families.registry import CODECS, MODELS, build, detect
from .vae import HostVAE

log = logging.getLogger(__name__)

FOLDER = "var"
MODEL_FOLDERS = (FOLDER, "diffusion_models")
BUNDLED = "demo (bundled)"
DEMO = Path(__file__).parents[2] / "stepvar_core" / "demo"
DTYPES = {
    "auto": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
COMPUTE = [torch.bfloat16, torch.float16, torch.float32]
# the VAE a family's model belongs with, by the channels of its latent; the last name is the public one
VAE_NAMES = {
    "var": {32: ("vae_ch160v4096z32",)},
    # the 2B model's: upstream writes both names; "reg" was trained apart from the plain d32
    "infinity": {
        14: ("infinity_vae_d56_f8_14_patchify",),
        16: ("infinity_vae_d16",),
        24: ("infinity_vae_d24",),
        32: ("infinity_vae_d32_reg", "infinity_vae_d32reg"),
        64: ("infinity_vae_d64",),
    },
}
SHARDS = SAFETENSORS | {".bin"}


# folders ------------------------------------------------------------------------------------------


def register_folder() -> None:
    """Adds models/var to the host's folders; one that the user's configuration made already is kept."""
    paths, extensions = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    own = os.path.join(folder_paths.models_dir, FOLDER)
    folder_paths.folder_names_and_paths[FOLDER] = (
        [*paths, *([] if own in paths else [own])],
        set(extensions) | folder_paths.supported_pt_extensions,
    )


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
            found += [
                entry.name + "/"
                for entry in os.scandir(root)
                if entry.is_dir()
                and (any(f.suffix in SHARDS for f in Path(entry.path).iterdir()) or Path(entry.path, LLM).is_dir())
            ]
    return sorted(found)


def resolve(name: str, keys: tuple[str, ...], bundled: str | None = None) -> Path:
    """Path of a listed name. Names come from a workflow file, so only what the host lists is opened."""
    if name == BUNDLED and bundled is not None:
        return DEMO / bundled
    for key in keys:
        if name in _shard_folders(key):
            return next(
                Path(root) / name for root in folder_paths.get_folder_paths(key) if (Path(root) / name).is_dir()
            )
        if name in folder_paths.get_filename_list(key):
            return Path(folder_paths.get_full_path_or_raise(key, name))
    raise CheckpointMismatch(
        f"There is no {name} in {' or '.join('models/' + k for k in keys)}.",
        "Put the file there and press R to refresh, or choose another.",
    )


# loading ------------------------------------------------------------------------------------------


def load_model(name: str, weight_dtype: str):
    """Patcher around the transformer of that name, in the dtypes the host would choose."""
    checkpoint = read_checkpoint(resolve(name, MODEL_FOLDERS, "demo_var.safetensors"), part=LLM)
    family = detect(checkpoint, MODELS, "a next-scale transformer")
    device, offload = management.get_torch_device(), management.unet_offload_device()
    stored, compute = _dtypes(checkpoint, weight_dtype)
    model = build(
        family,
        checkpoint,
        ops=comfy.ops.pick_operations(stored, compute, load_device=device),
        dtype=stored,
        device=offload,
    )
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
    """The VAE of that name; `auto` is the bundled one for the bundled model, the tokenizer in HART's own folder, else
    the public one of the model's family and sizes."""
    keys = ("vae", FOLDER)
    own = _own_tokenizer(model_name) if name == "auto" and model.family == "hart" else None
    if name == "auto" and own is None:
        known = sorted({n for key in keys for n in folder_paths.get_filename_list(key)})
        wanted = VAE_NAMES.get(model.family, {}).get(model.config.code_dim, ())
        name = (
            BUNDLED
            if model_name == BUNDLED
            else next((n for stem in wanted for n in known if os.path.splitext(os.path.basename(n))[0] == stem), None)
        )
        if name is None:
            remedy = (
                f"Download {wanted[-1]}.pth into models/vae, or choose the file by hand."
                if wanted
                else "Choose the file by hand."
            )
            if model.family == "hart":
                remedy = (
                    "Keep HART's folders llm and tokenizer side by side, as they were downloaded, "
                    "or choose the tokenizer's file by hand."
                )
            raise CheckpointMismatch(
                f"No VAE file of the {model.family} family, {model.config.code_dim} channels, was found in models/vae.",
                remedy,
            )
    checkpoint = read_checkpoint(own or resolve(name, keys, "demo_vae.safetensors"))
    device, offload = management.vae_device(), management.vae_offload_device()
    dtype = management.vae_dtype(device, [torch.bfloat16, torch.float32])
    codec = build(
        detect(checkpoint, CODECS, "a next-scale VAE"),
        checkpoint,
        ops=comfy.ops.disable_weight_init,
        dtype=dtype,
        device=offload,
    )
    codec.run_on = (device, dtype)
    return HostVAE(name if own is None else f"{own.parent.name}/{own.name}", _patcher(codec, device, offload))


def _own_tokenizer(model_name: str) -> Path | None:
    """HART's tokenizer folder beside or in what was chosen: its whole folder, llm, or a file in llm."""
    path = resolve(model_name, MODEL_FOLDERS)
    return next((p / TOKENIZER for p in (path, path.parent, path.parent.parent) if (p / TOKENIZER).is_dir()), None)


def _patcher(module, device, offload):
    core = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return core(module, load_device=device, offload_device=offload)
