"""Does a head move otherwise late in a minute than early? Pose alone, of very many takes, nothing drawn.

    python benchmarks/minute.py examples/portrait.png examples/portraits/*.jpg --speech examples/speech.wav [--takes 1000]

Every ten seconds have the same sound, every take another seed. Flicker of the background and blur of a video follow the
energy of the head's motion, of which a few turns decide: `dawn evaluate --takes` draws too few to tell a small change from
chance. The first two seconds, which begin at the portrait's own pose, are also left out of every window.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from dawn import media
from dawn.engines.lite import generate_head
from dawn.engines.rules import shape_head
from dawn.face.geometry import eye_aspect_ratio
from dawn.measures.intervals import bootstrap_interval
from dawn.models.lite.bundle import LiteBundle
from dawn.models.lite.pbnet import first_state
from dawn.options import GenerateOptions
from dawn.pipeline import Dawn
from dawn.progress import Stopwatch
from dawn.research.evaluation.minute import LONG_S, WINDOW_S, last_over_first
from dawn.structs import FPS, POSE_SIZE, SPEECH_RATE_HZ, Speech

WINDOWS, WINDOW_FRAMES = LONG_S // WINDOW_S, WINDOW_S * FPS
START_FRAMES = 2 * FPS
SHIFT_DEGREES = 60.0
"""A shift by the crop's half side moves its pixels about as much as so many degrees."""


def window_figures(pose: torch.Tensor) -> list[torch.Tensor]:
    """Pose changes (T, 6) of a minute -> energy and speed of motion, mean turn, each (6 windows, frames)."""
    step = pose.diff(dim=0, append=pose[-1:]) * torch.tensor([1, 1, 1, *3 * [SHIFT_DEGREES]])
    energy = step.square().sum(1)
    return [x.view(WINDOWS, WINDOW_FRAMES) for x in (energy, energy.sqrt(), pose[:, :3].abs().mean(1))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("portraits", nargs="+", type=Path)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--preset", default="lite-128")
    parser.add_argument("--takes", type=int, default=1000)
    args = parser.parse_args()
    dawn = Dawn.from_pretrained(args.preset, "cpu")
    assert isinstance(dawn.bundle, LiteBundle), "a lite preset"
    faces = [dawn.prepare(path) for path in args.portraits]
    ten = np.resize(media.read_speech(args.speech).samples, WINDOW_S * SPEECH_RATE_HZ)
    _, audio = dawn.heard(Speech(np.tile(ten, WINDOWS), float(LONG_S)), Stopwatch())
    rows = []
    for seed in range(args.takes):
        face = faces[seed % len(faces)]
        first = first_state(torch.from_numpy(face.pose), eye_aspect_ratio(torch.from_numpy(face.shape)))
        generator = torch.Generator().manual_seed(seed)
        head = generate_head(dawn.bundle.pbnet, audio, first, dawn.bundle.config.sampler, generator)
        pose = shape_head(head, GenerateOptions())[:, :POSE_SIZE] * dawn.bundle.motion.pose_scale
        figures = window_figures(pose)
        rows.append([x.mean(1).tolist() for x in (*figures, *(x[:, START_FRAMES:] for x in figures))])
    of_takes = np.array(rows)
    names = [f"{name}{part}" for part in ("", ", from 2 s on") for name in ("energy of motion", "speed", "mean turn")]
    print(f"{args.preset}, {args.takes} takes of {len(faces)} portraits; windows of {WINDOW_S} s against the first")
    for index, name in enumerate(names):
        mean = of_takes[:, index].mean(0)
        low, high = bootstrap_interval(of_takes[:, index][:, [0, -1]], last_over_first, np.random.default_rng(0))
        print(f"{name:30s}", *(f"{x:.3f}" for x in mean / mean[0]), f"  last: 95 % {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
