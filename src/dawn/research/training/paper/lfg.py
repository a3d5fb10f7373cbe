"""Training the published latent flow generator (paper section 3.2 and appendix A.2, details from the published code).

Two frames of one clip: the driving one is rebuilt from the source. The loss compares feature maps of a frozen network
over an image pyramid; two equivariance losses hold the learned regions to the picture when it is bent. There is no
adversary. The published code compares VGG-19 maps; here any network may be given, by default the face recogniser SFace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dawn.checkpoint import load_into, read_weights, save_part
from dawn.config import PaperLFGConfig
from dawn.measures.sface import load_sface
from dawn.models.blocks import invert_2x2
from dawn.models.judges.sface import SFace
from dawn.models.paper.lfg import PaperLFG, PaperResult
from dawn.models.paper.regions import downsample, multiply_2x2, published_grid, sample
from dawn.research.training.data import ClipStore, contact_sheet, widest_mouth_pair
from dawn.research.training.loop import Recipe, TrainConfig

FeatureNet = Callable[[Tensor], list[Tensor]]
"""Pictures (B, 3, H, W) in [0, 1] -> feature maps of several layers. Pictures down to an eighth of the side are given."""

RENDER_BATCH = 8
SMALLEST = 1e-12
"""Squared distance below which a spline's logarithm is not taken: its product with the distance is nothing there."""
LUMA_CHROMA = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""RGB -> luma and two chroma axes (YIQ)."""


class PaperLFGTrainConfig(TrainConfig):
    """The published settings at 128 px; at 256 px they are batch 20 and lr 6e-4."""

    steps: int = Field(45_000, ge=1)
    """The paper's 400 epochs of 25 pairs from each of about 366 clips."""
    batch: int = Field(82, ge=1)
    lr: float = 4e-4
    warmup_steps: int = 0
    min_lr_ratio: float = 0.005
    """Cosine to 2e-6."""
    weight_decay: float = 0.0
    """Published with plain Adam."""
    grad_clip: float = 10.0
    """Not published. The axes of a nearly round region turn quickly, and a step from there would be wild."""
    perceptual_weight: float = 10.0
    """Of every layer at every level."""
    pyramid_levels: int = Field(4, ge=1, le=5)
    shift_weight: float = 10.0
    affine_weight: float = 10.0
    affine_noise: float = 0.05
    spline_noise: float = 0.005
    spline_points: int = Field(5, ge=2)
    """Control points along each side."""
    colour_jitter: float = Field(0.1, ge=0, lt=1)
    start: str = ""
    """Weights to start from (``lfg.safetensors`` of the same configuration); the paper starts from VoxCeleb training."""


class SFaceFeatures(nn.Module):
    """The default ``FeatureNet``: inner maps of SFace, which knows faces and is freely licensed."""

    def __init__(self, network: SFace, layers: Sequence[int] = (0, 1, 2, 3, 4)) -> None:
        super().__init__()
        self.network, self.layers = network, tuple(layers)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Give the inner maps of pictures (B, 3, H, W) in [0, 1]."""
        return self.network.features(image * 255, self.layers)


def perceptual_pyramid(features: FeatureNet, image: Tensor, target: Tensor, levels: int) -> Tensor:
    """Mean absolute difference of feature maps, summed over layers and over sizes 1, 1/2, 1/4, ... of (B, 3, R, R)."""
    loss = torch.zeros((), device=image.device)
    for level in range(levels):
        with torch.no_grad():
            true = features(downsample(target, 2**level))
        made = features(downsample(image, 2**level))
        loss = loss + torch.stack([(a - b).abs().mean() for a, b in zip(made, true, strict=True)]).sum()
    return loss


class PlaneChange(NamedTuple):
    """A smooth change of the picture plane: an affine map and a thin-plate spline on top of it.

    Position p of the changed picture shows what the original has at A p + b + sum over i of w_i U(|p - c_i|) with
    U(r) = r^2 log r. matrix (B, 2, 3) is (A, b); weights (B, P, 2); control (P, 2).
    """

    matrix: Tensor
    weights: Tensor
    control: Tensor

    @classmethod
    def draw(cls, batch: int, config: PaperLFGTrainConfig, generator: torch.Generator) -> PlaneChange:
        """Gaussian noise on the identity and on the spline's weights."""
        control = control_points(config.spline_points)
        matrix = torch.eye(2, 3) + config.affine_noise * torch.randn(batch, 2, 3, generator=generator)
        weights = config.spline_noise * torch.randn(batch, len(control), 2, generator=generator)
        return cls(matrix, weights, control)

    def to(self, device: torch.device) -> PlaneChange:
        """Move all tensors to a device."""
        return PlaneChange(*(x.to(device) for x in self))

    def move(self, points: Tensor) -> Tensor:
        """Where positions (B or 1, N, 2) of the changed picture lie in the original, (B, N, 2)."""
        squared = (points[:, :, None] - self.control).square().sum(-1).clamp_min(SMALLEST)
        straight = points @ self.matrix[..., :2].mT + self.matrix[:, None, :, 2]
        return straight + (0.5 * squared * squared.log()) @ self.weights

    def jacobian(self, points: Tensor) -> Tensor:
        """Derivative of ``move`` at (B, N, 2): (B, N, 2, 2)."""
        offset = points[:, :, None] - self.control
        slope = offset * (offset.square().sum(-1, keepdim=True).clamp_min(SMALLEST).log() + 1)
        return self.matrix[:, None, :, :2] + self.weights.mT[:, None] @ slope

    def apply(self, images: Tensor) -> Tensor:
        """The changed pictures (B, 3, R, R); what lies outside is mirrored."""
        height, width = images.shape[2:]
        grid = self.move(published_grid(height, width, images).view(1, -1, 2))
        return sample(images, grid.view(-1, height, width, 2), "reflection")


