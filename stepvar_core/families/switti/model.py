"""Switti: text-to-image next-scale prediction over VAR's codes (Voronov et al. 2024, "Switti", CVPR 2025; layout of
yandex-research/switti, Apache-2.0).

Blocks are sandwiches of RMS norms around self-attention, cross-attention to the prompt and a gated MLP; the pooled
prompt modulates the first and the last of them. In the released models a scale sees itself alone, so nothing is
cached between scales; the AR models see all earlier scales, as VAR does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...errors import ConditionMismatch, OptionError, ScheduleMismatch
from ...guidance import PassSettings
from ...schedule import Pass, Scale, ScaleSchedule
from ..base import TEXT_TOKENS, Cost, Defaults, HalfBlocksModel
from ..family import NoOptions, check_switch, check_whole
from ..layers import HeadNorm, Modulation, RMSNorm, merge_heads, modulated_norm, on, padded, rotate, split_heads

CELL_PIXELS = 16  # pixels per token of the final scale, along each edge
TURN_SPAN = 128.0  # how far a grid's positions reach, whatever its size
CROP = (512.0, 512.0, 0.0, 0.0)  # height, width and corner of the crop every sampled picture pretends to be
EMPTY_PROMPT = "Connect CLIP Text Encode with an empty prompt (no words) as the negative."
PATCH_NUMS = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}


@dataclass(frozen=True)
class SwittiConfig:
    """Sizes of a Switti transformer; the defaults are the published 2.5B at 1024 pixels.

    is_causal: the AR models, which see earlier scales. text_dim: channels of both CLIPs' features side by side;
    pooled_dim: of the second one's end token.
    """

    patch_nums: tuple[int, ...] = PATCH_NUMS[1024]
    depth: int = 30
    width: int = 1920
    heads: int = 30
    hidden: int = 5120
    vocab_size: int = 4096
    code_dim: int = 32
    text_dim: int = 2048
    pooled_dim: int = 1280
    is_causal: bool = False
    rotary_base: float = 10000.0
    rotary_span: float = TURN_SPAN
    norm_eps: float = 1e-6
    # of the published example
    defaults: Defaults = field(default_factory=lambda: Defaults(cfg=6.0, top_k=400, top_p=0.95))

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.square(self.patch_nums)


@dataclass(frozen=True)
class SwittiOptions(NoOptions):
    """smooth: mix codes by Gumbel noise, on as in the published example, from the scale smooth_from on.
    guidance_off_from: the first scale that runs the prompt alone, without mixing; None = as published, 11 of 14 scales
    and 8 of 10. last_temperature: what logits are divided by from there on, beside the temperature."""

    smooth: bool = True
    smooth_from: int = 2
    guidance_off_from: int | None = None
    last_temperature: float = 0.1

    def __post_init__(self):
        check_switch("smooth", self.smooth)
        check_whole("smooth_from", self.smooth_from, 0)
        if self.guidance_off_from is not None:
            check_whole("guidance_off_from", self.guidance_off_from, 0)
        if not isinstance(self.last_temperature, (int, float)) or not 0 < self.last_temperature < math.inf:
            raise OptionError(f"last_temperature is {self.last_temperature!r}.", "Use a number above 0; 1 = none.")


@dataclass(frozen=True)
class PooledTextCondition:
    """Text features of every picture, (length, text_dim) each, real tokens only; and pooled_BC, one vector each."""

    texts: tuple[Tensor, ...]
    pooled_BC: Tensor

    @property
    def batch(self) -> int:
        return len(self.texts)

    def joined(self, other: PooledTextCondition | None) -> PooledTextCondition:
        if other is None:
            return self
        return PooledTextCondition(
            self.texts + other.texts, torch.cat([self.pooled_BC, other.pooled_BC.to(self.pooled_BC)])
        )


def late_from(schedule: ScaleSchedule) -> int:
    """The published first scale without guidance: 11 of 14, 8 of 10, and as far on in others."""
    return round(len(schedule) * 11 / 14)


# positions and crop --------------------------------------------------------------------------------


def rotary_table(scale: Scale, head_dim: int, base: float, span: float, device=None) -> Tensor:
    """cos and sin of every pair of channels, in turn, (1, L, head_dim) float32: the first half of the pairs turns by
    the column, the second by the row.

    A coordinate i of n is at i span / (n - 1): every scale reaches equally far, and its last cell is where every other
    scale's is.
    """
    frequencies = base ** (-torch.arange(0, head_dim, 4, device=device, dtype=torch.float32) / head_dim)

    def angles(n: int) -> Tensor:
        return torch.outer(torch.arange(n, device=device, dtype=torch.float32), frequencies * (span / max(n - 1, 1)))

    grid = (scale.h, scale.w, head_dim // 4)
    angle_LX = torch.cat([angles(scale.w)[None].expand(grid), angles(scale.h)[:, None].expand(grid)], -1).flatten(0, 1)
    return torch.stack([angle_LX.cos(), angle_LX.sin()], -1).flatten(1)[None]


class CropEmbedding(nn.Module):
    """Sines and cosines of four numbers under fixed random frequencies (Tancik et al. 2020)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width // 8))

    def forward(self, device) -> Tensor:
        """(width,) of the crop that sampled pictures have.

        Always float32, as in training: of angles near 3000 half precision keeps multiples of 16, so that upstream's
        bf16 pipeline reads unrelated numbers here.
        """
        turns = torch.tensor(CROP, device=device)[:, None] * self.weight.to(device, torch.float32) * 2 * math.pi
        return torch.cat([turns.sin(), turns.cos()], -1).flatten()


