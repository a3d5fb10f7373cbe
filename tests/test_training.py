"""Training: overrides, and each recipe for a few steps on clips made from the example portrait."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dawn.checkpoint import load_mean_face, save_part
from dawn.config import A2VConfig, AudioConfig, DetailConfig, FineConfig, LFGConfig, MotionSpaceConfig, PBNetConfig
from dawn.errors import CheckpointError, ConfigError
from dawn.face import mesh as lm
from dawn.models.audio.whisper import WhisperAudioEncoder
from dawn.models.lite.lfg import LatentFlowGenerator
from dawn.models.lite.motion_space import MotionSpace
from dawn.preprocess.clips import PreparedClip, save_clip
from dawn.preprocess.portrait import prepare_portrait
from dawn.preprocess.tracker import FaceTracker
from dawn.research.training.commands import fit_motion_space, split_overrides
from dawn.research.training.data import Clip, ClipStore, pick_opening_pair, random_look
from dawn.research.training.lite.a2v import A2VRecipe, A2VTrainConfig
from dawn.research.training.lite.detail import DetailRecipe, DetailTrainConfig
from dawn.research.training.lite.lfg import LFGRecipe, LFGTrainConfig
from dawn.research.training.lite.pbnet import PBNetRecipe, PBNetTrainConfig
from dawn.research.training.loop import Recipe, TrainConfig, train
from dawn.research.training.losses import crispness_error
from dawn.research.training.motion_data import MotionStore
from dawn.structs import FRAME_SAMPLES, LUMA

PORTRAIT = Path(__file__).parents[1] / "examples" / "portrait.png"
SIZE_PX = 64
FRAMES = 34
LFG = LFGConfig(
    image_size_px=SIZE_PX,
    widths=(6, 8, 12),
    res_blocks=1,
    flow_width=8,
    flow_depth=2,
    flow_max_width=16,
    flow_head_width=8,
    flow_cells=16,
)
WHISPER = AudioConfig(width=64, depth=1, layers_used=(1,), window_s=2.0, overlap_s=1.0)
MOTION = MotionSpaceConfig()
A2V = A2VConfig(
    audio_size=128, motion_size=MOTION.size, source_size=MOTION.size + 2, width=32, layers=2, heads=2, window_frames=6
)
PB = PBNetConfig(
    audio_size=128, width=32, layers=1, heads=2, latent_size=4, window_frames=10, latent_smoothing_frames=(2.0, 4.0)
)
FINE = LFG.model_copy(update={"fine": FineConfig(painter=DetailConfig(mouth_width=8, eye_width=8, res_blocks=1))})
QUICK = {"batch": 4, "warmup_steps": 1, "log_every": 1, "sheet_every": 1000, "save_every": 1000, "precision": "fp32"}

PICTURES = ("lfg", "detail", "fine")
"""Parts whose runs are looked at."""

MakeRecipe = Callable[..., Recipe]


def file_of(part: str) -> str:
    """The painter and the fine stage are parts of the generator."""
    return "lfg" if part in PICTURES else part


def test_lists_and_null_reach_the_networks() -> None:
    _, model = split_overrides("lfg", {"model.widths": "[8, 12, 16]", "model.detail": "null"})
    assert model.widths == (8, 12, 16) and model.detail is None
    with pytest.raises(ConfigError, match="widths"):
        split_overrides("lfg", {"model.widths": "[8, 12"})


def test_the_painter_needs_a_generator(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start"):
        DetailRecipe(DetailTrainConfig(), LFG, clips, None)
    with pytest.raises(ConfigError, match="detail"):
        DetailRecipe(DetailTrainConfig(start="x"), LFG.model_copy(update={"detail": None}), clips, None)
    save_part(tmp_path, "lfg", torch.nn.Linear(2, 2), LFG)
    with pytest.raises(CheckpointError, match="not a generator"):
        DetailRecipe(DetailTrainConfig(start=str(tmp_path / "lfg.safetensors")), LFG, clips, None)


@pytest.mark.parametrize("part", ["lfg", "a2v", "pbnet"])
def test_overrides_reach_their_place(part: str) -> None:
    width = "flow_width" if part == "lfg" else "width"
    config, model = split_overrides(part, {"steps": "7", "lr": "1e-3", f"model.{width}": "24"})
    assert (config.steps, config.lr) == (7, 1e-3)
    assert getattr(model, width) == 24


@pytest.mark.parametrize(
    "wrong",
    [{"stepz": "7"}, {"model.bogus": "1"}, {"steps": "many"}, {"steps": "0"}, {"width": "3"}, {"models.width": "3"}],
)
@pytest.mark.parametrize("part", ["lfg", "a2v", "pbnet"])
def test_unknown_overrides_are_refused(part: str, wrong: dict[str, str]) -> None:
    key = next(iter(wrong)).removeprefix("model.")
    with pytest.raises(ConfigError, match=key):
        split_overrides(part, wrong)


def make_clip(face_pixels: np.ndarray, landmarks: np.ndarray, seed: int) -> PreparedClip:
    """A head that sways, blinks and talks. Pixels follow the sway only, which is enough to learn something."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 6)
    time = np.arange(FRAMES)
    sway_px = np.round(3 * np.sin(time / 5 + phase)).astype(int)
    points = np.repeat(landmarks[None], FRAMES, 0) + rng.normal(0, 0.002, (FRAMES, 478, 3))
    points[..., 0] += (sway_px * 2 / SIZE_PX)[:, None]
    gape = 0.03 * (1 + np.sin(time / 2 + phase))
    points[:, lm.LOWER_LIP, 1] += gape[:, None]
    frames = np.stack([np.roll(face_pixels, shift, 1) for shift in sway_px])
    loud = np.repeat(0.02 + gape, FRAME_SAMPLES)
    samples = (loud * rng.normal(0, 1, FRAMES * FRAME_SAMPLES)).clip(-1, 1).astype(np.float32)
    return PreparedClip(frames, points.astype(np.float32), np.zeros((FRAMES, 52), np.float32), samples)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prepared clips of two people."""
    folder = tmp_path_factory.mktemp("clips")
    with FaceTracker() as tracker, Image.open(PORTRAIT) as picture:
        face = prepare_portrait(np.asarray(picture.convert("RGB")), SIZE_PX, tracker, load_mean_face())
    for index, person in enumerate("aab"):
        made = make_clip(face.crop, face.landmarks * (1 - 0.05 * (person == "b")), index)
        save_clip(folder / f"clip{index}.safetensors", made, person, f"clip{index}.mp4")
    return folder


@pytest.fixture(scope="module")
def recipes(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[MakeRecipe, type[TrainConfig]]]:
    """Each part's name → (recipe for a configuration, kind of configuration)."""
    folder = tmp_path_factory.mktemp("material")
    torch.manual_seed(0)
    encoder = WhisperAudioEncoder(WHISPER).eval()
    motion = fit_motion_space(ClipStore(clips), folder)
    assert isinstance(motion, MotionSpace)
    store = MotionStore(ClipStore(clips), load_mean_face(), encoder, folder / "audio", 2)
    assert (folder / "audio" / "audio_1.safetensors").is_file()
    save_part(folder, "lfg", LatentFlowGenerator(LFG.model_copy(update={"detail": None})), LFG)
    EXTRA["detail"]["start"] = EXTRA["fine"]["start"] = str(folder / "lfg.safetensors")
    return {
        "lfg": (lambda config: LFGRecipe(config, LFG, clips, clips), LFGTrainConfig),
        "detail": (lambda config: DetailRecipe(config, LFG, clips, clips), DetailTrainConfig),
        "fine": (lambda config: DetailRecipe(config, FINE, clips, clips, "fine"), DetailTrainConfig),
        "a2v": (lambda config: A2VRecipe(config, A2V, motion, store, store), A2VTrainConfig),
        "pbnet": (lambda config: PBNetRecipe(config, PB, motion, store, store), PBNetTrainConfig),
    }


