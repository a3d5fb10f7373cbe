"""Checks of a portrait by landmarks and picture statistics: size, pose, blur, light, eyes, mouth."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from dawn.checks.findings import Finding, judge_value
from dawn.errors import ExtremePoseError, FaceError, FaceTooSmallError
from dawn.face import mesh as lm
from dawn.face.geometry import lip_aperture
from dawn.measures.picture import luma
from dawn.preprocess.portrait import choose_face, find_faces, prepare_face
from dawn.preprocess.tracker import FaceTracker
from dawn.structs import Box, Face, ImageArray, TrackedFace

Float64Array = NDArray[np.float64]

WARN_YAW_DEG, WARN_PITCH_DEG, WARN_ROLL_DEG = 20.0, 25.0, 20.0
"""Of 250 training frames 99 % lie within 12, 17 and 10 degrees; the models have seen almost nothing beyond."""
MAX_ENLARGEMENT = 1.5
"""A slightly enlarged picture is only slightly soft."""
MAX_OUTSIDE_SHARE = 0.1
"""Parts of the square outside the picture are filled with its border; the clips had none."""
BLUR_RADIUS_PX = 1.0
MIN_DETAIL, MIN_DETAIL_LARGE = 0.18, 0.10
LARGE_PX = 192
"""``MIN_DETAIL_LARGE`` is for crops of more pixels than this.

Of 250 training frames at most 1 % lie below the limits. Blurred by a pixel (sigma), 99 % do at 128 px, 95 % at 256 px.
"""
MIN_HIGHLIGHT = 0.3
HIGHLIGHT_PERCENTILE = 95
"""Luma of the brightest twentieth of the crop: 0.43 and more in 211 clips.

It is not the skin's, which may be dark in good light.
"""
BURNT_LUMA, MAX_BURNT_SHARE = 0.98, 0.15
"""Share of the face's box; at most 0.043 of the middle of 211 clips' frames were as bright."""
MAX_OPENING = 0.15
"""Eye distances. 95 % of training frames lie below.

In silence, portraits above left the generated lips 0.02-0.04 apart, those below 0.007-0.018.
"""
MIN_EYE_RATIO = 0.15
"""In 7,333 frames all 403 blinks (score over 0.5) lie below, and no open eye (under 0.3) does."""
RING = 1.35
"""Skin is sampled on the outer lip line, widened by this factor about the mouth's middle."""
LIP_REDNESS, LIP_CONTRAST = 0.03, 0.2
FOREIGN_REDNESS, MAX_FOREIGN_SHARE, MIN_LIPS_SEEN = -0.15, 0.1, 0.65
"""Share of covered mouths found at 128 px (256 px), with drawn things over the mouth.

A hand 1.00 (1.00), a hand over half of it 0.95 (0.85), a mask 1.00 (1.00). A microphone before the lower lip 0.98
(0.95), before both lips 1.00 (1.00). False alarms 0.03 (0.03); beards are hard.

Measured on 61 frames of four people that also helped to choose the rule. 200 frames of training clips: 0.005 false
alarms. Real things were not tried.
"""
MIN_COLOUR_SPREAD = 0.03
"""Standard deviation of log(red / green) over the crop, below which a picture is grey.

Colour photographs have at least 0.13.
"""
SKIN_POINTS = (151, 9, 108, 337, 6, 197, 195, 117, 346)
"""Forehead, bridge of the nose and upper cheeks, which a mask leaves free."""
DARKEST = 8.0
"""Added to colours before their logarithm, as the noise of dark pixels would count as colour."""


def outside_share(box: Box, width: int, height: int) -> float:
    """Measure the share of a square that lies outside a picture of ``width`` x ``height`` pixels."""
    inside_w = min(box.x1, width) - max(box.x0, 0.0)
    inside_h = min(box.y1, height) - max(box.y0, 0.0)
    return 1 - max(0.0, inside_w) * max(0.0, inside_h) / (box.width * box.height)


