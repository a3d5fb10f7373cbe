"""The authors' published files → a preset folder of this package.

    DIR/…/LFG_128_*.pth, DAWN_128.pth, pose/checkpoint_*.pth.tar + opt.yaml, blink/… ─ read ─ rename ─ check ─▶ OUT/

Published files are pickles. They are read by torch's restricted unpickler, which builds tensors and plain containers and
refuses everything else, so that a file with code in it is not run.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dawn.checkpoint import MAX_WEIGHT_BYTES, assemble, load_into, load_pickle
from dawn.config import PaperLFGConfig, PaperPresetConfig, PublishedPBNetConfig, UNetConfig
from dawn.errors import CheckpointError, ConfigError, OutputError, missing_extra
from dawn.models.paper.bundle import PaperBundle
from dawn.research.convert import a2v_keys, lfg_keys, pbnet_keys

log = logging.getLogger(__name__)

SIZES_PX = (128, 256)
LFG_SECTIONS = ("generator", "region_predictor", "bg_predictor")
WRAPPER = "module."
"""What training on several GPUs puts before every name."""
MAX_OPTIONS_BYTES = 1 << 20
MASK_ASSET = "assets/face_mask_seed1234.safetensors"
DOWNLOAD = "get it from huggingface.co/Hanbo-Cheng/DAWN"


class OfficialFiles(NamedTuple):
    """Where the published files are."""

    lfg: Path
    dawn: Path
    pose: Path
    blink: Path


def find_files(folder: Path, size_px: int | None = None) -> OfficialFiles:
    """Look for the published files anywhere below a folder.

    size_px: 128 or 256, where the folder holds both. Raises CheckpointError for what is missing or there twice.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder; give the one that holds the published files")
    if size_px is None:
        there = [size for size in SIZES_PX if any(folder.rglob(f"DAWN_{size}*.pth"))]
        if len(there) > 1:
            raise ConfigError(f"{folder}: holds models of 128 and 256 px; choose one with `size`")
        size_px = there[0] if there else SIZES_PX[0]
    # pbnet_seperate is the published spelling of an older layout; both hold folders pose and blink.
    return OfficialFiles(
        _the_one(folder, f"LFG_{size_px}*.pth", "the latent flow generator"),
        _the_one(folder, f"DAWN_{size_px}*.pth", "the A2V network"),
        _the_one(folder, "pose/checkpoint_*.pth.tar", "PBNet's pose network"),
        _the_one(folder, "blink/checkpoint_*.pth.tar", "PBNet's blink network"),
    )


def _the_one(folder: Path, pattern: str, what: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if not found:
        raise CheckpointError(f"{folder}: no {pattern} in it ({what}); {DOWNLOAD}")
    if len(found) > 1:
        raise CheckpointError(f"{folder}: {pattern} is there {len(found)} times ({found[0]}, {found[1]}); keep one")
    return found[0]


def convert(folder: Path, out: Path, size_px: int | None = None, name: str | None = None) -> PaperPresetConfig:
    """Convert the files below a folder and write a preset. Returns its configuration.

    Raises CheckpointError (missing, damaged or foreign files; files that would run code), ConfigError, OutputError.
    """
    if out.exists() and not (out / "config.json").is_file():
        raise OutputError(f"{out}: exists and is no preset, so it is not replaced; choose another folder")
    found = find_files(folder, size_px)
    size = 256 if found.dawn.name.startswith("DAWN_256") else 128
    configs = {
        part: pbnet_config(path, outputs)
        for part, path, outputs in (("pose", found.pose, 6), ("blink", found.blink, 2))
    }
    config = PaperPresetConfig(
        name=name or f"paper-{size}",
        lfg=PaperLFGConfig(image_size_px=size),
        unet=UNetConfig(latent_size=size // 4),
        pose=configs["pose"],
        blink=configs["blink"],
    )
    with torch.device("meta"):  # shapes only: the values come from the files
        bundle = PaperBundle(config)
    networks: dict[str, nn.Module] = {part: getattr(bundle, part) for part in config.PARTS}
    for part, path in (("lfg", found.lfg), ("unet", found.dawn), ("pose", found.pose), ("blink", found.blink)):
        state = read_part(part, path, configs.get(part))
        load_into(networks[part], state, str(path), assign=True)
        log.info("%s: read from %s", part, path)
    networks["mask"].load_state_dict(load_file(str(files("dawn").joinpath(MASK_ASSET))), assign=True)
    log.info("mask: the published files lack the face-mask encoder; its weights are those that seed 1234 gives")
    if out.exists():
        shutil.rmtree(out)
    assemble(config, networks, out, half=False)
    return config


def read_part(part: str, path: Path, config: PublishedPBNetConfig | None = None) -> dict[str, Tensor]:
    """One published file under our names, float32. part: ``lfg``, ``unet``, ``pose`` or ``blink``. Raises CheckpointError."""
    content = read_pickle(path)
    if part == "lfg":
        sections = {
            section: _tensors(content.get(section), path, f"the section {section!r}") for section in LFG_SECTIONS
        }
        return _renamed(path, lambda: lfg_keys.from_official(sections))
    if part == "unet":
        state = _tensors(content.get("diffusion"), path, "the entry 'diffusion'")
        return _renamed(path, lambda: a2v_keys.from_official(state))
    state = _tensors(content, path, "a state of PBNet")
    return _renamed(path, lambda: pbnet_keys.from_official(state, config))


def read_pickle(path: Path) -> Mapping[str, Any]:
    """A published file as plain containers of tensors. Raises CheckpointError, also for a file with code in it."""
    if not path.is_file():
        raise CheckpointError(f"{path}: not there; {DOWNLOAD}")
    if path.stat().st_size > MAX_WEIGHT_BYTES:
        raise CheckpointError(
            f"{path}: {path.stat().st_size} bytes is more than {MAX_WEIGHT_BYTES}; not a published file"
        )
    content = load_pickle(path, str(path), DOWNLOAD)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__} instead of named weights; {DOWNLOAD}")
    return content


def _tensors(content: Any, path: Path, what: str) -> dict[str, Tensor]:
    """Named tensors, float32, without the prefix of parallel training."""
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path}: {what} is missing or holds no weights, so it is another file; {DOWNLOAD}")
    wrapped = all(str(key).startswith(WRAPPER) for key in content)
    return {
        str(key).removeprefix(WRAPPER) if wrapped else str(key): value.float() if value.is_floating_point() else value
        for key, value in content.items()
    }


def _renamed(path: Path, rename: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        return rename()
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: weights of another model: {error.args[0]}; {DOWNLOAD}") from error


def pbnet_config(checkpoint: Path, outputs: int) -> PublishedPBNetConfig:
    """Configuration of a published PBNet from the ``opt.yaml`` beside it. Raises CheckpointError, ConfigError."""
    path = checkpoint.parent / "opt.yaml"
    try:
        import yaml
    except ImportError as error:
        raise missing_extra("pyyaml", "paper") from error
    try:
        if path.stat().st_size > MAX_OPTIONS_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_OPTIONS_BYTES} bytes, not the published options")
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: not readable ({str(error).splitlines()[0]}); {DOWNLOAD}") from error
    if not isinstance(options, Mapping):
        raise CheckpointError(f"{path}: no options in it; {DOWNLOAD}")
    try:
        return pbnet_keys.config_from_options(options, outputs)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: options of another network: {error.args[0]}; {DOWNLOAD}") from error
