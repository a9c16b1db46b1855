"""Infinity: text-to-image next-scale prediction over bits (Han et al. 2024; layout of FoundationVision/Infinity, MIT).

Pre-norm blocks modulated by the pooled text: cosine self-attention over all scales so far with two-dimensional rotary
positions, cross-attention to the text, MLP. The head answers for every bit of a token separately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...codecs.bits import BitwiseQuantizer
from ...errors import ConditionMismatch, OptionError, ScheduleMismatch
from ...guidance import combine, is_on
from ...schedule import Pass, Scale, ScaleSchedule
from ..base import TEXT_TOKENS, Cost, Defaults, HalfBlocksModel
from ..family import NoOptions
from ..layers import (
    AffineNorm,
    FeedForward,
    HeadNorm,
    Modulation,
    RMSNorm,
    attention_gain,
    merge_heads,
    modulated_norm,
    on,
    padded,
    rotate,
    split_heads,
    unit_heads,
)
from .schedules import SIZES, full_grid, published

ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class InfinityConfig:
    """Sizes of an Infinity transformer, all from the weights' shapes but norm_eps and patch.

    bits: predicted per token. patch: latent cells along each edge of a token (8B: 2). text_dim: channels of the text
    features; text_maxlen: rows of the learned unconditional text. chunk: blocks per group of the checkpoint's names.
    """

    depth: int = 32
    width: int = 2048
    heads: int = 16
    hidden: int = 8192
    bits: int = 32
    patch: int = 1
    text_dim: int = 2048
    text_maxlen: int = 512
    pool_heads: int = 16
    levels: int = 15
    chunk: int = 4
    norm_eps: float = 1e-6
    # infer.sh of 2B. top_k: upstream passes 900, which two ids per bit turn into no filter at all
    defaults: Defaults = field(default_factory=lambda: Defaults(cfg=4.0, temperature=0.5, top_p=0.97))

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def code_dim(self) -> int:
        """Channels of the latent."""
        return self.bits // self.patch**2


@dataclass(frozen=True)
class InfinityOptions(NoOptions):
    """guidance_layers: where guidance is applied, see Infinity.guidance_places, which checks it."""

    guidance_layers: int | Sequence[int] = (0,)


@dataclass(frozen=True)
class TextCondition:
    """Text features of every picture, (length, text_dim) each: real tokens only, of any length."""

    texts: tuple[Tensor, ...]

    @property
    def batch(self) -> int:
        return len(self.texts)

    def joined(self, other: TextCondition | None) -> TextCondition:
        return self if other is None else TextCondition(self.texts + other.texts)


# parts, under the checkpoint's names ---------------------------------------------------------------


def text_keys_values(attention, text_RTC: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values (rows, heads, T, dim) of a text. Only values have a bias."""
    k, v = attention.mat_kv(text_RTC).chunk(2, dim=-1)
    return split_heads(k, heads), split_heads(v + on(attention.v_bias, v), heads)


class PoolAttention(nn.Module):
    """One learned query per head over the text."""

    def __init__(self, config: InfinityConfig, ops):
        super().__init__()
        self.heads = config.pool_heads
        self.mat_q = nn.Parameter(torch.zeros(1, config.pool_heads, config.width // config.pool_heads))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.mat_kv = ops.Linear(config.text_dim, 2 * config.width, bias=False)
        self.proj = ops.Linear(config.width, config.width)

    def forward(self, text_RTC: Tensor, is_real: Tensor | None) -> Tensor:
        k, v = text_keys_values(self, text_RTC, self.heads)
        q = on(self.mat_q, k).unsqueeze(2).expand(len(k), -1, -1, -1)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=is_real).flatten(1))


class TextPool(nn.Module):
    """The text as one vector per picture: first token and condition of every modulation."""

    def __init__(self, config: InfinityConfig, ops):
        super().__init__()
        self.ca = PoolAttention(config, ops)

    def forward(self, text_RTC: Tensor, is_real: Tensor | None) -> Tensor:
        return self.ca(text_RTC, is_real)


