"""Options are declared once, and messages name them as the surface calls them."""

from __future__ import annotations

import argparse
import ast
import csv
import importlib.util
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dawn
from conftest import EXAMPLES, three_faces, write_wav
from dawn.apps import surfaces
from dawn.apps.batch.batch import run_batch
from dawn.apps.batch.jobs import Row
from dawn.apps.cli.arguments import add_generate
from dawn.apps.cli.main import main
from dawn.apps.server_settings import ServerSettings
from dawn.apps.serving.settings import ServeSettings
from dawn.apps.studio.settings import StudioSettings
from dawn.config import PaperSamplerConfig, Precision, SamplerConfig
from dawn.errors import NAMED_OPTION, SeveralFacesError, missing_extra
from dawn.options import (
    GenerateOptions,
    VideoOptions,
    option,
    options_of,
)
from dawn.preprocess.portrait import choose_face
from dawn.structs import Box, TrackedFace

ROOT = EXAMPLES.parent
SOURCES = Path(dawn.__file__).parent
OPTIONS = tuple(options_of(VideoOptions))
SEVERAL = "2 faces were found: choose one with `face=N` (from left to right) or `face='largest'`"
SILENT = "x.wav is silent throughout: record it again; or accept it: `allow_silence=True`"


def generate_flags() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser()
    add_generate(parser)
    return {action.dest: action for action in parser._actions}


# ------------------------------------------------------------------------------------------------------ declarations


def test_every_option_is_declared_whole() -> None:
    for told in OPTIONS:
        assert told.words and told.words[0].islower() and not told.words.endswith("."), told.name
        assert told.default is not None or told.control.unset or told.name == "face"
    assert option("pose_scale").limits == "0 to 3" and option("seed").limits == ""
    assert option("face").kind == "whole number or largest" and option("guidance").default_words == "the preset's own"


@pytest.mark.parametrize("told", OPTIONS, ids=[told.name for told in OPTIONS])
def test_flags_are_made_of_the_declarations(told: Any) -> None:
    flag = generate_flags()[told.name]
    assert flag.option_strings == [told.flag] and str(flag.help).startswith(told.words)
    assert flag.default in (None, False), "the default is the library's"
    assert told.limits in str(flag.help) and told.default_words in str(flag.help)


def test_columns_and_settings_repeat_nothing() -> None:
    assert all(Row.model_fields[told.name].description == told.words for told in OPTIONS)
    for kind in (ServeSettings, StudioSettings):
        for shared in options_of(ServerSettings):
            (own,) = options_of(kind, shared.name)
            assert (own.low, own.high, own.number) == (shared.low, shared.high, shared.number), shared.name
        assert all(told.words for told in options_of(kind))


def test_what_other_rooms_know_is_the_same() -> None:
    """Ranges of a preset's own defaults, and sizes that the pipeline takes."""
    for sampler in (SamplerConfig, PaperSamplerConfig):
        for (own,) in ([*options_of(sampler, "steps")], [*options_of(sampler, "guidance")]):
            assert (own.low, own.high) == (option(own.name).low, option(own.name).high)
    assert option("precision").choices == Precision.__args__  # type: ignore[attr-defined]
    assert option("sampler").choices == next(options_of(PaperSamplerConfig, "kind")).choices


def test_tables_of_the_documentation_are_up_to_date() -> None:
    pytest.importorskip("starlette")
    place = ROOT / "tools" / "make_option_tables.py"
    spec = importlib.util.spec_from_file_location("make_option_tables", place)
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    pages = dict(tool.renewed())
    assert {"api.md", "http.md", "studio.md"} < {path.name for path in pages}
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python tools/make_option_tables.py"


def test_the_form_is_made_of_the_declarations() -> None:
    pytest.importorskip("starlette")
    from dawn.apps.serving.uploads import form_schema

    fields = form_schema()["properties"]
    assert set(fields) == {told.name for told in OPTIONS} | {"portrait", "speech"}
    for told in OPTIONS:
        field = fields[told.name]
        (number, *_) = [part for part in field.get("anyOf", [field]) if part.get("type") in ("integer", "number")] or [
            {}
        ]
        assert field["description"] == told.words and field["default"] == told.default
        assert (number.get("minimum"), number.get("maximum")) == (told.low, told.high)


