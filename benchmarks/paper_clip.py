"""A whole clip with the published model, weights at random: seconds of each stage and peak memory.

    python benchmarks/paper_clip.py [--size 256] [--frames 400] [--steps 20] [--sampler ddim] [--device cuda]
        [--precision bfloat16]

Speech features are noise, so HuBERT is not counted. Random weights cost what trained ones cost.
"""

from __future__ import annotations

import argparse
import time

import torch
from paper_model import peak_mb

from dawn.config import PaperLFGConfig, PaperPresetConfig, UNetConfig
from dawn.engines.paper import PaperEngine
from dawn.models.paper.bundle import PaperBundle
from dawn.options import GenerateOptions
from dawn.research.evaluation.bench import make_face

BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="side of the pictures: 128 or 256")
    parser.add_argument("--frames", type=int, default=200, help="25 a second")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", choices=("ddim", "dpm++"), default="ddim")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the A2V network")
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = PaperPresetConfig(
        name="random", lfg=PaperLFGConfig(image_size_px=args.size), unet=UNetConfig(latent_size=args.size // 4)
    )
    engine = PaperEngine(PaperBundle(config).eval().requires_grad_(False), torch.device(args.device))
    mean = engine.mean_face()
    crop = torch.randint(256, (args.size, args.size, 3), dtype=torch.uint8).numpy()
    face = make_face(crop, (0.5 * mean / mean[:, :2].abs().max()).numpy(), mean)
    features = torch.randn(args.frames, 1024, device=args.device)
    before = peak_mb(args.device)
    start = time.perf_counter()
    options = GenerateOptions(steps=args.steps, sampler=args.sampler, precision=args.precision)
    motion = engine.generate(features, torch.zeros(0), face, options, lambda done: None)
    made = time.perf_counter()
    source = engine.source(face)
    for first in range(0, args.frames, BATCH):
        engine.decode(source, face, motion, first, min(first + BATCH, args.frames))[0].cpu()
    done = time.perf_counter()
    print(
        f"{args.size} px, {args.frames} frames, {args.sampler} {args.steps} steps, {args.precision}, {args.device}: "
        f"motion {made - start:.2f} s, decoding {done - made:.2f} s, together {done - start:.2f} s; "
        f"peak {peak_mb(args.device):.0f} MB, {before:.0f} of them before the clip"
    )


if __name__ == "__main__":
    main()
