"""Which room may know of which, read from the code itself: imports, and names of families in strings."""

import ast
import re
from pathlib import Path

import pytest

from stepvar_core.families import FAMILIES

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "stepvar_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
SCRIPTS = sorted((ROOT / "web").rglob("*.js"))

# who may never import whom: rooms and files of the core, "families/*" for a family's own folder
WALLS = [
    ("families", "methods"),
    ("methods", "families"),
    ("methods", "planning"),
    ("codecs", "families"),
    ("sampler", "families"),
    ("door", "families"),
    ("memory", "families"),
    ("families/*", "sampler"),  # the loop asks families, never the other way round
    ("families/*", "door"),
    ("families/*", "families/*"),  # one family another
]
HOST = ("comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "server", "nodes", "execution")

# arrows that are still to be written away, (file, what it imports): strict, one that is gone must leave this list too
NOT_YET: set[tuple[str, str]] = set()

DEMO = "stepvar_core/demo/"  # the bundled model, and how it was trained: a VAR from end to end

# strings that hold a family's name and may: by file, with the reason. Strict as well.
ALLOWED = {
    "stepvar_core/checkpoints.py": {"var_wo_ddp": "how a training script wraps its weights"},
    "stepvar_core/families/hart/family.py": {"var_hybrid": "a word of config.json"},
    "stepvar_core/methods/fastvar.py": {
        name: "numbers its paper published, by family" for name in ("infinity", "hart")
    },
    "stepvar_core/methods/lazyvar.py": {
        name: "numbers its paper published, by family" for name in ("infinity", "hart")
    },
    "nodes/host/loading.py": {
        "var": "the pack's folder, models/var",
        "demo_var.safetensors": "the bundled model's file",
    },
    "nodes/host/text/encoders.py": {
        "hart-qwen2": "a widget's choice, which workflows hold by its place",
        "switti-clip": "a widget's choice, which workflows hold by its place",
    },
    "nodes/host/text/qwen2.py": {
        "hart-qwen2": "the type this encoder declares",
        "hart_qwen2": "what tokens go by in the host's prompts",
    },
    "nodes/host/text/clip_pair.py": {
        "switti-clip": "the type this encoder declares",
        "switti_clip": "what tokens go by in the host's prompts",
    },
    "nodes/latents.py": {
        name: "a key of saved LATENT and CONDITIONING" for name in ("var_schedule", "var_codes", "var_labels")
    },
}


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> list[tuple[str, ...]]:
    """What a file imports, as paths from the repository's root, for example ("stepvar_core", "families", "base");
    with the imported names, which may be modules too."""
    package, found = path.relative_to(ROOT).parts[:-1], []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = (*start, *(node.module.split(".") if node.module else ()))
            found += [(*module, alias.name) for alias in node.names]
    return found


def is_in(parts: tuple[str, ...], room: str) -> bool:
    """Whether a module of the core lies in a room: "families" is the whole room, "families/*" a folder in it."""
    names = room.split("/")
    if len(names) == 1:
        return parts[:1] == (room,)
    return parts[:1] == (names[0],) and len(parts) > 2 and (ROOT / "stepvar_core" / names[0] / parts[1]).is_dir()


def arrows() -> set[tuple[str, str]]:
    """(file, imported module) through a wall."""
    found = set()
    for path in CORE:
        parts = path.relative_to(ROOT / "stepvar_core").with_suffix("").parts
        for module in imports(path):
            target = module[1:]
            if module[0] != "stepvar_core":
                continue
            for source, wall in WALLS:
                is_own = source == wall and parts[:2] == target[:2]
                if is_in(parts, source) and is_in(target, wall) and not is_own:
                    found.add((where(path), "/".join(module)))
    return found


def test_rooms_keep_to_themselves():
    assert arrows() == NOT_YET


def test_a_familys_folder_is_opened_by_the_list_of_families_alone():
    for family in FAMILIES:
        own = f"stepvar_core/families/{family.name}/"
        opened = {where(p) for p in (*CORE, *NODES) for m in imports(p) if "/".join(m[:3]) + "/" == own}
        users = {file for file in opened if not file.startswith((own, DEMO))}
        assert users == {"stepvar_core/families/__init__.py"}, f"{family.name}: {sorted(users)}"


def test_the_core_never_imports_the_host():
    reached = {(where(path), module[0]) for path in CORE for module in imports(path) if module[0] in (*HOST, "web")}
    assert not reached


def test_only_nodes_host_imports_the_host():
    """`nodes` is a module of the host's; ours is a package, and imports its own files relatively."""
    reached = {(where(p), m[0]) for p in NODES for m in imports(p) if m[0] in set(HOST) - {"nodes"}}
    assert reached and all(file.startswith("nodes/host/") for file, _ in reached)


def test_the_walls_stand_where_something_is():
    """A renamed room would leave its wall guarding nothing."""
    rooms = {room.removesuffix("/*") for wall in WALLS for room in wall}
    present = {path.name.removesuffix(".py") for path in (ROOT / "stepvar_core").iterdir()}
    assert rooms <= present


# words ---------------------------------------------------------------------------------------------


def python_strings(path: Path) -> set[str]:
    """String constants of a file without docstrings, pieces of f-strings included."""
    tree, docs = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docs |= {id(first.value) for first in node.body[:1] if isinstance(first, ast.Expr)}
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs)
    return {node.value for node in nodes if isinstance(node.value, str)}


def script_strings(path: Path) -> set[str]:
    """What stands between quotes in a script, comments taken out."""
    code = re.sub(r"/\*.*?\*/|(?<!:)//[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    literals = re.finditer(r"'((?:[^'\\\n]|\\.)*)'|\"((?:[^\"\\\n]|\\.)*)\"|`((?:[^`\\]|\\.)*)`", code)
    return {next(group for group in match.groups() if group is not None) for match in literals}


def names_a_family(text: str, family: str) -> bool:
    """Whether a string is a family's name, or an identifier or path made with it. Sentences may speak of families."""
    return not re.search(r"\s", text) and re.search(rf"(?<![A-Za-z]){family}(?![A-Za-z])", text) is not None


def spoken(path: Path, families: list[str]) -> set[str]:
    strings = script_strings(path) if path.suffix == ".js" else python_strings(path)
    return {text for text in strings for family in families if names_a_family(text, family)}


@pytest.mark.parametrize("path", [*CORE, *NODES, *SCRIPTS], ids=where)
def test_no_family_is_named_outside_its_folder(path):
    """What depends on the family is asked of its declaration or its model."""
    if where(path).startswith(DEMO):
        return
    others = [family.name for family in FAMILIES if not where(path).startswith(f"stepvar_core/families/{family.name}/")]
    unasked = spoken(path, others) - ALLOWED.get(where(path), {}).keys()
    assert not unasked, f"{where(path)} names a family: {sorted(unasked)}"


def test_what_is_allowed_is_there():
    for file, words in ALLOWED.items():
        strings = python_strings(ROOT / file)
        assert words.keys() <= strings, f"{file} no longer says {sorted(words.keys() - strings)}"


def test_the_guard_sees_what_it_looks_for(tmp_path):
    script, code = tmp_path / "a.js", tmp_path / "a.py"
    script.write_text('// "hart"\nconst a = family === "hart" ? `x` : \'of hart\';', encoding="utf-8")
    code.write_text('"""hart"""\nx = "hart" if f"hart_{y}" else "the hart family"', encoding="utf-8")
    assert spoken(script, ["hart"]) == {"hart"} and spoken(code, ["hart"]) == {"hart", "hart_"}
    assert not names_a_family("chart", "hart") and names_a_family("models/hart", "hart")
