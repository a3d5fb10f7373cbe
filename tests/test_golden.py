"""What the product did when the golden data were made, it still does. ``golden_net.py`` says what is compared and how.

Where a change is meant, ``python tools/make_golden.py`` writes the data anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from golden_net import (
    CASES,
    GOLDEN,
    Case,
    help_texts,
    motion_faults,
    service_description,
    sheet,
    sheet_faults,
    table_faults,
    tables,
    video,
)

Make = Callable[[Case], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes the video of a case, once."""
    folder = tmp_path_factory.mktemp("speech")
    return cache(lambda case: video(case, folder))


def none(faults: list[str]) -> None:
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


@pytest.mark.parametrize("case", [case for case in CASES if case.size], ids=lambda case: case.motion)
def test_motion(case: Case, made: Make) -> None:
    none(motion_faults(case.motion, made(case), json.loads((GOLDEN / f"{case.motion}.json").read_text())))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_frames(case: Case, made: Make) -> None:
    with Image.open(GOLDEN / f"{case.name}.png") as kept:
        none(sheet_faults(case, sheet(case, made(case)), np.asarray(kept)))


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse of this Python lays help out otherwise")
def test_help() -> None:
    kept = {path.stem: path.read_text() for path in (GOLDEN / "help").glob("*.txt")}
    texts = help_texts()
    assert texts.keys() == kept.keys()
    for command, text in texts.items():
        assert text == kept[command], command


def test_description_of_the_service(tmp_path: Path) -> None:
    for package in ("fastapi", "prometheus_client", "python_multipart"):
        pytest.importorskip(package)
    assert service_description(tmp_path) == (GOLDEN / "openapi.json").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tables(tmp_path: Path) -> None:
    made = tables(tmp_path)
    none([fault for name, table in made.items()
          for fault in table_faults(name, table, json.loads((GOLDEN / f"table_{name}.json").read_text()))])  # fmt: skip
