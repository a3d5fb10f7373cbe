"""The product: portrait + speech → video.

    dawn = Dawn.from_pretrained("lite-128")
    dawn("portrait.png", "speech.wav", seed=1).save("out.mp4")
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dawn import __version__, media
from dawn.checkpoint import PAPER_PARTS, PARTS, find_preset, load_into, part_path, read_preset, read_weights
from dawn.composite import LIMIT_PX, FullFrame
from dawn.config import PaperPresetConfig, PresetConfig, parse
from dawn.errors import ConfigError, NoFaceError, VideoError
from dawn.generation import GenerateOptions, LiteEngine
from dawn.models.bundle import Bundle, PaperBundle
from dawn.models.tone import tone_of, toned
from dawn.paper_generation import PaperEngine
from dawn.preprocess.crop import crop_box, cut, moved_into, to_crop_units
from dawn.preprocess.portrait import prepare_portrait
from dawn.preprocess.tracker import FaceTracker
from dawn.structs import FPS, Box, Face, FloatArray, ImageArray, Motion, Speech, TrackedFace

log = logging.getLogger(__name__)

DECODE_BATCH = 8
"""Frames decoded together: enough to fill two cores, few enough to stay in their cache."""
SIZES_PX = (128, 256, 512)
FRAMES = ("crop", "full")
FULL_SIZES_PX = (256, 2560)
"""Least and greatest limit of a full frame's longest side."""
MAX_DRIVE_FRAMES = 45_000
PathLike = str | Path
Progress = Callable[[str, int, int], None]
"""(stage, done, total)."""


class Engine(Protocol):
    """What the pipeline asks of a preset; ``lite`` and the published model answer it in their own motion spaces."""

    def mean_face(self) -> Tensor: ...
    def features(self, samples: Tensor, frames: int) -> Tensor: ...
    def generate(self, features: Tensor, samples: Tensor, face: Face, options: GenerateOptions,
                 progress: Callable[[int], None]) -> Motion: ...  # fmt: skip
    def check(self, motion: Motion) -> None: ...
    def source(self, face: Face) -> Any: ...
    def decode(self, source: Any, face: Face, motion: Motion, start: int, stop: int) -> tuple[Tensor, Tensor]: ...
    def transfer(self, landmarks: Tensor, face: Face) -> Motion: ...


def _quiet(stage: str, done: int, total: int) -> None:
    pass


@dataclass
class Stopwatch:
    """Seconds spent in each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def peak_memory_mib() -> float | None:
    """Peak memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


class Video:
    """A talking-head video that is decoded as it is read: iterate over its frames, or ``save`` it.

    ``motion`` is what is rendered and can be saved, edited and rendered again; ``face`` is the prepared portrait; ``full``
    puts it back into the photograph, or its square, where frames are not the model's own. Frames are ``height`` x ``width``
    pixels.
    """

    def __init__(self, model: Dawn, face: Face, motion: Motion, speech: Speech | None, size_px: int,
                 watch: Stopwatch, progress: Progress, full: FullFrame | None = None) -> None:  # fmt: skip
        self.face, self.motion, self.speech, self.size_px, self.watch = face, motion, speech, size_px, watch
        self._model, self._progress, self.full = model, progress, full
        self.height, self.width = (size_px, size_px) if full is None else (full.height, full.width)

    def __len__(self) -> int:
        return len(self.motion)

    def __iter__(self) -> Iterator[ImageArray]:
        """Frames (height, width, 3) uint8 RGB at 25 fps."""
        model = self._model
        frames = (model.render(self.face, self.motion, self.size_px) if self.full is None
                  else model.render_full(self.face, self.motion, self.full))  # fmt: skip
        for done in range(len(self)):
            with self.watch.stage("decode"):
                frame = next(frames)
            self._progress("decode", done + 1, len(self))
            yield frame

    def save(self, path: PathLike) -> Path:
        """Write an MP4 (H.264, AAC) with the speech. Raises OutputError; nothing half-written is left behind."""
        what = self._model.describe(self.size_px) if self.full is None else self._model.describe_full(self.full)
        comment = f"AI-generated video: dawn {__version__}, {what}"
        with media.VideoWriter(path, self.width, self.height, self.speech, fps=FPS, metadata={"comment": comment}) as writer:
            for frame in self:
                with self.watch.stage("video"):
                    writer.write(frame)
            with self.watch.stage("video"):
                writer.close()
        return Path(path)


