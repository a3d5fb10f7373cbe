"""Training the sync judge: pictures and sound of one moment must meet, those of other moments must not.

Contrastive (InfoNCE, van den Oord et al. 2018) over the windows of several clips of one person: negatives are other
moments of the clip, at least three frames away, and other clips of that person. Other people's clips are no
negatives, since a voice and a face that belong to different people can be told apart without listening to the words.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dawn.checkpoint import load_mean_face, save_part
from dawn.config import SyncJudgeConfig
from dawn.errors import ConfigError, InputError
from dawn.models.judges.sync import (
    MAX_LAG_FRAMES,
    MIN_CLIP_FRAMES,
    MOUTH_SIDE,
    SOUND_MARGIN_FRAMES,
    SyncJudge,
    crop_mouths,
)
from dawn.research.training.data import Clip, ClipStore, GeometricChange
from dawn.research.training.loop import Recipe, TrainConfig
from dawn.research.training.motion_data import clip_audio, disturb, has_sound
from dawn.structs import FRAME_SAMPLES

log = logging.getLogger(__name__)

KEPT_MARGIN = 1.2
"""Mouth pictures are kept this much wider than the judge sees them, so that a random change finds picture there."""
KEPT_FINENESS = 1.25
"""And this much finer."""
NEAR_FRAMES = 2
"""Moments so near to each other are neither the same nor different."""
CHECKED_SHIFTS = (-10, -5, -3, 3, 5, 10)
EQUALISER_KNOTS = 8
SOFTEST = 0.4
"""Pictures are made as soft as if they had been this share of their size."""


class SyncTrainConfig(TrainConfig):
    """Sampling, changes and losses of the judge."""

    steps: int = Field(680, ge=1)
    warmup_steps: int = 30
    lr: float = 2e-3
    weight_decay: float = 0.05
    ema_decay: float = Field(0.995, ge=0, lt=1)
    batch: int = Field(20, ge=1)
    """Clips a step."""
    group: int = Field(4, ge=1)
    """Clips of one person among them."""
    clip_frames: int = Field(29, ge=MIN_CLIP_FRAMES)
    held_out: int = Field(3, ge=0)
    """People kept away from training to watch it, where no validation clips are given."""
    left_out: tuple[str, ...] = ("long__",)
    """Clips whose names begin so are not used: their sound is not known to be in sync."""
    lag_weight: float = 0.5
    """Of the second loss: among all lags, the clip's mean cosine must be largest at none."""
    lag_sharpness: float = 3.0
    """Means over a clip differ less than single windows: their logits are this much steeper."""


@dataclass
class SyncBatch:
    """mouths (B, T, S, S) grey in [0, 1]; samples (B, T * 640); clips (B,) their numbers, one person's in a row."""

    mouths: Tensor
    samples: Tensor
    clips: Tensor

    def to(self, device: torch.device) -> SyncBatch:
        """Move all tensors to a device."""
        return SyncBatch(self.mouths.to(device), self.samples.to(device), self.clips.to(device))


class MouthStore:
    """Clips with their mouth pictures in memory, cut once and kept in the file ``cache``."""

    def __init__(self, store: ClipStore, cache: Path, size_px: int, frames: int, left_out: tuple[str, ...]) -> None:
        """frames: shorter clips are left out, as are silent ones. Raises InputError if none is left."""
        fits = [
            not clip.path.name.startswith(left_out) and has_sound(clip) and len(clip) >= frames for clip in store.clips
        ]
        self.clips = [clip for clip, use in zip(store.clips, fits, strict=True) if use]
        if not self.clips:
            raise InputError(f"no clip of {len(store)} has sound and {frames} frames: prepare others")
        self.weight = store.weight[torch.tensor(fits)]
        self.people = sorted({clip.person for clip in self.clips})
        self.mouths = _cached_mouths(self.clips, cache, round(size_px * KEPT_MARGIN * KEPT_FINENESS))
        self.sound = [clip_audio(clip) for clip in self.clips]

    def of_person(self, person: str) -> list[int]:
        """List the clips of a person by index."""
        return [index for index, clip in enumerate(self.clips) if clip.person == person]


