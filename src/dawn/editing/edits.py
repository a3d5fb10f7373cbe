"""Edits of a part of a motion: ``Motion`` in, ``Motion`` out, nothing else changed.

What an edit does is eased in and out inside its region, so that every frame outside is the same bit by bit. Where a region
reaches the first or the last frame there is nothing to join, and no easing.

In the ``lite`` motion space eyes are shut by the expression, as every other part of the face is moved by it; the blink
columns only tell the networks, and whoever reads the file, how far. Edits of blinks change both alike.
(An addition to the paper.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dawn.engines.load import load_motion_space
from dawn.errors import ConfigError, DawnError, MotionError
from dawn.face import mesh as lm
from dawn.face.geometry import smoothstep
from dawn.measures.motion import find_runs
from dawn.models.lite.motion_space import MotionSpace
from dawn.rules_config import BlinkRules
from dawn.structs import FPS, Face, Motion

Array = NDArray[Any]
BoolArray = NDArray[np.bool_]

EASE_FRAMES = 5
"""A fifth of a second to come in and to go out; shorter in regions that are shorter than twice that."""
MAX_HEAD, MAX_EXPRESSION = 3.0, 2.0
"""As far as ``GenerateOptions`` go."""
BLINK_COURSE = (0.06, 0.5, 1.0, 1.0, 0.4, 0.18, 0.06)
"""How far the eyes are shut from frame to frame: the full blinks that are generated take 0.28 s, and open slower than they
shut."""
BLINK_SHUT_FRAME = 2
BLINK_LEFT = 0.08
"""Share of the lids' gap that full generated blinks leave."""
BLINK_WINDOW_FRAMES = 15
"""A fall of the lids that is over within this time is a blink if it is deep; longer, the eyes are shut."""
BLINK_DEPTH = 0.2
"""Of the open eye's gap."""
DIP_EDGE = 0.05
"""A blink reaches as far as the lids are so much (of the open eye's gap) below where they were."""


@dataclass(frozen=True)
class Region:
    """A part of a motion, in seconds from its beginning; frame i lies at i / 25 to (i + 1) / 25."""

    start_s: float
    stop_s: float

    def frames(self, length: int) -> slice:
        """The frames that the region touches, of ``length``. Raises ConfigError for a region that has none of them."""
        whole = f"the motion lasts 0 to {length / FPS:g} s"
        if not (math.isfinite(self.start_s) and math.isfinite(self.stop_s)):
            raise ConfigError(f"region {self.start_s} to {self.stop_s} s: give two numbers; {whole}")
        if self.start_s >= self.stop_s:
            raise ConfigError(
                f"region {self.start_s:g} to {self.stop_s:g} s: its start must lie before its end; {whole}"
            )
        # A hair's breadth, so that 0.28 s is frame 7 in spite of 0.28 * 25 = 7.000000000000001.
        start, stop = math.floor(self.start_s * FPS + 1e-6), math.ceil(self.stop_s * FPS - 1e-6)
        if start < 0 or stop > length:
            raise ConfigError(f"region {self.start_s:g} to {self.stop_s:g} s reaches outside: {whole}")
        return slice(start, stop)


def scale_head(motion: Motion, region: Region, factor: float) -> Motion:
    """Head motion in the region, ``factor`` times as strong: 0 to 3; 1 changes nothing.

    Scaled is the distance from the straight way between the poses at both ends of the region, so that the head does not
    have to hurry back to the portrait's pose; a whole motion is scaled about the portrait's pose. Raises ConfigError
    (region, factor), MotionError for motion of the published model, which is dense flow.
    """
    part = region.frames(len(motion))
    _lite(motion)
    _in_range("head motion", factor, MAX_HEAD)
    distance = motion.pose[part] - _way(motion.pose, part)
    return _edited(motion, part, pose=motion.pose[part] + _weight(part, len(motion)) * (factor - 1) * distance)


def scale_expression(motion: Motion, region: Region, factor: float) -> Motion:
    """Make facial motion (lips, brows, lids) in the region ``factor`` times as strong: 0 to 2.

    0 is the portrait's own face. Raises as ``scale_head``.
    """
    part = region.frames(len(motion))
    _lite(motion)
    _in_range("expression", factor, MAX_EXPRESSION)
    gain = 1 + _weight(part, len(motion)) * (factor - 1)
    return _edited(motion, part, expression=motion.expression[part] * gain, blink=motion.blink[part] * gain)


