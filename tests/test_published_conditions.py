"""Landmarks of the mesh as the published networks want them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dawn.checkpoint import load_mean_face
from dawn.face import mesh as lm
from dawn.face.geometry import apply_pose
from dawn.models.paper.conditions import (
    MESH_OF_68,
    assemble_conditions,
    hold_place,
    points_68,
    published_box,
    published_ear,
    published_pose,
    tracker_square,
)
from official import parity

NEUTRAL = (0.0, 0.0, 0.0, 4.79e-4, 56.5, 64.9)


@pytest.fixture(scope="module")
def mean_face() -> Tensor:
    return load_mean_face()


def posed(mean_face: Tensor, yaw: float = 0, pitch: float = 0, roll: float = 0, scale: float = 100.0) -> Tensor:
    """The mean face turned, in a picture where its eyes are 100 px apart."""
    return apply_pose(mean_face, torch.tensor([yaw, pitch, roll, scale, 320.0, 200.0]))


def published_convention(landmarks: Tensor, mean_face: Tensor) -> Tensor:
    """Angles by the tracker's own definition: axes x right, y up, z to the viewer, angles read off the rotation."""
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    made, model = landmarks.double() * flip, mean_face.double() * flip
    made, model = made - made.mean(0), model - model.mean(0)
    solution = torch.linalg.lstsq(model, made).solution.T
    r = solution / torch.linalg.det(solution).pow(1 / 3)
    angles = (torch.asin(r[2, 0]), torch.atan2(r[2, 1], r[2, 2]), torch.atan2(r[1, 0], r[0, 0]))
    return torch.rad2deg(torch.stack(angles))


@pytest.mark.parametrize("angles", [(0, 0, 0), (20, 0, 0), (0, 15, 0), (0, 0, -25), (-18, 9, 12)])
def test_angles_follow_the_published_convention(angles: tuple[float, float, float], mean_face: Tensor) -> None:
    landmarks = posed(mean_face, *angles)
    made = published_pose(landmarks, mean_face)[:3]
    torch.testing.assert_close(made.double(), published_convention(landmarks, mean_face), atol=0.01, rtol=0)


def test_signs_seen_in_the_picture(mean_face: Tensor) -> None:
    nose, top = 4, 10
    turned, nodding, tilted = posed(mean_face, yaw=10), posed(mean_face, pitch=10), posed(mean_face, roll=10)
    assert float(turned[nose, 0]) < 320 and float(published_pose(turned, mean_face)[0]) == pytest.approx(10, abs=0.01)
    straight = posed(mean_face)
    assert float(nodding[nose, 1]) > float(straight[nose, 1])
    assert float(published_pose(nodding, mean_face)[1]) == pytest.approx(10, abs=0.01)
    assert float(tilted[top, 0]) > float(straight[top, 0])  # the crown moves to the right: clockwise
    assert float(published_pose(tilted, mean_face)[2]) == pytest.approx(-10, abs=0.01)


def test_a_frontal_mean_face_is_neutral_wherever_it_is(mean_face: Tensor) -> None:
    for scale in (0.6, 100.0, 431.0):
        made = published_pose(posed(mean_face, scale=scale), mean_face)
        torch.testing.assert_close(made[:3], torch.zeros(3), atol=0.01, rtol=0)
        assert float(made[3]) == pytest.approx(NEUTRAL[3], rel=1e-3)
        torch.testing.assert_close(made[4:], torch.tensor(NEUTRAL[4:]), atol=0.05, rtol=0)


def test_scale_is_relative_to_the_box(mean_face: Tensor) -> None:
    """A lowered chin makes the box higher and thus the face smaller in it; the square is the tracker's."""
    long = mean_face.clone()
    long[list(lm.CHIN), 1] += 0.3
    rows = torch.stack((mean_face, long))
    made = published_pose(100 * rows, mean_face)
    square = tracker_square(100 * rows)
    assert float(square.side[0]) == pytest.approx(158 * (1.5884 + 1.9087) / 2, rel=1e-3)
    assert float(made[1, 3] / made[0, 3]) == pytest.approx(float(square.side[0] / square.side[1]), rel=1e-4)
    assert float(made[1, 5]) > float(made[0, 5])  # a box that reaches lower leaves the face higher in the square


