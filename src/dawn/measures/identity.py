"""Who is in the picture? SFace features: cosine of two faces, Fréchet distance of two sets of faces."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dawn.errors import InputError
from dawn.models.judges.sface import EMBEDDING_SIZE, SFace, align_to_arcface

Array = NDArray[Any]
Float64Array = NDArray[np.float64]

_BATCH = 16


@torch.inference_mode()
def embed(sface: SFace, images: Array, landmarks: Array) -> Float64Array:
    """Compute the SFace features of faces: (T, 128), not normalised.

    Args:
        sface: the network.
        images: (T, H, W, 3), uint8 or float in [0, 1].
        landmarks: (T, 478, 2 or 3) in crop units.

    Raises:
        InputError: There are not as many landmarks as images.
    """
    if len(images) != len(landmarks):
        raise InputError(f"pictures and landmarks do not fit: {len(images)} and {len(landmarks)} frames")
    device = next(sface.parameters()).device
    parts = []
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        scale = 255.0 if images.dtype == np.uint8 else 1.0
        pictures = torch.from_numpy(images[part].astype(np.float32) / np.float32(scale)).permute(0, 3, 1, 2).to(device)
        points = torch.from_numpy(landmarks[part].astype(np.float32)).to(device)
        parts.append(sface(align_to_arcface(pictures, points)).double().cpu().numpy())
    return np.concatenate(parts)


def cosine(features_a: Array, features_b: Array) -> Float64Array:
    """Compute the cosine of SFace features, frame by frame: (T, D) twice -> (T,).

    About 0.9 is the same picture disturbed, 0.1 strangers. A single face (1, D) is compared with every face of the
    other side.

    Raises:
        InputError: The counts differ and neither is 1.
    """
    if len({len(features_a), len(features_b)} - {1}) > 1:
        raise InputError(f"cannot compare {len(features_a)} faces with {len(features_b)}")
    lengths = np.linalg.norm(features_a, axis=1) * np.linalg.norm(features_b, axis=1)
    return (features_a * features_b).sum(1) / lengths


def moment_sums(generated: Array, real: Array) -> Float64Array:
    """Sum up one clip's features (T, D) for ``frechet_distance``.

    Returns:
        One flat array: count, sum and sum of outer products of the generated features, then of the real ones.
    """
    sides = []
    for features in (generated, real):
        features = np.asarray(features, np.float64)
        sides += [np.array([len(features)]), features.sum(0), (features.T @ features).ravel()]
    return np.concatenate(sides)


def frechet_distance(sums: Float64Array, size: int = EMBEDDING_SIZE) -> float:
    """Compute the Fréchet distance of two sets of faces from the total of their ``moment_sums``.

    |m1 - m2|^2 + trace(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), with means m and covariances C of the features. This is the
    distance of two normal distributions (Dowson and Landau 1982); 0 is the same distribution.

    The features are SFace's: this is not "FID", and published FIDs cannot be compared with it. Few faces bias it
    upwards, alike for all columns of a table. Not a number under 2 faces.
    """
    half = 1 + size + size * size
    moments = []
    for side in (sums[:half], sums[half:]):
        count, total, products = side[0], side[1 : 1 + size], side[1 + size :].reshape(size, size)
        if count < 2:
            return float("nan")
        mean = total / count
        moments.append((mean, (products - count * np.outer(mean, mean)) / (count - 1)))
    (mean_a, covariance_a), (mean_b, covariance_b) = moments
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(0)).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    return float(max(distance, 0.0))
