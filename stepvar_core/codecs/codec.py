"""Codecs, pictures to feature maps and back, and the first of them: VAR's VQVAE (layout of FoundationVision/VAR's
vae_ch160v4096z32, MIT).

A convolutional autoencoder in the line of VQGAN (Esser et al. 2021): residual blocks, one-head attention at the lowest
level and in the middle, stride-2 downsampling, nearest upsampling.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ..codes import Codes
from ..errors import CheckpointMismatch, LatentMismatch, ShapeMismatch
from ..schedule import ScaleSchedule

NO_NUMBERS = "What this VAE made is not finite numbers: its weights are damaged, or overflow in half precision."
GET_AGAIN = "Run the VAE in bf16 or fp32 (ComfyUI's --fp32-vae), or download its file again."


def is_finite(x: Tensor) -> bool:
    """Whether all values are finite numbers, by their sum: no second map of a picture's size."""
    return bool(x.sum(dtype=torch.float32).isfinite())


class Codec(nn.Module):
    """What every codec offers: pictures to feature maps and codes, and back.

    A subclass makes `encoder` and `decoder` as its config says, `quantize`, and where there is more around them than
    calling them, `analyse` and `synthesise`.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.run_on: tuple[torch.device, torch.dtype] | None = (
            None  # where a host streams the weights to; None = where they are
        )

    def analyse(self, x_B3HW: Tensor) -> Tensor:
        return self.encoder(x_B3HW)

    def synthesise(self, f_hat_BCHW: Tensor) -> Tensor:
        return self.decoder(f_hat_BCHW)

    def quantizer_on(self, device):
        """The quantiser, in float32 on `device`, for one run to own."""
        raise NotImplementedError

    def own_schedule(self) -> ScaleSchedule:
        """The schedule pictures are encoded to when nobody says."""
        raise NotImplementedError

    def place(self, device, dtype: torch.dtype):
        """Moves and casts the weights; the quantiser stays float32, its nearest-code decisions would flip."""
        for name, child in self.named_children():
            child.to(device=device, dtype=torch.float32 if name == "quantize" else dtype)
        return self

    def input_place(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype the convolutions expect their input in."""
        if self.run_on is not None:
            return self.run_on
        parts = [getattr(self, name) for name in ("decoder", "encoder", "quantize") if hasattr(self, name)]
        weight = next(p for part in parts for p in part.parameters())
        return weight.device, weight.dtype

    def _placed(self, x_BCHW: Tensor) -> Tensor:
        """A map as the convolutions expect it."""
        # never channels_last: torch's group norm for it on the CPU adds up a whole map in one float32 chain, off by
        # 1.6e-3 at 1024 pixels where this layout's is off by 7e-7, and it saves no more than 6 % of the decoder's time
        return x_BCHW.to(*self.input_place()).contiguous()

    def features(self, x_B3HW: Tensor) -> Tensor:
        """Feature map f (B, C, H/stride, W/stride), float32, of pictures in [-1, 1]."""
        if not self.config.has_encoder:
            raise CheckpointMismatch(
                "This VAE file holds no encoder.", "Load a full VAE file to turn pictures into codes."
            )
        if not is_finite(x_B3HW):
            raise ShapeMismatch("The picture holds values that are not finite numbers.", "Use another picture.")
        f_BCHW = self.analyse(self._placed(x_B3HW)).float()
        if not is_finite(f_BCHW):
            raise CheckpointMismatch(NO_NUMBERS, GET_AGAIN)
        return f_BCHW

    def pixels(self, f_hat_BCHW: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), unclamped, about [-1, 1], in the decoder's dtype."""
        if not self.config.has_decoder:
            raise CheckpointMismatch(
                "This VAE file holds no decoder.", "Load a full VAE file to turn latents into pictures."
            )
        if f_hat_BCHW.ndim != 4 or f_hat_BCHW.shape[1] != self.config.z_channels:
            raise LatentMismatch(
                f"The latent is {tuple(f_hat_BCHW.shape)}; this VAE decodes (B, {self.config.z_channels}, H, W).",
                "Connect a VAR Sampler's latent, made with the model this VAE belongs to.",
            )
        if not is_finite(f_hat_BCHW):
            raise LatentMismatch(
                "The latent holds values that are not finite numbers.", "Connect a VAR Sampler's latent as it is."
            )
        x_B3HW = self.synthesise(self._placed(f_hat_BCHW))
        if not is_finite(x_B3HW):
            raise CheckpointMismatch(NO_NUMBERS, GET_AGAIN)
        return x_B3HW

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) float32 in 0..1, RGB, of f_hat (B, C, h, w).

        Raises LatentMismatch for another channel count, CheckpointMismatch when the file holds no decoder.
        """
        x = self.pixels(latent).float().clamp_(-1, 1).add_(1).mul_(0.5)
        return rearrange(x, "b c h w -> b h w c").contiguous()

    @torch.inference_mode()
    def encode(self, image: Tensor, schedule: ScaleSchedule | None = None, seed: int = 0) -> list[Tensor]:
        """Codes of pictures (B, H, W, 3) in 0..1, one tensor per pass of `schedule` (default: the file's own).

        seed is part of the interface and unused: these quantisers draw nothing. Raises ShapeMismatch unless the picture
        is the schedule's size in pixels.
        """
        return list(self.encode_all(image, schedule)[0])

    @torch.inference_mode()
    def encode_all(self, image: Tensor, schedule: ScaleSchedule | None = None) -> tuple[Codes, Tensor]:
        """encode's codes with what the picture holds beside them, and f_hat of both."""
        schedule = schedule or self.own_schedule()
        expected = (schedule.final.h * self.config.token_stride, schedule.final.w * self.config.token_stride, 3)
        if image.ndim != 4 or tuple(image.shape[1:]) != expected:
            raise ShapeMismatch(
                f"The picture is {tuple(image.shape)}; this schedule needs (B, {expected[0]}, {expected[1]}, 3).",
                f"Scale and crop it to {expected[1]}x{expected[0]} pixels.",
            )
        f_BCHW = self.features(rearrange(image, "b h w c -> b c h w") * 2 - 1)
        quantizer = self.quantizer_on(f_BCHW.device)
        codes = quantizer.encode(f_BCHW, schedule)
        soft = quantizer.soft_features(f_BCHW, codes, schedule)
        f_hat = quantizer.decode_codes(codes, schedule) if soft[-1] is None else f_BCHW.float()
        return Codes(codes, soft), f_hat
