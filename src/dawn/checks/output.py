"""What a finished video is like, by the measures that need no true one (``--report``).

The file itself is read again, picture and sound: what is judged is what was written. Every frame counts. Frames are taken in
pieces of ten seconds, and of each piece only a few numbers are kept, so that memory does not grow with length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dawn import media
from dawn.checkpoint import load_mean_face
from dawn.checks.findings import Finding, Section, as_json, as_words, judged, verdict
from dawn.checks.speech import activity
from dawn.engines.rules import quiet_share
from dawn.errors import AudioError
from dawn.face.geometry import eye_aspect_ratio, remove_pose
from dawn.measures import identity, lips, motion, sync
from dawn.measures.intervals import share
from dawn.measures.lips import pooled_std
from dawn.measures.motion import runs
from dawn.measures.sface import default_sface_path, load_sface
from dawn.media.files import FilePath, write_json
from dawn.models.judges.sface import EMBEDDING_SIZE, SFace
from dawn.models.judges.sync import MAX_LAG_FRAMES, MIN_CLIP_FRAMES, LagDistances, SyncJudge
from dawn.pipeline import Video
from dawn.preprocess.crop import crop_box, cut, to_crop_units
from dawn.preprocess.portrait import find_faces
from dawn.preprocess.tracker import FaceTracker
from dawn.progress import Progress
from dawn.research.evaluation.bench import TRACK_SIZE_PX
from dawn.structs import FPS, FRAME_SAMPLES, LANDMARK_COUNT, MS_PER_FRAME, Box, FloatArray, ImageArray

Float64Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

FORMAT = "dawn-report-1"
PIECE_FRAMES = 250
FLICKER_FRAMES = 25
"""Pictures that are compared at once, in double precision."""
IDENTITY_STRIDE = 12
"""Identity changes slowly: two faces a second tell it."""
IDENTITY_PARTS = 5
"""The drift compares the first fifth of the video with the last."""

MIN_FOUND_SHARE = 0.98
"""1.00 in every generated video that was tried; 0.90 with every tenth picture black."""
MIN_CONFIDENCE = 0.07
"""3 to 9 s of the example, several seeds: 0.12-0.23 with its own sound, 0.02-0.06 with wrong sound, 0.07 where the picture
stands still for half of the time. True clips of four people: 0.22-0.39, with another clip's sound 0.03-0.08."""
MAX_OFFSET_FRAMES = 1
"""Sound moved by 5 frames was found at 5 wherever the confidence sufficed, untouched sound within 1."""
MAX_SILENT_MOVEMENT = 0.6
"""0.33-0.34 in two seconds of silence amid the example; 1.2 where the mouth talks on."""
MIN_SILENT_FRAMES = 12
SILENCE_MARGIN_FRAMES = 2
"""Lips prepare a sound before it is heard, and come to rest after it."""
MIN_LIKENESS = 0.6
"""Generated videos fall to 0.86-0.96, to 0.84 with twice the expression, true clips of 1.2 s to 0.79; strangers have 0.1."""
MAX_DRIFT = 0.1
"""Within 0.04 in all generated videos that were tried."""
MIN_BLINK_S = 30.0
MAX_BLINKS_A_MINUTE = 60.0
"""A minute of the example has 11 to 14 blinks; a few seconds may well have none."""
MAX_JITTER = 6.0
"""2.1-3.2 in generated videos, 4.0 with twice the expression, 2.2-5.5 in true clips; 6.6 under noise of 16 grey levels. A
cartoon of Bach has 11, a flicker of 7 and a confidence of 0.03: the tracker hardly holds it."""
MAX_FLICKER = 6.0
"""1.3-3.9 in generated videos, 4.8 with three times the head motion; 6.2 and 13.9 under noise of 8 and 16 grey levels. True
clips, whose background moves, reach 22."""
STILL_LEVELS = 0.1
"""Frames of generated videos differ by 0.3 and more, repeated ones by what the encoder still improves in them. With a still
head and no blinks single frames differ less; in silence such a video does stand still."""
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
class Piece:
    """Some frames in a row, as squares around the face.

    start: the first one's number. crops (n, 256, 256, 3). landmarks (n, 478, 3) in crop units; where no face was found,
    ``found`` (n,), those of the frame before. change (n,): mean absolute difference from the frame before in grey levels,
    infinite for the very first.
    """

    start: int
    crops: ImageArray
    landmarks: FloatArray
    found: Flags
    change: Float64Array


