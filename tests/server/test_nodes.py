"""Our nodes among ComfyUI's own, in a real server: what works, and what is refused with which words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_server import error_of, opens_nothing, pixels
from graphs import Pipeline
from PIL import Image
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import synth_weights  # noqa: E402

pytestmark = pytest.mark.server

GOLDEN = Path(__file__).parent.parent / "golden" / "var"
EDGE = 64  # pixels of the tiny reference model's pictures
TINY = ("tiny/var.pth", "tiny_vae.pth")


@pytest.fixture(scope="module")
def tiny(comfy_server):
    """The tiny reference checkpoints in the server's model folders, in upstream's own file format."""
    for kind, target in (("var", "var/tiny/var.pth"), ("vae", "vae/tiny_vae.pth")):
        recipe = json.loads((GOLDEN / "tiny4" / f"{kind}.recipe.json").read_text())
        path = comfy_server.base / "models" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(synth_weights.state_dict(recipe), path)


@pytest.fixture
def pipe(comfy, tiny):
    return Pipeline(*TINY)


def works_again(comfy) -> None:
    """The next prompt works: nothing an error left behind stays."""
    assert comfy.run(Pipeline(*TINY).picture(), timeout=60).status == "success"


# what works ---------------------------------------------------------------------------------------


def test_the_reference_picture_comes_out_of_the_server(comfy, pipe):
    """Greedy, cfg 1.5, classes 3 and 7: the reference implementation's own picture, to the grey level."""
    pipe.label = [pipe.add("VARClassLabel", model=pipe.model, label="3; 7"), 0]
    run = comfy.run(pipe.picture(pipe.sample(cfg=1.5)))
    reference = load_file(GOLDEN / "tiny4" / "run_greedy_cfg1p5.safetensors")["image"]
    expected = (reference.movedim(1, -1).numpy() * 255).astype(np.int64)
    assert np.abs(pixels(comfy.images(run)) - expected).max() <= 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp8_e4m3fn"])
def test_every_weight_dtype_draws(comfy, pipe, dtype):
    """Half and eighth precision draw a picture too, and another dtype is another prompt: no stale model is reused."""
    pipe.nodes[pipe.loader]["inputs"]["weight_dtype"] = dtype
    assert len(comfy.images(comfy.run(pipe.picture()))) == 2


def test_progress_previews_and_scale_messages_arrive(comfy, pipe):
    run = comfy.run(pipe.picture(pipe.sample(pipe.prune(ratio_1=0.5), seed=5)), preview_method="auto")
    [sampler] = run.nodes_of("VARSampler")
    steps = [s for s in run.named("stepvar.scale") if s["node"] == sampler]
    assert [s["size"] for s in steps] == [[1, 1, 1], [1, 2, 2], [1, 3, 3], [1, 4, 4]]
    assert [s["tokens_run"] for s in steps] == [1, 4, 9, 8]
    assert run.previews and all(p.node_id == sampler for p in run.previews)
    assert run.previews[-1].image().size == run.previews[0].image().size


def test_previews_change_no_pixel(comfy, pipe):
    shown = comfy.run(pipe.picture(pipe.sample(seed=9, top_k=-1)), preview_method="auto")
    comfy.forget()
    hidden = comfy.run(Pipeline(*TINY).nodes | pipe.nodes, preview_method="none")
    if "preview_method" in (comfy.server.comfyui / "execution.py").read_text(
        encoding="utf-8"
    ):  # older hosts know it at start only
        assert not hidden.previews
    assert (pixels(comfy.images(shown)) == pixels(comfy.images(hidden))).all()


def test_zero_ratios_and_off_draw_the_dense_picture(comfy, pipe):
    pictures = [
        pipe.decode(pipe.sample(model, seed=3, top_k=-1))
        for model in (None, pipe.prune(), pipe.prune(preset="Off", ratio_1=0.9))
    ]
    for picture in pictures:
        graph = pipe.save(picture)
    run = comfy.run(graph)
    dense, zero, off = (pixels(comfy.images(run, node)) for node in run.nodes_of("SaveImage"))
    assert (dense == zero).all() and (dense == off).all()


def test_a_preset_replaces_the_sliders(comfy, pipe):
    sample = pipe.sample(pipe.prune(preset="Balanced", ratio_1=0.0))
    report = pipe.add("StepVARReport", trace=[sample[0], 1])
    run = comfy.run(pipe.picture(sample))
    assert run.outputs[report]["images"]
    assert [s["tokens_run"] for s in run.outputs[sample[0]]["stepvar"][0]["scales"]] == [1, 4, 5, 8]


