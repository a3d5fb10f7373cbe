"""Do portraits open their lips as they are told to? The table of docs/portraits.md.

    python benchmarks/portraits.py examples/portraits/*.jpg examples/portrait.png --speech examples/speech.wav

Three seconds of the speech, from 2.0 s; every second frame is drawn at each preset's own size and given to the tracker. r is
the correlation of the opening that was asked for with the one that is seen, the widest of each in distances of the outer eye
corners.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dawn import media
from dawn.measures.lips import lip_distance
from dawn.pipeline import Dawn
from dawn.preprocess.tracker import FaceTracker
from dawn.research.evaluation.bench import track
from dawn.structs import FPS, SPEECH_RATE_HZ, Speech

START_S, LENGTH_S = 2.0, 3.0
STRIDE = 2


def part_of(speech: Speech) -> Speech:
    """Three seconds of it."""
    start = round(START_S * SPEECH_RATE_HZ)
    return media.speech_from_array(speech.samples[start : start + round(LENGTH_S * SPEECH_RATE_HZ)], SPEECH_RATE_HZ)


def openings(model: Dawn, portrait: Path, speech: Speech, tracker: FaceTracker) -> tuple[NDArray, NDArray]:
    """Openings (T,) asked for and seen, at every second frame in which a face was found."""
    video = model(portrait, speech, seed=1)
    motion = video.motion.at(slice(0, len(video), STRIDE))
    asked = lip_distance(model.landmarks(video.face, motion, 0, len(motion)).cpu().numpy())
    frames = np.stack(list(model.render(video.face, motion)))
    seen = track(tracker, frames, video.face.landmarks)
    return asked[seen.found], lip_distance(seen.landmarks)[seen.found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("portraits", nargs="+", type=Path)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--presets", nargs="+", default=["lite-128", "lite-256"])
    args = parser.parse_args()
    speech = part_of(media.read_speech(args.speech))
    print(f"{speech.frame_count / FPS:.1f} s of {args.speech.name}")
    for preset in args.presets:
        model = Dawn.from_pretrained(preset, "cpu")
        for portrait in args.portraits:
            with FaceTracker() as tracker:
                asked, seen = openings(model, portrait, speech, tracker)
            line = (
                "no face is seen"
                if len(seen) < 3
                else (
                    f"r {np.corrcoef(asked, seen)[0, 1]:5.2f}  widest seen {seen.max():.3f}, asked {asked.max():.3f}, "
                    f"least seen {seen.min():.3f}, frames {len(seen)}"
                )
            )
            print(f"{preset:10s} {portrait.stem:12s} {line}", flush=True)


if __name__ == "__main__":
    main()
