"""The Inception-v3 whose features make a Fréchet distance an FID.

    pictures (B, 3, H, W) ── bilinear to 299 x 299 ── stem ── 5b 5c 5d ── 6a … 6e ── 7a 7b 7c ── mean over cells ──▶ (B, 2048)

Sources: Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision" (the blocks); Heusel et al. 2017,
"GANs Trained by a Two Time-Scale Update Rule" (FID, section 3). The network is the one of TensorFlow's archive of
2015-12-05, under the names that its port in pytorch-fid (Apache-2.0) gave to the entries of its file. In three points that
network differs from other Inception-v3s: averages near the edge leave the padding out; the pool branch of the last block takes
the maximum; the classifier, which FID does not use, has 1008 outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SIZE_PX = 299
FEATURES = 2048
CLASSES = 1008
NORM_EPSILON = 1e-3


class Step(NamedTuple):
    """One convolution of a branch. kernel: height and width; of stride 1 it keeps the size, of stride 2 it is not padded."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Branch = Sequence[Step | tuple[Step, Step]]
"""Steps in a row; a pair stands side by side, both on the same input."""


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU. (B, inputs, H, W) -> (B, outputs, H', W')."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise and rectify (B, C, H, W)."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches over one input, joined along the channels; the last one pools.

    pool: "average" or "maximum" over 3x3 at stride 1, followed by the 1x1 convolution ``branch_pool``, or "reduce": the
    maximum at stride 2, as it is.
    """

    def __init__(self, inputs: int, branches: Sequence[Branch], pool: str, pool_channels: int = 0) -> None:
        super().__init__()
        self.branches = branches
        self.pool = pool
        self.outputs = pool_channels or inputs
        for branch in branches:
            width = inputs
            for step in branch:
                fork = (step,) if isinstance(step, Step) else step
                for name, channels, (height, across), stride in fork:
                    padding = (height // 2, across // 2) if stride == 1 else (0, 0)
                    self.add_module(name, BasicConv2d(width, channels, (height, across), stride, padding))
                width = sum(part.channels for part in fork)
            self.outputs += width
        if pool_channels:
            self.branch_pool = BasicConv2d(inputs, pool_channels, (1, 1), 1, (0, 0))

    def pooled(self, x: Tensor) -> Tensor:
        """The pool branch before its convolution."""
        if self.pool == "reduce":
            return F.max_pool2d(x, 3, 2)
        if self.pool == "maximum":
            return F.max_pool2d(x, 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run all branches on (B, C, H, W) and join their channels, the pool branch last."""
        out = []
        for branch in self.branches:
            y = x
            for step in branch:
                fork = (step,) if isinstance(step, Step) else step
                y = torch.cat([self.get_submodule(part.name)(y) for part in fork], 1)
            out.append(y)
        last = self.pooled(x)
        out.append(last if self.pool == "reduce" else self.branch_pool(last))
        return torch.cat(out, 1)


def _block_5(inputs: int, pool_channels: int) -> Mixed:
    double = (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3)))
    five = (Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5)))
    return Mixed(inputs, ((Step("branch1x1", 64),), five, double), "average", pool_channels)


def _block_6a() -> Mixed:
    double = (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3), 2))
    return Mixed(288, ((Step("branch3x3", 384, (3, 3), 2),), double), "reduce")


def _block_6(width: int) -> Mixed:
    """width: channels inside the 7x7 branches, which are taken apart into 1x7 and 7x1."""
    row, column = (1, 7), (7, 1)
    seven = (Step("branch7x7_1", width), Step("branch7x7_2", width, row), Step("branch7x7_3", 192, column))
    double = (
        Step("branch7x7dbl_1", width),
        Step("branch7x7dbl_2", width, column),
        Step("branch7x7dbl_3", width, row),
        Step("branch7x7dbl_4", width, column),
        Step("branch7x7dbl_5", 192, row),
    )
    return Mixed(768, ((Step("branch1x1", 192),), seven, double), "average", 192)


def _block_7a() -> Mixed:
    three = (Step("branch3x3_1", 192), Step("branch3x3_2", 320, (3, 3), 2))
    seven = (
        Step("branch7x7x3_1", 192),
        Step("branch7x7x3_2", 192, (1, 7)),
        Step("branch7x7x3_3", 192, (7, 1)),
        Step("branch7x7x3_4", 192, (3, 3), 2),
    )
    return Mixed(768, (three, seven), "reduce")


def _block_7(inputs: int, pool: str) -> Mixed:
    three = (Step("branch3x3_1", 384), (Step("branch3x3_2a", 384, (1, 3)), Step("branch3x3_2b", 384, (3, 1))))
    double = (
        Step("branch3x3dbl_1", 448),
        Step("branch3x3dbl_2", 384, (3, 3)),
        (Step("branch3x3dbl_3a", 384, (1, 3)), Step("branch3x3dbl_3b", 384, (3, 1))),
    )
    return Mixed(inputs, ((Step("branch1x1", 320),), three, double), pool, 192)


class FIDInception(nn.Module):
    """See the module's head. ``fc`` is there because the file has it; no feature passes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, (3, 3), 2, (0, 0))
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, (3, 3), 1, (0, 0))
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, (3, 3), 1, (1, 1))
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, (1, 1), 1, (0, 0))
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, (3, 3), 1, (0, 0))
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_5(192, 32), _block_5(256, 64), _block_5(288, 64)
        self.Mixed_6a = _block_6a()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_block_6(width) for width in (128, 160, 160, 192))
        self.Mixed_7a = _block_7a()
        self.Mixed_7b, self.Mixed_7c = _block_7(1280, "average"), _block_7(FEATURES, "maximum")
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> (B, 2048) features. Any size; it is squeezed to a square, not antialiased."""
        x = F.interpolate(pictures, (INPUT_SIZE_PX, INPUT_SIZE_PX), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2 * x - 1)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for block in (
            self.Mixed_5b,
            self.Mixed_5c,
            self.Mixed_5d,
            self.Mixed_6a,
            self.Mixed_6b,
            self.Mixed_6c,
            self.Mixed_6d,
            self.Mixed_6e,
            self.Mixed_7a,
            self.Mixed_7b,
            self.Mixed_7c,
        ):
            x = block(x)
        return x.mean((2, 3))
