"""Rival accelerators: the contract every method of the registry keeps, and FastVAR against a plain
re-implementation."""

import itertools
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import normal_weights
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from subjects import LONG, Noting, every_family, full_size, same, subject
from tiny_models import SCHEDULE, prompts, tiny_infinity

import stepvar_core as sv
from stepvar_core import methods
from stepvar_core.families.infinity.schedules import TEMPLATES
from stepvar_core.methods.kept import AroundSublayers
from stepvar_core.methods.method import PUBLISHED, Accelerator
from stepvar_core.methods.policy import About
from stepvar_core.methods.stepvar import Rival, StepVARRun

METHODS = {method.id: method for method in methods.METHODS}


def kept(policy, model, schedule) -> list[int]:
    return [s.kept for s in sv.estimate(model, schedule, policy).scales]


def decides(method: str, model, schedule) -> bool:
    """Whether a picture decides how much of it runs."""
    return sv.estimate(model, schedule, sv.accelerator(method)).least_flops is not None


# plans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", sorted(TEMPLATES))
@pytest.mark.parametrize("method", METHODS)
def test_every_aspect_ratio_of_infinity_is_accelerated(method, ratio):
    """At the published sizes the plan of every shape is the square one's: by the place of a scale, not by its width."""
    model = full_size("infinity")
    for size in ("1M", "0.60M", "0.25M"):
        square, schedule = model.schedule(1.0, size), model.schedule(1 / ratio, size)
        shares = [
            [k / s.tokens for k, s in zip(kept(sv.accelerator(method), model, sched), sched)]
            for sched in (square, schedule)
        ]
        assert shares[1] == pytest.approx(shares[0], abs=0.02)
        speedup = sv.estimate(model, schedule, sv.accelerator(method)).speedup
        assert (speedup[1] if isinstance(speedup, tuple) else speedup) > 1.15


@pytest.mark.parametrize("method", METHODS)
def test_every_shape_of_infinity_runs(method):
    """On a tiny model, at the smallest published size and at 13 scales of every shape."""
    model = tiny_infinity()
    condition = prompts(model, 3)
    for grids in TEMPLATES.values():
        small = sv.ScaleSchedule([(1, math.ceil(h / 5), math.ceil(w / 5)) for h, w in grids])
        for schedule in (sv.ScaleSchedule([(1, *grid) for grid in grids[:7]]), small):
            result = sv.sample(model, None, condition, schedule=schedule, pruning=sv.accelerator(method))
            ran, plan = [s.tokens_run for s in result.trace.scales], kept(sv.accelerator(method), model, schedule)
            assert all(a <= b for a, b in zip(ran, plan)) if decides(method, model, schedule) else ran == plan
            assert result.latent.shape[-2:] == (schedule.final.h, schedule.final.w) and result.latent.isfinite().all()


@pytest.mark.parametrize("options", [{"ratio_1": 0.6}, {"ratio_2": 0.0}, {"ratio_1": 0.0, "ratio_2": 0.0}], ids=str)
@every_family
def test_the_changes_fastvar_remembers_are_in_the_predicted_memory(one, options):
    policy, held = sv.accelerator("fastvar", **options), []
    noting = Noting(policy)

    def watch(step):
        changes = [c for run in noting.alive for c in getattr(getattr(run, "earlier", None), "changes", {}).values()]
        held.append(sum(c.numel() * c.element_size() for c in changes))

    one.run(noting, on_scale=watch)
    settled = policy.resolve(one.model, one.schedule)
    without = one.estimate(replace(settled, fill="nearest"))
    assert one.estimate(settled).peak_bytes - without.peak_bytes == max(held)
    assert (max(held) > 0) == (options.get("ratio_1") != 0)


# options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "option"),
    [(m, o) for m, method in METHODS.items() for o in method.options],
    ids=lambda v: getattr(v, "name", v),
)
def test_options_are_checked_at_the_door(method, option):
    assert sv.accelerator(method, **{option.name: option.default}) == sv.accelerator(method)
    for bad in ("nothing", float("nan"), None, True, 1e9, -3):
        with pytest.raises(sv.OptionError, match=f"{option.name} of {method} is"):
            sv.accelerator(method, **{option.name: bad})
    for fine in option.choices or (option.low, option.high):
        assert isinstance(sv.accelerator(method, **{option.name: type(option.default)(fine)}), Accelerator)


