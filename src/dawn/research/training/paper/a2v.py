"""Training the published A2V-FDM: noise in dense flow and occlusion (paper sections 3.3 to 3.5, details as published).

    frames ─ jitter ─▶ frozen LFG ─▶ flow x, flow y, occlusion ─ noise ─▶ U-Net (audio, pose, eyes, face box) ─▶ loss

Stage 1: short clips whose first frame is the source. Stage 2: longer clips of varying length, the source is any frame of the
whole video. Sections named are those of the paper; where its text and the published code differ, the code is the default and
the paper's form an option.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from safetensors.torch import load_file
from torch import Tensor, nn

from dawn.checkpoint import load_into, load_mean_face, read_weights, save_part
from dawn.config import UNetConfig
from dawn.diffusion.gaussian import NoiseSchedule, cosine_schedule, dynamic_threshold
from dawn.errors import ConfigError, InputError
from dawn.face.geometry import POSE_SMOOTHING_FRAMES, SHAPE_SMOOTHING_FRAMES, smooth
from dawn.models.paper.a2v import FLOW_CHANNELS, MOTION_CHANNELS, A2VUNet
from dawn.models.paper.conditions import assemble_conditions, points_68, published_box, published_ear, published_pose
from dawn.models.paper.face_mask import MaskEncoder, face_mask
from dawn.research.training.data import Clip
from dawn.research.training.loop import Recipe, TrainConfig
from dawn.research.training.motion_data import MotionStore
from dawn.research.training.paper.lfg import LUMA_CHROMA
from dawn.research.training.paper.networks import MaskedUNet, load_generator

LIP_POINTS = range(48, 67)
"""Of the 68: the published box leaves the last inner point out."""
STAGES: dict[str, dict[str, int]] = {
    "1": {"steps": 250_000, "batch": 20, "shortest_frames": 20, "longest_frames": 20},
    "2": {"steps": 125_000, "batch": 40, "shortest_frames": 30, "longest_frames": 40},
}
"""Published settings of the two stages: 12,500 passes over the clips each."""
LIP_WEIGHTS = {"published": 0.15, "paper": 1.0}
PUBLISHED_MASK = "assets/face_mask_seed1234.safetensors"
PUBLISHED_MASK_SIZE = 16
TARGET_FRAMES = 64
"""Frames whose motion is computed together."""
VALIDATION_CLIPS = 12
VALIDATION_TIMES = (125, 375, 625, 875)


class PaperA2VTrainConfig(TrainConfig):
    """The published settings.

    ``steps``, ``batch`` and clip lengths follow ``stage`` (``STAGES``), ``lip_weight`` follows ``lip_loss``
    (``LIP_WEIGHTS``), unless they are given.
    """

    stage: Literal[1, 2] = 1
    lfg: str = ""
    """The frozen generator that makes the targets: ``lfg.safetensors`` of its recipe or of a paper preset, with its JSON."""
    start: str = ""
    """Weights to start from, as stage 2 does: ``unet.safetensors``, with the ``mask.safetensors`` beside it."""
    steps: int = Field(250_000, ge=1)
    batch: int = Field(20, ge=1)
    lr: float = 2e-4
    warmup_steps: int = 0
    min_lr_ratio: float = 0.005
    """Cosine to 1e-6."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Published without averaging."""
    weight_decay: float = 0.0
    """Published with plain Adam."""
    grad_clip: float = 2.0
    shortest_frames: int = Field(20, ge=1)
    longest_frames: int = Field(20, ge=1)
    """One length a batch. Up to 41 frames the published window of 40 to either side is full attention."""
    drop_condition: float = Field(0.1, ge=0, lt=1)
    """Share of frames whose audio, pose and eyes are zeroed, each frame by itself."""
    lip_loss: Literal["published", "paper"] = "published"
    """How squared errors on the lips are counted: summed over channels, mean over lip cells; or (paper, eq. 7) as a part of
    the mean over all cells and channels."""
    lip_weight: float = Field(0.15, ge=0)
    x0_weight: float = Field(0.15, ge=0)
    """Of the error of the thresholded data estimate, a term that the paper does not have; 0 leaves it out."""
    threshold_quantile: float = Field(0.9, gt=0, le=1)
    brightness: float = Field(64 / 255, ge=0, lt=1)
    contrast: float = Field(0.25, ge=0, lt=1)
    saturation: float = Field(0.25, ge=0, lt=1)
    hue: float = Field(0.04, ge=0, le=0.5)
    """Of a whole turn. Colours are jittered up to these strengths, one draw a batch."""
    mask: Literal["published", "random", "trained"] = "published"
    """The encoder of the face box: the random one of the published weights; another fixed random one, from ``seed``; or one
    that is trained along. It is written beside the network in every case."""

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        stage = str(values.get("stage", 1))  # the command line gives text
        followed: dict[str, Any] = {"lip_weight": LIP_WEIGHTS.get(str(values.get("lip_loss", "published")), 0.0)}
        known = {"stage": int(stage)} if stage in STAGES else {}
        return followed | STAGES.get(stage, {}) | values | known

    @model_validator(mode="after")
    def _ordered(self) -> PaperA2VTrainConfig:
        if self.shortest_frames > self.longest_frames:
            raise ValueError(
                f"shortest_frames {self.shortest_frames}: give at most longest_frames {self.longest_frames}"
            )
        return self


