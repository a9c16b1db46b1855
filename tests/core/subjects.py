"""Whom the laws are held against: tiny models of every family, and every policy that the registries know.

A family that arrives adds its makers to MAKERS; methods, fills, selectors, scopes and presets are here by being
registered. The laws are test_laws, test_resuming, test_remains, test_devices, test_loop, test_cost and test_methods.
"""

import copy
import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import get_type_hints

import pytest
import torch
from tiny_models import (
    SCHEDULE,
    hart_prompts,
    prompts,
    switti_prompts,
    tiny_hart_pair,
    tiny_infinity,
    tiny_pair,
    tiny_switti_pair,
)

import stepvar_core as sv
from stepvar_core import methods
from stepvar_core.codes import Drawn
from stepvar_core.door import prepare
from stepvar_core.families import FAMILIES
from stepvar_core.methods.fills import FILLS
from stepvar_core.methods.policy import About, Policy
from stepvar_core.methods.presets import PRESETS, Preset
from stepvar_core.methods.selectors import SELECTORS
from stepvar_core.methods.stepvar import SCOPES
from stepvar_core.planning.goals import LADDER, QualityGoal, SecondsGoal, Table
from stepvar_core.sampler import Job

# 13 scales, as many as Infinity's 1M has, so that what is skipped there is skipped here; no square but the first
LONG = sv.ScaleSchedule(
    [
        (1, *grid)
        for grid in (
            (1, 1),
            (1, 2),
            (2, 2),
            (2, 3),
            (3, 3),
            (3, 4),
            (4, 4),
            (4, 5),
            (4, 6),
            (5, 6),
            (6, 7),
            (7, 8),
            (8, 9),
        )
    ]
)
ODD = [
    sv.ScaleSchedule(scales)
    for scales in (
        [(1, 1, 1)],
        [(1, 1, 1), (1, 2, 3)],
        [(1, 2, 2), (1, 3, 1)],
        [(1, 1, 1), (1, 7, 2), (1, 3, 5)],
        [(1, 1, 1), (1, 1, 9), (1, 5, 1), (1, 2, 2), (1, 4, 7)],
    )
]

# policies ------------------------------------------------------------------------------------------

OFF, PRUNED, CACHED = "off", "nearest scale", "cache sublayer"
EARLIER = ("the last scale whole", "the last scale whole, cache")
RATIOS = (0.7, 0.4)
MASK = torch.zeros(1, 5, 7)
MASK[:, 2:, 3:] = 1
# a quality whose likeness falls quickly, so that the run prunes in its middle
LIKENESS = Table("any", (5, 7), 2, 32, "stepvar", "nearest", tuple(1 - 0.04 * i for i in range(len(LADDER))), 0.5, 0.7)

FILLED = {
    f"{fill} {scope}": sv.StepVAR(RATIOS, fill=fill, scope=scope) for fill, scope in itertools.product(FILLS, SCOPES)
}
SELECTED = {f"by {name}": sv.StepVAR((*RATIOS, 0.3), selector=name) for name in SELECTORS}
SETTLED = {
    EARLIER[0]: sv.StepVAR((0.0, 0.4)),
    EARLIER[1]: sv.StepVAR((0.0, 0.4), scope="sublayer", fill="cache"),
    "last skipped": sv.StepVAR((1, 0.5)),
    "two skipped": sv.StepVAR((1, 1)),
    "middle skipped": sv.StepVAR((0.5, 1)),
    "late conditional": sv.StepVAR((0.5,), guidance_late="conditional", guidance_late_scales=2),
    "late unconditional": sv.StepVAR((0.5,), guidance_late="unconditional", guidance_late_scales=1),
    "covered": sv.StepVAR((0.9, 0.9), coverage=2),
    "protected": sv.StepVAR((0.9, 0.8), protect=MASK),
    "protected wholly": sv.StepVAR((0.9, 0.8), protect=MASK, protect_mode="keep", fill="anchor"),
    "from block 1": sv.StepVAR(RATIOS, first_layer=1),
    "first block alone": sv.StepVAR(RATIOS, scope="sublayer", fill="cache", first_layer=0, last_layer=0),
    "halves apart": sv.StepVAR(RATIOS, scope="sublayer", fill="cache", cfg_mask="separate"),
}
METHODS = {method.id: sv.accelerator(method.id) for method in methods.METHODS}
NAMED = {f"preset {name}": Preset(name) for name in PRESETS}
GOALS = {
    "quality": QualityGoal(sv.StepVAR(()), ssim=0.85, table=LIKENESS),
    "seconds": SecondsGoal(sv.StepVAR(()), seconds=1.0),
}
POLICIES = {OFF: None, **FILLED, **SETTLED, **SELECTED, **METHODS, **NAMED, **GOALS}
FEW = (OFF, PRUNED, CACHED, "fastvar")
# what a run's later passes depend on; which selector ranked, or who chose the ratios, they do not see
KINDS = (OFF, *FILLED, *SETTLED, *METHODS, "quality")

