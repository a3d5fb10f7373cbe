"""What all recipes share that train on pairs of frames: clips, validation pairs, figures, contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dawn.checkpoint import load_mean_face, save_part
from dawn.config import LFGConfig
from dawn.face import mesh as lm
from dawn.research.training.data import ClipStore, PairBatch, contact_sheet, mirror_permutation, widest_mouth_pair
from dawn.research.training.loop import Recipe


class PairRecipe(Recipe):
    """Trains the latent flow generator, or a part of it, on a source and a driving frame of one clip."""

    part = "lfg"

    def __init__(self, model: LFGConfig, data: Path, validation: Path | None) -> None:
        """Raises InputError if a folder holds no clips."""
        self.model_config = model
        self.store = ClipStore(data)
        self.validation = ClipStore(validation) if validation else None
        self.permutation = mirror_permutation(load_mean_face())
        self._validation_pairs: PairBatch | None = None

    def _pairs(self) -> PairBatch | None:
        """Each validation clip's first frame and its widest mouth change, at model size."""
        if self.validation is not None and self._validation_pairs is None:
            size = self.model_config.image_size_px
            images, points = [], []
            for clip in self.validation.clips:
                pair = list(widest_mouth_pair(clip))
                images.append(F.interpolate(clip.frames(pair), (size, size), mode="bilinear", antialias=True))
                points.append(clip.landmarks[pair])
            self._validation_pairs = PairBatch(torch.stack(images).clamp(0, 1), torch.stack(points))
        return self._validation_pairs

    def validate(self, network: nn.Module) -> dict[str, float]:
        """PSNR of whole picture and mouth box on the widest mouth changes, with the do-nothing baseline."""
        pairs = self._pairs()
        if pairs is None:
            return {}
        made = _render(network, pairs)
        target, source = pairs.images[:, 1], pairs.images[:, 0]
        return {
            "psnr": _psnr(made, target),
            "psnr_repeat": _psnr(source, target),
            "mouth_psnr": _mouth_psnr(made, target, pairs.landmarks[:, 1]),
            "mouth_psnr_repeat": _mouth_psnr(source, target, pairs.landmarks[:, 1]),
        }

    def sheet(self, network: nn.Module) -> np.ndarray | None:
        """Draw ten validation pairs beside what the network makes of them; None without validation clips."""
        pairs = self._pairs()
        if pairs is None:
            return None
        pick = slice(None, None, max(1, len(pairs.images) // 10))
        chosen = PairBatch(pairs.images[pick], pairs.landmarks[pick])
        device = next(network.parameters()).device
        images, points = chosen.images.to(device), chosen.landmarks.to(device)
        out = network(images[:, 0], points[:, 0], points[:, 1])
        inside = (F.interpolate(x, images.shape[-2:]) for x in (out.painted, out.flow.occlusion.expand(-1, 3, -1, -1)))
        return contact_sheet([x.cpu() for x in (images[:, 0], images[:, 1], out.frame, *inside)])

    def export(self, network: nn.Module, folder: Path) -> None:
        """Save the network."""
        save_part(folder, self.part, network, self.model_config)


def _render(network: nn.Module, pairs: PairBatch) -> Tensor:
    device = next(network.parameters()).device
    out = []
    for images, points in zip(pairs.images.split(8), pairs.landmarks.split(8), strict=True):
        images, points = images.to(device), points.to(device)
        out.append(network(images[:, 0], points[:, 0], points[:, 1]).frame.cpu())
    return torch.cat(out)


def _psnr(a: Tensor, b: Tensor) -> float:
    error = (a - b).square().flatten(1).mean(1)
    return float((-10 * error.clamp_min(1e-10).log10()).mean())


def _mouth_psnr(a: Tensor, b: Tensor, landmarks: Tensor) -> float:
    """Mean PSNR inside the bounding box of the outer lips, grown by a quarter of its size."""
    size = a.shape[-1]
    lips = (landmarks[:, list(lm.OUTER_LIPS), :2] + 1) * size / 2
    low, high = lips.amin(1), lips.amax(1)
    margin = (high - low) / 4
    low, high = (low - margin).floor().long().clamp(0, size - 1), (high + margin).ceil().long().clamp(1, size)
    values = []
    for image, target, (x0, y0), (x1, y1) in zip(a, b, low.tolist(), high.tolist(), strict=True):
        error = (image[:, y0:y1, x0:x1] - target[:, y0:y1, x0:x1]).square().mean()
        values.append(float(-10 * error.clamp_min(1e-10).log10()))
    return float(np.mean(values))