def _cut_face(plane: Float64Array, face: Face) -> Float64Array:
    """Cut the face's bounding box out of a plane (S, S) of the crop, at least 3 x 3."""
    points = (face.landmarks[:, :2] + 1) * len(plane) / 2
    x0, y0 = np.clip(points.min(0), 0, len(plane) - 3).astype(int)
    x1, y1 = np.clip(np.ceil(points.max(0)), (x0 + 3, y0 + 3), len(plane)).astype(int)
    return plane[y0:y1, x0:x1]


def measure_detail(face: Face) -> float:
    """Measure the share of the face's gradients that a Gaussian blur of one pixel (sigma) removes.

    At 128 px 0.3 is sharp, 0.1 blurred. Contrast does not matter. Noise and strong compression look like detail.
    """
    grey = Image.fromarray(face.crop).convert("L")
    energies = []
    for picture in (grey.filter(ImageFilter.GaussianBlur(BLUR_RADIUS_PX)), grey):
        part = _cut_face(np.asarray(picture, np.float64), face)
        energies.append(np.abs(np.diff(part, axis=0)).sum() + np.abs(np.diff(part, axis=1)).sum())
    return float(1 - energies[0] / energies[1]) if energies[1] > 0 else 0.0


def _sample_colours(image: ImageArray, points: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Sample log(red / green) and log luma, (N,) each, at points (N, 2) in pixels, bilinear."""
    corner = np.clip(points - 0.5, 0, len(image) - 1.001)
    whole = corner.astype(int)
    (x, y), right, down = whole.T, (corner - whole)[:, :1], (corner - whole)[:, 1:]
    top = image[y, x] * (1 - right) + image[y, x + 1] * right
    colour = top * (1 - down) + (image[y + 1, x] * (1 - right) + image[y + 1, x + 1] * right) * down + DARKEST
    return np.log(colour[:, 0] / colour[:, 1]), np.log(luma(colour[None, :, None])[0, :, 0])


def measure_lips_seen(face: Face) -> tuple[float, float] | None:
    """Measure how much of the lips is in sight, at 20 places along them.

    A place looks like lips if it is redder than the skin just beyond the lip line, or much lighter or darker. It is
    foreign if it is much less red than the forehead. Landmarks alone tell nothing: the tracker draws a mouth on any
    mask.

    Returns:
        (share of places that look like lips, share that are foreign); None in a grey picture.
    """
    crop = face.crop.astype(np.float64) + DARKEST
    if float(np.log(crop[..., 0] / crop[..., 1]).std()) < MIN_COLOUR_SPREAD:
        return None
    points = (face.landmarks[:, :2].astype(np.float64) + 1) * len(face.crop) / 2
    outer, inner = points[list(lm.OUTER_LIPS)], points[list(lm.INNER_LIPS)]
    middle = outer.mean(0)
    red, light = _sample_colours(face.crop, (outer + inner) / 2)
    red_beyond, light_beyond = _sample_colours(face.crop, middle + RING * (outer - middle))
    foreign = red - np.median(_sample_colours(face.crop, points[list(SKIN_POINTS)])[0]) < FOREIGN_REDNESS
    lips = (red - red_beyond > LIP_REDNESS) | (np.abs(light - light_beyond) > LIP_CONTRAST)
    return float((lips & ~foreign).mean()), float(foreign.mean())


def examine_portrait(
    image: ImageArray,
    size_px: int,
    tracker: FaceTracker,
    mean_face: Tensor,
    choice: int | str | None = None,
    faces: list[TrackedFace] | None = None,
) -> list[Finding]:
    """Examine a photograph for a model's size; what generation would raise is a finding of level "error".

    Args:
        image: (H, W, 3) uint8 RGB.
        size_px: side of the picture that the model sees.
        tracker: finds the faces.
        mean_face: (478, 3), against which pose is measured.
        choice: which face, see ``preprocess.portrait.choose_face``.
        faces: from ``find_faces``, where they are known already.
    """
    faces = find_faces(image, tracker) if faces is None else faces
    try:
        found = choose_face(faces, choice)
    except FaceError as error:
        return [Finding("faces", len(faces), "", "error", str(error))]
    findings = [Finding("faces", len(faces), "")]
    try:
        face = prepare_face(image, found, size_px, tracker, mean_face)
    except FaceTooSmallError as error:
        return [*findings, Finding("face_height", round(found.box.height, 1), "px", "error", str(error))]
    except ExtremePoseError as error:
        return [*findings, Finding("pose", None, "degrees", "error", str(error))]
    square_px = face.box.width
    findings.append(
        judge_value(
            "face_height",
            found.box.height,
            "px",
            square_px * MAX_ENLARGEMENT < size_px,
            f"the square around the face is {square_px:.0f} px and is enlarged to {size_px}: use a larger "
            "picture, or a preset of fewer pixels",
        )
    )
    outside = outside_share(face.box, image.shape[1], image.shape[0])
    findings.append(
        judge_value(
            "outside_picture",
            outside,
            "of the square",
            outside > MAX_OUTSIDE_SHARE,
            "the square around the head leaves the picture, whose border is repeated: leave more room",
        )
    )
    return findings + _judge_pose(face) + _judge_picture(face) + _judge_eyes_and_mouth(face)


def _judge_pose(face: Face) -> list[Finding]:
    limits = zip(("yaw", "pitch", "roll"), face.pose[:3], (WARN_YAW_DEG, WARN_PITCH_DEG, WARN_ROLL_DEG), strict=True)
    return [
        judge_value(
            name,
            angle,
            "degrees",
            abs(angle) > limit,
            f"over {limit:.0f} degrees the picture suffers: use a portrait that looks straight at the camera",
        )
        for name, angle, limit in limits
    ]


def _judge_picture(face: Face) -> list[Finding]:
    sharp, least = measure_detail(face), MIN_DETAIL if len(face.crop) <= LARGE_PX else MIN_DETAIL_LARGE
    light = luma(face.crop[None])[0]
    highlight = float(np.percentile(light, HIGHLIGHT_PERCENTILE))
    burnt = float((_cut_face(light, face) > BURNT_LUMA).mean())
    return [
        judge_value(
            "detail",
            sharp,
            "of gradients",
            sharp < least,
            f"the face is blurred at the {len(face.crop)} px that the model sees (under {least}): "
            "use a sharper picture",
        ),
        judge_value(
            "highlight",
            highlight,
            "luma",
            highlight < MIN_HIGHLIGHT,
            "the picture is dark: lighten it or light the face",
        ),
        judge_value(
            "burnt_out", burnt, "of the face", burnt > MAX_BURNT_SHARE, "the face is overexposed: use a darker picture"
        ),
    ]


def _judge_eyes_and_mouth(face: Face) -> list[Finding]:
    opening = float(lip_aperture(torch.from_numpy(face.shape)))
    eyes = float(face.blink.mean())
    seen = measure_lips_seen(face)
    findings = [
        judge_value(
            "lip_opening",
            opening,
            "eye distances",
            opening > MAX_OPENING,
            f"the mouth is wide open (over {MAX_OPENING}) and will not shut well: use a portrait with closed lips",
        ),
        judge_value(
            "eye_ratio",
            eyes,
            "",
            eyes < MIN_EYE_RATIO,
            f"the eyes are closed (under {MIN_EYE_RATIO}) and would have to be invented: use a portrait with open eyes",
        ),
    ]
    if seen is None:
        return [*findings, Finding("lips_seen", None, "of the lips")]
    hidden = seen[0] < MIN_LIPS_SEEN or seen[1] >= MAX_FOREIGN_SHARE
    advice = (
        "something seems to cover the mouth (a hand, a mask, a microphone): "
        "use a portrait with the whole mouth in sight"
    )
    return [*findings, judge_value("lips_seen", seen[0], "of the lips", hidden, advice)]
