"""The self-check of a finished video, by the measures that need no true one (``--report``).

The written file itself is read again, picture and sound, and every frame counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dawn import media
from dawn.checks.findings import Finding, Section, as_json, format_findings, judge_value, verdict
from dawn.checks.pieces import IDENTITY_STRIDE, Course, join_courses, measure_piece, track_pieces
from dawn.checks.speech import find_spoken_frames
from dawn.errors import AudioError
from dawn.measures import identity, motion, sync
from dawn.measures.intervals import share
from dawn.measures.lips import pooled_std
from dawn.measures.motion import find_runs
from dawn.measures.sface import default_sface_path, load_sface
from dawn.media.files import FilePath, write_json
from dawn.models.judges.sync import LagDistances
from dawn.preprocess.tracker import FaceTracker
from dawn.progress import Progress, ignore_progress
from dawn.structs import FPS, FRAME_SAMPLES, MS_PER_FRAME, Box, FloatArray
from dawn.video import Video

Float64Array = NDArray[np.float64]

FORMAT = "dawn-report-1"
IDENTITY_PARTS = 5
"""The drift compares the first fifth of the video with the last."""

MIN_FOUND_SHARE = 0.98
"""1.00 in every generated video that was tried; 0.90 with every tenth picture black."""
MIN_CONFIDENCE = 0.07
"""Measured on 3 to 9 s of the example, several seeds: 0.12-0.23 with its own sound, 0.02-0.06 with wrong sound.

0.07 where the picture stands still for half of the time. True clips of four people: 0.22-0.39, with another clip's
sound 0.03-0.08.
"""
MAX_OFFSET_FRAMES = 1
"""Sound shifted by 5 frames was found at 5 wherever the confidence sufficed, untouched sound within 1."""
MAX_SILENT_MOVEMENT = 0.6
"""0.33-0.34 in two seconds of silence within the example; 1.2 where the mouth talks on."""
MIN_SILENT_FRAMES = 12
SILENCE_MARGIN_FRAMES = 2
"""Lips prepare a sound before it is heard, and come to rest after it."""
MIN_LIKENESS = 0.6
"""Generated videos fall to 0.86-0.96 (0.84 with twice the expression), true clips of 1.2 s to 0.79.

Strangers have 0.1.
"""
MAX_DRIFT = 0.1
"""Within 0.04 in all generated videos that were tried."""
MIN_BLINK_S = 30.0
MAX_BLINKS_A_MINUTE = 60.0
"""A minute of the example has 11 to 14 blinks; a few seconds may have none."""
MAX_JITTER = 6.0
"""2.1-3.2 in generated videos, 4.0 with twice the expression, 2.2-5.5 in true clips; 6.6 under noise of 16 grey levels.

A cartoon of Bach has 11, a flicker of 7 and a confidence of 0.03: the tracker hardly holds it.
"""
MAX_FLICKER = 6.0
"""1.3-3.9 in generated videos, 4.8 with three times the head motion; 6.2 and 13.9 under noise of 8 and 16 grey levels.

True clips, whose background moves, reach 22.
"""
STILL_LEVELS = 0.1
"""Grey levels. Frames of generated videos differ by 0.3 and more; repeated ones by what the encoder still improves.

