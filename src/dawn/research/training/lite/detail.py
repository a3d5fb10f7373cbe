"""Training a detail painter on a frozen latent flow generator: all effort goes to mouth and eyes.

The painter is the generator's own (stage "detail"), or that of its fine stage (stage "fine"), which works at twice the size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dawn.config import LFGConfig
from dawn.errors import ConfigError
from dawn.models.lite.detail import ORGANS, DetailPainter, Organ
from dawn.models.lite.lfg import LatentFlowGenerator
from dawn.research.training.data import PairBatch, contact_sheet, pair_batch, pick_opening_pair
from dawn.research.training.frozen import load_generator, render_frozen
from dawn.research.training.loop import TrainConfig
from dawn.research.training.losses import (
    WindowDiscriminator,
    crispness_error,
    discriminator_hinge,
    feature_matching,
    generator_hinge,
    weighted_l1_pyramid,
)
from dawn.research.training.pairs import PairRecipe

SHEET_PX = 64
"""Side of the windows on contact sheets."""


class DetailTrainConfig(TrainConfig):
    """Weights of the losses; ``start`` names the generator that is frozen."""

    steps: int = Field(5000, ge=1)
    batch: int = Field(16, ge=1)
    lr: float = 1e-3
    grad_clip: float = 5.0
    start: str = ""
    """``lfg.safetensors`` of a trained generator, with or without a painter."""
    opening_weight: float = 6.0
    """Pixel weight inside the lips' and lids' openings, against 1 elsewhere in the window."""
    pixel_weight: float = 1.0
    matching_weight: float = 0.5
    crispness_weight: float = 0.0
    """Of the windows' gradient energy, see ``crispness_error``."""
    adversarial_weight: float = 0.1
    adversarial_from: int = 200
    discriminator_lr: float = 0.5


