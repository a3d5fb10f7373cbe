"""Sync confidence and sync distance, dawn's judge: do the lips of a video go with its sound?

Defined as LSE-C and LSE-D are (SyncNet, Chung and Zisserman 2016), but measured by this project's own small network
(``models.sync_judge``): compare its figures with each other, never with figures of SyncNet.

For every window of 5 frames and every lag from -10 to +10 frames take the Euclidean distance between what is seen there
and what is heard that much later; average over windows. Then

    distance    the smallest of the averages (0 to 2; less is better)
    confidence  their median minus the smallest (more is better; near 0 when no lag stands out)
    offset      the lag of the smallest, in frames; above 0 the sound is late

Clips of a second have few windows, and the smallest of 21 noisy averages is small by chance too. The figure for a set of
clips is therefore pooled: distances are averaged per lag over the windows of all clips first (``pooled``).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dawn.checkpoint import load_into, load_mean_face, read_config, read_weights
from dawn.config import SyncJudgeConfig
from dawn.errors import InputError
from dawn.models.audio.features import fit_to_frames
from dawn.models.judges.sync import (
    MAX_LAG_FRAMES,
    MIN_CLIP_FRAMES,
    WINDOW_FRAMES,
    LagDistances,
    SyncJudge,
    crop_mouths,
    lag_distances,
)
from dawn.structs import FloatArray, ImageArray

SHIPPED_JUDGE = "assets/sync_judge.safetensors"
EMBED_FRAMES = 250
"""Pictures that are looked at in one go: memory does not grow with length."""


class SyncScore(NamedTuple):
    """See the module's head. confidence and distance: between 0 and 2; offset_frames: above 0, the sound is late."""

    confidence: float
    distance: float
    offset_frames: int


class Embedded(NamedTuple):
    """Vectors of length 1: seen (T - 4, E), heard (T - 6, E); heard[j] belongs to seen[j + 1]."""

    seen: Tensor
    heard: Tensor


def load_judge(path: Path | None = None) -> SyncJudge:
    """A judge ready for use: the shipped one, or ``sync.safetensors`` of a training run.

    The configuration is read from the JSON file of the same name beside it, if there is one. Raises CheckpointError,
    ConfigError.
    """
    weights = Path(str(files("dawn").joinpath(SHIPPED_JUDGE))) if path is None else path
    described = weights.with_suffix(".json")
    judge = SyncJudge(read_config(described, SyncJudgeConfig) if described.is_file() else None)
    load_into(judge, read_weights(weights), str(weights))
    return judge.eval().requires_grad_(False)


def sync_scores(judge: SyncJudge, frames: ImageArray, landmarks: FloatArray, samples: FloatArray) -> SyncScore:
    """How well one clip's lips go with its sound.

    frames (T, H, W, 3) uint8; landmarks (T, 478, 3) crop units of those frames; samples (L,) float32 at 16 kHz from the
    first frame on. Raises InputError for under 15 frames, landmarks of another number, no sound or a silent one.
    """
    return score_of(clip_distances(judge, frames, landmarks, samples))


def clip_distances(judge: SyncJudge, frames: ImageArray, landmarks: FloatArray, samples: FloatArray) -> LagDistances:
    """Distances by lag of one clip, from which ``score_of`` and ``pooled`` make figures. As ``sync_scores``."""
    return lag_distances(*embed(judge, frames, landmarks, samples))


def pooled(clips: Sequence[LagDistances]) -> LagDistances:
    """Distances of all windows of all clips together; ``score_of`` it for the figure of a set. Raises InputError if empty."""
    if not clips:
        raise InputError("no clips to judge the sync of; give at least one")
    return LagDistances(np.sum([c.sums for c in clips], 0), np.sum([c.counts for c in clips], 0))


def score_of(distances: LagDistances) -> SyncScore:
    """Confidence, distance, offset of one clip or of a pool. Of equal minima the one at the smaller lag counts."""
    lags = np.arange(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1)
    there = np.flatnonzero(distances.counts)
    there = there[np.argsort(np.abs(lags[there]), kind="stable")]
    means = distances.sums[there] / distances.counts[there]
    best = int(means.argmin())
    return SyncScore(float(np.median(means) - means[best]), float(means[best]), int(lags[there[best]]))


@torch.inference_mode()
def embed(judge: SyncJudge, frames: ImageArray, landmarks: FloatArray, samples: FloatArray) -> Embedded:
    """The vectors of one clip. As ``sync_scores``."""
    count = len(frames)
    if count != len(landmarks):
        raise InputError(f"{count} frames and landmarks of {len(landmarks)}: give as many of both")
    if count < MIN_CLIP_FRAMES:
        raise InputError(f"{count} frames are too few to judge sync: give at least {MIN_CLIP_FRAMES}")
    if not len(samples) or not np.any(samples):
        raise InputError("there is no sound to judge sync with; give a clip in which somebody speaks")
    device = judge.sharpness.device
    mouths = crop_mouths(frames, landmarks, load_mean_face(), judge.config.mouth_size_px)
    sound = fit_to_frames(torch.from_numpy(np.asarray(samples, np.float32)), count)
    seen = []
    for start in range(0, count - WINDOW_FRAMES + 1, EMBED_FRAMES):
        seen.append(judge.see(mouths[start : start + EMBED_FRAMES + WINDOW_FRAMES - 1][None].to(device))[0])
    return Embedded(torch.cat(seen), judge.hear(sound[None].to(device))[0])


# --------------------------------------------------------------------------------------------------- judging the judge
