"""VAR Accelerator through a real server, and its widgets in the real editor."""

from __future__ import annotations

import json
import re

import pytest
from comfy_server import PromptRefused
from graphs import Pipeline

import launch
import stepvar_core as sv
from stepvar_core import methods
from stepvar_core.demo import MODEL_FILE

METHODS = {method.id: method for method in methods.METHODS}

pytestmark = pytest.mark.server

DEFAULTS = {f"{name}_{option.name}": option.default for name, method in METHODS.items() for option in method.options}


def test_saved_values_keep_their_places(comfy):
    """Widgets by position, as workflows save them: this list may grow at its end and change nowhere else."""
    released = [
        "model",
        "method",
        "fastvar_skip_scales",
        "fastvar_ratio_1",
        "fastvar_ratio_2",
        "sparsevar_ratio",
        "sparsevar_scales",
        "fastervar_skip_scales",
        "fastervar_one_half_scales",
        "fastervar_half",
        "skipvar_skip_scales",
        "skipvar_no_guidance_scales",
        "lazyvar_keep_1",
        "lazyvar_keep_2",
        "lazyvar_keep_3",
        "lazyvar_keep_4",
    ]
    inputs = comfy.object_info()["VARAccelerator"]["input"]
    assert [*inputs["required"]] == released
    assert {*inputs["required"], *inputs.get("optional", {})} == {"model", "method", *DEFAULTS}


def accelerated(graph: Pipeline, method: str, model=None, **settings) -> list:
    return [graph.add("VARAccelerator", model=model or graph.model, method=method, **(DEFAULTS | settings)), 0]


def demo(label: str = "panda", batch: int = 1) -> Pipeline:
    return Pipeline("demo (bundled)", "demo (bundled)", label=label, batch=batch)


def tokens_run(run) -> list[int]:
    return [scale["tokens_run"] for scale in run.output_of("VARSampler")["stepvar"][0]["scales"]]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_draws_what_the_core_draws(comfy, method):
    graph = demo("panda; fox", 2)
    run = comfy.run(graph.picture(graph.sample(accelerated(graph, method), top_k=-1, seed=3)))
    pictures = comfy.images(run)
    assert len(pictures) == 2 and all(len(set(p.convert("L").tobytes())) > 50 for p in pictures)
    trace = run.output_of("VARSampler")["stepvar"][0]
    model = sv.load_model(MODEL_FILE)
    estimate = sv.estimate(model, model.schedule(), sv.accelerator(method))
    most = [s.kept for s in estimate.scales]
    if estimate.least_flops is None:
        assert tokens_run(run) == most
    else:
        assert all(a <= b for a, b in zip(tokens_run(run), most, strict=True)) and sum(tokens_run(run)) < sum(most)
    assert trace["pruning"].startswith(METHODS[method].title)


@pytest.mark.parametrize("method", METHODS)
def test_neutral_settings_change_no_pixel(comfy, method):
    graph = demo()
    neutral = {f"{method}_{name}": value for name, value in METHODS[method].neutral.items()}
    pictures = [
        comfy.images(comfy.run(g.picture(g.sample(model(g)))))
        for g, model in ((demo(), lambda g: None), (graph, lambda g: accelerated(g, method, **neutral)))
    ]
    assert pictures[0][0].tobytes() == pictures[1][0].tobytes()


def test_the_later_node_counts(comfy):
    """A StepVAR Pruning or VAR Accelerator takes the place of what is before it on the wire."""
    both = {}
    for order in ("pruning last", "accelerator last"):
        graph = demo()
        if order == "pruning last":
            graph.model = accelerated(graph, "lazyvar")
            model = graph.prune(preset="Balanced")
        else:
            model = accelerated(
                graph, "lazyvar", graph.prune(preset="Best quality", auto_goal="quality", auto_value=0.8)
            )
        run = comfy.run(graph.picture(graph.sample(model)))
        both[order] = (run.output_of("VARSampler")["stepvar"][0]["pruning"], tokens_run(run)[-1])
    assert both == {
        "pruning last": ("stepvar 0.5/0.5 fill nearest", 128),
        "accelerator last": ("LazyVAR 0.8/0.7", 256 - 204),
    }


