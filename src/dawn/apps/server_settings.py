"""What both servers, ``dawn serve`` and ``dawn studio``, can be told: one declaration and one limit for each setting."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import Field

from dawn import DEFAULT_PRESET
from dawn.media.audio import MAX_SPEECH_S, MIN_SPEECH_S
from dawn.media.image import MAX_IMAGE_PIXELS, MIN_SIDE_PX
from dawn.options import DEVICE, PRESET, Control
from dawn.structs import Strict

Port = Annotated[int, Field(ge=0, le=65535, description="port to listen on, 0 for a free one")]
Seconds = Annotated[
    float, Field(ge=MIN_SPEECH_S, le=MAX_SPEECH_S, description="longest recording, in seconds"), Control(value="S")
]
Waiting = Annotated[int, Field(ge=1, le=10_000), Control(value="N")]
"""How many may wait for their turn."""
Hours = Annotated[float, Field(gt=0, le=24 * 3650), Control(value="H")]


class ServerSettings(Strict):
    """Settings of both; each server adds its own, and its defaults where they differ."""

    host: str = Field(
        "127.0.0.1", description="address to listen on; any other than this machine's own asks for a secret"
    )
    port: Port
    preset: str = Field(DEFAULT_PRESET, description=PRESET)
    device: str = Field("auto", description=DEVICE)
    max_upload_mb: Annotated[float, Control(value="MB")] = Field(
        64, gt=0, le=4096, description="greatest upload, in 10^6 bytes"
    )
    max_pixels: Annotated[int, Control(value="N")] = Field(
        MAX_IMAGE_PIXELS, ge=MIN_SIDE_PX**2, le=MAX_IMAGE_PIXELS, description="most pixels of a portrait"
    )
    max_seconds: Seconds
    max_queue: Waiting
    keep_hours: Hours

    @property
    def max_upload_bytes(self) -> int:
        """Give the limit of an upload in bytes."""
        return round(self.max_upload_mb * 1e6)


def is_loopback(host: str) -> bool:
    """Whether a name or address, in brackets or not, is of this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
