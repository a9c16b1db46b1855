"""HART: text-to-image next-scale prediction with a continuous residual (Tang et al. 2024; layout of mit-han-lab/hart,
MIT).

The prompt's tokens are the first scale: they run with full attention among themselves, and the answer at the last of
them is the first code. Pre-norm blocks of RMS norm, rotary positions and gated MLPs; after the last scale's codes a
small diffusion model draws what they leave out (residual.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...codes import Drawn
from ...errors import ConditionMismatch, ScheduleMismatch
from ...guidance import is_on
from ...schedule import Pass, Scale, ScaleSchedule
from ...tokens import TrailingTokens
from ..base import TEXT_TOKENS, Cost, Defaults, HalfBlocksModel
from ..family import NoOptions, check_switch, check_whole
from ..layers import Modulation, RMSNorm, attention_gain, merge_heads, on, unit_heads
from . import prediction
from .residual import FREQUENCIES, ResidualDiffusion, SinusoidEmbedding

ROTARY_BASE = 10000.0
CELL_PIXELS = 16  # pixels per token of the final scale, along each edge
COARSE_SCALES = 7  # upstream draws these from top_k codes, the others from FINE_TOP_K
FINE_TOP_K = 300
POOLINGS = ("max", "avg")


@dataclass(frozen=True)
class HARTConfig:
    """Sizes of a HART transformer; the defaults are the published 0.7B at 1024 pixels.

    text_tokens: positions of a prompt, pads included. modulation: where blocks take AdaLN from: none, their own
    linear of the pooled text (block), a table of their own plus the pooled text (shared). pooling: how the text is
    pooled for `block`.
    has_sinusoid_levels: level embeddings by a small network, else a table. residual_*: sizes of the residual head.
    """

    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
    depth: int = 24
    width: int = 1536
    heads: int = 24
    hidden: int = 4096
    vocab_size: int = 4096
    code_dim: int = 32
    text_dim: int = 1536
    text_tokens: int = 300
    modulation: str = "none"
    pooling: str = "max"
    attn_l2_norm: bool = False
    has_sinusoid_levels: bool = True
    has_context_norm: bool = True
    residual_width: int = 1024
    residual_depth: int = 6
    residual_steps: int = 8
    norm_eps: float = 1e-6
    defaults: Defaults = field(default_factory=lambda: Defaults(cfg=4.5, top_k=600))

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.square(self.patch_nums)


@dataclass(frozen=True)
class HARTOptions(NoOptions):
    """smooth: upstream's more_smooth, on as in its scripts; from the scale smooth_from on. residual: the last scale
    adds a continuous residual to its codes. maskgit_steps: how many steps predict the last scale."""

    smooth: bool = True
    smooth_from: int = 0
    residual: bool = True
    maskgit_steps: int = 1

    def __post_init__(self):
        check_whole("smooth_from", self.smooth_from, least=0)
        check_whole("maskgit_steps", self.maskgit_steps, least=1)
        check_switch("smooth", self.smooth)
        check_switch("residual", self.residual)


@dataclass(frozen=True)
class PromptCondition:
    """Text features (B, T, C) with their pads, and mask (B, T), True at real tokens: pads are read too, the mask
    counts positions."""

    features_BTC: Tensor
    mask_BT: Tensor

    @property
    def batch(self) -> int:
        return len(self.features_BTC)

    def joined(self, other: PromptCondition | None) -> PromptCondition:
        if other is None:
            return self
        device = self.features_BTC.device
        return PromptCondition(
            torch.cat([self.features_BTC, other.features_BTC.to(self.features_BTC)]),
            torch.cat([self.mask_BT, other.mask_BT.to(device)]),
        )


# positions -----------------------------------------------------------------------------------------


def rotary(angle_RLX: Tensor) -> Tensor:
    """(rows, L, 2 D) float32: cos of every channel, then sin, negated in the first half, for `turn`. angle: (rows, L,
    D)."""
    sign = torch.ones_like(angle_RLX[:1, :1])
    sign[..., : sign.shape[-1] // 2] = -1
    return torch.cat([angle_RLX.cos(), angle_RLX.sin() * sign], -1)


def text_rotary(places_RT: Tensor, head_dim: int) -> Tensor:
    """Of a text's positions: the ordinary rotary of one dimension."""
    frequencies = ROTARY_BASE ** (
        -torch.arange(0, head_dim, 2, device=places_RT.device, dtype=torch.float32) / head_dim
    )
    return rotary((places_RT.float()[..., None] * frequencies).repeat(1, 1, 2))


