"""Several seeds, and the one whose lips go best with the sound (``--retry``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from dawn.checks.output import PIECE_FRAMES, check_output, face_square, lag_sums, pieces, speaking
from dawn.errors import InputError
from dawn.measures import sync
from dawn.media.files import FilePath
from dawn.models.judges.sync import MAX_LAG_FRAMES, MIN_CLIP_FRAMES, LagDistances, SyncJudge
from dawn.pipeline import Dawn, Video
from dawn.preprocess.tracker import FaceTracker
from dawn.progress import Progress
from dawn.structs import FRAME_SAMPLES, Box, FloatArray

SEED_FRAMES = PIECE_FRAMES
"""So much of each seed's video is drawn to compare it, where most is said."""


@dataclass(frozen=True)
class SeedScore:
    """sync: ``sync_in_place`` of the part that was drawn, None if no face was found in it."""

    seed: int
    sync: float | None
    kept: bool = False


def sync_in_place(distances: LagDistances) -> float:
    """How far the distance of lips and sound as they are lies below that of shifted sound (median over lags). More is better;
    unlike the confidence it does not reward lips that would fit better later."""
    there = distances.counts > 0
    means = distances.sums[there] / distances.counts[there]
    return float(np.median(means) - distances.sums[MAX_LAG_FRAMES] / distances.counts[MAX_LAG_FRAMES])


def spoken_part(samples: FloatArray, frames: int, length: int = SEED_FRAMES) -> slice:
    """The ``length`` frames in which most is said; the first of equal ones."""
    if frames <= length:
        return slice(0, frames)
    total = np.concatenate(([0], np.cumsum(speaking(samples, frames))))
    start = int((total[length:] - total[:-length]).argmax())
    return slice(start, start + length)


def seed_score(model: Dawn, video: Video, judge: SyncJudge, tracker: FaceTracker) -> float | None:
    """``sync_in_place`` of at most ten seconds of a video, drawn at the model's own size; None where no face is found."""
    assert video.speech is not None
    part = spoken_part(video.speech.samples, len(video))
    frames = model.render(video.face, video.motion.at(part))
    side = model.config.lfg.image_size_px
    (piece,) = pieces(frames, tracker, Box(0, 0, side, side))
    samples = video.speech.samples[part.start * FRAME_SAMPLES : part.stop * FRAME_SAMPLES]
    sums = lag_sums(piece, samples, judge)
    # Rounded, so that seeds that differ by less than other machines' arithmetic are equal.
    return round(sync_in_place(LagDistances(*sums)), 4) if sums[1, MAX_LAG_FRAMES] else None


def best_seed(
    model: Dawn, make: Callable[..., Video], first: int, count: int, progress: Progress = lambda *_: None
) -> tuple[Video, tuple[SeedScore, ...]]:
    """``make(seed=first)``, and the same ``again`` with the seeds that follow: of ``count`` videos the one whose lips go best
    with the sound, of equal ones the first, and all scores.

    Portrait and sound are prepared once, and only a part of each video is drawn. The judge is a small network: it ranks, it
    does not prove. Raises InputError for sound that is too short or silent, and what ``make`` and ``again`` raise.
    """
    judge, scores = sync.load_judge(), list[SeedScore]()
    kept = video = make(seed=first)
    if video.speech is None or len(video) < MIN_CLIP_FRAMES or not np.any(video.speech.samples):
        raise InputError(
            f"seeds cannot be compared by {len(video)} frames: {MIN_CLIP_FRAMES} with sound are needed; "
            "make one video instead of comparing several"
        )
    with FaceTracker() as tracker:
        for seed in range(first, first + count):
            video = video if seed == first else video.again(seed=seed)
            scores.append(SeedScore(seed, seed_score(model, video, judge, tracker)))
            # Of equal scores ``max`` gives the first, so that a video once kept is only left for a better one.
            if max(scores, key=_worth) is scores[-1]:
                kept = video
            progress("seeds", len(scores), count)
    best = max(scores, key=_worth)
    return kept, tuple(replace(score, kept=score is best) for score in scores)


def _worth(score: SeedScore) -> float:
    return -np.inf if score.sync is None else score.sync


def seed_words(scores: Sequence[SeedScore]) -> str:
    """One line: which seed was kept and what the others were worth."""
    kept = next(score for score in scores if score.kept)
    listed = ", ".join(f"{score.seed}: {'no face' if score.sync is None else f'{score.sync:.3f}'}" for score in scores)
    return f"seed {kept.seed} kept: of {len(scores)} its lips go best with the sound ({listed})"


def account(
    video: Video,
    path: FilePath,
    report: FilePath | None,
    scores: Sequence[SeedScore] = (),
    progress: Progress = lambda *_: None,
) -> list[str]:
    """What the command line says of a finished video at ``path``: the seed that was kept, and what the self-check warns of.

    report: where the self-check's findings and the scores are written; None: no self-check. Raises as ``check_output``,
    OutputError.
    """
    lines = [seed_words(scores)] if scores else []
    if report is not None:
        lines += check_output(path, face_square(video), progress=progress).save(
            report, [asdict(score) for score in scores]
        )
    return lines
