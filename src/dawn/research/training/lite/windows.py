"""Windows around mouths and eyes as training material for the fine stage's organ painter.

A pair of pictures, a portrait and the frame to be made of it, is rendered by the frozen generator once. What the painter
is told and what it should paint is kept as bytes. Pairs come from two sources:

- clips: two frames of one person;
- stills: the photograph is the frame; the portrait is the same photograph whose mouth the generator has shut, or opened.
  So thousands of people show their real teeth to the painter.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dawn import media
from dawn.config import OrganPainterConfig
from dawn.engines.load import load_bundle
from dawn.errors import ConfigError, InputError
from dawn.face.geometry import lip_aperture, remove_pose
from dawn.models.blocks import warp
from dawn.models.lite.detail import ORGANS, OrganWindows
from dawn.preprocess.crop import Fit, crop_box, cut, to_crop_units
from dawn.preprocess.portrait import prepare_portrait
from dawn.preprocess.tracker import FaceTracker
from dawn.research.training.data import GeometricChange, mirror_permutation
from dawn.structs import FPS, FloatArray, ImageArray, TrackedFace

SHARD_PAIRS = 384
BATCH = 8
OPENINGS = ((0.5, 0.0, 0.0), (0.2, 0.1, 0.5), (0.15, 0.5, 0.9), (0.15, 1.0, 1.0))
"""(share, low, high): what is left of a still's opening in the portrait that is made of it."""
OPEN_FROM = 0.06
"""Eye distances: stills whose lips are further apart count as open."""
WIDE = (0.12, 0.32)
"""Eye distances by which a still with shut lips is opened."""
TURN = (2.5, 2.0, 1.5, 0.0, 0.015, 0.015)
"""Standard deviation of the pose change between a still and the portrait made of it."""
CHANGE_STRENGTH = 0.8


@dataclass(frozen=True)
class Pair:
    """A frame (S, S, 3) uint8 and the portrait it is made of, with landmarks (478, 3).

    source None: the portrait is made of the frame, with the share ``left`` of its opening.
    """

    name: str
    kind: str
    frame: ImageArray
    landmarks: FloatArray
    source: ImageArray | None = None
    source_landmarks: FloatArray | None = None
    left: float = 1.0


