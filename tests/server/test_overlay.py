"""The mask overlay and the comparison in the real editor, in both renderers: what they show is what the nodes
returned."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
import torch

import launch
from stepvar_core.methods.fills import nearest_kept
from stepvar_core.schedule import Scale
from stepvar_core.trace import ScaleTrace, Trace, pack_mask
from stepvar_core.viewing.overlay import PRUNED, viridis

pytestmark = [pytest.mark.server, pytest.mark.browser]

RENDERERS = ["classic", "vue"]
SAMPLER, OVERLAY, SAVED, SCALES = 6, 12, 11, 10  # nodes of StepVAR_overlay_and_report
COMPARED = [
    "outputs",
    "first",
    "followed",
    "menu",
    "dragged",
    "stepped",
    "end",
    "a",
    "b",
    "zoomed",
    "panned",
    "whole",
    "difference",
]
COMPARE, WORDS = 10, 12  # nodes of VAR_compare_dense_and_pruned

# what the steps below call in the page
TOOLS = """
globalThis.__tools = {
  node: (id) => String(id).split(":").reduce((graph, part) => { const n = graph.getNodeById(Number(part)); return n.subgraph ?? n; }, app.rootGraph),
  part: (node) => node.widgets.find((w) => ["overlay", "comparison", "report"].includes(w.name)).element,
  mark: (id, name) => { __tools.part(__tools.node(id)).id = name; },
  // the colour in the middle of every cell of the shown frame
  cells: (node, [, h, w]) => {
    const canvas = __tools.part(node).querySelector(".stepvar-cells");
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return Array.from({ length: h * w }, (_, i) => {
      const x = Math.floor((i % w + 0.5) * canvas.width / w), y = Math.floor((Math.floor(i / w) + 0.5) * canvas.height / h);
      return Array.from(data.slice(4 * (y * canvas.width + x), 4 * (y * canvas.width + x) + 4));
    });
  },
  isOld: (node) => !__tools.part(node).querySelector(".stepvar-old").hidden,
  state: (node) => ({ ...__tools.part(node).dataset, isOld: __tools.isOld(node), said: __tools.part(node).querySelector(".stepvar-said")?.textContent,
    picture_url: __tools.part(node).querySelector(".stepvar-stage > img")?.getAttribute("src"), for_menu: node.imgs?.length ?? 0,
    stock: [...node.widgets.map((w) => w.name).filter((name) => name.startsWith("$$")),
      ...[...document.querySelectorAll(`[data-node-id="${node.id}"] img`)].filter((i) => !i.closest(".stepvar") && i.offsetParent).map((i) => i.src)] }),
  output: (id) => JSON.parse(JSON.stringify(app.nodeOutputs[id] ?? null)),
  // follows one run: how often each overlay was drawn anew while it ran, and the messages that came; `reached` = what to do at the nth drawing
  watch: (ids, reached = {}) => {
    const seen = globalThis.__seen = { ending: null, messages: [], drawn: Object.fromEntries(ids.map((id) => [id, []])) };
    for (const id of ids) {
      const element = __tools.part(__tools.node(id));
      new MutationObserver(() => { const d = `${element.dataset.phase} ${element.dataset.done}`; if (seen.drawn[id].at(-1) === d) return;
          seen.drawn[id].push(d);
          reached[seen.drawn[id].length]?.(); })
        .observe(element, { attributes: true });
    }
    app.api.addEventListener("stepvar.scale", ({ detail }) => seen.messages.push(detail));
    for (const name of ["execution_success", "execution_error", "execution_interrupted"]) app.api.addEventListener(name, () => { seen.ending = name; });
  },
  seed: (id, value) => { __tools.node(id).widgets.find((w) => w.name === "seed").value = value; },
};
"""


def workflow(name: str, batch: int) -> dict:
    loaded = json.loads((launch.ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    [latent] = [node for node in loaded["nodes"] if node["type"] == "EmptyVARLatent"]
    latent["widgets_values"][-1] = batch
    return loaded


def do(body: str) -> dict:
    return {"evaluate": body}


def run_to_end(ids) -> list[dict]:
    return [
        do(f"__tools.watch({json.dumps(ids)}); await app.queuePrompt(0)"),
        {"until": "__seen.ending"},
        {"wait": 1500},
    ]


READ = f"""
const node = __tools.node({OVERLAY}), size = __tools.output({OVERLAY}).stepvar[0].scales[Number(__tools.part(node).dataset.scale)].size;
return {{ ...__tools.state(node), cells: __tools.cells(node, size) }};
"""
# the cell of row 6, column 4 of the last, 16 x 16 scale
AIM = ["#overlay .stepvar-cells", 3.5 / 16, 5.5 / 16]


def video() -> Trace:
    """Two clips of three frames; of the second clip's last grid the middle frame kept nothing."""
    kept = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(8)) < 0.4
    kept[1, 1] = False
    return Trace(
        (ScaleTrace((1, 2, 2), torch.ones(2, 1, 2, 2, dtype=torch.bool), 4, 0.1), ScaleTrace((3, 4, 5), kept, 20, 0.2))
    )


