"""What a user can get wrong in a run: the right type of error, and a message that names what was found."""

import re

import numpy as np
import pytest
import torch
from tiny_models import SCHEDULE, tiny_vae, tiny_var

import stepvar_core as sv
from stepvar_core.viewing.overlay import draw

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratios": (NAN,)}, "ratio is nan"),
        ({"ratios": (0.5, 1.5)}, "ratio is 1.5. Use a number from 0 to 1."),
        ({"ratios": (-0.1,)}, "ratio is -0.1"),
        ({"ratios": (True,)}, "ratio is True"),
        ({"ratios": ("0.5",)}, "ratio is '0.5'"),
        ({"ratios": 0.5}, "ratios is 0.5. Give a list"),
        ({"ratios": None}, "ratios is None"),
        ({"ratios": "abc"}, "ratios is 'abc'"),
        ({"ratios": (0.5,), "structure_weight": NAN}, "structure_weight is nan"),
        ({"ratios": (0.5,), "structure_weight": 2}, "structure_weight is 2"),
        ({"ratios": (0.5,), "selector": "best"}, "selector is 'best'. Choose one of stepvar"),
        (
            {"ratios": (0.5,), "fill": "mean"},
            "fill is 'mean'. Choose one of nearest, delta, zero, anchor, cache, repeat.",
        ),
        ({"ratios": (0.5,), "scope": "layer"}, "scope is 'layer'"),
        ({"ratios": (0.5,), "normalise": None}, "normalise is None"),
        ({"ratios": (0.5,), "normalise": ["minmax"]}, "normalise is ['minmax']"),
        ({"ratios": (0.5,), "protect_mode": "always"}, "protect_mode is 'always'"),
        ({"ratios": (0.5,), "cfg_mask": "separate"}, "cfg_mask is 'separate'"),
        ({"ratios": (0.5,), "guidance_late": "none"}, "guidance_late is 'none'"),
        ({"ratios": (0.5,), "kernel": 4}, "kernel is 4. Use an odd number"),
        ({"ratios": (0.5,), "kernel": 3.0}, "kernel is 3.0. Use a whole number"),
        ({"ratios": (0.5,), "iterations": 0}, "iterations is 0"),
        ({"ratios": (0.5,), "coverage": -1}, "coverage is -1"),
        ({"ratios": (0.5,), "first_layer": -1}, "first_layer is -1"),
        ({"ratios": (0.5,), "guidance_late_scales": True}, "guidance_late_scales is True"),
    ],
)
def test_policies(arguments, message):
    with pytest.raises(sv.OptionError, match=re.escape(message)):
        sv.StepVAR(**arguments)


@pytest.mark.parametrize("mask", [torch.zeros(4, 4), torch.zeros(1, 0, 4), torch.full((1, 2, 2), NAN)])
def test_protect_masks(mask):
    with pytest.raises(sv.ShapeMismatch, match=re.escape(f"The protect mask is {tuple(mask.shape)}")):
        sv.StepVAR((0.5,), protect=mask)


def test_numbers_of_numpy_are_numbers(tiny):
    policy = sv.StepVAR(np.array([0.5, 0.25]), structure_weight=np.float32(0.5), coverage=np.int64(2))
    assert policy.ratios == (0.5, 0.25)
    model, vae = tiny
    sv.sample(
        model,
        vae,
        model.class_condition(np.array([1])),
        schedule=SCHEDULE,
        cfg=np.float32(2),
        top_k=np.int64(5),
        top_p=np.float64(0.9),
    )


CODES = [torch.zeros(1, s.tokens, dtype=torch.int64) for s in SCHEDULE]