def _cached_mouths(clips: list[Clip], cache: Path, size_px: int) -> list[Tensor]:
    """(T, S, S) uint8 of each clip."""
    names = [clip.path.stem for clip in clips]
    if cache.is_file():
        stored = load_file(cache)
        if all(name in stored for name in names) and stored[names[0]].shape[-1] == size_px:
            return [stored[name] for name in names]
    log.info("cutting the mouths of %d clips for %s", len(clips), cache)
    mean_face = load_mean_face()
    mouths = []
    for clip in clips:
        frames = (clip.frames(list(range(len(clip)))).permute(0, 2, 3, 1) * 255).round().byte().numpy()
        cut = crop_mouths(frames, clip.landmarks, mean_face, size_px, MOUTH_SIDE * KEPT_MARGIN)
        mouths.append((cut * 255).round().byte())
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_suffix(".part")
    save_file(dict(zip(names, mouths, strict=True)), temporary)
    temporary.replace(cache)
    return mouths


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def looked_at(mouths: Tensor, size_px: int, generator: torch.Generator | None) -> Tensor:
    """Kept pictures (B, T, K, K) in [0, 1] -> what the judge sees of them, (B, T, S, S).

    generator: draws another face, framing and camera for each clip and a little trembling of the landmarks for each
    frame; None changes nothing.
    """
    count, frames = mouths.shape[:2]
    if generator is None:
        grid = F.affine_grid(torch.eye(2, 3)[None], [1, 1, size_px, size_px], align_corners=False).expand(
            count, -1, -1, -1
        )
        tremble = torch.zeros(count, frames, 1, 1, 2)
    else:
        grid = GeometricChange(count, generator, 0.7).grid(size_px)
        flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
        grid = grid * torch.stack((flip, torch.ones(count)), -1)[:, None, None]
        strength = _uniform(0, 0.02, (count, 1, 1, 1, 1), generator)
        tremble = torch.randn(count, frames, 1, 1, 2, generator=generator) * strength
    where = ((grid[:, None] + tremble) / KEPT_MARGIN).flatten(0, 1)
    seen = F.grid_sample(mouths.flatten(0, 1)[:, None], where, padding_mode="border", align_corners=False)
    seen = seen.unflatten(0, (count, frames))[:, :, 0]
    return seen if generator is None else _other_camera(seen, generator)


