"""Convolution blocks shared by the latent flow generator's parts (names follow MRAA, which the paper builds on)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dawn.structs import ImageArray

EMPHASIS = 0.5
"""Strength of the sharpening in ``upsample_sharp``: with it, validation portraits are as sharp as by bicubic sampling."""


class SameBlock(nn.Module):
    """Convolution, batch norm, ReLU at one resolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out H2 W2"]:
        """Keep height and width; subclasses change them."""
        return F.relu(self.norm(self.conv(x)))


class DownBlock(SameBlock):
    """``SameBlock`` and 2x2 average pooling. ``pool_first`` pools before the convolution, for a quarter of the work."""

    def __init__(self, in_channels: int, out_channels: int, pool_first: bool = False) -> None:
        super().__init__(in_channels, out_channels)
        self.pool_first = pool_first

    def forward(self, x: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out H//2 W//2"]:
        """Halve height and width."""
        if self.pool_first:
            return super().forward(F.avg_pool2d(x, 2))
        return F.avg_pool2d(super().forward(x), 2)


class UpBlock(SameBlock):
    """Nearest-neighbour doubling and ``SameBlock``."""

    def forward(self, x: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out 2*H 2*W"]:
        """Double height and width."""
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ResBlock(nn.Module):
    """Pre-activation residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1: nn.Module = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2: nn.Module = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Add the block's change to its input."""
        h = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(h)))


