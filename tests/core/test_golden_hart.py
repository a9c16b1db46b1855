"""HART against the reference implementation: files, every token, every feature map (tests/golden/hart/README.md)."""

import gzip
import json
import re
import shutil

import hart_runs
import pytest
import torch
from hart_runs import CASES, GOLDEN, RUNS, Replay
from safetensors.torch import load_file, save_file

import stepvar_core as sv
from stepvar_core.checkpoints import Checkpoint, read_checkpoint
from stepvar_core.families.hart.codec import HybridVQVAE
from stepvar_core.families.hart.model import HARTConfig, image_rotary, text_rotary
from stepvar_core.families.hart.residual import diffusion_steps
from stepvar_core.families.registry import CODECS, MODELS, build, detect
from stepvar_core.schedule import Pass, Scale

# the README's tolerances
LOGITS, F_HAT, IMAGE, SMOOTH_SUM, SMOOTH_IMAGE, TABLE = 3e-4, 1e-4, 1e-3, 5e-2, 1e-2, 1e-6
NEAR, FAR = 1e-3, 5e-2  # of a residual: nearly all, all
DROPPED = r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """reference(case) -> a reference case in the official folders, once for this file."""
    built = {}

    def get(case: str) -> hart_runs.Reference:
        if case not in built:
            built[case] = hart_runs.Reference.write(case, tmp_path_factory.mktemp(case))
        return built[case]

    return get


def close(ours, theirs, tolerance: float) -> None:
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=tolerance)


def near(ours, theirs) -> None:
    """What the first diffusion step's factor of 20291 allows."""
    difference = (ours - theirs).abs()
    assert (difference < NEAR).float().mean() >= 0.999 and difference.max() < FAR


# files -------------------------------------------------------------------------------------------


def same_tensors(module, weights: dict) -> bool:
    loaded = module.state_dict()
    return set(loaded) == {key for key in weights if not re.fullmatch(DROPPED, key)} and all(
        torch.equal(loaded[k], weights[k]) for k in loaded
    )


@pytest.mark.parametrize("case", CASES)
def test_the_averaged_weights_win_wherever_the_user_points(reference, case):
    ref = reference(case)
    for path in (ref.folder, ref.folder / "llm", ref.folder / "llm" / "ema_model.bin"):
        assert same_tensors(sv.load_model(path), ref.weights)
    decoy = sv.load_model(ref.folder / "llm" / "pytorch_model.bin")  # asked for by name
    assert decoy.config == sv.load_model(ref.folder).config and not same_tensors(decoy, ref.weights)
    tokenizer = load_file(ref.folder / "tokenizer" / "model.safetensors")
    for path in (
        ref.folder,
        ref.folder / "llm",
        ref.folder / "tokenizer",
        ref.folder / "tokenizer" / "model.safetensors",
    ):
        vae = sv.load_vae(path)
        assert torch.equal(vae.quantize.embedding.weight, tokenizer["vae.quantize.embedding.weight"].float())
        assert isinstance(vae, HybridVQVAE) and vae.quantize.code_format == sv.load_model(ref.folder).code_format
        assert vae.own_schedule() == sv.load_model(ref.folder).schedule()


def test_other_ways_a_folder_is_saved(reference, tmp_path):
    """A single plain file, shards of both kinds, and a file that lost its configuration: the level buffer says the
    scales."""
    ref = reference("t2i_main")
    weights = {key: value.contiguous() for key, value in ref.weights.items()}
    keys = sorted(weights)
    config = ref.folder / "llm" / "config.json"
    for folder, index, part, write in (
        ("st", "model.safetensors.index.json", "model-{}.safetensors", save_file),
        ("bin", "pytorch_model.bin.index.json", "pytorch_model-{}.bin", torch.save),
    ):
        llm = tmp_path / folder / "llm"
        llm.mkdir(parents=True)
        shutil.copy(config, llm)
        shards = {part.format(i): {k: weights[k] for k in keys[i::3]} for i in range(3)}
        for file, tensors in shards.items():
            write(tensors, llm / file)
        (llm / index).write_text(
            json.dumps({"weight_map": {k: file for file, tensors in shards.items() for k in tensors}})
        )
        assert same_tensors(sv.load_model(tmp_path / folder), ref.weights)
    (tmp_path / "plain").mkdir()
    shutil.copy(config, tmp_path / "plain")
    torch.save(weights, tmp_path / "plain" / "pytorch_model.bin")
    assert same_tensors(sv.load_model(tmp_path / "plain"), ref.weights)
    torch.save(weights, tmp_path / "alone.bin")
    assert sv.load_model(tmp_path / "alone.bin", config={"num_heads": 3}).config == sv.load_model(ref.folder).config
    tokenizer = load_file(ref.folder / "tokenizer" / "model.safetensors")
    torch.save(
        tokenizer | {"vae.decoder2.conv_in.weight": torch.zeros(1)}, tmp_path / "tokenizer.bin"
    )  # no config.json: the names tell
    assert isinstance(sv.load_vae(tmp_path / "tokenizer.bin"), HybridVQVAE)


