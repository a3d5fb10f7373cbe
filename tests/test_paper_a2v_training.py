"""The published recipe of the A2V network: its batches and losses, and a few steps at reduced width on made-up clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from dawn.checkpoint import load_mean_face, load_part, save_part
from dawn.config import LFGConfig, PaperLFGConfig, RegionsConfig, UNetConfig
from dawn.diffusion.gaussian import cosine_schedule, dynamic_threshold
from dawn.errors import CheckpointError, ConfigError, InputError
from dawn.face.geometry import apply_pose
from dawn.models.lite.lfg import LatentFlowGenerator
from dawn.models.paper.a2v import A2VUNet
from dawn.models.paper.conditions import MESH_OF_68, published_pose
from dawn.models.paper.face_mask import MaskEncoder, face_mask
from dawn.models.paper.lfg import PaperLFG
from dawn.preprocess.clips import PreparedClip, save_clip
from dawn.research.training.data import ClipStore
from dawn.research.training.loop import train
from dawn.research.training.motion_data import MotionStore
from dawn.research.training.paper.a2v import PaperA2VRecipe, PaperA2VTrainConfig, a2v_figures, change_colour, lip_mask
from dawn.research.training.paper.networks import MaskedUNet

SIZE_PX, SIDE, AUDIO, FRAMES = 64, 16, 8, 60
FRAME_SAMPLES = 640
GENERATOR = PaperLFGConfig(
    image_size_px=SIZE_PX,
    regions=RegionsConfig(count=3, width=4, depth=2, max_width=16),
    width=6,
    max_width=16,
    res_blocks=1,
    flow_width=6,
    flow_depth=2,
    flow_max_width=16,
)
UNET = UNetConfig(
    latent_size=SIDE,
    width=16,
    multipliers=(1, 2),
    source_size=16,
    mask_size=4,
    audio_size=AUDIO,
    heads=2,
    head_size=8,
    cross_heads=2,
    cross_head_size=4,
    stem_kernel=3,
    norm_groups=4,
)
QUICK = {
    "batch": 2,
    "log_every": 1,
    "sheet_every": 1000,
    "save_every": 1000,
    "precision": "fp32",
    "lr": 3e-3,
    "mask": "random",
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Loudness:
    """A speech encoder of a few lines: the loudness of every frame, spread over some numbers, none of them zero."""

    feature_size = AUDIO

    def encode(self, samples: Tensor, frame_count: int) -> Tensor:
        frames = samples[: frame_count * FRAME_SAMPLES].view(frame_count, FRAME_SAMPLES)
        return 1 + 4 * frames.square().mean(1, keepdim=True).sqrt() * torch.linspace(-0.9, 1, AUDIO)


def made_up_clip(index: int) -> PreparedClip:
    """A nodding mean face; in the pictures a blob sways along, and one row tells the number of the frame."""
    rng = np.random.default_rng(index)
    time = torch.arange(FRAMES) / 4 + index
    still = torch.zeros(FRAMES)
    pose = torch.stack((8 * time.sin(), 6 * time.cos(), still, still + 0.6, 0.05 * time.sin(), still), -1)
    landmarks = apply_pose(load_mean_face().expand(FRAMES, -1, -1), pose).numpy()
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX]
    sway_px = 9 * np.sin(time.numpy())[:, None, None]
    blob = np.exp(-((x - 32 - sway_px) ** 2 + (y - 32) ** 2) / 150)[..., None]
    frames = (60 + 40 * index + 120 * blob * np.array([1.0, 0.8, 0.5])).astype(np.uint8)
    frames[:, 0] = np.arange(FRAMES, dtype=np.uint8)[:, None, None]
    loud = np.repeat(0.1 * (1 + np.sin(2 * time.numpy())), FRAME_SAMPLES)
    samples = (loud * rng.normal(0, 1, len(loud))).clip(-1, 1).astype(np.float32)
    return PreparedClip(frames, landmarks.astype(np.float32), np.zeros((FRAMES, 52), np.float32), samples)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> MotionStore:
    folder = tmp_path_factory.mktemp("clips")
    for index in range(2):
        save_clip(folder / f"clip{index}.safetensors", made_up_clip(index), f"person{index}", "made-up.mp4")
    return MotionStore(ClipStore(folder), load_mean_face(), Loudness(), folder / "audio", 0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def generator_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lfg")
    torch.manual_seed(5)
    save_part(folder, "lfg", PaperLFG(GENERATOR), GENERATOR)
    return folder / "lfg.safetensors"


@pytest.fixture
def make(store: MotionStore, generator_file: Path) -> Any:
    """Settings that differ from ``QUICK`` → recipe, configuration."""

    def build(**changes: object) -> tuple[PaperA2VRecipe, PaperA2VTrainConfig]:
        config = PaperA2VTrainConfig.model_validate(QUICK | {"lfg": str(generator_file)} | changes)
        return PaperA2VRecipe(config, UNET, store, store), config

    return build


def frame_number(pictures: Tensor) -> Tensor:
    """The number that the first row of pictures (..., 3, R, R) tells."""
    return (pictures[..., 0, 0, 0] * 255).round().long()


# Settings


def test_settings_follow_the_stage() -> None:
    one, two = PaperA2VTrainConfig(), PaperA2VTrainConfig.model_validate({"stage": "2"})
    assert (one.steps, one.batch, one.shortest_frames, one.longest_frames) == (250_000, 20, 20, 20)
    assert (two.stage, two.steps, two.batch, two.shortest_frames, two.longest_frames) == (2, 125_000, 40, 30, 40)
    assert (one.lip_weight, PaperA2VTrainConfig(lip_loss="paper").lip_weight) == (0.15, 1)
    chosen = PaperA2VTrainConfig(stage=2, batch=3, longest_frames=33, lip_loss="paper", lip_weight=0.5)
    assert (chosen.batch, chosen.shortest_frames, chosen.longest_frames, chosen.lip_weight) == (3, 30, 33, 0.5)
    for wrong in ({"stage": 3}, {"stage": [1]}, {"lip_loss": "other"}, {"stage": 2, "longest_frames": 20}):
        with pytest.raises(ValidationError):
            PaperA2VTrainConfig.model_validate(wrong)


# Masks and colours


def test_lip_mask_is_the_box_of_the_lips() -> None:
    points = torch.zeros(2, 478, 3)
    lips = list(MESH_OF_68[48:67])
    points[:, lips] = torch.tensor([30.0, 50, 0])
    points[0, lips[0], :2] = torch.tensor([20.0, 44])
    points[0, lips[-1], :2] = torch.tensor([39.0, 66])
    points[:, MESH_OF_68[67], :2] = torch.tensor([90.0, 75])  # published without the last point
    mask = lip_mask(points, 80, 100, 16)
    assert mask.shape == (2, 16, 16) and mask.dtype == torch.bool
    wanted = torch.zeros(16, 16, dtype=torch.bool)
    wanted[8:15, 3:8] = True  # y 44 to 66 of 80, x 20 to 39 of 100, the far corner rounded up
    assert torch.equal(mask[0], wanted)
    assert mask[1].sum() == 4 and mask[1, 10:12, 4:6].all(), "another frame, another box"
    swapped = lip_mask(points, 80, 100, 16, swapped_sides=True)
    wanted = torch.zeros(16, 16, dtype=torch.bool)
    wanted[7:12, 4:9] = True
    assert torch.equal(swapped[0], wanted)


def test_colours_change_alike() -> None:
    images = 0.2 + 0.5 * torch.rand(5, 3, 8, 8, generator=seeded())
    assert torch.allclose(change_colour(images, torch.zeros(4)), images, atol=1e-6)
    assert torch.allclose(change_colour(images, torch.tensor([0.2, 0, 0, 0])), 1.2 * images, atol=1e-6)
    grey = change_colour(images, torch.tensor([0, 0, -1.0, 0]))
    luma = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    assert torch.allclose(grey, luma.expand_as(images), atol=1e-5)
    flat = change_colour(images, torch.tensor([0, -1.0, 0, 0]))
    assert torch.allclose(flat, luma.mean((2, 3), keepdim=True).expand_as(images), atol=1e-5), "each picture's own mean"
    turned = change_colour(images, torch.tensor([0, 0, 0, 0.04]))
    assert 0.005 < float((turned - images).abs().mean()) < 0.1
    assert torch.allclose(
        change_colour(images[2:3], torch.tensor([0.1, 0.1, 0.1, 0.1])),
        change_colour(images, torch.tensor([0.1, 0.1, 0.1, 0.1]))[2:3],
        atol=1e-6,
    )


# Losses


def loss_case() -> tuple[Tensor, ...]:
    """made, data, noise, time, lips."""
    made, noise = torch.randn(2, 2, 3, 4, 8, 8, generator=seeded())
    data = 2 * torch.rand(2, 3, 4, 8, 8, generator=seeded(1)) - 1
    lips = torch.rand(2, 4, 8, 8, generator=seeded(2)) < 0.2
    return made, data, noise, torch.tensor([100, 700]), lips


def test_loss_is_the_published_one() -> None:
    schedule, (made, data, noise, time, lips) = cosine_schedule(), loss_case()
    figures = a2v_figures(PaperA2VTrainConfig(), schedule, made, data, noise, time, lips)
    squared = (made - noise).double().square()
    chosen = sum(float(squared[b, :, t, y, x].sum()) for b, t, y, x in lips.nonzero().tolist())
    assert float(figures["lips"]) == pytest.approx(chosen / int(lips.sum()), rel=1e-5)
    level = schedule.alphas_cumprod.double()[time].view(2, 1, 1, 1, 1)
    estimate = data + ((1 - level) / level).sqrt() * (noise - made)
    off = (dynamic_threshold(estimate, 0.9) - data).square()
    assert float(figures["x0"]) == pytest.approx(float(off[:, :2].mean() + off[:, 2].mean()), rel=1e-4)
    loss = float(squared.mean()) + 0.15 * chosen / int(lips.sum()) + 0.15 * float(figures["x0"])
    assert float(figures["loss"]) == pytest.approx(loss, rel=1e-5)


def test_loss_of_the_paper() -> None:
    schedule, (made, data, noise, time, lips) = cosine_schedule(), loss_case()
    config = PaperA2VTrainConfig(lip_loss="paper", x0_weight=0)
    figures = a2v_figures(config, schedule, made, data, noise, time, lips)
    squared = (made - noise).square()
    weighted = squared + squared * lips[:, None].expand_as(squared)
    assert figures.keys() == {"loss", "epsilon", "lips"}
    assert float(figures["loss"]) == pytest.approx(float(weighted.mean()), rel=1e-5)


def test_the_true_noise_costs_nothing() -> None:
    _, data, noise, time, lips = loss_case()
    for form in ("published", "paper"):
        config = PaperA2VTrainConfig.model_validate({"lip_loss": form})
        made = a2v_figures(config, cosine_schedule(), noise, data, noise, time, lips)
        assert float(made["epsilon"]) == float(made["lips"]) == 0 and float(made["x0"]) < 1e-8
    nothing = a2v_figures(PaperA2VTrainConfig(), cosine_schedule(), data, data, noise, time, torch.zeros_like(lips))
    assert float(nothing["lips"]) == 0 and torch.isfinite(nothing["loss"]), "a mouth outside of the picture"


# Batches


def test_stage_1_starts_at_its_source(make: Any) -> None:
    recipe, _ = make()
    batch = recipe.batch(seeded(3))
    assert batch.frames.shape == (2, 20, 3, SIZE_PX, SIZE_PX) and batch.noise.shape == (2, 3, 20, SIDE, SIDE)
    assert torch.equal(batch.source, batch.frames[:, 0])
    numbers = frame_number(batch.frames)
    assert torch.equal(numbers, numbers[:, :1] + torch.arange(20))
    assert batch.lips.shape == (2, 20, SIDE, SIDE) and 0 < float(batch.lips.float().mean()) < 0.2
    assert (batch.time >= 0).all() and (batch.time < 1000).all() and batch.colour.any()
    same, other = recipe.batch(seeded(3)), recipe.batch(seeded(4))
    assert all(torch.equal(value, getattr(same, key)) for key, value in vars(batch).items())
    assert not torch.equal(batch.noise, other.noise)


def test_stage_2_takes_its_source_from_the_whole_video(make: Any) -> None:
    recipe, _ = make(stage=2, drop_condition=0, batch=1)
    lengths, outside, before = set(), [], []
    tracks = {int(255 * track.clip.frames([0])[0, 0, 63, 63]): track for track in recipe.tracks}
    for seed in range(16):
        batch = recipe.batch(seeded(seed))
        numbers, source = frame_number(batch.frames)[0], int(frame_number(batch.source)[0])
        lengths.add(len(numbers))
        assert torch.equal(numbers, numbers[0] + torch.arange(len(numbers)))
        outside.append(source not in numbers.tolist())
        before.append(source < int(numbers[0]))
        track = min(tracks.items(), key=lambda item: abs(item[0] - float(255 * batch.source[0, 0, 63, 63])))[1]
        pose = track.pose[numbers] - track.pose[source]
        torch.testing.assert_close(
            batch.condition[0, :, AUDIO : AUDIO + 6], pose, msg="pose is told against the source"
        )
        assert torch.equal(batch.box[0], track.box[source]) and torch.equal(batch.lips[0], track.lips[numbers])
    assert min(lengths) >= 30 and max(lengths) <= 40 and len(lengths) > 4
    assert set(outside) == set(before) == {True, False}


def test_conditions_are_dropped_frame_by_frame(make: Any) -> None:
    whole = make(drop_condition=0)[0].batch(seeded(1))
    holed = make(drop_condition=0.5)[0].batch(seeded(1))
    assert whole.condition.shape == (2, 20, AUDIO + 8) and (whole.condition[..., :AUDIO] != 0).all()
    gone = ~holed.condition.any(-1)
    assert torch.equal(holed.condition, torch.where(gone[..., None], 0, whole.condition)), "whole vectors, or nothing"
    assert gone.any(1).all() and not gone.all(1).any() and not torch.equal(gone[0], gone[1])
    usual = make()[0]
    share = torch.stack([~usual.batch(seeded(seed)).condition.any(-1) for seed in range(12)]).float().mean()
    assert 0.05 < float(share) < 0.16


def test_targets_are_the_generator_s_motion(make: Any, generator_file: Path) -> None:
    recipe, _ = make()
    batch = recipe.batch(seeded(2))
    motion, feature = recipe.targets(batch)
    generator = PaperLFG(GENERATOR).eval()
    load_part(generator_file.parent, "lfg", generator)
    with torch.no_grad():
        source, driving = (change_colour(x, batch.colour) for x in (batch.source[1:], batch.frames[1, 7:8]))
        flow = generator.motion(source, driving)
        torch.testing.assert_close(motion[1, :2, 7].permute(1, 2, 0), flow.grid[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(motion[1, 2, 7], 2 * flow.occlusion[0, 0] - 1, atol=1e-5, rtol=0)
        torch.testing.assert_close(feature[1], generator.encode(source).feature[0], atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in recipe.generator.parameters()) and not recipe.generator.training


def test_poses_are_those_of_generation(make: Any) -> None:
    track = make()[0].tracks[0]
    raw = published_pose(track.clip.landmarks, load_mean_face())
    assert track.pose.shape == (FRAMES, 6) and float((track.pose - raw)[5:-5, :3].abs().max()) < 0.5


# The mask encoder


def test_mask_encoders(make: Any, generator_file: Path, store: MotionStore) -> None:
    fixed, trained = (make(mask=kind)[0].networks["main"].mask for kind in ("random", "trained"))
    assert not any(p.requires_grad for p in fixed.parameters()) and all(p.requires_grad for p in trained.parameters())
    with pytest.raises(ConfigError, match="mask_size 4"):
        make(mask="published")
    config = PaperA2VTrainConfig(lfg=str(generator_file))
    wide = UNET.model_copy(update={"mask_size": 16})
    published = PaperA2VRecipe(config, wide, store).networks["main"]
    assert isinstance(published, MaskedUNet)
    assert float(published.mask.conv1.weight[0, 0, 0, 0].detach()) == pytest.approx(-0.188912, abs=1e-5)
    assert not any(p.requires_grad for p in published.mask.parameters())


# Refusals


def test_wrong_generators_are_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lfg is not set"):
        make(lfg="")
    file = tmp_path / "lfg.safetensors"
    with pytest.raises(CheckpointError, match=r"lfg\.json"):
        make(lfg=str(file))
    lite = LFGConfig(
        image_size_px=64,
        widths=(6, 8, 12),
        res_blocks=1,
        flow_width=8,
        flow_depth=2,
        flow_max_width=16,
        flow_head_width=8,
        flow_cells=16,
        detail=None,
    )
    save_part(tmp_path, "lfg", LatentFlowGenerator(lite), lite)
    with pytest.raises(CheckpointError, match="not a published generator"):
        make(lfg=str(file))
    save_part(tmp_path, "lfg", LatentFlowGenerator(lite), GENERATOR)
    with pytest.raises(CheckpointError, match="weights of another model"):
        make(lfg=str(file))
    large = GENERATOR.model_copy(update={"image_size_px": 128})
    save_part(tmp_path, "lfg", PaperLFG(large), large)
    with pytest.raises(CheckpointError, match="motion of side 32"):
        make(lfg=str(file))
    file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="safetensors"):
        make(lfg=str(file))


def test_clips_that_do_not_fit_are_refused(make: Any, generator_file: Path, store: MotionStore) -> None:
    with pytest.raises(InputError, match="61 frames"):
        make(longest_frames=61)
    config = PaperA2VTrainConfig(lfg=str(generator_file), mask="random")
    with pytest.raises(InputError, match="features of size 8: set audio_size 12"):
        PaperA2VRecipe(config, UNET.model_copy(update={"audio_size": 12}), store)


# Steps


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_loss_falls_on_one_batch(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, config = make(steps=30)
    assert recipe.betas == (0.9, 0.99)
    fixed = recipe.batch(seeded())
    fixed.time = torch.tensor([700, 300])
    monkeypatch.setattr(recipe, "batch", lambda generator: fixed)
    assert train(recipe, config, tmp_path) == 30
    log = [record for record in records(tmp_path) if "validation" not in record]
    assert all(np.isfinite(record["main_norm"]) for record in log)
    for figure in ("loss", "epsilon", "lips", "x0"):
        early, late = (np.mean([record[figure] for record in rows]) for rows in (log[:3], log[-3:]))
        assert late < 0.8 * early, (figure, early, late)


@pytest.mark.slow
def test_both_stages_leave_their_files(make: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    recipe, config = make(steps=1, mask="trained")
    start = {key: value.clone() for key, value in recipe.networks["main"].state_dict().items()}
    train(recipe, config, first)
    unet, mask = A2VUNet(UNET), MaskEncoder(out=UNET.mask_size)
    load_part(first, "unet", unet)
    load_part(first, "mask", mask)
    assert not torch.equal(mask.conv1.weight, start["mask.conv1.weight"]), "the encoder is trained along"
    assert UNetConfig.model_validate_json((first / "unet.json").read_text()) == UNET
    said = records(first)[-1]["validation"]
    assert said.keys() == {"loss", "epsilon", "lips", "x0"} and all(np.isfinite(value) for value in said.values())

    recipe, config = make(steps=1, stage=2, longest_frames=32, start=str(first / "unet.safetensors"))
    taken = recipe.networks["main"]
    for one, two in ((taken.unet, unet), (taken.mask, mask)):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    train(recipe, config, second)
    before, after = (load_file(folder / "mask.safetensors") for folder in (first, second))
    assert all(torch.equal(before[key], after[key]) for key in before), "a fixed encoder stays"
    before, after = (load_file(folder / "unet.safetensors") for folder in (first, second))
    assert sum(not torch.equal(before[key], after[key]) for key in before) > 0.9 * len(before)
    network = taken.eval()
    figures = recipe.validate(network)
    assert figures == recipe.validate(network) and figures != pytest.approx(said)
    (first / "mask.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"mask\.safetensors"):
        make(start=str(first / "unet.safetensors"))


@pytest.mark.slow
def test_resume_is_exact(make: Any, tmp_path: Path) -> None:
    settings = {"steps": 4, "mask": "trained", "stage": 2, "shortest_frames": 4, "longest_frames": 8}
    recipe, config = make(**settings)
    assert train(recipe, config, tmp_path / "straight") == 4

    def stop(step: int, figures: dict[str, float]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make(**settings)[0], config, tmp_path / "twice", stop)
    assert train(make(**settings)[0], config, tmp_path / "twice") == 4
    one, two = (torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("straight", "twice"))
    for part in ("ema", "networks"):
        a, b = (x[part] if part == "ema" else x[part]["main"] for x in (one, two))
        assert a.keys() == b.keys() and len(a) > 20
        assert not [name for name in a if not torch.equal(a[name], b[name])]
    moments = [state["optimizers"]["main"]["state"] for state in (one, two)]
    assert all(torch.equal(moments[0][i]["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i in moments[0])
    for file in ("unet", "mask"):
        a, b = (load_file(tmp_path / run / f"{file}.safetensors") for run in ("straight", "twice"))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_network_sees_face_and_conditions(make: Any) -> None:
    """Every input has an effect on the first pass, and gradients reach the mask encoder only where it is trained."""
    recipe, _ = make(mask="trained", shortest_frames=3, longest_frames=3)
    batch = recipe.batch(seeded())
    network = recipe.networks["main"]
    _, loss, figures = recipe.losses(recipe.networks, batch, 0)[0]
    loss.backward()
    assert network.mask.conv1.weight.grad is not None and network.mask.conv1.weight.grad.any()
    assert figures["loss"].requires_grad is False
    with torch.no_grad():
        data, feature = recipe.targets(batch)
        face = face_mask(batch.box, SIZE_PX)
        inputs = [data, batch.time, feature, face, batch.condition]
        base = network(*inputs)
        for place, changed in ((2, feature + 1), (3, 1 - face), (4, batch.condition + 1)):
            other = network(*[changed if i == place else value for i, value in enumerate(inputs)])
            assert float((other - base).abs().max()) > 1e-4, f"input {place} is not seen"
