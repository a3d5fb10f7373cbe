"""The organ painter: what it leaves alone, the windows that it learns from, and its recipe."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import TINY, write_preset
from dawn.checkpoint import read_config, read_weights, save_part
from dawn.config import DetailConfig, FineConfig, LFGConfig, OrganPainterConfig
from dawn.errors import ConfigError, InputError
from dawn.models.lite.detail import ORGANS
from dawn.models.lite.lfg import LatentFlowGenerator
from dawn.models.lite.organs import OrganPainter
from dawn.research.training.lite import organs, windows
from dawn.research.training.lite.organs import OrganRecipe, OrganTrainConfig, WindowStore
from dawn.research.training.lite.windows import Pair, WindowMaker, pair_stills, write_windows
from dawn.research.training.loop import train
from dawn.structs import Face

SMALL = OrganPainterConfig(mouth_widths=(8, 12), eye_widths=(8, 12), res_blocks=1)
SIZE = 128
MANY = 12


def landmarks(face: Face, count: int = 1) -> Tensor:
    return torch.from_numpy(face.landmarks)[None].repeat(count, 1, 1)


@pytest.fixture(scope="module")
def fine_preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset with random weights that draws 128 px with a fine stage."""
    fine = FineConfig(painter=DetailConfig(mouth_width=8, eye_width=8, res_blocks=1))
    lfg = TINY.lfg.model_copy(update={"image_size_px": SIZE, "fine": fine})
    return write_preset(tmp_path_factory.mktemp("fine") / "fine", TINY.model_copy(update={"name": "fine", "lfg": lfg}))


@pytest.fixture(scope="module")
def shards(fine_preset: Path, portrait_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows of one photograph, shut and opened in many ways, and as if of a clip."""
    folder, maker, rng = tmp_path_factory.mktemp("windows"), WindowMaker(str(fine_preset)), random.Random(0)
    stills = list(pair_stills([portrait_path], maker, MANY, rng))
    assert write_windows(stills, maker, folder, "stills") == MANY
    first = stills[0]
    clips = [Pair("c", "clip", p.frame, p.landmarks, first.frame, first.landmarks) for p in stills[:4]]
    assert write_windows(clips, maker, folder, "clips") == 4
    return folder


@pytest.fixture(scope="module")
def base(fine_preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = read_config(fine_preset / "config.json", type(TINY)).lfg
    generator = LatentFlowGenerator(config)
    generator.load_state_dict({k: v.float() for k, v in read_weights(fine_preset / "lfg.safetensors").items()})
    save_part(folder, "lfg", generator, config)
    return folder / "lfg.safetensors"


def test_an_untrained_painter_changes_nothing(portrait_face: Face) -> None:
    painter, frame = OrganPainter(SMALL, SIZE).eval(), torch.rand(2, 3, SIZE, SIZE)
    points = landmarks(portrait_face, 2)
    assert torch.equal(painter(frame, frame, points, painter.look(frame, points)), frame)


def test_only_windows_are_painted_and_the_persons_code_matters(portrait_face: Face) -> None:
    torch.manual_seed(0)
    painter, frame = OrganPainter(SMALL, SIZE).eval(), torch.rand(1, 3, SIZE, SIZE)
    for network in (painter.mouth, painter.eye):
        torch.nn.init.normal_(network.last.weight, std=0.1)
    points = landmarks(portrait_face)
    seen = painter.look(frame, points)
    made = painter(frame, frame, points, seen)
    painted = (made != frame).any(1)[0]
    inside = torch.zeros_like(painted)
    for organ in ORGANS:
        window = painter.place(organ, points)
        inside[window.rows[0][:, None], window.columns[0]] = True
    assert painted.any() and not (painted & ~inside).any()
    other = (*seen[: len(ORGANS)], *(code + 1 for code in seen[len(ORGANS) :]))
    assert not torch.equal(painter(frame, frame, points, other), made)


def test_windows_hold_what_the_painter_is_told(shards: Path) -> None:
    store = WindowStore(shards)
    assert store.count == MANY + 4 and len(store.of_kind["still"]) == MANY and len(store.of_kind["clip"]) == 4
    found = store.windows["mouth"].take(torch.arange(store.count))
    assert found.pictures.shape[1:3] == (4, 3) and 0 <= float(found.pictures.min()) <= float(found.pictures.max()) <= 1
    assert OrganPainter(SMALL, SIZE).mouth.first.conv.in_channels == 4 * found.known().shape[1]
    turned = found.mirror(torch.ones(store.count, dtype=torch.bool))
    assert torch.equal(turned.pictures, found.pictures.flip(-1))
    x = found.known()[:, -7]  # place across, before the 5 channels of what is seen and the place down
    assert torch.allclose(turned.known()[:, -7], -x.flip(-1), atol=2e-3)


def test_a_still_is_shut_by_the_generators_own_landmarks(fine_preset: Path, portrait_path: Path) -> None:
    maker = WindowMaker(str(fine_preset), validation=True)
    (pair,) = pair_stills([portrait_path], maker, 0, random.Random(0))
    cut = maker.make([pair], torch.Generator().manual_seed(0))["mouth.contours"].float()
    wanted, shown = cut[0, 0, 0].mean(), cut[0, 1, 0].mean()
    assert shown < 0.8 * wanted, "the portrait made of it shows less of the mouth's inside than the photograph"


def test_the_recipe_learns_and_exports_a_generator(shards: Path, base: Path, tmp_path: Path) -> None:
    config = OrganTrainConfig(
        steps=12, batch=4, lr=3e-3, base=str(base), adversarial_from=8, warmup_steps=1, log_every=4, sheet_every=12
    )
    recipe = OrganRecipe(config, SMALL, shards, shards)
    before = recipe.validate(recipe.networks["main"].eval())
    recipe.networks["main"].train()
    assert train(recipe, config, tmp_path) == 12
    generator = LatentFlowGenerator(read_config(tmp_path / "lfg.json", LFGConfig))
    generator.load_state_dict({k: v.float() for k, v in read_weights(tmp_path / "lfg.safetensors").items()})
    assert isinstance(generator.fine.painter, OrganPainter) and generator.detail is None
    after = recipe.validate(generator.fine.painter.eval())
    assert after["still_mouth_psnr"] != before["still_mouth_psnr"] and np.isfinite(after["still_mouth_inside_psnr"])
    assert (tmp_path / "sheet_000012.png").is_file()


def test_bad_material_is_refused(tmp_path: Path, tiny_preset: Path, shards: Path) -> None:
    with pytest.raises(InputError, match="no windows"):
        WindowStore(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="not a shard"):
        WindowStore(tmp_path)
    with pytest.raises(ConfigError, match="no fine stage"):
        windows.WindowMaker(str(tiny_preset))
    with pytest.raises(ConfigError, match="base=RUN"):
        organs.OrganRecipe(OrganTrainConfig(), SMALL, shards)
