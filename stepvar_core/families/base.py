"""What every model family offers the sampler: a new family's model is a subclass of NextScaleModel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import guidance
from ..codes import Drawn
from ..errors import ConditionMismatch, OptionError
from ..guidance import PassSettings, Strength, combine, is_on
from ..schedule import Pass, ScaleSchedule
from .family import NoOptions
from .layers import place_blocks

TEXT_TOKENS = 50  # a prompt of two sentences: what costs are quoted for


@dataclass(frozen=True)
class Defaults:
    """A family's official sampling settings; 0 switches top_k and top_p off."""

    cfg: float
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0


@dataclass(frozen=True)
class Cost:
    """FLOPs (2 per multiply-add) and bytes the cost model is built from, per row of the batch; see planning/cost.py.

    The bytes were counted on a device that counts them (tests/core/test_peak_memory.py): attention stores no scores.
    """

    layers: int
    width: int
    heads: int
    head_dim: int
    linear_per_token: int  # one block's linears, one token
    head_per_token: int
    embed_per_token: int  # per image and token: both guidance rows share it
    per_run_and_row: int  # once per image batch and row: modulation, text keys and values
    cross_per_token: int = 0  # one block's cross-attention products, one token
    lead_tokens: int = 0  # a text that runs, and stays in the cache, before the first scale's own tokens
    tail_per_token: int = 0  # what follows the last scale's codes, one token (HART's residual diffusion)
    tail_bytes: int = 0  # the most it holds, one token
    per_run: int = 0  # once per image batch
    block_bytes: int = 0  # the most a block holds per token that runs, its stream included
    draw_bytes: int = 0  # from head to code, per position and picture
    spread_bytes: int = 0  # of it, what a position without an answer of its own takes; 0 = half
    held_bytes: int = 0  # per image batch and row: modulation, text keys and values