def as_output(trace: Trace) -> dict:
    message = trace.as_dict()
    for scale, summary in zip(trace.scales, message["scales"]):
        summary["kept"] = base64.b64encode(pack_mask(scale.kept)).decode()
    return {"stepvar": [message]}


@pytest.fixture(scope="module", params=RENDERERS)
def seen(request, frontend):
    """Name -> what that step gave; one visit to the editor per renderer."""
    named: dict[str, int] = {}
    steps: list[dict] = []

    def add(*more: dict, name: str | None = None) -> None:
        steps.extend(more)
        if name:
            named[name] = len(steps) - 1

    graph = workflow("StepVAR_overlay_and_report", batch=2)
    graph["id"] = (
        # else the server would bring the other renderer's runs back
        f"{graph['id'][:-2]}{RENDERERS.index(request.param):02}"
    )
    fresh = 1000 + len(request.param)  # a seed that no run before has cached
    loaded = [node for node in graph["nodes"] if node["type"] == "VARSampler"]
    for node in loaded:
        node["widgets_values"][0] = fresh
    add(do(TOOLS), do(f"__tools.mark({SAMPLER}, 'sampler'); __tools.mark({OVERLAY}, 'overlay')"))
    add(do(f"return __tools.state(__tools.node({SAMPLER}))"), name="empty")
    add(
        {"shoot": "empty"},
        do(
            f"__tools.watch([{SAMPLER}], "
            f"{{ 5: () => {{ __seen.midway = __tools.state(__tools.node({SAMPLER})); }} }}); await app.queuePrompt(0)"
        ),
        {"until": f"__seen.drawn[{SAMPLER}].length >= 5"},
        {"shoot": "running"},
        {"until": "__seen.ending"},
        {"wait": 1500},
        {"shoot": "done"},
    )
    add(do("return __seen"), name="run")
    add(do(f"return [__tools.output({SAMPLER}), __tools.output({OVERLAY}), __tools.output({SAVED})]"), name="outputs")
    add(do(f"return __tools.state(__tools.node({SAMPLER}))"), name="sampler")
    add(do(READ), name="kept")
    add({"hover": AIM}, do(f"return __tools.state(__tools.node({OVERLAY}))"), name="hovered")
    add({"shoot": "hover", "of": "#overlay"}, {"hover": ["#overlay .stepvar-lines", 0.5, 0.5]})
    for layer in ("structure", "texture", "importance"):
        add({"click": f"#overlay [data-value={layer}]"}, do(READ), name=layer)
        add({"shoot": layer, "of": "#overlay"})
    add({"click": "#overlay .stepvar-thumb:nth-child(2)"}, do(READ), name="second picture")
    add({"focus": "#overlay .stepvar-timeline"}, {"press": "ArrowLeft"}, do(READ), name="scale before")
    add(
        {"press": "Home"},
        do(
            "return "
            f"{{ ...__tools.state(__tools.node({OVERLAY})), note: __tools.part(__tools.node({OVERLAY})).querySelector('.stepvar-note').textContent }}"
        ),
        name="first scale",
    )
    add(do(f"return Object.fromEntries(__tools.node({OVERLAY}).widgets.map((w) => [w.name, w.value]))"), name="told")
    add(
        {"click": "#overlay [data-value=kept]"},
        {"click": ["#overlay .stepvar-timeline", 0.97, 0.3]},
        do(READ),
        name="clicked",
    )
    add(
        do(
            f"const w = __tools.node({OVERLAY}).widgets.find((w) => w.name === 'opacity'); w.value = 0.2; "
            "w.callback?.(0.2)"
        ),
        do(READ),
        name="fainter",
    )
    add(
        do(
            "return { prompt: (await app.graphToPrompt()).output, saved: app.rootGraph.serialize().nodes.map((n) => "
            "[n.id, n.widgets_values]) }"
        ),
        name="saved",
    )
    add(
        do(f"""const node = __tools.node({OVERLAY}), before = new Set(app.rootGraph.nodes);
        app.canvas.deselectAll?.(); app.canvas.selectNode(node); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard();
        await new Promise((r) => setTimeout(r, 800));
        const copies = app.rootGraph.nodes.filter((n) => !before.has(n)), copy = copies[0], state = __tools.state(copy), part = __tools.part(copy);
        app.rootGraph.remove(copy);
        await new Promise((r) => setTimeout(r, 300));
        return {{ copies: copies.length, state, isGone: !part.isConnected, original: __tools.state(node) }};"""),
        name="copy",
    )
    add(
        do("""const open = app.extensionManager.workflow.activeWorkflow;
        await app.extensionManager.command.execute("Comfy.NewBlankWorkflow");
        await new Promise((r) => setTimeout(r, 800));
        const nodes = app.rootGraph.nodes.length;
        await app.extensionManager.command.execute("Workspace.PreviousOpenedWorkflow");
        await new Promise((r) => setTimeout(r, 1500));
        return { nodes, back: app.extensionManager.workflow.activeWorkflow === open };"""),
        do(READ),
        name="other tab and back",
    )
    # the same file opened anew: what the server remembers is its own only while it would be drawn the same way
    other, reseeded = (json.loads(json.dumps(graph)) for _ in range(2))
    [label] = [node for node in other["nodes"] if node["type"] == "VARClassLabel"]
    label["widgets_values"][0] = "strawberry"
    for node in reseeded["nodes"]:
        if node["type"] == "VARSampler":
            node["widgets_values"][0] = fresh + 9
    states = f"return [{SAMPLER}, {OVERLAY}].map((id) => __tools.state(__tools.node(id)));"
    done = (
        f"__tools.part(__tools.node({OVERLAY})).dataset.phase === 'done' && "
        f"__tools.part(__tools.node({SAMPLER})).dataset.phase === 'done'"
    )
    add(
        {"reload": True},
        do(TOOLS),
        do(f"await app.loadGraphData({json.dumps(other)}, true, true, null)"),
        {"wait": 1500},
        do(states),
        name="other settings",
    )
    add(
        do(f"await app.loadGraphData({json.dumps(reseeded)}, true, true, null)"),
        {"until": done},
        do(states),
        name="another seed",
    )
    add({"shoot": "earlier"})
    add(
        do(f"await app.loadGraphData({json.dumps(graph)}, true, true, null)"),
        {"until": done},
        {"wait": 800},
        do(f"""const root = app.nodeOutputs[{OVERLAY}], node = __tools.node({OVERLAY});
        return {{ ...__tools.state(node), cells: __tools.cells(node, [1, 16, 16]), known: Boolean(root), report: document.querySelector(".stepvar-report img").getAttribute("src"), sampler: __tools.state(__tools.node({SAMPLER})) }};"""),
        name="reloaded",
    )
    add({"shoot": "reloaded"})
    # the same prompt again: every node is cached, and says its output once more
    add(*run_to_end([SAMPLER]), do(READ), name="cached")
    label = (
        "const w = app.rootGraph.nodes.find((n) => n.type === 'VARClassLabel').widgets.find((w) => w.name === 'label');"
    )
    add(
        do(f"{label} globalThis.__label = w.value; w.value = 'no such class'"),
        *run_to_end([]),
        do(states),
        name="failed",
    )
    add({"shoot": "failed"}, do(f"{label} w.value = __label"))
    add(
        do(f"""const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker, remember = () => (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
        const before = __tools.node({OVERLAY});
        remember(); before.pos = [before.pos[0] + 40, before.pos[1]]; remember();
        await app.extensionManager.command.execute("Comfy.Undo");
        await new Promise((r) => setTimeout(r, 1500));
        const node = __tools.node({OVERLAY}), part = __tools.part(node);
        return {{ ...__tools.state(node), cells: __tools.cells(node, [1, 16, 16]), isNew: node !== before, isShown: part.isConnected && part.getBoundingClientRect().width > 50,
          shown: document.querySelectorAll(".stepvar-overlay").length }};"""),
        name="undone",
    )
    # no family with nodes draws videos yet: the output of one, as the node would hand it out
    add(
        do(f"__tools.mark({OVERLAY}, 'overlay'); __tools.node({OVERLAY}).onExecuted({json.dumps(as_output(video()))})"),
        {"wait": 500},
        {"click": "#overlay .stepvar-thumb:nth-child(2)"},
        {"focus": "#overlay .stepvar-frames input"},
        {"press": "ArrowRight"},
        {"hover": ["#overlay .stepvar-cells", 2.5 / 5, 1.5 / 4]},
        do(
            f"const node = __tools.node({OVERLAY}); return "
            f"{{ ...__tools.state(node), cells: __tools.cells(node, [3, 4, 5]), frames: __tools.part(node).querySelector('.stepvar-frames').textContent }};"
        ),
        name="video",
    )
    add({"shoot": "video", "of": "#overlay"})
    # within a subgraph, with another seed
    add(
        do(f"""const node = __tools.node({SAMPLER}); __tools.seed({SAMPLER}, {fresh} + 1);
        const {{ node: outer }} = app.rootGraph.convertToSubgraph(new Set([node]));
        await new Promise((r) => setTimeout(r, 800));
        globalThis.__inner = `${{outer.id}}:${{outer.subgraph.nodes.find((n) => n.comfyClass === "VARSampler").id}}`;"""),
        do("__tools.watch([__inner]); await app.queuePrompt(0)"),
        {"until": "__seen.ending"},
        {"wait": 1000},
        do(
            "return { ...__seen, inner: __inner, drawn: __seen.drawn[__inner], state: "
            "__tools.state(__tools.node(__inner)) }"
        ),
        name="subgraph",
    )
    jobs = [{"name": "overlay", "workflow": graph, "steps": steps}]

    stopped: list[dict] = [
        do(TOOLS),
        do(
            f"__tools.seed({SAMPLER}, {fresh} + 2); __tools.watch([{SAMPLER}], {{ 4: () => app.api.interrupt() }}); "
            "await app.queuePrompt(0)"
        ),
        {"until": "__seen.ending"},
        {"wait": 600},
        do(f"return {{ ending: __seen.ending, ...__tools.state(__tools.node({SAMPLER})) }}"),
        {"shoot": "stopped"},
    ]
    large = {
        **workflow("StepVAR_overlay_and_report", batch=32),
        "id": graph["id"],
    }  # seconds, so that a run can be stopped within
    jobs.append({"name": "overlay stopped", "workflow": large, "steps": stopped})

    look = f"""const part = __tools.part(__tools.node({COMPARE})), text = (css) => part.querySelector(css)?.textContent;
        return {{ ...part.dataset, figures: [...part.querySelectorAll(".stepvar-figures b")].map((b) => b.textContent), verdict: text(".stepvar-verdict"),
          clip: part.querySelector(".stepvar-b").style.clipPath, heat: !part.querySelector(".stepvar-difference").hidden,
          divider: part.querySelector("[role=slider]").getAttribute("aria-valuenow"), menu: __tools.node({COMPARE}).imgs.map((i) => i.src),
          shown: ["a", "b", "difference"].filter((name) => !part.querySelector(`.stepvar-${{name}}`).hidden), legend: part.querySelector(".stepvar-legend").innerText,
          width: part.querySelector(".stepvar-pair").getBoundingClientRect().width, left: part.querySelector(".stepvar-pair").getBoundingClientRect().left }};"""
    stage = "#compare .stepvar-stage"
    away = {"hover": ["#compare .stepvar-figures", 0.5, 0.5]}
    compare = [
        do(TOOLS),
        do(f"__tools.mark({COMPARE}, 'compare')"),
        {"shoot": "empty", "of": "#compare"},
        *run_to_end([]),
        {"shoot": "done"},
        {"shoot": "wipe", "of": "#compare"},
        do(f"return [__tools.output({COMPARE}), __tools.output({WORDS})]"),
        do(look),
        {"hover": ["#compare .stepvar-pair", 0.2, 0.5]},
        do(look),
        {"click": ["#compare .stepvar-pair", 0.2, 0.5], "button": "right"},
        {"wait": 400},
        {"shoot": "menu"},
        do("return { offers: document.body.innerText.includes('Save Image') };"),
        {"press": "Escape"},
        {"click": ["body", 0.5, 0.97]},
        {"drag": ["#compare .stepvar-pair", 0.5, 0.5], "to": ["#compare .stepvar-pair", 0.8, 0.4]},
        do(look),
        {"focus": "#compare [role=slider]"},
        {"press": "ArrowLeft", "times": 3},
        do(look),
        {"press": "End"},
        do(look),
        {"click": stage},
        do(look),
        {"click": stage},
        do(look),
        {"shoot": "alone", "of": "#compare"},
        # the wheel is the picture's after a click on it: the spot under the pointer stays, a drag moves the picture
        do(
            f"""const stage = document.querySelector("{stage}"), box = stage.getBoundingClientRect();
        stage.dispatchEvent(new WheelEvent("wheel", {{ deltaY: -400, clientX: box.x + box.width * 0.5, clientY: box.y + box.height * 0.5, bubbles: true, cancelable: true }}));"""
        ),
        do(look),
        {"shoot": "zoomed", "of": "#compare"},
        {"drag": [stage, 0.5, 0.5], "to": [stage, 0.6, 0.5]},
        do(look),
        {"press": "0"},
        away,
        do(look),
        {"click": "#compare .stepvar-thumb:nth-child(2)"},
        {"click": "#compare [data-value=difference]"},
        away,
        {"wait": 300},
        do(look),
        {"shoot": "difference", "of": "#compare"},
    ]
    jobs.append({"name": "compare", "workflow": workflow("VAR_compare_dense_and_pruned", batch=2), "steps": compare})

    overlay, broken_off, compared = frontend.drive(request.param, jobs, size=(2000, 1100), timeout_seconds=240)
    for job in (overlay, broken_off, compared):
        assert job["packErrors"] == []
        assert [stack for stack in job["pageErrors"] if f"/extensions/{launch.PACK_NAME}/" in stack] == []
    given = {name: overlay["steps"][place] for name, place in named.items()}
    given["stopped"] = next(v for v in reversed(broken_off["steps"]) if v)
    values = [v for v in compared["steps"] if v]
    given["compare"] = dict(zip(COMPARED, values, strict=True))
    return given


