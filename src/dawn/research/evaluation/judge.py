"""How far the sync judge can be trusted: clips in step against clips that are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from dawn.errors import InputError
from dawn.measures.sync import ClipVectors, embed, pool_distances, score_distances
from dawn.models.judges.sync import SOUND_MARGIN_FRAMES, LagDistances, SyncJudge, lag_distances
from dawn.research.evaluation.bench import make_row
from dawn.research.evaluation.spoken import exchange_sounds
from dawn.structs import FPS, FloatArray, ImageArray

SHIFTS_MS = (40, 80, 120, 200, 400)


NEAR_FRAMES = 1


class SyncClip(Protocol):
    """What a judge is validated on; ``bench.EvalClip`` is one."""

    @property
    def person(self) -> str:
        """Name who speaks."""

    @property
    def frames(self) -> ImageArray:
        """Give the pictures (T, S, S, 3) uint8."""

    @property
    def landmarks(self) -> FloatArray:
        """Give the landmarks of every frame in crop units."""

    @property
    def samples(self) -> FloatArray:
        """Give the sound at 16 kHz."""


def validate_judge(judge: SyncJudge, clips: Sequence[SyncClip]) -> dict[str, dict[str, Any]]:
    """Does the judge rank right? True clips in sync, with shifted sound, and with another clip's sound.

    clips: people that the judge was not trained on, three or more clips with sound. Returns rows as ``bench.make_row``
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
    for name, others in (
        ("another's sound", exchange_sounds(people)),
        ("own voice, other words", _same_person(people)),
    ):
        pairs = [(i, j) for i, j in enumerate(others) if i != j]
        if pairs:
            rows |= _mismatch_rows(name, made, own, pairs)
    return rows


def _set_rows(name: str, clips: Sequence[LagDistances]) -> dict[str, dict[str, Any]]:
    """Figures of a set: pooled, with the mean of the clips' own beside them."""
    whole, each = score_distances(pool_distances(clips)), [score_distances(clip) for clip in clips]
    near = np.mean([abs(score.offset_frames) <= NEAR_FRAMES for score in each])
    return {
        f"{name}: confidence, pooled": make_row(whole.confidence),
        f"{name}: confidence, mean of clips": make_row(np.mean([score.confidence for score in each])),
        f"{name}: distance, pooled": make_row(whole.distance),
        f"{name}: distance, mean of clips": make_row(np.mean([score.distance for score in each])),
        f"{name}: offset, pooled": make_row(whole.offset_frames, unit="frames"),
        f"{name}: offset within 1 frame": make_row(near, unit="of clips"),
    }


def shifted(clip: ClipVectors, shift_frames: int) -> ClipVectors:
    """The vectors of the clip with its sound moved later by so many frames (earlier, if negative), cut to what is left."""
    late, early = max(shift_frames, 0), max(-shift_frames, 0)
    return ClipVectors(clip.seen[late : len(clip.seen) - early], clip.heard[early : len(clip.heard) - late])


def _mean_at(clip: ClipVectors, lag: int, first: int, last: int) -> float:
    """Mean distance of the picture windows [first, last) to the sound ``lag`` frames later."""
    where = slice(first + lag - SOUND_MARGIN_FRAMES, last + lag - SOUND_MARGIN_FRAMES)
    return float((clip.seen[first:last] - clip.heard[where]).norm(dim=1).mean())


def prefers_sync(clip: ClipVectors, shift_frames: int) -> bool:
    """Is the sound where it belongs nearer to the same pictures than the sound moved by ``shift_frames``?"""
    first = SOUND_MARGIN_FRAMES + max(shift_frames, 0)
    last = SOUND_MARGIN_FRAMES + len(clip.heard) + min(shift_frames, 0)
    if last - first < 1:
        raise InputError(f"a clip of {len(clip.heard) + 6} frames is too short to shift by {shift_frames}")
    return _mean_at(clip, 0, first, last) < _mean_at(clip, -shift_frames, first, last)


def _shift_rows(clips: Sequence[ClipVectors], shift_frames: int, milliseconds: int) -> dict[str, dict[str, Any]]:
    right = np.mean([prefers_sync(clip, shift_frames) for clip in clips])
    moved = [shifted(clip, shift_frames) for clip in clips]
    found = score_distances(pool_distances([lag_distances(*clip) for clip in moved]))
    return {
        f"sound {milliseconds:+d} ms: right": make_row(right, unit="of clips"),
        f"sound {milliseconds:+d} ms: offset, pooled": make_row(
            found.offset_frames, shift_frames, unit="frames (control: true)"
        ),
    }


def _same_person(people: Sequence[str]) -> list[int]:
    """For every clip the next one of the same person, in a circle; itself where a person has only one."""
    out = []
    for index, person in enumerate(people):
        own = [other for other, name in enumerate(people) if name == person]
        out.append(own[(own.index(index) + 1) % len(own)])
    return out


def _mismatch_rows(
    name: str, clips: Sequence[ClipVectors], own: Sequence[LagDistances], pairs: Sequence[tuple[int, int]]
) -> dict[str, dict[str, Any]]:
    """Every clip with another clip's sound, cut to the shorter of both."""
    wrong, at_zero = [], []
    for index, other in pairs:
        length = min(len(clips[index].heard), len(clips[other].heard))
        seen = clips[index].seen[: length + 2 * SOUND_MARGIN_FRAMES]
        mixed = ClipVectors(seen, clips[other].heard[:length])
        true = ClipVectors(seen, clips[index].heard[:length])
        wrong.append(lag_distances(*mixed))
        ends = (SOUND_MARGIN_FRAMES, SOUND_MARGIN_FRAMES + length)
        at_zero.append(_mean_at(true, 0, *ends) < _mean_at(mixed, 0, *ends))
    mine, theirs = [score_distances(own[index]) for index, _ in pairs], [score_distances(clip) for clip in wrong]
    nearer = np.mean([a.distance < b.distance for a, b in zip(mine, theirs, strict=True)])
    surer = np.mean([a.confidence > b.confidence for a, b in zip(mine, theirs, strict=True)])
    return _set_rows(name, wrong) | {
        f"{name}: right by distance at lag 0": make_row(np.mean(at_zero), unit="of clips"),
        f"{name}: right by distance": make_row(nearer, unit="of clips"),
        f"{name}: right by confidence": make_row(surer, unit="of clips"),
    }
