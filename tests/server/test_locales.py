"""Translations name every input and output of every node, and nothing that is gone."""

import json
import re

import pytest

import launch

pytestmark = pytest.mark.server

LOCALES = sorted((launch.ROOT / "locales").glob("*/nodeDefs.json"))


@pytest.mark.parametrize("path", LOCALES, ids=lambda p: p.parent.name)
def test_a_translation_is_complete(comfy, path):
    translated = json.loads(path.read_text(encoding="utf-8"))
    ours = {
        name: info
        for name, info in comfy.object_info().items()
        if info["python_module"] == f"custom_nodes.{launch.PACK_NAME}"
    }
    assert set(translated) == set(ours)
    for name, info in ours.items():
        entry = translated[name]
        inputs = [key for group in ("required", "optional") for key in info["input"].get(group, {})]
        assert set(entry["inputs"]) == set(inputs), name
        assert set(entry["outputs"]) == {str(i) for i in range(len(info["output"]))}, name
        assert entry["display_name"] and entry["description"]
        assert all(
            part["name"] and part["tooltip"] for part in (*entry["inputs"].values(), *entry["outputs"].values())
        ), name


def test_the_server_hands_translations_out(comfy):
    served = comfy.server.get("/i18n")
    for path in LOCALES:
        nodes = json.loads(path.read_text(encoding="utf-8"))
        assert served[path.parent.name]["nodeDefs"]["VARSampler"] == nodes["VARSampler"]


def test_every_node_explains_itself(comfy):
    """A tooltip on every input and output, a description, a help page with a picture."""
    for name, info in comfy.object_info().items():
        if info["python_module"] != f"custom_nodes.{launch.PACK_NAME}":
            continue
        assert info["description"], name
        for group in ("required", "optional"):
            for key, spec in info["input"].get(group, {}).items():
                assert spec[1].get("tooltip"), f"{name}.{key}"
        assert all(info["output_tooltips"]), name
        page = (launch.ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {info['display_name']}\n"), name
        pictures = re.findall(r"!\[.+?\]\((.+?)\)", page)
        assert pictures and all((launch.ROOT / "web" / "docs" / picture).is_file() for picture in pictures), name