# subjects ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Subject:
    """A tiny model and what it takes to run it.

    pictures(numbers) -> the condition of those pictures, 0 and 1, whatever else is in the batch. negatives likewise,
    for a family that has none of its own. settings: of sample. policies: those it runs, None = all, by name; a variant
    runs few. far: the most two latents may differ that rounding alone tells apart. draws_last: requests of random
    numbers that the last scale makes beside those of every pass. once: names of parts that run once for an image, a
    regular expression. alike(batch): arguments of a run whose prompts have text_tokens each, where lengths differ
    otherwise. flops_within: how near the cost model comes.
    """

    name: str
    model: object
    vae: object | None
    pictures: Callable
    negatives: Callable | None = None
    settings: dict = field(default_factory=dict)
    policies: tuple[str, ...] | None = FEW
    far: float = 1e-4
    draws_last: int = 0
    once: str = ""
    text_tokens: int = 1
    alike: Callable | None = None
    flops_within: float = 0.0

    def __repr__(self) -> str:
        return self.name

    @property
    def family(self) -> str:
        return self.model.family

    @property
    def schedule(self) -> sv.ScaleSchedule:
        return self.settings["schedule"]

    @property
    def passes(self) -> tuple:
        return self.schedule.passes

    @property
    def cfg(self) -> float:
        return self.settings["cfg"]

    @property
    def neutral(self) -> float:
        """The strength at which nothing is guided."""
        return self.model.neutral_cfg

    @property
    def strengths(self) -> list[float]:
        """Guidance per scale, every one another."""
        return [self.neutral + 0.5 * (i + 1) for i in range(len(self.schedule))]

    @property
    def quantizer(self):
        return self.vae.quantizer_on("cpu") if self.vae is not None else self.model.own_quantizer()

    def arguments(self, which: Sequence[int], **given) -> dict:
        """All of sample's but model, VAE and condition."""
        negative = self.negatives(which) if self.negatives else None
        return {"seed": 3, "rows": which, "negative": negative, **self.settings, **given}

    def run(self, pruning=None, which: Sequence[int] = (0, 1), condition=None, **given) -> sv.Result:
        """Of pictures 0 and 1 unless told otherwise; a picture's row is its number."""
        condition = self.pictures(which) if condition is None else condition
        return sv.sample(self.model, self.vae, condition, **self.arguments(which, pruning=pruning, **given))

    def job(self, pruning=None, which: Sequence[int] = (0, 1), **given) -> Job:
        condition = self.pictures(which)
        return prepare(self.model, self.vae, condition, **self.arguments(which, pruning=pruning, **given))

    def estimate(self, pruning=None, batch: int = 2, **given) -> sv.Estimate:
        settings = {"cfg": self.cfg, "text_tokens": self.text_tokens, **given}
        return sv.estimate(self.model, self.schedule, pruning, batch=batch, **settings)

    def plans(self, pruning=None, batch: int = 2, schedule: sv.ScaleSchedule | None = None) -> list:
        """What a policy plans, as the run plans it."""
        schedule = schedule or self.schedule
        policy = (pruning or sv.NoPruning()).resolve(self.model, schedule)
        return policy.plan(About.of(self.model, schedule, batch))

    def decides(self, pruning, schedule: sv.ScaleSchedule | None = None) -> bool:
        """Whether a picture decides how much of it runs: then a plan is the most that may."""
        schedule = schedule or self.schedule
        policy, about = (pruning or sv.NoPruning()).resolve(self.model, schedule), About.of(self.model, schedule, 2)
        return bool(policy.begin(about, policy.plan(about)).decides_after)

    def added_up(self, result: sv.Result) -> torch.Tensor:
        """f_hat of what a result says was added."""
        quantizer, f_hat = self.quantizer, self.quantizer.empty(len(result.latent), self.schedule, "cpu")
        for step, codes, soft in zip(self.passes, result.codes, result.soft):
            if codes.shape[1]:
                drawn = Drawn(codes, soft, quantizer.is_added(codes))
                f_hat = quantizer.add(f_hat, drawn, step, self.schedule)
        return f_hat

    def accepts(self, schedule: sv.ScaleSchedule) -> bool:
        """Whether the weights can run a schedule; some families know of a first scale of one token alone."""
        try:
            self.model.check_schedule(schedule)
        except sv.ScheduleMismatch:
            return False
        return True

    def apart(self):
        """The same with a model and a VAE of its own, to be broken."""
        return replace(self, model=copy.deepcopy(self.model), vae=copy.deepcopy(self.vae))

    @functools.cached_property
    def without_numbers(self):
        """The model on torch's meta device, whose tensors have shapes alone."""
        return copy.deepcopy(self.model).to("meta")


