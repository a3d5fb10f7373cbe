"""Faces as numbers: rotations, fits, pose and shape, eyes and lips, random changes of the plane, crops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dawn.checkpoint import load_mean_face
from dawn.face import geometry as g
from dawn.face import mesh as lm
from dawn.preprocess.crop import (
    CROP_CENTER_Y,
    CROP_FACE_HEIGHTS,
    MESH_HEIGHT_PER_WIDTH,
    Fit,
    crop_box,
    cut,
    from_crop_units,
    to_crop_units,
)
from dawn.research.training.data import GeometricChange, mirror_permutation
from dawn.structs import Box, TrackedFace

MEAN_FACE = load_mean_face()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pose(count: int, seed: int) -> Tensor:
    """(count, 6) well inside what a camera sees."""
    r = 2 * torch.rand(count, 6, generator=seeded(seed)) - 1
    return r * torch.tensor([40.0, 35.0, 30.0, 0.2, 0.3, 0.3]) + torch.tensor([0.0, 0.0, 0.0, 0.6, 0.0, 0.0])


def random_faces(count: int, seed: int) -> Tensor:
    """(count, 478, 3) mean faces whose soft parts have moved; the rigid ones have not."""
    change = 0.05 * torch.randn(count, 478, 3, generator=seeded(seed))
    change[:, list(lm.RIGID)] = 0
    return MEAN_FACE + change


def test_rotation_round_trip() -> None:
    angles = (2 * torch.rand(300, 3, generator=seeded(0), dtype=torch.float64) - 1) * torch.tensor([88.0, 179.0, 179.0])
    rotation = g.rotation_matrix(angles)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(300, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(300, dtype=torch.float64))
    torch.testing.assert_close(g.rotation_angles(rotation), angles, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("angles", "start", "end"),
    [((90, 0, 0), (0, 0, 1), (1, 0, 0)), ((0, 90, 0), (0, 1, 0), (0, 0, 1)), ((0, 0, 90), (1, 0, 0), (0, 1, 0))],
)
def test_rotation_directions(angles: tuple, start: tuple, end: tuple) -> None:
    """Yaw turns depth into x, pitch y into depth, roll x into y: saved motions depend on it."""
    turned = g.rotation_matrix(torch.tensor(angles, dtype=torch.float64)) @ torch.tensor(start, dtype=torch.float64)
    torch.testing.assert_close(turned, torch.tensor(end, dtype=torch.float64), atol=1e-9, rtol=0)


def test_rotation_order() -> None:
    yaw, pitch, roll = 30.0, -20.0, 15.0
    single = [g.rotation_matrix(torch.tensor(a)) for a in ((0, 0, roll), (yaw, 0, 0), (0, pitch, 0))]
    together = g.rotation_matrix(torch.tensor([yaw, pitch, roll]))
    torch.testing.assert_close(single[0] @ single[1] @ single[2], together)


def test_fit_similarity_is_exact() -> None:
    template = torch.randn(12, 3, generator=seeded(0), dtype=torch.float64)
    pose = random_pose(5, 1).double()
    scale, shift = pose[:, 3], torch.randn(5, 3, generator=seeded(2), dtype=torch.float64)
    rotation = g.rotation_matrix(pose[:, :3])
    points = scale[:, None, None] * template @ rotation.transpose(1, 2) + shift[:, None]
    for made, true in zip(g.fit_similarity(points, template), (scale, rotation, shift), strict=True):
        torch.testing.assert_close(made, true, atol=1e-9, rtol=0)


def test_fit_similarity_never_mirrors() -> None:
    template = torch.randn(12, 3, generator=seeded(3), dtype=torch.float64)
    mirrored = template * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    _, rotation, _ = g.fit_similarity(mirrored, template)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1)


def test_fit_similarity_is_the_best_under_noise() -> None:
    template = torch.randn(20, 3, generator=seeded(4), dtype=torch.float64)
    points = 0.7 * template + 0.1 * torch.randn(20, 3, generator=seeded(5), dtype=torch.float64)
    scale, rotation, shift = g.fit_similarity(points, template)

    def error(s: Tensor, r: Tensor, t: Tensor) -> float:
        return float((points - (s * template @ r.T + t)).square().sum())

    best = error(scale, rotation, shift)
    tilt = g.rotation_matrix(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    assert best < error(scale * 1.01, rotation, shift)
    assert best < error(scale * 0.99, rotation, shift)
    assert best < error(scale, tilt @ rotation, shift)
    assert best < error(scale, rotation, shift + 0.01)


def test_pose_and_shape_come_apart() -> None:
    shape, pose = random_faces(6, 6), random_pose(6, 7)
    found_shape, found_pose = g.remove_pose(g.apply_pose(shape, pose), MEAN_FACE)
    torch.testing.assert_close(found_shape, shape, atol=2e-5, rtol=0)
    torch.testing.assert_close(found_pose, pose, atol=2e-3, rtol=0)


def test_pose_and_shape_make_the_landmarks() -> None:
    """Also for faces that are not the mean face; depth comes back but for a shift, which the picture does not show."""
    landmarks = g.apply_pose(MEAN_FACE + 0.05 * torch.randn(3, 478, 3, generator=seeded(8)), random_pose(3, 9))
    again = g.apply_pose(*g.remove_pose(landmarks, MEAN_FACE))
    torch.testing.assert_close(again[..., :2], landmarks[..., :2], atol=2e-5, rtol=0)
    depth = again[..., 2] - landmarks[..., 2]
    assert float(depth.std(1).max()) < 2e-5


def test_add_pose_and_pose_change_are_inverse() -> None:
    a, b = random_pose(8, 10), random_pose(8, 11)
    torch.testing.assert_close(g.add_pose(a, g.subtract_pose(b, a)), b)
    change = g.subtract_pose(b, a)
    assert float(change[0, 3]) == pytest.approx(math.log(float(b[0, 3] / a[0, 3])), abs=1e-6)
    torch.testing.assert_close(g.add_pose(a, torch.zeros(8, 6)), a)


def test_eye_aspect_ratio() -> None:
    face = torch.zeros(478, 3)
    eyes = ((lm.LEFT_EAR_POINTS, (0.3, 0.1), 0.0), (lm.RIGHT_EAR_POINTS, (0.6, 0.2), 5.0))
    for (outer, inner, first, second), gaps, at in eyes:
        face[outer], face[inner] = torch.tensor([at, 0.0, 0.0]), torch.tensor([at + 1.0, 0.0, 0.0])
        for (up, down), gap in zip((first, second), gaps, strict=True):
            face[up], face[down] = torch.tensor([at + 0.5, -gap / 2, 0.0]), torch.tensor([at + 0.5, gap / 2, 0.0])
    torch.testing.assert_close(g.eye_aspect_ratio(face), torch.tensor([0.2, 0.4]))


def test_lip_aperture_has_a_sign() -> None:
    face = torch.zeros(478, 3)
    face[33], face[263] = torch.tensor([-1.0, 0, 0]), torch.tensor([1.0, 0, 0])
    for upper, lower in lm.INNER_LIP_PAIRS:
        face[upper, 1], face[lower, 1] = -0.05, 0.15
    assert float(g.lip_aperture(face)) == pytest.approx(0.1)
    assert float(g.lip_aperture(face * torch.tensor([1.0, -1.0, 1.0]))) == pytest.approx(-0.1)


def test_mirror_permutation() -> None:
    p = mirror_permutation(MEAN_FACE)
    assert torch.equal(p[p], torch.arange(478))
    for middle in (10, 151, 9, 8, 168, 6, 197, 195, 5, 4, 1, 2, 0, 11, 12, 13, 14, 15, 16, 17, 18, 200, 199, 175, 152):
        assert int(p[middle]) == middle
    for right, left in (
        (lm.RIGHT_EYE, lm.LEFT_EYE),
        (lm.RIGHT_BROW, lm.LEFT_BROW),
        (lm.RIGHT_JAW, lm.LEFT_JAW),
        (lm.RIGHT_CHEEK, lm.LEFT_CHEEK),
        (lm.RIGHT_MOUTH_CORNER, lm.LEFT_MOUTH_CORNER),
    ):
        assert set(p[list(right)].tolist()) == set(left)
    for group in (lm.INNER_LIPS, lm.OUTER_LIPS, lm.LIPS, lm.FACE_OVAL):
        assert set(p[list(group)].tolist()) == set(group)
    assert int(p[468]) == 473


def test_mirrored_face_has_mirrored_pose() -> None:
    p = mirror_permutation(MEAN_FACE)
    pose = torch.tensor([[20.0, 10.0, 8.0, 0.6, 0.1, -0.05]])
    mirrored = g.apply_pose(MEAN_FACE[None], pose)[:, p] * torch.tensor([-1.0, 1.0, 1.0])
    _, found = g.remove_pose(mirrored, MEAN_FACE)
    expected = pose * torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    torch.testing.assert_close(found, expected, atol=0.35, rtol=0.01)  # the mean face itself is not quite symmetric


@pytest.mark.parametrize("seed", range(5))
def test_geometric_change_of_points_undoes_that_of_the_grid(seed: int) -> None:
    change = GeometricChange(4, seeded(seed))
    points = g.apply_pose(random_faces(4, seed), random_pose(4, seed) * torch.tensor([0.5, 0.5, 0.5, 1, 0.5, 0.5]))
    moved = change.landmarks(points)
    assert float((moved[..., :2] - points[..., :2]).abs().max()) > 0.01
    torch.testing.assert_close(change.backward(moved[..., :2]), points[..., :2], atol=5e-4, rtol=0)


def test_geometric_change_moves_picture_and_points_alike() -> None:
    """A bright spot on a landmark stays on it."""
    size, spot = 128, torch.tensor([0.2, -0.3])
    change = GeometricChange(3, seeded(3))
    grid = change.grid(size)
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    distance = (axis[None, :] - spot[0]).square() + (axis[:, None] - spot[1]).square()
    picture = torch.exp(-distance / (2 * 0.04**2))
    warped = F.grid_sample(picture.expand(3, 1, size, size), grid, align_corners=False)[:, 0]
    mass = warped.sum((1, 2))
    centre = torch.stack(((warped * axis).sum((1, 2)) / mass, (warped * axis[:, None]).sum((1, 2)) / mass), -1)
    points = torch.zeros(3, 478, 3)
    points[..., :2] = spot
    torch.testing.assert_close(centre, change.landmarks(points)[:, 0, :2], atol=0.01, rtol=0)


def tracked(x0: float, y0: float, x1: float, y1: float) -> TrackedFace:
    landmarks = np.zeros((478, 3), np.float32)
    landmarks[:, 0], landmarks[:, 1] = (x0 + x1) / 2, (y0 + y1) / 2
    landmarks[0, :2], landmarks[1, :2] = (x0, y0), (x1, y1)
    return TrackedFace(landmarks, np.zeros(52, np.float32))


def test_crop_inside_the_picture() -> None:
    box = crop_box(tracked(450, 400, 530, 500), 1000, 1000)
    assert box.width == box.height == pytest.approx(CROP_FACE_HEIGHTS * 100)
    assert box.x0 == pytest.approx(490 - box.width / 2)
    assert box.y0 == pytest.approx(450 - CROP_CENTER_Y * box.width)
    wide = crop_box(tracked(400, 400, 520, 500), 1000, 1000)  # looks down: the width says how large the head is
    assert wide.width == pytest.approx(CROP_FACE_HEIGHTS * 120 * MESH_HEIGHT_PER_WIDTH)


def test_crop_is_moved_into_the_picture() -> None:
    box = crop_box(tracked(0, 5, 80, 105), 400, 300)
    assert (box.x0, box.y0) == (0, 0)
    assert box.width == pytest.approx(CROP_FACE_HEIGHTS * 100)
    other = crop_box(tracked(320, 195, 400, 295), 400, 300)
    assert (other.x1, other.y1) == pytest.approx((400, 300))
    stays = crop_box(tracked(0, 5, 80, 105), 400, 300, Fit.CENTRED)
    assert stays.center[0] == pytest.approx(40) and stays.y0 < 0 and stays.width == box.width


def test_crop_larger_than_the_picture() -> None:
    face = tracked(20, 20, 180, 220)
    box = crop_box(face, 200, 240)
    assert box.width == pytest.approx(CROP_FACE_HEIGHTS * 200)
    assert box.center[0] == pytest.approx(100)
    clip = crop_box(face, 200, 240, Fit.INSIDE)
    assert clip.width == pytest.approx(200)
    assert clip.x0 >= 0 and clip.y0 >= 0 and clip.x1 <= 200 and clip.y1 <= 240


def test_cut_repeats_the_border() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, :20] = (200, 0, 0)
    image[:, 20:] = (0, 0, 100)
    out = cut(image, Box(-40, -20, 40, 60), 80)
    assert out.shape == (80, 80, 3)
    assert (out[:, :55] == (200, 0, 0)).all()
    assert (out[:, 65:] == (0, 0, 100)).all()


def test_cut_takes_the_square_named() -> None:
    image = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    assert np.array_equal(cut(image, Box(10, 5, 42, 37), 32), image[5:37, 10:42])


@pytest.mark.parametrize(("x0", "y0", "side"), [(0, 0, 128), (-31.7, 12.25, 77.3), (200, -200, 2000)])
def test_crop_units_round_trip(x0: float, y0: float, side: float) -> None:
    box = Box(x0, y0, x0 + side, y0 + side)
    units = np.random.default_rng(0).uniform(-1, 1, (478, 3)).astype(np.float32)
    np.testing.assert_allclose(to_crop_units(from_crop_units(units, box), box), units, atol=1e-5)
    corners = np.array([[x0, y0, 0], [x0 + side, y0 + side, side / 2]], np.float32)
    np.testing.assert_allclose(to_crop_units(corners, box), [[-1, -1, 0], [1, 1, 1]], atol=1e-5)
