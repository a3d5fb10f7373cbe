"""Measures of a seam: can it be seen where a generated face was put into a photograph?

``inside`` (H, W) says for every pixel on which side of an edge it lies: the pasted square, or a fading mask above some
level. The edge is all pairs of direct neighbours, left and right or above and below, of which one lies inside. Frames are
(T, H, W, 3) and the photograph (H, W, 3), uint8 or float in [0, 1], of one size; all is measured on the luma.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dawn.errors import InputError
from dawn.measures.picture import luma

Array = NDArray[Any]
Float64Array = NDArray[np.float64]

FLAT = 1 / 255
"""Steps of one grey level are not seen: a photograph's own are not counted as less where they divide."""


def steps_across(images: Array, inside: Array) -> Float64Array:
    """Luma step across every pair of the edge, inner minus outer: (T, H, W, 3), (H, W) bool → (T, pairs).

    Raises: InputError if the edge has no pairs, or the sizes differ.
    """
    if images.shape[1:3] != inside.shape:
        raise InputError(f"pictures of {images.shape[1:3]} and an edge of {inside.shape}: give one size")
    across, down = inside[:, 1:] != inside[:, :-1], inside[1:] != inside[:-1]
    if not (across.any() or down.any()):
        raise InputError("the edge is empty: some pixels must lie inside and some outside")
    sign_across, sign_down = np.where(inside[:, 1:], 1, -1)[across], np.where(inside[1:], 1, -1)[down]
    steps = []
    for image in images:  # one by one: whole photographs as floats are large
        y = luma(image[None])[0]
        steps.append(np.concatenate(((y[:, 1:] - y[:, :-1])[across] * sign_across, (y[1:] - y[:-1])[down] * sign_down)))
    return np.stack(steps)


def _photograph_steps(photograph: Array, inside: Array) -> tuple[Float64Array, float]:
    """Its steps (1, pairs) and their mean size, not under ``FLAT``."""
    own = steps_across(photograph[None], inside)
    return own, max(float(np.abs(own).mean()), FLAT)


def gradient_ratio(frames: Array, photograph: Array, inside: Array) -> Float64Array:
    """Mean size of the frame's steps across the edge over that of the photograph's, a frame: (T,).

    1 is the photograph; above it there is an edge that it does not have, below it the frame is blurred there.
    Raises: InputError as ``steps_across``.
    """
    _, unit = _photograph_steps(photograph, inside)
    return np.maximum(np.abs(steps_across(frames, inside)).mean(1), FLAT) / unit


def gradient_jump(frames: Array, photograph: Array, inside: Array) -> Float64Array:
    """Mean size of what the paste adds to the steps across the edge, in mean steps of the photograph, a frame: (T,).

    0 is the photograph. Unlike ``gradient_ratio`` this also counts steps that cancel the photograph's own, and motion: where
    the picture itself moves across the edge, it is not 0 however well it is joined. Raises: InputError as ``steps_across``.
    """
    own, unit = _photograph_steps(photograph, inside)
    return np.abs(steps_across(frames, inside) - own).mean(1) / unit


def jump_flicker(frames: Array, photograph: Array, inside: Array) -> float:
    """Mean size of the change of the steps across the edge from frame to frame, in mean steps of the photograph.

    0 where nothing moves at the edge, as in the photograph. Raises: InputError as ``steps_across``, under two frames.
    """
    _need_two(frames)
    return float(
        np.abs(np.diff(steps_across(frames, inside), axis=0)).mean() / _photograph_steps(photograph, inside)[1]
    )


def ring_flicker(frames: Array, ring: Array) -> Float64Array:
    """Mean size of the luma's change from frame to frame over the pixels of a ring (H, W) bool, grey levels of 255: (T - 1,).

    Raises: InputError if the ring is empty or another size, or there are under two frames.
    """
    _need_two(frames)
    if frames.shape[1:3] != ring.shape or not ring.any():
        raise InputError(
            f"a ring of {int(ring.sum())} pixels in {ring.shape}, frames of {frames.shape[1:3]}: give one size"
        )
    return np.abs(np.diff([luma(frame[None, ring][None])[0, 0] for frame in frames], axis=0)).mean(1) * 255


def _need_two(frames: Array) -> None:
    if len(frames) < 2:
        raise InputError(f"change over time needs 2 frames, got {len(frames)}")