# ---------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("surface", "several", "silent"),
    [
        (
            surfaces.command_line(()),
            "with --face N (from left to right) or --face largest",
            "accept it: --allow-silence",
        ),
        (surfaces.FORM, "with face=N (from left to right) or face=largest", "accept it: allow_silence=true"),
        (surfaces.TABLE, "with face=N (from left to right) or face=largest", "accept it: allow_silence=true"),
        (surfaces.PAGE, "with “Which face” (from left to right) or “Which face”", ": record it again"),
    ],
    ids=["command line", "form", "table", "page"],
)
def test_each_surface_has_its_own_words(surface: Any, several: str, silent: str) -> None:
    assert surface.reworded(SEVERAL).endswith(several)
    assert surface.reworded(SILENT).endswith(silent)
    for plain in ("'a; b.png' is no picture; give another", "the file `face of anna`.png; `none` at all"):
        assert surface.reworded(plain) == plain
    assert surface.reworded(surface.reworded(SEVERAL)) == surface.reworded(SEVERAL)


def test_a_flag_that_only_this_command_has() -> None:
    message = "give another folder with `data`, or `token_file='a b'`, or `port=0`"
    assert surfaces.command_line(["data", "token_file", "port"]).reworded(message) == (
        "give another folder with --data, or --token-file 'a b', or --port 0"
    )
    assert surfaces.command_line(()).reworded(message) == message


def test_errors_name_their_option() -> None:
    faces = [TrackedFace(np.zeros((478, 3), np.float32), Box(x, 0, x + 50, 50)) for x in (0, 100)]
    with pytest.raises(SeveralFacesError) as refused:
        choose_face(faces, None)
    assert refused.value.option == "face" and "`face=N`" in str(refused.value)
    carried = pickle.loads(pickle.dumps(refused.value))
    assert str(carried) == str(refused.value) and carried.option == "face"
    assert missing_extra("ray", "ray").option is None


def test_a_missing_package_is_installed_from_here() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    used = {
        (call.args[0], call.args[1].value)  # type: ignore[attr-defined]
        for path in SOURCES.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "missing_extra"
    }
    assert len(used) >= 7
    for _, extra in used:
        assert re.search(rf"^{extra} = \[", text, re.MULTILINE), extra
        assert f"pip install -e '.[{extra}]'" in str(missing_extra("x", extra))
    assert not [path for path in SOURCES.rglob("*.py") if '"dawn[' in path.read_text()]


def said(path: Path) -> Iterator[str]:
    """Texts of a file that are no docstrings, what is put into them as X."""
    tree = ast.parse(path.read_text())
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    inside |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCES)))
def test_only_the_command_line_speaks_of_flags(path: Path) -> None:
    if "cli" in path.relative_to(SOURCES).parts:
        return
    known = {told.name for kind in (VideoOptions, ServeSettings, StudioSettings) for told in options_of(kind)}
    known |= {"audio", "out", "shares", "retry_failed"}
    for text in said(path):
        assert not re.search(r"(^|[^-\w<!])--[a-z]", text), text
        assert {name for name, _ in NAMED_OPTION.findall(text)} <= known, text


# ---------------------------------------------------------------------------------------------------- through surfaces


@pytest.fixture
def pair(tmp_path: Path, portrait_path: Path) -> tuple[Path, Path]:
    """A picture with three faces and a silent recording."""
    return three_faces(tmp_path, portrait_path), write_wav(tmp_path / "q.wav", np.zeros(16_000), 16_000)


def test_the_command_line_names_flags(pair: tuple[Path, Path], tiny_preset: Path, capfd: Any) -> None:
    assert main(["check", *map(str, pair), "--preset", str(tiny_preset)]) == 2
    printed = capfd.readouterr().out
    assert "choose one with --face N" in printed and "accept it: --allow-silence" in printed and "`" not in printed


def test_a_table_names_columns(pair: tuple[Path, Path], tiny_preset: Path, tmp_path: Path) -> None:
    with (tmp_path / "jobs.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("portrait", "speech", "allow_silence"))
        lines.writerow((*(path.name for path in pair), "true"))
        lines.writerow((*(path.name for path in pair), "false"))
    several, silent = run_batch(tmp_path / "jobs.csv", tmp_path / "out", str(tiny_preset), "cpu")
    assert several.error and "choose one with face=N" in several.error
    assert silent.error and silent.error.endswith("accept it: allow_silence=true")


def test_no_value_given_is_no_value_sent() -> None:
    parser = argparse.ArgumentParser()
    add_generate(parser)
    from dawn.apps.cli.arguments import video_options

    assert video_options(parser.parse_args(["x.png", "x.wav", "-o", "x.mp4"])) == {}
    given = ["--pose-scale", "0", "--seed", "0", "--guidance", "0", "--still", "--face", "largest"]
    assert video_options(parser.parse_args(["x.png", "x.wav", "-o", "x.mp4", *given])) == {
        "pose_scale": 0,
        "seed": 0,
        "guidance": 0,
        "still": True,
        "face": "largest",
    }
    assert GenerateOptions(pose_scale=0).pose_scale == 0