class SelfAttention(nn.Module):
    def __init__(self, config: InfinityConfig, ops):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.mat_qkv = ops.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4)))
        self.proj = ops.Linear(width, width)

    def forward(self, x_RLC: Tensor, given: BlockInputs, rotary_RLX: Tensor, layer: int, memory) -> Tensor:
        qkv_RL3HD = self.mat_qkv(x_RLC).add_(given.qkv_bias).unflatten(-1, (3, self.heads, -1))
        q, k = rotate(unit_heads(qkv_RL3HD[:, :, :2], given.qk_gain), rotary_RLX).permute(2, 0, 3, 1, 4)
        v = qkv_RL3HD[:, :, 2].transpose(1, 2)
        return self.proj(merge_heads(memory.attend(layer, q.to(v.dtype), k, v, scale=1.0)))


class CrossAttention(nn.Module):
    def __init__(self, config: InfinityConfig, ops):
        super().__init__()
        self.heads = config.heads
        self.mat_q = ops.Linear(config.width, config.width)
        self.mat_kv = ops.Linear(config.width, 2 * config.width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.proj = ops.Linear(config.width, config.width)

    def forward(self, x_RLC: Tensor, k: Tensor, v: Tensor, is_real: Tensor | None) -> Tensor:
        q = split_heads(self.mat_q(x_RLC), self.heads)
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=is_real)))


@dataclass
class BlockInputs:
    """What one block reads besides the stream, one row per row that runs: constant for an image batch, but for the
    rotary table of the current pass."""

    layer: int
    modulation: tuple[Tensor, ...]  # gates, 1 + scales and shifts, (rows, 1, C) float32
    qkv_bias: Tensor
    qk_gain: Tensor  # lengths of queries and keys, (2, heads, 1) float32
    text_k: Tensor
    text_v: Tensor
    is_real: Tensor | None
    rotary_1LX: Tensor | None = None

    def at(self, rows: slice, rotary_1LX: Tensor) -> BlockInputs:
        """Of the rows and the pass that run."""
        if rows == slice(0, len(self.text_k)):
            return replace(self, rotary_1LX=rotary_1LX)
        return replace(
            self,
            modulation=tuple(m[rows] for m in self.modulation),
            text_k=self.text_k[rows],
            text_v=self.text_v[rows],
            is_real=None if self.is_real is None else self.is_real[rows],
            rotary_1LX=rotary_1LX,
        )


class Block(nn.Module):
    def __init__(self, config: InfinityConfig, ops):
        super().__init__()
        self.eps = config.norm_eps
        self.sa = SelfAttention(config, ops)
        self.ca = CrossAttention(config, ops)
        self.ffn = FeedForward(config.width, config.hidden, ops)
        self.ca_norm = AffineNorm(config.width, config.norm_eps)
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, config.width))

    def inputs(self, layer: int, shared_R16C: Tensor, text_RTC: Tensor, is_real: Tensor | None) -> BlockInputs:
        gate1, gate2, scale1, scale2, shift1, shift2 = (shared_R16C + on(self.ada_gss, shared_R16C)).unbind(2)
        q_bias, v_bias = on(self.sa.q_bias, text_RTC), on(self.sa.v_bias, text_RTC)
        text_k, text_v = text_keys_values(self.ca, text_RTC, self.ca.heads)
        return BlockInputs(
            layer=layer,
            modulation=(gate1, gate2, scale1 + 1, scale2 + 1, shift1, shift2),
            qkv_bias=torch.cat([q_bias, torch.zeros_like(q_bias), v_bias]),
            qk_gain=attention_gain(on(self.sa.scale_mul_1H11, shared_R16C)),
            text_k=text_k,
            text_v=text_v,
            is_real=is_real,
        )

    def forward(self, x_RLC: Tensor, given: BlockInputs, tokens, memory) -> Tensor:
        # the stream, norms and gates are float32, the linears' inputs half: sums over 30 blocks outgrow bf16's 8 bits
        gate1, gate2, gain1, gain2, shift1, shift2 = given.modulation
        dtype = given.text_k.dtype

        def self_attention(x: Tensor) -> Tensor:
            x = modulated_norm(x, gain1, shift1, self.eps).to(dtype)
            return self.sa(x, given, tokens.rows(given.rotary_1LX), given.layer, memory)

        def cross_attention(x: Tensor) -> Tensor:
            return self.ca(self.ca_norm(x).to(dtype), given.text_k, given.text_v, given.is_real)

        def mlp(x: Tensor) -> Tensor:
            return self.ffn(modulated_norm(x, gain2, shift2, self.eps).to(dtype))

        x_RLC = torch.addcmul(x_RLC, tokens.through(self_attention, x_RLC, site=(given.layer, "attn")), gate1)
        x_RLC = x_RLC + tokens.through(cross_attention, x_RLC, site=(given.layer, "cross"))
        return torch.addcmul(x_RLC, tokens.through(mlp, x_RLC, site=(given.layer, "ffn")), gate2)


