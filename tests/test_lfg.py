"""The latent flow generator: regions, contours, suppression, batching."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from dawn.checkpoint import load_mean_face
from dawn.config import LFGConfig
from dawn.face import mesh as lm
from dawn.face.geometry import apply_pose
from dawn.models.blocks import ResBlock, fold_for_inference, identity_grid
from dawn.models.lite.lfg import LatentFlowGenerator
from dawn.models.lite.regions import LandmarkRegions, apply_maps, blend_maps, draw_contours, lid_flow

TINY = LFGConfig(
    image_size_px=64,
    widths=(6, 8, 12),
    res_blocks=1,
    flow_width=8,
    flow_depth=2,
    flow_max_width=16,
    flow_head_width=8,
    flow_cells=16,
)
GRID = 2 * TINY.flow_cells


def faces(count: int, seed: int = 0) -> Tensor:
    """(count, 478, 3) plausible landmarks in crop units."""
    generator = torch.Generator().manual_seed(seed)
    pose = torch.randn(count, 6, generator=generator) * torch.tensor([8.0, 6.0, 4.0, 0.03, 0.04, 0.04])
    pose[:, 3] += 0.6
    shape = load_mean_face() + 0.01 * torch.randn(count, 478, 3, generator=generator)
    return apply_pose(shape, pose)


def with_mouth(points: Tensor, half_width: float, half_height: float) -> Tensor:
    """The same faces, inner lips on an ellipse at (0, 0.3)."""
    out = points.clone()
    count = len(lm.INNER_LIPS)
    angle = torch.arange(count) * 2 * torch.pi / count
    out[:, list(lm.INNER_LIPS), 0] = -half_width * angle.cos()
    out[:, list(lm.INNER_LIPS), 1] = 0.3 - half_height * angle.sin()
    return out


@pytest.fixture(scope="module")
def network() -> LatentFlowGenerator:
    """Tiny, with batch norms as if trained."""
    torch.manual_seed(0)
    lfg = LatentFlowGenerator(TINY)
    for module in lfg.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.3, 2)
    return lfg.eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_same_landmarks_do_not_move(network: LatentFlowGenerator, image: Tensor) -> None:
    points = faces(1)
    regions = LandmarkRegions()
    state = regions.state(points)
    grids = apply_maps(regions.maps(state, state), GRID)
    assert grids.shape == (1, regions.count + 1, GRID, GRID, 2)
    identity = identity_grid(GRID, GRID, points)
    torch.testing.assert_close(grids, identity.expand_as(grids), atol=1e-4, rtol=0)
    flow, _ = network.predict_flow(network.encode(image, points), points)
    full = identity_grid(image.shape[-1], image.shape[-1], points)
    torch.testing.assert_close(flow.grid[0], full, atol=0.52 / GRID, rtol=0)  # at the border doubling repeats a cell
    torch.testing.assert_close(flow.grid[0, 1:-1, 1:-1], full[1:-1, 1:-1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_other_landmarks_move(network: LatentFlowGenerator, image: Tensor) -> None:
    points = faces(2)
    flow, _ = network.predict_flow(network.encode(image, points[:1]), points[1:])
    size = image.shape[-1]
    assert float((flow.grid[0] - identity_grid(size, size, points)).abs().max()) > 0.01


@torch.no_grad()
def test_cells_at_a_lid_follow_it_and_others_do_not() -> None:
    size = 128
    source = faces(1)[..., :2]
    driving = source.clone()
    driving[:, list(lm.RIGHT_UPPER_LID), 1] = driving[:, list(lm.RIGHT_LOWER_LID)[::-1], 1]
    identity = identity_grid(size, size, source)[None]
    flow = lid_flow(driving, source, identity)
    lid = 159
    above = driving[0, lid] - torch.tensor([0.0, 0.02])
    column, row = ((above + 1) * size / 2).long().tolist()
    wanted = source[0, lid, 1] - driving[0, lid, 1]
    moved = flow[0, row, column, 1] - identity[0, row, column, 1]
    assert float(moved / wanted) > 0.6, "lid skin comes down"
    assert float((flow - identity)[0, size * 3 // 4 :].abs().max()) == 0, "the mouth is left alone"
    torch.testing.assert_close(lid_flow(source, source, identity), identity, atol=1e-6, rtol=0)


def test_an_affine_change_is_found_exactly() -> None:
    regions = LandmarkRegions()
    driving = faces(3)
    matrix = torch.tensor([[1.1, 0.2], [-0.15, 0.9]])
    shift = torch.tensor([0.05, -0.1])
    source = driving[..., :2] @ matrix.T + shift
    grids = apply_maps(regions.maps(regions.state(driving), regions.state(source)), GRID)
    identity = identity_grid(GRID, GRID, driving)
    expected = identity @ matrix.T + shift
    torch.testing.assert_close(grids[:, 1:], expected.expand_as(grids[:, 1:]), atol=2e-4, rtol=0)
    assert torch.equal(grids[:, 0], identity.expand(3, -1, -1, -1)), "the background stays"


def test_a_region_follows_its_own_landmarks() -> None:
    """The lower lip drops: its region does, the forehead's does not."""
    regions = LandmarkRegions()
    source = faces(1)
    driving = source.clone()
    driving[:, list(lm.LOWER_LIP), 1] += 0.1
    grids = apply_maps(regions.maps(regions.state(driving), regions.state(source)), GRID) - identity_grid(
        GRID, GRID, source
    )
    names = ["background", *lm.REGION_GROUPS]
    lip, forehead = grids[0, names.index("lower_lip")], grids[0, names.index("forehead")]
    centre = regions.state(driving).center[0, names.index("lower_lip") - 1]
    x, y = (int((v + 1) / 2 * GRID) for v in centre.tolist())
    assert float(lip[y, x, 1]) == pytest.approx(-0.1, abs=0.01)
    assert float(forehead.abs().max()) < 1e-4