@dataclass(frozen=True)
class Course:
    """What is kept of a piece, or of a whole video: a few numbers a frame, not a number where no face was found, and sums.

    opening (T,) of the lips; eyes (T,) aspect ratio; angles (T, 3) in degrees; change as in ``Piece``; features (N, 128) of
    every 12th face that was found. jitter, flicker: (2,) for ``intervals.share``. sync: distances by lag, (2, 21).
    """

    opening: Float64Array
    eyes: Float64Array
    angles: Float64Array
    change: Float64Array
    features: Float64Array
    jitter: Float64Array
    flicker: Float64Array
    sync: Float64Array

    @property
    def found(self) -> Flags:
        """(T,)."""
        return np.isfinite(self.opening)


@dataclass(frozen=True)
class Report:
    """What was found. identity: the curve, two values a second; notes: which figures are missing, and why."""

    video: Section
    frames: int
    identity: list[float] | None
    notes: tuple[str, ...]

    def as_json(self, seeds: Sequence[dict[str, object]] = ()) -> dict[str, object]:
        """Plain values. seeds: the scores of those that were tried (``preflight.seeds``)."""
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
        """Write the report as JSON; returns its warnings in words. Raises OutputError, then nothing is written."""
        write_json(path, self.as_json(seeds))
        return as_words([self.video], "warning")


# ------------------------------------------------------------------------------------------------------------ looking


def pieces(frames: Iterable[ImageArray], tracker: FaceTracker, box: Box | None = None) -> Iterator[Piece]:
    """Frames (H, W, 3) → pieces of ten seconds.

    box: the square to look at, in the frames' pixels; None: around the largest face of the first frame that has one.
    """
    crops: list[ImageArray] = []
    seen: list[FloatArray | None] = []
    change: list[float] = []
    start = 0
    before: ImageArray | None = None
    for frame in frames:
        height, width = frame.shape[:2]
        if box is None and (faces := find_faces(frame, tracker)):
            box = crop_box(faces[0], width, height, inside=True)
        crop = cut(frame, box or Box(0, 0, min(height, width), min(height, width)), TRACK_SIZE_PX)
        faces = tracker.faces(crop)
        crops.append(crop)
        seen.append(to_crop_units(faces[0].landmarks, Box(0, 0, TRACK_SIZE_PX, TRACK_SIZE_PX)) if faces else None)
        change.append(np.inf if before is None else float(np.abs(crop.astype(np.int16) - before).mean()))
        before = crop
        if len(crops) == PIECE_FRAMES:
            yield _piece(start, crops, seen, change)
            start, crops, seen, change = start + PIECE_FRAMES, [], [], []
    if crops:
        yield _piece(start, crops, seen, change)


def _piece(start: int, crops: list[ImageArray], seen: list[FloatArray | None], change: list[float]) -> Piece:
    found = np.array([points is not None for points in seen])
    known = [points for points in seen if points is not None] or [np.zeros((LANDMARK_COUNT, 3), np.float32)]
    last = np.maximum(np.cumsum(found) - 1, 0)
    return Piece(start, np.stack(crops), np.stack(known)[last], found, np.array(change))


