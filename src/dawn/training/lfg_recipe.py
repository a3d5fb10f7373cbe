"""Training the latent flow generator on pairs of frames of one clip (paper section 3.2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dawn import landmarks as lm
from dawn.checkpoint import save_part
from dawn.config import LFGConfig
from dawn.models.face_features import load_sface
from dawn.models.lfg import Decoded, LatentFlowGenerator
from dawn.models.regions import GUIDE_CONTOURS, draw_contours
from dawn.training.data import (
    ClipStore,
    PairBatch,
    contact_sheet,
    load_mean_face,
    mirror_permutation,
    pair_batch,
    widest_mouth_pair,
)
from dawn.training.loop import Recipe, TrainConfig
from dawn.training.losses import (
    FacePerceptualLoss,
    PatchDiscriminator,
    discriminator_hinge,
    generator_hinge,
    region_weight,
    weighted_l1_pyramid,
)


class LFGTrainConfig(TrainConfig):
    """Weights of the losses and the steps at which they enter."""

    steps: int = Field(2000, ge=1)
    lr: float = 6e-4
    grad_clip: float = 5.0
    mouth_weight: float = 15.0
    eye_weight: float = 20.0
    painted_weight: float = 0.5
    """Share of the pixel loss on the decoder's own picture: without it occlusion goes to 1 and nothing is painted."""
    perceptual_weight: float = 0.5
    perceptual_from: int = 600
    adversarial_weight: float = 0.06
    adversarial_from: int = 1050
    discriminator_lr: float = 0.5


class LFGRecipe(Recipe):
    """Pixel pyramid from the start, face-perceptual loss and patch adversary once the pixels have settled."""

    part = "lfg"
    betas = (0.8, 0.99)

    def __init__(self, config: LFGTrainConfig, model: LFGConfig, data: Path, validation: Path | None) -> None:
        self.config, self.model_config = config, model
        self.store = ClipStore(data)
        self.validation = ClipStore(validation) if validation else None
        self.permutation = mirror_permutation(load_mean_face())
        torch.manual_seed(config.seed)
        generator = LatentFlowGenerator(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        discriminator = PatchDiscriminator(len(GUIDE_CONTOURS)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.networks = {"main": generator, "discriminator": discriminator}
        self.learning_rates = {"main": 1.0, "discriminator": config.discriminator_lr}
        self.perceptual = FacePerceptualLoss(load_sface()) if config.perceptual_weight else None
        self._validation_pairs: PairBatch | None = None

    def batch(self, generator: torch.Generator) -> PairBatch:
        size = self.model_config.image_size_px
        return pair_batch(self.store, self.config.batch, size, self.permutation, generator)

    def losses(
        self, networks: dict[str, nn.Module], batch: PairBatch, step: int
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        config, device = self.config, next(networks["main"].parameters()).device
        images, landmarks = batch.images.to(device), batch.landmarks.to(device)
        target = images[:, 1].contiguous(memory_format=torch.channels_last)
        source = images[:, 0].contiguous(memory_format=torch.channels_last)
        made: Decoded = networks["main"](source, landmarks[:, 0], landmarks[:, 1])
        contours = draw_contours(landmarks[:, 1, :, :2], 2 * self.model_config.flow_cells)
        weight = region_weight(contours, target.shape[-1], config.mouth_weight, config.eye_weight)
        pixel = weighted_l1_pyramid(made.frame, target, weight)
        painted = weighted_l1_pyramid(made.painted, target, weight)
        loss = pixel + config.painted_weight * painted
        parts = {"pixel": pixel.detach(), "painted": painted.detach(), "occlusion": made.flow.occlusion.mean().detach()}
        if self.perceptual is not None and step >= config.perceptual_from:
            self.perceptual.to(device)
            perceptual = self.perceptual(made.frame, target, landmarks[:, 1])
            loss = loss + config.perceptual_weight * perceptual
            parts["perceptual"] = perceptual.detach()
        if not config.adversarial_weight or step < config.adversarial_from:
            return [("main", loss, parts)]
        return self._adversarial(networks, made, target, contours, weight, loss, parts)

    def _adversarial(self, networks: dict[str, nn.Module], made: Decoded, target: Tensor, contours: Tensor,
                     weight: Tensor, loss: Tensor, parts: dict[str, Tensor],
                     ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:  # fmt: skip
        discriminator = networks["discriminator"]
        patch_weight = F.avg_pool2d(weight, 8)
        discriminator.requires_grad_(False)
        adversary = generator_hinge(discriminator(made.frame, contours), patch_weight)
        discriminator.requires_grad_(True)
        loss = loss + self.config.adversarial_weight * adversary
        parts["adversary"] = adversary.detach()
        real, fake = discriminator(target, contours), discriminator(made.frame.detach(), contours)
        critic = discriminator_hinge(real, fake, patch_weight)
        return [("main", loss, parts), ("discriminator", critic, {"critic": critic.detach()})]

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
        pairs = self._pairs()
        if pairs is None:
            return None
        pick = slice(None, None, max(1, len(pairs.images) // 10))
        chosen = PairBatch(pairs.images[pick], pairs.landmarks[pick])
        device = next(network.parameters()).device
        images, points = chosen.images.to(device), chosen.landmarks.to(device)
        out = network(images[:, 0], points[:, 0], points[:, 1])
        occlusion = F.interpolate(out.flow.occlusion, images.shape[-2:]).expand(-1, 3, -1, -1)
        return contact_sheet([x.cpu() for x in (images[:, 0], images[:, 1], out.frame, out.painted, occlusion)])

    def export(self, network: nn.Module, folder: Path) -> None:
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
