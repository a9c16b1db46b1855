"""Runs inside ComfyUI's source folder, started by test_memory.py: the pack under the host's own memory management.

python inside_comfyui.py <pack folder> <check>; prints one JSON object. The host's modules are real. What a small
machine cannot bring about is brought about through the host's own calls: weights that do not fit, a decode that runs
out of memory.
"""

import asyncio
import json
import logging
import sys
from dataclasses import replace

PACK, CHECK = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.model_management as management  # noqa: E402
import torch  # noqa: E402

import nodes as host_nodes  # noqa: E402


def load_pack():
    """The pack's modules, imported by the host's own loader."""
    assert asyncio.run(host_nodes.load_custom_node(PACK)), "the pack did not load"
    name = next(key for key in sys.modules if key.endswith(".nodes.host.loading"))
    package = name.removesuffix(".nodes.host.loading")
    return sys.modules[name], sys.modules[package + ".nodes.handles"], sys.modules[package + ".stepvar_core"]


def draw(loading, handle, sampler) -> torch.Tensor:
    network = handle.model
    job = sys.modules[sampler.__name__.replace(".sampler", ".door")].prepare(
        network,
        handle.vae.codec,
        network.class_condition([0, 1]),
        schedule=network.schedule(),
        seed=5,
        pruning=handle.policy,
        device=handle.patcher.load_device,
    )
    return torch.cat([c for c in sampler.finish(job, sampler.scale_steps(job)).codes], 1)


def partial_load(loading, handles, core) -> dict:
    """The same tokens with all, half and almost none of the weights loaded; the rest is cast in call by call."""
    sampler = sys.modules[core.__name__ + ".sampler"]
    found = {}
    for share in (1.0, 0.5, 0.02):
        patcher = loading.load_model(loading.BUNDLED, "fp16")
        handle = handles.ModelHandle("demo", patcher, loading.load_vae("auto", patcher.model, loading.BUNDLED))
        handle = replace(handle, policy=core.StepVAR((0.5, 0.5)))
        size = patcher.model_size()
        patcher.patch_model(device_to=patcher.load_device, lowvram_model_memory=0 if share == 1 else int(size * share))
        codes = draw(loading, handle, sampler)
        found[str(share)] = {"loaded": patcher.loaded_size() / size, "codes": codes.flatten().tolist()}
        patcher.detach()
    return found


def decode_out_of_memory(loading, handles, core) -> dict:
    """A batch of three does not fit; each picture alone does. A fault of another kind must not be taken for that."""
    vae = loading.load_vae("auto", loading.load_model(loading.BUNDLED, "auto").model, loading.BUNDLED)
    samples = torch.randn(3, vae.latent_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    whole, decode, rows = vae.decode(samples), vae.codec.decode, []

    def decode_one(latent):
        rows.append(len(latent))
        if len(latent) > 1:
            raise management.OOM_EXCEPTION("no memory for this many")
        return decode(latent)

    def broken(latent):
        raise RuntimeError("another fault")

    vae.codec.decode = decode_one
    single = vae.decode(samples)
    vae.codec.decode = broken
    try:
        vae.decode(samples)
        other = "was swallowed"
    except RuntimeError as error:
        other = str(error)
    return {"rows": rows, "difference": float((whole - single).abs().max()), "other": other}


logging.disable(logging.WARNING)
loading, handles, core = load_pack()
print(
    json.dumps(
        {"partial_load": partial_load, "decode_out_of_memory": decode_out_of_memory}[CHECK](loading, handles, core)
    )
)