def test_a_preset_made_for_another_family_skips_no_scale(comfy, pipe):
    sample = pipe.sample(pipe.prune(preset="Paper \u00b7 Infinity"))
    run = comfy.run(pipe.picture(sample))
    assert [s["tokens_run"] for s in run.outputs[sample[0]]["stepvar"][0]["scales"]] == [1, 2, 5, 8]


def test_the_overlay_darkens_exactly_the_pruned_cells(comfy, pipe):
    sample = pipe.sample(pipe.prune(ratio_1=0.5))
    image = pipe.decode(sample)
    overlay = pipe.add("StepVARMaskOverlay", image=image, trace=[sample[0], 1], scale=-1, layer="kept", opacity=1.0)
    mask = pipe.add("MaskToImage", mask=[overlay, 1])
    saved = pipe.add("SaveImage", images=[mask, 0], filename_prefix="mask")
    run = comfy.run(pipe.nodes)
    kept = pixels(comfy.images(run, saved))[..., 0] > 127
    assert kept.reshape(2, 4, 16, 4, 16).mean((2, 4)).sum((1, 2)).tolist() == [8.0, 8.0]
    shown = pixels(comfy.images(run, overlay))
    assert (np.abs(shown[~kept] - np.array([15, 23, 64])) <= 1).all(), (
        "pruned cells are the overlay's blue at full opacity"
    )


@pytest.mark.parametrize("layer", ["structure", "texture", "importance"])
def test_the_overlay_shows_scores(comfy, pipe, layer):
    sample = pipe.sample(pipe.prune(ratio_1=0.5))
    overlay = pipe.add(
        "StepVARMaskOverlay", image=pipe.decode(sample), trace=[sample[0], 1], scale=3, layer=layer, opacity=0.5
    )
    assert len(comfy.images(comfy.run(pipe.nodes), overlay)) == 2


def test_scores_of_a_dense_scale_are_refused_with_the_remedy(comfy, pipe):
    sample = pipe.sample()
    pipe.add(
        "StepVARMaskOverlay", image=pipe.decode(sample), trace=[sample[0], 1], scale=-1, layer="texture", opacity=0.5
    )
    assert "ran without pruning" in error_of(comfy, pipe.nodes)


def test_tiled_decode_is_the_whole_picture(comfy, pipe):
    sample = pipe.sample()
    whole, tiled = (
        pipe.add("SaveImage", images=pipe.decode(sample, tiled), filename_prefix="t") for tiled in (False, True)
    )
    run = comfy.run(pipe.nodes)
    assert (pixels(comfy.images(run, whole)) == pixels(comfy.images(run, tiled))).all()


def test_a_row_taken_from_a_batch_is_the_same_picture_and_keeps_its_codes(comfy, pipe):
    """Latent From Batch: the second picture alone, continued from its own codes, equals the second of two."""
    both = pipe.sample(seed=11, top_k=-1)
    second = [pipe.add("LatentFromBatch", samples=both, batch_index=1, length=1), 0]
    label = pipe.label
    pipe.label = [pipe.add("VARClassLabel", model=pipe.model, label="2"), 0]
    again = pipe.sample(latent=second, seed=11, top_k=-1, start_at_scale=2)
    pipe.label = label
    a, b = (pipe.add("SaveImage", images=pipe.decode(x), filename_prefix="r") for x in (both, again))
    run = comfy.run(pipe.nodes)
    assert (
        np.abs(pixels(comfy.images(run, a))[1] - pixels(comfy.images(run, b))[0]).max() <= 1
    )  # a batch decodes in another order


def test_repeated_and_flipped_latents(comfy, pipe):
    """Repeat Latent Batch keeps the codes; Flip Latent changes the samples, so they are quantised again."""
    first = pipe.sample(seed=4)
    repeated = [pipe.add("RepeatLatentBatch", samples=first, amount=2), 0]
    flipped = [pipe.add("LatentFlip", samples=first, flip_method="x-axis: vertically"), 0]
    saved = {
        name: pipe.add(
            "SaveImage", images=pipe.decode(pipe.sample(latent=latent, start_at_scale=4)), filename_prefix="r"
        )
        for name, latent in (("first", first), ("repeated", repeated), ("flipped", flipped))
    }
    run = comfy.run(pipe.nodes)
    found = {name: pixels(comfy.images(run, node)) for name, node in saved.items()}
    assert (found["repeated"][:2] == found["first"]).all() and (found["repeated"][2:] == found["first"]).all()
    assert found["flipped"].shape == found["first"].shape and (found["flipped"] != found["first"]).any()


