"""Losses of the latent flow generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dawn.models.blocks import resize
from dawn.models.judges.sface import SFace, align_to_arcface


def region_weight(contours: Tensor, size: int, mouth: float, eyes: float) -> Tensor:
    """Pixel weights (B, 1, size, size): 1, more around the mouth and the eyes. contours: (B, 4, h, w), see regions."""
    spread = F.max_pool2d(contours, 5, 1, 2)
    spread = F.avg_pool2d(spread, 5, 1, 2)
    weight = 1 + mouth * spread[:, :2].amax(1, keepdim=True) + eyes * spread[:, 2:].amax(1, keepdim=True)
    return resize(weight, size, size)


def weighted_l1_pyramid(image: Tensor, target: Tensor, weight: Tensor, levels: int = 3) -> Tensor:
    """Mean weighted L1 over an image pyramid, plus L1 of finite differences at full size, which keeps edges crisp."""
    loss = torch.zeros((), device=image.device)
    dx = (image - target)[..., :, 1:] - (image - target)[..., :, :-1]
    dy = (image - target)[..., 1:, :] - (image - target)[..., :-1, :]
    loss = loss + 0.5 * ((dx.abs() * weight[..., :, 1:]).mean() + (dy.abs() * weight[..., 1:, :]).mean())
    for _ in range(levels):
        loss = loss + ((image - target).abs() * weight).mean() / weight.mean()
        image, target, weight = (F.avg_pool2d(x, 2) for x in (image, target, weight))
    return loss


def crispness_error(made: Tensor, true: Tensor) -> Tensor:
    """Mean squared difference of the logarithm of pictures' gradient energy, (N, C, H, W) both.

    It says how crisp a picture is, and not where its edges lie: painters that only learn from pixels and verdicts stay soft.
    """

    def log_energy(image: Tensor) -> Tensor:
        grey = image.float().mean(1)
        return (grey.diff(dim=-1).square().mean((1, 2)) + grey.diff(dim=-2).square().mean((1, 2)) + 1e-5).log()

    return (log_energy(made) - log_energy(true)).square().mean()


class FacePerceptualLoss(nn.Module):
    """L1 between SFace feature maps of aligned faces (paper: VGG; SFace knows faces and is freely licensed)."""

    def __init__(self, network: SFace, layers: tuple[int, ...] = (1, 2, 3), size_px: int = 80) -> None:
        """layers: stage 0 mostly repeats the pixels. size_px: smaller than SFace's own 112, for speed."""
        super().__init__()
        self.network, self.layers, self.size_px = network, layers, size_px

    def forward(self, image: Tensor, target: Tensor, landmarks: Tensor) -> Tensor:
        """image, target (B, 3, H, W) in [0, 1]; landmarks (B, 478, 3) of both."""
        made = self.network.features(self._face(image, landmarks), self.layers)
        with torch.no_grad():
            true = self.network.features(self._face(target, landmarks), self.layers)
        return torch.stack([(a - b).abs().mean() / b.abs().mean() for a, b in zip(made, true, strict=True)]).mean()

    def _face(self, image: Tensor, landmarks: Tensor) -> Tensor:
        face = align_to_arcface(image, landmarks)
        return F.interpolate(face, (self.size_px, self.size_px), mode="bilinear", antialias=True)


class PatchDiscriminator(nn.Module):
    """Judges patches of a picture, told where lips and eyes should be. (B, 3 + G, H, W) -> (B, 1, H/8, W/8)."""

    def __init__(self, guides: int, width: int = 32) -> None:
        super().__init__()
        sn = nn.utils.parametrizations.spectral_norm
        self.layers = nn.Sequential(
            sn(nn.Conv2d(3 + guides, width, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            sn(nn.Conv2d(width, 2 * width, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            sn(nn.Conv2d(2 * width, 4 * width, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            sn(nn.Conv2d(4 * width, 1, 3, 1, 1)),
        )

    def forward(self, image: Tensor, contours: Tensor) -> Tensor:
        """Judge patches of pictures (B, 3, H, W) in [0, 1], shown with their contours."""
        return self.layers(torch.cat((image * 2 - 1, resize(contours, image.shape[2], image.shape[3])), 1))


class WindowDiscriminator(nn.Module):
    """Judges a window around mouth or eye (B, C, h, w), told what it knows; gives the layers' answers, the verdict last."""

    def __init__(self, in_channels: int, width: int = 48) -> None:
        super().__init__()
        sn = nn.utils.parametrizations.spectral_norm
        sizes = (
            (in_channels, width, 4, 2),
            (width, 2 * width, 4, 2),
            (2 * width, 3 * width, 3, 1),
            (3 * width, 1, 3, 1),
        )
        self.layers = nn.ModuleList(sn(nn.Conv2d(i, o, kernel, stride, 1)) for i, o, kernel, stride in sizes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Give the answers of all layers for windows (B, C, h, w), the verdict last."""
        answers: list[Tensor] = []
        for layer in self.layers:
            x = layer(F.leaky_relu(answers[-1], 0.2) if answers else x * 2 - 1)
            answers.append(x)
        return answers


def feature_matching(fake: list[Tensor], real: list[Tensor]) -> Tensor:
    """Mean L1 between a discriminator's hidden answers, relative to the real ones' size."""
    terms = [(a - b.detach()).abs().mean() / b.detach().abs().mean() for a, b in zip(fake[:-1], real[:-1], strict=True)]
    return torch.stack(terms).mean()


def discriminator_hinge(real: Tensor, fake: Tensor, weight: Tensor) -> Tensor:
    """Hinge loss of the discriminator, patches weighted (B, 1, h, w)."""
    return ((F.relu(1 - real) + F.relu(1 + fake)) * weight).mean() / weight.mean()


def generator_hinge(fake: Tensor, weight: Tensor) -> Tensor:
    """Hinge loss of the generator."""
    return -(fake * weight).mean() / weight.mean()
