"""The published recipe of the latent flow generator: its losses, and a few steps at reduced width on made-up clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dawn.checkpoint import load_part, save_part
from dawn.config import PaperLFGConfig, RegionsConfig
from dawn.errors import CheckpointError
from dawn.models.nouns import Flow
from dawn.models.paper.lfg import PaperDecoded, PaperLFG, PaperResult
from dawn.models.paper.regions import LearnedRegions, published_grid
from dawn.preprocess.clips import PreparedClip, save_clip
from dawn.research.training.data import ClipStore
from dawn.research.training.loop import train
from dawn.research.training.paper.lfg import (
    PaperLFGRecipe,
    PaperLFGTrainConfig,
    PlaneChange,
    control_points,
    equivariance,
    frame_pairs,
    jitter_colour,
    perceptual_pyramid,
)

SIZE_PX = 64
FRAMES = 12
MODEL = PaperLFGConfig(
    image_size_px=SIZE_PX,
    regions=RegionsConfig(count=3, width=4, depth=2, max_width=16),
    width=6,
    max_width=16,
    res_blocks=1,
    flow_width=6,
    flow_depth=2,
    flow_max_width=16,
)
QUICK = {"batch": 3, "log_every": 1, "sheet_every": 1000, "save_every": 1000, "precision": "fp32", "lr": 3e-3}


class TinyFeatures(nn.Module):
    """A fixed random network of two layers: no weights to fetch."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        for name, inputs, outputs in (("one", 3, 8), ("two", 8, 8)):
            weight = torch.randn(outputs, inputs, 3, 3, generator=generator) / (3 * inputs**0.5)
            self.register_buffer(name, weight)

    def forward(self, image: Tensor) -> list[Tensor]:
        one = nn.functional.conv2d(image, self.get_buffer("one"), padding=1).relu()
        return [one, nn.functional.conv2d(one, self.get_buffer("two"), stride=2, padding=1).relu()]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prepared clips: a bright blob that sways over a smooth background, and a mouth gap that follows it."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(2):
        rng = np.random.default_rng(index)
        small = rng.uniform(40, 160, (4, 4, 3)).astype(np.uint8)
        still = np.asarray(Image.fromarray(small).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC), np.float32)
        y, x = np.mgrid[:SIZE_PX, :SIZE_PX]
        frames, gap = [], []
        for t in range(FRAMES):
            sway_px = 8 * np.sin(t / 2 + index)
            blob = np.exp(-((x - 32 - sway_px) ** 2 + (y - 30) ** 2) / 90)[..., None]
            frames.append((still * (1 - blob) + np.array([230, 200, 90]) * blob).clip(0, 255).astype(np.uint8))
            gap.append(0.02 * sway_px)
        landmarks = np.zeros((FRAMES, 478, 3), np.float32)
        landmarks[:, 14, 1] = gap
        clip = PreparedClip(np.stack(frames), landmarks, np.zeros((FRAMES, 52), np.float32), np.zeros(100, np.float32))
        save_clip(folder / f"clip{index}.safetensors", clip, f"person{index}", "made-up.mp4")
    return folder


def recipe_for(config: PaperLFGTrainConfig, clips: Path) -> PaperLFGRecipe:
    return PaperLFGRecipe(config, MODEL, clips, clips, TinyFeatures())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The change of the plane


def still(side: int = 5) -> PlaneChange:
    control = control_points(side)
    return PlaneChange(torch.eye(2, 3)[None], torch.zeros(1, len(control), 2), control)


def test_no_noise_changes_nothing() -> None:
    change = PlaneChange.draw(2, PaperLFGTrainConfig(affine_noise=0, spline_noise=0), seeded())
    points = torch.rand(2, 30, 2, generator=seeded(1)) * 2 - 1
    assert torch.equal(change.move(points), points)
    assert torch.equal(change.jacobian(points), torch.eye(2).expand(2, 30, 2, 2))


def test_a_thin_plate_spline_moves_its_control_points() -> None:
    """Weights solved for given displacements carry every control point there, and what lies between smoothly along."""
    change = still()
    control = change.control.double()
    assert control.shape == (25, 2) and control.abs().max() == 1
    distance = torch.cdist(control, control)
    kernel = torch.where(distance > 0, distance**2 * distance.clamp_min(1e-9).log(), 0)
    wanted = 0.1 * torch.randn(25, 2, dtype=torch.float64, generator=seeded())
    change = PlaneChange(torch.eye(2, 3).double()[None], torch.linalg.solve(kernel, wanted)[None], control)
    assert torch.allclose(change.move(control[None])[0], control + wanted, atol=1e-8)
    near = change.move(control[None] + 1e-4)[0]
    assert torch.allclose(near, control + wanted, atol=1e-2)


