"""A VAE as the host's stock nodes call it."""

from __future__ import annotations

import logging

import comfy.model_management as management
import comfy.utils
import torch

from ...stepvar_core.codes import Codes
from ...stepvar_core.errors import LatentMismatch, ShapeMismatch
from .running import to_host

log = logging.getLogger(__name__)


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
        needed = samples.shape[-2] * samples.shape[-1] * stride**2 * self.codec.config.ch * 16
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
        _check_picture(pixels, stride)
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
            raise LatentMismatch(
                f"The latent is {tuple(samples.shape)}; the VAE {self.name} decodes {self.latent_channels} channels.",
                "Connect the latent of a VAR Sampler that ran the model this VAE belongs to.",
            )


def _check_picture(image, least: int) -> None:
    """Raises ShapeMismatch for what is no picture (B, H, W, 3 or more) of at least so many pixels along each edge."""
    if image.ndim != 4 or not len(image) or image.shape[-1] < 3 or min(image.shape[1:3]) < least:
        raise ShapeMismatch(
            f"The picture is {tuple(image.shape)} (pictures, height, width, channels).",
            f"Use a colour picture of at least {least} x {least} pixels.",
        )


def encode_codes(vae, image: torch.Tensor, schedule) -> tuple[Codes, torch.Tensor]:
    """Codes of pictures (B, H, W, 3), scaled and cropped to the schedule's size, and their f_hat (B, C, h, w)."""
    if not isinstance(vae, HostVAE):
        raise LatentMismatch(
            "This VAE belongs to another kind of model and has no scale-by-scale tokens.",
            "Connect the VAE of Load VAR Model.",
        )
    stride, final = vae.codec.config.token_stride, schedule.final
    _check_picture(image, 1)
    fitted = comfy.utils.common_upscale(
        image[..., :3].movedim(-1, 1), final.w * stride, final.h * stride, "lanczos", "center"
    ).movedim(1, -1)
    management.load_models_gpu([vae.patcher], memory_required=fitted.numel() * vae.codec.config.ch * 8)
    codes, f_hat = vae.codec.encode_all(fitted, schedule)
    return codes, to_host(f_hat)
