"""The fine stage: what it starts as, what it sees, and that the decoder beneath it stays what it is."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import random_norms
from dawn.checkpoint import load_mean_face
from dawn.config import DetailConfig, FineConfig, LFGConfig, parse
from dawn.errors import ConfigError
from dawn.face.geometry import apply_pose
from dawn.models.blocks import fold_for_inference, identity_grid, upsample_sharp, warp
from dawn.models.lite.detail import ORGANS
from dawn.models.lite.fine import FineStage
from dawn.models.lite.lfg import LatentFlowGenerator

SMALL = LFGConfig(
    image_size_px=128,
    widths=(8, 12, 16),
    flow_width=8,
    flow_max_width=32,
    flow_head_width=8,
    fine=FineConfig(painter=DetailConfig(mouth_width=8, eye_width=8, res_blocks=1)),
)
PLAIN = FineConfig(painter=None, agreement=0.05, gain=1)


def faces(count: int) -> Tensor:
    """(count, 478, 3) the mean face, turned a little."""
    pose = torch.randn(count, 6, generator=torch.Generator().manual_seed(3)) * torch.tensor([8, 6, 4, 0.03, 0.04, 0.04])
    pose[:, 3] += 0.6
    return apply_pose(load_mean_face().expand(count, -1, -1), pose)


@pytest.fixture(scope="module")
def generator() -> LatentFlowGenerator:
    """Random, the painters' last layers too, batch norms as if trained."""
    torch.manual_seed(0)
    network = LatentFlowGenerator(SMALL)
    random_norms(network)
    assert network.fine is not None and network.fine.painter is not None
    for painter in (network.fine.painter.mouth, network.fine.painter.eye):
        nn.init.normal_(painter.last.weight, std=0.1)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def test_where_frame_and_portrait_agree_the_portrait_is_shown(image: Tensor) -> None:
    stage = FineStage(PLAIN, 128)
    torch.testing.assert_close(stage.transfer(F.avg_pool2d(image, 2), image), image)


def test_where_they_disagree_the_frame_is_only_doubled(image: Tensor) -> None:
    other = (F.avg_pool2d(image, 2) + 0.5) % 1
    torch.testing.assert_close(FineStage(PLAIN, 128).transfer(other, image), doubled(other), atol=1e-5, rtol=0)


def test_a_portrait_without_fine_detail_adds_nothing() -> None:
    flat, frame = torch.full((1, 3, 128, 128), 0.3), torch.full((1, 3, 64, 64), 0.31)
    torch.testing.assert_close(FineStage(PLAIN, 128).transfer(frame, flat), doubled(frame))


def test_agreement_is_local(image: Tensor) -> None:
    """One half of the frame is another picture: only the other half has the portrait's detail."""
    frame = F.avg_pool2d(image, 2)
    frame[..., 32:] = 1 - frame[..., 32:]
    made = FineStage(PLAIN, 128).transfer(frame, image)
    torch.testing.assert_close(made[..., :60], image[..., :60])
    assert float((made - image)[..., 68:].abs().mean()) > 0.1


def test_gain_scales_the_detail(image: Tensor) -> None:
    reduced = F.avg_pool2d(image, 2)
    stronger = FineStage(PLAIN.model_copy(update={"gain": 1.5}), 128).transfer(reduced, image)
    torch.testing.assert_close(stronger - doubled(reduced), 1.5 * (image - doubled(reduced)))


def test_the_generator_decodes_at_half_size(generator: LatentFlowGenerator, image: Tensor) -> None:
    points = faces(3)
    source = generator.encode(image, points[:1])
    made = generator.redraw(source.expand(2), points[1:])
    assert source.full.shape[-1] == 2 * 128 and source.image.shape[-1] == 64
    assert made.frame.shape == (2, 3, 128, 128) and made.painted.shape == (2, 3, 64, 64)
    torch.testing.assert_close(source.image, F.avg_pool2d(image, 2))


def test_the_frame_beneath_is_the_plain_generators(generator: LatentFlowGenerator, image: Tensor) -> None:
    plain = LatentFlowGenerator(SMALL.model_copy(update={"image_size_px": 64, "fine": None})).eval()
    state = {key: value for key, value in generator.state_dict().items() if not key.startswith("fine.")}
    plain.load_state_dict(state)
    points = faces(2)
    small = plain.redraw(plain.encode(F.avg_pool2d(image, 2), points[:1]), points[1:])
    source = generator.encode(image, points[:1])
    whole = generator.redraw(source, points[1:])
    torch.testing.assert_close(small.painted, whole.painted)
    assert generator.fine is not None
    moved = warp(source.full, whole.flow.grid, (128, 128))
    torch.testing.assert_close(generator.fine(small.frame, moved, points[1:], source.fine_details), whole.frame)


def test_mouth_and_eyes_are_painted_at_full_size(generator: LatentFlowGenerator, image: Tensor) -> None:
    points = faces(2)
    source = generator.encode(image, points[:1])
    whole = generator.redraw(source, points[1:]).frame
    bare = deepcopy(generator)
    assert bare.fine is not None and generator.fine is not None and generator.fine.painter is not None
    bare.fine.painter = None
    change = (whole - bare.redraw(source, points[1:]).frame).abs()
    for organ in ORGANS:
        window = generator.fine.painter.place(organ, points[1:])
        assert float(window.cut(change).mean()) > 1e-3, organ.name
        change.permute(0, 2, 3, 1)[window.cells()] = 0
    assert float(change.max()) == 0


def test_folding_and_batches_change_nothing(generator: LatentFlowGenerator, image: Tensor) -> None:
    points = faces(4)
    whole = generator.render(generator.encode(image, points[:1]), points[1:])
    folded = fold_for_inference(deepcopy(generator))
    torch.testing.assert_close(folded.render(folded.encode(image, points[:1]), points[1:]), whole, atol=1e-4, rtol=0)
    one = generator.render(generator.encode(image, points[:1]), points[2:3])
    torch.testing.assert_close(one, whole[1:2], atol=2e-5, rtol=0)


def test_a_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ConfigError, match="image_size_px 96: with a fine stage give a multiple of 64"):
        parse(LFGConfig, {"image_size_px": 96, "fine": {}}, "x")


def test_half_a_pixel_of_motion_costs_less_detail_on_a_finer_grid() -> None:
    torch.manual_seed(0)
    image = F.interpolate(torch.rand(1, 3, 16, 16), 32, mode="bicubic")
    still = identity_grid(32, 32, image)[None]

    def moved(x: Tensor, pixels: float) -> Tensor:
        return warp(x, still + torch.tensor([pixels / 16, 0.0]), (32, 32))[..., 2:-2, 2:-2]

    def detail(x: Tensor) -> float:
        return float(x.diff(dim=-1).square().mean())

    whole, fine = detail(image[..., 2:-2, 2:-2]), upsample_sharp(image)
    for pixels in (0.0, 0.25, 0.5, 0.75, 1.0):
        assert 0.9 < detail(moved(fine, pixels)) / whole < 1.15, pixels
    assert detail(moved(image, 0.5)) < 0.8 * whole
    for pixels in (0.0, 1.0):
        torch.testing.assert_close(moved(fine, pixels), moved(image, pixels), atol=0.02, rtol=0)