def control_points(side: int) -> Tensor:
    """A square of side^2 points (P, 2) over the whole picture."""
    return published_grid(side, side, torch.zeros(())).reshape(-1, 2)


def equivariance(made: PaperResult, change: PlaneChange) -> tuple[Tensor, Tensor]:
    """How far the regions of the changed driving picture, carried back, are from those of the original: shift, affine."""
    assert made.changed is not None
    shift = (made.driving.shift - change.move(made.changed.shift)).abs().mean()
    carried = multiply_2x2(change.jacobian(made.changed.shift), made.changed.affine)
    ratio = multiply_2x2(invert_2x2(made.driving.affine), carried)
    ratio = torch.where(ratio[..., :1, :1] < 0, -ratio, ratio)  # axes have no sign, see sparse_motions
    eye = torch.eye(2, device=ratio.device, dtype=ratio.dtype)
    return shift, (eye - ratio).abs().mean()


def jitter_colour(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue changed by up to ``strength``, one draw a sample. (B, F, 3, H, W) in [0, 1]."""
    draw = strength * (2 * torch.rand(4, len(images), generator=generator) - 1)
    brightness, contrast, saturation = (1 + draw[:3])[..., None, None, None]
    turn = 2 * math.pi * draw[3, :, None, None, None]
    matrix = torch.tensor(LUMA_CHROMA)
    luma, i, q = torch.einsum("cd,bfdhw->cbfhw", matrix, images)
    mean = luma.mean((1, 2, 3), keepdim=True)
    luma = mean + contrast * (luma - mean)
    i, q = saturation * (turn.cos() * i - turn.sin() * q), saturation * (turn.sin() * i + turn.cos() * q)
    changed = torch.einsum("cd,dbfhw->bfchw", torch.linalg.inv(matrix), torch.stack((luma, i, q)))
    return (brightness[..., None] * changed).clamp(0, 1)


def frame_pairs(store: ClipStore, count: int, size: int, jitter: float, generator: torch.Generator) -> Tensor:
    """Random pairs of frames of one clip, (B, 2, 3, size, size): in order or swapped, mirrored or not, colours changed."""
    pairs = []
    for clip in store.draw(count, generator):
        first, second = sorted(torch.randint(len(clip), (2,), generator=generator).tolist())
        pairs.append(_resize(clip.frames([first, second]), size))
    images = torch.stack(pairs)
    swap, mirror = (torch.rand(2, count, generator=generator) < 0.5)[..., None, None, None, None]
    images = torch.where(swap, images.flip(1), images)
    images = torch.where(mirror, images.flip(-1), images)
    return jitter_colour(images, jitter, generator)


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)


class PaperLFGBatch(NamedTuple):
    """images (B, 2, 3, R, R): source and driving; changed (B, 3, R, R): the driving picture after ``change``."""

    images: Tensor
    changed: Tensor
    change: PlaneChange


class PaperLFGRecipe(Recipe):
    """Feature pyramid and equivariance, no adversary."""

    part = "lfg"
    betas = (0.5, 0.999)

    def __init__(
        self,
        config: PaperLFGTrainConfig,
        model: PaperLFGConfig,
        data: Path,
        validation: Path | None,
        features: FeatureNet | None = None,
    ) -> None:
        """features: what pictures are compared by; SFace if None.

        Raises InputError without clips, CheckpointError if SFace or the weights to start from cannot be used.
        """
        self.config, self.model_config = config, model
        self.store = ClipStore(data)
        self.validation = ClipStore(validation) if validation else None
        self.features = features or SFaceFeatures(load_sface())
        self._validation_pairs: Tensor | None = None
        torch.manual_seed(config.seed)
        network = PaperLFG(model)
        if config.start:
            load_into(network, read_weights(Path(config.start)), config.start)
        self.networks = {"main": network}
        self.learning_rates = {"main": 1.0}

    def batch(self, generator: torch.Generator) -> PaperLFGBatch:
        """Draw pairs of frames, and change the driving picture at random."""
        config = self.config
        images = frame_pairs(self.store, config.batch, self.model_config.image_size_px, config.colour_jitter, generator)
        change = PlaneChange.draw(len(images), config, generator)
        return PaperLFGBatch(images, change.apply(images[:, 1]), change)

    def losses(
        self, networks: dict[str, nn.Module], batch: PaperLFGBatch, step: int
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Compute the perceptual and both equivariance losses of a batch."""
        config, device = self.config, next(networks["main"].parameters()).device
        if isinstance(self.features, nn.Module):
            self.features.to(device)
        images = batch.images.to(device)
        made: PaperResult = networks["main"](images[:, 0], images[:, 1], batch.changed.to(device))
        perceptual = perceptual_pyramid(self.features, made.decoded.frame, images[:, 1], config.pyramid_levels)
        with torch.autocast(device.type, enabled=False):  # positions and axes need all their digits
            shift, affine = equivariance(made, batch.change.to(device))
        loss = config.perceptual_weight * perceptual + config.shift_weight * shift + config.affine_weight * affine
        figures = {"loss": loss, "perceptual": perceptual, "shift": shift, "affine": affine}
        figures["occlusion"] = made.flow.occlusion.mean()
        return [("main", loss, {key: value.detach() for key, value in figures.items()})]

    def _pairs(self) -> Tensor | None:
        """Each validation clip's first frame and its widest mouth change, (clips, 2, 3, R, R)."""
        if self.validation is not None and self._validation_pairs is None:
            size = self.model_config.image_size_px
            clips = self.validation.clips
            self._validation_pairs = torch.stack([_resize(c.frames(list(widest_mouth_pair(c))), size) for c in clips])
        return self._validation_pairs

    def _render(self, network: nn.Module, pairs: Tensor) -> list[PaperResult]:
        device = next(network.parameters()).device
        return [network(images[:, 0], images[:, 1]) for images in pairs.to(device).split(RENDER_BATCH)]

    def validate(self, network: nn.Module) -> dict[str, float]:
        """PSNR of the rebuilt driving frames, with the do-nothing baseline."""
        pairs = self._pairs()
        if pairs is None:
            return {}
        made = torch.cat([result.decoded.frame for result in self._render(network, pairs)]).cpu()
        return {"psnr": _psnr(made, pairs[:, 1]), "psnr_repeat": _psnr(pairs[:, 0], pairs[:, 1])}

    def sheet(self, network: nn.Module) -> np.ndarray | None:
        """Rows: source, driving, frame, the decoder's own picture, occlusion."""
        pairs = self._pairs()
        if pairs is None:
            return None
        chosen = pairs[:: max(1, len(pairs) // 10)]
        results = self._render(network, chosen)
        frames, painted = (
            torch.cat([getattr(r.decoded, name) for r in results]).cpu() for name in ("frame", "painted")
        )
        occlusion = F.interpolate(torch.cat([r.flow.occlusion for r in results]).cpu(), frames.shape[-2:])
        return contact_sheet([chosen[:, 0], chosen[:, 1], frames, painted, occlusion.expand(-1, 3, -1, -1)])

    def export(self, network: nn.Module, folder: Path) -> None:
        """Save the network."""
        save_part(folder, self.part, network, self.model_config)


def _psnr(a: Tensor, b: Tensor) -> float:
    error = (a - b).square().flatten(1).mean(1)
    return float((-10 * error.clamp_min(1e-10).log10()).mean())
