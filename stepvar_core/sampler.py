"""The scale loop: next-scale prediction, one pass after the other (VAR algorithm 2; StepVAR algorithm 1).

`scale_steps` is the loop, a generator of ScaleStep that previews and overlays may watch; everything it needs was
decided at the door (door.py) and lies in a Job. What a family does its own way, it does in `predict`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .codecs.quantizer import Quantizer
from .codes import Codes, Drawn, Given, per_token, repeated
from .errors import StepVARError
from .guidance import PassSettings, Strength, is_on
from .memory import KVCache, Memory
from .methods.policy import About, PassPlan, Policy, PolicyRun, due, rows_per_pass
from .schedule import Pass, ScaleSchedule
from .token_sampling import Streams, smooth_probs
from .tokens import DENSE
from .trace import Clock, ScaleStep, Trace, trace_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """codes: Codes, per pass (B, L) int64 ids or (B, L, bits) uint8. latent: f_hat (B, C, H, W) float32. schedule: what
    the codes belong to. soft: per pass the features added where they are not the codes' own, smoothed or with a
    residual, else None."""

    codes: Codes
    latent: Tensor
    trace: Trace
    schedule: ScaleSchedule

    @property
    def soft(self) -> list[Tensor | None]:
        return self.codes.soft


@dataclass(frozen=True)
class Job:
    """One run, fully decided: nothing below is looked up or checked again inside the loop.

    parts: positions (B, K) of every run of the blocks, by index of the passes that take several. guided_after: places
    of guidance, "logits" and indices of blocks. stop: passes to run.
    """

    model: Any  # a families.base.NextScaleModel, which the loop does not import
    quantizer: Quantizer
    condition: Any
    negative: Any
    schedule: ScaleSchedule
    policy: Policy
    about: About
    plans: list[PassPlan]  # the most that may run; what does is the policy run's to say
    settings: PassSettings
    streams: Streams
    options: Any  # the family's switches
    guided_after: frozenset
    given: Given
    device: torch.device
    stop: int
    parts: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    keep_scores: bool = False
    heartbeat: Callable[[], None] | None = None

    @property
    def batch(self) -> int:
        return self.condition.batch

    @property
    def passes(self) -> tuple[Pass, ...]:
        return self.schedule.passes[: self.stop]

    @property
    def lead(self) -> int:
        """Tokens that run before the first pass's own."""
        return self.model.lead_tokens(self.condition)

    # memory --------------------------------------------------------------------------------------

    def runs(self) -> list[tuple[int, int]]:
        """The runs of the blocks, first to last, as (pass, part of it)."""
        running = [step.index for step in self.passes if not self.plans[step.index].is_skipped]
        return [(i, part) for i in running for part in range(max(len(self.parts.get(i, ())), 1))]

    def sees(self) -> list[list[int]]:
        """Per run of the blocks the earlier ones it reads; a part reads those before it."""
        runs, seen = self.runs(), []
        for i, part in runs:
            read = set(self.model.sees(self.schedule.passes[i], self.schedule))
            seen.append([n for n, (j, earlier) in enumerate(runs) if j in read or (j == i and earlier < part)])
        return seen

    def new_cache(self) -> KVCache:
        cost, runs = self.model.cost(), self.runs()

        def tokens(i: int, part: int, layer: int) -> int:
            if i in self.parts:
                return self.parts[i][part].shape[1]
            return self.plans[i].layer_tokens(layer) + (self.lead if i == runs[0][0] else 0)

        return KVCache(
            lengths=[[tokens(i, part, layer) for i, part in runs] for layer in range(cost.layers)],
            sees=self.sees(),
            rows=max(self.rows(self.plans)),
            heads=cost.heads,
            head_dim=cost.head_dim,
            dtype=self.model.dtype,
            device=self.device,
            heartbeat=self.heartbeat,
        )

    # rows ----------------------------------------------------------------------------------------

    def rows(self, plans: Sequence[PassPlan]) -> list[int]:
        return rows_per_pass(plans[: self.stop], self.settings.weights[: self.stop], self.batch)

    def slice_of_rows(self, index: int, plans: Sequence[PassPlan]) -> slice:
        """The rows that run in a pass: conditional rows come first, unconditional ones second."""
        if plans[index].halves == "unconditional" and self.negative is not None:
            return slice(self.batch, 2 * self.batch)
        return slice(0, self.rows(plans)[index])

    # order ---------------------------------------------------------------------------------------

    def groups(self, policy) -> Iterator[tuple[Pass, ...]]:
        """What goes through the blocks together: several passes whose codes are given, else one."""
        together = self._given_together(policy)
        if together:
            yield together
        for step in self.passes[len(together) :]:
            yield (step,)

    def must_run(self, policy: PolicyRun) -> set[int]:
        """Indices of the passes whose blocks must run: those that draw, those that the method chooses tokens in or
        learns from, the last one, and those that one of them sees."""
        needed = {max(step.index for step in self.passes if not policy.plans[step.index].is_skipped)}
        for step in reversed(self.passes):
            i, plan = step.index, policy.plans[step.index]
            is_watched = not plan.is_dense or plan.remembers or i in policy.decides_after or i in policy.hears
            if not plan.is_skipped and (i in needed or is_watched or not self.given.is_whole(step)):
                needed.update((i, *self.model.sees(step, self.schedule)))
        return needed

    def _given_together(self, policy) -> tuple[Pass, ...]:
        """The leading passes that are given and dense and so need not wait for each other; none when it is only one.

        Together they are no larger than the largest pass alone, or the run would take more memory than was made room
        for. The last pass stays outside: nobody reads what it would store.
        """
        room = max(plan.fewest for plan in self.plans)
        last = max(step.index for step in self.passes if not self.plans[step.index].is_skipped)
        together: list[Pass] = []
        for step in self.passes[:last]:
            rows = self.slice_of_rows(step.index, policy.plans)
            is_plain = self.given.is_whole(step) and policy.plans[step.index].is_dense
            if not is_plain or rows != self.slice_of_rows(0, policy.plans) or self.guided_after - {"logits"}:
                break
            if policy.tokens((step,), rows) is not DENSE or step.index - 1 in policy.decides_after:
                break
            if step.index in policy.hears:
                break
            room -= step.scale.tokens
            if room < 0:
                break
            together.append(step)
        return tuple(together) if len(together) > 1 else ()


