"""The lite engine: speech → PBNet → A2V → motion, motion → landmarks → frames. All frames at once, of any length.

    speech ─ audio encoder ─▶ features ─┬─ sample_head (PBNet) ─ rules ─▶ pose, blinks ─┐
                                        └─ sample_expression (A2V, rectified flow) ◀────┤
                                                        rules (lips, silence) ─▶ Motion ┘
    Motion ─ motion space ─▶ driving landmarks ─ latent flow generator ─▶ frames

Networks see the clip in chunks with as much context as they can reach, which gives the same result as one piece, so that
memory does not grow with length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dawn.config import LitePresetConfig, SamplerConfig
from dawn.diffusion.guidance import guided
from dawn.diffusion.rectified import Velocity, euler
from dawn.engines.engine import Engine, LastOf
from dawn.engines.rules import anchor_head, close_lips, deepen_blinks, measure_quiet, rest_lips
from dawn.errors import ConfigError, MotionError
from dawn.face.geometry import (
    POSE_SMOOTHING_FRAMES,
    SHAPE_SMOOTHING_FRAMES,
    eye_aspect_ratio,
    lip_aperture,
    remove_pose,
    smooth,
    subtract_pose,
)
from dawn.models.attention import CHUNK_FRAMES, chunks
from dawn.models.blocks import fold_for_inference, image_tensor
from dawn.models.lite.a2v import A2VTransformer, Conditions
from dawn.models.lite.bundle import LiteBundle
from dawn.models.lite.lfg import Source
from dawn.models.lite.pbnet import EAR_UNIT, PBNet, first_state
from dawn.options import GenerateOptions
from dawn.structs import BLINK_SIZE, FRAME_SAMPLES, POSE_SIZE, Face, Motion


class FlowSampling(NamedTuple):
    """How expression is sampled: Euler steps, strength of guidance, standard deviation of the starting noise."""

    steps: int
    guidance: float
    temperature: float


@torch.inference_mode()
def sample_head(
    pbnet: PBNet, audio: Tensor, first: Tensor, sampler: SamplerConfig, generator: torch.Generator
) -> Tensor:
    """Sample pose and blink changes (T, 8), normalised, from audio (T, D) and the first frame's state (8,)."""
    frames = audio.shape[0]
    latent = torch.randn((frames, pbnet.config.latent_size), generator=generator).to(audio.device)
    latent = latent * sampler.latent_temperature
    out = audio.new_empty(frames, POSE_SIZE + BLINK_SIZE)
    for start, stop, low, high in chunks(frames, pbnet.reach_frames):
        made = pbnet.decode(latent[None, low:high], first[None], audio[None, low:high])
        out[start:stop] = made[0, start - low : stop - low]
    out[:, :POSE_SIZE] = smooth(out[:, :POSE_SIZE], sampler.pose_smoothing_frames)
    return out


