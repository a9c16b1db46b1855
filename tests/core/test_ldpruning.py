"""LD-Pruning against its paper's formulas, and what is its own: ragged batches, guidance that ends by the picture."""

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from subjects import MAIN
from subjects import subject as named

import stepvar_core as sv
from stepvar_core.codecs.bits import BitwiseQuantizer
from stepvar_core.codes import Drawn, repeated
from stepvar_core.methods import ldpruning
from stepvar_core.methods.fills import upsampled_codes
from stepvar_core.methods.ldpruning import gap_change, guidance_gap
from stepvar_core.methods.selectors import detail_energy, haar_energy, holding_energy
from stepvar_core.schedule import Scale

REFERENCE = Path(__file__).resolve().parent.parent / "golden" / "methods" / "ldpruning"
CASES = json.loads((REFERENCE / "config.json").read_text(encoding="utf-8"))["cases"]
GAP = CASES["guidance_gap"]
MAPS = [name for name in CASES if name not in ("guidance_gap", "chain")]


@pytest.fixture(scope="module")
def recorded():
    return load_file(REFERENCE / "ldpruning.safetensors")


def unpacked(bits, *shape: int):
    return torch.from_numpy(np.unpackbits(bits.numpy()))[: math.prod(shape)].view(shape)


def vectors(recorded, name: str, grid, packed: bool, channels: int):
    """(1, L, C) code vectors of a recorded map."""
    stored = recorded[name]
    if packed:
        stored = (unpacked(stored, channels, *grid) * 2.0 - 1) / math.sqrt(channels)
    return stored.float().flatten(1).T[None]


def check_kept(energy, kept, expected, tau):
    decided = (energy - tau).abs() >= 1e-5
    assert torch.equal(kept[decided], expected[decided])


@pytest.mark.parametrize("name", MAPS)
def test_energy_and_choice_are_the_papers(recorded, name):
    case = CASES[name]
    old, new = Scale(1, *case["prev"]), Scale(1, *case["grid"])
    previous = vectors(recorded, f"{name}.r_prev", case["prev"], case["packed"], case["channels"])
    torch.testing.assert_close(haar_energy(previous, old)[0, 0].float(), recorded[f"{name}.E_raw"], rtol=0, atol=2e-5)
    energy = detail_energy(previous, old, new)[0]
    torch.testing.assert_close(energy.float(), recorded[f"{name}.E"].flatten(), rtol=0, atol=2e-5)
    kept = holding_energy(energy[None], case["rho"])[0]
    assert int(kept.sum()) == case["kept"]
    check_kept(energy, kept, unpacked(recorded[f"{name}.kept"], new.tokens).bool(), case["tau"])


def test_codes_are_repeated_and_the_next_scale_reads_them(recorded):
    case, chain = CASES["bits_32_40"], CASES["chain"]
    old, new, channels = Scale(1, *case["prev"]), Scale(1, *case["grid"]), case["channels"]
    quantizer = BitwiseQuantizer(channels)

    def bits(name: str, scale: Scale):
        return unpacked(recorded[f"bits_32_40.{name}"], channels, scale.tokens).T[None]

    before, own, kept = bits("r_prev", old), bits("r_own", new), unpacked(recorded["bits_32_40.kept"], new.tokens)
    schedule = sv.ScaleSchedule([old, new])
    mixed = repeated(
        Drawn(own), kept.bool()[None], upsampled_codes(before, old, new), schedule.passes[1], quantizer
    ).codes
    assert torch.equal(mixed, bits("r_k", new))
    then = Scale(1, *chain["grid"])
    torch.testing.assert_close(
        haar_energy(quantizer.vectors(mixed), new)[0, 0].float(), recorded["chain.E_raw"], rtol=0, atol=2e-5
    )
    energy = detail_energy(quantizer.vectors(mixed), new, then)
    check_kept(
        energy[0],
        holding_energy(energy, chain["rho"])[0],
        unpacked(recorded["chain.kept"], then.tokens).bool(),
        chain["tau"],
    )


@pytest.mark.parametrize(("measure", "label"), [("printed", "as_printed"), ("scale_free", "scale_free")])
def test_the_guidance_gap_is_the_papers(recorded, measure, label):
    gaps = []
    for scale in GAP["scales"]:
        halves = [recorded[f"gap.{half}.{scale['idx']}"] for half in ("cond", "uncond")]
        distance = (halves[0] - halves[1]).square().sum(-1)[None]
        gaps.append(guidance_gap(distance, torch.ones_like(distance), halves[0].shape[-1], measure))
        said = scale["norm" if measure == "printed" else "rms"]
        assert float(gaps[-1]) == pytest.approx(said, rel=1e-5)
    changes = [float(gap_change(a, b)) for a, b in zip(gaps, gaps[1:])]
    assert changes == pytest.approx(GAP[f"gamma_{label}"], abs=1e-5)
    ended = GAP["watch_from"] + 1 + next(n for n, change in enumerate(changes) if change < GAP["delta"])
    assert ended == GAP[f"conditional_only_from_{label}"]


