"""What better lips would be worth: figures of the mouth while generated lips are led towards the true ones.

    python benchmarks/mouth_curve.py VALIDATION [--preset lite-128] [--shares 0 0.25 0.5 0.75 1] [--limit 5]

Head pose and blinks are the true ones; expression is (1 - share) generated + share tracked. Correlations are of the driving
lips, before anything is drawn; PSNR is of the drawn mouth box, mean over clips.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dawn.engines.lite import LiteEngine
from dawn.measures import lips, picture
from dawn.pipeline import Dawn
from dawn.preprocess.tracker import FaceTracker
from dawn.research.evaluation.bench import Bench, read_clips
from dawn.research.evaluation.spoken import move_in_true_pose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("--preset", default="lite-128")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1])
    parser.add_argument("--limit", type=int, help="only the first so many clips of each person")
    args = parser.parse_args()
    engine = Dawn.from_pretrained(args.preset, "cpu").engine
    assert isinstance(engine, LiteEngine), "a lite preset"
    clips = read_clips(args.clips, engine.native_px, engine.mean_face(), args.limit)
    with FaceTracker() as tracker, torch.inference_mode():
        bench = Bench(args.preset, engine, tracker, clips, lambda *_: None)
        posed = [move_in_true_pose(engine, clip, seed) for seed, clip in enumerate(clips)]
        print("share of the truth  correlation of the opening  mouth-box PSNR")
        for share in args.shares:
            sums, decibels = np.zeros(3), []
            for clip, one in zip(clips, posed, strict=True):
                expression = torch.lerp(torch.from_numpy(one.made.expression), one.true, share)
                shapes = engine.networks.motion.shapes(expression, torch.from_numpy(clip.face.shape))
                sums += lips.correlation_sums(lips.lip_distance(shapes.numpy()), lips.lip_distance(clip.landmarks))
                points = picture.to_pixels(clip.landmarks, clip.frames.shape[1])
                frames = bench.draw(clip, replace(one.made, expression=expression.numpy()))
                decibels.append(picture.box_psnr(frames, clip.frames, [picture.mouth_box(p) for p in points]))
            print(f"{share:18.2f} {lips.correlation(sums):27.3f} {np.mean(decibels):12.2f} dB", flush=True)


if __name__ == "__main__":
    main()
