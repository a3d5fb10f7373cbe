"""Training the sync judge: material, losses, and whole runs on drawn clips whose mouths open with the loudness."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dawn.checkpoint import load_mean_face
from dawn.config import SyncJudgeConfig
from dawn.errors import CheckpointError, ConfigError, InputError
from dawn.face.geometry import apply_pose
from dawn.measures.sync import load_judge, score_clip
from dawn.models.judges.sync import SyncJudge, crop_mouths
from dawn.preprocess.clips import PreparedClip, save_clip
from dawn.research.training.commands import run_training, split_overrides
from dawn.research.training.data import ClipStore
from dawn.research.training.loop import train
from dawn.research.training.sync import (
    MouthStore,
    SyncRecipe,
    SyncTrainConfig,
    another_room,
    contrast,
    held_out_people,
    lag_loss,
    looked_at,
)

MODEL = SyncJudgeConfig(
    mouth_size_px=16, widths=(8, 12, 16), sound_widths=(8, 12, 16), hidden=32, embedding=16, dropout=0
)
FRAMES = 34
SIZE_PX = 64
QUICK = {
    "batch": 8,
    "group": 2,
    "held_out": 1,
    "warmup_steps": 1,
    "log_every": 1,
    "sheet_every": 1000,
    "save_every": 1000,
    "precision": "fp32",
    "lr": 5e-3,
}


def drawn_clip(seed: int) -> PreparedClip:
    """A dark disc that grows with the loudness, on a face that sways."""
    rng = np.random.default_rng(seed)
    loud = np.clip(np.convolve(rng.uniform(-0.6, 1.2, FRAMES + 4), np.ones(3) / 3, "same")[2:-2], 0, 1)
    time = torch.arange(FRAMES)
    pose = torch.tensor([0.0, 0, 0, 0.6, 0, -0.1]).repeat(FRAMES, 1)
    pose[:, 4] += 0.03 * torch.sin(time / 5 + seed)
    landmarks = apply_pose(load_mean_face(), pose).numpy()
    axis = (np.arange(SIZE_PX) + 0.5) * 2 / SIZE_PX - 1
    centre = landmarks[:, [61, 291], :2].mean(1)
    away = np.hypot(
        axis[None, None, :] - centre[:, 0, None, None], (axis[None, :, None] - centre[:, 1, None, None]) * 1.5
    )
    grey = np.where(away < 0.05 + 0.2 * loud[:, None, None], 40, 170) + rng.normal(0, 4, away.shape)
    frames = np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, -1)
    samples = np.repeat(0.005 + 0.2 * loud, 640) * rng.normal(0, 1, FRAMES * 640)
    return PreparedClip(frames, landmarks, np.zeros((FRAMES, 52), np.float32), samples.clip(-1, 1).astype(np.float32))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine clips of three people, one of unknown sync, one without sound."""
    folder = tmp_path_factory.mktemp("clips")
    for index, person in enumerate("aaaabbbcc"):
        save_clip(folder / f"clip{index}.safetensors", drawn_clip(index), person, "drawn")
    save_clip(folder / "long__a.safetensors", drawn_clip(20), "a", "drawn")
    silent = drawn_clip(21)
    save_clip(
        folder / "mute.safetensors",
        PreparedClip(silent.frames, silent.landmarks, silent.blendshapes, np.zeros(0, np.float32)),
        "b",
        "drawn",
    )
    return folder


def make(config: SyncTrainConfig, clips: Path, validation: Path | None = None) -> SyncRecipe:
    return SyncRecipe(config, MODEL, clips, validation, clips / "cache")


def test_only_clips_with_their_own_sound_are_used(clips: Path, tmp_path: Path) -> None:
    store = MouthStore(ClipStore(clips), tmp_path / "mouths.safetensors", 16, 29, ("long__",))
    assert [clip.path.stem for clip in store.clips] == [f"clip{i}" for i in range(9)]
    assert all(m.shape == (FRAMES, 24, 24) and m.dtype == torch.uint8 for m in store.mouths)
    again = MouthStore(ClipStore(clips), tmp_path / "mouths.safetensors", 16, 29, ("long__",))
    assert all(torch.equal(a, b) for a, b in zip(store.mouths, again.mouths, strict=True))
    with pytest.raises(InputError, match="40 frames"):
        MouthStore(ClipStore(clips), tmp_path / "none.safetensors", 16, 40, ())


