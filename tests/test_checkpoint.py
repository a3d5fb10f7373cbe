"""Weights on disk: what is saved comes back, and nothing else is taken for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import TINY, random_bundle, write_preset
from dawn.checkpoint import file_sha256, find_preset, list_presets, load_part, read_config, save_part
from dawn.config import FineConfig, LitePresetConfig, parse
from dawn.engines.load import load_bundle
from dawn.errors import CheckpointError, ConfigError, DawnError
from dawn.models.lite.bundle import LiteBundle
from dawn.pipeline import Dawn
from dawn.research.training.commands import pack


@pytest.fixture
def preset(tiny_preset: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_preset, tmp_path / "preset"))


def edit_config(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def resign(folder: Path, part: str) -> None:
    """Make the checksum right again, to reach what lies behind it."""
    edit_config(folder, lambda v: v["sha256"].update({part: file_sha256(folder / f"{part}.safetensors")}))


@pytest.mark.parametrize("part", LitePresetConfig.PARTS)
def test_part_saves_loads_and_compares(tmp_path: Path, part: str) -> None:
    saved = getattr(random_bundle(seed=1), part)
    save_part(tmp_path, part, saved, TINY)
    loaded = getattr(LiteBundle(TINY), part)
    pairs = zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)
    load_part(tmp_path, part, loaded)
    for (key, a), b in zip(saved.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{part}.json", f"{part}.safetensors"]


def test_every_parameter_is_in_the_preset(tiny_preset: Path) -> None:
    original = random_bundle().state_dict()
    files = {part: load_file(tiny_preset / f"{part}.safetensors") for part in LitePresetConfig.PARTS}
    stored = {f"{part}.{key}": value for part, tensors in files.items() for key, value in tensors.items()}
    assert stored.keys() == original.keys()
    for key, value in stored.items():
        if value.is_floating_point():
            assert value.dtype == torch.float16
        torch.testing.assert_close(value.to(original[key].dtype), original[key], rtol=1e-3, atol=1e-6)
    config = read_config(tiny_preset / "config.json", LitePresetConfig)
    assert config.model_copy(update={"sha256": {}}) == TINY and set(config.sha256) == set(LitePresetConfig.PARTS)


def flip_byte(folder: Path, part: str = "lfg") -> None:
    path = folder / f"{part}.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    path = folder / "a2v.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    resign(folder, "a2v")


def garbage(folder: Path) -> None:
    (folder / "pbnet.safetensors").write_bytes(b"\x80\x04pickle is not welcome")
    resign(folder, "pbnet")


def foreign_shapes(folder: Path) -> None:
    wider = TINY.model_copy(update={"pbnet": TINY.pbnet.model_copy(update={"width": 64})})
    save_part(folder, "pbnet", LiteBundle(wider).pbnet, wider)
    resign(folder, "pbnet")


def foreign_keys(folder: Path) -> None:
    save_file({"generator.first.weight": torch.zeros(3)}, folder / "lfg.safetensors")
    resign(folder, "lfg")


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "motion.safetensors")
    tensors["basis"][0, 0] = float("nan")
    save_file(tensors, folder / "motion.safetensors")
    resign(folder, "motion")


DAMAGE: list[tuple[Callable[[Path], None], type[DawnError], str]] = [
    (flip_byte, CheckpointError, r"lfg.safetensors: damaged.*sha256.*get the file again"),
    (truncate, CheckpointError, r"a2v.safetensors: not a safetensors file.*get the file again"),
    (garbage, CheckpointError, r"pbnet.safetensors: not a safetensors file.*get the file again"),
    (foreign_shapes, CheckpointError, r"pbnet.safetensors: weights of another model.*is \(.*needs \(.*use weights"),
    (foreign_keys, CheckpointError, r"lfg.safetensors: weights of another model.*missing .* more; unknown generator"),
    (not_finite, CheckpointError, r"motion.safetensors: basis holds values that are not finite"),
    (lambda f: (f / "audio.safetensors").unlink(), CheckpointError, r"audio.safetensors: weights are missing"),
    (lambda f: (f / "config.json").unlink(), CheckpointError, r"no config.json in it"),
    (lambda f: (f / "config.json").write_text("{"), CheckpointError, r"config.json: not readable as JSON"),
    (lambda f: edit_config(f, lambda v: v.update(colour=1)), ConfigError, r"config.json: colour = 1"),
    (lambda f: edit_config(f, lambda v: v["lfg"].update(image_size_px=65)), ConfigError, r"lfg.image_size_px = 65"),
    (lambda f: edit_config(f, lambda v: v.update(format_version=2)), ConfigError, r"format_version = 2"),
]


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGE, ids=range(len(DAMAGE)))
def test_damage_is_named(preset: Path, damage: Callable[[Path], None], kind: type[DawnError], message: str) -> None:
    damage(preset)
    with pytest.raises(kind, match=message) as error:
        Dawn.from_pretrained(preset, "cpu")
    assert "\n" not in str(error.value)


def test_unknown_preset_names_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown preset 'lite-9000'"):
        find_preset("lite-9000")
    monkeypatch.setattr("dawn.checkpoint.files", lambda package: tmp_path)
    assert list_presets() == []
    with pytest.raises(ConfigError, match="unknown preset"):
        find_preset("lite-128")
    write_preset(tmp_path / "weights" / "small")
    assert list_presets() == ["small"] and find_preset("small") == tmp_path / "weights" / "small"


@pytest.fixture
def sharing(tiny_preset: Path, tmp_path: Path) -> Path:
    """A preset with a generator of its own that has the rest from the preset beside it."""
    shutil.copytree(tiny_preset, tmp_path / "tiny-64")
    config = TINY.model_copy(update={"lfg": TINY.lfg.model_copy(update={"image_size_px": 128, "fine": FineConfig()})})
    generator = random_bundle(config, seed=5).lfg
    save_part(tmp_path / "run", "lfg", generator, config.lfg)
    pack("tiny-128", {"lfg": tmp_path / "run"}, tmp_path / "tiny-128", shares="tiny-64", shown_size_px=512)
    return tmp_path / "tiny-128"


def test_a_preset_shares_parts_with_the_one_beside_it(sharing: Path) -> None:
    assert sorted(path.name for path in sharing.iterdir()) == ["config.json", "lfg.safetensors"]
    shared, own = load_bundle(sharing), load_bundle(sharing.parent / "tiny-64")
    assert isinstance(shared, LiteBundle) and isinstance(own, LiteBundle)
    assert shared.config.name == "tiny-128" and shared.config.lfg.decoded_size_px == 64
    assert (shared.config.shown_size_px, own.config.shown_size_px) == (512, None)
    for part in ("a2v", "audio", "motion", "pbnet"):
        theirs = getattr(own, part).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in getattr(shared, part).state_dict().items())
    assert any(key.startswith("fine.") for key in shared.lfg.state_dict())


def test_of_several_runs_the_mean_is_packed(sharing: Path, tmp_path: Path) -> None:
    config = load_bundle(sharing).config
    assert isinstance(config, LitePresetConfig)
    full = config.model_copy(update={"shares": None})
    runs = []
    for seed in (5, 6):
        generator = random_bundle(full, seed=seed).lfg
        generator.state_dict()["flow_predictor.hourglass.down_blocks.0.norm.num_batches_tracked"].fill_(seed)
        save_part(tmp_path / f"run{seed}", "lfg", generator, full.lfg)
        runs.append((tmp_path / f"run{seed}", generator.state_dict()))
    pack("mean-128", {"lfg": [folder for folder, _ in runs]}, tmp_path / "mean-128", shares="tiny-64")
    found = load_bundle(tmp_path / "mean-128").state_dict()
    (_, first), (_, second) = runs
    for key, value in first.items():
        expected = (value + second[key]) / 2 if value.is_floating_point() else value
        assert torch.allclose(found[f"lfg.{key}"].to(expected.dtype), expected, rtol=2e-3, atol=1e-6), key
    other = full.lfg.model_copy(update={"eye_suppression": 0.1})
    save_part(runs[1][0], "lfg", random_bundle(full, seed=6).lfg, other)
    with pytest.raises(ConfigError, match=r"run6.*lfg.json differs.*run5.*only runs of one network have a mean"):
        pack("bad", {"lfg": [folder for folder, _ in runs]}, tmp_path / "bad", shares="tiny-64")
    assert not (tmp_path / "bad").exists()


def test_a_shared_part_is_checked_too(sharing: Path) -> None:
    flip_byte(sharing.parent / "tiny-64", "a2v")
    with pytest.raises(CheckpointError, match=r"a2v.safetensors: damaged"):
        load_bundle(sharing)
    shutil.rmtree(sharing.parent / "tiny-64")
    with pytest.raises(CheckpointError, match=r"tiny-64.*weights are missing"):
        load_bundle(sharing)


def test_sharing_with_nothing_is_refused(tiny_preset: Path, tmp_path: Path) -> None:
    save_part(tmp_path / "run", "lfg", random_bundle().lfg, TINY.lfg)
    with pytest.raises(
        ConfigError, match=r"no folder for a2v, audio, motion, pbnet: give `a2v=DIR`, or `shares=PRESET`"
    ):
        pack("p", {"lfg": tmp_path / "run"}, tmp_path / "p")
    with pytest.raises(ConfigError, match=r"`shares=gone`: .*is no other preset"):
        pack("p", {"lfg": tmp_path / "run"}, tmp_path / "p", shares="gone")
    assert not (tmp_path / "p").exists()
    with pytest.raises(ConfigError, match="shares"):
        parse(LitePresetConfig, {"name": "p", "shares": "../elsewhere"}, "x")
