"""The command line: what it makes, with the real tracker and a tiny model of random weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dawn.pipeline
import dawn.video
from conftest import refused, three_faces, write_preset, write_wav
from dawn import __version__, media
from dawn.apps.cli.main import main
from dawn.media.motion_json import load_motion
from dawn.pipeline import Dawn
from dawn.preprocess.portrait import prepare_portrait
from dawn.preprocess.tracker import FaceTracker
from dawn.structs import Face
from media_files import decoded, noise, tone, write_sound

Output = pytest.CaptureFixture[str]


def test_choice_among_three(run: Callable, out: Path, tmp_path: Path, portrait_path: Path, speech_path: Path) -> None:
    portrait = three_faces(tmp_path, portrait_path)
    refused(run("generate", portrait, speech_path, "--face", 4), out, "face 4", "has 3", "use 1 to 3")
    assert run("generate", portrait, speech_path, "--face", 2, "--quiet") == (0, "", "")


def test_choice_counts_from_the_left(tmp_path: Path, portrait_path: Path, tiny_model: Dawn) -> None:
    image = media.read_image(three_faces(tmp_path, portrait_path))
    with FaceTracker(max_faces=8) as tracker:
        mean_face = tiny_model.bundle.motion.mean_face
        faces: list[Face] = [prepare_portrait(image, 64, tracker, mean_face, choice) for choice in (1, 2, 3, "largest")]
    assert [round(face.box.center[0] // 260) for face in faces[:3]] == [0, 1, 2]
    assert faces[3].box.center[0] in [face.box.center[0] for face in faces[:3]]


@pytest.mark.usefixtures("prepared_once")
@pytest.mark.parametrize(
    ("rate_hz", "codec", "sample_format"), [(16_000, "pcm_u8", "u8"), (96_000, "pcm_s24le", "s32")], ids=["8", "24"]
)
def test_rare_sound_is_fine(
    run: Callable, out: Path, tmp_path: Path, rate_hz: int, codec: str, sample_format: str
) -> None:
    speech = write_sound(tmp_path / "in.wav", tone(rate_hz, 0.5), rate_hz, codec, sample_format)
    assert run("generate", "x.png", speech, "--quiet") == (0, "", "")
    assert len(decoded(out / "out.mp4")["times"]) == 13


@pytest.mark.usefixtures("prepared_once")
def test_silence_on_request(run: Callable, tmp_path: Path) -> None:
    speech = write_wav(tmp_path / "q.wav", np.zeros(8000), 16_000)
    assert run("generate", "x.png", speech, "--allow-silence")[0] == 0


def test_generate(run: Callable, out: Path, tmp_path: Path, portrait_path: Path, speech_path: Path) -> None:
    """The whole way, with the real tracker: not a line of native noise, every stage timed."""
    motion = out / "m.json"
    code, printed, errors = run(
        "generate", portrait_path, speech_path, "--seed", 1, "--motion-out", motion, "--size", 128
    )
    assert (code, errors) == (0, "")
    assert "21 frames, 0.84 s, 128 x 128 px" in printed
    for word in (
        "load model",
        "audio in",
        "track",
        "audio features",
        "motion",
        "decode",
        "video",
        "frames/s",
        "x real time",
        "peak memory",
    ):
        assert word in printed
    assert len(load_motion(motion)) == 21
    assert sorted(path.name for path in out.iterdir()) == ["m.json", "out.mp4"]
    first = decoded(out / "out.mp4")
    assert first["pixels"][0].shape == (128, 128, 3) and len(first["times"]) == 21
    again = out / "again.mp4"
    assert run("generate", portrait_path, speech_path, "--motion-in", motion, "--size", 128, "-o", again)[0] == 0
    assert all((a == b).all() for a, b in zip(first["pixels"], decoded(again)["pixels"], strict=True))


@pytest.mark.usefixtures("prepared_once")
def test_seed_and_quiet(run: Callable, out: Path, speech_path: Path) -> None:
    made: dict[str, np.ndarray] = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = out / f"{name}.mp4"
        assert run("generate", "x.png", speech_path, "--seed", seed, "--quiet", "-o", path) == (0, "", "")
        made[name] = np.stack(decoded(path)["pixels"])
    assert (made["a"] == made["b"]).all() and (made["a"] != made["c"]).any()


def test_drive(run: Callable, out: Path, portrait_path: Path, tmp_path: Path) -> None:
    portrait = np.asarray(Image.open(portrait_path).convert("RGB").resize((256, 256)))
    with media.VideoWriter(tmp_path / "in.mp4", 256, 256) as writer:
        for shift in range(6):
            writer.write(np.roll(portrait, -shift, axis=1))
    code, printed, errors = run("drive", portrait_path, tmp_path / "in.mp4", "--motion-out", out / "m.json")
    assert (code, errors) == (0, "") and "6 frames" in printed
    motion = load_motion(out / "m.json")
    assert motion.pose[-1, 4] < motion.pose[0, 4] and motion.info["driven_by"] == "in.mp4"


@pytest.fixture
def broken_render(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Makes rendering do something else after three frames."""

    def install(act: Callable[[], object]) -> None:
        whole = dawn.video.draw_frames

        def render(*arguments: object) -> Iterator[np.ndarray]:
            for index, frame in enumerate(whole(*arguments)):  # type: ignore[arg-type]
                if index == 3:
                    act()
                yield frame

        monkeypatch.setattr(dawn.video, "draw_frames", render)

    return install


