"""Trains the demo VAR on tokens of freshly drawn pictures, with Infinity's self-correction applied to code ids."""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, amp, nn

from ..codecs.vqvae import VQVAE
from ..door import sample
from ..families.var.model import VAR, ClassCondition, VARConfig
from ..schedule import ScaleSchedule
from ..tokens import DENSE
from .data import FEW_PATTERNS, Artwork, endless
from .sheet import save_sheet
from .stage import Stage, Worker, hold_then_linear, work_together
from .vae import CONFIG as VAE_CONFIG
from .vae import SMALL_SIZE, near, slips

log = logging.getLogger(__name__)

DEPTH, WIDTH, HEADS = 6, 192, 6
DROP_CLASS = 0.1
NOISY, NOISE = 0.6, 0.2
# scales of the prefix: (batch of a worker, share of the steps early, late). The first scales decide what the picture
# shows and cost
# a fraction of the whole; what ships predicts all ten, so whole pictures lead at the end
MENU = {7: (16, 0.3, 0.0), 8: (10, 0.35, 0.2), 10: (5, 0.35, 0.8)}
WHOLE_FROM = 0.4
VARIETY = 0.5  # of the poses the VAE has seen: a class needs fewer visits before it can be told at a glance


def config(classes: int) -> VARConfig:
    return VARConfig(
        patch_nums=VAE_CONFIG.patch_nums,
        depth=DEPTH,
        width=WIDTH,
        heads=HEADS,
        vocab_size=VAE_CONFIG.vocab_size,
        code_dim=VAE_CONFIG.z_channels,
        num_classes=classes,
        shared_aln=True,
    )


class PrefixAttention:
    """Block-causal attention in three parts, of which only the first needs a mask: half the work of one masked square.

    Plain products on purpose: PyTorch's fused attention is slower than them in its backward pass on the CPU.
    """

    def __init__(self, lengths: list[int]):
        self.bounds = [0, sum(lengths[:8]), *(sum(lengths[:i]) for i in range(9, len(lengths) + 1))]
        level_L = torch.repeat_interleave(torch.arange(len(lengths[:8])), torch.tensor(lengths[:8]))
        self.hidden_LL = level_L[:, None] < level_L[None, :]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        parts = []
        for start, stop in zip(self.bounds, self.bounds[1:]):
            logits = q[:, :, start:stop] @ k[:, :, :stop].transpose(-1, -2)
            if not start:
                logits = logits.masked_fill(self.hidden_LL, -1e4)
            parts.append(logits.softmax(-1) @ v[:, :, :stop])  # cosine attention: the scale is 1
        return torch.cat(parts, dim=2)


class TeacherForced(nn.Module):
    """Logits (B, L, V) of the first scales of a schedule, given their inputs (B, L - 1, code_dim)."""

    def __init__(self, model: VAR):
        super().__init__()
        self.model = model

    def forward(self, labels_B: Tensor, inputs_BLC: Tensor, schedule: ScaleSchedule) -> Tensor:
        model = self.model
        run = model.begin(ClassCondition(labels_B), None, labels_B.device)
        memory = PrefixAttention([s.tokens for s in schedule])
        start = run.condition_R1C + model.pos_start
        x = torch.cat([start, model.word_embed(inputs_BLC.to(model.dtype))], dim=1) + model.positions(schedule, start)
        return model.logits(run, model.blocks_forward(run, x, DENSE, memory), run.running)


