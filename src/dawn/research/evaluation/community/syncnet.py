"""SyncNet, and the lip-sync errors LSE-C and LSE-D that are defined by it.

    face, 5 frames of 224 x 224 ── 3-D convolutions ── 2 layers ──▶ (1024) ┐
                                                                           ├── Euclidean distance
    sound, 20 columns of MFCC ──── 2-D convolutions ── 2 layers ──▶ (1024) ┘

Sources: Chung and Zisserman 2016, "Out of time: automated lip sync in the wild"; Prajwal et al. 2020, "A Lip Sync Expert Is
All You Need" (LSE-C, LSE-D, section 4.2). Layer sizes and the names of the file's entries are those of the authors' release
(syncnet_python, MIT).

The crop. The authors take the box of a face detector (S3FD); half its longer side is b. Box sizes and centres pass through a
median over 13 frames, and the square from b above to 1.8 b below the centre, 1.4 b to either side, is cut out and scaled to
224 px; outside the picture is grey 110. Here the box is that of the face mesh (forehead to chin, ear to ear), because the
detector is not part of this package; all else is the same. Two things follow: figures are comparable with published ones only
as far as the two boxes agree; and prepared clips end so little below the chin that the crop's lowest tenth is grey.
The authors also pass the frames through JPEG and MPEG-4, which is not done here, and use clips of 100 frames and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from dawn.measures.picture import face_box, to_pixels
from dawn.measures.sync import SyncScore
from dawn.research.evaluation.community.mfcc import mfcc
from dawn.structs import FPS, SPEECH_RATE_HZ, FloatArray, ImageArray

FACE_SIZE_PX = 224
WINDOW_FRAMES = 5
COLUMNS_PER_FRAME = 4
WINDOW_COLUMNS = 20
MAX_OFFSET_FRAMES = 15
UNUSED_FRAMES = 5
"""The release stops one window before the last whole one."""
MIN_FRAMES = MAX_OFFSET_FRAMES + 1 + UNUSED_FRAMES
"""In shorter clips the outermost offsets would meet nothing but padding."""
EMBEDDING = 1024
HIDDEN = 512

MEDIAN_FRAMES = 13
BELOW, ASIDE = 1.8, 1.4
"""How far the crop reaches below and to either side of the box's centre, in halves of the box; above it is 1."""
OUTSIDE_GREY = 110
_BATCH = 16


class Layer(NamedTuple):
    """Convolution, batch norm, ReLU, and the pooling after it if there is one. Sizes as the stream has dimensions."""

    channels: int
    kernel: Sequence[int]
    stride: Sequence[int] | int = 1
    padding: Sequence[int] | int = 0
    pool: nn.Module | None = None


class SyncNet(nn.Module):
    """Both streams; vectors are not normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = _stack(
            nn.Conv2d,
            nn.BatchNorm2d,
            1,
            (
                Layer(64, (3, 3), padding=1, pool=nn.Identity()),
                Layer(192, (3, 3), padding=1, pool=nn.MaxPool2d((3, 3), (1, 2))),
                Layer(384, (3, 3), padding=1),
                Layer(256, (3, 3), padding=1),
                Layer(256, (3, 3), padding=1, pool=nn.MaxPool2d((3, 3), (2, 2))),
                Layer(512, (5, 4)),
            ),
        )
        self.netcnnlip = _stack(
            nn.Conv3d,
            nn.BatchNorm3d,
            3,
            (
                Layer(96, (5, 7, 7), (1, 2, 2), pool=nn.MaxPool3d((1, 3, 3), (1, 2, 2))),
                Layer(256, (1, 5, 5), (1, 2, 2), (0, 1, 1), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))),
                Layer(256, (1, 3, 3), padding=(0, 1, 1)),
                Layer(256, (1, 3, 3), padding=(0, 1, 1)),
                Layer(256, (1, 3, 3), padding=(0, 1, 1), pool=nn.MaxPool3d((1, 3, 3), (1, 2, 2))),
                Layer(HIDDEN, (1, 6, 6)),
            ),
        )
        self.netfcaud, self.netfclip = (
            nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, EMBEDDING))
            for _ in range(2)
        )

    def see(self, faces: Tensor) -> Tensor:
        """(N, 3, 5, 224, 224) BGR 0..255 -> (N, 1024)."""
        return self.netfclip(self.netcnnlip(faces).flatten(1))

    def hear(self, sound: Tensor) -> Tensor:
        """(N, 1, 13, 20) MFCC -> (N, 1024)."""
        return self.netfcaud(self.netcnnaud(sound).flatten(1))


def _stack(conv: type[nn.Module], norm: type[nn.Module], inputs: int, layers: Sequence[Layer]) -> nn.Sequential:
    """Layers in a row, numbered as in the file: an entry's name tells its place in the row."""
    modules: list[nn.Module] = []
    for layer in layers:
        modules += [
            conv(inputs, layer.channels, layer.kernel, layer.stride, layer.padding),
            norm(layer.channels),
            nn.ReLU(),
        ]
        if layer.pool is not None:
            modules.append(layer.pool)
        inputs = layer.channels
    return nn.Sequential(*modules)


