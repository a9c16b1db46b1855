"""VAR: class-conditional next-scale prediction (Tian et al. 2024; layout of FoundationVision/VAR, MIT).

Pre-norm blocks modulated by the class embedding, cosine self-attention over all scales so far, no cross-attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn

from ...errors import ConditionMismatch, ScheduleMismatch
from ...memory import BlockCausal
from ...schedule import Pass, ScaleSchedule
from ...tokens import DENSE
from ..base import TEXT_TOKENS, Cost, Defaults, NextScaleModel
from ..family import NoOptions, check_switch, check_whole
from ..layers import FeedForward, HeadNorm, Modulation, attention_gain, merge_heads, modulated_norm, on, unit_heads


@dataclass(frozen=True)
class VARConfig:
    """Sizes of a VAR transformer. depth, width, heads and vocabulary come from the weights' shapes."""

    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    depth: int = 16
    width: int = 1024
    heads: int = 16
    vocab_size: int = 4096
    code_dim: int = 32
    num_classes: int = 1000
    shared_aln: bool = False
    attn_l2_norm: bool = True
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    labels: tuple[str, ...] = ()
    defaults: Defaults = field(default_factory=lambda: Defaults(cfg=4.0, top_k=900, top_p=0.95))

    @property
    def hidden(self) -> int:
        return round(self.width * self.mlp_ratio)

    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.square(self.patch_nums)


@dataclass(frozen=True)
class VAROptions(NoOptions):
    """smooth: upstream's more_smooth, which is for demonstrations; from the scale smooth_from on."""

    smooth: bool = False
    smooth_from: int = 0

    def __post_init__(self):
        check_whole("smooth_from", self.smooth_from, least=0)
        check_switch("smooth", self.smooth)


@dataclass(frozen=True)
class ClassCondition:
    """Class ids (B,) int64; num_classes is the null class."""

    labels_B: Tensor

    @property
    def batch(self) -> int:
        return len(self.labels_B)


class SelfAttention(nn.Module):
    def __init__(self, config: VARConfig, ops):
        super().__init__()
        width, self.heads, self.is_cosine = config.width, config.heads, config.attn_l2_norm
        self.mat_qkv = ops.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        if self.is_cosine:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4)))
        self.proj = ops.Linear(width, width)

    def constants(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """The bias of queries, keys (none) and values, and the gain of queries and keys, where `like` lives."""
        q_bias, v_bias = on(self.q_bias, like), on(self.v_bias, like)
        gain = attention_gain(on(self.scale_mul_1H11, like)) if self.is_cosine else None
        return torch.cat([q_bias, torch.zeros_like(q_bias), v_bias]), gain

    def forward(self, x_RLC: Tensor, constants: tuple[Tensor, Tensor | None], layer: int, memory) -> Tensor:
        bias, gain = constants
        qkv_RL3HD = self.mat_qkv(x_RLC).add_(bias).unflatten(-1, (3, self.heads, -1))
        if self.is_cosine:
            qk_RL2HD = unit_heads(qkv_RL3HD[:, :, :2], gain).to(qkv_RL3HD.dtype)
            (q, k), v = qk_RL2HD.permute(2, 0, 3, 1, 4), qkv_RL3HD[:, :, 2].transpose(1, 2)
        else:
            q, k, v = qkv_RL3HD.permute(2, 0, 3, 1, 4)
        # without cosine attention upstream scales by a further quarter
        scale = 1.0 if self.is_cosine else 0.25 / math.sqrt(q.shape[-1])
        return self.proj(merge_heads(memory.attend(layer, q, k, v, scale=scale)))


@dataclass
class BlockInputs:
    """What one block reads besides the stream: modulation of the rows that run, constants of its attention."""

    layer: int
    modulation: list[Tensor]
    attention: tuple[Tensor, Tensor | None]


class Block(nn.Module):
    def __init__(self, config: VARConfig, ops):
        super().__init__()
        self.eps = config.norm_eps
        self.attn = SelfAttention(config, ops)
        self.ffn = FeedForward(config.width, config.hidden, ops)
        if config.shared_aln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, config.width))
        else:
            self.ada_lin = Modulation(config.width, 6, ops)

    def forward(self, x_RLC: Tensor, given: BlockInputs, tokens, memory) -> Tensor:
        gate1, gate2, gain1, gain2, shift1, shift2 = given.modulation

        def attention(x: Tensor) -> Tensor:
            return self.attn(modulated_norm(x, gain1, shift1, self.eps), given.attention, given.layer, memory)

        def mlp(x: Tensor) -> Tensor:
            return self.ffn(modulated_norm(x, gain2, shift2, self.eps))

        x_RLC = torch.addcmul(x_RLC, tokens.through(attention, x_RLC, site=(given.layer, "attn")), gate1)
        return torch.addcmul(x_RLC, tokens.through(mlp, x_RLC, site=(given.layer, "ffn")), gate2)


