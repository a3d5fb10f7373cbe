"""The product: portrait + speech → video.

dawn = Dawn.from_pretrained()
dawn("portrait.png", "speech.wav", seed=1).save("out.mp4")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dawn import DEFAULT_PRESET, __version__, media
from dawn.config import PaperPresetConfig, PresetConfig, parse
from dawn.engines.engine import Engine, load_bundle, pick_device
from dawn.engines.lite import LiteEngine
from dawn.engines.paper import PaperEngine
from dawn.errors import ConfigError, MotionError
from dawn.models.lite.bundle import LiteBundle
from dawn.models.lite.motion_space import MotionSpace
from dawn.models.paper.bundle import PaperBundle
from dawn.options import GenerateOptions
from dawn.preprocess.crop import cut, moved_into, off_centre
from dawn.preprocess.driving import driving_sound, track_landmarks
from dawn.preprocess.portrait import prepare_portrait
from dawn.preprocess.tracker import FaceTracker
from dawn.progress import Progress, Stopwatch, _quiet
from dawn.rendering.composite import LIMIT_PX, FullFrame
from dawn.rendering.draw import DECODE_BATCH
from dawn.rendering.parallel import cpu_workers, in_order
from dawn.rendering.tone import tone_of, toned
from dawn.structs import Box, Face, ImageArray, Motion, PathLike, Speech

SIZES_PX = (128, 256, 512)
FRAMES = ("crop", "full")
FULL_SIZES_PX = (256, 2560)
"""Least and greatest limit of a full frame's longest side."""
KEPT_FEATURES = 1500
"""Frames (a minute's) whose audio features a video keeps for ``again``, 4.6 MB; of longer speech they are computed anew."""
PREPARING = ("audio in", "track", "audio features")
"""Stages of ``Stopwatch`` whose results several videos can share."""