def test_means_of_maps_are_means_of_what_they_say() -> None:
    """Also where a network around it computes in bfloat16."""
    regions = LandmarkRegions()
    driving = faces(3)
    maps = regions.maps(regions.state(driving), regions.state(driving.flip(0)))
    share = torch.randn(3, regions.count + 1, GRID, GRID, generator=torch.Generator().manual_seed(1)).softmax(1)
    mean = (share.unsqueeze(-1) * apply_maps(maps, GRID)).sum(1)
    assert float((mean - identity_grid(GRID, GRID, mean)).abs().max()) > 0.01
    torch.testing.assert_close(blend_maps(maps, share), mean, atol=1e-6, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        again = regions.maps(regions.state(driving), regions.state(driving.flip(0)))
        assert torch.equal(again, maps) and torch.equal(blend_maps(again, share), blend_maps(maps, share))


def test_heat_peaks_at_the_region() -> None:
    regions = LandmarkRegions()
    state = regions.state(faces(1))
    heat = regions.heat(state, 64)[0]
    assert float(heat.max()) <= 1 and float(heat.min()) >= 0
    peak = heat.flatten(1).argmax(1)
    found = torch.stack((peak % 64, peak // 64), 1).add(0.5) * 2 / 64 - 1
    assert float((found - state.center[0]).abs().max()) < 2 / 64


def square_lips(side: float) -> Tensor:
    """(1, 478, 2), inner lips along the edge of a square around (0.1, 0.2)."""
    points = faces(1)[..., :2].clone()
    steps = torch.linspace(-0.5, 0.5, 6)[:-1] * side
    half = torch.full((5,), side / 2)
    edge = torch.cat(
        (
            torch.stack((steps, -half), 1),
            torch.stack((half, steps), 1),
            torch.stack((-steps, half), 1),
            torch.stack((-half, -steps), 1),
        )
    )
    points[0, list(lm.INNER_LIPS)] = edge + torch.tensor([0.1, 0.2])
    return points


@pytest.mark.parametrize("side", [0.5, 1.0])
def test_contour_area(side: float) -> None:
    mouth = draw_contours(square_lips(side), 64)[0, 0]
    assert float(mouth.sum()) * (2 / 64) ** 2 == pytest.approx(side**2, rel=0.03)
    axis = (torch.arange(64) + 0.5) * 2 / 64 - 1
    far = torch.maximum((axis[None] - 0.1).abs(), (axis[:, None] - 0.2).abs())
    assert float(mouth[far < side / 2 - 0.1].min()) > 0.99
    assert float(mouth[far > side / 2 + 0.1].max()) < 0.01


def test_a_shut_mouth_has_no_inside() -> None:
    wide, shut = (draw_contours(with_mouth(faces(1), 0.3, h)[..., :2], 64)[0, 0] for h in (0.15, 0.0))
    assert float(shut.max()) <= 0.5
    assert float(wide.max()) > 0.99
    assert float(shut.sum()) < 0.15 * float(wide.sum())


def test_contours_can_be_differentiated() -> None:
    points = faces(1)[..., :2].clone().requires_grad_()
    draw_contours(points, 32).sum().backward()
    assert points.grad is not None and bool(torch.isfinite(points.grad).all())


def occlusion_inside(
    network: LatentFlowGenerator, image: Tensor, source_open: float, driving_open: float
) -> tuple[float, float]:
    """Occlusion (most inside the driving mouth, least elsewhere) of a network that would copy the source everywhere."""
    keen = deepcopy(network)
    nn.init.zeros_(keen.flow_predictor.head.weight[-1:])
    nn.init.constant_(keen.flow_predictor.head.bias[-1:], 12.0)
    points = faces(1)
    source = keen.encode(image, with_mouth(points, 0.3, source_open))
    flow, contours = keen.predict_flow(source, with_mouth(points, 0.3, driving_open))
    inside = contours[0, 0] > 0.98
    assert int(inside.sum()) > 10
    outside = contours[0].amax(0) < 0.01
    return float(flow.occlusion[0, 0][inside].max()), float(flow.occlusion[0, 0][outside].min())


def test_a_newly_open_mouth_is_painted(network: LatentFlowGenerator, image: Tensor) -> None:
    with torch.no_grad():
        inside, outside = occlusion_inside(network, image, 0.0, 0.25)
    assert inside < 0.25
    assert outside > 0.99


def test_a_mouth_that_was_open_is_kept(network: LatentFlowGenerator, image: Tensor) -> None:
    with torch.no_grad():
        inside, outside = occlusion_inside(network, image, 0.25, 0.25)
    assert inside > 0.99
    assert outside > 0.99


def test_folded_batch_norm_gives_the_same(network: LatentFlowGenerator, image: Tensor) -> None:
    points = faces(2)
    folded = fold_for_inference(deepcopy(network))
    left = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    blocks = [m for m in folded.modules() if isinstance(m, ResBlock)]
    assert len(left) == len(blocks), "only norms before a ReLU that follow no convolution may stay"
    with torch.no_grad():
        before, after = (n(image, points[:1], points[1:]) for n in (network, folded))
    torch.testing.assert_close(after.frame, before.frame, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.painted, before.painted, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.flow.occlusion, before.flow.occlusion, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_expanded_source_is_a_repeated_one(network: LatentFlowGenerator, image: Tensor) -> None:
    points = faces(1)
    one = network.encode(image, points).expand(3)
    three = network.encode(image.repeat(3, 1, 1, 1), points.repeat(3, 1, 1))
    pairs = zip(
        (one.image, *one.features, *one.regions, one.contours),
        (three.image, *three.features, *three.regions, three.contours),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@torch.no_grad()
def test_frames_do_not_depend_on_the_batch(network: LatentFlowGenerator, image: Tensor) -> None:
    points = faces(5)
    source = network.encode(image, points[:1])
    together = network.render(source, points)
    assert together.shape == (5, 3, 64, 64)
    assert float((together[1:] - together[:1]).abs().amax((1, 2, 3)).min()) > 1e-3, "each frame is its own"
    alone = torch.cat([network.render(source, p[None]) for p in points])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


def test_render_is_the_training_pass(network: LatentFlowGenerator, image: Tensor) -> None:
    points = faces(2)
    with torch.no_grad():
        trained = network(image, points[:1], points[1:]).frame
        rendered = network.render(network.encode(image, points[:1]), points[1:])
    assert torch.equal(trained, rendered)


def test_every_parameter_learns(network: LatentFlowGenerator, image: Tensor) -> None:
    lfg = deepcopy(network)
    assert lfg.detail is not None
    for painter in (lfg.detail.mouth, lfg.detail.eye):  # its last layer starts at zero, which would hide the others
        nn.init.normal_(painter.last.weight, std=0.1)
    points = faces(2)
    target = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    (lfg(image, points[:1], points[1:]).frame - target).square().sum().backward()
    still = [name for name, p in lfg.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]
    assert not still