class DetailRecipe(PairRecipe):
    """Window pixels, feature matching and an adversary per organ, on pairs that open mouths and shut eyes."""

    betas = (0.5, 0.99)

    def __init__(
        self,
        config: DetailTrainConfig,
        model: LFGConfig,
        data: Path,
        validation: Path | None,
        stage: Literal["detail", "fine"] = "detail",
    ) -> None:
        """Raises ConfigError without a painter or a generator to start from, CheckpointError if it does not fit."""
        super().__init__(model, data, validation)
        self.config, self.stage = config, stage
        torch.manual_seed(config.seed)
        generator = LatentFlowGenerator(model)
        if painter_of(generator, stage) is None:
            raise ConfigError(f"model.{stage} has no painter, so there is nothing to train; give it one")
        if stage == "detail" and model.fine is not None:
            raise ConfigError("model.fine is set: train the painter of the decoded size first, with model.fine=null")
        if not config.start:
            raise ConfigError(f"training {stage} needs a trained generator: set start=RUN/lfg.safetensors")
        self.frozen = load_generator(generator, Path(config.start), stage)
        critics = {"mouth": WindowDiscriminator(3 + 2 + 5), "eye": WindowDiscriminator(3 + 1 + 4)}
        self.networks = {
            "main": generator.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
            "discriminator": Critics(critics),
        }
        self.learning_rates = {"main": 1.0, "discriminator": config.discriminator_lr}

    def batch(self, generator: torch.Generator) -> PairBatch:
        """Draw pairs of frames, mostly from a shut mouth to an open one or from open eyes to shut ones."""
        size = self.model_config.image_size_px
        return pair_batch(self.store, self.config.batch, size, self.permutation, generator, pick_opening_pair)

    def losses(
        self, networks: dict[str, nn.Module], batch: PairBatch, step: int
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Compute the losses of the painter and of its discriminators."""
        config = self.config
        main, critics = networks["main"], networks["discriminator"]
        device = next(main.parameters()).device
        images, landmarks = batch.images.to(device), batch.landmarks.to(device)
        generator = getattr(main, "module", main)  # several processes wrap it
        assert isinstance(generator, LatentFlowGenerator)
        generator.eval()  # the frozen part keeps its batch statistics
        painter = painter_of(generator, self.stage)
        assert painter is not None
        painter.train()
        made, seen = self._render(painter, images[:, 0].contiguous(memory_format=torch.channels_last), landmarks)
        loss, critic = torch.zeros((), device=device), torch.zeros((), device=device)
        parts: dict[str, Tensor] = {}
        adversarial = step >= config.adversarial_from
        for kind in ("mouth", "eye"):
            fake, real, known = self._windows(painter, kind, made, images[:, 1], landmarks[:, 1], seen)
            weight = weigh_contours(known[:, : 2 if kind == "mouth" else 1], config.opening_weight)
            pixel = weighted_l1_pyramid(fake, real, weight, 2)
            loss = loss + config.pixel_weight * pixel
            parts[f"{kind}_pixel"] = pixel.detach()
            if config.crispness_weight:
                crispness = crispness_error(fake, real)
                loss = loss + config.crispness_weight * crispness
                parts[f"{kind}_crispness"] = crispness.detach()
            if not adversarial:
                continue
            critics.requires_grad_(False)
            answers = critics(kind, torch.cat((fake, known), 1))
            truth = critics(kind, torch.cat((real, known), 1))
            critics.requires_grad_(True)
            patches = F.adaptive_avg_pool2d(weight, answers[-1].shape[-2:])
            adversary, matching = generator_hinge(answers[-1], patches), feature_matching(answers, truth)
            loss = loss + config.adversarial_weight * adversary + config.matching_weight * matching
            real_verdict = critics(kind, torch.cat((real, known), 1))[-1]
            fake_verdict = critics(kind, torch.cat((fake.detach(), known), 1))[-1]
            hinge = discriminator_hinge(real_verdict, fake_verdict, patches)
            critic = critic + hinge
            parts |= {f"{kind}_matching": matching.detach(), f"{kind}_critic": hinge.detach()}
        updates = [("main", loss, parts)]
        if adversarial:
            updates.append(("discriminator", critic, {}))
        return updates

    def _render(self, painter: DetailPainter, source: Tensor, landmarks: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Frames (B, 3, S, S) with gradients of the painter only, and what the source shows of each organ."""
        _, base = render_frozen(self.frozen, source, landmarks)
        with torch.no_grad():
            seen = painter.look(source, landmarks[:, 0])
        return painter(base.frame, landmarks[:, 1], seen), seen

    def _windows(
        self, painter: DetailPainter, kind: str, made: Tensor, true: Tensor, landmarks: Tensor, seen: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Windows of one kind of organ, mirrored ones turned: made, true (N, 3, h, w), contours and source (N, C, h, w)."""
        fake: list[Tensor] = []
        real: list[Tensor] = []
        known: list[Tensor] = []
        for organ, source in zip(ORGANS, seen, strict=True):
            if organ.painter != kind:
                continue
            window = painter.place(organ, landmarks)
            context = torch.cat((painter.draw(organ, landmarks, window), source), 1)
            for out, value in ((fake, window.cut(made)), (real, window.cut(true)), (known, context)):
                out.append(_turn(organ, value))
        return torch.cat(fake), torch.cat(real), torch.cat(known)

    def sheet(self, network: nn.Module) -> np.ndarray | None:
        """The usual sheet, and the mouths of many validation pairs enlarged: source, truth, made."""
        usual, pairs = super().sheet(network), self._pairs()
        if usual is None or pairs is None:
            return None
        pick = slice(None, None, max(1, len(pairs.images) // 20))
        images, points = pairs.images[pick], pairs.landmarks[pick]
        made = network(images[:, 0], points[:, 0], points[:, 1]).frame
        assert isinstance(network, LatentFlowGenerator)
        painter, rows = painter_of(network, self.stage), []
        assert painter is not None
        for organ in ORGANS[:2]:
            for image, place in ((images[:, 0], 0), (images[:, 1], 1), (made, 1)):
                window = painter.place(organ, points[:, place])
                rows.append(F.interpolate(window.cut(image), (SHEET_PX, SHEET_PX), mode="bilinear"))
        windows = contact_sheet(rows)
        width = max(usual.shape[1], windows.shape[1])
        return np.concatenate([np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0))) for x in (usual, windows)])


def painter_of(network: LatentFlowGenerator, stage: str) -> DetailPainter | None:
    """Find the painter of a stage that this recipe trains, if the generator has it."""
    if stage == "detail":
        return network.detail
    painter = network.fine.painter if network.fine else None
    return painter if isinstance(painter, DetailPainter) else None


class Critics(nn.Module):
    """The discriminators of all kinds of organs under one roof."""

    def __init__(self, critics: dict[str, WindowDiscriminator]) -> None:
        super().__init__()
        self.critics = nn.ModuleDict(critics)

    def forward(self, kind: str, x: Tensor) -> list[Tensor]:
        """Judge windows (B, C, h, w) of one kind of organ."""
        return self.critics[kind](x)


def _turn(organ: Organ, x: Tensor) -> Tensor:
    return x.flip(-1) if organ.mirrored else x


def weigh_contours(contours: Tensor, opening: float) -> Tensor:
    """Pixel weights (N, 1, h, w) from contours (N, G, h, w), the opening first: 1 elsewhere."""
    spread = F.avg_pool2d(F.max_pool2d(contours, 5, 1, 2), 3, 1, 1)
    weight = 1 + opening * spread[:, :1]
    return weight + 2 * spread[:, 1:] if contours.shape[1] > 1 else weight
