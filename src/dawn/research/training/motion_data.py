"""Prepared clips as motion sequences with audio features: the material of A2V and PBNet."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from dawn.face.geometry import (
    POSE_SMOOTHING_FRAMES,
    SHAPE_SMOOTHING_FRAMES,
    eye_aspect_ratio,
    lip_aperture,
    remove_pose,
    smooth,
)
from dawn.models.audio.features import AudioEncoder, fit_to_frames
from dawn.research.training.data import Clip, ClipStore
from dawn.structs import FRAME_SAMPLES

log = logging.getLogger(__name__)

STREAM_FRAMES = 200
"""Short clips of one speaker are strung together to streams of this length before they are encoded: in use the encoder
hears long recordings, and a clip of a second alone would always sit at its first positions."""
SILENCE_FRAMES = 1000
CLOSED_APERTURE = 0.03


@dataclass
class Sequence:
    """One clip as motion. shape (T, 478, 3) pose-free; pose (T, 6) absolute; ear (T, 2); aperture (T,)."""

    clip: Clip
    shape: Tensor
    pose: Tensor
    ear: Tensor
    aperture: Tensor

    def __len__(self) -> int:
        return int(self.pose.shape[0])


def sequence_of(clip: Clip, mean_face: Tensor) -> Sequence:
    """Track → pose, pose-free shape, eyes; smoothed without lag."""
    shape, pose = remove_pose(clip.landmarks, mean_face)
    shape, pose = smooth(shape, SHAPE_SMOOTHING_FRAMES), smooth(pose, POSE_SMOOTHING_FRAMES)
    return Sequence(clip, shape, pose, eye_aspect_ratio(shape), lip_aperture(shape))


def clip_audio(clip: Clip) -> Tensor:
    """Sound of exactly T frames, (T * 640,) float32."""
    return fit_to_frames(clip.samples.float() / 32768, len(clip))


def has_sound(clip: Clip) -> bool:
    """Tell whether sound covers at least nine tenths of the clip."""
    return len(clip.samples) >= 0.9 * len(clip) * FRAME_SAMPLES


def disturb(samples: Tensor, generator: torch.Generator) -> Tensor:
    """Random level, spectral tilt and noise: another microphone. samples: (L,)."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    tilt = uniform(-0.6, 0.6)
    tilted = samples + tilt * F.pad(samples[:-1], (1, 0))
    tilted = tilted * (samples.std() / tilted.std().clamp_min(1e-6))
    level = 10 ** (uniform(-35, -15) / 20) if torch.rand(1, generator=generator) < 0.6 else 0.0
    noise = torch.randn(samples.shape, generator=generator) * level * tilted.std()
    return ((tilted + noise) * 10 ** (uniform(-8, 4) / 20)).clamp(-1, 1)


def encode_clips(clips: list[Clip], encoder: AudioEncoder, generator: torch.Generator | None) -> list[Tensor]:
    """Audio features (T, D) float16 of each clip, heard within a stream of clips of the same person.

    generator: order, context and disturbance are drawn from it; None: each clip alone, undisturbed (validation).
    """
    features: list[Tensor | None] = [None] * len(clips)
    if generator is None:
        return [encoder.encode(clip_audio(clip), len(clip)).half() for clip in clips]
    by_person: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        by_person.setdefault(clip.person, []).append(index)
    for members in by_person.values():
        order = [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]
        while order:
            stream, length = [order.pop()], 0
            length = len(clips[stream[0]])
            while order and length + len(clips[order[-1]]) <= STREAM_FRAMES:
                stream.append(order.pop())
                length += len(clips[stream[-1]])
            sound = torch.cat([disturb(clip_audio(clips[i]), generator) for i in stream])
            encoded = encoder.encode(sound, length).half()
            for i, part in zip(stream, encoded.split([len(clips[i]) for i in stream]), strict=True):
                features[i] = part.clone()
    return [f for f in features if f is not None]


def silence_features(encoder: AudioEncoder, generator: torch.Generator) -> Tensor:
    """What the encoder makes of digital silence and faint noise, (SILENCE_FRAMES, D) float16."""
    samples = torch.randn(SILENCE_FRAMES * FRAME_SAMPLES, generator=generator)
    level = 10 ** torch.empty(SILENCE_FRAMES // 100).uniform_(-4.5, -2.3, generator=generator)
    level[::3] = 0
    return encoder.encode(samples * level.repeat_interleave(100 * FRAME_SAMPLES), SILENCE_FRAMES).half()


class MotionStore:
    """All clips as sequences with several variants of audio features, cached in ``cache``."""

    def __init__(
        self,
        store: ClipStore,
        mean_face: Tensor,
        encoder: AudioEncoder,
        cache: Path,
        variants: int,
        need_sound: bool = True,
    ) -> None:
        """variants: number of differently disturbed hearings; 0 = undisturbed only (validation)."""
        keep = [i for i, clip in enumerate(store.clips) if has_sound(clip) or not need_sound]
        self.sequences = [sequence_of(store.clips[i], mean_face) for i in keep]
        self.weight = store.weight[keep]
        clips = [s.clip for s in self.sequences]
        self.features: list[list[Tensor]] = []
        for variant in range(max(1, variants)):
            generator = torch.Generator().manual_seed(1000 + variant) if variants else None
            path = cache / f"audio_{'clean' if generator is None else variant}.safetensors"
            self.features.append(_cached(path, clips, encoder, generator))
        self.silence = silence_features(encoder, torch.Generator().manual_seed(7))

    def __len__(self) -> int:
        return len(self.sequences)

    def audio(self, index: int, generator: torch.Generator | None = None) -> Tensor:
        """Features (T, D) float32 of one clip, of a random variant."""
        variant = 0
        if generator is not None:
            variant = int(torch.randint(len(self.features), (1,), generator=generator))
        return self.features[variant][index].float()


def _cached(path: Path, clips: list[Clip], encoder: AudioEncoder, generator: torch.Generator | None) -> list[Tensor]:
    names = [clip.path.stem for clip in clips]
    if path.is_file():
        stored = load_file(path)
        if all(name in stored for name in names) and stored[names[0]].shape[1] == encoder.feature_size:
            return [stored[name] for name in names]
    log.info("encoding the sound of %d clips for %s", len(clips), path.name)
    features = encode_clips(clips, encoder, generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(zip(names, features, strict=True)), path)
    return features


def closed_shapes(sequences: list[Sequence]) -> dict[str, Tensor]:
    """For each clip (by stem) a pose-free shape (478, 3) with the mouth shut: the clip's own, or its speaker's median one."""
    own: dict[str, Tensor] = {}
    of_person: dict[str, list[Tensor]] = {}
    for s in sequences:
        frame = int(s.aperture.argmin())
        if float(s.aperture[frame]) < CLOSED_APERTURE:
            own[s.clip.path.stem] = s.shape[frame]
            of_person.setdefault(s.clip.person, []).append(s.shape[frame])
    typical = {person: torch.stack(shapes).median(0).values for person, shapes in of_person.items()}
    for s in sequences:
        if s.clip.path.stem not in own and s.clip.person in typical:
            own[s.clip.path.stem] = typical[s.clip.person]
    return own