class NextScaleModel(nn.Module):
    """Base of all families.

    Class attributes: family (registry name), neutral_cfg (the cfg that means no guidance), first_layer (where StepVAR
    reads its features by default), Options (its switches, see family.NoOptions), skips (how many of the last scales its
    papers leave out at full size). `config` is the family's frozen dataclass and has `defaults`. compute_dtype: what
    the stream is computed in where a host stores the weights in another type; None = the weights' own.
    """

    family: str
    neutral_cfg: float
    first_layer: int = 0
    Options: type[NoOptions] = NoOptions
    skips: int = 0

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None

    def place(self, device, dtype: torch.dtype):
        """Moves and casts the weights; families keep what must stay float32.

        In one byte per number (fp8, where the host's layers cast per call) only the linears' matrices are stored:
        embeddings, gains and biases are small, and their rounding would be seen.
        """
        if dtype.itemsize > 1:
            return self.to(device=device, dtype=dtype)
        for name, parameter in self.named_parameters():
            is_matrix = name.endswith("weight") and parameter.ndim == 2 and "emb" not in name
            parameter.data = parameter.data.to(device=device, dtype=dtype if is_matrix else parameter.dtype)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the residual stream is computed in."""
        return self.compute_dtype or next(self.parameters()).dtype

    @property
    def weight_device(self) -> torch.device:
        """Where the weights are now; `device` is a name hosts set on the modules they manage."""
        return next(self.parameters()).device

    def class_condition(self, labels):
        raise ConditionMismatch(f"The {self.family} family is not class-conditional.", "Use text_condition().")

    def text_condition(self, features_BTC: Tensor, mask_BT: Tensor | None = None, pooled_BC: Tensor | None = None):
        raise ConditionMismatch(f"The {self.family} family takes class labels, not text.", "Use class_condition().")

    @property
    def full_scales(self) -> int:
        """Scales of the family's full-size schedule; presets that skip scales look at it."""
        return len(self.schedule())

    def sizes(self) -> list[tuple[str, ScaleSchedule]]:
        """Names of the sizes the model knows, with the square schedule of each."""
        return []

    @property
    def code_format(self) -> str:
        """What the head predicts, in the words of the quantiser it belongs with."""
        raise NotImplementedError

    def own_quantizer(self):
        """A quantiser for sampling without a VAE, where the family's needs no weights."""
        raise ConditionMismatch(
            f"The {self.family} family needs its VAE's codebook while it samples.", "Pass the VAE too."
        )

    def latent_shape(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        """(C, H, W) of the latent a run over `schedule` makes."""
        return self.config.code_dim, schedule.final.h, schedule.final.w

    def guidance_places(self, layers: int | Sequence[int]) -> frozenset:
        """Where guidance_layers puts guidance: "logits", and the indices of blocks after which hidden states are
        mixed."""
        if layers not in (0, (0,), [0]):
            raise OptionError(
                f"guidance_layers is {layers!r}; the {self.family} family guides on the logits.", "Leave it out."
            )
        return frozenset({"logits"})

    def unconditional(self, condition):
        """The family's own negative for `condition`."""
        raise NotImplementedError

    def schedule(
        self, aspect_ratio: float = 1.0, size=None, seconds: float | None = None, variant: str | None = None
    ) -> ScaleSchedule:
        raise NotImplementedError

    def check_schedule(self, schedule: ScaleSchedule) -> None:
        """Raises ScheduleMismatch when the weights cannot run this schedule."""

    def guidance_weights(self, cfg: float, schedule: ScaleSchedule) -> list[float]:
        """Per pass the t of logits = (1 + t) conditional - t unconditional."""
        raise NotImplementedError

    def progress(self, scale_index: int, schedule: ScaleSchedule) -> float:
        """How far through the schedule a scale is, 0 to 1, as ramps and smoothing count it."""
        return scale_index / max(len(schedule) - 1, 1)

    def default_top_k(self, schedule: ScaleSchedule) -> list[int]:
        """The official top_k of every scale."""
        return [self.config.defaults.top_k] * len(schedule)

    def lead_tokens(self, condition) -> int:
        """Tokens that run before the first scale's own, in its pass."""
        return 0

    def sees(self, step: Pass, schedule: ScaleSchedule) -> Sequence[int]:
        """Indices of the earlier passes whose keys this one reads. What no later pass reads is not stored."""
        return range(step.index)

    def per_pass(
        self, schedule: ScaleSchedule, options, *, cfg=None, temperature=None, top_k=None, top_p=None
    ) -> PassSettings:
        """How every pass draws: what the caller said, one number or a list per scale, over the official defaults.

        Raises OptionError. A family whose options change single passes, or whose ramps are its own, adds them here.
        """
        defaults, places = self.config.defaults, self.guidance_places(options.guidance_layers)
        top_ks = guidance.per_scale("top_k", top_k, self.default_top_k(schedule), schedule)
        temperatures = guidance.per_scale("temperature", temperature, defaults.temperature, schedule)
        top_ps = guidance.per_scale("top_p", top_p, defaults.top_p, schedule)
        settings = PassSettings(
            weights=guidance.weights(self, cfg, schedule) if places else [0.0] * len(schedule.passes),
            temperature=[guidance.positive("temperature", value) for value in temperatures],
            top_k=[guidance.count("top_k", value) for value in top_ks],
            top_p=[guidance.share("top_p", value) for value in top_ps],
            smooth=[options.smooth and step.scale_index >= options.smooth_from for step in schedule.passes],
        )
        # with one choice left the smoothed features are the code's own
        return replace(settings, smooth=[s and k != 1 for s, k in zip(settings.smooth, settings.top_k)])

    def decide(self, job):
        """The last word on a run before it starts: the same job, or one with what only the family knows (its parts).

        Fills in the negative where one is needed. Raises the package's errors for what the family cannot do.
        """
        if max(job.rows(job.plans)) <= job.batch:
            return replace(job, negative=None)
        return job if job.negative is not None else replace(job, negative=self.unconditional(job.condition))

    def begin(self, condition, negative, device, options=None):
        """Everything constant over the scales of one image batch; conditional rows first, then unconditional.

        options: sampler.Options, None = defaults. Before every pass the sampler sets
               `rows` of what this returns, the slice of rows that run, and `guidance`, the t of guidance.combine or 0.
        """
        raise NotImplementedError

    def embed(self, run, features: Tensor | None, step: Pass, schedule: ScaleSchedule) -> Tensor:
        raise NotImplementedError

    def embed_together(
        self, run, features: Sequence[Tensor | None], steps: Sequence[Pass], schedule: ScaleSchedule
    ) -> Tensor:
        """The streams of several passes one after the other, (rows, L, C), for one block-causal run of the blocks."""
        return torch.cat([self.embed(run, f, step, schedule) for f, step in zip(features, steps)], dim=1)

    def blocks_forward(self, run, x_RLC: Tensor, tokens, memory) -> Tensor:
        """The stream behind all blocks. tokens: a token plan (tokens.py). memory: what `attend` is asked of."""
        raise NotImplementedError

    def logits(self, run, x_RLC: Tensor, rows: slice, step: Pass | None = None) -> Tensor:
        """The head's answer, (rows, L, V) float32. rows: which of the run's rows x_RLC holds. step: the pass."""
        raise NotImplementedError

    def guide(self, logits_RLV: Tensor, t: Strength, temperature: float) -> Tensor:
        """One answer per picture, (B, L, V). t: the strength of guidance.combine; 0 where one half came in."""
        logits_BLV = combine(logits_RLV, t) if is_on(t) else logits_RLV
        return logits_BLV / temperature if temperature != 1 else logits_BLV

    def predict(self, turn) -> list[Drawn]:
        """Codes of the passes of a sampler.Turn: the blocks, then what the turn makes of their answer."""
        return turn.answer(self.blocks_forward(turn.run, turn.enter(), turn.tokens, turn.memory()))

    def cost(self, text_tokens: int = TEXT_TOKENS) -> Cost:
        """text_tokens: length of the prompt, for families that read one."""
        raise NotImplementedError


class HalfBlocksModel(NextScaleModel):
    """A model of which hosts cast the linears of its `blocks` alone: stream, norms and all around them stay float32.

    Its run has a `table` of positions, made by `embed` for the tokens of the pass.
    """

    blocks: Any  # of nn.Module

    def place(self, device, dtype: torch.dtype):
        """Casts the blocks' linears alone, as upstream does."""
        place_blocks(self, self.blocks, device, dtype)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the blocks' linears and the cache; the residual stream is float32."""
        linear = next(module for module in self.blocks[0].modules() if isinstance(module, nn.Linear))
        return self.compute_dtype or linear.weight.dtype

    def embed_together(
        self, run, features: Sequence[Tensor | None], steps: Sequence[Pass], schedule: ScaleSchedule
    ) -> Tensor:
        streams, tables = [], []
        for f_BCHW, step in zip(features, steps):
            streams.append(self.embed(run, f_BCHW, step, schedule))
            tables.append(run.table)
        run.table = torch.cat(tables, dim=1)
        return torch.cat(streams, dim=1)
