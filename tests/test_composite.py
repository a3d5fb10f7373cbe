"""Full frames: what is the photograph's stays the photograph's, what moves moves whole, and nothing shows where they meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import seam
from conftest import refused, stacked
from dawn import media
from dawn.errors import ConfigError, ImageError
from dawn.models.blocks import identity_grid, warp
from dawn.models.paper.bundle import PaperBundle
from dawn.pipeline import Dawn
from dawn.preprocess.crop import cut
from dawn.rendering.composite import FullFrame, fit_photograph
from dawn.rendering.draw import draw_frames
from dawn.structs import Box, Face, ImageArray, Motion, Speech
from media_files import decoded
from test_paper_pipeline import SMALL

SIZE = 64
Say = Callable[[int], Speech]


def photograph(height: int, width: int) -> ImageArray:
    """Soft blobs with fine grain."""
    rng = np.random.default_rng(3)
    blobs = Image.fromarray(rng.integers(30, 220, (6, 8, 3)).astype(np.uint8))
    blobs = blobs.resize((width, height), Image.Resampling.BICUBIC)
    return (np.asarray(blobs).astype(int) + rng.integers(-12, 13, (height, width, 1))).clip(0, 255).astype(np.uint8)


def placed(like: Face, image: ImageArray, box: Box) -> Face:
    return replace(like, crop=cut(image, box, SIZE), box=box)


def square(x0: float, y0: float, side: float) -> Box:
    return Box(x0, y0, x0 + side, y0 + side)


def crop_of(face: Face) -> Tensor:
    return torch.from_numpy(face.crop.copy()).permute(2, 0, 1).float() / 255


def still() -> Tensor:
    return identity_grid(SIZE, SIZE, torch.zeros(1))


def shifted(face: Face, x: float, y: float = 0.0) -> tuple[Tensor, Tensor]:
    """The crop moved by (x, y) crop units, and its flow."""
    grid = still() - torch.tensor([x, y])
    return warp(crop_of(face)[None], grid[None])[0], grid


CASES = {
    "inside": ((240, 320), square(80.3, 40.7, 150.2)),
    "odd": ((241, 333), square(100.0, 30.0, 161.5)),
    "tall": ((401, 121), square(-20.5, 60.2, 160.0)),
    "wide": ((120, 400), square(150.0, -30.0, 170.0)),
    "left edge": ((240, 320), square(-40.0, 20.0, 150.0)),
    "corner": ((240, 320), square(200.4, 130.4, 160.0)),
    "smaller than the frame": ((240, 320), square(100.2, 60.1, 45.7)),
}


@pytest.mark.parametrize("name", CASES)
def test_outside_is_the_photograph_to_the_bit(portrait_face: Face, name: str) -> None:
    (height, width), box = CASES[name]
    image = photograph(height, width)
    full = FullFrame(image, placed(portrait_face, image, box))
    assert (full.height, full.width) == (height // 2 * 2, width // 2 * 2)
    assert np.array_equal(full.photograph, image[: full.height, : full.width])
    generator = torch.Generator().manual_seed(0)
    frame = torch.rand((3, SIZE, SIZE), generator=generator)
    made = full(frame, still() + 0.1 * torch.randn((SIZE, SIZE, 2), generator=generator))
    assert made.shape == full.photograph.shape and made.dtype == np.uint8
    ys, xs = np.mgrid[: full.height, : full.width] + 0.5
    outside = (xs < box.x0) | (xs > box.x1) | (ys < box.y0) | (ys > box.y1)
    for own in (outside, full.mask == 0):
        assert (made[own] == full.photograph[own]).all()
    assert (made != full.photograph).any(-1).mean() > 0.3 * (~outside).mean(), "inside, a wild frame changes it"


@pytest.mark.parametrize("name", CASES)
def test_no_motion_gives_the_photograph_back(portrait_face: Face, name: str) -> None:
    (height, width), box = CASES[name]
    image = photograph(height, width)
    face = placed(portrait_face, image, box)
    full = FullFrame(image, face)
    assert np.array_equal(full(crop_of(face), still()), full.photograph)
    # A generator that draws everything a little redder and darker is matched.
    tinted = crop_of(face) + torch.tensor([0.02, -0.02, -0.02])[:, None, None]
    assert np.abs(full(tinted, still()).astype(int) - full.photograph).max() <= 2


def test_mask_ends_at_the_crops_border_and_holds_the_face(portrait_face: Face) -> None:
    image = photograph(300, 320)
    face = placed(portrait_face, image, square(60, 50, 180))
    mask = FullFrame(image, face).mask
    outside = np.ones(mask.shape, bool)
    outside[50:230, 60:240] = False
    assert not mask[outside].any()
    assert max(mask[50].max(), mask[229].max(), mask[:, 60].max(), mask[:, 239].max()) < 1e-3, "zero at the border"
    points = ((face.landmarks[:, :2] + 1) * 90 + (60, 50)).astype(int)
    assert (mask[points[:, 1], points[:, 0]] > 0.99).all()
    assert np.abs(np.diff(mask, axis=0)).max() < 0.15 > np.abs(np.diff(mask, axis=1)).max()
    # A head that the photograph cuts off is not held at the photograph's edge.
    cut_off = FullFrame(image[:, 110:], placed(portrait_face, image, square(-50, 50, 180))).mask
    assert cut_off[140, 0] == 1


@pytest.mark.parametrize("side", [64, 150, 230])
def test_what_moves_moves_whole(portrait_face: Face, side: float) -> None:
    """A dot finer than a generated pixel moves with the face, stays sharp, and leaves no copy."""
    image = np.full((260, 280, 3), 90, np.uint8)
    box = square(20, 20, side)
    x = y = int(20 + side / 2)
    image[y : y + 2, x : x + 2] = 230
    face = placed(portrait_face, image, box)
    step = 6
    made = FullFrame(image, face)(*shifted(face, step * 2 / side))
    moved = np.roll(image, step, axis=1)
    assert np.abs(made.astype(int) - moved).max() <= 12, "sharp at the new place, gone from the old one"


def test_what_is_painted_is_shown(portrait_face: Face) -> None:
    image = photograph(260, 280)
    face = placed(portrait_face, image, square(30, 20, 200))
    full, frame = FullFrame(image, face), crop_of(face)
    mouth = (slice(44, 52), slice(26, 38))
    frame[:, *mouth] = torch.tensor([0.5, 0.05, 0.1])[:, None, None]
    made = full(frame, still()).astype(int)
    middle = made[20 + 48 * 200 // 64, 30 + 32 * 200 // 64]
    assert np.abs(middle - np.array([0.5, 0.05, 0.1]) * 255).max() < 25
    changed = (made != full.photograph).any(-1)
    assert not changed[:120].any(), "far from it, the photograph"
    assert 0.01 < changed.mean() < 0.1


def test_seam_is_less_than_of_a_paste(portrait_face: Face) -> None:
    image = photograph(260, 280)
    box = square(30, 20, 200)
    face = placed(portrait_face, image, box)
    full = FullFrame(image, face)
    frames, pasted = [], []
    for x in (0.0, 0.02, 0.05, 0.08):
        frame, grid = shifted(face, x, -x / 2)
        frames.append(full(frame, grid))
        whole = Image.fromarray((frame * 255).byte().permute(1, 2, 0).numpy()).resize(
            (200, 200), Image.Resampling.BICUBIC
        )
        pasted.append(image.copy())
        pasted[-1][20:220, 30:230] = whole
    ours, theirs = np.stack(frames), np.stack(pasted)
    edge = np.zeros((260, 280), bool)
    edge[20:220, 30:230] = True
    for inside in (edge, full.mask > 0):
        assert seam.gradient_jump(ours, image, inside).max() < 0.05
    assert seam.gradient_jump(theirs, image, edge).min() > 0.5
    ratio = seam.gradient_ratio(ours, image, full.mask > 0.5)
    assert 0.65 < ratio.min() <= ratio.max() < 1.15, "grain of one pixel softens when it moves by a part of one"
    rim = (full.mask > 0) & (full.mask < 0.1)
    assert 2 * seam.ring_flicker(ours, rim).max() < seam.ring_flicker(theirs, rim).max()


def test_huge_photographs_are_reduced_and_small_ones_are_not_enlarged(portrait_face: Face) -> None:
    image = photograph(501, 1501)
    face = placed(portrait_face, image, square(300, 100, 350))
    full = FullFrame(image, face)
    assert (full.height, full.width) == (426, 1280) and full.reduced and full.original == "1501 x 501 px"
    assert full.box.width == pytest.approx(350 * 1280 / 1501) == full.box.height
    assert full.box.x0 == pytest.approx(300 * 1280 / 1501)
    assert np.array_equal(full(crop_of(face), still()), full.photograph)
    assert fit_photograph(image, face.box, 400)[0].shape == (132, 400, 3)
    assert fit_photograph(image[:90, :70], square(0, 0, 60), 1280)[0].shape == (90, 70, 3)
    with pytest.raises(ImageError, match=r"1501 x 15 px.*nearer to the face"):
        fit_photograph(image[:15], square(0, 0, 60), 1280)


def test_same_input_same_picture(portrait_face: Face) -> None:
    image = photograph(240, 320)
    face = placed(portrait_face, image, square(80.3, 40.7, 150.2))
    first, second = (FullFrame(image, face)(*shifted(face, 0.07)) for _ in range(2))
    assert np.array_equal(first, second)


def test_video_of_full_frames(tiny_model: Dawn, portrait_path: Path, speech: Say) -> None:
    image = media.read_image(portrait_path)[:401, 30:]
    video = tiny_model(image, speech(10), frame="full", seed=3)
    frames = stacked(video)
    assert frames.shape == (10, 400, 482, 3) and (video.height, video.width) == (400, 482)
    assert video.full is not None
    outside = video.full.mask == 0
    assert (frames[:, outside] == image[:400, :482][outside]).all() and 0.5 < outside.mean() < 0.9
    assert np.abs(np.diff(frames[:, ~outside].astype(int), axis=0)).mean() > 0.1
    assert (stacked(video) == frames).all()
    small = tiny_model(image, speech(2), frame="full", size=256)
    assert stacked(small).shape == (2, 212, 256, 3)
    assert small.comment.endswith("photograph reduced from 482 x 401 px")
    wrong = (
        ({"frame": "whole"}, "'whole': give crop or full"),
        ({"frame": "full", "size": 128}, "size 128.*256 to 2560"),
    )
    for options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            tiny_model(image, speech(2), **options)  # type: ignore[arg-type]


def test_faces_at_the_border_stay_in_the_middle_of_what_the_network_sees(
    tiny_model: Dawn, speech: Callable, portrait_path: Path
) -> None:
    """Only where the padding would be shown, in frames of a face without its photograph, is its square moved into it."""
    image = np.asarray(Image.open(portrait_path).convert("RGB"))[:, 165:]
    plain, large, full = (
        tiny_model(image, speech(1), **options)
        for options in ({}, {"size": 256}, {"frame": "full"})  # type: ignore[arg-type]
    )
    moved = tiny_model.prepare(image).box
    assert moved.x0 == 0 and moved.width == pytest.approx(large.face.box.width)
    assert plain.face.box.x0 == large.face.box.x0 == full.face.box.x0 < -10
    assert plain.full is not None and stacked(plain).shape == (1, 64, 64, 3)
    assert tiny_model(portrait_path, speech(1)).full is None, "a face in the middle of its picture needs no other way"
    assert large.full is not None and large.full.box.x0 == pytest.approx(large.face.box.x0 * 256 / large.face.box.width)
    assert stacked(large).shape == (1, 256, 256, 3) and stacked(full).shape[:3] == (1, 512, 346)


def test_published_model_hands_its_flow_over(portrait_face: Face) -> None:
    """Latent flow that moves everything by a fixed way moves the photograph in the frame by as much."""
    model = Dawn(PaperBundle(SMALL).eval().requires_grad_(False), torch.device("cpu"))
    image = photograph(260, 280)
    face = placed(portrait_face, image, square(30, 20, 200))
    side = SMALL.unet.latent_size
    latent = torch.ones(2, 3, side, side)
    latent[:, :2] = identity_grid(side, side, latent).permute(2, 0, 1)
    latent[1, 0] -= 10 / 100
    motion = Motion(
        np.zeros((2, 6), np.float32), np.zeros((2, 2), np.float32), latent.flatten(1).numpy(), f"flow-{side}"
    )
    first, second = draw_frames(model.engine, face, motion, 64, FullFrame(image, face))
    centre = (slice(90, 150), slice(100, 160))
    assert np.abs(first[centre].astype(int) - image[centre]).mean() < 1
    assert np.abs(second[centre].astype(int) - np.roll(image, 10, axis=1)[centre]).mean() < 1


def test_command_line(run: Callable, out: Path, tmp_path: Path, portrait_path: Path, speech_path: Path) -> None:
    code, printed, errors = run("generate", portrait_path, speech_path, "--frame", "full", "--size", 400)
    assert (code, errors) == (0, "")
    assert "21 frames, 0.84 s, 400 x 400 px (photograph reduced from 512 x 512 px; --size" in printed
    result = decoded(out / "out.mp4")
    assert result["pixels"][0].shape == (400, 400, 3) and len(result["times"]) == 21
    true = np.asarray(Image.open(portrait_path).convert("RGB").resize((400, 400), Image.Resampling.LANCZOS))
    assert np.abs(result["pixels"][20][250:].astype(int) - true[250:]).mean() < 4, "below the crop, the photograph"
    with av.open(str(out / "out.mp4")) as container:
        assert "64 px square at 141 px in the photograph, photograph reduced" in container.metadata["comment"]
    (out / "out.mp4").unlink()
    with media.VideoWriter(tmp_path / "driving.mp4", 512, 512) as writer:
        for _ in range(3):
            writer.write(media.read_image(portrait_path))
    code, printed, errors = run("drive", portrait_path, tmp_path / "driving.mp4", "--frame", "full")
    assert (code, errors) == (0, "") and "3 frames, 0.12 s, 512 x 512 px\n" in printed
    (out / "out.mp4").unlink()
    refused(
        run("generate", portrait_path, speech_path, "--frame", "full", "--size", 128), out, "size 128", "256 to 2560"
    )
    assert run("generate", portrait_path, speech_path, "--frame", "whole")[0] == 2