@torch.inference_mode()
def scale_steps(job: Job) -> Iterator[ScaleStep]:
    """The scale loop. Closing the generator early, or an exception in it, drops the cache with its frame."""
    cache = job.new_cache()
    run = job.model.begin(job.condition, job.negative, job.device, job.options)
    policy = job.policy.begin(job.about, job.plans)
    f_hat, clock = job.quantizer.empty(job.batch, job.schedule, job.device), Clock(job.device)
    for group in job.groups(policy):
        steps = take_steps(job, policy, run, cache, clock, group, f_hat)
        f_hat = steps[-1].f_hat
        while steps:  # nothing of a step may lie beside the next one
            policy.observe(steps[0])
            yield steps.pop(0)


def take_steps(
    job: Job, policy: PolicyRun, run, cache: KVCache, clock: Clock, group: tuple[Pass, ...], f_hat: Tensor
) -> list[ScaleStep]:
    """Predicts a group of passes and adds their codes to f_hat, (B, C, H, W)."""
    quantizer, schedule, start = job.quantizer, job.schedule, clock.mark()
    if due(policy, job.plans, group[0].index).is_skipped:
        nothing = Drawn(quantizer.no_codes(job.batch, group[0].scale, job.device)[:, :0])
        return [finished(job, policy, group[0], nothing, f_hat, clock, start)]
    features, given, f_hats = [], [], []
    for step in group:
        features.append(quantizer.next_input(f_hat, step, schedule) if step.index else None)
        given.append(job.given.whole(step, quantizer))
        if given[-1] is not None:
            f_hat = quantizer.add(f_hat, given[-1], step, schedule)
        f_hats.append(f_hat)
    if not job.must_run(policy) & {step.index for step in group}:
        return [finished(job, policy, *done, clock, start) for done in zip(group, given, f_hats)]
    turn = Turn(job, policy, run, cache, group, features, given)
    steps = []
    for step, drawn, known in zip(group, job.model.predict(turn), f_hats):
        f_hat = known if drawn.is_given else quantizer.add(f_hat, drawn, step, schedule)
        steps.append(finished(job, policy, step, drawn, f_hat, clock, start, turn.tokens))
    stop = clock.mark()
    for done in steps:  # the first of them carries the time of all
        done.marks = (start if done is steps[0] else stop, stop)
    return steps


