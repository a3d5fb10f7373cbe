"""Where the time of decoding goes, side by side in one run: batch norms folded or not, layouts, frames a batch.

python benchmarks/decoding.py [--preset lite-128] [--frames 64]
"""

from __future__ import annotations

import argparse
import time

import torch

from dawn.engines.load import load_bundle
from dawn.models.blocks import fold_for_inference
from dawn.models.lite.lfg import LatentFlowGenerator


@torch.inference_mode()
def seconds_per_frame(network: LatentFlowGenerator, landmarks: torch.Tensor, batch: int, channels_last: bool) -> float:
    """Best of three passes over all frames."""
    size = network.config.image_size_px
    image = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    source = network.encode(image.contiguous(memory_format=layout), landmarks[:1])
    best = float("inf")
    for _ in range(4):  # the first warms up and is never the best
        start = time.perf_counter()
        for part in landmarks.split(batch):
            network.render(source, part)
        best = min(best, time.perf_counter() - start)
    return best / len(landmarks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="lite-128")
    parser.add_argument("--frames", type=int, default=64)
    args = parser.parse_args()
    bundle = load_bundle(args.preset)
    face = bundle.motion.mean_face * 0.6
    sway = 0.02 * torch.randn((args.frames, 1, 3), generator=torch.Generator().manual_seed(1))
    landmarks = face + sway
    cases = [("as trained, contiguous", False, False, 8), ("folded, contiguous", True, False, 8)]
    cases += [(f"folded, channels last, batch {n}", True, True, n) for n in (1, 4, 8, 16)]
    first = 0.0
    for name, folded, channels_last, batch in cases:
        network = LatentFlowGenerator(bundle.config.lfg)
        network.load_state_dict(bundle.lfg.state_dict())
        network.eval()
        if folded:
            fold_for_inference(network)
        seconds = seconds_per_frame(network, landmarks, batch, channels_last)
        first = first or seconds
        print(f"{name:36s} {1e3 * seconds:7.1f} ms a frame   {first / seconds:5.2f} x")


if __name__ == "__main__":
    main()
