"""Prepared clips as training material, and the random changes that make few people into many."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dawn.errors import InputError
from dawn.face import mesh as lm
from dawn.models.blocks import identity_grid
from dawn.structs import LUMA


@dataclass
class Clip:
    """One prepared clip; frames stay on disk. landmarks (T, 478, 3) crop units; samples (L,) int16 at 16 kHz."""

    path: Path
    person: str
    landmarks: Tensor
    samples: Tensor

    def __len__(self) -> int:
        return int(self.landmarks.shape[0])

    def frames(self, index: list[int]) -> Tensor:
        """The frames named, (len(index), 3, S, S) in [0, 1]."""
        with safe_open(self.path, framework="pt") as file:
            view = file.get_slice("frames")
            picked = torch.stack([view[i : i + 1][0] for i in index])
        return picked.permute(0, 3, 1, 2).float() / 255


class ClipStore:
    """All prepared clips of a folder. Raises InputError if there are none or one cannot be read."""

    def __init__(self, folder: Path | str) -> None:
        paths = sorted(Path(folder).glob("*.safetensors"))
        if not paths:
            raise InputError(f"{folder}: no prepared clips; make them with: dawn prepare VIDEOS {folder}")
        self.clips = [_open_clip(path) for path in paths]
        frames: dict[str, int] = {}
        for clip in self.clips:
            frames[clip.person] = frames.get(clip.person, 0) + len(clip)
        # People with much material would otherwise dominate: a person's share grows with the square root of it.
        weight = [len(clip) / math.sqrt(frames[clip.person]) for clip in self.clips]
        self.weight = torch.tensor(weight, dtype=torch.float64)
        self.people = sorted(frames)

    def __len__(self) -> int:
        return len(self.clips)

    def draw(self, count: int, generator: torch.Generator, weight: Tensor | None = None) -> list[Clip]:
        """``count`` clips at random, people balanced."""
        chosen = torch.multinomial(self.weight if weight is None else weight, count, True, generator=generator)
        return [self.clips[i] for i in chosen.tolist()]


def _open_clip(path: Path) -> Clip:
    try:
        with safe_open(path, framework="pt") as file:
            person = (file.metadata() or {}).get("person", path.stem)
            return Clip(path, person, file.get_tensor("landmarks"), file.get_tensor("samples"))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a prepared clip ({error}); run dawn prepare again") from error


def mirror_permutation(mean_face: Tensor) -> Tensor:
    """For every landmark the one on the other side of the face, (478,) long."""
    flipped = mean_face * torch.tensor([-1.0, 1.0, 1.0])
    permutation = torch.cdist(flipped, mean_face).argmin(1)
    # Irises are rings whose nearest neighbours need not pair up one to one: left and right, top and bottom by hand.
    pairs = ((468, 473), (469, 476), (470, 475), (471, 474), (472, 477))
    for a, b in ((p, q) for x, y in pairs for p, q in ((x, y), (y, x))):
        permutation[a] = b
    return permutation


class GeometricChange:
    """A random smooth change of the picture plane, the same for all frames of a sample: another face, another framing.

    Output position p is taken from p' = A p + b + sum of slow waves(p); ``landmarks`` solves for where points go.
    """

    def __init__(self, batch: int, generator: torch.Generator, strength: float = 1.0) -> None:
        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(*shape, generator=generator)

        angle = uniform(-12, 12, batch) * strength * math.pi / 180
        zoom = torch.exp(uniform(-0.12, 0.14, batch) * strength)
        stretch = torch.exp(uniform(-0.1, 0.1, batch) * strength)
        c, s = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        self.matrix = torch.stack((torch.stack((c * stretch, -s), -1), torch.stack((s, c / stretch), -1)), -2)
        self.shift = uniform(-0.08, 0.08, batch, 1, 2) * strength
        waves = 5
        self.frequency = torch.randn(batch, waves, 2, generator=generator) * 2.2
        self.phase = uniform(0, 2 * math.pi, batch, waves, 1)
        self.amplitude = torch.randn(batch, waves, 2, generator=generator) * (0.018 * strength)

    def _waves(self, points: Tensor) -> Tensor:
        """(B, P, 2) -> (B, P, 2)."""
        angle = self.frequency @ points.transpose(1, 2) + self.phase
        return angle.sin().transpose(1, 2) @ self.amplitude

    def backward(self, points: Tensor) -> Tensor:
        """Where output positions (B, P, 2) are taken from."""
        return points @ self.matrix.transpose(1, 2) + self.shift + self._waves(points)

    def grid(self, size: int) -> Tensor:
        """Sampling grid (B, size, size, 2)."""
        points = identity_grid(size, size, self.matrix).reshape(1, -1, 2).expand(len(self.matrix), -1, -1)
        return self.backward(points).view(-1, size, size, 2)

    def landmarks(self, points: Tensor) -> Tensor:
        """Where landmarks (B, 478, 3) of the input lie in the output (z is scaled along)."""
        target, inverse = points[..., :2], torch.linalg.inv(self.matrix).transpose(1, 2)
        q = (target - self.shift) @ inverse
        for _ in range(6):  # the waves are slow, so that this converges by a factor of about ten a round
            q = (target - self.shift - self._waves(q)) @ inverse
        scale = torch.linalg.det(self.matrix).sqrt()[:, None, None]
        return torch.cat((q, points[..., 2:] / scale), -1)


def random_colour(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Colour matrix, contrast and gamma, one draw a sample. images: (B, F, 3, H, W) in [0, 1]."""
    batch = images.shape[0]
    matrix = torch.eye(3) + 0.07 * strength * torch.randn(batch, 3, 3, generator=generator)
    gain = torch.exp(0.2 * strength * torch.randn(batch, 1, 1, generator=generator))
    offset = 0.06 * strength * torch.randn(batch, 1, 3, 1, 1, generator=generator)
    gamma = torch.exp(0.15 * strength * torch.randn(batch, 1, 1, 1, 1, generator=generator))
    changed = torch.einsum("bij,bfjhw->bfihw", matrix * gain, images) + offset
    return changed.clamp(1e-4, 1).pow(gamma)