def finished(
    job: Job, policy: PolicyRun, step: Pass, drawn: Drawn, f_hat: Tensor, clock: Clock, start, tokens=DENSE
) -> ScaleStep:
    """What a pass produced, with the map of the tokens that ran; none of a skipped one."""
    plan, kept, grid = policy.plans[step.index], tokens.kept_BN(), step.scale.grid
    if kept is None:
        kept = torch.full((job.batch, *grid), not plan.is_skipped, device=job.device)
    return ScaleStep(
        step=step,
        codes=drawn.codes,
        f_hat=f_hat,
        kept=kept if kept.ndim > 2 else kept.view(-1, *grid),
        tokens_run=plan.fewest,
        passes=len(job.passes),
        clock=clock,
        marks=(start, clock.mark()),
        plans=policy.plans,
        quantizer=job.quantizer,
        logits=drawn.logits,
        soft=drawn.soft,
        scores=tokens.scores if job.keep_scores else None,
        is_forced=drawn.is_given,
    )


class Turn:
    """A group of passes on its way through the model, as `predict` is given it.

    run: what the model's `begin` made. group: the passes, mostly one. features: per pass what the quantiser gives it to
    read, None for the first. given: per pass its codes where nothing is drawn, else None. tokens: the token plan.
    rows: the rows that run. t: guidance.combine's, 0 where one half runs, (B, 1, 1) where pictures differ.
    """

    def __init__(
        self, job: Job, policy: PolicyRun, run, cache: KVCache, group: tuple[Pass, ...], features: list, given: list
    ):
        self.job, self.policy, self.run, self.cache = job, policy, run, cache
        self.group, self.features, self.given = group, features, given
        i, plans = group[0].index, policy.plans
        self.rows = job.slice_of_rows(i, plans)
        self.t: Strength = job.settings.weights[i] if job.rows(plans)[i] == 2 * job.batch else 0.0
        if not isinstance(self.t, Tensor) and self.t:
            self.t = policy.strength(group, self.t)
        self.tokens = policy.tokens(group, self.rows) if len(group) == 1 else DENSE
        run.running, run.guidance = self.rows, self.t

    @property
    def step(self) -> Pass:
        return self.group[0]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Positions (B, K) of every run of the blocks where the pass takes several, else none."""
        return self.job.parts.get(self.step.index, ())

    def memory(self, part: int = 0) -> Memory:
        """What the pass, or a part of it, sees of earlier ones."""
        runs = self.job.runs()
        memory = self.cache.opened([runs.index((step.index, part)) for step in self.group], self.rows)
        return self.policy.memory(self.group, memory)

    def enter(self) -> Tensor:
        """The stream entering block 0, (rows, L, C), several passes one after the other."""
        model, schedule = self.job.model, self.job.schedule
        if len(self.group) > 1:
            return model.embed_together(self.run, self.features, self.group, schedule)
        return model.embed(self.run, self.features[0], self.step, schedule)

    def answer(self, x_RLC: Tensor) -> list[Drawn]:
        """Codes of every pass from the blocks' output, (rows, L, C): given, or drawn and laid over what is kept."""
        if all(given is not None for given in self.given):
            if self.step.index in self.policy.hears:
                self.logits(x_RLC, self.step)
            return self.given
        return [self.lay_over(self.draw(x_RLC, self.tokens))]

    def draw(self, x_RLC: Tensor, tokens, streams: Streams | None = None, step: Pass | None = None) -> Drawn:
        """Head, guidance, filtering, and one draw for every position of the grid."""
        job, i, step, streams = self.job, self.step.index, step or self.step, streams or self.job.streams
        quantizer, settings = job.quantizer, job.settings
        logits = self.logits(x_RLC, step)
        choices = tokens.spread(quantizer.filtered(logits, settings.top_k[i], settings.top_p[i]))
        codes = quantizer.best(choices) if settings.top_k[i] == 1 else quantizer.draw(choices, streams, i)
        soft = self.mix(choices, step, streams) if settings.smooth[i] else None
        return Drawn(codes, soft, logits=logits)

    def logits(self, x_RLC: Tensor, step: Pass) -> Tensor:
        """The head's answer after guidance and temperature, (B, L, V)."""
        job, batch = self.job, self.job.batch
        temperature = job.settings.temperature[step.index]
        if is_on(self.t) and "logits" in job.guided_after:
            logits_RLV = job.model.logits(self.run, x_RLC, self.rows, step)
            if self.step.index in self.policy.hears:
                self.policy.hear(self.step, logits_RLV)
            return job.model.guide(logits_RLV, self.t, temperature)
        rows = slice(self.rows.start, self.rows.start + batch)
        return job.model.guide(job.model.logits(self.run, x_RLC[:batch], rows, step), 0.0, temperature)

    def mix(self, choices_BLV: Tensor, step: Pass, streams: Streams) -> Tensor:
        """Features of smoothed sampling, (B, C, h, w): the codebook weighted by a Gumbel softmax of the choices."""
        job, model = self.job, self.job.model
        progress = model.progress(step.scale_index, job.schedule)
        gumbel = streams.gumbel("gumbel", step.index, tuple(choices_BLV.shape[1:]), job.device)
        return job.quantizer.expected(smooth_probs(choices_BLV, gumbel, progress), step.scale)

    def lay_over(self, drawn: Drawn) -> Drawn:
        """Drawn codes where the pass adds something and where they may replace the given ones."""
        quantizer, added, instead = self.job.quantizer, self.tokens.added_BN, self.tokens.instead
        if instead is not None:
            drawn = repeated(drawn, added, instead, self.step, quantizer)
        elif added is not None:
            codes = drawn.codes.masked_fill(~per_token(added, drawn.codes), quantizer.nothing)
            drawn = replace(drawn, codes=codes, added=added)
        return self.job.given.over(drawn, self.step, quantizer)