EXTRA: dict[str, dict[str, Any]] = {
    "detail": {"adversarial_from": 10**6, "lr": 3e-3, "crispness_weight": 0.1},
    "fine": {"adversarial_from": 10**6, "lr": 3e-3},
    "lfg": {"perceptual_weight": 0, "adversarial_from": 10**6, "lr": 3e-3},
    "a2v": {"lr": 3e-3, "window_frames": 24},
    "pbnet": {"lr": 3e-3, "window_frames": 24, "long_frames": 30},
}


def records(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "figure"),
    [("lfg", "pixel"), ("detail", "mouth_pixel"), ("fine", "mouth_pixel"), ("a2v", "flow"), ("pbnet", "error")],
)
def test_loss_falls_on_one_batch(
    part: str, figure: str, recipes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, kind = recipes[part]
    config = kind(steps=40, **QUICK, **EXTRA[part])
    recipe = make(config)
    fixed = recipe.batch(torch.Generator().manual_seed(0))
    monkeypatch.setattr(recipe, "batch", lambda generator: fixed)
    assert train(recipe, config, tmp_path) == 40
    log = [r for r in records(tmp_path) if "validation" not in r]
    assert [r["step"] for r in log] == list(range(1, 41))
    early, late = (np.mean([r[figure] for r in rows]) for rows in (log[:3], log[-3:]))
    assert late < 0.8 * early, (early, late)
    assert all(np.isfinite(r["main_norm"]) for r in log)


def state(out: Path) -> dict[str, torch.Tensor]:
    """Everything of a run that is a tensor, by a flat name."""
    flat: dict[str, torch.Tensor] = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            flat[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}/{key}", item)

    walk("", torch.load(out / "state.pt", weights_only=True))
    return flat


@pytest.mark.slow
@pytest.mark.parametrize("part", ["lfg", "detail", "fine", "a2v", "pbnet"])
def test_resume_is_exact(part: str, recipes: dict, tmp_path: Path) -> None:
    make, kind = recipes[part]
    extra = EXTRA[part] | ({"adversarial_from": 2} if part in PICTURES else {})
    config = kind(steps=6, **QUICK, **extra)
    assert train(make(config), config, tmp_path / "straight") == 6

    def stop(step: int, figures: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make(config), config, tmp_path / "twice", stop)
    assert train(make(config), config, tmp_path / "twice") == 6
    straight, twice = state(tmp_path / "straight"), state(tmp_path / "twice")
    assert straight.keys() == twice.keys() and len(straight) > 20
    different = [name for name in straight if not torch.equal(straight[name], twice[name])]
    assert not different
    one, two = (load_file(tmp_path / run / f"{file_of(part)}.safetensors") for run in ("straight", "twice"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["lfg", "detail", "fine", "a2v", "pbnet"])
def test_a_run_leaves_its_files(part: str, recipes: dict, tmp_path: Path) -> None:
    make, kind = recipes[part]
    config = kind(steps=2, **QUICK | {"log_every": 2}, **EXTRA[part])
    train(make(config), config, tmp_path)
    figures, validation = records(tmp_path)
    assert figures["step"] == validation["step"] == 2
    assert figures["s_per_step"] > 0
    said = validation["validation"]
    assert isinstance(said, dict) and said and all(np.isfinite(value) for value in said.values())
    assert all((tmp_path / f"{file_of(part)}.{kind}").is_file() for kind in ("json", "safetensors"))
    sheet = tmp_path / "sheet_000002.png"
    assert sheet.is_file() == (part in PICTURES)
    if part in PICTURES:
        with Image.open(sheet) as picture:
            windows = 0 if part == "lfg" else 6 * 64
            assert picture.size == (3 * SIZE_PX, 5 * SIZE_PX + windows)
    with pytest.raises(CheckpointError, match="cannot resume"):
        other = kind(steps=3, **QUICK, **EXTRA[part])
        recipe = make(other)
        recipe.networks["main"] = torch.nn.Linear(2, 2)
        train(recipe, other, tmp_path)


def test_crispness_asks_for_edges_and_not_for_their_places() -> None:
    sharp = torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(2))
    soft = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1).requires_grad_()
    error = crispness_error(soft, sharp)
    assert float(crispness_error(sharp.roll(5, -1)[..., 6:], sharp[..., 1:-5])) < 0.01 < 0.5 < error.item()
    error.backward()
    with torch.no_grad():
        assert float(crispness_error(soft - 0.1 * soft.grad / soft.grad.std(), sharp)) < error.item()