@pytest.mark.usefixtures("prepared_once")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(run: Callable, out: Path, speech_path: Path, broken_render: Callable, signal_number: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    broken_render(lambda: os.kill(os.getpid(), signal_number))
    # A program that a shell started in the background ignores Ctrl-C, and so would this one.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = run("generate", "x.png", speech_path, "--motion-out", out / "m.json")
    finally:
        signal.signal(signal.SIGINT, inherited)
    refused(result, out, "interrupted", code=130)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("prepared_once")
def test_unforeseen(run: Callable, out: Path, speech_path: Path, broken_render: Callable) -> None:
    def fail() -> None:
        raise RuntimeError("the moon\nis full")

    broken_render(fail)
    result = run("generate", "x.png", speech_path)
    refused(result, out, "unexpected RuntimeError: the moon is full", "--debug", code=1)
    code, _, errors = run("generate", "x.png", speech_path, "--debug")
    assert code == 1 and "Traceback" in errors and "in fail" in errors


def test_help_is_instant_and_version(capfd: Output) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"dawn {__version__}\n"
    code = "import sys; from dawn.apps.cli.main import main; main(['generate', '--help'])"
    code += "; sys.stderr.write(repr([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for option in (
        "--seed",
        "--steps",
        "--guidance",
        "--pose-scale",
        "--blink",
        "--still",
        "--expression",
        "--size",
        "--motion-out",
        "--motion-in",
        "--face",
        "--allow-silence",
        "--device",
        "--preset",
        "--quiet",
    ):
        assert option in done.stdout
    assert not [name for name in ("torch", "numpy", "av", "mediapipe", "tqdm") if f"'{name}'" in done.stderr]


def test_prepare(tmp_path: Path, portrait_path: Path) -> None:
    """In a process of its own: its workers are forked, which a process full of threads should not be."""
    videos = tmp_path / "videos"
    videos.mkdir()
    portrait = np.asarray(Image.open(portrait_path).convert("RGB").resize((400, 400)))
    for name, frames in (("face", [portrait] * 12), ("noise", [noise(64, 64, seed) for seed in range(12)])):
        with media.VideoWriter(videos / f"{name}.mp4", frames[0].shape[1], frames[0].shape[0]) as writer:
            for frame in frames:
                writer.write(frame)
    (tmp_path / "people.csv").write_text("file,person\nface.mp4,Eileen\n")
    command = [
        sys.executable,
        "-m",
        "dawn.apps.cli.main",
        "prepare",
        str(videos),
        str(tmp_path / "clips"),
        "--workers",
        "1",
    ]
    command += ["--people", str(tmp_path / "people.csv"), "--size", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "dropped  noise.mp4  no face in frame 0" in done.stdout and "1 kept, 1 dropped" in done.stdout
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["face.safetensors", "report.json"]
    from safetensors import safe_open

    with safe_open(tmp_path / "clips" / "face.safetensors", "np") as clip:
        assert clip.metadata()["person"] == "Eileen" and clip.get_tensor("frames").shape == (12, 64, 64, 3)
    (videos / "face.mp4").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "none of 1 videos can be used" in done.stderr


def test_doctor(capfd: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    preset = write_preset(tmp_path / "weights" / "tiny")
    monkeypatch.setattr("dawn.checkpoint.files", lambda package: tmp_path)
    assert main(["doctor"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    for word in ("Python", "torch", "mediapipe", "cores", "GiB"):
        assert word in printed.out
    checks = [line.split()[1:3] for line in printed.out.splitlines() if line.startswith("OK")]
    assert checks == [["face", "tracker"], ["H.264", "+"], ["tiny", "files"], ["tiny", "runs"]]
    (preset / "pbnet.safetensors").unlink()
    assert main(["doctor", "--quiet"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [["FAIL", "tiny", "files"], ["FAIL", "tiny", "runs"]]
