"""Pose and shape of a face from its landmarks, and back.

A face is ``landmarks = scale * shape @ R(yaw, pitch, roll)^T + (x, y)``: weak perspective, x right, y down, z away from
the viewer, in crop units. ``shape`` is pose-free: the landmarks in the frame of the mean face, whose outer eye corners
are one unit apart. Pose is fitted to rigid landmarks only, so that identity and expression are left.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dawn.face import mesh as lm

Values = TypeVar("Values", Tensor, NDArray[Any])

SHAPE_SMOOTHING_FRAMES = 0.5
"""The tracker's noise in the lips is white; half a frame takes most of it and leaves closures."""
POSE_SMOOTHING_FRAMES = 1.2


def rotation_matrix(angles_deg: Tensor) -> Tensor:
    """Convert yaw, pitch, roll in degrees (..., 3) to rotations (..., 3, 3): R = Rz(roll) Ry(yaw) Rx(pitch)."""
    yaw, pitch, roll = torch.deg2rad(angles_deg).unbind(-1)
    cy, sy, cp, sp, cr, sr = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin(), roll.cos(), roll.sin()
    rows = (
        cr * cy,
        cr * sy * sp - sr * cp,
        cr * sy * cp + sr * sp,
        sr * cy,
        sr * sy * sp + cr * cp,
        sr * sy * cp - cr * sp,
        -sy,
        cy * sp,
        cy * cp,
    )
    return torch.stack(rows, -1).view(*yaw.shape, 3, 3)


def rotation_angles(rotation: Tensor) -> Tensor:
    """Convert rotations (..., 3, 3) to yaw, pitch, roll in degrees (..., 3), for |yaw| < 90 degrees."""
    yaw = torch.asin((-rotation[..., 2, 0]).clamp(-1, 1))
    pitch = torch.atan2(rotation[..., 2, 1], rotation[..., 2, 2])
    roll = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return torch.rad2deg(torch.stack((yaw, pitch, roll), -1))


