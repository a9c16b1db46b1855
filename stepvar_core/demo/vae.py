"""Trains the demo VQVAE: VAR's multi-scale quantiser (Tian et al. 2024, section 3.2) learnt with a straight-through
step."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, amp, nn

from ..codecs.multiscale import MultiScaleQuantizer
from ..codecs.vqvae import VQVAE, VQVAEConfig
from ..schedule import ScaleSchedule
from .data import Artwork, endless
from .sheet import save_sheet
from .stage import Stage, Worker, hold_then_linear, work_together

log = logging.getLogger(__name__)

# 8 groups: 32 groups on 32 channels are instance norm, which learns colour slowly
SMALL = VQVAEConfig(ch=32, ch_mult=(1, 2, 3), num_res_blocks=1, z_channels=16, vocab_size=512, norm_groups=8)
SMALL_SIZE = 64
# what ships: SMALL with one finer level around it; the codes, and so the transformer, are SMALL's
CONFIG = replace(SMALL, ch_mult=(1, *SMALL.ch_mult))
BATCH, DECODER_BATCH = 16, 4
COMMITMENT = 0.25
NEIGHBOURS = 5
FILL_AT, RESEED_EVERY, RESEED_UNTIL = 250, 40, 0.7


def nearest(codes_VC: Tensor, z_NC: Tensor) -> Tensor:
    """Ids (N,) of the nearest codes by squared L2."""
    return (codes_VC.square().sum(1) - 2 * z_NC @ codes_VC.T).argmin(1)


def near(codes_VC: Tensor, z_NC: Tensor) -> Tensor:
    """Ids (N, NEIGHBOURS + 1) of the nearest codes, nearest first."""
    return (codes_VC.square().sum(1) - 2 * z_NC @ codes_VC.T).topk(NEIGHBOURS + 1, dim=1, largest=False).indices


def slips(pictures: int, generator: torch.Generator, chance: float, share: float) -> Callable[[Tensor], Tensor]:
    """pick(near ids (N, K)) -> ids (N,): the nearest, but on a `share` of the pictures up to `chance` of them one of
    the others.

    So errs a transformer that is not sure; whoever reads its codes should have met such errors.
    """
    chance_B = chance * torch.rand(pictures, generator=generator) * (torch.rand(pictures, generator=generator) < share)

    def pick(near_NK: Tensor) -> Tensor:
        is_wrong_N = torch.rand(len(near_NK), generator=generator) < chance_B.repeat_interleave(
            len(near_NK) // pictures
        )
        rank_N = torch.randint(1, near_NK.shape[1], (len(near_NK),), generator=generator) * is_wrong_N
        return near_NK.gather(1, rank_N[:, None])[:, 0]

    return pick


def cascade(
    quantizer: MultiScaleQuantizer, f_BCHW: Tensor, schedule: ScaleSchedule, stop_B: Tensor | None = None, pick=None
):
    """Residual quantisation of f, differentiable in codes and phi: (f_hat, loss, ids per scale, residuals per scale).

    stop_B: per picture the number of scales to keep; later ones add nothing, which makes truncated decoding meaningful.
    pick: of slips(); None = always the nearest code.
    """
    f_hat, loss, ids, residuals = torch.zeros_like(f_BCHW), 0.0, [], []
    target = f_BCHW.detach()
    for step in schedule.passes:
        rest = target - f_hat.detach()
        z = (
            rest
            if step.scale == schedule.final
            else F.interpolate(rest, size=(step.scale.h, step.scale.w), mode="area")
        )
        z_NC = z.permute(0, 2, 3, 1).flatten(0, 2)
        residuals.append(z_NC)
        codes_VC = quantizer.embedding.weight.detach()
        ids.append((nearest(codes_VC, z_NC) if pick is None else pick(near(codes_VC, z_NC))).view(len(z), -1))
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
        self.hits_V.mul_(0.98).add_(
            torch.bincount(torch.cat([i.flatten() for i in ids]), minlength=len(self.hits_V)), alpha=0.02
        )

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


class VAEWorker(Worker):
    """Picture and quantiser loss on its own pictures; leaves the codes and residuals it met in `ids` and
    `residuals`."""

    def __init__(self, stage: Stage, artwork: Artwork, seed: int):
        super().__init__(stage)
        self.copy.quantize.float()  # nearest-code decisions are made in float32 here and in use
        self.schedule, self.generator = ScaleSchedule.square(SMALL.patch_nums), torch.Generator().manual_seed(seed)
        self.pictures = endless(artwork, BATCH // 2, seed, size=SMALL_SIZE)

    def gradients(self):
        self.refresh()
        vae, x = self.copy, next(self.pictures)[0]
        f = vae.quant_conv(vae.encoder(x.bfloat16())).float()
        stop = torch.randint(len(self.schedule) // 2, len(self.schedule), (len(x),), generator=self.generator)
        stop = torch.where(torch.rand(len(x), generator=self.generator) < 0.15, stop, len(self.schedule))
        f_hat, vq_loss, self.ids, self.residuals = cascade(vae.quantize, f, self.schedule, stop)
        y = vae.decoder(vae.post_quant_conv((f + (f_hat - f).detach()).bfloat16())).float()
        loss = picture_loss(y, x) + vq_loss
        return (
            self.gradients_of(loss),
            loss.detach(),
            {"psnr": psnr(y.detach(), x), "vq": float(vq_loss.detach()), "latent_std": float(f.detach().std())},
        )


def train(work: Path, artwork: Artwork, minutes: float, seed: int = 1) -> Stage:
    """The VAE stage, of SMALL; stage.ema holds the weights to use."""
    torch.manual_seed(seed)
    vae = VQVAE(SMALL)
    nn.init.normal_(vae.quantize.embedding.weight, std=0.2)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    stage = Stage("vae", work, vae, optimizer, minutes, clip=1.0, is_threaded=False, show=lambda s: _look(s, artwork))
    workers = [VAEWorker(stage, artwork, seed + 100 * i + stage.steps) for i in range(torch.get_num_threads())]
    codebook = Codebook(vae, optimizer)

    def step(stage: Stage):
        if stage.steps in (0, FILL_AT):
            codebook.fill(_residuals(vae, workers[0].pictures, workers[0].schedule))
        loss, numbers = work_together(pool, workers)
        codebook.count([ids for worker in workers for ids in worker.ids])
        dead = 0
        if stage.steps % RESEED_EVERY == RESEED_EVERY - 1 and stage.progress < RESEED_UNTIL:
            dead = codebook.reseed([r for worker in workers for r in worker.residuals])
        return loss, BATCH // 2 * len(workers), {**numbers, "dead": dead}

    with ThreadPoolExecutor(len(workers)) as pool:
        stage.run(step)
    return stage


@torch.no_grad()
def _residuals(vae: VQVAE, pictures, schedule: ScaleSchedule) -> list[Tensor]:
    batches = [cascade(vae.quantize, vae.quant_conv(vae.encoder(next(pictures)[0])), schedule)[3] for _ in range(16)]
    return [torch.cat(r) for r in zip(*batches)]


def restored(state: dict[str, Tensor], config: VQVAEConfig = CONFIG) -> VQVAE:
    """The VAE as it ships: float16 where the file is, so that the transformer learns the very codes users will see."""
    vae = VQVAE(config)
    vae.load_state_dict({k: v if k.startswith("quantize.") else v.half().float() for k, v in state.items()})
    return vae.requires_grad_(False).train(False)


@torch.inference_mode()
def reconstruct(vae: VQVAE, x: Tensor, scales: int | None = None) -> Tensor:
    schedule = ScaleSchedule.square(CONFIG.patch_nums)
    f = vae.quant_conv(vae.encoder(x))
    stop = None if scales is None else torch.full((len(x),), scales)
    return vae.decoder(vae.post_quant_conv(cascade(vae.quantize, f, schedule, stop)[0])).clamp(-1, 1)


def _save_pairs(path: Path, x_B3HW: Tensor, y_B3HW: Tensor, zoom: int = 1) -> None:
    """Two rows of eleven, each over its reconstruction."""
    save_sheet(
        path,
        torch.stack([x_B3HW.unflatten(0, (2, 11)), y_B3HW.unflatten(0, (2, 11))], 1).flatten(0, 2),
        columns=11,
        zoom=zoom,
    )


def _look(stage: Stage, artwork: Artwork) -> None:
    x = next(endless(artwork, 22, 99, size=SMALL_SIZE))[0]
    y = reconstruct(restored(stage.ema, SMALL), x)
    log.info("%s EMA psnr %.2f dB on %d fixed pictures", stage.name, psnr(y, x), len(x))
    _save_pairs(stage.work / "vae_sheet.png", x, y, zoom=2)


def grown(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of CONFIG that start out as SMALL's: the new finest levels halve and double pictures, the rest is copied.

    Encoder: the old first convolution of a halved picture reads 6 x 6 pixels, the new first two read 5 x 5; the
    missing row and column are taken from their neighbours. Decoder: doubles the picture by repeating pixels.
    """
    torch.manual_seed(9)
    new = VQVAE(CONFIG).state_dict()
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if rest.startswith(("down.", "up.")):
            ladder, level, tail = rest.split(".", 2)
            key = f"{part}.{ladder}.{int(level) + 1}.{tail}"
        if key in new and new[key].shape == value.shape:
            new[key] = value.clone()
    for key in ("encoder.down.0.block.0.conv2", "decoder.up.0.block.0.conv2", "decoder.up.0.block.1.conv2"):
        new[f"{key}.weight"].zero_(), new[f"{key}.bias"].zero_()  # a residual block that adds nothing
    up = new["decoder.up.1.upsample.conv.weight"].zero_()
    up[:, :, 1, 1] = torch.eye(len(up))
    new["decoder.up.1.upsample.conv.bias"].zero_()

    # channel 9 c + 3 y + x of the first convolution: colour c moved by (y - 1, x - 1)
    new["encoder.conv_in.weight"][:27] = torch.eye(27).view(27, 3, 3, 3)
    new["encoder.conv_in.bias"].zero_()
    old = state["encoder.conv_in.weight"]
    down = new["encoder.down.0.downsample.conv.weight"].zero_().view(len(old), -1, 3, 3)
    moves = [
        [(0, 0), (0, 0)],
        [(0, 1), (1, 1)],
        [(2, 1), (2, 2)],
    ]  # (tap of the second, of the first) for each half of an old tap
    for y in range(3):
        for x in range(3):
            for y2, y1 in moves[y]:
                for x2, x1 in moves[x]:
                    for c in range(3):
                        down[:, 9 * c + 3 * y1 + x1, y2, x2] += old[:, c, y, x] / 4
    new["encoder.down.0.downsample.conv.bias"] = state["encoder.conv_in.bias"].clone()
    return new


