"""The course of a video or a motion in time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dawn import media
from dawn.checkpoint import load_mean_face
from dawn.engines.load import load_motion_space
from dawn.errors import AudioError, ConfigError, DawnError, NoFaceError
from dawn.face.geometry import eye_aspect_ratio, remove_pose
from dawn.measures.lips import lip_distance
from dawn.measures.motion import blink_count
from dawn.media.files import FilePath
from dawn.models.attention import CHUNK_FRAMES
from dawn.models.lite.motion_space import MotionSpace
from dawn.preprocess.tracker import FaceTracker
from dawn.progress import Progress, ignore_progress
from dawn.structs import FPS, FloatArray, ImageArray, Motion, Speech

THUMB_HEIGHT_PX = 160
MAX_THUMB_ASPECT = 2.5
MAX_THUMBS = 128
"""Thumbnails kept while a video of unknown length is read; about a tenth of them are shown."""

LABELS = {"lips": "lip opening\n(eye distances)", "head": "head (degrees)", "eyes": "eye aspect\nratio"}

Curves = NDArray[Any]


@dataclass(frozen=True)
class Traces:
    """Curves (T, ...) at 25 fps to draw, not a number where no face was found; None leaves a panel out.

    pose: (T, 3) yaw, pitch, roll in degrees. eyes: (T, 2) eye aspect ratios. lips: (T,) opening in eye distances.
    labels: of the axes "lips", "head" and "eyes". frames: (index, thumbnail), in order.
    """

    title: str
    pose: Curves
    eyes: Curves
    labels: dict[str, str]
    lips: Curves | None = None
    sound: Speech | None = None
    frames: tuple[tuple[int, ImageArray], ...] = ()

    @property
    def seconds(self) -> float:
        """Length of the longer of curves and sound."""
        return max(len(self.pose) / FPS, self.sound.duration_s if self.sound else 0.0)


class Thumbnails:
    """Keep small frames at even distances from a video of unknown length; drop every other one when too many."""

    def __init__(self) -> None:
        self.step = 1
        self.kept: list[tuple[int, ImageArray]] = []

    def offer(self, index: int, frame: ImageArray) -> None:
        """Take frame ``index`` (H, W, 3), in order from 0, and keep it if it is due."""
        if index % self.step:
            return
        width = round(THUMB_HEIGHT_PX * min(frame.shape[1] / frame.shape[0], MAX_THUMB_ASPECT))
        small = Image.fromarray(frame).resize(
            (max(1, width), THUMB_HEIGHT_PX), Image.Resampling.BILINEAR, reducing_gap=2.0
        )
        self.kept.append((index, np.asarray(small)))
        if len(self.kept) == MAX_THUMBS:
            self.kept = self.kept[::2]
            self.step *= 2


def trace_video(path: FilePath, progress: Progress = ignore_progress) -> Traces:
    """Track the largest face of every frame; a few numbers per frame are kept.

    Raises:
        VideoError: The file cannot be read.
        NoFaceError: No frame shows a face.
    """
    mean_face = load_mean_face()
    thumbs = Thumbnails()
    rows: list[FloatArray] = []
    with media.VideoReader(path, fps=FPS) as reader, FaceTracker() as tracker:
        for index, frame in enumerate(reader):
            faces = tracker.detect(frame)
            rows.append(_measure_face(faces[0].landmarks, mean_face) if faces else np.full(6, np.nan, np.float32))
            thumbs.offer(index, frame)
            progress("track", index + 1, 0)
    numbers = np.stack(rows)
    found = np.isfinite(numbers[:, 0])
    if not found.any():
        raise NoFaceError(f"{path}: no face was found in any of {len(rows)} frames; give a video that shows one")
    sound = _read_sound(path)
    blinks = blink_count(numbers[found, 4:].mean(1))
    title = f"{_shorten(path)}   {len(rows) / FPS:.2f} s, {len(rows)} frames, {blinks} blinks"
    title += "" if sound else ", no sound"
    title += "" if found.all() else f", no face in {(~found).sum()} frames (grey)"
    return Traces(title, numbers[:, 1:4], numbers[:, 4:], LABELS, numbers[:, 0], sound, tuple(thumbs.kept))


def _measure_face(landmarks: FloatArray, mean_face: torch.Tensor) -> FloatArray:
    """Measure landmarks (478, 3) in pixels: lip opening, yaw, pitch, roll, two eye aspect ratios, (6,)."""
    shape, pose = remove_pose(torch.from_numpy(landmarks), mean_face)
    parts = (lip_distance(landmarks[None]), pose[:3].numpy(), eye_aspect_ratio(shape).numpy())
    return np.concatenate(parts).astype(np.float32)


def _read_sound(path: FilePath) -> Speech | None:
    try:
        return media.read_speech(path, allow_silence=True)
    except AudioError:  # a silent film has one panel less
        return None


def trace_motion(motion: Motion, name: str, preset: str | None = None) -> Traces:
    """Trace a motion: pose against its portrait; lips and lids as they are on the mean face.

    Without a preset that reads its expression, the motion's blink column stands for the eyes, and lips are left out.

    Args:
        motion: what to trace.
        name: its file, for the title.
        preset: reads the expression, by default the one that the motion names.

    Raises:
        ConfigError: The given preset does not exist or does not fit.
        CheckpointError: The given preset cannot be read.
    """
    title = f"{_shorten(name)}   {len(motion) / FPS:.2f} s, {len(motion)} frames of motion"
    pose_label = "head, change\n(degrees)"
    space = _find_motion_space(motion, preset)
    if space is None:
        labels = {"head": pose_label, "eyes": "eye aspect\nratio, change"}
        return Traces(f"{title}; what the lips do is not known", motion.pose[:, :3], motion.blink, labels)
    lips, eyes = [], []
    for part in torch.split(torch.from_numpy(motion.expression), CHUNK_FRAMES):
        shapes = space.shapes(part, space.mean_face)
        lips.append(lip_distance(shapes.numpy()))
        eyes.append(eye_aspect_ratio(shapes).numpy())
    ear = np.concatenate(eyes)
    title = f"{title}, {blink_count(ear.mean(1))} blinks; lips and eyes on the mean face"
    return Traces(title, motion.pose[:, :3], ear, LABELS | {"head": pose_label}, np.concatenate(lips))


def _find_motion_space(motion: Motion, preset: str | None) -> MotionSpace | None:
    """Load the motion space that reads the expression.

    None if no preset is given and the one that the motion names does not help.

    Raises:
        DawnError: The given preset does not fit.
    """
    name = preset or motion.info.get("preset")
    if name is None or motion.space != "lite":
        if preset is None:
            return None
        raise ConfigError(
            f"`preset={preset}`: lips cannot be drawn of a motion of the space {motion.space!r}; leave it out"
        )
    try:
        space = load_motion_space(name)
        if space is None or space.config.size != motion.expression.shape[1]:
            count = motion.expression.shape[1]
            raise ConfigError(f"the preset {name} does not read {count} coefficients: use the preset that made them")
    except DawnError:
        if preset is not None:
            raise
        return None
    return space


def _shorten(path: FilePath) -> str:
    name = Path(path).name
    return name if len(name) <= 60 else f"{name[:40]}…{name[-19:]}"


def envelope(samples: FloatArray, columns: int) -> tuple[NDArray[np.int_], FloatArray, FloatArray]:
    """Reduce samples (L,) to at most so many columns: where each begins, its lowest and its highest sample."""
    starts = np.linspace(0, len(samples), min(columns, len(samples)), endpoint=False).astype(int)
    return starts, np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)
