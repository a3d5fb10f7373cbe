"""Frames of a video, evenly spaced, as one picture.

python tools/make_contact_sheet.py out/demo.mp4 docs/demo.png --columns 8 --rows 4
"""

from __future__ import annotations

import argparse

from dawn import media


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video")
    parser.add_argument("picture")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--cell", type=int, default=128, help="side of one frame in px")
    args = parser.parse_args()
    with media.VideoReader(args.video) as reader:
        frames = list(reader)
    count = args.columns * args.rows
    chosen = [frames[round(i * (len(frames) - 1) / (count - 1))] for i in range(count)]
    media.save_png(args.picture, media.contact_sheet(chosen, args.columns, args.cell))
    print(f"{args.picture}: {count} of {len(frames)} frames")


if __name__ == "__main__":
    main()
