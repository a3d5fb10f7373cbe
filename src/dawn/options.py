"""What a user may turn, told once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from dawn.config import Precision, Strict


class GenerateOptions(Strict):
    """What a user may turn. ``None`` takes the preset's default."""

    seed: int = Field(0, ge=0, lt=2**63)
    steps: int | None = Field(None, ge=1, le=1000)
    guidance: float | None = Field(None, ge=0, le=10)
    pose_scale: float = Field(1.0, ge=0, le=3)
    """Strength of head motion."""
    blink: float = Field(1.0, ge=0, le=1.5)
    """Strength of blinks; 0 keeps the eyes as they are."""
    still: bool = False
    """No head motion at all: only face and eyes move."""
    expression: float = Field(1.0, ge=0, le=2)
    """Strength of facial motion."""
    sampler: Literal["ddim", "dpm++"] | None = None
    """Of the published model; ``lite`` has one sampler only."""
    precision: Precision | None = None
    """Of the published model's A2V network; ``lite`` computes in float32."""


class VideoOptions(GenerateOptions):
    """What may be asked of a video in a form or a table: ``GenerateOptions`` and the other arguments of ``Dawn.__call__``."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    size: int | None = None
    """Side of the crop in px (128, 256, 512), or limit of a full frame's longest side (256 to 2560)."""
    frame: Literal["crop", "full"] = "crop"
    """Square around the face, or whole photograph."""
    face: int | Literal["largest"] | None = None
    """Which of several faces, from left to right."""
    allow_silence: bool = False
    """Accept a silent recording."""

    def arguments(self) -> dict[str, Any]:
        """For ``Dawn.__call__``; options of generation that are not given are left to their defaults."""
        turned = self.model_dump(include=set(GenerateOptions.model_fields), exclude_defaults=True)
        return {
            "size": self.size,
            "frame": self.frame,
            "face": self.face,
            "allow_silence": self.allow_silence,
            **turned,
        }
