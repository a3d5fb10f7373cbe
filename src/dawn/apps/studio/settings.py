"""What the studio may be told, and who may enter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dawn.apps.server_settings import Hours, Port, Seconds, ServerSettings, Waiting, is_loopback
from dawn.errors import ConfigError
from dawn.options import Control

AUTH_VARIABLE = "DAWN_STUDIO_AUTH"


class StudioSettings(ServerSettings):
    """Settings of one studio. Users come from ``auth``, from ``auth_file`` or from the environment variable."""

    port: Port = 7860
    auth_file: Annotated[Path | None, Control(value="F")] = Field(
        None, description="who may enter: one user:password a line"
    )
    auth: Annotated[str | None, Control(value="USER:PASSWORD")] = Field(
        None, repr=False, description=f"the same for one person; {AUTH_VARIABLE} is not seen by others"
    )
    max_seconds: Seconds = 300
    max_queue: Waiting = Field(8, description="videos that may wait for their turn")
    keep_hours: Hours = Field(2, description="files of a page that is not used are kept so long")
    root_path: Annotated[str, Control(value="PATH")] = Field(
        "", description="where a proxy shows the page, if not at /"
    )
    open_browser: bool = Field(False, description="open the page")


def accounts(settings: StudioSettings) -> list[tuple[str, str]]:
    """(user, password) of everybody who may enter; empty: no login is asked for.

    Raises ConfigError: an unreadable file, a line that is not "user:password", or an open address without any user. What was
    written is never repeated in the message.
    """
    source, lines = "`auth`", [settings.auth] if settings.auth is not None else []
    if settings.auth_file is not None:
        source = f"`auth_file={str(settings.auth_file)!r}`"
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
            f"host {settings.host!r} can be reached from other machines: give `auth=user:password`, `auth_file` "
            f"or {AUTH_VARIABLE}, or use 127.0.0.1"
        )
    return users
