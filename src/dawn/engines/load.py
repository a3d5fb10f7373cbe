"""Presets on disk → engines. Another kind of preset is one entry of ``FAMILIES``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from dawn import DEFAULT_PRESET
from dawn.checkpoint import find_preset, load_into, part_path, read_preset, read_weights
from dawn.engines.engine import Engine
from dawn.engines.lite import LiteEngine
from dawn.engines.paper import PaperEngine
from dawn.errors import ConfigError
from dawn.models.lite.bundle import LiteBundle
from dawn.models.lite.motion_space import MotionSpace
from dawn.models.paper.bundle import PaperBundle
from dawn.options import RULES
from dawn.rules_config import RulesConfig
from dawn.structs import PathLike


class Family(NamedTuple):
    """How presets of one kind are built."""

    networks: type[Any]
    engine: type[Engine[Any]]


FAMILIES = {"lite": Family(LiteBundle, LiteEngine), "paper": Family(PaperBundle, PaperEngine)}


def load_bundle(preset: PathLike = DEFAULT_PRESET, rules: str = "preset") -> Any:
    """Load all networks of a preset on the CPU, as trained, frozen, checksums verified.

    Args:
        preset: a shipped preset's name, or a folder.
        rules: "preset" for the preset's hand rules, "none" for the bare networks (``RulesConfig.none``).

    Raises:
        ConfigError: an unknown preset, or another word for the rules.
        CheckpointError: weights that are missing, damaged or of another model.
    """
    if rules not in RULES:
        raise ConfigError(f"rules {rules!r}: give {' or '.join(RULES)}")
    folder = find_preset(preset)
    config = read_preset(folder)
    if rules == "none":
        config = config.model_copy(update={"rules": RulesConfig.none()})
    bundle = FAMILIES[config.kind].networks(config)
    for part in config.PARTS:
        path = part_path(folder, part, config.shares)
        load_into(getattr(bundle, part), read_weights(path, config.sha256.get(part)), str(path))
    return bundle.eval().requires_grad_(False)


def build_engine(bundle: Any, device: torch.device) -> Engine[Any]:
    """Make the engine of loaded networks, which are changed for inference in place."""
    return FAMILIES[bundle.config.kind].engine(bundle, device)  # type: ignore[call-arg]


def load_motion_space(preset: PathLike) -> MotionSpace | None:
    """Load the motion space of a preset alone; None for a published one. Raises ConfigError, CheckpointError."""
    folder = find_preset(preset)
    config = read_preset(folder)
    if config.kind != "lite":
        return None
    space, path = MotionSpace(config.motion), part_path(folder, "motion", config.shares)
    load_into(space, read_weights(path, config.sha256.get("motion")), str(path))
    return space


def pick_device(name: str) -> torch.device:
    """Name a device; ``auto`` is CUDA if there is any. Raises ConfigError for one that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used ({reason}): use auto or cpu") from error
    return device
