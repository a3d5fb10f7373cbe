"""From what is shown to figures: one record a clip and column, and the list of all measures.

A record holds, for every figure that makes sense there, that clip's sums (``intervals``). A cell of the table is one measure
applied to the total of a column's records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dawn.face import mesh as lm
from dawn.face.geometry import eye_aspect_ratio, remove_pose
from dawn.measures import identity, lips, motion, picture, sync
from dawn.measures.intervals import Finish, Float64Array, share
from dawn.models.judges.sface import SFace
from dawn.models.judges.sync import MIN_CLIP_FRAMES, LagDistances
from dawn.research.evaluation.bench import EvalClip, Shown
from dawn.research.evaluation.community.figures import clip_record, embed
from dawn.research.evaluation.records import Measure, Record
from dawn.structs import FPS, MS_PER_FRAME

IDENTITY_STRIDE = 3
"""Identity changes slowly: every third frame tells it."""
FRECHET_ROUNDS = 100

PARTS = ("likeness", "identity", "lips", "place", "sync", "motion", "against real", "community")
"""Kinds of figures; which of them a column has, see ``report``."""


@dataclass(frozen=True)
class Tools:
    """What measuring needs besides the frames.

    judge: of ``evaluation.sync``, or None; community: of ``evaluation.community.files``, or None.
    """

    sface: SFace
    judge: Any
    mean_face: Tensor
    community: Any = None


@dataclass(frozen=True)
class Truth:
    """One clip, as the other side of every comparison.

    again: its own frames, tracked as generated ones are; threshold: ``lips.closed_threshold`` of the person.
    """

    clip: EvalClip
    again: Shown
    threshold: float
    tools: Tools

    @cached_property
    def features(self) -> Float64Array:
        """SFace features of every third frame from the second on."""
        return identity.embed(
            self.tools.sface, self.clip.frames[1::IDENTITY_STRIDE], self.clip.landmarks[1::IDENTITY_STRIDE]
        )

    @cached_property
    def source_features(self) -> Float64Array:
        """Embed the first frame, which is the source itself, with SFace."""
        return identity.embed(self.tools.sface, self.clip.frames[:1], self.clip.landmarks[:1])

    @cached_property
    def onsets_s(self) -> Float64Array:
        """Find where the sound sets in, in seconds."""
        return motion.audio_onsets(self.clip.samples)

    @cached_property
    def community(self) -> Record:
        """What the community's networks make of the true frames."""
        return embed(self.tools.community, self.clip.frames)

    @cached_property
    def moved(self) -> tuple[Tensor, Tensor]:
        """Shape and pose of ``again``."""
        return remove_pose(torch.from_numpy(self.again.landmarks), self.tools.mean_face)


def measure_clip(shown: Shown, truth: Truth, parts: Sequence[str]) -> Record:
    """The record of one clip in one column. parts: of ``PARTS``; those that the clip does not allow are left out."""
    out: Record = {"found": np.array([shown.found.mean(), 1.0])}
    if "likeness" in parts:
        out |= _likeness(shown, truth)
    if "identity" in parts:
        out |= _identity(shown, truth)
    if "lips" in parts:
        out |= _lips(shown, truth)
    if "place" in parts:
        out |= _place(shown, truth)
    if "sync" in parts and truth.tools.judge is not None:
        out |= _sync(shown, truth)
    if "motion" in parts:
        out |= _motion(shown, truth)
    if "against real" in parts:
        out |= _against_real(shown, truth)
    if "community" in parts and truth.tools.community is not None:
        out |= _community(shown, truth)
    return out


def _means(values: dict[str, float]) -> Record:
    return {key: np.array([value, 1.0]) for key, value in values.items() if math.isfinite(value)}


def widest_mouth_frame(landmarks: np.ndarray) -> int:
    """The frame whose inner-lip gap differs most from the first frame's. (T, 478, 3)."""
    gap = landmarks[:, lm.INNER_LIP_PAIRS[1][1], 1] - landmarks[:, lm.INNER_LIP_PAIRS[1][0], 1]
    return int(np.abs(gap - gap[0]).argmax())