def test_the_affine_part() -> None:
    matrix = torch.tensor([[[1.0, 0.5, 0.25], [0.0, 2.0, -1.0]]])
    change = still()._replace(matrix=matrix)
    assert torch.allclose(change.move(torch.tensor([[[1.0, 1.0]]])), torch.tensor([[[1.75, 1.0]]]))


def test_the_jacobian_is_the_derivative() -> None:
    change = PlaneChange.draw(2, PaperLFGTrainConfig(spline_noise=0.05), seeded())
    change = PlaneChange(*(x.double() for x in change))
    points = (torch.rand(2, 6, 2, generator=seeded(1), dtype=torch.float64) * 2 - 1).requires_grad_()
    moved = change.move(points)
    rows = [torch.autograd.grad(moved[..., i].sum(), points, retain_graph=True)[0] for i in range(2)]
    assert torch.allclose(change.jacobian(points), torch.stack(rows, -2), atol=1e-9)
    assert torch.isfinite(change.jacobian(change.control.expand(2, -1, -1))).all(), "also on a control point"


def test_the_changed_picture_shows_what_lies_there() -> None:
    change = still()._replace(matrix=torch.tensor([[[1.0, 0, 0.5], [0, 1, 0]]]))
    ramp = torch.linspace(0, 1, SIZE_PX).expand(1, 3, SIZE_PX, SIZE_PX)
    moved = change.apply(ramp)
    assert torch.allclose(moved[..., 8:40], ramp[..., 8:40] + 0.25, atol=0.03)
    assert float(moved[0, 0, 0, -1]) == pytest.approx(0.75, abs=0.02), "mirrored beyond the border"


# The losses


def result(driving: LearnedRegions, changed: LearnedRegions) -> PaperResult:
    empty = torch.zeros(())
    decoded, flow = PaperDecoded(empty, empty, empty), Flow(empty, empty)
    return PaperResult(decoded, flow, driving, driving, empty, changed)


def test_equivariance_is_zero_for_regions_that_follow() -> None:
    config = PaperLFGTrainConfig()
    change = PlaneChange.draw(2, config, seeded())
    shift = torch.rand(2, 3, 2, generator=seeded(1)) - 0.5
    affine = torch.eye(2) * 0.3 + 0.05 * torch.randn(2, 3, 2, 2, generator=seeded(2))
    nothing = torch.zeros(())
    changed = LearnedRegions(shift, nothing, affine, nothing)
    # Half of the axes turned round: they have no sign.
    sign = torch.tensor([1.0, -1, 1])[:, None, None]
    followed = LearnedRegions(change.move(shift), nothing, sign * (change.jacobian(shift) @ affine), nothing)
    assert all(float(x) < 1e-5 for x in equivariance(result(followed, changed), change))
    stayed_put = equivariance(result(changed, changed), change)
    assert all(float(x) > 1e-3 for x in stayed_put)


def test_perceptual_pyramid() -> None:
    features = TinyFeatures()
    image, other = torch.rand(2, 2, 3, 32, 32, generator=seeded())
    assert float(perceptual_pyramid(features, image, image, 4)) == 0
    one, four = (float(perceptual_pyramid(features, image, other, levels)) for levels in (1, 4))
    expected = sum((a - b).abs().mean() for a, b in zip(features(image), features(other), strict=True))
    assert one == pytest.approx(float(expected), rel=1e-5) and four > 1.2 * one
    image.requires_grad_()
    perceptual_pyramid(features, image, other, 4).backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


# The data


def test_colour_jitter() -> None:
    images = torch.rand(3, 2, 3, 16, 16, generator=seeded())
    assert torch.allclose(jitter_colour(images, 0.0, seeded()), images, atol=1e-5)
    changed = jitter_colour(images, 0.1, seeded())
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    strength = (changed - images).abs().mean((1, 2, 3, 4))
    assert (strength > 0.01).all() and (strength < 0.25).all() and len(set(strength.tolist())) == 3


