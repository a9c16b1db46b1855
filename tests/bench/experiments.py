"""The paper's ablations and ours as data: experiments, each a list of StepVAR settings. quality.py runs them.

A few settings need what no released policy may see, or lost to what is released; they live here, as policies of the
bench alone: `oracle` keeps what the dense run changes most from there on, `update_two` what the last two passes
changed most, `update_texture` mixes the update index with texture, `blend` fades copies with distance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

import stepvar_core as sv
from stepvar_core.codecs.quantizer import Quantizer
from stepvar_core.methods import METHODS
from stepvar_core.methods.fills import FILLS, nearest_kept
from stepvar_core.methods.kept import SparseStream
from stepvar_core.methods.presets import PRESET_SETTINGS, PRESETS, preset_ratios
from stepvar_core.methods.selectors import NORMALISERS, SELECTORS, Scores, high_pass_score, update_energy
from stepvar_core.methods.stepvar import StepVARRun

LAST_TWO = (0.25, 0.5, 0.75, 0.9)
FAINTEST = 1e-3  # a copy that faded below this adds nothing


@dataclass(frozen=True)
class Setting:
    """One way to prune. options: arguments of StepVAR, or of sv.accelerator for a `method`. peek: scores of the
    bench's own, "oracle", "update_two" or "update_texture".
    blend: sigma in cells of the fade of copies with distance; sure: copied places take the likeliest code instead of
    drawing one."""

    name: str
    options: dict = field(default_factory=dict)
    peek: str = ""
    blend: float = 0.0
    sure: bool = False
    method: str = ""

    @property
    def key(self) -> str:
        """What is computed, whatever it is called: results are stored under it."""
        extra = {
            k: v
            for k, v in (("peek", self.peek), ("blend", self.blend), ("sure", self.sure), ("method", self.method))
            if v
        }
        return json.dumps(self.options | extra, sort_keys=True)

    def policy(self, peek: Peek | None = None):
        if self.peek or self.blend or self.sure:
            return BenchPolicy(**self.options, setting=self, state=peek or Peek())
        return sv.accelerator(self.method, **self.options) if self.method else sv.StepVAR(**self.options)


@dataclass(frozen=True)
class Experiment:
    """settings: as (series, x, setting); x = None makes a chart of rows instead of lines. baseline: name differences
    are taken to."""

    title: str
    question: str
    settings: Sequence[tuple[str, float | None, Setting]]
    baseline: str
    x_label: str = ""


def _sweep(option: str, choices: Sequence[str], ratios: Sequence[float], **fixed) -> list[tuple[str, float, Setting]]:
    return [(c, r, Setting(f"{c} {r:g}", {"ratios": (r, r), option: c, **fixed})) for c in choices for r in ratios]


def _values(option: str, values: Sequence, ratio: float = 0.5, **fixed) -> list[tuple[str, float, Setting]]:
    return [
        (option, float(v), Setting(f"{option} {v:g}", {"ratios": (ratio, ratio), option: v, **fixed})) for v in values
    ]


def experiments(layers: int, skips: int, schedule: sv.ScaleSchedule, full_scales: int) -> dict[str, Experiment]:
    """All experiments for a model of so many blocks."""
    half = {"ratios": (0.5, 0.5)}
    best = half | {"selector": "update", "fill": "zero"}
    selectors = (
        "random",
        "distance",
        "texture",
        "structure",
        "stepvar",
        "update",
        "turn",
        "detail",
        "checkerboard",
        "lowest_texture",
    )
    assert set(selectors) == set(SELECTORS)
    tail = range(1, min(5, len(schedule) - 1) + 1)

    def pair(a: int, b: int) -> tuple[float, ...]:
        return tuple(0.5 if place in (a, b) else 0.0 for place in range(1, b + 1))

    combined = [
        Setting("stepvar, nearest (the paper)", half),
        Setting("texture, nearest", half | {"selector": "texture"}),
        Setting("stepvar, zero", half | {"fill": "zero"}),
        Setting("texture, zero", half | {"selector": "texture", "fill": "zero"}),
        Setting("stepvar, cache", half | {"fill": "cache"}),
        Setting("texture, cache", half | {"selector": "texture", "fill": "cache"}),
        Setting("distance, zero", half | {"selector": "distance", "fill": "zero"}),
        Setting("texture, zero, sublayer", half | {"selector": "texture", "fill": "zero", "scope": "sublayer"}),
        *(
            Setting(f"texture, coverage {n}, {fill}", half | {"selector": "texture", "coverage": n, "fill": fill})
            for n in (2, 3)
            for fill in ("nearest", "zero")
        ),
        *(
            Setting(f"texture, copies faded, sigma {s:g}", half | {"selector": "texture"}, blend=s)
            for s in (0.5, 0.75, 1.0)
        ),
        *(
            Setting(f"texture, sure copies faded, sigma {s:g}", half | {"selector": "texture"}, blend=s, sure=True)
            for s in (0.75, 1.0)
        ),
        Setting("texture, sure copies", half | {"selector": "texture"}, sure=True),
        *(
            Setting(f"update, {fill}", half | {"selector": "update", "fill": fill})
            for fill in ("zero", "nearest", "cache")
        ),
        Setting("update of two passes, zero", half | {"fill": "zero"}, peek="update_two"),
        Setting("update + texture, zero", half | {"fill": "zero"}, peek="update_texture"),
        Setting("update, coverage 3, zero", half | {"selector": "update", "fill": "zero", "coverage": 3}),
        Setting("update, copies faded, sigma 0.5", half | {"selector": "update"}, blend=0.5),
        Setting("oracle, zero", half | {"fill": "zero"}, peek="oracle"),
        Setting("oracle, nearest", half, peek="oracle"),
        Setting(
            "update, zero, one half in the last scale",
            best | {"guidance_late": "conditional", "guidance_late_scales": 1},
        ),
    ]
    halves = [
        (
            f"{half_} half{extra}",
            n,
            Setting(
                f"{half_} half in the last {n}{extra}", options | {"guidance_late": half_, "guidance_late_scales": n}
            ),
        )
        for half_ in ("conditional", "unconditional")
        for options, extra in (({"ratios": ()}, ""), (best, ", .5/.5 update, zero"))
        for n in range(1, 5)
    ]
    presets = [
        (
            name,
            None,
            Setting(
                name, {"ratios": preset_ratios(name, skips, schedule, full_scales), **PRESET_SETTINGS.get(name, {})}
            ),
        )
        for name in PRESETS
    ]
    rivals = [Setting(method.title, method=method.id) for method in METHODS]
    rivals += [
        Setting("FasterVAR, conditional half", {"half": "conditional"}, method="fastervar"),
        Setting(
            "update, zero at LazyVAR's ratios elsewhere", {"ratios": (0.8, 0.7), "selector": "update", "fill": "zero"}
        ),
    ]
    return {
        "selector": Experiment(
            "Which tokens are kept",
            "Does a selector find tokens that matter more than chance does?",
            _sweep("selector", selectors, LAST_TWO),
            "random",
            "ratio of the last two scales",
        ),
        "selector_zero": Experiment(
            "Which tokens are kept, nothing added elsewhere",
            "The same where pruned places add nothing: copies cannot help.",
            _sweep("selector", selectors, (0.5,), fill="zero"),
            "random",
            "ratio of the last two scales",
        ),
        "fill": Experiment(
            "What goes where tokens were left out",
            "Does a copy of the nearest kept token help more than other fills?",
            _sweep("fill", tuple(FILLS), LAST_TWO),
            "nearest",
            "ratio of the last two scales",
        ),
        "ratio": Experiment(
            "How much",
            "Where is the knee of quality against the pruned share?",
            [
                ("stepvar, nearest", r / 10, Setting(f"ratio {r / 10:g}", {"ratios": (r / 10, r / 10)}))
                for r in range(10)
            ]
            + [
                (
                    "update, zero",
                    r / 10,
                    Setting(f"update, zero, ratio {r / 10:g}", best | {"ratios": (r / 10, r / 10)}),
                )
                for r in range(10)
            ],
            "stepvar, nearest",
            "ratio of the last two scales",
        ),
        "pair": Experiment(
            "Which two scales",
            "Is pruning cheapest in the last scales? 1 is the last one.",
            [
                (f"{a} and {b}", None, Setting(f"{a} and {b}", {"ratios": pair(a, b)}))
                for b in tail
                for a in tail
                if a < b
            ],
            "1 and 2",
        ),
        "first_layer": Experiment(
            "From which block on",
            "Do later blocks judge better?",
            _values("first_layer", range(layers)),
            "first_layer",
            "first pruned block",
        ),
        "normalise": Experiment(
            "How scores are made comparable",
            "Does the normalisation change what is kept?",
            [(n, None, Setting(n, half | {"normalise": n})) for n in NORMALISERS],
            "minmax",
        ),
        "structure_weight": Experiment(
            "Structure against texture",
            "Which share of structure is best?",
            _values("structure_weight", (0.0, 0.25, 0.5, 0.75, 1.0)),
            "structure_weight",
            "share of structure",
        ),
        "iterations": Experiment(
            "Steps of the power iteration",
            "How many are enough?",
            _values("iterations", (1, 2, 3, 5, 10, 20), structure_weight=1.0),
            "iterations",
            "steps, structure alone",
        ),
        "kernel": Experiment(
            "Neighbourhood of texture",
            "How wide should the mean be?",
            _values("kernel", (3, 5, 7, 9), structure_weight=0.0),
            "kernel",
            "edge in tokens, texture alone",
        ),
        "guidance": Experiment(
            "Guidance halves dropped late",
            "Which half may go, and when?",
            halves,
            halves[0][0],
            "last scales with one half",
        ),
        "combination": Experiment(
            "What wins on a small grid",
            "Selector, coverage, fill and guidance together, half of the last two scales.",
            [(s.name, None, s) for s in combined],
            combined[0].name,
        ),
        "presets": Experiment("Presets", "What does each preset cost and keep?", presets, "Balanced"),
        "rivals": Experiment(
            "Rival accelerators",
            "What do other methods cost and keep at their own settings?",
            presets + [(s.name, None, s) for s in rivals],
            "Balanced",
        ),
    }


# settings of the bench alone -----------------------------------------------------------------------


class Peek:
    """What a bench setting may see of the run: f_hat of the passes done, the dense run's true energies, where copies
    fade."""

    def __init__(self, energy: Sequence[Tensor] = ()):
        self.energy, self.seen, self.fades = list(energy), [], {}


@dataclass(frozen=True, eq=False)
class BenchPolicy(sv.StepVAR):
    setting: Setting | None = None
    state: Peek | None = None

    def begin(self, about, plans):
        return BenchRun(self, about, plans)


class BenchRun(StepVARRun):
    def __init__(self, policy, about, plans):
        super().__init__(policy, about, plans)
        if policy.setting.blend or policy.setting.sure:
            self.sparse = partial(FadingTokens, policy.setting, policy.state)

    def observe(self, step):
        super().observe(step)
        if step.tokens_run:
            self.policy.state.seen.append(step.f_hat)

    def score(self, x_BLC, step):
        scores, seen, peek = super().score(x_BLC, step), self.policy.state.seen, self.policy.setting.peek
        if peek == "oracle":
            return Scores(self.policy.state.energy[step.index].to(x_BLC.device))
        if peek == "update_two":
            return Scores(update_energy(seen[-1] - seen[-3], step.scale))
        if peek == "update_texture":
            minmax = NORMALISERS["minmax"]
            return Scores(
                minmax(update_energy(seen[-1] - seen[-2], step.scale).sqrt())
                + minmax(high_pass_score(x_BLC, step.scale))
            )
        return scores


class FadingTokens(SparseStream):
    """Copies whose contribution fades with the distance to their origin, or that take the likeliest code."""

    def __init__(self, setting: Setting, state: Peek, plan, step, **settings):
        super().__init__(plan, step, **settings)
        self.setting, self.state = setting, state

    def spread(self, values_BKX):
        values, mask_BN = super().spread(values_BKX), self.running.mask_BN
        if self.setting.sure:
            best = values.amax(-1, keepdim=True)
            values = values.masked_fill((values < best) & ~mask_BN.unsqueeze(-1), -torch.inf)
        if self.setting.blend:
            nearest, w = nearest_kept(mask_BN, self.scale), self.scale.w
            place = torch.arange(self.scale.tokens, device=nearest.device)
            squared = (place // w - nearest // w).square() + (place % w - nearest % w).square()
            self.state.fades[self.step.index] = torch.exp(-squared / (2 * self.setting.blend**2))
        return values


class FadingVAE:
    """A VAE whose quantiser weakens a scale's contribution where the run's copies fade."""

    def __init__(self, vae, state: Peek):
        self.vae, self.state = vae, state

    def quantizer_on(self, device):
        return FadingQuantizer(self.vae.quantizer_on(device), self.state)

    def __getattr__(self, name):
        return getattr(self.vae, name)


class FadingQuantizer:
    def __init__(self, quantizer, state: Peek):
        self.quantizer, self.state = quantizer, state

    def contribution(self, h_BChw, step, schedule, added_BL=None):
        fade_BL = self.state.fades.get(step.index)
        if fade_BL is not None:
            h_BChw, added_BL = h_BChw * fade_BL.view(-1, 1, *h_BChw.shape[2:]), fade_BL > FAINTEST
        return self.quantizer.contribution(h_BChw, step, schedule, added_BL)

    add = Quantizer.add

    def __getattr__(self, name):
        return getattr(self.quantizer, name)
