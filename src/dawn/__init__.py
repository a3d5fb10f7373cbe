"""DAWN: talking-head video from one portrait and one speech recording, all frames at once (arXiv 2410.13726).

import dawn
dawn.load()("portrait.png", "speech.wav").save("out.mp4")
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from dawn import errors as errors
    from dawn.pipeline import Dawn as Dawn
    from dawn.structs import Face as Face
    from dawn.structs import Motion as Motion
    from dawn.structs import Speech as Speech
    from dawn.video import Video as Video

__version__ = "0.1.0"
DEFAULT_PRESET = "lite-256"
"""The shipped preset that is used unless another is named."""
__all__ = ["DEFAULT_PRESET", "Dawn", "Face", "Motion", "Speech", "Video", "__version__", "errors", "load"]
_HOMES = {
    "Dawn": "dawn.pipeline",
    "Face": "dawn.structs",
    "Motion": "dawn.structs",
    "Speech": "dawn.structs",
    "Video": "dawn.video",
}
"""Where the names of the door live. They are imported when they are first asked for, so that ``import dawn`` is instant."""
_MOVED = {
    "dawn.generation": "dawn.options",
    "dawn.motion_file": "dawn.media.motion_json",
    "dawn.preflight": "dawn.checks",
    "dawn.preflight.check": "dawn.checks.inputs",
    "dawn.preflight.findings": "dawn.checks.findings",
    "dawn.preflight.seeds": "dawn.checks.retry",
    "dawn.preflight.selfcheck": "dawn.checks.output",
}
"""Documented paths of 0.1, forwarded for one release."""


def load(preset: str = DEFAULT_PRESET, device: str = "auto") -> Dawn:
    """Load a model: a shipped preset by name, or a preset's folder. See ``Dawn.from_pretrained``."""
    from dawn.pipeline import Dawn

    return Dawn.from_pretrained(preset, device)


def __getattr__(name: str) -> Any:
    """Import a name of the door."""
    if name == "errors":
        return import_module("dawn.errors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dawn' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the door's names."""
    return sorted(__all__)


class _Forwarder(MetaPathFinder, Loader):
    """Finds modules by the paths they had in 0.1."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for moved modules only."""
        return spec_from_loader(fullname, self, is_package=fullname == "dawn.preflight") if fullname in _MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Let the old module answer with what the new one has."""
        old, new = module.__name__, _MOVED[module.__name__]
        warnings.warn(f"{old} is now {new}; the old path goes in the next release", DeprecationWarning, stacklevel=2)
        home = import_module(new)
        module.__getattr__ = lambda name: getattr(home, name)  # type: ignore[method-assign]


if not any(isinstance(finder, _Forwarder) for finder in sys.meta_path):
    sys.meta_path.append(_Forwarder())
