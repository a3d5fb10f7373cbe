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
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dawn.checkpoint import load_into, load_mean_face, read_config, read_weights
from dawn.config import SyncJudgeConfig
from dawn.errors import InputError
from dawn.evaluation.material import row
from dawn.evaluation.spoken import exchanged
from dawn.models.audio_encoder import whole_frames
from dawn.models.sync_judge import (
    MAX_LAG_FRAMES,
    MIN_CLIP_FRAMES,
    SOUND_MARGIN_FRAMES,
    WINDOW_FRAMES,
    LagDistances,
    SyncJudge,
    lag_distances,
    mouth_crops,
)
from dawn.structs import FPS, FloatArray, ImageArray

SHIPPED_JUDGE = "assets/sync_judge.safetensors"
EMBED_FRAMES = 250
"""Pictures that are looked at in one go: memory does not grow with length."""
SHIFTS_MS = (40, 80, 120, 200, 400)
NEAR_FRAMES = 1


class SyncScore(NamedTuple):
    """See the module's head. confidence and distance: between 0 and 2; offset_frames: above 0, the sound is late."""

    confidence: float
    distance: float
    offset_frames: int


class SyncClip(Protocol):
    """What a judge is validated on; ``material.EvalClip`` is one."""

    @property
    def person(self) -> str: ...
    @property
    def frames(self) -> ImageArray: ...
    @property
    def landmarks(self) -> FloatArray: ...
    @property
    def samples(self) -> FloatArray: ...


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
    mouths = mouth_crops(frames, landmarks, load_mean_face(), judge.config.mouth_size_px)
    sound = whole_frames(torch.from_numpy(np.asarray(samples, np.float32)), count)
    seen = []
    for start in range(0, count - WINDOW_FRAMES + 1, EMBED_FRAMES):
        seen.append(judge.see(mouths[start : start + EMBED_FRAMES + WINDOW_FRAMES - 1][None].to(device))[0])
    return Embedded(torch.cat(seen), judge.hear(sound[None].to(device))[0])


# --------------------------------------------------------------------------------------------------- judging the judge


