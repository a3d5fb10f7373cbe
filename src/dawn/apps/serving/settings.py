"""What ``dawn serve`` can be told, and its token. Needs none of the packages of the extra ``[serve]``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dawn.apps.server_settings import Hours, Port, Seconds, ServerSettings, Waiting, is_loopback
from dawn.errors import ConfigError
from dawn.options import Control

TOKEN_VARIABLE = "DAWN_TOKEN"
MIN_TOKEN_LETTERS = 16


class ServeSettings(ServerSettings):
    """Where the service listens, what it runs, and its limits. ``max_upload_mb`` is of both files together."""

    port: Port = 8000
    data: Annotated[Path | None, Control(unset="the user's state folder", value="DIR")] = Field(
        None, description="folder of jobs and results"
    )
    token_file: Annotated[Path | None, Control(value="F")] = Field(
        None, description=f"has the bearer token; or set {TOKEN_VARIABLE}"
    )
    max_seconds: Seconds = 600
    max_queue: Waiting = Field(16, description="jobs that may wait, uploads under way included; more are answered 429")
    upload_timeout_s: Annotated[float, Control(value="S")] = Field(
        60, gt=0, le=3600, description="an upload must have come in by then"
    )
    keep_hours: Hours = Field(24, description="finished jobs are kept so long, with their files")

    @property
    def folder(self) -> Path:
        """Give the folder of the jobs: ``data``, or else this user's state folder."""
        return (self.data or state_folder()).absolute()


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
            f"host {settings.host!r} can be reached from other machines: give `token_file` or {TOKEN_VARIABLE}, "
            "or listen on 127.0.0.1"
        )
    if len(token) < MIN_TOKEN_LETTERS or not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(
            f"{where}: {len(token)} letters; give at least {MIN_TOKEN_LETTERS}, without spaces and umlauts, "
            "as from: openssl rand -hex 24"
        )
    return token