def test_looks_change_a_share_of_the_pairs_and_both_frames_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    single = torch.rand(200, 1, 3, 16, 16, generator=generator)
    images = single.expand(-1, 2, -1, -1, -1)
    looked = random_look(images, generator)
    assert looked.shape == images.shape and looked.min() >= 0 and looked.max() <= 1
    torch.testing.assert_close(looked[:, 0], looked[:, 1])
    same = (looked == images).flatten(1).all(1)
    # (1 - 0.12) (1 - 0.15) (1 - 0.12) = 0.66 keep their looks.
    assert 0.55 < same.float().mean() < 0.77
    ratio = looked[:, 0] / looked[:, 0].mul(torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True).clamp_min(1e-6)
    grey = ratio.flatten(2).std(2).amax(1) < 0.02
    assert 0.03 < grey.float().mean() < 0.25 and not (grey & same).any()


def test_paintings_are_flat_between_hard_edges() -> None:
    from dawn.research.training.data import _paint_flat

    step = torch.zeros(1, 3, 12, 12)
    step[..., 6:] = 1
    torch.testing.assert_close(_paint_flat(step), step)
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert _paint_flat(noise).var() < 0.5 * noise.var()


def test_pairs_for_the_painter_shut_lips_and_open_them() -> None:
    points = torch.zeros(100, 478, 3)
    points[:, lm.INNER_LIP_PAIRS[1][1], 1] = torch.linspace(0, 1, 100)
    clip = Clip(Path("none"), "nobody", points, torch.zeros(0))
    generator = torch.Generator().manual_seed(0)
    driving = np.array([pick_opening_pair(clip, generator)[1] for _ in range(400)])
    # Of eight random frames the widest is beyond 70 with a chance of 0.94, the one that is most shut below 30 as often.
    assert 0.3 < (driving > 70).mean() < 0.75 and 0.1 < (driving < 30).mean() < 0.5
