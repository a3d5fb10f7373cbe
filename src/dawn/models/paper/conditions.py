"""Conditions of the published networks, from this package's landmarks (paper sections 3.2 and 4.1).

The published weights were trained on numbers of the tracker 3DDFA_V2: six of pose, two eye aspect ratios, the box of 68
landmarks. Here they are made from the 478-point mesh.

Angles. 3DDFA's axes are x right, y up, z towards the viewer; ours are x right, y down, z away. Turning half around x leads
from one to the other, which turns a rotation R into F R F with F = diag(1, -1, -1). 3DDFA reads yaw = asin(R20), pitch =
atan2(R21, R22), roll = atan2(R10, R00); put in, this is our yaw, our pitch and minus our roll: positive is looking towards
the picture's left edge, looking down, and tilting anticlockwise.

Scale and place. 3DDFA measures both within a square of 120 px that it lays around every frame's detected box: scale s in px
per unit of its face model (micrometres), x from the left, y from the bottom. The square is laid here around the mesh by the
same rule. One point is calibrated: a frontal mean face is given what the authors' programme takes for an unknown face,
s = 4.79e-4, x = 56.5, y = 64.9. That puts 90.7 mm between the outer eye corners, as adults have, so the mesh's box is about
what the published detector finds.

Uncertainty. Angles: a constant offset of some degrees, as the two mean faces may look up or down differently; it cancels in
differences. Scale, x, y: the detector's box is only imitated, its jitter is not, and the depth of the face model's origin
(``ORIGIN``) is an estimate; if it is wrong by 0.3, x and y are wrong by 0.2 px a degree of turning. No published numbers
for a known face were at hand to check them against. Whoever does not trust them may hold them: ``hold_place``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dawn.face.geometry import remove_pose, rotation_matrix
from dawn.structs import POSE_SIZE

NEUTRAL_SCALE = 4.79e-4
NEUTRAL_X_PX = 56.5
NEUTRAL_Y_PX = 64.9
"""Pose of an unknown face in the authors' programme, all angles 0."""
SQUARE_PX = 120.0
SQUARE_SIDES = 1.58
"""Side of 3DDFA's square, in mean sides (half of width plus height) of the detected box."""
SQUARE_DROP = 0.14
"""How far its centre lies below the box's, in the same unit."""
ORIGIN = (0.0, 0.48, 0.85)
"""Where 3DDFA's face model has its origin, in the frame of the mean face (outer eye corners one unit apart): at the height of
the nose tip, inside of the head. The height follows from the neutral pose, the depth is an estimate."""

MESH_OF_68 = (
    127,
    234,
    93,
    132,
    58,
    172,
    150,
    176,
    152,
    400,
    379,
    397,
    288,
    361,
    323,
    454,
    356,
    70,
    63,
    105,
    66,
    107,
    336,
    296,
    334,
    293,
    300,
    168,
    197,
    5,
    4,
    98,
    97,
    2,
    326,
    327,
    33,
    160,
    158,
    133,
    153,
    144,
    362,
    385,
    387,
    263,
    373,
    380,
    61,
    39,
    37,
    0,
    267,
    269,
    291,
    405,
    314,
    17,
    84,
    181,
    78,
    81,
    13,
    311,
    308,
    402,
    14,
    178,
)
"""Mesh point nearest to each of the 68 landmarks of the iBUG scheme: jaw 0-16 from the picture's left, brows 17-26, nose
27-35, eyes 36-47, lips 48-67."""

LEFT_EYE_POINTS = ((43, 47), (45, 42))
RIGHT_EYE_POINTS = ((37, 41), (39, 36))
"""Lid pair and corners of each eye, by their numbers among the 68; published with one pair an eye, and not the same one."""


class Square(NamedTuple):
    """Top left corner and side of 3DDFA's square, in the landmarks' units."""

    x: Float[Tensor, "*batch"]
    y: Float[Tensor, "*batch"]
    side: Float[Tensor, "*batch"]


def points_68(
    landmarks: Float[Tensor, "*batch 478 3"], numbers: Sequence[int] = range(68)
) -> Float[Tensor, "*batch N 3"]:
    """Pick landmarks from the mesh by their numbers in the 68-point scheme."""
    return landmarks[..., [MESH_OF_68[number] for number in numbers], :]