def replaced(pass_index: int, codes) -> list:
    return [codes if i == pass_index else c for i, c in enumerate(CODES)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cfg": NAN}, sv.OptionError, "cfg is nan. Use a finite number."),
        ({"cfg": INF}, sv.OptionError, "cfg is inf"),
        ({"cfg": "4"}, sv.OptionError, "cfg is '4'"),
        ({"cfg": [1.0, 2.0]}, sv.OptionError, "cfg lists 2 values; the schedule has 4 scales"),
        ({"cfg": [1.0, NAN, 1.0, 1.0]}, sv.OptionError, "cfg is nan"),
        ({"temperature": 0.0}, sv.OptionError, "temperature is 0.0. Use a number above 0"),
        ({"temperature": [1.0] * 5}, sv.OptionError, "temperature lists 5 values"),
        ({"top_k": -1}, sv.OptionError, "top_k is -1. Use a whole number; 0 switches it off."),
        ({"top_k": 1.5}, sv.OptionError, "top_k is 1.5"),
        ({"top_p": 1.01}, sv.OptionError, "top_p is 1.01"),
        ({"top_p": [NAN] * 4}, sv.OptionError, "top_p is nan"),
        ({"options": {"smoth": True}}, sv.OptionError, "Unknown option smoth. This family knows: smooth, smooth_from."),
        ({"start_at_scale": 5}, sv.OptionError, "start_at_scale is 5; the schedule has 4 scales"),
        ({"start_at_scale": 2}, sv.OptionError, "no codes to keep"),
        ({"start_at_scale": 1.0}, sv.OptionError, "start_at_scale is 1.0"),
        ({"end_at_scale": 0}, sv.OptionError, "end_at_scale is 0"),
        ({"end_at_scale": -1}, sv.OptionError, "end_at_scale is -1"),
        ({"mask": torch.zeros(1, 5, 7)}, sv.OptionError, "a mask was given, but no codes"),
        ({"mask": torch.zeros(5, 7), "codes": CODES}, sv.ShapeMismatch, "The mask is (5, 7)"),
        (
            {"mask": torch.zeros(2, 5, 7), "codes": CODES},
            sv.ShapeMismatch,
            "The mask is (2, 5, 7); expected finite values of shape (1, H, W)",
        ),
        ({"mask": torch.full((1, 5, 7), NAN), "codes": CODES}, sv.ShapeMismatch, "finite values"),
        ({"mask": torch.zeros(1, 0, 7), "codes": CODES}, sv.ShapeMismatch, "The mask is (1, 0, 7)"),
        (
            {"mask": torch.zeros(1, 5, 7), "codes": CODES[:3]},
            sv.LatentMismatch,
            "Codes of 3 passes were given; 4 are needed",
        ),
        ({"start_at_scale": 3, "codes": CODES[:2]}, sv.LatentMismatch, "Codes of 2 passes were given; 3 are needed"),
        (
            {"start_at_scale": 2, "codes": replaced(1, torch.zeros(1, 5, dtype=torch.int64))},
            sv.LatentMismatch,
            "The codes of pass 2 are (1, 5); expected (1, 6)",
        ),
        (
            {"start_at_scale": 2, "codes": replaced(1, torch.zeros(2, 6, dtype=torch.int64))},
            sv.LatentMismatch,
            "expected (1, 6)",
        ),
        (
            {"start_at_scale": 2, "codes": replaced(1, torch.full((1, 6), 24))},
            sv.LatentMismatch,
            "not all ids below 24",
        ),
        (
            {"start_at_scale": 2, "codes": replaced(1, torch.full((1, 6), -2))},
            sv.LatentMismatch,
            "not all ids below 24",
        ),
        (
            {"start_at_scale": 2, "codes": replaced(1, torch.full((1, 6), 0.5))},
            sv.LatentMismatch,
            "pass 2 are torch.float32",
        ),
        ({"rows": [0, 1]}, sv.OptionError, "rows names 2 pictures; the batch has 1"),
        ({"rows": []}, sv.OptionError, "rows names 0 pictures"),
        ({"pruning": sv.StepVAR((1, 1, 1, 1))}, sv.OptionError, "Ratio 1 would skip the first scale"),
        ({"pruning": sv.StepVAR((0.5,), first_layer=2)}, sv.OptionError, "first_layer is 2; the model has 2 blocks"),
        (
            {"pruning": sv.StepVAR((0.5,), protect=torch.ones(2, 4, 4))},
            sv.ShapeMismatch,
            "The protect mask holds 2 pictures; the batch has 1",
        ),
        ({"schedule": []}, sv.ScheduleMismatch, "The schedule has no scale"),
        ({"schedule": [(1, 2)]}, sv.ScheduleMismatch, "Scale (1, 2) has 2 numbers; expected three"),
        ({"schedule": [(1, 0, 2)]}, sv.ScheduleMismatch, "Scale h is 0"),
        ({"schedule": [(1, 1.5, 2)]}, sv.ScheduleMismatch, "Scale h is 1.5"),
        ({"schedule": [(1, 1 << 20, 1 << 20)]}, sv.ScheduleMismatch, "the limit is"),
        ({"schedule": [(1, 1, 1)] * 6}, sv.ScheduleMismatch, "has 6 scales"),
        (
            {"schedule": [(1, 1, 1), (1, 9, 9)]},
            sv.ScheduleMismatch,
            "82 tokens; this VAR has 5 level and 66 position embeddings",
        ),
        ({"schedule": [(2, 2, 2)]}, sv.ScheduleMismatch, "still pictures"),
    ],
)
def test_runs(tiny, arguments, error, message):
    model, vae = tiny
    ran = []
    with pytest.raises(error, match=re.escape(message)):
        sv.sample(model, vae, model.class_condition([1]), **{"schedule": SCHEDULE, "on_scale": ran.append, **arguments})
    assert ran == []  # refused at the door


def test_the_cache_fill_needs_an_earlier_scale(tiny):
    with pytest.raises(sv.OptionError, match="The cache fill copies from an earlier dense scale"):
        sv.estimate(tiny[0], sv.ScaleSchedule([(1, 2, 2), (1, 3, 3)]), sv.StepVAR((0.5, 0.5), fill="cache"))


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.class_condition([]),
        lambda model: model.class_condition([6]),
        lambda model: model.class_condition([1.5]),
        lambda model: model.class_condition(["dog"]),
        lambda model: model.class_condition(torch.tensor([NAN])),
    ],
)
def test_labels(tiny, call):
    with pytest.raises(sv.ConditionMismatch, match="Class ids .* Give at least one id from 0 to 4, or -1 for no class"):
        call(tiny[0])


