"""Frames from sound: the clip's own or another's, with generated head motion or the true one; silence; a minute of motion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dawn.engines.lite import generate_expression, generate_motion, shape_lips
from dawn.engines.rules import quiet_share
from dawn.face.geometry import (
    POSE_SMOOTHING_FRAMES,
    SHAPE_SMOOTHING_FRAMES,
    eye_aspect_ratio,
    pose_change,
    remove_pose,
    smooth,
)
from dawn.measures import lips, motion
from dawn.measures.intervals import Interval
from dawn.measures.lips import pooled_std
from dawn.models.lite.bundle import LiteBundle
from dawn.models.lite.pbnet import EAR_UNIT
from dawn.options import GenerateOptions
from dawn.pipeline import Stopwatch
from dawn.research.evaluation.bench import Bench, EvalClip, Shown, pick_portraits
from dawn.structs import FPS, SPEECH_RATE_HZ, Face, FloatArray, Motion

SILENCE_S = 3
SILENT_PORTRAITS = 5
LIFE_S = 60
LIFE_SEEDS = 4


class Spoken(NamedTuple):
    """What was generated from sound, and the seconds that each stage took."""

    shown: Shown
    seconds: dict[str, float]


def exchanged(people: Sequence[str]) -> list[int]:
    """For every clip the one whose sound it gets instead: never its own, another person's as far as numbers allow.

    Clips in the order of their people, moved on by half their number; the same every time.
    """
    order = sorted(range(len(people)), key=lambda index: (people[index], index))
    out = [0] * len(order)
    for position, index in enumerate(order):
        out[index] = order[(position + len(order) // 2) % len(order)]
    return out


def make_motion(
    bundle: LiteBundle, face: Face, samples: FloatArray, frames: int, seed: int, watch: Stopwatch | None = None
) -> Motion:
    """Sound → motion with the preset's own settings."""
    watch = watch or Stopwatch()
    sound = torch.from_numpy(samples)
    with watch.stage("audio features"):
        features = bundle.audio.encode(sound, frames)
    with watch.stage("motion"):
        return generate_motion(bundle, features, face, GenerateOptions(seed=seed), quiet_share(sound, frames))


def driving_landmarks(bundle: LiteBundle, face: Face, made: Motion) -> Tensor:
    """Landmarks (T, 478, 3) that show a motion on a face."""
    numbers = (made.pose, made.expression, face.shape, face.pose)
    return bundle.motion.landmarks(*map(torch.from_numpy, numbers))


def speak(bench: Bench, clip: EvalClip, samples: FloatArray, frames: int, seed: int) -> Spoken:
    """Sound → motion → frames → landmarks, on the clip's first frame."""
    watch = Stopwatch()
    made = make_motion(bench.bundle, clip.face, samples, frames, seed, watch)
    with watch.stage("decoding"):
        pictures = bench.draw(clip, driving_landmarks(bench.bundle, clip.face, made))
    return Spoken(bench.look(clip, pictures), watch.seconds)


class InTruePose(NamedTuple):
    """Motion of a clip in its own head pose. turn (T, 6) pose changes; made, true (T, K) expression from sound and tracked."""

    turn: Tensor
    made: Tensor
    true: Tensor


@torch.inference_mode()
def motion_in_true_pose(bundle: LiteBundle, clip: EvalClip, seed: int) -> InTruePose:
    """As ``make_motion``, but PBNet is left out: head pose and blinks are the clip's own, smoothed as for training."""
    face, frames = clip.face, len(clip)
    space, sampler = bundle.motion, bundle.config.sampler
    shape, pose = remove_pose(torch.from_numpy(clip.landmarks), space.mean_face)
    shape, pose = smooth(shape, SHAPE_SMOOTHING_FRAMES), smooth(pose, POSE_SMOOTHING_FRAMES)
    own_shape = torch.from_numpy(face.shape)
    turn = pose_change(pose, torch.from_numpy(face.pose))
    blink = eye_aspect_ratio(shape) - eye_aspect_ratio(own_shape)
    head = torch.cat((turn / space.pose_scale, blink / EAR_UNIT), -1)
    sound = torch.from_numpy(clip.samples)
    generator = torch.Generator().manual_seed(seed)
    expression = generate_expression(
        bundle.a2v,
        bundle.audio.encode(sound, frames),
        head,
        space.describe_source(own_shape),
        sampler.steps,
        sampler.guidance,
        sampler.temperature,
        generator,
    )
    expression = shape_lips(bundle, expression, own_shape, quiet_share(sound, frames), sampler.steps, sampler.guidance)
    return InTruePose(turn, expression, space.encode(shape, own_shape))


