"""Every number once: the configuration of each part and of a preset. Unknown keys are refused."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from dawn.errors import ConfigError
from dawn.rules_config import RulesConfig
from dawn.structs import FPS, Strict

Model = TypeVar("Model", bound=BaseModel)
Precision = Literal["float32", "bfloat16"]
MAX_AUDIO_WINDOW_S = 30.0
"""Whisper has no positions beyond this."""


class DetailConfig(Strict):
    """Detail painter: windows around mouth and eyes that are painted a second time (``models.detail``)."""

    mouth_window_px: tuple[int, int] = (40, 32)
    """Width and height in a picture of 128 px; multiples of 4."""
    eye_window_px: tuple[int, int] = (24, 16)
    mouth_width: int = 56
    eye_width: int = 40
    res_blocks: int = 2


class OrganPainterConfig(Strict):
    """Organ painter: small U-Nets for windows around mouth and eyes (``models.lite.organs``)."""

    mouth_window_px: tuple[int, int] = (40, 32)
    """Width and height in a picture of 128 px; multiples of 4."""
    eye_window_px: tuple[int, int] = (24, 16)
    mouth_widths: tuple[int, ...] = (40, 80, 160)
    """Channels at 1/2, 1/4, ... of the window's own resolution."""
    eye_widths: tuple[int, ...] = (28, 56)
    res_blocks: int = 2


class FineConfig(Strict):
    """Fine stage: decoded frames at twice the size (``models.fine``)."""

    agreement: float = Field(0.04, gt=0)
    """How unlike the decoded and the moved picture may be (mean difference of colours in [0, 1]) to share fine detail."""
    gain: float = Field(1.35, ge=0, le=2)
    """Strength of the portrait's fine detail; above 1 because frames are softer than the portrait where it is not added."""
    painter: DetailConfig | OrganPainterConfig | None = DetailConfig(mouth_width=80, eye_width=48)
    """Paint mouth and eyes at the full size too."""


class LFGConfig(Strict):
    """Latent flow generator (paper section 3.2)."""

    image_size_px: int = Field(128, ge=64, le=1024, multiple_of=32)
    """Side of its pictures."""
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
    detail: DetailConfig | None = DetailConfig()
    """Paint mouth and eyes a second time; None for the plain generator."""
    fine: FineConfig | None = None
    """Decode at half of ``image_size_px`` and double; None decodes at ``image_size_px``."""

    @model_validator(mode="after")
    def _halves(self) -> LFGConfig:
        if self.fine and self.image_size_px % 64:
            raise ValueError(f"image_size_px {self.image_size_px}: with a fine stage give a multiple of 64")
        return self

    @property
    def decoded_size_px(self) -> int:
        """Side of the pictures that the decoder paints."""
        return self.image_size_px // 2 if self.fine else self.image_size_px


class MotionSpaceConfig(Strict):
    """Expression coefficients: principal components of pose-free landmark motion."""

    lower: int = 16
    """Components of the lower face (lips, jaw, lower cheeks)."""
    upper: int = 8
    """Components of the upper face (eyes, brows, forehead)."""

    @property
    def size(self) -> int:
        """Count all coefficients."""
        return self.lower + self.upper


class AudioConfig(Strict):
    """Speech encoder. Short windows: Whisper's features depend on where in a window a sound falls, the less the shorter.

    layers_used: hidden states that become features, concatenated; 0 is the input of the first layer, ``depth`` the
    normalised output. peak: log10 power from which the silence floor is measured (``audio_encoder.log_mel``).
    """

    kind: Literal["whisper"] = "whisper"
    width: int = Field(384, gt=0, multiple_of=64)
    depth: int = Field(4, ge=0)
    layers_used: tuple[int, ...] = (1,)
    window_s: float = 2.0
    overlap_s: float = 1.0
    peak: float | None = 2.0
    """Usual loudest value of a speech recording (median of 24 clips: 1.9). Fixed, so that features stay local."""

    @model_validator(mode="after")
    def _fits(self) -> AudioConfig:
        if not self.layers_used or any(not 0 <= n <= self.depth for n in self.layers_used):
            raise ValueError(f"layers_used {self.layers_used}: give layers from 0 to {self.depth}")
        for name, seconds in (("window_s", self.window_s), ("overlap_s", self.overlap_s)):
            if abs(seconds * FPS - round(seconds * FPS)) > 1e-6:
                raise ValueError(f"{name} {seconds}: give a multiple of one frame ({1 / FPS} s)")
        if not 1 / FPS <= self.window_s <= MAX_AUDIO_WINDOW_S:
            raise ValueError(f"window_s {self.window_s}: give {1 / FPS} to {MAX_AUDIO_WINDOW_S:g} s")
        if not 0 <= self.overlap_s <= self.window_s / 2:
            raise ValueError(f"overlap_s {self.overlap_s}: give 0 to half of window_s {self.window_s}")
        return self

    @property
    def feature_size(self) -> int:
        """Numbers that describe a video frame: two vectors of each layer used."""
        return 2 * self.width * len(self.layers_used)

    @property
    def window_frames(self) -> int:
        """Give the length of a window in video frames."""
        return round(self.window_s * FPS)

    @property
    def overlap_frames(self) -> int:
        """Give the overlap of two windows in video frames."""
        return round(self.overlap_s * FPS)


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


