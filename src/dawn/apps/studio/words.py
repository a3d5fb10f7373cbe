"""What the page says, as HTML. Everything that came from outside is escaped here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from dawn.apps.studio.job import Progress
from dawn.apps.surfaces import PAGE
from dawn.checks.findings import Finding, Level
from dawn.structs import FPS

NAMES = {
    "faces": "Faces",
    "face_height": "Height of the face",
    "outside_picture": "Outside the picture",
    "yaw": "Turned sideways",
    "pitch": "Turned up or down",
    "roll": "Tilted",
    "pose": "Pose",
    "detail": "Sharpness",
    "highlight": "Brightness",
    "burnt_out": "Overexposed",
    "lip_opening": "Mouth opening",
    "eye_ratio": "Eye opening",
    "lips_seen": "Lips in sight",
    "duration": "Duration",
    "speech_share": "Speech",
    "start": "Speech begins at",
    "level": "Level of the voice",
    "snr": "Voice above noise",
    "clipping": "Clipped",
    "steadiness": "Steady tones",
    "file": "File",
}
STAGES = {
    "wait": "Waiting for the video before yours",
    "load": "Loading the model",
    "prepare": "Reading portrait and speech",
    "motion": "Composing the motion",
    "decode": "Drawing the frames",
    "video": "Writing the file",
}
WAITING = Progress("wait")
MARKS: dict[Level, str] = {"ok": "✓", "warning": "!", "error": "✕"}


def line(text: str, level: Level = "ok") -> str:
    """One marked line, its options called as the page calls them; errors are announced to screen readers at once."""
    role = "alert" if level == "error" else "status"
    mark = f'<b aria-hidden="true">{MARKS[level]}</b>'
    return f'<div class="dawn-line dawn-{level}" role="{role}">{mark}<span>{escape(PAGE.reworded(text))}</span></div>'


def findings(found: Sequence[Finding], summary: str, in_short: Callable[[str], str] = str) -> str:
    """Say what is wrong, a line each, or ``summary`` if nothing is; fold away all that was measured.

    in_short: takes the server's folders out of a message.
    """
    bad = [finding for finding in found if finding.level != "ok"]
    lines = [line(in_short(finding.advice), finding.level) for finding in bad] or [line(summary)]
    rows = "".join(_row(finding) for finding in found if finding.value is not None)
    table = f"<details><summary>All measurements</summary><table>{rows}</table></details>" if rows else ""
    return f'<div class="dawn-findings">{"".join(lines)}{table}</div>'


def _row(finding: Finding) -> str:
    name = escape(NAMES.get(finding.name, finding.name.replace("_", " ")))
    value = escape(f"{finding.value:.3g} {finding.unit}".strip())
    return f'<tr class="dawn-{finding.level}"><td>{name}</td><td>{value}</td></tr>'


def clock(seconds: float) -> str:
    """1:05 of 65 seconds."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def empty_stage() -> str:
    """Where the video will be."""
    return (
        '<div class="dawn-stage dawn-empty"><p>Your video will appear here.</p>'
        "<p>Choose a portrait and a speech, then press <b>Generate</b>.</p></div>"
    )


def working(progress: Progress, picture: str | None) -> str:
    """How far a job is. picture: address of the newest frame."""
    stage = STAGES.get(progress.stage, progress.stage.capitalize())
    share = progress.done / progress.total if progress.total else 0
    count = f"{progress.done} of {progress.total}" if progress.total else ""
    count += " frames" if count and progress.stage == "decode" else " steps" if count else ""
    left = f"{clock(progress.left_s)} left" if progress.left_s is not None and progress.stage == "decode" else ""
    image = (
        f'<img class="dawn-preview" src="{picture}" alt="Newest frame" data-frame="{progress.done}">'
        if picture
        else '<div class="dawn-blank"></div>'
    )
    moving = "" if progress.total else " dawn-unknown"
    stage = escape(stage)
    bar = (
        f'<div class="dawn-bar{moving}" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * share:.0f}" aria-label="{stage}"><i style="width:{share:.1%}"></i></div>'
    )
    figures = f'<p class="dawn-figures"><span>{stage}</span><span>{count}</span><span>{left}</span></p>'
    return f'<div class="dawn-stage dawn-working">{image}{bar}{figures}</div>'


def finished(video: str, motion: str, frames: int, width: int, height: int) -> str:
    """The video and what can be downloaded; video and motion are addresses."""
    about = f"{frames / FPS:.2f} s, {frames} frames, {width} × {height} px"
    return (
        f'<div class="dawn-stage dawn-finished"><video controls playsinline preload="auto" src="{escape(video)}"></video>'
        f'<p class="dawn-figures"><span>{about}</span></p>'
        f'<p class="dawn-downloads"><a href="{escape(video)}" download="dawn-video.mp4">Download video (MP4)</a>'
        f'<a href="{escape(motion)}" download="dawn-motion.json">Download motion (JSON)</a></p>'
        '<p class="dawn-note">The file is marked as AI-generated in its metadata. Say so too wherever you show it.</p>'
        "</div>"
    )


def changes(frames: Sequence[int], total: int) -> str:
    """Which frames wait to be drawn again."""
    if not frames:
        return '<p class="dawn-note">The video shows this motion.</p>'
    first, last = frames[0] / FPS, (frames[-1] + 1) / FPS
    return line(
        f"{len(frames)} of {total} frames have changed, between {first:.2f} and {last:.2f} s (amber). Dashed is the "
        "motion that the video shows now.",
        "warning",
    )


def failed(message: str, below: str = "") -> str:
    """A message in place of a video. below: the stage as it was."""
    return f'<div class="dawn-failed">{line(message, "error")}</div>{below}'
