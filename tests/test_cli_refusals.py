"""The command line: one line of help for everything that cannot work, and nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import dawn.pipeline
import dawn.rendering.placement
from conftest import refused, three_faces, write_wav
from dawn import media
from dawn.apps.cli.main import main
from dawn.checkpoint import file_sha256
from dawn.face.geometry import apply_pose
from dawn.pipeline import Dawn
from dawn.structs import TrackedFace
from media_files import noise, small_disk, write_sound, write_video

Output = pytest.CaptureFixture[str]
PARTS = ("lfg", "a2v", "pbnet", "motion", "audio")


# ---------------------------------------------------------------------------------------------------- bad portraits


def cartoon(folder: Path) -> Path:
    image = Image.new("RGB", (400, 400), "skyblue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((80, 60, 320, 340), fill="yellow", outline="black", width=6)
    draw.ellipse((120, 120, 180, 180), fill="white", outline="black", width=4)
    draw.ellipse((220, 120, 280, 180), fill="white", outline="black", width=4)
    draw.line((140, 280, 260, 280), fill="red", width=8)
    image.save(folder / "cartoon.png")
    return folder / "cartoon.png"


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def bad_portrait(kind: str, folder: Path, portrait: Path) -> tuple[Path, list[str]]:
    """A picture, and what the message must say: the value and the remedy."""
    if kind == "missing":
        return folder / "nobody.png", ["nobody.png", "does not exist", "check the path"]
    if kind == "folder":
        return folder, [folder.name, "is a folder", "name a file"]
    if kind == "text":
        return write(folder / "text.png", b"words\n" * 99), ["text.png", "no picture", "save it as JPEG or PNG"]
    if kind == "truncated":
        Image.open(portrait).convert("RGB").save(folder / "whole.jpg")
        data = (folder / "whole.jpg").read_bytes()
        return write(folder / "cut.jpg", data[: len(data) // 2]), ["cut.jpg", "damaged", "save it again"]
    if kind == "wide":
        Image.new("L", (20_000, 40)).save(folder / "wide.png")
        return folder / "wide.png", ["20000 x 40 px", "16384", "scale it down"]
    if kind == "no face":
        media.save_png(folder / "noise.png", noise(200, 200))
        return folder / "noise.png", ["no face was found", "use a photograph"]
    if kind == "three faces":
        return three_faces(folder, portrait), ["3 faces", "--face N"]
    if kind == "cartoon":
        return cartoon(folder), ["no face was found", "use a photograph"]
    assert kind == "tiny face"
    small = Image.open(portrait).convert("RGB").resize((120, 120))
    small.save(folder / "small.png")
    return folder / "small.png", ["px high", "48 px", "use a larger picture"]


@pytest.mark.parametrize(
    "kind",
    ["missing", "folder", "text", "truncated", "wide", "no face", "three faces", "cartoon", "tiny face"],
)
def test_bad_portrait(
    run: Callable, out: Path, tmp_path: Path, portrait_path: Path, speech_path: Path, kind: str
) -> None:
    portrait, parts = bad_portrait(kind, tmp_path, portrait_path)
    refused(run("generate", portrait, speech_path), out, *parts)


class TurnedTracker:
    """Finds one head in every picture, turned by 60 degrees."""

    mean_face: torch.Tensor

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> TurnedTracker:
        return self

    def __exit__(self, *_: object) -> None: ...

    def detect(self, image: np.ndarray) -> list[TrackedFace]:
        side = min(image.shape[:2])
        points = apply_pose(self.mean_face, torch.tensor([60.0, 0, 0, 0.4, 0, 0])).numpy()
        return [TrackedFace(((points + np.array([1, 1, 0])) * side / 2).astype(np.float32), np.zeros(52, np.float32))]


def test_profile(
    run: Callable, out: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Dawn, portrait_path: Path, speech_path: Path
) -> None:
    monkeypatch.setattr(TurnedTracker, "mean_face", tiny_model.bundle.motion.mean_face, raising=False)
    monkeypatch.setattr(dawn.rendering.placement, "FaceTracker", TurnedTracker)
    refused(run("generate", portrait_path, speech_path), out, "yaw 60°", "at most 40°", "looks towards the camera")


# ------------------------------------------------------------------------------------------------------- bad speech


def three_hours(path: Path) -> Path:
    """Eight-bit WAV at 8 kHz whose samples are a hole in the file: it takes no room on disk."""
    size = 3 * 3600 * 8000
    header = b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += (1).to_bytes(2, "little") * 2 + (8000).to_bytes(4, "little") * 2 + (1).to_bytes(2, "little")
    header += (8).to_bytes(2, "little") + b"data" + size.to_bytes(4, "little")
    write(path, header)
    os.truncate(path, 44 + size)
    return path


def bad_speech(kind: str, folder: Path) -> tuple[Path, list[str]]:
    if kind == "missing":
        return folder / "gone.wav", ["gone.wav", "does not exist", "check the path"]
    if kind == "folder":
        return folder, [folder.name, "is a folder", "name a file"]
    if kind == "0 bytes":
        return write(folder / "empty.wav", b""), ["empty.wav", "0 bytes", "make or download it again"]
    if kind == "text":
        return write(folder / "text.wav", b"words\n" * 99), ["text.wav", "no sound file", "convert it"]
    if kind == "short":
        return write_wav(folder / "s.wav", np.full(800, 9000), 16_000), ["s.wav", "0.05 s", "at least 0.2 s"]
    if kind == "silence":
        return write_wav(folder / "q.wav", np.zeros(16_000), 16_000), ["q.wav", "silent", "--allow-silence"]
    if kind == "3 h":
        return three_hours(folder / "long.wav"), ["long.wav", "longer than 1800 s", "cut it into parts"]
    if kind == "NaN":
        sound = np.full((16_000, 1), 0.1)
        sound[7000] = np.nan
        path = write_sound(folder / "nan.wav", sound, 16_000, "pcm_f32le", "flt")
        return path, ["nan.wav", "not finite", "export it again"]
    assert kind == "no sound"
    frames = [noise(64, 64, seed) for seed in range(5)]
    return write_video(folder / "mute.mp4", frames, range(0, 200, 40)), ["mute.mp4", "has no sound", "give a recording"]


@pytest.mark.parametrize("kind", ["missing", "folder", "0 bytes", "text", "short", "silence", "3 h", "NaN", "no sound"])
def test_bad_speech(run: Callable, out: Path, tmp_path: Path, portrait_path: Path, kind: str) -> None:
    speech, parts = bad_speech(kind, tmp_path)
    refused(run("generate", portrait_path, speech), out, *parts)


# ------------------------------------------------------------------------------------------------------ bad outputs


@pytest.mark.parametrize("option", ["-o", "--motion-out"])
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("none/a", ["none/a", "does not exist", "create it first"]),
        ("a.avi", ["a.avi", "must end in"]),
        ("/proc/a", ["/proc/a", "cannot write"]),
        ("file.txt/a", ["file.txt/a", "not a folder"]),
        ("folder", ["folder", "it is a folder"]),
        ("n" * 300, ["too long", "choose a shorter one"]),
    ],
)
def test_bad_output_is_found_before_the_work(
    run: Callable, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, name: str, parts: list[str]
) -> None:
    def too_late(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Dawn, "from_pretrained", too_late)
    suffix = {"-o": ".mp4", "--motion-out": ".json"}[option]
    write(tmp_path / "file.txt", b"x")
    (tmp_path / f"folder{suffix}").mkdir()
    path = tmp_path / (name if name.endswith(".avi") else f"{name}{suffix}")
    refused(run("generate", "x.png", "x.wav", option, path), out, *parts)


def test_input_is_not_overwritten(run: Callable, out: Path, tmp_path: Path) -> None:
    video = write(tmp_path / "in.mp4", b"precious")
    refused(run("drive", "x.png", video, "-o", video), out, "in.mp4", "input itself", "choose another name")
    assert video.read_bytes() == b"precious"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder in which no video fits, and what the message says: a small disk, or a limit on the file's size."""
    folder = tmp_path / "disk"
    with small_disk(folder, 8) as mounted:
        if mounted:
            yield folder, "no space is left"
            return
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
        try:
            yield folder, "beyond the size allowed"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("prepared_once")