class SyncJudgeConfig(Strict):
    """The audio-lip network that judges sync (``models.sync_judge``)."""

    mouth_size_px: int = Field(48, ge=16, multiple_of=16)
    widths: tuple[int, int, int] = (32, 64, 128)
    """Channels of the picture stream at 1/4, 1/8 and 1/16 of the side."""
    sound_widths: tuple[int, int, int] = (24, 48, 64)
    hidden: int = 128
    embedding: int = 128
    dropout: float = Field(0.2, ge=0, lt=1)
    start_sharpness: float = Field(10.0, gt=0)
    """Factor from cosines to logits at the start of training, which learns it."""


class SamplerConfig(Strict):
    """Defaults of generation."""

    steps: int = Field(6, ge=1, le=1000)
    guidance: float = Field(1.75, ge=0, le=10)
    temperature: float = Field(0.1, ge=0, le=2)
    """Standard deviation of the starting noise: less is nearer to the mean of what fits the sound."""
    latent_temperature: float = Field(1.18, ge=0, le=3)
    """Standard deviation of PBNet's latents, set so that blinks come at a natural rate."""
    pose_smoothing_frames: float = Field(2.0, ge=0, le=50)
    """Gaussian smoothing of generated pose: white latents leave a tremble that heads do not have."""


class RegionsConfig(Strict):
    """Learned regions and background motion (paper section 3.2, after MRAA)."""

    count: int = 10
    width: int = 32
    depth: int = 5
    max_width: int = 1024
    temperature: float = 0.1
    """Of the softmax that turns a map into a heat map."""


class PaperLFGConfig(Strict):
    """Latent flow generator as published; flow lives on a quarter of the picture's side."""

    image_size_px: int = Field(128, ge=32, le=1024, multiple_of=32)
    regions: RegionsConfig = RegionsConfig()
    width: int = 64
    max_width: int = 512
    res_blocks: int = 6
    flow_width: int = 64
    flow_depth: int = 5
    flow_max_width: int = 1024

    @property
    def latent_size(self) -> int:
        """Side of the flow grid."""
        return self.image_size_px // 4


class UNetConfig(Strict):
    """3-D U-Net of the A2V-FDM as published (paper section 3.3)."""

    latent_size: int = 32
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    source_size: int = 256
    mask_size: int = 16
    audio_size: int = 1024
    pose_size: int = 6
    eye_size: int = 2
    heads: int = 8
    head_size: int = 32
    cross_heads: int = 8
    cross_head_size: int = 8
    stem_kernel: int = 7
    norm_groups: int = 8
    window_frames: int = 40
    bias_buckets: int = 32
    bias_max_distance: int = 32


class PublishedPBNetConfig(Strict):
    """One of the two networks (pose, blink) that were published as PBNet (paper section 3.4), quirks included."""

    outputs: int = 6
    width: int = 64
    inner: int = 128
    latent_size: int = 256
    audio_size: int = 1024
    audio_width: int = 256
    layers: int = 2
    heads: int = 4
    head_size: int = 32
    rotary_size: int = 4
    """Dimensions of each head that are rotated: published as the number of heads instead of the head's size."""
    window_frames: int = 200
    """``transformerreemb5`` 200, ``transformerreemb6`` 100."""
    bias_buckets: int = 128
    bias_max_distance: int = 128
    dropout: float = 0.1


class PaperSamplerConfig(Strict):
    """Diffusion of the published model."""

    kind: Literal["ddim", "dpm++"] = "ddim"
    steps: int = Field(20, ge=1, le=1000)
    eta: float = Field(1.0, ge=0, le=1)
    guidance: float = Field(1.0, ge=0, le=10)
    shifted_alpha: bool = True
    """Published DDIM reads the step's alpha one entry early (``alphas_cumprod_prev``); the released weights expect it."""
    threshold_quantile: float = Field(0.9, gt=0, le=1)
    precision: Precision = "float32"
    """Of the A2V network. bfloat16 halves what a clip takes in memory and is quick where the machine has units for it."""


