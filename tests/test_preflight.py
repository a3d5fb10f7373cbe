"""``dawn check``: every finding is provoked by something made for it, and absent on the example files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from conftest import EXAMPLES, example_sound, refused, three_faces, write_wav
from dawn import media
from dawn.checkpoint import load_mean_face
from dawn.checks import speech as rules
from dawn.checks.findings import Finding, Section, as_json, format_findings, verdict
from dawn.checks.portrait import examine_portrait
from dawn.checks.speech import examine_speech
from dawn.face import mesh as lm
from dawn.face.geometry import apply_pose, lip_aperture
from dawn.preprocess.tracker import FaceTracker
from dawn.structs import ImageArray, Speech, TrackedFace

SIZE_PX = 128
PORTRAIT = [
    "faces",
    "face_height",
    "outside_picture",
    "yaw",
    "pitch",
    "roll",
    "detail",
    "highlight",
    "burnt_out",
    "lip_opening",
    "eye_ratio",
    "lips_seen",
]
SPEECH = ["duration", "speech_share", "start", "level", "snr", "clipping", "steadiness"]
MOUTH = (208, 135, 242, 158)
"""The lips of the example portrait, pixels."""


@pytest.fixture(scope="module")
def look() -> Iterator[Callable[..., dict[str, Finding]]]:
    with FaceTracker(max_faces=8) as tracker:

        def examine(
            image: Image.Image | ImageArray, size_px: int = SIZE_PX, choice: object = None
        ) -> dict[str, Finding]:
            found = examine_portrait(np.asarray(image), size_px, tracker, load_mean_face(), choice)  # type: ignore[arg-type]
            return {finding.name: finding for finding in found}

        yield examine


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    return Image.open(EXAMPLES / "portrait.png").convert("RGB")


def bad(findings: dict[str, Finding]) -> set[str]:
    for finding in findings.values():
        assert bool(finding.advice) == (finding.level != "ok")
    return {name for name, finding in findings.items() if finding.level != "ok"}


# ---------------------------------------------------------------------------------------------------------- portraits


def test_the_example_portrait_is_fine(look: Callable, portrait: Image.Image) -> None:
    found = look(portrait)
    assert list(found) == PORTRAIT and not bad(found)
    assert found["faces"].value == 1 and found["face_height"].value == pytest.approx(106, abs=3)


def turned(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC, center=(226, 110))


def covered(image: Image.Image, colour: tuple[int, int, int], box: tuple[int, int, int, int]) -> Image.Image:
    out = image.copy()
    ImageDraw.Draw(out).ellipse(box, fill=colour)
    return out


def cut_close(image: Image.Image) -> Image.Image:
    """The face from brow to chin: what should surround it is not there."""
    return image.crop((175, 65, 276, 182)).resize((404, 468), Image.Resampling.LANCZOS)


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (cut_close, "outside_picture"),
        (lambda image: turned(image, 30), "roll"),
        (lambda image: image.filter(ImageFilter.GaussianBlur(2.5)), "detail"),
        (lambda image: ImageEnhance.Brightness(image).enhance(0.2), "highlight"),
        (lambda image: ImageEnhance.Brightness(image).enhance(2.2), "burnt_out"),
        (lambda image: covered(image, (214, 160, 130), (186, 124, 262, 172)), "lips_seen"),
        (lambda image: covered(image, (40, 40, 44), (206, 146, 246, 186)), "lips_seen"),
    ],
    ids=["close", "turned", "blurred", "dark", "burnt", "hand", "microphone"],
)
def test_a_spoilt_portrait(look: Callable, portrait: Image.Image, spoil: Callable, name: str) -> None:
    assert name in bad(look(spoil(portrait)))


def test_a_face_that_has_to_be_enlarged_much(look: Callable, portrait: Image.Image) -> None:
    """A square of 113 px: a little soft at 128 px, a blur at 256."""
    small = portrait.resize((320, 320), Image.Resampling.LANCZOS)
    assert "face_height" not in bad(look(small))
    found = look(small, 256)
    assert "face_height" in bad(found) and "113 px and is enlarged to 256" in found["face_height"].advice
    assert "face_height" not in bad(look(portrait, 256))


class ShownTracker:
    """Finds one given face in every picture, in place and size."""

    def __init__(self, landmarks: np.ndarray) -> None:
        self.landmarks = landmarks

    def detect(self, image: ImageArray) -> list:
        side = min(image.shape[:2])
        return [
            TrackedFace(
                ((self.landmarks + np.array([1, 1, 0])) * side / 2).astype(np.float32), np.zeros(52, np.float32)
            )
        ]


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ("yaw", "yaw", 25.0),
        ("pitch", "pitch", -30.0),
        ("open", "lip_opening", 0.25),
        ("shut", "eye_ratio", 0.0),
        ("none", "", 0),
    ],
)
def test_a_face_that_is_posed(change: str, name: str, value: float) -> None:
    """Pose, mouth and eyes of the mean face are set by hand, so that the value is known."""
    shape = load_mean_face().clone()
    lower = list(lm.INNER_LIPS[11:])
    shape[lower, 1] += (0.25 if change == "open" else 0.05) - lip_aperture(shape)
    if change == "shut":
        for upper, below in ((lm.RIGHT_UPPER_LID, lm.RIGHT_LOWER_LID), (lm.LEFT_UPPER_LID, lm.LEFT_LOWER_LID)):
            shape[list(upper)] = shape[list(below)][range(len(below) - 1, -1, -1)]
    pose = torch.tensor([value if change == "yaw" else 0, value if change == "pitch" else 0, 0, 0.6, 0, 0])
    image = np.random.default_rng(0).integers(0, 250, (256, 256, 3), dtype=np.uint8)
    found = examine_portrait(image, SIZE_PX, ShownTracker(apply_pose(shape, pose).numpy()), load_mean_face())  # type: ignore[arg-type]
    by_name = {finding.name: finding for finding in found}
    suspects = {"yaw", "pitch", "roll", "lip_opening", "eye_ratio"} & bad(by_name)
    assert suspects == ({name} if name else set())
    if name:
        assert by_name[name].value == pytest.approx(value, abs=0.03 if abs(value) < 1 else 1)


def test_a_grey_portrait_hides_what_cannot_be_measured(look: Callable, portrait: Image.Image) -> None:
    found = look(portrait.convert("L").convert("RGB"))
    assert found["lips_seen"].value is None and not bad(found)


def test_errors_are_those_of_generation(look: Callable, portrait: Image.Image, tmp_path: Path) -> None:
    tiny = look(portrait.resize((120, 120)))
    assert bad(tiny) == {"face_height"} and "48 px" in tiny["face_height"].advice
    nobody = look(np.full((200, 200, 3), 90, np.uint8))
    assert list(nobody) == ["faces"] and nobody["faces"].level == "error" and nobody["faces"].value == 0
    three = media.read_image(three_faces(tmp_path, EXAMPLES / "portrait.png"))
    assert look(three)["faces"].value == 3 and "`face=N`" in look(three)["faces"].advice
    assert list(look(three, choice=2)) == PORTRAIT


# ------------------------------------------------------------------------------------------------------------- speech


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    samples, rate_hz = example_sound()
    return media.speech_from_array(samples, rate_hz).samples


def hear(samples: np.ndarray) -> dict[str, Finding]:
    samples = samples.clip(-1, 1).astype(np.float32)
    return {finding.name: finding for finding in examine_speech(Speech(samples, len(samples) / 16_000))}


def noise(count: int, level: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, count)


def music(seconds: float) -> np.ndarray:
    """Held chords of three notes, each with overtones."""
    time = np.arange(int(seconds * 16_000)) / 16_000
    chord = (time // 0.8).astype(int) % 4
    root = np.array([220.0, 174.6, 261.6, 196.0])[chord]
    return sum(np.sin(2 * np.pi * root * ratio * k * time) / k for ratio in (1, 1.26, 1.5) for k in (1, 2, 3, 4)) * 0.06


def test_the_example_speech_is_fine(voice: np.ndarray) -> None:
    found = hear(voice)
    assert list(found) == SPEECH and not bad(found)
    # examples/README.md: silence until 0.30 s, of which a rule may take a consonant's run-up away.
    assert found["start"].value == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda voice: voice[8000:20000], "duration"),
        (lambda voice: np.concatenate((noise(600_000, 1e-3), voice[5000:60_000])), "speech_share"),
        (lambda voice: noise(80_000, 0.1), "speech_share"),
        (lambda voice: np.concatenate((np.zeros(32_000), voice)), "start"),
        (lambda voice: voice * 0.05, "level"),
        (lambda voice: voice + noise(len(voice), 0.025), "snr"),
        (lambda voice: voice * 6, "clipping"),
        (lambda voice: music(5), "steadiness"),
        (lambda voice: voice + 0.5 * music(len(voice) / 16_000)[: len(voice)], "steadiness"),
    ],
    ids=["short", "pauses", "noise", "late", "quiet", "noisy", "clipped", "music", "voice over music"],
)
def test_a_spoilt_recording(voice: np.ndarray, spoil: Callable, name: str) -> None:
    assert name in bad(hear(spoil(voice)))


def test_silence_has_no_level() -> None:
    found = hear(np.zeros(32_000))
    assert list(found) == SPEECH and bad(found) == {"speech_share"}
    assert found["level"].value is None and found["snr"].value is None


def test_levels_in_decibels() -> None:
    assert rules.levels_dbfs(np.full(320, 0.1, np.float32)) == pytest.approx([-20])
    assert len(rules.levels_dbfs(np.zeros(321, np.float32))) == 2
    loud = np.where(np.arange(32_000) % 16_000 < 8000, 0.1, 0.001) * np.sign(noise(32_000, 1))
    # 40 dB from block to block; 21 blocks around the 50 loud ones count as gaps within speech.
    assert hear(loud)["snr"].value == pytest.approx(40 + 10 * np.log10(50 / 71), abs=0.05)


def test_steadiness_does_not_depend_on_the_pieces(voice: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = rules.levels_dbfs(voice)
    whole = rules.steadiness(voice, levels)
    monkeypatch.setattr(rules, "SPECTRA_AT_ONCE", 50)
    assert rules.steadiness(voice, levels) == pytest.approx(whole)
    assert rules.steadiness(voice[:500], rules.levels_dbfs(voice[:500])) == 0


# ------------------------------------------------------------------------------------------------------------- report


def test_report() -> None:
    sections = [
        Section("portrait", "p.png", (Finding("faces", 1, ""), Finding("yaw", 25.0, "degrees", "warning", "turn"))),
        Section("speech", "s.wav", (Finding("file", None, "", "error", "broken"),)),
    ]
    assert verdict(sections[:1]) == "warning" and verdict(sections) == "error" and verdict([]) == "ok"
    assert as_json(sections[:1]) == {
        "format": "dawn-check-1",
        "verdict": "warning",
        "speech": None,
        "portrait": {
            "path": "p.png",
            "findings": [
                {"name": "faces", "value": 1, "unit": "", "level": "ok", "advice": ""},
                {"name": "yaw", "value": 25.0, "unit": "degrees", "level": "warning", "advice": "turn"},
            ],
        },
    }
    words = format_findings(sections)
    assert len(words) == 5 and "25 degrees" in words[2] and words[2].endswith("turn") and words[3] == "speech s.wav"
    assert [line.split()[0] for line in format_findings(sections, "error")] == ["speech", "error"]


def test_check(run: Callable, out: Path, tmp_path: Path, portrait_path: Path, portrait: Image.Image) -> None:
    code, printed, errors = run("check", portrait_path, EXAMPLES / "speech.wav", "--strict", "--json", out / "r.json")
    assert (code, errors) == (0, "") and printed.count("  ok ") == len(PORTRAIT) + len(SPEECH)
    report = json.loads((out / "r.json").read_text())
    assert (report["format"], report["verdict"]) == ("dawn-check-1", "ok")
    assert [finding["name"] for finding in report["portrait"]["findings"]] == PORTRAIT
    assert [finding["name"] for finding in report["speech"]["findings"]] == SPEECH
    assert all(set(f) == {"name", "value", "unit", "level", "advice"} for f in report["speech"]["findings"])
    small = tmp_path / "small.png"
    portrait.resize((320, 320), Image.Resampling.LANCZOS).save(small)
    assert run("check", small)[0] == 0
    code, printed, _ = run("check", small, "--strict", "--json", "-")
    assert code == 2 and json.loads(printed)["verdict"] == "warning" and json.loads(printed)["speech"] is None
    assert run("check", small, "--quiet") == (0, "", "")
    code, printed, _ = run("check", tmp_path / "gone.png", tmp_path / "gone.wav", "--quiet")
    assert code == 2 and printed.count("does not exist; check the path") == 2


def test_check_refuses_what_it_cannot_write(run: Callable, out: Path, portrait_path: Path) -> None:
    refused(run("check", portrait_path, "--json", out / "r.txt"), out, "r.txt", "must end in .json")
    refused(run("check", portrait_path, "--preset", "nobody"), out, "unknown preset 'nobody'")


def test_generate_strictly(
    run: Callable, out: Path, tmp_path: Path, portrait_path: Path, speech_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before any model is loaded; what is fine is let through."""
    import dawn.pipeline

    def loaded(*_: object) -> None:
        raise InterruptedError("loaded")

    monkeypatch.setattr(dawn.pipeline.Dawn, "from_pretrained", loaded)
    result = run("generate", portrait_path, speech_path, "--strict")
    refused(result, out, "refused for 1 warning", "speech duration", "give a longer recording")
    longer = write_wav(tmp_path / "longer.wav", *example_sound())
    refused(run("generate", portrait_path, longer, "--strict"), out, "loaded", code=1)
