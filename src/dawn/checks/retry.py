"""The best of several seeds: the one whose lips go best with the sound (``--retry``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from dawn.checks.output import check_output, face_square
from dawn.checks.pieces import PIECE_FRAMES, measure_lags, track_pieces
from dawn.checks.speech import find_spoken_frames
from dawn.errors import InputError
from dawn.measures import sync
from dawn.media.files import FilePath
from dawn.models.judges.sync import MAX_LAG_FRAMES, MIN_CLIP_FRAMES, LagDistances, SyncJudge
from dawn.pipeline import Dawn
from dawn.preprocess.tracker import FaceTracker
from dawn.progress import Progress, ignore_progress
from dawn.structs import FRAME_SAMPLES, Box, FloatArray
from dawn.video import Video

SEED_FRAMES = PIECE_FRAMES
"""Frames of each seed's video that are drawn to compare it, where most is said."""


@dataclass(frozen=True)
class SeedScore:
    """What one seed is worth.

    sync: ``score_in_place`` of the part that was drawn; None if no face was found in it. kept: it was chosen.
    """

    seed: int
    sync: float | None
    kept: bool = False


def score_in_place(distances: LagDistances) -> float:
    """Measure how much nearer the lips are to their sound than to shifted sound (median over lags). More is better.

    Unlike the confidence, it does not reward lips that would fit better later.
    """
    there = distances.counts > 0
    means = distances.sums[there] / distances.counts[there]
    return float(np.median(means) - distances.sums[MAX_LAG_FRAMES] / distances.counts[MAX_LAG_FRAMES])


def find_spoken_part(samples: FloatArray, frames: int, length: int = SEED_FRAMES) -> slice:
    """Find the ``length`` frames in which most is said; on a tie the first."""
    if frames <= length:
        return slice(0, frames)
    total = np.concatenate(([0], np.cumsum(find_spoken_frames(samples, frames))))
    start = int((total[length:] - total[:-length]).argmax())
    return slice(start, start + length)


def score_seed(model: Dawn, video: Video, judge: SyncJudge, tracker: FaceTracker) -> float | None:
    """Score at most ten seconds of a video, drawn at the model's own size; None where no face is found."""
    assert video.speech is not None
    part = find_spoken_part(video.speech.samples, len(video))
    frames = model.render(video.face, video.motion.at(part))
    side = model.config.lfg.image_size_px
    (piece,) = track_pieces(frames, tracker, Box(0, 0, side, side))
    samples = video.speech.samples[part.start * FRAME_SAMPLES : part.stop * FRAME_SAMPLES]
    sums = measure_lags(piece, samples, judge)
    # Rounded: scores that differ by less than the arithmetic of two machines count as equal.
    return round(score_in_place(LagDistances(*sums)), 4) if sums[1, MAX_LAG_FRAMES] else None


def pick_seed(
    model: Dawn, make: Callable[..., Video], first: int, count: int, progress: Progress = ignore_progress
) -> tuple[Video, tuple[SeedScore, ...]]:
    """Generate ``count`` videos with consecutive seeds and keep the one whose lips go best with the sound.

    Portrait and sound are prepared once, and only a part of each video is drawn. The judge is a small network: it
    ranks, it does not prove. On a tie the first seed wins.

    Args:
        model: draws the videos.
        make: called once, with ``seed=first``; the other seeds go through the video it returns.
        first: the first seed.
        count: how many seeds.
        progress: told of every seed.

    Returns:
        The video, and the scores of all seeds.

    Raises:
        InputError: The sound is too short or silent.
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
            video = video if seed == first else video.regenerate(seed=seed)
            scores.append(SeedScore(seed, score_seed(model, video, judge, tracker)))
            # On a tie ``max`` returns the first, so that a kept video only yields to a better one.
            if max(scores, key=_rank) is scores[-1]:
                kept = video
            progress("seeds", len(scores), count)
    best = max(scores, key=_rank)
    return kept, tuple(replace(score, kept=score is best) for score in scores)


def _rank(score: SeedScore) -> float:
    """Return the score to compare by; the lowest without a face."""
    return -np.inf if score.sync is None else score.sync


def describe_seeds(scores: Sequence[SeedScore]) -> str:
    """Say in one line which seed was kept and how the others scored."""
    kept = next(score for score in scores if score.kept)
    listed = ", ".join(f"{score.seed}: {'no face' if score.sync is None else f'{score.sync:.3f}'}" for score in scores)
    return f"seed {kept.seed} kept: of {len(scores)} its lips go best with the sound ({listed})"


def report_result(
    video: Video,
    path: FilePath,
    report: FilePath | None,
    scores: Sequence[SeedScore] = (),
    progress: Progress = ignore_progress,
) -> list[str]:
    """Report on a finished video: which seed was kept, and what the self-check warns of.

    Args:
        video: as generated.
        path: its file.
        report: where to write the self-check's findings and the scores; None skips the self-check.
        scores: from ``pick_seed``.
        progress: told of the self-check.

    Returns:
        Lines for the command line.

    Raises:
        VideoError: As ``check_output``.
        CheckpointError: As ``check_output``.
        OutputError: The report cannot be written.
    """
    lines = [describe_seeds(scores)] if scores else []
    if report is not None:
        lines += check_output(path, face_square(video), progress=progress).save(
            report, [asdict(score) for score in scores]
        )
    return lines