def kept_of(message: dict, scale: int, picture: int) -> torch.Tensor:
    """(N,) bool of one picture, from a node's output."""
    shown = message["scales"][scale]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(shown["kept"]), dtype=np.uint8))
    return torch.from_numpy(bits[picture * shown["tokens"] : (picture + 1) * shown["tokens"]].astype(bool))


def assert_shows_kept(shown: dict, kept: torch.Tensor, opacity: float) -> None:
    dark = [round(v * 255) for v in PRUNED]
    for i, (cell, is_kept) in enumerate(zip(shown["cells"], kept.tolist(), strict=True)):
        if is_kept:
            assert cell[3] == 0, i
        else:
            assert cell[3] == pytest.approx(opacity * 255, abs=1) and cell[:3] == pytest.approx(dark, abs=2), i


def test_it_asks_for_a_run_first(seen):
    assert seen["empty"]["phase"] == "empty" and "said" in seen["empty"]


def test_it_follows_every_scale_while_the_sampler_runs(seen):
    messages = [m for m in seen["run"]["messages"] if m["node"] == str(SAMPLER)]
    assert [m["index"] for m in messages] == list(range(SCALES))
    assert seen["run"]["drawn"][str(SAMPLER)] == [*(f"running {n + 1}" for n in range(SCALES)), f"done {SCALES}"]
    assert all(len(m["plan"]) == SCALES for m in messages)
    assert messages[-1]["plan"][-1][-1] == messages[-1]["tokens_run"] < messages[-1]["tokens"]