def add_blink(motion: Motion, at_s: float, face: Face, space: MotionSpace | None = None) -> Motion:
    """Let both eyes blink, shut at ``at_s`` seconds.

    The blink is as deep as full generated blinks and 0.28 s long. Eyes that are shut already stay so.

    face: the portrait, for how far its eyes are open. space: what the coefficients mean (``Video.space``); None: that of the
    preset which the motion names. Raises ConfigError for a moment outside or where the space is not known, MotionError for
    motion of another space.
    """
    if not (math.isfinite(at_s) and 0 <= at_s < len(motion) / FPS):
        raise ConfigError(f"blink at {at_s:g} s: give a moment from 0 to {len(motion) / FPS:g} s")
    gap, direction = lids(_space_of(motion, space))
    first = int(at_s * FPS + 1e-6) - BLINK_SHUT_FRAME
    part = slice(max(0, first), min(len(motion), first + len(BLINK_COURSE)))
    share = np.array(BLINK_COURSE)[part.start - first : part.stop - first, None]
    own = _lid_gaps(face.shape)
    now = own + motion.expression[part] @ gap
    fall = share * (now - BLINK_LEFT * own).clip(min=0)
    shut = np.minimum(motion.blink[part], BlinkRules().shut_ear - face.blink)
    return _edited(
        motion,
        part,
        expression=motion.expression[part] - fall @ direction,
        blink=motion.blink[part] + share * (shut - motion.blink[part]),
    )


def remove_blinks(motion: Motion, region: Region, space: MotionSpace | None = None) -> Motion:
    """No blinks in the region: while one lasts, the upper face goes straight from how it was before to how it is afterwards.

    Eyes that are shut for longer than 0.6 s stay shut. A motion without blinks comes back as it is. space and what is
    raised: as for ``add_blink``.
    """
    part = region.frames(len(motion))
    known = _space_of(motion, space)
    gaps = motion.expression @ lids(known)[0]
    expression, blink = motion.expression.astype(np.float64), motion.blink.astype(np.float64)
    for start, stop in blinks(gaps.mean(1), float(_lid_gaps(known.mean_face.cpu().numpy()).mean())):
        span = slice(int(start), int(stop))
        expression[span, known.upper] = _way(expression[:, known.upper], span, hold=True)
        blink[span] = _way(blink, span, hold=True)
    weight = _weight(part, len(motion))
    return _edited(
        motion,
        part,
        expression=_faded(motion.expression[part], expression[part], weight),
        blink=_faded(motion.blink[part], blink[part], weight),
    )


def blend(motion: Motion, other: Motion, region: Region) -> Motion:
    """Another motion inside the region, cross-faded at its edges; its head is led from where ours was to where ours goes on.

    Raises ConfigError (region), MotionError for another length or motion space.
    """
    part = region.frames(len(motion))
    if (other.space, len(other), other.expression.shape) != (motion.space, len(motion), motion.expression.shape):
        raise MotionError(
            f"the other motion has {len(other)} frames of the space {other.space!r}, this one {len(motion)} of "
            f"{motion.space!r}: give one made for the same sound by the same preset"
        )
    weight = _weight(part, len(motion))
    led = other.pose[part] - _way(other.pose, part) + _way(motion.pose, part)
    return _edited(
        motion,
        part,
        pose=_faded(motion.pose[part], led, weight),
        blink=_faded(motion.blink[part], other.blink[part], weight),
        expression=_faded(motion.expression[part], other.expression[part], weight),
    )


def changed_frames(before: Motion, after: Motion) -> BoolArray:
    """(T,): frames in which any number differs. Raises MotionError for motions of different length or space."""
    if (before.space, before.expression.shape) != (after.space, after.expression.shape):
        raise MotionError(
            f"motions of {len(before)} and {len(after)} frames cannot be compared: give two of the same video"
        )
    tables = ((before.pose, after.pose), (before.blink, after.blink), (before.expression, after.expression))
    return np.logical_or.reduce([(old != new).any(1) for old, new in tables])


def lids(space: MotionSpace) -> tuple[Array, Array]:
    """Fit how coefficients move the lids, and back.

    Returns (K, 2) from coefficients to the gaps of the left and the right eye, and (2, K) the likeliest coefficients
    that open one eye by one unit. Upper face only; gaps are in eye distances.
    """
    basis, scale = space.basis.cpu().numpy().astype(np.float64), space.scale.cpu().numpy().astype(np.float64)
    rows = [np.mean([basis[:, 3 * low + 1] - basis[:, 3 * up + 1] for up, low in pairs], 0) for pairs in _LID_PAIRS]
    gap = np.stack(rows, 1) * scale[:, None]
    gap[space.lower] = 0
    opening = np.zeros_like(gap.T)
    # Coefficients are of unit variance, so the likeliest change is the shortest one.
    opening[:, space.upper] = np.linalg.pinv(gap[space.upper])
    return gap, opening