def measure(piece: Piece, samples: FloatArray, judge: SyncJudge, sface: SFace | None = None) -> Course:
    """The numbers of one piece. samples (L,): its own sound, empty if there is none."""
    found, count = piece.found, len(piece.found)
    rows = np.full((count, 5), np.nan)
    jitter, features = np.zeros(2), np.zeros((0, EMBEDDING_SIZE))
    if found.any():
        shape, pose = remove_pose(torch.from_numpy(piece.landmarks), load_mean_face())
        eyes = eye_aspect_ratio(shape).mean(-1, keepdim=True).numpy()
        rows[found] = np.concatenate((lips.lip_aperture(piece.landmarks)[:, None], eyes, pose[:, :3].numpy()), 1)[found]
        for start, stop in runs(found):
            if stop - start >= 3:
                jitter += motion.jitter(shape[start:stop].numpy()) * (stop - start - 2), stop - start - 2
        chosen = np.flatnonzero(found & ((piece.start + np.arange(count)) % IDENTITY_STRIDE == 0))
        if sface is not None and len(chosen):
            features = identity.embed(sface, piece.crops[chosen], piece.landmarks[chosen])
    return Course(
        rows[:, 0],
        rows[:, 1],
        rows[:, 2:],
        piece.change,
        features,
        jitter,
        _flicker(piece),
        lag_sums(piece, samples, judge),
    )


def _flicker(piece: Piece) -> Float64Array:
    sums = np.zeros(2)
    for start in range(0, len(piece.crops) - 1, FLICKER_FRAMES):
        part = slice(start, start + FLICKER_FRAMES + 1)
        where = motion.background([piece.landmarks[part]], TRACK_SIZE_PX)
        value = motion.flicker(piece.crops[part], where) if piece.found[part].all() else np.nan
        if np.isfinite(value):
            sums += value, 1
    return sums


def lag_sums(piece: Piece, samples: FloatArray, judge: SyncJudge) -> Float64Array:
    """Distances by lag and their counts, (2, 21); 0 where picture or sound give nothing to judge.

    A second of silence or more is left out: there is nothing to be in sync with, and it would dilute the rest.
    """
    count = len(piece.crops)
    sums = np.zeros((2, 2 * MAX_LAG_FRAMES + 1))
    heard = np.full(count, bool(np.any(samples) and piece.found.any()))
    for start, stop in runs(quiet_share(torch.from_numpy(samples), count).numpy() > 0.5):
        heard[start:stop] &= stop - start < FPS
    for start, stop in runs(heard):
        if stop - start >= MIN_CLIP_FRAMES:
            part, sound = slice(start, stop), samples[start * FRAME_SAMPLES : stop * FRAME_SAMPLES]
            sums += np.stack(sync.clip_distances(judge, piece.crops[part], piece.landmarks[part], sound))
    return sums


def joined(courses: Sequence[Course]) -> Course:
    """Pieces, in order, as one."""
    rows = [
        np.concatenate([getattr(course, name) for course in courses])
        for name in ("opening", "eyes", "angles", "change", "features")
    ]
    return Course(
        *rows, *(np.sum([getattr(course, name) for course in courses], 0) for name in ("jitter", "flicker", "sync"))
    )


# ----------------------------------------------------------------------------------------------------------- findings


def face_square(video: Video) -> Box:
    """Where the model's square lies in a video's frames."""
    return Box(0, 0, video.width, video.height) if video.full is None else video.full.box


