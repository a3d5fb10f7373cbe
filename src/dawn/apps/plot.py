"""``dawn plot``: one PNG of a talking video or a motion file, with frames, sound, lips, head and eyes on one time axis.

A video is tracked frame by frame; a motion file holds no picture, so its lips and lids are shown on the mean face. Drawn by
matplotlib without ``pyplot``: no window, no backend chosen, no state beyond the figure. Left and right of the head are the
picture's, of the eyes the person's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dawn.checks.traces import Curves, Traces, envelope, trace_motion, trace_video
from dawn.errors import ConfigError, missing_extra
from dawn.measures.motion import find_runs
from dawn.media.files import FilePath, replace_file
from dawn.media.motion_json import load_motion
from dawn.progress import Progress
from dawn.structs import FPS

WAVE_COLUMNS = 1200
"""Highest and lowest sample of this many stretches: as many as the panel has pixels."""

DPI = 110
WIDTH_IN, LEFT_IN, RIGHT_IN, TOP_IN, BOTTOM_IN, GAP_IN = 14.0, 1.1, 1.9, 0.5, 0.55, 0.17
LABEL_IN = -0.62
HEIGHTS_IN = {"frames": 1.15, "sound": 1.0, "lips": 1.4, "head": 1.7, "eyes": 1.4}
FONT_PT, TITLE_PT = 10, 12
COLOURS = ("#0072B2", "#D55E00", "#009E73")
"""Blue, vermilion and green of Okabe and Ito's palette, which colour-blind people can tell apart."""
STYLES = ("-", "--", "-.")
GREY, SHADE = "#555555", "#d0d0d0"


def plot(source: FilePath, out: FilePath, preset: str | None = None, progress: Progress = lambda *_: None) -> None:
    """Draw a video, or a motion file (.json), as a PNG.

    preset: whose motion space a motion file is shown with; None: the one that the file names.
    Raises ConfigError (no matplotlib, unknown preset), VideoError, NoFaceError, MotionError, CheckpointError, OutputError.
    """
    figure_class = _figure_class()
    if Path(source).suffix.lower() == ".json":
        traces = trace_motion(load_motion(Path(source)), Path(source).name, preset)
    elif preset is not None:
        raise ConfigError(
            f"`preset={preset}`: {source} is tracked as a video; leave it out, or give a motion file (.json)"
        )
    else:
        traces = trace_video(source, progress)
    figure = draw(traces, figure_class)
    with replace_file(out, (".png",)) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _figure_class() -> Any:
    """Import the ``Figure`` of matplotlib. Raises ConfigError where matplotlib is missing."""
    try:
        from matplotlib import figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise missing_extra("matplotlib", "plot") from error
    return figure.Figure


# ----------------------------------------------------------------------------------------------------------- drawing


def draw(traces: Traces, figure_class: Any) -> Any:
    """The figure: one panel below the other, all as wide, all on the same seconds."""
    panels = {
        "frames": traces.frames or None,
        "sound": traces.sound,
        "lips": traces.lips,
        "head": traces.pose,
        "eyes": traces.eyes,
    }
    shown = [name for name, data in panels.items() if data is not None]
    height_in = TOP_IN + BOTTOM_IN + sum(HEIGHTS_IN[name] for name in shown) + GAP_IN * (len(shown) - 1)
    figure = figure_class(figsize=(WIDTH_IN, height_in), facecolor="white")
    title_at = (LEFT_IN / WIDTH_IN, 1 - 0.6 * TOP_IN / height_in)
    figure.text(*title_at, traces.title, fontsize=TITLE_PT, va="center", parse_math=False)
    top = height_in - TOP_IN
    wide_in = WIDTH_IN - LEFT_IN - RIGHT_IN
    for name in shown:
        top -= HEIGHTS_IN[name]
        place = (LEFT_IN / WIDTH_IN, top / height_in, wide_in / WIDTH_IN, HEIGHTS_IN[name] / height_in)
        top -= GAP_IN
        axes = figure.add_axes(place)
        axes.set_xlim(0, traces.seconds)
        axes.tick_params(labelsize=FONT_PT, labelbottom=name == shown[-1])
        axes.yaxis.set_label_coords(LABEL_IN / wide_in, 0.5)
        _PANELS[name](axes, traces)
    axes.set_xlabel("time (seconds)", fontsize=FONT_PT)
    return figure