class Video:
    """A talking-head video that is decoded as it is read: iterate over its frames, or ``save`` it.

    ``motion`` is what is rendered and can be saved, edited and rendered again; ``face`` is the prepared portrait; ``full``
    puts it back into the photograph, or its square, where frames are not the model's own. Frames are ``height`` x ``width``
    pixels. ``options`` are those that motion is generated with, None for motion of another video.
    """

    def __init__(
        self,
        model: Dawn,
        face: Face,
        motion: Motion,
        speech: Speech | None,
        size_px: int,
        watch: Stopwatch,
        progress: Progress,
        full: FullFrame | None = None,
        options: GenerateOptions | None = None,
        features: Tensor | None = None,
    ) -> None:
        self.face, self.motion, self.speech, self.size_px, self.watch = face, motion, speech, size_px, watch
        self._model, self._progress, self.full = model, progress, full
        self.options = options
        self._features = features if features is not None and len(features) <= KEPT_FEATURES else None
        self.height, self.width = (size_px, size_px) if full is None else (full.height, full.width)

    def __len__(self) -> int:
        return len(self.motion)

    def __iter__(self) -> Iterator[ImageArray]:
        """Frames (height, width, 3) uint8 RGB at 25 fps."""
        return (frame for _, frame in self.frames(np.ones(len(self), np.bool_)))

    def frames(self, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, ImageArray]]:
        """Only the wanted frames, (T,) bool, each with its index, in order; bit by bit as in the whole video.

        A frame is computed together with those of its batch, which is the same whatever is wanted.
        """
        model, indices = self._model, np.flatnonzero(wanted)
        frames = (
            model.render(self.face, self.motion, self.size_px, wanted)
            if self.full is None
            else model.render_full(self.face, self.motion, self.full, wanted)
        )
        for done, index in enumerate(indices.tolist(), 1):
            with self.watch.stage("decode"):
                frame = next(frames)
            self._progress("decode", done, len(indices))
            yield index, frame

    def again(self, **options: Any) -> Video:
        """The same portrait and speech, neither prepared anew, with motion that is generated with other options.

        options: fields of ``GenerateOptions``; those not named stay as they were. Raises ConfigError for wrong options, and
        for the motion of another video, which is not generated.
        """
        if self.options is None or self.speech is None:
            raise ConfigError("this motion is another video's, not generated: make a video from a portrait and speech")
        chosen = parse(GenerateOptions, self.options.model_dump() | options, "options")
        watch = self._prepared()
        samples, features = self._model.heard(self.speech, watch, self._features)
        motion = self._model.generate(features, samples, self.face, chosen, watch, self._progress)
        return Video(
            self._model,
            self.face,
            motion,
            self.speech,
            self.size_px,
            watch,
            self._progress,
            self.full,
            chosen,
            features,
        )

    def showing(self, motion: Motion) -> Video:
        """The same portrait and speech with this motion. Raises MotionError for another length or motion space."""
        self._model.engine.check(motion)
        if len(motion) != len(self):
            raise MotionError(
                f"the motion has {len(motion)} frames, the video {len(self)}: give one of the same length"
            )
        return Video(
            self._model,
            self.face,
            motion,
            self.speech,
            self.size_px,
            self._prepared(),
            self._progress,
            self.full,
            self.options,
            self._features,
        )

    @property
    def space(self) -> MotionSpace | None:
        """What the coefficients of ``motion`` mean; None for the published model, whose motion is dense flow."""
        bundle = self._model.bundle
        return bundle.motion if isinstance(bundle, LiteBundle) else None

    @property
    def comment(self) -> str:
        """What files of this video say of themselves."""
        what = self._model.describe(self.size_px) if self.full is None else self._model.describe_full(self.full)
        return f"AI-generated video: dawn {__version__}, {what}"

    def save(self, path: PathLike, frames: Iterable[ImageArray] | None = None, stream: BinaryIO | None = None) -> Path:
        """Write an MP4 (H.264, AAC) with the speech. Raises OutputError; nothing half-written is left behind.

        frames: all frames, where they have been drawn already; None draws them. stream: gets the same film while it is made,
        see ``media.VideoWriter``.
        """
        about = {"comment": self.comment}
        with media.VideoWriter(path, self.width, self.height, self.speech, metadata=about, stream=stream) as writer:
            for frame in self if frames is None else frames:
                with self.watch.stage("video"):
                    writer.write(frame)
            with self.watch.stage("video"):
                writer.close()
        return Path(path)

    def _prepared(self) -> Stopwatch:
        """What it took to prepare portrait and sound; drawing begins anew."""
        return Stopwatch({stage: seconds for stage, seconds in self.watch.seconds.items() if stage in PREPARING})


