"""A run on the host: memory, progress, previews, messages to the browser."""

from __future__ import annotations

import base64
import logging
import time

import comfy.model_management as management
import comfy.utils
import numpy as np
import torch
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image

from ...stepvar_core.errors import LatentMismatch
from ...stepvar_core.sampler import Result, finish, scale_steps, watched
from ...stepvar_core.trace import pack_mask

log = logging.getLogger(__name__)

PREVIEW_EDGE = 512  # pixels
PREVIEW_SHARE = 0.25  # previews may cost at most this share of the time the scales themselves take


def load_for_sampling(handle, peak_bytes: int) -> torch.device:
    """Makes room for a run that takes peak_bytes, weights included; returns the device to compute on."""
    patchers = [handle.patcher] + ([handle.vae.patcher] if wants_previews() else [])
    management.load_models_gpu(patchers, memory_required=max(peak_bytes - handle.patcher.model_size(), 0))
    return handle.patcher.load_device


def wants_previews() -> bool:
    return args.preview_method != LatentPreviewMethod.NoPreviews


def run(handle, hidden, job) -> tuple[Result, torch.Tensor | None]:
    """The scale loop with progress and previews; also the final picture (1, H, W, 3), None without previews."""
    progress = Progress(handle, hidden, job)
    return finish(job, watched(scale_steps(job), progress)), progress.last


def workflow_id(extra_pnginfo):
    """The id of the workflow a prompt came from; None where the client sent none, or something else in its place."""
    workflow = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, dict) else None
    return workflow.get("id") if isinstance(workflow, dict) else None


class Progress:
    """Progress bar, live preview and one message per scale for the node that is running.

    Called after every scale; the host raises out of it when the user cancelled. A preview is the picture so far, from
    the real decoder, and is left out while previews have taken more than their share of the time. `last` is the final
    one, (1, H, W, 3): the first picture of the batch as it came out; None without previews.
    """

    def __init__(self, handle, hidden, job):
        self.handle, self.node_id, self.total = handle, hidden.unique_id, len(job.passes)
        self.workflow = workflow_id(hidden.extra_pnginfo)  # other tabs may have nodes of the same id
        self.bar = comfy.utils.ProgressBar(self.total, node_id=self.node_id)
        self.started, self.spent = time.perf_counter(), 0.0
        self.last = None
        self.shown, self.grids = job.policy.shown(), [step.scale.grid for step in job.passes]

    def __call__(self, step) -> None:
        stop_if_cancelled()
        self.bar.update_absolute(step.index + 1, self.total, self._preview(step))
        send(
            "stepvar.scale",
            {
                "node": self.node_id,
                "workflow": self.workflow,
                "index": step.index,
                "count": self.total,
                "size": list(step.step.scale.grid),
                "tokens": step.step.scale.tokens,
                "tokens_run": step.tokens_run,
                "seconds": round(step.seconds, 4),
                "batch": len(step.kept),
                "kept": base64.b64encode(pack_mask(step.kept)).decode(),
                # what will run, so that the browser can lay out a scale's place before it ran
                "plan": [[*grid, plan.fewest] for grid, plan in zip(self.grids, step.plans)],
                **self.shown,
            },
        )

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
        except LatentMismatch:  # numbers that are none: the run's end says so, and what to do
            return None
        finally:
            self.spent += time.perf_counter() - began
        picture = Image.fromarray((pixels[0].numpy() * 255).round().astype(np.uint8))
        self.last = pixels if is_final else None
        return "JPEG", picture, args.preview_size if hasattr(args, "preview_size") else 512

    def _small(self, f_hat_1CHW: torch.Tensor) -> torch.Tensor:
        """The latent of a preview: a megapixel takes the decoder longer than a scale takes the model."""
        longest = max(f_hat_1CHW.shape[-2:]) * self.handle.vae.codec.config.stride
        return (
            f_hat_1CHW
            if longest <= PREVIEW_EDGE
            else F.interpolate(f_hat_1CHW, scale_factor=PREVIEW_EDGE / longest, mode="area")
        )


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


def stop_if_cancelled() -> None:
    """Raises the host's own exception once the user cancelled the prompt."""
    management.throw_exception_if_processing_interrupted()


def host_device() -> torch.device:
    """Where the host keeps what travels between nodes."""
    return management.intermediate_device()


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(management.intermediate_device())
