"""auto_goal of StepVAR Pruning in a real server: fewer tokens for a lower goal or a shorter time, and old prompts
without it."""

from __future__ import annotations

import json

import pytest
from graphs import Pipeline

import launch

pytestmark = pytest.mark.server

RENDERERS = ["classic", "vue"]

DEMO = ("demo (bundled)", "auto")


@pytest.fixture
def pipe(comfy):
    return Pipeline(*DEMO)


def tokens(run, sampler) -> list[int]:
    return [s["tokens_run"] for s in run.outputs[sampler]["stepvar"][0]["scales"]]


def test_a_lower_quality_runs_fewer_tokens(comfy, pipe):
    samplers = [pipe.sample(pipe.prune(auto_goal="quality", auto_value=value), seed=3)[0] for value in (0.97, 0.85)]
    for sampler in samplers:
        graph = pipe.save(pipe.decode([sampler, 0]))
    run = comfy.run(graph, timeout=300)
    high, low = (sum(tokens(run, s)) for s in samplers)
    assert low < high <= 680


def test_a_short_time_prunes_and_a_long_one_does_not(comfy, pipe):
    samplers = [pipe.sample(pipe.prune(auto_goal="seconds", auto_value=value), seed=3)[0] for value in (0.001, 3000.0)]
    for sampler in samplers:
        graph = pipe.save(pipe.decode([sampler, 0]))
    run = comfy.run(graph, timeout=300)
    short, long = (tokens(run, s) for s in samplers)
    assert long[-1] == 256 and short[-1] < 30 and short[0] == 1


def test_a_value_that_no_run_can_have_is_refused(comfy, pipe):
    run = comfy.attempt(pipe.picture(pipe.sample(pipe.prune(auto_goal="quality", auto_value=5.0))))
    assert run.status == "error" and "between 0 and 1" in run.error.message


def test_a_prompt_saved_before_auto_existed_still_runs(comfy, pipe):
    graph = pipe.picture(pipe.sample(pipe.prune(ratio_1=0.5)))
    for node in graph.values():
        for name in ("auto_goal", "auto_value"):
            node["inputs"].pop(name, None)
    run = comfy.run(graph, timeout=300)
    [sampler] = run.nodes_of("VARSampler")
    assert tokens(run, sampler)[-1] == 128


def test_best_quality_sets_selector_and_fill(comfy, pipe):
    """The preset's settings win over the widgets, as its ratios do."""
    samplers = [
        pipe.sample(pipe.prune(**options), seed=3)[0]
        for options in (
            {"preset": "Best quality"},
            {"preset": "Custom", "ratio_1": 0.5, "ratio_2": 0.5, "selector": "update", "fill": "zero"},
        )
    ]
    for sampler in samplers:
        graph = pipe.save(pipe.decode([sampler, 0]))
    run = comfy.run(graph, timeout=300)
    first, second = (comfy.images(run, node) for node in run.nodes_of("SaveImage"))
    assert [p.tobytes() for p in first] == [p.tobytes() for p in second]


SETTINGS = ("preset", "ratio_1", "selector", "fill", "auto_goal", "auto_value")
CHOOSE = """
const node = app.rootGraph.nodes.find((n) => n.type === "StepVARPruning");
const widget = (name) => node.widgets.find((w) => w.name === name);
const choose = (name, value) => { widget(name).value = value; widget(name).callback?.(value); };
const shown = () => Object.fromEntries(%s.map((name) => [name, widget(name).value]));
const seen = [shown()];
for (const [name, value] of %s) { choose(name, value); seen.push(shown()); }
return seen;
"""


@pytest.mark.browser
@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_editor_shows_what_a_preset_sets(comfy, frontend, renderer):
    """And a workflow saved before auto existed opens with its defaults."""
    workflow = json.loads(launch.DEMO_WORKFLOW.read_text(encoding="utf-8"))
    [node] = [n for n in workflow["nodes"] if n["type"] == "StepVARPruning"]
    node["widgets_values"] = node["widgets_values"][:19]
    steps = [
        ("preset", "Best quality"),
        ("preset", "Balanced"),
        ("preset", "Best quality"),
        ("fill", "delta"),
        ("preset", "Off"),
    ]
    _, chosen = frontend.drive(
        renderer,
        [
            {"name": "opened for presets", "workflow": workflow},
            {"name": "chosen", "evaluate": CHOOSE % (json.dumps(SETTINGS), json.dumps(steps))},
        ],
    )
    assert [tuple(seen[name] for name in SETTINGS) for seen in chosen["value"]] == [
        ("Balanced", 0.5, "stepvar", "nearest", "off", 0.9),
        ("Best quality", 0.5, "update", "zero", "off", 0.9),
        ("Balanced", 0.5, "stepvar", "nearest", "off", 0.9),
        ("Best quality", 0.5, "update", "zero", "off", 0.9),
        ("Custom", 0.5, "update", "delta", "off", 0.9),
        ("Off", 0, "update", "delta", "off", 0.9),
    ]
    assert chosen["packErrors"] == []