def test_unknown_names_are_refused():
    with pytest.raises(sv.OptionError, match="no accelerator 'turbo'.*Choose one of fastvar"):
        sv.accelerator("turbo")
    with pytest.raises(sv.OptionError, match="fastvar has no option ratio_9.*It knows skip_scales, ratio_1"):
        sv.accelerator("fastvar", ratio_9=0.1)


def test_policies_are_equal_by_their_settings():
    assert sv.accelerator("lazyvar", keep_1=0.5) == sv.accelerator("lazyvar", keep_1=0.5) != sv.accelerator("lazyvar")
    assert hash(sv.accelerator("lazyvar")) == hash(sv.accelerator("lazyvar", keep_1=PUBLISHED))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"last_layer": 3}, "last_layer is 3 with scope"),
        ({"cfg_mask": "separate"}, "cfg_mask is 'separate' with scope"),
    ],
)
def test_what_one_choice_per_scale_cannot_do_is_refused(settings, said):
    with pytest.raises(sv.OptionError, match=said):
        sv.StepVAR((0.5,), **settings)
    policy = sv.StepVAR((0.5,), scope="sublayer", **settings)
    if policy.last_layer is not None:
        with pytest.raises(sv.OptionError, match="last_layer is 3, before first_layer 4"):
            policy.plan(About(SCHEDULE, layers=8, first_layer=4))


# published plans -----------------------------------------------------------------------------------


def test_the_published_plans():
    model = full_size("infinity")
    last = {method: kept(sv.accelerator(method), model, model.schedule())[-4:] for method in METHODS}
    assert last["fastvar"] == [615, 800, 0, 0]
    assert last["fastervar"] == [1024, 1600, 0, 0] and last["skipvar"] == [1024, 1600, 2304, 0]
    assert last["lazyvar"] == [205, 160, 116, 41]  # 521 by the paper, which rounds down
    # nothing is skipped where there is no larger scale to stand for it
    short = model.schedule(size="0.60M")
    assert kept(sv.accelerator("fastvar"), model, short)[-3:] == [1024, 1600 - 640, 2304 - 1152]
    assert all(kept(sv.accelerator("fastervar"), model, short))
    assert sv.estimate(model, model.schedule(), sv.accelerator("fastvar")).speedup == pytest.approx(4.2, abs=0.2)


def test_fastervar_follows_no_prompt_late():
    one = subject("infinity-long")
    late = {
        half: one.run(sv.accelerator("fastervar", skip_scales=0, half=half))
        for half in ("unconditional", "conditional")
    }
    dense = one.run()
    first = len(LONG) - 3
    for result in late.values():
        assert all(torch.equal(a, b) for a, b in zip(result.codes[:first], dense.codes[:first]))
    assert not same(*late.values())
    stops = [one.cfg] * first + [1.0] * 3
    assert same(late["conditional"], one.run(None, cfg=stops))


# FastVAR, the authors' own run -----------------------------------------------------------------------