# parts, under the checkpoint's names ---------------------------------------------------------------


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x over the root of its mean square, float32."""
    x = x.float()
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def unit_norm(x: Tensor, eps: float) -> Tensor:
    """LayerNorm without weights over the full width, before heads are split: what Switti does to queries and keys."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


class SelfAttention(nn.Module):
    def __init__(self, config: SwittiConfig, ops):
        super().__init__()
        self.heads, self.eps = config.heads, config.norm_eps
        self.to_qkv = ops.Linear(config.width, 3 * config.width)
        self.proj = ops.Linear(config.width, config.width)

    def forward(self, x_RLC: Tensor, rotary_RLX: Tensor, layer: int, memory) -> Tensor:
        qkv_RL3C = self.to_qkv(x_RLC).unflatten(-1, (3, -1))
        qk_RL2HD = unit_norm(qkv_RL3C[:, :, :2], self.eps).unflatten(-1, (self.heads, -1)).float()
        v = split_heads(qkv_RL3C[:, :, 2], self.heads)
        q, k = rotate(qk_RL2HD, rotary_RLX).to(v.dtype).permute(2, 0, 3, 1, 4)
        return self.proj(merge_heads(memory.attend(layer, q, k, v)))


class CrossAttention(nn.Module):
    def __init__(self, config: SwittiConfig, ops):
        super().__init__()
        self.heads, self.eps = config.heads, config.norm_eps
        self.to_q = ops.Linear(config.width, config.width)
        self.to_kv = ops.Linear(config.text_dim, 2 * config.width)
        self.proj = ops.Linear(config.width, config.width)

    def keys_values(self, text_RTC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, heads, T, dim) of the prompts."""
        k, v = self.to_kv(text_RTC).chunk(2, dim=-1)
        return split_heads(unit_norm(k, self.eps), self.heads), split_heads(v, self.heads)

    def forward(self, x_RLC: Tensor, k: Tensor, v: Tensor, is_real: Tensor | None) -> Tensor:
        q = split_heads(unit_norm(self.to_q(x_RLC), self.eps), self.heads)
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=is_real)))


class FeedForward(nn.Module):
    def __init__(self, config: SwittiConfig, ops):
        super().__init__()
        self.up_proj = ops.Linear(config.width, config.hidden, bias=False)
        self.down_proj = ops.Linear(config.hidden, config.width, bias=False)
        self.gate_proj = ops.Linear(config.width, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@dataclass
class BlockInputs:
    """What one block reads besides the stream, constant for an image batch: one row per row of the run.

    gains before and gates behind attention and MLP hold their norms' weights: (rows, 1, C) float32. rotary_1LX: of
    the current pass.
    """

    layer: int
    gain1: Tensor
    shift1: Tensor
    gate1: Tensor
    gain2: Tensor
    shift2: Tensor
    gate2: Tensor
    text_k: Tensor
    text_v: Tensor
    is_real: Tensor | None
    rotary_1LX: Tensor | None = None

    def at(self, rows: slice, rotary_1LX: Tensor) -> BlockInputs:
        """Of the rows and the pass that run."""
        if rows == slice(0, len(self.text_k)):
            return replace(self, rotary_1LX=rotary_1LX)
        tensors: dict[str, Any] = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors | {"rotary_1LX": rotary_1LX})


class Block(nn.Module):
    def __init__(self, config: SwittiConfig, ops):
        super().__init__()
        width, self.eps = config.width, config.norm_eps
        self.crop_cond_scales = nn.Parameter(torch.zeros(1, width))
        self.attn = SelfAttention(config, ops)
        self.cross_attn = CrossAttention(config, ops)
        self.ffn = FeedForward(config, ops)
        for name in ("self_attention_norm", "cross_attention_norm", "ffn_norm"):
            for place in (1, 2):  # before and behind the sub-layer
                setattr(self, f"{name}{place}", RMSNorm(width, config.norm_eps))
        self.attention_y_norm = RMSNorm(config.text_dim, config.norm_eps)
        self.ada_lin = Modulation(width, 6, ops)

    def inputs(
        self, layer: int, pooled_RC: Tensor, crop_1C: Tensor, text_RTC: Tensor, is_real: Tensor | None, dtype
    ) -> BlockInputs:
        """pooled_RC: the pooled prompts, at the model's width. text_RTC: features, each over its root mean square."""
        cond_RC = pooled_RC + on(self.crop_cond_scales, pooled_RC) * crop_1C
        six = rearrange(self.ada_lin(cond_RC.to(dtype)).float(), "r (six c) -> six r 1 c", six=6)
        gate1, gate2, scale1, scale2, shift1, shift2 = six.unbind(0)
        before1, behind1, before2, behind2 = (
            on(norm.weight, pooled_RC)
            for norm in (self.self_attention_norm1, self.self_attention_norm2, self.ffn_norm1, self.ffn_norm2)
        )
        k, v = self.cross_attn.keys_values((text_RTC * on(self.attention_y_norm.weight, text_RTC)).to(dtype))
        return BlockInputs(
            layer=layer,
            gain1=before1 * (scale1 + 1),
            shift1=shift1,
            gate1=behind1 * gate1,
            gain2=before2 * (scale2 + 1),
            shift2=shift2,
            gate2=behind2 * gate2,
            text_k=k,
            text_v=v,
            is_real=is_real,
        )

    def forward(self, x_RLC: Tensor, given: BlockInputs, tokens, memory) -> Tensor:
        # the stream and norms are float32, the linears' inputs half: sums over 30 blocks outgrow bf16's 8 bits
        dtype = given.text_k.dtype

        def self_attention(x: Tensor) -> Tensor:
            x = torch.addcmul(given.shift1, unit_rms(x, self.eps), given.gain1).to(dtype)
            return unit_rms(self.attn(x, tokens.rows(given.rotary_1LX), given.layer, memory), self.eps) * given.gate1

        def cross_attention(x: Tensor) -> Tensor:
            x = self.cross_attention_norm1(x).to(dtype)
            return self.cross_attention_norm2(self.cross_attn(x, given.text_k, given.text_v, given.is_real).float())

        def mlp(x: Tensor) -> Tensor:
            x = torch.addcmul(given.shift2, unit_rms(x, self.eps), given.gain2).to(dtype)
            return unit_rms(self.ffn(x), self.eps) * given.gate2

        x_RLC = x_RLC + tokens.through(self_attention, x_RLC, site=(given.layer, "attn"))
        x_RLC = x_RLC + tokens.through(cross_attention, x_RLC, site=(given.layer, "cross"))
        return x_RLC + tokens.through(mlp, x_RLC, site=(given.layer, "ffn"))


