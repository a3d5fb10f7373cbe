"""The hand rules that shape what the networks make."""

from __future__ import annotations

import torch
from torch import Tensor

from dawn.face import mesh as lm
from dawn.face.geometry import smooth
from dawn.models.attention import CHUNK_FRAMES
from dawn.models.audio.features import fit_to_frames
from dawn.options import GenerateOptions
from dawn.structs import FRAME_SAMPLES, POSE_SIZE

BLINK_FROM = 0.16
"""Falls of the eye aspect ratio beyond this are blinks."""


BLINK_GAIN = 1.2


SHUT_EAR = 0.0


QUIET_DBFS = -50.0
"""Sound below this level counts as silence. Recordings with more noise are left to the network."""


QUIET_MARGIN_FRAMES = 2


QUIET_EASE_FRAMES = 1.5


ANCHOR_FRAMES = 20.0
"""Generated pose starts at the portrait's own and leaves it with this time constant."""


def quiet_share(samples: Tensor, frames: int) -> Tensor:
    """How far each frame lies within a silence, (L,) samples -> (frames,) in [0, 1], eased over a few frames.

    A frame is silent if the sound from two frames before it to two after stays below ``QUIET_DBFS``.
    """
    parts = samples[: frames * FRAME_SAMPLES].split(CHUNK_FRAMES * FRAME_SAMPLES)
    power = torch.cat([fit_to_frames(part, CHUNK_FRAMES).view(-1, FRAME_SAMPLES).square().mean(1) for part in parts])
    power = torch.nn.functional.pad(power, (0, frames - len(power)))
    loudest = torch.nn.functional.max_pool1d(power[None], 2 * QUIET_MARGIN_FRAMES + 1, 1, QUIET_MARGIN_FRAMES)[0]
    return smooth((loudest < 10 ** (QUIET_DBFS / 10)).float(), QUIET_EASE_FRAMES)


def deepen_blinks(blink: Tensor, ear: Tensor) -> Tensor:
    """Make blinks whole. blink (T, 2) change of the eye aspect ratio; ear (2,) the portrait's.

    PBNet, a variational model, answers a blink's uncertain moment with a shallower one. Changes beyond ``BLINK_FROM``
    are deepened, smaller ones are left alone, and no eye shuts further than shut.
    """
    deeper = blink * (1 + BLINK_GAIN * torch.sigmoid((-blink - BLINK_FROM) / 0.02))
    return torch.maximum(deeper, SHUT_EAR - ear.clamp_min(SHUT_EAR))


def shape_head(head: Tensor, options: GenerateOptions) -> Tensor:
    """Anchor the motion (T, 8) at the portrait's own pose, and apply the user's strength of it; blinks are left alone."""
    frames = torch.arange(len(head), device=head.device, dtype=head.dtype)
    fade = torch.exp(-frames / ANCHOR_FRAMES)[:, None]
    pose = head[:, :POSE_SIZE] - head[:1, :POSE_SIZE] * fade
    pose = pose * (0.0 if options.still else options.pose_scale)
    return torch.cat((pose, head[:, POSE_SIZE:]), -1)


CLOSING = 0.035


CLOSING_BELOW = 0.05
"""Eye distances: with these, generated openings are spread as those of the clips are (docs/log.md)."""


def keep_lips_apart(shape: Tensor) -> Tensor:
    """Where the inner lips cross, put both on the line between them. (..., 478, 3) -> the same."""
    upper = [a for a, _ in lm.ALL_INNER_LIP_PAIRS]
    lower = [b for _, b in lm.ALL_INNER_LIP_PAIRS]
    overlap = (shape[..., upper, 1] - shape[..., lower, 1]).clamp_min(0) / 2
    out = shape.clone()
    out[..., upper, 1] -= overlap
    out[..., lower, 1] += overlap
    return out
