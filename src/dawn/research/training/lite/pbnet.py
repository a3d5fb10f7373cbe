"""Training PBNet: pose and blinks from speech, a conditional VAE (paper sections 3.4, A.2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from dawn.checkpoint import save_part
from dawn.config import PBNetConfig
from dawn.models.lite.motion_space import MotionSpace
from dawn.models.lite.pbnet import EAR_UNIT, PBNet, first_state
from dawn.models.nouns import kl_divergence
from dawn.research.training.lite.a2v import head_condition
from dawn.research.training.loop import Recipe, TrainConfig
from dawn.research.training.motion_data import MotionStore, Sequence
from dawn.structs import BLINK_SIZE, POSE_SIZE

BLINK_DEPTH = 0.45
"""An eye counts as shut when its aspect ratio falls by this share of the clip's open value."""


class PBNetTrainConfig(TrainConfig):
    """Losses of PBNet. KL warm-up as in the paper: none at first, then rising linearly to its weight."""

    steps: int = Field(1500, ge=1)
    batch: int = Field(24, ge=1)
    lr: float = 5e-4
    ema_decay: float = Field(0.998, ge=0, lt=1)
    window_frames: int = 100
    velocity_weight: float = 4.0
    kl_weight: float = 0.2
    """The paper's 0.01 leaves posteriors so narrow that motion sampled from N(0, I) is wild."""
    kl_from: int = 100
    kl_full: int = 500
    blink_weight: float = 2.0
    long_clip_share: float = 0.6
    """Share of samples from clips of at least ``long_frames``: short ones say nothing of slow sway."""
    long_frames: int = 70


@dataclass
class HeadBatch:
    """motion (B, T, 8) normalised changes; first (B, 8) the first frame's pose and eyes; audio (B, T, D); valid (B, T)."""

    motion: Tensor
    first: Tensor
    audio: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> HeadBatch:
        """Move all tensors to a device."""
        return HeadBatch(**{key: value.to(device) for key, value in vars(self).items()})


def head_motion(s: Sequence, motion: MotionSpace, frames: Tensor) -> Tensor:
    """Normalised changes (T, 8) of the frames named against the first of them."""
    first = int(frames[0])
    return head_condition(motion, s.pose[frames], s.ear[frames], s.pose[first], s.ear[first])


