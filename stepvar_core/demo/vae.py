"""Trains the demo VQVAE: VAR's multi-scale quantiser (Tian et al. 2024, section 3.2) learnt with a straight-through step."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, amp, nn

from ..codec import VQVAE, VQVAEConfig
from ..quantizer import MultiScaleQuantizer
from ..schedule import ScaleSchedule
from .data import Artwork, endless
from .sheet import save_sheet
from .stage import Stage, Worker, work_together

log = logging.getLogger(__name__)

# 8 groups: 32 groups on 32 channels are instance norm, which learns colour slowly
CONFIG = VQVAEConfig(ch=32, ch_mult=(1, 2, 3), num_res_blocks=1, z_channels=16, vocab_size=512, norm_groups=8)
BATCH = 16
COMMITMENT = 0.25
FILL_AT, RESEED_EVERY, RESEED_UNTIL = 250, 40, 0.7


def nearest(codes_VC: Tensor, z_NC: Tensor) -> Tensor:
    """Ids (N,) of the nearest codes by squared L2."""
    return (codes_VC.square().sum(1) - 2 * z_NC @ codes_VC.T).argmin(1)


def cascade(quantizer: MultiScaleQuantizer, f_BCHW: Tensor, schedule: ScaleSchedule, stop_B: Tensor | None = None):
    """Residual quantisation of f, differentiable in codes and phi: (f_hat, loss, ids per scale, residuals per scale).

    stop_B: per picture the number of scales to keep; later ones add nothing, which makes truncated decoding meaningful.
    """
    f_hat, loss, ids, residuals = torch.zeros_like(f_BCHW), 0.0, [], []
    target = f_BCHW.detach()
    for step in schedule.passes:
        rest = target - f_hat.detach()
        z = rest if step.scale == schedule.final else F.interpolate(rest, size=(step.scale.h, step.scale.w), mode="area")
        z_NC = z.permute(0, 2, 3, 1).flatten(0, 2)
        residuals.append(z_NC)
        ids.append(nearest(quantizer.embedding.weight.detach(), z_NC).view(len(z), -1))
        h_BCHW = quantizer.contribution(quantizer.lookup(ids[-1], step.scale), step, schedule)
        if stop_B is not None:
            h_BCHW = h_BCHW * (step.scale_index < stop_B)[:, None, None, None]
        f_hat = f_hat + h_BCHW
        loss = loss + COMMITMENT * F.mse_loss(f_BCHW, f_hat.detach()) + F.mse_loss(f_hat, target)
    return f_hat, loss / len(schedule), ids, residuals


def differences(x: Tensor, y: Tensor) -> Tensor:
    """L1 of the horizontal and vertical gradients at full, half and quarter size: sharper than pixels alone."""
    total = 0.0
    for _ in range(3):
        total = total + sum((x.diff(dim=d) - y.diff(dim=d)).abs().mean() for d in (2, 3))
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return total / 6


def picture_loss(x: Tensor, y: Tensor) -> Tensor:
    """L1 + L2 + gradients + box means; the last ones push colour, which is learnt late."""
    boxes = sum((F.avg_pool2d(x, n) - F.avg_pool2d(y, n)).abs().mean() for n in (8, 32)) / 2
    return F.l1_loss(x, y) + 0.5 * F.mse_loss(x, y) + differences(x, y) + 0.5 * boxes


def psnr(x: Tensor, y: Tensor) -> float:
    """dB of pictures in -1..1."""
    return float(10 * torch.log10(4 / F.mse_loss(x.clamp(-1, 1), y.clamp(-1, 1)).clamp(min=1e-9)))


def kmeans(z_NC: Tensor, count: int, generator: torch.Generator, rounds: int = 8) -> Tensor:
    centres = z_NC[torch.randperm(len(z_NC), generator=generator)[:count]].clone()
    for _ in range(rounds):
        ids = nearest(centres, z_NC)
        hits = torch.bincount(ids, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, ids, z_NC)
        alive = hits > 0
        centres[alive] = sums[alive] / hits[alive, None]
        centres[~alive] = z_NC[torch.randint(len(z_NC), (int((~alive).sum()),), generator=generator)]
    return centres


class Codebook:
    """Keeps the codes in use: filled by k-means once or twice, and dead codes moved onto residuals nobody is near."""

    def __init__(self, vae: VQVAE, optimizer: torch.optim.Optimizer):
        self.weight, self.optimizer = vae.quantize.embedding.weight, optimizer
        self.hits_V = torch.ones(len(self.weight))
        self.generator = torch.Generator().manual_seed(3)

    @torch.no_grad()
    def fill(self, residuals: list[Tensor]) -> None:
        # early scales have few tokens: without a cap of the late ones the coarse residuals get no codes
        pool = torch.cat([r[torch.randperm(len(r), generator=self.generator)[:8000]] for r in residuals])
        self.weight.copy_(kmeans(pool, len(self.weight), self.generator))
        self._forget(torch.ones(len(self.weight), dtype=torch.bool))

    @torch.no_grad()
    def count(self, ids: list[Tensor]) -> None:
        self.hits_V.mul_(0.98).add_(torch.bincount(torch.cat([i.flatten() for i in ids]), minlength=len(self.hits_V)), alpha=0.02)

    @torch.no_grad()
    def reseed(self, residuals: list[Tensor]) -> int:
        dead = self.hits_V < 0.5
        pool = torch.cat(residuals)
        if n := int(dead.sum()):
            self.weight[dead] = pool[torch.randint(len(pool), (n,), generator=self.generator)]
            self.hits_V[dead] = 1
            self._forget(dead)
        return n

    def _forget(self, rows: Tensor) -> None:
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in self.optimizer.state.get(self.weight, {}):
                self.optimizer.state[self.weight][moment][rows] = 0


def train(work: Path, artwork: Artwork, minutes: float, seed: int = 1) -> Stage:
    """The VAE stage; stage.ema holds the weights to use."""
    torch.manual_seed(seed)
    vae = VQVAE(CONFIG).to(memory_format=torch.channels_last)
    nn.init.normal_(vae.quantize.embedding.weight, std=0.2)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    stage = Stage("vae", work, vae, optimizer, minutes, clip=1.0, after_save=lambda s: _look(s, artwork))
    schedule, codebook = ScaleSchedule.square(CONFIG.patch_nums), Codebook(vae, optimizer)
    pictures = endless(artwork, BATCH, seed + 1000 * stage.steps)
    generator = torch.Generator().manual_seed(seed + stage.steps)

    def step(stage: Stage):
        if stage.steps in (0, FILL_AT):
            codebook.fill(_residuals(vae, pictures, schedule))
        x = next(pictures)[0].contiguous(memory_format=torch.channels_last)
        with amp.autocast("cpu", torch.bfloat16):
            f = vae.quant_conv(vae.encoder(x))
        f = f.float()  # nearest-code decisions are made in float32 here and in use
        stop = torch.randint(len(schedule) // 2, len(schedule), (len(x),), generator=generator)
        stop = torch.where(torch.rand(len(x), generator=generator) < 0.15, stop, len(schedule))
        f_hat, vq_loss, ids, residuals = cascade(vae.quantize, f, schedule, stop)
        with amp.autocast("cpu", torch.bfloat16):
            y = vae.decoder(vae.post_quant_conv(f + (f_hat - f).detach()))
        y = y.float()
        codebook.count(ids)
        dead = 0
        if stage.steps % RESEED_EVERY == RESEED_EVERY - 1 and stage.progress < RESEED_UNTIL:
            dead = codebook.reseed(residuals)
        loss = picture_loss(y, x) + vq_loss
        loss.backward()
        return loss, len(x), {"psnr": psnr(y.detach(), x), "vq": float(vq_loss.detach()), "latent_std": float(f.detach().std()),
                                                      "dead": dead}

    stage.run(step)
    return stage


@torch.no_grad()
def _residuals(vae: VQVAE, pictures, schedule: ScaleSchedule) -> list[Tensor]:
    batches = [cascade(vae.quantize, vae.quant_conv(vae.encoder(next(pictures)[0])), schedule)[3] for _ in range(8)]
    return [torch.cat(r) for r in zip(*batches)]


def restored(state: dict[str, Tensor]) -> VQVAE:
    """The VAE as it ships: float16 where the file is, so that the transformer learns the very codes users will see."""
    vae = VQVAE(CONFIG)
    vae.load_state_dict({k: v if k.startswith("quantize.") else v.half().float() for k, v in state.items()})
    return vae.to(memory_format=torch.channels_last).requires_grad_(False).train(False)


@torch.inference_mode()
def reconstruct(vae: VQVAE, x: Tensor, scales: int | None = None) -> Tensor:
    schedule = ScaleSchedule.square(CONFIG.patch_nums)
    f = vae.quant_conv(vae.encoder(x.contiguous(memory_format=torch.channels_last)))
    stop = None if scales is None else torch.full((len(x),), scales)
    return vae.decoder(vae.post_quant_conv(cascade(vae.quantize, f, schedule, stop)[0])).clamp(-1, 1)


def _look(stage: Stage, artwork: Artwork) -> None:
    x = next(endless(artwork, 22, 99))[0]
    y = reconstruct(restored(stage.ema), x)
    log.info("%s EMA psnr %.2f dB on %d fixed pictures", stage.name, psnr(y, x), len(x))
    save_sheet(stage.work / f"{stage.name}_sheet.png", torch.stack([x.view(2, 11, *x.shape[1:]), y.view(2, 11, *y.shape[1:])], 1).flatten(0, 2), columns=11)


class DecoderWorker(Worker):
    """Picture loss of the decoder alone, on its own pictures."""

    def __init__(self, stage: Stage, artwork: Artwork, vae: VQVAE, seed: int):
        super().__init__(stage)
        self.vae, self.schedule, self.pictures = vae, ScaleSchedule.square(CONFIG.patch_nums), endless(artwork, BATCH // 2, seed)

    def gradients(self):
        self.refresh()
        x = next(self.pictures)[0].contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), amp.autocast("cpu", torch.bfloat16):
            f = self.vae.quant_conv(self.vae.encoder(x))
        with torch.no_grad():
            f_hat = cascade(self.vae.quantize, f.float(), self.schedule)[0]
        y = self.copy["decoder"](self.copy["post_quant_conv"](f_hat.bfloat16())).float()
        loss = picture_loss(y, x)
        return self.gradients_of(loss), loss.detach(), {"psnr": psnr(y.detach(), x)}


def train_decoder(work: Path, artwork: Artwork, state: dict[str, Tensor], minutes: float, seed: int = 5) -> Stage:
    """Fine-tunes decoder and post_quant_conv alone: the codes, and so the transformer, stay as they are."""
    torch.manual_seed(seed)
    vae, tuned = restored(state), restored(state)
    module = nn.ModuleDict({"decoder": tuned.decoder, "post_quant_conv": tuned.post_quant_conv}).requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=8e-4, betas=(0.9, 0.99), weight_decay=1e-4)
    stage = Stage("decoder", work, module, optimizer, minutes, is_threaded=False)
    workers = [DecoderWorker(stage, artwork, vae, seed + 100 * i + stage.steps) for i in range(torch.get_num_threads())]

    def step(stage: Stage):
        loss, numbers = work_together(pool, workers)
        return loss, BATCH // 2 * len(workers), numbers

    with ThreadPoolExecutor(len(workers)) as pool:
        stage.run(step)
    return stage
