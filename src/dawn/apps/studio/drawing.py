"""Pictures that the page shows: the photograph with what was found in it, and small frames."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from dawn.preprocess.crop import crop_box
from dawn.structs import Box, ImageArray, TrackedFace

SHOWN_PX = 900
"""Longest side of the photograph on the page."""
PREVIEW_PX = 400
ACCENT, QUIET, DARK = (45, 212, 191), (203, 213, 225), (15, 23, 42)
OTHER_SHADE = 0.45
"""What lies outside the square is darkened to this share of its light."""


def marked(image: ImageArray, faces: Sequence[TrackedFace], chosen: TrackedFace | None) -> Image.Image:
    """Draw the faces into the photograph (H, W, 3), made smaller if large.

    Every face has a box, numbered from the left if there are several. The chosen one's square is bright in a darkened
    picture.
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    picture.thumbnail((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS, reducing_gap=2.0)
    scale = picture.width / width
    line = max(2, round(max(picture.size) / 300))
    if chosen is not None:
        square = _scaled(crop_box(chosen, width, height), scale)
        dark = picture.point(lambda value: round(value * OTHER_SHADE))
        x0, y0, x1, y1 = (round(edge) for edge in _inside(square, picture))
        dark.paste(picture.crop((x0, y0, x1, y1)), (x0, y0))
        picture = dark
        _frame(ImageDraw.Draw(picture), square, DARK, 2 * line)
        _frame(ImageDraw.Draw(picture), square, (255, 255, 255), line)
    draw = ImageDraw.Draw(picture)
    for number, face in enumerate(sorted(faces, key=lambda face: face.box.center[0]), 1):
        box, colour = _scaled(face.box, scale), ACCENT if face is chosen else QUIET
        _frame(draw, box, colour, line)
        if len(faces) > 1:
            _badge(draw, box, str(number), colour, max(16, 8 * line))
    return picture


def _scaled(box: Box, scale: float) -> Box:
    return Box(box.x0 * scale, box.y0 * scale, box.x1 * scale, box.y1 * scale)


def _inside(box: Box, picture: Image.Image) -> tuple[float, float, float, float]:
    """The part of a box that lies in the picture."""
    return max(0, box.x0), max(0, box.y0), min(picture.width, box.x1), min(picture.height, box.y1)


def _frame(draw: ImageDraw.ImageDraw, box: Box, colour: tuple[int, int, int], line: int) -> None:
    draw.rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), outline=colour, width=line)


def _badge(draw: ImageDraw.ImageDraw, box: Box, text: str, colour: tuple[int, int, int], size_px: int) -> None:
    """A number in the upper left corner of a box."""
    x, y = max(0.0, box.x0), max(0.0, box.y0)
    draw.rectangle((x, y, x + 1.5 * size_px, y + 1.5 * size_px), fill=colour)
    centre = (x + 0.75 * size_px, y + 0.75 * size_px)
    draw.text(centre, text, fill=DARK, font=ImageFont.load_default(size_px), anchor="mm")


def jpeg_url(frame: ImageArray) -> str:
    """A frame (H, W, 3) uint8 RGB, made smaller if large, as an address that holds the picture itself."""
    picture = Image.fromarray(frame)
    picture.thumbnail((PREVIEW_PX, PREVIEW_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