def test_people_held_out_are_not_trained_on(clips: Path) -> None:
    recipe = make(SyncTrainConfig(**QUICK), clips)
    assert held_out_people(recipe.data, 1) == ["b"]  # three clips, the mean
    generator = torch.Generator().manual_seed(0)
    seen = {int(index) for _ in range(20) for index in recipe.batch(generator).clips}
    assert {recipe.data.clips[index].person for index in seen} == {"a", "c"}
    assert {recipe.data.clips[index].person for index in recipe.watched_clips} == {"b"}
    watched = make(SyncTrainConfig(**QUICK), clips, clips)
    assert len(watched.watched_clips) == 9 and bool((watched.weight > 0).all())
    with pytest.raises(ConfigError, match="held_out 3"):
        make(SyncTrainConfig(**QUICK | {"held_out": 3}), clips)
    with pytest.raises(ConfigError, match="batch 7"):
        make(SyncTrainConfig(**QUICK | {"batch": 7}), clips)


def test_a_group_is_one_person(clips: Path) -> None:
    recipe = make(SyncTrainConfig(**QUICK | {"batch": 9, "group": 3, "held_out": 0}), clips)
    for seed in range(10):
        batch = recipe.batch(torch.Generator().manual_seed(seed))
        assert batch.mouths.shape == (9, 29, 16, 16) and batch.samples.shape == (9, 29 * 640)
        for group in batch.clips.view(3, 3).tolist():
            assert len({recipe.data.clips[index].person for index in group}) == 1
            if recipe.data.clips[group[0]].person != "c":  # who has two clips only
                assert len(set(group)) == 3


def test_training_looks_at_the_same_mouth_as_judging() -> None:
    clip, mean_face = drawn_clip(0), load_mean_face()
    frames = (clip.frames * 0.2 + np.linspace(0, 180, SIZE_PX)[:, None]).astype(np.uint8)
    direct = crop_mouths(frames, clip.landmarks, mean_face, 16)
    kept = crop_mouths(frames, clip.landmarks, mean_face, 24, 1.2 * 1.2)
    assert float((looked_at(kept[None], 16, None)[0] - direct).abs().mean()) < 0.006
    assert float(direct.std()) > 0.05
    changed = looked_at(kept[None], 16, torch.Generator().manual_seed(0))[0]
    assert float((changed - direct).abs().mean()) > 0.02


def test_another_room_sounds_different_at_the_same_time() -> None:
    sound = torch.zeros(16_000)
    sound[8_000:8_400] = torch.randn(400, generator=torch.Generator().manual_seed(0)) / 5
    for seed in range(8):
        other = another_room(sound, torch.Generator().manual_seed(seed))
        assert other.shape == sound.shape and torch.isfinite(other).all() and not torch.equal(other, sound)
        loudest = other.square().unfold(0, 400, 200).sum(1).argmax() * 200
        assert abs(int(loudest) - 8_000) <= 400


def test_contrast_asks_only_about_moments_that_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = F.normalize(torch.randn(4, 12, 16, generator=generator), dim=-1)
    number, sharp = torch.arange(4), torch.tensor(60.0)
    loss, right = contrast(seen, seen, sharp, number, 2)
    assert float(loss) < 1e-3 and float(right) == 1
    loss, right = contrast(seen, seen.roll(4, 1), sharp, number, 2)
    assert float(loss) > 10 and float(right) == 0
    # Two frames on is too near to be wrong: alike vectors there cost nothing, three frames on they do.
    for apart, harmless in ((2, True), (3, False)):
        alike = seen.clone()
        alike[:, apart] = alike[:, 0]
        loss, _ = contrast(alike, alike, sharp, number, 2)
        assert (float(loss) < 1e-3) == harmless
    # A clip drawn twice is no negative of itself; other people's clips never are.
    for clips, group, harmless in (((7, 7), 2, True), ((7, 8), 2, False), ((7, 8), 1, True)):
        loss, _ = contrast(seen[[0, 0]], seen[[0, 0]], sharp, torch.tensor(clips), group)
        assert (float(loss) < 1e-3) == harmless


