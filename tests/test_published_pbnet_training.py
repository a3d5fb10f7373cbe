"""Training the published PBNet on small invented heads."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dawn.checkpoint import load_mean_face, load_part
from dawn.config import PublishedPBNetConfig
from dawn.errors import ConfigError, InputError
from dawn.face.geometry import apply_pose
from dawn.models.paper.pbnet import PBNet, denormalise_pose, normalise_pose
from dawn.research.training.loop import train
from dawn.research.training.motion_data import MotionStore
from dawn.research.training.paper.pbnet import (
    HeadTrack,
    PublishedPBNetRecipe,
    PublishedPBNetTrainConfig,
    SequenceDiscriminator,
    head_tracks,
    kl_ramp,
)

AUDIO = 8
SMALL = {
    "width": 16,
    "inner": 32,
    "latent_size": 8,
    "audio_size": AUDIO,
    "audio_width": 16,
    "heads": 4,
    "head_size": 8,
    "bias_buckets": 16,
    "bias_max_distance": 16,
    "window_frames": 12,
}
QUICK = {
    "batch": 4,
    "warmup_steps": 1,
    "log_every": 1,
    "sheet_every": 1000,
    "save_every": 1000,
    "precision": "fp32",
    "window_frames": 32,
    "discriminator_width": 8,
    "lr": 3e-3,
}


def tracks(outputs: int, lengths: tuple[int, ...] = (60, 41, 20)) -> list[HeadTrack]:
    """Heads that nod, or eyes that narrow, with the loudness of their sound."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in lengths:
        loud = torch.sin(torch.arange(length) / 4 + 6 * torch.rand(1, generator=generator))
        audio = [
            loud[:, None] * torch.linspace(-1, 1, AUDIO) + 0.1 * torch.randn(length, AUDIO, generator=generator)
            for _ in range(2)
        ]
        if outputs == 6:
            pose = loud[:, None] * torch.tensor([30.0, 40.0, 20.0, 1e-5, 8.0, 5.0])
            state = normalise_pose(pose + torch.tensor([3.0, -5.0, 0.0, 4.8e-4, 56.0, 65.0]))
        else:
            state = 0.3 + 0.15 * loud[:, None] * torch.tensor([1.0, 0.8])
        made.append(HeadTrack(state, audio))
    return made


def recipe(outputs: int, **changes: object) -> tuple[PublishedPBNetRecipe, PublishedPBNetTrainConfig]:
    config = PublishedPBNetTrainConfig.model_validate(QUICK | {"steps": 40, "kl_from": 5, "kl_full": 20} | changes)
    model = PublishedPBNetConfig.model_validate(SMALL | {"outputs": outputs})
    return PublishedPBNetRecipe(config, model, tracks(outputs)), config


def test_kl_weight_rises_late_and_linearly() -> None:
    config = PublishedPBNetTrainConfig(kl_from=100, kl_full=300)
    assert [kl_ramp(step, config) for step in (0, 100, 150, 200, 300, 9999)] == [0, 0, 0.25, 0.5, 1, 1]


def test_batches_start_at_their_first_frame() -> None:
    made, _ = recipe(2)
    batch = made.batch(torch.Generator().manual_seed(3))
    assert batch.change.shape == (4, 32, 2) and batch.audio.shape == (4, 32, AUDIO)
    assert not batch.change[:, 0].any()
    many = [made.batch(torch.Generator().manual_seed(seed)) for seed in range(8)]
    padded = [(b.change[i], b.valid[i]) for b in many for i in range(4) if not b.valid[i].all()]
    assert padded, "the short track was never drawn"
    for change, valid in padded:
        assert int(valid.sum()) == 20 and not change[~valid].any() and change[valid].any()


def test_each_network_learns_from_its_own_loss_only() -> None:
    made, _ = recipe(6, kl_weight=0.0)
    batch = made.batch(torch.Generator().manual_seed(0))
    main, discriminator = made.networks["main"], made.networks["discriminator"]
    torch.manual_seed(1)
    (first, loss, figures), (second, critic, _) = made.losses(made.networks, batch, 0)
    assert (first, second) == ("main", "discriminator")
    critic.backward(retain_graph=True)
    assert all(p.grad is None for p in main.parameters()), "the discriminator's loss reaches the network"
    assert all(p.grad is not None for p in discriminator.parameters())
    discriminator.zero_grad(set_to_none=True)
    loss.backward()
    assert all(p.grad is None for p in discriminator.parameters()), "the network's loss reaches the discriminator"
    decoder = cast(PBNet, main).decoder
    assert decoder.motion_out.weight.grad is not None and bool(decoder.motion_out.weight.grad.any())
    torch.testing.assert_close(loss, figures["error"] + 0.6 * figures["adversary"])


