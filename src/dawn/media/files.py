"""What the files of this room share: inputs opened with typed errors, outputs that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import secrets
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
from av.container import InputContainer

from dawn.errors import InputError, OutputError

log = logging.getLogger(__name__)

FilePath = str | PathLike[str]

DEMUXERS = (
    "wav,w64,mp3,mov,mp4,m4a,3gp,3g2,mj2,ogg,flac,matroska,webm,aac,ac3,eac3,aiff,caf,amr,amrnb,amrwb,au,avi,asf,flv,"
    "mpeg,mpegts,mpegvideo,ape,wv,tta,opus,mpc,mpc8,gsm,voc,mxf,nut,dv,rm,h264,hevc,ivf,yuv4mpegpipe,gif,apng"
)
"""Formats that are read.

A list, because FFmpeg's full set contains playlists (hls, concat, dash): they open further files and addresses named by
a stranger. It also takes any text for the ``tty`` "video" format.
"""

TOLERATED_DAMAGE = 0.05
"""Share of undecodable packets (tags in mid-stream, a cut first packet) that is skipped with a warning."""

_UNFIT_ERRNOS = {
    errno.ENOSPC: "no space is left on the device; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file grows beyond the size allowed here; raise the limit or choose another folder",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "permission denied; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOENT: "the folder does not exist; create it first",
    errno.ENOTDIR: "a part of the path is not a folder; check the path",
    errno.ENAMETOOLONG: "the file name is too long; choose a shorter one",
}


class Closable(ABC):
    """A context manager whose end calls ``close``."""

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, also after an exception, which goes on."""
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Free what is held. May be called twice."""


def quote(path: FilePath) -> str:
    """Quote a path for a one-line message; line breaks and other control characters are escaped."""
    return repr(os.fspath(path))


def check_input(path: FilePath, error: type[InputError], noun: str) -> Path:
    """Return ``path`` if it is an existing, readable, ordinary file with at least one byte.

    Args:
        path: the file.
        error: the kind of error to raise.
        noun: what the file should be, such as "picture", for the message.

    Raises:
        InputError: As ``error``, if it is not.
    """
    name = f"{noun} {quote(path)}"
    try:
        status = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as cause:
        raise error(f"{name} does not exist; check the path") from cause
    except OSError as cause:
        raise error(f"{name} cannot be reached: {cause.strerror}; check the path and its permissions") from cause
    if stat.S_ISDIR(status.st_mode):
        raise error(f"{name} is a folder; name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{name} is not an ordinary file; save it to a file first")
    if status.st_size == 0:
        raise error(f"{name} is empty (0 bytes); make or download it again")
    if not os.access(path, os.R_OK):
        raise error(f"{name} may not be read; change its permissions")
    return Path(path)


def open_container(path: FilePath, error: type[InputError], noun: str) -> InputContainer:
    """Open an audio or video file for decoding. Arguments as ``check_input``.

    Raises:
        InputError: As ``error``, if the file cannot be opened.
    """
    checked = check_input(path, error, noun)
    try:
        # "file:" keeps a name such as "a:b.wav" from being read as a protocol; tags in old encodings must not matter.
        return av.open(
            f"file:{checked.absolute()}",
            mode="r",
            options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError, ValueError) as cause:
        raise error(f"{quote(path)} is no {noun}, or it is damaged; convert it to WAV, MP3 or MP4 first") from cause


def decode(container: InputContainer, stream: Any, path: FilePath, error: type[InputError]) -> Iterator[Any]:
    """Yield the frames of one stream in order of presentation; skip a few damaged packets.

    Raises:
        InputError: As ``error``, if more than ``TOLERATED_DAMAGE`` of the packets cannot be decoded.
    """
    packets = damaged = 0
    try:
        for packet in container.demux(stream):
            packets += 1
            try:
                frames = packet.decode()
            except av.FFmpegError as cause:
                damaged += 1
                if damaged == 1:
                    log.warning("%s: packet %d cannot be decoded (%s); skipped", path, packets, cause.strerror)
                if damaged > 20 + TOLERATED_DAMAGE * packets:
                    break
                continue
            yield from frames
    except av.FFmpegError as cause:
        raise error(f"{quote(path)} is damaged: {cause.strerror}; make or download it again") from cause
    if damaged > TOLERATED_DAMAGE * packets:
        raise error(f"{quote(path)} is damaged: {damaged} of {packets} packets cannot be decoded; make it again")


def output_error(path: FilePath, cause: BaseException) -> OutputError:
    """Return the one-line ``OutputError`` for an exception met while writing ``path``."""
    number = getattr(cause, "errno", None)
    reason = _UNFIT_ERRNOS.get(number or 0) or getattr(cause, "strerror", None) or f"{cause}" or type(cause).__name__
    return OutputError(f"cannot write {quote(path)}: {' '.join(reason.split())}")


def create_beside(path: FilePath, suffixes: tuple[str, ...]) -> tuple[Path, Path]:
    """Check that ``path`` can be written and create an empty temporary file in its folder.

    Returns:
        The final path with symbolic links resolved, and the temporary path.

    Raises:
        OutputError: The name has none of the ``suffixes``, or the file cannot be written.
    """
    if Path(path).suffix.lower() not in suffixes:
        raise OutputError(f"cannot write {quote(path)}: the name must end in {' or '.join(suffixes)}")
    try:
        final = Path(path).resolve()
        if final.is_dir():
            raise OutputError(f"cannot write {quote(path)}: it is a folder; name a file in it")
        if final.exists() and not os.access(final, os.W_OK):
            raise OutputError(f"cannot write {quote(path)}: the existing file is write-protected; choose another name")
        temporary = final.with_name(f".dawn-{secrets.token_hex(6)}{final.suffix}")
        # Not tempfile.mkstemp: its 0600 would stay on the result; 0o666 lets the user's umask decide.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except (OSError, ValueError, RuntimeError) as cause:
        raise output_error(path, cause) from cause
    return final, temporary


def publish(temporary: Path, final: Path) -> None:
    """Move a finished temporary file to its final name.

    Raises:
        OSError: The file cannot be written; a full disk may show only now.
    """
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(final)


@contextmanager
def replace_file(path: FilePath, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Hand out a temporary path: it replaces ``path`` at the end, or vanishes on any exception.

    Raises:
        OutputError: The file cannot be written.
    """
    final, temporary = create_beside(path, suffixes)
    try:
        yield temporary
        publish(temporary, final)
    except (OSError, av.FFmpegError) as cause:
        raise output_error(path, cause) from cause
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: FilePath, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all; numbers that are not finite become null.

    Raises:
        OutputError: The file cannot be written.
    """
    text = json.dumps(_null_infinities(value), indent=1, allow_nan=False)
    with replace_file(path, (".json",)) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _null_infinities(value: Any) -> Any:
    """Replace numbers that are not finite by None, at any depth: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _null_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
