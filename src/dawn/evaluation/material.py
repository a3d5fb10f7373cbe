"""What an evaluation works on: a preset's networks, prepared clips, frames rendered and tracked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, SupportsFloat

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dawn.errors import InputError
from dawn.models.bundle import Bundle
from dawn.models.face_features import SFace
from dawn.models.face_geometry import eye_aspect_ratio, remove_pose
from dawn.preprocess.crop import to_crop_units
from dawn.preprocess.tracker import FaceTracker
from dawn.structs import Box, Face, FloatArray, ImageArray

RENDER_BATCH = 8
TRACK_SIZE_PX = 256
"""Generated frames are tracked at the size at which portraits and training clips were."""

Progress = Callable[[str, int, int], None]
"""(stage, done, total)."""


@dataclass(frozen=True)
class EvalClip:
    """One prepared clip at the preset's size.

    frames (T, S, S, 3) uint8; landmarks (T, 478, 3) crop units; samples (L,) float32 at 16 kHz, perhaps empty; face:
    the first frame as a portrait.
    """

    name: str
    person: str
    frames: ImageArray
    landmarks: FloatArray
    samples: FloatArray
    face: Face

    def __len__(self) -> int:
        return len(self.frames)


def read_clips(folder: Path, size_px: int, mean_face: Tensor) -> list[EvalClip]:
    """All prepared clips of a folder. Raises InputError if there are under two or one cannot be read."""
    paths = sorted(Path(folder).glob("*.safetensors"))
    if len(paths) < 2:
        remedy = f"make them with: dawn prepare VIDEOS {folder}"
        raise InputError(f"{folder}: {len(paths)} prepared clips, at least 2 are needed; {remedy}")
    return [_read_clip(path, size_px, mean_face) for path in paths]


def _read_clip(path: Path, size_px: int, mean_face: Tensor) -> EvalClip:
    try:
        with safe_open(path, framework="np") as file:
            person = (file.metadata() or {}).get("person", path.stem)
            frames, landmarks, samples = (file.get_tensor(key) for key in ("frames", "landmarks", "samples"))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a prepared clip ({error}); run dawn prepare again") from error
    if len(frames) < 3 or len(frames) != len(landmarks):
        raise InputError(f"{path}: {len(frames)} frames, {len(landmarks)} landmarks; 3 or more of both are needed")
    frames = scaled(frames, size_px)
    return EvalClip(path.stem, person, frames, landmarks, samples.astype(np.float32) / 32768,
                    face_of(frames[0], landmarks[0], mean_face))  # fmt: skip


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
def render(bundle: Bundle, face: Face, landmarks: Tensor) -> ImageArray:
    """Frames (T, S, S, 3) uint8 of a portrait for driving landmarks (T, 478, 3)."""
    image = torch.from_numpy(face.crop).permute(2, 0, 1)[None].float() / 255
    image = image.contiguous(memory_format=torch.channels_last)
    source = bundle.lfg.encode(image, torch.from_numpy(face.landmarks)[None])
    parts = [bundle.lfg.render(source, points) for points in landmarks.split(RENDER_BATCH)]
    return (torch.cat(parts).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


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


@dataclass(frozen=True)
class Bench:
    """Everything the measurements share. real: the true frames tracked again at the preset's size, one a clip."""

    bundle: Bundle
    tracker: FaceTracker
    sface: SFace
    clips: Sequence[EvalClip]
    real: Sequence[Tracked]
    progress: Progress


def row(value: SupportsFloat, control: SupportsFloat | None = None, interval: tuple[float, float] | None = None,
        real: SupportsFloat | None = None, unit: str = "") -> dict[str, object]:  # fmt: skip
    """One line of the report. control: the figure of doing nothing, or of the wrong sound; real: of the true frames."""
    out: dict[str, object] = {"value": float(value), "unit": unit}
    for key, number in (("control", control), ("real", real)):
        if number is not None:
            out[key] = float(number)
    if interval is not None:
        out["interval"] = [float(interval[0]), float(interval[1])]
    return out
