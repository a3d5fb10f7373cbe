"""The documents against the repository: sizes, links, width of lines, the map of the tree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import dawn

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "dawn"
OTHER_WINGS = ("apps", "research")
MAX_README_BYTES = 6000
MAX_TEASER_BYTES = 3_000_000
MAX_COLUMNS = 100
PAGES = sorted(
    page
    for pattern in ("*.md", ".github/*.md", "docs/*.md", "examples/**/*.md", "src/**/*.md", "tests/**/*.md")
    for page in ROOT.glob(pattern)
)
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^\s*```.*?^\s*```\s*$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names under which GitHub shows the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(text: str, page: Path) -> list[str]:
    """Links of ``text`` to files of the repository, or to headings in them, that do not exist."""
    broken = []
    for link in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def long_lines(text: str) -> Iterator[str]:
    """Lines of prose over ``MAX_COLUMNS``. Code, tables, headings and pictures cannot be wrapped."""
    for line in FENCE.sub("", text).splitlines():
        if len(line) > MAX_COLUMNS and not line.startswith(("    ", "#", "![")) and not line.lstrip().startswith("|"):
            yield line


def mapped(text: str) -> list[str]:
    """Rooms and modules that the map of docs/architecture.md names, in its order."""
    return ROW.findall(text.partition("\n## The map\n")[2].partition("\n## ")[0])


def on_disk() -> set[str]:
    """Every room with a slash, every module of the product, and the modules of the root with the door."""
    rooms = {f"{path.parent.relative_to(PACKAGE).as_posix()}/" for path in PACKAGE.rglob("*/__init__.py")}
    modules = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    product = {path.as_posix() for path in modules if path.parts[0] not in OTHER_WINGS}
    return rooms | product | {"__init__.py"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) < MAX_README_BYTES


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_names_the_two_commands(command: str) -> None:
    target = command.removeprefix("make ")
    assert re.search(rf"^    {command}\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken_links(page.read_text(encoding="utf-8"), page)


def test_broken_links_are_seen() -> None:
    page = ROOT / "README.md"
    text = "[a](docs/nothing.md) [b](docs/cli.md#nothing) [c](docs/cli.md#the-commands) [d](https://example.org/x)"
    assert broken_links(text, page) == ["docs/nothing.md", "docs/cli.md#nothing"]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_prose_is_wrapped(page: Path) -> None:
    assert not list(long_lines(page.read_text(encoding="utf-8")))


def test_long_prose_is_seen() -> None:
    long = "word " * 30
    assert list(long_lines(f"{long}\n- {long}\n| {long} |\n    {long}\n```\n{long}\n```\n")) == [long, f"- {long}"]


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in LINK.findall(index.read_text(encoding="utf-8"))}
    missing = {page.name for page in (ROOT / "docs").glob("*.md") if page != index and page not in linked}
    assert not missing, "give them a line in docs/README.md"


def test_the_map_is_the_disk() -> None:
    names = mapped((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert len(names) == len(set(names)), "a name stands twice in the map"
    missing, gone = on_disk() - set(names), set(names) - on_disk()
    assert not missing and not gone, f"docs/architecture.md: not in the map {missing}; not on the disk {gone}"


def test_a_wrong_map_is_seen() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    without = text.replace("| `errors.py` |", "| `mistakes.py` |")
    assert set(mapped(without)) ^ set(mapped(text)) == {"errors.py", "mistakes.py"}
    assert {"media/", "research/training/lite/", "engines/rules.py", "__init__.py"} <= on_disk()


def test_the_teaser_moves_and_is_light() -> None:
    path = ROOT / "docs" / "teaser.webp"
    assert path.stat().st_size < MAX_TEASER_BYTES
    assert f"](docs/{path.name})" in (ROOT / "README.md").read_text(encoding="utf-8")
    with Image.open(path) as teaser:
        assert teaser.n_frames >= 36 and teaser.width >= 3 * 200
        assert "AI-generated" in teaser.getexif()[0x010E]


def test_the_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^version: {re.escape(dawn.__version__)}$", citation, re.MULTILINE)