def test_report_and_comparison_name_the_method(comfy):
    graph = demo()
    dense, fast = graph.sample(), graph.sample(accelerated(graph, "fastvar"))
    compare = graph.add(
        "VARCompare", a=graph.decode(dense), b=graph.decode(fast), trace_a=[dense[0], 1], trace_b=[fast[0], 1]
    )
    report = graph.add("StepVARReport", trace=[fast[0], 1])
    shown = [graph.add("PreviewAny", source=[node, 1]) for node in (compare, report)]
    run = comfy.run(graph.nodes)
    said, table = (run.outputs[node]["text"][0] for node in shown)
    assert "Time: a (off)" in said and "b (FastVAR 0.75/0.5)" in said
    assert json.loads(table)["pruning"] == "FastVAR 0.75/0.5"
    assert run.outputs[compare]["stepvar_compare"][0]["pruning"] == ["off", "FastVAR 0.75/0.5"]


def test_a_wired_value_out_of_range_ends_in_the_nodes_error_box(comfy):
    """The server checks typed values; one that comes over a wire is the node's to refuse."""
    graph = demo()
    five = [graph.add("PrimitiveFloat", value=5.0), 0]
    error = comfy.attempt(graph.picture(graph.sample(accelerated(graph, "fastvar", fastvar_ratio_1=five)))).error
    assert error.node_type == "VARAccelerator"
    assert "ratio_1 of fastvar is 5.0" in error.message and "Use a number from -1 to 1" in error.message


def test_typed_values_and_methods_are_refused_before_the_run(comfy):
    for settings, said in (
        ({"method": "turbo"}, "'turbo' not in"),
        ({"method": "sparsevar", "sparsevar_ratio": 1.0}, "sparsevar_ratio"),
        ({"method": "skipvar", "skipvar_skip_scales": -1}, "skipvar_skip_scales"),
    ):
        graph = demo()
        with pytest.raises(PromptRefused, match=f"VARAccelerator.*{said}"):
            comfy.attempt(graph.picture(graph.sample(accelerated(graph, **settings))))


# the editor ----------------------------------------------------------------------------------------

NODE = """const node = app.rootGraph.nodes.find((n) => n.type === "VARAccelerator");"""
CHOOSE = (
    NODE
    + """const w = node.widgets.find((x) => x.name === "method"); w.value = "%s"; w.callback?.(w.value, app.canvas, node);"""
)
LINK = (
    NODE
    + """const from = LiteGraph.createNode("PrimitiveNode"); app.rootGraph.add(from);
from.connect(0, node, node.inputs.findIndex((i) => i.widget?.name === "method"));"""
)
UNLINK = NODE + """app.rootGraph.remove(app.rootGraph.nodes.find((n) => n.type === "PrimitiveNode"));"""
# what the canvas lays out, what Nodes 2.0 has put into the page, and what is saved
READ = (
    NODE
    + """
const shown = [...document.querySelectorAll(`[data-node-id="${node.id}"] .lg-node-widget, [data-node-id="${node.id}"] [data-testid="node-widget"]`)];
const own = node.widgets.filter((w) => w.serialize !== false);
return { drawn: own.filter((w) => node.isWidgetVisible(w)).map((w) => w.name), rows: shown.filter((e) => e.offsetHeight).length,
  names: own.map((w) => w.name), forecast: document.querySelector(".stepvar-forecast").innerText, saved: node.serialize().widgets_values, height: node.size[1] };"""
)
NEAR = {
    "evaluate": NODE
    + """app.canvas.ds.scale = 1.6; app.canvas.ds.offset[0] = 120 - node.pos[0]; app.canvas.ds.offset[1] = 90 - node.pos[1];
app.canvas.setDirty(true, true);""",
    "wait": 900,
}


TAGS = "return [...document.querySelectorAll('.stepvar-compare')].map((e) => [...e.querySelectorAll('.stepvar-tag')].map((t) => t.textContent));"
TIME = "return document.querySelector('.stepvar-eq-time').textContent;"