def _likeness(shown: Shown, truth: Truth) -> Record:
    """Compare all frames but the first, which is the source itself.

    Boxes of comparisons are the truth's; sharpness, which needs no other side, is taken in each side's own.
    """
    made, real = shown.frames[1:], truth.clip.frames[1:]
    size = made.shape[1]
    points = picture.to_pixels(truth.clip.landmarks, size)
    own = picture.to_pixels(shown.landmarks, size)
    mouths = [picture.mouth_box(p) for p in points]
    eyes = [picture.eye_boxes(p) for p in points]
    wide = widest_mouth_frame(truth.clip.landmarks)
    sides = [[pair[side] for pair in eyes[1:]] for side in (0, 1)]
    values = {
        "l1": picture.l1(made, real),
        "psnr": picture.psnr(made, real),
        "ssim": picture.ssim(made, real),
        "mouth psnr": picture.box_psnr(made, real, mouths[1:]),
        "wide mouth psnr": picture.box_psnr(shown.frames[wide][None], truth.clip.frames[wide][None], [mouths[wide]]),
        "eye psnr": float(np.mean([picture.box_psnr(made, real, boxes) for boxes in sides])),
        "detail": picture.detail_ratio(made, real),
    }
    for name, box in (("face", picture.face_box), ("mouth", picture.mouth_box)):
        ours = picture.gradient_energy(made, [box(p) for p in own[1:]])
        values[f"{name} sharpness"] = ours / picture.gradient_energy(real, [box(p) for p in points[1:]])
    return _means(values)


def _identity(shown: Shown, truth: Truth) -> Record:
    every = slice(1, None, IDENTITY_STRIDE)
    features = identity.embed(truth.tools.sface, shown.frames[every], shown.landmarks[every])
    to_truth = identity.cosine(features, truth.features).mean()
    to_source = identity.cosine(features, truth.source_features).mean()
    means = _means({"truth cosine": float(to_truth), "source cosine": float(to_source)})
    return means | {"frechet": identity.moment_sums(features, truth.features)}


def _lips(shown: Shown, truth: Truth) -> Record:
    true = truth.clip.landmarks
    aperture, real = lips.lip_distance(shown.landmarks), lips.lip_distance(true)
    width, real_width = lips.lip_width(shown.landmarks), lips.lip_width(true)
    closures = lips.closure_sums(aperture, real, truth.threshold)
    return {
        "aperture": lips.correlation_sums(aperture, real),
        "aperture lags": lips.lag_sums(aperture, real),
        "width": lips.correlation_sums(width, real_width),
        "width lags": lips.lag_sums(width, real_width),
        "closure recall": closures[:2],
        "closure precision": closures[2:],
        "mean aperture": np.array([aperture.sum(), len(aperture)]),
    }


def _place(shown: Shown, truth: Truth) -> Record:
    made, real = shown.landmarks[1:], truth.clip.landmarks[1:]
    return _means({"error": lips.landmark_error(made, real), "lip error": lips.landmark_error(made, real, lm.LIPS)})


def _sync(shown: Shown, truth: Truth) -> Record:
    samples = truth.clip.samples
    if len(shown.frames) < MIN_CLIP_FRAMES or not np.any(samples):
        return {}
    distances = sync.clip_distances(truth.tools.judge, shown.frames, shown.landmarks, samples)
    return {"sync": np.concatenate((distances.sums, distances.counts)).astype(np.float64)}


def _sync_score(index: int) -> Finish:
    def finish(total: Float64Array) -> float:
        sums, counts = np.split(total, 2)
        return float(sync.score_distances(LagDistances(sums, counts.astype(np.int64)))[index])

    return finish


def _motion(shown: Shown, truth: Truth) -> Record:
    shape, pose = remove_pose(torch.from_numpy(shown.landmarks), truth.tools.mean_face)
    angles = pose[:, :3].numpy()
    speed = motion.angular_speed(angles)
    return {
        "blinks": np.array([motion.blink_count(eye_aspect_ratio(shape).mean(-1).numpy()), len(shape) / FPS]),
        "speed": np.array([speed.sum(), len(speed)]),
        "beats": motion.beat_sums(motion.pose_beats(angles), truth.onsets_s),
        **_means({"range": motion.pose_range(angles)}),
    }


def _against_real(shown: Shown, truth: Truth) -> Record:
    """(ours, the true frames') for ratios, one pair a clip."""
    shape, pose = remove_pose(torch.from_numpy(shown.landmarks), truth.tools.mean_face)
    real_shape, real_pose = truth.moved
    angles, real_angles = pose[:, :3].numpy(), real_pose[:, :3].numpy()
    where = motion.background([shown.landmarks, truth.again.landmarks], shown.frames.shape[1])
    pairs = {
        "jitter ratio": (motion.jitter(shape.numpy()), motion.jitter(real_shape.numpy())),
        "flicker ratio": (motion.flicker(shown.frames, where), motion.flicker(truth.again.frames, where)),
        "speed ratio": (motion.angular_speed(angles).sum(), motion.angular_speed(real_angles).sum()),
        "range ratio": (motion.pose_range(angles), motion.pose_range(real_angles)),
    }
    return {key: np.array(pair) for key, pair in pairs.items() if np.isfinite(pair).all()}


