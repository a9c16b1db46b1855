"""The pack in a real ComfyUI that computes beside the CPU: weights, latents and pictures live on two devices, memory
is short.

ComfyUI takes the device of second_device/ for an accelerator and manages its memory as it would a GPU's. What an
operation finds on the wrong device, and what does not fit, fails here as it would there; kernels are the CPU's.
"""

import re
import time

import numpy as np
import pytest
from comfy_server import Client, error_of, pixels
from graphs import Pipeline

import launch

pytestmark = pytest.mark.server

WORKFLOWS = ("StepVAR_demo", "VAR_masked_redraw")
FLOAT32 = ("--force-fp32", "--fp32-vae")
SWITCHES = {
    "lowvram": ["--lowvram"],
    "novram": ["--novram"],
    "gpu-only": ["--gpu-only"],
    "nearly full": ["--reserve-vram", "3.995"],
}  # of 4 GiB
DEMO = ("demo (bundled)", "demo (bundled)")
MiB = 2**20


def drawn(client) -> list[np.ndarray]:
    """The pictures that the workflows save."""
    pictures = []
    for name in WORKFLOWS:
        run = client.run(launch.ROOT / "workflows" / f"{name}.json")
        pictures.append(pixels(client.images(run, run.nodes_of("SaveImage")[0])))
    return pictures


@pytest.fixture(scope="module")
def in_float32(on_second_device):
    with on_second_device(*FLOAT32) as client:
        assert client.server.get("/system_stats")["devices"][0]["type"] == "npu"
        return drawn(client)


def test_pictures_are_the_cpus(in_float32, comfy_server):
    with Client(comfy_server) as client:
        for here, there in zip(in_float32, drawn(client), strict=True):
            assert np.abs(here - there).max() <= 1


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_pictures_do_not_depend_on_how_little_fits(on_second_device, in_float32, switches):
    with on_second_device(*FLOAT32, *switches) as client:
        for here, there in zip(drawn(client), in_float32, strict=True):
            assert np.array_equal(here, there)
        log = client.server.log()
    loaded = re.findall(r"loaded (?:partially|completely).*?([\d.]+) MB loaded", log)
    has_no_room = "--novram" in switches or "--reserve-vram" in switches
    assert loaded and all((float(size) == 0) == has_no_room for size in loaded), log


@pytest.mark.parametrize("options", [(), ("--force-fp16",)], ids=["bfloat16", "float16"])
def test_half_precision_draws_nearly_the_same(on_second_device, in_float32, options):
    """bfloat16 is the host's choice on a device of this kind; other roundings, few other tokens."""
    with on_second_device(*options) as client:
        pictures = drawn(client)
        assert 0 < used(client) < 24 * MiB  # both models, in two bytes per weight
    for here, there in zip(pictures, in_float32, strict=True):
        assert here.std() > 20 and 0 < np.abs(here - there).mean() < 20


def used(client) -> int:
    device = client.server.get("/system_stats")["devices"][0]
    return device["vram_total"] - device["vram_free"]


def is_given_back(client) -> bool:
    """Whether all memory is free once the host has done what it is asked for, or after 20 s. It may miss a question
    that comes while it tidies up after a run, so it is asked more than once."""
    for _ in range(10):
        client.forget()
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            if used(client) == 0:
                return True
            time.sleep(0.1)
    return False


def test_a_run_leaves_nothing_on_the_device_but_weights(on_second_device):
    with on_second_device(*FLOAT32) as client:
        assert is_given_back(client)
        held = []
        for seed, ratio in enumerate((0, 0.5, 0.5, 0.75)):
            pipe = Pipeline(*DEMO)
            client.run(pipe.picture(pipe.sample(pipe.prune(ratio_1=ratio, fill="cache", scope="sublayer"), seed=seed)))
            held.append(used(client))
        assert len(set(held)) == 1 and 0 < held[0] < 48 * MiB
        assert is_given_back(client)


def test_a_cancelled_run_gives_its_memory_back(on_second_device):
    with on_second_device(*FLOAT32) as client:
        pipe = Pipeline(*DEMO, batch=16)
        graph = pipe.picture(pipe.sample(top_k=0))

        def cancel(run, name, data):
            if name == "stepvar.scale" and data["index"] == 6:
                client.interrupt(run)

        assert client.attempt(graph, cancel).status == "interrupted"
        assert is_given_back(client)


@pytest.fixture(scope="module")
def short_of_memory(on_second_device):
    """Enough for a picture, as long as nothing that failed is still held."""
    with on_second_device(*FLOAT32, memory=44) as client:
        yield client


def test_what_does_not_fit_is_said_and_the_next_prompt_works(short_of_memory):
    many = Pipeline(*DEMO, batch=64)
    assert "memory" in error_of(short_of_memory, many.picture())
    one = Pipeline(*DEMO, batch=1)
    assert len(short_of_memory.images(short_of_memory.run(one.picture()))) == 1


def test_a_decode_that_does_not_fit_goes_picture_by_picture(short_of_memory):
    """Where what failed was still held, 44 MiB did not do for one picture either."""
    pipe = Pipeline(*DEMO, batch=1)
    many = [pipe.add("RepeatLatentBatch", samples=pipe.sample(), amount=24), 0]
    pictures = pixels(short_of_memory.images(short_of_memory.run(pipe.save(pipe.decode(many)))))
    assert "decoding one at a time" in short_of_memory.server.log()
    assert len(pictures) == 24 and (pictures == pictures[:1]).all() and pictures.std() > 20


def test_a_preview_that_does_not_fit_is_left_out(on_second_device):
    with on_second_device(*FLOAT32, memory=18) as client:
        run = client.run(Pipeline(*DEMO, batch=1).picture())
        assert "Not enough memory for a preview" in client.server.log()
        assert len(client.images(run, run.nodes_of("SaveImage")[0])) == 1 and len(run.named("stepvar.scale")) == 10
