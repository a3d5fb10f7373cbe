"""The published networks' parameters by the fixtures' weight rule (tests/fixtures/parity/README.md)."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures"
FACTORS = {"region_predictor.regions.weight": 3.0, "bg_predictor.fc.weight": 0.1, "generator.final.weight": 0.5}
GAINS = ("gamma", "g", "q_scale", "k_scale")


def key_list(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Entries of one published file: key -> (shape, type). name: ``dawn-128``, ``lfg-256``, ``pbnet-pose``, ..."""
    entries = {}
    for line in (FIXTURES / "official_keys" / f"official-keys-{name}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            key, shape, kind = line.split()
            entries[key] = (() if shape == "scalar" else tuple(int(n) for n in shape.split("x")), kind)
    return entries


def parity(name: str) -> dict[str, Tensor]:
    """Arrays of one fixture file."""
    with np.load(FIXTURES / "parity" / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """A parameter's value. name: with its prefix. Computed in float64, cast to float32 last."""
    random = np.random.RandomState(zlib.crc32(name.encode("utf-8")))
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    if last == "running_var":
        return torch.from_numpy(0.5 + random.random_sample(shape)).float()
    z = random.standard_normal(shape)
    if last == "running_mean":
        value = 0.1 * z
    elif name == "bg_predictor.fc.bias":
        value = np.array([1.0, 0, 0, 0, 1, 0]) + 0.05 * z
    elif last in ("bias", "in_proj_bias"):
        value = 0.05 * z
    elif last in GAINS or len(shape) == 1:
        value = 1 + 0.1 * z
    else:
        value = FACTORS.get(name, 1.0) * z / np.sqrt(z.size / shape[0])
    return torch.from_numpy(value).float()


def input_of(name: str, shape: tuple[int, ...]) -> Tensor:
    """``x``, ``cond`` and ``fea`` of the U-Net fixtures, e.g. ``unet_t3_h64.fea``."""
    random = np.random.RandomState(zlib.crc32(f"input:{name}".encode()))
    return torch.from_numpy(random.standard_normal(shape).astype(np.float32))


def constructed(key: str) -> bool:
    """Entries that the published constructors compute; the rule does not draw them."""
    return key.rsplit(".", 1)[-1] in ("freqs", "pe") or key == "down.weight" or key.endswith(".down.weight")


def relative_error(made: Tensor, true: Tensor) -> float:
    """Relative L2 distance."""
    return float((made.double() - true.double()).norm() / true.double().norm())
