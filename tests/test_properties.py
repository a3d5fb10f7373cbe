"""Laws of geometry, crops and motion files that hold for any input, tried on random ones."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from dawn.checkpoint import load_mean_face
from dawn.face import geometry as g
from dawn.face import mesh as lm
from dawn.media.motion_json import load_motion, save_motion
from dawn.preprocess.crop import Fit, crop_box, from_crop_units, shift_into, to_crop_units
from dawn.structs import BLINK_SIZE, POSE_SIZE, Box, Motion, TrackedFace

MEAN_FACE = load_mean_face().double()
LAWS = settings(max_examples=60, deadline=None)


def between(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


ANGLES = st.tuples(between(-88, 88), between(-179, 179), between(-179, 179))
POSES = st.tuples(
    between(-85, 85), between(-170, 170), between(-170, 170), between(0.05, 5), between(-3, 3), between(-3, 3)
)
SIDES = st.integers(16, 4000)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """Squares of 20 to 3000 px, near the picture's corner or far outside."""
    x0, y0, side = draw(between(-2000, 4000)), draw(between(-2000, 4000)), draw(between(20, 3000))
    return Box(x0, y0, x0 + side, y0 + side)


@st.composite
def tracked(draw: st.DrawFn) -> TrackedFace:
    """Faces whose landmarks fill a box of 10 to 600 px anywhere near a picture."""
    x0, y0 = draw(between(-200, 1200)), draw(between(-200, 1200))
    width, height = draw(between(10, 600)), draw(between(10, 600))
    points = np.zeros((478, 3), np.float32)
    points[:, :2] = (x0, y0)
    points[1, :2] = (x0 + width, y0 + height)
    return TrackedFace(points, np.zeros(52, np.float32))


