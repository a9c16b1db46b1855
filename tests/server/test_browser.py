"""Every workflow of the pack opens in the real editor, in both of its renderers."""
import json

import pytest

import launch

pytestmark = [pytest.mark.server, pytest.mark.browser]

WORKFLOWS = sorted((launch.ROOT / "workflows").glob("*.json"))
RENDERERS = ["classic", "vue"]


@pytest.fixture(scope="module", params=RENDERERS)
def opened(request, frontend):
    """Workflow name -> drive.mjs' result, from one visit to the editor per renderer."""
    jobs = [{"name": path.stem, "workflow": json.loads(path.read_text(encoding="utf-8"))} for path in WORKFLOWS]
    demo = json.loads(launch.DEMO_WORKFLOW.read_text(encoding="utf-8"))
    jobs += [{"name": "Run pressed", "workflow": demo, "queue": True, "evaluate": "return Object.keys(app.nodeOutputs).length"}]
    return {result["name"]: result for result in frontend.drive(request.param, jobs)}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_opens_without_missing_nodes(opened, path):
    result = opened[path.stem]
    assert result["nodes"] == len(json.loads(path.read_text(encoding="utf-8"))["nodes"])
    assert result["missing"] == []
    assert [text for text in result["dialogs"] if "missing" in text.lower()] == []
    assert result["packErrors"] == []
    assert [stack for stack in result["pageErrors"] if f"/extensions/{launch.PACK_NAME}/" in stack] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_editor_queues_what_the_translator_makes(opened, comfy, path):
    """The prompt of a workflow is the editor's, input for input, so the demo and the tests run what users run."""
    by_editor = {node_id: {"class_type": node["class_type"], "inputs": node["inputs"]}
                 for node_id, node in opened[path.stem]["prompt"].items()}
    by_translator = {node_id: {"class_type": node["class_type"], "inputs": node["inputs"]}
                     for node_id, node in comfy.prompt_of(path).items()}
    assert by_editor == by_translator


def test_the_demo_runs_from_the_editor(opened):
    result = opened["Run pressed"]
    assert (result["ending"], result["error"]) == ("execution_success", None)
    assert result["value"] > 0, "no node shows an output"
    assert result["packErrors"] == []