class Dawn:
    """A loaded model. Make it with ``from_pretrained`` once and call it for every video."""

    def __init__(self, bundle: Bundle | PaperBundle, device: torch.device) -> None:
        """bundle: as ``load_bundle`` gives it; it is changed for inference in place."""
        self.engine: Engine = LiteEngine(bundle, device) if isinstance(bundle, Bundle) else PaperEngine(bundle, device)
        self.bundle = bundle
        self.device = device

    @classmethod
    def from_pretrained(cls, preset: PathLike = "lite-128", device: str = "auto") -> Dawn:
        """Load a shipped preset by name, or a preset's folder.

        Raises ConfigError (unknown preset, device) or CheckpointError (weights missing, damaged or foreign).
        """
        return cls(load_bundle(preset), pick_device(device))

    @property
    def config(self) -> PresetConfig | PaperPresetConfig:
        return self.bundle.config

    def describe(self, size_px: int) -> str:
        """One phrase for metadata: preset, native size and whether frames are reduced."""
        native = self.config.lfg.image_size_px
        scaled = f", {native} px reduced to {size_px} px" if size_px < native else ""
        return f"preset {self.config.name}{scaled}"

    def describe_full(self, full: FullFrame) -> str:
        """The same for frames that are photographs, or squares of them: also how large the face is in them."""
        native = self.config.lfg.image_size_px
        scaled = f", photograph reduced from {full.original}" if full.reduced else ""
        return f"preset {self.config.name}, {native} px square at {full.box.width:.0f} px in the photograph{scaled}"

    def __call__(self, portrait: PathLike | ImageArray, speech: PathLike | Speech, *, size: int | None = None,
                 frame: str = "crop", face: int | str | None = None, motion: Motion | None = None,
                 allow_silence: bool = False, progress: Progress = _quiet, **options: Any) -> Video:  # fmt: skip
        """Generate a talking-head video.

        portrait: an image file, or an (H, W, 3) uint8 RGB array. speech: an audio or video file, or a ``Speech``.
        frame: "crop", the square around the face, or "full", the whole photograph with the face moving in it.
        size: side of the crop in pixels (128, 256, 512); below the model's own it is reduced, above it the portrait's own
        detail is moved along. Of a full frame the longest side at most (256 to 2560, 1280 if not given): larger photographs
        are reduced, smaller ones stay as they are.
        face: which face of several, see ``preprocess.portrait.choose_face``. motion: render this instead of generating one.
        options: fields of ``GenerateOptions`` (seed, steps, guidance, pose_scale, blink, still, expression).

        Raises InputError and its kinds for unusable files, ConfigError for wrong options.
        """
        chosen = parse(GenerateOptions, options, "options")
        size_px = self._size(size, frame)
        watch = Stopwatch()
        with watch.stage("audio in"):
            sound = speech if isinstance(speech, Speech) else media.read_speech(speech, allow_silence=allow_silence)
        with watch.stage("track"):
            prepared, full = self._placed(portrait, face, frame, size_px)
        if motion is None:
            with watch.stage("audio features"):
                samples = torch.from_numpy(sound.samples).to(self.device)
                features = self.engine.features(samples, sound.frame_count)
            steps = chosen.steps or self.config.sampler.steps
            with watch.stage("motion"):
                motion = self.engine.generate(
                    features, samples, prepared, chosen, lambda done: progress("motion", done, steps)
                )  # fmt: skip
        else:
            motion = self._fit_motion(motion, sound.frame_count)
        return Video(self, prepared, motion, sound, size_px, watch, progress, full)

    def drive(self, portrait: PathLike | ImageArray, video: PathLike, *, size: int | None = None, frame: str = "crop",
              face: int | str | None = None, progress: Progress = _quiet) -> Video:  # fmt: skip
        """Another video's facial motion (and sound, if any) on this portrait. Raises as ``__call__``, and VideoError."""
        size_px = self._size(size, frame)
        watch = Stopwatch()
        with watch.stage("track"):
            prepared, full = self._placed(portrait, face, frame, size_px)
            motion = self.track_motion(video, prepared, progress)
        speech = _sound_of(video, len(motion))
        return Video(self, prepared, motion, speech, size_px, watch, progress, full)

    def prepare(self, portrait: PathLike | ImageArray, face: int | str | None = None, moved: bool = True) -> Face:
        """Find, check and crop the portrait's face. moved: its square into the picture, or a face at the photograph's border
        stays in the middle of it. Raises ImageError, FaceError and its kinds."""
        image = portrait if isinstance(portrait, np.ndarray) else media.read_image(portrait)
        with FaceTracker(max_faces=8) as tracker:
            return prepare_portrait(image, self.config.lfg.image_size_px, tracker, self.engine.mean_face(), face, moved)

    def _placed(self, portrait: PathLike | ImageArray, face: int | str | None, frame: str,
                size_px: int) -> tuple[Face, FullFrame | None]:  # fmt: skip
        """``prepare``, and what puts the face back into its photograph, or into the photograph's square, if that is larger
        than the model's."""
        if frame == "crop" and size_px <= self.config.lfg.image_size_px:
            return self.prepare(portrait, face), None
        image = portrait if isinstance(portrait, np.ndarray) else media.read_image(portrait)
        prepared = self.prepare(image, face, moved=False)
        if frame == "full":
            return prepared, FullFrame(image, prepared, size_px, self.device)
        own, shown = prepared.box, moved_into(prepared.box, image.shape[1], image.shape[0])
        scale = size_px / shown.width
        x0, y0 = (own.x0 - shown.x0) * scale, (own.y0 - shown.y0) * scale
        placed = replace(prepared, box=Box(x0, y0, x0 + size_px, y0 + size_px))
        return prepared, FullFrame(cut(image, shown, size_px), placed, size_px, self.device)

    def track_motion(self, video: PathLike, face: Face, progress: Progress = _quiet) -> Motion:
        """Facial motion of a video as a ``Motion`` for ``face``. Raises VideoError, NoFaceError, ConfigError."""
        motion = self.engine.transfer(track_landmarks(video, progress), face)
        motion.info["driven_by"] = Path(video).name
        return motion

    def landmarks(self, face: Face, motion: Motion, start: int, stop: int) -> Tensor:
        """Driving landmarks (stop - start, 478, 3) of some frames; only ``lite`` motion has them."""
        if not isinstance(self.engine, LiteEngine):
            raise ConfigError(f"the preset {self.config.name} moves pixels, not landmarks: use a lite preset")
        return self.engine.landmarks(face, motion, start, stop)

    def render(self, face: Face, motion: Motion, size_px: int | None = None) -> Iterator[ImageArray]:
        """Frames (size_px, size_px, 3) uint8, decoded in batches as they are asked for."""
        for frames, _ in self._drawn(face, motion):
            if size_px not in (None, frames.shape[-1]):
                frames = torch.nn.functional.interpolate(frames, size_px, mode="bicubic", antialias=True)
            yield from (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def render_full(self, face: Face, motion: Motion, full: FullFrame) -> Iterator[ImageArray]:
        """Frames (full.height, full.width, 3) uint8, decoded in batches as they are asked for."""
        for frames, flow in self._drawn(face, motion):
            yield from map(full, frames, flow)

    def _drawn(self, face: Face, motion: Motion) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of frames (N, 3, R, R) in the portrait's tone, and the flow (N, h, w, 2) that moved it."""
        self.engine.check(motion)
        source, tone = self.engine.source(face), tone_of(face.crop)
        for start in range(0, len(motion), DECODE_BATCH):
            with torch.inference_mode():
                frames, flow = self.engine.decode(source, face, motion, start, min(start + DECODE_BATCH, len(motion)))
                frames = toned(frames, tone)
            yield frames, flow

    def _size(self, size: int | None, frame: str) -> int:
        if frame not in FRAMES:
            raise ConfigError(f"frame {frame!r}: give crop or full")
        if frame == "full":
            low, high = FULL_SIZES_PX
            if size is not None and not low <= size <= high:
                raise ConfigError(f"size {size}: of a full frame it limits the longest side; give {low} to {high} px")
            return size or LIMIT_PX
        native = self.config.lfg.image_size_px
        if size is None:
            return native
        if size not in SIZES_PX:
            raise ConfigError(f"size {size}: give one of {', '.join(map(str, SIZES_PX))} px")
        return size

    def _fit_motion(self, motion: Motion, frames: int) -> Motion:
        """A given motion cut, or held at its last frame, to the length of the speech."""
        self.engine.check(motion)
        index = np.minimum(np.arange(frames), len(motion) - 1)
        return motion.at(index)


def load_bundle(preset: PathLike) -> Bundle | PaperBundle:
    """All networks of a preset on the CPU, as trained, frozen. Raises ConfigError, CheckpointError."""
    folder = find_preset(preset)
    config = read_preset(folder)
    bundle = Bundle(config) if isinstance(config, PresetConfig) else PaperBundle(config)
    for part in PARTS if isinstance(config, PresetConfig) else PAPER_PARTS:
        path = part_path(folder, part, getattr(config, "shares", None))
        load_into(getattr(bundle, part), read_weights(path, config.sha256.get(part)), str(path))
    return bundle.eval().requires_grad_(False)


def pick_device(name: str) -> torch.device:
    """``auto``: CUDA if there is any. Raises ConfigError for a device that this machine or torch does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used ({reason}): use auto or cpu") from error
    return device


def track_landmarks(video: PathLike, progress: Progress = _quiet) -> Tensor:
    """Landmarks (T, 478, 3) of the largest face of a video in crop units of one fixed square, as for training clips.

    A frame without a face repeats the one before. Raises VideoError, NoFaceError.
    """
    found: list[FloatArray] = []
    size = (0, 0)
    with media.VideoReader(video, fps=FPS) as reader, FaceTracker() as tracker:
        for index, frame in enumerate(reader):
            if index >= MAX_DRIVE_FRAMES:
                raise VideoError(f"{video}: longer than {MAX_DRIVE_FRAMES // FPS} s; cut it shorter")
            size = (frame.shape[1], frame.shape[0])
            faces = tracker.faces(frame)
            if faces or found:
                found.append(faces[0].landmarks if faces else found[-1])
            progress("track", index + 1, 0)
    if not found:
        raise NoFaceError(f"{video}: no face was found in the driving video; use one that shows a face")
    points = np.stack(found)
    box = crop_box(TrackedFace(points.mean(0), np.zeros(52, np.float32)), *size, inside=True)
    return torch.from_numpy(to_crop_units(points, box))


def _sound_of(video: PathLike, frames: int) -> Speech | None:
    """The video's own sound, if it has any."""
    from dawn.errors import AudioError

    try:
        speech = media.read_speech(video, allow_silence=True)
    except AudioError as error:
        log.info("%s: %s", video, error)
        return None
    return speech if abs(speech.frame_count - frames) <= FPS else None