def test_the_lag_loss_wants_its_minimum_in_the_middle() -> None:
    seen = F.normalize(torch.randn(4, 24, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    sharp = torch.tensor(20.0)
    assert float(lag_loss(seen, seen, sharp)) < 0.05
    assert float(lag_loss(seen, seen.roll(5, 1), sharp)) > 5


def test_overrides_reach_the_judge() -> None:
    config, model = split_overrides("sync", {"steps": "7", "group": "2", "model.embedding": "32"})
    assert (config.steps, config.group, model.embedding) == (7, 2, 32)
    with pytest.raises(ConfigError, match="embeding"):
        split_overrides("sync", {"model.embeding": "32"})


def records(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_loss_falls_on_one_batch(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SyncTrainConfig(steps=40, **QUICK)
    recipe = make(config, clips)
    fixed = recipe.batch(torch.Generator().manual_seed(0))
    monkeypatch.setattr(recipe, "batch", lambda generator: fixed)
    assert train(recipe, config, tmp_path) == 40
    log = [r for r in records(tmp_path) if "validation" not in r]
    assert [r["step"] for r in log] == list(range(1, 41))
    for figure in ("contrast", "lag"):
        early, late = (np.mean([r[figure] for r in rows]) for rows in (log[:3], log[-3:]))
        assert late < 0.8 * early, (figure, early, late)
    assert all(np.isfinite(r["main_norm"]) for r in log)


@pytest.mark.slow
def test_resume_is_exact(clips: Path, tmp_path: Path) -> None:
    config = SyncTrainConfig(steps=6, **QUICK)
    assert train(make(config, clips), config, tmp_path / "straight") == 6

    def stop(step: int, figures: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make(config, clips), config, tmp_path / "twice", stop)
    assert train(make(config, clips), config, tmp_path / "twice") == 6
    one, two = (load_file(tmp_path / run / "sync.safetensors") for run in ("straight", "twice"))
    assert len(one) > 20 and all(torch.equal(one[name], two[name]) for name in one)
    states = [torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("straight", "twice")]
    for part in ("networks", "ema"):
        first, second = (s[part]["main"] if part == "networks" else s[part] for s in states)
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_short_run_learns_to_hear_what_it_sees(clips: Path, tmp_path: Path) -> None:
    """The whole way: the command's run, its files, and a judge that finds the offset of a person it never saw."""
    overrides = {key: str(value) for key, value in QUICK.items()} | {
        "steps": "150",
        "log_every": "50",
        "ema_decay": "0.95",
    }
    overrides |= {
        "model.mouth_size_px": "16",
        "model.widths": "[8, 12, 16]",
        "model.sound_widths": "[8, 12, 16]",
        "model.hidden": "32",
        "model.embedding": "16",
    }
    out = tmp_path / "run"
    assert run_training("sync", clips, out, overrides=overrides) == 150
    assert (tmp_path / "mouth_cache" / f"{clips.name}.safetensors").is_file()
    assert {"right_3", "right_5", "right_10", "offset", "confidence", "offset_near"} == records(out)[-1][
        "validation"
    ].keys()
    judge = load_judge(out / "sync.safetensors")
    clip = drawn_clip(5)  # of the person held out
    true = score_clip(judge, clip.frames, clip.landmarks, clip.samples)
    assert abs(true.offset_frames) <= 1 and true.confidence > 0.1
    late = score_clip(judge, clip.frames[6:], clip.landmarks[6:], clip.samples[: -6 * 640])
    assert abs(late.offset_frames - 6) <= 1
    config = SyncTrainConfig(steps=2, **QUICK)
    recipe = make(config, clips)
    recipe.networks["main"] = SyncJudge(MODEL.model_copy(update={"embedding": 8}))
    with pytest.raises(CheckpointError, match="cannot resume"):
        train(recipe, config, out)
