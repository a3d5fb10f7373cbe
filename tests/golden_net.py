"""What the golden data in ``tests/golden`` pin, how it is made, and how far what is made anew may be from it.

Motion and frames of the shipped presets, the help of every command, the description of the HTTP service, and the tables of
``dawn evaluate``. ``tools/make_golden.py`` writes the data, ``test_golden.py`` compares. All that they need of the package is
imported here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from dawn.cli import main
from dawn.evaluation import long, spoken
from dawn.models.face_features import SFace
from dawn.motion_file import load_motion
from dawn.pipeline import Dawn, Video

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
EXAMPLES = ROOT / "examples"
FPS = 25
FRAMES = 50

PORTRAITS = {
    "portrait": EXAMPLES / "portrait.png",
    "hopper": EXAMPLES / "portraits" / "hopper.jpg",
    "mona_lisa": EXAMPLES / "portraits" / "mona_lisa.jpg",
}
SPEECH_FROM_S = {"portrait": 0.2, "hopper": 2.5, "mona_lisa": 5.0}
"""Two seconds of the recording each: its beginning, its silent pause, and words without any."""
SEEDS = {"lite-128": 1, "lite-256": 2}
SHOWN = (0, 7, 16, 23, 32, 39, 48, 49)
"""Spread over the clip, but of four batches only, because a whole batch is drawn for one frame of it."""


@dataclass(frozen=True)
class Case:
    """One video. size: as ``Dawn.__call__`` takes it, None for the preset's own, shown with the golden motion; inner_px: side
    of the square that is kept of every frame."""

    preset: str
    portrait: str
    size: int | None = 128
    inner_px: int = 96
    shown: tuple[int, ...] = SHOWN

    @property
    def motion(self) -> str:
        return f"{self.preset}_{self.portrait}"

    @property
    def name(self) -> str:
        return f"{self.motion}_{self.size or 'default'}"


CASES = (
    *(Case(preset, portrait) for preset in SEEDS for portrait in PORTRAITS),
    Case("lite-256", "mona_lisa", None, 144),
    Case("lite-128", "portrait", None, 160, SHOWN[1:5:3]),
)

# --------------------------------------------------------------------------------------------------- motion and frames

UNITS = {"pose": (10.0, 10.0, 10.0, 0.1, 0.1, 0.1), "blink": 0.1, "expression": 1.0}
"""Degrees, crop sides, eye aspect ratio, spreads: motion divided by these is of order one."""
MOTION_TOLERANCE = 1e-4
MEAN_TOLERANCE, HIGH_TOLERANCE = 1.0, 3
"""Grey levels, of the mean and of the 99.9th percentile of the difference. Processors round differently: between AVX-512 and
plain kernels motion differs by 6e-6, single pixels by 1."""
COLUMNS = 4
WHOLE_PX = 24
"""Side of the whole frames, reduced, below the middles of the frames: nothing beyond the middle may change either."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The same on any number of cores; and on a busy machine threads that wait for each other take four times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def loaded(preset: str) -> Dawn:
    return Dawn.from_pretrained(preset, "cpu")


def video(case: Case, folder: Path) -> Video:
    """folder: takes the speech."""
    speech = write_speech(folder, case.portrait)
    kept = None if case.size else load_motion(GOLDEN / f"{case.motion}.json")
    with one_thread():
        return loaded(case.preset)(PORTRAITS[case.portrait], speech, size=case.size, seed=SEEDS[case.preset], motion=kept)


