"""From speech to motion with the published networks: PBNet, then diffusion of dense flow, for all frames at once.

The published couplings over time are kept (group norms and the dynamic threshold see the whole clip), so that memory grows
with length; ``UNET_FRAMES`` bounds the part that a step needs beside what it has to keep.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from dawn.checkpoint import load_mean_face
from dawn.config import PaperPresetConfig, PaperSamplerConfig, Precision
from dawn.diffusion.gaussian import Epsilon, cosine_schedule, ddim, dpm_solver
from dawn.diffusion.guidance import guided
from dawn.engines.engine import Engine, LastOf
from dawn.engines.hubert import load_hubert
from dawn.errors import ConfigError, MotionError
from dawn.models.audio.hubert import HubertAudioEncoder
from dawn.models.blocks import fold_for_inference, image_tensor
from dawn.models.paper.a2v import A2VUNet
from dawn.models.paper.bundle import PaperBundle
from dawn.models.paper.conditions import assemble_conditions, published_box, published_ear, published_pose
from dawn.models.paper.face_mask import face_mask
from dawn.models.paper.lfg import PaperSource
from dawn.models.paper.pbnet import PBNet, denormalise_pose, normalise_pose
from dawn.options import GenerateOptions
from dawn.structs import Face, Motion

UNET_FRAMES = 16
"""Frames whose spatial work the U-Net does together."""
MOTION_CHANNELS = 3


class PaperEngine(Engine[PaperSource]):
    """What the pipeline asks of a preset, answered by the published networks."""

    config: PaperPresetConfig

    def __init__(self, bundle: PaperBundle, device: torch.device) -> None:
        """bundle: as loaded; it is changed for inference in place. HuBERT is loaded when it is first needed."""
        fold_for_inference(bundle.lfg)
        self.networks = bundle.to(device)
        self.networks.lfg.to(memory_format=torch.channels_last)
        self.networks.unet.frames_per_chunk = UNET_FRAMES
        self.config, self.device = bundle.config, device
        self.hubert: HubertAudioEncoder | None = None
        self._unets: dict[Precision, A2VUNet] = {"float32": self.networks.unet}
        self._encoded: LastOf[PaperSource] = LastOf()

    def mean_face(self) -> Tensor:
        """(478, 3) on the CPU."""
        return load_mean_face()

    def features(self, samples: Tensor, frames: int) -> Tensor:
        """Speech (L,) at 16 kHz -> HuBERT features (frames, 1024). Raises ConfigError, CheckpointError without HuBERT."""
        if self.hubert is None:
            self.hubert = HubertAudioEncoder(load_hubert(self.config.hubert)).to(self.device)
        return self.hubert.encode(samples, frames)

    @torch.inference_mode()
    def generate(
        self, features: Tensor, samples: Tensor, face: Face, options: GenerateOptions, progress: Callable[[int], None]
    ) -> Motion:
        """Latent motion of all frames. Raises ConfigError for options that this model does not have."""
        if options.expression != 1:
            raise ConfigError(f"expression {options.expression}: {self.name} cannot scale it; leave it at 1")
        generator = torch.Generator().manual_seed(options.seed)
        first_pose, first_ear = self._first(face)
        pose, ear = self.head(features, first_pose, first_ear, options, generator)
        condition = assemble_conditions(features, pose, first_pose, ear, first_ear)
        latent = self.diffuse(face, condition, options, generator, progress)
        return Motion(
            pose=(pose - first_pose).cpu().numpy(),
            blink=(ear - first_ear).cpu().numpy(),
            expression=latent.transpose(0, 1).flatten(1).cpu().numpy(),
            space=self.space,
            info={"preset": self.name, "seed": str(options.seed)},
        )

    @property
    def space(self) -> str:
        """Name of the motion space: dense flow of this side."""
        return f"flow-{self.config.unet.latent_size}"

    def _first(self, face: Face) -> tuple[Tensor, Tensor]:
        """The portrait's pose (6,) and eye aspect ratios (2,) in published units."""
        points = torch.from_numpy(face.landmarks)
        return published_pose(points, self.mean_face()).to(self.device), published_ear(points).to(self.device)

    def head(
        self, audio: Tensor, first_pose: Tensor, first_ear: Tensor, options: GenerateOptions, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Pose (T, 6) and eye aspect ratios (T, 2) in published units, from the portrait's own (6,) and (2,)."""
        start = normalise_pose(first_pose)
        pose = denormalise_pose(start + _sample(self.networks.pose, start, audio, generator))
        blink = _sample(self.networks.blink, first_ear, audio, generator)
        strength = 0.0 if options.still else options.pose_scale
        return first_pose + strength * (pose - first_pose), first_ear + options.blink * blink

    def diffuse(
        self,
        face: Face,
        condition: Tensor,
        options: GenerateOptions,
        generator: torch.Generator,
        progress: Callable[[int], None],
    ) -> Tensor:
        """Condition (T, 1032) → flow x, flow y and occlusion, (3, T, S, S) in [-1, 1]."""
        sampler = self.config.sampler
        unet = self._unet(options.precision or sampler.precision)
        size = face.crop.shape[0]
        points_px = (torch.from_numpy(face.landmarks) + 1) * (size / 2)
        box = published_box(points_px, size, size)[None].to(self.device)
        mask = self.networks.mask(face_mask(box, size))
        conditions = unet.prepare(self.source(face).feature, mask, condition[None])
        guidance = sampler.guidance if options.guidance is None else options.guidance
        nothing = unet.without_condition(conditions) if guidance != 1 else None

        def predict(given: Any) -> Epsilon:
            return lambda x, time: unet(x, torch.full((1,), time, device=x.device), given)

        epsilon = predict(conditions) if nothing is None else guided(predict(conditions), predict(nothing), guidance)
        side = self.config.unet.latent_size
        start = torch.randn((1, MOTION_CHANNELS, len(condition), side, side), generator=generator).to(self.device)
        kind = options.sampler or sampler.kind
        return sample_motion(epsilon, start, sampler, kind, options.steps or sampler.steps, generator, progress)[0]

    def _unet(self, precision: Precision) -> A2VUNet:
        """The A2V network with weights of that type; the sampler's own arithmetic stays float32 with both."""
        if precision not in self._unets:
            self._unets[precision] = deepcopy(self.networks.unet).to(getattr(torch, precision))
        return self._unets[precision]

    def check(self, motion: Motion) -> None:
        """Raises MotionError for motion of another space."""
        wanted = MOTION_CHANNELS * self.config.unet.latent_size**2
        if motion.space != self.space or motion.expression.shape[1] != wanted:
            raise MotionError(
                f"the motion has {motion.expression.shape[1]} numbers of the space {motion.space!r}, the preset "
                f"{self.name} needs {wanted} of {self.space!r}: use the preset that made it"
            )

    @torch.inference_mode()
    def source(self, face: Face) -> PaperSource:
        """See ``Engine``. The last one is kept, because first the A2V network and then the decoder ask for it."""
        image = image_tensor(face.crop, self.device).contiguous(memory_format=torch.channels_last)
        return self._encoded.get(face, None, lambda: self.networks.lfg.encode(image))

    @torch.inference_mode()
    def decode(self, source: PaperSource, face: Face, motion: Motion, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Frames start to stop, (N, 3, R, R) in [0, 1], and the flow (N, h, w, 2) that moved the portrait."""
        side = self.config.unet.latent_size
        latent = torch.from_numpy(motion.expression[start:stop]).to(self.device).view(-1, MOTION_CHANNELS, side, side)
        flow = latent[:, :2].permute(0, 2, 3, 1)
        return self.networks.lfg.decode(source, flow, (latent[:, 2:] + 1) / 2), flow


def _sample(network: PBNet, first: Tensor, audio: Tensor, generator: torch.Generator) -> Tensor:
    """Change (T, k) against the first state (k,)."""
    latent = torch.randn((1, len(audio), network.config.latent_size), generator=generator).to(audio.device)
    return network.decode(latent, first[None], audio[None])[0]


def sample_motion(
    epsilon: Epsilon,
    start: Tensor,
    config: PaperSamplerConfig,
    kind: str,
    steps: int,
    generator: torch.Generator,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Run one of the samplers of the published model. start: (B, 3, T, S, S) standard normal; the result is like it."""
    schedule = cosine_schedule()
    if kind == "dpm++":
        return dpm_solver(
            epsilon, start, schedule, steps, threshold_quantile=config.threshold_quantile, progress=progress
        )
    return ddim(
        epsilon,
        start,
        schedule,
        steps,
        eta=config.eta,
        noise=generator,
        shifted_alpha=config.shifted_alpha,
        threshold_quantile=config.threshold_quantile,
        progress=progress,
    )
