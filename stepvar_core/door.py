"""The door: what a caller said is checked against model, VAE and each other, and becomes a decided run.

Behind it nothing is looked up or checked again; sampler.py has the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .codes import Given
from .errors import ConditionMismatch, LatentMismatch, OptionError
from .methods.policy import About, NoPruning
from .sampler import Job, Result, finish, scale_steps, watched
from .schedule import ScaleSchedule
from .token_sampling import Streams
from .trace import ScaleStep


def sample(
    model,
    vae,
    cond,
    *,
    schedule: ScaleSchedule,
    negative=None,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    cfg: float | Sequence[float] | None = None,
    temperature: float | Sequence[float] | None = None,
    top_k: int | Sequence[int] | None = None,
    top_p: float | Sequence[float] | None = None,
    pruning=None,
    codes=None,
    start_at_scale: int = 0,
    end_at_scale: int | None = None,
    mask: Tensor | None = None,
    options: dict | None = None,
    keep_scores: bool = False,
    on_scale: Callable[[ScaleStep], None] | None = None,
    draw: Callable | None = None,
    noise: Callable | None = None,
    device=None,
    heartbeat: Callable[[], None] | None = None,
) -> Result:
    """Generates pictures: the whole run of `scale_steps`.

    model, vae: from load_model and load_vae; vae=None is fine for models that predict bits.
    cond: model.class_condition(...) or model.text_condition(...), one entry per picture.
    schedule: ScaleSchedule, or (t, h, w) triples. negative: a condition, None = the family's own.
    seed, rows: who the pictures are (DESIGN 2.11): picture n of a batch is the one that seed and rows[n] draw alone.
    cfg, temperature, top_k, top_p: None = official default, a list = one per scale. top_k 1 draws nothing at random.
    pruning: a policy such as StepVAR or accelerator(...), None = off.
    codes with start_at_scale = k keep the first k scales, an earlier Result, its codes, or vae.encode's; end_at_scale
    is exclusive. mask (B, H, W), 1 = redraw, keeps the given codes elsewhere (VAR's zero-shot editing; grids of up to
    3 tokens are kept whole).
    options: the family's switches by name, see its Options. keep_scores: the trace holds the score maps.
    on_scale(ScaleStep) is called after every pass. device: where to compute, None = where the model's weights are.
    heartbeat: called once per layer, may raise to stop.
    draw(probs_NV, pass_index) -> ids and noise(name, pass_index, shape) -> tensor replace the random streams, so that a
    reference implementation's own numbers can be replayed.
    Returns a Result. Raises the package's errors before anything runs.
    """
    job = prepare(
        model,
        vae,
        cond,
        schedule=schedule,
        negative=negative,
        seed=seed,
        rows=rows,
        cfg=cfg,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        pruning=pruning,
        codes=codes,
        start_at_scale=start_at_scale,
        end_at_scale=end_at_scale,
        mask=mask,
        options=options,
        keep_scores=keep_scores,
        draw=draw,
        noise=noise,
        device=device,
        heartbeat=heartbeat,
    )
    return finish(job, watched(scale_steps(job), on_scale))


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
    """Checks the arguments of `sample` against each other and returns the decided run. Raises the package's errors."""
    if not isinstance(schedule, ScaleSchedule):
        schedule = ScaleSchedule(schedule)
    model.check_schedule(schedule)
    batch = cond.batch
    _check_batch(batch, negative, rows)
    policy = (pruning or NoPruning()).resolve(model, schedule)
    switches = model.Options.read(options)
    settings = model.per_pass(schedule, switches, cfg=cfg, temperature=temperature, top_k=top_k, top_p=top_p)
    device = torch.device(device) if device is not None else model.weight_device
    streams = Streams(int(seed), tuple(range(batch) if rows is None else rows), draw, noise)
    about = About.of(model, schedule, batch, device, streams.uniform)
    plans = policy.plan(about)
    stop = _passes_before(schedule, len(schedule) if end_at_scale is None else end_at_scale, "end_at_scale")
    first = _passes_before(schedule, start_at_scale, "start_at_scale")
    if stop < 1:
        raise OptionError("end_at_scale is 0: nothing would run.", "Use at least 1, or leave it out for all scales.")
    quantizer = vae.quantizer_on(device) if vae is not None else model.own_quantizer()
    if quantizer.code_format != model.code_format:
        raise LatentMismatch(
            f"The VAE has {quantizer.code_format}; this model predicts {model.code_format}.",
            "Load the VAE that belongs to this model.",
        )
    job = Job(
        model=model,
        quantizer=quantizer,
        condition=cond,
        negative=negative,
        schedule=schedule,
        policy=policy,
        about=about,
        plans=plans,
        settings=settings,
        streams=streams,
        options=switches,
        guided_after=model.guidance_places(switches.guidance_layers),
        given=Given.read(codes, mask, schedule, first, batch, device, quantizer),
        device=device,
        stop=stop,
        keep_scores=keep_scores,
        heartbeat=heartbeat,
    )
    return model.decide(job)


def _check_batch(batch: int, negative, rows: Sequence[int] | None) -> None:
    if negative is not None and negative.batch != batch:
        raise ConditionMismatch(
            f"The negative holds {negative.batch} pictures; the batch has {batch}.", "Give one negative per picture."
        )
    if rows is not None and len(rows) != batch:
        raise OptionError(f"rows names {len(rows)} pictures; the batch has {batch}.", "Give one number per picture.")


def _passes_before(schedule: ScaleSchedule, scale_index: int, name: str) -> int:
    if isinstance(scale_index, bool) or not isinstance(scale_index, int) or not 0 <= scale_index <= len(schedule):
        raise OptionError(
            f"{name} is {scale_index!r}; the schedule has {len(schedule)} scales.", f"Use 0 to {len(schedule)}."
        )
    return sum(p.scale_index < scale_index for p in schedule.passes)
