"""What ``dawn serve`` can be told, and its token. Needs none of the packages of the extra ``[serve]``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pydantic import Field

from dawn import DEFAULT_PRESET
from dawn.apps.server_settings import is_loopback
from dawn.config import Strict
from dawn.errors import ConfigError
from dawn.media.audio import MAX_SPEECH_S, MIN_SPEECH_S
from dawn.media.image import MAX_IMAGE_PIXELS, MIN_SIDE_PX

TOKEN_VARIABLE = "DAWN_TOKEN"
MIN_TOKEN_LETTERS = 16


class ServeSettings(Strict):
    """Where the service listens, what it runs, and its limits."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    """0 takes any free one."""
    preset: str = DEFAULT_PRESET
    device: str = "auto"
    data: Path | None = None
    """Folder of jobs and their files; by default one that the user's programs keep their state in."""
    token_file: Path | None = None
    """Holds the bearer token; without one the environment variable DAWN_TOKEN does."""
    max_queue: int = Field(16, ge=1, le=10_000)
    """Jobs that may wait, uploads under way included."""
    max_upload_mb: float = Field(64, gt=0, le=4096)
    """Of both files together, in 10^6 bytes."""
    max_seconds: float = Field(600, ge=MIN_SPEECH_S, le=MAX_SPEECH_S)
    """Of speech."""
    max_pixels: int = Field(MAX_IMAGE_PIXELS, ge=MIN_SIDE_PX**2, le=MAX_IMAGE_PIXELS)
    """Of a portrait."""
    upload_timeout_s: float = Field(60, gt=0, le=3600)
    keep_hours: float = Field(24, gt=0, le=24 * 3650)
    """Finished jobs are removed with their files after so long."""

    @property
    def folder(self) -> Path:
        return (self.data or state_folder()).absolute()

    @property
    def max_upload_bytes(self) -> int:
        return round(self.max_upload_mb * 1e6)


def state_folder() -> Path:
    """Where this user's programs keep what must outlive them."""
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "dawn" / "serve"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "dawn" / "serve"
    return Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "dawn" / "serve"


def read_token(settings: ServeSettings) -> str | None:
    """The token that clients must show; None if there is none.

    Raises ConfigError: unreadable, easily guessed, or needed and not given.
    """
    where = (
        f"token file {str(settings.token_file)!r}" if settings.token_file else f"environment variable {TOKEN_VARIABLE}"
    )
    if settings.token_file:
        try:
            token = settings.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigError(f"{where} cannot be read ({reason}): give a text file with the token in it") from error
    elif TOKEN_VARIABLE in os.environ:
        token = os.environ[TOKEN_VARIABLE].strip()
    elif is_loopback(settings.host):
        return None
    else:
        raise ConfigError(
            f"host {settings.host!r} can be reached from other machines: give --token-file or {TOKEN_VARIABLE}, "
            "or listen on 127.0.0.1"
        )
    if len(token) < MIN_TOKEN_LETTERS or not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(
            f"{where}: {len(token)} letters; give at least {MIN_TOKEN_LETTERS}, without spaces and umlauts, "
            "as from: openssl rand -hex 24"
        )
    return token
