"""The scale loop: next-scale prediction, one pass after the other (VAR algorithm 2; StepVAR algorithm 1).

`prepare` checks everything at the door and fixes every size on the host; `scale_steps` is the loop, a generator of
ScaleStep that previews and overlays may watch; `sample` runs it to the end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from . import guidance
from .errors import ConditionMismatch, LatentMismatch, OptionError, ShapeMismatch
from .memory import BlockCausal, KVCache
from .methods.policy import About, NoPruning, PassPlan, Policy, PolicyRun, due, rows_per_pass
from .schedule import Pass, Scale, ScaleSchedule
from .token_sampling import Streams, maskgit_counts, smooth_probs, upload
from .tokens import DENSE, PartTokens
from .trace import ScaleTrace, Trace

log = logging.getLogger(__name__)

KEEP_WHOLE = 3  # a grid of at most this many tokens is never redrawn in part: VAR's editing takes it from the picture


class Clock:
    """Seconds between two points of the device's work; with CUDA, events that are read once the loop is over."""

    def __init__(self, device: torch.device):
        self.is_cuda = device.type == "cuda"

    def mark(self):
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start, stop) -> float:
        if not self.is_cuda:
            return stop - start
        stop.synchronize()
        return start.elapsed_time(stop) / 1000


@dataclass
class ScaleStep:
    """What one pass produced. Tensors are the loop's own, on its device: read them, do not change them.

    codes: (B, L) ids or (B, L, bits), the quantiser's `nothing` where nothing was added, L = 0 for a skipped pass.
    f_hat: accumulated so far. logits: (B, L, V) after guidance, before filtering, for the tokens the head ran on;
    None when the codes were forced.
    kept: (B, t, h, w) bool. plans: of all passes, as the method plans them now. Reading `seconds` waits for the device.
    """

    step: Pass
    codes: Tensor
    f_hat: Tensor
    kept: Tensor
    tokens_run: int
    logits: Tensor | None
    soft: Tensor | None
    scores: object | None
    is_forced: bool
    passes: int
    clock: Clock
    marks: tuple
    plans: Sequence[PassPlan]

    @property
    def index(self) -> int:
        return self.step.index

    @property
    def seconds(self) -> float:
        return self.clock.seconds(*self.marks)


@dataclass(frozen=True)
class Result:
    """codes: per pass (B, L) int64 ids or (B, L, bits) uint8. latent: f_hat (B, C, H, W) float32. soft: per pass the
    features added where they are not the codes' own, smoothed or with a residual, else None. schedule: what the codes
    belong to."""

    codes: list[Tensor]
    latent: Tensor
    trace: Trace
    schedule: ScaleSchedule
    soft: list[Tensor | None] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """One run, fully decided: nothing below is looked up or checked again inside the loop."""

    model: object
    quantizer: object
    condition: object
    negative: object | None
    schedule: ScaleSchedule
    policy: Policy
    about: About
    plans: list[PassPlan]  # the most that may run; what does is the policy run's to say
    rows: list[int]
    weights: list[float]
    temperature: list[float]
    top_k: list[int]
    top_p: list[float]
    streams: Streams
    options: object  # the family's switches
    guides_logits: bool  # False where guidance is applied inside the model alone
    guides_layers: bool  # True where guidance mixes hidden states between blocks
    forced: list[Tensor | None]  # codes that replace drawn ones, per pass
    forced_soft: list[Tensor | None]
    redraw: list[Tensor | None]  # bool (B, L): where drawn codes stay; None = the whole pass is forced or drawn
    device: torch.device
    stop: int  # passes to run
    parts: tuple[Tensor, ...]  # positions (B, K) of every step of the last pass; none where it runs as one
    keep_scores: bool = False
    heartbeat: Callable[[], None] | None = None

    @property
    def batch(self) -> int:
        return self.condition.batch

    @property
    def passes(self) -> tuple[Pass, ...]:
        return self.schedule.passes[: self.stop]

    def new_cache(self) -> KVCache:
        cost = self.model.cost()
        running = [p for p in self.plans[: self.stop] if not p.is_skipped]
        return KVCache(
            [self._tokens_run(running, layer) for layer in range(cost.layers)],
            max(self.rows[: self.stop]),
            cost.heads,
            cost.head_dim,
            self.model.dtype,
            self.device,
            self.heartbeat,
        )

    def _tokens_run(self, running: list[PassPlan], layer: int) -> list[int]:
        """Tokens of one layer in every run of the blocks."""
        counts = [p.layer_tokens(layer) for p in running]
        counts[0] += self.lead
        return counts[:-1] + [part.shape[1] for part in self.parts] if self.parts else counts

    @property
    def lead(self) -> int:
        return self.model.lead_tokens(self.condition)

    def has_residual(self, step: Pass) -> bool:
        return self.model.has_residual and self.options.residual and step.scale_index == len(self.schedule) - 1

    def guidance(self, index: int, rows: slice) -> float:
        """The t of guidance.combine in a pass that runs both halves, else 0."""
        return self.weights[index] if rows == slice(0, 2 * self.batch) else 0.0

    def slice_of_rows(self, index: int, plans: Sequence[PassPlan]) -> slice:
        """The rows that run in a pass: conditional rows come first, unconditional ones second."""
        if plans[index].halves == "unconditional" and self.negative is not None:
            return slice(self.batch, 2 * self.batch)
        return slice(0, rows_per_pass(plans[: self.stop], self.weights[: self.stop], self.batch)[index])


