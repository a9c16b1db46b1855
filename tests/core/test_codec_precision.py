"""Codecs on the CPU at the sizes people draw: as precise as float32 allows, whatever the number of threads.

Small pictures cannot show it: what adds up along a map's pixels goes wrong with their number.
"""

import copy
from contextlib import contextmanager

import pytest
import torch
from tiny_models import seeded

import stepvar_core as sv
from stepvar_core.codecs.vqvae import VQVAE, VQVAEConfig
from stepvar_core.families.infinity.vae import BSQVAE, BSQVAEConfig

PIXELS = 512
SCHEDULE = sv.ScaleSchedule([(1, n, n) for n in (1, 2, 4, 8, 16, 32)])
WIDTHS = {"ch": 8, "ch_mult": (1, 1, 2, 2, 2), "num_res_blocks": 1, "norm_groups": 4}
CODECS = {
    "VAR": lambda: VQVAE(VQVAEConfig(**WIDTHS, z_channels=8, vocab_size=64)),
    "Infinity": lambda: BSQVAE(BSQVAEConfig(**WIDTHS, z_channels=8)),
}


@contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("family", CODECS)
def test_pictures_and_codes_are_those_of_float64(family):
    codec = seeded(CODECS[family](), 3)
    precise = copy.deepcopy(codec).double()
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(1, PIXELS, PIXELS, 3, generator=generator)
    latent = torch.randn(1, 8, PIXELS // 16, PIXELS // 16, generator=generator)
    x = image.movedim(-1, 1) * 2 - 1
    with torch.inference_mode():
        wanted, feature = precise.pixels(latent.double()), precise.analyse(x.double())
        found = {}
        for count in (1, 2):
            with threads(count):
                found[count] = codec.pixels(latent), codec.features(x), codec.encode(image, SCHEDULE)
    pixels, features, codes = found[1]
    span = wanted.abs().max().clamp(min=1)
    assert (pixels - wanted).abs().max() < 2e-5 * span
    assert (features - feature).abs().max() < 2e-5 * feature.abs().max().clamp(min=1)
    nearest = codec.quantizer_on("cpu").encode(feature.float(), SCHEDULE)
    assert all(torch.equal(one, other) for one, other in zip(codes, nearest, strict=True))
    assert (found[2][0] - pixels).abs().max() < 1e-5 * span
    assert all(torch.equal(one, other) for one, other in zip(codes, found[2][2], strict=True))
