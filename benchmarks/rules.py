"""What each hand rule is worth on prepared clips: the preset, the preset without one rule, and without any.

    python benchmarks/rules.py CLIPS [--preset lite-256]

Lips and eyes are taken from the driving landmarks, before anything is drawn, so that it takes a second a clip. Opening:
correlation and amplitude against the speaker's, pooled over clips. Closures: shares of the speaker's shut frames that are
met, and of the generated ones that are right. Movement in silence: of three silent seconds, of that in speech.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from dawn.engines.lite import LiteEngine
from dawn.face.geometry import eye_aspect_ratio, remove_pose
from dawn.measures import lips
from dawn.measures.motion import blink_count
from dawn.options import GenerateOptions
from dawn.pipeline import Dawn
from dawn.research.evaluation.bench import EvalClip, read_clips
from dawn.research.evaluation.report import closed_thresholds
from dawn.rules_config import RulesConfig
from dawn.structs import FPS, FRAME_SAMPLES

SILENT_FRAMES = 3 * FPS


def without() -> dict[str, RulesConfig]:
    """The rules of each line of the table."""
    whole, none = RulesConfig(), RulesConfig.none()
    off = {name: whole.model_copy(update={name: getattr(none, name)}) for name in ("silence", "blinks", "head")}
    closing = whole.lips.model_copy(update={"closing": 0.0})
    crossing = whole.lips.model_copy(update={"apart": False})
    lines = {"lips.closing": closing, "lips.apart": crossing}
    off = {name: whole.model_copy(update={"lips": rules}) for name, rules in lines.items()} | off
    return {"all rules": whole} | {f"without {name}": rules for name, rules in off.items()} | {"none": none}


def opening_of(engine: LiteEngine, clip: EvalClip, sound: torch.Tensor, frames: int, seed: int) -> np.ndarray:
    """Lip opening and mean eye aspect ratio (frames, 2) of what is generated."""
    features = engine.features(sound, frames)
    motion = engine.generate(features, sound, clip.face, GenerateOptions(seed=seed), lambda done: None)
    points = engine.landmarks(clip.face, motion, 0, frames)
    eyes = eye_aspect_ratio(remove_pose(points, engine.mean_face())[0]).mean(-1)
    return np.stack((lips.lip_distance(points.numpy()), eyes.numpy()), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("--preset", default="lite-256")
    args = parser.parse_args()
    engine = Dawn.from_pretrained(args.preset, "cpu").engine
    assert isinstance(engine, LiteEngine), "a lite preset"
    clips = [clip for clip in read_clips(args.clips, 64, engine.mean_face()) if len(clip.samples)]
    closed = closed_thresholds(clips)
    print(f"{args.preset}, {len(clips)} clips of {len(closed)} people in {args.clips.name}")
    print(f"{'':22} opening r  amplitude  recall  precision  blinks/s  silence")
    for name, rules in without().items():
        engine.config = engine.config.model_copy(update={"rules": rules})
        sums, shut, blinks, seconds = np.zeros(3), np.zeros(4), 0, 0.0
        spoken, silent = [], []
        with torch.inference_mode():
            for seed, clip in enumerate(clips):
                made = opening_of(engine, clip, torch.from_numpy(clip.samples), len(clip), seed)
                true = lips.lip_distance(clip.landmarks)
                sums = sums + lips.correlation_sums(made[:, 0], true)
                shut = shut + lips.closure_sums(made[:, 0], true, closed[clip.person])
                blinks, seconds = blinks + blink_count(made[:, 1]), seconds + len(clip) / FPS
                spoken.append(made[:, 0])
            for seed, clip in enumerate(clips[:5]):
                sound = torch.zeros(SILENT_FRAMES * FRAME_SAMPLES)
                silent.append(opening_of(engine, clip, sound, SILENT_FRAMES, seed)[:, 0])
        recall, precision = shut[0] / max(1, shut[1]), shut[2] / max(1, shut[3])
        movement = lips.pooled_std(silent) / lips.pooled_std(spoken)
        figures = (lips.correlation(sums), lips.amplitude_ratio(sums), recall, precision, blinks / seconds, movement)
        print(f"{name:22} " + "  ".join(f"{x:9.3f}" for x in figures), flush=True)


if __name__ == "__main__":
    main()
