"""From speech to motion: PBNet, then A2V, for all frames at once and any length.

Networks see the clip in chunks with as much context as they can reach, which gives the same result as one piece, so that
memory does not grow with length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dawn.config import SamplerConfig
from dawn.diffusion.rectified import euler
from dawn.engines.rules import deepen_blinks, quiet_share, shape_head
from dawn.errors import ConfigError, MotionError
from dawn.face.geometry import (
    POSE_SMOOTHING_FRAMES,
    SHAPE_SMOOTHING_FRAMES,
    eye_aspect_ratio,
    lip_aperture,
    pose_change,
    remove_pose,
    smooth,
)
from dawn.models.attention import CHUNK_FRAMES, chunks
from dawn.models.blocks import fold_for_inference
from dawn.models.lite.a2v import A2VTransformer, Conditions
from dawn.models.lite.bundle import LiteBundle
from dawn.models.lite.lfg import Source
from dawn.models.lite.pbnet import EAR_UNIT, PBNet, first_state
from dawn.options import GenerateOptions
from dawn.rendering.draw import picture
from dawn.structs import BLINK_SIZE, FRAME_SAMPLES, POSE_SIZE, Face, Motion

REST_FRAMES = 60


@torch.inference_mode()
def generate_head(
    pbnet: PBNet, audio: Tensor, first: Tensor, sampler: SamplerConfig, generator: torch.Generator
) -> Tensor:
    """Pose and blink changes (T, 8), normalised, from audio (T, D) and the first frame's state (8,)."""
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
def generate_expression(
    a2v: A2VTransformer,
    audio: Tensor,
    head: Tensor,
    source: Tensor,
    steps: int,
    guidance: float,
    temperature: float,
    generator: torch.Generator,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Expression coefficients (T, K) by rectified flow; audio (T, D), head (T, 8) normalised, source (K + 2,)."""
    frames = audio.shape[0]
    noise = torch.randn((frames, a2v.config.motion_size), generator=generator).to(audio.device) * temperature
    embedded = audio.new_empty(frames, a2v.config.width)
    for start, stop, low, high in chunks(frames, a2v.reach_frames):
        embedded[start:stop] = a2v.embed_audio(audio[None, low:high])[0, start - low : stop - low]
    conditions = Conditions(embedded[None], head[None], source[None])
    nothing = torch.ones(1, dtype=torch.bool, device=audio.device)

    def velocity(x: Tensor, time: float) -> Tensor:
        out = torch.empty_like(x)
        t = torch.full((1,), time, device=x.device)
        for start, stop, low, high in chunks(frames, a2v.reach_frames):
            window = (x[:, low:high], t, conditions.cut(low, high))
            v = a2v(*window)
            if guidance != 1:
                base = a2v(*window, nothing)
                v = base + guidance * (v - base)
            out[:, start:stop] = v[:, start - low : stop - low]
        return out

    return euler(velocity, noise[None], steps, progress)[0]


@torch.inference_mode()
def generate_motion(
    bundle: LiteBundle,
    audio: Tensor,
    face: Face,
    options: GenerateOptions,
    quiet: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Motion:
    """Speech features (T, D) at 25 fps → the motion of one face, reproducible from ``options.seed``.

    quiet: (T,) from ``quiet_share``: there the mouth is brought to rest, whatever the network made of it.
    """
    device = audio.device
    shape, pose = torch.from_numpy(face.shape).to(device), torch.from_numpy(face.pose).to(device)
    ear = eye_aspect_ratio(shape)
    generator = torch.Generator().manual_seed(options.seed)
    sampler = bundle.config.sampler
    steps = options.steps or sampler.steps
    guidance = sampler.guidance if options.guidance is None else options.guidance
    head = shape_head(generate_head(bundle.pbnet, audio, first_state(pose, ear), sampler, generator), options)
    head[:, POSE_SIZE:] = deepen_blinks(head[:, POSE_SIZE:] * EAR_UNIT, ear) / EAR_UNIT * options.blink
    expression = generate_expression(
        bundle.a2v,
        audio,
        head,
        bundle.motion.describe_source(shape),
        steps,
        guidance,
        sampler.temperature,
        generator,
        progress,
    )
    expression = shape_lips(bundle, expression, shape, quiet, steps, guidance)
    pose_change = head[:, :POSE_SIZE] * bundle.motion.pose_scale
    return Motion(
        pose=pose_change.cpu().numpy(),
        blink=(head[:, POSE_SIZE:] * EAR_UNIT).cpu().numpy(),
        expression=(expression * options.expression).cpu().numpy(),
        info={"preset": bundle.config.name, "seed": str(options.seed)},
    )


def shape_lips(
    bundle: LiteBundle, expression: Tensor, shape: Tensor, quiet: Tensor | None, steps: int, guidance: float
) -> Tensor:
    """What rules do to generated lips: small openings are closed further, and silence brings the mouth to rest.

    expression (T, K) of one source shape (478, 3); quiet (T,) from ``quiet_share``. Returns (T, K).
    """
    space = bundle.motion
    shaped = torch.cat([space.close_lips(part, shape) for part in expression.split(CHUNK_FRAMES)])
    if quiet is not None and bool(quiet.any()):
        rest = rest_expression(bundle, shape, steps, guidance)[space.lower]
        lower = shaped[:, space.lower]
        shaped[:, space.lower] = torch.lerp(lower, rest.expand_as(lower), quiet[:, None])
    return shaped


def rest_expression(bundle: LiteBundle, shape: Tensor, steps: int, guidance: float) -> Tensor:
    """What the network makes of lasting silence for this face, (K,): the mouth at rest."""
    silence = bundle.audio.encode(torch.zeros(REST_FRAMES * FRAME_SAMPLES, device=shape.device), REST_FRAMES)
    head = shape.new_zeros(REST_FRAMES, POSE_SIZE + BLINK_SIZE)
    source = bundle.motion.describe_source(shape)
    made = generate_expression(
        bundle.a2v, silence, head, source, steps, guidance, 0.0, torch.Generator().manual_seed(0)
    )
    return made[REST_FRAMES // 4 : -REST_FRAMES // 4].mean(0)


class LiteEngine:
    """What the pipeline asks of a preset, answered by the ``lite`` networks."""

    def __init__(self, bundle: LiteBundle, device: torch.device) -> None:
        """bundle: as loaded; it is changed for inference (folded) in place."""
        fold_for_inference(bundle.lfg)
        self.bundle = bundle.to(device)
        self.bundle.lfg.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device

    def mean_face(self) -> Tensor:
        """(478, 3) on the CPU."""
        return self.bundle.motion.mean_face.cpu()

    def features(self, samples: Tensor, frames: int) -> Tensor:
        """Speech (L,) at 16 kHz -> (frames, D)."""
        return self.bundle.audio.encode(samples, frames)

    def generate(
        self, features: Tensor, samples: Tensor, face: Face, options: GenerateOptions, progress: Callable[[int], None]
    ) -> Motion:
        """Raises ConfigError for options that only the published model has."""
        if options.sampler is not None:
            raise ConfigError(
                f"sampler {options.sampler}: the preset {self.bundle.config.name} has one sampler; leave it out"
            )
        if options.precision not in (None, "float32"):
            raise ConfigError(
                f"precision {options.precision}: the preset {self.bundle.config.name} computes in float32; leave it out"
            )
        return generate_motion(self.bundle, features, face, options, quiet_share(samples, len(features)), progress)

    def check(self, motion: Motion) -> None:
        """Raises MotionError for motion of another space."""
        wanted = self.bundle.config.motion.size
        if motion.space != "lite" or motion.expression.shape[1] != wanted:
            raise MotionError(
                f"the motion has {motion.expression.shape[1]} coefficients of the space {motion.space!r}, the preset "
                f"{self.bundle.config.name} needs {wanted} of 'lite': use the preset that made it"
            )

    def landmarks(self, face: Face, motion: Motion, start: int, stop: int) -> Tensor:
        """Driving landmarks (stop - start, 478, 3) of some frames."""
        numbers = (motion.pose[start:stop], motion.expression[start:stop], face.shape, face.pose)
        return self.bundle.motion.landmarks(*(torch.from_numpy(x).to(self.device) for x in numbers))

    @torch.inference_mode()
    def source(self, face: Face) -> Source:
        """The portrait, encoded."""
        image = picture(face, self.device)
        return self.bundle.lfg.encode(image, torch.from_numpy(face.landmarks).to(self.device)[None])

    @torch.inference_mode()
    def decode(self, source: Source, face: Face, motion: Motion, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Frames start to stop, (N, 3, R, R) in [0, 1], and the flow (N, h, w, 2) that moved the portrait."""
        points = self.landmarks(face, motion, start, stop)
        made = self.bundle.lfg.redraw(source.expand(len(points)), points)
        return made.frame.clamp(0, 1), made.flow.grid

    @torch.inference_mode()
    def transfer(self, landmarks: Tensor, face: Face) -> Motion:
        """Tracked landmarks (T, 478, 3) of somebody → motion for this face.

        Motion is taken relative to the frame whose mouth and eyes are most like the portrait's.
        """
        shape, pose = remove_pose(landmarks, self.mean_face())
        shape, pose = smooth(shape, SHAPE_SMOOTHING_FRAMES), smooth(pose, POSE_SMOOTHING_FRAMES)
        own = torch.from_numpy(face.shape)
        unlike = (lip_aperture(shape) - lip_aperture(own)).abs() / 0.1
        unlike = unlike + ((eye_aspect_ratio(shape) - eye_aspect_ratio(own)).abs() / 0.1).mean(-1)
        reference = int(unlike.argmin())
        seen = shape.to(self.device)
        expression = self.bundle.motion.encode(seen, seen[reference]).cpu()
        ear = eye_aspect_ratio(shape)
        return Motion(
            pose=pose_change(pose, pose[reference]).numpy(),
            blink=(ear - ear[reference]).numpy(),
            expression=expression.numpy(),
            info={"preset": self.bundle.config.name},
        )
