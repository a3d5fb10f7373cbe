"""The sync judge: do these lips go with this sound? A two-stream network in the manner of SyncNet.

    mouth pictures, 5 frames ── 2-D, then 1-D convolutions ──▶ unit vector ┐
                                                                           ├── Euclidean distance, 0 (fits) to 2
    sound, 7 frames ── log-mel ── 2-D and 1-D convolutions ──▶ unit vector ┘

Source of the idea: Chung and Zisserman 2016, "Out of time: automated lip sync in the wild". The network, its size and its
training (``research.training.sync``) are this project's own, so its figures compare with no other SyncNet's.

Every convolution over time is unpadded: a vector depends on its own frames and sound alone. Padding would tell both
streams where the clip begins and ends, and they would agree on that instead of on speech.

Shapes: B batch, T frames, S side of a mouth picture, E embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from dawn.config import SyncJudgeConfig
from dawn.errors import InputError
from dawn.face import mesh as lm
from dawn.face.geometry import POSE_SMOOTHING_FRAMES, apply_pose, remove_pose, smooth
from dawn.models.audio.features import log_mel
from dawn.models.blocks import identity_grid
from dawn.structs import LUMA

WINDOW_FRAMES = 5
"""Pictures that one vector sees."""
STEM_FRAMES = 3
"""Pictures that the first convolution sees together, because small motion shows at full size only."""
SOUND_MARGIN_FRAMES = 1
"""How far a window's sound reaches beyond its pictures on both sides."""
MEL_PEAK = 2.0
"""Usual loudest log10 power of speech, from which ``log_mel`` measures its floor; fixed, so that windows stay local."""
MAX_LAG_FRAMES = 10
MIN_WINDOWS = 5
"""A lag counts where at least this many windows of a clip have a partner."""
LEAST_REACH_FRAMES = 5
"""Least number of lags to either side; with fewer there is too little to compare with."""
MIN_CLIP_FRAMES = WINDOW_FRAMES + MIN_WINDOWS + LEAST_REACH_FRAMES

MOUTH_SIDE = 1.2
"""Side of the square that the judge sees, in distances of the outer eye corners: from under the nose to the chin."""
MOUTH_DROP = 0.08
"""How far below the lips the square's centre lies, same unit."""
CROP_BATCH = 64