@dataclass
class PaperA2VBatch:
    """Clips of one length with all that the network is told.

    source (B, 3, R, R) and frames (B, T, 3, R, R) in [0, 1], colours unchanged; condition (B, T, D + 8), zero where
    dropped; box (B, 6) px of the source; lips (B, T, S, S) bool; time (B,); noise (B, 3, T, S, S); colour (4,).
    """

    source: Tensor
    frames: Tensor
    condition: Tensor
    box: Tensor
    lips: Tensor
    time: Tensor
    noise: Tensor
    colour: Tensor

    def to(self, device: torch.device) -> PaperA2VBatch:
        """Move all tensors to a device."""
        return PaperA2VBatch(**{key: value.to(device) for key, value in vars(self).items()})


@dataclass
class Track:
    """What is known of every frame of a clip.

    pose (T, 6), ear (T, 2) in published units; box (T, 6) px of a picture as the generator sees it; lips (T, S, S) bool.
    """

    clip: Clip
    pose: Tensor
    ear: Tensor
    box: Tensor
    lips: Tensor

    def __len__(self) -> int:
        return len(self.clip)


def track_of(clip: Clip, mean_face: Tensor, size_px: int, latent_size: int) -> Track:
    """A prepared clip's landmarks as conditions and masks for pictures of ``size_px``."""
    landmarks = clip.landmarks.float()
    points_px = (landmarks + 1) * (size_px / 2)
    return Track(
        clip,
        smooth(published_pose(landmarks, mean_face), POSE_SMOOTHING_FRAMES),
        smooth(published_ear(landmarks), SHAPE_SMOOTHING_FRAMES),
        published_box(points_px, size_px, size_px),
        lip_mask(points_px, size_px, size_px, latent_size),
    )


def lip_mask(
    landmarks_px: Tensor, height_px: int, width_px: int, latent_size: int, swapped_sides: bool = False
) -> Tensor:
    """Cells within each frame's upright box around the lips, (T, 478, 3) -> (T, S, S) bool.

    Corners are rounded as those of the face box. swapped_sides: divide x by the height and y by the width as the published
    code does, which matters for pictures that are not square.
    """
    points = points_68(landmarks_px, LIP_POINTS)[..., :2]
    low, high = points.amin(-2), points.amax(-2)
    sides = low.new_tensor((height_px, width_px)).expand_as(low)
    boxes = torch.cat((torch.stack((low[:, 0], high[:, 0], low[:, 1], high[:, 1]), -1), sides), -1)
    return face_mask(boxes, latent_size, swapped_sides)[:, 0] > 0


def change_colour(images: Tensor, change: Tensor) -> Tensor:
    """The same change of brightness, contrast, saturation and hue for all pictures (F, 3, H, W) in [0, 1].

    change: (4,), the first three as factors less one, hue in turns (of the chroma plane).
    """
    brightness, contrast, saturation = (1 + change[:3]).tolist()
    turn = 2 * math.pi * float(change[3])
    cos, sin = saturation * math.cos(turn), saturation * math.sin(turn)
    axes = torch.tensor(LUMA_CHROMA, dtype=torch.float64)
    chroma = torch.tensor(((1, 0, 0), (0, cos, -sin), (0, sin, cos)), dtype=torch.float64)
    matrix = (torch.linalg.inv(axes) @ chroma @ axes).to(images)
    turned = torch.einsum("cd,fdhw->fchw", matrix, images)
    grey = torch.einsum("d,fdhw->fhw", axes[0].to(images), images).mean((1, 2))[:, None, None, None]
    return (brightness * (contrast * turned + (1 - contrast) * grey)).clamp(0, 1)