def fit_similarity(points: Tensor, template: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit, by least squares, the similarity that takes the template to the points (Umeyama 1991).

    Args:
        points: (..., N, 3).
        template: (N, 3).

    Returns:
        Scale (...), rotation (..., 3, 3), translation (..., 3).
    """
    mean_points, mean_template = points.mean(-2, keepdim=True), template.mean(-2, keepdim=True)
    centred, reference = points - mean_points, template - mean_template
    u, s, vh = torch.linalg.svd(centred.transpose(-1, -2) @ reference)
    sign = torch.ones_like(s)
    sign[..., 2] = torch.sign(torch.linalg.det(u @ vh))
    rotation = (u * sign.unsqueeze(-2)) @ vh
    scale = (s * sign).sum(-1) / reference.square().sum()
    translation = mean_points.squeeze(-2) - scale.unsqueeze(-1) * (rotation @ mean_template.squeeze(-2))
    return scale, rotation, translation


def remove_pose(landmarks: Tensor, mean_face: Tensor) -> tuple[Tensor, Tensor]:
    """Split landmarks into shape and pose.

    Args:
        landmarks: (..., 478, 3) in crop units.
        mean_face: (478, 3).

    Returns:
        Shape (..., 478, 3) in mean-face units, and pose (..., 6): yaw, pitch, roll in degrees, scale in crop units per
        mean-face unit, x and y in crop units. Translation along z is dropped (weak perspective).
    """
    rigid = list(lm.RIGID)
    scale, rotation, translation = fit_similarity(landmarks[..., rigid, :], mean_face[rigid])
    shape = (landmarks - translation.unsqueeze(-2)) @ rotation / scale[..., None, None]
    pose = torch.cat((rotation_angles(rotation), scale.unsqueeze(-1), translation[..., :2]), -1)
    return shape, pose


def apply_pose(shape: Tensor, pose: Tensor) -> Tensor:
    """Put shapes (..., 478, 3) into the picture by poses (..., 6): landmarks (..., 478, 3) in crop units."""
    turned = shape @ rotation_matrix(pose[..., :3]).transpose(-1, -2) * pose[..., None, 3:4]
    offset = torch.cat((pose[..., 4:6], torch.zeros_like(pose[..., :1])), -1)
    return turned + offset.unsqueeze(-2)


def add_pose(source_pose: Tensor, change: Tensor) -> Tensor:
    """Add a relative pose (``structs.Motion.pose``, whose scale is a logarithm) to the source's. (..., 6) each."""
    return torch.cat(
        (
            source_pose[..., :3] + change[..., :3],
            source_pose[..., 3:4] * change[..., 3:4].exp(),
            source_pose[..., 4:] + change[..., 4:],
        ),
        -1,
    )


def subtract_pose(pose: Tensor, source_pose: Tensor) -> Tensor:
    """Return the change from the source's pose to ``pose``: the inverse of ``add_pose``. (..., 6) each."""
    return torch.cat(
        (
            pose[..., :3] - source_pose[..., :3],
            (pose[..., 3:4] / source_pose[..., 3:4]).log(),
            pose[..., 4:] - source_pose[..., 4:],
        ),
        -1,
    )


def eye_aspect_ratio(landmarks: Tensor) -> Tensor:
    """Measure the mean lid gap over the eye's width: (..., 478, 3) -> (..., 2), left and right eye.

    About 0.3 is open, under 0.1 shut.
    """

    def distance(a: int, b: int) -> Tensor:
        return (landmarks[..., a, :2] - landmarks[..., b, :2]).norm(dim=-1)

    ratios = []
    for outer, inner, first, second in (lm.LEFT_EAR_POINTS, lm.RIGHT_EAR_POINTS):
        ratios.append((distance(*first) + distance(*second)) / (2 * distance(outer, inner)).clamp_min(1e-6))
    return torch.stack(ratios, -1)


def lip_aperture(landmarks: Tensor) -> Tensor:
    """Measure the signed vertical gap of the inner lips over the distance of the eye corners: (..., 478, 3) -> (...).

    Below 0 the lips cross, so that a network's output can be corrected. It is meant for shapes without pose:
    ``measures.lips.lip_distance`` serves for turned heads, but has no sign.
    """
    upper = [a for a, _ in lm.INNER_LIP_PAIRS]
    lower = [b for _, b in lm.INNER_LIP_PAIRS]
    gap = (landmarks[..., lower, 1] - landmarks[..., upper, 1]).mean(-1)
    right, left = lm.EYE_OUTER_CORNERS
    return gap / (landmarks[..., right, :] - landmarks[..., left, :]).norm(dim=-1).clamp_min(1e-6)


def smooth(x: Tensor, width_frames: float) -> Tensor:
    """Smooth (T, ...) along the first axis by a Gaussian of ``width_frames``; the ends repeat."""
    if width_frames <= 0 or x.shape[0] < 2:
        return x
    reach = max(1, math.ceil(3 * width_frames))
    t = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    window = torch.exp(-0.5 * (t / width_frames).square())
    flat = x.flatten(1).T if x.dim() > 1 else x[None]
    padded = F.pad(flat[:, None], (reach, reach), mode="replicate")
    out = F.conv1d(padded, (window / window.sum())[None, None])[:, 0]
    return out.T.reshape(x.shape) if x.dim() > 1 else out[0]


def part_lips(shape: Tensor) -> Tensor:
    """Put inner lips that cross on the line between them. (..., 478, 3) -> the same."""
    upper = [a for a, _ in lm.ALL_INNER_LIP_PAIRS]
    lower = [b for _, b in lm.ALL_INNER_LIP_PAIRS]
    overlap = (shape[..., upper, 1] - shape[..., lower, 1]).clamp_min(0) / 2
    out = shape.clone()
    out[..., upper, 1] -= overlap
    out[..., lower, 1] += overlap
    return out


def smoothstep(x: Values) -> Values:
    """Ease from 0 (at or below 0) to 1 (at or above 1) without a corner. Any shape, tensor or array."""
    x = x.clip(0, 1)
    return x * x * (3 - 2 * x)
