"""The description of the service against the service: whatever it says may be sent is answered as it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402

from dawn.media import VideoWriter, read_speech  # noqa: E402
from dawn.structs import Motion  # noqa: E402
from serving_client import ended, serving  # noqa: E402

FRAMES = 5


class Sketch:
    """Stands for a model, and for its video: grey frames at once, so that no time goes into drawing."""

    def __call__(self, portrait: Path, speech: Path, *, progress: Any, allow_silence: bool, **options: Any) -> Sketch:
        video = Sketch()
        video.speech = read_speech(speech, allow_silence=allow_silence)
        return video

    def __init__(self) -> None:
        self.motion = Motion(*(np.zeros((FRAMES, n), np.float32) for n in (6, 2, 4)))
        self.size_px = self.width = self.height = 64
        self.full = None
        self.watch = SimpleNamespace(stage=lambda name: self, seconds={"decode": 0.1})

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...

    def __len__(self) -> int:
        return FRAMES

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from np.full((FRAMES, 64, 64, 3), 128, np.uint8)

    def save(self, path: Path, stream: BinaryIO) -> None:
        with VideoWriter(path, self.width, self.height, self.speech, stream=stream) as writer:
            for frame in self:
                writer.write(frame)

    def checked_size(self, size: int | None, frame: str) -> int:
        return size or 64


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> Iterator[Any]:
    """The description as the service gives it out, and the id of a finished job."""
    with serving(Sketch(), tmp_path_factory.mktemp("serve") / "data", max_queue=1000) as server:

        def finished() -> str:
            number = server.send(files).json()["id"]
            assert ended(server.client, number)["state"] == "done"
            return number

        yield SimpleNamespace(
            schema=schemathesis.openapi.from_url(f"{server.client.base_url}/openapi.json"), job=finished
        )


OPERATIONS = (
    "GET /health",
    "GET /metrics",
    "POST /v1/generate",
    "GET /v1/jobs",
    "GET /v1/jobs/{id}",
    "DELETE /v1/jobs/{id}",
    "GET /v1/jobs/{id}/result",
    "GET /v1/jobs/{id}/motion",
)


def test_all_operations_are_tried(described: Any) -> None:
    assert {operation.ok().label for operation in described.schema.get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_described(described: Any, files: dict[str, bytes], label: str, mode: Any) -> None:
    operation = next(found.ok() for found in described.schema.get_all_operations() if found.ok().label == label)
    positive, tried, job = mode == schemathesis.GenerationMode.POSITIVE, [], described.job()

    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def answer(case: Any) -> None:
        if positive and isinstance(case.body, dict):
            # What is a picture or a sound no schema can say.
            case.body.update(files)
        if positive and "id" in case.path_parameters and len(tried) % 2 == 0:
            case.path_parameters["id"] = job
        tried.append(case.call_and_validate().status_code)

    try:
        answer()
    except Unsatisfiable:
        assert (
            mode == schemathesis.GenerationMode.NEGATIVE
            and not operation.body
            and label in ("GET /health", "GET /metrics")
        )
    else:
        assert not positive or min(tried) < 300, tried
        assert positive or max(tried) >= 400, tried