class LitePresetConfig(Strict):
    """All that defines a shipped or trained model."""

    PARTS: ClassVar[tuple[str, ...]] = ("audio", "a2v", "lfg", "motion", "pbnet")
    name: str
    kind: Literal["lite"] = "lite"
    format_version: Literal[1] = 1
    lfg: LFGConfig = LFGConfig()
    motion: MotionSpaceConfig = MotionSpaceConfig()
    audio: AudioConfig = AudioConfig()
    a2v: A2VConfig = A2VConfig()
    pbnet: PBNetConfig = PBNetConfig()
    sampler: SamplerConfig = SamplerConfig()
    rules: RulesConfig = RulesConfig()
    shown_size_px: Literal[128, 256, 512] | None = None
    """Side of the pictures that are made of a photograph, if nobody asks for another; None: the networks' own."""
    shares: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the preset beside this one that has the weight files which this folder lacks."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """Checksums of the weight files."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        heard, motion = self.audio.feature_size, self.motion.size
        _check_fit(
            ("a2v.audio_size", self.a2v.audio_size, "audio's features", heard),
            ("pbnet.audio_size", self.pbnet.audio_size, "audio's features", heard),
            ("a2v.motion_size", self.a2v.motion_size, "motion's coefficients", motion),
            ("a2v.source_size", self.a2v.source_size, "motion's coefficients and two more", motion + 2),
        )
        return self


class PaperPresetConfig(Strict):
    """All that defines a converted preset of the published model."""

    PARTS: ClassVar[tuple[str, ...]] = ("blink", "lfg", "mask", "pose", "unet")
    name: str
    kind: Literal["paper"] = "paper"
    format_version: Literal[1] = 1
    lfg: PaperLFGConfig = PaperLFGConfig()
    unet: UNetConfig = UNetConfig()
    pose: PublishedPBNetConfig = PublishedPBNetConfig()
    blink: PublishedPBNetConfig = PublishedPBNetConfig(outputs=2, width=32, inner=64)
    hubert: str = "facebook/hubert-large-ls960-ft"
    """Folder or hub name of the speech encoder, which is not converted."""
    sampler: PaperSamplerConfig = PaperSamplerConfig()
    rules: RulesConfig = RulesConfig()
    """Only those on tone and composite act: the published networks have no others."""
    shown_size_px: None = None
    """Shown at the networks' own size."""
    shares: None = None
    sha256: dict[str, str] = Field(default_factory=dict)
    """Checksums of the weight files."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        heard = self.unet.audio_size
        _check_fit(
            ("pose.audio_size", self.pose.audio_size, "unet.audio_size", heard),
            ("blink.audio_size", self.blink.audio_size, "unet.audio_size", heard),
            ("pose.outputs", self.pose.outputs, "unet.pose_size", self.unet.pose_size),
            ("blink.outputs", self.blink.outputs, "unet.eye_size", self.unet.eye_size),
            ("unet.latent_size", self.unet.latent_size, "a quarter of lfg.image_size_px", self.lfg.latent_size),
        )
        return self


def _check_fit(*pairs: tuple[str, int, str, int]) -> None:
    """Refuse parts that cannot work together. Raises ValueError that names both numbers."""
    for name, value, other, wanted in pairs:
        if value != wanted:
            raise ValueError(f"{name} is {value}, {other} are {wanted}: use parts that were trained together")


def _kind(values: Any) -> Any:
    """A preset's kind; files older than the field are lite."""
    return values.get("kind", "lite") if isinstance(values, dict) else getattr(values, "kind", None)


PresetConfig = Annotated[
    Annotated[LitePresetConfig, Tag("lite")] | Annotated[PaperPresetConfig, Tag("paper")], Discriminator(_kind)
]
"""A preset of whichever kind it is."""
_PRESETS: TypeAdapter[LitePresetConfig | PaperPresetConfig] = TypeAdapter(PresetConfig)


def parse_preset(values: object, where: str) -> LitePresetConfig | PaperPresetConfig:
    """Validate a preset's configuration. Raises ConfigError with one line that names the first wrong key."""
    try:
        return _PRESETS.validate_python(values)
    except ValidationError as error:  # the first place is the kind
        raise _config_error(error, where, 1) from error


def parse(kind: type[Model], values: object, where: str) -> Model:
    """Validate values. Raises ConfigError with one line that names the first wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _config_error(error, where) from error


def _config_error(error: ValidationError, where: str, skip: int = 0) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"][skip:]) or "(root)"
    return ConfigError(f"{where}: {key} = {first.get('input')!r}: {first['msg']}")