def a2v_figures(
    config: PaperA2VTrainConfig,
    schedule: NoiseSchedule,
    made: Tensor,
    data: Tensor,
    noise: Tensor,
    time: Tensor,
    lips: Tensor,
) -> dict[str, Tensor]:
    """The loss and its terms (paper eq. 7; published form by default), each before its weight.

    made, data, noise: (B, 3, T, S, S), the noise predicted, the true latent motion, the noise in it; time (B,);
    lips (B, T, S, S) bool.
    """
    squared = (made.float() - noise).square()
    on_lips = (squared * lips[:, None]).sum()
    count = lips.sum().clamp_min(1) if config.lip_loss == "published" else squared.numel()
    figures = {"epsilon": squared.mean(), "lips": on_lips / count}
    loss = figures["epsilon"] + config.lip_weight * figures["lips"]
    if config.x0_weight:
        estimate = schedule.estimate_data(schedule.add_noise(data, noise, time), made.float(), time)
        error = (dynamic_threshold(estimate, config.threshold_quantile) - data).square()
        figures["x0"] = error[:, :FLOW_CHANNELS].mean() + error[:, FLOW_CHANNELS:].mean()
        loss = loss + config.x0_weight * figures["x0"]
    return {"loss": loss, **figures}


def make_networks(config: PaperA2VTrainConfig, model: UNetConfig) -> MaskedUNet:
    """Fresh networks from ``config.seed``, or those to start from. Raises ConfigError, CheckpointError."""
    torch.manual_seed(config.seed)
    networks = MaskedUNet(A2VUNet(model), MaskEncoder(out=model.mask_size))
    if config.start:
        path = Path(config.start)
        for network, file in ((networks.unet, path), (networks.mask, path.with_name("mask.safetensors"))):
            load_into(network, read_weights(file), str(file))
    elif config.mask == "published":
        if model.mask_size != PUBLISHED_MASK_SIZE:
            wanted = f"the published mask encoder makes {PUBLISHED_MASK_SIZE} features"
            raise ConfigError(f"mask_size {model.mask_size}: {wanted}; set mask to random or trained")
        networks.mask.load_state_dict(load_file(str(files("dawn").joinpath(PUBLISHED_MASK))))
    networks.mask.requires_grad_(config.mask == "trained")
    return networks


