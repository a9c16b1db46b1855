"""The equalizer of StepVAR Pruning in the real editor, with a real mouse and keyboard, in both renderers."""

from __future__ import annotations

import json

import pytest

import launch

pytestmark = [pytest.mark.server, pytest.mark.browser]

FACE, LAST, BEFORE = ".stepvar-equalizer", "[data-place='1']", "[data-place='2']"
CAP = f"{LAST} .stepvar-eq-cap"
READY = {"until": "document.querySelector('.stepvar-eq-label')?.textContent === '\u22644\u00d74'"}


def ratio_is(value: float) -> dict:
    """The graph was loaded anew and its equalizer is there: waits for that, however slow the machine."""
    return {
        "until": f"Math.abs(document.querySelector(\"{LAST}\")?.getAttribute('aria-valuenow') - "
        f"{round(100 - 100 * value)}) <= 1 "
        "&& document.querySelector('.stepvar-eq-label').textContent === '\u22644\u00d74' "
        "&& Math.abs(app.canvas.graph.nodes.find((n) => n.type === 'StepVARPruning')?.widgets.find((w) => w.name "
        f"=== 'ratio_1').value - {value}) < 0.011",
        "wait": 400,
    }


def near(value):
    """A pixel of the mouse may be a hundredth of a bar."""
    return pytest.approx(value, abs=0.011)


UNDO, REDO = {"press": "Control+z", "wait": 400}, {"press": "Control+y", "wait": 400}
# the node, its saved form, what goes to the server, and what its equalizer shows
READ = """
const node = app.canvas.graph.nodes.find((n) => n.type === "StepVARPruning"), face = document.querySelector(".stepvar-equalizer");
const texts = (css) => [...face.querySelectorAll(css)].map((e) => e.textContent);
return { ratios: node.widgets.filter((w) => /^ratio_/.test(w.name)).map((w) => w.value), preset: node.widgets.find((w) => w.name === "preset").value,
  order: node.widgets.map((w) => w.name), saved: node.serialize().widgets_values,
  undo: app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length, faces: document.querySelectorAll(".stepvar-equalizer").length,
  labels: texts(".stepvar-eq-label"), shares: texts(".stepvar-eq-share"), values: texts(".stepvar-eq-value"),
  states: [...face.querySelectorAll(".stepvar-eq-column")].map((e) => /is-(free|linked|ignored|locked|skipped)/.exec(e.className)[1]),
  sliders: [...face.querySelectorAll("[role=slider]")].map((e) => ({ label: e.getAttribute("aria-label"), now: e.getAttribute("aria-valuenow"),
    text: e.getAttribute("aria-valuetext"), disabled: e.getAttribute("aria-disabled"), tabindex: e.tabIndex })),
  readout: texts(".stepvar-eq-readout")[0], speedup: texts(".stepvar-eq-speedup")[0], tokens: texts(".stepvar-eq-tokens")[0], time: texts(".stepvar-eq-time")[0],
  remark: texts(".stepvar-eq-remark")[0] };
"""
# Large enough for a hundredth to be more than a pixel of the mouse; the whole face stays on the screen.
NEAR = {
    "evaluate": """
const node = app.canvas.graph.nodes.find((n) => n.type === "StepVARPruning"), { ds } = app.canvas;
ds.scale = 2;
[ds.offset[0], ds.offset[1]] = [150 - node.pos[0], 120 - node.pos[1]];
app.canvas.setDirty(true, true);""",
    "wait": 700,
}
SEEN, AWAY = {"evaluate": READ}, {"hover": ["body", 0.5, 0.99]}


def shot(moment: str) -> dict:
    return {"shoot": moment, "of": FACE, "margin": 14}


def demo(preset: str = "Balanced", ratios=(0.5, 0.5, 0, 0, 0, 0)) -> dict:
    workflow = json.loads(launch.DEMO_WORKFLOW.read_text(encoding="utf-8"))
    [node] = [n for n in workflow["nodes"] if n["type"] == "StepVARPruning"]
    node["widgets_values"][:7] = [preset, *ratios]
    return workflow


