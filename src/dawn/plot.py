"""``dawn plot``: one PNG of a talking video or a motion file, with frames, sound, lips, head and eyes on one time axis.

A video is tracked frame by frame; a motion file holds no picture, so its lips and lids are shown on the mean face. Drawn by
matplotlib without ``pyplot``: no window, no backend chosen, no state beyond the figure. Left and right of the head are the
picture's, of the eyes the person's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dawn import media
from dawn.checkpoint import load_mean_face
from dawn.errors import AudioError, ConfigError, DawnError, NoFaceError
from dawn.evaluation.lips import lip_aperture
from dawn.evaluation.motion import blink_count, runs
from dawn.generation import CHUNK_FRAMES
from dawn.media.files import FilePath, replacing
from dawn.models.face_geometry import eye_aspect_ratio, remove_pose
from dawn.models.motion_space import MotionSpace
from dawn.motion_file import load_motion
from dawn.pipeline import Progress, load_motion_space
from dawn.preprocess.tracker import FaceTracker
from dawn.structs import FPS, FloatArray, ImageArray, Motion, Speech

THUMB_HEIGHT_PX = 160
MAX_THUMB_ASPECT = 2.5
MAX_THUMBS = 128
"""Thumbnails kept while a video of unknown length is read; about a tenth of them are shown."""
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
LABELS = {"lips": "lip opening\n(eye distances)", "head": "head (degrees)", "eyes": "eye aspect\nratio"}
GREY, SHADE = "#555555", "#d0d0d0"

Curves = NDArray[Any]


@dataclass(frozen=True)
class Traces:
    """What is drawn. Curves are (T, ...) at 25 fps, not a number where no face was found; None leaves a panel out.

    pose: (T, 3) yaw, pitch, roll in degrees. lips: (T,) opening in eye distances. eyes: (T, 2) eye aspect ratios.
    frames: (index, thumbnail), in order. labels: of the axes "lips", "head" and "eyes".
    """

    title: str
    pose: Curves
    eyes: Curves
    labels: dict[str, str]
    lips: Curves | None = None
    sound: Speech | None = None
    frames: tuple[tuple[int, ImageArray], ...] = ()

    @property
    def seconds(self) -> float:
        return max(len(self.pose) / FPS, self.sound.duration_s if self.sound else 0.0)


class Thumbnails:
    """Small frames at even distances from a video of unknown length: when too many, every other one goes."""

    def __init__(self) -> None:
        self.step = 1
        self.kept: list[tuple[int, ImageArray]] = []

    def offer(self, index: int, frame: ImageArray) -> None:
        """Frames (H, W, 3) in order, counted from 0."""
        if index % self.step:
            return
        width = round(THUMB_HEIGHT_PX * min(frame.shape[1] / frame.shape[0], MAX_THUMB_ASPECT))
        small = Image.fromarray(frame).resize((max(1, width), THUMB_HEIGHT_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
        self.kept.append((index, np.asarray(small)))
        if len(self.kept) == MAX_THUMBS:
            self.kept = self.kept[::2]
            self.step *= 2


def plot(source: FilePath, out: FilePath, preset: str | None = None, progress: Progress = lambda *_: None) -> None:
    """Draw a video, or a motion file (.json), as a PNG.

    preset: whose motion space a motion file is shown with; None: the one that the file names.
    Raises ConfigError (no matplotlib, unknown preset), VideoError, NoFaceError, MotionError, CheckpointError, OutputError.
    """
    figure_class = _figure_class()
    if Path(source).suffix.lower() == ".json":
        traces = trace_motion(load_motion(Path(source)), Path(source).name, preset)
    elif preset is not None:
        raise ConfigError(f"--preset {preset}: {source} is tracked as a video; leave it out, or give a motion file (.json)")
    else:
        traces = trace_video(source, progress)
    figure = draw(traces, figure_class)
    with replacing(out, (".png",)) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _figure_class() -> Any:
    """matplotlib's ``Figure``. Raises ConfigError where matplotlib is missing."""
    try:
        from matplotlib import figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ConfigError('the matplotlib package is missing: pip install "dawn[plot]"') from error
    return figure.Figure


def trace_video(path: FilePath, progress: Progress = lambda *_: None) -> Traces:
    """Track the largest face of every frame. Only a few numbers a frame are kept. Raises VideoError, NoFaceError."""
    mean_face = load_mean_face()
    thumbs = Thumbnails()
    rows: list[FloatArray] = []
    with media.VideoReader(path, fps=FPS) as reader, FaceTracker() as tracker:
        for index, frame in enumerate(reader):
            faces = tracker.faces(frame)
            rows.append(_measured(faces[0].landmarks, mean_face) if faces else np.full(6, np.nan, np.float32))
            thumbs.offer(index, frame)
            progress("track", index + 1, 0)
    numbers = np.stack(rows)
    found = np.isfinite(numbers[:, 0])
    if not found.any():
        raise NoFaceError(f"{path}: no face was found in any of {len(rows)} frames; give a video that shows one")
    sound = _sound_of(path)
    title = f"{_short(path)}   {len(rows) / FPS:.2f} s, {len(rows)} frames, {blink_count(numbers[found, 4:].mean(1))} blinks"
    title += "" if sound else ", no sound"
    title += "" if found.all() else f", no face in {(~found).sum()} frames (grey)"
    return Traces(title, numbers[:, 1:4], numbers[:, 4:], LABELS, numbers[:, 0], sound, tuple(thumbs.kept))


