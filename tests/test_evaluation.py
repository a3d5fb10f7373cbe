"""The protocol of the evaluation: what is compared with what, and the table; with networks of random weights."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import refused
from dawn import DEFAULT_PRESET
from dawn.apps.cli.main import main
from dawn.checkpoint import load_mean_face
from dawn.engines.lite import LiteEngine
from dawn.engines.load import build_engine, load_bundle
from dawn.errors import ConfigError, InputError
from dawn.measures import picture
from dawn.measures.intervals import bootstrap_interval
from dawn.preprocess.clips import save_clip
from dawn.research.evaluation import figures, folders, records, report, spoken
from dawn.research.evaluation import minute as long
from dawn.research.evaluation.bench import Bench, pick_portraits, read_clips
from dawn.research.evaluation.community.files import Community
from dawn.research.evaluation.table import format_report
from eval_material import FRAMES, BrightnessTracker, clip, prepared, random_tools

COLUMNS = ["tiny-64", "true pose", "shuffled", "landmarks", "first frame", "real"]
FURTHER = ["tiny-64 (copy)", "tiny-64 (copy), true pose"]


@pytest.fixture(scope="module")
def clips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of two people, and one without sound."""
    folder = tmp_path_factory.mktemp("clips")
    for seed, person in enumerate("aabb"):
        save_clip(folder / f"clip{seed}.safetensors", prepared(seed, sound=seed != 3), person, f"{seed}.mp4")
    return folder


@pytest.fixture(scope="module")
def tools() -> figures.Tools:
    return random_tools()