With a still head and no blinks single frames differ less; in silence such a video does stand still.
"""
MAX_FROZEN_S = 0.5
MAX_RANGE_DEG = 15.0
"""6-8 in a minute of the example, 19-23 with three times the head motion."""
MOTION_UNITS = {
    "blinks": "per minute",
    "jitter": "thousandths of the eye distance",
    "flicker": "grey levels",
    "pose_range": "degrees",
}


@dataclass(frozen=True)
class Report:
    """What was found in a video.

    identity: cosines to the first face, two a second. notes: which figures are missing, and why.
    """

    video: Section
    frames: int
    identity: list[float] | None
    notes: tuple[str, ...]

    def as_json(self, seeds: Sequence[dict[str, object]] = ()) -> dict[str, object]:
        """Convert the report to plain values. ``seeds`` are the scores of the seeds tried (``checks.retry``)."""
        return {
            "format": FORMAT,
            "verdict": verdict([self.video]),
            "frames": self.frames,
            "seconds": self.frames / FPS,
            "video": as_json([self.video])["video"],
            "identity_curve": self.identity and {"stride_s": IDENTITY_STRIDE / FPS, "cosine": self.identity},
            "seeds": list(seeds) or None,
            "notes": list(self.notes),
        }

    def save(self, path: FilePath, seeds: Sequence[dict[str, object]] = ()) -> list[str]:
        """Write the report as JSON and return its warnings, one line each. Arguments as ``as_json``.

        Raises:
            OutputError: The file cannot be written; then nothing is.
        """
        write_json(path, self.as_json(seeds))
        return format_findings([self.video], "warning")


def face_square(video: Video) -> Box:
    """Return where the model's square lies in a video's frames."""
    return Box(0, 0, video.width, video.height) if video.full is None else video.full.box


def check_output(
    path: FilePath, box: Box | None = None, sface: FilePath | None = None, progress: Progress = ignore_progress
) -> Report:
    """Examine a finished video with its own sound.

    Args:
        path: the video.
        box: the square around the face, see ``track_pieces``.
        sface: SFace weights, by default where ``tools/fetch_models.py`` puts them. Without any, identity is left out
            and a note says so.
        progress: told of every piece.

    Raises:
        VideoError: The file cannot be read.
        CheckpointError: The weights are damaged.
    """
    notes = []
    try:
        samples = media.read_speech(path, allow_silence=True).samples
    except AudioError as error:
        samples = np.zeros(0, np.float32)
        notes.append(f"no figures of sound: {error}")
    weights = Path(sface or default_sface_path())
    network = load_sface(weights) if sface or weights.is_file() else None
    if network is None:
        notes.append(
            f"no identity figures: {weights} is not there; tools/fetch_models.py and tools/convert_sface.py make it"
        )
    judge, courses = sync.load_judge(), []
    with media.VideoReader(path, fps=FPS) as reader, FaceTracker() as tracker:
        for piece in track_pieces(reader, tracker, box):
            stop = piece.start + len(piece.crops)
            courses.append(
                measure_piece(piece, samples[piece.start * FRAME_SAMPLES : stop * FRAME_SAMPLES], judge, network)
            )
            progress("check", stop, 0)
    course = join_courses(courses)
    curve = identity.cosine(course.features, course.features[:1]) if len(course.features) else None
    findings = judge_course(course, samples, curve)
    identity_curve = None if curve is None else [round(float(value), 4) for value in curve]
    return Report(Section("video", str(path), tuple(findings)), len(course.opening), identity_curve, tuple(notes))


def judge_course(course: Course, samples: FloatArray, curve: Float64Array | None = None) -> list[Finding]:
    """Judge a whole video by its course.

    Args:
        course: of all frames.
        samples: (L,) its sound, empty if there is none.
        curve: (N,) cosines to the first face; None if unknown.
    """
    found = course.found
    frozen_s = max((stop - start for start, stop in find_runs(course.change < STILL_LEVELS)), default=0) / FPS
    return [
        judge_value(
            "face_found",
            found.mean(),
            "of frames",
            found.mean() < MIN_FOUND_SHARE,
            "the face is lost: use a portrait that dawn check does not warn of, or less motion (`pose_scale`)",
        ),
        *_judge_sync(course),
        _judge_silence(course.opening, samples),
        *_judge_identity(curve),
        *_judge_motion(course),
        judge_value(
            "frozen", frozen_s, "s", frozen_s > MAX_FROZEN_S, "the picture stands still: was it asked for (`still`)?"
        ),
    ]


def _judge_sync(course: Course) -> list[Finding]:
    names = ("sync_confidence", "av_offset_frames", "av_offset")
    if not course.sync[1].any():
        return [Finding(name, None, unit) for name, unit in zip(names, ("", "frames", "ms"), strict=True)]
    score = sync.score_distances(LagDistances(*course.sync))
    weak = score.confidence < MIN_CONFIDENCE
    # Where no lag stands out, the offset is chance.
    late = not weak and abs(score.offset_frames) > MAX_OFFSET_FRAMES
    advice = "the sound comes late" if score.offset_frames > 0 else "the sound comes early"
    return [
        judge_value(
            names[0], score.confidence, "", weak, "lips hardly go with the sound: try another `seed`, or clearer speech"
        ),
        judge_value(names[1], score.offset_frames, "frames", late, f"{advice}: shift it against the picture"),
        Finding(names[2], round(score.offset_frames * MS_PER_FRAME, 1), "ms"),
    ]


def _judge_silence(opening: Float64Array, samples: FloatArray) -> Finding:
    """Compare how much lips move in silence and in speech: deviations of their opening from each stretch's mean."""
    name, unit = "lips_in_silence", "of movement in speech"
    spoken = find_spoken_frames(samples, len(opening))
    near = np.convolve(spoken, np.ones(2 * SILENCE_MARGIN_FRAMES + 1), "same") > 0.5
    quiet, loud = (
        [opening[start:stop] for start, stop in find_runs(flags & np.isfinite(opening))] for flags in (~near, spoken)
    )
    if sum(map(len, quiet)) < MIN_SILENT_FRAMES or not loud or not pooled_std(loud):
        return Finding(name, None, unit)
    ratio = pooled_std(quiet) / pooled_std(loud)
    return judge_value(
        name,
        ratio,
        unit,
        ratio > MAX_SILENT_MOVEMENT,
        "the mouth moves while nobody speaks: remove noise from the recording",
    )


