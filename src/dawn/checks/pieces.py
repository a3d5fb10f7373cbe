"""A video in pieces of ten seconds, and the numbers kept of each: memory does not grow with length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dawn.checkpoint import load_mean_face
from dawn.engines.rules import measure_quiet
from dawn.face.geometry import eye_aspect_ratio, remove_pose
from dawn.measures import identity, lips, motion, sync
from dawn.measures.motion import find_runs
from dawn.models.judges.sface import EMBEDDING_SIZE, SFace
from dawn.models.judges.sync import MAX_LAG_FRAMES, MIN_CLIP_FRAMES, SyncJudge
from dawn.preprocess.crop import Fit, crop_box, cut, to_crop_units
from dawn.preprocess.portrait import TRACK_SIZE_PX, find_faces
from dawn.preprocess.tracker import FaceTracker
from dawn.rules_config import SilenceRules
from dawn.structs import FPS, FRAME_SAMPLES, LANDMARK_COUNT, Box, FloatArray, ImageArray

Float64Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

PIECE_FRAMES = 250
FLICKER_FRAMES = 25
"""Frames compared at once, in double precision."""
IDENTITY_STRIDE = 12
"""Identity changes slowly: two faces a second tell it."""


@dataclass(frozen=True)
class Piece:
    """Consecutive frames, as squares around the face.

    start: index of the first. crops: (n, 256, 256, 3).
    landmarks: (n, 478, 3) in crop units; a frame without a face repeats those of the frame before.
    found: (n,) where there was a face.
    change: (n,) mean absolute difference from the frame before in grey levels; infinite for the very first.
    """

    start: int
    crops: ImageArray
    landmarks: FloatArray
    found: Flags
    change: Float64Array


@dataclass(frozen=True)
class Course:
    """What is kept of a piece or of a whole video; not a number where no face was found.

    opening: (T,) of the lips, eye distances. eyes: (T,) aspect ratio. angles: (T, 3) in degrees.
    change: as in ``Piece``. features: (N, 128) SFace, of every 12th frame with a face.
    jitter, flicker: (2,) for ``intervals.share``. sync: (2, 21) distances by lag and their counts.
    """

    opening: Float64Array
    eyes: Float64Array
    angles: Float64Array
    change: Float64Array
    features: Float64Array
    jitter: Float64Array
    flicker: Float64Array
    sync: Float64Array

    @property
    def found(self) -> Flags:
        """Where there was a face, (T,)."""
        return np.isfinite(self.opening)


def track_pieces(frames: Iterable[ImageArray], tracker: FaceTracker, box: Box | None = None) -> Iterator[Piece]:
    """Track frames (H, W, 3) and yield them in pieces of ten seconds.

    ``box`` is the square to look at, in the frames' pixels. By default it lies around the largest face of the first
    frame that has one.
    """
    crops: list[ImageArray] = []
    seen: list[FloatArray | None] = []
    change: list[float] = []
    start = 0
    before: ImageArray | None = None
    for frame in frames:
        height, width = frame.shape[:2]
        if box is None and (faces := find_faces(frame, tracker)):
            box = crop_box(faces[0], width, height, Fit.INSIDE)
        crop = cut(frame, box or Box(0, 0, min(height, width), min(height, width)), TRACK_SIZE_PX)
        faces = tracker.detect(crop)
        crops.append(crop)
        seen.append(to_crop_units(faces[0].landmarks, Box(0, 0, TRACK_SIZE_PX, TRACK_SIZE_PX)) if faces else None)
        change.append(np.inf if before is None else float(np.abs(crop.astype(np.int16) - before).mean()))
        before = crop
        if len(crops) == PIECE_FRAMES:
            yield _make_piece(start, crops, seen, change)
            start, crops, seen, change = start + PIECE_FRAMES, [], [], []
    if crops:
        yield _make_piece(start, crops, seen, change)


def _make_piece(start: int, crops: list[ImageArray], seen: list[FloatArray | None], change: list[float]) -> Piece:
    found = np.array([points is not None for points in seen])
    known = [points for points in seen if points is not None] or [np.zeros((LANDMARK_COUNT, 3), np.float32)]
    last = np.maximum(np.cumsum(found) - 1, 0)
    return Piece(start, np.stack(crops), np.stack(known)[last], found, np.array(change))


def measure_piece(piece: Piece, samples: FloatArray, judge: SyncJudge, sface: SFace | None = None) -> Course:
    """Measure one piece. ``samples`` (L,) is its own sound, empty if there is none; without SFace no features."""
    found, count = piece.found, len(piece.found)
    rows = np.full((count, 5), np.nan)
    jitter, features = np.zeros(2), np.zeros((0, EMBEDDING_SIZE))
    if found.any():
        shape, pose = remove_pose(torch.from_numpy(piece.landmarks), load_mean_face())
        eyes = eye_aspect_ratio(shape).mean(-1, keepdim=True).numpy()
        rows[found] = np.concatenate((lips.lip_distance(piece.landmarks)[:, None], eyes, pose[:, :3].numpy()), 1)[found]
        for start, stop in find_runs(found):
            if stop - start >= 3:
                jitter += motion.jitter(shape[start:stop].numpy()) * (stop - start - 2), stop - start - 2
        chosen = np.flatnonzero(found & ((piece.start + np.arange(count)) % IDENTITY_STRIDE == 0))
        if sface is not None and len(chosen):
            features = identity.embed(sface, piece.crops[chosen], piece.landmarks[chosen])
    return Course(
        rows[:, 0],
        rows[:, 1],
        rows[:, 2:],
        piece.change,
        features,
        jitter,
        _measure_flicker(piece),
        measure_lags(piece, samples, judge),
    )


def _measure_flicker(piece: Piece) -> Float64Array:
    sums = np.zeros(2)
    for start in range(0, len(piece.crops) - 1, FLICKER_FRAMES):
        part = slice(start, start + FLICKER_FRAMES + 1)
        where = motion.background([piece.landmarks[part]], TRACK_SIZE_PX)
        value = motion.flicker(piece.crops[part], where) if piece.found[part].all() else np.nan
        if np.isfinite(value):
            sums += value, 1
    return sums


def measure_lags(piece: Piece, samples: FloatArray, judge: SyncJudge) -> Float64Array:
    """Measure the distances of lips and sound by lag: sums and counts, (2, 21).

    Both are 0 where picture or sound give nothing to judge. Silence of a second or more is left out: there is nothing
    to be in sync with, and it would dilute the rest.
    """
    count = len(piece.crops)
    sums = np.zeros((2, 2 * MAX_LAG_FRAMES + 1))
    heard = np.full(count, bool(np.any(samples) and piece.found.any()))
    for start, stop in find_runs(measure_quiet(torch.from_numpy(samples), count, SilenceRules()).numpy() > 0.5):
        heard[start:stop] &= stop - start < FPS
    for start, stop in find_runs(heard):
        if stop - start >= MIN_CLIP_FRAMES:
            part, sound = slice(start, stop), samples[start * FRAME_SAMPLES : stop * FRAME_SAMPLES]
            sums += np.stack(sync.clip_distances(judge, piece.crops[part], piece.landmarks[part], sound))
    return sums


def join_courses(courses: Sequence[Course]) -> Course:
    """Join the courses of pieces, in order, to one."""
    rows = [
        np.concatenate([getattr(course, name) for course in courses])
        for name in ("opening", "eyes", "angles", "change", "features")
    ]
    return Course(
        *rows, *(np.sum([getattr(course, name) for course in courses], 0) for name in ("jitter", "flicker", "sync"))
    )