def _community(shown: Shown, truth: Truth) -> Record:
    return clip_record(truth.tools.community, shown, truth.clip, truth.community)


def _lag_frames(total: Float64Array) -> float:
    return float(lips.best_lag(total).frames)


def _lag_ms(total: Float64Array) -> float:
    return _lag_frames(total) * MS_PER_FRAME


def _lag_correlation(total: Float64Array) -> float:
    return lips.best_lag(total).correlation


def _milliseconds(total: Float64Array) -> float:
    return 1000 * share(total)


MEASURES = (
    Measure("picture", "PSNR", "psnr", unit="dB"),
    Measure("picture", "SSIM", "ssim"),
    Measure("picture", "L1", "l1", better="lower"),
    Measure("picture", "mouth-box PSNR", "mouth psnr", unit="dB"),
    Measure("picture", "mouth-box PSNR, widest change", "wide mouth psnr", unit="dB"),
    Measure("picture", "eye-box PSNR", "eye psnr", unit="dB"),
    Measure("picture", "sharpness, face", "face sharpness", unit="of real", better="near 1"),
    Measure("picture", "sharpness, mouth box", "mouth sharpness", unit="of real", better="near 1"),
    Measure("picture", "finest detail, whole picture", "detail", unit="of real", better="near 1"),
    Measure("picture", "SFace cosine to truth", "truth cosine"),
    Measure("picture", "SFace cosine to source", "source cosine"),
    Measure(
        "picture", "SFace Fréchet distance", "frechet", identity.frechet_distance, better="lower", rounds=FRECHET_ROUNDS
    ),
    Measure("picture", "face found again", "found", unit="of frames"),
    Measure("lips", "aperture correlation", "aperture lags", _lag_correlation),
    Measure("lips", "aperture correlation, lag 0", "aperture", lips.correlation),
    Measure("lips", "lag", "aperture lags", _lag_frames, "frames late", "near 0"),
    Measure("lips", "A/V offset", "aperture lags", _lag_ms, "ms late", "near 0"),
    Measure("lips", "aperture amplitude", "aperture", lips.amplitude_ratio, "of real", "near 1"),
    Measure("lips", "width correlation", "width lags", _lag_correlation),
    Measure("lips", "width correlation, lag 0", "width", lips.correlation),
    Measure("lips", "closure recall", "closure recall"),
    Measure("lips", "closure precision", "closure precision"),
    Measure("lips", "mean aperture", "mean aperture", unit="eye distances", better="near real"),
    Measure("lips", "landmark error, lips", "lip error", unit="eye distances", better="lower"),
    Measure("lips", "sync confidence", "sync", _sync_score(0)),
    Measure("lips", "sync distance", "sync", _sync_score(1), better="lower"),
    Measure("lips", "sync offset", "sync", _sync_score(2), "frames", "near 0"),
    Measure("motion", "landmark error, all", "error", unit="eye distances", better="lower"),
    Measure("motion", "blinks, within clips", "blinks", unit="per second", better="near real"),
    Measure("motion", "pose speed", "speed", unit="deg/s", better="near real"),
    Measure("motion", "pose speed against real", "speed ratio", unit="of real", better="near 1"),
    Measure("motion", "pose range", "range", unit="deg", better="near real"),
    Measure("motion", "pose range against real", "range ratio", unit="of real", better="near 1"),
    Measure("motion", "beat alignment", "beats"),
    Measure("motion", "jitter", "jitter ratio", unit="of real", better="near 1"),
    Measure("motion", "flicker", "flicker ratio", unit="of real", better="near 1"),
    Measure("cost", "audio features", "audio features", _milliseconds, "ms per frame", "lower"),
    Measure("cost", "motion", "motion", _milliseconds, "ms per frame", "lower"),
    Measure("cost", "decoding", "decoding", _milliseconds, "ms per frame", "lower"),
    Measure("cost", "all three", "all three", _milliseconds, "ms per frame", "lower"),
)