def at(place: int, y: float) -> list:
    return [f"[data-place='{place}']", 0.5, y]


LINK = """
const graph = app.canvas.graph, node = graph.nodes.find((n) => n.type === "StepVARPruning"), number = LiteGraph.createNode("%s");
number.pos = [0, -200]; %s graph.add(number);
number.connect(number.outputs.findIndex((o) => o.type === "FLOAT"), node, node.inputs.findIndex((i) => i.widget?.name === "ratio_2"));"""
RELOAD = {
    "evaluate": "await app.loadGraphData(JSON.parse(JSON.stringify(app.rootGraph.serialize())), true, true, null);"
}
JOBS = {
    "opened": [
        SEEN,
        {
            "evaluate": """
        const find = (type) => app.canvas.graph.nodes.find((n) => n.type === type), sampler = find("VARSampler"), latent = find("EmptyVARLatent");
        const named = (node) => Object.fromEntries(node.widgets.map((w) => [w.name, w.label ?? w.name]));
        const cfg = sampler.widgets.find((w) => w.name === "cfg"), before = { ...named(sampler), ...named(find("StepVARPruning")) };
        cfg.value = 3; cfg.callback(3);
        await new Promise((done) => setTimeout(done, 300));
        const label = cfg.label ?? cfg.name;
        cfg.value = -1; cfg.callback(-1);
        return { before, label, sizes: latent.widgets.find((w) => w.name === "size").options.values,
          ratios: latent.widgets.find((w) => w.name === "aspect_ratio").options.values, labels: sampler.serialize().inputs.map((i) => i.label ?? null) };"""
        },
        shot("opened"),
        {"hover": BEFORE},
        SEEN,
        shot("hovered"),
    ],
    "dragged": [
        SEEN,
        {"drag": CAP, "to": at(1, 0.8)},
        SEEN,
        shot("dragged"),
        UNDO,
        ratio_is(0.5),
        SEEN,
        REDO,
        ratio_is(0.8),
        SEEN,
        RELOAD,
        ratio_is(0.8),
        SEEN,
    ],
    "dragged out": [
        {"drag": CAP, "to": at(1, 1.2)},
        SEEN,
        shot("skipped"),
        {"drag": CAP, "to": at(1, -0.4)},
        SEEN,
        {"drag": at(3, 0.5), "to": at(3, 0.4)},
        SEEN,
        {"click": at(2, 0.3), "times": 2},
        SEEN,
    ],
    "shifted": [{"drag": CAP, "to": at(1, 0.7), "hold": ["Shift"]}, SEEN, shot("together"), UNDO, ratio_is(0.4), SEEN],
    "double-clicked": [{"drag": CAP, "to": at(1, 0.9)}, {"click": at(1, 0.95), "times": 2}, SEEN],
    "keys": [
        {"focus": LAST},
        {"press": "ArrowDown", "times": 3},
        SEEN,
        {"press": "Shift+ArrowUp"},
        SEEN,
        shot("focused"),
        {"press": "Home"},
        SEEN,
        {"press": "End"},
        SEEN,
        {"press": "Delete"},
        SEEN,
        UNDO,
        ratio_is(0),
        SEEN,
    ],
    "widgets": [
        {
            "evaluate": "const w = app.canvas.graph.nodes.find((n) => n.type === 'StepVARPruning').widgets.find((w) "
            "=> w.name === 'ratio_2'); w.value = 0.25; w.callback(0.25);"
        },
        SEEN,
        {
            "evaluate": "const w = app.canvas.graph.nodes.find((n) => n.type === 'StepVARPruning').widgets[0]; "
            "w.value = 'Paper \u00b7 Infinity'; w.callback(w.value);"
        },
        AWAY,
        SEEN,
        shot("adjusted"),
        {"drag": at(3, 0.5), "to": at(3, 0.25)},
        SEEN,
    ],
    "pasted": [
        {"drag": CAP, "to": at(1, 0.8)},
        {
            "evaluate": """
        const node = app.canvas.graph.nodes.find((n) => n.type === "StepVARPruning");
        app.canvas.selectNode(node); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard();
        const copy = app.canvas.graph.nodes.filter((n) => n.type === "StepVARPruning").find((n) => n !== node);
        await new Promise((done) => setTimeout(done, 900));
        const seen = { saved: copy.serialize().widgets_values, order: copy.widgets.map((w) => w.name), faces: document.querySelectorAll(".stepvar-equalizer").length };
        app.canvas.graph.remove(copy);
        await new Promise((done) => setTimeout(done, 600));
        return { ...seen, left: document.querySelectorAll(".stepvar-equalizer").length };"""
        },
        SEEN,
    ],
    "subgraph": [
        {
            "evaluate": """
        const node = app.canvas.graph.nodes.find((n) => n.type === "StepVARPruning");
        const { subgraph } = app.canvas.graph.convertToSubgraph(new Set([node]));
        app.canvas.openSubgraph ? app.canvas.openSubgraph(subgraph, app.rootGraph.nodes.find((n) => n.subgraph === subgraph)) : app.canvas.setGraph(subgraph);
        await new Promise((done) => setTimeout(done, 1200));
        await app.extensionManager.command.execute("Comfy.Canvas.FitView");""",
            "wait": 900,
        },
        READY,
        {"shoot": "page"},
        NEAR,
        SEEN,
        {"drag": CAP, "to": at(1, 0.8)},
        SEEN,
        shot("within"),
    ],
    # a number wired to ratio_2 under Balanced; then Balanced chosen once more over the link; then a wired number that
    # is known only as it runs
    "linked": [
        {"evaluate": LINK % ("PrimitiveFloat", "number.widgets[0].value = 0.25;"), "wait": 500},
        SEEN,
        shot("linked"),
        {"drag": at(2, 0.5), "to": at(2, 0.9)},
        {"drag": CAP, "to": at(1, 0.7), "hold": ["Shift"]},
        SEEN,
        {
            "evaluate": "const w = app.canvas.graph.nodes.find((n) => n.type === 'StepVARPruning').widgets[0]; "
            "w.value = 'Balanced'; w.callback(w.value); document.activeElement.blur();",
            "wait": 300,
        },
        AWAY,
        SEEN,
        shot("overruled"),
        {"evaluate": LINK % ("ComfyMathExpression", ""), "wait": 500},
        AWAY,
        SEEN,
    ],
    # the number's own node goes into a subgraph and its ratio_1 comes out of it
    "promoted": [
        {
            "evaluate": """
        const node = app.canvas.graph.nodes.find((n) => n.type === "StepVARPruning");
        const { subgraph, node: host } = app.canvas.graph.convertToSubgraph(new Set([node]));
        await new Promise((done) => setTimeout(done, 500));
        const inner = subgraph.nodes[0], slot = inner.inputs.find((i) => i.widget?.name === "ratio_1");
        subgraph.addInput("ratio_1", "FLOAT").connect(slot, inner);
        await new Promise((done) => setTimeout(done, 300));
        host.widgets.find((w) => w.name === "ratio_1").value = 0.95;
        app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
        app.canvas.openSubgraph ? app.canvas.openSubgraph(subgraph, host) : app.canvas.setGraph(subgraph);
        await new Promise((done) => setTimeout(done, 900));""",
            "wait": 300,
        },
        READY,
        NEAR,
        SEEN,
        {"evaluate": "return (await app.graphToPrompt()).output;"},
    ],
    "alone": [
        {
            "evaluate": "const n = app.canvas.graph.nodes.find((n) => n.type === 'StepVARPruning'); "
            "n.disconnectInput(0);",
            "wait": 500,
        },
        SEEN,
        shot("alone"),
        {"drag": CAP, "to": at(1, 0.8)},
        SEEN,
        {
            "evaluate": "const g = app.canvas.graph, find = (t) => g.nodes.find((n) => n.type === t); "
            "find('VARModelLoader').connect(0, find('StepVARPruning'), 0);",
            "wait": 500,
        },
        READY,
        {
            "evaluate": "app.canvas.graph.nodes.find((n) => n.type === 'VARModelLoader').widgets[0].value = "
            "'gone.pth'; app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();",
            "wait": 900,
        },
        SEEN,
        shot("gone"),
    ],
    "labels": [
        {"until": "document.querySelector('.stepvar-classes option')"},
        {"click": ".stepvar-classes input"},
        {"type": "Pengu"},
        {"press": "Enter"},
        {"type": "pengiun"},
        {"press": "Enter"},
        {"wait": 300},
        {"evaluate": "return document.querySelector('.stepvar-classes input').placeholder;"},
        {"shoot": "near", "of": ".stepvar-classes", "margin": 90},
        {"type": "lemon, pizza"},
        {"press": "Enter"},
        {"shoot": "classes", "of": ".stepvar-classes", "margin": 90},
        {
            "evaluate": "const n = app.canvas.graph.nodes.find((n) => n.type === 'VARClassLabel'); return { saved: "
            "n.serialize().widgets_values, options: document.querySelectorAll('.stepvar-classes option').length };"
        },
        {
            "evaluate": "app.canvas.graph.nodes.find((n) => n.type === 'VARModelLoader').widgets[0].value = "
            "'gone.pth'; app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();",
            "wait": 900,
        },
        {"evaluate": "return document.querySelector('.stepvar-classes input').placeholder;"},
    ],
}
# What the node looks like: folded as a new one, then with all settings; with a goal, and bypassed.
LOOK = """
const node = app.canvas.graph.nodes.find((n) => n.type === "StepVARPruning"), face = document.querySelector(".stepvar-equalizer");
const text = document.querySelector(`[data-node-id="${node.id}"]`)?.innerText.split("\\n");
const isSeen = (w) => (LiteGraph.vueNodesMode ? text.includes(w.label ?? w.name) : !w.hidden);
return { seen: node.widgets.filter((w) => w.name !== "equalizer" && isSeen(w)).map((w) => w.label ?? w.name), saved: node.serialize().widgets_values,
  menu: node.widgets[0].options.values.map((name) => node.widgets[0].options.getOptionLabel(name)), idle: face.classList.contains("is-idle"),
  note: face.querySelector(".stepvar-eq-readout").textContent, speedup: face.querySelector(".stepvar-eq-speedup").textContent,
  fits: node.size[1] >= node.computeSize()[1] - 1 };"""