class PBNetRecipe(Recipe):
    """Windows of clips; reconstruction of positions and velocities, KL with warm-up, no adversary."""

    part = "pbnet"

    def __init__(
        self,
        config: PBNetTrainConfig,
        model: PBNetConfig,
        motion: MotionSpace,
        data: MotionStore,
        validation: MotionStore | None,
    ) -> None:
        self.config, self.model_config, self.motion = config, model, motion
        self.data, self.validation = data, validation
        torch.manual_seed(config.seed)
        self.networks = {"main": PBNet(model)}
        self.learning_rates = {"main": 1.0}
        length = torch.tensor([len(s) for s in data.sequences])
        is_long = length >= config.long_frames
        weight = data.weight * 1.0
        if bool(is_long.any()) and bool((~is_long).any()):
            weight[is_long] *= config.long_clip_share / weight[is_long].sum()
            weight[~is_long] *= (1 - config.long_clip_share) / weight[~is_long].sum()
        self.weight = weight

    def batch(self, generator: torch.Generator) -> HeadBatch:
        """Draw stretches of head motion by weight."""
        chosen = torch.multinomial(self.weight, self.config.batch, True, generator=generator).tolist()
        rows = [self._sample(index, generator) for index in chosen]
        return HeadBatch(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def _sample(self, index: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        window = self.config.window_frames
        s = self.data.sequences[index]
        start = int(torch.randint(max(1, len(s) - window + 1), (1,), generator=generator))
        frames = torch.arange(start, start + window)
        valid = frames < len(s)
        frames = frames.clamp_max(len(s) - 1)
        motion = head_motion(s, self.motion, frames)
        first = first_state(s.pose[start], s.ear[start])
        if float(torch.rand(1, generator=generator)) < 0.5:
            motion, first = mirror_head(motion), mirror_head(first)
        return motion, first, self.data.audio(index, generator)[frames], valid

    def losses(
        self, networks: dict[str, nn.Module], batch: HeadBatch, step: int
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Compute error, velocity error and divergence of a batch."""
        config, network = self.config, networks["main"]
        plain: PBNet = getattr(network, "module", network)  # type: ignore[arg-type]
        batch = batch.to(next(network.parameters()).device)
        posterior = plain.encode(batch.motion, batch.first, batch.audio, batch.valid)
        latent = posterior.mean + (0.5 * posterior.log_variance).exp() * torch.randn_like(posterior.mean)
        made = plain.decode(latent * batch.valid[..., None], batch.first, batch.audio, batch.valid)
        mask = batch.valid[..., None].float()
        weight = made.new_tensor([1.0] * POSE_SIZE + [config.blink_weight] * BLINK_SIZE)
        error = ((made - batch.motion).square() * weight * mask).sum() / mask.sum()
        pair = mask[:, 1:] * mask[:, :-1]
        velocity = ((made.diff(dim=1) - batch.motion.diff(dim=1)).square() * weight * pair).sum() / pair.sum()
        kl = (kl_divergence(posterior) * mask).sum() / mask.sum()
        ramp = min(1.0, max(0.0, (step - config.kl_from) / max(1, config.kl_full - config.kl_from)))
        loss = error + config.velocity_weight * velocity + config.kl_weight * ramp * kl
        return [("main", loss, {"error": error.detach(), "velocity": velocity.detach(), "kl": kl.detach()})]

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """Spread and speed of sampled motion against the long training clips' (there are no long validation clips)."""
        made, true = [], []
        by_length = sorted(range(len(self.data)), key=lambda i: -len(self.data.sequences[i]))
        chosen = by_length[:15]
        for index in chosen:
            s = self.data.sequences[index]
            frames = torch.arange(min(len(s), 250))
            audio, first = self.data.audio(index)[frames][None], first_state(s.pose[0], s.ear[0])[None]
            generator = torch.Generator().manual_seed(index)
            latent = torch.randn((1, len(frames), self.model_config.latent_size), generator=generator)
            device = next(network.parameters()).device
            made.append(cast(PBNet, network).decode(latent.to(device), first.to(device), audio.to(device))[0].cpu())
            true.append(head_motion(s, self.motion, frames))
        return {
            f"{name}_{kind}": value
            for kind, motion in (("made", made), ("true", true))
            for name, value in describe_heads(motion).items()
        }

    def export(self, network: nn.Module, folder: Path) -> None:
        """Save the network."""
        save_part(folder, self.part, network, self.model_config)


def mirror_head(head: Tensor) -> Tensor:
    """The same motion seen in a mirror: yaw, roll and x change sign, the eyes change places. (..., 8)."""
    yaw, pitch, roll, scale, x, y, left, right = head.unbind(-1)
    return torch.stack((-yaw, pitch, -roll, scale, -x, y, right, left), -1)


def describe_heads(motions: list[Tensor]) -> dict[str, float]:
    """Of normalised motions (T, 8): spread and mean speed of the angles, spread of place, blinks a second."""
    centred = torch.cat([m[:, :6] - m[:, :6].mean(0) for m in motions])
    speed = torch.cat([m[:, :3].diff(dim=0).abs() for m in motions])
    seconds = sum(len(m) for m in motions) / 25
    blinks = sum(count_blinks(m[:, 6:].mean(1) * EAR_UNIT) for m in motions)
    return {
        "angle_spread": float(centred[:, :3].std()),
        "place_spread": float(centred[:, 3:].std()),
        "angle_speed": float(speed.mean()),
        "blinks_per_s": blinks / seconds,
    }


def count_blinks(ear_change: Tensor, open_ear: float = 0.3) -> int:
    """Times that the eyes (T,) shut and open again against their usual state (the 80th percentile)."""
    shut = ear_change < ear_change.quantile(0.8) - BLINK_DEPTH * open_ear
    return int((shut[1:] & ~shut[:-1]).sum())
