"""Sync confidence and sync distance, dawn's judge: do the lips of a video go with its sound?

They are defined like LSE-C and LSE-D (SyncNet, Chung and Zisserman 2016). But this project's own small network
(``models.judges.sync``) measures them: compare its figures with each other, never with figures of SyncNet.

Every window of 5 frames is compared with the sound at every lag from -10 to +10 frames. The Euclidean distances between
the vectors of both are averaged over windows. Then

    distance    the smallest of the averages (0 to 2; less is better)
    confidence  their median minus the smallest (more is better; near 0 when no lag stands out)
    offset      the lag of the smallest, in frames; above 0 the sound is late

Clips of a second have few windows, and the smallest of 21 noisy averages is small by chance too. For a set of clips the
distances are therefore averaged per lag over the windows of all clips first (``pool_distances``).
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
"""Frames that the network sees at once, so that memory does not grow with length."""


class SyncScore(NamedTuple):
    """What the module's head defines.

    confidence, distance: between 0 and 2. offset_frames: above 0 the sound is late.
    """

    confidence: float
    distance: float
    offset_frames: int


class ClipVectors(NamedTuple):
    """One clip's vectors, each of length 1.

    seen: (T - 4, E). heard: (T - 6, E); heard[j] belongs to seen[j + 1].
    """

    seen: Tensor
    heard: Tensor


def load_judge(path: Path | None = None) -> SyncJudge:
    """Load a judge: the shipped one, or ``sync.safetensors`` of a training run.

    The configuration comes from the JSON file of the same name beside it, if there is one.

    Raises:
        CheckpointError: The weights are missing, damaged or another model's.
        ConfigError: The configuration is not allowed.
    """
    weights = Path(str(files("dawn").joinpath(SHIPPED_JUDGE))) if path is None else path
    described = weights.with_suffix(".json")
    judge = SyncJudge(read_config(described, SyncJudgeConfig) if described.is_file() else None)
    load_into(judge, read_weights(weights), str(weights))
    return judge.eval().requires_grad_(False)


def score_clip(judge: SyncJudge, frames: ImageArray, landmarks: FloatArray, samples: FloatArray) -> SyncScore:
    """Score how well one clip's lips go with its sound.

    Args:
        judge: the network.
        frames: (T, H, W, 3) uint8.
        landmarks: (T, 478, 3) in crop units of the frames.
        samples: (L,) float32 at 16 kHz, from the first frame on.

    Raises:
        InputError: There are under 15 frames, not as many landmarks, or no sound or only silence.
    """
    return score_distances(clip_distances(judge, frames, landmarks, samples))


def clip_distances(judge: SyncJudge, frames: ImageArray, landmarks: FloatArray, samples: FloatArray) -> LagDistances:
    """Measure one clip's distances by lag, for ``score_distances`` and ``pool_distances``. Arguments as ``score_clip``.

    Raises:
        InputError: As ``score_clip``.
    """
    return lag_distances(*embed(judge, frames, landmarks, samples))


def pool_distances(clips: Sequence[LagDistances]) -> LagDistances:
    """Add up the distances of all clips; ``score_distances`` of the sum is the figure of the set.

    Raises:
        InputError: There are no clips.
    """
    if not clips:
        raise InputError("no clips to judge the sync of; give at least one")
    return LagDistances(np.sum([c.sums for c in clips], 0), np.sum([c.counts for c in clips], 0))


def score_distances(distances: LagDistances) -> SyncScore:
    """Compute confidence, distance and offset of one clip or of a pool. On a tie the smaller lag counts."""
    lags = np.arange(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1)
    there = np.flatnonzero(distances.counts)
    there = there[np.argsort(np.abs(lags[there]), kind="stable")]
    means = distances.sums[there] / distances.counts[there]
    best = int(means.argmin())
    return SyncScore(float(np.median(means) - means[best]), float(means[best]), int(lags[there[best]]))


@torch.inference_mode()
def embed(judge: SyncJudge, frames: ImageArray, landmarks: FloatArray, samples: FloatArray) -> ClipVectors:
    """Compute the vectors of one clip. Arguments as ``score_clip``.

    Raises:
        InputError: As ``score_clip``.
    """
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
    return ClipVectors(torch.cat(seen), judge.hear(sound[None].to(device))[0])