# the model -----------------------------------------------------------------------------------------


@dataclass
class SwittiRun:
    """What is constant for one image batch, and where the run is: rows, guidance and rotary table of the current
    pass."""

    pooled_R1C: Tensor
    blocks: list[BlockInputs]
    head: tuple[Tensor, Tensor]
    running: slice
    guidance: float = 0.0
    rotary: list[Tensor] | None = None  # of every scale, made with the first one
    table: Tensor | None = None  # the rotary rows of the tokens that run


class Switti(HalfBlocksModel):
    """The Switti transformer under upstream's key names. See NextScaleModel for the interface."""

    family = "switti"
    neutral_cfg = 0.0
    Options = SwittiOptions

    def __init__(self, config: SwittiConfig, ops=nn):
        super().__init__(config)
        c, width = config, config.width
        self.pos_start = nn.Parameter(torch.zeros(1, c.patch_nums[0] ** 2, width))
        self.word_embed = ops.Linear(c.code_dim, width)
        self.text_pooler = ops.Linear(c.pooled_dim, width)
        self.lvl_embed = ops.Embedding(len(c.patch_nums), width)
        self.blocks = nn.ModuleList(Block(config, ops) for _ in range(c.depth))
        self.crop_embed = CropEmbedding(width)
        self.crop_proj = ops.Linear(width, width)
        self.head_nm = HeadNorm(width, ops)
        self.head = ops.Linear(width, c.vocab_size)

    # condition, codes and schedule -----------------------------------------------------------

    def text_condition(
        self, features_BTC: Tensor, mask_BT: Tensor | None = None, pooled_BC: Tensor | None = None
    ) -> PooledTextCondition:
        """Condition of a batch of prompts: both CLIPs' last features behind their final norms, (B, T, C) side by side.

        mask_BT: True at real tokens, the others are dropped. pooled_BC: the second CLIP's end token, not projected.
        Raises ConditionMismatch for features of another encoder, without mask or pooled vector, or a prompt without
        tokens.
        """
        c = self.config
        if features_BTC.ndim != 3 or features_BTC.shape[-1] != c.text_dim or not len(features_BTC):
            raise ConditionMismatch(
                f"The text features are {tuple(features_BTC.shape)}; this model reads (B, T, {c.text_dim}).",
                "Encode the prompt with Switti's two CLIPs (Load VAR Text Encoder, type switti-clip).",
            )
        if mask_BT is None or pooled_BC is None:
            raise ConditionMismatch(
                "The prompt comes from an ordinary SDXL CLIP: its features are of another layer, its pooled vector is "
                "projected, and nothing says which tokens are real.",
                "Load the same two CLIP files with Load VAR Text Encoder, type switti-clip, and encode with that.",
            )
        if mask_BT.shape != features_BTC.shape[:2] or pooled_BC.shape != (len(features_BTC), c.pooled_dim):
            raise ConditionMismatch(
                f"The text mask is {tuple(mask_BT.shape)} and the pooled text {tuple(pooled_BC.shape)}; the features "
                f"are {tuple(features_BTC.shape)}.",
                f"Give one value per token and {c.pooled_dim} numbers per prompt; prompts that were joined later "
                "(Conditioning Concat) have no mask: write them as one.",
            )
        texts = tuple(
            features[mask.to(features.device, torch.bool)] for features, mask in zip(features_BTC.detach(), mask_BT)
        )
        if not all(len(text) for text in texts):
            raise ConditionMismatch("A prompt has no tokens.", "An empty prompt still has its start and end tokens.")
        return PooledTextCondition(texts, pooled_BC.detach().float())

    def unconditional(self, condition: PooledTextCondition):
        raise ConditionMismatch(
            'Switti\'s negative is the encoding of the empty prompt "", which the model itself cannot make.',
            EMPTY_PROMPT,
        )

    @property
    def code_format(self) -> str:
        return f"{self.config.vocab_size} codes of {self.config.code_dim} channels"

    def schedule(self, aspect_ratio: float = 1.0, size=None, seconds=None, variant=None) -> ScaleSchedule:
        """The one schedule the weights know. Raises ScheduleMismatch for anything else."""
        edge = self.config.patch_nums[-1] * CELL_PIXELS
        if not abs(aspect_ratio - 1) <= 1e-6:  # NaN too
            raise ScheduleMismatch(
                f"Aspect ratio {aspect_ratio} is not one Switti was trained for.",
                "Switti makes square pictures: use 1.",
            )
        if seconds or variant:
            raise ScheduleMismatch(
                "Switti makes still pictures and has no variants.", "Leave seconds and variant empty."
            )
        if size is not None and str(size) != str(edge):
            raise ScheduleMismatch(
                f"Size {size!r} is not one this model knows.", f"Use {edge}, or leave size empty (auto)."
            )
        return self.config.schedule()

    def check_schedule(self, schedule: ScaleSchedule) -> None:
        if len(schedule) > len(self.config.patch_nums) or any(s.t > 1 or s.repeats > 1 for s in schedule):
            raise ScheduleMismatch(
                f"The schedule {schedule.describe()} is not one of still pictures in up to "
                f"{len(self.config.patch_nums)} scales.",
                f"Use the model's own schedule, {self.config.schedule().describe()}.",
            )

    def sees(self, step: Pass, schedule: ScaleSchedule) -> Sequence[int]:
        return range(step.index) if self.config.is_causal else ()

    def guidance_weights(self, cfg: float, schedule: ScaleSchedule) -> list[float]:
        """Guidance per pass: t = cfg * s / (S - 1), logits = (1 + t) conditional - t unconditional (VAR's ramp), and
        none on the last scales."""
        return self._ramp(cfg, schedule, late_from(schedule))

    def _ramp(self, cfg: float, schedule: ScaleSchedule, off: int) -> list[float]:
        return [
            cfg * self.progress(step.scale_index, schedule) if step.scale_index < off else 0.0
            for step in schedule.passes
        ]

    def per_pass(self, schedule: ScaleSchedule, options: SwittiOptions, *, cfg=None, **said) -> PassSettings:
        """The late scales run the prompt alone, sharper and unmixed; where codes are mixed, nothing is filtered.

        A list of cfg says itself where guidance is off; the rest of the late scales follows guidance_off_from.
        """
        settings = super().per_pass(schedule, options, cfg=cfg, **said)
        off = options.guidance_off_from
        if off is None:
            off = late_from(schedule)
        elif not isinstance(cfg, Sequence):
            settings = replace(
                settings, weights=self._ramp(self.config.defaults.cfg if cfg is None else cfg, schedule, off)
            )
        is_late = [step.scale_index >= off for step in schedule.passes]
        smooth = [s and not late for s, late in zip(settings.smooth, is_late)]
        return replace(
            settings,
            smooth=smooth,
            temperature=[t * options.last_temperature if late else t for t, late in zip(settings.temperature, is_late)],
            top_k=[0 if s else k for s, k in zip(smooth, settings.top_k)],
            top_p=[0.0 if s else p for s, p in zip(smooth, settings.top_p)],
        )

    # one image batch -------------------------------------------------------------------------

    def begin(
        self, condition: PooledTextCondition, negative: PooledTextCondition | None, device, options=None
    ) -> SwittiRun:
        texts, dtype = condition.joined(negative), self.dtype
        features_RTC, is_real = padded(texts.texts, device)
        text_RTC = unit_rms(features_RTC, self.config.norm_eps)
        pooled_RC = self.text_pooler(texts.pooled_BC.to(device))
        crop_1C = self.crop_proj(self.crop_embed(pooled_RC.device))[None]
        scale, shift = rearrange(self.head_nm.ada_lin(pooled_RC), "r (two c) -> two r 1 c", two=2).unbind(0)
        return SwittiRun(
            pooled_R1C=pooled_RC.unsqueeze(1),
            blocks=[b.inputs(n, pooled_RC, crop_1C, text_RTC, is_real, dtype) for n, b in enumerate(self.blocks)],
            head=(scale + 1, shift),
            running=slice(0, texts.batch),
        )

    def embed(self, run: SwittiRun, f_BCHW: Tensor | None, step: Pass, schedule: ScaleSchedule) -> Tensor:
        """Residual stream entering block 0, (rows, L, C) float32. f_BCHW: the quantiser's next_input; None for the
        first scale."""
        pooled_R1C, c = run.pooled_R1C[run.running], self.config
        if run.rotary is None:
            run.rotary = [
                rotary_table(scale, c.head_dim, c.rotary_base, c.rotary_span, pooled_R1C.device) for scale in schedule
            ]
        run.table = run.rotary[step.scale_index]
        level_C = self.lvl_embed(torch.full((1,), step.scale_index, device=pooled_R1C.device)).to(pooled_R1C.dtype)
        if f_BCHW is None:
            return (pooled_R1C + on(self.pos_start, pooled_R1C) + level_C).expand(-1, step.scale.tokens, -1)
        x_BLC = self.word_embed(rearrange(f_BCHW, "b c h w -> b (h w) c")) + level_C
        return x_BLC.repeat(len(pooled_R1C) // len(x_BLC), 1, 1)

    def blocks_forward(self, run: SwittiRun, x_RLC: Tensor, tokens, memory) -> Tensor:
        for layer, block in enumerate(self.blocks):
            x_RLC = tokens.enter(layer, x_RLC)
            x_RLC = block(x_RLC, run.blocks[layer].at(run.running, run.table), tokens, memory)
        return tokens.leave(x_RLC)

    def logits(self, run: SwittiRun, x_RLC: Tensor, rows: slice, step: Pass | None = None) -> Tensor:
        """(rows, L, V) float32. rows: which of the run's rows x_RLC holds."""
        gain, shift = run.head
        return self.head(modulated_norm(x_RLC, gain[rows], shift[rows], self.config.norm_eps)).float()

    # numbers ---------------------------------------------------------------------------------

    def cost(self, text_tokens: int = TEXT_TOKENS) -> Cost:
        c, itemsize = self.config, self.dtype.itemsize
        square = 2 * c.width * c.width
        return Cost(
            layers=c.depth,
            width=c.width,
            heads=c.heads,
            head_dim=c.head_dim,
            linear_per_token=6 * square + 6 * c.width * c.hidden,
            head_per_token=2 * c.width * c.vocab_size,
            embed_per_token=2 * c.code_dim * c.width,
            # the prompt's keys and values, the pooled text, modulation of blocks and head
            per_run_and_row=c.depth * (4 * text_tokens * c.text_dim * c.width + 6 * square)
            + 2 * c.pooled_dim * c.width
            + 2 * square,
            per_run=square,
            cross_per_token=4 * text_tokens * c.width,
            block_bytes=(20 + 6 * itemsize) * c.width,
            draw_bytes=29 * c.vocab_size,
            spread_bytes=16 * c.vocab_size,
            held_bytes=c.depth * c.width * (6 * 4 + 2 * text_tokens * itemsize),
        )
