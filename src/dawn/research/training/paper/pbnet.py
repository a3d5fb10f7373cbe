"""Training the published PBNet, one network for pose or for blinks (paper sections 3.4, A.2; published steps in brackets).

Reconstruction, KL and an adversary, as the paper says it and not as the published trainer does it: the weight of the KL term
rises linearly (there, a wrong bound held it constant), and network and discriminator are updated by losses of their own,
the discriminator on motion cut off from the network (there, one sum taught both of them the same).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dawn.checkpoint import save_part
from dawn.config import PublishedPBNetConfig
from dawn.errors import ConfigError, InputError
from dawn.face.geometry import POSE_SMOOTHING_FRAMES, SHAPE_SMOOTHING_FRAMES, smooth
from dawn.models.nouns import Posterior, kl_divergence
from dawn.models.paper.conditions import published_ear, published_pose
from dawn.models.paper.pbnet import PBNet, normalise_pose
from dawn.research.training.loop import Recipe, TrainConfig
from dawn.research.training.motion_data import MotionStore
from dawn.structs import BLINK_SIZE, POSE_SIZE

PARTS = {POSE_SIZE: "pbnet_pose", BLINK_SIZE: "pbnet_blink"}
"""Outputs of a network → its name."""
SHORTEST_WINDOW_FRAMES = 24
"""Of fewer frames the discriminator's convolutions leave nothing."""
VALIDATION_TRACKS = 12


class PublishedPBNetTrainConfig(TrainConfig):
    """1,600 epochs of 25 passes each; KL weight 0 for a quarter of them, then rising to its full value at the end."""

    steps: int = Field(40_000, ge=1)
    batch: int = Field(40, ge=1)
    lr: float = 4e-4
    min_lr_ratio: float = 0.05
    grad_clip: float = 2.0
    window_frames: int = Field(200, ge=SHORTEST_WINDOW_FRAMES)
    reconstruction_weight: float = 1.0
    adversarial_weight: float = 0.6
    """0: no adversary."""
    discriminator_width: int = 64
    discriminator_lr: float = 1.0
    """As a multiple of ``lr``."""
    kl_weight: float = 0.01
    kl_from: int = 10_000
    kl_full: int = 40_000


@dataclass
class HeadTrack:
    """state (T, k): normalised published pose, or eye aspect ratios; audio: the sound's features (T, D), several hearings."""

    state: Tensor
    audio: Sequence[Tensor]

    def __len__(self) -> int:
        return int(self.state.shape[0])


@dataclass
class TrackBatch:
    """change (B, T, k) against the first frame, 0 where padded; first (B, k); audio (B, T, D); valid (B, T)."""

    change: Tensor
    first: Tensor
    audio: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> TrackBatch:
        """Move all tensors to a device."""
        return TrackBatch(**{key: value.to(device) for key, value in vars(self).items()})


def head_tracks(store: MotionStore, mean_face: Tensor, outputs: int) -> list[HeadTrack]:
    """Prepared clips as material for a network of 6 (pose) or 2 (blinks) outputs. Raises ConfigError for other numbers."""
    part_name(outputs)
    tracks = []
    for index, sequence in enumerate(store.sequences):
        landmarks = sequence.clip.landmarks.float()
        if outputs == POSE_SIZE:
            state = normalise_pose(smooth(published_pose(landmarks, mean_face), POSE_SMOOTHING_FRAMES))
        else:
            state = smooth(published_ear(landmarks), SHAPE_SMOOTHING_FRAMES)
        tracks.append(HeadTrack(state, [hearing[index] for hearing in store.features]))
    return tracks


def part_name(outputs: int) -> str:
    """Name of the network's weight file. Raises ConfigError."""
    if outputs not in PARTS:
        raise ConfigError(f"{outputs} outputs: a published PBNet has {' or '.join(str(n) for n in PARTS)}")
    return PARTS[outputs]