class BlockChunk(nn.Module):
    """A group of blocks, only for its name in the checkpoint."""

    def __init__(self, blocks: Sequence[Block]):
        super().__init__()
        self.module = nn.ModuleList(blocks)


# positions -----------------------------------------------------------------------------------------


def rotary_table(scale: Scale, full: tuple[int, int], head_dim: int, device=None) -> Tensor:
    """cos and sin of every pair of channels, in turn, (1, L, head_dim) float32: the first half turns by the row, the
    second by the column.

    A coordinate i of n counts as round(i N / n) of the full grid's N: the same place has the same position at any
    scale.
    """
    frequencies = ROTARY_BASE ** (
        -torch.arange(0, head_dim // 2, 2, device=device, dtype=torch.float32) / (head_dim // 2)
    )

    def angles(n: int, full_n: int) -> Tensor:
        place = torch.arange(n, device=device, dtype=torch.float32) * (
            full_n / n
        )  # float32: it decides the rounding's ties
        return place.round()[:, None] * frequencies

    grid = (scale.h, scale.w, head_dim // 4)
    angle_LX = torch.cat(
        [angles(scale.h, full[0])[:, None].expand(grid), angles(scale.w, full[1])[None].expand(grid)], -1
    ).flatten(0, 1)
    return torch.stack([angle_LX.cos(), angle_LX.sin()], -1).flatten(1)[None]


# the model -----------------------------------------------------------------------------------------


@dataclass
class InfinityRun:
    """What is constant for one image batch, and where the run is: rows, guidance and rotary table of the current
    pass."""

    pooled_R1C: Tensor
    blocks: list[BlockInputs]
    head: tuple[Tensor, Tensor]
    running: slice
    mixed_after: frozenset
    guidance: float = 0.0
    rotary: list[Tensor] | None = None  # of every scale, made with the first one
    table: Tensor | None = None  # the rotary rows of the tokens that run


class Infinity(HalfBlocksModel):
    """The Infinity transformer under upstream's key names. See NextScaleModel for the interface."""

    family = "infinity"
    neutral_cfg = 1.0
    first_layer = 3
    Options = InfinityOptions
    skips = 2

    def __init__(self, config: InfinityConfig, ops=nn):
        super().__init__(config)
        self.first_layer = min(self.first_layer, config.depth - 1)
        width = config.width
        self.cfg_uncond = nn.Parameter(torch.zeros(config.text_maxlen, config.text_dim))
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.text_norm = RMSNorm(config.text_dim, config.norm_eps)
        self.text_proj_for_sos = TextPool(config, ops)
        self.text_proj_for_ca = nn.Sequential(
            ops.Linear(config.text_dim, width), nn.GELU(approximate="tanh"), ops.Linear(width, width)
        )
        self.lvl_embed = ops.Embedding(config.levels, width)
        self.word_embed = ops.Linear(config.bits, width)
        self.shared_ada_lin = Modulation(width, 6, ops)
        self.head_nm = HeadNorm(width, ops)
        self.head = ops.Linear(width, 2 * config.bits)
        blocks = [Block(config, ops) for _ in range(config.depth)]
        self.block_chunks = nn.ModuleList(
            BlockChunk(blocks[i : i + config.chunk]) for i in range(0, config.depth, config.chunk)
        )

    @property
    def blocks(self) -> list[Block]:
        return [block for chunk in self.block_chunks for block in chunk.module]

    # condition, codes and schedule -----------------------------------------------------------

    def text_condition(
        self, features_BTC: Tensor, mask_BT: Tensor | None = None, pooled_BC: Tensor | None = None
    ) -> TextCondition:
        """Condition of a batch of prompts: FLAN-T5 features of the last layer, end token included.

        mask_BT: True at real tokens; the others are dropped. pooled_BC is not used. Raises ConditionMismatch for
        features of another encoder, a prompt without tokens or with more than the weights know.
        """
        c = self.config
        if features_BTC.ndim != 3 or features_BTC.shape[-1] != c.text_dim or not len(features_BTC):
            raise ConditionMismatch(
                f"The text features are {tuple(features_BTC.shape)}; this model reads (B, T, {c.text_dim}).",
                "Encode the prompt with FLAN-T5 XL.",
            )
        if mask_BT is None:
            mask_BT = torch.ones(features_BTC.shape[:2], dtype=torch.bool)
        if mask_BT.shape != features_BTC.shape[:2]:
            raise ConditionMismatch(
                f"The text mask is {tuple(mask_BT.shape)}; the features are {tuple(features_BTC.shape)}.",
                "Give one value per token.",
            )
        texts = tuple(features[mask.to(features.device, torch.bool)] for features, mask in zip(features_BTC, mask_BT))
        if not all(0 < len(text) <= c.text_maxlen for text in texts):
            raise ConditionMismatch(
                f"The prompts have {', '.join(str(len(t)) for t in texts)} tokens; the model reads 1 to "
                f"{c.text_maxlen}.",
                "Shorten the prompt; an empty one still has its end token.",
            )
        return TextCondition(texts)

    def unconditional(self, condition: TextCondition) -> TextCondition:
        """The learned rows, as many as the prompt has tokens."""
        return TextCondition(tuple(self.cfg_uncond.detach()[: len(text)] for text in condition.texts))

    @property
    def code_format(self) -> str:
        return self.own_quantizer().code_format

    def own_quantizer(self) -> BitwiseQuantizer:
        return BitwiseQuantizer(self.config.code_dim, self.config.patch)

    def latent_shape(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        return self.config.code_dim, schedule.final.h * self.config.patch, schedule.final.w * self.config.patch

    def schedule(self, aspect_ratio: float = 1.0, size=None, seconds=None, variant=None) -> ScaleSchedule:
        """The published schedule of the nearest aspect ratio (width / height). size: 0.06M, 0.25M, 0.60M or 1M
        (default)."""
        if seconds or variant:
            raise ScheduleMismatch(
                "Infinity makes still pictures and has no variants.", "Leave seconds and variant empty."
            )
        return published(aspect_ratio, size)

    def sizes(self) -> list[tuple[str, ScaleSchedule]]:
        return [(name, published(1.0, name)) for name in SIZES]

    def check_schedule(self, schedule: ScaleSchedule) -> None:
        if len(schedule) > self.config.levels or any(s.t > 1 or s.repeats > 1 for s in schedule):
            raise ScheduleMismatch(
                f"The schedule {schedule.describe()} is not one of still pictures in up to {self.config.levels} "
                "scales.",
                "Use model.schedule(aspect_ratio, size).",
            )

    def guidance_weights(self, cfg: float, schedule: ScaleSchedule) -> list[float]:
        """Guidance per pass: t = cfg - 1, logits = cfg conditional + (1 - cfg) unconditional; the same at every
        scale."""
        return [cfg - self.neutral_cfg] * len(schedule.passes)

    def guidance_places(self, layers: int | Sequence[int]) -> frozenset:
        """Upstream's cfg_insertion_layer: 0 = on the logits, -n = hidden states after block depth - n; 1 does
        nothing."""
        listed = [layers] if isinstance(layers, int) else list(layers)
        if not all(isinstance(n, int) and -self.config.depth < n <= 1 for n in listed):
            raise OptionError(
                f"guidance_layers is {layers!r}.",
                f"List 0 for the logits, and {1 - self.config.depth} to -1 for blocks from the end.",
            )
        return frozenset("logits" if n == 0 else self.config.depth + n for n in listed if n < 1)

    # one image batch -------------------------------------------------------------------------

    def begin(self, condition: TextCondition, negative: TextCondition | None, device, options=None) -> InfinityRun:
        texts = condition.joined(negative)
        features_RTC, is_real = padded(texts.texts, device)
        normed_RTC = self.text_norm(features_RTC)
        pooled_RC = self.text_proj_for_sos(normed_RTC, is_real)
        text_RTC = self.text_proj_for_ca(normed_RTC).to(self.dtype)
        shared_R16C = rearrange(self.shared_ada_lin(pooled_RC), "r (six c) -> r 1 six c", six=6)
        scale, shift = rearrange(self.head_nm.ada_lin(pooled_RC), "r (two c) -> two r 1 c", two=2).unbind(0)
        places = self.guidance_places(options.guidance_layers) if options is not None else frozenset()
        return InfinityRun(
            pooled_R1C=pooled_RC.unsqueeze(1),
            blocks=[b.inputs(layer, shared_R16C, text_RTC, is_real) for layer, b in enumerate(self.blocks)],
            head=(scale + 1, shift),
            running=slice(0, texts.batch),
            mixed_after=places - {"logits"},
        )

    def embed(self, run: InfinityRun, f_BCHW: Tensor | None, step: Pass, schedule: ScaleSchedule) -> Tensor:
        """Residual stream entering block 0, (rows, L, C) float32. f_BCHW: the quantiser's next_input; None for the
        first scale."""
        pooled_R1C = run.pooled_R1C[run.running]
        if run.rotary is None:
            full = full_grid(schedule)
            run.rotary = [rotary_table(scale, full, self.config.head_dim, pooled_R1C.device) for scale in schedule]
        run.table = run.rotary[step.scale_index]
        level_C = self.lvl_embed(torch.full((1,), step.scale_index, device=pooled_R1C.device)).to(pooled_R1C.dtype)
        if f_BCHW is None:
            return (pooled_R1C + on(self.pos_start, pooled_R1C) + level_C).expand(-1, step.scale.tokens, -1)
        x_BLC = self.word_embed(rearrange(f_BCHW, "b c h w -> b (h w) c")) + level_C
        return x_BLC.repeat(len(pooled_R1C) // len(x_BLC), 1, 1)

    def blocks_forward(self, run: InfinityRun, x_RLC: Tensor, tokens, memory) -> Tensor:
        for layer, block in enumerate(self.blocks):
            x_RLC = tokens.enter(layer, x_RLC)
            x_RLC = block(x_RLC, run.blocks[layer].at(run.running, run.table), tokens, memory)
            if is_on(run.guidance) and layer in run.mixed_after:
                # both halves go on from the guided state and differ only through text and modulation
                x_RLC = combine(x_RLC, run.guidance).repeat(2, 1, 1)
        return tokens.leave(x_RLC)

    def logits(self, run: InfinityRun, x_RLC: Tensor, rows: slice, step: Pass | None = None) -> Tensor:
        """(rows, L, 2 bits) float32, columns 2i and 2i + 1 for bit i being 0 and 1. rows: which of the run's rows
        x_RLC holds."""
        gain, shift = run.head
        return self.head(modulated_norm(x_RLC, gain[rows], shift[rows], self.config.norm_eps)).float()

    # numbers ---------------------------------------------------------------------------------

    def cost(self, text_tokens: int = TEXT_TOKENS) -> Cost:
        c = self.config
        square = 2 * c.width * c.width
        # the text's own MLP and pooling, then keys and values of every block
        text = 2 * c.text_dim * c.width * 3 + square + 4 * c.width + c.depth * 2 * square
        return Cost(
            layers=c.depth,
            width=c.width,
            heads=c.heads,
            head_dim=c.head_dim,
            linear_per_token=6 * square + 4 * c.width * c.hidden,
            head_per_token=4 * c.width * c.bits,
            embed_per_token=2 * c.bits * c.width,
            per_run_and_row=9 * square + text_tokens * text,
            cross_per_token=4 * text_tokens * c.width,
            block_bytes=(12 + 8 * self.dtype.itemsize) * c.width,
            draw_bytes=16 * c.width,
            held_bytes=c.depth * c.width * (6 * 4 + 2 * text_tokens * self.dtype.itemsize),
        )