def test_the_sampler_shows_its_last_pruned_scale_over_the_picture_it_previewed(seen):
    message, decoded = seen["outputs"][0]["stepvar"][0], seen["outputs"][2]["images"]
    assert len(message["pictures"]) == 1, "of the batch it decodes one itself"
    assert decoded[0]["filename"] in seen["sampler"]["picture_url"], "the graph decodes all, so that they are shown"
    assert message["pictures"][0]["filename"] in seen["reloaded"]["sampler"]["picture_url"]
    assert seen["sampler"]["scale"] == str(SCALES - 1) and seen["sampler"]["said"].startswith(
        "16×16 · 128 of 256 tokens ran (50%)"
    )


def test_the_pictures_are_shown_once_and_offered_to_the_nodes_menu(seen):
    """The editor's own preview of the same node gives way, and its menu still opens, copies and saves."""
    assert seen["run"]["midway"]["phase"] == "running" and seen["run"]["midway"]["picture_url"].startswith("blob:")
    assert seen["run"]["midway"]["stock"] == seen["sampler"]["stock"] == seen["kept"]["stock"] == []
    assert (seen["sampler"]["for_menu"], seen["kept"]["for_menu"]) == (2, 2)


def test_it_paints_the_cells_of_the_mask(seen):
    message = seen["outputs"][1]["stepvar"][0]
    assert len(message["pictures"]) == message["batch"] == 2
    assert_shows_kept(seen["kept"], kept_of(message, -1, 0), opacity=0.65)
    assert message["pictures"][0]["filename"] in seen["kept"]["picture_url"]


