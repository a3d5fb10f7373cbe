"""A driving video: the landmarks of its face, and its sound."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from dawn import media
from dawn.errors import AudioError, NoFaceError, VideoError
from dawn.media.files import FilePath
from dawn.preprocess.crop import Fit, crop_box, to_crop_units
from dawn.preprocess.tracker import FaceTracker
from dawn.progress import Progress, ignore_progress
from dawn.structs import FPS, FloatArray, Speech, TrackedFace

log = logging.getLogger(__name__)

MAX_DRIVE_FRAMES = 45_000


def track_landmarks(video: FilePath, progress: Progress = ignore_progress) -> Tensor:
    """Track the largest face of a video: (T, 478, 3) in crop units of one fixed square, as for training clips.

    A frame without a face repeats the one before; frames before the first face are left out.

    Raises:
        VideoError: The file cannot be read, or is longer than half an hour.
        NoFaceError: No frame shows a face.
    """
    found: list[FloatArray] = []
    size = (0, 0)
    with media.VideoReader(video, fps=FPS) as reader, FaceTracker() as tracker:
        for index, frame in enumerate(reader):
            if index >= MAX_DRIVE_FRAMES:
                raise VideoError(f"{video}: longer than {MAX_DRIVE_FRAMES // FPS} s; cut it shorter")
            size = (frame.shape[1], frame.shape[0])
            faces = tracker.detect(frame)
            if faces or found:
                found.append(faces[0].landmarks if faces else found[-1])
            progress("track", index + 1, 0)
    if not found:
        raise NoFaceError(f"{video}: no face was found in the driving video; use one that shows a face")
    points = np.stack(found)
    box = crop_box(TrackedFace(points.mean(0), np.zeros(52, np.float32)), *size, Fit.INSIDE)
    return torch.from_numpy(to_crop_units(points, box))


def read_driving_sound(video: FilePath, frames: int) -> Speech | None:
    """Read the video's own sound; None without any, or if it differs from its ``frames`` by over a second."""
    try:
        speech = media.read_speech(video, allow_silence=True)
    except AudioError as error:
        log.info("%s: %s", video, error)
        return None
    return speech if abs(speech.frame_count - frames) <= FPS else None
