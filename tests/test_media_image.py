"""Pictures: every kind that people have, every kind of broken file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dawn.errors import ImageError, OutputError
from dawn.media import contact_sheet, read_image, save_png
from dawn.media.image import BACKGROUND_RGB
from media_files import empty_file, noise, one_line


def ramp(height: int = 40, width: int = 64) -> np.ndarray:
    """(H, W, 3) smooth picture whose corners differ, so that every turn shows."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 2], 2).astype(np.uint8)


def assert_picture(image: np.ndarray, expected: np.ndarray, tolerance: float = 0) -> None:
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() <= tolerance


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("a.png", 0), ("a.jpg", 4), ("a.webp", 6), ("a.bmp", 0), ("a.tiff", 0), ("a.avif", 6), ("a.jp2", 4), ("a.tga", 0)],
)
def test_formats(tmp_path: Path, name: str, tolerance: float) -> None:
    Image.fromarray(ramp()).save(tmp_path / name)
    assert_picture(read_image(tmp_path / name), ramp(), tolerance)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LAB"])
def test_modes(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(ramp()).convert("RGB")
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    else:
        image = image.convert(mode)
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr", "LAB") else "a.png")
    # Pillow before 13 cannot read its own uncompressed YCbCr.
    image.save(path, **({"compression": "tiff_lzw"} if mode == "YCbCr" else {}))
    expected = ramp() if mode in ("CMYK", "YCbCr", "LAB") else np.asarray(image.convert("RGB"))
    assert_picture(read_image(path), expected, 3)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    deep = np.linspace(0, 65535, 40 * 64).reshape(40, 64).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}")
    assert_picture(image, np.repeat(np.round(deep / 257)[..., None], 3, 2).astype(int), 0.01)


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    deep = (ramp().astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    path = tmp_path / "a.png"
    path.write_bytes(png(64, 40, rows, depth=16))
    assert_picture(read_image(path), ramp())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_grey(tmp_path: Path, mode: str) -> None:
    rgba = np.dstack([np.full((40, 64, 3), 90, np.uint8), np.zeros((40, 64), np.uint8)])
    rgba[:, 32:, 3] = 255
    Image.fromarray(rgba).convert(mode).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert tuple(image[5, 5]) == BACKGROUND_RGB and np.abs(image[5, 60].astype(int) - 90).max() <= 3


@pytest.mark.parametrize(
    ("orientation", "undone"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: np.rot90(a, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation(tmp_path: Path, orientation: int, undone) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(ramp()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert_picture(read_image(tmp_path / "a.jpg"), undone(ramp()), 4)


def test_colour_profile_is_applied(tmp_path: Path) -> None:
    # A profile with red and blue exchanged: whoever ignores it sees the wrong colour.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[..., 0] = 255
    Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=bytes(profile))
    red_level, _, blue_level = read_image(tmp_path / "a.png")[20, 20]
    assert blue_level > 240 and red_level < 15
    Image.fromarray(picture).save(tmp_path / "b.png", icc_profile=b"no profile at all")
    assert tuple(read_image(tmp_path / "b.png")[20, 20]) == (255, 0, 0)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ((200, 30, 30), (30, 200, 30))]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], duration=100)
    assert np.abs(read_image(tmp_path / f"a{suffix}")[20, 20].astype(int) - (200, 30, 30)).max() < 8


def png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    """A hand-made RGB PNG, for headers that Pillow would not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    packed = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def written(name: str, data: bytes):
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def saved(name: str, image: Image.Image, share: float = 1.0):
    def make(folder: Path) -> Path:
        image.save(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: round(len(data) * share)])
        return folder / name

    return make


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"

BAD_PICTURES = {
    "missing": (lambda f: f / "a.png", "does not exist"),
    "folder": (lambda f: f, "is a folder"),
    "empty": (empty_file, "0 bytes"),
    "device": (lambda f: Path("/dev/zero"), "not an ordinary file"),
    "text": (written("a.png", b"just text\n" * 30), "no picture"),
    "half a header": (written("a.png", png(64, 64, b"")[:20]), "no picture|damaged"),
    "postscript": (written("a.eps", POSTSCRIPT), "no picture"),
    "cut jpeg": (saved("a.jpg", Image.fromarray(noise(200, 200)), 0.5), "damaged.*truncated"),
    "cut png": (saved("a.png", Image.fromarray(noise(200, 200)), 0.5), "damaged"),
    "cut webp": (saved("a.webp", Image.fromarray(noise(200, 200)), 0.5), "damaged|no picture"),
    "no pixels": (written("a.png", png(64, 64, b"")), "damaged"),
    "80 megapixels": (written("a.png", png(10_000, 8_000, b"")), "10000 x 8000 px; at most 64 megapixels"),
    "100 megapixels": (written("a.png", png(10_000, 10_000, b"")), "at most 64 megapixels"),
    "bomb": (written("a.png", png(16_000, 16_000, b"")), "megapixels"),
    "wide": (written("a.png", png(16_385, 40, b"")), "at most 16384 px a side"),
    "small": (saved("a.png", Image.fromarray(noise(31, 64))), "64 x 31 px; at least 32 px"),
    "float": (saved("a.tiff", Image.fromarray(np.ones((40, 40), np.float32))), "unknown range"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_pictures(tmp_path: Path, kind: str) -> None:
    make, message = BAD_PICTURES[kind]
    with pytest.raises(ImageError, match=message) as error:
        read_image(make(tmp_path))
    one_line(error)


def test_cap_is_an_argument(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", noise(100, 100))
    assert read_image(tmp_path / "a.png", max_pixels=10_000).shape == (100, 100, 3)
    with pytest.raises(ImageError, match="100 x 100 px"):
        read_image(tmp_path / "a.png", max_pixels=9_999)


def test_save_png(tmp_path: Path) -> None:
    picture = noise(40, 50)
    save_png(tmp_path / "a.png", picture)
    assert_picture(read_image(tmp_path / "a.png"), picture)
    with pytest.raises(OutputError, match=r"must end in \.png") as error:
        save_png(tmp_path / "a.jpg", picture)
    one_line(error)
    with pytest.raises(OutputError, match="does not exist"):
        save_png(tmp_path / "none" / "a.png", picture)
    with pytest.raises(TypeError):
        save_png(tmp_path / "b.png", np.zeros((4, 4, 7), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_contact_sheet() -> None:
    frames = [np.full((20, 40, 3), level, np.uint8) for level in (10, 90, 170)]
    sheet = contact_sheet(frames, columns=2, cell_px=64)
    assert sheet.shape == (128, 128, 3) and sheet.dtype == np.uint8
    assert [int(sheet[y, x, 0]) for y, x in ((32, 32), (32, 96), (96, 32))] == [10, 90, 170]
    assert tuple(sheet[96, 96]) == tuple(sheet[2, 2]) == BACKGROUND_RGB