class SequenceDiscriminator(nn.Module):
    """Judges stretches of absolute motion, after the published one: five 1-D convolutions. (B, T, k) -> (B, about T / 8)."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        sizes = ((width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1))
        layers: list[nn.Module] = [nn.Conv1d(outputs, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for inputs, channels, stride in sizes:
            layers += [nn.Conv1d(inputs, channels, 4, stride, 1), nn.BatchNorm1d(channels), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv1d(4 * width, 1, 4, 1, 1))

    def forward(self, state: Tensor) -> Tensor:
        """Judge stretches of motion (B, T, k)."""
        return self.layers(state.transpose(1, 2))[:, 0]


def kl_ramp(step: int, config: PublishedPBNetTrainConfig) -> float:
    """Share of the KL weight that counts at this step: 0 up to ``kl_from``, then linear to 1 at ``kl_full``."""
    return min(1.0, max(0.0, (step - config.kl_from) / max(1, config.kl_full - config.kl_from)))


class PublishedPBNetRecipe(Recipe):
    """Windows of tracks; reconstruction, KL, adversary."""

    betas = (0.9, 0.999)

    def __init__(
        self,
        config: PublishedPBNetTrainConfig,
        model: PublishedPBNetConfig,
        tracks: Sequence[HeadTrack],
        validation: Sequence[HeadTrack] = (),
    ) -> None:
        """validation: by default the longest of the training tracks.

        Raises ConfigError for a network that is neither pose nor blinks, InputError for tracks that do not fit it.
        """
        self.part = part_name(model.outputs)
        self.config, self.model_config, self.tracks = config, model, tracks
        if not tracks:
            raise InputError("no motion to train on: prepare clips first, and with sound")
        for track in (*tracks, *validation):
            sizes = (track.state.shape[1], *(hearing.shape[1] for hearing in track.audio))
            if sizes != (model.outputs, *[model.audio_size] * len(track.audio)):
                wanted = f"{model.outputs} outputs and hears {model.audio_size} features"
                remedy = "set model.audio_size to the speech encoder's"
                raise InputError(f"a track of sizes {sizes}: the network has {wanted}; {remedy}")
        self.validation = validation or sorted(tracks, key=len, reverse=True)[:VALIDATION_TRACKS]
        self.weight = torch.tensor([float(len(track)) for track in tracks], dtype=torch.float64)
        torch.manual_seed(config.seed)
        self.networks = {"main": PBNet(model)}
        self.learning_rates = {"main": 1.0}
        if config.adversarial_weight:
            self.networks["discriminator"] = SequenceDiscriminator(model.outputs, config.discriminator_width)
            self.learning_rates["discriminator"] = config.discriminator_lr

    def batch(self, generator: torch.Generator) -> TrackBatch:
        """Draw stretches of head motion by weight."""
        chosen = torch.multinomial(self.weight, self.config.batch, True, generator=generator).tolist()
        rows = [self._sample(self.tracks[index], generator) for index in chosen]
        return TrackBatch(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def _sample(self, track: HeadTrack, generator: torch.Generator) -> tuple[Tensor, ...]:
        window = self.config.window_frames
        start = int(torch.randint(max(1, len(track) - window + 1), (1,), generator=generator))
        hearing = int(torch.randint(len(track.audio), (1,), generator=generator))
        frames = torch.arange(start, start + window)
        valid = frames < len(track)
        frames = frames.clamp_max(len(track) - 1)
        first = track.state[start]
        change = (track.state[frames] - first) * valid[:, None]
        return change, first, track.audio[hearing][frames].float(), valid

    def losses(
        self, networks: dict[str, nn.Module], batch: TrackBatch, step: int
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Compute the losses of the network, and of its discriminator if there is one."""
        config, network = self.config, networks["main"]
        plain: PBNet = getattr(network, "module", network)  # type: ignore[arg-type]
        batch = batch.to(next(network.parameters()).device)
        posterior = plain.encode(batch.change, batch.first, batch.audio, batch.valid)
        latent = posterior.mean + (0.5 * posterior.log_variance).exp() * torch.randn_like(posterior.mean)
        made = plain.decode(latent, batch.first, batch.audio, batch.valid)
        mask = batch.valid[..., None].to(made.dtype)
        error = ((made - batch.change).square() * mask).sum() / (mask.sum() * made.shape[-1])
        kl = (kl_divergence(posterior) * mask).sum() / (mask.sum() * latent.shape[-1])
        loss = config.reconstruction_weight * error + config.kl_weight * kl_ramp(step, config) * kl
        parts = {"error": error.detach(), "kl": kl.detach()}
        if "discriminator" not in networks:
            return [("main", loss, parts)]
        first = batch.first[:, None]
        return self._adversarial(
            networks["discriminator"], first + made, first + batch.change, batch.valid, loss, parts
        )

    def _adversarial(
        self,
        discriminator: nn.Module,
        made: Tensor,
        true: Tensor,
        valid: Tensor,
        loss: Tensor,
        parts: dict[str, Tensor],
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """The network's update comes first: its graph runs through the discriminator's present weights."""
        discriminator.requires_grad_(False)
        verdict = discriminator(made)
        discriminator.requires_grad_(True)
        weight = F.interpolate(valid.to(made.dtype)[:, None], verdict.shape[1])[:, 0]
        adversary = _judge(verdict, 1.0, weight)
        loss = loss + self.config.adversarial_weight * adversary
        parts["adversary"] = adversary.detach()
        real, fake = discriminator(true), discriminator(made.detach())
        critic = 0.5 * (_judge(real, 1.0, weight) + _judge(fake, 0.0, weight))
        return [("main", loss, parts), ("discriminator", critic, {"critic": critic.detach()})]

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """Error of motion rebuilt from its own latents, and spread and speed of motion from random ones against the true."""
        plain = cast(PBNet, network)
        device = next(network.parameters()).device
        squared, rebuilt, drawn, true = 0.0, 0, [], []
        for index, track in enumerate(self.validation[:VALIDATION_TRACKS]):
            state = track.state[: self.config.window_frames].to(device)
            audio = track.audio[0][: len(state)].float().to(device)[None]
            first, change = state[:1], (state - state[:1])[None]
            posterior: Posterior = plain.encode(change, first, audio)
            squared += float((plain.decode(posterior.mean, first, audio) - change).square().sum())
            rebuilt += change.numel()
            generator = torch.Generator().manual_seed(index)
            latent = torch.randn(posterior.mean.shape, generator=generator).to(device)
            drawn.append(plain.decode(latent, first, audio)[0].cpu())
            true.append(change[0].cpu())
        figures = {"error": squared / rebuilt}
        for kind, motions in (("made", drawn), ("true", true)):
            figures[f"spread_{kind}"] = float(torch.cat([m - m.mean(0) for m in motions]).square().mean().sqrt())
            figures[f"speed_{kind}"] = float(torch.cat([m.diff(dim=0) for m in motions]).abs().mean())
        return figures

    def export(self, network: nn.Module, folder: Path) -> None:
        """Save the network."""
        save_part(folder, self.part, network, self.model_config)


def _judge(verdict: Tensor, wanted: float, weight: Tensor) -> Tensor:
    """Mean binary cross-entropy of verdicts (B, P) against one answer, weighted (B, P)."""
    loss = F.binary_cross_entropy_with_logits(verdict, torch.full_like(verdict, wanted), reduction="none")
    return (loss * weight).sum() / weight.sum()
