"""The laws of the house: which file may import which, what opens files, how large things get, what the door shows."""

from __future__ import annotations

import ast
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import dawn

ROOT = Path(dawn.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in SOURCES]
WINGS = ("apps", "research")
PURE = ("models", "diffusion", "face")
"""Rooms that open no files."""
OPENERS = {
    "open",
    "read_text",
    "read_bytes",
    "write_text",
    "write_bytes",
    "load_file",
    "save_file",
    "safe_open",
    "files",
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_ROOT_MODULES = 10
MAX_ROOMS = 12
DOOR = ["DEFAULT_PRESET", "Dawn", "Face", "Motion", "Speech", "Video", "__version__", "errors", "load"]


def module_of(path: Path) -> str:
    parts = ("dawn", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imported_by(tree: ast.AST) -> Iterator[str]:
    """Modules of the package that a file imports, also inside functions and for types only."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name not in MODULES and "." in name:
                name = name.rpartition(".")[0]
            if name in MODULES:
                yield name


GRAPH = {name: set(imported_by(ast.parse(path.read_text()))) - {name, "dawn"} for name, path in MODULES.items()}
GRAPH["dawn"] = set()  # the door imports when it is asked


def wing_of(module: str) -> str:
    """The wing that a module lies in, or "product"."""
    parts = module.split(".")
    if module == "dawn.__main__":
        return "apps"
    return parts[1] if len(parts) > 1 and parts[1] in WINGS else "product"


def offences(module: str, imported: set[str]) -> list[str]:
    """Imports that a wing must not make: apps may use all, research the product, the product itself."""
    allowed = {"apps": {"apps", "research", "product"}, "research": {"research", "product"}, "product": {"product"}}
    return [f"{module} imports {other}" for other in sorted(imported) if wing_of(other) not in allowed[wing_of(module)]]


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Circles of imports, each named once."""
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for other in sorted(graph[module]):
                visit(other, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_wings_keep_to_themselves(module: str) -> None:
    assert not offences(module, GRAPH[module])


def test_no_circles() -> None:
    assert circles(GRAPH) == []


def test_the_laws_can_be_broken() -> None:
    assert offences("dawn.checks.output", {"dawn.research.evaluation.bench"})
    assert offences("dawn.research.training.loop", {"dawn.apps.cli.main"})
    assert not offences("dawn.apps.cli.main", {"dawn.research.training.loop", "dawn.pipeline"})
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a -> b -> c -> a"]
    late = ast.parse("def f():\n    from dawn.pipeline import Dawn\n    import dawn.models.lite.lfg")
    assert set(imported_by(late)) == {"dawn.pipeline", "dawn.models.lite.lfg"}
    assert opened(ast.parse("def f(p):\n    return p.read_text(), load_file(p)")) == {"read_text", "load_file"}


def opened(tree: ast.AST) -> set[str]:
    """Calls that open files."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    return names & OPENERS


@pytest.mark.parametrize("path", [p for p in SOURCES if p.relative_to(ROOT).parts[0] in PURE], ids=str)
def test_networks_and_geometry_open_no_files(path: Path) -> None:
    assert not opened(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


def test_the_ground_is_small() -> None:
    modules = [path for path in ROOT.glob("*.py") if path.stem not in ("__init__", "__main__")]
    rooms = [path for path in ROOT.iterdir() if (path / "__init__.py").is_file()]
    assert len(modules) <= MAX_ROOT_MODULES and len(rooms) <= MAX_ROOMS


def test_only_programs_print() -> None:
    for path in SOURCES:
        if path.relative_to(ROOT).parts[:2] != ("apps", "cli"):
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


def test_presets_are_told_apart_by_their_kind() -> None:
    """No ``isinstance`` on presets, bundles or engines in the product."""
    kinds = {"LitePresetConfig", "PaperPresetConfig", "LiteBundle", "PaperBundle", "LiteEngine", "PaperEngine"}
    for name, path in MODULES.items():
        if wing_of(name) != "product":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                asked = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                assert not asked & kinds, f"{name}: {ast.unparse(node)}"


# ------------------------------------------------------------------------------------------------------------ the door


def test_the_door_shows_these_names() -> None:
    assert dir(dawn) == sorted(dawn.__all__) == sorted(DOOR)
    for name in DOOR:
        assert getattr(dawn, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Down'"):
        dawn.Down  # noqa: B018


def test_import_dawn_loads_nothing_heavy() -> None:
    code = "import sys, dawn; print([m for m in ('torch', 'numpy', 'av', 'pydantic', 'mediapipe') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("dawn.generation", "GenerateOptions"),
        ("dawn.motion_file", "load_motion"),
        ("dawn.preflight.check", "check_inputs"),
        ("dawn.preflight.findings", "Finding"),
        ("dawn.preflight.seeds", "pick_seed"),
        ("dawn.preflight.selfcheck", "check_output"),
    ],
)
def test_paths_of_the_last_release_are_forwarded(old: str, name: str) -> None:
    for module in [module for module in sys.modules if module in dawn._MOVED]:
        del sys.modules[module]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = getattr(import_module(old), name)
    assert any(old in str(w.message) and w.category is DeprecationWarning for w in caught)
    assert found is getattr(import_module(dawn._MOVED[old]), name)