def image_rotary(scale: Scale, offset_R: Tensor, edge: int, head_dim: int) -> Tensor:
    """Of a grid's cells: (row edge / h, column edge / w), both plus the position of the row's last text token.

    Channels carry the row's angles in the first half and the column's in the second, so `turn` pairs a row's angle
    with a column's: no rotation, but what the weights were trained with.
    """
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_dim, 4, device=offset_R.device, dtype=torch.float32) / head_dim)

    def angles(n: int) -> Tensor:
        place_Rn = torch.arange(n, device=offset_R.device, dtype=torch.float32) / n * edge + offset_R.float()[:, None]
        return (place_Rn[..., None] * frequencies).repeat(1, 1, 2)

    grid = (len(offset_R), scale.h, scale.w, head_dim // 2)
    return rotary(
        torch.cat([angles(scale.h)[:, :, None].expand(grid), angles(scale.w)[:, None].expand(grid)], -1).flatten(1, 2)
    )


def turn(qk_RL2HD: Tensor, table_RLX: Tensor) -> Tensor:
    """Queries and keys at their positions, float32: every channel mixed with the one half a head away."""
    cos, sin = table_RLX[:, :, None, None].chunk(2, dim=-1)
    return torch.addcmul(qk_RL2HD * cos, qk_RL2HD.roll(qk_RL2HD.shape[-1] // 2, -1), sin)


# parts, under the checkpoint's names ---------------------------------------------------------------


class SelfAttention(nn.Module):
    def __init__(self, config: HARTConfig, ops):
        super().__init__()
        width, self.heads, self.is_cosine = config.width, config.heads, config.attn_l2_norm
        # without cosine attention upstream scales by a further quarter
        self.scale = 1.0 if self.is_cosine else 0.25 / math.sqrt(config.head_dim)
        self.qkv_proj = ops.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        if self.is_cosine:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4)))
        self.proj = ops.Linear(width, width)

    def constants(self, like: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The bias of queries, keys (none) and values, and the gain of queries and keys."""
        q_bias, v_bias = on(self.q_bias, like).to(dtype), on(self.v_bias, like).to(dtype)
        gain = attention_gain(on(self.scale_mul_1H11, like)) if self.is_cosine else None
        return torch.cat([q_bias, torch.zeros_like(q_bias), v_bias]), gain

    def forward(
        self, x_RLC: Tensor, constants: tuple[Tensor, Tensor | None], rotary_RLX: Tensor, layer: int, memory
    ) -> Tensor:
        bias, gain = constants
        qkv_RL3HD = self.qkv_proj(x_RLC).add_(bias).unflatten(-1, (3, self.heads, -1))
        qk_RL2HD = qkv_RL3HD[:, :, :2]
        q, k = turn(qk_RL2HD if gain is None else unit_heads(qk_RL2HD, gain), rotary_RLX).permute(2, 0, 3, 1, 4)
        v = qkv_RL3HD[:, :, 2].transpose(1, 2)
        return self.proj(merge_heads(memory.attend(layer, q.to(v.dtype), k.to(v.dtype), v, scale=self.scale)))


class FeedForward(nn.Module):
    def __init__(self, config: HARTConfig, ops):
        super().__init__()
        self.gate_proj = ops.Linear(config.width, config.hidden, bias=False)
        self.up_proj = ops.Linear(config.width, config.hidden, bias=False)
        self.down_proj = ops.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@dataclass
class Modulated:
    """Gate, 1 + scale and shift of a sub-layer, (rows, 1, C) each; the null object has none."""

    gate: Tensor | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None

    def enter(self, x: Tensor) -> Tensor:
        return x if self.gain is None else torch.addcmul(self.shift, x, self.gain)

    def leave(self, x: Tensor) -> Tensor:
        return x if self.gate is None else x * self.gate

    def rows(self, rows: slice) -> Modulated:
        return self if self.gate is None else Modulated(self.gate[rows], self.gain[rows], self.shift[rows])


@dataclass
class BlockInputs:
    """What one block reads besides the stream: constants of its attention, modulation of both sub-layers, rotary table
    of the pass; one row per row that runs."""

    layer: int
    attention: tuple[Tensor, Tensor | None]
    modulation: tuple[Modulated, Modulated]
    rotary_RLX: Tensor | None = None

    def at(self, rows: slice, rotary_RLX: Tensor) -> BlockInputs:
        """Of the rows and the pass that run."""
        of_attention, of_mlp = self.modulation
        return BlockInputs(self.layer, self.attention, (of_attention.rows(rows), of_mlp.rows(rows)), rotary_RLX)


class Block(nn.Module):
    def __init__(self, config: HARTConfig, ops):
        super().__init__()
        self.attn = SelfAttention(config, ops)
        self.ffn = FeedForward(config, ops)
        # of both sub-layers, and trained, whatever its name says
        self.ln_wo_grad = RMSNorm(config.width, config.norm_eps)
        if config.modulation == "block":
            self.ada_lin = Modulation(config.width, 6, ops)
        elif config.modulation == "shared":
            self.scale_shift_table = nn.Parameter(torch.zeros(6, config.width))
        self.modulation = config.modulation

    def modulated(self, pooled_RC: Tensor | None, dtype: torch.dtype) -> tuple[Modulated, Modulated]:
        """Modulation of attention and MLP by the pooled text."""
        if self.modulation == "none":
            return Modulated(), Modulated()
        if self.modulation == "block":
            six = rearrange(self.ada_lin(pooled_RC.to(dtype)).float(), "r (six c) -> six r 1 c", six=6)
        else:
            six = rearrange(on(self.scale_shift_table, pooled_RC) + pooled_RC.unsqueeze(1), "r six c -> six r 1 c")
        gate1, gate2, scale1, scale2, shift1, shift2 = six.unbind(0)
        return Modulated(gate1, scale1 + 1, shift1), Modulated(gate2, scale2 + 1, shift2)

    def inputs(self, layer: int, text_RTC: Tensor, pooled_RC: Tensor | None, dtype: torch.dtype) -> BlockInputs:
        return BlockInputs(layer, self.attn.constants(text_RTC, dtype), self.modulated(pooled_RC, dtype))

    def forward(self, x_RLC: Tensor, given: BlockInputs, tokens, memory) -> Tensor:
        # the stream and norms are float32, the linears' inputs half: sums over many blocks outgrow bf16's 8 bits
        of_attention, of_mlp = given.modulation
        dtype = given.attention[0].dtype

        def attention(x: Tensor) -> Tensor:
            x, rotary_RLX = of_attention.enter(self.ln_wo_grad(x)).to(dtype), tokens.rows(given.rotary_RLX)
            return of_attention.leave(self.attn(x, given.attention, rotary_RLX, given.layer, memory))

        def mlp(x: Tensor) -> Tensor:
            return of_mlp.leave(self.ffn(of_mlp.enter(self.ln_wo_grad(x)).to(dtype)))

        x_RLC = x_RLC + tokens.through(attention, x_RLC, site=(given.layer, "attn"))
        return x_RLC + tokens.through(mlp, x_RLC, site=(given.layer, "ffn"))


class HeadNorm(nn.Module):
    def __init__(self, config: HARTConfig, ops):
        super().__init__()
        self.ln_wo_grad = RMSNorm(config.width, config.norm_eps)
        self.ada_lin = Modulation(config.width, 2, ops)


# the model -----------------------------------------------------------------------------------------


@dataclass
class HARTRun:
    """What is constant for one image batch, and where the run is: rows, guidance, rotary table and leading tokens of
    the current pass."""

    text_RTC: Tensor
    places_RT: Tensor
    levels_SC: Tensor
    times: Tensor
    blocks: list[BlockInputs]
    head: tuple[Tensor, Tensor]
    running: slice
    guidance: float = 0.0
    rotary: list[Tensor] | None = None  # of every scale, made with the first one
    table: Tensor | None = None  # the rotary rows of the tokens that run
    lead: int = 0  # of the stream's tokens, those that are no cells of a grid


class HART(HalfBlocksModel):
    """The HART transformer under upstream's key names. See NextScaleModel for the interface."""

    family = "hart"
    neutral_cfg = 0.0
    Options = HARTOptions

    def __init__(self, config: HARTConfig, ops=nn):
        super().__init__(config)
        c, width = config, config.width
        self.word_embed = ops.Linear(c.code_dim, width)
        self.context_embed = ops.Linear(c.text_dim, width)
        if c.has_context_norm:
            self.context_norm = RMSNorm(c.text_dim, c.norm_eps)
        self.lvl_embed = (
            SinusoidEmbedding(width, ops) if c.has_sinusoid_levels else ops.Embedding(len(c.patch_nums), width)
        )
        self.blocks = nn.ModuleList(Block(config, ops) for _ in range(c.depth))
        self.head_nm = HeadNorm(config, ops)
        self.head = ops.Linear(width, c.vocab_size)
        self.decoder_norm = RMSNorm(width, c.norm_eps)
        self.diffloss = ResidualDiffusion(c.code_dim, width, c.residual_width, c.residual_depth, c.residual_steps, ops)

    # condition, codes and schedule -----------------------------------------------------------

    def text_condition(
        self, features_BTC: Tensor, mask_BT: Tensor | None = None, pooled_BC: Tensor | None = None
    ) -> PromptCondition:
        """Condition of a batch of prompts: Qwen2 features (B, T, C) of the last layer, padded to the length the
        weights know.

        mask_BT: True at real tokens. Pads are kept: the model reads them, the mask only counts positions. pooled_BC
        is not used. Raises ConditionMismatch for features of another encoder or another length.
        """
        c = self.config
        if features_BTC.ndim != 3 or features_BTC.shape[1:] != (c.text_tokens, c.text_dim) or not len(features_BTC):
            raise ConditionMismatch(
                f"The text features are {tuple(features_BTC.shape)}; this model reads (B, {c.text_tokens}, "
                f"{c.text_dim}), pads included.",
                "Encode the prompt with HART's Qwen2, padded to that many tokens.",
            )
        if mask_BT is None:
            mask_BT = torch.ones(features_BTC.shape[:2], dtype=torch.bool)
        if mask_BT.shape != features_BTC.shape[:2]:
            raise ConditionMismatch(
                f"The text mask is {tuple(mask_BT.shape)}; the features are {tuple(features_BTC.shape)}.",
                "Give one value per token.",
            )
        return PromptCondition(features_BTC.detach().float(), mask_BT.to(features_BTC.device, torch.bool))

    def unconditional(self, condition: PromptCondition) -> PromptCondition:
        """Zeros, of which the first is a token: what the weights were trained with, not an empty prompt."""
        mask_BT = torch.zeros_like(condition.mask_BT)
        mask_BT[:, 0] = True
        return PromptCondition(torch.zeros_like(condition.features_BTC), mask_BT)

    @property
    def code_format(self) -> str:
        return f"{self.config.vocab_size} codes of {self.config.code_dim} channels with residuals"

    def schedule(self, aspect_ratio: float = 1.0, size=None, seconds=None, variant=None) -> ScaleSchedule:
        """The one schedule the weights know. Raises ScheduleMismatch for anything else."""
        edge = self.config.patch_nums[-1]
        if not abs(aspect_ratio - 1) <= 1e-6:  # NaN too
            raise ScheduleMismatch(
                f"Aspect ratio {aspect_ratio} is not one HART was trained for.", "HART makes square pictures: use 1."
            )
        if seconds or variant:
            raise ScheduleMismatch("HART makes still pictures and has no variants.", "Leave seconds and variant empty.")
        if size is not None and str(size) != str(edge * CELL_PIXELS):
            raise ScheduleMismatch(
                f"Size {size!r} is not one this model knows.", f"Use {edge * CELL_PIXELS}, or leave size empty (auto)."
            )
        return self.config.schedule()

    def check_schedule(self, schedule: ScaleSchedule) -> None:
        if (
            schedule.scales[0].tokens != 1
            or len(schedule) > len(self.config.patch_nums)
            or any(s.t > 1 or s.repeats > 1 for s in schedule)
        ):
            raise ScheduleMismatch(
                f"The schedule {schedule.describe()} is not one of still pictures in up to "
                f"{len(self.config.patch_nums)} scales, "
                "the first of one token.",
                f"Use the model's own schedule, {self.config.schedule().describe()}.",
            )

    def progress(self, scale_index: int, schedule: ScaleSchedule) -> float:
        """The last scale counts as the one before it: upstream's loop leaves the number behind."""
        last = len(schedule) - 1
        return super().progress(max(last - 1, 0) if scale_index == last else scale_index, schedule)

    def guidance_weights(self, cfg: float, schedule: ScaleSchedule) -> list[float]:
        """Guidance per pass: t = cfg * progress, logits = (1 + t) conditional - t unconditional."""
        return [cfg * self.progress(step.scale_index, schedule) for step in schedule.passes]

    def default_top_k(self, schedule: ScaleSchedule) -> list[int]:
        top_k = self.config.defaults.top_k
        return [top_k if i < COARSE_SCALES else min(top_k, FINE_TOP_K) for i in range(len(schedule))]

    def lead_tokens(self, condition: PromptCondition) -> int:
        return condition.features_BTC.shape[1] - 1

    # one image batch -------------------------------------------------------------------------

    def begin(self, condition: PromptCondition, negative: PromptCondition | None, device, options=None) -> HARTRun:
        texts = condition.joined(negative)
        features_RTC, mask_RT = texts.features_BTC.to(device), texts.mask_BT.to(device)
        text_RTC = self.context_embed(self.context_norm(features_RTC) if self.config.has_context_norm else features_RTC)
        scale, shift = rearrange(self.head_nm.ada_lin(text_RTC.amax(1)), "r (two c) -> two r 1 c", two=2).unbind(0)
        pooled_RC, dtype = self._pooled(text_RTC, mask_RT), self.dtype
        levels_S = torch.arange(len(self.config.patch_nums), device=text_RTC.device)
        return HARTRun(
            text_RTC=text_RTC,
            places_RT=mask_RT.cumsum(1) - 1,
            levels_SC=self.lvl_embed(levels_S).float(),
            times=self.diffloss.times(text_RTC.device),
            blocks=[b.inputs(layer, text_RTC, pooled_RC, dtype) for layer, b in enumerate(self.blocks)],
            head=(scale + 1, shift),
            running=slice(0, texts.batch),
        )

    def _pooled(self, text_RTC: Tensor, mask_RT: Tensor) -> Tensor | None:
        """The text as one vector per row for AdaLN; the mean leaves pads out, the maximum does not."""
        if self.config.modulation == "block" and self.config.pooling == "max":
            return text_RTC.amax(1)
        mask_RT1 = mask_RT.unsqueeze(-1).to(text_RTC.dtype)
        return (text_RTC * mask_RT1).sum(1) / mask_RT1.sum(1).clamp(min=1)

    def embed(self, run: HARTRun, f_BCHW: Tensor | None, step: Pass, schedule: ScaleSchedule) -> Tensor:
        """Residual stream entering block 0, (rows, L, C) float32. f_BCHW: the quantiser's next_input; None for the
        first scale, whose stream is the text's."""
        if run.rotary is None:
            dim, edge = self.config.head_dim, self.config.patch_nums[-1]
            images = [image_rotary(scale, run.places_RT[:, -1], edge, dim) for scale in schedule.scales[1:]]
            run.rotary = [text_rotary(run.places_RT, dim), *images]
        run.table = run.rotary[step.scale_index][run.running]
        level_C = run.levels_SC[step.scale_index]
        run.lead = 0
        if f_BCHW is None:
            run.lead = run.text_RTC.shape[1] - 1
            return run.text_RTC[run.running] + level_C
        x_BLC = self.word_embed(rearrange(f_BCHW, "b c h w -> b (h w) c")) + level_C
        return x_BLC.repeat((run.running.stop - run.running.start) // len(x_BLC), 1, 1)

    def blocks_forward(self, run: HARTRun, x_RLC: Tensor, tokens, memory) -> Tensor:
        tokens = TrailingTokens(tokens, run.lead) if run.lead else tokens
        for layer, block in enumerate(self.blocks):
            x_RLC = tokens.enter(layer, x_RLC)
            x_RLC = block(x_RLC, run.blocks[layer].at(run.running, run.table), tokens, memory)
        return tokens.leave(x_RLC)

    def logits(self, run: HARTRun, x_RLC: Tensor, rows: slice, step: Pass | None = None) -> Tensor:
        """(rows, L, V) float32. rows: which of the run's rows x_RLC holds."""
        gain, shift = run.head
        return self.head(torch.addcmul(shift[rows], self.head_nm.ln_wo_grad(x_RLC), gain[rows])).float()

    def decide(self, job):
        return prediction.decide(super().decide(job))

    def predict(self, turn) -> list[Drawn]:
        return prediction.predict(turn)

    def residual(self, run: HARTRun, x_RLC: Tensor, h_BChw: Tensor, noise) -> Tensor:
        """What to add to the last scale's code features, (B, C, h, w). x_RLC: the stream at every position.

        h_BChw: features of the drawn codes. noise(name, shape) -> (B, *shape): Gaussian numbers on the stream's device.
        """
        word_BLC = self.word_embed(rearrange(h_BChw, "b c h w -> b (h w) c"))
        rows = 2 * len(word_BLC) if is_on(run.guidance) else len(word_BLC)
        z_RLC = self.decoder_norm(x_RLC[:rows] + word_BLC.repeat(rows // len(word_BLC), 1, 1))
        return rearrange(
            self.diffloss.sample(z_RLC, run.times, run.guidance, noise), "b (h w) c -> b c h w", h=h_BChw.shape[2]
        )

    # numbers ---------------------------------------------------------------------------------

    def cost(self, text_tokens: int = TEXT_TOKENS) -> Cost:
        """text_tokens is not read: a prompt is padded to one length."""
        c, itemsize = self.config, self.dtype.itemsize
        modulation = 12 * c.depth * c.width**2 if c.modulation == "block" else 0
        levels = 2 * len(c.patch_nums) * (FREQUENCIES + c.width) * c.width if c.has_sinusoid_levels else 0
        times = 2 * c.residual_steps * (FREQUENCIES + c.residual_width) * c.residual_width
        return Cost(
            layers=c.depth,
            width=c.width,
            heads=c.heads,
            head_dim=c.head_dim,
            linear_per_token=8 * c.width**2 + 6 * c.width * c.hidden,
            head_per_token=2 * c.width * c.vocab_size,
            embed_per_token=2 * c.code_dim * c.width,
            per_run_and_row=2 * c.text_tokens * c.text_dim * c.width + 4 * c.width**2 + modulation,
            lead_tokens=c.text_tokens - 1,
            tail_per_token=self.diffloss.flops_per_token(),
            per_run=levels + times,
            block_bytes=max((20 + 6 * itemsize) * c.width, 12 * c.width + 3 * itemsize * c.hidden),
            draw_bytes=20 * c.vocab_size,
            spread_bytes=18 * c.vocab_size,
            tail_bytes=36 * c.residual_width + 10 * c.width + 22 * c.code_dim,
            held_bytes=8 * c.head_dim * (c.schedule().tokens + c.text_tokens)
            + 4 * c.width * (c.text_tokens + 6 * c.depth * bool(modulation)),
        )