LOOKS = {"grey": 0.12, "dark": 0.15, "painted": 0.12}
"""Share of the pairs that are made to look like portraits which the clips do not have."""


def random_look(images: Tensor, generator: torch.Generator) -> Tensor:
    """Grey and tinted prints, dark pictures, paintings: drawn for each sample. images: (B, F, 3, H, W) in [0, 1]."""
    batch = len(images)
    grey, dark, painted = (torch.rand(batch, generator=generator) < share for share in LOOKS.values())
    gamma = 1.3 + 1.2 * torch.rand(batch, 1, 1, 1, 1, generator=generator)
    tint = 1 + 0.1 * torch.randn(batch, 1, 3, 1, 1, generator=generator)
    looked = images.clone()
    if painted.any():
        looked[painted] = _paint_flat(images[painted].flatten(0, 1)).unflatten(0, (-1, images.shape[1]))
    looked[dark] = looked[dark].clamp_min(1e-4).pow(gamma[dark])
    looked[grey] = torch.einsum("bfchw,c->bfhw", looked[grey], looked.new_tensor(LUMA)).unsqueeze(2) * tint[grey]
    return looked.clamp(0, 1)


def _paint_flat(x: Tensor) -> Tensor:
    """Paint flat strokes with hard edges by Kuwahara's filter. x: (N, 3, H, W).

    It takes the mean of that of four neighbouring windows (3 x 3) that varies least.
    """
    around = F.pad(x, (2, 2, 2, 2), mode="replicate")
    mean, square = F.avg_pool2d(around, 3, 1), F.avg_pool2d(around.square(), 3, 1)
    variance = (square - mean.square()).sum(1, keepdim=True)
    height, width = x.shape[-2:]
    corners = [(slice(None), slice(None), slice(i, i + height), slice(j, j + width)) for i in (0, 2) for j in (0, 2)]
    calmest = torch.stack([variance[corner] for corner in corners]).argmin(0, keepdim=True)
    return torch.stack([mean[corner] for corner in corners]).gather(0, calmest.expand(1, *x.shape))[0]


PickPair = Callable[[Clip, torch.Generator], tuple[int, int]]
"""Chooses the (source, driving) frames of a clip."""


@dataclass
class PairBatch:
    """images (B, 2, 3, R, R): source and driving; landmarks (B, 2, 478, 3)."""

    images: Tensor
    landmarks: Tensor


