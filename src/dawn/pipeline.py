"""The product: portrait + speech → video.

dawn = Dawn.from_pretrained()
dawn("portrait.png", "speech.wav", seed=1).save("out.mp4")

portrait ─ place_portrait ─▶ Placement ─────────────────┐
speech ─ read_speech ─ engine.features ─ engine.generate ┴▶ Video ─ draw_frames ─▶ frames
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dawn import DEFAULT_PRESET, media
from dawn.config import LitePresetConfig, PaperPresetConfig, parse
from dawn.engines.engine import Engine
from dawn.engines.load import build_engine, load_bundle, pick_device
from dawn.options import GenerateOptions
from dawn.preprocess.driving import read_driving_sound, track_landmarks
from dawn.preprocess.portrait import MAX_FACES, prepare_portrait
from dawn.preprocess.tracker import FaceTracker
from dawn.progress import Progress, Stopwatch, ignore_progress
from dawn.rendering.draw import draw_frames
from dawn.rendering.placement import check_size, place_portrait, read_portrait
from dawn.structs import Face, ImageArray, Motion, PathLike, Speech
from dawn.video import Video, speak


class Dawn:
    """A loaded model. Make it with ``from_pretrained`` once and call it for every video."""

    def __init__(self, bundle: Any, device: torch.device) -> None:
        """Take networks as ``load_bundle`` gives them; they are changed for inference in place."""
        self.engine: Engine[Any] = build_engine(bundle, device)

    @classmethod
    def from_pretrained(cls, preset: PathLike = DEFAULT_PRESET, device: str = "auto", rules: str = "preset") -> Dawn:
        """Load a shipped preset by name, or a preset's folder.

        Args:
            preset: name or folder.
            device: "auto", "cpu", "cuda", ...
            rules: "preset", or "none" for the networks without the hand rules (docs/rules.md).

        Raises:
            ConfigError: unknown preset, device or rules.
            CheckpointError: weights missing, damaged or foreign.
        """
        return cls(load_bundle(preset, rules), pick_device(device))

    @property
    def bundle(self) -> Any:
        """All networks, as they are used."""
        return self.engine.networks

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.engine.device

    @property
    def config(self) -> LitePresetConfig | PaperPresetConfig:
        """All numbers of the preset."""
        return self.engine.config

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
        progress: Progress = ignore_progress,
        **options: Any,
    ) -> Video:
        """Generate a talking-head video.

        Args:
            portrait: an image file, an (H, W, 3) uint8 RGB array, or what ``prepare`` made of one.
            speech: an audio or video file, or a ``Speech``.
            size: side of the crop in pixels (128, 256, 512; if not given the preset's ``shown_size_px``). Below the networks'
                own it is reduced; above it the portrait's own detail is moved along. Of a full frame it limits the longest
                side (256 to 2560, 1280 if not given): larger photographs are reduced, smaller ones stay as they are.
            frame: "crop", the square around the face, or "full", the whole photograph with the face moving in it.
            face: which face of several, see ``preprocess.portrait.choose_face``.
            motion: draw this instead of generating one.
            allow_silence: accept a silent recording.
            progress: called with (stage, done, total).
            **options: fields of ``GenerateOptions`` (seed, steps, guidance, pose_scale, blink, still, expression).

        Raises:
            InputError: and its kinds, for unusable files.
            ConfigError: wrong options.
        """
        chosen = parse(GenerateOptions, options, "options")
        size_px = self.checked_size(size, frame, isinstance(portrait, Face))
        watch = Stopwatch()
        with watch.stage("audio in"):
            sound = speech if isinstance(speech, Speech) else media.read_speech(speech, allow_silence=allow_silence)
        with watch.stage("track"):
            placement = place_portrait(self.engine, portrait, size_px, frame, face)
        if motion is None:
            return speak(self.engine, placement, sound, chosen, watch, progress)
        fitted = self._fit_motion(motion, sound.frame_count)
        return Video(self.engine, placement, sound, fitted, watch, progress, chosen)

    def drive(
        self,
        portrait: PathLike | ImageArray | Face,
        video: PathLike,
        *,
        size: int | None = None,
        frame: str = "crop",
        face: int | str | None = None,
        progress: Progress = ignore_progress,
    ) -> Video:
        """Show another video's facial motion (and sound, if any) on this portrait. Raises as ``__call__``, and VideoError."""
        size_px = self.checked_size(size, frame, isinstance(portrait, Face))
        watch = Stopwatch()
        with watch.stage("track"):
            placement = place_portrait(self.engine, portrait, size_px, frame, face)
            motion = self.track_motion(video, placement.face, progress)
        speech = read_driving_sound(video, len(motion))
        return Video(self.engine, placement, speech, motion, watch, progress)

    def prepare(self, portrait: PathLike | ImageArray, face: int | str | None = None) -> Face:
        """Find, check and crop the portrait's face. Raises ImageError, FaceError and its kinds."""
        with FaceTracker(max_faces=MAX_FACES) as tracker:
            image, mean_face = read_portrait(portrait), self.engine.mean_face()
            return prepare_portrait(image, self.engine.native_px, tracker, mean_face, face)

    def track_motion(self, video: PathLike, face: Face, progress: Progress = ignore_progress) -> Motion:
        """Take a video's facial motion as a ``Motion`` for ``face``. Raises VideoError, NoFaceError, ConfigError."""
        motion = self.engine.transfer(track_landmarks(video, progress), face)
        motion.info["driven_by"] = Path(video).name
        return motion

    def landmarks(self, face: Face, motion: Motion, start: int, stop: int) -> Tensor:
        """Place the driving landmarks (stop - start, 478, 3) of some frames. Raises ConfigError for dense flow."""
        return self.engine.landmarks(face, motion, start, stop)

    def render(
        self, face: Face, motion: Motion, size_px: int | None = None, wanted: NDArray[np.bool_] | None = None
    ) -> Iterator[ImageArray]:
        """Draw frames (size_px, size_px, 3) uint8 as they are asked for. wanted: (T,) bool leaves others out."""
        return draw_frames(self.engine, face, motion, size_px or self.engine.native_px, wanted=wanted)

    def checked_size(self, size: int | None, frame: str, prepared: bool = False) -> int:
        """Return the size in pixels that a video of this kind gets, see ``rendering.placement.check_size``."""
        return check_size(self.engine, size, frame, prepared)

    def _fit_motion(self, motion: Motion, frames: int) -> Motion:
        """Cut a given motion, or hold its last frame, to the length of the speech."""
        self.engine.check(motion)
        return motion.at(np.minimum(np.arange(frames), len(motion) - 1))