@torch.inference_mode()
def sample_expression(
    a2v: A2VTransformer,
    audio: Tensor,
    head: Tensor,
    source: Tensor,
    sampling: FlowSampling,
    generator: torch.Generator,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Sample expression coefficients by rectified flow.

    Args:
        a2v: the network.
        audio: (T, D) features.
        head: (T, 8) normalised pose and blinks.
        source: (K + 2,) what the network is told of the source face.
        sampling: steps, guidance, temperature.
        generator: of the starting noise.
        progress: called with the number of steps done.

    Returns:
        (T, K).
    """
    frames = audio.shape[0]
    noise = torch.randn((frames, a2v.config.motion_size), generator=generator).to(audio.device) * sampling.temperature
    embedded = audio.new_empty(frames, a2v.config.width)
    for start, stop, low, high in chunks(frames, a2v.reach_frames):
        embedded[start:stop] = a2v.embed_audio(audio[None, low:high])[0, start - low : stop - low]

    conditions = Conditions(embedded[None], head[None], source[None])

    def velocity_with(without_sound: bool) -> Velocity:
        dropped = (torch.ones(1, dtype=torch.bool, device=audio.device),) if without_sound else ()

        def velocity(x: Tensor, time: float) -> Tensor:
            out = torch.empty_like(x)
            t = torch.full((1,), time, device=x.device)
            for start, stop, low, high in chunks(frames, a2v.reach_frames):
                made = a2v(x[:, low:high], t, conditions.cut(low, high), *dropped)
                out[:, start:stop] = made[:, start - low : stop - low]
            return out

        return velocity

    velocity = guided(velocity_with(False), velocity_with(True), sampling.guidance)
    return euler(velocity, noise[None], sampling.steps, progress)[0]


class LiteEngine(Engine[Source]):
    """What the pipeline asks of a preset, answered by the ``lite`` networks."""

    config: LitePresetConfig

    def __init__(self, bundle: LiteBundle, device: torch.device) -> None:
        """Take a bundle as loaded; it is changed for inference (folded) in place."""
        fold_for_inference(bundle.lfg)
        self.networks = bundle.to(device)
        self.networks.lfg.to(memory_format=torch.channels_last)
        self.config, self.device = bundle.config, device
        self.motion_space = bundle.motion
        self.side_by_side = device.type == "cpu"
        self._rest: LastOf[Tensor] = LastOf()

    def mean_face(self) -> Tensor:
        """See ``Engine``."""
        return self.networks.motion.mean_face.cpu()

    def features(self, samples: Tensor, frames: int) -> Tensor:
        """See ``Engine``."""
        return self.networks.audio.encode(samples, frames)

    @torch.inference_mode()
    def generate(
        self,
        features: Tensor,
        samples: Tensor,
        face: Face,
        options: GenerateOptions,
        progress: Callable[[int], None],
    ) -> Motion:
        """See ``Engine``: head, then expression, reproducible from ``options.seed``."""
        self._refuse_foreign(options)
        shape, pose = (torch.from_numpy(x).to(features.device) for x in (face.shape, face.pose))
        generator = torch.Generator().manual_seed(options.seed)
        first = first_state(pose, eye_aspect_ratio(shape))
        drawn = sample_head(self.networks.pbnet, features, first, self.config.sampler, generator)
        head = self.shape_head(drawn, shape, options)
        expression = self.sample_lips(features, samples, head, face, options, generator, progress)
        return Motion(
            pose=(head[:, :POSE_SIZE] * self.networks.motion.pose_scale).cpu().numpy(),
            blink=(head[:, POSE_SIZE:] * EAR_UNIT).cpu().numpy(),
            expression=(expression * options.expression).cpu().numpy(),
            info={"preset": self.name, "seed": str(options.seed)},
        )

    def _refuse_foreign(self, options: GenerateOptions) -> None:
        if options.sampler is not None:
            raise ConfigError(f"sampler {options.sampler}: the preset {self.name} has one sampler; leave it out")
        if options.precision not in (None, "float32"):
            raise ConfigError(
                f"precision {options.precision}: the preset {self.name} computes in float32; leave it out"
            )

    def shape_head(self, head: Tensor, shape: Tensor, options: GenerateOptions) -> Tensor:
        """Apply rules and the user's strengths to a generated head (T, 8) of a source shape (478, 3)."""
        rules = self.config.rules
        anchored = anchor_head(head, rules.head)
        pose = anchored[:, :POSE_SIZE] * (0.0 if options.still else options.pose_scale)
        blink = deepen_blinks(head[:, POSE_SIZE:] * EAR_UNIT, eye_aspect_ratio(shape), rules.blinks) / EAR_UNIT
        return torch.cat((pose, blink * options.blink), -1)

    def sample_lips(
        self,
        features: Tensor,
        samples: Tensor,
        head: Tensor,
        face: Face,
        options: GenerateOptions,
        generator: torch.Generator,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Sample expression (T, K) for a given head (T, 8), normalised, and apply the rules on lips and silence."""
        sampling, rules, space = self.sampling(options), self.config.rules, self.networks.motion
        shape = torch.from_numpy(face.shape).to(features.device)
        source = space.describe_source(shape)
        expression = sample_expression(self.networks.a2v, features, head, source, sampling, generator, progress)
        parts = expression.split(CHUNK_FRAMES)
        expression = torch.cat([close_lips(part, shape, space, rules.lips) for part in parts])
        if not rules.silence.rest:
            return expression
        quiet = measure_quiet(samples, len(features), rules.silence)
        if not bool(quiet.any()):
            return expression
        rest = self._rest.get(face, sampling, lambda: self.rest_expression(shape, sampling))
        return rest_lips(expression, rest, quiet, space)

    def sampling(self, options: GenerateOptions) -> FlowSampling:
        """Fill what the user left open from the preset."""
        sampler = self.config.sampler
        guidance = sampler.guidance if options.guidance is None else options.guidance
        return FlowSampling(options.steps or sampler.steps, guidance, sampler.temperature)

    def rest_expression(self, shape: Tensor, sampling: FlowSampling) -> Tensor:
        """Take the mouth at rest, (K,): what the network makes of lasting silence for this face (478, 3)."""
        frames = self.config.rules.silence.rest_frames
        silence = self.networks.audio.encode(torch.zeros(frames * FRAME_SAMPLES, device=shape.device), frames)
        head = shape.new_zeros(frames, POSE_SIZE + BLINK_SIZE)
        source, still = self.networks.motion.describe_source(shape), sampling._replace(temperature=0.0)
        made = sample_expression(self.networks.a2v, silence, head, source, still, torch.Generator().manual_seed(0))
        return made[frames // 4 : -(frames // 4)].mean(0)

    def check(self, motion: Motion) -> None:
        """See ``Engine``."""
        wanted = self.config.motion.size
        if motion.space != "lite" or motion.expression.shape[1] != wanted:
            raise MotionError(
                f"the motion has {motion.expression.shape[1]} coefficients of the space {motion.space!r}, the preset "
                f"{self.name} needs {wanted} of 'lite': use the preset that made it"
            )

    def landmarks(self, face: Face, motion: Motion, start: int, stop: int) -> Tensor:
        """See ``Engine``."""
        numbers = (motion.pose[start:stop], motion.expression[start:stop], face.shape, face.pose)
        given = (torch.from_numpy(x).to(self.device) for x in numbers)
        return self.networks.motion.landmarks(*given, apart=self.config.rules.lips.apart)

    @torch.inference_mode()
    def source(self, face: Face) -> Source:
        """See ``Engine``."""
        image = image_tensor(face.crop, self.device).contiguous(memory_format=torch.channels_last)
        return self.networks.lfg.encode(image, torch.from_numpy(face.landmarks).to(self.device)[None])

    @torch.inference_mode()
    def decode(self, source: Source, face: Face, motion: Motion, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See ``Engine``."""
        return self.draw_landmarks(source, self.landmarks(face, motion, start, stop))

    @torch.inference_mode()
    def draw_landmarks(self, source: Source, landmarks: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Engine``."""
        made = self.networks.lfg.redraw(source.expand(len(landmarks)), landmarks)
        return made.frame.clamp(0, 1), made.flow.grid

    @torch.inference_mode()
    def transfer(self, landmarks: Tensor, face: Face) -> Motion:
        """See ``Engine``. Motion is taken relative to the frame whose mouth and eyes are most like the portrait's."""
        rules = self.config.rules.drive
        shape, pose = remove_pose(landmarks, self.mean_face())
        shape, pose = smooth(shape, SHAPE_SMOOTHING_FRAMES), smooth(pose, POSE_SMOOTHING_FRAMES)
        own = torch.from_numpy(face.shape)
        unlike = (lip_aperture(shape) - lip_aperture(own)).abs() / rules.aperture_unit
        unlike = unlike + ((eye_aspect_ratio(shape) - eye_aspect_ratio(own)).abs() / rules.ear_unit).mean(-1)
        reference = int(unlike.argmin())
        seen = shape.to(self.device)
        expression = self.networks.motion.encode(seen, seen[reference]).cpu()
        ear = eye_aspect_ratio(shape)
        return Motion(
            pose=subtract_pose(pose, pose[reference]).numpy(),
            blink=(ear - ear[reference]).numpy(),
            expression=expression.numpy(),
            info={"preset": self.name},
        )