LOOKED = {"evaluate": LOOK}
CHANGE = """
const node = app.canvas.graph.nodes.find((n) => n.type === "StepVARPruning"), goal = node.widgets.find((w) => w.name === "auto_goal");
%s
app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();"""
JOBS["folded"] = [
    AWAY,
    LOOKED,
    {"evaluate": CHANGE % "goal.value = 'seconds'; goal.callback('seconds');", "wait": 600},
    LOOKED,
    shot("goal"),
    {"evaluate": CHANGE % "goal.value = 'off'; goal.callback('off'); node.mode = 4;", "wait": 600},
    LOOKED,
    shot("bypassed"),
    {
        "evaluate": CHANGE % "node.mode = 0; const fold = document.querySelector('.stepvar-eq-fold'); "
        "if (fold.hidden) node.showAdvanced = true; else fold.click();",
        "wait": 600,
    },
    LOOKED,
]
# The panel of properties beside the editor, for a node and for the subgraph it went into.
JOBS["panel"] = [
    {
        "evaluate": """
        await app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", true);
        app.canvas.deselectAll(); app.canvas.selectNode(app.canvas.graph.nodes.find((n) => n.type === "StepVARPruning"));""",
        "wait": 900,
    },
    {"shoot": "node"},
    {
        "evaluate": """
        const panel = document.querySelector("[data-testid=properties-panel]"), face = document.querySelector(".stepvar-equalizer");
        const rows = panel.innerText.split("\\n"), node = app.canvas.graph.nodes.find((n) => n.type === "StepVARPruning");
        return { shows: rows.includes("preset"), rows: rows.filter((text) => text === "equalizer"), taken: panel.contains(face),
          share: face.getBoundingClientRect().width / app.canvas.ds.scale / node.size[0] };"""
    },
    {
        "evaluate": """
        const { node } = app.canvas.graph.convertToSubgraph(new Set([app.canvas.graph.nodes.find((n) => n.type === "StepVARPruning")]));
        await new Promise((done) => setTimeout(done, 600));
        app.canvas.deselectAll(); app.canvas.selectNode(node);""",
        "wait": 700,
    },
    {"click": "[data-testid=subgraph-editor-toggle]", "wait": 500},
    {"shoot": "subgraph"},
    {
        "evaluate": """
        const offered = document.querySelector("[data-testid=subgraph-editor-hidden-section]").innerText.split("\\n");
        document.querySelector("[data-testid=subgraph-editor-toggle]").click();
        await app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", false);
        return ["ratio_1", "preset", "equalizer"].filter((name) => offered.includes(name));"""
    },
]
START = {
    "dragged out": demo("Custom", (0.5, 0.3, 0, 0, 0, 0)),
    "shifted": demo("Custom", (0.4, 0.2, 0, 0, 0, 0)),
    "pasted": demo("Custom", (0.4, 0.2, 0, 0, 0, 0)),
}
RUN = {
    "name": "ran",
    "workflow": demo(),
    "queue": True,
    "steps": [
        READY,
        NEAR,
        {"wait": 500},
        SEEN,
        shot("timed"),
        {"evaluate": "return app.nodeOutputs['6'].stepvar[0].scales.reduce((sum, s) => sum + s.seconds, 0);"},
        {"drag": CAP, "to": at(1, 0.9)},
        SEEN,
    ],
}

