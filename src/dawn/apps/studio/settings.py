"""What the studio may be told, and who may enter."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from dawn import DEFAULT_PRESET
from dawn.apps.server_settings import is_loopback
from dawn.config import Strict
from dawn.errors import ConfigError
from dawn.media.image import MAX_IMAGE_PIXELS

AUTH_VARIABLE = "DAWN_STUDIO_AUTH"


class StudioSettings(Strict):
    """Settings of one studio. Users come from ``auth``, from ``auth_file`` or from the environment variable."""

    host: str = "127.0.0.1"
    port: int = Field(7860, ge=0, le=65535)
    """0 takes a free one."""
    preset: str = DEFAULT_PRESET
    device: str = "auto"
    auth: str | None = Field(None, repr=False)
    """"user:password"."""
    auth_file: Path | None = None
    """One "user:password" a line."""
    max_upload_mb: int = Field(64, ge=1, le=4096)
    max_seconds: float = Field(300.0, ge=1, le=1800)
    """Of one recording."""
    max_pixels: int = Field(MAX_IMAGE_PIXELS, ge=10_000, le=MAX_IMAGE_PIXELS)
    """Of one portrait."""
    max_queue: int = Field(8, ge=1, le=1000)
    """Videos that may wait for their turn."""
    keep_hours: float = Field(2.0, gt=0, le=24 * 365)
    """Files of a page that stays open but is not used are kept this long."""
    root_path: str = ""
    """Where a proxy shows the studio, if not at the root of its address."""
    open_browser: bool = False


def accounts(settings: StudioSettings) -> list[tuple[str, str]]:
    """(user, password) of everybody who may enter; empty: no login is asked for.

    Raises ConfigError: an unreadable file, a line that is not "user:password", or an open address without any user. What was
    written is never repeated in the message.
    """
    source, lines = "--auth", [settings.auth] if settings.auth is not None else []
    if settings.auth_file is not None:
        source = f"--auth-file {str(settings.auth_file)!r}"
        try:
            lines += [line for line in settings.auth_file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} cannot be read: give a text file with one user:password a line") from error
    elif not lines and os.environ.get(AUTH_VARIABLE):
        source, lines = AUTH_VARIABLE, [os.environ[AUTH_VARIABLE]]
    users = []
    for number, line in enumerate(lines, 1):
        user, colon, password = line.strip().partition(":")
        if not (user and colon and password):
            raise ConfigError(f"{source}: entry {number} is not a user and a password: write user:password")
        users.append((user, password))
    if settings.auth_file is not None and not users:
        raise ConfigError(f"{source} holds no user: write one user:password a line")
    if not users and not is_loopback(settings.host):
        raise ConfigError(
            f"host {settings.host!r} can be reached from other machines: give --auth user:password, --auth-file "
            f"or {AUTH_VARIABLE}, or use 127.0.0.1"
        )
    return users