def watched(steps: Iterator[ScaleStep], on_scale: Callable[[ScaleStep], None] | None) -> Iterator[ScaleStep]:
    """The same steps, each shown to on_scale first."""
    for step in steps:
        if on_scale is not None:
            on_scale(step)
        yield step


def finish(job: Job, steps: Iterator[ScaleStep]) -> Result:
    """Consumes the loop and packs what it produced. Raises StepVARError where it is no longer made of numbers."""
    done, sums, latent = [], {}, None
    for step in steps:
        latent = step.f_hat
        # a number where all are: nothing waits for it. No name may hold the logits while the next pass runs
        sums[step.index] = (latent if step.logits is None else step.logits).detach().sum(dtype=torch.float32)
        step.f_hat = step.logits = None  # only the last f_hat is needed: free the others as we go
        done.append(step)
    check_numbers(sums, latent)
    scales = tuple(trace_of(step) for step in done)
    trace = Trace(scales, job.model.family, job.policy.describe(), {"seed": job.streams.seed, **job.policy.shown()})
    log.info("%d passes in %.2f s, pruning %s", len(done), trace.seconds, job.policy.describe())
    return Result(Codes([s.codes for s in done], [s.soft for s in done]), latent, trace, job.schedule)


def check_numbers(sums: dict[int, Tensor], latent: Tensor) -> None:
    """Raises StepVARError naming the first pass whose answer, or the last, whose picture is not made of finite numbers.

    Called when the loop is over: within it, every look at a number would stop the device.
    """
    found = torch.stack([*sums.values(), latent.sum(dtype=torch.float32)]).isfinite().tolist()
    if all(found):
        return
    index = [*sums, max(sums)][found.index(False)]
    raise StepVARError(
        f"What the model answered in pass {index + 1} of {max(sums) + 1} is not made of finite numbers.",
        "Use an ordinary cfg and temperature, and a latent and a prompt that no other node has spoiled. Otherwise the "
        "weights are damaged, or overflow in fp16: choose bf16 or fp32, or download the file again.",
    )
