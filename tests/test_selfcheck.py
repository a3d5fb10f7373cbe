"""The self-check of outputs: every finding provoked and absent, the report as a file, and the choice among seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import EXAMPLES, refused
from dawn import media
from dawn.apps.cli.main import main
from dawn.checks import output as selfcheck
from dawn.checks import pieces
from dawn.checks import retry as seeds
from dawn.checks.findings import Finding
from dawn.checks.output import Report, check_output, judge_course
from dawn.checks.pieces import Course, join_courses, measure_lags, measure_piece, track_pieces
from dawn.checks.retry import SeedScore, describe_seeds, find_spoken_part, pick_seed, score_in_place
from dawn.errors import CheckpointError, InputError, OutputError
from dawn.measures import sync
from dawn.models.judges.sync import LagDistances
from dawn.pipeline import Dawn
from dawn.structs import Box, ImageArray, Speech
from dawn.video import Video
from eval_material import BrightnessTracker, PixelsAsIdentity, random_tools

FRAMES = 750
"""Half a minute, so that blinks count."""
RNG = np.random.default_rng(0)


def voice() -> np.ndarray:
    """Half a minute of noise with four seconds of silence in its middle."""
    samples = RNG.normal(0, 0.1, FRAMES * 640).astype(np.float32)
    samples[350 * 640 : 450 * 640] = 0
    return samples


VOICE = voice()


def dip(offset: int, depth: float = 0.3) -> np.ndarray:
    """Sums and counts by lag of lips that fit the sound ``offset`` frames later."""
    means = np.full(21, 1.2)
    means[10 + offset] -= depth
    return np.stack((means * 700, np.full(21, 700.0)))


def course(**changes: object) -> Course:
    """A good video: the mouth moves with the voice, the eyes blink every three seconds, the head turns a little."""
    time = np.arange(FRAMES)
    opening = 0.05 + 0.03 * np.sin(time * 0.9) * ((time < 350) | (time >= 450))
    eyes = np.where(time % 75 < 4, 0.05, 0.3)
    angles = 5 * np.sin(time[:, None] * 0.05 + np.arange(3))
    rest = (np.ones(FRAMES), np.zeros((0, 128)), np.array([1e-5, 1]), np.array([1e-4, 1]), dip(0))
    return replace(Course(opening, eyes, angles, *rest), **changes)  # type: ignore[arg-type]


def named(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


CURVE = np.linspace(1, 0.9, 60)


def test_a_good_video_has_no_warnings() -> None:
    found = named(judge_course(course(), VOICE, CURVE))
    assert {finding.level for finding in found.values()} == {"ok"} and all(f.value is not None for f in found.values())
    assert found["av_offset"].value == 0 and found["blinks"].value == 18  # the stretch at the start is none


def holes(values: np.ndarray, share: float) -> np.ndarray:
    out = values.astype(float).copy()
    out[: int(share * len(out))] = np.nan
    return out


@pytest.mark.parametrize(
    ("name", "changes", "curve"),
    [
        ("face_found", {"opening": holes(course().opening, 0.05)}, CURVE),
        ("sync_confidence", {"sync": dip(0, 0.05)}, CURVE),
        ("av_offset_frames", {"sync": dip(5)}, CURVE),
        ("av_offset_frames", {"sync": dip(-3)}, CURVE),
        ("lips_in_silence", {"opening": 0.05 + 0.03 * np.sin(np.arange(FRAMES) * 0.9)}, CURVE),
        ("identity_lowest", {}, np.array([1, 0.9, 0.9, 0.3, 0.9, 0.9, 0.9])),
        ("identity_drift", {}, np.linspace(1, 0.7, 60)),
        ("blinks", {"eyes": np.full(FRAMES, 0.3)}, CURVE),
        ("blinks", {"eyes": np.where(np.arange(FRAMES) % 10 < 3, 0.05, 0.3)}, CURVE),
        ("jitter", {"jitter": np.array([1e-3, 1])}, CURVE),
        ("flicker", {"flicker": np.array([4e-3, 1])}, CURVE),
        ("pose_range", {"angles": 60 * np.sin(np.arange(FRAMES)[:, None] * 0.05 + np.arange(3))}, CURVE),
        ("frozen", {"change": np.where(np.arange(FRAMES) > 700, 0, 1.0)}, CURVE),
    ],
)
def test_each_fault_is_found_and_nothing_else(name: str, changes: dict, curve: np.ndarray) -> None:
    findings = judge_course(course(**changes), VOICE, curve)
    assert [finding.name for finding in findings if finding.level == "warning"] == [name]
    assert named(findings)[name].advice


def test_offset_is_given_in_both_units_and_not_judged_by_chance() -> None:
    late = named(judge_course(course(sync=dip(5)), VOICE, CURVE))
    assert (late["av_offset_frames"].value, late["av_offset"].value) == (5, 200)
    assert "sound comes late" in late["av_offset_frames"].advice
    chance = named(judge_course(course(sync=dip(5, 0.01)), VOICE, CURVE))
    assert chance["sync_confidence"].level == "warning" and chance["av_offset_frames"].level == "ok"


def test_what_cannot_be_told_is_none() -> None:
    nobody = np.full(FRAMES, np.nan)
    blind = course(
        opening=nobody,
        eyes=nobody,
        angles=np.full((FRAMES, 3), np.nan),
        jitter=np.zeros(2),
        flicker=np.zeros(2),
        sync=np.zeros((2, 21)),
    )
    found = named(judge_course(blind, np.zeros(0, np.float32)))
    assert found["face_found"].value == 0 and found["face_found"].level == "warning"
    assert {name for name, finding in found.items() if finding.value is None} == {*found} - {"face_found", "frozen"}
    short = named(judge_course(course(), np.resize(VOICE[: 340 * 640], len(VOICE)), CURVE[:1]))
    assert short["lips_in_silence"].value is None and short["identity_drift"].value is None


# ------------------------------------------------------------------------------------------------------------ looking


class Blinking(BrightnessTracker):
    """Loses the face in dark pictures."""

    def detect(self, image: ImageArray) -> list:
        return super().detect(image) if image.mean() > 10 else []


def film(frames: int, dark: tuple[int, ...] = ()) -> list[ImageArray]:
    rng = np.random.default_rng(2)
    pictures = rng.integers(60, 256, (frames, 64, 64, 3), dtype=np.uint8)
    pictures[list(dark)] = 0
    return list(pictures)


def test_pieces_make_the_same_numbers_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tools, box = random_tools(), Box(0, 0, 64, 64)
    frames = film(60, dark=(0, 20, 21, 45))
    (whole,) = track_pieces(frames, Blinking(), box)  # type: ignore[arg-type]
    assert not whole.found[[0, 20, 21, 45]].any() and whole.found.sum() == 56
    assert (whole.landmarks[0] == whole.landmarks[1]).all() and (whole.landmarks[21] == whole.landmarks[19]).all()
    assert np.isinf(whole.change[0]) and whole.change[21] == 0 and whole.change[1:20].min() > 1
    monkeypatch.setattr(pieces, "PIECE_FRAMES", 25)
    parts = list(track_pieces(frames, Blinking(), box))  # type: ignore[arg-type]
    assert [(part.start, len(part.crops)) for part in parts] == [(0, 25), (25, 25), (50, 10)]
    samples = np.random.default_rng(1).normal(0, 0.1, 60 * 640).astype(np.float32)
    made = [
        measure_piece(part, samples[part.start * 640 :][: len(part.crops) * 640], tools.judge, tools.sface)
        for part in parts
    ]
    joined, once = join_courses(made), measure_piece(whole, samples, tools.judge, tools.sface)
    for name in ("opening", "eyes", "angles", "change", "features"):
        np.testing.assert_allclose(getattr(joined, name), getattr(once, name), atol=1e-5)
    # Every 12th frame that shows a face: 12, 24, 36, 48; the first is dark.
    assert len(once.features) == 4
    assert not made[2].sync.any() and made[0].sync.any()  # ten frames are too few for the judge
    assert once.jitter[1] == 17 + 21 + 12 and joined.jitter[1] < once.jitter[1]


def test_long_silence_is_not_judged() -> None:
    tools = random_tools()
    (piece,) = track_pieces(film(80), BrightnessTracker(), Box(0, 0, 64, 64))  # type: ignore[arg-type]
    samples = np.random.default_rng(1).normal(0, 0.1, 80 * 640).astype(np.float32)
    whole = measure_lags(piece, samples, tools.judge)
    assert whole[1].max() == 76 - 2  # windows that have seven frames of sound
    short, long = samples.copy(), samples.copy()
    short[30 * 640 : 50 * 640] = 0
    long[25 * 640 : 60 * 640] = 0
    assert (measure_lags(piece, short, tools.judge)[1] == whole[1]).all()
    assert 0 < measure_lags(piece, long, tools.judge)[1].max() <= 50
    assert not measure_lags(piece, np.zeros_like(samples), tools.judge).any()


def test_the_square_is_found_in_a_photograph() -> None:
    """A small face off the middle: without a box it is looked for."""
    portrait = Image.open(EXAMPLES / "portrait.png").convert("RGB").resize((128, 128))
    wide = Image.new("RGB", (400, 300), (120, 130, 140))
    wide.paste(portrait, (250, 40))
    with selfcheck.FaceTracker() as tracker:
        (piece,) = track_pieces([np.asarray(wide)] * 2, tracker)
    assert piece.found.all() and piece.change[1] == 0
    assert np.abs(piece.landmarks[..., :2].mean((0, 1))).max() < 0.25
    assert 0.9 < np.ptp(piece.landmarks[0, :, 1]) < 1.4


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Report]:
    """Reports on four seconds of the example said by the shipped model, and on the same pictures with the sound five frames
    late and the end standing still; the first without weights for the identity."""
    folder = tmp_path_factory.mktemp("spoken")
    sound = media.read_speech(EXAMPLES / "speech.wav").samples[: 100 * 640]
    model = Dawn.from_pretrained("lite-128", "cpu")
    model(EXAMPLES / "portrait.png", Speech(sound, 4.0)).save(folder / "a.mp4")
    frames = list(media.read_video(folder / "a.mp4"))
    late = np.concatenate((np.zeros(5 * 640, np.float32), sound))[: len(sound)]
    with media.VideoWriter(folder / "b.mp4", 256, 256, Speech(late, 4.0)) as writer:
        for index in range(100):
            writer.write(frames[min(index, 84)])
    (folder / "weights").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAWN_CACHE", str(folder))
        good = check_output(folder / "a.mp4")
        patch.setattr(selfcheck, "load_sface", lambda path: PixelsAsIdentity())
        return good, check_output(folder / "b.mp4", sface=folder / "weights")


def test_a_real_video_and_its_faults(spoken: tuple[Report, Report]) -> None:
    good, bad = (named(list(report.video.findings)) for report in spoken)
    assert {finding.level for finding in good.values()} == {"ok"} and abs(good["av_offset_frames"].value or 0) <= 1
    assert 4 <= (bad["av_offset_frames"].value or 0) <= 6 and bad["av_offset_frames"].level == "warning"
    assert bad["frozen"].level == "warning" and 0.5 < (bad["frozen"].value or 0) <= 0.6


# ------------------------------------------------------------------------------------------------------- report, seeds


def test_report_schema(spoken: tuple[Report, Report], tmp_path: Path) -> None:
    good, bad = spoken
    assert good.identity is None and "no identity figures" in good.notes[0] and "sface" in good.notes[0]
    assert good.save(tmp_path / "good.json") == []
    assert json.loads((tmp_path / "good.json").read_text())["identity_curve"] is None
    words = bad.save(tmp_path / "r.json", [{"seed": 3, "sync": 0.5, "kept": True}])
    read = json.loads((tmp_path / "r.json").read_text())
    assert [*read] == ["format", "verdict", "frames", "seconds", "video", "identity_curve", "seeds", "notes"]
    assert (read["format"], read["frames"], read["seconds"], read["notes"]) == ("dawn-report-1", 100, 4.0, [])
    assert read["verdict"] == "warning" and "frozen" in words[-1] and read["video"]["path"] == bad.video.path
    assert all([*finding] == ["name", "value", "unit", "level", "advice"] for finding in read["video"]["findings"])
    curve = read["identity_curve"]
    assert curve["stride_s"] == 0.48 and len(curve["cosine"]) == 9 and curve["cosine"][0] == 1
    assert read["seeds"] == [{"seed": 3, "sync": 0.5, "kept": True}]
    with pytest.raises(OutputError):
        bad.save(tmp_path / "r.txt")
    with pytest.raises(CheckpointError):
        check_output(bad.video.path, sface=tmp_path / "none.safetensors")


def test_sync_in_place_asks_for_lag_zero() -> None:
    in_place, late = (LagDistances(*dip(offset)) for offset in (0, 5))
    assert score_in_place(in_place) == pytest.approx(0.3) and score_in_place(late) == pytest.approx(0)
    assert sync.score_distances(late).confidence == pytest.approx(0.3)


def test_the_part_where_most_is_said() -> None:
    samples = np.zeros(100 * 640, np.float32)
    samples[60 * 640 : 80 * 640] = RNG.normal(0, 0.1, 20 * 640)
    part = find_spoken_part(samples, 100, 30)
    assert part.stop - part.start == 30 and part.start <= 60 and part.stop >= 80
    assert find_spoken_part(samples, 20, 30) == slice(0, 20)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float | None]], None]:
    """Fixes what each seed is worth."""

    def install(values: dict[int, float | None]) -> None:
        monkeypatch.setattr(seeds, "score_seed", lambda model, video, *_: values[int(video.motion.info["seed"])])

    return install


@pytest.mark.usefixtures("prepared_once")
@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({5: 0.1, 6: 0.3, 7: 0.2}, 6),
        ({5: 0.3, 6: 0.3, 7: 0.3}, 5),
        ({5: None, 6: None, 7: -0.1}, 7),
        ({5: None, 6: None}, 5),
    ],
)
def test_the_best_seed_is_kept(tiny_model: Dawn, speech: Callable, scored: Callable, values: dict, kept: int) -> None:
    scored(values)
    sound = speech(20)

    made = []

    def make(seed: int) -> Video:
        made.append(seed)
        return tiny_model("x.png", sound, seed=seed, pose_scale=0.5)

    video, scores = pick_seed(tiny_model, make, 5, len(values))
    assert made == [5], "portrait and sound are prepared once"
    fresh = tiny_model("x.png", sound, seed=kept, pose_scale=0.5).motion
    assert np.array_equal(video.motion.pose, fresh.pose) and np.array_equal(video.motion.expression, fresh.expression)
    assert video.motion.info["seed"] == str(kept)
    assert scores == tuple(SeedScore(seed, value, seed == kept) for seed, value in values.items())
    words = describe_seeds(scores)
    assert f"seed {kept} kept" in words and ("no face" in words) == (None in values.values())


@pytest.mark.usefixtures("prepared_once")
def test_scores_are_the_same_every_time(tiny_model: Dawn, speech: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "FaceTracker", BrightnessTracker)
    sound = speech(16)
    first, again = (
        pick_seed(tiny_model, lambda seed: tiny_model("x.png", sound, seed=seed), 0, 2)[1] for _ in range(2)
    )
    assert first == again and len({score.sync for score in first}) == 2
    assert max(first, key=lambda score: score.sync or 0).kept
    with pytest.raises(InputError, match="make one video"):
        pick_seed(tiny_model, lambda seed: tiny_model("x.png", speech(10), seed=seed), 0, 2)


# ------------------------------------------------------------------------------------------------------- command line


@pytest.mark.usefixtures("prepared_once")
def test_generate_with_retry_and_report(run: Callable, out: Path, speech_path: Path, scored: Callable) -> None:
    scored({2: 0.1, 3: 0.4, 4: 0.2})
    code, printed, errors = run(
        "generate",
        "x.png",
        speech_path,
        "--seed",
        2,
        "--retry",
        3,
        "--report",
        out / "r.json",
        "--motion-out",
        out / "m.json",
    )
    assert (code, errors) == (0, "") and "seed 3 kept" in printed
    report = json.loads((out / "r.json").read_text())
    assert [(score["seed"], score["kept"]) for score in report["seeds"]] == [(2, False), (3, True), (4, False)]
    assert report["frames"] == 21 and json.loads((out / "m.json").read_text())["info"]["seed"] == "3"
    assert sorted(path.name for path in out.iterdir()) == ["m.json", "out.mp4", "r.json"]


@pytest.mark.usefixtures("prepared_once")
def test_refusals(run: Callable, out: Path, tmp_path: Path, speech_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = ("generate", "x.png", speech_path)
    code, _, errors = run(*make, "--retry", 11)
    assert code == 2 and "--retry" in errors and errors.count("\n") == 1
    refused(run(*make, "--retry", 2, "--motion-in", tmp_path / "m.json"), out, "--retry 2", "--motion-in")
    refused(run(*make, "--report", out / "r.txt"), out, "must end in .json")
    refused(run(*make, "--report", out / "r.json", "--motion-out", out / "r.json"), out, "twice")

    def fail(*_: object, **__: object) -> None:
        raise InputError("no luck")

    monkeypatch.setattr(seeds, "check_output", fail)
    assert run(*make, "--report", out / "r.json")[0] == 2
    assert [path.name for path in out.iterdir()] == ["out.mp4"]  # the video is whole, the report is not begun


def test_drive_has_a_report_too(run: Callable, out: Path, portrait_path: Path, tmp_path: Path) -> None:
    portrait = np.asarray(Image.open(portrait_path).convert("RGB").resize((256, 256)))
    with media.VideoWriter(tmp_path / "in.mp4", 256, 256) as writer:
        for shift in range(6):
            writer.write(np.roll(portrait, -shift, axis=1))
    assert run("drive", portrait_path, tmp_path / "in.mp4", "--report", out / "r.json", "--quiet") == (0, "", "")
    report = json.loads((out / "r.json").read_text())
    assert report["seeds"] is None and "no figures of sound" in report["notes"][0]
    assert main(["drive", "--help"]) == 0