# Ctrl+Y with a frame of the editor between its two keys: it then looks for changes first, and one that nobody made
# ends redo
REDO_IN_FRAMES = {
    "evaluate": """
const key = (type, name) => window.dispatchEvent(new KeyboardEvent(type, { key: name, ctrlKey: true, bubbles: true }));
key("keydown", "Control"); await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)));
key("keydown", "y"); key("keyup", "y");""",
    "wait": 1500,
}
REDONE = {
    "name": "redone",
    "workflow": demo(),
    "steps": [READY, NEAR, {"drag": CAP, "to": at(1, 0.8)}, UNDO, ratio_is(0.5), {"wait": 2000}, REDO_IN_FRAMES, SEEN],
}


@pytest.fixture(scope="module", params=["classic", "vue"])
def visit(request, frontend):
    """Job name -> what its looks at the editor saw, in order."""
    jobs = [
        {
            "name": f"equalizer {name}",
            "workflow": START.get(name, demo()),
            "steps": [READY, *([] if name == "labels" else [NEAR]), *steps],
        }
        for name, steps in JOBS.items()
    ]
    results = frontend.drive(
        request.param,
        [*jobs, RUN, REDONE],
        size=(1700, 1300),
        settings={"Comfy.ColorPalette": "dark", "Comfy.Locale": "en"},
    )
    for result in results:
        assert (
            result["packErrors"] == []
            and [e for e in result["pageErrors"] if f"/extensions/{launch.PACK_NAME}/" in e] == []
        ), result["name"]
    return {
        result["name"].removeprefix("equalizer "): [seen for seen in result["steps"] if seen is not None]
        for result in results
    }