def _judge_identity(curve: Float64Array | None) -> list[Finding]:
    names = ("identity", "identity_lowest", "identity_drift")
    if curve is None or len(curve) < 2:
        return [Finding(name, None, "cosine") for name in names]
    later = curve[1:]
    part = -(-len(later) // IDENTITY_PARTS)
    drift = later[-part:].mean() - later[:part].mean()
    advice = "the face becomes another one: use a portrait that looks straight at the camera, or less motion"
    return [
        Finding(names[0], round(float(later.mean()), 4), "cosine"),
        judge_value(names[1], later.min(), "cosine", later.min() < MIN_LIKENESS, advice),
        judge_value(names[2], drift, "cosine", drift < -MAX_DRIFT, advice),
    ]


def _judge_motion(course: Course) -> list[Finding]:
    found = course.found
    if not found.any():
        return [Finding(name, None, unit) for name, unit in MOTION_UNITS.items()]
    seconds = found.sum() / FPS
    blinks = motion.blink_count(course.eyes[found]) / seconds * 60
    odd = seconds >= MIN_BLINK_S and not 0 < blinks <= MAX_BLINKS_A_MINUTE
    reach = motion.pose_range(course.angles[found])
    values = (blinks, 1000 * share(course.jitter) ** 0.5, 255 * share(course.flicker) ** 0.5, reach)
    bad = (odd, values[1] > MAX_JITTER, values[2] > MAX_FLICKER, reach > MAX_RANGE_DEG)
    advice = (
        "people blink 10 to 30 times: see `blink`, or try another `seed`",
        "the face trembles: use a sharper portrait",
        "the picture is noisy or flickers",
        "the head moves far: see `pose_scale`",
    )
    return [
        judge_value(name, value, unit, wrong, what) if np.isfinite(value) else Finding(name, None, unit)
        for (name, unit), value, wrong, what in zip(MOTION_UNITS.items(), values, bad, advice, strict=True)
    ]
