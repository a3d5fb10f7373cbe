"""Weights and configuration on disk: safetensors and JSON, loaded strictly; pickles are read without running them.

A preset is a folder: ``config.json`` (``LitePresetConfig``) and one ``<part>.safetensors`` for each of its ``PARTS``. The
configuration may name a preset beside it that shares parts. Training writes single parts (``<part>.safetensors`` +
``<part>.json``); ``assemble`` makes a preset of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dawn.config import LitePresetConfig, Model, PaperPresetConfig, parse, parse_preset
from dawn.errors import CheckpointError, ConfigError

MAX_WEIGHT_BYTES = 4 << 30
MAX_CONFIG_BYTES = 1 << 20


def list_presets() -> list[str]:
    """List the names of the presets inside the package."""
    root = files("dawn").joinpath("weights")
    if not root.is_dir():
        return []
    return sorted(item.name for item in root.iterdir() if item.joinpath("config.json").is_file())


def find_preset(name: str | Path) -> Path:
    """Find the folder of a preset by a shipped name or a path.

    Raises:
        CheckpointError: The folder has no ``config.json``.
        ConfigError: There is no such preset; the message names those that exist.
    """
    shipped = Path(str(files("dawn").joinpath("weights", str(name))))
    if str(name) in list_presets():
        return shipped
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no config.json in it; give a folder written by dawn, or a preset name")
        return folder
    raise ConfigError(f"unknown preset {str(name)!r}: use one of {', '.join(list_presets())}, or a preset's folder")


def read_config(path: Path, kind: type[Model]) -> Model:
    """Read and validate one JSON configuration.

    Raises:
        CheckpointError: The file cannot be read as JSON.
        ConfigError: A value is not allowed.
    """
    return parse(kind, _read_json(path), str(path))


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes, not a configuration of dawn")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); get the file again") from error


def read_preset(folder: Path) -> LitePresetConfig | PaperPresetConfig:
    """Read a preset's configuration, of whichever kind it is. Raises CheckpointError, ConfigError."""
    path = folder / "config.json"
    return parse_preset(_read_json(path), str(path))


def part_path(folder: Path, part: str, shares: str | None = None) -> Path:
    """Return the weight file of a part: in the preset's folder, else in that of the preset that shares it."""
    own = folder / f"{part}.safetensors"
    return own if shares is None or own.is_file() else folder.parent / shares / own.name


def load_mean_face() -> Tensor:
    """Load the mean face (478, 3) that pose is measured against."""
    return load_file(str(files("dawn").joinpath("assets/mean_face.safetensors")))["mean_face"]


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of one safetensors file.

    Raises:
        CheckpointError: The file is missing, damaged, over 4 GiB, or its sha256 is not ``sha256``.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: weights are missing; get the whole preset folder again")
    if path.stat().st_size > MAX_WEIGHT_BYTES:
        raise CheckpointError(
            f"{path}: {path.stat().st_size} bytes is more than {MAX_WEIGHT_BYTES}; not weights of dawn"
        )
    if sha256 is not None and file_sha256(path) != sha256:
        raise CheckpointError(f"{path}: damaged (its sha256 differs from config.json); get the file again")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}); get the file again") from error


def load_pickle(source: Path | BinaryIO, where: str, remedy: str) -> Any:
    """Load a PyTorch checkpoint without running what it may hold beside tensors.

    Args:
        source: the file.
        where: its name, for the message.
        remedy: the end of the message.

    Raises:
        CheckpointError: The file is damaged or holds more than tensors.
    """
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise CheckpointError(f"{where}: holds more than tensors, so it was not loaded; {remedy}") from error
        raise CheckpointError(f"{where}: not a readable checkpoint, or damaged; {remedy} again") from error
    except Exception as error:  # truncated archives fail in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{where}: not a readable checkpoint ({reason}); {remedy} again") from error


def load_into(
    network: nn.Module,
    tensors: dict[str, Tensor],
    where: str,
    assign: bool = False,
    remedy: str = "use weights of this preset",
) -> None:
    """Load tensors into a network strictly. Stored fp16 becomes the network's own precision.

    Args:
        network: gets the tensors.
        tensors: one for each entry of its state.
        where: their source, for the message.
        assign: replace the network's own tensors (on the meta device) instead of copying values into them.
        remedy: the end of the message.

    Raises:
        CheckpointError: Names or shapes do not fit, which the message lists; or a value is not finite.
    """
    own = network.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    extra = sorted(tensors.keys() - own.keys())
    shapes = [
        f"{key} is {tuple(tensors[key].shape)}, needs {tuple(own[key].shape)}"
        for key in sorted(own.keys() & tensors.keys())
        if own[key].shape != tensors[key].shape
    ]
    problems = [f"missing {_shorten(missing)}"] * bool(missing) + [f"unknown {_shorten(extra)}"] * bool(extra)
    problems += shapes[:3]
    if problems:
        raise CheckpointError(f"{where}: weights of another model ({'; '.join(problems)}); {remedy}")
    for key, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{where}: {key} holds values that are not finite; get the file again")
    state = {key: value.to(own[key].dtype) for key, value in tensors.items()}
    network.load_state_dict(state, strict=True, assign=assign)


def _shorten(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def file_sha256(path: Path) -> str:
    """Compute the sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_part(folder: Path, part: str, network: nn.Module, config: BaseModel, half: bool = False) -> None:
    """Write ``<part>.safetensors`` and ``<part>.json`` atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for key, value in network.state_dict().items():
        stored = value.detach().cpu().contiguous().clone()
        tensors[key] = stored.half() if half and stored.is_floating_point() else stored
    temporary = folder / f".{part}.part-{os.getpid()}"
    save_file(tensors, temporary)
    temporary.replace(folder / f"{part}.safetensors")
    _write_json(folder / f"{part}.json", config.model_dump(mode="json"))


def load_part(folder: Path, part: str, network: nn.Module) -> None:
    """Load a trained part written by ``save_part`` into a network of the same configuration.

    Raises:
        CheckpointError: As ``read_weights`` and ``load_into``.
    """
    path = folder / f"{part}.safetensors"
    load_into(network, read_weights(path), str(path))


def assemble(
    preset: LitePresetConfig | PaperPresetConfig,
    networks: dict[str, nn.Module],
    folder: Path,
    half: bool = True,
    shared: dict[str, str] | None = None,
) -> None:
    """Write a whole preset: safetensors (fp16 if ``half``) and ``config.json`` with checksums.

    ``shared`` gives the checksums of the parts that come from the preset beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sums = dict(shared or {})
    for part in sorted(networks):
        save_part(folder, part, networks[part], preset, half)
        (folder / f"{part}.json").unlink()
        sums[part] = file_sha256(folder / f"{part}.safetensors")
    _write_json(folder / "config.json", preset.model_copy(update={"sha256": sums}).model_dump(mode="json"))


def _write_json(path: Path, values: Any) -> None:
    temporary = path.with_name(f".{path.name}.part-{os.getpid()}")
    temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