def test_it_stands_above_the_ratios_and_saves_nothing(visit):
    seen = visit["opened"][0]
    assert seen["order"][:3] == ["preset", "equalizer", "ratio_1"]
    [node] = [n for n in demo()["nodes"] if n["type"] == "StepVARPruning"]
    assert seen["saved"] == node["widgets_values"]


def test_bars_are_the_connected_models_scales(visit):
    seen, _, hovered = visit["opened"]
    assert seen["labels"] == ["\u22644\u00d74", "5×5", "6×6", "8×8", "10×10", "13×13", "16×16"]
    assert seen["states"] == ["locked"] + 6 * ["free"] and seen["values"] == [
        "",
        "100",
        "100",
        "100",
        "100",
        "50",
        "50",
    ]
    assert sum(int(s.removesuffix("\u00a0%").removesuffix(" %")) for s in seen["shares"]) == pytest.approx(100, abs=3)
    assert seen["tokens"] == "468 of 680 tokens" and seen["speedup"] == "1.60×"
    assert hovered["readout"] == "13×13 · 25 % of the time · keeps 85 of 169"


def test_minus_one_says_which_number_it_is(visit):
    named = visit["opened"][1]
    names = [named["before"][name] for name in ("cfg", "temperature", "top_k", "top_p", "end_at_scale", "first_layer")]
    assert [name.split(" · ")[1] for name in names] == [
        "auto 2.0",
        "auto 1.0",
        "auto 200",
        "auto 0.95",
        "auto 10",
        "auto 0",
    ]
    assert named["label"] == "cfg" and named["before"]["start_at_scale"] == "start_at_scale"
    assert set(named["labels"]) == {None}, "nothing of it is saved"