def test_full_disk(run: Callable, full_disk: tuple[Path, str], portrait_path: Path, speech_path: Path) -> None:
    folder, reason = full_disk
    result = run("generate", portrait_path, speech_path, "-o", folder / "a.mp4", "--size", 256)
    refused(result, folder, "a.mp4", reason, "choose another folder")


# --------------------------------------------------------------------------------------- bad presets, options, motion


def damaged(folder: Path, tiny_preset: Path) -> Path:
    shutil.copytree(tiny_preset, folder / "damaged")
    path = folder / "damaged" / "lfg.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    write(path, bytes(data))
    return folder / "damaged"


def foreign(folder: Path, tiny_preset: Path) -> Path:
    """Another part's weights under this part's name, with the right checksum."""
    shutil.copytree(tiny_preset, folder / "foreign")
    shutil.copy(tiny_preset / "a2v.safetensors", folder / "foreign" / "pbnet.safetensors")
    config = folder / "foreign" / "config.json"
    values = json.loads(config.read_text())
    values["sha256"]["pbnet"] = file_sha256(tiny_preset / "a2v.safetensors")
    config.write_text(json.dumps(values))
    return folder / "foreign"


def test_bad_preset(run: Callable, out: Path, tmp_path: Path, tiny_preset: Path) -> None:
    for preset, parts in (
        ("lite-9000", ["unknown preset 'lite-9000'", "use one of"]),
        (damaged(tmp_path, tiny_preset), ["lfg.safetensors", "damaged", "get the file again"]),
        (
            foreign(tmp_path, tiny_preset),
            ["pbnet.safetensors", "weights of another model", "use weights of this preset"],
        ),
        (out, [str(out), "no config.json", "preset name"]),
    ):
        refused(run("generate", "x.png", "x.wav", "--preset", preset), out, *parts)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--steps", "0"], ["steps = 0", "greater than or equal to 1"]),
        (["--steps", "many"], ["--steps", "'many'", "dawn generate --help"]),
        (["--seed", "-3"], ["seed = -3"]),
        (["--guidance", "nan"], ["guidance = nan"]),
        (["--expression", "9"], ["expression = 9", "less than or equal to 2"]),
        (["--size", "100"], ["size 100", "128, 256, 512"]),
        (["--face", "left"], ["--face", "'left'", "number"]),
        (["--device", "abacus"], ["device 'abacus'", "use auto or cpu"]),
        (["--colour", "red"], ["--colour", "--help"]),
        (["--motion-in", "gone.json"], ["gone.json", "cannot be read", "a motion file written by dawn"]),
        (["--motion-in", "bad.json"], ["bad.json", "not a JSON file", "a motion file written by dawn"]),
        (["--motion-in", "wrong.json"], ["wrong.json", "pose has the shape (1, 5)", "is needed"]),
    ],
)
def test_bad_option(
    run: Callable,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    speech_path: Path,
    options: list[str],
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.json", b"{")
    motion = {"format": "dawn-motion-1", "fps": 25, "pose": [[0] * 5], "blink": [[0, 0]], "expression": [[0] * 12]}
    write(tmp_path / "wrong.json", json.dumps(motion).encode())
    refused(run("generate", "x.png", speech_path, *options), out, *parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["COMMAND", "--help"]),
        (["dance"], ["'dance'", "generate", "--help"]),
        (["generate", "x.png"], ["speech", "--help"]),
        (["prepare", "gone", "clips"], ["gone", "no video found", ".mp4"]),
        (["prepare", "gone", "clips", "--size", "9"], ["--size 9", "64 to 1024"]),
        (["train", "lfg", "--data", "gone", "--out", "r", "--set", "steps"], ["'steps'", "KEY=VALUE"]),
        (["train", "lfg", "--data", "gone", "--out", "r", "--set", "stepz=3"], ["stepz = '3'"]),
        (["train", "lfg", "--data", "gone", "--out", "r", "--set", "model.widths=3"], ["widths = '3'"]),
        (["train", "a2v", "--data", "gone", "--out", "r"], ["a2v needs the audio encoder", "--audio"]),
        (["train", "hair", "--data", "gone", "--out", "r"], ["'hair'", "lfg", "--help"]),
        (["pack", "p", "-o", "kept", *(w for p in PARTS for w in (f"--{p}", "no"))], ["no/lfg.json", "not readable"]),
        (["evaluate", "clips", "--sface", "gone.safetensors"], ["gone.safetensors", "not found"]),
    ],
    ids=lambda value: " ".join(value[:2]) if value and isinstance(value, list) else None,
)
def test_bad_command(
    capfd: Output,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_preset: Path,
    words: list[str],
    parts: list[str],
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    words = [*words, "--preset", str(tiny_preset)] if words[:1] == ["evaluate"] else words
    capfd.readouterr()
    code = main(words)
    printed = capfd.readouterr()
    refused((code, printed.out, printed.err), folder, *parts)


def test_pack_replaces_presets_only(run: Callable, tmp_path: Path) -> None:
    """The folder given may be anything: a home, for example."""
    home = tmp_path / "home"
    home.mkdir()
    write(home / "letters.txt", b"precious")
    folders = [word for part in PARTS for word in (f"--{part}", tmp_path)]
    code, _, errors = run("pack", "p", *folders, "-o", home)
    assert code == 2 and "home: exists and is no preset" in errors and "choose another folder" in errors
    assert (home / "letters.txt").read_bytes() == b"precious"


def test_training_without_accelerate(capfd: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.startswith("dawn.research.training")]:
        monkeypatch.delitem(sys.modules, name)
    import dawn

    monkeypatch.delattr(dawn, "training", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(["train", "lfg", "--data", str(tmp_path), "--out", str(tmp_path / "r")]) == 2
    printed = capfd.readouterr()
    assert printed.err.count("\n") == 1 and "pip install -e '.[train]'" in printed.err
