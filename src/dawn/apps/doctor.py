"""``dawn doctor``: whether each part works on this machine, found out by running it small."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dawn import __version__, media
from dawn.checkpoint import file_sha256, find_preset, list_presets, part_path, read_preset
from dawn.engines.load import pick_device
from dawn.errors import CheckpointError
from dawn.face.geometry import apply_pose, eye_aspect_ratio
from dawn.options import GenerateOptions
from dawn.pipeline import Dawn
from dawn.preprocess.tracker import FaceTracker
from dawn.structs import FPS, SPEECH_RATE_HZ, Box, Face

FRAMES = 4
PACKAGES = ("torch", "numpy", "av", "mediapipe")
FRONTAL_POSE = (0.0, 0.0, 0.0, 0.6, 0.0, 0.0)


class Check(NamedTuple):
    """One line of the report; ``ok`` is None for plain information."""

    name: str
    ok: bool | None
    detail: str


def examine() -> Iterator[Check]:
    """All checks, each made when it is asked for."""
    yield Check("dawn", None, f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    yield Check("packages", None, ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    yield Check("machine", None, f"{os.cpu_count()} cores, {_memory()}, torch uses {torch.get_num_threads()} threads")
    yield Check("device", None, _device())
    yield _try("face tracker", _tracker)
    yield _try("H.264 + AAC", _encoding)
    presets = list_presets()
    if not presets:
        yield Check("presets", False, "none is inside the package; install it again, or give a preset's folder")
    for name in presets:
        yield _try(f"{name} files", partial(_files, name))
        yield _try(f"{name} runs", partial(_runs, name))


def _try(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except Exception as error:  # whatever is broken here is what the report is for
        return Check(name, False, " ".join(f"{type(error).__name__}: {error}".split()))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / (1 << 30):.1f} GiB"
    except (AttributeError, OSError, ValueError):
        return "memory unknown"


def _device() -> str:
    device = pick_device("auto")
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _tracker() -> str:
    with FaceTracker() as tracker:
        found = tracker.detect(np.full((128, 128, 3), 128, np.uint8))
    return f"runs ({len(found)} faces on an empty picture)"


def _encoding() -> str:
    """Write a second of video with sound and read both back."""
    time_s = np.arange(SPEECH_RATE_HZ) / SPEECH_RATE_HZ
    speech = media.speech_from_array(0.5 * np.sin(2 * np.pi * 440 * time_s), SPEECH_RATE_HZ)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.mp4"
        with media.VideoWriter(path, 64, 64, speech) as writer:
            for index in range(FPS):
                writer.write(np.full((64, 64, 3), 5 * index, np.uint8))
        frames = sum(1 for _ in media.read_video(path))
        heard_s = media.read_speech(path).duration_s
    if frames != FPS or abs(heard_s - 1) > 2 / FPS:
        raise RuntimeError(f"wrote {FPS} frames and 1 s of sound, read {frames} frames and {heard_s:.2f} s")
    return "written and read back"


def _files(name: str) -> str:
    """Checksums of every part of a preset."""
    folder = find_preset(name)
    config = read_preset(folder)
    size = 0
    for part in config.PARTS:
        path = part_path(folder, part, config.shares)
        if not path.is_file() or file_sha256(path) != config.sha256.get(part):
            raise CheckpointError(f"{path} is missing or differs from its checksum; install the package again")
        size += path.stat().st_size
    return f"{len(config.PARTS)} parts, {size / 1e6:.1f} MB, checksums right"


def _runs(name: str) -> str:
    """Speech to motion to frames with a made-up face."""
    model = Dawn.from_pretrained(name)
    samples = np.random.default_rng(0).normal(0, 0.1, FRAMES * SPEECH_RATE_HZ // FPS).astype(np.float32)
    sound = torch.from_numpy(samples).to(model.device)
    features = model.engine.features(sound, FRAMES)
    face = plain_face(model.engine.mean_face(), model.config.lfg.image_size_px)
    motion = model.engine.generate(features, sound, face, GenerateOptions(), lambda done: None)
    frames = np.stack(list(model.render(face, motion)))
    if not np.isfinite(motion.expression).all() or len(frames) != FRAMES:
        raise RuntimeError(f"made {len(frames)} frames of {FRAMES}, or motion that is not finite")
    return f"{FRAMES} frames of {frames.shape[2]} x {frames.shape[1]} px on {model.device}"


def plain_face(mean_face: torch.Tensor, size_px: int) -> Face:
    """The mean face, frontal, on a grey picture."""
    pose = torch.tensor(FRONTAL_POSE)
    return Face(
        crop=np.full((size_px, size_px, 3), 128, np.uint8),
        landmarks=apply_pose(mean_face, pose).numpy(),
        shape=mean_face.numpy(),
        pose=pose.numpy(),
        blink=eye_aspect_ratio(mean_face).numpy(),
        box=Box(0, 0, size_px, size_px),
    )