class SyncJudge(nn.Module):
    """Both streams. Vectors have length 1.

    ``sharpness`` is the logarithm of the factor from cosines to logits; only training uses it.
    """

    def __init__(self, config: SyncJudgeConfig | None = None) -> None:
        super().__init__()
        self.config = config or SyncJudgeConfig()
        self.pictures = _PictureStream(self.config)
        self.sound = _SoundStream(self.config)
        self.sharpness = nn.Parameter(torch.tensor(self.config.start_sharpness).log())

    def see(self, mouths: Float[Tensor, "B T S S"]) -> Float[Tensor, "B T-4 E"]:
        """Embed grey mouth pictures in [0, 1], at least 5. Vector i sees the frames i to i + 4."""
        return F.normalize(self.pictures(mouths), dim=-1)

    def hear(self, samples: Float[Tensor, "B L"]) -> Float[Tensor, "B L//640-6 E"]:
        """Embed sound at 16 kHz, at least 7 frames of 640 samples. Vector i hears the frames i to i + 6.

        It belongs to the picture vector i + 1, whose frames lie in the middle of that sound.
        """
        return F.normalize(self.sound(log_mel(samples, MEL_PEAK, edges=True)), dim=-1)

    def forward(
        self, mouths: Float[Tensor, "B T S S"], samples: Float[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B T-4 E"], Float[Tensor, "B L//640-6 E"]]:
        """Embed both: what was seen, and what was heard."""
        return self.see(mouths), self.hear(samples)


class _PictureStream(nn.Module):
    """Sees three frames together as one picture of three channels, then three of those."""

    def __init__(self, config: SyncJudgeConfig) -> None:
        super().__init__()
        first, second, third = config.widths
        self.body = nn.Sequential(
            _Reduce(STEM_FRAMES, first, 7, 4), _Reduce(first, second, 3, 2), _Reduce(second, third, 3, 2), nn.Flatten()
        )
        cells = (config.mouth_size_px // 16) ** 2
        self.frame = nn.Sequential(
            nn.Linear(third * cells, config.hidden, bias=False),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
        )
        self.window = nn.Conv1d(config.hidden, config.embedding, WINDOW_FRAMES - STEM_FRAMES + 1)

    def forward(self, mouths: Float[Tensor, "B T S S"]) -> Float[Tensor, "B T-4 E"]:
        stacks = ((mouths - 0.45) / 0.25).unfold(1, STEM_FRAMES, 1).permute(0, 1, 4, 2, 3)
        x = self.frame(self.body(stacks.flatten(0, 1)))
        return self.window(x.unflatten(0, stacks.shape[:2]).transpose(1, 2)).transpose(1, 2)


class _Reduce(nn.Module):
    """Strided convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out h w"]:
        return F.relu(self.norm(self.conv(x)))


class _SoundStream(nn.Module):
    """Hears a spectrogram. Over time nothing is padded; 25 columns make one vector, 4 are a frame."""

    def __init__(self, config: SyncJudgeConfig) -> None:
        super().__init__()
        first, second, third = config.sound_widths
        layers: list[nn.Module] = []
        # Strides over (bands, time): 80 -> 40 -> 20 -> 10 bands, and twice a halving of time.
        for inside, outside, kernel, stride in (
            (1, first, (5, 3), (2, 1)),
            (first, second, (3, 3), (2, 2)),
            (second, third, (3, 3), (2, 2)),
        ):
            layers += [
                nn.Conv2d(inside, outside, kernel, stride, padding=(kernel[0] // 2, 0), bias=False),
                nn.BatchNorm2d(outside),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.frame = nn.Sequential(
            nn.Conv1d(10 * third, config.hidden, 1, bias=False),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
        )
        self.window = nn.Conv1d(config.hidden, config.embedding, 5)

    def forward(self, mel: Float[Tensor, "B 80 columns"]) -> Float[Tensor, "B N E"]:
        return self.window(self.frame(self.body(mel[:, None]).flatten(1, 2))).transpose(1, 2)


# ---------------------------------------------------------------------------------------------------- mouth pictures


def crop_mouths(
    frames: NDArray[np.uint8],
    landmarks: NDArray[np.floating] | Float[Tensor, "T 478 3"],
    mean_face: Float[Tensor, "478 3"],
    size_px: int,
    side: float = MOUTH_SIDE,
) -> Float[Tensor, "T {size_px} {size_px}"]:
    """Cut out the lower face, held still: a square that follows the head's pose, not the lips.

    Centre, size and slant come from the pose of the rigid landmarks alone (``face.geometry``). The clip's median says
    where the lips are on this face. So speech moves the lips within the square, and turning the head does not.

    Args:
        frames: (T, H, W, 3) RGB.
        landmarks: (T, 478, 3) in crop units.
        mean_face: For the pose.
        size_px: Side of the pictures.
        side: Side of the square, in distances of the outer eye corners.

    Returns:
        Float32 luma in [0, 1].
    """
    points = torch.as_tensor(landmarks, dtype=torch.float32)
    shape, pose = remove_pose(points, mean_face)
    pose = smooth(pose, POSE_SMOOTHING_FRAMES)
    anchor = shape[:, list(lm.LIP_CORNERS)].mean(1).median(0).values + torch.tensor([0.0, MOUTH_DROP, 0.0])
    centre = apply_pose(anchor.expand(len(pose), 1, 3), pose)[..., :2]
    roll = torch.deg2rad(pose[:, 2])
    slant = torch.stack((roll.cos(), -roll.sin(), roll.sin(), roll.cos()), -1).unflatten(-1, (2, 2))
    half_side = pose[:, 3, None, None] * (side / 2)
    # Sampled finer than needed and averaged, or large pictures would alias.
    height = frames.shape[1]
    over = max(2, int(np.ceil(float(half_side.max()) * height / size_px)))
    grid = identity_grid(over * size_px, over * size_px, points).flatten(0, 1)
    luma = torch.tensor(LUMA) / 255
    out = []
    for start in range(0, len(frames), CROP_BATCH):
        part = slice(start, start + CROP_BATCH)
        grey = torch.from_numpy(np.ascontiguousarray(frames[part])).float() @ luma
        where = (grid * half_side[part]) @ slant[part].transpose(1, 2) + centre[part]
        where = where.unflatten(1, (over * size_px, over * size_px))
        taken = F.grid_sample(grey[:, None], where, padding_mode="border", align_corners=False)
        out.append(F.avg_pool2d(taken, over)[:, 0])
    return torch.cat(out)


# ---------------------------------------------------------------------------------------------------------- distances


class LagDistances(NamedTuple):
    """Distances summed over windows, and the number of windows: one entry a lag, from -10 to +10 frames.

    Lag l compares the pictures of a window with the sound l frames later: a minimum at l > 0 says that the sound is late.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.int_]


def lag_distances(seen: Float[Tensor, "N E"], heard: Float[Tensor, "M E"]) -> LagDistances:
    """Compare what was seen with what was heard in one clip, by lag: each window with every partner that it has.

    ``heard`` has two windows less than ``seen``. Lags with under ``MIN_WINDOWS`` windows stay empty.

    Raises:
        InputError: The clip has under 15 frames.
    """
    frames = len(seen) + WINDOW_FRAMES - 1
    if frames < MIN_CLIP_FRAMES:
        raise InputError(f"{frames} frames are too few to judge sync: give at least {MIN_CLIP_FRAMES}")
    distance = torch.cdist(seen.double(), heard.double()).cpu().numpy()
    lags = range(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1)
    sums, counts = np.zeros(len(lags)), np.zeros(len(lags), int)
    for index, lag in enumerate(lags):
        # Sound vector j belongs to picture vector j + 1.
        diagonal = np.diagonal(distance, lag - SOUND_MARGIN_FRAMES)
        if len(diagonal) >= MIN_WINDOWS:
            sums[index], counts[index] = diagonal.sum(), len(diagonal)
    return LagDistances(sums, counts)