def test_only_canvases_of_the_model_are_offered(visit):
    assert (visit["opened"][1]["sizes"], visit["opened"][1]["ratios"]) == (["auto", "256"], ["1:1"])


def test_sliders_speak(visit):
    sliders = visit["opened"][0]["sliders"]
    assert len(sliders) == 6 and all(s["tabindex"] == 0 and s["disabled"] == "false" for s in sliders)
    assert sliders[5] == {
        "label": "Scale 10 of 10, 16×16 · 44 % of the time",
        "now": "50",
        "text": "keeps 128 of 256",
        "disabled": "false",
        "tabindex": 0,
    }
    assert sliders[0]["text"] == "keeps all 25"


def test_a_drag_edits_the_ratio_and_is_one_step_of_history(visit):
    before, dragged, undone, redone, reloaded = visit["dragged"]
    ratio = dragged["ratios"][0]
    assert (
        ratio == near(0.8)
        and ratio == round(ratio, 2)
        and dragged["ratios"][1:] == [0.5, 0, 0, 0, 0]
        and dragged["preset"] == "Custom"
    )
    assert dragged["saved"][:7] == ["Custom", ratio, 0.5, 0, 0, 0, 0] and len(dragged["saved"]) == len(before["saved"])
    assert (
        dragged["values"][-1] == str(round(100 - 100 * ratio))
        and dragged["sliders"][-1]["text"] == f"keeps {256 - int(256 * ratio)} of 256"
    )
    assert dragged["undo"] == before["undo"] + 1
    assert (undone["ratios"], undone["preset"], undone["values"]) == (
        before["ratios"],
        before["preset"],
        before["values"],
    )
    assert (redone["ratios"], redone["preset"]) == (dragged["ratios"], "Custom")
    assert reloaded["saved"] == dragged["saved"] and reloaded["values"] == dragged["values"]


def test_a_scale_is_skipped_beyond_the_end_only(visit):
    out, up, next_bar, _ = visit["dragged out"]
    assert (
        out["ratios"][0] == 1
        and out["states"][-1] == "skipped"
        and out["values"][-1] == "skip"
        and out["sliders"][-1]["text"] == "skipped"
    )
    assert up["ratios"][0] == 0 and up["states"][-1] == "free"
    assert next_bar["ratios"][:4] == near([0, 0.3, 0.4, 0]) and next_bar["undo"] == up["undo"] + 1, (
        "one bar after the other"
    )