def same(one: sv.Result, other: sv.Result) -> bool:
    """Bit for bit."""
    return torch.equal(one.latent, other.latent) and same_codes(one, other)


def same_codes(one: sv.Result, other: sv.Result) -> bool:
    return len(one.codes) == len(other.codes) and all(torch.equal(a, b) for a, b in zip(one.codes, other.codes))


def assert_near(subject: Subject, one: torch.Tensor, other: torch.Tensor) -> None:
    """Latents that differ by rounding alone."""
    difference = (one - other).abs()
    assert difference.mean() < 1e-4 and difference.max() < subject.far, (difference.mean(), difference.max())


class Noting(Policy):
    """A policy that writes down what a run of it is asked, and weakly what it holds: its state and the cache."""

    def __init__(self, policy: Policy | None):
        self.policy, self.held, self.groups = policy or sv.NoPruning(), [], []

    def resolve(self, model, schedule):
        self.policy = self.policy.resolve(model, schedule)
        return self

    def plan(self, about):
        return self.policy.plan(about)

    def begin(self, about, plans):
        run = self.policy.begin(about, plans)
        answer, state = type(run).memory, weakref.ref(run)

        def memory(steps, opened):
            self.groups.append(tuple(step.index for step in steps))
            self.held.append(weakref.ref(opened.cache))
            return answer(state(), steps, opened)

        run.memory = memory
        self.held.append(state)
        return run

    def describe(self):
        return self.policy.describe()

    def shown(self):
        return self.policy.shown()

    @property
    def alive(self) -> list:
        """What it holds that is still there."""
        return [found for found in (reference() for reference in self.held) if found is not None]


# makers --------------------------------------------------------------------------------------------


def var(name: str, shared_aln: bool = False, **changes) -> Subject:
    model, vae = models(tiny_pair, shared_aln=shared_aln)
    return Subject(
        name,
        model,
        vae,
        lambda which: model.class_condition([(1, 3)[n] for n in which]),
        settings={
            "schedule": SCHEDULE,
            "cfg": 2.0,
            "top_k": 12,
            "top_p": 0.9,
            "temperature": 2.0,
            **changes.pop("settings", {}),
        },
        once=r"class_emb|shared_ada_lin|head_nm\.ada_lin|.*\bada_lin|lvl_embed",
        **changes,
    )


def infinity(name: str, patch: int = 1, **changes) -> Subject:
    model = models(tiny_infinity, patch=patch)
    both = prompts(model, 4, 9)
    return Subject(
        name,
        model,
        None,
        lambda which: type(both)(tuple(both.texts[n] for n in which)),
        settings={"schedule": SCHEDULE, "cfg": 2.0, "temperature": 4.0, **changes.pop("settings", {})},
        once=r"text_.*|shared_ada_lin|head_nm\.ada_lin|.*\bada_lin|.*\bca\.mat_kv",
        text_tokens=4,
        alike=lambda batch: {"condition": prompts(model, *[4] * batch)},
        flops_within=0.01,  # the pooled text's few products are rounded there
        **changes,
    )


def hart(name: str, modulation: str = "none", sizes: dict | None = None, **changes) -> Subject:
    model, vae = models(tiny_hart_pair, modulation=modulation, **sizes or {})
    both = hart_prompts(model, 4, 9)
    return Subject(
        name,
        model,
        vae,
        lambda which: model.text_condition(both.features_BTC[list(which)], both.mask_BT[list(which)]),
        settings={"schedule": SCHEDULE, "cfg": 2.0, "top_k": 12, **changes.pop("settings", {})},
        once=r"context_.*|shared_ada_lin|head_nm\.ada_lin|.*\bada_lin|.*lvl_embed\.mlp|diffloss\.net\.time_embed.*",
        far=5e-2,  # the first step of the residual's diffusion multiplies by 20291
        **{"draws_last": 5, **changes},  # the residual's start and four steps
    )