@pytest.fixture(scope="module")
def quick(tools: figures.Tools) -> Iterator[None]:
    """Random measuring networks, seconds instead of minutes, few bootstrap rounds, another tracker."""

    def few(sums: np.ndarray, finish: Any, rng: np.random.Generator, rounds: int) -> Any:
        return bootstrap_interval(sums, finish, rng, rounds=20)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_tools", lambda sface, judge, community: (tools, []))
        patch.setattr(report, "FaceTracker", BrightnessTracker)
        patch.setattr(records, "bootstrap_interval", few)
        for module, name, value in (
            (spoken, "SILENCE_S", 1),
            (spoken, "SILENT_PORTRAITS", 1),
            (spoken, "LIFE_S", 2),
            (spoken, "LIFE_SEEDS", 2),
            (long, "LONG_S", 3),
            (long, "WINDOW_S", 1),
        ):
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="module")
def result(
    quick: None, clips_folder: Path, tiny_preset: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A preset, and a copy of it as a further one."""
    other = shutil.copytree(tiny_preset, tmp_path_factory.mktemp("presets") / "copy")
    return report.evaluate_preset(tiny_preset, clips_folder, also=[other])


# ------------------------------------------------------------------------------------------------------ whole protocol


def test_preset_gives_one_table(result: dict[str, Any]) -> None:
    assert list(result["columns"]) == COLUMNS + FURTHER
    assert (result["clips"], result["people"], result["frames"], result["size_px"]) == (4, 2, 4 * FRAMES, 64)
    assert list(result["rows"]) == ["picture", "lips", "motion", "cost"]
    for group in result["rows"].values():
        for name, line in group.items():
            assert set(line) == {"unit", "better", "values"} and line["values"].keys() <= set(COLUMNS + FURTHER), name
            for found in line["values"].values():
                assert np.isfinite(found["value"]), name
                low, high = found.get("interval", (0, 0))
                assert low <= high, name
    assert json.loads(json.dumps(result)) == result
    text = format_report(result)
    for name in [*COLUMNS, "SFace Fréchet distance", "closure recall", "sync confidence", "beat alignment", "decoding"]:
        assert name in text


def test_cells_that_make_no_sense_are_empty(result: dict[str, Any]) -> None:
    def columns(group: str, name: str) -> list[str]:
        return [column for column in result["rows"][group][name]["values"] if column not in FURTHER]

    assert columns("picture", "PSNR") == ["tiny-64", "true pose", "landmarks", "first frame"]
    assert columns("picture", "SFace cosine to source") == [c for c in COLUMNS if c != "shuffled"]
    assert columns("lips", "aperture correlation, lag 0") == COLUMNS
    assert columns("lips", "lag") == [c for c in COLUMNS if c != "first frame"]
    assert columns("lips", "sync confidence") == COLUMNS
    assert columns("motion", "jitter") == ["tiny-64", "true pose", "shuffled", "landmarks"]
    assert columns("motion", "landmark error, all") == ["true pose", "landmarks", "first frame", "real"]
    assert columns("motion", "mouth movement in silence") == ["tiny-64"]
    assert columns("cost", "decoding") == ["tiny-64"]


def test_controls_are_what_they_say(result: dict[str, Any], clips_folder: Path) -> None:
    """Repeating the first frame moves no lips, and its likeness is that of the files."""
    rows = result["rows"]
    assert rows["lips"]["aperture amplitude"]["values"]["first frame"]["value"] == pytest.approx(0, abs=1e-6)
    clips = read_clips(clips_folder, 64, load_mean_face())
    expected = np.mean([picture.psnr(np.repeat(c.frames[:1], FRAMES - 1, 0), c.frames[1:]) for c in clips])
    assert rows["picture"]["PSNR"]["values"]["first frame"]["value"] == pytest.approx(expected)
    cost = {stage: line["values"]["tiny-64"]["value"] for stage, line in rows["cost"].items()}
    assert cost["all three"] == pytest.approx(cost["audio features"] + cost["motion"] + cost["decoding"])


def test_long_part(result: dict[str, Any]) -> None:
    long = result["long"]
    assert long["portraits"] == 2 and long["takes"] == 2 and long["seconds"] == 3
    for name, line in result["long"]["rows"].items():
        assert set(line) == {"unit", "first", "last", "ratio", "interval"}, name
    line = result["long"]["rows"]["sharpness, face"]
    assert line["ratio"] == pytest.approx(line["last"] / line["first"])
    assert line["interval"][0] <= line["ratio"] <= line["interval"][1]
    assert "3 s, last 1 s against first 1 s" in format_report(result)


def test_further_presets_have_columns(
    result: dict[str, Any], quick: None, clips_folder: Path, tiny_preset: Path
) -> None:
    for group in ("picture", "lips"):
        for name, line in result["rows"][group].items():
            for theirs, ours in zip(FURTHER, COLUMNS, strict=False):
                assert line["values"].get(theirs) == line["values"].get(ours), (name, theirs)
    assert result["rows"]["cost"]["decoding"]["values"].keys() == {COLUMNS[0], FURTHER[0]}
    with pytest.raises(ConfigError, match="once"):
        report.evaluate_preset(tiny_preset, clips_folder, also=[tiny_preset, tiny_preset])


def test_folders_of_clips(quick: None, clips_folder: Path, tmp_path: Path) -> None:
    for seed in range(4):
        save_clip(tmp_path / f"clip{seed}.safetensors", prepared(seed, frames=FRAMES - seed % 2), "x", "made")
    made = report.evaluate_folders(tmp_path, clips_folder)
    assert list(made["columns"]) == ["generated", "first frame", "real"] and made["long"] is None
    assert made["rows"]["picture"]["SSIM"]["values"]["generated"]["value"] > 0.9, "noise of the same seeds"
    assert "cost" not in made["rows"]
    assert "generated" in format_report(made)


# ---------------------------------------------------------------------------------------------------------- refusals


def test_folders_must_have_the_same_names(clips_folder: Path, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip0.safetensors", prepared(0), "x", "made")
    with pytest.raises(InputError, match=r"'clip1' is in .* but not in .*and 2 more"):
        folders.pair_files(tmp_path, clips_folder)
    with pytest.raises(InputError, match="not a folder"):
        folders.pair_files(tmp_path / "gone", clips_folder)


def test_videos_meet_prepared_clips_by_name(tmp_path: Path) -> None:
    for name in ("made/news/one.mp4", "real/news__one.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (found,) = folders.pair_files(tmp_path / "made", tmp_path / "real")
    assert found == ("news__one", tmp_path / "made/news/one.mp4", tmp_path / "real/news__one.safetensors")


def test_lengths_may_differ_a_little(tmp_path: Path) -> None:
    for name, frames in (("a", 16), ("b", 14), ("c", 13)):
        save_clip(tmp_path / f"{name}.safetensors", prepared(0, frames), "x", "made")
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    tracker = BrightnessTracker()
    ours, true = folders.read_pair("a", a, b, None, tracker, load_mean_face())  # type: ignore[arg-type]
    assert len(ours) == len(true) == 14
    with pytest.raises(InputError, match="16 generated frames, 13 true ones"):
        folders.read_pair("a", a, c, None, tracker, load_mean_face())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="64 px"):
        folders.read_pair("a", a, b, 128, tracker, load_mean_face())  # type: ignore[arg-type]


def test_silent_material_is_refused(quick: None, tiny_preset: Path, tmp_path: Path) -> None:
    for seed in range(2):
        save_clip(tmp_path / f"{seed}.safetensors", prepared(seed, sound=False), "a", "x")
    with pytest.raises(InputError, match="0 clips have sound"):
        report.evaluate_preset(tiny_preset, tmp_path)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["0 folders", "--generated"]),
        (["clips", "--clips", "clips"], ["2 folders"]),
        (["clips", "--generated", "a", "b"], ["leave clips"]),
        (["--generated", "a", "b", "--also", "lite-128"], ["leave clips"]),
        (["--generated", "a", "b", "--takes", "2"], ["leave clips", "--takes"]),
        (["--generated", "a", "b", "--size", "256"], ["leave clips", "--size"]),
    ],
)
def test_commands_refused(words: list[str], parts: list[str], capfd: pytest.CaptureFixture[str], out: Path) -> None:
    code = main(["evaluate", *words])
    printed = capfd.readouterr()
    refused((code, printed.out, printed.err), out, *parts)


def test_command_writes_the_figures(
    quick: None, clips_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--generated", clips_folder, clips_folder, "--limit", 2, "--json", tmp_path / "r.json"]
    assert main(list(map(str, words))) == 0
    assert "aperture correlation" in capfd.readouterr().out
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["columns"].keys() == {"generated", "first frame", "real"} and written["clips"] == 2


def test_the_communitys_networks_add_rows(
    quick: None, tools: figures.Tools, clips_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def colours(windows: torch.Tensor, **options: bool) -> torch.Tensor:
        return windows.float().flatten(2).mean(-1)

    networks = Community(None, colours, None, ("a note",))
    monkeypatch.setattr(report, "_tools", lambda *given: (replace(tools, community=networks), []))
    result = report.evaluate_folders(clips_folder, clips_folder)
    values = result["rows"]["community"]["FVD16"]["values"]
    assert values["generated"]["value"] < 1e-6 < values["first frame"]["value"] and "real" not in values
    assert "a note" in result["notes"]


def test_command_passes_the_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stop(*given: Any, **named: Any) -> None:
        seen.extend([*given[:3], named])
        raise InputError("stop")

    monkeypatch.setattr(report, "evaluate_preset", stop)
    assert (
        main(
            [
                "evaluate",
                "--clips",
                "d",
                "--also",
                "x",
                "y",
                "--limit",
                "3",
                "--judge",
                "j",
                "--community",
                "c",
                "--takes",
                "5",
                "--size",
                "256",
            ]
        )
        == 2
    )
    options = {"also": ["x", "y"], "limit": 3, "size_px": 256, "takes": 5, "judge": Path("j"), "community": Path("c")}
    options |= {"device": "cpu", "rules": "preset"}
    assert seen == [DEFAULT_PRESET, Path("d"), None, options]


@pytest.mark.parametrize("size", [32, 4000])
def test_presets_are_not_shown_smaller_than_they_draw(
    size: int, quick: None, clips_folder: Path, tiny_preset: Path
) -> None:
    with pytest.raises(ConfigError, match=f"size {size}: tiny-64 draws 64 px; give 64 to 1280"):
        report.evaluate_preset(tiny_preset, clips_folder, size_px=size)


@pytest.mark.parametrize("limit", [0, -1])
def test_limits_are_positive(limit: int, clips_folder: Path, tiny_preset: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        report.evaluate_preset(tiny_preset, clips_folder, limit=limit)
    with pytest.raises(ConfigError, match="at least 1"):
        report.evaluate_folders(clips_folder, clips_folder, limit=limit)
    with pytest.raises(ConfigError, match=f"takes {limit}: give at least 1"):
        report.evaluate_preset(tiny_preset, clips_folder, takes=limit)


# ------------------------------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize("people", ["aabb", "aaaaab", "abc", "aa", "aaabbbbbbcd"])
def test_exchanged_sound(people: str) -> None:
    other = spoken.exchange_sounds(people)
    assert sorted(other) == list(range(len(people)))
    assert all(i != j for i, j in enumerate(other))
    same = sum(people[i] == people[j] for i, j in enumerate(other))
    most = max(Counter(people).values())
    assert same == max(0, 2 * most - len(people)), "no more than must be"


def test_portraits_are_of_many_people() -> None:
    clips = [clip(str(i), person) for i, person in enumerate("aaabbc")]
    assert [c.person for c in pick_portraits(clips, 3)] == ["a", "b", "c"]
    assert [c.name for c in pick_portraits(clips, 5)] == ["0", "3", "5", "1", "4"]


def test_limit_is_per_person(clips_folder: Path) -> None:
    assert [c.name for c in read_clips(clips_folder, 64, load_mean_face(), limit=1)] == ["clip0", "clip2"]
    assert len(read_clips(clips_folder, 64, load_mean_face())) == 4


def test_clips_are_read_at_any_size(clips_folder: Path) -> None:
    (first, *_) = read_clips(clips_folder, 256, load_mean_face())
    assert first.frames.shape == (FRAMES, 256, 256, 3) and first.face.crop.shape == (256, 256, 3)
    assert first.stored_px == 64


def test_larger_clips_show_their_own_first_frame_moved(clips_folder: Path, tiny_preset: Path) -> None:
    """As in ``dawn generate --size``: the corners, far from the face, keep the clip's own pixels to the last bit, which
    an enlarged frame of half the size would not."""
    engine = build_engine(load_bundle(tiny_preset), torch.device("cpu"))
    assert isinstance(engine, LiteEngine)
    made = {}
    for size in (64, 128):
        clips = read_clips(clips_folder, size, load_mean_face())
        with BrightnessTracker() as tracker:
            bench = Bench("tiny", engine, tracker, clips, lambda *_: None)  # type: ignore[arg-type]
            made[size] = bench.show_landmarks(clips[0], torch.from_numpy(clips[0].landmarks[:2])).frames
    assert made[64].shape == (2, 64, 64, 3) and made[128].shape == (2, 128, 128, 3)
    photograph = read_clips(clips_folder, 128, load_mean_face())[0].frames[0]
    kept = (made[128] == photograph).all(-1).all(0)
    assert kept[0, [0, -1]].all() and kept.mean() < 0.5
