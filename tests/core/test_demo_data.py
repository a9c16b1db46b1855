"""The bundled demo model: its training pictures without a network, and the shipped files as they lie on disk."""

import json
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers
from safetensors import safe_open

from stepvar_core.codecs.multiscale import MultiScaleQuantizer
from stepvar_core.demo import MODEL_FILE, VAE_FILE, data, transformer, vae
from stepvar_core.schedule import ScaleSchedule

LIMIT_BYTES = {VAE_FILE: 10_000_000, MODEL_FILE: 20_000_000}


@pytest.fixture(params=[VAE_FILE, MODEL_FILE], ids=lambda p: p.stem)
def shipped(request):
    with safe_open(request.param, framework="pt") as file:
        yield request.param, file


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sprites(count: int = 3) -> torch.Tensor:
    """A red disc with a soft rim, alpha-multiplied as load_artwork gives it."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, data.SPRITE_SIZE)] * 2, indexing="ij")
    alpha = ((0.7 - (x * x + y * y).sqrt()) * 20).clamp(0, 1)
    return torch.stack([alpha, 0 * alpha, 0 * alpha, alpha]).expand(count, -1, -1, -1)


def test_class_names_are_unique():
    assert 40 <= len(data.CLASSES) == len(set(data.CLASSES)) <= 48


def test_packages_are_pinned_by_version_and_content():
    assert all(
        re.fullmatch(r"@?[a-z0-9/-]+@\d+\.\d+\.\d+", name) and len(digest) == 88
        for name, digest in data.PACKAGES.items()
    )


@settings(max_examples=15)
@given(batch=integers(1, 5), size=integers(16, 80), seed=integers(0, 2**31))
def test_pictures_fill_their_range_and_repeat_with_the_seed(batch, size, seed):
    ids = torch.zeros(batch, dtype=torch.int64)
    x, y = (data.compose(sprites(), ids, rng(seed), size=size) for _ in range(2))
    assert x.shape == (batch, 3, size, size) and x.isfinite().all() and x.min() >= -1 and x.max() <= 1
    assert torch.equal(x, y)


def test_the_object_covers_the_middle_and_not_the_corners():
    x = data.compose(sprites(), torch.zeros(32, dtype=torch.int64), rng(0))
    red = torch.tensor([1.0, -1.0, -1.0])
    assert torch.allclose(x[:, :, data.IMAGE_SIZE // 2, data.IMAGE_SIZE // 2], red.expand(32, 3), atol=0.02)
    assert ((x[:, :, 0, 0] - red).abs().sum(1) > 0.3).float().mean() > 0.9


@settings(max_examples=15)
@given(seed=integers(0, 2**31))
def test_backgrounds_are_coloured_and_bounded(seed):
    x = data.backgrounds(4, rng(seed))
    assert x.shape == (4, 3, data.IMAGE_SIZE, data.IMAGE_SIZE) and x.min() >= 0 and x.max() <= 1
    assert (x.amax(1) - x.amin(1)).mean() > 0.03, "grey backgrounds teach a grey model"


def test_backgrounds_keep_away_from_the_colour_of_the_object():
    red = torch.tensor([[1.0, 0.1, 0.1]]).expand(400, 3)
    near, far = (
        ((data.backgrounds(400, rng(1), 16, data.Patterns(share=0.0), avoid).mean((2, 3)) - red).norm(dim=1)).mean()
        for avoid in (None, red)
    )
    assert far > near + 0.05


def test_patterns_come_at_their_share_and_darken_only():
    plain, some, all_ = (
        data.backgrounds(200, rng(1), 32, data.Patterns(share, (3.0, 3.0), (0.3, 0.3), 8)) for share in (0.0, 0.5, 1.0)
    )
    assert ((some - plain).abs().amax((1, 2, 3)) > 1e-6).float().mean() == pytest.approx(0.5, abs=0.1)
    assert (all_ <= plain).all() and (all_ >= 0.7 * plain - 1e-6).all()


def test_few_patterns_are_few():
    """Three kinds in eight directions, of which some look alike. Divided by the same backgrounds without them, only
    patterns are left."""

    def shadows(patterns):
        drawn, plain = (data.backgrounds(400, rng(2), 32, replace(patterns, share=share)) for share in (1.0, 0.0))
        return len(torch.unique(((drawn / plain)[:, 0] * 100).round(), dim=0))

    assert 8 < shadows(data.FEW_PATTERNS) <= 24
    assert shadows(data.ANY_PATTERN) > 300


@pytest.mark.parametrize("size", [64, 128])
def test_both_sizes_show_the_same_pictures(size):
    artwork = data.Artwork(sprites(2), [{"name": "a"}, {"name": "b"}])
    x, ids = next(data.endless(artwork, 2, seed=3, size=size))
    reference, same_ids = next(data.endless(artwork, 2, seed=3, size=64))
    assert x.shape[2:] == (size, size) and torch.equal(ids, same_ids)
    assert (torch.nn.functional.avg_pool2d(x, size // 64) - reference).abs().mean() < 0.02


def test_hsv_of_the_pure_colours():
    ones = torch.ones(3)
    assert torch.allclose(data.hsv_to_rgb(torch.tensor([0.0, 1 / 3, 2 / 3]), ones, ones), torch.eye(3), atol=1e-5)
    assert torch.allclose(
        data.hsv_to_rgb(torch.tensor([-0.1]), ones[:1], ones[:1]),
        data.hsv_to_rgb(torch.tensor([0.9]), ones[:1], ones[:1]),
        atol=1e-5,
    )


def test_every_class_comes_before_any_repeats():
    artwork = data.Artwork(sprites(5), [{"name": str(i)} for i in range(5)])
    stream = data.endless(artwork, 2, seed=1)
    ids = torch.cat([next(stream)[1] for _ in range(5)])
    assert sorted(ids[:5].tolist()) == sorted(ids[5:].tolist()) == list(range(5))


def test_a_search_word_belongs_to_one_class():
    entries = [
        {"label": "dog face", "tags": ["animal", "puppy", "4"], "emoji": "a"},
        {"label": "cat", "tags": ["animal", "dog"], "emoji": "b"},
    ]
    assert data.label_entries(entries) == [
        {"name": "dog face", "aliases": ["puppy"], "emoji": "a"},
        {"name": "cat", "aliases": [], "emoji": "b"},
    ]


def test_the_training_cascade_finds_the_codes_inference_finds():
    torch.manual_seed(0)
    schedule, quantizer = ScaleSchedule.square((1, 2, 3, 5)), MultiScaleQuantizer(32, 4)
    f = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        f_hat, loss, ids, _ = vae.cascade(quantizer, f, schedule)
        codes = quantizer.encode(f, schedule)
    assert all(torch.equal(a, b) for a, b in zip(ids, codes)) and loss > 0
    assert torch.allclose(f_hat, quantizer.decode_codes(codes, schedule), atol=1e-5)


def test_slips_stay_near_and_only_where_asked():
    torch.manual_seed(0)
    codes, z = torch.randn(32, 4), torch.randn(40, 4)
    near = vae.near(codes, z)
    assert torch.equal(near[:, 0], vae.nearest(codes, z))
    assert torch.equal(vae.slips(4, rng(0), chance=1.0, share=0.0)(near), near[:, 0])
    found = vae.slips(4, rng(0), chance=1.0, share=1.0)(near)
    assert (found[:, None] == near).any(1).all() and (found != near[:, 0]).any()


def test_a_grown_vae_starts_as_the_small_one_with_doubled_pixels():
    torch.manual_seed(0)
    small, large = vae.VQVAE(vae.SMALL), vae.VQVAE(vae.CONFIG)
    large.load_state_dict(vae.grown(small.state_dict()))
    x = data.compose(sprites(), torch.zeros(2, dtype=torch.int64), rng(4), size=64)
    with torch.no_grad():
        # where pixels come in equal squares, the row and column the new convolutions cannot reach equals the next one
        f, grown_f = small.encoder(x), large.encoder(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        assert torch.allclose(f, grown_f, atol=1e-3)
        small.decoder.conv_out = large.decoder.conv_out = torch.nn.Identity()  # it alone sees that pixels are smaller
        y, grown_y = (m.decoder(m.post_quant_conv(f)) for m in (small, large))
    assert torch.allclose(y.repeat_interleave(2, 2).repeat_interleave(2, 3), grown_y, atol=1e-4)


@pytest.mark.parametrize("scales", [7, 8, 10])
def test_prefix_training_gives_the_models_own_logits(scales):
    torch.manual_seed(0)
    model = transformer.VAR(transformer.config(3))
    transformer.initialise(model, 0)
    torch.nn.init.normal_(model.head.weight)
    full, prefix = (ScaleSchedule.square(vae.CONFIG.patch_nums[:n]) for n in (10, scales))
    labels, inputs = torch.tensor([1]), torch.randn(1, full.tokens - 1, vae.CONFIG.z_channels)
    with torch.no_grad():
        wanted = model.teacher_forced(labels, inputs)[:, : prefix.tokens]
        found = transformer.TeacherForced(model)(labels, inputs[:, : prefix.tokens - 1], prefix)
    assert torch.allclose(found, wanted, atol=1e-3)


def test_shipped_files_are_small_and_finite(shipped):
    path, file = shipped
    assert path.stat().st_size <= LIMIT_BYTES[path]
    assert all(file.get_tensor(key).isfinite().all() for key in file.keys())


def test_shipped_metadata_says_what_shapes_cannot(shipped):
    path, file = shipped
    about = file.metadata()
    assert tuple(json.loads(about["patch_nums"])) == vae.CONFIG.patch_nums
    if path == VAE_FILE:
        assert json.loads(about["norm_groups"]) == vae.CONFIG.norm_groups
        return
    labels, defaults = json.loads(about["labels"]), json.loads(about["defaults"])
    assert [entry["name"] for entry in labels] == list(data.CLASSES)
    assert all(entry["emoji"] and isinstance(entry["aliases"], list) for entry in labels)
    assert file.get_slice("class_emb.weight").get_shape()[0] == len(labels) + 1
    assert defaults["cfg"] > 0 and json.loads(about["num_heads"]) == transformer.HEADS


def test_what_must_stay_exact_is_float32(shipped):
    _, file = shipped
    for key in file.keys():
        exact = key.startswith(("quantize.", "word_embed.", "class_emb.", "pos_", "lvl_embed."))
        assert file.get_slice(key).get_dtype() == ("F32" if exact else "F16"), key
