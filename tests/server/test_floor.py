"""The oldest supported ComfyUI passes the same node and workflow tests as the recent one."""

import pytest
from comfy_server import start_comfyui
from test_nodes import *  # noqa: F403
from test_workflows import *  # noqa: F403

import launch

pytestmark = pytest.mark.server
# a minute, and nothing of it hangs on the version
del test_two_models_taking_turns_for_fifty_prompts_leave_memory_flat  # noqa: F821


@pytest.fixture(scope="module")
def comfy_server(tmp_path_factory, unavailable):
    """In place of the recent server, for every test and fixture imported above."""
    comfyui = launch.FLOOR.folder
    if not comfyui.is_dir():
        unavailable("server", f"no ComfyUI {launch.FLOOR.version} here: run 'python3 launch.py test'")
    yield from start_comfyui(comfyui, tmp_path_factory)


def test_it_is_the_version_the_registry_is_told(comfy):
    declared = (launch.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert comfy.server.get("/system_stats")["system"]["comfyui_version"] == launch.FLOOR.version
    assert f'requires-comfyui = ">={launch.FLOOR.version}"' in declared
