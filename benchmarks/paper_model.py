"""The published U-Net: the quick path against the plain one, same weights, same process; peak memory in own processes.

    python benchmarks/paper_model.py [--frames 40 100 200 400] [--dtypes float32 bfloat16] [--side 32] [--device cuda]
        [--frames-per-chunk 8] [--compile] [--threads 2] [--plain-up-to 200]

Per clip length and type: median time of one denoising step of both paths and their ratio, the largest relative difference of
their outputs, peak memory of a process that prepares a clip and makes one step, the quick path's arithmetic and its share of
the rate that a 3x3 convolution reaches here, and decoding per frame.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from plain_unet import PlainUNet
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dawn.config import PaperLFGConfig, UNetConfig
from dawn.models.paper.a2v import A2VUNet
from dawn.models.paper.lfg import PaperLFG

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PATHS = ("quick", "plain")


class Clip(NamedTuple):
    x: Tensor
    time: Tensor
    source: Tensor
    mask: Tensor
    condition: Tensor


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[40, 100, 200, 400])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--side", type=int, default=32, help="latent side: a quarter of the picture's")
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames-per-chunk", type=int, default=0, help="of the quick path; 0: the whole clip at once")
    parser.add_argument("--compile", action="store_true", help="torch.compile both paths")
    parser.add_argument(
        "--plain-up-to", type=int, default=200, help="longest clip for the plain path: it needs much memory"
    )
    parser.add_argument("--peak-of", choices=PATHS, help=argparse.SUPPRESS)
    return parser.parse_args()


def network_for(args: argparse.Namespace, dtype: torch.dtype) -> A2VUNet:
    torch.manual_seed(0)
    network = A2VUNet(UNetConfig(latent_size=args.side)).to(args.device, dtype).eval()
    network.frames_per_chunk = args.frames_per_chunk or None
    return network


def clip_for(args: argparse.Namespace, frames: int, config: UNetConfig, dtype: torch.dtype) -> Clip:
    random = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(args.device, dtype)

    sizes = config.audio_size + config.pose_size + config.eye_size
    return Clip(
        noise(1, 3, frames, args.side, args.side),
        torch.full((1,), 500, device=args.device),
        noise(1, config.source_size, args.side, args.side).relu(),
        noise(1, config.mask_size, args.side, args.side).relu(),
        noise(1, frames, sizes),
    )


def step_of(path: str, network: A2VUNet, clip: Clip, compiled: bool) -> Callable[[], Tensor]:
    """One denoising step; the quick path has prepared the clip."""
    if path == "quick":
        conditions = network.prepare(clip.source, clip.mask, clip.condition)
        forward = torch.compile(network) if compiled else network
        return lambda: forward(clip.x, clip.time, conditions)
    plain = PlainUNet(network)
    call = torch.compile(plain.__call__) if compiled else plain
    return lambda: call(*clip)


def seconds(work: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def peak_mb(device: str) -> float:
    """Most memory that this process, or on an accelerator its tensors, ever held."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def peak_in_own_process(args: argparse.Namespace, path: str, frames: int, dtype: str) -> dict[str, float]:
    """Megabytes before the clip (interpreter, libraries, weights) and at most."""
    options = {
        "--peak-of": path,
        "--frames": frames,
        "--dtypes": dtype,
        "--side": args.side,
        "--device": args.device,
        "--threads": args.threads,
        "--frames-per-chunk": args.frames_per_chunk,
    }
    command = [sys.executable, __file__, *(str(word) for option in options.items() for word in option)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"before": float("nan"), "peak": float("nan")}  # killed for want of memory, most likely
    return json.loads(done.stdout.splitlines()[-1])


def print_peak(args: argparse.Namespace) -> None:
    dtype = DTYPES[args.dtypes[0]]
    network = network_for(args, dtype)
    clip = clip_for(args, args.frames[0], network.config, dtype)
    before = peak_mb(args.device)
    step_of(args.peak_of, network, clip, compiled=False)()
    print(json.dumps({"before": before, "peak": peak_mb(args.device)}))


def convolution_rate(args: argparse.Namespace, dtype: torch.dtype) -> float:
    """FLOP per second of a 3x3 convolution, channels last, at the network's highest resolution."""
    x = torch.randn(32, 128, args.side, args.side, device=args.device, dtype=dtype).to(
        memory_format=torch.channels_last
    )
    weight = torch.randn(128, 128, 3, 3, device=args.device, dtype=dtype).to(memory_format=torch.channels_last)
    took = [seconds(lambda: F.conv2d(x, weight, padding=1), args.device)[0] for _ in range(8)]
    return 2 * 9 * 128 * x.numel() / statistics.median(took[2:])


def attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: object, **__: object
) -> int:
    return sdpa_flop_count(query, key, value)


def flops(step: Callable[[], Tensor]) -> int:
    """Arithmetic of convolutions and matrix products as they are done, bands and all."""
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={on_cpu: attention_flops}) as counter:
        step()
    return counter.get_total_flops()


def difference(made: Tensor, true: Tensor) -> float:
    """Largest absolute difference over the largest value."""
    return float((made.float() - true.float()).abs().max() / true.float().abs().max())


def case(args: argparse.Namespace, frames: int, name: str, rate: float, exact: dict[int, Tensor]) -> None:
    """exact: float32 outputs of the quick path by clip length; filled here."""
    dtype = DTYPES[name]
    network = network_for(args, dtype)
    clip = clip_for(args, frames, network.config, dtype)
    paths = [path for path in PATHS if path == "quick" or frames <= args.plain_up_to]
    steps = {path: step_of(path, network, clip, args.compile) for path in paths}
    took: dict[str, list[float]] = {path: [] for path in paths}
    results = {path: step() for path, step in steps.items()}  # warms up
    for _ in range(args.repeats):
        for path in paths:  # in turns, so that a disturbance meets both
            took[path].append(seconds(steps[path], args.device)[0])
    quick = statistics.median(took["quick"])
    work = flops(step_of("quick", network, clip, compiled=False))
    print(
        f"{name:8s} T={frames:4d}  quick {quick:8.3f} s a step, {1e3 * quick / frames:7.1f} ms a frame; "
        f"{work / 1e12:6.2f} TFLOP, {work / quick / 1e9:6.0f} GFLOP/s = "
        f"{100 * work / quick / rate:4.0f} % of the convolution rate"
    )
    if "plain" in results:
        plain = statistics.median(took["plain"])
        print(
            f"{'':15s}  plain {plain:8.3f} s a step, ratio {plain / quick:5.2f}, "
            f"largest relative difference {difference(results['quick'], results['plain']):.1e}"
        )
    if name == "float32":
        exact[frames] = results["quick"]
    elif frames in exact:
        print(f"{'':15s}  largest relative difference to float32 {difference(results['quick'], exact[frames]):.1e}")
    del network, steps, results
    for path in paths:
        peak = peak_in_own_process(args, path, frames, name)
        print(f"{'':15s}  {path} peak {peak['peak']:7.0f} MB, of which {peak['before']:6.0f} before the clip")


def decoding(args: argparse.Namespace, frames: int = 16, batch: int = 4) -> None:
    """Source encoded once, frames decoded in batches; median of all batches but the first."""
    size = 4 * args.side
    if size % 128:
        print(f"decoding: the published generator needs latents of 32, 64, ... cells, not {args.side}")
        return
    torch.manual_seed(0)
    network = PaperLFG(PaperLFGConfig(image_size_px=size)).to(args.device).eval()
    source = network.encode(torch.rand(1, 3, size, size, device=args.device))
    grid = 2 * torch.rand(frames, args.side, args.side, 2, device=args.device) - 1
    occlusion = torch.rand(frames, 1, args.side, args.side, device=args.device)
    took = [
        seconds(lambda g=g, o=o: network.decode(source, g, o), args.device)[0]  # type: ignore[misc]
        for g, o in zip(grid.split(batch), occlusion.split(batch), strict=True)
    ]
    print(f"decoding {size} px, {batch} frames at a time: {1e3 * statistics.median(took[1:]) / batch:.1f} ms a frame")


@torch.no_grad()
def main() -> None:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.peak_of:
        print_peak(args)
        return
    print(
        f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, side {args.side}, "
        f"{args.frames_per_chunk or 'all'} frames a chunk{', compiled' if args.compile else ''}"
    )
    exact: dict[int, Tensor] = {}
    for name in args.dtypes:
        rate = convolution_rate(args, DTYPES[name])
        print(f"{name:8s} 3x3 convolution, channels last: {rate / 1e9:.0f} GFLOP/s")
        for frames in args.frames:
            case(args, frames, name, rate, exact)
    decoding(args)


if __name__ == "__main__":
    main()
