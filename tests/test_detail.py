"""The detail painter: windows, mirrored eyes, what it touches and what it leaves alone."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from conftest import random_norms
from dawn.checkpoint import load_mean_face
from dawn.config import DetailConfig
from dawn.face import mesh as lm
from dawn.face.geometry import apply_pose
from dawn.models.blocks import fold_for_inference
from dawn.models.lite.detail import ORGANS, DetailPainter, place_window
from dawn.research.training.data import mirror_permutation

SIZE = 128
SMALL = DetailConfig(mouth_width=8, eye_width=8, res_blocks=1)


def faces(count: int) -> Tensor:
    """(count, 478, 3) the mean face, turned and moved a little."""
    generator = torch.Generator().manual_seed(3)
    pose = torch.randn(count, 6, generator=generator) * torch.tensor([8.0, 6.0, 4.0, 0.03, 0.04, 0.04])
    pose[:, 3] += 0.6
    return apply_pose(load_mean_face().expand(count, -1, -1), pose)


@pytest.fixture(scope="module")
def painter() -> DetailPainter:
    """Random, its last layers too, batch norms as if trained."""
    torch.manual_seed(0)
    network = DetailPainter(SMALL, SIZE)
    random_norms(network)
    for part in (network.mouth, network.eye):
        nn.init.normal_(part.last.weight, std=0.1)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_an_untrained_painter_changes_nothing(images: Tensor) -> None:
    network = DetailPainter(SMALL, SIZE).eval()
    points = faces(2)
    assert torch.equal(network(images, points, network.look(images, points)), images)


def test_only_the_windows_change(painter: DetailPainter, images: Tensor) -> None:
    points = faces(2)
    painted = painter(images, points, painter.look(images, points))
    changed = (painted != images).any(1)
    allowed = torch.zeros_like(changed)
    for organ in ORGANS:
        window = painter.place(organ, points)
        allowed[window.cells()] = True
        assert window.cut(changed[:, None].float()).mean(dim=(1, 2, 3)).min() > 0.5, organ.name
    assert not (changed & ~allowed).any()


def test_windows_stay_inside_the_picture() -> None:
    corner = torch.tensor([[[-0.99, 0.98], [-0.95, 0.99]]])
    window = place_window(corner, SIZE, 40, 32)
    assert window.columns.tolist() == [list(range(40))]
    assert window.rows.tolist() == [list(range(96, 128))]
    centred = place_window(torch.zeros(1, 2, 2), SIZE, 40, 32)
    assert int(centred.columns[0, 0]) == 44 and int(centred.rows[0, 0]) == 48


def test_windows_hold_mouth_and_eyes(painter: DetailPainter) -> None:
    points = faces(4)
    for organ in ORGANS:
        window = painter.place(organ, points)
        cells = (points[:, list(organ.contours[-1]), :2] + 1) * SIZE / 2
        assert (cells[..., 0] >= window.columns[:, :1]).all() and (cells[..., 0] <= window.columns[:, -1:] + 1).all()
        assert (cells[..., 1] >= window.rows[:, :1]).all() and (cells[..., 1] <= window.rows[:, -1:] + 1).all()


def test_a_mirrored_picture_is_painted_mirrored(painter: DetailPainter, images: Tensor) -> None:
    """Both eyes are painted by one network: on a symmetric face the left eye is the right one in a mirror."""
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    face = load_mean_face() * 0.6
    face = ((face + face[mirror_permutation(load_mean_face())] * mirror) / 2).expand(2, -1, -1)
    straight = painter(images, face, painter.look(images, face))
    turned = painter(images.flip(-1), face, painter.look(images.flip(-1), face)).flip(-1)
    rows = painter.place(ORGANS[1], face).rows
    eyes = slice(int(rows.min()), int(rows.max()) + 1)
    assert float((straight - images)[:, :, eyes].abs().max()) > 0.05
    torch.testing.assert_close(straight[:, :, eyes], turned[:, :, eyes], atol=1e-4, rtol=0)


def test_the_opening_is_seen(painter: DetailPainter, images: Tensor) -> None:
    """Another lip contour, another picture: in the mouth's window and nowhere else."""
    points = faces(1)
    opened = points.clone()
    lower = [below for _, below in lm.ALL_INNER_LIP_PAIRS]
    opened[:, lower, 1] += 0.05
    source = painter.look(images[:1], points)
    change = (painter(images[:1], points, source) - painter(images[:1], opened, source)).abs()
    window = painter.place(ORGANS[0], points)
    assert float(window.cut(change).max()) > 1e-3
    change[:, :, window.rows[0, 0] : window.rows[0, -1] + 1, window.columns[0, 0] : window.columns[0, -1] + 1] = 0
    assert float(change.max()) == 0


def test_folding_and_batches_change_nothing(painter: DetailPainter, images: Tensor) -> None:
    points = faces(2)
    whole = painter(images, points, painter.look(images, points))
    folded = fold_for_inference(deepcopy(painter))
    torch.testing.assert_close(folded(images, points, folded.look(images, points)), whole, atol=2e-5, rtol=0)
    for i in range(2):
        one = painter(images[i : i + 1], points[i : i + 1], painter.look(images[i : i + 1], points[i : i + 1]))
        torch.testing.assert_close(one, whole[i : i + 1], atol=2e-5, rtol=0)


def test_larger_pictures_have_larger_windows() -> None:
    assert DetailPainter(SMALL, 256).windows["mouth"] == (80, 64)
    assert DetailPainter(SMALL, 64).windows["mouth"] == (40, 32)
    assert DetailPainter(SMALL, 256).mouth.patch == 2 * DetailPainter(SMALL, 64).mouth.patch == 4


def test_teeth_that_the_portrait_shows_are_left_alone(painter: DetailPainter, images: Tensor) -> None:
    """The mouth is painted where its opening changes, hardly where it stays as it is."""
    shut = faces(1)
    opened = shut.clone()
    opened[:, [below for _, below in lm.ALL_INNER_LIP_PAIRS], 1] += 0.15
    window = painter.place(ORGANS[0], opened)

    def painted(source: Tensor, driving: Tensor) -> float:
        change = painter(images[:1], driving, painter.look(images[:1], source)) - images[:1]
        return float(window.cut(change).abs().mean())

    assert painted(opened, opened) < 0.4 * min(painted(shut, opened), painted(opened, shut))
