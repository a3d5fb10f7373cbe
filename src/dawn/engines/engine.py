"""What the pipeline asks of a preset. A renderer is one subclass, registered in ``engines.load``."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from dawn import DEFAULT_PRESET
from dawn.config import LitePresetConfig, PaperPresetConfig
from dawn.errors import ConfigError
from dawn.models.lite.motion_space import MotionSpace
from dawn.options import GenerateOptions
from dawn.structs import Face, Motion

Source = TypeVar("Source")
"""What an engine keeps of an encoded portrait."""


Kept = TypeVar("Kept")


class LastOf(Generic[Kept]):
    """What was made of the last face, kept as long as that face lives: several videos of one portrait share it."""

    def __init__(self) -> None:
        self._slot: tuple[weakref.ref[Face], Hashable, Kept] | None = None

    def get(self, face: Face, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """Return what was made for this face and key, or make it."""
        slot = self._slot
        if slot is None or slot[0]() is not face or slot[1] != key:
            self._slot = slot = weakref.ref(face), key, make()
        return slot[2]


class Engine(ABC, Generic[Source]):
    """Networks of one preset: speech to motion, motion to frames."""

    config: LitePresetConfig | PaperPresetConfig
    device: torch.device
    networks: Any
    """All networks of the preset, changed for inference."""
    motion_space: MotionSpace | None = None
    """What the coefficients of ``Motion.expression`` mean; None where motion is dense flow."""
    side_by_side: bool = False
    """Are batches of frames drawn faster side by side, one thread each?"""

    @property
    def name(self) -> str:
        """Name of the preset."""
        return self.config.name

    @property
    def native_px(self) -> int:
        """Side of the networks' own pictures."""
        return self.config.lfg.image_size_px

    @property
    def shown_px(self) -> int:
        """Side of the pictures that are made of a photograph, if nobody asks for another."""
        return self.config.shown_size_px or self.native_px

    @abstractmethod
    def mean_face(self) -> Tensor:
        """The face that pose is measured against, (478, 3) on the CPU."""

    @abstractmethod
    def features(self, samples: Tensor, frames: int) -> Tensor:
        """Encode speech (L,) at 16 kHz as audio features (frames, D)."""

    @abstractmethod
    def generate(
        self,
        features: Tensor,
        samples: Tensor,
        face: Face,
        options: GenerateOptions,
        progress: Callable[[int], None],
    ) -> Motion:
        """Generate the motion of a face from speech.

        Args:
            features: (T, D) from ``features``.
            samples: (L,) at 16 kHz, of the same speech.
            face: the portrait.
            options: what the user turned.
            progress: called with the number of sampling steps done.

        Raises:
            ConfigError: an option that this engine does not have.
        """

    @abstractmethod
    def check(self, motion: Motion) -> None:
        """Raise MotionError for motion of another space."""

    @abstractmethod
    def source(self, face: Face) -> Source:
        """Encode the portrait, once for all of its frames."""

    @abstractmethod
    def decode(self, source: Source, face: Face, motion: Motion, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Draw frames start to stop, (N, 3, R, R) in [0, 1], with the flow (N, h, w, 2) that moved the portrait."""

    def transfer(self, landmarks: Tensor, face: Face) -> Motion:
        """Turn somebody's tracked landmarks (T, 478, 3) into motion of this face. Raises ConfigError where it cannot."""
        raise ConfigError(
            f"the preset {self.name} cannot take another video's motion: use a lite preset, e.g. {DEFAULT_PRESET}"
        )

    def landmarks(self, face: Face, motion: Motion, start: int, stop: int) -> Tensor:
        """Place the driving landmarks (stop - start, 478, 3) of some frames. Raises ConfigError where there are none."""
        raise self._without_landmarks()

    def draw_landmarks(self, source: Source, landmarks: Tensor) -> tuple[Tensor, Tensor]:
        """Draw driving landmarks (N, 478, 3) as ``decode`` draws motion. Raises ConfigError where there are none."""
        raise self._without_landmarks()

    def _without_landmarks(self) -> ConfigError:
        return ConfigError(
            f"the preset {self.name} moves pixels, not landmarks: use a lite preset, e.g. {DEFAULT_PRESET}"
        )
