"""A trained generator of which one stage goes on learning: the rest is frozen, and rendered by a copy made for inference."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dawn.checkpoint import load_into, read_weights
from dawn.errors import CheckpointError
from dawn.models.blocks import fold_for_inference
from dawn.models.lite.lfg import Decoded, LatentFlowGenerator, Source

RENDER_BATCH = 8
"""As many frames as stay in the cache of a small machine."""


def load_generator(network: LatentFlowGenerator, path: Path, stage: str) -> LatentFlowGenerator:
    """Load weights, freeze all but one stage's painter ("detail" or "fine"), and return the frozen copy, which ends before it.

    Stages that the file lacks keep their start. Raises CheckpointError.
    """
    tensors = read_weights(path)
    own = network.state_dict()
    added = {key: own[key] for key in own if key.startswith(("detail.", "fine.")) and key not in tensors}
    wrong = sorted(own.keys() ^ (tensors.keys() | added.keys()))
    if wrong:
        raise CheckpointError(
            f"{path}: not a generator of this configuration ({wrong[0]} and {len(wrong) - 1} more differ)"
        )
    load_into(network, added | tensors, str(path))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(f"{stage}."))
    frozen = deepcopy(network).eval().requires_grad_(False)
    if stage == "detail":
        frozen.detail = frozen.fine = None
    elif frozen.fine is not None:
        frozen.fine.painter = None
    return fold_for_inference(frozen).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def render_frozen(frozen: LatentFlowGenerator, image: Tensor, landmarks: Tensor) -> tuple[Source, Decoded]:
    """Sources (B, 3, H, W) redrawn with the driving ones of landmarks (B, 2, 478, 3), a few at a time."""
    frozen.to(image.device)
    sources, made = [], []
    for part, points in zip(image.split(RENDER_BATCH), landmarks.split(RENDER_BATCH), strict=True):
        sources.append(frozen.encode(part, points[:, 0]))
        made.append(frozen.redraw(sources[-1], points[:, 1]))
    return _join(sources), _join(made)


def _join(parts: Sequence[Any]) -> Any:
    """Named tuples of tensors and of such tuples, one a batch, as one."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    fields = [_join(column) for column in zip(*parts, strict=True)]
    return type(first)(*fields) if hasattr(first, "_fields") else tuple(fields)
