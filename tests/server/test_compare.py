"""VAR Compare, and what the sampler tells the browser, asked of a real server."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest
import torch
from graphs import Graph, Pipeline
from PIL import Image

from stepvar_core.viewing.metrics import gradient_similarity, heat_map, psnr, ssim

pytestmark = pytest.mark.server


def picture(seed: int, size=(48, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def as_tensor(*images: Image.Image) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.asarray(image, dtype=np.float32) / 255) for image in images])


def comparing(comfy, *names: str) -> dict:
    graph = Graph()
    a, *others = [[graph.add("LoadImage", image=name), 0] for name in names]
    b = others[0] if len(others) == 1 else [graph.add("ImageBatch", image1=others[0], image2=others[1]), 0]
    compare = graph.add("VARCompare", a=a, b=b)
    graph.add("PreviewAny", source=[compare, 1])
    return graph.nodes


def test_the_numbers_are_the_cores(comfy):
    images = [picture(seed) for seed in range(3)]
    names = [comfy.add_input(f"compare_{i}.png", image) for i, image in enumerate(images)]
    run = comfy.run(comparing(comfy, *names))
    output = run.output_of("VARCompare")
    [numbers] = output["stepvar_compare"]
    a, b = as_tensor(images[0]), as_tensor(*images[1:])
    for name, measure in (("psnr", psnr), ("ssim", ssim), ("edges", gradient_similarity)):
        assert numbers[name] == pytest.approx(measure(a, b).tolist(), abs=1e-4), name
    assert numbers["seconds"] == [None, None]
    [text] = run.output_of("PreviewAny")["text"]
    values = list(zip(*(measure(a, b).tolist() for measure in (psnr, ssim, gradient_similarity))))
    assert text.splitlines()[0] == "Picture 1: PSNR {:.2f} dB, SSIM {:.4f}, edges {:.4f}".format(*values[0])
    assert text.splitlines()[2].startswith("Mean: PSNR") and "Time" not in text
    shown = as_tensor(*comfy.images(run, run.nodes_of("VARCompare")[0]))
    assert (shown - heat_map(a, b)).abs().max() <= 1 / 255


def test_equal_pictures_are_identical(comfy):
    name = comfy.add_input("compare_same.png", picture(5))
    run = comfy.run(comparing(comfy, name, name))
    [numbers] = run.output_of("VARCompare")["stepvar_compare"]
    assert (
        numbers["psnr"] == [None]
        and numbers["ssim"] == pytest.approx([1], abs=1e-5)
        and math.isclose(numbers["edges"][0], 1)
    )
    assert run.output_of("PreviewAny")["text"][0].startswith("identical, SSIM 1.0000")


def test_pictures_of_two_sizes_are_refused(comfy):
    names = [comfy.add_input(f"compare_size_{i}.png", picture(i, size)) for i, size in enumerate([(48, 40), (32, 40)])]
    error = comfy.attempt(comparing(comfy, *names)).error
    assert error.node_type == "VARCompare"
    assert "48 x 40 and 32 x 40 pixels" in error.message and "Resize one of them" in error.message


def test_a_painted_area_runs_in_full(comfy):
    """Load Image's MASK, as the mask editor saves it in the picture's transparency, drives what StepVAR Pruning
    protects."""
    painted = picture(1, (64, 64)).convert("RGBA")
    alpha = np.full((64, 64), 255, dtype=np.uint8)
    alpha[8:24, 32:56] = 0  # painted: transparent
    painted.putalpha(Image.fromarray(alpha))
    graph = Pipeline("demo (bundled)", "demo (bundled)", label="panda", batch=1)
    mask = [graph.add("LoadImage", image=comfy.add_input("painted.png", painted)), 1]
    model = graph.prune(ratio_1=0.8, ratio_2=0.8, protect=mask, protect_mode="keep")
    run = comfy.run(graph.picture(graph.sample(model)))
    last = run.output_of("VARSampler")["stepvar"][0]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(last["scales"][-1]["kept"]), dtype=np.uint8))
    kept = bits.reshape(16, 16).astype(bool)
    assert kept[2:6, 8:14].all() and kept.sum() == last["scales"][-1]["tokens_run"] < 100


def test_scores_of_pruned_scales_are_sent_as_bytes(comfy):
    graph = Pipeline("demo (bundled)", "demo (bundled)", label="panda", batch=3)
    run = comfy.run(graph.picture(graph.sample(graph.prune(ratio_1=0.5))))
    message = run.output_of("VARSampler")["stepvar"][0]
    assert message["scored"] == 3 and set(message["scales"][-1]["scores"]) == {"structure", "texture", "importance"}
    assert "scores" not in message["scales"][0]
    assert len(base64.b64decode(message["scales"][-1]["scores"]["texture"]["data"])) == 3 * 256
