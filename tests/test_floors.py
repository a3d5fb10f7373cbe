"""The shape of the tree: imports only go down, files and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dawn

ROOT = Path(dawn.__file__).parent
FLOORS = (
    {"errors", "structs", "config", "landmarks", "loopback", "costs", "parallel"},
    {"media", "checkpoint", "progress", "motion_file", "models", "diffusion"},
    {"preprocess", "generation", "composite"},
    {"paper_generation"},
    {"pipeline", "evaluation", "training", "convert"},
    {"preflight", "plot", "batch", "editing"},
    {"cli", "cli_arguments", "cli_research", "cli_shared", "doctor", "serving", "studio"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
NEIGHBOURS_ALLOWED = {("evaluation", "pipeline")}
"""Rooms on one floor do not know each other, but the measures may use the product. The nouns of floor 0 may too."""
OWN_NAMES = ("__version__", "DEFAULT_PRESET")
"""Of the package itself, not of a room."""
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
SOURCES = sorted(ROOT.rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in SOURCES]


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported_rooms(tree: ast.AST) -> Iterator[str]:
    """Rooms of this package that a file imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "dawn" and len(parts) > 1 and parts[1] not in OWN_NAMES:
                yield parts[1]


def offences(room: str, tree: ast.AST) -> list[str]:
    found = []
    for other in imported_rooms(tree):
        assert other in FLOOR_OF, f"{other} is on no floor; give it one in {Path(__file__).name}"
        if other == room or FLOOR_OF[other] < FLOOR_OF[room] or FLOOR_OF[other] == FLOOR_OF[room] == 0:
            continue
        # The commands share the top floor: cli calls the others.
        if (room, other) in NEIGHBOURS_ALLOWED or room.startswith("cli"):
            continue
        found.append(f"{room} (floor {FLOOR_OF[room]}) imports {other} (floor {FLOOR_OF[other]})")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert not list(imported_rooms(ast.parse(path.read_text())))
        return
    assert room in FLOOR_OF, f"{room} is on no floor; give it one"
    assert not offences(room, ast.parse(path.read_text()))


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length < MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("models", "from dawn.pipeline import Dawn"),
        ("media", "def f():\n    import dawn.models.lite.lfg"),
        ("training", "from dawn import evaluation"),
        ("preprocess", "from dawn.models.attention import chunks"),
    ],
)
def test_the_walk_sees_offences(room: str, code: str) -> None:
    assert offences(room, ast.parse(code))
    assert not offences("evaluation", ast.parse("from dawn.pipeline import Dawn\nfrom dawn import media, __version__"))


def test_only_the_command_line_prints() -> None:
    for path in SOURCES:
        if not path.name.startswith("cli"):
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path
