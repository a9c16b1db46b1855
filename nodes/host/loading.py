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

from ...stepvar_core.checkpoints import SAFETENSORS, read_checkpoint, stamp
from ...stepvar_core.errors import CheckpointMismatch, StepVARError
from ...stepvar_core.families import Family
from ...stepvar_core.families.registry import CODECS, MODELS, build, detect, family_of, transformer_path
from .vae import HostVAE

log = logging.getLogger(__name__)

FOLDER = "var"
MODEL_FOLDERS = (FOLDER, "diffusion_models")
VAE_FOLDERS = ("vae", FOLDER)
AUTO = "auto"
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
    """Files of the host's folders, and folders of shards or of a model's parts (written with a trailing slash)."""
    return list(dict.fromkeys(name for key in keys for name in (*_files(key), *_shard_folders(key))))


def model_names() -> list[str]:
    """Choices of Load VAR Model: the bundled demo, files and folders."""
    return [BUNDLED, *model_files(*MODEL_FOLDERS)]


def vae_names() -> list[str]:
    return [AUTO, BUNDLED, *dict.fromkeys(name for key in VAE_FOLDERS for name in _files(key))]


def _files(key: str) -> list[str]:
    """What the host lists, without links that lead nowhere and pipes."""
    roots = folder_paths.get_folder_paths(key)
    listed = folder_paths.get_filename_list(key)
    return [name for name in listed if any(os.path.isfile(os.path.join(root, name)) for root in roots)]


def _shard_folders(key: str) -> list[str]:
    return sorted(
        f"{path.name}/"
        for root in folder_paths.get_folder_paths(key)
        for path in _entries(Path(root))
        if os.path.isdir(path) and _is_model_folder(path)
    )


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it may not be read: one odd folder must not hide all models."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_model_folder(path: Path) -> bool:
    return any(file.suffix in SHARDS for file in _entries(path)) or transformer_path(path) != path


def resolve(name: str, keys: tuple[str, ...], bundled: str | None = None) -> Path:
    """Path of a listed name. Names come from a workflow file, so only what the host lists is opened."""
    if name == BUNDLED and bundled is not None:
        return DEMO / bundled
    for key in keys:
        exists = os.path.isdir if name in _shard_folders(key) else os.path.isfile if name in _files(key) else None
        if exists is not None:
            paths = (os.path.join(root, name) for root in folder_paths.get_folder_paths(key))
            return Path(next(path for path in paths if exists(path)))
    raise CheckpointMismatch(
        f"There is no {name} in {' or '.join('models/' + k for k in keys)}.",
        "Put the file there and press R to refresh, or choose another.",
    )


# loading ------------------------------------------------------------------------------------------


def load_model(name: str, weight_dtype: str):
    """Patcher around the transformer of that name, in the dtypes the host would choose."""
    checkpoint = read_checkpoint(transformer_path(resolve(name, MODEL_FOLDERS, "demo_var.safetensors")))
    files = detect(checkpoint, MODELS, "a next-scale transformer")
    device, offload = management.get_torch_device(), management.unet_offload_device()
    stored, compute = _dtypes(checkpoint, weight_dtype)
    model = build(
        files,
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
    """The transformer of a listed name on the meta device: sizes, schedules and costs, but no weights. Raises
    StepVARError as loading it would."""
    path = resolve(name, MODEL_FOLDERS, "demo_var.safetensors")
    found = _outline(path, stamp(path), weight_dtype)
    if isinstance(found, StepVARError):
        raise type(found)(found.problem, found.remedy)
    return found


@lru_cache(maxsize=16)
def _outline(path: Path, _stamp: tuple, weight_dtype: str):
    """The model, or why there is none: a file that was refused is not read again until it changes."""
    try:
        checkpoint = read_checkpoint(transformer_path(path), shapes_only=True)
        stored, compute = _dtypes(checkpoint, weight_dtype)
        model = build(detect(checkpoint, MODELS, "a next-scale transformer"), checkpoint, dtype=stored, device="meta")
    except StepVARError as error:
        return type(error)(error.problem, error.remedy)  # a new one: the old one holds its frames, and they the file
    model.compute_dtype = compute
    return model


def load_vae(name: str, model, model_name: str):
    """The VAE of that name. `auto` is the bundled one for the bundled model; the one in the model's own folder where
    its family comes in parts; else the public one of its family and sizes."""
    path = _own_codec(family_of(model), model_name) if name == AUTO else None
    if path is None:
        name = _public_codec(model, model_name) if name == AUTO else name
        path = resolve(name, VAE_FOLDERS, "demo_vae.safetensors")
    else:
        name = f"{path.parent.name}/{path.name}"
    checkpoint = read_checkpoint(path)
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
    return HostVAE(name, _patcher(codec, device, offload))


def _own_codec(family: Family, model_name: str) -> Path | None:
    """The codec's folder of a family in parts, beside or in what was chosen: the whole folder, the transformer's, or a
    file in that."""
    if family.parts is None:
        return None
    path = resolve(model_name, MODEL_FOLDERS)
    folders = [folder / family.parts[1] for folder in (path, path.parent, path.parent.parent)]
    return next((folder for folder in folders if folder.is_dir()), None)


def _public_codec(model, model_name: str) -> str:
    """Listed name of the VAE a model belongs with. Raises CheckpointMismatch saying which to download."""
    if model_name == BUNDLED:
        return BUNDLED
    family = family_of(model)
    listed: dict[str, str] = {}
    for name in sorted({name for key in VAE_FOLDERS for name in _files(key)}):
        listed.setdefault(_known_as(name), name)
    wanted = family.vae_names(model.config)
    found = next((listed[stem] for stem in wanted if stem in listed), None)
    if found is None:
        raise CheckpointMismatch(
            f"No VAE file of the {family.name} family, {model.config.code_dim} channels, was found in models/vae.",
            _where_to_get(family, wanted),
        )
    return found


def _known_as(name: str) -> str:
    """What a listed file is called: a hub's model.safetensors goes by its folder's name."""
    path = Path(name)
    return path.parent.name if path.stem == "model" and path.parent.name else path.stem


def _where_to_get(family: Family, wanted: tuple[str, ...]) -> str:
    if family.parts is not None:
        transformer, codec = family.parts
        return (
            f"Keep {family.title}'s folders {transformer} and {codec} side by side, as they were downloaded, or choose "
            f"the {codec}'s file by hand."
        )
    if wanted:
        return f"Download {wanted[-1]} into models/vae, or choose the file by hand."
    return "Choose the file by hand."


def _patcher(module, device, offload):
    core = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return core(module, load_device=device, offload_device=offload)
