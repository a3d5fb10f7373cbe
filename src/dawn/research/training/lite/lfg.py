"""Training the latent flow generator on pairs of frames of one clip (paper section 3.2)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dawn.config import LFGConfig
from dawn.errors import ConfigError
from dawn.measures.sface import load_sface
from dawn.models.lite.lfg import Decoded, LatentFlowGenerator
from dawn.models.lite.regions import GUIDE_CONTOURS, draw_contours
from dawn.research.training.data import PairBatch, pair_batch
from dawn.research.training.loop import TrainConfig
from dawn.research.training.losses import (
    FacePerceptualLoss,
    PatchDiscriminator,
    discriminator_hinge,
    generator_hinge,
    region_weight,
    weighted_l1_pyramid,
)
from dawn.research.training.pairs import PairRecipe


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


class LFGRecipe(PairRecipe):
    """Pixel pyramid from the start, face-perceptual loss and patch adversary once the pixels have settled."""

    betas = (0.8, 0.99)

    def __init__(self, config: LFGTrainConfig, model: LFGConfig, data: Path, validation: Path | None) -> None:
        if model.fine is not None:
            raise ConfigError("model.fine is set: the generator is trained at the decoded size, with model.fine=null")
        super().__init__(model, data, validation)
        self.config = config
        torch.manual_seed(config.seed)
        generator = LatentFlowGenerator(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        discriminator = PatchDiscriminator(len(GUIDE_CONTOURS)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.networks = {"main": generator, "discriminator": discriminator}
        self.learning_rates = {"main": 1.0, "discriminator": config.discriminator_lr}
        self.perceptual = FacePerceptualLoss(load_sface()) if config.perceptual_weight else None

    def batch(self, generator: torch.Generator) -> PairBatch:
        """Draw pairs of frames of the same clip."""
        size = self.model_config.image_size_px
        return pair_batch(self.store, self.config.batch, size, self.permutation, generator)

    def losses(
        self, networks: dict[str, nn.Module], batch: PairBatch, step: int
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Compute pixel and perceptual losses of a batch, and the adversarial ones once their step has come."""
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

    def _adversarial(
        self,
        networks: dict[str, nn.Module],
        made: Decoded,
        target: Tensor,
        contours: Tensor,
        weight: Tensor,
        loss: Tensor,
        parts: dict[str, Tensor],
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
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