def test_shift_moves_all_bars_in_one_step(visit):
    moved, undone = visit["shifted"]
    assert moved["ratios"] == near([0.7, 0.5, 0.3, 0.3, 0.3, 0.3])
    assert undone["ratios"] == [0.4, 0.2, 0, 0, 0, 0]


def test_a_double_click_goes_back_to_the_preset(visit):
    [seen] = visit["double-clicked"]
    assert seen["ratios"] == [0.5, 0.5, 0, 0, 0, 0] and seen["preset"] == "Balanced"
    *_, was_custom = visit["dragged out"]
    assert was_custom["ratios"][:3] == near([0, 0, 0.4]) and was_custom["preset"] == "Custom", (
        "without a preset, every token"
    )


def test_the_keyboard_moves_bars(visit):
    down, up, home, end, reset, undone = visit["keys"]
    assert down["ratios"][0] == 0.53 and down["preset"] == "Custom" and down["readout"].startswith("16×16")
    assert up["ratios"][0] == 0.43
    assert home["ratios"][0] == 1 and end["ratios"][0] == 0
    assert (reset["ratios"][0], reset["preset"]) == (0.5, "Balanced")
    assert undone["ratios"][0] == 0, "Delete was one step, and left the node alone"
    assert down["undo"] + 4 == reset["undo"], "each key press is one step"


def test_bars_follow_the_widgets_and_the_preset(visit):
    ratio, preset, dragged = visit["widgets"]
    assert ratio["values"][-2] == "75" and ratio["preset"] == "Custom"
    # the paper's preset skips scales on Infinity only: what the bars show is what runs
    assert (
        preset["ratios"][:4] == [0.5, 0.5, 0.5, 0.4]
        and preset["values"][-4:] == ["61", "50", "50", "50"]
        and "skipped" not in preset["states"]
    )
    assert "pruned instead" in preset["readout"]
    assert dragged["preset"] == "Custom" and dragged["ratios"] == near([0.5, 0.5, 0.25, 0.4, 0, 0]), (
        "Custom goes on from what was seen"
    )


def test_a_copy_is_a_node_of_its_own(visit):
    copy, seen = visit["pasted"]
    assert copy["saved"] == seen["saved"] and copy["order"] == seen["order"] and seen["ratios"][0] == near(0.8)
    assert (copy["faces"], copy["left"]) == (2, 1)


def test_it_looks_small_and_unfolds(visit):
    folded, goal, bypassed, unfolded = visit["folded"]
    assert folded["seen"] == ["preset", "auto_goal"] and goal["seen"] == ["preset", "auto_goal", "auto_value"]
    assert len(unfolded["seen"]) == 20 and unfolded["seen"][1:3] == ["16×16 · pruned", "13×13 · pruned"]
    assert unfolded["fits"] and goal["fits"]
    assert folded["saved"] == unfolded["saved"] == bypassed["saved"], "what is folded keeps its values"


def test_a_goal_and_a_bypass_are_seen_on_the_bars(visit):
    folded, goal, bypassed, _ = visit["folded"]
    assert (folded["idle"], goal["idle"], bypassed["idle"]) == (False, True, True)
    assert (goal["note"], goal["speedup"]) == ("auto_goal chooses the ratios: seconds", "0.9 s")
    assert (bypassed["note"], bypassed["speedup"]) == ("bypassed: every token runs", "1.00×")


def test_a_presets_entry_says_its_speed_on_the_connected_model(visit):
    menu = visit["folded"][0]["menu"]
    assert menu[0] == "Off · 1.00×" and "Balanced · 1.60×" in menu and menu[-1] == "Custom"


