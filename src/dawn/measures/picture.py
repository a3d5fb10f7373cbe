"""Measures of pictures against true pictures.

Images are (T, H, W, 3), uint8 or float in [0, 1]; all measures work on values in [0, 1]. Where a function compares,
generated comes first, real second. Boxes are in pixels, one per frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dawn.errors import InputError
from dawn.face import mesh as lm
from dawn.structs import LUMA, Box

Array = NDArray[Any]
Float64Array = NDArray[np.float64]

SSIM_WINDOW_PX = 11
SSIM_SIGMA_PX = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2

BOX_MARGIN = 0.25
"""Width added around lips or an eye on every side, as a share of their width.

The measure must see an opening that the landmarks missed.
"""


def _scale(images: Array) -> Float64Array:
    """Convert images (T, H, W, 3), uint8 or float, to float64 in [0, 1]."""
    assert images.shape[3:] == (3,), images.shape
    return images.astype(np.float64) / (255.0 if images.dtype == np.uint8 else 1.0)


def _scale_pair(generated: Array, real: Array) -> tuple[Float64Array, Float64Array]:
    if generated.shape != real.shape:
        raise InputError(f"cannot compare pictures of shape {generated.shape} with {real.shape}; cut or resize first")
    return _scale(generated), _scale(real)


def luma(images: Array) -> Float64Array:
    """Convert images (T, H, W, 3) to luma (T, H, W) by the weights of ITU-R BT.601, as Wang et al. do for SSIM."""
    return _scale(images) @ np.array(LUMA)


def l1(generated: Array, real: Array) -> float:
    """Measure the mean absolute difference: 0 is equal, 1 is black against white.

    Raises:
        InputError: The shapes differ.
    """
    a, b = _scale_pair(generated, real)
    return float(np.abs(a - b).mean())


def _decibels(squared_errors: Sequence[float]) -> float:
    with np.errstate(divide="ignore"):
        return float(np.mean(-10 * np.log10(squared_errors)))


def psnr(generated: Array, real: Array) -> float:
    """Measure the peak signal-to-noise ratio in dB, mean over frames.

    A frame has 10 log10(1 / mean squared error). The mean is infinite as soon as one frame is equal.

    Raises:
        InputError: The shapes differ.
    """
    a, b = _scale_pair(generated, real)
    return _decibels(((a - b) ** 2).mean((1, 2, 3)).tolist())


def _blur(planes: torch.Tensor) -> torch.Tensor:
    """Blur (N, 1, H, W) by a Gaussian window where it fits whole: (N, 1, H - 10, W - 10)."""
    offsets = torch.arange(SSIM_WINDOW_PX, dtype=planes.dtype) - SSIM_WINDOW_PX // 2
    weights = torch.exp(-0.5 * (offsets / SSIM_SIGMA_PX) ** 2)
    weights = weights / weights.sum()
    rows = torch.nn.functional.conv2d(planes, weights[None, None, :, None])
    return torch.nn.functional.conv2d(rows, weights[None, None, None, :])


def ssim(generated: Array, real: Array) -> float:
    """Measure the structural similarity of luma, mean over pixels and frames; 1 is equal.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
    TIP 2004: Gaussian window 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, borders left out.

    Raises:
        InputError: The shapes differ, or a side is under 11 px.
    """
    if min(generated.shape[1:3]) < SSIM_WINDOW_PX:
        raise InputError(f"SSIM needs pictures of at least {SSIM_WINDOW_PX} px, got {generated.shape[1:3]}")
    if generated.shape != real.shape:
        raise InputError(f"cannot compare pictures of shape {generated.shape} with {real.shape}; cut or resize first")
    values = []
    for plane_a, plane_b in zip(luma(generated), luma(real), strict=True):
        a, b = torch.from_numpy(plane_a), torch.from_numpy(plane_b)
        mean_a, mean_b, square_a, square_b, product = _blur(torch.stack((a, b, a * a, b * b, a * b))[:, None])
        var_a, var_b, covariance = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
        light = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
        values.append(float((light * (2 * covariance + SSIM_C2) / (var_a + var_b + SSIM_C2)).mean()))
    return float(np.mean(values))


def to_pixels(landmarks: Array, size_px: int) -> Array:
    """Convert landmarks (..., 2 or 3) from crop units to pixels of a square picture; pixel i covers [i, i + 1)."""
    return (landmarks + 1) * (size_px / 2)


def _box_around(points: Array, margin: float) -> Box:
    (x0, y0), (x1, y1) = points[:, :2].min(0).tolist(), points[:, :2].max(0).tolist()
    grow = margin * (x1 - x0)
    return Box(x0 - grow, y0 - grow, x1 + grow, y1 + grow)


def mouth_box(landmarks: Array) -> Box:
    """Draw a box around the outer lips of one frame: landmarks (478, 2 or 3) in pixels.

    The margin is a quarter of the mouth's width on every side. The box is not rounded and may reach outside the
    picture.
    """
    return _box_around(landmarks[list(lm.OUTER_LIPS)], BOX_MARGIN)


def eye_boxes(landmarks: Array) -> tuple[Box, Box]:
    """Draw boxes around the lids of the right and the left eye, with a quarter of their width as margin.

    Landmarks and boxes are as in ``mouth_box``.
    """
    return _box_around(landmarks[list(lm.RIGHT_EYE)], BOX_MARGIN), _box_around(landmarks[list(lm.LEFT_EYE)], BOX_MARGIN)


def face_box(landmarks: Array) -> Box:
    """Draw a box around the whole face mesh, forehead to chin and ear to ear, without a margin.

    Landmarks and box are as in ``mouth_box``.
    """
    return _box_around(landmarks, 0.0)


def _cut_boxes(planes: Array, boxes: Sequence[Box]) -> Iterator[Array]:
    """Yield each frame's part inside its box, grown to whole pixels and cut at the picture's edge.

    Raises:
        InputError: There are not as many boxes as planes, or a box lies outside the picture.
    """
    if len(boxes) != len(planes):
        raise InputError(f"{len(boxes)} boxes for {len(planes)} frames; give one a frame")
    for index, box in enumerate(boxes):
        rows = slice(max(int(np.floor(box.y0)), 0), max(int(np.ceil(box.y1)), 0))
        columns = slice(max(int(np.floor(box.x0)), 0), max(int(np.ceil(box.x1)), 0))
        part = planes[index][rows, columns]
        if part.size == 0:
            raise InputError(f"the box of frame {index} lies outside the picture: {box}")
        yield part


def box_psnr(generated: Array, real: Array, boxes: Sequence[Box]) -> float:
    """Measure ``psnr`` inside one box per frame, grown to whole pixels and cut at the picture's edge.

    Raises:
        InputError: The shapes differ, there is not one box per frame, or a box lies outside the picture.
    """
    a, b = _scale_pair(generated, real)
    return _decibels([float((part**2).mean()) for part in _cut_boxes(a - b, boxes)])


def gradient_energy(images: Array, boxes: Sequence[Box] | None = None) -> float:
    """Measure the mean squared gradient of the luma: squared differences to the right and the lower neighbour.

    With ``boxes`` (one per frame) only their inside counts, and the frames' means are averaged.

    Raises:
        InputError: There is not one box per frame, or a box lies outside the picture.
    """
    y = luma(images)
    energy = (y[:, 1:, :-1] - y[:, :-1, :-1]) ** 2 + (y[:, :-1, 1:] - y[:, :-1, :-1]) ** 2
    if boxes is None:
        return float(energy.mean())
    return float(np.mean([part.mean() for part in _cut_boxes(energy, boxes)]))


def detail_ratio(generated: Array, real: Array) -> float:
    """Compare the finest detail, generated over real: 1 is as sharp, above 1 sharper or noisy.

    Detail is the RMS of the luma's 4-neighbour Laplacian. The two need not have equal frames or sizes.

    Raises:
        InputError: The real pictures are flat.
    """
    strengths = []
    for images in (generated, real):
        y = luma(images)
        edges = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * y[:, 1:-1, 1:-1]
        strengths.append(float(np.sqrt((edges**2).mean())))
    if strengths[1] < 1e-9:
        raise InputError("the real pictures have no detail to compare sharpness with")
    return strengths[0] / strengths[1]
