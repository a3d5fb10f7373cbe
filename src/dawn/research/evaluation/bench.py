"""What an evaluation works on: prepared clips, a preset's networks, frames rendered and tracked again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dawn.engines.engine import Engine
from dawn.errors import InputError
from dawn.face.geometry import eye_aspect_ratio, remove_pose
from dawn.preprocess.clips import MIN_FRAMES
from dawn.preprocess.crop import to_crop_units
from dawn.preprocess.portrait import TRACK_SIZE_PX
from dawn.preprocess.tracker import FaceTracker
from dawn.progress import Progress
from dawn.rendering.composite import FullFrame
from dawn.rendering.draw import draw_frames, draw_landmarks
from dawn.rendering.placement import Placement
from dawn.structs import Box, Face, FloatArray, ImageArray, Motion


@dataclass(frozen=True)
class EvalClip:
    """One prepared clip at the size at which a preset is measured.

    frames (T, S, S, 3) uint8; landmarks (T, 478, 3) crop units; samples (L,) float32 at 16 kHz, perhaps empty; face:
    the first frame as a portrait; stored_px: side of the frames in the file.
    """

    name: str
    person: str
    frames: ImageArray
    landmarks: FloatArray
    samples: FloatArray
    face: Face
    stored_px: int

    def __len__(self) -> int:
        return len(self.frames)


def read_clips(folder: Path, size_px: int, mean_face: Tensor, limit: int | None = None) -> list[EvalClip]:
    """All prepared clips of a folder, or the first ``limit`` of each person.

    Raises InputError if there are under two or one cannot be read.
    """
    paths = sorted(Path(folder).glob("*.safetensors"))
    if len(paths) < 2:
        remedy = f"make them with: dawn prepare VIDEOS {folder}"
        raise InputError(f"{folder}: {len(paths)} prepared clips, at least 2 are needed; {remedy}")
    clips: list[EvalClip] = []
    taken: dict[str, int] = {}
    for path in paths:
        person = read_person(path)
        taken[person] = taken.get(person, 0) + 1
        if limit is None or taken[person] <= limit:
            clips.append(read_clip(path, size_px, mean_face))
    if len(clips) < 2:
        raise InputError(f"{folder}: {len(clips)} clip is left by a limit of {limit}; at least 2 are needed")
    return clips


def read_person(path: Path) -> str:
    """Who is in a prepared clip, by its metadata; without any, the file's name. Raises InputError if it is none."""
    with _opened(path) as file:
        return _person(file, path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a prepared clip ({error}); run dawn prepare again") from error


def _person(file: Any, path: Path) -> str:
    return (file.metadata() or {}).get("person", path.stem)


def read_clip(path: Path, size_px: int | None, mean_face: Tensor) -> EvalClip:
    """One prepared clip, its frames scaled to ``size_px``; None leaves them as they are. Raises InputError."""
    with _opened(path) as file:
        person = _person(file, path)
        frames, landmarks, samples = (file.get_tensor(key) for key in ("frames", "landmarks", "samples"))
    if len(frames) < MIN_FRAMES or len(frames) != len(landmarks):
        raise InputError(
            f"{path}: {len(frames)} frames, {len(landmarks)} landmarks; {MIN_FRAMES} or more of both are needed"
        )
    sound = samples.astype(np.float32) / 32768
    return make_clip(path.stem, person, frames, landmarks, sound, size_px or frames.shape[1], mean_face)


def make_clip(
    name: str,
    person: str,
    frames: ImageArray,
    landmarks: FloatArray,
    samples: FloatArray,
    size_px: int,
    mean_face: Tensor,
) -> EvalClip:
    """Frames of any size with their landmarks and sound as an ``EvalClip`` of ``size_px``."""
    shown = scale_frames(frames, size_px)
    return EvalClip(
        name, person, shown, landmarks, samples, make_face(shown[0], landmarks[0], mean_face), frames.shape[1]
    )


def make_face(crop: ImageArray, landmarks: FloatArray, mean_face: Tensor) -> Face:
    """A crop and its landmarks as a portrait."""
    shape, pose = remove_pose(torch.from_numpy(landmarks), mean_face)
    box = Box(0, 0, crop.shape[1], crop.shape[0])
    return Face(crop, landmarks, shape.numpy(), pose.numpy(), eye_aspect_ratio(shape).numpy(), box)


def scale_frames(frames: ImageArray, size_px: int) -> ImageArray:
    """(T, S, S, 3) uint8 -> (T, size_px, size_px, 3), Lanczos (which averages on the way down)."""
    if frames.shape[1] == size_px:
        return frames
    method = Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(f).resize((size_px, size_px), method)) for f in frames])