def test_turning_moves_the_origin_about_the_face(mean_face: Tensor) -> None:
    """Turned to the picture's left, the box goes left with the face and the head's middle stays behind, to the right."""
    left, right = (published_pose(posed(mean_face, yaw=angle), mean_face) for angle in (20, -20))
    assert float(left[4]) > 57 and float(right[4]) < 56
    assert float(left[4] + right[4]) / 2 == pytest.approx(56.5, abs=0.5)
    held = hold_place(torch.stack((left, right)), left)
    assert torch.equal(held[:, 3:], left[3:].expand(2, 3))
    assert torch.equal(held[1, :3], right[:3])


def test_eye_ratios_use_one_pair_an_eye() -> None:
    points = torch.zeros(478, 3)
    for corner, x in ((362, 10.0), (263, 40.0), (33, -40.0), (133, -10.0)):
        points[corner, 0] = x
    points[385], points[380] = torch.tensor([20.0, -4, 0]), torch.tensor([20.0, 4, 6])  # left, inner pair: 10 apart
    points[160], points[144] = torch.tensor([-30.0, -3, 0]), torch.tensor([-30.0, 3, 0])  # right, outer pair: 6 apart
    points[387], points[158] = torch.tensor([30.0, -9, 0]), torch.tensor([-20.0, -9, 0])  # not looked at
    torch.testing.assert_close(published_ear(points), torch.tensor([10 / 30, 6 / 30]))
    torch.testing.assert_close(published_ear(torch.stack((points, 3 * points)))[1], torch.tensor([10 / 30, 6 / 30]))


def test_the_68_points_lie_where_they_should(mean_face: Tensor) -> None:
    assert len(set(MESH_OF_68)) == 68
    face = points_68(mean_face)
    x, y = face[:, 0], face[:, 1]
    assert bool((x[:17].diff() > 0).all()) and bool((x[17:27].diff() > 0).all()), "jaw and brows run from left to right"
    assert int(y[:17].argmax()) == 8
    assert bool((y[27:31].diff() > 0).all()), "the bridge runs down"
    mirror = (
        (0, 16),
        (4, 12),
        (7, 9),
        (17, 26),
        (21, 22),
        (31, 35),
        (36, 45),
        (37, 44),
        (39, 42),
        (41, 46),
        (48, 54),
        (50, 52),
        (55, 59),
        (60, 64),
        (67, 65),
    )
    for a, b in mirror:
        reflected = face[b] * torch.tensor([-1.0, 1.0, 1.0])
        assert float((face[a] - reflected).norm()) < 0.06, (a, b)
    assert set(MESH_OF_68[36:42]) <= set(lm.RIGHT_EYE) and set(MESH_OF_68[42:48]) <= set(lm.LEFT_EYE)
    assert set(MESH_OF_68[48:60]) <= set(lm.OUTER_LIPS) and set(MESH_OF_68[60:]) <= set(lm.INNER_LIPS)


def test_box_reaches_from_brows_to_chin(mean_face: Tensor) -> None:
    landmarks = posed(mean_face)
    x0, x1, y0, y1, height, width = published_box(landmarks, 480, 640).tolist()
    assert (height, width) == (480, 640)
    assert y1 == pytest.approx(float(landmarks[152, 1]), abs=1)
    assert y0 == pytest.approx(float(landmarks[list(lm.RIGHT_BROW), 1].min()), abs=6)
    assert y0 > float(landmarks[10, 1]) + 20, "the forehead is left out"
    assert x0 < float(landmarks[33, 0]) and x1 > float(landmarks[263, 0])


def test_conditions_are_the_published_ones() -> None:
    true = parity("e2e_128_t8_s5")
    made = assemble_conditions(
        true["hubert"], true["pose"].transpose(1, 2), true["init_pose"], true["eye"].transpose(1, 2), true["init_eye"]
    )
    assert torch.equal(made, true["cond"])
    assert torch.equal(
        assemble_conditions(
            true["hubert"][0], true["pose"][0].T, true["init_pose"][0], true["eye"][0].T, true["init_eye"][0]
        ),
        true["cond"][0],
    )