@torch.inference_mode()
def scale_steps(job: Job) -> Iterator[ScaleStep]:
    """The scale loop. Closing the generator early, or an exception in it, drops the cache with its frame."""
    model, quantizer, schedule, clock = job.model, job.quantizer, job.schedule, Clock(job.device)
    cache = job.new_cache()
    run = model.begin(job.condition, job.negative, cache, job.device, job.options)
    pruning = job.policy.begin(job.about, job.plans)
    f_hat = quantizer.empty(job.batch, schedule, job.device)
    together = _forced_prefix(job, pruning)
    if together:
        f_hat = yield from _run_together(job, run, cache, f_hat, clock, together, pruning)
    for step in job.passes[len(together) :]:
        start, plan = clock.mark(), due(pruning, job.plans, step.index)
        if plan.is_skipped:
            done = _skipped(job, step, f_hat, clock, start, pruning)
            pruning.observe(done)
            yield done
            continue
        features = quantizer.next_input(f_hat, step.scale) if step.index else None
        run.rows = cache.rows = job.slice_of_rows(step.index, pruning.plans)
        run.guidance = job.guidance(step.index, run.rows)
        tokens = pruning.tokens((step,), run.rows)
        drawn = _predicted(job, step, run, features, tokens)
        h = drawn.soft if drawn.soft is not None else quantizer.lookup(drawn.codes, step.scale)
        f_hat = f_hat + quantizer.contribution(h, step, schedule, drawn.added)
        kept = tokens.kept_BN()
        done = ScaleStep(
            step,
            drawn.codes,
            f_hat,
            _full_map(job, step) if kept is None else kept.view(-1, *step.scale.grid),
            plan.fewest,
            drawn.logits,
            drawn.soft,
            tokens.scores if job.keep_scores else None,
            drawn.is_forced,
            len(job.passes),
            clock,
            (start, clock.mark()),
            pruning.plans,
        )
        pruning.observe(done)
        yield done
        del features, drawn, h, tokens, kept, done  # or they would lie beside the next scale's


def _forced_prefix(job: Job, pruning: PolicyRun) -> tuple[Pass, ...]:
    """The leading passes that are forced and dense and so need not wait for each other; none when there is only one.

    The last pass that runs is left out: the cache keeps no slot for it. Together they are no larger than the largest
    pass alone, or the run would take more memory than was made room for.
    """
    room = max(plan.fewest for plan in job.plans)
    prefix, last = [], max(step.index for step in job.passes if not job.plans[step.index].is_skipped)
    for step in job.passes[:last]:
        i, rows = step.index, job.slice_of_rows(step.index, pruning.plans)
        is_forced = job.forced[i] is not None and job.redraw[i] is None
        is_first = rows == job.slice_of_rows(0, pruning.plans)
        if not is_forced or not pruning.plans[i].is_dense or not is_first or job.guides_layers:
            break
        if pruning.tokens((step,), rows) is not DENSE or i - 1 in pruning.decides_after:
            break
        room -= step.scale.tokens
        if room < 0:
            break
        prefix.append(step)
    return tuple(prefix) if len(prefix) > 1 else ()


