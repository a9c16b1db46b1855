"""Prints, as one JSON list, what runs really hold at most on the second device, and what the estimate says of them.

python peaks.py [family], in the environment of conftest's second_device. Random weights: memory does not depend on
them.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch  # noqa: E402
import torch_npu  # noqa: E402

import stepvar_core as sv  # noqa: E402
from stepvar_core.codecs.vqvae import VQVAE, VQVAEConfig  # noqa: E402
from stepvar_core.families.hart.codec import HybridVQVAE  # noqa: E402
from stepvar_core.families.hart.model import HART, HARTConfig  # noqa: E402
from stepvar_core.families.infinity.model import Infinity, InfinityConfig  # noqa: E402
from stepvar_core.families.switti.model import Switti, SwittiConfig  # noqa: E402
from stepvar_core.families.var.model import VAR, VARConfig  # noqa: E402

DEVICE = torch.device("npu", 0)
TEXT = 40
POLICIES = {
    "dense": None,
    "pruned": sv.StepVAR((0.5, 0.5)),
    "skipped": sv.StepVAR((1, 0.75)),
    "FastVAR's cache": sv.StepVAR((0.5, 0.5), scope="sublayer", fill="cache", first_layer=0),
    "delta": sv.StepVAR((0.5, 0.5), fill="delta"),
    "nearly nothing": sv.StepVAR((0.99,) * 4),
}


def placed(module, dtype):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    return module.place(DEVICE, dtype).requires_grad_(False).train(False)


def pairs(dtype):
    """name, model, VAE, condition(batch), schedule of every family, large enough for weights not to hide the rest."""
    config = VARConfig(
        patch_nums=(1, 2, 4, 8, 16, 24), depth=2, width=512, heads=8, vocab_size=4096, code_dim=32, num_classes=10
    )
    vae = placed(
        VQVAE(
            VQVAEConfig(
                ch=32,
                ch_mult=(1,),
                num_res_blocks=1,
                patch_nums=config.patch_nums,
                has_encoder=False,
                has_decoder=False,
            )
        ),
        torch.float32,
    )
    var = placed(VAR(config), dtype)
    yield "var", var, vae, lambda batch: var.class_condition([1] * batch), var.schedule()
    hybrid = placed(
        HybridVQVAE(
            VQVAEConfig(
                ch=32,
                ch_mult=(1,),
                num_res_blocks=1,
                patch_nums=config.patch_nums,
                has_encoder=False,
                has_decoder=False,
            )
        ),
        torch.float32,
    )
    hart = placed(
        HART(
            HARTConfig(
                patch_nums=config.patch_nums,
                depth=2,
                width=512,
                heads=8,
                hidden=1536,
                text_dim=512,
                text_tokens=TEXT,
                residual_width=320,
                residual_depth=2,
            )
        ),
        dtype,
    )
    yield "hart", hart, hybrid, lambda batch: hart.text_condition(torch.randn(batch, TEXT, 512)), hart.schedule()
    infinity = placed(
        Infinity(
            InfinityConfig(
                depth=2,
                chunk=1,
                width=512,
                heads=4,
                hidden=2048,
                bits=32,
                text_dim=512,
                text_maxlen=64,
                patch=1,
                pool_heads=8,
                levels=15,
            )
        ),
        dtype,
    )
    yield (
        "infinity",
        infinity,
        None,
        lambda batch: infinity.text_condition(torch.randn(batch, TEXT, 512)),
        infinity.schedule(1.0, "0.25M"),
    )
    switti = placed(
        Switti(
            SwittiConfig(
                patch_nums=config.patch_nums, depth=2, width=512, heads=8, hidden=1365, text_dim=512, pooled_dim=256
            )
        ),
        dtype,
    )
    yield "switti", switti, vae, lambda batch: pooled_text(switti, batch), switti.schedule()


def pooled_text(model, batch: int):
    return model.text_condition(torch.randn(batch, TEXT, 512), torch.ones(batch, TEXT), torch.randn(batch, 256))


def measured(model, vae, condition, schedule, policy) -> tuple[int, int, int]:
    """Bytes at most, weights included; bytes the run left behind; numbers the host waited for."""
    memory, weights = torch_npu.memory, sum(p.numel() * p.element_size() for p in model.parameters())
    before, reads = memory.used(), memory.reads()
    memory.reset_peak()
    negative = condition if model.family == "switti" else None  # it has none of its own
    sv.sample(model, vae, condition, schedule=schedule, negative=negative, pruning=policy)
    return memory.peak() - before + weights, memory.used() - before, memory.reads() - reads


found = []
for dtype, cases in (
    (torch.float32, [("dense", 2), *((name, 1) for name in POLICIES)]),
    (torch.bfloat16, [("dense", 1)]),
):
    for family, model, vae, condition, schedule in pairs(dtype):
        if not family.startswith(sys.argv[1] if len(sys.argv) > 1 else ""):
            continue
        for name, batch in cases:
            peak, left, reads = measured(model, vae, condition(batch), schedule, POLICIES[name])
            estimate = sv.estimate(model, schedule, POLICIES[name], batch=batch, text_tokens=TEXT)
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            found.append(
                {
                    "run": f"{family}, {dtype}, {name}, batch {batch}",
                    "peak": peak,
                    "estimate": estimate.peak_bytes,
                    "weights_and_cache": weights + estimate.kv_bytes,
                    "left": left,
                    "reads": reads,
                }
            )
print(json.dumps(found))
