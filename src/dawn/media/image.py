"""Pictures: any common file to RGB pixels, pixels to PNG, and contact sheets."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dawn.errors import ImageError
from dawn.media.files import FilePath, check_input, quote, replace_file
from dawn.structs import ImageArray

log = logging.getLogger(__name__)

MAX_IMAGE_PIXELS = 64_000_000
MAX_SIDE_PX = 16_384
MIN_SIDE_PX = 32
BACKGROUND_RGB = (236, 236, 236)
"""The background of transparent pictures: near white, so that cut-out hair keeps no dark rim."""

FORMATS = (
    *("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000"),
    *("PPM", "TGA", "ICO", "PCX", "SGI", "QOI", "PSD"),
)
"""Formats that are read. A list, because Pillow starts Ghostscript for EPS."""

_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files."""


def read_image(path: FilePath, max_pixels: int = MAX_IMAGE_PIXELS) -> ImageArray:
    """Read a picture as (H, W, 3) uint8 RGB, contiguous, upright, opaque, in sRGB.

    Of an animation the first frame is read. The size is checked in the header, before any pixel is decoded.

    Raises:
        ImageError: The file is missing, damaged or no picture; a side is under 32 px or over 16384 px; or the picture
            is over ``max_pixels``.
    """
    checked = check_input(path, ImageError, "picture")
    try:
        with warnings.catch_warnings():
            # Pillow's own warnings about large or odd files: our check of the size follows at once.
            warnings.simplefilter("ignore")
            image = Image.open(checked, formats=[name for name in FORMATS if _has_decoder(name)])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as cause:
        raise ImageError(f"picture {quote(path)} is over {max_pixels / 1e6:g} megapixels; scale it down") from cause
    except UnidentifiedImageError as cause:
        raise ImageError(f"{quote(path)} is no picture that can be read; save it as JPEG or PNG") from cause
    except _DAMAGE as cause:
        raise ImageError(f"picture {quote(path)} is damaged: {_one_line(cause)}; save it again") from cause
    with image:
        _check_size(path, image.size, max_pixels)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.load()
                rgb = _to_rgb(image, path)
        except (*_DAMAGE, Image.DecompressionBombError) as cause:
            raise ImageError(f"picture {quote(path)} is damaged: {_one_line(cause)}; save it again") from cause
    return np.ascontiguousarray(rgb)


def save_png(path: FilePath, array: ImageArray) -> None:
    """Write (H, W, 3) or (H, W) uint8 as PNG, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    assert array.dtype == np.uint8, f"pixels must be uint8, not {array.dtype}"
    with replace_file(path, (".png",)) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


def contact_sheet(frames: Sequence[ImageArray], columns: int, cell_px: int) -> ImageArray:
    """Lay frames (H, W, 3) uint8 of any sizes into square cells, row by row: (rows * cell_px, columns * cell_px, 3)."""
    assert frames, "a contact sheet needs frames"
    assert min(columns, cell_px) > 0, "a contact sheet needs columns and a cell size"
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * cell_px, rows * cell_px), BACKGROUND_RGB)
    for index, frame in enumerate(frames):
        cell = ImageOps.contain(Image.fromarray(frame), (cell_px, cell_px), Image.Resampling.LANCZOS)
        row, column = divmod(index, columns)
        x = column * cell_px + (cell_px - cell.width) // 2
        y = row * cell_px + (cell_px - cell.height) // 2
        sheet.paste(cell, (x, y))
    return np.asarray(sheet).copy()


def _has_decoder(name: str) -> bool:
    """Tell whether this build of Pillow reads a format (AVIF and JPEG 2000 are optional)."""
    Image.init()
    return name in Image.OPEN


def _one_line(cause: BaseException) -> str:
    return " ".join(str(cause).split()) or type(cause).__name__


def _check_size(path: FilePath, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    name = f"picture {quote(path)} is {width} x {height} px"
    if min(size) < MIN_SIDE_PX:
        raise ImageError(f"{name}; at least {MIN_SIDE_PX} px a side are needed")
    if max(size) > MAX_SIDE_PX:
        raise ImageError(f"{name}; at most {MAX_SIDE_PX} px a side are read, so scale it down")
    if width * height > max_pixels:
        raise ImageError(f"{name}; at most {max_pixels / 1e6:g} megapixels are read, so scale it down")


def _to_rgb(image: Image.Image, path: FilePath) -> ImageArray:
    """Convert a loaded picture of any mode to (H, W, 3) uint8."""
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _deep_grey_to_rgb(np.asarray(image), path)
    if profile and image.mode in ("RGB", "CMYK"):
        image = _to_srgb(image, profile)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND_RGB, 255)), rgba)
    return np.asarray(image.convert("RGB"))


def _deep_grey_to_rgb(grey: NDArray[Any], path: FilePath) -> ImageArray:
    """Convert 16-bit grey (H, W) of any integer type to (H, W, 3) uint8: Pillow's own conversion clips at 255."""
    if not np.issubdtype(grey.dtype, np.integer) or grey.min() < 0 or grey.max() > 65535:
        raise ImageError(f"picture {quote(path)} has {grey.dtype} pixels of unknown range; save it as 8-bit PNG")
    eight_bits = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(eight_bits[..., None], 3, axis=2)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply an embedded colour profile: phones write Display P3, printers CMYK, and both look wrong as sRGB."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as cause:
        log.warning("colour profile cannot be used (%s); colours are taken as sRGB", _one_line(cause))
        return image
    assert converted is not None
    return converted
