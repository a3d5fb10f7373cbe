"""The square around a face that the models see: one rule for portraits, training clips and driving videos."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dawn.structs import Box, Face, FloatArray, ImageArray, TrackedFace

# Measured on the training clips (HDTF-like framing): the square is 1.71 mesh heights wide, and the middle of the mesh's
# bounding box lies half way across and 0.554 down.
CROP_FACE_HEIGHTS = 1.71
CROP_CENTER_Y = 0.554
# A head that looks down or to the side has a shorter mesh; its width then says how large it is.
MESH_HEIGHT_PER_WIDTH = 1.12
OFF_CENTRE = 0.08
"""Crop units, of which the square is 2 wide."""


def crop_box(face: TrackedFace, width: int, height: int, inside: bool = False, moved: bool = True) -> Box:
    """Square for one face in a picture of (height, width) pixels.

    The square is moved into the picture where it fits. ``inside``: it is also shrunk to fit, for clips, whose
    borders must not be invented; a portrait's square may reach outside and is padded by ``cut``. moved: False keeps the
    face in the middle, where the padding is not shown: off its middle a head is torn.
    """
    box = face.box
    side = CROP_FACE_HEIGHTS * max(box.height, box.width * MESH_HEIGHT_PER_WIDTH)
    if inside:
        side = min(side, width, height)
    cx, cy = box.center
    x0, y0 = cx - side / 2, cy - CROP_CENTER_Y * side
    square = Box(x0, y0, x0 + side, y0 + side)
    return moved_into(square, width, height) if moved else square


def moved_into(square: Box, width: int, height: int) -> Box:
    """A square, moved into a picture of (height, width) pixels along the sides where it fits."""
    side = square.width
    x0, y0 = _into(square.x0, side, width), _into(square.y0, side, height)
    return Box(x0, y0, x0 + side, y0 + side)


def off_centre(face: Face) -> bool:
    """Was the square of a prepared face moved into its picture, by more than the face finder's own uncertainty?"""
    points = face.landmarks[:, :2]
    middle = (points.min(0) + points.max(0)) / 2
    return bool(np.abs(middle - (0, 2 * CROP_CENTER_Y - 1)).max() > OFF_CENTRE)


def _into(start: float, side: float, limit: int) -> float:
    """Move an interval into [0, limit] if it is short enough, else leave the excess evenly as it was."""
    if side >= limit:
        return start
    return float(np.clip(start, 0, limit - side))


def cut(image: ImageArray, box: Box, size_px: int) -> ImageArray:
    """Cut the square out and scale it to (size_px, size_px, 3), antialiased; outside the picture, border pixels repeat."""
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
    """Landmarks (..., 3) in picture pixels -> crop units of the square (x, y in [-1, 1] inside it, z on the same scale)."""
    scale = np.float32(2.0 / box.width)
    offset = np.array([box.x0, box.y0, 0.0], np.float32)
    centre = np.array([1.0, 1.0, 0.0], np.float32)
    return ((landmarks_px - offset) * scale - centre).astype(np.float32)


def to_pixels(landmarks: FloatArray, box: Box) -> FloatArray:
    """Inverse of ``to_crop_units``."""
    centre = np.array([1.0, 1.0, 0.0], np.float32)
    offset = np.array([box.x0, box.y0, 0.0], np.float32)
    return ((landmarks + centre) * np.float32(box.width / 2) + offset).astype(np.float32)