def test_two_latents_made_one_batch(comfy, pipe):
    """Batch Latents brings the codes of the first along; the second's pictures are quantised again."""
    latents = [pipe.sample(seed=seed, top_k=-1) for seed in (1, 2)]
    both = [pipe.add("LatentBatch", samples1=latents[0], samples2=latents[1]), 0]
    pipe.label = [pipe.add("VARClassLabel", model=pipe.model, label="1; 2"), 0]
    kept = pipe.sample(latent=both, start_at_scale=4)
    saved = [pipe.add("SaveImage", images=pipe.decode(x), filename_prefix="b") for x in (*latents, both, kept)]
    run = comfy.run(pipe.nodes)
    first, second, joined, again = (pixels(comfy.images(run, node)) for node in saved)
    assert np.abs(np.concatenate([first, second]) - joined).max() <= 1
    assert np.abs(again[:2] - first).max() <= 1
    assert len(again) == 4 and len({a.tobytes() for a in again}) == 4


def test_a_saved_latent_is_loaded_and_continued(comfy, comfy_server, pipe):
    whole = pipe.sample(seed=6, top_k=-1)
    saved = pipe.add("SaveLatent", samples=whole, filename_prefix="kept")
    run = comfy.run(pipe.picture(whole))
    [expected] = [pixels(comfy.images(run))]
    file = run.outputs[saved]["latents"][0]
    (comfy_server.base / "input" / "kept.latent").write_bytes(
        (comfy_server.base / "output" / file["subfolder"] / file["filename"]).read_bytes()
    )
    comfy.object_info(refresh=True)
    again = Pipeline(*TINY)
    loaded = [again.add("LoadLatent", latent="kept.latent"), 0]
    shown = [
        again.add("SaveImage", images=again.decode(x), filename_prefix="l")
        for x in (loaded, again.sample(latent=loaded, start_at_scale=2))
    ]
    run = comfy.run(again.nodes)
    assert np.abs(pixels(comfy.images(run, shown[0])) - expected).max() <= 1
    assert pixels(comfy.images(run, shown[1])).shape == expected.shape


def picture_file(comfy, name: str = "given.png") -> str:
    ramp = np.linspace(0, 255, EDGE, dtype=np.uint8)
    return comfy.add_input(
        name,
        Image.fromarray(
            np.stack(
                [np.tile(ramp, (EDGE, 1)), np.tile(ramp[:, None], (1, EDGE)), np.full((EDGE, EDGE), 90, np.uint8)], -1
            )
        ),
    )


def test_image_to_image_keeps_the_first_scales(comfy, pipe):
    """All scales kept: the picture the tokens hold. One scale kept: another picture."""
    image = [pipe.add("LoadImage", image=picture_file(comfy)), 0]
    encoded = [pipe.add("VAREncode", vae=pipe.vae, image=image, latent=pipe.latent, seed=0), 0]
    pipe.label = [pipe.add("VARClassLabel", model=pipe.model, label="1"), 0]
    saved = [
        pipe.add("SaveImage", images=pipe.decode(x), filename_prefix="i")
        for x in (encoded, pipe.sample(latent=encoded, start_at_scale=4), pipe.sample(latent=encoded, start_at_scale=1))
    ]
    run = comfy.run(pipe.nodes)
    whole, kept, fresh = (pixels(comfy.images(run, node)) for node in saved)
    assert np.abs(whole - kept).max() <= 1
    assert np.abs(whole - fresh).mean() > 1


