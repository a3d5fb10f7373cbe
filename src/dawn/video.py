"""A talking-head video that is drawn as it is read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dawn import __version__, media
from dawn.config import parse
from dawn.engines.engine import Engine
from dawn.errors import ConfigError, MotionError
from dawn.models.lite.motion_space import MotionSpace
from dawn.options import GenerateOptions
from dawn.progress import Progress, Stopwatch
from dawn.rendering.composite import FullFrame
from dawn.rendering.draw import draw_frames
from dawn.rendering.placement import Placement
from dawn.structs import Face, ImageArray, Motion, PathLike, Speech

KEPT_FEATURES = 1500
"""Frames (a minute's) whose audio features a video keeps for ``regenerate``, 4.6 MB; of longer speech they are encoded
anew."""
PREPARING = ("audio in", "track", "audio features")
"""Stages of ``Stopwatch`` whose results several videos can share."""


class Video:
    """Frames of a portrait: iterate over them, or ``save`` them.

    ``motion`` is what is drawn; it can be saved, edited and drawn again. ``face`` is the prepared portrait. ``full`` puts
    frames back into the photograph, or its square; None where they are the networks' own. Frames are ``height`` x ``width``
    pixels. ``options`` are those that motion was generated with; None for motion of another video.
    """

    def __init__(
        self,
        engine: Engine[Any],
        placement: Placement,
        speech: Speech | None,
        motion: Motion,
        watch: Stopwatch,
        progress: Progress,
        options: GenerateOptions | None = None,
        features: Tensor | None = None,
    ) -> None:
        """Take what is drawn. features: of the speech, kept for ``regenerate``."""
        self._engine, self._placement, self._progress = engine, placement, progress
        self.speech, self.motion, self.watch, self.options = speech, motion, watch, options
        self._features = features if features is not None and len(features) <= KEPT_FEATURES else None

    @property
    def face(self) -> Face:
        """The prepared portrait."""
        return self._placement.face

    @property
    def full(self) -> FullFrame | None:
        """Puts frames back into the photograph, or its square."""
        return self._placement.full

    @property
    def size_px(self) -> int:
        """Side of the square, or limit of the photograph's longest side."""
        return self._placement.size_px

    @property
    def height(self) -> int:
        """Of the frames, in pixels."""
        return self._placement.height

    @property
    def width(self) -> int:
        """Of the frames, in pixels."""
        return self._placement.width

    @property
    def space(self) -> MotionSpace | None:
        """What the coefficients of ``motion`` mean; None for the published model, whose motion is dense flow."""
        return self._engine.motion_space

    @property
    def comment(self) -> str:
        """What files of this video say of themselves."""
        return f"AI-generated video: dawn {__version__}, {self._placement.describe(self._engine)}"

    def __len__(self) -> int:
        """Count the frames."""
        return len(self.motion)

    def __iter__(self) -> Iterator[ImageArray]:
        """Draw frames (height, width, 3) uint8 RGB at 25 fps."""
        return (frame for _, frame in self.frames(np.ones(len(self), np.bool_)))

    def frames(self, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, ImageArray]]:
        """Draw only the wanted frames, (T,) bool, each with its index, in order; bit by bit as in the whole video.

        A frame is computed together with those of its batch, which is the same whatever is wanted.
        """
        indices = np.flatnonzero(wanted)
        frames = draw_frames(self._engine, self.face, self.motion, self.size_px, self.full, wanted)
        for done, index in enumerate(indices.tolist(), 1):
            with self.watch.stage("decode"):
                frame = next(frames)
            self._progress("decode", done, len(indices))
            yield index, frame

    def regenerate(self, **options: Any) -> Video:
        """Generate other motion for the same portrait and speech, neither prepared anew.

        Args:
            **options: fields of ``GenerateOptions``; those not named stay as they were.

        Raises:
            ConfigError: wrong options, or the motion is another video's and was not generated.
        """
        if self.options is None or self.speech is None:
            raise ConfigError("this motion is another video's, not generated: make a video from a portrait and speech")
        chosen = parse(GenerateOptions, self.options.model_dump() | options, "options")
        watch = self._prepared()
        return speak(self._engine, self._placement, self.speech, chosen, watch, self._progress, self._features)

    def with_motion(self, motion: Motion) -> Video:
        """Show the same portrait and speech with this motion. Raises MotionError for another length or motion space."""
        self._engine.check(motion)
        if len(motion) != len(self):
            raise MotionError(
                f"the motion has {len(motion)} frames, the video {len(self)}: give one of the same length"
            )
        shown = (self._engine, self._placement, self.speech, motion, self._prepared(), self._progress)
        return Video(*shown, self.options, self._features)

    def again(self, **options: Any) -> Video:
        """Do as ``regenerate``, the name since 0.2."""
        warnings.warn("Video.again is now Video.regenerate", DeprecationWarning, stacklevel=2)
        return self.regenerate(**options)

    def showing(self, motion: Motion) -> Video:
        """Do as ``with_motion``, the name since 0.2."""
        warnings.warn("Video.showing is now Video.with_motion", DeprecationWarning, stacklevel=2)
        return self.with_motion(motion)

    def save(self, path: PathLike, frames: Iterable[ImageArray] | None = None, stream: BinaryIO | None = None) -> Path:
        """Write an MP4 (H.264, AAC) with the speech; nothing half-written is left behind.

        Args:
            path: of the file.
            frames: all frames, where they have been drawn already; None draws them.
            stream: gets the same film while it is made, see ``media.VideoWriter``.

        Raises:
            OutputError: the file cannot be written.
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


def encode_speech(
    engine: Engine[Any], speech: Speech, watch: Stopwatch, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Samples (L,) and audio features (T, D) on the engine's device; features that are known already are kept."""
    with watch.stage("audio features"):
        samples = torch.from_numpy(speech.samples).to(engine.device)
        return samples, engine.features(samples, speech.frame_count) if known is None else known


def speak(
    engine: Engine[Any],
    placement: Placement,
    speech: Speech,
    options: GenerateOptions,
    watch: Stopwatch,
    progress: Progress,
    known: Tensor | None = None,
) -> Video:
    """Generate the video of a placed portrait that says ``speech``.

    Args:
        engine: the networks.
        placement: the portrait.
        speech: what it says.
        options: how.
        watch: takes the time of each stage.
        progress: see ``progress.Progress``.
        known: audio features (T, D) of the same speech.

    Raises:
        ConfigError: options that the preset does not have.
    """
    samples, features = encode_speech(engine, speech, watch, known)
    steps = options.steps or engine.config.sampler.steps
    with watch.stage("motion"):
        motion = engine.generate(
            features, samples, placement.face, options, lambda done: progress("motion", done, steps)
        )
    return Video(engine, placement, speech, motion, watch, progress, options, features)
