"""The cost model against FLOPs counted while real modules run, and against the reference's published-size table."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from golden_runs import VAR_GOLDEN
from tiny_models import SCHEDULE, tiny_pair, tiny_var
from torch.overrides import TorchFunctionMode

import stepvar_core as sv
from stepvar_core.families.var.model import VAR, VARConfig
from stepvar_core.methods.fills import FILLS
from stepvar_core.methods.policy import HALVES
from stepvar_core.methods.presets import PRESETS
from stepvar_core.methods.stepvar import SCOPES

TABLE = {entry["model"]: entry for entry in json.loads((VAR_GOLDEN / "costs.json").read_text())["models"]}


class FlopCounter(TorchFunctionMode):
    """2 per multiply-add of every linear and attention that runs while it is entered.

    The quantiser's convolutions and the selection are no part of the estimate: under 0.1 % at real sizes.
    """

    flops = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is F.linear:
            self.flops += 2 * out.numel() * args[0].shape[-1]
        elif func is F.scaled_dot_product_attention:
            q, k = args[0], args[1]
            self.flops += 4 * q.numel() * k.shape[2]
        return out


def counted(pair, policy, cfg, labels=(1, 3), **arguments) -> int:
    model, vae = pair
    with FlopCounter() as counter:
        sv.sample(model, vae, model.class_condition(labels), schedule=SCHEDULE, pruning=policy, cfg=cfg, **arguments)
    return counter.flops


POLICIES = {
    "dense": None,
    **{
        f"{fill} {scope} from {first}": sv.StepVAR((0.7, 0.4), fill=fill, scope=scope, first_layer=first)
        for fill, scope, first in itertools.product(FILLS, SCOPES, (0, 1))
    },
    **{
        f"late {half} {ratios}": sv.StepVAR(ratios, guidance_late=half, guidance_late_scales=2)
        for half, ratios in itertools.product(HALVES, ((0.0,), (0.7, 0.4)))
    },
    "last skipped": sv.StepVAR((1, 0.5)),
    "two skipped": sv.StepVAR((1, 1)),
    "middle skipped": sv.StepVAR((0.5, 1)),
    "covered": sv.StepVAR((0.9, 0.9), coverage=2),
    **{
        f"preset {name}, {half} late": sv.StepVAR(ratios, guidance_late=half, guidance_late_scales=2)
        for (name, ratios), half in itertools.product(PRESETS.items(), HALVES)
    },
}


@pytest.mark.parametrize(
    "cfg", [0.0, 3.0, [0.0, 2.0, 0.0, 2.0], [2.0, 2.0, 0.0, 0.0]], ids=["off", "ramp", "gaps", "early"]
)
@pytest.mark.parametrize("name", POLICIES)
def test_the_estimate_is_what_runs(tiny, name, cfg):
    """Exactly, where 1 % would do: a term forgotten shows at once."""
    policy = POLICIES[name]
    estimate = sv.estimate(tiny[0], SCHEDULE, policy, cfg=cfg, batch=2)
    assert counted(tiny, policy, cfg) == estimate.flops
    assert estimate.dense_flops == sv.estimate(tiny[0], SCHEDULE, None, cfg=cfg, batch=2).flops
    assert estimate.speedup == estimate.dense_flops / estimate.flops


@pytest.mark.parametrize("sizes", [{"depth": 3, "heads": 1}, {"shared_aln": True}, {"heads": 3, "classes": 2}])
def test_the_estimate_holds_for_other_sizes(sizes):
    pair, policy = tiny_pair(**sizes), sv.StepVAR((0.5, 0.25, 0.5))
    assert counted(pair, policy, 1.5, labels=(1,)) == sv.estimate(pair[0], SCHEDULE, policy, cfg=1.5).flops


def test_the_estimate_describes_every_pass(tiny):
    policy = sv.StepVAR((1, 0.5))
    estimate = sv.estimate(tiny[0], SCHEDULE, policy)
    assert [s.size for s in estimate.scales] == [s.grid for s in SCHEDULE]
    assert [s.kept for s in estimate.scales] == [1, 6, 6, 0] and [s.tokens for s in estimate.scales] == [1, 6, 12, 35]
    assert estimate.scales[3].flops == estimate.scales[3].kv_bytes == 0
    # the last pass that runs leaves nothing behind: 2 layers, keys and values, 2 rows, 32 wide, 4 bytes
    assert [s.kv_bytes for s in estimate.scales] == [2 * 2 * 2 * n * 32 * 4 for n in (1, 6, 0, 0)]
    assert estimate.peak_bytes > estimate.kv_bytes + sum(p.numel() * 4 for p in tiny[0].parameters())
    assert sv.estimate(tiny[0], SCHEDULE, sv.StepVAR((0, 0))).speedup == 1
    assert estimate.speedup > 1.5


def test_an_estimate_refuses_what_a_run_refuses(tiny):
    with pytest.raises(sv.OptionError, match="first_layer is 2"):
        sv.estimate(tiny[0], SCHEDULE, sv.StepVAR((0.5,), first_layer=2))
    with pytest.raises(sv.OptionError, match="cfg lists 3 values"):
        sv.estimate(tiny[0], SCHEDULE, None, cfg=[1, 2, 3])


@pytest.mark.parametrize("name", TABLE)
def test_published_sizes_match_the_reference_table(name):
    """costs.json counts one image with guidance in every scale: two rows, the head included, no word embedding and no
    modulation (it lists that apart, as recomputed in every scale); its cache holds the last scale too."""
    table, layout = TABLE[name], json.loads((VAR_GOLDEN / "layouts" / f"{name}.json").read_text())
    config = VARConfig(
        patch_nums=tuple(layout["patch_nums"]),
        depth=layout["depth"],
        width=layout["embed_dim"],
        heads=layout["heads"],
        shared_aln=layout["shared_aln"],
    )
    with torch.device("meta"):
        model = VAR(config)
    schedule, cost = model.schedule(), model.cost()
    estimate = sv.estimate(model, schedule, cfg=[1.0] * len(schedule))
    start = 0
    for i, (ours, theirs) in enumerate(zip(estimate.scales, table["scales"], strict=True)):
        start += ours.tokens
        assert (ours.tokens, start) == (theirs["tokens"], theirs["kv_tokens"])
        embedding = cost.embed_per_token * ours.tokens if i else 0
        assert ours.flops - embedding == theirs["linear"] + theirs["self_attn"]
    total = sum(s.flops for s in estimate.scales)
    assert total / 1e12 == pytest.approx(table["tflop_total"], rel=1e-3)
    assert estimate.flops / 1e12 == pytest.approx(table["tflop_total"], rel=0.01)
    if not config.shared_aln:
        modulation = 2 * (cost.per_run_and_row - 2 * config.width * 2 * config.width)
        assert modulation * len(schedule) / 1e12 == pytest.approx(
            table["adaln_gemv_tflop_recomputed_every_scale"], abs=1e-5
        )
    last = 2 * 2 * schedule.final.tokens * config.depth * config.width * 4
    assert (sum(s.kv_bytes for s in estimate.scales) + last) / 2**20 == pytest.approx(
        table["kv_cache_mib"]["fp32"], abs=0.06
    )
    # the default ramp leaves the first scale unguided: one head row of one token less
    ramp = sv.estimate(model, schedule)
    assert estimate.flops - ramp.flops == cost.head_per_token


def test_more_pruning_never_costs_more():
    model = tiny_var()
    flops = [sv.estimate(model, SCHEDULE, sv.StepVAR((ratio,))).flops for ratio in (0, 0.1, 0.3, 0.5, 0.9, 1)]
    assert flops == sorted(flops, reverse=True) and len(set(flops)) == len(flops)