def _other_camera(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Softness, contrast, brightness, gamma, noise: one draw a clip. (B, T, S, S) in [0, 1]."""
    count, _, size = seen.shape[:3]
    soft = []
    for clip, share in zip(seen, _uniform(SOFTEST - 0.5, 1.1, (count,), generator).tolist(), strict=True):
        small = max(round(size * max(share, SOFTEST)), 4)
        if small < size:
            less = F.interpolate(clip[:, None], (small, small), mode="bilinear", antialias=True, align_corners=False)
            clip = F.interpolate(less, (size, size), mode="bicubic", align_corners=False)[:, 0]
        soft.append(clip)
    seen = torch.stack(soft)
    gain, gamma = (torch.exp(0.25 * torch.randn(count, 1, 1, 1, generator=generator)) for _ in range(2))
    offset = 0.08 * torch.randn(count, 1, 1, 1, generator=generator)
    middle = seen.mean((1, 2, 3), keepdim=True)
    seen = ((seen - middle) * gain + middle + offset).clamp(1e-4, 1).pow(gamma)
    noise = torch.randn(seen.shape, generator=generator) * _uniform(-0.02, 0.03, (count, 1, 1, 1), generator).clamp_min(
        0
    )
    return seen + noise


def another_room(samples: Tensor, generator: torch.Generator) -> Tensor:
    """Another microphone, level and noise (``disturb``), and a random smooth equaliser of 5 dB. samples (L,)."""
    spectrum = torch.fft.rfft(samples)
    knots_db = 5 * torch.randn(1, 1, EQUALISER_KNOTS, generator=generator)
    # Knots are even in log frequency, so that the low bands are changed as finely as they are heard.
    position = torch.log1p(torch.linspace(0, 80, spectrum.shape[0])) / math.log(81) * 2 - 1
    where = torch.stack((position, torch.zeros_like(position)), -1)[None, None]
    curve_db = F.grid_sample(knots_db[None], where, align_corners=True)[0, 0, 0]
    return disturb(torch.fft.irfft(spectrum * 10 ** (curve_db / 20), n=len(samples)), generator)


def contrast(seen: Tensor, heard: Tensor, sharpness: Tensor, clips: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """InfoNCE in both directions, and how often the right moment comes first.

    seen, heard: (B, N, E), already in step; clips: (B,) their numbers, of which each ``group`` in turn belong to one
    person. A clip that was drawn twice is no negative of itself.
    """
    steps = seen.shape[1]
    a, b = (x.unflatten(0, (-1, group)).flatten(1, 2) for x in (seen, heard))
    logits = sharpness * a @ b.transpose(1, 2)
    place = torch.arange(group * steps, device=seen.device)
    row, time = place // steps, place % steps
    number = clips.view(-1, group)[:, row]
    same_row = row[:, None] == row
    near = same_row & ((time[:, None] - time).abs() <= NEAR_FRAMES) & (place[:, None] != place)
    twice = (number[:, :, None] == number[:, None]) & ~same_row
    logits = logits.masked_fill(near | twice, -torch.inf)
    target = place.expand(len(logits), -1)
    # Logits are (people, seen, heard): each seen window chooses among heard ones, then the other way round.
    loss = (F.cross_entropy(logits.transpose(1, 2), target) + F.cross_entropy(logits, target)) / 2
    return loss, (logits.argmax(2) == target).float().mean()


def lag_loss(seen: Tensor, heard: Tensor, sharpness: Tensor) -> Tensor:
    """Among the lags, mean cosines of a whole clip must be largest at none: what the judge will be read for.

    seen, heard: (B, N, E), in step. Lags within two frames of none are not asked about.
    """
    cosine = seen @ heard.transpose(1, 2)
    reach = min(MAX_LAG_FRAMES, seen.shape[1] - 1)
    lags = [lag for lag in range(-reach, reach + 1) if lag == 0 or abs(lag) > NEAR_FRAMES]
    means = torch.stack([cosine.diagonal(lag, 1, 2).mean(1) for lag in lags], 1)
    target = torch.full((len(seen),), lags.index(0), device=seen.device)
    return F.cross_entropy(sharpness * means, target)


class SyncRecipe(Recipe):
    """Clips of a few people a step, several of each; other people are kept away to watch."""

    part = "sync"

    def __init__(
        self, config: SyncTrainConfig, model: SyncJudgeConfig, data: Path, validation: Path | None, cache: Path
    ) -> None:
        """cache: folder for the mouth pictures. Raises InputError, ConfigError."""
        if config.batch % config.group:
            raise ConfigError(f"batch {config.batch} is no multiple of group {config.group}: change one of them")
        self.config, self.model_config = config, model
        size = model.mouth_size_px
        self.data = MouthStore(
            ClipStore(data), cache / f"{data.name}.safetensors", size, config.clip_frames, config.left_out
        )
        if validation is not None:
            path = cache / f"validation_{validation.name}.safetensors"
            self.watched = MouthStore(ClipStore(validation), path, size, config.clip_frames, config.left_out)
            held_out: list[str] = []
        else:
            self.watched = self.data
            held_out = held_out_people(self.data, config.held_out)
        trained = [clip.person not in held_out for clip in self.data.clips]
        if not any(trained):
            raise ConfigError(f"held_out {config.held_out} of {len(self.data.people)} people leaves none: lower it")
        self.weight = self.data.weight * torch.tensor(trained)
        self.watched_clips = [i for i, clip in enumerate(self.watched.clips) if validation or clip.person in held_out]
        self.members = {person: self.data.of_person(person) for person in self.data.people}
        torch.manual_seed(config.seed)
        self.networks = {"main": SyncJudge(model)}
        self.learning_rates = {"main": 1.0}

    def batch(self, generator: torch.Generator) -> SyncBatch:
        """Draw groups of clips, each group of one person."""
        config = self.config
        chosen: list[int] = []
        firsts = torch.multinomial(self.weight, config.batch // config.group, True, generator=generator).tolist()
        for first in firsts:
            own = self.members[self.data.clips[first].person]
            rest = torch.randperm(len(own), generator=generator).tolist()
            others = [own[i] for i in rest if own[i] != first]
            # A person with few clips gives some of them twice.
            chosen += [first, *(others * config.group + [first] * config.group)[: config.group - 1]]
        mouths, samples = [], []
        for index in chosen:
            frames = config.clip_frames
            start = int(torch.randint(len(self.data.clips[index]) - frames + 1, (1,), generator=generator))
            mouths.append(self.data.mouths[index][start : start + frames].float() / 255)
            sound = self.data.sound[index][start * FRAME_SAMPLES : (start + frames) * FRAME_SAMPLES]
            samples.append(another_room(sound, generator))
        size = self.model_config.mouth_size_px
        return SyncBatch(looked_at(torch.stack(mouths), size, generator), torch.stack(samples), torch.tensor(chosen))

    def losses(
        self, networks: dict[str, nn.Module], batch: SyncBatch, step: int
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Compute the contrast of windows and the loss of lags."""
        network = networks["main"]
        plain: SyncJudge = getattr(network, "module", network)  # type: ignore[arg-type]
        batch = batch.to(plain.sharpness.device)
        seen, heard = (x.float() for x in network(batch.mouths, batch.samples))
        seen = seen[:, SOUND_MARGIN_FRAMES:-SOUND_MARGIN_FRAMES]
        sharpness = plain.sharpness.exp()
        windows, right = contrast(seen, heard, sharpness, batch.clips, self.config.group)
        lags = lag_loss(seen, heard, sharpness * self.config.lag_sharpness)
        loss = windows + self.config.lag_weight * lags
        figures = {"contrast": windows, "lag": lags, "right": right, "sharpness": sharpness}
        return [("main", loss, {key: value.detach() for key, value in figures.items()})]

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """On people not trained on: how often a clip is nearer to its own sound than to the same sound moved.

        ``evaluation.sync.validate_judge`` has the full table for a finished judge.
        """
        if not self.watched_clips:
            return {}
        assert isinstance(network, SyncJudge)
        device, size = network.sharpness.device, self.model_config.mouth_size_px
        right: dict[int, list[bool]] = {shift: [] for shift in CHECKED_SHIFTS}
        found: list[bool] = []
        lags = np.zeros(2 * MAX_LAG_FRAMES + 1)
        for index in self.watched_clips:
            mouths = looked_at(self.watched.mouths[index][None].float() / 255, size, None)
            seen, heard = network(mouths.to(device), self.watched.sound[index][None].to(device))
            distance = torch.cdist(seen[0, SOUND_MARGIN_FRAMES:-SOUND_MARGIN_FRAMES], heard[0])
            for shift in CHECKED_SHIFTS:
                off = distance.diagonal(shift)
                own = distance.diagonal()[max(-shift, 0) :][: len(off)]
                right[shift].append(bool(own.mean() < off.mean()))
            by_lag = np.array(
                [float(distance.diagonal(lag).mean()) for lag in range(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1)]
            )
            found.append(abs(int(by_lag.argmin()) - MAX_LAG_FRAMES) <= 1)
            lags += by_lag / len(self.watched_clips)
        figures = {f"right_{n}": float(np.mean(right[n] + right[-n])) for n in CHECKED_SHIFTS if n > 0}
        return figures | {
            "offset_near": float(np.mean(found)),
            "confidence": float(np.median(lags) - lags.min()),
            "offset": float(lags.argmin() - MAX_LAG_FRAMES),
        }

    def export(self, network: nn.Module, folder: Path) -> None:
        """Save the network in half precision."""
        save_part(folder, self.part, network, self.model_config, half=True)


def held_out_people(store: MouthStore, count: int) -> list[str]:
    """People with about the mean number of clips: enough to measure on, and not those that training needs most."""
    numbers = {person: len(store.of_person(person)) for person in store.people}
    mean = len(store.clips) / len(numbers)
    return sorted(numbers, key=lambda person: (abs(numbers[person] - mean), person))[:count]
