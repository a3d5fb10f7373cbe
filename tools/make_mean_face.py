"""Makes ``assets/mean_face.safetensors`` from prepared clips: generalised Procrustes mean, one vote a person.

python tools/make_mean_face.py PREPARED_DIR src/dawn/assets/mean_face.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dawn.face import mesh as lm
from dawn.face.geometry import fit_similarity


def _aligned(points: torch.Tensor, mean: torch.Tensor, rigid: list[int]) -> torch.Tensor:
    scale, rotation, shift = fit_similarity(points[:, rigid], mean[rigid])
    return (points - shift[:, None]) @ rotation / scale[:, None, None]


def mean_face(points: torch.Tensor, people: list[str], rounds: int = 10) -> torch.Tensor:
    """points: (M, 478, 3) of the people named, any pose. Returns (478, 3): eyes level, outer eye corners one unit apart.

    The frame: origin half way between the outer eye corners, x along them, forehead and chin in one upright plane.
    """
    rigid = list(lm.RIGID)
    names = sorted(set(people))
    index = torch.tensor([names.index(p) for p in people])
    weight = 1.0 / torch.bincount(index)[index]
    mean = points[0]
    for _ in range(rounds):
        mean = (_aligned(points, mean, rigid) * weight[:, None, None]).sum(0) / weight.sum()
        right, left = mean[lm.EYE_OUTER_CORNERS[0]], mean[lm.EYE_OUTER_CORNERS[1]]
        x = (left - right) / (left - right).norm()
        down = mean[152] - mean[10]
        y = down - (down @ x) * x
        y = y / y.norm()
        frame = torch.stack((x, y, torch.linalg.cross(x, y)), 1)
        mean = (mean - (left + right) / 2) @ frame / (left - right).norm()
    return mean


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    points, people = [], []
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, framework="np") as clip:
            points.append(clip.get_tensor("landmarks").astype(np.float32).mean(0))
            people.append((clip.metadata() or {}).get("person", path.stem))
    mean = mean_face(torch.from_numpy(np.stack(points)), people)
    save_file({"mean_face": mean.contiguous()}, target)
    print(f"{len(points)} clips of {len(set(people))} people -> {target}")


if __name__ == "__main__":
    main()
