"""The code in the documentation runs as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from conftest import EXAMPLES, stacked
from dawn import errors
from dawn.pipeline import Dawn

ROOT = EXAMPLES.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/api.md", "README.md"])
def test_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, with names kept from one to the next, in a folder that has the examples."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert blocks and len(blocks) == text.count("```python")
    (tmp_path / "examples").symlink_to(EXAMPLES, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        # Blank lines in front, so that a traceback names the page's own lines.
        code = "\n" * text[: block.start(1)].count("\n") + block[1]
        exec(compile(code, page, "exec"), names)
    assert not list(tmp_path.rglob(".dawn-*")), "nothing is left behind"


def test_all_errors_are_listed() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.DawnError):
            row = next(
                (line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]), ""
            )
            assert row, f"{name} is not in the table"
            base = kind.__bases__[0].__name__
            assert f"`{base}`" in row.split("|")[2] or base in ("DawnError", "Exception"), row


@pytest.mark.slow
def test_threads_do_not_disturb_each_other(tiny_model: Dawn, speech: Callable, portrait_path: Path) -> None:
    """One model, several videos at a time: each is as if it were made alone."""

    def make(seed: int) -> np.ndarray:
        return stacked(tiny_model(portrait_path, speech(40), seed=seed))

    alone = [make(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all((one == other).all() for one, other in zip(pool.map(make, [0, 1, 2, 3] * 3), alone * 3, strict=True))
