"""Names of the published latent flow generator's parameters (``LFG_*.pth``) → names of ``models.paper_lfg``.

The published file has a dictionary for each of three networks. Batch norm statistics come along; the anti-aliasing
kernels, which are in the file too, follow from the reduction and are only checked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dawn.config import PaperLFGConfig
from dawn.models.paper.lfg import PaperLFG
from dawn.models.paper.regions import FLOW_REDUCTION, gaussian_kernel

RENAMED = (
    ("generator.pixelwise_flow_predictor.hourglass.encoder.down_blocks.", "flow_predictor.hourglass.down_blocks."),
    ("generator.pixelwise_flow_predictor.hourglass.decoder.up_blocks.", "flow_predictor.hourglass.up_blocks."),
    ("generator.pixelwise_flow_predictor.mask.", "flow_predictor.mask_head."),
    ("generator.pixelwise_flow_predictor.occlusion.", "flow_predictor.occlusion_head."),
    ("generator.first.", "first."),
    ("generator.down_blocks.", "down_blocks."),
    ("generator.bottleneck.r", "bottleneck."),
    ("generator.up_blocks.", "up_blocks."),
    ("generator.final.", "last."),
    ("region_predictor.predictor.encoder.down_blocks.", "region_predictor.hourglass.down_blocks."),
    ("region_predictor.predictor.decoder.up_blocks.", "region_predictor.hourglass.up_blocks."),
    ("region_predictor.regions.", "region_predictor.head."),
    ("bg_predictor.encoder.down_blocks.", "background_predictor.blocks."),
    ("bg_predictor.fc.", "background_predictor.head."),
)
"""Beginnings of names, section first: published → ours. What follows them is the same."""

KERNELS = ("generator.pixelwise_flow_predictor.down.weight", "region_predictor.down.weight")
"""Anti-aliasing kernels (3, 1, 13, 13): no parameters."""


def from_official(sections: dict[str, dict[str, Tensor]], config: PaperLFGConfig | None = None) -> dict[str, Tensor]:
    """State of a ``PaperLFG`` from the published sections ``generator``, ``region_predictor`` and ``bg_predictor``.

    config: of the generator that the state is for, as published by default; only names are compared, shapes when loading.
    Raises KeyError naming published entries that are missing, ValueError naming entries that are left over or an
    anti-aliasing kernel that is not the Gaussian which the generator computes.
    """
    given = {f"{section}.{key}": value for section, entries in sections.items() for key, value in entries.items()}
    for name in KERNELS:
        if name in given:
            _check_kernel(name, given.pop(name))
    with torch.device("meta"):
        wanted = PaperLFG(config or PaperLFGConfig()).state_dict()
    published = {_published_name(key): key for key in wanted}
    missing, left_over = sorted(published.keys() - given.keys()), sorted(given.keys() - published.keys())
    if missing:
        raise KeyError(f"missing from the file: {', '.join(missing)}")
    if left_over:
        raise ValueError(f"left over in the file: {', '.join(left_over)}")
    return {key: given[name] for name, key in published.items()}


def _published_name(key: str) -> str:
    """The published name, section first, of one of our entries."""
    names = [theirs + key.removeprefix(ours) for theirs, ours in RENAMED if key.startswith(ours)]
    assert len(names) == 1, f"{key} has {len(names)} published names"
    return names[0]


def _check_kernel(name: str, kernel: Tensor) -> None:
    true = gaussian_kernel(FLOW_REDUCTION).expand(3, 1, -1, -1)
    if kernel.shape != true.shape or not torch.allclose(kernel.double(), true, rtol=1e-4, atol=1e-7):
        raise ValueError(f"{name} is not the Gaussian of a reduction by {FLOW_REDUCTION}")
