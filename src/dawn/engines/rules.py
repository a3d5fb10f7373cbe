"""The hand rules that shape generated motion: lips, silence, blinks, the head. Their numbers: ``rules_config``.

Networks trained to a mean answer a moment's sound with what fits on average: mouths that never quite shut, blinks that
are too shallow. Each rule here mends one such thing and is switched off by a number (``--rules none``; docs/rules.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dawn.face.geometry import lip_aperture, smooth
from dawn.models.attention import CHUNK_FRAMES
from dawn.models.audio.features import fit_to_frames
from dawn.models.lite.motion_space import MotionSpace
from dawn.rules_config import BlinkRules, HeadRules, LipRules, SilenceRules
from dawn.structs import FRAME_SAMPLES, POSE_SIZE


def measure_quiet(samples: Tensor, frames: int, rules: SilenceRules) -> Tensor:
    """Say how far each frame lies within a silence, in [0, 1], eased over a few frames.

    A frame is silent if the sound from ``margin_frames`` before it to as many after stays below ``level_dbfs``.

    Args:
        samples: (L,) at 16 kHz.
        frames: frames of video.
        rules: the numbers.

    Returns:
        (frames,).
    """
    parts = samples[: frames * FRAME_SAMPLES].split(CHUNK_FRAMES * FRAME_SAMPLES)
    power = torch.cat([fit_to_frames(part, CHUNK_FRAMES).view(-1, FRAME_SAMPLES).square().mean(1) for part in parts])
    power = torch.nn.functional.pad(power, (0, frames - len(power)))
    margin = rules.margin_frames
    loudest = torch.nn.functional.max_pool1d(power[None], 2 * margin + 1, 1, margin)[0]
    return smooth((loudest < 10 ** (rules.level_dbfs / 10)).float(), rules.ease_frames)


def rest_lips(expression: Tensor, rest: Tensor, quiet: Tensor, space: MotionSpace) -> Tensor:
    """Bring the lower face (of coefficients (T, K)) to rest (K,) where it is quiet (T,)."""
    shaped = expression.clone()
    lower = shaped[:, space.lower]
    shaped[:, space.lower] = torch.lerp(lower, rest[space.lower].expand_as(lower), quiet[:, None])
    return shaped


def close_lips(expression: Tensor, shape: Tensor, space: MotionSpace, rules: LipRules) -> Tensor:
    """Make small lip openings smaller still; wide ones stay.

    The network's mean never shuts the mouth; people's lips are shut in every fifth frame. An opening a becomes
    a - ``closing`` exp(-(a / ``closing_below``)^2), and not less than nothing.

    Args:
        expression: (T, K) coefficients.
        shape: (478, 3) the source's.
        space: what the coefficients mean.
        rules: the numbers; ``closing`` 0 changes nothing.
    """
    if rules.closing == 0:
        return expression
    opening = lip_aperture(space.shapes(expression, shape, rules.apart)).clamp_min(0)
    less = (rules.closing * torch.exp(-(opening / rules.closing_below).square())).minimum(opening)
    return expression - less[:, None] * space.opening_direction()


def deepen_blinks(blink: Tensor, ear: Tensor, rules: BlinkRules) -> Tensor:
    """Make blinks whole: deepen falls beyond ``from_ear``, leave smaller ones alone, shut no eye further than shut.

    PBNet, a variational model, answers a blink's uncertain moment with a shallower one.

    Args:
        blink: (T, 2) change of the eye aspect ratio.
        ear: (2,) the portrait's.
        rules: the numbers; ``gain`` 0 changes nothing but over-shut eyes.
    """
    deeper = blink * (1 + rules.gain * torch.sigmoid((-blink - rules.from_ear) / rules.softness_ear))
    return torch.maximum(deeper, rules.shut_ear - ear.clamp_min(rules.shut_ear))


def anchor_head(head: Tensor, rules: HeadRules) -> Tensor:
    """Let the pose (of (T, 8)) begin at the portrait's own and leave it with a time constant; blinks stay."""
    if rules.anchor_frames == 0:
        return head
    frames = torch.arange(len(head), device=head.device, dtype=head.dtype)
    fade = torch.exp(-frames / rules.anchor_frames)[:, None]
    pose = head[:, :POSE_SIZE] - head[:1, :POSE_SIZE] * fade
    return torch.cat((pose, head[:, POSE_SIZE:]), -1)
