"""How good are generated frames? Small functions, each with its definition; ``report.py`` decides which to show.

Images are (T, H, W, 3), uint8 or float in [0, 1]; all picture measures work on values in [0, 1]. Landmarks are
(T, 478, 2 or 3) face-mesh points in any unit with the same scale on every axis (pixels, crop units): every length is
divided by the distance between the outer eye corners, the "face scale". Where a function compares, generated comes
first, real second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dawn import landmarks as lm
from dawn.errors import InputError
from dawn.models.face_features import SFace, align_to_arcface
from dawn.structs import Box

Array = NDArray[Any]
Float64Array = NDArray[np.float64]

SSIM_WINDOW_PX = 11
SSIM_SIGMA_PX = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2

LIP_CORNERS = (61, 291)
MOUTH_MARGIN = 0.25
"""Width added around the lips on every side, as a share of the mouth's width: the measure must see an opening that
the landmarks missed."""

EYE_CLOSED_SHARE = 0.6
EYE_OPEN_PERCENTILE = 90
LONGEST_BLINK_S = 0.5

_IDENTITY_BATCH = 16


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


class Lag(NamedTuple):
    """frames: how much later the generated signal is (negative: earlier). correlation: the value at that shift."""

    frames: int
    correlation: float


def _unit(images: Array) -> Float64Array:
    """(T, H, W, 3) uint8 or float -> float64 in [0, 1]."""
    assert images.ndim == 4 and images.shape[-1] == 3, images.shape
    return images.astype(np.float64) / (255.0 if images.dtype == np.uint8 else 1.0)


def _unit_pair(generated: Array, real: Array) -> tuple[Float64Array, Float64Array]:
    if generated.shape != real.shape:
        raise InputError(f"cannot compare pictures of shape {generated.shape} with {real.shape}; cut or resize first")
    return _unit(generated), _unit(real)


def _luma(images: Array) -> Float64Array:
    """(T, H, W, 3) -> (T, H, W), ITU-R BT.601 weights, as Wang et al. compute SSIM."""
    return _unit(images) @ np.array([0.299, 0.587, 0.114])


def l1(generated: Array, real: Array) -> float:
    """Mean absolute difference. 0 is equal, 1 is black against white. Raises: InputError if the shapes differ."""
    a, b = _unit_pair(generated, real)
    return float(np.abs(a - b).mean())


def _decibels(squared_errors: Sequence[float]) -> float:
    with np.errstate(divide="ignore"):
        return float(np.mean(-10 * np.log10(squared_errors)))


def psnr(generated: Array, real: Array) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(1 / mean squared error) of each frame, then the mean over frames.

    Infinite as soon as one frame is equal to the last bit. Raises: InputError if the shapes differ.
    """
    a, b = _unit_pair(generated, real)
    return _decibels(((a - b) ** 2).mean((1, 2, 3)).tolist())


def _blurred(plane: Float64Array) -> Float64Array:
    """(H, W) -> (H - 10, W - 10), Gaussian window, only where it fits whole."""
    offsets = np.arange(SSIM_WINDOW_PX) - SSIM_WINDOW_PX // 2
    weights = np.exp(-0.5 * (offsets / SSIM_SIGMA_PX) ** 2)
    weights /= weights.sum()
    rows = np.lib.stride_tricks.sliding_window_view(plane, SSIM_WINDOW_PX, 0) @ weights
    return np.lib.stride_tricks.sliding_window_view(rows, SSIM_WINDOW_PX, 1) @ weights


def ssim(generated: Array, real: Array) -> float:
    """Structural similarity, mean over pixels and frames; 1 is equal.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
    TIP 2004: luma, Gaussian window 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, borders left out.
    Raises: InputError if the shapes differ or a side is under 11 px.
    """
    if min(generated.shape[1:3]) < SSIM_WINDOW_PX:
        raise InputError(f"SSIM needs pictures of at least {SSIM_WINDOW_PX} px, got {generated.shape[1:3]}")
    _unit_pair(generated[:1], real[:1])
    if len(generated) != len(real):
        raise InputError(f"cannot compare {len(generated)} frames with {len(real)}; cut first")
    values = []
    for a, b in zip(_luma(generated), _luma(real), strict=True):
        mean_a, mean_b = _blurred(a), _blurred(b)
        var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
        covariance = _blurred(a * b) - mean_a * mean_b
        light = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
        values.append((light * (2 * covariance + SSIM_C2) / (var_a + var_b + SSIM_C2)).mean())
    return float(np.mean(values))


def mouth_box(landmarks: Array) -> Box:
    """Box around the outer lips of one frame with a margin of a quarter of the mouth's width on every side.

    landmarks: (478, 2 or 3) in pixels. Returns pixels (not rounded; may reach outside the picture).
    """
    lips = landmarks[list(lm.OUTER_LIPS), :2]
    (x0, y0), (x1, y1) = lips.min(0).tolist(), lips.max(0).tolist()
    margin = MOUTH_MARGIN * (x1 - x0)
    return Box(x0 - margin, y0 - margin, x1 + margin, y1 + margin)


