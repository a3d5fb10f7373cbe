"""``dawn convert``: files with every published entry, and every way in which they can be wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dawn.apps.cli.main import main
from dawn.checkpoint import read_config
from dawn.config import PaperPresetConfig
from dawn.errors import CheckpointError, ConfigError, OutputError
from dawn.models.paper.pbnet import sinusoidal_positions
from dawn.models.paper.regions import FLOW_REDUCTION, gaussian_kernel
from dawn.research.convert.official import convert, find_files, read_part
from official import key_list

OPTIONS = (
    "archiname: transformerreemb5\nnum_layers: 2\nff_size: {ff}\nnum_buckets: 128\nmax_distance: 128\n"
    "pose_latent_dim: {width}\naudio_latent_dim: 256\nlr: 0.0001\ncuda: true\n"
)


def value_of(key: str, shape: tuple[int, ...], kind: str, number: int) -> Tensor:
    """An entry of the published shape: computed constants as they are, all else one number, which takes no room on disk."""
    if key.endswith("down.weight"):
        return gaussian_kernel(FLOW_REDUCTION).float().expand(shape).contiguous()
    if key.endswith("rotary_emb.freqs"):
        size = 2 * shape[0]
        return 10_000.0 ** (-torch.arange(0, size, 2) / size)
    if key == "encoder.sequence_pos_encoder.pe":
        return sinusoidal_positions(shape[0], shape[2])[:, None]
    if kind == "int64":
        return torch.zeros(shape, dtype=torch.int64)
    return torch.tensor(1e-3 * (number % 1000)).expand(shape)


def entries(name: str) -> dict[str, Tensor]:
    return {key: value_of(key, shape, kind, i) for i, (key, (shape, kind)) in enumerate(key_list(name).items())}


def sections(state: dict[str, Tensor]) -> dict[str, Any]:
    """The generator's file: a dictionary for each network, and what training left."""
    out: dict[str, Any] = {"example": 5, "epoch": 7, "optimizer": {"state": {}}}
    for key, value in state.items():
        section, name = key.split(".", 1)
        out.setdefault(section, {})[name] = value
    return out


def write_official(folder: Path, spelling: str = "pbnet", size_px: int = 128) -> Path:
    """A folder as a user has it after the download."""
    folder.mkdir(parents=True, exist_ok=True)
    epochs = "1000ep" if size_px == 128 else "400ep"
    torch.save(sections(entries(f"lfg-{size_px}")), folder / f"LFG_{size_px}_{epochs}.pth")
    diffusion = {"example": 5, "diffusion": entries(f"dawn-{size_px}"), "optimizer_diff": {"state": {}}}
    torch.save(diffusion, folder / f"DAWN_{size_px}.pth")
    for part, names, width, epoch in (("pose", "pbnet-pose", 64, 40_000), ("blink", "pbnet-blink-p32", 32, 95_000)):
        place = folder / spelling / part
        place.mkdir(parents=True)
        torch.save(entries(names), place / f"checkpoint_{epoch}.pth.tar")
        (place / "opt.yaml").write_text(OPTIONS.format(ff=2 * width, width=width))
    return folder


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("official") / "weights")


