"""Numbers for the model card: reconstruction, code usage, and whether a classifier recognises what was asked for."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codecs.vqvae import VQVAE
from ..families.var.model import VAR
from ..schedule import ScaleSchedule
from .data import FEW_PATTERNS, Artwork, endless
from .stage import Stage
from .transformer import VARIETY, generate, per_scale, tokens
from .vae import CONFIG, cascade, psnr, reconstruct

log = logging.getLogger(__name__)


PICTURE, CROP, OFFSETS = 128, 64, (16, 32, 48)  # the judge sees a quarter of a picture's area at full detail


class Classifier(nn.Module):
    """A small CNN on crops (B, 3, 64, 64) in -1..1. It judges the demo model and takes no part in training it."""

    def __init__(self, classes: int, ops=nn):
        super().__init__()
        widths = (3, 24, 48, 96, 160)
        self.body = nn.Sequential(
            *(
                layer
                for a, b in zip(widths, widths[1:])
                for layer in (ops.Conv2d(a, b, 3, stride=2, padding=1), ops.GroupNorm(8, b), nn.ReLU())
            )
        )
        self.head = ops.Linear(widths[-1] * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.body(x), 2).flatten(1))


def spoil(x_B3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Blurs a third of a batch and adds noise: the judge must look at shapes, not punish a soft decoder alone."""
    third = len(x_B3HW) // 3
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        x_B3HW = torch.cat(
            [F.avg_pool2d(x_B3HW[:third], 3, stride=1, padding=1, count_include_pad=False), x_B3HW[third:]]
        )
    return x_B3HW + 0.15 * torch.rand((), generator=generator) * torch.randn(x_B3HW.shape, generator=generator)


def train_classifier(work: Path, artwork: Artwork, minutes: float, seed: int = 7) -> Classifier:
    torch.manual_seed(seed)
    judge = Classifier(len(artwork.labels))
    stage = Stage(
        "classifier",
        work,
        judge,
        torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01),
        minutes,
        ema_decay=0.99,
    )
    pictures, generator = (
        endless(artwork, 32, seed + 1000 * stage.steps, VARIETY),
        torch.Generator().manual_seed(seed + stage.steps),
    )

    def step(stage: Stage):
        x, labels = next(pictures)
        crops = []
        for _ in range(2):  # drawing a picture costs more than reading two crops of it
            top, left = torch.randint(OFFSETS[0], OFFSETS[-1] + 1, (2,), generator=generator).tolist()
            crops.append(spoil(x[:, :, top : top + CROP, left : left + CROP], generator))
        labels = labels.repeat(2)
        logits = judge(torch.cat(crops))
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        return loss, len(x), {"crop_accuracy": float((logits.argmax(1) == labels).float().mean())}

    stage.run(step)
    judge.load_state_dict(stage.ema)
    return judge.requires_grad_(False).train(False)


def nine_crops(x_B3HW: Tensor) -> list[Tensor]:
    """Of pictures (B, 3, PICTURE, PICTURE)."""
    return [x_B3HW[:, :, top : top + CROP, left : left + CROP] for top in OFFSETS for left in OFFSETS]


def accuracy(judge: Classifier, x_B3HW: Tensor, labels_B: Tensor) -> dict[str, float]:
    """Shares recognised: of pictures by the mean vote of nine crops, and of single crops, the harder test."""
    votes_NBK = torch.stack([judge(crop).softmax(-1) for crop in nine_crops(x_B3HW)])
    return {
        "pictures": round(float((votes_NBK.mean(0).argmax(-1) == labels_B).float().mean()), 3),
        "crops": round(float((votes_NBK.argmax(-1) == labels_B).float().mean()), 3),
    }


@torch.inference_mode()
def measure_vae(vae: VQVAE, judge: Classifier, artwork: Artwork, batches: int = 6) -> dict:
    """On fixed pictures nobody trained on (another seed): PSNR, the grey alarm, code usage, recognition."""
    pictures, schedule = endless(artwork, len(artwork.labels), 12345, VARIETY), ScaleSchedule.square(CONFIG.patch_nums)
    xs, labels, ys, continuous, ids, truncated = [], [], [], [], [], []
    for i in range(batches):
        x, label = next(pictures)
        f = vae.quant_conv(vae.encoder(x))
        f_hat, _, found, _ = cascade(vae.quantize, f, schedule)
        xs.append(x), labels.append(label), ids.append(found)
        ys.append(vae.decoder(vae.post_quant_conv(f_hat)).clamp(-1, 1))
        if i == 0:
            continuous.append(vae.decoder(vae.post_quant_conv(f)).clamp(-1, 1))
            truncated.append([psnr(reconstruct(vae, x[:22], n), ys[-1][:22]) for n in range(1, len(schedule))])
    x, y, label = torch.cat(xs), torch.cat(ys), torch.cat(labels)
    hits = torch.bincount(torch.cat([torch.cat(i, 1).flatten() for i in ids]), minlength=CONFIG.vocab_size).float()
    share = hits / hits.sum()
    return {
        "measured_pictures": len(x),
        "psnr_db": round(psnr(y, x), 2),
        "psnr_unquantised_db": round(psnr(torch.cat(continuous), xs[0]), 2),
        "box_mean_error": round(float((F.avg_pool2d(x, 32) - F.avg_pool2d(y, 32)).abs().mean()), 4),
        "codes_used": int((hits > 0).sum()),
        "perplexity": round(float((-(share * share.clamp(min=1e-12).log()).sum()).exp()), 1),
        "codes_per_scale": [len(torch.cat([i[n].flatten() for i in ids]).unique()) for n in range(len(schedule))],
        "psnr_to_full_after_scale_db": [round(sum(t) / len(t), 1) for t in zip(*truncated)],
        "recognised_originals": accuracy(judge, x, label),
        "recognised_reconstructions": accuracy(judge, y, label),
    }


@torch.inference_mode()
def measure_var(
    model: VAR, vae: VQVAE, judge: Classifier, artwork: Artwork, settings: list[dict], per_class: int = 2
) -> dict:
    """Cross-entropy per scale in nats on fresh pictures, and the judge's accuracy on samples for each of `settings`."""
    schedule = ScaleSchedule.square(CONFIG.patch_nums)
    pictures, generator = (
        endless(artwork, len(artwork.labels), 54321, VARIETY, patterns=FEW_PATTERNS),
        torch.Generator().manual_seed(0),
    )
    entropies = []
    for _ in range(3):
        x, labels = next(pictures)
        inputs, ids = tokens(vae, x, schedule, generator, noisy=0.0)
        entropies.append(
            F.cross_entropy(model.teacher_forced(labels, inputs).flatten(0, 1), ids.flatten(), reduction="none").view(
                ids.shape
            )
        )
    entropy_BL = torch.cat(entropies)
    labels = torch.arange(len(artwork.labels)).repeat(per_class)
    samples = []
    for options in settings:
        found = accuracy(judge, generate(model, vae, labels, seed=11, **options), labels)
        log.info("samples %s: %s", options, found)
        samples.append({**options, "recognised": found})
    return {
        "cross_entropy_nats": round(float(entropy_BL.mean()), 3),
        "cross_entropy_per_scale": [round(float(v), 2) for v in per_scale(entropy_BL, schedule)],
        "samples_per_setting": len(labels),
        "samples": samples,
    }
