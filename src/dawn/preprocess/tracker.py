"""Faces and their landmarks in pictures (MediaPipe Face Landmarker, model file in ``assets``)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.resources import files
from typing import Any

import numpy as np

from dawn.errors import CheckpointError
from dawn.media.files import Closable
from dawn.structs import LANDMARK_COUNT, ImageArray, TrackedFace

WARM_UP_SIDE_PX = 64
LANDMARKER_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"


def _landmarker_model() -> bytes:
    data = files("dawn").joinpath("assets/face_landmarker.task").read_bytes()
    if hashlib.sha256(data).hexdigest() != LANDMARKER_SHA256:
        raise CheckpointError("assets/face_landmarker.task is damaged (its sha256 differs): reinstall the package")
    return data


def _mediapipe() -> Any:
    """Import MediaPipe late, so that other commands need not load the native library.

    The import runs in a thread of its own. Without PortAudio one of MediaPipe's modules keeps the error of its import,
    and with it the stack. Our callers' variables, such as a recording's features, would never be freed.
    """
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(import_module, "mediapipe").result()


@contextmanager
def _hush_native_stderr() -> Iterator[None]:
    """Silence file descriptor 2: MediaPipe's native code always writes there, and raises its failures besides."""
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


class FaceTracker(Closable):
    """Find face landmarks picture by picture. Use as a context manager: the native task must be closed.

    Every picture is treated on its own: neither their order nor the number of workers matters.
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
        with _hush_native_stderr():
            self._task: Any = vision.FaceLandmarker.create_from_options(options)
            # The graph's threads are still starting, and writing; the first picture waits for them.
            self.detect(np.zeros((WARM_UP_SIDE_PX, WARM_UP_SIDE_PX, 3), np.uint8))

    def close(self) -> None:
        """Free the native task."""
        self._task.close()

    def detect(self, image: ImageArray) -> list[TrackedFace]:
        """Find all faces in a picture (H, W, 3) uint8 RGB, largest first."""
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