# --------------------------------------------------------------------------------------------------------------- crops


def face_squares(landmarks: FloatArray, size_px: int) -> np.ndarray:
    """Place the crops: landmarks (T, 478, 2 or 3) in crop units of pictures of ``size_px`` -> (T, 4) whole pixels.

    The pixels are x0, y0, x1, y1, the last two exclusive, and may reach outside the picture. See the module's head.
    """
    boxes = [face_box(points) for points in to_pixels(landmarks, size_px)]
    half = _median([max(box.width, box.height) / 2 for box in boxes])
    x, y = (_median([box.center[axis] for box in boxes]) for axis in (0, 1))
    edges = (x - ASIDE * half, y - half, x + ASIDE * half, y + BELOW * half)
    squares = np.floor(np.stack(edges, 1)).astype(int)
    squares[:, 2:] = np.maximum(squares[:, 2:], squares[:, :2] + 1)
    return squares


def _median(values: Sequence[float]) -> np.ndarray:
    """Median over 13 frames around each; beyond the ends stand zeros, as in the release."""
    return np.median(sliding_window_view(np.pad(values, MEDIAN_FRAMES // 2), MEDIAN_FRAMES), 1)


def cut_faces(frames: ImageArray, squares: np.ndarray) -> Tensor:
    """(T, H, W, 3) uint8 RGB, squares (T, 4) -> (T, 3, 224, 224) float32 BGR, whole numbers 0..255; bilinear."""
    out = []
    for frame, (x0, y0, x1, y1) in zip(frames, squares, strict=True):
        height, width = frame.shape[:2]
        part = np.full((y1 - y0, x1 - x0, 3), OUTSIDE_GREY, np.uint8)
        top, bottom, left, right = max(y0, 0), min(y1, height), max(x0, 0), min(x1, width)
        if top < bottom and left < right:
            part[top - y0 : bottom - y0, left - x0 : right - x0] = frame[top:bottom, left:right]
        planes = torch.from_numpy(part[..., ::-1].astype(np.float32)).permute(2, 0, 1)[None]
        out.append(F.interpolate(planes, (FACE_SIZE_PX, FACE_SIZE_PX), mode="bilinear", align_corners=False).round())
    return torch.cat(out)


# ------------------------------------------------------------------------------------------------------------- figures


@torch.inference_mode()
def lip_sync_error(
    network: SyncNet, frames: ImageArray, landmarks: FloatArray, samples: FloatArray
) -> SyncScore | None:
    """LSE-C ("confidence"), LSE-D ("distance") and the offset of one clip.

    frames (T, S, S, 3) uint8 at 25 fps; landmarks (T, 478, 2 or 3) crop units of those frames; samples (L,) at 16 kHz from the
    first frame on. None if picture or sound is shorter than 21 frames, or the sound is digital silence.
    """
    count = min(len(frames), len(samples) * FPS // SPEECH_RATE_HZ)
    if count < MIN_FRAMES or not np.any(samples):
        return None
    squares = face_squares(landmarks, frames.shape[1])
    columns = torch.from_numpy(mfcc(samples)).float()
    sound = columns.unfold(1, WINDOW_COLUMNS, COLUMNS_PER_FRAME).transpose(0, 1)[:, None]
    seen, heard = [], []
    for start in range(0, count - UNUSED_FRAMES, _BATCH):
        stop = min(start + _BATCH, count - UNUSED_FRAMES)
        reach = slice(start, stop + WINDOW_FRAMES - 1)
        faces = cut_faces(frames[reach], squares[reach]).unfold(0, WINDOW_FRAMES, 1).permute(0, 1, 4, 2, 3)
        seen.append(network.see(faces))
        heard.append(network.hear(sound[start:stop]))
    return score_of(torch.cat(seen), torch.cat(heard))


def score_of(seen: Tensor, heard: Tensor) -> SyncScore:
    """Compare the vectors of the same N windows, (N, E) both: LSE-C, LSE-D, and the offset in frames.

    Above 0 the sound is late (the release gives it the other sign).

    For every offset from -15 to 15 the distance of each picture to the sound so much later is averaged over all N windows;
    sound before the beginning and after the end is a vector of zeros, as in the release, which counts the more the shorter
    the clip is. LSE-D is the smallest average, LSE-C the median of the 31 minus the smallest.
    """
    padded = F.pad(heard, (0, 0, MAX_OFFSET_FRAMES, MAX_OFFSET_FRAMES))
    shifts = range(2 * MAX_OFFSET_FRAMES + 1)
    means = torch.stack([(seen - padded[shift : shift + len(seen)]).norm(dim=1).mean() for shift in shifts])
    best = int(means.argmin())
    return SyncScore(float(means.median() - means[best]), float(means[best]), best - MAX_OFFSET_FRAMES)