def test_what_the_energy_is():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 8 * 6, 5, generator=generator).double()
    scale = Scale(1, 8, 6)
    grid = x.view(2, 4, 2, 3, 2, 5)
    whole, mean = grid.square().sum((2, 4, 5)), (grid.sum((2, 4)) / 2).square().sum(-1)
    torch.testing.assert_close(haar_energy(x, scale)[:, 0], whole - mean)  # Parseval
    assert not haar_energy(torch.ones(1, 48, 5), scale).any()
    shares = [int(holding_energy(detail_energy(x, scale, scale), rho).sum()) for rho in (0.1, 0.5, 0.9, 1.0)]
    assert shares == sorted(shares) and shares[-1] == 2 * 48
    assert holding_energy(torch.zeros(1, 9), 0.1).all(), "no energy says nothing of where to look"


# runs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=MAIN)
def subject(request):
    return named(request.param)


def unramped(subject) -> list[float]:
    """Guidance in every scale, the first one too."""
    return [3.0] * len(subject.schedule)


def rows_of_heads(subject, **options) -> tuple[list[int], sv.Result]:
    rows = []
    hook = subject.model.head.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    try:
        return rows, subject.run(sv.accelerator("ldpruning", **options), cfg=unramped(subject))
    finally:
        hook.remove()


def test_guidance_never_ends_and_ends_at_once(subject):
    dense = subject.run()
    never = subject.run(sv.accelerator("ldpruning", energy=1.0, gap=0.0))
    assert torch.equal(never.latent, dense.latent)
    rows, _ = rows_of_heads(subject, energy=1.0, gap=10.0, gap_scales=3)
    passes = len(subject.schedule)
    assert rows[: passes - 2] == [4] * (passes - 2) and rows[passes - 2 :] == [2, 2]


def check_single_runs(subject, both, seed, cfg, schedule=None, **options):
    schedule = schedule or subject.schedule
    for row, name in enumerate((4, 9)):
        alone = subject.run(
            sv.accelerator("ldpruning", **options), which=[row], rows=[name], seed=seed, cfg=cfg, schedule=schedule
        )
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone.codes, both.codes, strict=True))
        torch.testing.assert_close(alone.latent[0], both.latent[row], rtol=0, atol=1e-4)
        for one, two in zip(alone.trace.scales, both.trace.scales):
            assert torch.equal(one.kept[0], two.kept[row])


def test_a_ragged_batch_is_its_single_runs(subject):
    options = {"gap": 0.0, "scales": 2, "energy": 0.4}

    schedule = sv.ScaleSchedule([(1, 1, 1), (1, 5, 6), (1, 5, 7)])  # of less than three patches a side the mean is even
    ragged = 0
    for seed in range(6):
        both = subject.run(sv.accelerator("ldpruning", **options), rows=[4, 9], seed=seed, cfg=3.0, schedule=schedule)
        counts = [s.kept.flatten(1).sum(1).tolist() for s in both.trace.scales]
        ragged += counts[-1][0] != counts[-1][1]
        check_single_runs(subject, both, seed, 3.0, schedule, **options)
    assert ragged > 1, "else the pictures never differed"


class Listening(ldpruning.LDRun):
    def end_guidance(self, index):
        self.policy.heard.append((index, self.changes_B.tolist()))
        super().end_guidance(index)


@dataclass(frozen=True, eq=False)
class Listens(ldpruning.LDPruning):
    """Writes down by what share every picture's gap changed."""

    heard: list = field(default_factory=list, kw_only=True)

    def begin(self, about, plans):
        return Listening(self, about, plans)


def test_guidance_ends_row_by_row(subject):
    """At a limit between the two pictures' changes one of them goes on guided."""
    options, cfg = {"energy": 1.0, "gap_scales": 3}, unramped(subject)
    settled = sv.accelerator("ldpruning", gap=1e-9, **options).resolve(subject.model, subject.schedule)
    settings = {f.name: getattr(settled, f.name) for f in fields(settled)}
    for seed in range(3):
        listens = Listens(**settings)
        subject.run(listens, rows=[4, 9], seed=seed, cfg=cfg)
        place, changes = listens.heard[0]
        options["gap"] = sum(changes) / 2
        both = subject.run(sv.accelerator("ldpruning", **options), rows=[4, 9], seed=seed, cfg=cfg)
        check_single_runs(subject, both, seed, cfg, **options)
        assert place == len(subject.schedule) - 3
        neutral = subject.model.neutral_cfg
        for row, change in enumerate(changes):  # by the logits alone, guidance is a list that ends
            ends = change < options["gap"]
            said = [*cfg[: place + 1], neutral if ends else 3.0]
            alone = subject.run(None, which=[row], rows=[(4, 9)[row]], seed=seed, cfg=[*said, *cfg[place + 2 :]])
            assert torch.equal(alone.codes[place + 1][0], both.codes[place + 1][row])