def check_output(
    path: FilePath, box: Box | None = None, sface: FilePath | None = None, progress: Progress = lambda *_: None
) -> Report:
    """Examine a finished video with its own sound.

    box: the square around the face, see ``pieces``. sface: SFace weights, by default where ``tools/fetch_models.py`` puts
    them; without any the identity is left out, and a note says so. Raises VideoError for a file that cannot be read,
    CheckpointError for damaged weights.
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
        for piece in pieces(reader, tracker, box):
            stop = piece.start + len(piece.crops)
            courses.append(measure(piece, samples[piece.start * FRAME_SAMPLES : stop * FRAME_SAMPLES], judge, network))
            progress("check", stop, 0)
    course = joined(courses)
    curve = identity.cosine(course.features, course.features[:1]) if len(course.features) else None
    findings = examine_course(course, samples, curve)
    identity_curve = None if curve is None else [round(float(value), 4) for value in curve]
    return Report(Section("video", str(path), tuple(findings)), len(course.opening), identity_curve, tuple(notes))


def examine_course(course: Course, samples: FloatArray, curve: Float64Array | None = None) -> list[Finding]:
    """Findings on a whole video. samples (L,): its sound; curve (N,): cosines to the first face. None: not to be told."""
    found = course.found
    frozen_s = max((stop - start for start, stop in runs(course.change < STILL_LEVELS)), default=0) / FPS
    return [
        judged(
            "face_found",
            found.mean(),
            "of frames",
            found.mean() < MIN_FOUND_SHARE,
            "the face is lost: use a portrait that dawn check does not warn of, or less motion (--pose-scale)",
        ),
        *_sync_findings(course),
        _silence_finding(course.opening, samples),
        *_identity_findings(curve),
        *_motion_findings(course),
        judged(
            "frozen", frozen_s, "s", frozen_s > MAX_FROZEN_S, "the picture stands still: was it asked for (--still)?"
        ),
    ]


def _sync_findings(course: Course) -> list[Finding]:
    names = ("sync_confidence", "av_offset_frames", "av_offset")
    if not course.sync[1].any():
        return [Finding(name, None, unit) for name, unit in zip(names, ("", "frames", "ms"), strict=True)]
    score = sync.score_of(LagDistances(*course.sync))
    weak = score.confidence < MIN_CONFIDENCE
    # Where no lag stands out, the offset is chance.
    late = not weak and abs(score.offset_frames) > MAX_OFFSET_FRAMES
    advice = "the sound comes late" if score.offset_frames > 0 else "the sound comes early"
    return [
        judged(names[0], score.confidence, "", weak, "lips hardly go with the sound: try --retry, or clearer speech"),
        judged(names[1], score.offset_frames, "frames", late, f"{advice}: shift it against the picture"),
        Finding(names[2], round(score.offset_frames * MS_PER_FRAME, 1), "ms"),
    ]


def speaking(samples: FloatArray, frames: int) -> Flags:
    """Frames in which somebody speaks, (frames,), by ``speech.activity``, two blocks a frame."""
    if not len(samples):
        return np.zeros(frames, np.bool_)
    blocks = activity(samples).speech[: 2 * frames]
    return np.asarray(np.pad(blocks, (0, 2 * frames - len(blocks))).reshape(frames, 2).any(1))


def _silence_finding(opening: Float64Array, samples: FloatArray) -> Finding:
    """How much lips move in silence against speech: standard deviation of their opening, each stretch's mean taken away."""
    name, unit = "lips_in_silence", "of movement in speech"
    spoken = speaking(samples, len(opening))
    near = np.convolve(spoken, np.ones(2 * SILENCE_MARGIN_FRAMES + 1), "same") > 0.5
    quiet, loud = (
        [opening[start:stop] for start, stop in runs(flags & np.isfinite(opening))] for flags in (~near, spoken)
    )
    if sum(map(len, quiet)) < MIN_SILENT_FRAMES or not loud or not pooled_std(loud):
        return Finding(name, None, unit)
    ratio = pooled_std(quiet) / pooled_std(loud)
    return judged(
        name,
        ratio,
        unit,
        ratio > MAX_SILENT_MOVEMENT,
        "the mouth moves while nobody speaks: remove noise from the recording",
    )


def _identity_findings(curve: Float64Array | None) -> list[Finding]:
    names = ("identity", "identity_lowest", "identity_drift")
    if curve is None or len(curve) < 2:
        return [Finding(name, None, "cosine") for name in names]
    later = curve[1:]
    part = -(-len(later) // IDENTITY_PARTS)
    drift = later[-part:].mean() - later[:part].mean()
    advice = "the face becomes another one: use a portrait that looks straight at the camera, or less motion"
    return [
        Finding(names[0], round(float(later.mean()), 4), "cosine"),
        judged(names[1], later.min(), "cosine", later.min() < MIN_LIKENESS, advice),
        judged(names[2], drift, "cosine", drift < -MAX_DRIFT, advice),
    ]


def _motion_findings(course: Course) -> list[Finding]:
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
        "people blink 10 to 30 times: see --blink, or try another --seed",
        "the face trembles: use a sharper portrait",
        "the picture is noisy or flickers",
        "the head moves far: see --pose-scale",
    )
    return [
        judged(name, value, unit, wrong, what) if np.isfinite(value) else Finding(name, None, unit)
        for (name, unit), value, wrong, what in zip(MOTION_UNITS.items(), values, bad, advice, strict=True)
    ]
