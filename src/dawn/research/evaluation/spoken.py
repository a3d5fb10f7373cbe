"""Frames from sound: the clip's own or another's, with generated head motion or the true one; silence; a minute of motion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dawn.engines.engine import Engine
from dawn.engines.lite import LiteEngine
from dawn.face.geometry import (
    POSE_SMOOTHING_FRAMES,
    SHAPE_SMOOTHING_FRAMES,
    eye_aspect_ratio,
    remove_pose,
    smooth,
    subtract_pose,
)
from dawn.measures import lips, motion
from dawn.measures.intervals import Interval
from dawn.measures.lips import pooled_std
from dawn.models.lite.pbnet import EAR_UNIT
from dawn.options import GenerateOptions
from dawn.progress import Stopwatch
from dawn.research.evaluation.bench import Bench, EvalClip, Shown, pick_portraits, place_clip
from dawn.structs import FPS, SPEECH_RATE_HZ, Face, FloatArray, Motion

SILENCE_S = 3
SILENT_PORTRAITS = 5
LIFE_S = 60
LIFE_SEEDS = 4


class Spoken(NamedTuple):
    """What was generated from sound, and the seconds that each stage took."""

    shown: Shown
    seconds: dict[str, float]


def exchange_sounds(people: Sequence[str]) -> list[int]:
    """For every clip the one whose sound it gets instead: never its own, another person's as far as numbers allow.

    Clips in the order of their people, moved on by half their number; the same every time.
    """
    order = sorted(range(len(people)), key=lambda index: (people[index], index))
    out = [0] * len(order)
    for position, index in enumerate(order):
        out[index] = order[(position + len(order) // 2) % len(order)]
    return out


def make_motion(
    engine: Engine[Any], face: Face, samples: FloatArray, frames: int, seed: int, watch: Stopwatch | None = None
) -> Motion:
    """Sound → motion with the preset's own settings."""
    watch, sound = watch or Stopwatch(), torch.from_numpy(samples).to(engine.device)
    with watch.stage("audio features"):
        features = engine.features(sound, frames)
    with watch.stage("motion"):
        return engine.generate(features, sound, face, GenerateOptions(seed=seed), lambda done: None)


def speak(bench: Bench, clip: EvalClip, samples: FloatArray, frames: int, seed: int) -> Spoken:
    """Sound → motion → frames → landmarks, on the clip's first frame."""
    watch = Stopwatch()
    made = make_motion(bench.engine, place_clip(clip, bench.engine).face, samples, frames, seed, watch)
    with watch.stage("decoding"):
        pictures = bench.draw(clip, made)
    return Spoken(bench.look(clip, pictures), watch.seconds)


class InTruePose(NamedTuple):
    """Motion of a clip in its own head pose: lips from sound, and the true (T, K) expression as tracked."""

    made: Motion
    true: Tensor


@torch.inference_mode()
def move_in_true_pose(engine: LiteEngine, clip: EvalClip, seed: int) -> InTruePose:
    """As ``make_motion``, but PBNet is left out: head pose and blinks are the clip's own, smoothed as for training."""
    face, frames, space = clip.face, len(clip), engine.networks.motion
    shape, pose = remove_pose(torch.from_numpy(clip.landmarks), space.mean_face.cpu())
    shape, pose = smooth(shape, SHAPE_SMOOTHING_FRAMES), smooth(pose, POSE_SMOOTHING_FRAMES)
    own_shape = torch.from_numpy(face.shape)
    turn = subtract_pose(pose, torch.from_numpy(face.pose))
    blink = eye_aspect_ratio(shape) - eye_aspect_ratio(own_shape)
    sound = torch.from_numpy(clip.samples).to(engine.device)
    head = torch.cat((turn.to(engine.device) / space.pose_scale, blink.to(engine.device) / EAR_UNIT), -1)
    generator = torch.Generator().manual_seed(seed)
    lips_of_sound = engine.sample_lips(engine.features(sound, frames), sound, head, face, GenerateOptions(), generator)
    made = Motion(turn.numpy(), blink.numpy(), lips_of_sound.cpu().numpy())
    return InTruePose(made, space.encode(shape.to(engine.device), own_shape.to(engine.device)).cpu())


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
        apertures.append(lips.lip_distance(shown.landmarks))
        bench.progress(f"{bench.name}: silence", index + 1, len(portraits))
    return {
        "movement": pooled_std(apertures) / pooled_std(speech),
        "aperture": float(np.mean(np.concatenate(apertures))),
        "portrait": float(np.mean([lips.lip_distance(clip.landmarks[:1])[0] for clip in portraits])),
    }


def life_figures(bench: Bench) -> dict[str, tuple[float, Interval]]:
    """A minute of motion, not rendered, for several seeds: {figure: (mean, (lowest, highest of the seeds))}.

    "shown": blinks a second of the driving eyes; "meant": of PBNet's own blink signal; yaw, pitch, roll: standard
    deviation over the minute in degrees.
    """
    sound = join_sound(bench.clips, LIFE_S * SPEECH_RATE_HZ)
    face = pick_portraits(bench.clips, 1)[0].face
    space = bench.engine.motion_space
    assert space is not None
    figures: dict[str, list[float]] = {}
    for seed in range(LIFE_SEEDS):
        made = make_motion(bench.engine, face, sound, LIFE_S * FPS, seed)
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


def join_sound(clips: Sequence[EvalClip], length: int) -> FloatArray:
    """The clips' sounds one after the other, from the start again as often as needed: (length,)."""
    return np.resize(np.concatenate([clip.samples for clip in clips]), length)