def tracker_square(landmarks: Float[Tensor, "*batch 478 3"]) -> Square:
    """Lay the square that 3DDFA would look at around the mesh's bounding box; y points down."""
    low, high = landmarks[..., :2].amin(-2), landmarks[..., :2].amax(-2)
    centre, mean_side = (low + high) / 2, (high - low).mean(-1)
    side = SQUARE_SIDES * mean_side
    return Square(centre[..., 0] - side / 2, centre[..., 1] + SQUARE_DROP * mean_side - side / 2, side)


def published_pose(
    landmarks: Float[Tensor, "*batch 478 3"], mean_face: Float[Tensor, "478 3"]
) -> Float[Tensor, "*batch 6"]:
    """Measure pose as 3DDFA would: yaw, pitch, roll in degrees, scale, x and y in px of its square.

    Landmarks are in pixels or crop units: one scale on all axes, y down. The module's text has derivation and uncertainty.
    """
    pose, px_per_unit, x, y = _within_square(landmarks, mean_face)
    neutral_face = mean_face.to(landmarks)
    _, neutral_px_per_unit, neutral_x, neutral_y = _within_square(neutral_face, neutral_face)
    yaw, pitch, roll = pose[..., :3].unbind(-1)
    scale = NEUTRAL_SCALE * px_per_unit / neutral_px_per_unit
    return torch.stack((yaw, pitch, -roll, scale, NEUTRAL_X_PX + x - neutral_x, NEUTRAL_Y_PX - (y - neutral_y)), -1)


def _within_square(
    landmarks: Float[Tensor, "*batch 478 3"], mean_face: Float[Tensor, "478 3"]
) -> tuple[Float[Tensor, "*batch 6"], Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Return our pose, px of the square per unit of the mean face, and x and y of ``ORIGIN`` in the square (y down)."""
    _, pose = remove_pose(landmarks, mean_face.to(landmarks))
    square = tracker_square(landmarks)
    px = SQUARE_PX / square.side
    origin = pose[..., 3:4] * (rotation_matrix(pose[..., :3]) @ landmarks.new_tensor(ORIGIN))
    x, y = pose[..., 4] + origin[..., 0], pose[..., 5] + origin[..., 1]
    return pose, pose[..., 3] * px, (x - square.x) * px, (y - square.y) * px


def hold_place(pose: Float[Tensor, "*batch 6"], first: Float[Tensor, "*first 6"]) -> Float[Tensor, "*batch 6"]:
    """Replace scale and place of a published pose by the first frame's: only the angles keep moving."""
    return torch.cat((pose[..., :3], first[..., 3:].expand_as(pose[..., 3:])), -1)


def published_ear(landmarks: Float[Tensor, "*batch 478 3"]) -> Float[Tensor, "*batch 2"]:
    """Measure eye aspect ratios (left, right) as published: one pair of lid points an eye, depth included."""

    def distance(pair: tuple[int, int]) -> Float[Tensor, "*batch"]:
        a, b = points_68(landmarks, pair).unbind(-2)
        return (a - b).norm(dim=-1)

    ratios = [
        distance(lids) / distance(corners).clamp_min(1e-6) for lids, corners in (LEFT_EYE_POINTS, RIGHT_EYE_POINTS)
    ]
    return torch.stack(ratios, -1)


def published_box(
    landmarks_px: Float[Tensor, "*batch 478 3"], height_px: int, width_px: int
) -> Float[Tensor, "*batch 6"]:
    """Measure the box from brows to chin in px: x_min, x_max, y_min, y_max, and the picture's height and width."""
    points = points_68(landmarks_px)[..., :2]
    low, high = points.amin(-2), points.amax(-2)
    size = low.new_tensor((height_px, width_px)).expand_as(low)
    return torch.cat((torch.stack((low[..., 0], high[..., 0], low[..., 1], high[..., 1]), -1), size), -1)


def assemble_conditions(
    audio: Float[Tensor, "*batch T D"],
    pose: Float[Tensor, "*batch T 6"],
    first_pose: Float[Tensor, "*batch _"],
    ear: Float[Tensor, "*batch T 2"],
    first_ear: Float[Tensor, "*batch 2"],
) -> Float[Tensor, "*batch T D+8"]:
    """Join what the published A2V network sees of every frame: sound, and changes of pose and eyes against the source face.

    All are in published units. ``first_pose`` has 6 numbers or more; the depth that 3DDFA adds is dropped.
    """
    return torch.cat((audio, pose - first_pose[..., None, :POSE_SIZE], ear - first_ear[..., None, :]), -1)
