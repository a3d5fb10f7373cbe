"""Two folders against each other: generated clips or videos, and the true ones under the same names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from dawn import media
from dawn.errors import InputError
from dawn.preprocess.clips import find_videos, prepare_clip
from dawn.preprocess.tracker import FaceTracker
from dawn.research.evaluation.bench import EvalClip, make_clip, read_clip

SLACK_FRAMES = 2
"""Frames by which two sides may differ in length (sound and picture seldom end together); the longer one is cut."""
MAX_SIDE_PX = 512


def pair_files(made: Path, real: Path) -> list[tuple[str, Path, Path]]:
    """(name, generated, true) for all names, sorted. Raises InputError naming the first that only one folder has."""
    sides = {folder: _files(folder) for folder in (made, real)}
    alone = sorted(set(sides[made]) ^ set(sides[real]))
    if alone:
        here, there = (made, real) if alone[0] in sides[made] else (real, made)
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise InputError(f"{alone[0]!r} is in {here} but not in {there}{more}: give folders with the same names")
    return [(name, sides[made][name], sides[real][name]) for name in sorted(sides[made])]


def _files(folder: Path) -> dict[str, Path]:
    """{name without suffix: path} of prepared clips, or else of videos at any depth."""
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; give one with prepared clips or videos")
    clips = sorted(folder.glob("*.safetensors"))
    if clips:
        return {path.stem: path for path in clips}
    # Named as `dawn prepare` names its clips, so that clips of one side meet videos of the other.
    return {
        path.relative_to(folder).with_suffix("").as_posix().replace("/", "__"): path for path in find_videos(folder)
    }


def read_pair(
    name: str, made: Path, real: Path, size_px: int | None, tracker: FaceTracker, mean_face: Tensor
) -> tuple[EvalClip, EvalClip]:
    """Generated and true clip at the generated one's size, equally long. Videos are tracked and cropped like prepared ones.

    size_px: what the generated frames must be, or None. Raises InputError.
    """
    ours = _read(made, None, tracker, mean_face)
    size = ours.frames.shape[1]
    if size_px not in (None, size):
        raise InputError(f"{made}: frames of {size} px, the ones before have {size_px}; give videos of one size")
    true = _read(real, size, tracker, mean_face)
    if abs(len(ours) - len(true)) > SLACK_FRAMES:
        raise InputError(f"{name!r}: {len(ours)} generated frames, {len(true)} true ones; give videos of equal length")
    frames = min(len(ours), len(true))
    return _cut(ours, frames), _cut(true, frames)


def _read(path: Path, size_px: int | None, tracker: FaceTracker, mean_face: Tensor) -> EvalClip:
    if path.suffix == ".safetensors":
        return read_clip(path, size_px, mean_face)
    if size_px is None:
        with media.VideoReader(path) as reader:
            size_px = min(reader.width, reader.height, MAX_SIDE_PX)
    try:
        clip = prepare_clip(path, size_px, tracker)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    samples = np.asarray(clip.samples, np.float32)
    return make_clip(path.stem, path.stem, clip.frames, clip.landmarks, samples, size_px, mean_face)


def _cut(clip: EvalClip, frames: int) -> EvalClip:
    return EvalClip(
        clip.name, clip.person, clip.frames[:frames], clip.landmarks[:frames], clip.samples, clip.face, clip.stored_px
    )
