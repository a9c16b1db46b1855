"""Not-a-number ends in the package's error: never in an error of torch's, and never in a picture of nothing."""

import copy
import json

import pytest
import torch
from subjects import MAIN, OFF, POLICIES, PRUNED, every_subject, subject
from tiny_models import EDGES, save, tiny_infinity, tiny_vae, tiny_var

import stepvar_core as sv

NAN, INF = float("nan"), float("inf")
NAMES = (OFF, "fastvar", "skipvar", "lazyvar", PRUNED, "cache scale")
NOT_NUMBERS = "is not made of finite numbers"


@pytest.mark.parametrize("top_k", [0, 1])
@pytest.mark.parametrize("value", [NAN, INF])
@every_subject([*MAIN, "switti-causal"])
def test_weights(one, value, top_k):
    broken = one.apart()
    with torch.no_grad():
        block = [p for n, p in broken.model.named_parameters() if n.startswith("block") and p.ndim == 2][-1]
        block[:, 0] = value
    for policy in NAMES:
        with pytest.raises(sv.StepVARError, match=NOT_NUMBERS):
            broken.run(POLICIES[policy], top_k=top_k)


@pytest.mark.parametrize("arguments", [{"cfg": 1e308}, {"temperature": 5e-324}, {"temperature": 1e-320, "top_k": 1}])
@every_subject([*MAIN, "switti-causal"])
def test_settings_that_overflow(one, arguments):
    with pytest.raises(sv.StepVARError):
        one.run(**arguments)


def test_the_first_pass_is_named():
    broken = subject("var").apart()
    with torch.no_grad():
        broken.vae.quantize.quant_resi.qresi_ls[1].weight[:] = NAN  # what the second scale adds
    with pytest.raises(sv.StepVARError, match="in pass 3 of 4"):
        broken.run()


@pytest.mark.parametrize("family", ["infinity", "hart"])
def test_prompts(family):
    condition = copy.deepcopy(subject(family).pictures((0, 1)))
    features = condition.texts[0] if family == "infinity" else condition.features_BTC
    features[0] = NAN
    with pytest.raises(sv.StepVARError, match=NOT_NUMBERS):
        subject(family).run(condition=condition)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_pictures_latents_and_weights_of_a_vae(value):
    vae = tiny_vae(has_encoder=True, has_decoder=True)
    schedule = sv.ScaleSchedule([(1, 1, 1), (1, 3, 5)])
    image, latent = torch.rand(1, 6, 10, 3), torch.zeros(1, 8, 3, 5)
    image[0, 2, 3, 1] = latent[0, 3, 1, 2] = value
    with pytest.raises(sv.ShapeMismatch, match="The picture holds values that are not finite"):
        vae.encode(image, schedule)
    with pytest.raises(sv.LatentMismatch, match="The latent holds values that are not finite"):
        vae.decode(latent)
    with torch.no_grad():
        vae.encoder.conv_in.weight[0] = vae.decoder.conv_out.weight[0] = value
    with pytest.raises(sv.CheckpointMismatch, match="its weights are damaged"):
        vae.encode(torch.rand(1, 6, 10, 3), schedule)
    with pytest.raises(sv.CheckpointMismatch, match="its weights are damaged"):
        vae.decode(torch.zeros(1, 8, 3, 5))


@pytest.mark.parametrize("said", ["NaN", "Infinity", "1e308", "-1"])
def test_settings_of_a_file(tmp_path, said):
    settings = {"patch_nums": json.dumps(EDGES), "norm_eps": said}
    for module in (tiny_var(), tiny_infinity()):
        with pytest.raises(sv.CheckpointMismatch, match="norm_eps is"):
            sv.load_model(save(module, tmp_path / "m.safetensors", **settings))
    with pytest.raises(sv.CheckpointMismatch, match="quant_resi is"):
        sv.load_vae(save(tiny_vae(), tmp_path / "v.safetensors", quant_resi=said))


def test_a_residual_that_is_none():
    broken = subject("hart").apart()
    with torch.no_grad():
        broken.model.diffloss.net.input_proj.weight[0] = NAN
    with pytest.raises(sv.StepVARError, match="in pass 4 of 4"):
        broken.run()