def test_the_mask_of_all_pairs_is_never_read(reference, tmp_path):
    """380 MB at full size, in a buffer nobody needs."""
    ref = reference("t2i_main")
    assert "attn_bias_for_masking" not in read_checkpoint(ref.folder / "llm" / "pytorch_model.bin").tensors
    save_file(
        {key: value.contiguous() for key, value in ref.weights.items()}
        | {"attn_bias_for_masking": torch.zeros(1, 1, 9, 9)},
        tmp_path / "model.safetensors",
    )
    assert "attn_bias_for_masking" not in read_checkpoint(tmp_path / "model.safetensors").tensors


@pytest.mark.parametrize("case", CASES)
def test_sizes_come_from_the_files(reference, case):
    said = json.loads((GOLDEN / case / "llm" / "config.json").read_text())
    c = sv.load_model(reference(case).folder).config
    assert (
        c.patch_nums,
        c.depth,
        c.width,
        c.heads,
        c.text_dim,
        c.text_tokens,
        c.residual_width,
        c.residual_depth,
        c.residual_steps,
        c.norm_eps,
    ) == (
        tuple(said["patch_nums"]),
        *(
            said[key]
            for key in ("depth", "embed_dim", "num_heads", "context_dim", "context_token", "diff_width", "diff_depth")
        ),
        int(said["num_sampling_steps"]),
        said["norm_eps"],
    )
    assert (c.attn_l2_norm, c.has_sinusoid_levels, c.has_context_norm) == tuple(
        said[k] for k in ("attn_l2_norm", "use_timestep_embed", "use_context_norm")
    )
    assert c.modulation == ("none" if said["disable_aln"] else "block") and c.pooling == said["sep_aln_pooling_mode"]


def official(name: str) -> tuple[Checkpoint, dict]:
    """An official checkpoint as keys and shapes, on the meta device."""
    layout = json.loads(gzip.decompress((GOLDEN / "layouts" / f"hart-0.7b-1024px.{name}.json.gz").read_bytes()))
    tensors = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (dtype, shape) in layout["keys"].items()
    }
    return Checkpoint(name, tensors, {}, layout["config"]), layout


def test_the_official_transformer_fits():
    checkpoint, layout = official("transformer")
    model = build(detect(checkpoint, MODELS, "a transformer"), checkpoint, device="meta", dtype=torch.bfloat16)
    assert model.config == HARTConfig()
    assert sum(p.numel() for p in model.parameters()) == layout["parameters"]
    assert {key for key in checkpoint.tensors if not re.fullmatch(DROPPED, key)} == set(model.state_dict())
    kept = {name: p.dtype for name, p in model.named_parameters()}
    assert kept["blocks.3.ffn.up_proj.weight"] == model.dtype == torch.bfloat16
    assert {kept[name] for name in ("head.weight", "diffloss.net.input_proj.weight", "blocks.3.ln_wo_grad.weight")} == {
        torch.float32
    }
    checkpoint.config.clear()  # nothing it says is needed for the published sizes
    assert build(detect(checkpoint, MODELS, "a transformer"), checkpoint, device="meta").config == model.config


def test_the_official_tokenizer_fits():
    checkpoint, layout = official("tokenizer")
    family = detect(checkpoint, CODECS, "a VAE")
    vae = build(family, checkpoint, device="meta")
    wanted = {
        family.rename(key)
        for key in checkpoint.tensors
        if not key.startswith("disc.") and "ema_vocab_hit_SV" not in key
    }
    assert set(vae.state_dict()) == wanted and vae.config.has_encoder and vae.config.stride == 16
    assert vae.own_schedule() == HARTConfig().schedule()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"attn_type": "gpt2"}, "attn_type 'gpt2'; only 'llama'"),
        ({"use_cross_attn": True}, "use_cross_attn True; only False"),
        ({"mlp_type": "gpt2"}, "mlp_type 'gpt2'"),
        ({"num_sampling_steps": "ddim8"}, "sizes make no sense"),
        ({"sep_aln_pooling_mode": "attention"}, "pooling attention"),
        ({"num_heads": 7}, "7 heads"),
    ],
)
def test_what_cannot_run_is_refused_by_name(reference, config, words):
    with pytest.raises(sv.CheckpointMismatch, match=words):
        sv.load_model(reference("t2i_main").folder, config=config)