REFERENCE = Path(__file__).resolve().parent.parent / "golden" / "fastvar"
SUBLAYERS = ("attn", "cross", "ffn")
SQUARE = sv.ScaleSchedule.square((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(model, condition, recorded tensors) of tests/golden/fastvar."""
    file, recorded = tmp_path_factory.mktemp("fastvar") / "model.safetensors", load_file(REFERENCE / "runs.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in normal_weights.rebuild(REFERENCE).items()}, file)
    model = sv.load_model(file)
    return model, model.text_condition(recorded["text_features"][None]), recorded


def unpacked(bits, *shape: int):
    flags = torch.from_numpy(np.unpackbits(bits.numpy()))[: math.prod(shape)]
    return flags.view(shape)


class WatchedTokens(AroundSublayers):
    """Writes down which tokens each sub-layer chose."""

    def through(self, fn, x_RLC, site):
        self.site = site
        return super().through(fn, x_RLC, site)

    def choose(self, x_RLC, keep):
        kept = super().choose(x_RLC, keep)
        self.chosen[(self.step.index, *self.site)] = kept.mask_BN
        return kept


class WatchedRun(StepVARRun):
    around = WatchedTokens

    def tokens(self, steps, rows):
        made = super().tokens(steps, rows)
        if isinstance(made, WatchedTokens):
            made.chosen = self.policy.chosen
        return made


@dataclass(frozen=True, eq=False)
class WatchedRival(Rival):
    chosen: dict = field(default_factory=dict, kw_only=True)

    def begin(self, about, plans):
        return WatchedRun(self, about, plans)


@pytest.mark.parametrize(("name", "cfg"), [("cfg", 3.0), ("nocfg", 1.0)])
def test_fastvar_reproduces_its_reference(reference, name, cfg):
    model, condition, recorded = reference
    settled = sv.accelerator("fastvar").resolve(model, SQUARE)
    policy = WatchedRival(**{f.name: getattr(settled, f.name) for f in fields(settled)})
    seen = {}
    result = sv.sample(
        model,
        None,
        condition,
        schedule=SQUARE,
        cfg=cfg,
        top_k=1,
        temperature=1.0,
        top_p=0.0,
        pruning=policy,
        on_scale=lambda step: seen.update({step.index: step.logits}),
    )
    assert [c.shape[1] for c in result.codes[11:]] == [0, 0]
    bits, expected = torch.cat(result.codes[:11], 1)[0], unpacked(recorded[f"{name}.bits"], 4121, 8)
    before = sum(s.tokens for s in SQUARE.scales[:9])
    assert torch.equal(bits[:before], expected[:before]) and (bits == expected).float().mean() >= 0.999
    rows, at = 1 if cfg == 1 else 2, 0
    for scale, layer, sublayer in itertools.product((9, 10), (3, 4, 5), SUBLAYERS):
        tokens = SQUARE.scales[scale].tokens
        mask = unpacked(recorded[f"{name}.kept"][at : at + rows * tokens // 8], rows, tokens).bool()
        at += rows * tokens // 8
        assert mask.sum(1).tolist() == [{9: 615, 10: 800}[scale]] * rows
        assert (mask & ~policy.chosen[(scale, layer, sublayer)]).sum(1).max() <= 2, (scale, layer, sublayer)
    assert at == len(recorded[f"{name}.kept"]) and len(policy.chosen) == 18
    error = (result.latent[0, :, ::4, ::4] - recorded[f"{name}.summed_codes"]).abs()
    assert (error <= 1e-4).float().mean() >= 0.999
    for scale in (8, 9, 10) if cfg != 1 else ():
        torch.testing.assert_close(seen[scale][0, ::64], recorded[f"cfg.logits.{scale}"], rtol=0, atol=3e-4)


def test_the_plain_fastvar_reproduces_it_too(reference):
    """So that it may stand for the authors' program at other shapes."""
    model, condition, recorded = reference
    codes, f_hat, chosen = plain_fastvar(model, condition, SQUARE, 3.0, {9: 0.4, 10: 0.5, 11: 1, 12: 1}, 8, 3, 27)
    assert torch.equal(torch.cat(codes[:11], 1)[0], unpacked(recorded["cfg.bits"], 4121, 8))
    first = unpacked(recorded["cfg.kept"][: 2 * 1024 // 8], 2, 1024)
    assert all(
        torch.equal(keep.sort().values, row.nonzero().flatten()) for keep, row in zip(chosen[(9, 3, "attn")], first)
    )
    assert ((f_hat[0, :, ::4, ::4] - recorded["cfg.summed_codes"]).abs() <= 1e-4).all()


# FastVAR, plainly, at other shapes ------------------------------------------------------------------


class PlainMemory:
    """Keys and values of a pass are put behind those of the passes before."""

    def __init__(self, layers: int):
        self.kv = [([], []) for _ in range(layers)]

    def attend(self, layer, q, k, v, scale):
        keys, values = self.kv[layer]
        keys.append(k)
        values.append(v)
        weights = (q @ torch.cat(keys, 2).transpose(-1, -2) * scale).softmax(-1)
        return weights @ torch.cat(values, 2)


@torch.no_grad()
def plain_fastvar(model, condition, schedule, cfg: float, ratios: dict[int, float], stored: int, first: int, last: int):
    """Codes per pass, f_hat and the kept positions by (scale, layer, sub-layer), greedily: FastVAR written out for
    one picture.

    ratios: pruned fraction by scale index, 1 = skipped. stored: the scale whose changes fill the others. A row of
    guidance at a time where tokens are chosen; no token plan and no preallocated cache.
    """
    quantizer, is_guided = model.own_quantizer(), cfg != 1
    memory = PlainMemory(len(model.blocks))
    run = model.begin(condition, model.unconditional(condition) if is_guided else None, "cpu")
    f_hat, codes, changes, chosen = quantizer.empty(1, schedule, "cpu"), [], {}, {}
    for step in schedule.passes:
        i, n = step.index, step.scale.tokens
        if ratios.get(i) == 1:
            codes.append(torch.zeros(1, 0, model.config.bits, dtype=torch.uint8))
            continue
        x = model.embed(run, quantizer.next_input(f_hat, step, schedule) if i else None, step, schedule)
        for layer, block in enumerate(model.blocks):
            given = run.blocks[layer]
            gate1, gate2, gain1, gain2, shift1, shift2 = given.modulation

            def norm(y, gain, shift):
                return F.layer_norm(y, y.shape[-1:], eps=model.config.norm_eps) * gain + shift

            def change(name, call, x, i=i, n=n, layer=layer, scale=step.scale):
                """The sub-layer's answer at every position; call(tokens, their rotary rows)."""
                site, table = (layer, name), run.rotary[i].expand(len(x), -1, -1)
                if i not in ratios or not first <= layer <= last:
                    answer = call(x, table)
                    if i == stored:
                        changes[site] = answer
                    return answer
                distance = ((x - x.mean(1, keepdim=True)) ** 2).sum(-1)
                keep = distance.argsort(dim=1, descending=True)[:, : n - int(n * ratios[i])]
                chosen[(i, *site)] = keep
                rows = torch.arange(len(x))[:, None]
                answer = call(x[rows, keep], table[rows, keep])
                old = schedule.scales[stored]
                filled = F.interpolate(
                    changes[site].transpose(1, 2).unflatten(2, (old.h, old.w)), (scale.h, scale.w), mode="area"
                )
                filled = filled.flatten(2).transpose(1, 2).clone()
                for row in range(len(x)):
                    filled[row, keep[row]] = answer[row]
                return filled

            x = x + gate1 * change(
                "attn", lambda y, table: block.sa(norm(y, gain1, shift1), given, table, layer, memory), x
            )

            x = x + change("cross", lambda y, table: block.ca(block.ca_norm(y), given.text_k, given.text_v, None), x)
            x = x + gate2 * change("ffn", lambda y, table: block.ffn(norm(y, gain2, shift2)), x)
        logits = model.logits(run, x, slice(0, len(x)))
        if is_guided:
            logits = cfg * logits[:1] + (1 - cfg) * logits[1:]
        codes.append(logits.unflatten(-1, (-1, 2)).argmax(-1).to(torch.uint8))
        f_hat = f_hat + quantizer.contribution(quantizer.lookup(codes[-1], step.scale), step, schedule)
    return codes, f_hat, chosen


@pytest.mark.parametrize("cfg", [3.0, 1.0])
@pytest.mark.parametrize("schedule", [LONG, sv.ScaleSchedule([(1, s.w, s.h) for s in LONG])], ids=["wide", "tall"])
def test_fastvar_is_what_its_authors_do(cfg, schedule):
    """Codes, f_hat, and which tokens ran, in shapes their program cannot run."""
    model = tiny_infinity()
    condition = prompts(model, 3)
    ours = sv.sample(
        model,
        None,
        condition,
        schedule=schedule,
        cfg=cfg,
        top_k=1,
        temperature=1.0,
        top_p=0.0,
        pruning=sv.accelerator("fastvar"),
    )
    codes, f_hat, chosen = plain_fastvar(model, condition, schedule, cfg, {9: 0.4, 10: 0.5, 11: 1, 12: 1}, 8, 3, 27)
    assert all(torch.equal(a, b) for a, b in zip(ours.codes, codes, strict=True))
    torch.testing.assert_close(ours.latent, f_hat, rtol=0, atol=1e-5)
    assert len(chosen) == 2 * 2 * 3  # two scales, layers 3 and 4, three sub-layers
    for scale in (9, 10):
        first = chosen[(scale, 3, "attn")]
        assert first.shape == (
            2 if cfg != 1 else 1,
            schedule.scales[scale].tokens - int(schedule.scales[scale].tokens * (0.4 if scale == 9 else 0.5)),
        )
        assert set(ours.trace.scales[scale].kept.flatten().nonzero().flatten().tolist()) == set(first[0].tolist())
    if cfg != 1:
        assert any(set(c[0].tolist()) != set(c[1].tolist()) for c in chosen.values()), (
            "else shared choices would pass too"
        )