def test_pointing_at_a_cell_says_where_it_was_filled_from(seen):
    message = seen["outputs"][1]["stepvar"][0]
    kept = kept_of(message, -1, 0)
    token = 5 * 16 + 3
    [source] = nearest_kept(kept[None], Scale(1, 16, 16))[0, token : token + 1].tolist()
    said = seen["hovered"]["said"]
    assert said.startswith("Row 6, column 4 of 16×16 · ")
    if kept[token]:
        assert re.search(r"· kept(, fills \d+ more)?$", said)
    else:
        assert said.endswith(f"· filled from ({source // 16 + 1}, {source % 16 + 1})")


@pytest.mark.parametrize("layer", ["structure", "texture", "importance"])
def test_a_layer_shows_the_scores_as_colours(seen, layer):
    shown, sent = seen[layer], seen["outputs"][1]["stepvar"][0]["scales"][-1]["scores"][layer]
    scores = torch.frombuffer(bytearray(base64.b64decode(sent["data"])), dtype=torch.uint8)[:256]
    expected = viridis(scores[None, None] / 255)[0, 0] * 255
    drawn = torch.tensor(shown["cells"], dtype=torch.float32)
    assert shown["layer"] == layer
    assert (drawn[:, :3] - expected).abs().max() <= 2 and (drawn[:, 3] - 0.65 * 255).abs().max() <= 1
    assert scores.min() == 0 and scores.max() == 255 and len(set(scores.tolist())) > 20


