"""Make the windows that ``dawn train organs`` learns from, of videos and photographs.

python tools/make_windows.py WINDOWS --clips DIR ... --stills DIR ... [--preset lite-256] [--validation]
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from dawn.preprocess.clips import VIDEO_SUFFIXES
from dawn.research.training.lite.windows import WindowMaker, pair_clips, pair_stills, write_windows

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


def list_files(folders: list[Path], suffixes: set[str]) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in suffixes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=Path, nargs="+", default=[])
    parser.add_argument("--stills", type=Path, nargs="+", default=[])
    parser.add_argument("--preset", default="lite-256")
    parser.add_argument("--variants", type=int, default=2, help="pairs of every photograph (2)")
    parser.add_argument("--pairs-a-second", type=float, default=2.0, help="of every video (2)")
    parser.add_argument("--validation", action="store_true", help="nothing is changed at random")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, maker = random.Random(args.seed), WindowMaker(args.preset, args.validation)
    stills = pair_stills(list_files(args.stills, PICTURES), maker, 0 if args.validation else args.variants, rng)
    clips = pair_clips(list_files(args.clips, VIDEO_SUFFIXES), maker, args.pairs_a_second, rng)
    for tag, pairs in (("stills", stills), ("clips", clips)):
        print(tag, write_windows(pairs, maker, args.out, f"{tag}_{args.seed}", args.seed), flush=True)


if __name__ == "__main__":
    main()
