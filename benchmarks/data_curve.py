"""How well sound tells the lips' opening, against the number of people to learn from.

    python benchmarks/data_curve.py DATA VALIDATION [--people 3 6 12 24] [--draws 3] [--steps 400] [--cache DIR]

DATA, VALIDATION: prepared clips (``dawn prepare``). For each number of people, some are drawn, a small temporal convolution
learns the opening of the lips from the features that A2V hears, and its correlation with the truth is pooled over the
validation clips (no picture, no pose, no diffusion: what the sound says of this one number). The last row has everybody.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dawn.checkpoint import load_mean_face
from dawn.engines.load import load_bundle
from dawn.measures.lips import correlation, correlation_sums
from dawn.research.training.data import ClipStore
from dawn.research.training.motion_data import MotionStore
from dawn.structs import FPS

WINDOW, BATCH, WIDTH = 30, 48, 160
SPREAD = 0.03
"""Of the opening, in eye distances: the loss sees it in these units."""


class OpeningNet(nn.Module):
    """(B, T, D) features -> (B, T) opening, over 13 frames."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.LayerNorm(size), nn.Dropout(0.2), nn.Linear(size, WIDTH))
        self.mix = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 5, padding=2) for _ in range(3))
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).transpose(1, 2)
        for layer in self.mix:
            h = h + F.dropout(F.gelu(layer(h)), 0.3, self.training)
        return self.last(h.transpose(1, 2))[..., 0]


def window_of(store: MotionStore, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Features (30, D), opening (30,) and what of it is there (30,)."""
    opening, audio = store.sequences[index].aperture, store.audio(index, generator)
    start = int(torch.randint(max(1, len(opening) - WINDOW + 1), (1,), generator=generator))
    frames = torch.arange(start, start + WINDOW)
    there, frames = (frames < len(opening)).float(), frames.clamp_max(len(opening) - 1)
    return audio[frames], opening[frames] / SPREAD, there


def centred(x: Tensor, there: Tensor) -> Tensor:
    return (x - (x * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)) * there


def learn(store: MotionStore, people: set[str], steps: int, seed: int) -> OpeningNet:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    weight = store.weight * torch.tensor([s.clip.person in people for s in store.sequences])
    network = OpeningNet(store.audio(0).shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        chosen = torch.multinomial(weight, BATCH, True, generator=generator).tolist()
        audio, opening, there = map(torch.stack, zip(*(window_of(store, i, generator) for i in chosen), strict=True))
        loss = F.smooth_l1_loss(centred(network(audio), there), centred(opening, there), reduction="sum") / there.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def judge_value(network: OpeningNet, store: MotionStore) -> float:
    made = [network(store.audio(i)[None])[0] for i in range(len(store))]
    sums = [
        correlation_sums(m[: len(s)].numpy(), s.aperture[: len(m)].numpy())
        for m, s in zip(made, store.sequences, strict=True)
    ]
    return correlation(sum(sums))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--people", type=int, nargs="+", default=[3, 6, 12, 24])
    parser.add_argument("--draws", type=int, default=3, help="of people and of the network's start")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--cache", type=Path, help="keeps the sound features, for another run")
    args = parser.parse_args()
    encoder, face = load_bundle("lite-128").audio, load_mean_face()
    with tempfile.TemporaryDirectory() as folder:
        cache = args.cache or Path(folder)
        store = MotionStore(ClipStore(args.data), face, encoder, cache / args.data.name, 4)
        judge = MotionStore(ClipStore(args.validation), face, encoder, cache / f"validation_{args.validation.name}", 0)
    everybody = sorted({s.clip.person for s in store.sequences})
    print("people  clips  minutes  correlation (each draw)")
    for count in [*(n for n in args.people if n < len(everybody)), len(everybody)]:
        found, clips, minutes = [], [], []
        for draw in range(args.draws):
            order = torch.randperm(len(everybody), generator=torch.Generator().manual_seed(draw)).tolist()
            people = {everybody[i] for i in order[:count]}
            lengths = [len(s) for s in store.sequences if s.clip.person in people]
            clips.append(len(lengths))
            minutes.append(sum(lengths) / FPS / 60)
            found.append(judge_value(learn(store, people, args.steps, draw), judge))
        each = ", ".join(f"{r:.3f}" for r in found)
        print(
            f"{count:6d} {sum(clips) / len(clips):6.0f} {sum(minutes) / len(minutes):8.1f}  "
            f"{sum(found) / len(found):.3f} ({each})",
            flush=True,
        )


if __name__ == "__main__":
    main()
