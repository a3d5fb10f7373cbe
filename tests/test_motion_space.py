"""The ``lite`` motion space: coding, its two halves, lips that do not cross, saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dawn.checkpoint import load_mean_face, load_part, save_part
from dawn.config import MotionSpaceConfig
from dawn.engines.rules import close_lips
from dawn.face import mesh as lm
from dawn.face.geometry import lip_aperture, part_lips, remove_pose
from dawn.models.lite.motion_space import MotionSpace, split_landmarks
from dawn.rules_config import LipRules

CONFIG = MotionSpaceConfig(lower=5, upper=3)


def open_face() -> Tensor:
    """The mean face with its lips well apart, so that small motions never make them cross."""
    face = load_mean_face().clone()
    for upper, lower in lm.ALL_INNER_LIP_PAIRS:
        face[upper, 1] -= 0.05
        face[lower, 1] += 0.05
    return face


def talking(clips: int = 4, frames: int = 60) -> list[Tensor]:
    """Clips (T, 478, 3) of several people that move in exactly five lower and three upper ways."""
    generator = torch.Generator().manual_seed(0)
    lower, upper = split_landmarks(load_mean_face())
    ways = torch.zeros(8, 478, 3)
    ways[:5, lower] = torch.randn(5, len(lower), 3, generator=generator)
    ways[5:, upper] = torch.randn(3, len(upper), 3, generator=generator)
    amount = torch.tensor([4.0, 3.0, 2.0, 1.5, 1.0, 3.0, 2.0, 1.0]) * 1e-3
    out = []
    for _ in range(clips):
        identity = open_face() + 0.01 * torch.randn(478, 3, generator=generator)
        weights = torch.randn(frames, 8, generator=generator) * amount
        out.append(identity + torch.einsum("tk,kpc->tpc", weights, ways))
    return out


@pytest.fixture(scope="module")
def clips() -> list[Tensor]:
    return talking()


@pytest.fixture(scope="module")
def space(clips: list[Tensor]) -> MotionSpace:
    motion = MotionSpace(CONFIG)
    held = motion.fit(load_mean_face(), clips, torch.randn(100, 6) * torch.arange(1.0, 7.0))
    assert held["lower"] > 0.9999 and held["upper"] > 0.9999
    return motion


def test_halves_cover_the_face_once() -> None:
    lower, upper = split_landmarks(load_mean_face())
    assert sorted(lower + upper) == list(range(478))
    assert set(lm.LIPS) | set(lm.CHIN) - {18, 200} <= set(lower)
    assert set(lm.LEFT_EYE) | set(lm.RIGHT_EYE) | set(lm.LEFT_BROW) | set(lm.RIGHT_BROW) <= set(upper)


def test_round_trip(space: MotionSpace, clips: list[Tensor]) -> None:
    for shape in clips:
        code = space.encode(shape, shape[7])
        assert code.shape == (60, 8)
        torch.testing.assert_close(space.shapes(code, shape[7]), shape, atol=1e-4, rtol=0)
        torch.testing.assert_close(code[7], torch.zeros(8))


def test_random_codes_come_back(space: MotionSpace) -> None:
    code = 0.5 * torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(space.encode(space.shapes(code, open_face()), open_face()), code, atol=2e-3, rtol=0)


def test_codes_are_of_order_one(space: MotionSpace, clips: list[Tensor]) -> None:
    pairs = torch.cat([space.encode(shape, shape[index]) for shape in clips for index in range(0, 60, 5)])
    assert float(pairs.std(0).min()) > 0.8 and float(pairs.std(0).max()) < 1.2


def test_pose_scale(space: MotionSpace) -> None:
    torch.testing.assert_close(space.pose_scale, torch.arange(1.0, 7.0), rtol=0.25, atol=0)


@pytest.mark.parametrize("half", ["lower", "upper"])
def test_halves_do_not_mix(space: MotionSpace, half: str) -> None:
    lower, upper = split_landmarks(load_mean_face())
    code = torch.zeros(4, 8)
    part = getattr(space, half)
    code[:, part] = torch.randn(4, part.stop - part.start)
    change = space.shapes(code, open_face()) - open_face()
    moved, still = (lower, upper) if half == "lower" else (upper, lower)
    assert torch.equal(change[:, still], torch.zeros(4, len(still), 3))
    assert float(change[:, moved].abs().amax((1, 2)).min()) > 1e-4


def test_landmarks_put_the_pose_on(space: MotionSpace) -> None:
    code = 0.3 * torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    source_pose = torch.tensor([5.0, -3.0, 2.0, 0.6, 0.1, 0.05])
    change = torch.randn(5, 6, generator=torch.Generator().manual_seed(3)) * torch.tensor([5, 5, 5, 0.05, 0.1, 0.1])
    made = space.landmarks(change, code, open_face(), source_pose)
    shape, pose = remove_pose(made, load_mean_face())
    assert float((pose[:, :3] - source_pose[:3] - change[:, :3]).abs().max()) < 1.5
    assert float(((pose[:, 3] / 0.6).log() - change[:, 3]).abs().max()) < 0.03
    torch.testing.assert_close(shape, space.shapes(code, open_face()), atol=0.03, rtol=0)
    rest = space.landmarks(torch.zeros(1, 6), torch.zeros(1, 8), open_face(), torch.tensor([0.0, 0, 0, 1, 0, 0]))
    torch.testing.assert_close(rest[0], open_face())


def test_describe_source(space: MotionSpace) -> None:
    said = space.describe_source(open_face())
    assert said.shape == (10,)
    assert float(said[8]) == pytest.approx(float(lip_aperture(open_face())) / 0.1)
    assert float(space.describe_source(load_mean_face())[:8].abs().max()) == 0
    both = space.describe_source(torch.stack((load_mean_face(), open_face())))
    torch.testing.assert_close(both[1], said)


def test_rest_closes_the_mouth(space: MotionSpace, clips: list[Tensor]) -> None:
    shape = clips[0]
    apertures = lip_aperture(shape)
    closed, opened = shape[apertures.argmin()], shape[apertures.argmax()]
    code = torch.zeros(1, 8)
    code[0, space.lower] = space.lower_at_rest(opened, closed)
    made = lip_aperture(space.shapes(code, opened))
    assert float(made) == pytest.approx(float(lip_aperture(closed)), abs=1e-3)


def test_the_opening_direction_opens_the_lips(space: MotionSpace) -> None:
    direction = space.opening_direction()
    assert not direction[space.upper].any()
    before, after = (lip_aperture(space.shapes(0.05 * k * direction[None], open_face())) for k in range(2))
    eyes = (open_face()[lm.EYE_OUTER_CORNERS[0]] - open_face()[lm.EYE_OUTER_CORNERS[1]]).norm()
    assert float((after - before) * eyes) == pytest.approx(0.05, rel=0.05)


def test_small_openings_close_and_wide_ones_stay(space: MotionSpace) -> None:
    wide = float(lip_aperture(open_face()))
    code = torch.linspace(-1.5 * wide, 0.1, 40)[:, None] * space.opening_direction()
    code[:, space.upper] = torch.randn(40, space.config.upper, generator=torch.Generator().manual_seed(1))
    shapes = [space.shapes(x, open_face()) for x in (code, close_lips(code, open_face(), space, LipRules()))]
    before, after = (lip_aperture(x) for x in shapes)
    upper, lower = zip(*lm.INNER_LIP_PAIRS, strict=True)
    apart = (shapes[1][:, lower, 1] - shapes[1][:, upper, 1] > 1e-4).all(
        1
    )  # made-up motion lets single pairs meet early
    wanted = before - LipRules().closing * torch.exp(-(before / LipRules().closing_below).square())
    assert int(apart.sum()) > 10
    torch.testing.assert_close(after[apart], wanted[apart], atol=2e-3, rtol=0)
    assert float((after - before)[before > 0.15].abs().max()) < 1e-3 and float((after - before).max()) < 1e-3
    assert float((before - after).max()) > 1e-3
    assert (after.diff() > -1e-4).all(), "the order of openings is kept"
    assert torch.equal(close_lips(code, open_face(), space, LipRules())[:, space.upper], code[:, space.upper])


def test_crossing_lips_meet_in_the_middle() -> None:
    face = torch.zeros(2, 478, 3)
    for upper, lower in lm.ALL_INNER_LIP_PAIRS:
        face[0, upper, 1], face[0, lower, 1] = 0.3, 0.1  # crossed: upper below lower
        face[1, upper, 1], face[1, lower, 1] = 0.1, 0.3
    out = part_lips(face)
    for upper, lower in lm.ALL_INNER_LIP_PAIRS:
        assert float(out[0, upper, 1]) == pytest.approx(0.2) == float(out[0, lower, 1])
    assert torch.equal(out[1], face[1])
    assert float(face[0, 13, 1]) == pytest.approx(0.3), "the input is left alone"


def test_generated_lips_never_cross(space: MotionSpace) -> None:
    code = 40 * torch.randn(30, 8, generator=torch.Generator().manual_seed(4))
    free = (code * space.scale) @ space.basis
    assert float(lip_aperture(open_face() + free.unflatten(-1, (478, 3))).min()) < -0.01
    assert float(lip_aperture(space.shapes(code, open_face())).min()) > -1e-6


def test_saved_and_loaded(space: MotionSpace, tmp_path: Path) -> None:
    save_part(tmp_path, "motion", space, CONFIG)
    again = MotionSpace(CONFIG)
    load_part(tmp_path, "motion", again)
    code = torch.randn(3, 8)
    assert torch.equal(again.shapes(code, open_face()), space.shapes(code, open_face()))
    assert torch.equal(again.describe_source(open_face()), space.describe_source(open_face()))
    assert torch.equal(again.pose_scale, space.pose_scale)
