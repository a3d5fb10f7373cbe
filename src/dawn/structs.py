"""The nouns of the project, and the legend of shapes.

Shapes: ``B`` batch, ``T`` frames at 25 fps, ``C`` channels, ``H W`` pixels, ``h w`` latent cells, ``D`` features,
``K`` motion coefficients, ``N`` landmarks (478). Video tensors are ``B C T H W``, sequences ``B T D``. NumPy images
are ``H W C`` uint8 RGB; float images lie in [0, 1]. Flow is the absolute sampling grid in [-1, 1] in (x, y) order,
occlusion lies in [0, 1].

Normalised crop coordinates ("crop units"): the left edge of the crop is x = -1, the right edge +1, the same for y.
z uses the same scale. This is the ``align_corners=False`` convention of ``torch.nn.functional.grid_sample``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

FPS = 25
"""Frames per second of everything that is generated."""

SPEECH_RATE_HZ = 16_000
"""Sample rate of speech inside the models."""

FRAME_SAMPLES = SPEECH_RATE_HZ // FPS
MS_PER_FRAME = 1000 / FPS

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue, ITU-R BT.601."""

LANDMARK_COUNT = 478
POSE_NAMES = ("yaw_deg", "pitch_deg", "roll_deg", "scale", "x", "y")
BLINK_NAMES = ("left_ear", "right_ear")
POSE_SIZE = len(POSE_NAMES)
BLINK_SIZE = len(BLINK_NAMES)

PathLike = str | Path
FloatArray = NDArray[np.float32]
ImageArray = NDArray[np.uint8]


class Strict(BaseModel):
    """Base of configurations: frozen, refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Box:
    """Axis-aligned box in pixels; ``x1`` and ``y1`` are exclusive. It may reach outside the picture."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        """Pixels from left to right."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Pixels from top to bottom."""
        return self.y1 - self.y0

    @property
    def center(self) -> tuple[float, float]:
        """The middle, (x, y)."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2


@dataclass(frozen=True)
class Speech:
    """Decoded speech.

    samples: (L,) float32 mono at ``SPEECH_RATE_HZ``, within [-1, 1].
    duration_s: exact duration of the source stream (source samples / source rate).
    path: the file it came from, if any; the muxer takes the sound from there at full quality.
    """

    samples: FloatArray
    duration_s: float
    path: str | None = None

    @property
    def frame_count(self) -> int:
        """Frames that cover the sound: ceil(duration x 25)."""
        return max(1, int(np.ceil(round(self.duration_s * FPS, 6))))


@dataclass(frozen=True)
class TrackedFace:
    """One face found in one picture, in that picture's pixels.

    landmarks: (478, 3) float32, x right, y down, z towards the viewer negative, all in pixels.
    blendshapes: (52,) float32 scores in [0, 1].
    """

    landmarks: FloatArray
    blendshapes: FloatArray

    @property
    def box(self) -> Box:
        """Bounding box of the landmarks."""
        low, high = self.landmarks[:, :2].min(0), self.landmarks[:, :2].max(0)
        return Box(float(low[0]), float(low[1]), float(high[0]), float(high[1]))


@dataclass(frozen=True)
class Face:
    """A portrait made ready for animation.

    crop: (S, S, 3) uint8 RGB square around the face.
    landmarks: (478, 3) float32 in crop units.
    shape: (478, 3) float32, the same landmarks with pose removed (units of the mean face).
    pose: (6,) float32, see ``POSE_NAMES``.
    blink: (2,) float32 eye aspect ratios.
    box: the crop's square in pixels of the original picture (a pure scaling maps it to ``crop``).
    """

    crop: ImageArray
    landmarks: FloatArray
    shape: FloatArray
    pose: FloatArray
    blink: FloatArray
    box: Box


@dataclass(frozen=True)
class Motion:
    """Facial motion at 25 fps: plain numbers that can be saved, edited and rendered on another portrait.

    pose: (T, 6) change against the source portrait: degrees for yaw, pitch and roll, natural logarithm of the ratio for
    scale, crop units for x and y.
    blink: (T, 2) change of the eye aspect ratios against the source.
    expression: (T, K) coefficients relative to the source (see ``models.lite.motion_space``).
    space: the motion space that reads ``expression``. info: how the motion was made.
    """

    pose: FloatArray
    blink: FloatArray
    expression: FloatArray
    space: str = "lite"
    info: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.pose.shape[0])

    def at(self, frames: slice | NDArray[Any]) -> Motion:
        """Return the named frames, in that order."""
        return replace(self, pose=self.pose[frames], blink=self.blink[frames], expression=self.expression[frames])

    def with_pose(self, pose: FloatArray) -> Motion:
        """Return the same motion with another pose (T, 6)."""
        return replace(self, pose=pose)