def test_a_batch_is_leafed_through(seen):
    message, shown = seen["outputs"][1]["stepvar"][0], seen["second picture"]
    assert shown["picture"] == "1" and message["pictures"][1]["filename"] in shown["picture_url"]
    assert_shows_kept(seen["clicked"], kept_of(message, -1, 1), opacity=0.65)
    assert not torch.equal(kept_of(message, -1, 0), kept_of(message, -1, 1))


def test_the_timeline_goes_through_the_scales(seen):
    assert seen["scale before"]["scale"] == str(SCALES - 2)
    assert len(seen["scale before"]["cells"]) == 13 * 13
    assert (
        seen["first scale"]["scale"] == "0"
        and seen["first scale"]["note"] == "This scale ran every token, so nothing was scored"
    )
    assert seen["clicked"]["scale"] == str(SCALES - 1)


def test_the_nodes_widgets_follow_what_it_could_draw(seen):
    """The first scale has no scores, which the node would refuse: its widgets stay at the last choice it can run."""
    assert (seen["told"]["scale"], seen["told"]["layer"]) == (-2, "importance")
    assert_shows_kept(seen["fainter"], kept_of(seen["outputs"][1]["stepvar"][0], -1, 1), opacity=0.2)


def test_it_leaves_no_trace_in_what_is_saved(seen):
    saved = {node_id: values for node_id, values in seen["saved"]["saved"]}
    assert len(saved[SAMPLER]) == 8 and saved[OVERLAY] == [-1, "kept", 0.2]
    assert not {"overlay", "comparison"} & {
        name for node in seen["saved"]["prompt"].values() for name in node["inputs"]
    }