def test_pairs_are_frames_of_one_clip(clips: Path) -> None:
    store = ClipStore(clips)
    images = frame_pairs(store, 8, SIZE_PX, 0.0, seeded())
    assert images.shape == (8, 2, 3, SIZE_PX, SIZE_PX)
    every = torch.stack([clip.frames(list(range(FRAMES))) for clip in store.clips])
    every = torch.stack((every, every.flip(-1)), 1)  # (clips, mirrored, frames, ...)
    found = [
        [next(i for i in np.ndindex(2, 2, FRAMES) if torch.allclose(every[i], frame, atol=1e-4)) for frame in pair]
        for pair in images
    ]
    assert all(a[:2] == b[:2] for a, b in found), "clip and mirroring are the pair's"
    assert {a[1] for a, _ in found} == {0, 1}
    assert {a[2] < b[2] for a, b in found if a[2] != b[2]} == {True, False}, "some run backwards"


# Steps


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_loss_falls_on_one_batch(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PaperLFGTrainConfig(steps=25, **QUICK)
    recipe = recipe_for(config, clips)
    fixed = recipe.batch(seeded())
    assert recipe.betas == (0.5, 0.999)
    monkeypatch.setattr(recipe, "batch", lambda generator: fixed)
    assert train(recipe, config, tmp_path) == 25
    log = [record for record in records(tmp_path) if "validation" not in record]
    assert all(np.isfinite(record["main_norm"]) for record in log)
    for figure in ("loss", "perceptual", "shift"):
        early, late = (np.mean([record[figure] for record in rows]) for rows in (log[:5], log[-5:]))
        assert late < 0.8 * early, (figure, early, late)


@pytest.mark.slow
def test_resume_is_exact(clips: Path, tmp_path: Path) -> None:
    config = PaperLFGTrainConfig(steps=6, **QUICK)
    assert train(recipe_for(config, clips), config, tmp_path / "straight") == 6

    def stop(step: int, figures: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe_for(config, clips), config, tmp_path / "twice", stop)
    assert train(recipe_for(config, clips), config, tmp_path / "twice") == 6
    one, two = (torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("straight", "twice"))
    for part in ("ema", "networks"):
        a, b = (x[part] if part == "ema" else x[part]["main"] for x in (one, two))
        assert a.keys() == b.keys() and len(a) > 20
        assert not [name for name in a if not torch.equal(a[name], b[name])]
    moments = [state["optimizers"]["main"]["state"] for state in (one, two)]
    assert all(torch.equal(moments[0][i]["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i in moments[0])


@pytest.mark.slow
def test_a_run_leaves_its_files(clips: Path, tmp_path: Path) -> None:
    config = PaperLFGTrainConfig(steps=2, **QUICK | {"log_every": 2})
    train(recipe_for(config, clips), config, tmp_path)
    figures, validation = records(tmp_path)
    assert figures["step"] == validation["step"] == 2
    said = validation["validation"]
    assert said.keys() == {"psnr", "psnr_repeat"} and all(5 < value < 60 for value in said.values())
    load_part(tmp_path, "lfg", PaperLFG(MODEL))
    with Image.open(tmp_path / "sheet_000002.png") as sheet:
        assert sheet.size == (2 * SIZE_PX, 5 * SIZE_PX)


def test_starting_from_weights(clips: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = PaperLFG(MODEL)
    save_part(tmp_path, "lfg", trained, MODEL)
    config = PaperLFGTrainConfig(start=str(tmp_path / "lfg.safetensors"), seed=4)
    network = recipe_for(config, clips).networks["main"]
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), trained.state_dict().values(), strict=True)
    )
    with pytest.raises(CheckpointError, match="weights are missing"):
        recipe_for(PaperLFGTrainConfig(start=str(tmp_path / "nothing.safetensors")), clips)


def test_the_batch_is_drawn_from_the_generator(clips: Path) -> None:
    recipe = recipe_for(PaperLFGTrainConfig(**QUICK), clips)
    one, same, other = (recipe.batch(seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(one.images, same.images) and torch.equal(one.changed, same.changed)
    assert not torch.equal(one.images, other.images)
    grid = one.change.move(published_grid(SIZE_PX, SIZE_PX, one.images).view(1, -1, 2)).view(-1, SIZE_PX, SIZE_PX, 2)
    expected = nn.functional.grid_sample(one.images[:, 1], grid, padding_mode="reflection", align_corners=False)
    assert torch.equal(one.changed, expected)