class DecoderWorker(Worker):
    """Picture loss of the decoder alone, on its own pictures; `small` reads them at half size."""

    def __init__(self, stage: Stage, artwork: Artwork, small: VQVAE, seed: int):
        super().__init__(stage)
        self.small, self.schedule, self.generator = (
            small,
            ScaleSchedule.square(CONFIG.patch_nums),
            torch.Generator().manual_seed(seed),
        )
        # mostly the poses that the transformer draws, which are half as varied as those the VAE has learnt
        self.pictures = itertools.cycle(
            [endless(artwork, DECODER_BATCH, seed + i, variety) for i, variety in enumerate((0.5, 0.5, 1.0))]
        )

    def gradients(self):
        self.refresh()
        x = next(next(self.pictures))[0]
        with torch.no_grad(), amp.autocast("cpu", torch.bfloat16):
            f = self.small.quant_conv(self.small.encoder(F.avg_pool2d(x, 2)))
        with torch.no_grad():
            f_hat = cascade(
                self.small.quantize, f.float(), self.schedule, pick=slips(len(x), self.generator, chance=0.5, share=0.5)
            )[0]
        y = self.copy["decoder"](self.copy["post_quant_conv"](f_hat.bfloat16())).float()
        loss = picture_loss(y, x)
        return self.gradients_of(loss), loss.detach(), {"psnr": psnr(y.detach(), x)}