def test_a_copy_starts_empty_and_goes_without_a_trace(seen):
    copy = seen["copy"]
    assert copy["copies"] == 1 and copy["state"]["phase"] == "empty" and copy["isGone"]
    assert copy["original"]["phase"] == "done"


@pytest.mark.parametrize("moment", ["other tab and back", "reloaded", "cached", "undone"])
def test_it_comes_back(seen, moment):
    message = seen["outputs"][1]["stepvar"][0]
    shown = seen[moment]
    assert shown["phase"] == "done" and shown["scale"] == str(SCALES - 1)
    assert_shows_kept(shown, kept_of(message, -1, 0), opacity=0.2 if moment == "other tab and back" else 0.65)
    assert "/view?" in shown["picture_url"]


def test_a_file_opened_anew_shows_no_result_of_other_settings(seen):
    assert [state["phase"] for state in seen["other settings"]] == ["empty", "empty"]
    assert [(state["phase"], state["isOld"]) for state in seen["another seed"]] == [("done", True), ("done", True)]
    assert not seen["reloaded"]["isOld"] and not seen["cached"]["isOld"]


def test_a_result_that_outlives_a_failed_run_says_so(seen):
    assert [(state["phase"], state["isOld"]) for state in seen["failed"]] == [("done", True), ("done", True)]


def test_undo_leaves_one_overlay_per_node_in_sight(seen):
    undone = seen["undone"]
    assert undone["isNew"] and undone["isShown"] and undone["shown"] == 3


def test_a_reload_brings_the_samplers_back_from_what_the_server_remembers(seen):
    assert not seen["reloaded"]["known"], "the editor itself remembers nothing: the widget asked the server"
    assert seen["reloaded"]["sampler"]["said"] == seen["sampler"]["said"]


def test_the_report_comes_back_after_a_reload(seen):
    assert "/view?" in seen["reloaded"]["report"]


def test_a_video_has_a_frame_slider(seen):
    shown, trace = seen["video"], video()
    kept = trace.scales[-1].kept[1]
    assert (shown["picture"], shown["frames"]) == ("1", "Frame 2 of 3")
    assert_shows_kept(shown, kept[1].flatten(), opacity=0.65)
    source = nearest_kept(kept.reshape(1, -1), Scale(3, 4, 5))[0, 20 + 5 + 2].item()
    assert shown["said"] == (
        f"Frame 2, row 2, column 3 of 4×5 · filled from ({source % 20 // 5 + 1}, {source % 5 + 1}) of frame "
        f"{source // 20 + 1}"
    )


def test_it_works_within_a_subgraph(seen):
    run = seen["subgraph"]
    messages = [m for m in run["messages"] if m["node"] == run["inner"]]
    assert ":" in run["inner"] and [m["index"] for m in messages] == list(range(SCALES))
    assert run["drawn"] == [*(f"running {n + 1}" for n in range(SCALES)), f"done {SCALES}"]
    assert run["state"]["phase"] == "done"


