"""From audio alone: do generated lips follow the sound, rest in silence, and does the head live?

The control of the sync figures is the same portrait with the sound of another clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from dawn.evaluation import quality
from dawn.evaluation.driven import identity
from dawn.evaluation.material import Bench, EvalClip, Tracked, render, row, track
from dawn.generation import GenerateOptions, generate_motion, quiet_share
from dawn.models.bundle import Bundle
from dawn.models.face_geometry import eye_aspect_ratio, remove_pose
from dawn.structs import FPS, SPEECH_RATE_HZ, Face, FloatArray, ImageArray, Motion

MAX_LAG_FRAMES = 5
SILENCE_S = 3
SILENT_PORTRAITS = 5
LIFE_S = 60
LIFE_SEEDS = 4
BOOTSTRAP_ROUNDS = 1000


class Spoken(NamedTuple):
    """Frames generated from sound, and what the tracker sees in them."""

    frames: ImageArray
    tracked: Tracked

    @property
    def aperture(self) -> np.ndarray:
        return quality.lip_aperture(self.tracked.landmarks)


def evaluate_spoken(bench: Bench) -> dict[str, dict[str, Any]]:
    """All rows of this part: {name: row}."""
    voiced = [index for index, clip in enumerate(bench.clips) if len(clip.samples)]
    clips = [bench.clips[index] for index in voiced]
    others = exchanged([clip.person for clip in clips])
    made, wrong, same_person, likeness, jitters = [], [], [], [], []
    for position, clip in enumerate(clips):
        spoken = speak(bench, clip.face, clip.samples, len(clip), seed=position)
        made.append(spoken.aperture)
        wrong.append(speak(bench, clip.face, clips[others[position]].samples, len(clip), seed=position).aperture)
        same_person.append(clips[others[position]].person == clip.person)
        likeness.append(identity(bench, spoken.frames, spoken.tracked.landmarks, clip))
        real = bench.real[voiced[position]].landmarks
        found = float(spoken.tracked.found.mean())
        jitters.append((quality.jitter(spoken.tracked.landmarks), quality.jitter(real), found))
        bench.progress("from audio alone", position + 1, len(clips))
    rows = _sync_rows(made, wrong, [quality.lip_aperture(clip.landmarks) for clip in clips])
    still = [identity(bench, clip.frames[:1], clip.landmarks[:1], clip) for clip in clips]
    ours, theirs, seen = np.array(jitters).T
    rows["SFace cosine to truth"] = row(np.mean(likeness), np.mean(still), _interval(likeness))
    rows["jitter"] = row(ours.mean() / theirs.mean(), unit="of real")
    rows["face found again"] = row(seen.mean(), unit="of frames")
    rows["sound exchanged within a person"] = row(np.mean(same_person), unit="of controls")
    return rows | _silence_rows(bench, clips, made) | _life_rows(bench, clips)


def exchanged(people: Sequence[str]) -> list[int]:
    """For every clip the one whose sound it gets instead: never its own, another person's as far as numbers allow.

    Clips in the order of their people, moved on by half their number; the same every time.
    """
    order = sorted(range(len(people)), key=lambda index: (people[index], index))
    out = [0] * len(order)
    for position, index in enumerate(order):
        out[index] = order[(position + len(order) // 2) % len(order)]
    return out


def make_motion(bundle: Bundle, face: Face, samples: FloatArray, frames: int, seed: int) -> Motion:
    """Sound → motion with the preset's own settings."""
    sound = torch.from_numpy(samples)
    features = bundle.audio.encode(sound, frames)
    return generate_motion(bundle, features, face, GenerateOptions(seed=seed), quiet_share(sound, frames))


def speak(bench: Bench, face: Face, samples: FloatArray, frames: int, seed: int) -> Spoken:
    """Sound → motion → frames → landmarks."""
    motion = make_motion(bench.bundle, face, samples, frames, seed)
    numbers = (motion.pose, motion.expression, face.shape, face.pose)
    driving = bench.bundle.motion.landmarks(*map(torch.from_numpy, numbers))
    pictures = render(bench.bundle, face, driving)
    return Spoken(pictures, track(bench.tracker, pictures, face.landmarks))


def _interval(values: Sequence[float]) -> quality.Interval:
    return quality.bootstrap_interval(np.array(values), np.random.default_rng(0))