def face_with_expression(seed: int) -> Tensor:
    """A mean face (478, 3) whose soft parts have moved; the rigid ones have not."""
    change = 0.05 * torch.randn(478, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    change[list(lm.RIGID)] = 0
    return MEAN_FACE + change


# ---------------------------------------------------------------------------------------------------------------- pose


@LAWS
@given(ANGLES)
def test_rotations_invert(angles: tuple[float, float, float]) -> None:
    wanted = torch.tensor(angles, dtype=torch.float64)
    rotation = g.rotation_matrix(wanted)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(g.rotation_angles(rotation), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(g.rotation_matrix(g.rotation_angles(rotation)), rotation, atol=1e-9, rtol=0)


@LAWS
@given(POSES, st.integers(0, 1000))
def test_a_pose_that_is_applied_is_the_pose_that_is_removed(values: tuple[float, ...], seed: int) -> None:
    pose, wanted = torch.tensor(values, dtype=torch.float64), face_with_expression(seed)
    shape, found = g.remove_pose(g.apply_pose(wanted, pose), MEAN_FACE)
    # Depth is not known in weak perspective: a shape comes back where the mean face lies.
    torch.testing.assert_close(shape, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(found, pose, atol=1e-4, rtol=0)


@LAWS
@given(POSES, POSES)
def test_a_change_of_pose_leads_there(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    a, b = (torch.tensor(pose, dtype=torch.float64) for pose in (first, second))
    torch.testing.assert_close(g.add_pose(a, g.subtract_pose(b, a)), b)
    torch.testing.assert_close(g.subtract_pose(g.add_pose(a, b), a), b)


# ----------------------------------------------------------------------------------------------------------- smoothing


@LAWS
@given(st.integers(1, 200), between(0.2, 6), st.data())
def test_smoothed_chunks_are_the_smoothed_whole(length: int, width: float, data: st.DataObject) -> None:
    """A chunk with ``3 * width`` frames of context on either side holds the values of the whole."""
    x = torch.randn(length, 2, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    whole, reach = g.smooth(x, width), max(1, math.ceil(3 * width))
    size = data.draw(st.integers(1, length))
    parts = []
    for start in range(0, length, size):
        low, high = max(0, start - reach), min(length, start + size + reach)
        parts.append(g.smooth(x[low:high], width)[start - low : start - low + size])
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-12, rtol=0)


def test_chunks_without_context_are_not_the_whole() -> None:
    """The law above can fail."""
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = torch.cat([g.smooth(part, 1.2) for part in x.split(10)])
    assert float((parts - g.smooth(x, 1.2)).abs().max()) > 0.05


@LAWS
@given(st.integers(1, 60), between(0, 6), between(-5, 5))
def test_smoothing_keeps_what_is_constant_and_never_overshoots(length: int, width: float, level: float) -> None:
    flat = torch.full((length,), level, dtype=torch.float64)
    torch.testing.assert_close(g.smooth(flat, width), flat)
    x = torch.randn(length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    made = g.smooth(x, width)
    assert float(made.min()) >= float(x.min()) - 1e-12 and float(made.max()) <= float(x.max()) + 1e-12


@LAWS
@given(arrays.arrays(np.float64, st.integers(1, 20), elements=between(-2, 3)))
def test_smoothstep_rises_from_0_to_1_alike_from_both_ends(x: np.ndarray) -> None:
    made = g.smoothstep(x)
    assert ((made >= 0) & (made <= 1)).all()
    assert (made[x <= 0] == 0).all() and (made[x >= 1] == 1).all()
    assert (np.diff(made[np.argsort(x)]) >= -1e-15).all()
    np.testing.assert_allclose(made + g.smoothstep(1 - x), 1, atol=1e-12)
    np.testing.assert_array_equal(g.smoothstep(torch.from_numpy(x)).numpy(), made)


# --------------------------------------------------------------------------------------------------------------- crops


@LAWS
@given(boxes(), arrays.arrays(np.float32, (5, 3), elements=st.floats(-4, 4, width=32)))
def test_crop_units_and_pixels_invert(box: Box, units: np.ndarray) -> None:
    pixels = from_crop_units(units, box)
    # Float32 pixels far from the corner know a place to about a hundred-thousandth of their distance.
    coarse = 1e-6 * (abs(box.x0) + abs(box.y0) + 4 * box.width) / box.width
    np.testing.assert_allclose(to_crop_units(pixels, box), units, atol=4 * coarse + 1e-6)
    corners = np.array([[box.x0, box.y0, 0], [box.x1, box.y1, 0]], np.float32)
    np.testing.assert_allclose(to_crop_units(corners, box), [[-1, -1, 0], [1, 1, 0]], atol=4 * coarse + 1e-6)


@LAWS
@given(boxes(), SIDES, SIDES)
@example(Box(-10, 5, 90, 105), 100, 100)
def test_a_shifted_square_lies_inside_where_it_fits(square: Box, width: int, height: int) -> None:
    made = shift_into(square, width, height)
    assert math.isclose(made.width, square.width) and math.isclose(made.height, square.width)
    for start, stop, before, limit in (
        (made.x0, made.x1, square.x0, width),
        (made.y0, made.y1, square.y0, height),
    ):
        if square.width >= limit:
            assert start == before
        else:
            assert start >= -1e-9 and stop <= limit + 1e-6
    again = shift_into(made, width, height)
    assert math.isclose(again.x0, made.x0, abs_tol=1e-6) and math.isclose(again.y0, made.y0, abs_tol=1e-6)


@LAWS
@given(tracked(), SIDES, SIDES)
def test_squares_of_clips_are_no_larger_than_the_picture_and_inside_it(
    face: TrackedFace, width: int, height: int
) -> None:
    box = crop_box(face, width, height, Fit.INSIDE)
    wanted = crop_box(face, width, height, Fit.CENTRED).width
    assert math.isclose(box.width, min(wanted, width, height), rel_tol=1e-6)
    # Along a side that the shrunk square fills it stays where the face is.
    for start, stop, limit in ((box.x0, box.x1, width), (box.y0, box.y1, height)):
        if box.width < limit - 1e-3:
            assert start >= -1e-6 and stop <= limit + 1e-6


@LAWS
@given(tracked(), SIDES, SIDES)
def test_a_square_inside_the_picture_stays_centred(face: TrackedFace, right: int, below: int) -> None:
    moved = TrackedFace(face.landmarks + np.array([2000, 2000, 0], np.float32), face.blendshapes)
    centred = crop_box(moved, 1, 1, Fit.CENTRED)
    width, height = math.ceil(centred.x1) + right, math.ceil(centred.y1) + below
    made = crop_box(moved, width, height, Fit.SHIFTED)
    for name in ("x0", "y0", "x1", "y1"):
        assert math.isclose(getattr(made, name), getattr(centred, name), abs_tol=1e-6)


# --------------------------------------------------------------------------------------------------------- motion files


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def tables(frames: int, columns: int) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.float32, (frames, columns), elements=NUMBERS)


@st.composite
def motions(draw: st.DrawFn) -> Motion:
    frames, size = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    info = draw(st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3))
    return Motion(
        draw(tables(frames, POSE_SIZE)),
        draw(tables(frames, BLINK_SIZE)),
        draw(tables(frames, size)),
        draw(st.sampled_from(["lite", "paper"])),
        info,
    )


@LAWS
@given(motions())
def test_a_motion_file_gives_every_number_back(motion: Motion) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "motion.json"
        save_motion(motion, path)
        read = load_motion(path)
    for name in ("pose", "blink", "expression"):
        np.testing.assert_array_equal(getattr(read, name), getattr(motion, name))
        assert getattr(read, name).dtype == np.float32
    assert (read.space, read.info) == (motion.space, motion.info)
