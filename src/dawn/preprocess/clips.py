"""Talking clips → training material: cropped frames, landmarks, sound. The same crop and tracker as for portraits."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dawn import media
from dawn.errors import AudioError, InputError, OutputError
from dawn.preprocess.crop import Fit, crop_box, cut, to_crop_units
from dawn.preprocess.tracker import FaceTracker
from dawn.structs import FPS, FloatArray, ImageArray, TrackedFace

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".m4v"}
MIN_FRAMES = 10
MAX_FRAMES = 1500
MIN_FACE_HEIGHT_PX = 64
MAX_JUMP_FACES = 0.25
"""A face centre that moves more than this many face heights between two frames is a cut or a tracking failure."""


@dataclass(frozen=True)
class PreparedClip:
    """One clip, cropped and tracked.

    frames: (T, S, S, 3) uint8. landmarks: (T, 478, 3) crop units. blendshapes: (T, 52).
    samples: (L,) at 16 kHz, empty without usable sound.
    """

    frames: ImageArray
    landmarks: FloatArray
    blendshapes: FloatArray
    samples: FloatArray


@dataclass(frozen=True)
class PrepareReport:
    """What became of one video. status: "kept", "already there", or "dropped" with the reason."""

    video: str
    status: str
    frames: int = 0
    reason: str = ""


def track_video(path: Path | str, tracker: FaceTracker, max_frames: int) -> tuple[list[ImageArray], list[TrackedFace]]:
    """Read the frames of a video at 25 fps and track the largest face of each.

    Raises:
        InputError: A frame has no face, or the face jumps there (a cut). The message names the frame.
    """
    frames: list[ImageArray] = []
    faces: list[TrackedFace] = []
    with media.VideoReader(path, fps=FPS) as reader:
        for index, frame in enumerate(reader):
            if index >= max_frames:
                break
            found = tracker.detect(frame)
            if not found:
                raise InputError(f"no face in frame {index}: cut the clip where the face is visible throughout")
            if faces:
                before, now = faces[-1].box, found[0].box
                step = np.hypot(now.center[0] - before.center[0], now.center[1] - before.center[1])
                if step > MAX_JUMP_FACES * before.height:
                    raise InputError(f"the face jumps at frame {index}: split the clip at its cuts")
            frames.append(frame)
            faces.append(found[0])
    return frames, faces


def prepare_clip(path: Path | str, size_px: int, tracker: FaceTracker) -> PreparedClip:
    """Crop and track one video with one fixed square for the whole clip.

    Raises:
        InputError: The video is unusable; the message says why.
    """
    frames, faces = track_video(path, tracker, MAX_FRAMES)
    if len(frames) < MIN_FRAMES:
        raise InputError(f"{len(frames)} frames are too few (at least {MIN_FRAMES})")
    height, width = frames[0].shape[:2]
    landmarks = np.stack([face.landmarks for face in faces])
    blendshapes = np.stack([face.blendshapes for face in faces])
    mean = TrackedFace(landmarks.mean(0), blendshapes[0])
    if mean.box.height < MIN_FACE_HEIGHT_PX:
        raise InputError(f"face {mean.box.height:.0f} px high: at least {MIN_FACE_HEIGHT_PX} px are needed")
    box = crop_box(mean, width, height, Fit.INSIDE)
    crops = np.stack([cut(frame, box, size_px) for frame in frames])
    try:
        samples = media.read_speech(path, allow_silence=True).samples
    except AudioError as error:
        log.info("%s: no usable sound (%s)", path, error)
        samples = np.zeros(0, np.float32)
    return PreparedClip(crops, to_crop_units(landmarks, box), blendshapes, samples)


def save_clip(path: Path, clip: PreparedClip, person: str, source: str) -> None:
    """Write one prepared clip as safetensors, atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    tensors: dict[str, np.ndarray] = {
        "frames": clip.frames,
        "landmarks": clip.landmarks.astype(np.float32),
        "blendshapes": clip.blendshapes.astype(np.float16),
        "samples": (clip.samples * 32767).round().astype(np.int16),
    }
    temporary = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata={"person": person, "source": source, "fps": str(FPS)})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path}: the clip cannot be written ({error}); free some space, then run again") from error
    finally:
        temporary.unlink(missing_ok=True)


_tracker: FaceTracker | None = None


def _start_worker() -> None:
    global _tracker
    # Ctrl-C reaches every process of the terminal; the parent alone decides, and workers finish the clip in hand.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _tracker = FaceTracker()
    # Closed while the interpreter still stands, or MediaPipe complains on stderr.
    Finalize(None, _tracker.close, exitpriority=10)


def _prepare_one(job: tuple[str, str, str, str, int]) -> PrepareReport:
    video, target, person, source, size_px = job
    assert _tracker is not None
    try:
        clip = prepare_clip(video, size_px, _tracker)
        save_clip(Path(target), clip, person, source)
    except InputError as error:
        return PrepareReport(source, "dropped", reason=str(error))
    return PrepareReport(source, "kept", frames=len(clip.frames))


def find_videos(root: Path) -> list[Path]:
    """List all videos below a folder (or the one file), sorted.

    Raises:
        InputError: There is none.
    """
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    if not paths:
        raise InputError(f"{root}: no video found; give a folder with {', '.join(sorted(VIDEO_SUFFIXES))} files")
    return paths


def read_people(path: Path | None) -> dict[str, str]:
    """Read a CSV with columns ``file`` and ``person``: {file name without suffix: person}; empty without a path.

    Raises:
        InputError: The file cannot be read or lacks a column.
    """
    if path is None:
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {Path(row["file"]).stem: row["person"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV with columns 'file' and 'person' ({error})") from error


def _is_complete(path: Path) -> bool:
    try:
        with safe_open(path, framework="np") as clip:
            return "landmarks" in clip.keys()  # noqa: SIM118 - safe_open is no mapping
    except Exception:  # any damage: make it again
        return False


def prepare_clips(
    videos: Iterable[Path], root: Path, out: Path, size_px: int, people: dict[str, str], workers: int
) -> Iterator[PrepareReport]:
    """Prepare many videos in parallel; yield one report each, and write ``report.json`` at the end.

    Videos whose output is already whole are skipped, so the same call resumes.

    Raises:
        OutputError: The folder or a clip cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: the folder cannot be made ({error.strerror}); choose another") from error
    reports, jobs = [], []
    for video in videos:
        source = str(video.relative_to(root)) if video.is_relative_to(root) else video.name
        target = out / f"{Path(source).with_suffix('').as_posix().replace('/', '__')}.safetensors"
        if _is_complete(target):
            reports.append(PrepareReport(source, "already there"))
            yield reports[-1]
        else:
            jobs.append((str(video), str(target), people.get(video.stem, video.stem), source, size_px))
    # Forking a program whose libraries run threads can hang: workers start afresh.
    context = get_context("spawn")
    with ProcessPoolExecutor(max(1, workers), context, initializer=_start_worker) as pool:
        try:
            for report in pool.map(_prepare_one, jobs, chunksize=1):
                reports.append(report)
                yield report
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    (out / "report.json").write_text(json.dumps([asdict(r) for r in reports], indent=1), encoding="utf-8")