def _run_together(
    job: Job, run, cache: KVCache, f_hat: Tensor, clock: Clock, steps: tuple[Pass, ...], pruning: PolicyRun
) -> Iterator[ScaleStep]:
    """One block-causal pass over forced scales, as in training: fills the cache, yields their steps, returns f_hat."""
    start, quantizer, features, done = clock.mark(), job.quantizer, [], []
    for step in steps:
        features.append(quantizer.next_input(f_hat, step.scale) if step.index else None)
        drawn = _forced(job, step)
        h = drawn.soft if drawn.soft is not None else quantizer.lookup(drawn.codes, step.scale)
        f_hat = f_hat + quantizer.contribution(h, step, job.schedule, drawn.added)
        done.append((step, drawn, f_hat))
    run.rows = cache.rows = job.slice_of_rows(0, pruning.plans)
    run.guidance = 0.0
    cache.together = BlockCausal([step.scale.tokens + (0 if step.index else job.lead) for step in steps], job.device)
    job.model.blocks_forward(run, job.model.embed_together(run, features, steps, job.schedule))
    cache.together = None
    stop = clock.mark()
    for step, drawn, f_hat in done:  # the first of them carries the time of all
        one = ScaleStep(
            step,
            drawn.codes,
            f_hat,
            _full_map(job, step),
            step.scale.tokens,
            None,
            drawn.soft,
            None,
            True,
            len(job.passes),
            clock,
            (stop if step.index else start, stop),
            pruning.plans,
        )
        pruning.observe(one)
        yield one
    return f_hat


@dataclass
class Drawn:
    """Codes of one pass and how they came about. added: bool (B, L), False where nothing is added; None =
    everywhere."""

    codes: Tensor
    soft: Tensor | None = None
    added: Tensor | None = None
    logits: Tensor | None = None
    is_forced: bool = False


def _predicted(job: Job, step: Pass, run, features: Tensor | None, tokens) -> Drawn:
    """The blocks, then this pass's codes: forced, or drawn and laid over the given ones."""
    if job.parts and step.index == len(job.schedule.passes) - 1:
        return _merged(
            job, step, _drawn_in_parts(job, step, run, job.model.embed(run, features, step, job.schedule)), tokens
        )
    x_RLC = job.model.blocks_forward(run, job.model.embed(run, features, step, job.schedule), tokens)
    return _forced(job, step) or _merged(job, step, _drawn(job, step, run, x_RLC, tokens), tokens)


def _forced(job: Job, step: Pass) -> Drawn | None:
    codes = job.forced[step.index]
    if codes is None or job.redraw[step.index] is not None:
        return None
    return Drawn(codes, job.forced_soft[step.index], job.quantizer.is_added(codes), is_forced=True)


def _drawn(job: Job, step: Pass, run, x_RLC: Tensor, tokens) -> Drawn:
    """Head, guidance, filtering and one draw for every position of the grid."""
    i, batch, quantizer = step.index, job.batch, job.quantizer
    t = run.guidance
    if t and job.guides_logits:
        logits = guidance.combine(job.model.logits(run, x_RLC, run.rows), t)
    else:
        logits = job.model.logits(run, x_RLC[:batch], slice(run.rows.start, run.rows.start + batch))
    if job.temperature[i] != 1:
        logits = logits / job.temperature[i]
    choices = tokens.spread(quantizer.filtered(logits, job.top_k[i], job.top_p[i]))
    codes = quantizer.best(choices) if job.top_k[i] == 1 else quantizer.draw(choices, job.streams, i)
    soft = None
    # with one choice left the smoothed features are the code's own
    if job.options.smooth and step.scale_index >= job.options.smooth_from and job.top_k[i] != 1:
        progress = job.model.progress(step.scale_index, job.schedule)
        gumbel = job.streams.gumbel("gumbel", i, tuple(choices.shape[1:]), job.device)
        soft = quantizer.expected(smooth_probs(choices, gumbel, progress), step.scale)
    if job.has_residual(step):
        hard = quantizer.lookup(codes, step.scale)
        soft = (hard if soft is None else soft) + job.model.residual(
            run, tokens.spread(x_RLC), hard, partial(_gaussian, job, i)
        )
    return Drawn(codes, soft, None, logits)