def blinks(gap: Array, open_gap: float) -> NDArray[np.int_]:
    """Find every blink in the course of a gap (T,): (N, 2) frames [start, stop).

    Blinks are deep falls that are over within 0.6 s, or within half of that where the motion begins or ends with them.
    """
    near = np.lib.stride_tricks.sliding_window_view
    half = BLINK_WINDOW_FRAMES // 2
    highest = near(np.pad(gap, half, mode="edge"), BLINK_WINDOW_FRAMES).max(1)
    level = near(np.pad(highest, half, mode="edge"), BLINK_WINDOW_FRAMES).min(1)
    depth = (level - gap) / open_gap
    spans = find_runs(depth > DIP_EDGE)
    return spans[[depth[start:stop].max() > BLINK_DEPTH for start, stop in spans]] if len(spans) else spans


_LID_PAIRS = (lm.LEFT_EAR_POINTS[2:], lm.RIGHT_EAR_POINTS[2:])


def _lid_gaps(shape: Array) -> Array:
    """Of one pose-free shape (478, 3): (2,) for the left and the right eye, in the shape's units."""
    return np.array([np.mean([shape[low, 1] - shape[up, 1] for up, low in pairs]) for pairs in _LID_PAIRS])


def _space_of(motion: Motion, space: MotionSpace | None) -> MotionSpace:
    """The given motion space, or that of the preset that the motion names."""
    _lite(motion)
    name = motion.info.get("preset")
    if space is None:
        try:
            space = load_motion_space(name) if name else None
        except DawnError:
            space = None
        if space is None:
            raise ConfigError(
                f"eyes cannot be edited: the motion's preset, {name!r}, is not shipped; give space=video.space"
            )
    if space.config.size != motion.expression.shape[1]:
        raise MotionError(
            f"the motion has {motion.expression.shape[1]} coefficients, the motion space {space.config.size}: "
            "use the preset that made it"
        )
    return space


def _lite(motion: Motion) -> None:
    if motion.space != "lite":
        raise MotionError(
            f"motion of the space {motion.space!r} is dense flow, in which head and eyes cannot be told apart: "
            "edit it by another seed in the region, or use a lite preset"
        )


def _in_range(what: str, factor: float, highest: float) -> None:
    if not 0 <= factor <= highest:
        raise ConfigError(f"{what} x {factor}: give a factor from 0 to {highest:g}")


def _weight(part: slice, length: int) -> Array:
    """(n, 1): 1 inside, eased to nothing just outside of the region, except where the motion begins or ends."""
    count = part.stop - part.start
    ease = min(EASE_FRAMES, (count - 1) // 2) + 1
    place = np.arange(count)
    nearest = np.minimum(place + 1 if part.start else ease, count - place if part.stop < length else ease)
    return np.broadcast_to(smoothstep(nearest / ease), count)[:, None]


def _way(values: Array, part: slice, hold: bool = False) -> Array:
    """The straight way through a part of (T, n), from the frame before it to the frame after it: (part, n).

    At the end of the motion: where it came from. At its beginning: from 0, the portrait, or, with ``hold``, where it goes to.
    """
    after = values[part.stop] if part.stop < len(values) else None
    before = values[part.start - 1] if part.start else None
    if before is None:
        before = after if hold and after is not None else np.zeros_like(values[0])
    after = before if after is None else after
    share = np.arange(1, part.stop - part.start + 1)[:, None] / (part.stop - part.start + 1)
    return before + share * (after.astype(np.float64) - before)


def _faded(old: Array, new: Array, weight: Array) -> Array:
    """``new`` where the weight is 1, exactly."""
    return np.where(weight == 1, new, old + weight * (new - old))


def _edited(motion: Motion, part: slice, **columns: Array) -> Motion:
    """The motion with a part of some columns put in."""
    changed = {}
    for name, values in columns.items():
        table = getattr(motion, name).copy()
        table[part] = values
        changed[name] = table
    return replace(motion, info=motion.info | {"edited": "true"}, **changed)