def pair_batch(
    store: ClipStore,
    count: int,
    size: int,
    permutation: Tensor,
    generator: torch.Generator,
    pick: PickPair | None = None,
) -> PairBatch:
    """Random pairs of frames of one clip, changed alike. pick: (source, driving) of a clip; ``pick_varied_pair`` if None."""
    pick = pick or pick_varied_pair
    images, landmarks = [], []
    for clip in store.draw(count, generator):
        i, j = pick(clip, generator)
        images.append(clip.frames([i, j]))
        landmarks.append(clip.landmarks[[i, j]])
    picture, points = torch.stack(images), torch.stack(landmarks)
    change = GeometricChange(count, generator)
    # A reduction is sampled at twice the size and averaged, or it would alias; else bicubic sampling keeps what is fine.
    reduced = picture.shape[-1] > size
    grid = change.grid(2 * size if reduced else size).unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(0, 1)
    mode = "bilinear" if reduced else "bicubic"
    picture = F.grid_sample(picture.flatten(0, 1), grid, mode, padding_mode="border", align_corners=False)
    picture = (F.avg_pool2d(picture, 2) if reduced else picture).unflatten(0, (count, 2))
    points = torch.stack([change.landmarks(points[:, k]) for k in range(2)], 1)
    flip = torch.rand(count, generator=generator) < 0.5
    picture = torch.where(flip[:, None, None, None, None], picture.flip(-1), picture)
    mirrored = points[:, :, permutation] * torch.tensor([-1.0, 1.0, 1.0])
    points = torch.where(flip[:, None, None, None], mirrored, points)
    return PairBatch(random_look(random_colour(picture, generator), generator), points)


def pick_varied_pair(clip: Clip, generator: torch.Generator) -> tuple[int, int]:
    """Random frames; three of five times the widest change of mouth or eyes among six tries."""
    pairs = torch.randint(len(clip), (6, 2), generator=generator)
    kind = torch.rand(1, generator=generator).item()
    if kind < 0.4:
        return int(pairs[0, 0]), int(pairs[0, 1])
    upper, lower = lm.INNER_LIP_PAIRS[1] if kind < 0.75 else lm.LEFT_EAR_POINTS[2]
    gap = clip.landmarks[:, lower, 1] - clip.landmarks[:, upper, 1]
    best = int((gap[pairs[:, 1]] - gap[pairs[:, 0]]).abs().argmax())
    return int(pairs[best, 0]), int(pairs[best, 1])


def pick_opening_pair(clip: Clip, generator: torch.Generator) -> tuple[int, int]:
    """Mostly what a portrait has to learn: from a shut mouth to an open one, from open eyes to shut ones; and lips that meet.

    A fifth of the pairs start from the other end, or teeth that the portrait shows would be painted over.
    """
    frames = torch.randint(len(clip), (8,), generator=generator)
    kind, sorted_source, sorted_driving = torch.rand(3, generator=generator).tolist()
    if kind < 0.15:
        return int(frames[0]), int(frames[1])
    # Eyes are listed the other way round: their gap is largest in the source.
    upper, lower = lm.INNER_LIP_PAIRS[1] if kind < 0.7 else reversed(lm.LEFT_EAR_POINTS[2])
    gap = clip.landmarks[frames, lower, 1] - clip.landmarks[frames, upper, 1]
    other_end = int(gap.topk(2).indices[1]) if sorted_source < 0.7 else 0
    source = int(gap.argmin()) if sorted_source < 0.5 else other_end
    driving = int(gap.argmax()) if sorted_driving < 0.5 else int(gap.argmin()) if sorted_driving < 0.7 else 1
    return int(frames[source]), int(frames[driving])


def widest_mouth_pair(clip: Clip) -> tuple[int, int]:
    """(first frame, the frame whose mouth opening differs most from it): the fixed validation pair of a clip."""
    gap = clip.landmarks[:, 14, 1] - clip.landmarks[:, 13, 1]
    return 0, int((gap - gap[0]).abs().argmax())


def contact_sheet(rows: list[Tensor]) -> np.ndarray:
    """Rows of images (B, 3, H, W) in [0, 1] stacked under each other -> (rows * H, B * W, 3) uint8."""
    strips = [row.permute(2, 0, 3, 1).flatten(1, 2) for row in rows]
    return (torch.cat(strips).clamp(0, 1) * 255).round().byte().numpy()
