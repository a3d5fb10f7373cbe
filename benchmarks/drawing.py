"""Drawing frames: batches one after the other on all threads of torch, and side by side with one thread each.

    python benchmarks/drawing.py [--preset lite-128] [--repeats 3] [--threads 2]

Of the example portrait, at the side that the preset draws at and at 256 px; the two ways take turns, and medians are compared.
Drawing only: no sound, no motion, no video file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from unittest import mock

import torch

from dawn import pipeline
from dawn.rendering import draw, parallel
from dawn.video import Video

EXAMPLES = Path(__file__).parents[1] / "examples"


def seconds(video: Video, workers: int) -> float:
    with mock.patch.object(draw, "count_workers", lambda: workers):
        start = time.perf_counter()
        for _ in video:
            pass
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="lite-128")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = pipeline.Dawn.from_pretrained(args.preset, "cpu")
    print(f"{args.preset}, torch {torch.__version__}, {args.threads} threads, {parallel.count_workers()} workers")
    for size in sorted({model.config.lfg.image_size_px, 256}):
        video = model(EXAMPLES / "portrait.png", EXAMPLES / "speech.wav", size=size)
        taken: dict[int, list[float]] = {1: [], parallel.count_workers(): []}
        for _ in range(args.repeats):
            for workers, times in taken.items():
                times.append(seconds(video, workers))
        one, many = (statistics.median(times) for times in (taken[1], taken[parallel.count_workers()]))
        speeds = f"one batch after the other {len(video) / one:.1f} frames/s, side by side {len(video) / many:.1f}"
        print(f"{size} px: {speeds}: {one / many:.2f} x")


if __name__ == "__main__":
    main()
