"""The square around a face that the models see: one rule for portraits, training clips and driving videos."""

from __future__ import annotations

from enum import Enum

import numpy as np
from PIL import Image

from dawn.structs import Box, Face, FloatArray, ImageArray, TrackedFace

# Measured on the training clips (HDTF-like framing): the square is 1.71 mesh heights wide, and the middle of the mesh's
# bounding box lies half way across and 0.554 down.
CROP_FACE_HEIGHTS = 1.71
CROP_CENTER_Y = 0.554

MESH_HEIGHT_PER_WIDTH = 1.12
"""A head that looks down or to the side has a shorter mesh; its width then says how large it is."""

OFF_CENTRE = 0.08
"""Crop units, of which the square is 2 wide. More than the face finder's own uncertainty."""


class Fit(Enum):
    """How the square around a face fits into its picture."""

    CENTRED = "centred"
    """Keep the face in the middle. The square may reach outside: for pictures whose padding is never shown."""
    SHIFTED = "shifted"
    """Shift the square into the picture along the sides where it fits: for portraits."""
    INSIDE = "inside"
    """Shrink the square to the picture's shorter side, then shift it along the sides where it fits: for clips."""


def crop_box(face: TrackedFace, width: int, height: int, fit: Fit = Fit.SHIFTED) -> Box:
    """Return the square for one face in a picture of ``width`` x ``height`` pixels.

    A square that reaches outside the picture is padded by ``cut``.
    """
    box = face.box
    side = CROP_FACE_HEIGHTS * max(box.height, box.width * MESH_HEIGHT_PER_WIDTH)
    if fit is Fit.INSIDE:
        side = min(side, width, height)
    cx, cy = box.center
    x0, y0 = cx - side / 2, cy - CROP_CENTER_Y * side
    square = Box(x0, y0, x0 + side, y0 + side)
    return square if fit is Fit.CENTRED else shift_into(square, width, height)


def shift_into(square: Box, width: int, height: int) -> Box:
    """Shift a square into a picture of ``width`` x ``height`` pixels, along the sides where it fits."""
    side = square.width
    x0, y0 = _shift_interval(square.x0, side, width), _shift_interval(square.y0, side, height)
    return Box(x0, y0, x0 + side, y0 + side)


def is_off_centre(face: Face) -> bool:
    """Tell whether the square of a prepared face was shifted by more than ``OFF_CENTRE``."""
    points = face.landmarks[:, :2]
    middle = (points.min(0) + points.max(0)) / 2
    return bool(np.abs(middle - (0, 2 * CROP_CENTER_Y - 1)).max() > OFF_CENTRE)


def _shift_interval(start: float, side: float, limit: int) -> float:
    """Return the new start of an interval shifted into [0, limit]; one that is too long stays where it is."""
    if side >= limit:
        return start
    return float(np.clip(start, 0, limit - side))


def cut(image: ImageArray, box: Box, size_px: int) -> ImageArray:
    """Cut the square out and scale it, antialiased, to (size_px, size_px, 3).

    Outside the picture the border pixels repeat.
    """
    height, width = image.shape[:2]
    left, top = max(0, int(np.ceil(-box.x0))), max(0, int(np.ceil(-box.y0)))
    right, bottom = max(0, int(np.ceil(box.x1 - width))), max(0, int(np.ceil(box.y1 - height)))
    x0, y0 = box.x0 + left, box.y0 + top
    if left or top or right or bottom:
        # Only the part near the square is padded, so that a huge picture is not copied whole.
        image = np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="edge")
    picture = Image.fromarray(image)
    area = (x0, y0, min(x0 + box.width, picture.width), min(y0 + box.height, picture.height))
    return np.asarray(picture.resize((size_px, size_px), Image.Resampling.LANCZOS, box=area), dtype=np.uint8)


def to_crop_units(landmarks_px: FloatArray, box: Box) -> FloatArray:
    """Convert landmarks (..., 3) from picture pixels to crop units of the square.

    x and y lie in [-1, 1] inside the square; z has the same scale.
    """
    scale = np.float32(2.0 / box.width)
    offset = np.array([box.x0, box.y0, 0.0], np.float32)
    centre = np.array([1.0, 1.0, 0.0], np.float32)
    return ((landmarks_px - offset) * scale - centre).astype(np.float32)


def from_crop_units(landmarks: FloatArray, box: Box) -> FloatArray:
    """Convert landmarks (..., 3) from crop units of the square to picture pixels: the inverse of ``to_crop_units``."""
    centre = np.array([1.0, 1.0, 0.0], np.float32)
    offset = np.array([box.x0, box.y0, 0.0], np.float32)
    return ((landmarks + centre) * np.float32(box.width / 2) + offset).astype(np.float32)