def _measured(landmarks: FloatArray, mean_face: torch.Tensor) -> FloatArray:
    """Lip opening, yaw, pitch, roll and two eye aspect ratios, (6,), from (478, 3) in pixels."""
    shape, pose = remove_pose(torch.from_numpy(landmarks), mean_face)
    parts = (lip_aperture(landmarks[None]), pose[:3].numpy(), eye_aspect_ratio(shape).numpy())
    return np.concatenate(parts).astype(np.float32)


def _sound_of(path: FilePath) -> Speech | None:
    try:
        return media.read_speech(path, allow_silence=True)
    except AudioError:  # a silent film has one panel less
        return None


def trace_motion(motion: Motion, name: str, preset: str | None = None) -> Traces:
    """Curves of a motion file: pose against its portrait; lips and lids as they are on the mean face.

    Without a preset that reads its expression, the file's own blink column stands for the eyes and the lips are left out.
    Raises ConfigError, CheckpointError or MotionError for a given preset that does not fit.
    """
    title = f"{_short(name)}   {len(motion) / FPS:.2f} s, {len(motion)} frames of motion"
    pose_label = "head, change\n(degrees)"
    space = _motion_space(motion, preset)
    if space is None:
        labels = {"head": pose_label, "eyes": "eye aspect\nratio, change"}
        return Traces(f"{title}; what the lips do is not known", motion.pose[:, :3], motion.blink, labels)
    lips, eyes = [], []
    for part in torch.from_numpy(motion.expression).split(CHUNK_FRAMES):
        shapes = space.shapes(part, space.mean_face)
        lips.append(lip_aperture(shapes.numpy()))
        eyes.append(eye_aspect_ratio(shapes).numpy())
    ear = np.concatenate(eyes)
    title = f"{title}, {blink_count(ear.mean(1))} blinks; lips and eyes on the mean face"
    return Traces(title, motion.pose[:, :3], ear, LABELS | {"head": pose_label}, np.concatenate(lips))


def _motion_space(motion: Motion, preset: str | None) -> MotionSpace | None:
    """The motion space in which the expression is written; None where no preset is given and the named one does not help."""
    name = preset or motion.info.get("preset")
    if name is None or motion.space != "lite":
        if preset is None:
            return None
        raise ConfigError(f"--preset {preset}: lips cannot be drawn of a motion of the space {motion.space!r}; leave it out")
    try:
        space = load_motion_space(name)
        if space is None or space.config.size != motion.expression.shape[1]:
            count = motion.expression.shape[1]
            raise ConfigError(f"the preset {name} does not read {count} coefficients: use the preset that made them")
    except DawnError:
        if preset is not None:
            raise
        return None
    return space


def _short(path: FilePath) -> str:
    name = Path(path).name
    return name if len(name) <= 60 else f"{name[:40]}…{name[-19:]}"


# ----------------------------------------------------------------------------------------------------------- drawing


def draw(traces: Traces, figure_class: Any) -> Any:
    """The figure: one panel below the other, all as wide, all on the same seconds."""
    panels = {
        "frames": traces.frames or None, "sound": traces.sound, "lips": traces.lips, "head": traces.pose, "eyes": traces.eyes
    }  # fmt: skip
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


def envelope(samples: FloatArray, columns: int) -> tuple[NDArray[np.int_], FloatArray, FloatArray]:
    """Samples (L,) in at most so many columns: where each begins, its lowest and its highest sample."""
    starts = np.linspace(0, len(samples), min(columns, len(samples)), endpoint=False).astype(int)
    return starts, np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)


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
        axes.plot(times, values[:, column], STYLES[column], color=COLOURS[column], linewidth=1.4, marker=marker, label=name)
    for start, stop in runs(~np.isfinite(values[:, 0])):
        axes.axvspan(start / FPS, stop / FPS, color=SHADE, linewidth=0, zorder=0)
    axes.set_ylabel(label, fontsize=FONT_PT)
    axes.grid(axis="x", color=SHADE, linewidth=0.6)
    axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.03), frameon=False, fontsize=FONT_PT, handlelength=2.4)


_PANELS: dict[str, Callable[[Any, Traces], None]] = {
    "frames": _draw_frames, "sound": _draw_sound, "lips": _draw_lips, "head": _draw_head, "eyes": _draw_eyes
}  # fmt: skip
