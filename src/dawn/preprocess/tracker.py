"""Finds faces and their landmarks in pictures (MediaPipe Face Landmarker, model file in ``assets``)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.resources import files
from types import TracebackType
from typing import Any

import numpy as np

from dawn.errors import CheckpointError
from dawn.structs import LANDMARK_COUNT, ImageArray, TrackedFace

WARM_UP_SIDE_PX = 64
LANDMARKER_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"


def _landmarker_model() -> bytes:
    data = files("dawn").joinpath("assets/face_landmarker.task").read_bytes()
    if hashlib.sha256(data).hexdigest() != LANDMARKER_SHA256:
        raise CheckpointError("assets/face_landmarker.task is damaged (its sha256 differs): reinstall the package")
    return data


def _mediapipe() -> Any:
    """The package, imported late: other commands need not pay for loading the native library.

    In a thread of its own, because one of its modules keeps an error that it met at import (a machine without PortAudio),
    and with the error the stack it came from: all variables of our callers, a recording's features among them, for good.
    """
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(import_module, "mediapipe").result()


@contextmanager
def _native_stderr_hushed() -> Iterator[None]:
    """MediaPipe's native code writes to file descriptor 2 whatever one sets; failures come as exceptions besides."""
    try:
        kept = os.dup(2)
    except OSError:  # no stderr at all
        yield
        return
    try:
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class FaceTracker:
    """Face landmarks picture by picture. Use as a context manager: the native task must be closed.

    Every picture is treated on its own, so the result does not depend on the order or on the number of workers.
    """

    def __init__(self, max_faces: int = 1, min_confidence: float = 0.5) -> None:
        mp = _mediapipe()
        vision = mp.tasks.vision
        options = vision.FaceLandmarkerOptions(
            base_options=mp.tasks.BaseOptions(model_asset_buffer=_landmarker_model()),
            running_mode=vision.RunningMode.IMAGE,
            num_faces=max_faces,
            min_face_detection_confidence=min_confidence,
            output_face_blendshapes=True,
        )
        self._mp: Any = mp
        with _native_stderr_hushed():
            self._task: Any = vision.FaceLandmarker.create_from_options(options)
            # The graph's threads are still starting, and writing; the first picture waits for them.
            self.faces(np.zeros((WARM_UP_SIDE_PX, WARM_UP_SIDE_PX, 3), np.uint8))

    def __enter__(self) -> FaceTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._task.close()

    def faces(self, image: ImageArray) -> list[TrackedFace]:
        """All faces in the picture, largest first.

        image: (H, W, 3) uint8 RGB.
        """
        height, width = image.shape[:2]
        # mp.Image reads strided memory as if it were dense, silently.
        picture = self._mp.Image(image_format=self._mp.ImageFormat.SRGB, data=np.ascontiguousarray(image))
        result = self._task.detect(picture)
        found = []
        for points, scores in zip(result.face_landmarks, result.face_blendshapes, strict=True):
            # z comes in units of the picture's width, like x.
            array = np.array([(p.x * width, p.y * height, p.z * width) for p in points], dtype=np.float32)
            assert array.shape == (LANDMARK_COUNT, 3)
            found.append(TrackedFace(array, np.array([s.score for s in scores], dtype=np.float32)))
        return sorted(found, key=lambda face: -face.box.height * face.box.width)