def write_speech(folder: Path, portrait: str, frames: int = FRAMES) -> Path:
    """The portrait's part of the example recording."""
    path = folder / f"{portrait}.wav"
    with wave.open(str(EXAMPLES / "speech.wav")) as whole, wave.open(str(path), "wb") as part:
        rate_hz = whole.getframerate()
        whole.setpos(round(SPEECH_FROM_S[portrait] * rate_hz))
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(frames * rate_hz // FPS))
    return path


def motion_text(made: Video) -> str:
    """The motion as a motion file of the product's, rounded, one frame a line."""
    motion = made.motion
    head = {"format": "dawn-motion-1", "space": motion.space, "fps": FPS, "info": motion.info}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key in UNITS:
        rows = ",\n".join(f"  {[round(value, 6) for value in row]}" for row in getattr(motion, key).tolist())
        lines.append(f' "{key}": [\n{rows}\n ]')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def motion_faults(name: str, made: Video, golden: dict[str, Any]) -> list[str]:
    """What is wrong with the motion, one line each."""
    found = []
    for key in ("space", "info"):
        if getattr(made.motion, key) != golden[key]:
            found.append(f"{name}: {key} is {getattr(made.motion, key)}, not {golden[key]}")
    for key, unit in UNITS.items():
        ours, kept = getattr(made.motion, key), np.array(golden[key])
        if ours.shape != kept.shape:
            found.append(f"{name}: {key} is {ours.shape}, not {kept.shape}")
            continue
        off = np.abs(ours - kept) / unit
        frame, column = np.unravel_index(off.argmax(), off.shape)
        if not off.max() <= MOTION_TOLERANCE:
            found.append(f"{name}: {key} differs by {off.max():.2g} units at frame {frame}, column {column} "
                         f"(at most {MOTION_TOLERANCE})")  # fmt: skip
    return found


def places(case: Case) -> Iterator[tuple[int, bool, tuple[slice, slice]]]:
    """(frame, whole, where in the sheet): the middles of the frames in rows, then the whole frames, reduced."""
    rows = -(-len(case.shown) // COLUMNS)
    for number, frame in enumerate(case.shown):
        row, column = divmod(number, COLUMNS)
        yield frame, False, _square(row * case.inner_px, column * case.inner_px, case.inner_px)
        yield frame, True, _square(rows * case.inner_px, number * WHOLE_PX, WHOLE_PX)


def _square(top: int, left: int, side: int) -> tuple[slice, slice]:
    return slice(top, top + side), slice(left, left + side)


def sheet(case: Case, made: Video) -> np.ndarray:
    """The wanted frames as one picture (H, W, 3) uint8."""
    frames = dict(made.frames(np.isin(np.arange(len(made)), case.shown)))
    places_ = list(places(case))
    height, width = (max(where[axis].stop for *_, where in places_) for axis in (0, 1))
    out = np.zeros((height, width, 3), np.uint8)
    for frame, whole, where in places_:
        out[where] = _reduced(frames[frame]) if whole else _middle(frames[frame], case.inner_px)
    return out


def _middle(frame: np.ndarray, side: int) -> np.ndarray:
    """Where the face is: a little below the middle."""
    height, width = frame.shape[:2]
    return frame[_square((height - side) * 5 // 8, (width - side) // 2, side)]


def _reduced(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((WHOLE_PX, WHOLE_PX), Image.Resampling.BOX))


def sheet_faults(case: Case, made: np.ndarray, golden: np.ndarray) -> list[str]:
    """What is wrong with the frames, one line each."""
    if made.shape != golden.shape:
        return [f"{case.name}: the sheet of frames is {made.shape}, not {golden.shape}"]
    found = []
    for frame, whole, where in places(case):
        off = np.abs(made[where].astype(int) - golden[where])
        mean, high = off.mean(), np.percentile(off, 99.9)
        if mean > MEAN_TOLERANCE or high > HIGH_TOLERANCE:
            part = ", whole and reduced" if whole else ""
            found.append(f"{case.name}, frame {frame}{part}: differs by {mean:.2f} grey levels in the mean (at most "
                         f"{MEAN_TOLERANCE:g}), {high:.1f} in the 99.9th percentile (at most {HIGH_TOLERANCE})")  # fmt: skip
    return found


# --------------------------------------------------------------------------------------------------- help and service


def help_texts() -> dict[str, str]:
    """{command: its help}, and the whole command line's as "dawn"."""
    texts = {"dawn": _printed("--help")}
    for command in re.findall(r"^    (\w+)", texts["dawn"], re.MULTILINE):
        texts[command] = _printed(command, "--help")
    return texts


def _printed(*words: str) -> str:
    out = io.StringIO()
    with patch.dict(os.environ, {"COLUMNS": "100"}), contextlib.redirect_stdout(out):
        assert main(list(words)) == 0
    return out.getvalue()


def service_description(folder: Path) -> str:
    """The OpenAPI document of a service that asks for a token, as sorted JSON. folder: takes the service's files.

    The package's version is left out.
    """
    from dawn.serving.app import create_app  # here, as it needs the extra [serve]
    from dawn.serving.settings import ServeSettings

    with patch.dict(os.environ, {"DAWN_TOKEN": "a-token-of-the-tests"}):
        document = create_app(ServeSettings(data=folder / "data"), model=object()).openapi()
    del document["info"]["version"]
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


# ----------------------------------------------------------------------------------------------------------- tables

CLIPS = {**{name: name for name in PORTRAITS}, "gauss": "portrait", "tanguy": "hopper"}
"""{portrait of a clip: whose motion and speech it has}."""
CLIP_FRAMES = 32
SHORTER = (
    (long, "LONG_S", 3), (long, "WINDOW_S", 1), (long, "LONG_PORTRAITS", 2), (spoken, "SILENCE_S", 1), (spoken, "LIFE_S", 10),
)  # fmt: skip
"""A table takes minutes; these are what it takes them of."""
FIGURE_TOLERANCE, LONG_TOLERANCE, NOTHING = 0.01, 0.03, 1e-6
"""Of a cell's greatest number, and what is as good as zero. The tracker makes more of a pixel's last bit than the networks
do: between AVX-512 and plain kernels figures differ by 0.5 %, those of the longer videos, of two portraits only, by 1.5 %."""


def write_clips(folder: Path, scratch: Path) -> None:
    """Short films of ``lite-256`` from its golden motions. scratch: takes the speech.

    They are kept, because a clip that is made anew where arithmetic rounds differently is cropped a hair's breadth elsewhere,
    and figures of it differ by up to eight per cent.
    """
    folder.mkdir(exist_ok=True)
    for portrait, spoken_by in CLIPS.items():
        picture = PORTRAITS.get(portrait, EXAMPLES / "portraits" / f"{portrait}.jpg")
        speech = write_speech(scratch, spoken_by, CLIP_FRAMES)
        motion = load_motion(GOLDEN / f"lite-256_{spoken_by}.json")
        _save(loaded("lite-256")(picture, speech, size=128, motion=motion), speech, folder / f"{portrait}.mp4")


def _save(made: Video, speech: Path, path: Path) -> None:
    """As a smaller file than the product's own."""
    with wave.open(str(speech)) as file:
        rate_hz, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), np.int16)
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", FPS, options={"crf": "22"})
        sound = container.add_stream("aac", rate_hz, layout="mono", bit_rate=48_000)
        picture.width, picture.height, picture.pix_fmt = made.width, made.height, "yuv420p"
        for frame in made:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        heard = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        heard.sample_rate = rate_hz
        container.mux(sound.encode(heard))
        for stream in (picture, sound):
            container.mux(stream.encode())


def tables(folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of ``dawn evaluate`` on the five clips: a preset's, and those of finished videos, each against another."""
    real, made, clips, network = GOLDEN / "clips", folder / "made", folder / "clips", folder / "sface.safetensors"
    made.mkdir()
    _, second, *more = CLIPS
    for portrait, other in zip(CLIPS, (second, *more, second), strict=True):
        shutil.copy(real / f"{other}.mp4", made / f"{portrait}.mp4")
    _write_stand_in(network)
    _done("prepare", real, clips, "--size", 128, "--workers", 1)
    results = {}
    with contextlib.ExitStack() as shorter, one_thread():
        for module, name, value in SHORTER:
            shorter.enter_context(patch.object(module, name, value))
        for name, what in (("preset", (clips, "--preset", "lite-128")), ("videos", ("--generated", made, real))):
            path = folder / f"{name}.json"
            _done("evaluate", *what, "--sface", network, "--json", path)
            results[name] = _flat(json.loads(path.read_text()))
    return results


def _done(*words: object) -> None:
    assert main([*map(str, words), "--quiet"]) == 0, words


def _write_stand_in(path: Path) -> None:
    """A recogniser of random weights, since the trained one is not part of the product. Without biases, which would make
    all faces one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = SFace().state_dict()
    scale = {name: 0.0 if name.endswith("bias") else 2.0 if value.ndim > 1 else 1.0 for name, value in weights.items()}
    save_file({name: value * scale[name] for name, value in weights.items()}, path)


def _flat(result: dict[str, Any]) -> dict[str, Any]:
    """What ``dawn evaluate --json`` writes as {what: words or numbers}, four digits each.

    Of costs only the names: the numbers are the machine's.
    """
    found = {key: result[key] for key in ("clips", "people", "frames", "size_px", "clip_px", "columns", "notes")}
    for group, lines in result["rows"].items():
        for name, line in lines.items():
            found[f"{group}: {name}"] = [line["unit"], line["better"]]
            for column, cell in line["values"].items():
                numbers = [] if group == "cost" else [cell["value"], *cell.get("interval", ())]
                found[f"{group}: {name}, {column}"] = _rounded(numbers)
    if result["long"] is not None:
        found |= {f"long: {key}": value for key, value in result["long"].items() if key != "rows"}
        for name, line in result["long"]["rows"].items():
            found[f"long: {name}"] = [line["unit"]]
            found[f"long: {name}, first and last"] = _rounded([line["first"], line["last"]])
            found[f"long: {name}, ratio"] = _rounded([line["ratio"], *(line["interval"] or ())])
    return found


def _rounded(numbers: list[float | None]) -> list[float | None]:
    return [None if number is None else float(f"{number:.4g}") for number in numbers]


def table_text(table: dict[str, Any]) -> str:
    """One cell a line."""
    return "{\n" + ",\n".join(f" {json.dumps(what)}: {json.dumps(found)}" for what, found in table.items()) + "\n}\n"


def table_faults(name: str, made: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    """What is wrong with a table, one line each."""
    found = [f"{name} table: {what} is {'missing' if what in golden else 'new'}" for what in made.keys() ^ golden.keys()]
    for what in made.keys() & golden.keys():
        ours, kept = made[what], golden[what]
        tolerance = LONG_TOLERANCE if what.startswith("long: ") else FIGURE_TOLERANCE
        if not (_near(ours, kept, tolerance) if _numbers(ours) and _numbers(kept) else ours == kept):
            found.append(f"{name} table: {what} is {ours}, not {kept}")
    return sorted(found)


def _numbers(cell: Any) -> bool:
    return isinstance(cell, list) and all(isinstance(number, float) for number in cell)


def _near(ours: list[float], kept: list[float], tolerance: float) -> bool:
    if len(ours) != len(kept):
        return False
    scale = max(map(abs, kept), default=0.0)
    return all(abs(a - b) <= tolerance * scale + NOTHING for a, b in zip(ours, kept, strict=True))
