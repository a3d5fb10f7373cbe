"""What an evaluation works on: prepared clips, a preset's networks, frames rendered and tracked again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dawn.errors import InputError
from dawn.face.geometry import eye_aspect_ratio, remove_pose
from dawn.models.lite.bundle import LiteBundle
from dawn.preprocess.clips import MIN_FRAMES
from dawn.preprocess.crop import to_crop_units
from dawn.preprocess.tracker import FaceTracker
from dawn.rendering.composite import FullFrame
from dawn.rendering.draw import picture
from dawn.structs import Box, Face, FloatArray, ImageArray

RENDER_BATCH = 8
TRACK_SIZE_PX = 256
"""Generated frames are tracked at the size at which portraits and training clips were."""

Progress = Callable[[str, int, int], None]
"""(stage, done, total)."""


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
        person = person_of(path)
        taken[person] = taken.get(person, 0) + 1
        if limit is None or taken[person] <= limit:
            clips.append(read_clip(path, size_px, mean_face))
    if len(clips) < 2:
        raise InputError(f"{folder}: {len(clips)} clip is left by a limit of {limit}; at least 2 are needed")
    return clips


def person_of(path: Path) -> str:
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
    return clip_of(path.stem, person, frames, landmarks, sound, size_px or frames.shape[1], mean_face)


def clip_of(
    name: str,
    person: str,
    frames: ImageArray,
    landmarks: FloatArray,
    samples: FloatArray,
    size_px: int,
    mean_face: Tensor,
) -> EvalClip:
    """Frames of any size with their landmarks and sound as an ``EvalClip`` of ``size_px``."""
    shown = scaled(frames, size_px)
    return EvalClip(
        name, person, shown, landmarks, samples, face_of(shown[0], landmarks[0], mean_face), frames.shape[1]
    )


def face_of(crop: ImageArray, landmarks: FloatArray, mean_face: Tensor) -> Face:
    """A crop and its landmarks as a portrait."""
    shape, pose = remove_pose(torch.from_numpy(landmarks), mean_face)
    box = Box(0, 0, crop.shape[1], crop.shape[0])
    return Face(crop, landmarks, shape.numpy(), pose.numpy(), eye_aspect_ratio(shape).numpy(), box)


def scaled(frames: ImageArray, size_px: int) -> ImageArray:
    """(T, S, S, 3) uint8 -> (T, size_px, size_px, 3), Lanczos (which averages on the way down)."""
    if frames.shape[1] == size_px:
        return frames
    method = Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(f).resize((size_px, size_px), method)) for f in frames])


@torch.inference_mode()
def render(bundle: LiteBundle, face: Face, landmarks: Tensor, full: FullFrame | None = None) -> ImageArray:
    """Frames (T, S, S, 3) uint8 of a portrait for driving landmarks (T, 478, 3): the networks' own, or what ``full`` makes
    of them."""
    source = bundle.lfg.encode(picture(face, torch.device("cpu")), torch.from_numpy(face.landmarks)[None])
    parts = []
    for points in landmarks.split(RENDER_BATCH):
        made = bundle.lfg.redraw(source.expand(len(points)), points)
        frames = made.frame.clamp(0, 1)
        if full is None:
            parts.append((frames * 255).round().byte().permute(0, 2, 3, 1).numpy())
        else:
            parts.append(np.stack([full(*pair) for pair in zip(frames, made.flow.grid, strict=True)]))
    return np.concatenate(parts)


def portrait_of(clip: EvalClip, native_px: int) -> tuple[Face, FullFrame | None]:
    """A clip's first frame as the portrait of a preset that draws ``native_px``, and what puts generated squares back into
    it where the clip is larger, as ``dawn.pipeline`` does with a photograph."""
    size = clip.frames.shape[1]
    if size == native_px:
        return clip.face, None
    face = replace(clip.face, crop=scaled(clip.frames[:1], native_px)[0])
    return face, FullFrame(clip.frames[0], face, size)


class Tracked(NamedTuple):
    """landmarks (T, 478, 3) crop units; found (T,) bool: false where the frame before was repeated."""

    landmarks: FloatArray
    found: np.ndarray


def track(tracker: FaceTracker, frames: ImageArray, otherwise: FloatArray) -> Tracked:
    """Landmarks of generated frames; ``otherwise`` (478, 3) stands in until the first face is found."""
    box = Box(0, 0, TRACK_SIZE_PX, TRACK_SIZE_PX)
    landmarks: list[FloatArray] = []
    found: list[bool] = []
    for frame in scaled(frames, TRACK_SIZE_PX):
        faces = tracker.faces(frame)
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
    bundle: LiteBundle
    tracker: FaceTracker
    clips: Sequence[EvalClip]
    progress: Progress

    @property
    def voiced(self) -> list[int]:
        """Numbers of the clips that have sound."""
        return [index for index, clip in enumerate(self.clips) if len(clip.samples)]

    def draw(self, clip: EvalClip, driving: Tensor) -> ImageArray:
        """The clip's first frame with driving landmarks (T, 478, 3) -> frames (T, S, S, 3)."""
        face, full = portrait_of(clip, self.bundle.config.lfg.image_size_px)
        return render(self.bundle, face, driving, full)

    def look(self, clip: EvalClip, frames: ImageArray) -> Shown:
        """Frames and what the tracker sees in them."""
        return Shown(frames, *track(self.tracker, frames, clip.landmarks[0]))

    def show(self, clip: EvalClip, driving: Tensor) -> Shown:
        """``draw``, then ``look``."""
        return self.look(clip, self.draw(clip, driving))


def pick_portraits(clips: Sequence[EvalClip], count: int) -> list[EvalClip]:
    """As many people as possible: one clip of each in turn."""
    seen: dict[str, int] = {}
    turn = []
    for index, clip in enumerate(clips):
        seen[clip.person] = seen.get(clip.person, 0) + 1
        turn.append((seen[clip.person], index))
    return [clips[index] for _, index in sorted(turn)[:count]]


def row(
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
