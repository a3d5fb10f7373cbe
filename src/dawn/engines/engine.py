"""What a preset must answer, and how presets are loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dawn.checkpoint import PAPER_PARTS, PARTS, find_preset, load_into, part_path, read_preset, read_weights
from dawn.config import PresetConfig
from dawn.errors import ConfigError
from dawn.models.lite.bundle import LiteBundle
from dawn.models.lite.motion_space import MotionSpace
from dawn.models.paper.bundle import PaperBundle
from dawn.options import GenerateOptions
from dawn.structs import Face, Motion, PathLike


class Engine(Protocol):
    """What the pipeline asks of a preset; ``lite`` and the published model answer it in their own motion spaces."""

    def mean_face(self) -> Tensor: ...
    def features(self, samples: Tensor, frames: int) -> Tensor: ...
    def generate(
        self, features: Tensor, samples: Tensor, face: Face, options: GenerateOptions, progress: Callable[[int], None]
    ) -> Motion: ...
    def check(self, motion: Motion) -> None: ...
    def source(self, face: Face) -> Any: ...
    def decode(self, source: Any, face: Face, motion: Motion, start: int, stop: int) -> tuple[Tensor, Tensor]: ...
    def transfer(self, landmarks: Tensor, face: Face) -> Motion: ...


def load_bundle(preset: PathLike) -> LiteBundle | PaperBundle:
    """All networks of a preset on the CPU, as trained, frozen. Raises ConfigError, CheckpointError."""
    folder = find_preset(preset)
    config = read_preset(folder)
    bundle = LiteBundle(config) if isinstance(config, PresetConfig) else PaperBundle(config)
    for part in PARTS if isinstance(config, PresetConfig) else PAPER_PARTS:
        path = part_path(folder, part, getattr(config, "shares", None))
        load_into(getattr(bundle, part), read_weights(path, config.sha256.get(part)), str(path))
    return bundle.eval().requires_grad_(False)


def load_motion_space(preset: PathLike) -> MotionSpace | None:
    """The motion space of a preset alone; None for a published one. Raises ConfigError, CheckpointError."""
    folder = find_preset(preset)
    config = read_preset(folder)
    if not isinstance(config, PresetConfig):
        return None
    space, path = MotionSpace(config.motion), part_path(folder, "motion", config.shares)
    load_into(space, read_weights(path, config.sha256.get("motion")), str(path))
    return space


def pick_device(name: str) -> torch.device:
    """``auto``: CUDA if there is any. Raises ConfigError for a device that this machine or torch does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used ({reason}): use auto or cpu") from error
    return device