def _gaussian(job: Job, pass_index: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers on the device for one step of the residual, which may be stopped before it."""
    if job.heartbeat is not None:
        job.heartbeat()
    return upload(job.streams.gaussian(name, pass_index, shape), job.device)


def _drawn_in_parts(job: Job, step: Pass, run, entry_RLC: Tensor) -> Drawn:
    """MaskGIT: the positions in several steps, each of which sees the keys of those before it."""
    drawn = []
    for n, index_BK in enumerate(job.parts):
        part = replace(step, scale=Scale(1, 1, index_BK.shape[1]))
        tokens = PartTokens(index_BK)
        x_RKC = job.model.blocks_forward(run, entry_RLC, tokens)
        drawn.append(_drawn(replace(job, streams=replace(job.streams, part=n)), part, run, x_RKC, tokens))
    place_BL = torch.cat(job.parts, 1).argsort(-1)  # of every position among those drawn one after the other

    def in_place(values_BLX: Tensor) -> Tensor:
        return values_BLX.gather(1, place_BL.unsqueeze(-1).expand(-1, -1, values_BLX.shape[-1]))

    soft = None
    if drawn[0].soft is not None:
        soft = in_place(torch.cat([d.soft.flatten(2) for d in drawn], 2).transpose(1, 2))
        soft = soft.transpose(1, 2).unflatten(2, (step.scale.h, step.scale.w))
    return Drawn(
        torch.cat([d.codes for d in drawn], 1).gather(1, place_BL),
        soft,
        None,
        in_place(torch.cat([d.logits for d in drawn], 1)),
    )


def _merged(job: Job, step: Pass, drawn: Drawn, tokens) -> Drawn:
    """Drawn codes where the pass adds something and where they may replace the given ones."""
    quantizer, batch, codes, soft = job.quantizer, job.batch, drawn.codes, drawn.soft
    added = tokens.added_BN
    if added is not None:
        codes = codes.masked_fill(~_per_token(added, codes), quantizer.nothing)
    if job.redraw[step.index] is not None:
        is_drawn, i = job.redraw[step.index], step.index
        given = job.forced_soft[i]
        if (
            soft is not None or given is not None
        ):  # either may be codes alone: a smoothed picture redrawn without smoothing
            soft = quantizer.lookup(codes, step.scale) if soft is None else soft
            given = quantizer.lookup(job.forced[i], step.scale) if given is None else given
            soft = torch.where(is_drawn.view(batch, 1, *given.shape[2:]), soft, given)
        codes = torch.where(_per_token(is_drawn, codes), codes, job.forced[i])
        added = quantizer.is_added(codes)
    return replace(drawn, codes=codes, soft=soft, added=added)


def _per_token(mask_BL: Tensor, codes: Tensor) -> Tensor:
    """The mask with as many axes as the codes have."""
    return mask_BL.view(mask_BL.shape + (1,) * (codes.ndim - 2))


def _full_map(job: Job, step: Pass) -> Tensor:
    return torch.ones(job.batch, *step.scale.grid, dtype=torch.bool, device=job.device)


def _skipped(job: Job, step: Pass, f_hat: Tensor, clock: Clock, start, pruning: PolicyRun) -> ScaleStep:
    empty = job.quantizer.no_codes(job.batch, 0, job.device)
    return ScaleStep(
        step,
        empty,
        f_hat,
        ~_full_map(job, step),
        0,
        None,
        None,
        None,
        False,
        len(job.passes),
        clock,
        (start, clock.mark()),
        pruning.plans,
    )


# at the door --------------------------------------------------------------------------------------


def prepare(
    model,
    vae,
    cond,
    *,
    schedule: ScaleSchedule,
    negative=None,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    cfg=None,
    temperature=None,
    top_k=None,
    top_p=None,
    pruning=None,
    codes=None,
    start_at_scale: int = 0,
    end_at_scale: int | None = None,
    mask: Tensor | None = None,
    options: dict | None = None,
    keep_scores: bool = False,
    draw: Callable | None = None,
    noise: Callable | None = None,
    device=None,
    heartbeat: Callable[[], None] | None = None,
) -> Job:
    """Checks the arguments of `sample` against each other and returns the decided run. Raises the package's errors.

    device: where to compute; None = where the model's weights are. heartbeat: called once per layer, may raise to stop.
    """
    if not isinstance(schedule, ScaleSchedule):
        schedule = ScaleSchedule(schedule)
    model.check_schedule(schedule)
    defaults, batch = model.config.defaults, cond.batch
    if negative is not None and negative.batch != batch:
        raise ConditionMismatch(
            f"The negative holds {negative.batch} pictures; the batch has {batch}.", "Give one negative per picture."
        )
    if rows is not None and len(rows) != batch:
        raise OptionError(f"rows names {len(rows)} pictures; the batch has {batch}.", "Give one number per picture.")
    policy = (pruning or NoPruning()).resolve(model, schedule)
    options = model.Options.read(options)
    where = model.guidance_places(options.guidance_layers)
    weights = guidance.weights(model, cfg, schedule) if where else [0.0] * len(schedule.passes)
    device = torch.device(device) if device is not None else model.weight_device
    streams = Streams(int(seed), tuple(rows) if rows is not None else tuple(range(batch)), draw, noise)
    about = About.of(model, schedule, batch, device, streams.uniform)
    plans = policy.plan(about)
    stop = _passes_before(schedule, len(schedule) if end_at_scale is None else end_at_scale, "end_at_scale")
    first = _passes_before(schedule, start_at_scale, "start_at_scale")
    if stop < 1:
        raise OptionError("end_at_scale is 0: nothing would run.", "Use at least 1, or leave it out for all scales.")
    running = rows_per_pass(plans[:stop], weights[:stop], batch)
    needs_negative = max(running) > batch
    quantizer = vae.quantizer_on(device) if vae is not None else model.own_quantizer()
    if quantizer.code_format != model.code_format:
        raise LatentMismatch(
            f"The VAE has {quantizer.code_format}; this model predicts {model.code_format}.",
            "Load the VAE that belongs to this model.",
        )
    forced, forced_soft, redraw = _forced_codes(codes, mask, schedule, first, batch, device, quantizer)
    if model.has_residual and options.residual and stop == len(schedule.passes) and plans[-1].is_skipped:
        log.warning(
            "The last scale is skipped, and with it the continuous residual that %s adds to it: expect a softer "
            "picture.",
            model.family,
        )
    is_forced = forced[-1] is not None and redraw[-1] is None
    parts = (
        () if is_forced or stop < len(schedule.passes) else _parts(options.maskgit_steps, plans[-1], schedule, streams)
    )
    return Job(
        model,
        quantizer,
        cond,
        (negative or model.unconditional(cond)) if needs_negative else None,
        schedule,
        policy,
        about,
        plans,
        running,
        weights,
        [
            _positive("temperature", v)
            for v in guidance.per_scale("temperature", temperature, defaults.temperature, schedule)
        ],
        [_count("top_k", v) for v in guidance.per_scale("top_k", top_k, model.default_top_k(schedule), schedule)],
        [_share("top_p", v) for v in guidance.per_scale("top_p", top_p, defaults.top_p, schedule)],
        streams,
        options,
        "logits" in where,
        bool(where - {"logits"}),
        forced,
        forced_soft,
        redraw,
        device,
        stop,
        tuple(part.to(device) for part in parts),
        keep_scores,
        heartbeat,
    )


def _parts(steps: int, plan: PassPlan, schedule: ScaleSchedule, streams: Streams) -> list[Tensor]:
    """The positions (B, K) of every MaskGIT step of the last scale, in raster order within a step; none for a single
    step.

    Raises OptionError where the scale is pruned: the positions of a step are no grid to choose from, or to fill.
    """
    if steps == 1 or plan.is_skipped:
        return []
    if not plan.is_dense:
        raise OptionError(
            f"maskgit_steps is {steps} and the last scale is pruned: a step's positions are no grid to copy over.",
            "Use maskgit_steps 1, or ratio 0 for the last scale.",
        )
    order_BL, counts = streams.orders(len(schedule.passes) - 1, plan.tokens), maskgit_counts(plan.tokens, steps)
    # the end of the order is predicted first
    return [part.sort(-1).values for part in order_BL.flip(1).split(counts, 1)]


def _passes_before(schedule: ScaleSchedule, scale_index: int, name: str) -> int:
    if isinstance(scale_index, bool) or not isinstance(scale_index, int) or not 0 <= scale_index <= len(schedule):
        raise OptionError(
            f"{name} is {scale_index!r}; the schedule has {len(schedule)} scales.", f"Use 0 to {len(schedule)}."
        )
    return sum(p.scale_index < scale_index for p in schedule.passes)


def _positive(name: str, value: float) -> float:
    if value <= 0:
        raise OptionError(
            f"{name} is {value!r}.", "Use a number above 0; for the single most likely token set top_k to 1."
        )
    return float(value)


def _count(name: str, value) -> int:
    if int(value) != value or value < 0:
        raise OptionError(f"{name} is {value!r}.", "Use a whole number; 0 switches it off.")
    return int(value)


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise OptionError(f"{name} is {value!r}.", "Use a number from 0 to 1; 0 switches it off.")
    return float(value)


def _forced_codes(codes, mask, schedule: ScaleSchedule, first: int, batch: int, device, quantizer):
    """Per pass: the given codes where they are used, their soft features, and where drawn codes win over them."""
    passes = schedule.passes
    nothing = [None] * len(passes)
    if codes is None:
        if first or mask is not None:
            raise OptionError(
                "start_at_scale or a mask was given, but no codes to keep.",
                "Pass the codes of an earlier result or of vae.encode.",
            )
        return nothing, nothing, nothing
    soft = list(codes.soft) if isinstance(codes, Result) else []
    given = list(codes.codes if isinstance(codes, Result) else codes)
    needed = len(passes) if mask is not None else first
    if len(given) < needed:
        raise LatentMismatch(
            f"Codes of {len(given)} passes were given; {needed} are needed.", "Encode the picture with this schedule."
        )
    used = []
    for step, one in zip(passes[:needed], given):
        quantizer.check_codes(one, batch, step.scale.tokens, f"The codes of pass {step.index + 1}")
        nothing = quantizer.no_codes(batch, step.scale.tokens, device)
        used.append(one.to(nothing) if one.shape[1] else nothing)
    forced = used + [None] * (len(passes) - len(used))
    soft = [s.to(device) if s is not None else None for s in soft[:needed]]
    soft += [None] * (len(passes) - len(soft))
    redraw = [None] * len(passes)
    if mask is not None:
        if mask.ndim != 3 or len(mask) not in (1, batch) or not mask.numel() or not bool(mask.isfinite().all()):
            raise ShapeMismatch(
                f"The mask is {tuple(mask.shape)}; expected finite values of shape ({batch}, H, W).",
                "1 = redraw, 0 = keep.",
            )
        kept = 1 - mask.detach().float().to(device).expand(batch, -1, -1).unsqueeze(1)
        for step in passes[first:]:
            # a grid kept whole is drawn all the same, and then replaced: upstream's random stream counts on it
            cells = F.interpolate(kept, size=(step.scale.h, step.scale.w), mode="bilinear", align_corners=False)
            is_kept = (cells > 0.5) | (step.scale.tokens <= KEEP_WHOLE)
            redraw[step.index] = ~is_kept.flatten(1).repeat(1, step.scale.t)
    return forced, soft, redraw


def sample(model, vae, cond, *, on_scale: Callable[[ScaleStep], None] | None = None, **arguments) -> Result:
    """Generates pictures; the whole run of `scale_steps`.

    model, vae: from load_model and load_vae. cond: model.class_condition(...) or model.text_condition(...).
    schedule: ScaleSchedule. negative: a condition, None = the family's own. seed, rows: pictures' identity, see
    token_sampling. cfg, temperature, top_k, top_p: None = official default, a list = one per scale. pruning: a policy,
    None = off. codes with start_at_scale = k forces the first k scales; end_at_scale is exclusive; mask (B, H, W), 1 =
    redraw, keeps the given codes elsewhere (VAR's zero-shot editing; grids of up to 3 tokens are kept whole). options:
    the family's switches, see its Options. keep_scores: the trace holds the score maps. on_scale(ScaleStep) is called
    after every pass. Returns a Result. Raises the package's errors before anything runs.
    """
    job = prepare(model, vae, cond, **arguments)
    return finish(job, watched(scale_steps(job), on_scale))


def watched(steps: Iterator[ScaleStep], on_scale: Callable[[ScaleStep], None] | None) -> Iterator[ScaleStep]:
    """The same steps, each shown to on_scale first."""
    for step in steps:
        if on_scale is not None:
            on_scale(step)
        yield step


def finish(job: Job, steps: Iterator[ScaleStep]) -> Result:
    """Consumes the loop and packs what it produced."""
    done, latent = [], None
    for step in steps:
        latent, step.f_hat, step.logits = (
            step.f_hat,
            None,
            None,
        )  # only the last f_hat is needed: free the others as we go
        done.append(step)
    scales = tuple(_traced(step) for step in done)
    trace = Trace(scales, job.model.family, job.policy.describe(), {"seed": job.streams.seed, **job.policy.shown()})
    log.info("%d passes in %.2f s, pruning %s", len(done), trace.seconds, job.policy.describe())
    return Result([s.codes for s in done], latent, trace, job.schedule, [s.soft for s in done])


def _traced(step: ScaleStep) -> ScaleTrace:
    grid = step.step.scale.grid

    def mapped(values):
        return None if values is None else values.view(-1, *grid).float().cpu()

    scores = step.scores
    return ScaleTrace(
        grid,
        step.kept.cpu(),
        step.tokens_run,
        step.seconds,
        step.is_forced,
        mapped(scores and scores.structure),
        mapped(scores and scores.texture),
        mapped(scores and scores.importance),
    )
