"""Every number once: the configuration of each part and of a preset. Unknown keys are refused."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dawn.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """Frozen, refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LFGConfig(Strict):
    """Latent flow generator (paper section 3.2)."""

    image_size_px: int = Field(128, ge=64, le=1024, multiple_of=32)
    widths: tuple[int, int, int] = (24, 48, 96)
    """Channels at full, half and quarter resolution."""
    res_blocks: int = 2
    pool_first: bool = True
    first_kernel: int = 5
    last_kernel: int = 5
    flow_width: int = 32
    flow_depth: int = 3
    flow_max_width: int = 256
    flow_head_width: int = 40
    flow_cells: int = 32
    """Side of the grid on which flow is reasoned about; it is put out at twice that."""
    eye_suppression: float = Field(0.6, ge=0, le=1)
    """How much of the occlusion map a newly opened eye takes away (a newly opened mouth takes all)."""
    lid_flow: bool = True
    """Let the cells around the eyes follow the lids' landmarks (``regions.lid_flow``) instead of painting lids."""
    closing_suppression: float = Field(0.8, ge=0, le=1)
    """How much of it lips take away that close a mouth which is open in the source."""


class MotionSpaceConfig(Strict):
    """Expression coefficients: principal components of pose-free landmark motion."""

    lower: int = 16
    """Components of the lower face (lips, jaw, lower cheeks)."""
    upper: int = 8
    """Components of the upper face (eyes, brows, forehead)."""

    @property
    def size(self) -> int:
        return self.lower + self.upper


class AudioConfig(Strict):
    """Speech encoder. Short windows: Whisper's features depend on where in a window a sound falls, the less the shorter.

    layers_used: hidden states that become features, concatenated; 0 is the input of the first layer, ``depth`` the
    normalised output. peak: log10 power from which the silence floor is measured (``audio_encoder.log_mel``).
    """

    kind: Literal["whisper"] = "whisper"
    width: int = Field(384, gt=0, multiple_of=64)
    depth: int = Field(4, ge=1)
    layers_used: tuple[int, ...] = (1,)
    window_s: float = 2.0
    overlap_s: float = 1.0
    peak: float | None = 2.0


class A2VConfig(Strict):
    """Rectified-flow transformer over expression coefficients (paper section 3.3, in the ``lite`` motion space)."""

    audio_size: int = 768
    motion_size: int = 24
    source_size: int = 26
    """Source face: its own coefficients against the mean face, lip aperture and mean eye aspect ratio."""
    width: int = 192
    layers: int = 4
    heads: int = 4
    window_frames: int = 12
    """Temporal attention reaches this many frames to either side."""
    dropout: float = 0.1


class PBNetConfig(Strict):
    """Pose and blink network (paper section 3.4), repaired: rotary over whole heads, latents of a chosen smoothness."""

    audio_size: int = 768
    width: int = 128
    layers: int = 3
    heads: int = 4
    latent_size: int = 8
    window_frames: int = 50
    latent_smoothing_frames: tuple[float, ...] = (2.0, 8.0, 24.0)
    """Standard deviations of the Gaussian windows through which the decoder sees the per-frame latents."""
    dropout: float = 0.1


class SamplerConfig(Strict):
    """Defaults of generation."""

    steps: int = Field(6, ge=1, le=1000)
    guidance: float = Field(1.5, ge=0, le=10)
    temperature: float = Field(0.3, ge=0, le=2)
    """Standard deviation of the starting noise: less is nearer to the mean of what fits the sound."""
    latent_temperature: float = Field(1.18, ge=0, le=3)
    """Standard deviation of PBNet's latents, set so that blinks come at a natural rate."""
    pose_smoothing_frames: float = Field(2.0, ge=0, le=50)
    """Gaussian smoothing of generated pose: white latents leave a tremble that heads do not have."""


class PresetConfig(Strict):
    """All that defines a shipped or trained model."""

    name: str
    format_version: Literal[1] = 1
    lfg: LFGConfig = LFGConfig()
    motion: MotionSpaceConfig = MotionSpaceConfig()
    audio: AudioConfig = AudioConfig()
    a2v: A2VConfig = A2VConfig()
    pbnet: PBNetConfig = PBNetConfig()
    sampler: SamplerConfig = SamplerConfig()
    sha256: dict[str, str] = Field(default_factory=dict)
    """Checksums of the weight files."""


def parse(kind: type[Model], values: object, where: str) -> Model:
    """Validate values; raises ConfigError with one line that names the first wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(root)"
        raise ConfigError(f"{where}: {key} = {first.get('input')!r}: {first['msg']}") from error
