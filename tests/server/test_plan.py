"""GET /stepvar/plan: what the widgets know of a model before it runs, and that hostile questions get nothing."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import stand_ins
import torch
from safetensors.torch import save_file

import launch
import stepvar_core as sv
from stepvar_core.checkpoints import read_checkpoint
from stepvar_core.families.registry import MODELS, build, detect
from stepvar_core.labels import class_names
from stepvar_core.methods.fills import FILLS
from stepvar_core.methods.policy import HALVES
from stepvar_core.methods.presets import PRESETS, RATIO_WIDGETS, preset_ratios
from stepvar_core.methods.stepvar import SCOPES

pytestmark = pytest.mark.server

DEMO = "demo (bundled)"
LAYOUTS = launch.ROOT / "tests" / "golden"


def write_hollow(path, layout: dict) -> None:
    """A safetensors file with a published model's keys and shapes and its full length, whose weights are a hole on
    the disk."""
    header, end = {}, 0
    for key, tensor in layout["tensors"].items():
        size = 4 * torch.Size(tensor["shape"]).numel()
        header[key] = {"dtype": "F32", "shape": tensor["shape"], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture(scope="module")
def models(comfy_server):
    """Folder models/var with stand-ins of all kinds; returns name -> path."""
    folder = comfy_server.base / "models" / "var"
    folder.mkdir(parents=True, exist_ok=True)
    stand_ins.write_var_d30(folder / "var_d30.pth")
    tensors = {k: v for k, v in torch.load(folder / "var_d30.pth", weights_only=True).items() if "attn_bias" not in k}
    save_file(tensors, folder / "d30.safetensors")
    shards = folder / "d30 in shards"
    shards.mkdir(exist_ok=True)
    for i, keys in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        save_file({k: tensors[k] for k in keys}, shards / f"model-{i}.safetensors")
    write_hollow(
        folder / "infinity_8b.safetensors",
        json.loads((LAYOUTS / "infinity" / "layouts" / "infinity_8b.json").read_text()),
    )
    write_hollow(
        folder / "full d36.safetensors", json.loads((LAYOUTS / "var" / "layouts" / "var_d36.json").read_text())
    )
    stand_ins.write_vae(folder / "vae.pth")
    (folder / "broken.pth").write_bytes(b"PK\x03\x04 not a checkpoint")
    (folder / "code.pth").write_bytes(pickle.dumps({"weights": print}))
    yield {
        name: folder / name
        for name in ("var_d30.pth", "d30.safetensors", "infinity_8b.safetensors", "full d36.safetensors")
    } | {"d30 in shards/": shards, DEMO: launch.ROOT / "stepvar_core" / "demo" / "demo_var.safetensors"}
    for name in (
        "d30.safetensors",
        "infinity_8b.safetensors",
        "full d36.safetensors",
        "vae.pth",
        "broken.pth",
        "code.pth",
    ):
        (folder / name).unlink()
    shutil.rmtree(shards)


def ask(comfy, query: str | None = None, **question) -> tuple[int, dict, dict]:
    """Status, answer and headers."""
    text = query if query is not None else urllib.parse.urlencode(question)
    request = urllib.request.Request(f"{comfy.server.url}/stepvar/plan?{text}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.load(refusal), dict(refusal.headers)


def outline(path):
    checkpoint = read_checkpoint(path, shapes_only=True)
    return build(detect(checkpoint, MODELS, "a transformer"), checkpoint, device="meta")


@pytest.mark.parametrize(
    "name",
    [DEMO, "var_d30.pth", "d30.safetensors", "d30 in shards/", "full d36.safetensors", "infinity_8b.safetensors"],
)
def test_a_model_is_described_without_its_weights(comfy, models, name):
    status, plan, headers = ask(comfy, model=name, weight_dtype="fp32", labels="1")
    assert status == 200, plan
    assert headers["Content-Type"].startswith("application/json") and headers["X-Content-Type-Options"] == "nosniff"
    model = outline(models[name])
    schedule = model.schedule()
    assert (plan["model"], plan["family"]) == (name, model.family)
    assert [tuple(s["size"]) for s in plan["scales"]] == [s.grid for s in schedule]
    assert [s["place"] for s in plan["scales"]] == list(range(len(schedule), 0, -1))
    assert plan["weights_bytes"] == sum(p.numel() * 4 for p in model.parameters())
    names = class_names(model.config) if hasattr(model.config, "num_classes") else ()
    assert plan["labels"] == [n.split(";")[0] for n in names]
    for preset in PRESETS:
        assert tuple(plan["presets"][preset]) == preset_ratios(preset, model.skips, schedule, model.full_scales)


@pytest.mark.parametrize("name", [DEMO, "infinity_8b.safetensors"])
def test_what_minus_one_stands_for_and_the_canvases_are_the_models(comfy, models, name):
    status, plan, _ = ask(comfy, model=name, canvases="1")
    network = outline(models[name])
    official, schedule = network.config.defaults, network.schedule()
    assert status == 200 and plan["defaults"]["cfg"] == official.cfg
    assert plan["defaults"]["temperature"] == official.temperature and plan["defaults"]["top_p"] == official.top_p
    assert plan["defaults"]["top_k"] == sorted(set(network.default_top_k(schedule)), reverse=True)
    for size, ratios in plan["canvases"].items():
        for ratio in ratios:
            assert ask(comfy, model=name, size=size, aspect_ratio=ratio)[0] == 200
    offered = {(size, ratio) for size, ratios in plan["canvases"].items() for ratio in ratios}
    for size, ratio in itertools.product(("auto", "512", "480p"), ("1:1", "16:9", "3:1")):
        assert (ask(comfy, model=name, size=size, aspect_ratio=ratio)[0] == 200) == ((size, ratio) in offered)


def test_presets_that_skip_do_so_only_where_they_were_published(comfy, models):
    def skipped(**question) -> bool:
        return 1 in ask(comfy, **question)[1]["presets"]["Paper \u00b7 Infinity"]

    assert skipped(model="infinity_8b.safetensors")
    assert not skipped(model="infinity_8b.safetensors", size="0.25M")
    assert not skipped(model=DEMO)


SETTINGS = [
    {},
    {"cfg": 0.0},
    {"cfg": 1.0},
    {"batch": 3},
    {"first_layer": 2},
    {"first_layer": 1, "fill": "delta"},
    {"coverage": 4},
    {"fill": "anchor", "coverage": 3},
    {"guidance_late": "unconditional", "guidance_late_scales": 2, "scope": "sublayer"},
    *({"fill": fill, "scope": scope} for fill, scope in itertools.product(FILLS, SCOPES)),
    *({"guidance_late": half, "guidance_late_scales": n} for half, n in itertools.product(HALVES, (1, 3))),
]


@pytest.mark.parametrize(
    "question",
    [
        {"model": DEMO},
        {"model": "var_d30.pth"},
        {"model": "infinity_8b.safetensors"},
        {"model": "infinity_8b.safetensors", "aspect_ratio": "9:16", "size": "0.60M"},
    ],
    ids=lambda q: " ".join(q.values()),
)
def test_the_browser_computes_what_the_core_does(comfy, models, unavailable, question):
    """Exactly, where 1 % would do: the same rule in two languages."""
    node = shutil.which("node")
    if node is None:
        unavailable("browser", "no Node.js found: install Node 20 or newer")
    status, plan, _ = ask(comfy, weight_dtype="fp32", **question)
    assert status == 200, plan
    model, dice = outline(models[question["model"]]), random.Random(5)
    schedule = sv.ScaleSchedule(tuple(s["size"]) for s in plan["scales"])
    lists = [
        (),
        (1, 1, 0.5, 0.4),
        (0.5, 0.5),
        *(tuple(round(dice.random(), 2) for _ in range(RATIO_WIDGETS)) for _ in range(4)),
    ]
    cases = [
        {"plan": plan, "ratios": ratios, "settings": settings}
        for ratios, settings in itertools.product(lists, SETTINGS)
    ]
    done = subprocess.run(
        [node, str(launch.ROOT / "tests" / "js" / "estimate.mjs")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for case, browser in zip(cases, json.loads(done.stdout), strict=True):
        options = dict(case["settings"])
        cfg, batch = options.pop("cfg", None), options.pop("batch", 1)
        core = sv.estimate(model, schedule, sv.StepVAR(case["ratios"], **options), cfg=cfg, batch=batch)
        assert [p["kept"] for p in browser["passes"]] == [s.kept for s in core.scales], case["settings"]
        assert [p["flops"] for p in browser["passes"]] == pytest.approx([s.flops for s in core.scales], rel=1e-12)
        assert browser["speedup"] == pytest.approx(core.speedup, rel=1e-12), case["settings"]
        assert (browser["kvBytes"], browser["denseFlops"]) == (
            core.kv_bytes,
            pytest.approx(core.dense_flops, rel=1e-12),
        )


def test_bytes_follow_the_precision_the_loader_would_use(comfy, models):
    size = {
        dtype: ask(comfy, model="full d36.safetensors", weight_dtype=dtype)[1]["weights_bytes"]
        for dtype in ("fp32", "bf16", "fp8_e4m3fn")
    }
    assert size["fp32"] == 2 * size["bf16"] and size["bf16"] / 2 < size["fp8_e4m3fn"] < 0.6 * size["bf16"]


def test_another_file_of_the_same_name_is_seen(comfy, models):
    path = models["d30.safetensors"].parent / "changing.safetensors"
    try:
        shutil.copy(models["d30.safetensors"], path)
        assert ask(comfy, model=path.name)[1]["cost"]["layers"] == 30
        shutil.copy(models[DEMO], path)
        assert ask(comfy, model=path.name)[1]["cost"]["layers"] == outline(models[DEMO]).config.depth
    finally:
        path.unlink()


@pytest.mark.parametrize(
    "name, expected",
    [
        ("vae.pth", "is a VAR VQVAE, not a next-scale transformer"),
        ("broken.pth", "could not be read as plain weights"),
        ("code.pth", "cannot be looked into"),
    ],
)
def test_a_file_that_is_no_model_is_named_as_loading_would(comfy, models, name, expected):
    status, answer, headers = ask(comfy, model=name)
    assert status == 422 and expected in answer["error"] and answer["remedy"]
    assert headers["Content-Type"].startswith("application/json") and headers["X-Content-Type-Options"] == "nosniff"


def test_a_size_the_model_does_not_know_is_refused_as_sampling_would(comfy, models):
    status, answer, _ = ask(comfy, model=DEMO, aspect_ratio="16:9")
    assert status == 422 and "Aspect ratio" in answer["error"] and "square" in answer["remedy"]


HOSTILE_NAMES = [
    "",
    "../../x",
    "../var/var_d30.pth",
    "..\\x",
    "/etc/passwd",
    "C:\\x.pth",
    "var_d30.pth\0",
    "var/../var_d30.pth",
    "nan",
    "\u202e",
    "x" * 4000,
    "<script>alert(1)</script>",
]


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "the absolute path"], ids=lambda n: ascii(n[:24]))
def test_only_listed_names_are_opened(comfy, models, name):
    if name == "the absolute path":
        name = str(models["var_d30.pth"])
    status, answer, headers = ask(comfy, model=name)
    assert status == 400 and answer["error"].startswith("There is no model") and len(answer["error"]) < 300
    assert headers["Content-Type"].startswith("application/json") and headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "query, named",
    [
        ("", "model"),
        ("aspect_ratio=nan", "aspect_ratio"),
        ("aspect_ratio=1e999", "aspect_ratio"),
        ("size=-1", "size"),
        ("size=99999999", "size"),
        ("batch=0", "batch"),
        ("batch=65", "batch"),
        ("batch=1e9", "batch"),
        ("batch=-1", "batch"),
        ("batch=NaN", "batch"),
        ("batch=%D9%A3", "batch"),
        ("batch=999999999999999999999", "batch"),
        ("weight_dtype=int8", "weight_dtype"),
        ("labels=yes", "labels"),
    ],
)
def test_settings_are_the_nodes_own_choices(comfy, query, named):
    status, answer, _ = ask(comfy, query=f"model={urllib.parse.quote(DEMO)}&{query}" if query else "")
    assert status == 400 and named in answer["error"] and answer["remedy"]


def test_it_only_reads(comfy):
    for method in ("POST", "PUT", "DELETE"):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                urllib.request.Request(
                    f"{comfy.server.url}/stepvar/plan?model={urllib.parse.quote(DEMO)}", method=method
                ),
                timeout=20,
            )
        assert refusal.value.code in (404, 405)


def test_a_missing_model_is_no_failed_request_to_a_browser(comfy):
    status, answer, _ = ask(comfy, model="gone.pth", quiet="1")
    assert status == 200 and answer["error"] == "There is no model 'gone.pth'." and "scales" not in answer


@pytest.fixture
def odd_entries(comfy):
    """What disks and sync tools leave in model folders: unreadable, looping, dangling."""
    folder = comfy.model_folder("var")
    names = ["lost+found", "loop", "dangling.safetensors", "pipe.safetensors", "dangling folder"]
    (folder / names[0]).mkdir()
    (folder / names[0] / "model.safetensors").write_bytes(b"")
    (folder / names[0]).chmod(0)
    (folder / names[1]).symlink_to(folder / names[1])
    (folder / names[2]).symlink_to(folder / "nowhere.safetensors")
    os.mkfifo(folder / names[3])
    (folder / names[4]).symlink_to(folder / "nowhere")
    yield names
    (folder / names[0]).chmod(0o700)
    shutil.rmtree(folder / names[0])
    for name in names[1:]:
        (folder / name).unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither such links nor pipes")
def test_odd_entries_of_a_model_folder_hide_nothing_else(comfy, models, odd_entries):
    listed = comfy.choices("VARModelLoader", "model_name")
    assert {DEMO, "var_d30.pth", "d30 in shards/"} <= set(listed)
    assert not {name for name in listed if name.rstrip("/") in odd_entries}
    assert ask(comfy, model=DEMO)[0] == 200
    for name in odd_entries:
        for asked in (name, name + "/"):
            status, answer, _ = ask(comfy, model=asked)
            assert status == 400 and answer["error"].startswith("There is no model")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
@pytest.mark.parametrize("name", ["secret.safetensors", "secret.pth", "secret shards"])
def test_a_listed_file_that_may_not_be_read_is_refused_by_name(comfy, models, name):
    folder = comfy.model_folder("var")
    path, asked = folder / name, name
    if name.endswith("shards"):
        path.mkdir()
        shutil.copy(models[DEMO], path / "a.safetensors")
        path, asked = path / "a.safetensors", name + "/"
    else:
        shutil.copy(models[DEMO], path)
    path.chmod(0)
    try:
        status, answer, _ = ask(comfy, model=asked)
        assert status == 422 and path.name in answer["error"] and answer["remedy"], answer
    finally:
        path.unlink()
        if asked.endswith("/"):
            path.parent.rmdir()


def test_files_are_served_while_plans_are_pending(comfy, models):
    """Two hundred questions wait for the one worker; a file of the pack comes before the last of them is answered."""
    answered = []

    def question(batch: int) -> None:
        answered.append(ask(comfy, model="infinity_8b.safetensors", batch=batch % 64 + 1)[0])

    with ThreadPoolExecutor(200) as pool:
        for n in range(200):
            pool.submit(question, n)
        while not answered:
            time.sleep(0.01)
        name = next(path for path in comfy.server.get("/extensions") if path.endswith("stepvar.js"))
        comfy.server.open(name)
        before = len(answered)
    assert before < 150 and answered == [200] * 200


@pytest.mark.parametrize(
    "asked", [{"method": "fastvar"}, {"method": "fastvar", "fastvar_ratio_1": 0.9, "cfg": 0}, {"method": "skipvar"}]
)
def test_a_rivals_forecast_is_the_cores(comfy, models, asked):
    status, plan, _ = ask(comfy, model=DEMO, weight_dtype="fp32", **asked)
    network = outline(models[DEMO])
    own = {name.split("_", 1)[1]: value for name, value in asked.items() if name.startswith("fastvar_")}
    policy = sv.accelerator(asked["method"], **own)
    core = sv.estimate(network, network.schedule(), policy, asked.get("cfg"), 1)
    assert status == 200 and plan["forecast"]["speedup"] == pytest.approx(core.speedup)
    assert [p["kept"] for p in plan["forecast"]["passes"]] == [s.kept for s in core.scales]
    for wrong in ({"method": "glue"}, {"method": "fastvar", "fastvar_ratio_1": "x"}, {"method": "fastvar", "cfg": "x"}):
        assert ask(comfy, model=DEMO, **wrong)[0] == 400