def test_parts_in_each_others_place(reference):
    folder = reference("t2i_main").folder
    with pytest.raises(sv.CheckpointMismatch, match="is a HART tokenizer, not a next-scale transformer"):
        sv.load_model(folder / "tokenizer")
    with pytest.raises(sv.CheckpointMismatch, match="is a HART transformer, not a next-scale VAE"):
        sv.load_vae(folder / "llm" / "ema_model.bin")


# units -------------------------------------------------------------------------------------------


def rotated(table_RLX):
    """cos and sin as the reference writes them: the sign of the swap taken out of ours."""
    cos, sin = table_RLX.chunk(2, -1)
    sign = torch.ones(sin.shape[-1])
    sign[: sin.shape[-1] // 2] = -1
    return cos, sin * sign


@pytest.mark.parametrize("case", CASES)
def test_positions(reference, case):
    units, config = reference(case).tensors("inputs_and_units"), sv.load_model(reference(case).folder).config
    places = torch.arange(units["rope1d.cos"].shape[1])[None]
    for ours, name in zip(rotated(text_rotary(places, config.head_dim)), ("cos", "sin")):
        close(ours, units[f"rope1d.{name}"], TABLE)
    for scale in {key.split(".")[1] for key in units if key.startswith("rope2d")}:
        edge = config.patch_nums[int(scale[5:])]
        table = image_rotary(Scale(1, edge, edge), torch.tensor([8]), config.patch_nums[-1], config.head_dim)
        for ours, name in zip(rotated(table), ("cos", "sin")):
            close(ours, units[f"rope2d.{scale}.{name}"], TABLE)


@pytest.mark.parametrize("case", CASES)
def test_diffusion_constants_and_levels(reference, case):
    units, model = reference(case).tensors("inputs_and_units"), sv.load_model(reference(case).folder)
    steps = diffusion_steps(model.config.residual_steps)[::-1]
    for ours, name in (
        ("time", "timestep_map"),
        ("x_gain", "sqrt_recip_alphas_cumprod"),
        ("noise_gain", "sqrt_recipm1_alphas_cumprod"),
        ("x0_share", "posterior_mean_coef1"),
        ("x_share", "posterior_mean_coef2"),
        ("log_low", "posterior_log_variance_clipped"),
    ):
        torch.testing.assert_close(
            torch.tensor([getattr(s, ours) for s in steps], dtype=torch.float64),
            units[f"diff.{name}"].double(),
            rtol=1e-8,
            atol=1e-12,
        )
    torch.testing.assert_close(
        torch.tensor([s.log_high for s in steps], dtype=torch.float64).exp(), units["diff.betas"], rtol=1e-8, atol=0
    )
    if "lvl_embed.table" in units:
        close(model.lvl_embed(torch.arange(len(model.config.patch_nums))), units["lvl_embed.table"], TABLE)


@pytest.mark.parametrize("case", CASES)
def test_every_scale_has_its_convolution_but_the_last(reference, case):
    vae, settings = sv.load_vae(reference(case).folder), CASES[case]
    schedule, wanted = vae.own_schedule(), settings["residual_conv_of_scale"]
    assert [vae.quantize.quant_resi.index(i, len(schedule)) for i in range(len(schedule) - 1)] == wanted[:-1]
    h = torch.randn(1, 32, schedule.final.h, schedule.final.w, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vae.quantize.contribution(h, schedule.passes[-1], schedule), h)


def test_a_picture_becomes_the_references_codes(reference):
    ref = reference("t2i_main")
    expected, vae = ref.tensors("encode"), sv.load_vae(ref.folder)
    schedule, picture_BCHW = vae.own_schedule(), expected["encode.image"]
    codes = vae.encode((picture_BCHW.movedim(1, -1) + 1) / 2, schedule)
    assert all(torch.equal(ours, expected[f"encode.idx{i:02d}"].long()) for i, ours in enumerate(codes))
    rest_BCHW = vae.features(picture_BCHW) - vae.quantize.decode_codes(codes[:-1], schedule)
    close(rest_BCHW.flatten(2).transpose(1, 2), expected["encode.f_rest"], F_HAT)
    same, f_hat = vae.encode_all((picture_BCHW.movedim(1, -1) + 1) / 2, schedule)
    assert all(torch.equal(a, b) for a, b in zip(same, codes)) and all(s is None for s in same.soft[:-1])
    close(same.soft[-1], rest_BCHW, F_HAT)
    close(f_hat, vae.features(picture_BCHW), F_HAT)  # nothing of the picture is lost


# runs --------------------------------------------------------------------------------------------


def steps_of_last_scale(expected: dict, codes_BL, scales: int) -> list:
    """Our codes of the last scale as the reference lists them: per MaskGIT step, its positions in raster order."""
    names = sorted(key for key in expected if re.fullmatch(r"scale\d\d\.idx", key))[scales - 1 :]
    if "maskgit_orders" not in expected:
        return [(codes_BL, expected[names[0]])]
    found, end = [], codes_BL.shape[1]
    for name in names:
        count = expected[name].shape[1]
        positions = expected["maskgit_orders"][:, end - count : end].long().sort(-1).values
        found.append((codes_BL.gather(1, positions), expected[name]))
        end -= count
    assert end == 0
    return found


@pytest.mark.parametrize(("case", "name"), RUNS)
def test_a_run_is_the_references(reference, case, name):
    ref, settings = reference(case), CASES[case]["runs"][name]
    expected, model = ref.tensors(f"runs/{name}"), ref.model()
    replay = Replay(settings["seed"], expected.get("maskgit_orders"))
    steps = {}
    result = ref.run(model, name, replay, on_scale=lambda s: steps.update({s.index: (s.logits, s.f_hat)}))
    scales, batch = len(model.config.patch_nums), settings["B"]
    for ours, theirs in [
        (result.codes[i], expected[f"scale{i:02d}.idx"]) for i in range(scales - 1)
    ] + steps_of_last_scale(expected, result.codes[-1], scales):
        assert (
            torch.equal(ours, theirs.long()) if not settings["more_smooth"] else (ours == theirs).float().mean() >= 0.99
        )
    if settings["more_smooth"]:
        close(result.latent, expected["f_hat_final"], SMOOTH_SUM)
    else:
        near(result.latent, expected["f_hat_final"])
    vae = sv.load_vae(ref.folder)
    wrong = (vae.decode(result.latent).movedim(-1, 1) - expected["image"]).abs()
    assert wrong.mean() < SMOOTH_IMAGE if settings["more_smooth"] else wrong.max() < IMAGE
    if not settings["more_smooth"]:
        for i, residual in enumerate(v for k, v in sorted(expected.items()) if k.endswith("diff.residual")):
            near(residuals(result, model, ref, expected, i), residual.view(batch, -1, residual.shape[-1]))
    for number, z_RLC in enumerate(model.z):
        theirs = expected[f"scale{scales - 1 + number:02d}.diff.z.every8"]
        close(
            z_RLC.flatten(0, 1)[::8],
            theirs[: len(z_RLC.flatten(0, 1)[::8])],
            F_HAT if not settings["more_smooth"] else SMOOTH_SUM,
        )
    for key, value in expected.items():
        check_inside(key, value, model, vae.quantize, steps, replay)


def residuals(result, model, ref, expected: dict, step: int):
    """What the run added to the codes' features at the positions of one step of the last scale, (B, n, C)."""
    codes = result.codes[-1]
    rest_BLC = (
        (result.soft[-1] - sv.load_vae(ref.folder).quantize.lookup(codes, model.schedule().final))
        .flatten(2)
        .transpose(1, 2)
    )
    if "maskgit_orders" not in expected:
        return rest_BLC
    counts = [expected[key].shape[1] for key in sorted(expected) if re.fullmatch(r"scale\d\d\.idx", key)][
        len(model.schedule()) - 1 :
    ]
    end = codes.shape[1] - sum(counts[:step])
    positions = expected["maskgit_orders"][:, end - counts[step] : end].long().sort(-1).values
    return rest_BLC.gather(1, positions[..., None].expand(-1, -1, rest_BLC.shape[-1]))


def check_inside(key: str, value, model, quantizer, steps: dict, replay) -> None:
    """One intermediate tensor of the reference against ours; those compared elsewhere are left out."""
    if key == "cond_BD":
        return close(model.text, value, LOGITS)
    found = re.fullmatch(
        r"scale(\d\d)\.(block_in|block0_out|hidden|logits|logits_2b|f_hat|next_in|diff\.noise_init)(\.every8)?", key
    )
    if not found:
        return None
    index, what, is_thinned = int(found[1]), found[2], found[3] is not None
    if what == "diff.noise_init":
        return close(replay.starts[0], value, 0)
    if what == "f_hat":
        return close(steps[index][1], value, F_HAT)
    if what == "next_in":  # what the following blocks were given, before word embedding
        following = Pass(index + 1, index + 1, 0, Scale(1, *value.shape[-2:]))
        return close(quantizer.next_input(steps[index][1], following, model.schedule()), value, F_HAT)
    ours = {"logits": lambda: steps[index][0], "block0_out": lambda: model.first_block[index]}.get(
        what, lambda: model.passes[index][what]
    )()
    if what == "hidden" and index == 0:
        value = value[:, -1:]  # ours goes on with the answer at the last position of the text alone
    return close(ours[:, ::8] if is_thinned else ours, value, LOGITS)