def validate_judge(judge: SyncJudge, clips: Sequence[SyncClip]) -> dict[str, dict[str, Any]]:
    """Does the judge rank right? True clips in sync, with shifted sound, and with another clip's sound.

    clips: people that the judge was not trained on, three or more clips with sound. Returns rows as ``material.row``
    makes them. "right": the share of clips that the judge finds in better sync with their own sound than otherwise;
    chance is 0.5. A shift is judged by the mean distance at lag 0, since the smallest over lags hardly changes with it.
    Raises InputError.
    """
    made = [embed(judge, clip.frames, clip.landmarks, clip.samples) for clip in clips if len(clip.samples)]
    people = [clip.person for clip in clips if len(clip.samples)]
    if len(made) < 3:
        raise InputError(f"{len(made)} clips with sound: give at least 3 to validate the judge on")
    own = [lag_distances(*clip) for clip in made]
    rows = _set_rows("in sync", own)
    for milliseconds in SHIFTS_MS:
        for sign in (-1, 1):
            rows |= _shift_rows(made, sign * milliseconds * FPS // 1000, sign * milliseconds)
    for name, others in (("another's sound", exchanged(people)), ("own voice, other words", _same_person(people))):
        pairs = [(i, j) for i, j in enumerate(others) if i != j]
        if pairs:
            rows |= _mismatch_rows(name, made, own, pairs)
    return rows


def _set_rows(name: str, clips: Sequence[LagDistances]) -> dict[str, dict[str, Any]]:
    """Figures of a set: pooled, with the mean of the clips' own beside them."""
    whole, each = score_of(pooled(clips)), [score_of(clip) for clip in clips]
    near = np.mean([abs(score.offset_frames) <= NEAR_FRAMES for score in each])
    return {
        f"{name}: confidence, pooled": row(whole.confidence),
        f"{name}: confidence, mean of clips": row(np.mean([score.confidence for score in each])),
        f"{name}: distance, pooled": row(whole.distance),
        f"{name}: distance, mean of clips": row(np.mean([score.distance for score in each])),
        f"{name}: offset, pooled": row(whole.offset_frames, unit="frames"),
        f"{name}: offset within 1 frame": row(near, unit="of clips"),
    }


def shifted(clip: Embedded, shift_frames: int) -> Embedded:
    """The vectors of the clip with its sound moved later by so many frames (earlier, if negative), cut to what is left."""
    late, early = max(shift_frames, 0), max(-shift_frames, 0)
    return Embedded(clip.seen[late : len(clip.seen) - early], clip.heard[early : len(clip.heard) - late])


def _mean_at(clip: Embedded, lag: int, first: int, last: int) -> float:
    """Mean distance of the picture windows [first, last) to the sound ``lag`` frames later."""
    where = slice(first + lag - SOUND_MARGIN_FRAMES, last + lag - SOUND_MARGIN_FRAMES)
    return float((clip.seen[first:last] - clip.heard[where]).norm(dim=1).mean())


def prefers_sync(clip: Embedded, shift_frames: int) -> bool:
    """Is the sound where it belongs nearer to the same pictures than the sound moved by ``shift_frames``?"""
    first = SOUND_MARGIN_FRAMES + max(shift_frames, 0)
    last = SOUND_MARGIN_FRAMES + len(clip.heard) + min(shift_frames, 0)
    if last - first < 1:
        raise InputError(f"a clip of {len(clip.heard) + 6} frames is too short to shift by {shift_frames}")
    return _mean_at(clip, 0, first, last) < _mean_at(clip, -shift_frames, first, last)


def _shift_rows(clips: Sequence[Embedded], shift_frames: int, milliseconds: int) -> dict[str, dict[str, Any]]:
    right = np.mean([prefers_sync(clip, shift_frames) for clip in clips])
    moved = [shifted(clip, shift_frames) for clip in clips]
    found = score_of(pooled([lag_distances(*clip) for clip in moved]))
    return {
        f"sound {milliseconds:+d} ms: right": row(right, unit="of clips"),
        f"sound {milliseconds:+d} ms: offset, pooled": row(found.offset_frames, shift_frames, unit="frames (control: true)"),
    }


def _same_person(people: Sequence[str]) -> list[int]:
    """For every clip the next one of the same person, in a circle; itself where a person has only one."""
    out = []
    for index, person in enumerate(people):
        own = [other for other, name in enumerate(people) if name == person]
        out.append(own[(own.index(index) + 1) % len(own)])
    return out


def _mismatch_rows(name: str, clips: Sequence[Embedded], own: Sequence[LagDistances],
                   pairs: Sequence[tuple[int, int]]) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Every clip with another clip's sound, cut to the shorter of both."""
    wrong, at_zero = [], []
    for index, other in pairs:
        length = min(len(clips[index].heard), len(clips[other].heard))
        seen = clips[index].seen[: length + 2 * SOUND_MARGIN_FRAMES]
        mixed = Embedded(seen, clips[other].heard[:length])
        true = Embedded(seen, clips[index].heard[:length])
        wrong.append(lag_distances(*mixed))
        ends = (SOUND_MARGIN_FRAMES, SOUND_MARGIN_FRAMES + length)
        at_zero.append(_mean_at(true, 0, *ends) < _mean_at(mixed, 0, *ends))
    mine, theirs = [score_of(own[index]) for index, _ in pairs], [score_of(clip) for clip in wrong]
    nearer = np.mean([a.distance < b.distance for a, b in zip(mine, theirs, strict=True)])
    surer = np.mean([a.confidence > b.confidence for a, b in zip(mine, theirs, strict=True)])
    return _set_rows(name, wrong) | {
        f"{name}: right by distance at lag 0": row(np.mean(at_zero), unit="of clips"),
        f"{name}: right by distance": row(nearer, unit="of clips"),
        f"{name}: right by confidence": row(surer, unit="of clips"),
    }
