"""Speech encoders by the name that a preset gives them.

Another encoder for ``lite`` is one file with an ``AudioNetwork``, one entry here and its name in ``config.AudioConfig``.
"""

from __future__ import annotations

from collections.abc import Callable

from dawn.config import AudioConfig
from dawn.models.audio.features import AudioNetwork
from dawn.models.audio.whisper import WhisperAudioEncoder

AUDIO_ENCODERS: dict[str, Callable[[AudioConfig], AudioNetwork]] = {"whisper": WhisperAudioEncoder}


def build_audio_encoder(config: AudioConfig) -> AudioNetwork:
    """Build the encoder that ``config.kind`` names, with random weights."""
    return AUDIO_ENCODERS[config.kind](config)