def behind_pruning() -> dict:
    """The demo workflow with a VAR Accelerator between StepVAR Pruning and the sampler."""
    workflow = json.loads(launch.DEMO_WORKFLOW.read_text(encoding="utf-8"))
    compared = json.loads((launch.ROOT / "workflows" / "VAR_compare_accelerators.json").read_text(encoding="utf-8"))
    node = next(n for n in compared["nodes"] if n["type"] == "VARAccelerator") | {"id": 20, "pos": [370, 1000]}
    [[number, pruning, *_]] = [link for link in workflow["links"] if link[5] == "VAR_MODEL" and link[1] == 5]
    link = next(entry for entry in workflow["links"] if entry[0] == number)
    workflow["links"].append([90, pruning, 0, 20, 0, "VAR_MODEL"])
    link[1] = 20
    node["inputs"][0]["link"], node["outputs"][0]["links"] = 90, [number]
    next(n for n in workflow["nodes"] if n["id"] == pruning)["outputs"][0]["links"] = [90]
    return workflow | {"nodes": [*workflow["nodes"], node], "last_node_id": 20, "last_link_id": 90}


@pytest.mark.browser
def test_runs_of_a_method_are_named_and_not_taken_for_prunings(frontend):
    workflow = json.loads((launch.ROOT / "workflows" / "VAR_compare_accelerators.json").read_text(encoding="utf-8"))
    alone = {"evaluate": TIME}
    replaced, compared = frontend.drive(
        "classic",
        [
            {"name": "replaced", "workflow": behind_pruning(), "queue": True, "steps": [{"wait": 1500}, alone]},
            {
                "name": "compared",
                "workflow": workflow,
                "queue": True,
                "steps": [{"wait": 1500}, {"shoot": "compared"}, {"evaluate": TAGS}, alone],
            },
        ],
    )
    for result in (replaced, compared):
        assert (result["ending"], result["packErrors"]) == ("execution_success", [])
    assert replaced["steps"][1].startswith("run once for seconds"), (
        "the time of a method is no measure of StepVAR Pruning's"
    )
    tags, time = [answer for answer in compared["steps"] if answer]
    assert tags == [["A", "B \u00b7 stepvar"], ["A", "B \u00b7 FastVAR"]]
    assert not time.startswith("run once"), "the other samplers' runs count"


@pytest.mark.browser
@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_only_the_chosen_methods_widgets_are_shown(frontend, renderer):
    workflow = json.loads((launch.ROOT / "workflows" / "VAR_compare_accelerators.json").read_text(encoding="utf-8"))
    steps = [NEAR, {"evaluate": READ}, {"shoot": "fastvar"}]
    for method in METHODS:
        steps += [{"evaluate": CHOOSE % method, "wait": 700}, {"evaluate": READ}]
    steps += [
        {"evaluate": CHOOSE % "lazyvar", "wait": 700},
        {"shoot": "lazyvar"},
        {"evaluate": LINK, "wait": 700},
        {"evaluate": READ},
        {"evaluate": UNLINK, "wait": 700},
        {"evaluate": READ},
    ]
    [result] = frontend.drive(renderer, [{"name": "accelerator", "workflow": workflow, "steps": steps}])
    assert result["packErrors"] == [] and result["missing"] == []
    first, *seen, linked, unlinked = [answer for answer in result["steps"] if answer]
    assert linked["drawn"] == linked["names"], "a wire may bring any method"
    assert unlinked["drawn"] == ["method", *(n for n in DEFAULTS if n.startswith("lazyvar_"))]
    assert first["names"] == ["method", *DEFAULTS] and first["drawn"] == [
        "method",
        *(n for n in DEFAULTS if n.startswith("fastvar_")),
    ]
    for method, state in zip(METHODS, seen, strict=True):
        own = [f"{method}_{option.name}" for option in METHODS[method].options]
        assert state["drawn"] == ["method", *own]
        assert state["saved"] == [method, *DEFAULTS.values()], "hidden widgets keep their values and are saved"
        if renderer == "vue":
            assert state["rows"] == 1 + len(own) + 1, "its own widgets and the forecast"
        assert re.match(r"\d+\.\d\d(–\d+\.\d\d)?× predicted speed-up", state["forecast"]), method
    assert first["forecast"].split("\n")[1] == "16×16 keeps 25 % · 13×13 keeps 50 %"
    heights = {len(METHODS[m].options): s["height"] for m, s in zip(METHODS, seen)}
    assert sorted(heights, key=heights.get) == sorted(heights), "the node is as high as what it shows"
    prompt = next(node["inputs"] for node in result["prompt"].values() if node["class_type"] == "VARAccelerator")
    assert {k: v for k, v in prompt.items() if k != "model"} == {"method": "lazyvar", **DEFAULTS}
