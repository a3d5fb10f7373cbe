"""SFace: 128 numbers that say who a face is, and inner feature maps for a face-perceptual loss.

Source: Zhong et al., "SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition", IEEE TIP 2021; network
and weights as published in the OpenCV Zoo (Apache-2.0). It is a MobileNet-V1 without the first stride: one 3x3
convolution, then thirteen pairs of depthwise 3x3 and pointwise 1x1 convolution, every one followed by a PReLU. The
published batch normalisations are folded into the convolutions by ``tools/convert_sface.py``, so they are absent here.

::

    faces (B, 3, 112, 112) RGB 0..255, aligned by ``align_to_arcface``
      stage 0   64 @ 112     stage 1  128 @ 56     stage 2  256 @ 28     stage 3  512 @ 14     stage 4  1024 @ 7
      head      (B, 128)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FACE_SIZE_PX = 112
EMBEDDING_SIZE = 128

STAGE_CHANNELS = ((32, 64), (128, 128), (256, 256), (512, 512, 512, 512, 512, 512), (1024, 1024))
"""Output channels of every block, stage by stage; each stage but the first halves the picture in its first block."""

_PIXEL_CENTER = 127.5
_PIXEL_SCALE = 1.0 / 128.0

ARCFACE_POINTS_PX = ((38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20))
"""Where a recogniser of the ArcFace family expects eyes, nose tip and mouth corners, image left first.

Pixel centres are whole numbers.
"""

FIVE_POINTS = ((33, 133), (362, 263), (1, 1), (61, 61), (291, 291))
"""The same five points as means of two face-mesh landmarks. Eye corners and not irises: they ignore gaze and blinks."""


class ConvPReLU(nn.Module):
    """3x3 (or 1x1) convolution with bias, then PReLU with one slope a channel."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out h w"]:
        """Reduce height and width by the stride."""
        return self.act(self.conv(x))


def _build_stages() -> nn.ModuleList:
    stages = nn.ModuleList()
    channels = 3
    for index, widths in enumerate(STAGE_CHANNELS):
        units: list[nn.Module] = []
        for position, width in enumerate(widths):
            if channels == 3:
                units.append(ConvPReLU(channels, width, 3))
            else:
                stride = 2 if index > 0 and position == 0 else 1
                units.append(ConvPReLU(channels, channels, 3, stride, groups=channels))
                units.append(ConvPReLU(channels, width, 1))
            channels = width
        stages.append(nn.Sequential(*units))
    return stages


class SFace(nn.Module):
    """The SFace recogniser. Parameters are ordinary ones; ``measures.sface`` loads and freezes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = _build_stages()
        last_px = FACE_SIZE_PX // 2 ** (len(STAGE_CHANNELS) - 1)
        self.head = nn.Linear(STAGE_CHANNELS[-1][-1] * last_px**2, EMBEDDING_SIZE)

    def features(
        self, faces: Float[Tensor, "B 3 H W"], layers: Sequence[int] = range(len(STAGE_CHANNELS))
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Compute inner feature maps, no deeper than the deepest one asked for.

        Args:
            faces: RGB 0..255, of 112 px. Smaller ones work too, with smaller maps; only ``embed`` needs 112 px.
            layers: Stage numbers 0..4; negative ones count from the end.

        Returns:
            One map (B, C, h, w) per entry of ``layers``, in that order.

        Raises:
            IndexError: A stage does not exist.
        """
        wanted = [range(len(self.stages))[layer] for layer in layers]
        maps: list[Tensor] = []
        x = (faces - _PIXEL_CENTER) * _PIXEL_SCALE
        for stage in self.stages[: max(wanted, default=-1) + 1]:
            x = stage(x)
            maps.append(x)
        return [maps[layer] for layer in wanted]

    def embed(self, last_map: Float[Tensor, "B 1024 7 7"]) -> Float[Tensor, "B 128"]:
        """Turn the last stage's map into the embedding, for callers that want both from one pass."""
        return self.head(last_map.flatten(1))

    def forward(self, faces: Float[Tensor, "B 3 112 112"]) -> Float[Tensor, "B 128"]:
        """Embed faces, RGB 0..255. Embeddings are not normalised: compare them by cosine."""
        return self.embed(self.features(faces, (-1,))[0])


def five_points(landmarks: Float[Tensor, "B 478 _"]) -> Float[Tensor, "B 5 2"]:
    """Pick eyes, nose tip and mouth corners from face-mesh landmarks, in the order of ``ARCFACE_POINTS_PX``."""
    index = torch.tensor(FIVE_POINTS, device=landmarks.device)
    return landmarks[:, index, :2].mean(2)


def fit_similarity(
    source: Float[Tensor, "B P 2"], target: Float[Tensor, "B P 2"]
) -> tuple[Float[Tensor, "B 2 2"], Float[Tensor, "B 2"]]:
    """Fit rotation, scale and shift that carry ``source`` points to ``target`` points, by least squares, without reflection.

        target = matrix @ source + shift

    Seen as complex numbers, the matrix is multiplication by sum(conj(s) t) / sum(|s|^2) of the centred points. That is
    Umeyama's solution (IEEE PAMI 1991) for the plane, without a singular value decomposition and its gradient.
    """
    source_mean, target_mean = source.mean(1), target.mean(1)
    s, t = source - source_mean[:, None], target - target_mean[:, None]
    # The clamp keeps points that coincide (a tracker's failure) from turning a whole batch into NaN.
    norm = s.square().sum((1, 2)).clamp_min(1e-12)
    real = (s * t).sum((1, 2)) / norm
    imag = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(1) / norm
    matrix = torch.stack((torch.stack((real, -imag), 1), torch.stack((imag, real), 1)), 1)
    return matrix, target_mean - (matrix @ source_mean[..., None])[..., 0]


def align_to_arcface(
    images: Float[Tensor, "B 3 H W"], landmarks: Float[Tensor, "B 478 _"]
) -> Float[Tensor, "B 3 112 112"]:
    """Cut faces out the way face recognisers expect them. Differentiable in the images and in the landmarks.

    Args:
        images: RGB in [0, 1].
        landmarks: In crop units.

    Returns:
        RGB 0..255. What lies outside the picture is black, as in the recogniser's training.
    """
    height, width = images.shape[-2:]
    # Through pixels, so that a picture that is not square is still turned without shear.
    half = images.new_tensor((width / 2, height / 2))
    template = images.new_tensor(ARCFACE_POINTS_PX).expand(len(images), -1, -1)
    points = five_points(landmarks).to(images.dtype) * half
    matrix, shift = fit_similarity(points, template)
    # Fitted towards the template, as all users of it do, and then inverted: sampling needs the way back. The inverse
    # of a similarity is its transpose over its squared scale.
    scale = matrix.square().sum((1, 2)).div(2).clamp_min(1e-12)
    inverse = matrix.transpose(1, 2) / scale[:, None, None]
    steps = torch.arange(FACE_SIZE_PX, device=images.device, dtype=images.dtype)
    pixels = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(1, -1, 2)
    grid = ((pixels - shift[:, None]) @ inverse.transpose(1, 2)) / half
    grid = grid.reshape(-1, FACE_SIZE_PX, FACE_SIZE_PX, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False) * 255.0