def switti(name: str, is_causal: bool = False, **changes) -> Subject:
    model, vae = models(tiny_switti_pair, is_causal=is_causal)
    both, negative = switti_prompts(model, 4, 9), switti_prompts(model, 2, 2, seed=8)

    def some(of, which):
        return type(of)(tuple(of.texts[n] for n in which), of.pooled_BC[list(which)])

    def alike(batch):
        lengths = [4] * batch
        return {"condition": switti_prompts(model, *lengths), "negative": switti_prompts(model, *lengths, seed=8)}

    return Subject(
        name,
        model,
        vae,
        lambda which: some(both, which),
        lambda which: some(negative, which),
        settings={"schedule": SCHEDULE, "cfg": 2.0, "top_k": 12, **changes.pop("settings", {})},
        once=r"text_.*|crop_.*|shared_ada_lin|head_nm\.ada_lin|.*\bada_lin|.*\bto_kv",
        text_tokens=4,
        alike=alike,
        **changes,
    )


# name, of the family or family-variant, and its maker: the first of a family runs every policy
MAKERS: dict[str, Callable[[str], Subject]] = {
    "var": functools.partial(var, policies=None),
    "var-shared": functools.partial(var, shared_aln=True),
    "var-smooth": functools.partial(var, settings={"options": {"smooth": True}}, policies=KINDS, far=5e-4),
    "infinity": functools.partial(infinity, policies=None),
    "infinity-patched": functools.partial(infinity, patch=2, policies=(OFF, *FILLED, "fastvar")),
    "infinity-long": functools.partial(infinity, settings={"schedule": LONG}, policies=tuple(METHODS)),
    "infinity-hidden": functools.partial(infinity, settings={"options": {"guidance_layers": [-2]}}),
    "hart": functools.partial(hart, policies=None),
    "hart-block": functools.partial(
        hart,
        modulation="block",
        policies=(OFF, *FILLED, "fastvar"),
        sizes={"attn_l2_norm": True, "has_sinusoid_levels": False, "has_context_norm": False, "pooling": "avg"},
    ),
    "hart-shared": functools.partial(hart, modulation="shared", policies=(OFF, *FILLED, "fastvar")),
    "hart-hard": functools.partial(hart, settings={"options": {"smooth": False}}),
    "hart-mixed": functools.partial(hart, settings={"options": {"residual": False}}, draws_last=0),
    "hart-codes": functools.partial(
        hart, settings={"options": {"smooth": False, "residual": False}}, draws_last=0, policies=FEW[:2]
    ),
    "hart-maskgit": functools.partial(
        hart,
        settings={"options": {"maskgit_steps": 3}},
        policies=(OFF, *EARLIER),  # the last scale in several steps is dense
    ),
    "switti": functools.partial(switti, policies=None),
    "switti-causal": functools.partial(switti, is_causal=True, policies=(OFF, *FILLED, "fastvar")),
    "switti-hard": functools.partial(
        switti, settings={"options": {"smooth": False, "guidance_off_from": 4, "last_temperature": 1.0}}
    ),
}


@functools.cache
def models(maker: Callable, **sizes):
    """Variants that differ in settings alone share their model."""
    return maker(**sizes)


@functools.cache
def subject(name: str) -> Subject:
    return MAKERS[name](name)


MAIN = [name for name in MAKERS if "-" not in name]
VARIANTS = [name for name in MAKERS if "-" in name]


@functools.cache
def finished(one: Subject, policy: str) -> sv.Result:
    """The plain run of a policy: what many laws compare with."""
    return one.run(POLICIES[policy])


def cases(main: Sequence[str] = tuple(POLICIES), variants: Sequence[str] | None = None, names=tuple(MAKERS)):
    """Parametrises a law by `one`, a subject, and `policy`, a name.

    main: policies of every family's first subject. variants: those of its others, of what each of them runs; None =
    like main.
    """
    pairs = []
    for name in names:
        one = subject(name)
        wanted = main if one.policies is None or variants is None else variants
        pairs += [(one, policy) for policy in wanted if one.policies is None or policy in one.policies]
    return pytest.mark.parametrize(("one", "policy"), pairs, ids=lambda v: str(v))


def every_subject(names: Sequence[str] = tuple(MAKERS)):
    return pytest.mark.parametrize("one", [subject(name) for name in names], ids=str)


every_family = every_subject(MAIN)

# published sizes -----------------------------------------------------------------------------------


@functools.cache
def full_size(family: str):
    """A family's model at its published size, without weights: 2B parameters take a while even so."""
    [declared] = [one for one in FAMILIES if one.name == family]
    module = declared.transformer.module
    with torch.device("meta"):
        return module(get_type_hints(module.__init__)["config"]())
