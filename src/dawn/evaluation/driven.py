"""Driven by its own landmarks: how well does the generator redraw a clip from its first frame?

Nothing is generated from sound here. The control of every figure is the first frame, repeated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dawn import landmarks as lm
from dawn.evaluation import quality
from dawn.evaluation.material import Bench, EvalClip, render, row, track
from dawn.structs import LANDMARK_COUNT, FloatArray, ImageArray

IDENTITY_STRIDE = 3
"""Identity changes slowly: every third frame tells it."""


def evaluate_driven(bench: Bench) -> dict[str, dict[str, Any]]:
    """All rows of this part: {name: row}."""
    records, apertures = [], []
    for index, (clip, real) in enumerate(zip(bench.clips, bench.real, strict=True)):
        made = render(bench.bundle, clip.face, torch.from_numpy(clip.landmarks))
        again = track(bench.tracker, made, clip.landmarks[0])
        still = np.repeat(clip.frames[:1], len(clip), 0)
        # The first frame is tracked once: the repeated picture does not change.
        repeated = np.repeat(real.landmarks[:1], len(clip), 0)
        record = {
            **_named("", _pictures(made, clip) | _mouth(made, clip) | _landmarks(again.landmarks, clip)),
            **_named("control ", _pictures(still, clip) | _mouth(still, clip) | _landmarks(repeated, clip)),
            **_named("real ", _landmarks(real.landmarks, clip)),
            "identity": identity(bench, made, clip.landmarks, clip),
            "control identity": identity(bench, still[:1], clip.landmarks[:1], clip),
            "found": float(again.found[1:].mean()),
            "real found": float(real.found[1:].mean()),
            "sharpness": quality.sharpness_ratio(made[1:], clip.frames[1:]),
        }
        records.append(record)
        apertures.append(quality.lip_aperture(again.landmarks))
        bench.progress("driven by its own landmarks", index + 1, len(bench.clips))
    return _rows(records, apertures, bench)


def _rows(records: list[dict[str, float]], apertures: list[np.ndarray], bench: Bench) -> dict[str, dict[str, Any]]:
    columns = {key: np.array([record[key] for record in records]) for key in records[0]}
    rng = np.random.default_rng(0)

    def line(key: str, unit: str = "", interval: bool = False) -> dict[str, Any]:
        bounds = quality.bootstrap_interval(columns[key], rng) if interval else None
        control, real = (columns[f"{kind} {key}"].mean() if f"{kind} {key}" in columns else None
                         for kind in ("control", "real"))  # fmt: skip
        return row(columns[key].mean(), control, bounds, real, unit)

    gain = columns["mouth"] - columns["control mouth"]
    truth = [quality.lip_aperture(clip.landmarks) for clip in bench.clips]
    real = [quality.lip_aperture(tracked.landmarks) for tracked in bench.real]
    return {
        "L1": line("l1", interval=True),
        "PSNR": line("psnr", "dB", interval=True),
        "SSIM": line("ssim", interval=True),
        "mouth-box PSNR, widest change": line("mouth", "dB", interval=True),
        "  gain over repeating": row(gain.mean(), 0.0, quality.bootstrap_interval(gain, rng), unit="dB"),
        "SFace cosine to truth": line("identity", interval=True),
        "landmark error, all": line("error", "eye distances", interval=True),
        "landmark error, lips": line("lip error", "eye distances", interval=True),
        "lip aperture correlation": row(quality.pooled_correlation(apertures, truth), 0.0,
                                        real=quality.pooled_correlation(real, truth)),
        "sharpness": line("sharpness", "of real"),
        "face found again": line("found", "of frames"),
    }  # fmt: skip


def _named(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {prefix + key: value for key, value in values.items()}


def _pictures(made: ImageArray, clip: EvalClip) -> dict[str, float]:
    """All frames but the first, which is the source itself."""
    a, b = made[1:], clip.frames[1:]
    return {"l1": quality.l1(a, b), "psnr": quality.psnr(a, b), "ssim": quality.ssim(a, b)}


def widest_mouth_frame(landmarks: FloatArray) -> int:
    """The frame whose inner-lip gap differs most from the first frame's."""
    gap = landmarks[:, lm.INNER_LIP_PAIRS[1][1], 1] - landmarks[:, lm.INNER_LIP_PAIRS[1][0], 1]
    return int(np.abs(gap - gap[0]).argmax())


def _mouth(made: ImageArray, clip: EvalClip) -> dict[str, float]:
    index = widest_mouth_frame(clip.landmarks)
    pixels = (clip.landmarks[index] + 1) * (made.shape[1] / 2)
    frames = slice(index, index + 1)
    return {"mouth": quality.box_psnr(made[frames], clip.frames[frames], [quality.mouth_box(pixels)])}


def _landmarks(points: FloatArray, clip: EvalClip) -> dict[str, float]:
    """Errors over all landmarks and over the lips, the first frame left out."""
    made, real = points[1:], clip.landmarks[1:]
    lips_only = real.copy()
    lips_only[:, list(lm.LIPS)] = made[:, list(lm.LIPS)]
    share = len(lm.LIPS) / LANDMARK_COUNT
    return {"error": quality.landmark_error(made, real), "lip error": quality.landmark_error(lips_only, real) / share}


def identity(bench: Bench, made: ImageArray, points: FloatArray, clip: EvalClip) -> float:
    """Mean SFace cosine between generated frames with their landmarks and the clip's own, the first frame left out.

    made: as many frames as the clip has, or a single one that meets all.
    """
    pick = slice(1, None, IDENTITY_STRIDE)
    if len(made) > 1:
        made, points = made[pick], points[pick]
    return float(quality.identity_cosine(bench.sface, made, points, clip.frames[pick], clip.landmarks[pick]).mean())