class Hourglass(nn.Module):
    """U-shaped network with concatenated skips.

    Level i of the encoder has min(max_width, width * 2^(i+1)) channels, level i of the decoder min(max_width, width * 2^i).
    The output has ``out_channels`` = width + in_channels.
    """

    def __init__(self, in_channels: int, width: int, depth: int, max_width: int, pool_first: bool = False) -> None:
        super().__init__()
        encoder = [in_channels] + [min(max_width, width * 2 ** (i + 1)) for i in range(depth)]
        decoder = [min(max_width, width * 2**i) for i in range(depth)]
        self.down_blocks = nn.ModuleList(DownBlock(encoder[i], encoder[i + 1], pool_first) for i in range(depth))
        up_blocks = []
        channels = encoder[-1]
        for i in reversed(range(depth)):
            up_blocks.append(UpBlock(channels, decoder[i]))
            channels = decoder[i] + encoder[i]
        self.up_blocks = nn.ModuleList(up_blocks)
        self.out_channels = channels

    def forward(self, x: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out H W"]:
        """Go down, and up again. H and W are multiples of 2^depth."""
        skips = [x]
        for block in self.down_blocks:
            skips.append(block(skips[-1]))
        h = skips.pop()
        for block in self.up_blocks:
            h = torch.cat((block(h), skips.pop()), 1)
        return h


class FoldedUpBlock(nn.Module):
    """An ``UpBlock`` for inference, at 4/9 of the cost.

    A 3x3 convolution of a doubled picture sees only 2x2 different pixels. So four 2x2 convolutions at the low resolution,
    interleaved, give the same result.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take over the block's 3x3 convolution, into which its batch norm is folded already."""
        super().__init__()
        k = conv.weight.detach()
        # Even output rows see (above, own + own), odd ones (own + own, below); the same for columns.
        rows = (
            torch.stack((k[:, :, 0], k[:, :, 1] + k[:, :, 2]), 2),
            torch.stack((k[:, :, 0] + k[:, :, 1], k[:, :, 2]), 2),
        )
        phases = []
        for r in rows:
            phases.append(torch.stack((r[..., 0], r[..., 1] + r[..., 2]), -1))
            phases.append(torch.stack((r[..., 0] + r[..., 1], r[..., 2]), -1))
        assert conv.bias is not None
        self.out_channels = conv.out_channels
        self.conv = nn.Conv2d(conv.in_channels, 4 * conv.out_channels, 2, padding=1)
        self.conv.weight = nn.Parameter(torch.cat(phases), requires_grad=False)
        self.conv.bias = nn.Parameter(conv.bias.detach().repeat(4), requires_grad=False)

    def forward(self, x: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out 2*H 2*W"]:
        """Double height and width."""
        batch, _, height, width = x.shape
        y = F.relu(self.conv(x))
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        out = torch.empty(
            (batch, self.out_channels, 2 * height, 2 * width), dtype=y.dtype, device=y.device, memory_format=layout
        )
        for phase in range(4):
            a, b = divmod(phase, 2)
            part = y[:, phase * self.out_channels : (phase + 1) * self.out_channels]
            out[:, :, a::2, b::2] = part[:, :, a : a + height, b : b + width]
        return out


def fold_for_inference(module: nn.Module) -> nn.Module:
    """Fold batch norms and doublings into convolutions, in place: the same result with less work. Returns the module."""
    for child in module.modules():
        if isinstance(child, SameBlock) and isinstance(child.norm, nn.BatchNorm2d):
            child.conv = fuse_conv_bn_eval(child.conv.eval(), child.norm.eval())
            child.norm = nn.Identity()
        elif isinstance(child, ResBlock) and isinstance(child.norm2, nn.BatchNorm2d):
            child.conv1 = fuse_conv_bn_eval(child.conv1.eval(), child.norm2.eval())
            child.norm2 = nn.Identity()
    for child in list(module.modules()):
        for name, part in list(child.named_children()):
            if isinstance(part, UpBlock):
                setattr(child, name, FoldedUpBlock(part.conv))
    return module


def image_tensor(image: ImageArray, device: torch.device) -> Float[Tensor, "1 3 H W"]:
    """Turn a picture (H, W, 3) uint8 into numbers in [0, 1]."""
    return torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float() / 255


def identity_grid(height: int, width: int, like: Tensor) -> Float[Tensor, "{height} {width} 2"]:
    """Make the grid that changes nothing: (x, y) of every pixel centre, ``align_corners=False``, on the device of ``like``."""
    ys = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * (2.0 / height) - 1
    xs = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) * (2.0 / width) - 1
    return torch.stack((xs.expand(height, width), ys[:, None].expand(height, width)), -1)


def invert_2x2(matrix: Float[Tensor, "*batch 2 2"]) -> Float[Tensor, "*batch 2 2"]:
    """Invert matrices in closed form."""
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    adjugate = torch.stack((torch.stack((d, -b), -1), torch.stack((-c, a), -1)), -2)
    return adjugate / (a * d - b * c)[..., None, None]


def warp(
    x: Float[Tensor, "B C H W"], flow: Float[Tensor, "B h w 2"], size: tuple[int, int] | None = None
) -> Float[Tensor, "B C H2 W2"]:
    """Sample pictures at an absolute flow; borders repeat.

    Args:
        x: Pictures.
        flow: Where each cell comes from, in [-1, 1].
        size: Height and width of the result, by default those of ``x``; the flow is resized to it.
    """
    size = size or (x.shape[2], x.shape[3])
    if flow.shape[1:3] != size:
        flow = resize(flow.permute(0, 3, 1, 2), *size).permute(0, 2, 3, 1)
    return F.grid_sample(x, flow.to(x.dtype), padding_mode="border", align_corners=False)


def upsample_sharp(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C 2*H 2*W"]:
    """Double pictures bicubically and sharpen them, to compensate for the blur of bilinear sampling in ``warp``.

    Done once a portrait, this gives bicubic sharpness at the cost of bilinear sampling.
    """
    doubled = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    row = doubled.new_tensor([0.25, 0.5, 0.25])
    blur = (row[:, None] * row).expand(x.shape[1], 1, 3, 3)
    blurred = F.conv2d(F.pad(doubled, (1, 1, 1, 1), mode="replicate"), blur, groups=x.shape[1])
    return doubled + EMPHASIS * (doubled - blurred)


def resize(x: Float[Tensor, "B C h w"], height: int, width: int) -> Float[Tensor, "B C {height} {width}"]:
    """Resize bilinearly; an exact reduction averages, which avoids aliasing."""
    if x.shape[2:] == (height, width):
        return x
    if x.shape[2] > height and x.shape[2] % height == 0 and x.shape[3] % width == 0:
        return F.avg_pool2d(x, (x.shape[2] // height, x.shape[3] // width))
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