@dataclass
class VARRun:
    """What is constant for one image batch: condition, modulation of every block and of the head, position table."""

    condition_R1C: Tensor
    blocks: list[tuple[Tensor, ...]]
    attention: list[tuple[Tensor, Tensor | None]]
    head: tuple[Tensor, Tensor]
    running: slice
    guidance: float = 0.0
    place_1LC: Tensor | None = None  # of the whole schedule, made with the first scale

    def block(self, layer: int) -> BlockInputs:
        return BlockInputs(layer, [m[self.running] for m in self.blocks[layer]], self.attention[layer])


class VAR(NextScaleModel):
    """The VAR transformer under upstream's key names. See NextScaleModel for the interface."""

    family = "var"
    neutral_cfg = 0.0
    first_layer = 0
    Options = VAROptions

    def __init__(self, config: VARConfig, ops=nn):
        super().__init__(config)
        width, tokens = config.width, sum(p * p for p in config.patch_nums)
        self.word_embed = ops.Linear(config.code_dim, width)
        self.class_emb = ops.Embedding(config.num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, tokens, width))
        self.lvl_embed = ops.Embedding(len(config.patch_nums), width)
        if config.shared_aln:
            self.shared_ada_lin = Modulation(width, 6, ops)
        self.blocks = nn.ModuleList(Block(config, ops) for _ in range(config.depth))
        self.head_nm = HeadNorm(width, ops)
        self.head = ops.Linear(width, config.vocab_size)

    # condition and schedule ------------------------------------------------------------------

    def class_condition(self, labels: Sequence[int] | Tensor) -> ClassCondition:
        """Condition of a batch of class ids; a negative id or num_classes is the null class.

        Raises ConditionMismatch for an empty batch or an id above num_classes.
        """
        null = self.config.num_classes
        try:
            ids = torch.as_tensor(labels).flatten()
            is_valid = len(ids) > 0 and not ids.is_floating_point() and int(ids.max()) <= null
        except (TypeError, ValueError, RuntimeError):  # names, nested lists
            is_valid = False
        if not is_valid:
            raise ConditionMismatch(
                f"Class ids {labels!r} are not all whole numbers below {null}.",
                f"Give at least one id from 0 to {null - 1}, or -1 for no class.",
            )
        return ClassCondition(torch.where(ids < 0, null, ids.long()))

    @property
    def code_format(self) -> str:
        return f"{self.config.vocab_size} codes of {self.config.code_dim} channels"

    def unconditional(self, condition: ClassCondition) -> ClassCondition:
        return ClassCondition(torch.full_like(condition.labels_B, self.config.num_classes))

    def schedule(self, aspect_ratio: float = 1.0, size=None, seconds=None, variant=None) -> ScaleSchedule:
        """The one schedule the weights know; VAR is square and of one size. Raises ScheduleMismatch for anything
        else."""
        edge = self.config.patch_nums[-1]
        if not abs(aspect_ratio - 1) <= 1e-6:  # NaN too
            raise ScheduleMismatch(
                f"Aspect ratio {aspect_ratio} is not one VAR was trained for.", "VAR makes square pictures: use 1."
            )
        if seconds or variant:
            raise ScheduleMismatch("VAR makes still pictures and has no variants.", "Leave seconds and variant empty.")
        if size is not None and str(size) not in {name for name, _ in self.sizes()} | {str(edge * 16)}:
            raise ScheduleMismatch(
                f"Size {size!r} is not one this model knows.", f"Its final grid is {edge}x{edge} tokens."
            )
        return self.config.schedule()

    def check_schedule(self, schedule: ScaleSchedule) -> None:
        if any(s.t != 1 for s in schedule):
            raise ScheduleMismatch(
                f"The schedule {schedule.describe()} is a video's; VAR makes still pictures.", "Use scales with t = 1."
            )
        if len(schedule) > len(self.config.patch_nums) or schedule.tokens > self.pos_1LC.shape[1]:
            raise ScheduleMismatch(
                f"The schedule {schedule.describe()} has {len(schedule)} scales and {schedule.tokens} tokens; this "
                "VAR has "
                f"{len(self.config.patch_nums)} level and {self.pos_1LC.shape[1]} position embeddings.",
                f"Use the model's own schedule, {self.config.schedule().describe()}.",
            )

    def guidance_weights(self, cfg: float, schedule: ScaleSchedule) -> list[float]:
        """Guidance per pass: t = cfg * s / (S - 1), logits = (1 + t) conditional - t unconditional (VAR's ramp)."""
        return [cfg * self.progress(step.scale_index, schedule) for step in schedule.passes]

    # one image batch -------------------------------------------------------------------------

    def begin(self, condition: ClassCondition, negative: ClassCondition | None, device, options=None) -> VARRun:
        labels_R = torch.cat([condition.labels_B, negative.labels_B]) if negative is not None else condition.labels_B
        cond_RC = self.class_emb(labels_R.to(device)).to(self.dtype)
        if self.config.shared_aln:
            shared_R16C = rearrange(self.shared_ada_lin(cond_RC), "r (six c) -> r 1 six c", six=6)
            blocks = [self._gains((shared_R16C + on(b.ada_gss, shared_R16C)).unbind(2)) for b in self.blocks]
        else:
            blocks = [
                self._gains(rearrange(b.ada_lin(cond_RC), "r (six c) -> six r 1 c", six=6).unbind(0))
                for b in self.blocks
            ]
        gain, shift = rearrange(self.head_nm.ada_lin(cond_RC), "r (two c) -> two r 1 c", two=2).unbind(0)
        return VARRun(
            condition_R1C=cond_RC.unsqueeze(1),
            blocks=blocks,
            attention=[b.attn.constants(cond_RC) for b in self.blocks],
            head=(gain + 1, shift),
            running=slice(0, len(labels_R)),
        )

    @staticmethod
    def _gains(chunks: Sequence[Tensor]) -> tuple[Tensor, ...]:
        gate1, gate2, scale1, scale2, shift1, shift2 = chunks
        return gate1, gate2, scale1 + 1, scale2 + 1, shift1, shift2

    def positions(self, schedule: ScaleSchedule, like: Tensor) -> Tensor:
        """Level plus absolute position embedding of every token of the schedule, (1, L, C)."""
        level_L = torch.cat([torch.full((s.tokens,), i, device=like.device) for i, s in enumerate(schedule)])
        return (self.lvl_embed(level_L)[None] + on(self.pos_1LC, like)[:, : len(level_L)]).to(like.dtype)

    def embed(self, run: VARRun, f_BCHW: Tensor | None, step: Pass, schedule: ScaleSchedule) -> Tensor:
        """Residual stream entering block 0, (rows, L, C). f_BCHW: the quantiser's next_input; None for the first
        scale."""
        start = sum(s.tokens for s in schedule.scales[: step.scale_index])
        if run.place_1LC is None:
            run.place_1LC = self.positions(schedule, run.condition_R1C)
        place_1LC = run.place_1LC[:, start : start + step.scale.tokens]
        if f_BCHW is None:
            return (
                run.condition_R1C[run.running].expand(-1, step.scale.tokens, -1)
                + on(self.pos_start, place_1LC)
                + place_1LC
            )
        x_BLC = self.word_embed(rearrange(f_BCHW, "b c h w -> b (h w) c").to(self.dtype)) + place_1LC
        rows = run.running.stop - run.running.start
        return x_BLC.repeat(rows // len(x_BLC), 1, 1)

    def blocks_forward(self, run: VARRun, x_RLC: Tensor, tokens, memory) -> Tensor:
        for layer, block in enumerate(self.blocks):
            x_RLC = tokens.enter(layer, x_RLC)
            x_RLC = block(x_RLC, run.block(layer), tokens, memory)
        return tokens.leave(x_RLC)

    def logits(self, run: VARRun, x_RLC: Tensor, rows: slice, step: Pass | None = None) -> Tensor:
        """(rows, L, V) float32. rows: which of the run's rows x_RLC holds."""
        gain, shift = run.head
        return self.head(modulated_norm(x_RLC, gain[rows], shift[rows], self.config.norm_eps)).float()

    def teacher_forced(self, labels_B: Tensor, inputs_BLC: Tensor) -> Tensor:
        """Logits (B, L, V) of the whole schedule in one block-causal pass, differentiable.

        labels_B: int64 class ids. inputs_BLC: (B, L - first, code_dim), what the quantiser's next_input gives for
        scales 1…S-1, row-major, concatenated (VAR figure 4, training).
        """
        schedule = self.config.schedule()
        run = self.begin(ClassCondition(labels_B), None, labels_B.device)
        memory = BlockCausal([s.tokens for s in schedule], labels_B.device)
        place_1LC = self.positions(schedule, run.condition_R1C)
        first = schedule.scales[0].tokens
        x_BLC = (
            torch.cat(
                [
                    run.condition_R1C.expand(-1, first, -1) + on(self.pos_start, place_1LC),
                    self.word_embed(inputs_BLC.to(self.dtype)),
                ],
                dim=1,
            )
            + place_1LC
        )
        return self.logits(run, self.blocks_forward(run, x_BLC, DENSE, memory), run.running)

    # numbers ---------------------------------------------------------------------------------

    def cost(self, text_tokens: int = TEXT_TOKENS) -> Cost:
        c = self.config
        return Cost(
            layers=c.depth,
            width=c.width,
            heads=c.heads,
            head_dim=c.width // c.heads,
            linear_per_token=2 * (4 * c.width * c.width + 2 * c.width * c.hidden),
            head_per_token=2 * c.width * c.vocab_size,
            embed_per_token=2 * c.code_dim * c.width,
            per_run_and_row=2 * c.width * (6 * c.width * (1 if c.shared_aln else c.depth) + 2 * c.width),
            block_bytes=12 * c.width * self.dtype.itemsize,
            draw_bytes=29 * c.vocab_size,
            held_bytes=6 * c.depth * c.width * self.dtype.itemsize,
        )