def test_the_panel_of_properties_leaves_it_in_its_node(visit):
    panel, _ = visit["panel"]
    assert panel["shows"] and panel["rows"] == [] and not panel["taken"]
    assert 0.7 < panel["share"] < 1, "no wider than its node"


def test_a_subgraph_offers_what_has_a_value(visit):
    _, offered = visit["panel"]
    assert offered == ["ratio_1", "preset"]


def test_it_works_within_a_subgraph(visit):
    before, dragged = visit["subgraph"]
    assert before["labels"][-1] == "16×16" and before["tokens"] == "468 of 680 tokens"
    assert dragged["ratios"][0] == near(0.8) and dragged["preset"] == "Custom"


def test_a_linked_ratio_is_locked(visit):
    linked, after, overruled, later = visit["linked"]
    assert linked["preset"] == "Custom" and linked["values"][-1] == "50", "what ran before goes on, and the link counts"
    assert (
        linked["states"][-2] == "linked"
        and linked["sliders"][-2]["disabled"] == "true"
        and "link" in linked["sliders"][-2]["text"]
    )
    assert after["ratios"][:3] == near([0.7, 0.5, 0.2]), "the link's own bar stays; the others move"
    assert after["sliders"][-2]["now"] == linked["sliders"][-2]["now"] == "75", "as Custom, the link's value counts"
    # a preset chosen over the link: it runs, so the bar shows it and says why
    assert overruled["preset"] == "Balanced" and overruled["states"][-2] == "ignored"
    assert overruled["sliders"][-2]["now"] == "50" and overruled["values"][-2:] == ["50", "50"]
    assert overruled["readout"].startswith("Balanced overrules links")
    assert later["preset"] == "Custom" and "set by a link as it runs" in later["sliders"][-2]["text"]


def test_a_ratio_promoted_to_a_subgraph_counts(visit):
    seen, prompt = visit["promoted"]
    [inputs] = [node["inputs"] for node in prompt.values() if node["class_type"] == "StepVARPruning"]
    assert (inputs["preset"], inputs["ratio_1"]) == (seen["preset"], 0.95) == ("Custom", 0.95)
    assert seen["states"][-1] == "linked" and int(seen["sliders"][-1]["now"]) == pytest.approx(5, abs=1)


def test_without_a_model_bars_are_plain(visit):
    alone, dragged, gone = visit["alone"]
    assert (
        alone["labels"] == ["", "", "", "", "", "last"]
        and alone["values"][-1] == "50"
        and alone["remark"] == "Connect a model to see its scales"
    )
    assert dragged["ratios"][0] == near(0.8) and dragged["preset"] == "Custom"
    assert gone["remark"].startswith("There is no model 'gone.pth'.") and int(gone["values"][-1]) in (19, 20, 21)


def test_a_class_name_is_suggested_and_added(visit):
    near, seen, gone = visit["labels"]
    assert seen == {"saved": ["panda; fox; strawberry; rocket; penguin; lemon; pizza"], "options": 44}
    assert near == "No \u201cpengiun\u201d. Near: penguin"
    assert gone.startswith("There is no model 'gone.pth'.")


def test_a_run_gives_seconds(visit):
    assert visit["opened"][0]["time"].startswith("run once for seconds · ")
    timed, seconds, pruned = visit["ran"]

    def shown(text: str) -> float:
        number, unit = text.split(" · ")[0].removeprefix("\u2248 ").split(" ")
        return float(number.replace(",", "")) / (1000 if unit == "ms" else 1)

    assert shown(timed["time"]) == pytest.approx(seconds, rel=0.02, abs=0.002)
    assert shown(pruned["time"]) < shown(timed["time"])


def test_redo_outlives_the_last_runs_picture(visit):
    """After an undo the sampler shows the server's last run again, and must not grow by that."""
    [seen] = visit["redone"]
    assert seen["ratios"][0] == near(0.8)
