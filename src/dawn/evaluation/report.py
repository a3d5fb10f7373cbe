"""One command, all figures: a preset measured on prepared clips of people it never saw."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from dawn.errors import ConfigError
from dawn.evaluation.driven import evaluate_driven
from dawn.evaluation.material import Bench, EvalClip, Progress, Tracked, read_clips, track
from dawn.evaluation.spoken import evaluate_spoken
from dawn.models.bundle import Bundle
from dawn.models.face_features import load_sface
from dawn.pipeline import Dawn
from dawn.preprocess.tracker import FaceTracker

TITLES = {
    "driven": "Driven by its own landmarks (control: the first frame, repeated)",
    "spoken": "From audio alone (control: another clip's sound; silence: the portrait; identity: the first frame)",
}
NOTE = """Interval: bootstrap over clips; for blinks, the lowest and the highest of the seeds.
Real: the true frames at the same size, tracked again; for blinks and angles, the clips themselves."""


def _quiet(stage: str, done: int, total: int) -> None:
    pass


def evaluate_preset(preset: str | Path, clips: Path, sface: Path | None = None,
                    progress: Progress | None = None) -> dict[str, Any]:  # fmt: skip
    """Measure a preset on a folder of prepared clips (``dawn prepare``).

    sface: weights of the identity measure, by default where ``tools/fetch_models.py`` puts them. progress: called with
    (stage, done, total). Returns plain numbers that can be written as JSON: {"preset", "clips", "people", "frames",
    "seconds", "driven": {name: row}, "spoken": {name: row}}; a row has "value", "unit" and, where it makes sense,
    "control", "interval" (95 %, bootstrap over clips) and "real" (the measure on the true frames, tracked again).
    Raises ConfigError, CheckpointError, InputError.
    """
    start = time.perf_counter()
    network = load_sface(sface)
    bundle = Dawn.from_pretrained(preset, "cpu").bundle
    if not isinstance(bundle, Bundle):
        raise ConfigError(f"{preset}: the measures drive a face by landmarks, which only lite presets take")
    material = read_clips(clips, bundle.config.lfg.image_size_px, bundle.motion.mean_face)
    report = progress or _quiet
    with FaceTracker() as tracker, torch.inference_mode():
        bench = Bench(bundle, tracker, network, material, _track_real(tracker, material, report), report)
        result: dict[str, Any] = {"driven": evaluate_driven(bench), "spoken": evaluate_spoken(bench)}
    return {
        "preset": bundle.config.name,
        "clips": len(material),
        "people": len({clip.person for clip in material}),
        "frames": sum(map(len, material)),
        "seconds": round(time.perf_counter() - start, 1),
        **result,
    }


def _track_real(tracker: FaceTracker, clips: list[EvalClip], progress: Progress) -> list[Tracked]:
    """The true frames at the preset's size, tracked as generated ones are: what the measuring itself costs."""
    out = []
    for index, clip in enumerate(clips):
        out.append(track(tracker, clip.frames, clip.landmarks[0]))
        progress("track the true frames", index + 1, len(clips))
    return out


def format_report(result: dict[str, Any]) -> str:
    """The result of ``evaluate_preset`` as a table for people."""
    lines = [
        f"preset {result['preset']}: {result['clips']} clips, {result['frames']} frames, {result['people']} people; "
        f"{result['seconds']:.0f} s"
    ]
    widest = max(len(name) for part in TITLES for name in result[part])
    for part, title in TITLES.items():
        lines += ["", title, f"{'':{widest}}  {'dawn':>8}  {'95 % interval':^18}  {'control':>8}  {'real':>8}"]
        for name, values in result[part].items():
            value, control, real = (_number(values.get(key)) for key in ("value", "control", "real"))
            interval = " .. ".join(map(_number, values.get("interval", ())))
            line = f"{name:{widest}}  {value:>8}  {interval:^18}  {control:>8}  {real:>8}  {values['unit']}"
            lines.append(line.rstrip())
    return "\n".join([*lines, "", NOTE])


def _number(value: float | None) -> str:
    """Two to four digits behind the point."""
    if value is None:
        return ""
    size = abs(value)
    digits = 2 if size >= 10 else 3 if size >= 0.1 else 4
    return f"{value:.{digits}f}"
