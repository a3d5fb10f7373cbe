"""The motion view: curves of head, lids and lips under the sound, drawn in the browser by ``assets/timeline.js``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dawn.checks.traces import envelope, trace_motion
from dawn.measures.motion import find_runs
from dawn.structs import FPS, Motion, Speech

WAVE_COLUMNS = 800
FIGURES = 3
"""Decimals sent to the browser."""

Values = dict[str, Any]


def curves(motion: Motion, preset: str) -> Values:
    """Numbers of ``dawn plot`` for a motion: yaw, pitch and roll in degrees, lids and lips (None where they are not known)."""
    traces = trace_motion(motion, "motion", preset if motion.space == "lite" else None)
    lips = None if traces.lips is None else _short(traces.lips)
    yaw, pitch, roll = (_short(column) for column in np.asarray(traces.pose).T)
    return {"yaw": yaw, "pitch": pitch, "roll": roll, "lips": lips, "eyes": _short(np.asarray(traces.eyes).mean(1))}


def wave(speech: Speech | None) -> Values | None:
    """Highest and lowest sample of every column, of the loudest sample."""
    if speech is None:
        return None
    _, low, high = envelope(speech.samples, WAVE_COLUMNS)
    peak = max(1e-6, float(np.abs(speech.samples).max()))
    return {"high": _short(high / peak), "low": _short(low / peak), "seconds": speech.duration_s}


def view(
    motion: Motion, speech: Speech | None, changed: NDArray[np.bool_], preset: str, drawn: Values | None = None
) -> Values:
    """Collect all that the browser draws.

    changed: (T,) frames that wait to be drawn again. drawn: ``curves`` of the video as it is, if the motion is another
    by now.
    """
    spans = [[int(start), int(stop)] for start, stop in find_runs(np.asarray(changed, bool))]
    return {
        "fps": FPS,
        "frames": len(motion),
        "wave": wave(speech),
        "curves": curves(motion, preset),
        "drawn": drawn,
        "changed": spans,
    }


def _short(values: NDArray[Any]) -> list[float]:
    return [round(float(value), FIGURES) for value in values]
