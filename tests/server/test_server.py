"""A real ComfyUI starts, loads the pack, and runs workflow files through the translator that the demo uses."""

import json

import pytest
from comfy_server import PromptRefused

import launch

pytestmark = pytest.mark.server

WORKFLOWS = sorted((launch.ROOT / "workflows").glob("*.json"))


def node(id_, type_, values=(), inputs=(), outputs=(), mode=0):
    """A node as the editor saves it. inputs: (name, type, link); outputs: types."""
    return {
        "id": id_,
        "type": type_,
        "mode": mode,
        "widgets_values": list(values),
        "inputs": [{"name": name, "type": wire, "link": link} for name, wire, link in inputs],
        "outputs": [{"name": wire, "type": wire} for wire in outputs],
    }


def workflow(*nodes, links=()):
    return {"version": 0.4, "nodes": list(nodes), "links": [list(link) for link in links]}


def red_square(*between, links):
    """EmptyImage 1 -> between -> SaveImage 9."""
    return workflow(
        node(1, "EmptyImage", [16, 12, 2, 0xFF0000], outputs=["IMAGE"]),
        *between,
        node(9, "SaveImage", ["red"], inputs=[("images", "IMAGE", links[-1][0])]),
        links=links,
    )


def test_the_pack_loads_without_complaint(comfy_server):
    # "   0.1 seconds: .../custom_nodes/stepvar", with (IMPORT FAILED) before the colon when it could not be loaded
    [line] = [
        line for line in comfy_server.log().splitlines() if " seconds" in line and line.endswith(launch.PACK_NAME)
    ]
    assert "IMPORT FAILED" not in line, comfy_server.log()


def test_the_pack_imports_without_comfyui(pack):
    assert pack.NODE_CLASS_MAPPINGS == {}
    assert (launch.ROOT / pack.WEB_DIRECTORY).is_dir()


def test_the_nodes_of_the_contract_are_there(comfy):
    ours = {
        name
        for name, info in comfy.object_info().items()
        if info["python_module"] == f"custom_nodes.{launch.PACK_NAME}"
    }
    assert {
        "VARModelLoader",
        "VARClassLabel",
        "EmptyVARLatent",
        "StepVARPruning",
        "VARSampler",
        "StepVARMaskOverlay",
        "StepVARReport",
    } <= ours


def test_a_stock_workflow_runs(comfy):
    run = comfy.run(red_square(links=[[1, 1, 0, 9, 0, "IMAGE"]]))
    assert run.executed_nodes == ["1", "9"]
    first, second = comfy.images(run)
    assert first.size == second.size == (16, 12)
    assert first.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    # A saved picture carries the workflow that made it.
    assert json.loads(first.info["workflow"])["nodes"][0]["type"] == "EmptyImage"
    assert comfy.history(run)["status"]["completed"]


def test_reroutes_and_bypassed_nodes_pass_through(comfy):
    run = comfy.run(
        red_square(
            node(2, "Reroute", inputs=[("", "*", 1)], outputs=["IMAGE"]),
            node(3, "ImageInvert", inputs=[("image", "IMAGE", 2)], outputs=["IMAGE"], mode=launch.BYPASS),
            links=[[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"], [3, 3, 0, 9, 0, "IMAGE"]],
        )
    )
    assert run.prompt["9"]["inputs"]["images"] == ["1", 0]


def test_muted_nodes_vanish_with_their_links(comfy):
    graph = red_square(
        node(3, "ImageInvert", inputs=[("image", "IMAGE", 1)], outputs=["IMAGE"], mode=launch.NEVER),
        links=[[1, 1, 0, 3, 0, "IMAGE"], [3, 3, 0, 9, 0, "IMAGE"]],
    )
    with pytest.raises(PromptRefused, match="images") as refusal:
        comfy.run(graph)
    assert list(refusal.value.node_errors) == ["9"]


def test_the_control_after_a_seed_takes_a_place_of_its_own(comfy):
    values = [5, "fixed", 20, 8.0, "euler", "normal", 1.0]
    prompt = launch.to_prompt(workflow(node(1, "KSampler", values)), comfy.object_info())
    assert prompt["1"]["inputs"] == {
        "seed": 5,
        "steps": 20,
        "cfg": 8.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    with pytest.raises(launch.Failure, match="fixed, increment"):
        launch.to_prompt(workflow(node(1, "KSampler", [5, 20, 8.0])), comfy.object_info())


def test_an_unknown_node_is_named(comfy):
    with pytest.raises(launch.Failure, match="'NoSuchNode'"):
        launch.to_prompt(workflow(node(4, "NoSuchNode")), comfy.object_info())


def test_an_error_in_a_node_reaches_the_client(comfy):
    graph = red_square(links=[[1, 1, 0, 9, 0, "IMAGE"]])
    graph["nodes"][-1]["widgets_values"] = ["../../outside"]
    run = comfy.attempt(graph)
    assert run.status == "error"
    assert (run.error.node_id, run.error.node_type) == ("9", "SaveImage")
    assert "outside the output folder" in run.error.message
    assert "Traceback" not in run.error.message and "save_images" in run.error.traceback


def test_the_templates_page_lists_every_workflow(comfy):
    assert sorted(comfy.templates()[launch.PACK_NAME]) == sorted(path.stem for path in WORKFLOWS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_workflow_translates_to_inputs_the_nodes_declare(comfy, path):
    for node_id, entry in comfy.prompt_of(path).items():
        declared = comfy.object_info()[entry["class_type"]]["input"]
        known = declared.get("required", {}) | declared.get("optional", {})
        assert set(entry["inputs"]) <= set(known), node_id
        assert set(declared.get("required", {})) <= set(entry["inputs"]), node_id