def test_without_adversary_there_is_one_update() -> None:
    made, _ = recipe(2, adversarial_weight=0.0)
    assert list(made.networks) == ["main"]
    updates = made.losses(made.networks, made.batch(torch.Generator().manual_seed(0)), 30)
    assert [name for name, _, _ in updates] == ["main"]


@pytest.mark.parametrize("frames", [24, 32, 200])
def test_discriminator_judges_stretches(frames: int) -> None:
    verdict = SequenceDiscriminator(6, 4)(torch.randn(2, frames, 6, generator=torch.Generator().manual_seed(0)))
    assert verdict.shape == (2, frames // 8 - 2)


def test_prepared_clips_become_tracks() -> None:
    mean_face = load_mean_face()
    yaw = torch.linspace(-10, 10, 30)
    pose = torch.stack((yaw, 0 * yaw, 0 * yaw, 0 * yaw + 0.6, 0 * yaw, 0 * yaw), -1)
    clip = SimpleNamespace(landmarks=apply_pose(mean_face.expand(30, -1, -1), pose))
    features = [[torch.zeros(30, AUDIO)], [torch.ones(30, AUDIO)]]
    store = cast(MotionStore, SimpleNamespace(sequences=[SimpleNamespace(clip=clip)], features=features))
    (track,) = head_tracks(store, mean_face, 6)
    assert len(track) == 30 and len(track.audio) == 2
    made = denormalise_pose(track.state)
    torch.testing.assert_close(made[5:-5, 0], yaw[5:-5], atol=0.05, rtol=0)
    assert float(made[15, 3]) == pytest.approx(4.79e-4, rel=0.02)
    (eyes,) = head_tracks(store, mean_face, 2)
    assert eyes.state.shape == (30, 2) and float(eyes.state.min()) > 0.05
    with pytest.raises(ConfigError, match="8 outputs"):
        head_tracks(store, mean_face, 8)


def test_material_that_does_not_fit_is_refused() -> None:
    model = PublishedPBNetConfig.model_validate(SMALL | {"outputs": 6})
    config = PublishedPBNetTrainConfig.model_validate(QUICK)
    with pytest.raises(InputError, match="no motion"):
        PublishedPBNetRecipe(config, model, [])
    with pytest.raises(InputError, match="6 outputs"):
        PublishedPBNetRecipe(config, model, tracks(2))


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [6, 2])
def test_error_falls(outputs: int, tmp_path: Path) -> None:
    made, config = recipe(outputs, adversarial_weight=0.01)
    assert train(made, config, tmp_path) == 40
    log = [r for r in records(tmp_path) if "validation" not in r]
    early, late = (np.mean([r["error"] for r in rows]) for rows in (log[:3], log[-3:]))
    assert late < 0.5 * early, (early, late)
    assert all(np.isfinite([r["main_norm"], r["discriminator_norm"], r["critic"], r["kl"]]).all() for r in log)
    said = records(tmp_path)[-1]["validation"]
    assert set(said) == {"error", "spread_made", "spread_true", "speed_made", "speed_true"}
    assert all(np.isfinite(value) for value in said.values())
    network = PBNet(made.model_config)
    load_part(tmp_path, {6: "pbnet_pose", 2: "pbnet_blink"}[outputs], network)


@pytest.mark.slow
def test_resume_is_exact(tmp_path: Path) -> None:
    made, config = recipe(2, steps=8)
    assert train(made, config, tmp_path / "straight") == 8

    def stop(step: int, figures: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe(2, steps=8)[0], config, tmp_path / "twice", stop)
    assert train(recipe(2, steps=8)[0], config, tmp_path / "twice") == 8
    states = [torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("straight", "twice")]
    for name in ("main", "discriminator"):
        one, two = (state["networks"][name] for state in states)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        moments = [state["optimizers"][name]["state"] for state in states]
        for index, values in moments[0].items():
            assert all(torch.equal(value, moments[1][index][key]) for key, value in values.items())
    one, two = (load_file(tmp_path / run / "pbnet_blink.safetensors") for run in ("straight", "twice"))
    assert all(torch.equal(one[name], two[name]) for name in one)