def test_masked_redraw_leaves_the_rest_alone(comfy, pipe):
    """Set Latent Noise Mask: tokens outside the mask stay those of the picture."""
    image = [pipe.add("LoadImage", image=picture_file(comfy)), 0]
    encoded = [pipe.add("VAREncode", vae=pipe.vae, image=image, latent=pipe.latent, seed=0), 0]
    half = [pipe.add("SolidMask", value=1.0, width=EDGE // 2, height=EDGE), 0]
    empty = [pipe.add("SolidMask", value=0.0, width=EDGE, height=EDGE), 0]
    mask = [pipe.add("MaskComposite", destination=empty, source=half, x=0, y=0, operation="add"), 0]
    pipe.label = [pipe.add("VARClassLabel", model=pipe.model, label="1"), 0]
    latents = {"given": encoded}
    for name, m in (("nothing", empty), ("left", mask)):
        latents[name] = pipe.sample(latent=[pipe.add("SetLatentNoiseMask", samples=encoded, mask=m), 0])
    saved = {
        name: pipe.add("SaveLatent", samples=latent, filename_prefix=f"masked_{name}")
        for name, latent in latents.items()
    }
    run = comfy.run(pipe.nodes)
    folder = comfy.server.base / "output"
    given, nothing, left = (
        load_file(folder / run.outputs[saved[name]]["latents"][0]["filename"])["latent_tensor"] for name in latents
    )
    assert (nothing - given).abs().max() < 1e-5, "an empty mask redraws nothing"
    changed = (left - given).abs().mean((0, 1, 2))  # per column of the 4 x 4 grid
    assert changed[0] > 3 * changed[3]


@pytest.mark.parametrize(
    "size, is_refused", [((2 * EDGE, EDGE), True), ((EDGE // 2, EDGE // 2), False), ((EDGE + 2, EDGE), False)]
)
@pytest.mark.parametrize("use", ["redraw", "protect"])
def test_a_mask_of_another_shape_is_refused(comfy, pipe, use, size, is_refused):
    painted = [
        pipe.add(
            "MaskComposite",
            destination=[pipe.add("SolidMask", value=0.0, width=size[0], height=size[1]), 0],
            source=[pipe.add("SolidMask", value=1.0, width=8, height=8), 0],
            x=0,
            y=0,
            operation="add",
        ),
        0,
    ]
    if use == "redraw":
        sample = pipe.sample(latent=[pipe.add("SetLatentNoiseMask", samples=pipe.sample(), mask=painted), 0])
    else:
        sample = pipe.sample(pipe.prune(ratio_1=0.5, protect=painted))
    run = comfy.attempt(pipe.picture(sample))
    assert run.status == ("error" if is_refused else "success")
    assert not is_refused or f"is {size[0]}x{size[1]} pixels" in run.error.message
    works_again(comfy)


def test_stock_vae_encode_serves_features_that_decode_to_the_picture(comfy, pipe):
    image = [pipe.add("LoadImage", image=picture_file(comfy)), 0]
    encoded = [pipe.add("VAEEncode", pixels=image, vae=pipe.vae), 0]
    run = comfy.run(pipe.picture(encoded))
    assert comfy.images(run)[0].size == (EDGE, EDGE)


def test_an_early_stop_is_continued_to_the_same_picture(comfy, pipe):
    whole = pipe.sample(seed=21, top_k=-1)
    draft = pipe.sample(seed=21, top_k=-1, end_at_scale=2)
    rest = pipe.sample(seed=21, top_k=-1, latent=draft, start_at_scale=2)
    saved = [pipe.add("SaveImage", images=pipe.decode(x), filename_prefix="e") for x in (whole, rest)]
    run = comfy.run(pipe.nodes)
    a, b = (pixels(comfy.images(run, node)) for node in saved)
    assert (a == b).all()


def test_the_saved_picture_holds_the_workflow(comfy, pipe):
    run = comfy.run(pipe.picture())
    prompt = json.loads(comfy.images(run)[0].info["prompt"])
    assert {n["class_type"] for n in prompt.values()} >= {"VARModelLoader", "VARSampler"}


def test_cancelling_stops_the_run_and_the_next_prompt_works(comfy, tiny):
    """A batch that takes seconds, cancelled after its first scale: most scales never run."""
    slow = Pipeline("demo (bundled)", "auto", label="0", batch=48)
    seen = []

    def cancel(run, name, data):
        if name == "stepvar.scale":
            seen.append(data["index"])
            if len(seen) == 1:
                comfy.interrupt(run)

    run = comfy.attempt(slow.picture(slow.sample(seed=77)), on_event=cancel)
    assert run.status == "interrupted"
    assert len(seen) < 10
    works_again(comfy)


# what is refused ----------------------------------------------------------------------------------


def broken_checkpoints(folder: Path) -> dict[str, tuple[str, ...]]:
    """Files a user might have, by name, and the words the message must contain."""
    good = (folder / "tiny" / "var.pth").read_bytes()
    (folder / "truncated.pth").write_bytes(good[: len(good) // 2])
    (folder / "not_weights.safetensors").write_bytes(b"\xff" * 64)
    (folder / "text.pth").write_text("hello")
    save_file({"conv.weight": torch.zeros(3, 3)}, folder / "foreign.safetensors")
    tensors = torch.load(folder / "tiny" / "var.pth", weights_only=True)
    save_file(
        {k: v.contiguous() for k, v in tensors.items() if "blocks.1.ffn" not in k}, folder / "incomplete.safetensors"
    )
    tensors.pop("lvl_1L")
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        folder / "silent.safetensors",
        metadata={"patch_nums": "[1, 99999999]"},
    )

    class Code:
        def __reduce__(self):
            return (open, (str(folder / "was_run"), "w"))

    torch.save({"model": Code()}, folder / "code.pth")
    return {
        "truncated.pth": ("truncated.pth", "Download it again"),
        "not_weights.safetensors": ("damaged or incomplete",),
        "text.pth": ("could not be read as plain weights",),
        "foreign.safetensors": ("not a next-scale transformer", "conv.weight"),
        "incomplete.safetensors": ("does not fit a VAR transformer", "missing"),
        "code.pth": ("refused on purpose",),
        "silent.safetensors": ("silent.safetensors",),
    }


def test_bad_checkpoints_are_named_and_never_run(comfy, comfy_server, tiny):
    folder = comfy_server.base / "models" / "var"
    for name, words in broken_checkpoints(folder).items():
        assert name in comfy.choices("VARModelLoader", "model_name")
        message = error_of(comfy, Pipeline(name, TINY[1]).picture())
        for word in words:
            assert word in message, f"{name}: {message}"
    assert not (folder / "was_run").exists(), "code in a checkpoint was run"
    works_again(comfy)


def test_a_vae_as_model_and_a_model_as_vae(comfy, comfy_server, tiny):
    (comfy_server.base / "models" / "var" / "swapped.pth").write_bytes(
        (comfy_server.base / "models" / "vae" / "tiny_vae.pth").read_bytes()
    )
    comfy.object_info(refresh=True)
    assert "is a VAR VQVAE, not a next-scale transformer" in error_of(comfy, Pipeline("swapped.pth", TINY[1]).picture())
    assert "is a VAR transformer, not a next-scale VAE" in error_of(comfy, Pipeline(TINY[0], TINY[0]).picture())
    works_again(comfy)


def test_model_and_vae_that_do_not_belong_together(comfy, pipe):
    pipe.nodes[pipe.loader]["inputs"]["vae_name"] = "demo (bundled)"
    assert "Load the VAE that belongs to this model" in error_of(comfy, pipe.picture())
    works_again(comfy)


@pytest.mark.parametrize(
    "label, words",
    [("no such thing", "No class is called"), ("99999", "this model has 10 classes"), (" ; ", "The label is empty")],
)
def test_labels(comfy, pipe, label, words):
    pipe.nodes[pipe.label[0]]["inputs"]["label"] = label
    assert words in error_of(comfy, pipe.picture())


@pytest.mark.parametrize(
    "options, words",
    [
        ({"ratio_1": 1.0, "ratio_2": 1.0, "ratio_3": 1.0, "ratio_4": 1.0}, "Ratio 1 would skip the first scale"),
        ({"ratio_1": 0.5, "first_layer": 50}, "first_layer is 50; the model has 2 blocks"),
        ({"ratio_1": 0.5, "kernel": 4}, "kernel is 4"),
    ],
)
def test_pruning_settings(comfy, pipe, options, words):
    assert words in error_of(comfy, pipe.picture(pipe.sample(pipe.prune(**options))))
    works_again(comfy)


@pytest.mark.parametrize("options", [{"ratio_1": 1.5}, {"ratio_1": float("nan")}, {"fill": "glue"}, {"preset": "Fast"}])
def test_values_outside_the_widgets_never_reach_a_run(comfy, pipe, options):
    from comfy_server import PromptRefused

    graph = pipe.picture(pipe.sample(pipe.prune(**options)))
    try:
        run = comfy.attempt(graph)
    except PromptRefused as refusal:
        assert next(iter(options)) in refusal.text
    else:  # the host lets NaN pass its range check: our own message answers
        assert run.status == "error" and next(iter(options)).split("_")[0] in run.error.message


@pytest.mark.parametrize(
    "options, words",
    [
        ({"start_at_scale": 9}, "the schedule has 4 scales"),
        ({"end_at_scale": 0}, "nothing would run"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"start_at_scale": 2}, "the latent is empty: there are no first scales to keep"),
        ({"cfg": -0.5}, "cfg is -0.5. Use 0 or more, or -1 for the model's own cfg."),
        ({"top_p": -0.25}, "top_p is -0.25"),
    ],
)
def test_sampler_settings(comfy, pipe, options, words):
    run = comfy.attempt(pipe.picture(pipe.sample(**options)))
    assert words in run.error.message
    assert run.error.kind.isidentifier(), "the error box shows a short name, not a file's path"


def test_an_aspect_ratio_the_model_does_not_know(comfy, pipe):
    pipe.nodes[pipe.latent[0]]["inputs"]["aspect_ratio"] = "16:9"
    assert "VAR makes square pictures" in error_of(comfy, pipe.picture())


def test_foreign_latents_conditionings_and_vaes(comfy, pipe):
    foreign = [pipe.add("EmptyLatentImage", width=64, height=64, batch_size=1), 0]
    assert "Connect Empty VAR Latent" in error_of(
        comfy, Pipeline(*TINY).nodes | pipe.picture(pipe.sample(latent=foreign))
    )

    pipe = Pipeline(*TINY)
    foreign = [pipe.add("EmptyLatentImage", width=64, height=64, batch_size=1), 0]
    assert "Connect the latent of a VAR Sampler" in error_of(comfy, pipe.picture(foreign))

    pipe = Pipeline(*TINY)
    pipe.latent = [
        pipe.add(
            "LatentUpscale", samples=pipe.latent, upscale_method="bilinear", width=256, height=256, crop="disabled"
        ),
        0,
    ]
    assert "this model needs (8, 4, 4)" in error_of(comfy, pipe.picture())

    pipe = Pipeline(*TINY)
    pipe.label = [pipe.add("ConditioningCombine", conditioning_1=pipe.label, conditioning_2=pipe.label), 0]
    assert "remove Conditioning Combine" in error_of(comfy, pipe.picture())

    pipe = Pipeline(*TINY)
    other = [pipe.add("VARClassLabel", model=pipe.model, label="5"), 0]
    pipe.label = [
        pipe.add(
            "ConditioningAverage", conditioning_to=pipe.label, conditioning_from=other, conditioning_to_strength=0.5
        ),
        0,
    ]
    assert "Conditioning Average or Zero Out" in error_of(comfy, pipe.picture())

    pipe = Pipeline(*TINY)
    pipe.label = [
        pipe.add("ConditioningSetArea", conditioning=pipe.label, width=64, height=64, x=0, y=0, strength=1.0),
        0,
    ]
    assert "limited to an area" in error_of(comfy, pipe.picture())

    pipe = Pipeline(*TINY)
    pipe.label = [pipe.add("ConditioningZeroOut", conditioning=pipe.label), 0]
    assert "Conditioning Average or Zero Out" in error_of(comfy, pipe.picture())
    works_again(comfy)


def test_zero_batch_is_refused_by_the_widget(comfy, pipe):
    from comfy_server import PromptRefused

    pipe.nodes[pipe.latent[0]]["inputs"]["batch_size"] = 0
    with pytest.raises(PromptRefused, match="batch_size"):
        comfy.attempt(pipe.picture())


def test_a_path_in_a_workflow_opens_nothing(comfy, pipe):
    opens_nothing(comfy, pipe.picture(), pipe.loader, "model_name")


# over time ----------------------------------------------------------------------------------------


def resident_mib(server) -> float:
    import psutil

    return psutil.Process(server.process.pid).memory_info().rss / 2**20


def test_two_models_taking_turns_for_fifty_prompts_leave_memory_flat(comfy, comfy_server, pipe):
    """Another model, another size, another seed every time: nothing of a run outlives it."""
    sizes = []
    for i in range(50):
        turn = Pipeline(*TINY) if i % 2 else Pipeline("demo (bundled)", "auto", label="0; 1")
        comfy.run(turn.picture(turn.sample(turn.prune(ratio_1=0.5), seed=i)))
        sizes.append(resident_mib(comfy_server))
    assert max(sizes[40:]) - max(sizes[10:20]) < 60, f"MiB after each prompt: {[round(s) for s in sizes]}"
