"""Weights of SFace, the network that says who a face is: where they lie and how they are read."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from dawn.errors import CheckpointError
from dawn.models.judges.sface import SFace


def default_sface_path() -> Path:
    """Return ``$DAWN_CACHE/sface.safetensors``, or the same file in ``~/.cache/dawn``."""
    return Path(os.environ.get("DAWN_CACHE") or Path.home() / ".cache" / "dawn") / "sface.safetensors"


def load_sface(path: str | Path | None = None) -> SFace:
    """Read converted weights into a frozen network in evaluation mode, float32, on the CPU.

    Args:
        path: A file written by ``tools/convert_sface.py``; by default ``default_sface_path()``.

    Raises:
        CheckpointError: The file is missing, damaged or of another network.
    """
    path = Path(path) if path is not None else default_sface_path()
    remedy = "make them with tools/fetch_models.py sface and tools/convert_sface.py (docs/training.md)"
    if not path.is_file():
        raise CheckpointError(f"SFace weights not found: {path}; {remedy}")
    network = SFace()
    try:
        network.load_state_dict({name: value.float() for name, value in load_file(path).items()}, strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"SFace weights cannot be used: {path} ({reason}); {remedy}") from error
    return network.eval().requires_grad_(False)