def train_decoder(work: Path, artwork: Artwork, small_state: dict[str, Tensor], minutes: float, seed: int = 5) -> Stage:
    """Trains decoder and post_quant_conv of CONFIG for the codes of SMALL; quantiser and codes stay as they are."""
    torch.manual_seed(seed)
    small, tuned = restored(small_state, SMALL), VQVAE(CONFIG)
    tuned.load_state_dict(grown(small_state))
    module = nn.ModuleDict({"decoder": tuned.decoder, "post_quant_conv": tuned.post_quant_conv}).requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-4, betas=(0.9, 0.99), weight_decay=1e-4)
    stage = Stage(
        "decoder",
        work,
        module,
        optimizer,
        minutes,
        rate=hold_then_linear,
        ema_decay=0.998,
        is_threaded=False,
        show=lambda s: _look_decoder(s, artwork, small),
    )
    workers = [
        DecoderWorker(stage, artwork, small, seed + 100 * i + stage.steps) for i in range(torch.get_num_threads())
    ]

    def step(stage: Stage):
        loss, numbers = work_together(pool, workers)
        return loss, DECODER_BATCH * len(workers), numbers

    with ThreadPoolExecutor(len(workers)) as pool:
        stage.run(step)
    return stage


@torch.inference_mode()
def _look_decoder(stage: Stage, artwork: Artwork, small: VQVAE) -> None:
    x = next(endless(artwork, 22, 99, 0.5))[0]
    decoder = copy.deepcopy(stage.module)
    decoder.load_state_dict(stage.ema)
    f_hat = cascade(
        small.quantize, small.quant_conv(small.encoder(F.avg_pool2d(x, 2))), ScaleSchedule.square(CONFIG.patch_nums)
    )[0]
    y = decoder["decoder"](decoder["post_quant_conv"](f_hat)).clamp(-1, 1)
    log.info("decoder EMA psnr %.2f dB on %d fixed pictures", psnr(y, x), len(x))
    _save_pairs(stage.work / "decoder_sheet.png", x, y)
