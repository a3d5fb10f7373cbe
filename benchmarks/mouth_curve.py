"""What better lips would be worth: figures of the mouth while generated lips are led towards the true ones.

    python benchmarks/mouth_curve.py VALIDATION [--preset lite-128] [--shares 0 0.25 0.5 0.75 1] [--limit 5]

Head pose and blinks are the true ones; expression is (1 - share) generated + share tracked. Correlations are of the driving
lips, before anything is drawn; PSNR is of the drawn mouth box, mean over clips.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from dawn.measures import lips, picture
from dawn.models.lite.bundle import LiteBundle
from dawn.pipeline import Dawn
from dawn.preprocess.tracker import FaceTracker
from dawn.research.evaluation.bench import Bench, read_clips
from dawn.research.evaluation.spoken import motion_in_true_pose, show_in_true_pose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("--preset", default="lite-128")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1])
    parser.add_argument("--limit", type=int, help="only the first so many clips of each person")
    args = parser.parse_args()
    bundle = Dawn.from_pretrained(args.preset, "cpu").bundle
    assert isinstance(bundle, LiteBundle), "a lite preset"
    clips = read_clips(args.clips, bundle.config.lfg.image_size_px, bundle.motion.mean_face, args.limit)
    with FaceTracker() as tracker, torch.inference_mode():
        bench = Bench(args.preset, bundle, tracker, clips, lambda *_: None)
        posed = [motion_in_true_pose(bundle, clip, seed) for seed, clip in enumerate(clips)]
        print("share of the truth  correlation of the opening  mouth-box PSNR")
        for share in args.shares:
            sums, decibels = np.zeros(3), []
            for clip, one in zip(clips, posed, strict=True):
                expression = torch.lerp(one.made, one.true, share)
                shapes = bundle.motion.shapes(expression, torch.from_numpy(clip.face.shape))
                sums += lips.correlation_sums(lips.lip_aperture(shapes.numpy()), lips.lip_aperture(clip.landmarks))
                points = picture.to_pixels(clip.landmarks, clip.frames.shape[1])
                frames = show_in_true_pose(bench, clip, one.turn, expression).frames
                decibels.append(picture.box_psnr(frames, clip.frames, [picture.mouth_box(p) for p in points]))
            print(f"{share:18.2f} {lips.correlation(sums):27.3f} {np.mean(decibels):12.2f} dB", flush=True)


if __name__ == "__main__":
    main()