def _draw_frames(axes: Any, traces: Traces) -> None:
    """Frames side by side, in the middle of each the moment that it shows (or the nearest that was kept)."""
    height, width = traces.frames[0][1].shape[:2]
    wide_in = WIDTH_IN - LEFT_IN - RIGHT_IN
    each_s = traces.seconds * HEIGHTS_IN["frames"] * width / height / wide_in
    count = max(1, int(traces.seconds / (1.04 * each_s)))
    indices = np.array([index for index, _ in traces.frames])
    for k in range(count):
        wanted_s = (k + 0.5) * traces.seconds / count
        image = traces.frames[int(np.abs((indices + 0.5) / FPS - wanted_s).argmin())][1]
        place = (wanted_s - each_s / 2, wanted_s + each_s / 2, 0, 1)
        axes.imshow(image, extent=place, aspect="auto", interpolation="antialiased")
    axes.set(xlim=(0, traces.seconds), ylim=(0, 1), yticks=[])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.set_ylabel("frames", fontsize=FONT_PT)


def _draw_sound(axes: Any, traces: Traces) -> None:
    """Highest and lowest sample of every column."""
    assert traces.sound is not None
    samples = traces.sound.samples
    starts, low, high = envelope(samples, WAVE_COLUMNS)
    times = (starts + 0.5 * len(samples) / len(starts)) / len(samples) * traces.sound.duration_s
    axes.fill_between(times, low, high, color=GREY, linewidth=0.4)
    reach = max(0.1, 1.1 * float(np.abs(samples).max()))
    axes.set_ylim(-reach, reach)
    axes.set_ylabel("sound\n(of full scale)", fontsize=FONT_PT)


def _draw_lips(axes: Any, traces: Traces) -> None:
    assert traces.lips is not None
    _curves(axes, traces.lips[:, None], ("opening",), traces.labels["lips"])
    axes.set_ylim(min(0.0, float(np.nanmin(traces.lips))), max(0.1, 1.1 * float(np.nanmax(traces.lips))))


def _draw_head(axes: Any, traces: Traces) -> None:
    _curves(axes, traces.pose, ("yaw (+ left)", "pitch (+ down)", "roll (+ clockwise)"), traces.labels["head"])
    axes.axhline(0, color=GREY, linewidth=0.6, zorder=0)
    middle, half = np.nanmax(traces.pose) + np.nanmin(traces.pose), np.nanmax(traces.pose) - np.nanmin(traces.pose)
    # At least four degrees: a head that hardly moves must not look as if it shook.
    half = max(4.0, 1.15 * float(half)) / 2
    axes.set_ylim(float(middle) / 2 - half, float(middle) / 2 + half)


def _draw_eyes(axes: Any, traces: Traces) -> None:
    _curves(axes, traces.eyes, ("left eye", "right eye"), traces.labels["eyes"])
    low, high = float(np.nanmin(traces.eyes)), float(np.nanmax(traces.eyes))
    axes.set_ylim(1.1 * min(0.0, low), max(0.05, 1.1 * high))


def _curves(axes: Any, values: Curves, names: tuple[str, ...], label: str) -> None:
    """Curves (T, n) with a legend beside the panel; frames without a face are shaded."""
    times = (np.arange(len(values)) + 0.5) / FPS
    marker = "o" if len(values) == 1 else None
    for column, name in enumerate(names):
        axes.plot(
            times, values[:, column], STYLES[column], color=COLOURS[column], linewidth=1.4, marker=marker, label=name
        )
    for start, stop in find_runs(~np.isfinite(values[:, 0])):
        axes.axvspan(start / FPS, stop / FPS, color=SHADE, linewidth=0, zorder=0)
    axes.set_ylabel(label, fontsize=FONT_PT)
    axes.grid(axis="x", color=SHADE, linewidth=0.6)
    axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.03), frameon=False, fontsize=FONT_PT, handlelength=2.4)


_PANELS: dict[str, Callable[[Any, Traces], None]] = {
    "frames": _draw_frames,
    "sound": _draw_sound,
    "lips": _draw_lips,
    "head": _draw_head,
    "eyes": _draw_eyes,
}