def _correlation_interval(made: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> tuple[float, float]:
    """95 % percentile bootstrap over clips of the pooled correlation."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(BOOTSTRAP_ROUNDS):
        chosen = rng.integers(0, len(made), len(made))
        values.append(quality.pooled_correlation([made[i] for i in chosen], [true[i] for i in chosen]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def pooled_std(signals: Sequence[np.ndarray]) -> float:
    """Standard deviation over the frames of all clips, each clip's mean taken away."""
    return float(np.concatenate([signal - signal.mean() for signal in signals]).std())


def _sync_rows(made: list[np.ndarray], wrong: list[np.ndarray], true: list[np.ndarray]) -> dict[str, dict[str, Any]]:
    control = quality.pooled_correlation(wrong, true)
    lag = quality.best_lag(made, true, MAX_LAG_FRAMES)
    correlation = quality.pooled_correlation(made, true)
    ours, theirs, real = pooled_std(made), pooled_std(wrong), pooled_std(true)
    return {
        "lip aperture correlation": row(correlation, control, _correlation_interval(made, true)),
        "  control, its interval": row(control, interval=_correlation_interval(wrong, true)),
        "  best lag": row(lag.frames, quality.best_lag(wrong, true, MAX_LAG_FRAMES).frames, unit="frames late"),
        "  correlation there": row(lag.correlation),
        "aperture amplitude": row(ours / real, theirs / real, unit="of real"),
        "mean aperture, speech": row(np.mean(np.concatenate(made)), real=np.mean(np.concatenate(true)),
                                     unit="eye distances"),
    }  # fmt: skip


def pick_portraits(clips: Sequence[EvalClip], count: int) -> list[EvalClip]:
    """As many people as possible: one clip of each in turn."""
    seen: dict[str, int] = {}
    turn = []
    for index, clip in enumerate(clips):
        seen[clip.person] = seen.get(clip.person, 0) + 1
        turn.append((seen[clip.person], index))
    return [clips[index] for _, index in sorted(turn)[:count]]


def _silence_rows(bench: Bench, clips: Sequence[EvalClip], speech: Sequence[np.ndarray]) -> dict[str, dict[str, Any]]:
    """Digital silence: the lips should be shut and rest."""
    quiet = np.zeros(SILENCE_S * SPEECH_RATE_HZ, np.float32)
    portraits = pick_portraits(clips, SILENT_PORTRAITS)
    apertures = []
    for index, clip in enumerate(portraits):
        apertures.append(speak(bench, clip.face, quiet, SILENCE_S * FPS, seed=index).aperture)
        bench.progress("silence", index + 1, len(portraits))
    before = np.mean([quality.lip_aperture(clip.landmarks[:1])[0] for clip in portraits])
    return {
        "aperture movement in silence": row(pooled_std(apertures) / pooled_std(speech), 1.0, unit="of speech"),
        "mean aperture in silence": row(np.mean(np.concatenate(apertures)), before, unit="eye distances"),
    }


def _life_rows(bench: Bench, clips: Sequence[EvalClip]) -> dict[str, dict[str, Any]]:
    """A minute of motion, not rendered, for several seeds. The control is what the clips themselves do."""
    sound = np.concatenate([clip.samples for clip in clips])
    sound = np.resize(sound, LIFE_S * SPEECH_RATE_HZ)
    face = pick_portraits(clips, 1)[0].face
    shown, meant, spread, short = [], [], [], []
    for seed in range(LIFE_SEEDS):
        motion = make_motion(bench.bundle, face, sound, LIFE_S * FPS, seed)
        shape = bench.bundle.motion.shapes(torch.from_numpy(motion.expression), torch.from_numpy(face.shape))
        shown.append(quality.blink_rate(eye_aspect_ratio(shape).mean(-1).numpy(), FPS) / 60)
        meant.append(quality.blink_rate((motion.blink + face.blink).mean(-1), FPS) / 60)
        spread.append(motion.pose[:, :3].std(0))
        short.append(_short_spread(motion.pose[:, :3]))
        bench.progress("a minute of motion", seed + 1, LIFE_SEEDS)
    real_blinks, real_short = _real_life(bench, clips)
    yaw, pitch, roll = np.mean(spread, 0)
    return {
        "blinks per second, shown": row(np.mean(shown), interval=(min(shown), max(shown)), real=real_blinks),
        "blinks per second, by PBNet": row(np.mean(meant), interval=(min(meant), max(meant)), real=real_blinks),
        "yaw, std over a minute": row(yaw, unit="deg"),
        "pitch, std over a minute": row(pitch, unit="deg"),
        "roll, std over a minute": row(roll, unit="deg"),
        "angles, std within 1.2 s": row(np.mean(short), real=real_short, unit="deg"),
    }


def _short_spread(angles_deg: FloatArray, window: int = 30) -> float:
    """Mean standard deviation of the angles (T, 3) within windows of the clips' usual length."""
    pieces = [angles_deg[start : start + window] for start in range(0, len(angles_deg) - window + 1, window)]
    return float(np.mean([piece.std(0) for piece in pieces or [angles_deg]]))


def _real_life(bench: Bench, clips: Sequence[EvalClip]) -> tuple[float, float]:
    """Blinks a second and short spread of the angles in the clips themselves (short clips cut blinks off: too few)."""
    blinks, spread, frames = 0.0, [], 0
    for clip in clips:
        shape, pose = remove_pose(torch.from_numpy(clip.landmarks), bench.bundle.motion.mean_face)
        blinks += quality.blink_rate(eye_aspect_ratio(shape).mean(-1).numpy(), FPS) / 60 * len(clip) / FPS
        spread.append(_short_spread(pose[:, :3].numpy()))
        frames += len(clip)
    return blinks * FPS / frames, float(np.mean(spread))