def test_a_cancelled_run_says_how_far_it_came(seen):
    stopped = seen["stopped"]
    assert stopped["ending"] == "execution_interrupted" and stopped["phase"] == "stopped"
    assert 4 <= int(stopped["done"]) < SCALES


def test_the_comparison_shows_the_nodes_numbers(seen):
    [output, words], first = seen["compare"]["outputs"], seen["compare"]["first"]
    [numbers] = output["stepvar_compare"]
    assert first["figures"] == [
        f"{numbers['psnr'][0]:.1f} dB",
        f"{numbers['ssim'][0]:.4f}",
        f"{numbers['edges'][0]:.4f}",
    ]
    text = "".join(words["text"])
    for i in range(2):
        assert (
            f"Picture {i + 1}: PSNR {numbers['psnr'][i]:.2f} dB, SSIM {numbers['ssim'][i]:.4f}, edges "
            f"{numbers['edges'][i]:.4f}" in text
        )
    ratio = numbers["seconds"][0] / numbers["seconds"][1]
    assert f"b is {ratio:.2f}x as fast, predicted 1.60x" in text
    measured, predicted, *busy = first["verdict"].split(" · ")
    assert measured in (f"B is {ratio:.2f}× as fast", f"B takes {1 / ratio:.2f}× as long", "same time")
    assert predicted == "predicted 1.60×"
    off = ratio / numbers["predicted"]
    assert busy == (["one run on a busy machine"] if off > 1.25 or off < 0.8 else [])


def test_the_divider_is_dragged_and_moved_by_keys(seen):
    first, dragged, stepped, end = (seen["compare"][name] for name in ("first", "dragged", "stepped", "end"))
    assert (first["at"], first["clip"]) == ("0.5", "inset(0px 0px 0px 50%)")
    assert float(dragged["at"]) == pytest.approx(0.8, abs=0.01) and dragged["divider"] == "80"
    assert float(stepped["at"]) == pytest.approx(float(dragged["at"]) - 0.03, abs=1e-6)
    assert end["at"] == "1" and end["clip"] == "inset(0px 0px 0px 100%)"
    assert not end["heat"]


def test_the_wipe_follows_the_pointer_and_a_click_shows_one_alone(seen):
    compared = seen["compare"]
    assert float(compared["followed"]["at"]) == pytest.approx(0.2, abs=0.01)
    assert compared["a"]["shown"] == ["a"] and compared["b"]["shown"] == ["a", "b"] and compared["b"]["clip"] == ""
    assert compared["whole"]["shown"] == ["a", "b"] and compared["whole"]["alone"] == "", "leaving it shows both again"


def test_the_picture_is_zoomed_and_moved(seen):
    first, zoomed, moved, whole = (seen["compare"][name] for name in ("b", "zoomed", "panned", "whole"))
    zoom = zoomed["width"] / first["width"]
    assert zoom == pytest.approx(2.718, rel=0.02) and float(zoomed["zoom"]) == pytest.approx(zoom, rel=0.02)
    middle = first["left"] + first["width"] / 2
    assert zoomed["left"] + zoomed["width"] / 2 == pytest.approx(middle, abs=3), "what is under the pointer stays"
    assert moved["left"] - zoomed["left"] == pytest.approx(0.1 * first["width"], rel=0.15)
    assert whole["width"] == first["width"] and whole["left"] == first["left"]


def test_the_menu_acts_on_what_is_shown(seen):
    compared = seen["compare"]
    [numbers] = compared["outputs"][0]["stepvar_compare"]
    assert compared["menu"]["offers"], "the node's menu opens over the pictures"
    shown = [("followed", "b", 0), ("dragged", "a", 0), ("b", "b", 0), ("difference", "difference", 1)]
    for name, picture, index in shown:
        [url] = compared[name]["menu"]
        assert f"filename={numbers[picture][index]['filename']}" in url, name


def test_the_difference_replaces_the_pair(seen):
    shown = seen["compare"]["difference"]
    assert shown["mode"] == "difference" and shown["heat"] and shown["picture"] == "1"
    assert shown["legend"].startswith("same")
