"""Does a long video decay? Its last ten seconds against its first ten, spoken to the same sound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from dawn.face.geometry import eye_aspect_ratio, remove_pose
from dawn.measures import identity, lips, motion, picture
from dawn.measures.intervals import Float64Array, bootstrap_interval, share
from dawn.research.evaluation.bench import Bench, Shown, pick_portraits
from dawn.research.evaluation.figures import IDENTITY_STRIDE, Tools
from dawn.research.evaluation.spoken import join_sound, make_motion
from dawn.structs import FPS, SPEECH_RATE_HZ, FloatArray

LONG_S = 60
WINDOW_S = 10
LONG_PORTRAITS = 4

UNITS = {
    "sharpness, face": "gradient energy",
    "sharpness, mouth box": "gradient energy",
    "SFace cosine to source": "",
    "jitter": "squared eye distances",
    "flicker": "squared luma",
    "aperture amplitude": "eye distances",
    "mean aperture": "eye distances",
    "pose speed": "deg/s",
    "blinks": "per second",
}


def long_sound(sound: FloatArray) -> FloatArray:
    """Sound (L,) of any length -> a minute whose first and last ten seconds are the same, sample by sample."""
    minute = np.resize(sound, LONG_S * SPEECH_RATE_HZ)
    minute[-WINDOW_S * SPEECH_RATE_HZ :] = minute[: WINDOW_S * SPEECH_RATE_HZ]
    return minute


def own_figures(shown: Shown, source: np.ndarray, where: np.ndarray, tools: Tools) -> dict[str, float]:
    """Figures of frames that need no truth, {name of ``UNITS``: value}.

    source: SFace features (1, 128) of the portrait; where: background pixels (S, S).
    """
    points = picture.to_pixels(shown.landmarks, shown.frames.shape[1])
    shape, pose = remove_pose(torch.from_numpy(shown.landmarks), tools.mean_face)
    features = identity.embed(tools.sface, shown.frames[::IDENTITY_STRIDE], shown.landmarks[::IDENTITY_STRIDE])
    aperture = lips.lip_distance(shown.landmarks)
    return {
        "sharpness, face": picture.gradient_energy(shown.frames, [picture.face_box(p) for p in points]),
        "sharpness, mouth box": picture.gradient_energy(shown.frames, [picture.mouth_box(p) for p in points]),
        "SFace cosine to source": float(identity.cosine(features, source).mean()),
        "jitter": motion.jitter(shape.numpy()),
        "flicker": motion.flicker(shown.frames, where),
        "aperture amplitude": float(aperture.std()),
        "mean aperture": float(aperture.mean()),
        "pose speed": float(motion.angular_speed(pose[:, :3].numpy()).mean()),
        "blinks": motion.blink_count(eye_aspect_ratio(shape).mean(-1).numpy()) / (len(shape) / FPS),
    }


def long_figures(bench: Bench, tools: Tools, takes: int = 1) -> dict[str, Any]:
    """A minute of speech on one portrait of each person (at most four), generated in one piece, so many times each.

    How a head moves differs much from take to take: only many of them tell a decline in jitter, flicker, pose speed and
    blinks from chance. Only the compared frames are drawn: every frame is decoded on its own, so the others change nothing.

    Returns {"seconds", "window_seconds", "portraits", "takes", "rows": {figure: {"unit", "first", "last", "ratio",
    "interval"}}}, as ``compare`` makes them of all takes.
    """
    portraits = pick_portraits([bench.clips[index] for index in bench.voiced], LONG_PORTRAITS)
    portraits = [
        clip for index, clip in enumerate(portraits) if clip.person not in {c.person for c in portraits[:index]}
    ]
    sound = long_sound(join_sound(bench.clips, LONG_S * SPEECH_RATE_HZ))
    pairs = []
    for seed, clip in enumerate(portraits * takes):
        made = make_motion(bench.engine, clip.face, sound, LONG_S * FPS, seed)
        parts = (slice(0, WINDOW_S * FPS), slice((LONG_S - WINDOW_S) * FPS, None))
        first, last = (bench.show(clip, made.at(part)) for part in parts)
        where = motion.background([first.landmarks, last.landmarks], first.frames.shape[1])
        source = identity.embed(tools.sface, clip.frames[:1], clip.landmarks[:1])
        pairs.append(tuple(own_figures(shown, source, where, tools) for shown in (first, last)))
        bench.progress(f"{bench.name}: {LONG_S} s", seed + 1, len(portraits) * takes)
    rows = {name: {"unit": unit, **compare([(a[name], b[name]) for a, b in pairs])} for name, unit in UNITS.items()}
    return {
        "seconds": LONG_S,
        "window_seconds": WINDOW_S,
        "portraits": len(portraits),
        "takes": len(pairs),
        "rows": rows,
    }


def compare(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """(first, last) of each take -> means, their ratio, and its 95 % interval (bootstrap over takes).

    Takes whose values are not numbers are left out. None where nothing can be said: a ratio to 0, an interval of one take.
    """
    usable = np.array([pair for pair in pairs if all(map(math.isfinite, pair))], np.float64).reshape(-1, 2)
    if not len(usable):
        return dict.fromkeys(("first", "last", "ratio", "interval"))
    first, last = usable.mean(0).tolist()
    ratio = last / first if first > 0 else None
    interval = None
    if ratio is not None and len(usable) > 1:
        interval = [*bootstrap_interval(usable, last_over_first, np.random.default_rng(0))]
    return {"first": first, "last": last, "ratio": ratio, "interval": interval}


def last_over_first(sums: Float64Array) -> float:
    """Divide the summed last values by the first."""
    return share(sums[::-1])
