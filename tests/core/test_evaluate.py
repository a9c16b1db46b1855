"""Pictures for benchmarks: the folders their scorers read, the same picture however it is drawn, and runs that go
on."""

import json
import re
from dataclasses import replace

import infinity_runs
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import save, tiny_hart, tiny_vae, tiny_var

import stepvar_core as sv
from stepvar_core.errors import ConditionMismatch, OptionError
from stepvar_core.evaluate import text
from stepvar_core.evaluate.__main__ import main
from stepvar_core.evaluate.drawing import Plan, two_columns
from stepvar_core.evaluate.prompts import Prompt, read_prompts
from stepvar_core.evaluate.running import run
from stepvar_core.families.hart.family import FAMILY as HART
from stepvar_core.families.switti.family import FAMILY as SWITTI


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    about = {"patch_nums": json.dumps([1, 2, 3, 4, 6]), "norm_groups": "2"}
    return [
        str(save(tiny_var(), folder / "var.safetensors", **about)),
        str(save(tiny_vae(has_encoder=True, has_decoder=True), folder / "vae.safetensors", **about)),
    ]


@pytest.fixture
def arguments(files):
    model, vae = files
    return ["--model", model, "--vae", vae, "--device", "cpu"]


def write_geneval(folder):
    lines = [{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": str(i)} for i in range(3)]
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path, lines


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_geneval_finds_its_folders(tmp_path, arguments):
    path, lines = write_geneval(tmp_path)
    main([str(path), "--out", str(tmp_path / "out"), *arguments])
    images = tmp_path / "out" / "images"
    folders = sorted(p.name for p in images.iterdir())
    assert folders == ["00000", "00001", "00002"] and all(
        name.isdigit() for name in folders
    )  # what the scorer looks for
    for folder, line in zip(folders, lines):
        assert json.load(open(images / folder / "metadata.jsonl")) == line
        samples = sorted(p.name for p in (images / folder / "samples").iterdir())
        assert len(samples) == 4 and all(re.match(r"\d+\.png", name) for name in samples)
        assert pixels(images / folder / "samples" / samples[0]).shape == (12, 12, 3)


def test_a_family_whose_pads_count_is_refused_before_anything_is_drawn(tmp_path):
    path, _ = write_geneval(tmp_path)
    model = save(
        tiny_hart(),
        tmp_path / "hart.safetensors",
        patch_nums="[1, 2, 3, 4, 6]",
        context_token="12",
        num_heads="2",
        num_sampling_steps="4",
    )
    vae = save(tiny_vae(has_decoder=True), tmp_path / "vae.safetensors", quantizer_type="var_hybrid", norm_groups="2")
    with pytest.raises(SystemExit, match="hart family reads its prompts' pads"):
        main(
            [
                str(path),
                "--out",
                str(tmp_path / "out"),
                "--model",
                str(model),
                "--vae",
                str(vae),
                "--device",
                "cpu",
                "--text-encoder",
                "qwen",
            ]
        )
    assert not (tmp_path / "out" / "images").exists()


def test_a_family_of_another_encoder_is_never_fed_with_t5(tmp_path):
    """Features of another encoder may have the right number of channels, and would draw something else in silence."""
    hart = replace(HART, reads=replace(HART.reads, keeps_pads=False))
    with pytest.raises(sv.ConditionMismatch, match="reads Qwen2-VL-1.5B-Instruct; this tool encodes with FLAN-T5"):
        text.reader(hart, "", str(tmp_path), "cpu")


def test_a_family_that_reads_pooled_prompts_is_refused(tmp_path):
    """Stored features hold no vector of the whole prompt."""
    with pytest.raises(sv.ConditionMismatch, match="switti family reads a vector of the whole prompt"):
        text.reader(SWITTI, str(tmp_path / "features.safetensors"), "", "cpu")


def test_dpg_finds_grids_and_nothing_else(tmp_path, arguments):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name, label in (("coco_12", "2"), ("partiprompts0", "4")):
        (prompts / f"{name}.txt").write_text(label + "\n")
    main([str(prompts), "--out", str(tmp_path / "grid"), "--batch", "3", *arguments])
    images = tmp_path / "grid" / "images"
    assert sorted(p.name for p in images.iterdir()) == [
        "coco_12.png",
        "partiprompts0.png",
    ]  # the scorer opens every file there
    sheet = pixels(images / "coco_12.png")
    assert sheet.shape == (24, 24, 3)
    text = tmp_path / "one.txt"
    text.write_text("2\n4\n")
    main([str(text), "--out", str(tmp_path / "single"), "--per-prompt", "4", *arguments])
    quarters = [sheet[:12, :12], sheet[:12, 12:], sheet[12:, :12], sheet[12:, 12:]]  # in the scorer's order
    assert all(
        (q == pixels(tmp_path / "single" / "images" / f"00000_{n:03}.png")).all() for n, q in enumerate(quarters)
    )


def test_mjhq_is_sorted_by_category(tmp_path, arguments):
    path = tmp_path / "meta_data.json"
    path.write_text(
        json.dumps({"ab12": {"category": "animals", "prompt": "1"}, "cd34": {"category": "food", "prompt": "3"}})
    )
    main([str(path), "--out", str(tmp_path / "out"), *arguments])
    images = tmp_path / "out" / "images"
    assert sorted(p.relative_to(images).as_posix() for p in images.rglob("*.png")) == [
        "animals/ab12.png",
        "food/cd34.png",
    ]


def test_classes_are_packed_for_the_fid_evaluator(tmp_path, arguments):
    main(
        [
            "classes",
            "--out",
            str(tmp_path / "out"),
            "--per-prompt",
            "2",
            "--npz",
            str(tmp_path / "samples.npz"),
            *arguments,
        ]
    )
    packed = np.load(tmp_path / "samples.npz")["arr_0"]
    assert packed.shape == (10, 12, 12, 3) and packed.dtype == np.uint8
    assert (packed[3] == pixels(tmp_path / "out" / "images" / "00001_001.png")).all()


def test_a_picture_does_not_depend_on_the_batch_and_a_stopped_run_goes_on(tmp_path, files):
    prompts = [Prompt(i, f"{i:05}", str(i)) for i in range(4)]

    def plan(name, batch):
        return Plan(str(tmp_path / name), "text", 2, *files, batch=batch, pruning={"ratios": (0.5,)})

    assert run(plan("whole", 8), prompts) == 4
    assert run(plan("parts", 1), prompts[:2]) == 2
    (plan("parts", 1).images / "00001_001.png").unlink()  # as if it had been stopped within this prompt
    before = (plan("parts", 1).images / "00000_000.png").stat().st_mtime_ns
    assert run(plan("parts", 3), prompts) == 3
    assert (plan("parts", 1).images / "00000_000.png").stat().st_mtime_ns == before, "finished pictures are left alone"
    for file in plan("whole", 8).images.iterdir():
        a, b = pixels(file).astype(int), pixels(plan("parts", 1).images / file.name).astype(int)
        assert np.abs(a - b).max() <= 1
    assert run(plan("whole", 8), prompts) == 0
    records = [json.loads(line) for line in (tmp_path / "whole" / "timings.jsonl").read_text().splitlines()]
    assert sum(r["pictures"] for r in records) == 8 and all(
        r["seconds"] >= r["scale_seconds"] > 0 and r["tokens_run"][-1] == 18 for r in records
    )


def test_other_settings_do_not_mix_into_a_folder(tmp_path, files):
    prompts = [Prompt(0, "00000", "1")]
    run(Plan(str(tmp_path), "text", 1, *files), prompts)
    with pytest.raises(OptionError, match="another pruning"):
        run(Plan(str(tmp_path), "text", 1, *files, pruning={"ratios": (0.5,)}), prompts)


def test_a_text_model_draws_from_stored_features(tmp_path):
    """Infinity, in its own file format; the picture of a prompt is the one that sampling with its features alone
    gives."""
    reference = infinity_runs.Reference.write("i2b", tmp_path)
    files = [str(reference.stem / f"{name}.safetensors") for name in ("model", "vae")]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na tall red house\n")
    generator = torch.Generator().manual_seed(0)
    features = {f"{i:05}": torch.randn(3 + 2 * i, reference.config["Ct5"], generator=generator) for i in range(2)}
    save_file(features, tmp_path / "features.safetensors")
    main(
        [
            str(prompts),
            "--out",
            str(tmp_path / "out"),
            "--model",
            files[0],
            "--vae",
            files[1],
            "--device",
            "cpu",
            "--size",
            "0.06M",
            "--batch",
            "2",
            "--features",
            str(tmp_path / "features.safetensors"),
            "--ratios",
            "0.5",
            "--set",
            "fill=zero",
            "coverage=2",
        ]
    )
    model, vae = sv.load_model(files[0]), sv.load_vae(files[1])
    result = sv.sample(
        model,
        vae,
        model.text_condition(features["00001"].unsqueeze(0)),
        schedule=model.schedule(1.0, "0.06M"),
        rows=[1],
        pruning=sv.StepVAR((0.5,), fill="zero", coverage=2),
    )
    expected = (vae.decode(result.latent)[0].clamp(0, 1) * 255).round().int().numpy()
    assert np.abs(pixels(tmp_path / "out" / "images" / "00001_000.png").astype(int) - expected).max() <= 1


def test_features_that_are_missing_are_named(tmp_path):
    save_file({"00000": torch.zeros(3, 8)}, tmp_path / "features.safetensors")
    with pytest.raises(ConditionMismatch, match="no features of prompt 00009"):
        text.stored_features(str(tmp_path / "features.safetensors"))(Prompt(9, "00009", "a dog"))
    with pytest.raises(ConditionMismatch, match="--text-encoder FOLDER"):
        text.TextEncoder("", "cpu")


def test_what_cannot_be_read_is_refused(tmp_path, arguments):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"tag": "x"}\n')
    with pytest.raises(OptionError, match="not in the form of geneval"):
        read_prompts(str(broken), "geneval")
    with pytest.raises(OptionError, match="There is no"):
        read_prompts(str(tmp_path / "gone.txt"), "text")
    with pytest.raises(SystemExit, match="Give one of them"):
        main(["classes", "--out", str(tmp_path / "out"), "--preset", "Balanced", "--ratios", "0.5", *arguments])
    with pytest.raises(SystemExit, match="--set names colour, no setting of StepVAR"):
        main(["classes", "--out", str(tmp_path / "out"), "--set", "colour=red", *arguments])
    with pytest.raises(SystemExit, match="fastvar has no option fill"):
        main(["classes", "--out", str(tmp_path / "out"), "--method", "fastvar", "--set", "fill=zero", *arguments])
    with pytest.raises(SystemExit, match="which are StepVAR's"):
        main(["classes", "--out", str(tmp_path / "out"), "--method", "fastvar", "--preset", "Balanced", *arguments])


def test_a_rival_method_draws_what_sampling_with_it_gives(tmp_path, arguments, files):
    main(
        [
            "classes",
            "--out",
            str(tmp_path / "out"),
            "--method",
            "lazyvar",
            "--set",
            "keep_1=0.4",
            *arguments,
            "--first",
            "2",
            "--per-prompt",
            "1",
        ]
    )
    model, vae = sv.load_model(files[0]), sv.load_vae(files[1])
    result = sv.sample(
        model,
        vae,
        model.class_condition([1]),
        schedule=model.schedule(),
        rows=[1],
        pruning=sv.accelerator("lazyvar", keep_1=0.4),
    )
    expected = (vae.decode(result.latent)[0].clamp(0, 1) * 255).round().int().numpy()
    assert np.abs(pixels(tmp_path / "out" / "images" / "00001_000.png").astype(int) - expected).max() <= 1
    with pytest.raises(SystemExit, match="another pruning"):
        main(
            [
                "classes",
                "--out",
                str(tmp_path / "out"),
                "--method",
                "lazyvar",
                *arguments,
                "--first",
                "2",
                "--per-prompt",
                "1",
            ]
        )


def test_columns_hold_every_picture_in_reading_order():
    pictures = [np.full((2, 3, 3), n, np.uint8) for n in range(3)]
    sheet = two_columns(pictures)
    assert sheet.shape == (4, 6, 3) and [sheet[0, 0, 0], sheet[0, 3, 0], sheet[2, 0, 0], sheet[2, 3, 0]] == [0, 1, 2, 0]
    assert two_columns(pictures[1:2]) is pictures[1]


@pytest.mark.skipif(not __import__("importlib.util").util.find_spec("ray"), reason="Ray is optional and not installed")
def test_ray_draws_the_same_pictures(tmp_path, files):
    prompts = [Prompt(i, f"{i:05}", str(i)) for i in range(3)]
    for name, with_ray in (("alone", False), ("ray", True)):
        assert (
            run(Plan(str(tmp_path / name), "text", 1, *files, batch=2), prompts, with_ray, workers=1 if with_ray else 0)
            == 3
        )
    for p in prompts:
        a, b = (pixels(tmp_path / name / "images" / f"{p.id}_000.png").astype(int) for name in ("alone", "ray"))
        assert np.abs(a - b).max() <= 1