@pytest.fixture(scope="module")
def converted(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("converted") / "paper-128"
    convert(official, out)
    yield out
    shutil.rmtree(out)


@pytest.fixture
def copy(official: Path, tmp_path: Path) -> Path:
    """The published files, to be spoiled."""
    return Path(shutil.copytree(official, tmp_path / "weights"))


def test_every_published_entry_is_known() -> None:
    lists = {
        name: key_list(name) for name in ("dawn-128", "dawn-256", "lfg-128", "lfg-256", "pbnet-pose", "pbnet-blink-p32")
    }
    assert [len(lists[name]) for name in lists] == [912, 912, 306, 306, 88, 88]


def test_a_preset_is_written(converted: Path) -> None:
    config = read_config(converted / "config.json", PaperPresetConfig)
    assert (config.name, config.kind, config.lfg.image_size_px, config.unet.latent_size) == (
        "paper-128",
        "paper",
        128,
        32,
    )
    assert (config.pose.outputs, config.pose.width, config.pose.inner) == (6, 64, 128)
    assert (config.blink.outputs, config.blink.width, config.blink.inner) == (2, 32, 64)
    assert {path.name for path in converted.iterdir()} == {
        "config.json",
        *(f"{part}.safetensors" for part in PaperPresetConfig.PARTS),
    }
    assert set(config.sha256) == set(PaperPresetConfig.PARTS)


@pytest.mark.parametrize(
    ("part", "ours", "names", "theirs"),
    [
        ("lfg", "bottleneck.3.conv2.weight", "lfg-128", "generator.bottleneck.r3.conv2.weight"),
        ("lfg", "region_predictor.head.bias", "lfg-128", "region_predictor.regions.bias"),
        ("unet", "stem.weight", "dawn-128", "denoise_fn.init_conv.weight"),
        ("unet", "up.2.second.conditions.eye.key_scale", "dawn-128", "denoise_fn.ups.2.1.cross_attn_eye.k_scale"),
        ("pose", "decoder.motion_out.weight", "pbnet-pose", "decoder.finallayer.weight"),
        (
            "blink",
            "decoder.self_bias",
            "pbnet-blink-p32",
            "decoder.time_rel_pos_bias_tgt.relative_attention_bias.weight",
        ),
    ],
)
def test_values_arrive_in_their_place(converted: Path, part: str, ours: str, names: str, theirs: str) -> None:
    number = list(key_list(names)).index(theirs)
    stored = load_file(converted / f"{part}.safetensors")[ours]
    assert stored.dtype == torch.float32
    torch.testing.assert_close(stored, torch.full_like(stored, 1e-3 * (number % 1000)))


def test_the_mask_encoder_is_that_of_seed_1234(converted: Path) -> None:
    mask = load_file(converted / "mask.safetensors")
    first = torch.tensor([-0.188912, -0.165757, -0.163077])
    torch.testing.assert_close(mask["conv1.weight"][0, 0, 0], first, atol=1e-6, rtol=0)
    sums = [float(mask[key].double().sum()) for key in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")]
    assert sums == pytest.approx([0.255640, 0.172591, 0.197315, -0.006909], abs=1e-5)


def test_both_spellings_and_both_sizes_are_found(official: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    for source in (path for path in official.rglob("*") if path.is_file()):
        target = older / str(source.relative_to(official)).replace("pbnet/", "pbnet_seperate/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    assert find_files(older).pose.parent.parent.name == "pbnet_seperate"
    (older / "DAWN_256.pth").write_bytes(b"")
    (older / "LFG_256_400ep.pth").write_bytes(b"")
    with pytest.raises(ConfigError, match="`size`"):
        find_files(older)
    assert find_files(older, 256).lfg.name == "LFG_256_400ep.pth"


def test_other_forms_of_the_same_weights(copy: Path) -> None:
    """Half precision, and names that parallel training has wrapped."""
    path = find_files(copy).pose
    plain = torch.load(path, weights_only=True)
    true = read_part("pose", path)
    torch.save({f"module.{key}": value.half() for key, value in plain.items()}, path)
    made = read_part("pose", path)
    assert made.keys() == true.keys() and all(value.dtype == torch.float32 for value in made.values())
    assert all(torch.allclose(made[key], true[key], atol=1e-3) for key in true)


class Trap:
    """Runs when an ordinary unpickler reads it."""

    fired = Path("/nonexistent")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.fired,)


def missing_entry(folder: Path) -> None:
    path = find_files(folder).dawn
    content = torch.load(path, weights_only=True)
    del content["diffusion"]["denoise_fn.mid_block1.block1.proj.weight"]
    torch.save(content, path)


def extra_entry(folder: Path) -> None:
    path = find_files(folder).pose
    torch.save(torch.load(path, weights_only=True) | {"decoder.novel": torch.zeros(3)}, path)


def wrong_shape(folder: Path) -> None:
    path = find_files(folder).dawn
    content = torch.load(path, weights_only=True)
    content["diffusion"]["denoise_fn.init_conv.bias"] = torch.zeros(65)
    torch.save(content, path)


def with_code(folder: Path) -> None:
    Trap.fired = folder / "fired"
    torch.save({"diffusion": Trap()}, find_files(folder).dawn)


def with_code_plain(folder: Path) -> None:
    Trap.fired = folder / "fired"
    find_files(folder).dawn.write_bytes(pickle.dumps(Trap()))


def truncated(folder: Path) -> None:
    path = find_files(folder).lfg
    path.write_bytes(path.read_bytes()[:5000])


def text(folder: Path) -> None:
    find_files(folder).lfg.write_text("<html>Entry not found</html>")


def swapped(folder: Path) -> None:
    found = find_files(folder)
    shutil.copy(found.lfg, found.dawn)


def blink_for_pose(folder: Path) -> None:
    found = find_files(folder)
    shutil.copy(found.blink, found.pose)


def no_options(folder: Path) -> None:
    (find_files(folder).pose.parent / "opt.yaml").unlink()


def other_architecture(folder: Path) -> None:
    path = find_files(folder).pose.parent / "opt.yaml"
    path.write_text(path.read_text().replace("reemb5", "reemb8"))


def absent(folder: Path) -> None:
    find_files(folder).dawn.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (absent, r"no DAWN_128\*\.pth"),
        (missing_entry, r"missing.*mid_block1\.block1\.proj\.weight"),
        (extra_entry, r"left over.*decoder\.novel"),
        (wrong_shape, r"\(65,\), needs \(64,\)"),
        (with_code, "more than tensors"),
        (with_code_plain, "more than tensors|not a readable|damaged"),
        (truncated, "not a readable checkpoint|damaged"),
        (text, "not a readable checkpoint|damaged"),
        (swapped, "the entry 'diffusion'"),
        (blink_for_pose, "needs"),
        (no_options, r"opt\.yaml"),
        (other_architecture, "transformerreemb8"),
    ],
)
def test_wrong_files_are_named_and_nothing_is_left(
    spoil: Callable[[Path], None], said: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(copy)
    assert main(["convert", str(copy), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and str(copy) in error
    with pytest.raises(CheckpointError, match=said):
        convert(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (copy / "fired").exists(), "code in the file was run"


def test_a_foreign_folder_is_not_replaced(official: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="not replaced"):
        convert(official, tmp_path)
    assert (tmp_path / "diary.txt").read_text() == "mine"


def test_the_command_says_what_it_made(converted: Path) -> None:
    assert json.loads((converted / "config.json").read_text())["hubert"].endswith("hubert-large-ls960-ft")