def place_clip(clip: EvalClip, engine: Engine[Any]) -> Placement:
    """Place a clip's first frame as the product places a photograph; its face is known already."""
    size, native = clip.frames.shape[1], engine.native_px
    if size == native:
        return Placement(clip.face, size)
    face = replace(clip.face, crop=scale_frames(clip.frames[:1], native)[0])
    return Placement(face, size, FullFrame(clip.frames[0], face, size, engine.device, engine.config.rules.composite))


class Tracked(NamedTuple):
    """landmarks (T, 478, 3) crop units; found (T,) bool: false where the frame before was repeated."""

    landmarks: FloatArray
    found: np.ndarray


def track(tracker: FaceTracker, frames: ImageArray, otherwise: FloatArray) -> Tracked:
    """Landmarks of generated frames; ``otherwise`` (478, 3) stands in until the first face is found."""
    box = Box(0, 0, TRACK_SIZE_PX, TRACK_SIZE_PX)
    landmarks: list[FloatArray] = []
    found: list[bool] = []
    for frame in scale_frames(frames, TRACK_SIZE_PX):
        faces = tracker.detect(frame)
        found.append(bool(faces))
        landmarks.append(to_crop_units(faces[0].landmarks, box) if faces else landmarks[-1] if landmarks else otherwise)
    return Tracked(np.stack(landmarks), np.array(found))


class Shown(NamedTuple):
    """What one column shows for one clip: frames (T, S, S, 3) uint8, and what the tracker sees in them."""

    frames: ImageArray
    landmarks: FloatArray
    found: np.ndarray


@dataclass(frozen=True)
class Bench:
    """A preset and what it is tried on."""

    name: str
    engine: Engine[Any]
    tracker: FaceTracker
    clips: Sequence[EvalClip]
    progress: Progress

    @property
    def voiced(self) -> list[int]:
        """Numbers of the clips that have sound."""
        return [index for index, clip in enumerate(self.clips) if len(clip.samples)]

    def draw(self, clip: EvalClip, motion: Motion) -> ImageArray:
        """The clip's first frame with a motion, as the product draws it -> frames (T, S, S, 3)."""
        place = place_clip(clip, self.engine)
        return np.stack(list(draw_frames(self.engine, place.face, motion, place.size_px, place.full)))

    def look(self, clip: EvalClip, frames: ImageArray) -> Shown:
        """Frames and what the tracker sees in them."""
        return Shown(frames, *track(self.tracker, frames, clip.landmarks[0]))

    def show(self, clip: EvalClip, motion: Motion) -> Shown:
        """``draw``, then ``look``."""
        return self.look(clip, self.draw(clip, motion))

    def show_landmarks(self, clip: EvalClip, landmarks: Tensor) -> Shown:
        """``show`` for driving landmarks (T, 478, 3), which only a lite preset takes."""
        place = place_clip(clip, self.engine)
        frames = draw_landmarks(self.engine, place.face, landmarks, place.size_px, place.full)
        return self.look(clip, np.stack(list(frames)))


def pick_portraits(clips: Sequence[EvalClip], count: int) -> list[EvalClip]:
    """As many people as possible: one clip of each in turn."""
    seen: dict[str, int] = {}
    turn = []
    for index, clip in enumerate(clips):
        seen[clip.person] = seen.get(clip.person, 0) + 1
        turn.append((seen[clip.person], index))
    return [clips[index] for _, index in sorted(turn)[:count]]


def make_row(
    value: SupportsFloat,
    control: SupportsFloat | None = None,
    interval: tuple[float, float] | None = None,
    real: SupportsFloat | None = None,
    unit: str = "",
) -> dict[str, object]:
    """One figure. control: that of doing nothing, or of the wrong sound; real: of the true frames."""
    out: dict[str, object] = {"value": float(value), "unit": unit}
    for key, number in (("control", control), ("real", real)):
        if number is not None:
            out[key] = float(number)
    if interval is not None:
        out["interval"] = [float(interval[0]), float(interval[1])]
    return out