def test_conditions_of_another_kind(tiny):
    model, vae = tiny
    with pytest.raises(sv.ConditionMismatch, match="takes class labels, not text"):
        model.text_condition(torch.zeros(1, 3, 4))
    with pytest.raises(sv.ConditionMismatch, match="The negative holds 1 pictures; the batch has 2"):
        sv.sample(model, vae, model.class_condition([1, 2]), schedule=SCHEDULE, negative=model.class_condition([0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aspect_ratio": 1.5}, "Aspect ratio 1.5 is not one VAR was trained for"),
        ({"aspect_ratio": NAN}, "Aspect ratio nan"),
        ({"seconds": 5}, "VAR makes still pictures"),
        ({"variant": "480p"}, "VAR makes still pictures"),
        ({"size": "1M"}, "Size '1M' is not one this model knows"),
    ],
)
def test_schedules_a_model_does_not_have(tiny, arguments, message):
    with pytest.raises(sv.ScheduleMismatch, match=re.escape(message)):
        tiny[0].schedule(**arguments)


def test_clips_out_of_order():
    with pytest.raises(sv.ScheduleMismatch, match="clips are not in order"):
        sv.ScaleSchedule([sv.Scale(1, 1, 1, clip=1), sv.Scale(1, 2, 2, clip=0)])


def test_a_vae_of_another_model(tiny):
    model = tiny[0]
    with pytest.raises(
        sv.LatentMismatch,
        match=re.escape("The VAE has 20 codes of 8 channels; this model predicts 24 codes of 8 channels."),
    ):
        sv.sample(model, tiny_vae(vocab=20), model.class_condition([1]), schedule=SCHEDULE)
    with pytest.raises(sv.LatentMismatch, match="24 codes of 4 channels"):
        sv.sample(model, tiny_vae(dim=4), model.class_condition([1]), schedule=SCHEDULE)
    with pytest.raises(sv.ConditionMismatch, match="needs its VAE's codebook"):
        sv.sample(model, None, model.class_condition([1]), schedule=SCHEDULE)


def test_pictures_and_latents_of_the_wrong_size():
    vae, schedule = tiny_vae(has_encoder=True, has_decoder=True), sv.ScaleSchedule([(1, 1, 1), (1, 3, 5)])
    assert vae.decode(torch.zeros(2, 8, 3, 5)).shape == (2, 6, 10, 3)
    assert [c.shape for c in vae.encode(torch.rand(2, 6, 10, 3), schedule)] == [(2, 1), (2, 15)]
    with pytest.raises(
        sv.ShapeMismatch, match=re.escape("(1, 6, 8, 3); this schedule needs (B, 6, 10, 3). Scale and crop it to 10x6")
    ):
        vae.encode(torch.rand(1, 6, 8, 3), schedule)
    with pytest.raises(sv.ShapeMismatch, match="needs"):
        vae.encode(torch.rand(6, 10, 3), schedule)
    with pytest.raises(
        sv.LatentMismatch, match=re.escape("The latent is (1, 4, 8, 8); this VAE decodes (B, 8, H, W).")
    ):
        vae.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(sv.LatentMismatch, match="this schedule needs"):
        vae.quantize.encode(torch.zeros(1, 8, 3, 4), schedule)
    bare = tiny_vae()
    with pytest.raises(sv.CheckpointMismatch, match="holds no decoder"):
        bare.decode(torch.zeros(1, 8, 3, 5))
    with pytest.raises(sv.CheckpointMismatch, match="holds no encoder"):
        bare.encode(torch.rand(1, 6, 10, 3), schedule)


def test_every_error_is_a_value_error_with_a_remedy():
    for error in (
        sv.CheckpointMismatch,
        sv.ScheduleMismatch,
        sv.ShapeMismatch,
        sv.OptionError,
        sv.ConditionMismatch,
        sv.LatentMismatch,
    ):
        raised = error("Got this.", "Do that.")
        assert isinstance(raised, sv.StepVARError) and isinstance(raised, ValueError)
        assert (str(raised), raised.problem, raised.remedy) == ("Got this. Do that.", "Got this.", "Do that.")


def test_a_null_class_is_no_error():
    assert tiny_var().class_condition([-1, 5]).labels_B.tolist() == [5, 5]


def test_pictures_the_overlay_draws_on():
    cells, picture = torch.ones(1, 1, 2, 2), torch.rand(1, 8, 8, 4)
    assert torch.equal(draw(picture, cells, "kept", 0.5), draw(picture[..., :3], cells, "kept", 0.5))
    for odd in (torch.rand(1, 0, 8, 3), torch.rand(8, 8, 3), torch.rand(1, 8, 8, 1), torch.rand(0, 8, 8, 3)):
        with pytest.raises(sv.ShapeMismatch, match=re.escape(f"The picture is {tuple(odd.shape)}")):
            draw(odd, cells, "kept", 0.5)


def test_messages_end():
    error = sv.OptionError("x" * 5000, "y" * 5000)
    assert len(str(error)) <= 2000 and str(error).startswith("xxx") and str(error).endswith("yyy")
