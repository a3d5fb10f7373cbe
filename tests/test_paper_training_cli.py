"""The published model's parts from the command line: trained one after the other, resumed, and refused what cannot work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dawn
from conftest import save_hubert
from dawn.apps.cli.main import main
from dawn.checkpoint import load_part, read_config
from dawn.config import PaperLFGConfig, PaperPresetConfig, PublishedPBNetConfig, UNetConfig
from dawn.models.judges.sface import SFace
from dawn.models.paper.bundle import PaperBundle
from dawn.preprocess.clips import save_clip
from dawn.research.training.paper.commands import load_audio_encoder, pbnet_config
from test_paper_a2v_training import FRAMES, SIZE_PX, made_up_clip

SPEECH_ENCODER = Path(dawn.__file__).parent / "weights" / "lite-128" / "audio.safetensors"
QUICK = ("batch=1", "precision=fp32")
LFG = (
    f"model.image_size_px={SIZE_PX}",
    'model.regions={"count": 3, "width": 4, "depth": 2, "max_width": 16}',
    "model.width=6",
    "model.max_width=16",
    "model.res_blocks=1",
    "model.flow_width=6",
    "model.flow_depth=2",
    "model.flow_max_width=16",
)
UNET = (
    "model.latent_size=16",
    "model.source_size=16",
    "model.audio_size=768",
    "model.width=8",
    "model.multipliers=[1, 2]",
    "model.heads=2",
    "model.head_size=8",
    "model.cross_heads=2",
    "model.cross_head_size=4",
    "model.norm_groups=4",
)
PBNET = (
    "model.audio_size=768",
    "model.inner=16",
    "model.latent_size=8",
    "model.audio_width=8",
    "model.window_frames=12",
    "window_frames=32",
    "discriminator_width=4",
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material") / "train"
    folder.mkdir()
    for index in range(2):
        save_clip(folder / f"clip{index}.safetensors", made_up_clip(index), f"person{index}", "made-up.mp4")
    return folder


@pytest.fixture
def sface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of SFace's shape, drawn from a seed: what pictures are compared by."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(SFace().state_dict(), tmp_path / "sface.safetensors")
    monkeypatch.setenv("DAWN_CACHE", str(tmp_path))


def trained(part: str, clips: Path, out: Path, *settings: str, steps: int = 2, **files: Path) -> int:
    """Exit code of ``dawn train PART``. files: ``audio``, ``validation``."""
    words = ["train", part, "--quiet", "--data", str(clips), "--out", str(out)]
    for name, file in files.items():
        words += [f"--{name}", str(file)]
    return main([*words, "--set", f"steps={steps}", *QUICK, *settings])


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def check_run(again: Callable[[int], int], out: Path, parts: tuple[str, ...], trains: str) -> None:
    """Two steps, their files, and a third step by the same command."""
    assert again(2) == 0
    assert {file.name for file in out.iterdir()} >= {
        "log.jsonl",
        "state.pt",
        *(f"{part}.{kind}" for part in parts for kind in ("json", "safetensors")),
    }
    before = load_file(out / f"{trains}.safetensors")
    assert again(3) == 0
    assert [(record["step"], "validation" in record) for record in records(out)] == [
        (2, False),
        (2, True),
        (3, False),
        (3, True),
    ]
    after = load_file(out / f"{trains}.safetensors")
    moved = [name for name in before if before[name].is_floating_point() and not torch.equal(before[name], after[name])]
    assert len(moved) > 0.5 * len(before), "the third step changed nothing"
    assert all(torch.isfinite(value).all() for value in after.values() if value.is_floating_point())


@pytest.mark.slow
def test_all_parts_one_after_the_other(clips: Path, tmp_path: Path, sface: None) -> None:
    runs = tmp_path / "runs"
    lfg, one, two, pose, blink = (runs / name for name in ("lfg", "a2v1", "a2v2", "pose", "blink"))
    sound = {"audio": SPEECH_ENCODER}

    check_run(lambda n: trained("paper-lfg", clips, lfg, *LFG, steps=n, validation=clips), lfg, ("lfg",), "lfg")
    assert (lfg / "sheet_000003.png").is_file()
    used = f"lfg={lfg / 'lfg.safetensors'}"
    check_run(
        lambda n: trained("paper-a2v", clips, one, "stage=1", used, *UNET, steps=n, **sound),
        one,
        ("unet", "mask"),
        "unet",
    )
    settings = ("stage=2", used, f"start={one / 'unet.safetensors'}", *UNET)
    check_run(
        lambda n: trained("paper-a2v", clips, two, *settings, steps=n, validation=clips, **sound),
        two,
        ("unet", "mask"),
        "unet",
    )
    said = records(two)[1]["validation"]
    assert said.keys() == {"loss", "epsilon", "lips", "x0"}
    assert trained("paper-a2v", clips, two, *settings, steps=3, **sound) == 0 and len(records(two)) == 4, (
        "nothing left to do"
    )
    masks = [load_file(run / "mask.safetensors") for run in (one, two)]
    assert all(torch.equal(masks[0][key], masks[1][key]) for key in masks[0]), (
        "the published mask encoder stays as it is"
    )
    for part, out in (("paper-pose", pose), ("paper-blink", blink)):
        check_run(
            lambda n, part=part, out=out: trained(part, clips, out, *PBNET, steps=n, **sound),  # type: ignore[misc]
            out,
            (f"pbnet_{out.name}",),
            f"pbnet_{out.name}",
        )

    stored = sorted(folder.name for folder in (runs / "audio_cache").iterdir())
    assert len(stored) == 2, f"the parts share what was heard, validation has its own: {stored}"
    config = PaperPresetConfig(
        name="trained",
        lfg=read_config(lfg / "lfg.json", PaperLFGConfig),
        unet=read_config(two / "unet.json", UNetConfig),
        pose=read_config(pose / "pbnet_pose.json", PublishedPBNetConfig),
        blink=read_config(blink / "pbnet_blink.json", PublishedPBNetConfig),
    )
    assert (config.pose.width, config.blink.width, config.blink.outputs) == (64, 32, 2), (
        "two networks of different sizes"
    )
    bundle = PaperBundle(config)
    for folder, file, network in (
        (lfg, "lfg", bundle.lfg),
        (two, "unet", bundle.unet),
        (two, "mask", bundle.mask),
        (pose, "pbnet_pose", bundle.pose),
        (blink, "pbnet_blink", bundle.blink),
    ):
        load_part(folder, file, network)


@pytest.mark.slow
def test_hubert_from_a_folder_trains(clips: Path, tmp_path: Path) -> None:
    save_hubert(tmp_path / "hubert", 16, 1)
    settings = [setting for setting in PBNET if "audio_size" not in setting]
    out = tmp_path / "runs" / "blink"
    assert trained("paper-blink", clips, out, "model.audio_size=16", *settings, audio=tmp_path / "hubert") == 0
    assert read_config(out / "pbnet_blink.json", PublishedPBNetConfig).audio_size == 16


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> None:
    """Exit code 2 and one line that has every word."""
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and lines[-1] == errors[0], lines
    for word in words:
        assert word in errors[0], f"{word!r} is not in {errors[0]!r}"


@pytest.mark.parametrize(
    ("part", "settings", "words"),
    [
        ("paper-a2v", ("lfg=x.safetensors",), ("lfg=x.safetensors", "no such file")),
        ("paper-a2v", ("stage=2", "start=y.safetensors"), ("start=y.safetensors", "no such file")),
        ("paper-lfg", ("start=z.safetensors",), ("start=z.safetensors", "no such file")),
        ("paper-a2v", ("stage=3",), ("stage", "'3'")),
        ("paper-a2v", ("shortest_frames=30",), ("shortest_frames 30", "longest_frames 20")),
        ("paper-a2v", (), ("--audio", "HuBERT")),
        ("paper-pose", (), ("--audio", "HuBERT")),
        ("paper-pose", ("window_frames=5",), ("window_frames",)),
    ],
)
def test_wrong_settings_are_one_line(
    part: str, settings: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, trained(part, tmp_path, tmp_path / "run", *settings), *words)
    assert not (tmp_path / "run").exists()


def test_wrong_audio_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def blink(audio: Path, *settings: str) -> int:
        return trained("paper-blink", tmp_path, tmp_path / "run", *settings, audio=audio)

    refused(capsys, blink(tmp_path / "no.safetensors"), "no.safetensors", "missing")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    refused(capsys, blink(tmp_path / "other.safetensors"), "other.safetensors", "another model")
    refused(capsys, blink(SPEECH_ENCODER, "model.outputs=6"), "model.outputs 6", "paper-blink has 2")
    (tmp_path / "folder").mkdir()
    refused(capsys, blink(tmp_path / "folder"), "HuBERT", "no model.safetensors")
    (tmp_path / "other.safetensors").unlink()
    refused(capsys, blink(SPEECH_ENCODER), "no prepared clips")
    whole = made_up_clip(0)
    mute = replace(whole, samples=whole.samples[: 640 * FRAMES // 2])
    save_clip(tmp_path / "mute.safetensors", mute, "somebody", "made-up.mp4")
    refused(capsys, blink(SPEECH_ENCODER), "no clip has sound")
    monkeypatch.setenv("DAWN_CACHE", str(tmp_path / "nothing"))
    refused(capsys, trained("paper-lfg", tmp_path, tmp_path / "run", *LFG), "SFace", "fetch_models.py")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_features_of_another_size_are_one_line(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = trained("paper-pose", clips, tmp_path / "runs" / "pose", audio=SPEECH_ENCODER)
    refused(capsys, code, "768", "1024", "model.audio_size")


def test_the_two_pbnets_have_their_published_sizes() -> None:
    pose, blink = (pbnet_config(part, PublishedPBNetConfig()) for part in ("paper-pose", "paper-blink"))
    assert (pose.outputs, pose.width, pose.inner) == (6, 64, 128)
    assert (blink.outputs, blink.width, blink.inner) == (2, 32, 64)
    changed = pbnet_config("paper-blink", PublishedPBNetConfig(width=24, layers=3))
    assert (changed.width, changed.inner, changed.layers) == (24, 64, 3)


def test_a_preset_s_speech_encoder_hears() -> None:
    encoder = load_audio_encoder(SPEECH_ENCODER)
    assert encoder.feature_size == 768
    assert encoder.encode(torch.zeros(6400), 10).shape == (10, 768)