class WindowMaker:
    """Renders pairs by a preset's generator and cuts the windows that the painter sees."""

    def __init__(self, preset: str, validation: bool = False) -> None:
        """Load the preset, which must have a fine stage. validation: pictures are not changed at random.

        Raises:
            ConfigError: the preset has no fine stage.
        """
        bundle = load_bundle(preset)
        self.generator, self.motion = bundle.lfg, bundle.motion
        if self.generator.fine is None:
            raise ConfigError(f"preset {preset}: has no fine stage, so there are no windows to paint; use lite-256")
        self.size = bundle.config.lfg.image_size_px
        self.mean_face = self.motion.mean_face
        painter = OrganPainterConfig()
        self.windows = OrganWindows(self.size, painter.mouth_window_px, painter.eye_window_px)
        self.opening = self.motion.opening_direction()
        self.permutation = mirror_permutation(self.mean_face)
        self.strength = 0.0 if validation else CHANGE_STRENGTH

    @torch.inference_mode()
    def make(self, pairs: list[Pair], random_numbers: torch.Generator) -> dict[str, Tensor]:
        """Render pairs, all with a source or all without: {organ.field: (N, ...)} as bytes."""
        change = GeometricChange(len(pairs), random_numbers, self.strength)
        grid = change.grid(self.size)

        def move(images: list[ImageArray], points: list[FloatArray]) -> tuple[Tensor, Tensor]:
            stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
            moved = F.grid_sample(stacked, grid, "bicubic", padding_mode="border", align_corners=False)
            return moved.clamp(0, 1), change.landmarks(torch.from_numpy(np.stack(points)))

        frames, points = move([pair.frame for pair in pairs], [pair.landmarks for pair in pairs])
        sources = [pair.source for pair in pairs if pair.source is not None]
        places = [pair.source_landmarks for pair in pairs if pair.source_landmarks is not None]
        if sources:
            portraits, seats = move(sources, places)
        else:
            left = torch.tensor([pair.left for pair in pairs])
            portraits, seats = self._reopen(frames, points, left, random_numbers)
        flip = torch.rand(len(pairs), generator=random_numbers) < 0.5 * (self.strength > 0)
        return self._cut(*self._mirror(portraits, seats, flip), *self._mirror(frames, points, flip))

    def _mirror(self, images: Tensor, points: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
        turned = points[:, self.permutation] * torch.tensor([-1.0, 1.0, 1.0])
        pictures = torch.where(flip[:, None, None, None], images.flip(-1), images)
        return pictures, torch.where(flip[:, None, None], turned, points)

    def _reopen(
        self, frames: Tensor, points: Tensor, left: Tensor, random_numbers: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw portraits (B, 3, S, S) with another opening and a slightly other pose; also their landmarks."""
        shape, pose = remove_pose(points, self.mean_face)
        opening, count = lip_aperture(shape).clamp_min(0), len(frames)
        wide = WIDE[0] + (WIDE[1] - WIDE[0]) * torch.rand(count, generator=random_numbers)
        opened = torch.where(left >= 1, torch.zeros(()), wide)
        change = torch.where(opening > OPEN_FROM, opening * (left - 1), opened)
        turn = torch.randn(count, 6, generator=random_numbers) * torch.tensor(TURN)
        turn[left >= 1] *= 0.3
        made_of = [
            self.motion.landmarks(turn[i : i + 1], (self.opening * change[i])[None], shape[i], pose[i])[0]
            for i in range(count)
        ]
        places = torch.stack(made_of)
        made = self.generator.redraw(self.generator.encode(frames, points), places).frame.clamp(0, 1)
        same = (left >= 1)[:, None, None, None] & (torch.rand(count, 1, 1, 1, generator=random_numbers) < 0.5)
        return torch.where(same, frames, made), torch.where(same[:, :, 0], points, places)

    def _cut(self, portraits: Tensor, places: Tensor, frames: Tensor, points: Tensor) -> dict[str, Tensor]:
        generator = self.generator
        detail, generator.detail = generator.detail, None  # the organ painter replaces both painters
        try:
            source = generator.encode(portraits, places)
            decoded = generator.decode(source, *generator.predict_flow(source, points))
        finally:
            generator.detail = detail
        moved = warp(source.full, decoded.flow.grid, (self.size, self.size))
        here = generator.fine.transfer(decoded.frame, moved)
        out: dict[str, Tensor] = {}
        for organ in ORGANS:
            window, old = self.windows.place(organ, points), self.windows.place(organ, places)
            pictures = torch.stack([*(window.cut(x) for x in (here, moved, frames)), old.cut(portraits)], 1)
            contours = torch.stack((self.windows.draw(organ, points, window), self.windows.draw(organ, places, old)), 1)
            relative = self.windows.relative(organ, points, window)
            if organ.mirrored:
                pictures, contours, relative = (x.flip(-1) for x in (pictures, contours, relative))
            # The place relative to the organ is linear in column and row: a corner and a step say it.
            corner, step = relative[:, :, 0, 0], relative[:, :1, 0, 1] - relative[:, :1, 0, 0]
            out[f"{organ.name}.pictures"] = _to_bytes(pictures)
            out[f"{organ.name}.contours"] = _to_bytes(contours)
            out[f"{organ.name}.place"] = torch.cat((corner, step), 1).half()
        return out


def _to_bytes(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round().byte()


def pair_stills(paths: Iterable[Path], maker: WindowMaker, variants: int, rng: random.Random) -> Iterator[Pair]:
    """Make pairs of photographs; those whose face cannot be used are left out. variants 0: shut once, for validation."""
    with FaceTracker(max_faces=2) as tracker:
        for path in paths:
            try:
                image = media.read_image(path)
                face = prepare_portrait(image, maker.size, tracker, maker.mean_face, "largest", Fit.CENTRED)
            except InputError:
                continue
            for _ in range(max(1, variants)):
                ((low, high),) = rng.choices([o[1:] for o in OPENINGS], [o[0] for o in OPENINGS])
                left = rng.uniform(low, high) if variants else 0.0
                yield Pair(path.name, "still", face.crop, face.landmarks, left=left)


def pair_clips(paths: Iterable[Path], maker: WindowMaker, pairs_a_second: float, rng: random.Random) -> Iterator[Pair]:
    """Make pairs of frames of one video: mouths that open, mouths that shut, eyes that shut."""
    with FaceTracker() as tracker:
        for path in paths:
            try:
                with media.VideoReader(path, fps=FPS) as reader:
                    frames = list(reader)
            except InputError:
                continue
            pick = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), 40)).round().astype(int))
            seen = [(frames[i], faces[0]) for i in pick if (faces := tracker.detect(frames[i]))]
            if len(seen) < 3:
                continue
            yield from _pick_pairs(path.name, seen, maker.size, max(1, round(pairs_a_second * len(frames) / FPS)), rng)


def _pick_pairs(
    name: str, seen: list[tuple[ImageArray, TrackedFace]], size: int, count: int, rng: random.Random
) -> Iterator[Pair]:
    height, width = seen[0][0].shape[:2]
    landmarks = np.stack([face.landmarks for _, face in seen])
    box = crop_box(TrackedFace(landmarks.mean(0), seen[0][1].blendshapes), width, height, Fit.INSIDE)
    crops, points = [cut(image, box, size) for image, _ in seen], to_crop_units(landmarks, box)
    mouth, lid = points[:, 14, 1] - points[:, 13, 1], points[:, 374, 1] - points[:, 386, 1]
    for _ in range(count):
        kind, chosen = rng.random(), rng.sample(range(len(crops)), min(6, len(crops)))
        i, j = chosen[:2]
        if 0.2 <= kind < 0.7:
            i = min(chosen, key=mouth.__getitem__) if rng.random() < 0.6 else i
            j = max(chosen, key=mouth.__getitem__) if rng.random() < 0.6 else j
        elif 0.7 <= kind < 0.8:
            i, j = max(chosen, key=mouth.__getitem__), min(chosen, key=mouth.__getitem__)
        elif kind >= 0.8:
            i, j = max(chosen, key=lid.__getitem__), int(lid.argmin())
        yield Pair(name, "clip", crops[j], points[j], crops[i], points[i])


def write_windows(pairs: Iterable[Pair], maker: WindowMaker, out: Path, tag: str, seed: int = 0) -> int:
    """Write shards ``<tag>_0000.safetensors`` ... until the pairs end, each of them whole or not at all.

    Returns:
        How many pairs were written.
    """
    out.mkdir(parents=True, exist_ok=True)
    random_numbers, written = torch.Generator().manual_seed(seed), 0
    waiting: list[Pair] = []
    parts: list[dict[str, Tensor]] = []
    names: list[tuple[str, str]] = []

    def render() -> None:
        if waiting:
            parts.append(maker.make(waiting, random_numbers))
            names.extend((pair.name, pair.kind) for pair in waiting)
            waiting.clear()

    def flush() -> None:
        nonlocal written
        if names:
            path, partial = out / f"{tag}_{written // SHARD_PAIRS:04d}.safetensors", out / f".{tag}.part"
            joined = {key: torch.cat([part[key] for part in parts]).contiguous() for key in parts[0]}
            save_file(joined, partial, {"names": json.dumps(names)})
            partial.replace(path)
            written += len(names)
            parts.clear()
            names.clear()

    for pair in pairs:
        waiting.append(pair)
        if len(waiting) == BATCH:
            render()
        if len(names) >= SHARD_PAIRS:
            flush()
    render()
    flush()
    return written
