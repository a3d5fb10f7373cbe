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

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dawn.errors import CheckpointError

FACE_SIZE_PX = 112
EMBEDDING_SIZE = 128

STAGE_CHANNELS = ((32, 64), (128, 128), (256, 256), (512, 512, 512, 512, 512, 512), (1024, 1024))
"""Output channels of every block, stage by stage; each stage but the first halves the picture in its first block."""

_PIXEL_CENTER = 127.5
_PIXEL_SCALE = 1.0 / 128.0

ARCFACE_POINTS_PX = ((38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20))
"""Where a recogniser of the ArcFace family expects eyes, nose tip and mouth corners, image left first (pixel centres
are whole numbers)."""

FIVE_POINTS = ((33, 133), (362, 263), (1, 1), (61, 61), (291, 291))
"""The same five points as means of two face-mesh landmarks. Eye corners and not irises: they ignore gaze and blinks."""


class ConvPReLU(nn.Module):
    """3x3 (or 1x1) convolution with bias, then PReLU with one slope a channel."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
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
    """The SFace recogniser. Parameters are ordinary ones; ``load_sface`` freezes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = _build_stages()
        last_px = FACE_SIZE_PX // 2 ** (len(STAGE_CHANNELS) - 1)
        self.head = nn.Linear(STAGE_CHANNELS[-1][-1] * last_px**2, EMBEDDING_SIZE)

    def features(self, faces: Tensor, layers: Sequence[int] = range(len(STAGE_CHANNELS))) -> list[Tensor]:
        """Inner feature maps, computed no deeper than the deepest one asked for.

        faces: (B, 3, 112, 112) RGB 0..255. layers: stage numbers 0..4 (negative ones count from the end).
        Returns one (B, C, h, w) per entry of ``layers``, in that order. Smaller faces work too (a loss at 80 px costs
        half as much), their maps are smaller accordingly; only ``embed`` needs 112 px.
        Raises: IndexError for a stage that does not exist.
        """
        wanted = [range(len(self.stages))[layer] for layer in layers]
        maps: list[Tensor] = []
        x = (faces - _PIXEL_CENTER) * _PIXEL_SCALE
        for stage in self.stages[: max(wanted, default=-1) + 1]:
            x = stage(x)
            maps.append(x)
        return [maps[layer] for layer in wanted]

    def embed(self, last_map: Tensor) -> Tensor:
        """The last stage's map (B, 1024, 7, 7) -> embedding (B, 128), for callers that want both from one pass."""
        return self.head(last_map.flatten(1))

    def forward(self, faces: Tensor) -> Tensor:
        """(B, 3, 112, 112) RGB 0..255 -> (B, 128) embedding, not normalised: compare by cosine."""
        return self.embed(self.features(faces, (-1,))[0])


def five_points(landmarks: Tensor) -> Tensor:
    """(B, 478, 2 or 3) face-mesh landmarks -> (B, 5, 2), in the order of ``ARCFACE_POINTS_PX``."""
    index = torch.tensor(FIVE_POINTS, device=landmarks.device)
    return landmarks[:, index, :2].mean(2)


def fit_similarity(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares rotation, scale and shift that carry ``source`` points to ``target`` points, without reflection.

    source, target: (B, P, 2). Returns ``matrix`` (B, 2, 2) and ``shift`` (B, 2) with target = matrix @ source + shift.
    Seen as complex numbers, the matrix is multiplication by sum(conj(s) t) / sum(|s|^2) of the centred points, which
    is Umeyama's solution (IEEE PAMI 1991) for the plane, free of the singular value decomposition and its gradient.
    """
    source_mean, target_mean = source.mean(1), target.mean(1)
    s, t = source - source_mean[:, None], target - target_mean[:, None]
    # The clamp keeps points that coincide (a tracker's failure) from turning a whole batch into NaN.
    norm = s.square().sum((1, 2)).clamp_min(1e-12)
    real = (s * t).sum((1, 2)) / norm
    imag = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(1) / norm
    matrix = torch.stack((torch.stack((real, -imag), 1), torch.stack((imag, real), 1)), 1)
    return matrix, target_mean - (matrix @ source_mean[..., None])[..., 0]


def align_to_arcface(images: Tensor, landmarks: Tensor) -> Tensor:
    """Cut faces out the way face recognisers expect them. Differentiable in the images and in the landmarks.

    images: (B, 3, H, W) in [0, 1]. landmarks: (B, 478, 2 or 3) in crop units.
    Returns (B, 3, 112, 112) RGB 0..255; what lies outside the picture is black, as in the recogniser's training.
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


def default_sface_path() -> Path:
    """``$DAWN_CACHE/sface.safetensors``, or the same file in ``~/.cache/dawn``."""
    return Path(os.environ.get("DAWN_CACHE") or Path.home() / ".cache" / "dawn") / "sface.safetensors"


def load_sface(path: str | Path | None = None) -> SFace:
    """Read converted weights; the network comes back frozen, in evaluation mode, float32, on the CPU.

    path: a file written by ``tools/convert_sface.py``; by default ``default_sface_path()``.
    Raises: CheckpointError if the file is missing, damaged or of another network.
    """
    path = Path(path) if path is not None else default_sface_path()
    remedy = "make them with tools/fetch_models.py sface and tools/convert_sface.py (docs/training.md)"
    if not path.is_file():
        raise CheckpointError(f"SFace weights not found: {path}; {remedy}")
    network = SFace()
    try:
        network.load_state_dict({name: value.float() for name, value in load_file(path).items()}, strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"SFace weights cannot be used: {path} ({reason}); {remedy}") from error
    return network.eval().requires_grad_(False)