class PaperA2VRecipe(Recipe):
    """Clips of several people; noise prediction with extra weight on the lips."""

    part = "unet"
    betas = (0.9, 0.99)

    def __init__(
        self, config: PaperA2VTrainConfig, model: UNetConfig, data: MotionStore, validation: MotionStore | None = None
    ) -> None:
        """data: clips with features of any speech encoder; published are undisturbed ones (``variants`` 0).

        Raises ConfigError, CheckpointError (generator, weights to start from), InputError for clips that are too short or
        whose features are not what the network hears.
        """
        if not config.lfg:
            raise ConfigError("lfg is not set: give the lfg.safetensors of a trained published generator")
        self.config, self.model_config = config, model
        self.data, self.validation = data, validation
        self.generator = load_generator(Path(config.lfg), model)
        self.size_px = self.generator.config.image_size_px
        self.schedule = cosine_schedule()
        self.tracks = self._tracks(data)
        self.judged = self._tracks(validation) if validation else []
        self.lengths = torch.tensor([len(track) for track in self.tracks])
        self.networks = {"main": make_networks(config, model)}
        self.learning_rates = {"main": 1.0}

    def _tracks(self, store: MotionStore) -> list[Track]:
        lengths = [len(s) for s in store.sequences]
        if max(lengths, default=0) < self.config.longest_frames:
            raise InputError(f"no clip with sound has {self.config.longest_frames} frames: prepare longer ones")
        sizes = {int(part.shape[1]) for hearing in store.features for part in hearing}
        if sizes != {self.model_config.audio_size}:
            heard = ", ".join(str(size) for size in sorted(sizes))
            raise InputError(f"audio features of size {heard}: set audio_size {self.model_config.audio_size} to it")
        mean_face = load_mean_face()
        return [track_of(s.clip, mean_face, self.size_px, self.model_config.latent_size) for s in store.sequences]

    def batch(self, generator: torch.Generator) -> PaperA2VBatch:
        """Draw clips of one random length by weight."""
        config = self.config

        def below(end: int) -> int:
            return int(torch.randint(end, (1,), generator=generator))

        frames = config.shortest_frames + below(config.longest_frames - config.shortest_frames + 1)
        weight = self.data.weight * (self.lengths >= frames)
        rows = []
        for index in torch.multinomial(weight, config.batch, True, generator=generator).tolist():
            track = self.tracks[index]
            start = below(len(track) - frames + 1)
            source = start if config.stage == 1 else below(len(track))
            rows.append(self._row(track, self.data.audio(index, generator), start, frames, source))
        time = torch.randint(self.schedule.steps, (config.batch,), generator=generator)
        batch = self._gather(rows, time, generator)
        kept = torch.rand(batch.condition.shape[:2], generator=generator) >= config.drop_condition
        batch.condition = batch.condition * kept[..., None]
        strength = torch.tensor((config.brightness, config.contrast, config.saturation, config.hue))
        batch.colour = strength * (2 * torch.rand(4, generator=generator) - 1)
        return batch

    def _row(self, track: Track, audio: Tensor, start: int, frames: int, source: int) -> tuple[Tensor, ...]:
        """One sample: source and frames as pictures, condition, box, lips."""
        span = slice(start, start + frames)
        pictures = track.clip.frames([source, *range(start, start + frames)])
        if pictures.shape[-1] != self.size_px:
            pictures = F.interpolate(pictures, (self.size_px, self.size_px), mode="bilinear", antialias=True).clamp(
                0, 1
            )
        pose, ear = track.pose, track.ear
        condition = assemble_conditions(audio[span], pose[span], pose[source], ear[span], ear[source])
        return pictures[0], pictures[1:], condition, track.box[source], track.lips[span]

    def _gather(self, rows: list[tuple[Tensor, ...]], time: Tensor, generator: torch.Generator) -> PaperA2VBatch:
        """Nothing dropped, colours as they are."""
        source, pictures, condition, box, lips = (torch.stack(column) for column in zip(*rows, strict=True))
        side = self.model_config.latent_size
        noise = torch.randn((len(rows), MOTION_CHANNELS, pictures.shape[1], side, side), generator=generator)
        return PaperA2VBatch(source, pictures, condition, box, lips, time, noise, torch.zeros(4))

    @torch.no_grad()
    def targets(self, batch: PaperA2VBatch) -> tuple[Tensor, Tensor]:
        """Latent motion (B, 3, T, S, S), all in [-1, 1] within the picture, and source features (B, C, S, S)."""
        device = batch.source.device
        generator = self.generator.to(device)
        count, frames = batch.frames.shape[:2]
        with torch.autocast(device.type, enabled=False):
            source = change_colour(batch.source, batch.colour)
            made = []
            for some in torch.arange(count * frames, device=device).split(TARGET_FRAMES):
                driving = change_colour(batch.frames.flatten(0, 1)[some], batch.colour)
                flow = generator.motion(source[some // frames], driving)
                made.append(torch.cat((flow.grid.permute(0, 3, 1, 2), 2 * flow.occlusion - 1), 1))
            motion = torch.cat(made).unflatten(0, (count, frames)).transpose(1, 2)
            return motion.contiguous(), generator.encode(source).feature

    def _figures(self, network: nn.Module, batch: PaperA2VBatch) -> dict[str, Tensor]:
        batch = batch.to(next(network.parameters()).device)
        data, feature = self.targets(batch)
        x = self.schedule.add_noise(data, batch.noise, batch.time)
        made = network(x, batch.time, feature, face_mask(batch.box, self.size_px), batch.condition)
        with torch.autocast(x.device.type, enabled=False):
            return a2v_figures(self.config, self.schedule, made, data, batch.noise, batch.time, batch.lips)

    def losses(
        self, networks: dict[str, nn.Module], batch: PaperA2VBatch, step: int
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Compute the loss of a batch, and the figures that it consists of."""
        figures = self._figures(networks["main"], batch)
        return [("main", figures["loss"], {key: value.detach() for key, value in figures.items()})]

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """The training loss and its terms on the validation clips, always at the same times with the same noise.

        Nothing is dropped and colours stay. The source is the clip's first frame, in stage 2 a fixed one of any place.
        """
        sums: dict[str, float] = {}
        long = [i for i, track in enumerate(self.judged) if len(track) >= self.config.longest_frames][:VALIDATION_CLIPS]
        for index in long:
            track, generator = self.judged[index], torch.Generator().manual_seed(index)
            source = 0 if self.config.stage == 1 else int(torch.randint(len(track), (1,), generator=generator))
            assert self.validation is not None
            row = self._row(track, self.validation.audio(index), 0, self.config.longest_frames, source)
            batch = self._gather([row] * len(VALIDATION_TIMES), torch.tensor(VALIDATION_TIMES), generator)
            for key, value in self._figures(network, batch).items():
                sums[key] = sums.get(key, 0.0) + float(value) / len(long)
        return sums

    def export(self, network: nn.Module, folder: Path) -> None:
        """Save the network and the mask network, each in a file of its own."""
        both = cast(MaskedUNet, network)
        save_part(folder, self.part, both.unet, self.model_config)
        save_part(folder, "mask", both.mask, self.model_config)