class Dawn:
    """A loaded model. Make it with ``from_pretrained`` once and call it for every video."""

    def __init__(self, bundle: LiteBundle | PaperBundle, device: torch.device) -> None:
        """bundle: as ``load_bundle`` gives it; it is changed for inference in place."""
        self.engine: Engine = (
            LiteEngine(bundle, device) if isinstance(bundle, LiteBundle) else PaperEngine(bundle, device)
        )
        self.bundle = bundle
        self.device = device

    @classmethod
    def from_pretrained(cls, preset: PathLike = DEFAULT_PRESET, device: str = "auto") -> Dawn:
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

    def __call__(
        self,
        portrait: PathLike | ImageArray | Face,
        speech: PathLike | Speech,
        *,
        size: int | None = None,
        frame: str = "crop",
        face: int | str | None = None,
        motion: Motion | None = None,
        allow_silence: bool = False,
        progress: Progress = _quiet,
        **options: Any,
    ) -> Video:
        """Generate a talking-head video.

        portrait: an image file, an (H, W, 3) uint8 RGB array, or what ``prepare`` made of one. speech: an audio or video file,
        or a ``Speech``.
        frame: "crop", the square around the face, or "full", the whole photograph with the face moving in it.
        size: side of the crop in pixels (128, 256, 512; if not given the preset's ``shown_size_px``); below the model's own it
        is reduced, above it the portrait's own detail is moved along. Of a full frame the longest side at most (256 to 2560,
        1280 if not given): larger photographs are reduced, smaller ones stay as they are.
        face: which face of several, see ``preprocess.portrait.choose_face``. motion: render this instead of generating one.
        options: fields of ``GenerateOptions`` (seed, steps, guidance, pose_scale, blink, still, expression).

        Raises InputError and its kinds for unusable files, ConfigError for wrong options.
        """
        chosen = parse(GenerateOptions, options, "options")
        size_px = self.checked_size(size, frame, isinstance(portrait, Face))
        watch = Stopwatch()
        with watch.stage("audio in"):
            sound = speech if isinstance(speech, Speech) else media.read_speech(speech, allow_silence=allow_silence)
        with watch.stage("track"):
            prepared, full = self._placed(portrait, face, frame, size_px)
        features = None
        if motion is None:
            samples, features = self.heard(sound, watch)
            motion = self.generate(features, samples, prepared, chosen, watch, progress)
        else:
            motion = self._fit_motion(motion, sound.frame_count)
        return Video(self, prepared, motion, sound, size_px, watch, progress, full, chosen, features)

    def heard(self, speech: Speech, watch: Stopwatch, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Samples (L,) and audio features (T, D) on the device; features that are known already are kept."""
        with watch.stage("audio features"):
            samples = torch.from_numpy(speech.samples).to(self.device)
            return samples, self.engine.features(samples, speech.frame_count) if known is None else known

    def generate(
        self,
        features: Tensor,
        samples: Tensor,
        face: Face,
        options: GenerateOptions,
        watch: Stopwatch,
        progress: Progress,
    ) -> Motion:
        """Motion of a prepared portrait from ``heard`` speech. Raises ConfigError for options the preset does not have."""
        steps = options.steps or self.config.sampler.steps
        with watch.stage("motion"):
            return self.engine.generate(features, samples, face, options, lambda done: progress("motion", done, steps))

    def drive(
        self,
        portrait: PathLike | ImageArray | Face,
        video: PathLike,
        *,
        size: int | None = None,
        frame: str = "crop",
        face: int | str | None = None,
        progress: Progress = _quiet,
    ) -> Video:
        """Another video's facial motion (and sound, if any) on this portrait. Raises as ``__call__``, and VideoError."""
        size_px = self.checked_size(size, frame, isinstance(portrait, Face))
        watch = Stopwatch()
        with watch.stage("track"):
            prepared, full = self._placed(portrait, face, frame, size_px)
            motion = self.track_motion(video, prepared, progress)
        speech = driving_sound(video, len(motion))
        return Video(self, prepared, motion, speech, size_px, watch, progress, full)

    def prepare(self, portrait: PathLike | ImageArray, face: int | str | None = None, moved: bool = True) -> Face:
        """Find, check and crop the portrait's face. moved: its square into the picture, or a face at the photograph's border
        stays in the middle of it. Raises ImageError, FaceError and its kinds."""
        image = portrait if isinstance(portrait, np.ndarray) else media.read_image(portrait)
        with FaceTracker(max_faces=8) as tracker:
            return prepare_portrait(image, self.config.lfg.image_size_px, tracker, self.engine.mean_face(), face, moved)

    def _placed(
        self, portrait: PathLike | ImageArray | Face, face: int | str | None, frame: str, size_px: int
    ) -> tuple[Face, FullFrame | None]:
        """``prepare``, and what puts the face back into its photograph, or into the photograph's square, if that is larger
        than the model's or had to be moved: the network sees every face in the middle."""
        native = self.config.lfg.image_size_px
        if isinstance(portrait, Face):
            if frame == "full" or size_px > native or portrait.crop.shape[0] != native:
                raise ConfigError(
                    f"a prepared face serves for squares of its own preset, up to {native} px: give the picture"
                )
            return portrait, None
        if frame == "crop" and size_px <= native:
            prepared = self.prepare(portrait, face)
            if size_px < native or not off_centre(prepared):
                return prepared, None
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

    def render(
        self, face: Face, motion: Motion, size_px: int | None = None, wanted: NDArray[np.bool_] | None = None
    ) -> Iterator[ImageArray]:
        """Frames (size_px, size_px, 3) uint8, decoded in batches as they are asked for. wanted: (T,) leaves others out."""

        def finish(frames: Tensor, flow: Tensor, rows: list[int]) -> list[ImageArray]:
            if size_px not in (None, frames.shape[-1]):
                frames = torch.nn.functional.interpolate(frames, size_px, mode="bicubic", antialias=True)
            pictures = (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
            return [pictures[row] for row in rows]

        return self._drawn(face, motion, wanted, finish)

    def render_full(
        self, face: Face, motion: Motion, full: FullFrame, wanted: NDArray[np.bool_] | None = None
    ) -> Iterator[ImageArray]:
        """Frames (full.height, full.width, 3) uint8, decoded in batches as they are asked for; wanted as for ``render``."""
        return self._drawn(
            face, motion, wanted, lambda frames, flow, rows: [full(frames[row], flow[row]) for row in rows]
        )

    def _drawn(
        self,
        face: Face,
        motion: Motion,
        wanted: NDArray[np.bool_] | None,
        finish: Callable[[Tensor, Tensor, list[int]], list[ImageArray]],
    ) -> Iterator[ImageArray]:
        """What ``finish`` makes of batches of frames (N, 3, R, R) in the portrait's tone and the flow (N, h, w, 2) that moved
        it: pictures of the wanted rows.

        Batches begin at multiples of ``DECODE_BATCH`` and are whole whatever is wanted, because arithmetic, and with it a
        frame's last bit, may depend on the size of a batch. On the CPU several are drawn at once.
        """
        self.engine.check(motion)
        source, tone = self.engine.source(face), tone_of(face.crop)
        shown = np.ones(len(motion), np.bool_) if wanted is None else wanted
        batches = (start for start in range(0, len(motion), DECODE_BATCH) if shown[start : start + DECODE_BATCH].any())

        @torch.inference_mode()
        def draw(start: int) -> list[ImageArray]:
            stop = min(start + DECODE_BATCH, len(motion))
            frames, flow = self.engine.decode(source, face, motion, start, stop)
            return finish(toned(frames, tone), flow, np.flatnonzero(shown[start:stop]).tolist())

        small = isinstance(self.engine, LiteEngine) and self.device.type == "cpu"
        for pictures in in_order(draw, batches, cpu_workers() if small else 1):
            yield from pictures

    def checked_size(self, size: int | None, frame: str, prepared: bool = False) -> int:
        """The size in pixels that a video of this kind gets. prepared: of a face without its photograph, of which nothing
        larger than the model's own is made. Raises ConfigError for a size that cannot be had."""
        if frame not in FRAMES:
            raise ConfigError(f"frame {frame!r}: give crop or full")
        if frame == "full":
            low, high = FULL_SIZES_PX
            if size is not None and not low <= size <= high:
                raise ConfigError(f"size {size}: of a full frame it limits the longest side; give {low} to {high} px")
            return size or LIMIT_PX
        if size is None:
            shown = self.config.shown_size_px if isinstance(self.config, PresetConfig) else None
            return self.config.lfg.image_size_px if prepared or shown is None else shown
        if size not in SIZES_PX:
            raise ConfigError(f"size {size}: give one of {', '.join(map(str, SIZES_PX))} px")
        return size

    def _fit_motion(self, motion: Motion, frames: int) -> Motion:
        """A given motion cut, or held at its last frame, to the length of the speech."""
        self.engine.check(motion)
        index = np.minimum(np.arange(frames), len(motion) - 1)
        return motion.at(index)
