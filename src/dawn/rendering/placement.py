"""Where the generated square is shown: alone, in the photograph's square, or in the whole photograph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dawn import media
from dawn.engines.engine import Engine
from dawn.errors import ConfigError
from dawn.options import FULL_SIZE_PX, FULL_SIZES_PX, SQUARE_SIZES_PX, option
from dawn.preprocess.crop import Fit, cut, is_off_centre, shift_into
from dawn.preprocess.portrait import MAX_FACES, choose_face, find_faces, prepare_face
from dawn.preprocess.tracker import FaceTracker
from dawn.rendering.composite import FullFrame
from dawn.structs import Box, Face, ImageArray, PathLike

FRAMES = option("frame").choices


@dataclass(frozen=True, eq=False)
class Placement:
    """A prepared face and what its frames look like.

    face: the portrait. size_px: side of the square, or limit of the photograph's longest side. full: puts frames back into
    the photograph, or its square; None where the networks' own pictures are shown.
    """

    face: Face
    size_px: int
    full: FullFrame | None = None

    @property
    def height(self) -> int:
        """Of the pictures, in pixels."""
        return self.size_px if self.full is None else self.full.height

    @property
    def width(self) -> int:
        """Of the pictures, in pixels."""
        return self.size_px if self.full is None else self.full.width

    def describe(self, engine: Engine[Any]) -> str:
        """Say in one phrase, for metadata, which preset draws and whether something is reduced."""
        native, full = engine.native_px, self.full
        if full is None:
            scaled = f", {native} px reduced to {self.size_px} px" if self.size_px < native else ""
            return f"preset {engine.name}{scaled}"
        scaled = f", photograph reduced from {full.original}" if full.reduced else ""
        return f"preset {engine.name}, {native} px square at {full.box.width:.0f} px in the photograph{scaled}"


def check_size(engine: Engine[Any], size: int | None, frame: str, prepared: bool = False) -> int:
    """Return the size in pixels that a video of this kind gets.

    Args:
        engine: whose own size stands in where none is given.
        size: as the user gave it.
        frame: "crop" or "full".
        prepared: of a face without its photograph nothing larger than the networks' own is made.

    Raises:
        ConfigError: a size that cannot be had.
    """
    if frame not in FRAMES:
        raise ConfigError(f"frame {frame!r}: give crop or full")
    if frame == "full":
        low, high = FULL_SIZES_PX
        if size is not None and not low <= size <= high:
            raise ConfigError(f"size {size}: of a full frame it limits the longest side; give {low} to {high} px")
        return size or FULL_SIZE_PX
    if size is None:
        return engine.native_px if prepared else engine.shown_px
    if size not in SQUARE_SIZES_PX:
        raise ConfigError(f"size {size}: give one of {', '.join(map(str, SQUARE_SIZES_PX))} px")
    return size


def place_portrait(
    engine: Engine[Any],
    portrait: PathLike | ImageArray | Face,
    size_px: int,
    frame: str = "crop",
    choice: int | str | None = None,
) -> Placement:
    """Find, check and crop the portrait's face once, and say where its frames go.

    The networks see every face in the middle of their square. Where the output is larger than that square, or the
    photograph's square had to be shifted, frames are put back into the photograph's own pixels.

    Args:
        engine: the networks.
        portrait: an image file, an (H, W, 3) uint8 RGB array, or a prepared face.
        size_px: from ``check_size``.
        frame: "crop" or "full".
        choice: which of several faces, see ``preprocess.portrait.choose_face``.

    Raises:
        ImageError, FaceError: and their kinds, for pictures that cannot be used.
        ConfigError: a prepared face for more than it serves.
    """
    native = engine.native_px
    if isinstance(portrait, Face):
        if frame == "full" or size_px > native or portrait.crop.shape[0] != native:
            raise ConfigError(
                f"a prepared face serves for squares of its own preset, up to {native} px: give the picture"
            )
        return Placement(portrait, size_px)
    image = read_portrait(portrait)
    with FaceTracker(max_faces=MAX_FACES) as tracker:
        found = choose_face(find_faces(image, tracker), choice)
        if frame == "crop" and size_px <= native:
            face = prepare_face(image, found, native, tracker, engine.mean_face())
            if size_px < native or not is_off_centre(face):
                return Placement(face, size_px)
        face = prepare_face(image, found, native, tracker, engine.mean_face(), Fit.CENTRED)
    rules = engine.config.rules.composite
    if frame == "full":
        return Placement(face, size_px, FullFrame(image, face, size_px, engine.device, rules))
    own, shown = face.box, shift_into(face.box, image.shape[1], image.shape[0])
    scale = size_px / shown.width
    x0, y0 = (own.x0 - shown.x0) * scale, (own.y0 - shown.y0) * scale
    placed = replace(face, box=Box(x0, y0, x0 + size_px, y0 + size_px))
    square = cut(image, shown, size_px)
    return Placement(face, size_px, FullFrame(square, placed, size_px, engine.device, rules))


def read_portrait(portrait: PathLike | ImageArray) -> ImageArray:
    """Read an image file; an array (H, W, 3) uint8 is returned as it is. Raises ImageError."""
    return portrait if isinstance(portrait, np.ndarray) else media.read_image(portrait)