def box_psnr(generated: Array, real: Array, boxes: Sequence[Box]) -> float:
    """``psnr`` inside one box a frame (pixels; grown to whole ones, cut at the picture's edge).

    Raises: InputError if the shapes differ, the boxes are not one a frame, or a box lies outside the picture.
    """
    a, b = _unit_pair(generated, real)
    if len(boxes) != len(a):
        raise InputError(f"{len(boxes)} boxes for {len(a)} frames; give one a frame")
    errors = []
    for index, box in enumerate(boxes):
        rows = slice(max(int(np.floor(box.y0)), 0), max(int(np.ceil(box.y1)), 0))
        columns = slice(max(int(np.floor(box.x0)), 0), max(int(np.ceil(box.x1)), 0))
        difference = (a[index] - b[index])[rows, columns]
        if difference.size == 0:
            raise InputError(f"the box of frame {index} lies outside the picture: {box}")
        errors.append(float((difference**2).mean()))
    return _decibels(errors)


def sharpness_ratio(generated: Array, real: Array) -> float:
    """RMS of the 4-neighbour Laplacian of the luma, generated over real. 1 is as sharp, below 1 blurred, above noisy.

    The two need not have equal frames or sizes. Raises: InputError if the real pictures are flat.
    """
    strengths = []
    for images in (generated, real):
        y = _luma(images)
        edges = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * y[:, 1:-1, 1:-1]
        strengths.append(float(np.sqrt((edges**2).mean())))
    if strengths[1] < 1e-9:
        raise InputError("the real pictures have no detail to compare sharpness with")
    return strengths[0] / strengths[1]


def _embed(sface: SFace, images: Array, landmarks: Array) -> torch.Tensor:
    """(T, H, W, 3) and (T, 478, 2 or 3) crop units -> (T, 128) of length 1."""
    device = next(sface.parameters()).device
    parts = []
    for start in range(0, len(images), _IDENTITY_BATCH):
        part = slice(start, start + _IDENTITY_BATCH)
        pictures = torch.from_numpy(_unit(images[part])).float().permute(0, 3, 1, 2).to(device)
        points = torch.from_numpy(landmarks[part].astype(np.float32)).to(device)
        parts.append(torch.nn.functional.normalize(sface(align_to_arcface(pictures, points)), dim=1))
    return torch.cat(parts)


def identity_cosine(
    sface: SFace, images_a: Array, landmarks_a: Array, images_b: Array, landmarks_b: Array
) -> Float64Array:
    """Cosine of the SFace embeddings, frame by frame. About 0.9 for the same picture disturbed, 0.1 for strangers.

    landmarks: (T, 478, 2 or 3) in crop units. Either side may be a single frame (the portrait): it meets all frames of
    the other. Returns (T,). Raises: InputError if the frame counts do not fit.
    """
    counts = {len(images_a), len(landmarks_a), len(images_b), len(landmarks_b)}
    if len(images_a) != len(landmarks_a) or len(images_b) != len(landmarks_b) or len(counts - {1}) > 1:
        raise InputError(f"pictures and landmarks do not fit: {len(images_a)}, {len(images_b)} frames")
    with torch.no_grad():
        a, b = _embed(sface, images_a, landmarks_a), _embed(sface, images_b, landmarks_b)
        return (a * b).sum(1).double().cpu().numpy()


def _distance(landmarks: Array, first: int, second: int) -> Float64Array:
    """(T, N, D) -> (T,) Euclidean distance between two landmarks."""
    return np.linalg.norm(landmarks[:, first].astype(np.float64) - landmarks[:, second], axis=-1)


def face_scale(landmarks: Array) -> Float64Array:
    """(T, 478, 2 or 3) -> (T,) distance of the outer eye corners. Raises: InputError if they coincide."""
    scale = _distance(landmarks, *lm.EYE_OUTER_CORNERS)
    if scale.min() <= 0:
        raise InputError("landmarks without extent: both eyes are at one point")
    return scale


def lip_aperture(landmarks: Array) -> Float64Array:
    """Mean gap of three inner-lip pairs over the face scale. (T, 478, 2 or 3) -> (T,); 0 is closed, 0.3 wide open.

    Lengths, not differences in y: turning or tilting the head then leaves it alone (with 3-D landmarks, exactly).
    """
    return np.mean([_distance(landmarks, *pair) for pair in lm.INNER_LIP_PAIRS], 0) / face_scale(landmarks)


def lip_width(landmarks: Array) -> Float64Array:
    """Distance of the lip corners over the face scale. (T, 478, 2 or 3) -> (T,)."""
    return _distance(landmarks, *LIP_CORNERS) / face_scale(landmarks)


