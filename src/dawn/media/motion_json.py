"""Motion on disk: JSON that a person can read and edit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dawn.errors import MotionError, OutputError
from dawn.structs import BLINK_NAMES, BLINK_SIZE, FPS, POSE_NAMES, POSE_SIZE, FloatArray, Motion

MAX_MOTION_BYTES = 256 << 20
FORMAT = "dawn-motion-1"


def save_motion(motion: Motion, path: Path | str) -> None:
    """Write a motion as JSON, atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    target = Path(path)
    values = {
        "format": FORMAT,
        "space": motion.space,
        "fps": FPS,
        "info": motion.info,
        "pose_columns": list(POSE_NAMES),
        "blink_columns": list(BLINK_NAMES),
        "pose": _rows(motion.pose),
        "blink": _rows(motion.blink),
        "expression": _rows(motion.expression),
    }
    temporary = target.with_name(f".{target.name}.part")
    try:
        temporary.write_text(json.dumps(values), encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot write the motion ({error.strerror}); choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def _rows(table: FloatArray) -> list[list[float]]:
    """Round to nine significant digits, the fewest that give every float32 back: the motion renders the same."""
    return [[float(f"{value:.9g}") for value in row] for row in table.tolist()]


def load_motion(path: Path | str) -> Motion:
    """Read a motion written by ``save_motion``.

    Raises:
        MotionError: The file cannot be read or is no motion; the message names what is wrong.
    """
    source = Path(path)
    try:
        if source.stat().st_size > MAX_MOTION_BYTES:
            raise MotionError(f"{source}: larger than {MAX_MOTION_BYTES} bytes; give a motion file written by dawn")
        values = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise MotionError(f"{source}: cannot be read ({error.strerror}); give a motion file written by dawn") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MotionError(f"{source}: not a JSON file ({error}); give a motion file written by dawn") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise MotionError(f"{source}: not a motion file of dawn; give a motion file written by dawn")
    if values.get("fps") != FPS:
        raise MotionError(f"{source}: {values.get('fps')!r} frames a second; only {FPS} are supported")
    pose = _table(source, values, "pose", POSE_SIZE)
    blink = _table(source, values, "blink", BLINK_SIZE)
    expression = _table(source, values, "expression", None)
    if not len(pose) == len(blink) == len(expression):
        raise MotionError(
            f"{source}: pose, blink and expression have {len(pose)}, {len(blink)} and {len(expression)} "
            "frames; make them equally long"
        )
    info = {str(key): str(value) for key, value in dict(values.get("info") or {}).items()}
    return Motion(pose, blink, expression, str(values.get("space", "lite")), info)


def _table(source: Path, values: dict[str, object], name: str, columns: int | None) -> FloatArray:
    try:
        table = np.asarray(values.get(name), dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise MotionError(f"{source}: {name} is not a table of numbers; write one row a frame") from error
    if table.ndim != 2 or not len(table) or (columns is not None and table.shape[1] != columns):
        wanted = f"(frames, {columns if columns is not None else 'coefficients'})"
        raise MotionError(f"{source}: {name} has the shape {table.shape}; {wanted} is needed")
    if not np.isfinite(table).all():
        raise MotionError(f"{source}: {name} holds values that are not finite; correct them")
    return table