def initialise(model: VAR, seed: int) -> None:
    """Upstream's truncated normals, but gates open at 0.3: a short run has no time to open them."""
    generator = torch.Generator().manual_seed(seed)
    std = math.sqrt(1 / model.config.width / 3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif "scale_mul" not in name:
                nn.init.trunc_normal_(p, std=std, a=-3 * std, b=3 * std, generator=generator)
        model.head.weight.mul_(0.02)
        model.class_emb.weight.mul_(6)  # it reaches the blocks through a SiLU that halves small numbers
        for block in model.blocks:
            for residual in (block.attn.proj, block.ffn.fc2):
                residual.weight.div_(math.sqrt(2 * model.config.depth))
            block.ada_gss[:, :, :2] = 0.3


def tokens(vae: VQVAE, x_B3HW: Tensor, schedule: ScaleSchedule, generator: torch.Generator, noisy: float = NOISY):
    """(inputs (B, L - 1, C), ids (B, L)) of pictures.

    On a `noisy` share of the pictures codes are replaced by near ones inside the cascade: later residuals, inputs and
    targets see the error and learn to repair it (Infinity's self-correction, there on bits).
    """
    with amp.autocast("cpu", torch.bfloat16):
        f = vae.quant_conv(vae.encoder(x_B3HW))
    f, quantizer = f.float(), vae.quantize
    full = ScaleSchedule.square(VAE_CONFIG.patch_nums)
    codes_VC = quantizer.embedding.weight
    pick = slips(len(f), generator, NOISE, noisy)
    f_hat, inputs, ids = torch.zeros_like(f), [], []
    for step in full.passes[: len(schedule)]:
        side = (step.scale.h, step.scale.w)
        z = F.interpolate(f - f_hat, size=side, mode="area") if step.scale != full.final else f - f_hat
        near_NK = near(codes_VC, rearrange(z, "b c h w -> (b h w) c"))
        ids.append(near_NK[:, 0].view(len(f), -1))
        used = pick(near_NK).view(len(f), -1)
        f_hat = f_hat + quantizer.contribution(quantizer.lookup(used, step.scale), step, full)
        if step.index + 1 < len(schedule):
            following = schedule.scales[step.index + 1]
            inputs.append(
                rearrange(F.interpolate(f_hat, size=(following.h, following.w), mode="area"), "b c h w -> b (h w) c")
            )
    return torch.cat(inputs, 1), torch.cat(ids, 1)


def per_scale(values_BL: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
    return [part.mean() for part in values_BL.split([s.tokens for s in schedule], dim=1)]


def schedule_of(scales: int) -> ScaleSchedule:
    return ScaleSchedule.square(VAE_CONFIG.patch_nums[:scales])


class PrefixWorker(Worker):
    """Teacher-forced cross-entropy on its own pictures."""

    def __init__(self, stage: Stage, artwork: Artwork, vae: VQVAE, seed: int):
        super().__init__(stage)
        self.vae, self.classes = vae, len(artwork.labels)
        self.streams = {
            n: endless(artwork, batch, seed + n, VARIETY, SMALL_SIZE, FEW_PATTERNS) for n, (batch, _, _) in MENU.items()
        }
        self.generator = torch.Generator().manual_seed(seed)

    def gradients(self, scales: int):
        self.refresh()
        schedule = schedule_of(scales)
        x, labels = next(self.streams[scales])
        with torch.no_grad():
            inputs, ids = tokens(self.vae, x, schedule, self.generator)
        labels = torch.where(torch.rand(len(labels), generator=self.generator) < DROP_CLASS, self.classes, labels)
        logits = self.copy(labels, inputs, schedule)
        entropy_BL = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
        # per token 1 / edge: half of all tokens are in the last two scales, but the first ones decide what is shown
        weight_L = torch.cat([torch.full((s.tokens,), s.h**-0.5) for s in schedule])
        loss = (entropy_BL * weight_L).sum(1).mean() / weight_L.sum()
        parts = per_scale(entropy_BL.detach(), schedule)
        return (
            self.gradients_of(loss),
            loss.detach(),
            {f"s{n}": float(parts[n - 1]) for n in (1, 3, 5, 7, 8, 10) if n <= scales},
        )


def train(work: Path, artwork: Artwork, vae: VQVAE, minutes: float, seed: int = 2) -> Stage:
    """The VAR stage; weights(stage) are the ones to use."""
    torch.manual_seed(seed)
    classes = len(artwork.labels)
    teacher = TeacherForced(VAR(config(classes)))
    initialise(teacher.model, seed)
    undecayed = {"bias", "ada_gss", "pos_start", "pos_1LC", "scale_mul_1H11"}
    groups = {False: [], True: []}
    for name, p in teacher.named_parameters():
        groups[any(u in name for u in undecayed) or "emb" in name].append(p)
    optimizer = torch.optim.AdamW(
        [{"params": groups[False], "weight_decay": 0.03}, {"params": groups[True], "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.95),
    )
    stage = Stage(
        "var",
        work,
        teacher,
        optimizer,
        minutes,
        rate=hold_then_linear,
        clip=2.0,
        ema_decay=0.997,
        is_threaded=False,
        show=lambda s: _look(s, artwork, vae),
    )
    workers = [PrefixWorker(stage, artwork, vae, seed + 100 * i + stage.steps) for i in range(torch.get_num_threads())]
    generator = torch.Generator().manual_seed(seed + stage.steps)

    def step(stage: Stage):
        late = stage.progress > WHOLE_FROM
        share = torch.tensor([menu[2 if late else 1] for menu in MENU.values()])
        scales = list(MENU)[int(torch.multinomial(share, 1, generator=generator))]
        loss, numbers = work_together(pool, workers, scales)
        return loss, MENU[scales][0] * len(workers), numbers

    with ThreadPoolExecutor(len(workers)) as pool:
        stage.run(step)
    return stage


def weights(stage: Stage) -> dict[str, Tensor]:
    return {k.removeprefix("model."): v for k, v in stage.ema.items()}


def restored(state: dict[str, Tensor], classes: int) -> VAR:
    model = VAR(config(classes))
    model.load_state_dict(state)
    return model.requires_grad_(False).train(False)


def generate(model: VAR, vae: VQVAE, labels, **options) -> Tensor:
    """Pictures (B, 3, H, W) in -1..1 through the package's own sampler; options as in stepvar_core.sample."""
    result = sample(model, vae, model.class_condition(labels), schedule=model.schedule(), **options)
    return rearrange(vae.decode(result.latent), "b h w c -> b c h w") * 2 - 1


def _look(stage: Stage, artwork: Artwork, vae: VQVAE) -> None:
    model = restored(weights(stage), len(artwork.labels))
    x = generate(
        model, vae, list(range(0, len(artwork.labels), 2)) * 2, cfg=2.0, top_k=50, top_p=0.9, temperature=0.9, seed=4
    )
    save_sheet(stage.work / "var_sheet.png", x, columns=11, zoom=2)