def pooled_correlation(generated: Sequence[Array], real: Sequence[Array]) -> float:
    """Pearson correlation over the frames of many clips, after taking each clip's own mean away.

    One (T,) signal a clip, the same T on both sides. A person's resting mouth thus counts for nothing, and a long clip
    for more than a short one. 0 if the generated signals never move.
    Raises: InputError if the lengths differ or the real signals never move.
    """
    if [len(clip) for clip in generated] != [len(clip) for clip in real]:
        raise InputError(f"clips do not fit: {[len(c) for c in generated]} and {[len(c) for c in real]} frames")
    a, b = (np.concatenate([clip - np.mean(clip, dtype=np.float64) for clip in side]) for side in (generated, real))
    power_a, power_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if power_b < 1e-12:
        raise InputError("the real signals never move; there is nothing to correlate with")
    return float(a @ b) / (power_a * power_b) if power_a > 1e-12 else 0.0


def best_lag(generated: Sequence[Array], real: Sequence[Array], max_lag_frames: int = 10) -> Lag:
    """The shift at which ``pooled_correlation`` is largest; of equal ones, the smallest shift.

    ``Lag.frames`` > 0: the generated signal comes late, generated[t + lag] looks like real[t].
    Raises: InputError as ``pooled_correlation``, or if a clip is not longer than ``max_lag_frames`` + 1.
    """
    shortest = min(len(clip) for clip in real)
    if shortest < max_lag_frames + 2:
        raise InputError(f"a clip of {shortest} frames is too short for lags of {max_lag_frames} frames")
    best = Lag(0, -np.inf)
    for lag in sorted(range(-max_lag_frames, max_lag_frames + 1), key=abs):
        late, early = max(lag, 0), max(-lag, 0)
        shifted = [clip[late : len(clip) - early] for clip in generated]
        still = [clip[early : len(clip) - late] for clip in real]
        correlation = pooled_correlation(shifted, still)
        if correlation > best.correlation + 1e-12:
            best = Lag(lag, correlation)
    return best


def landmark_error(generated: Array, real: Array) -> float:
    """Mean distance between landmarks in the picture plane over the real outer-eye-corner distance of that frame.

    (T, 478, 2 or 3) both; z is not used, trackers only guess it. 0.05 is about one twentieth of the eyes' distance.
    Raises: InputError if the shapes differ.
    """
    if generated.shape != real.shape:
        raise InputError(f"cannot compare landmarks of shape {generated.shape} with {real.shape}")
    distances = np.linalg.norm(generated[..., :2].astype(np.float64) - real[..., :2], axis=-1)
    return float((distances.mean(1) / face_scale(real[..., :2])).mean())


def jitter(landmarks: Array) -> float:
    """Trembling: RMS second difference over time in the picture plane, over sqrt(6) and the mean face scale.

    (T, 478, 2 or 3). Steady motion gives 0; independent noise of standard deviation s a coordinate gives
    s / face scale, since the second difference of white noise has variance 6 s^2. Compare with a real clip's value:
    speech itself is not 0. Raises: InputError if there are under 3 frames.
    """
    if len(landmarks) < 3:
        raise InputError(f"jitter needs 3 frames, got {len(landmarks)}")
    points = landmarks[..., :2].astype(np.float64)
    return float(np.sqrt((np.diff(points, 2, axis=0) ** 2).mean() / 6) / face_scale(points).mean())


def blink_rate(ear: Array, fps: float) -> float:
    """Blinks a minute. ear: (T,) eye aspect ratio, any unit; fps: its frames per second.

    The eye is closed where the ratio is under 0.6 of its open level (the clip's 90th percentile). A blink is a closed
    stretch of at most 0.5 s with open frames before and after it. Raises: InputError if there are no frames.
    """
    if len(ear) == 0:
        raise InputError("no frames to count blinks in")
    closed = np.asarray(ear) < EYE_CLOSED_SHARE * np.percentile(ear, EYE_OPEN_PERCENTILE)
    change = np.diff(closed.astype(int))
    starts, ends = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    if closed[0]:
        ends = ends[1:]
    blinks = sum(end - start <= LONGEST_BLINK_S * fps for start, end in zip(starts, ends, strict=False))
    return float(blinks * 60.0 * fps / len(ear))


def bootstrap_interval(
    values: Array, rng: np.random.Generator, confidence: float = 0.95, rounds: int = 2000
) -> Interval:
    """Percentile bootstrap of the mean: draw N of N values with replacement, take the mean, ``rounds`` times.

    values: (N,), one a clip (frames of one clip are not independent). Raises: InputError if N is under 2.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"an interval needs at least 2 values in a row, got shape {values.shape}")
    means = values[rng.integers(0, len(values), (rounds, len(values)))].mean(1)
    low, high = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])
    return Interval(float(low), float(high))