def show_in_true_pose(bench: Bench, clip: EvalClip, turn: Tensor, expression: Tensor) -> Shown:
    """Frames of a clip's first frame in its own head pose: comparable with the true ones point by point."""
    numbers = (torch.from_numpy(x) for x in (clip.face.shape, clip.face.pose))
    return bench.show(clip, bench.bundle.motion.landmarks(turn, expression, *numbers))


def silence_figures(bench: Bench, speech: Sequence[np.ndarray]) -> dict[str, float]:
    """Digital silence, in which lips should be shut and rest. speech: apertures (T,) of the same preset's speaking clips.

    "movement": standard deviation of the aperture within a clip of silence over that of speech; "aperture": its mean, in
    eye distances; "portrait": the mean of the portraits' own.
    """
    quiet = np.zeros(SILENCE_S * SPEECH_RATE_HZ, np.float32)
    portraits = pick_portraits([bench.clips[index] for index in bench.voiced], SILENT_PORTRAITS)
    apertures = []
    for index, clip in enumerate(portraits):
        shown = speak(bench, clip, quiet, SILENCE_S * FPS, seed=index).shown
        apertures.append(lips.lip_aperture(shown.landmarks))
        bench.progress(f"{bench.name}: silence", index + 1, len(portraits))
    return {
        "movement": pooled_std(apertures) / pooled_std(speech),
        "aperture": float(np.mean(np.concatenate(apertures))),
        "portrait": float(np.mean([lips.lip_aperture(clip.landmarks[:1])[0] for clip in portraits])),
    }


def life_figures(bench: Bench) -> dict[str, tuple[float, Interval]]:
    """A minute of motion, not rendered, for several seeds: {figure: (mean, (lowest, highest of the seeds))}.

    "shown": blinks a second of the driving eyes; "meant": of PBNet's own blink signal; yaw, pitch, roll: standard
    deviation over the minute in degrees.
    """
    sound = joined_sound(bench.clips, LIFE_S * SPEECH_RATE_HZ)
    face = pick_portraits(bench.clips, 1)[0].face
    space = bench.bundle.motion
    figures: dict[str, list[float]] = {}
    for seed in range(LIFE_SEEDS):
        made = make_motion(bench.bundle, face, sound, LIFE_S * FPS, seed)
        shape = space.shapes(torch.from_numpy(made.expression), torch.from_numpy(face.shape))
        yaw, pitch, roll = made.pose[:, :3].std(0)
        values = {
            "shown": motion.blink_count(eye_aspect_ratio(shape).mean(-1).numpy()) / LIFE_S,
            "meant": motion.blink_count((made.blink + face.blink).mean(-1)) / LIFE_S,
            "yaw": yaw,
            "pitch": pitch,
            "roll": roll,
        }
        for key, value in values.items():
            figures.setdefault(key, []).append(float(value))
        bench.progress(f"{bench.name}: a minute of motion", seed + 1, LIFE_SEEDS)
    return {key: (float(np.mean(x)), Interval(min(x), max(x))) for key, x in figures.items()}


def joined_sound(clips: Sequence[EvalClip], length: int) -> FloatArray:
    """The clips' sounds one after the other, from the start again as often as needed: (length,)."""
    return np.resize(np.concatenate([clip.samples for clip in clips]), length)
