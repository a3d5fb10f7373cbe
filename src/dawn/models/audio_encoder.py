"""Speech to audio features: one vector a video frame (25 fps).

    samples (L,) 16 kHz ── windows ── log-mel ── Whisper encoder (50 Hz) ── cross-fade ── 2 vectors a frame ──▶ (T, D)
    samples (L,) 16 kHz ── chunks ───────────── HuBERT (~50 Hz) ─────────── linear resampling ──────────────▶ (T, 1024)

``AudioEncoder`` is the interface that the rest of the package sees. The ``lite`` presets use ``WhisperAudioEncoder``,
whose features depend only on the sound near a frame, never on the length of the recording; the ``paper`` presets use
``HubertAudioEncoder`` as published.

Sources: Radford et al. 2022 (Whisper), Hsu et al. 2021 (HuBERT), DAWN (arXiv 2410.13726) for the HuBERT recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from dawn.config import AudioConfig
from dawn.errors import AudioError, CheckpointError, ConfigError
from dawn.structs import FPS, SPEECH_RATE_HZ

MEL_BANDS = 80
MEL_TOP_HZ = 8_000.0
FFT_SAMPLES = 400
HOP_SAMPLES = 160
EDGE_SAMPLES = FFT_SAMPLES // 2
"""Samples that the first and the last analysis frame reach beyond the sound."""

DYNAMIC_RANGE = 8.0
"""Everything more than 8 decades (log10 of power) below the peak counts as silence."""

HEAD_WIDTH = 64
POSITIONS = 1_500
VECTORS_PER_FRAME = 2
FRAME_SAMPLES = SPEECH_RATE_HZ // FPS

HUBERT_STRIDE_SAMPLES = 320
HUBERT_KERNEL_SAMPLES = 400
HUBERT_CHUNK_VECTORS = 1_000


class AudioEncoder(Protocol):
    """Turns speech into features at the frame rate of the video."""

    @property
    def feature_size(self) -> int:
        """Numbers per video frame (D)."""
        ...

    def encode(self, samples: Tensor, frame_count: int) -> Tensor:
        """samples (L,) float32 at 16 kHz -> (frame_count, feature_size), on the device of ``samples``."""
        ...


# ---------------------------------------------------------------------------------------------------------- log-mel


def whole_frames(samples: Tensor, frame_count: int) -> Tensor:
    """Cut or pad sound (..., L) with silence to exactly ``frame_count`` frames, (..., frame_count * 640)."""
    length = frame_count * FRAME_SAMPLES
    return F.pad(samples[..., :length], (0, max(0, length - samples.shape[-1])))


def _hz_to_mel(hz: float) -> float:
    """Slaney's scale: linear to 1 kHz (15 mel), then 27 steps for every factor of 6.4."""
    return hz * 3 / 200 if hz < 1_000 else 15 + 27 * math.log(hz / 1_000) / math.log(6.4)


def _mel_to_hz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel * 200 / 3, 1_000 * torch.exp((mel - 15) * math.log(6.4) / 27))


@lru_cache(maxsize=1)
def mel_filters() -> Tensor:
    """(80, 201) float32 triangular bands of unit area on Slaney's mel scale, 0 to 8000 Hz."""
    edges_mel = torch.linspace(0, _hz_to_mel(MEL_TOP_HZ), MEL_BANDS + 2, dtype=torch.float64)
    edges_hz = _mel_to_hz(edges_mel)
    bins_hz = torch.arange(FFT_SAMPLES // 2 + 1, dtype=torch.float64) * SPEECH_RATE_HZ / FFT_SAMPLES
    low, centre, high = (edges_hz[i : i + MEL_BANDS, None] for i in range(3))
    triangle = torch.minimum((bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre)).clamp(min=0)
    return (triangle * 2 / (high - low)).float()


def _log_power(samples: Tensor) -> Tensor:
    """Samples (B, L + 400), half an analysis window beyond the sound on both sides -> (B, 80, L // 160) log10 power."""
    window = torch.hann_window(FFT_SAMPLES, dtype=samples.dtype, device=samples.device)
    spectrum = torch.stft(samples, FFT_SAMPLES, HOP_SAMPLES, window=window, center=False, return_complex=True)
    power = spectrum[..., :-1].abs().square()
    return torch.matmul(mel_filters().to(samples), power).clamp(min=1e-10).log10()


def log_mel(samples: Tensor, peak: float | Tensor | None = None, *, edges: bool = False) -> Tensor:
    """Whisper's log-mel spectrogram.

    samples: (B, L) float32 at 16 kHz; with ``edges`` (B, 200 + L + 200), where the caller supplies the neighbouring
    sound instead of the usual reflection. peak: log10 power from which the silence floor is measured, a number or
    (B,); ``None`` takes each call's own maximum as published, which couples every frame to the loudest one.
    Returns (B, 80, L // 160), 100 columns a second. Raises AudioError below 201 samples.
    Source: Radford et al. 2022, section 2.2.
    """
    needed = 2 * EDGE_SAMPLES + HOP_SAMPLES if edges else EDGE_SAMPLES + 1
    if samples.shape[-1] < needed:
        raise AudioError(f"{samples.shape[-1]} samples are too few for a spectrogram: give at least {needed}")
    if not edges:
        samples = F.pad(samples, (EDGE_SAMPLES, EDGE_SAMPLES), mode="reflect")
    log_power = _log_power(samples)
    if peak is None:
        reference = log_power.amax((1, 2))
    else:
        reference = torch.as_tensor(peak, dtype=log_power.dtype, device=log_power.device)
    floor = (reference - DYNAMIC_RANGE).reshape(-1, 1, 1)
    return (torch.maximum(log_power, floor) + 4) / 4


# ---------------------------------------------------------------------------------------------------------- Whisper


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width) float32 position table: sines, then cosines, wavelengths geometric from 2 pi to 2 pi 10000."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, dtype=torch.float64))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class WhisperBlock(nn.Module):
    """Pre-norm transformer layer: full self-attention, then a GELU feed-forward of four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        # Whisper's keys have no bias: the stored third is zero (it would shift all scores of a query alike anyway).
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn_in = nn.Linear(width, 4 * width)
        self.ffn_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, width // HEAD_WIDTH, HEAD_WIDTH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.attention_out(mixed)
        return x + self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(x))))


class WhisperEncoder(nn.Module):
    """The encoder half of Whisper: two convolutions, sinusoidal positions, ``depth`` layers, a final norm."""

    positions: Tensor

    def __init__(self, width: int = 384, depth: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MEL_BANDS, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.blocks = nn.ModuleList(WhisperBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("positions", sinusoids(POSITIONS, width), persistent=False)

    def forward(self, mel: Tensor, layers: tuple[int, ...] | None = None) -> Tensor:
        """Encode a spectrogram.

        mel: (B, 80, F) from ``log_mel``, at most 3000 columns (30 s). layers: hidden states to return, concatenated in
        the order given: 0 after convolutions and positions, n after layer n, the last one normalised; the default is
        the last. Returns (B, ceil(F / 2), D x number of layers), 50 vectors a second. Raises ConfigError when the
        spectrogram is longer than the position table.
        """
        layers = (len(self.blocks),) if layers is None else layers
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        if x.shape[1] > POSITIONS:
            raise ConfigError(f"audio window of {x.shape[1]} vectors: Whisper takes at most {POSITIONS} (30 s)")
        x = x + self.positions[: x.shape[1]]
        states = {0: x}
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            x = block(x)
            states[number] = x
        if len(self.blocks) in layers:
            states[len(self.blocks)] = self.norm(x)
        return torch.cat([states[number] for number in layers], dim=-1)


class WhisperAudioEncoder(nn.Module):
    """Whisper features of a recording of any length: windows at fixed times, cross-faded, two vectors a frame.

    Window i covers the frames from i x (window - overlap); only the last one is cut short by the end of the sound. So
    the features before the last window do not change when more sound follows (with a fixed ``peak``), a short clip
    costs little, and the work memory is that of one window.
    """

    def __init__(self, config: AudioConfig | None = None) -> None:
        super().__init__()
        self.config = config or AudioConfig()
        self.encoder = WhisperEncoder(self.config.width, self.config.depth)

    @property
    def feature_size(self) -> int:
        return VECTORS_PER_FRAME * self.config.width * len(self.config.layers_used)

    @torch.no_grad()
    def encode(self, samples: Tensor, frame_count: int) -> Tensor:
        """samples (L,) float32 at 16 kHz -> (frame_count, feature_size) float32.

        The sound is cut, or continued with silence, to ``frame_count`` frames of 640 samples. Gradients do not flow.
        Raises AudioError when there is nothing to encode or the samples are not finite.
        """
        _check_speech(samples, frame_count)
        peak = self._recording_peak(samples, frame_count) if self.config.peak is None else self.config.peak

        width = self.config.width * len(self.config.layers_used)
        output = torch.empty(VECTORS_PER_FRAME * frame_count, width, device=samples.device)
        fade = VECTORS_PER_FRAME * self.config.overlap_frames
        ramp = ((torch.arange(fade, device=samples.device) + 0.5) / max(fade, 1))[:, None]
        for start, stop in self._windows(frame_count):
            mel = log_mel(_cut(samples, frame_count, start, stop), peak, edges=True)
            vectors = self.encoder(mel.to(self.encoder.conv1.weight.dtype), self.config.layers_used)[0].float()
            first, last = VECTORS_PER_FRAME * start, VECTORS_PER_FRAME * stop
            if start:
                output[first : first + fade].lerp_(vectors[:fade], ramp)
                vectors, first = vectors[fade:], first + fade
            output[first:last] = vectors
        return output.view(frame_count, self.feature_size)

    def _windows(self, frame_count: int) -> Iterator[tuple[int, int]]:
        """Frame ranges of the windows; each later one is longer than its overlap with the one before."""
        size, overlap = self.config.window_frames, self.config.overlap_frames
        for start in range(0, max(frame_count - overlap, 1), size - overlap):
            yield start, min(start + size, frame_count)

    def _recording_peak(self, samples: Tensor, frame_count: int) -> Tensor:
        peaks = [_log_power(_cut(samples, frame_count, start, stop)).amax() for start, stop in self._windows(frame_count)]
        return torch.stack(peaks).amax()


def _cut(samples: Tensor, frame_count: int, start: int, stop: int) -> Tensor:
    """Frames [start, stop) of a recording of ``frame_count`` frames with edges, (1, 200 + n x 640 + 200).

    Edges are the sound beside them, and its mirror image at the recording's ends; no more than these frames is copied.
    """
    left, right = EDGE_SAMPLES * (start == 0), EDGE_SAMPLES * (stop == frame_count)
    first, last = start * FRAME_SAMPLES - EDGE_SAMPLES + left, stop * FRAME_SAMPLES + EDGE_SAMPLES - right
    heard = samples[first:last].float()
    heard = F.pad(heard, (0, last - first - heard.shape[0]))[None]
    return F.pad(heard, (left, right), mode="reflect")


def _check_speech(samples: Tensor, frame_count: int) -> None:
    if samples.ndim != 1 or samples.shape[0] == 0:
        raise AudioError(f"speech of shape {tuple(samples.shape)}: give one channel with at least one sample")
    if frame_count < 1:
        raise AudioError(f"{frame_count} frames of speech: ask for at least one")
    # No copy, however long the sound is; NaN carries through.
    if not bool(torch.isfinite(torch.stack(torch.aminmax(samples))).all()):
        raise AudioError("the speech holds values that are not finite: decode the file again")


# ----------------------------------------------------------------------------------------------------------- HuBERT


class HubertAudioEncoder(nn.Module):
    """HuBERT features as DAWN published them, for the ``paper`` presets.

    The recording is scaled to zero mean and unit variance as a whole, a coupling over time that belongs to the
    published model. ``context_s`` of sound on both sides of every 20 s chunk hides the seams; 0 is as published.
    """

    def __init__(self, model: nn.Module, context_s: float = 2.0) -> None:
        """model: a ``transformers.HubertModel`` (see ``load_hubert``). Raises ConfigError for a negative context."""
        super().__init__()
        if context_s < 0:
            raise ConfigError(f"HuBERT context_s {context_s}: give 0 or more seconds")
        self.model = model
        self.context_vectors = round(context_s * SPEECH_RATE_HZ / HUBERT_STRIDE_SAMPLES)
        self.eval()

    @property
    def feature_size(self) -> int:
        return int(cast(Any, self.model).config.hidden_size)

    def train(self, mode: bool = True) -> HubertAudioEncoder:
        """Stay in evaluation mode: a frozen feature extractor must not drop units while others train."""
        super().train(False)
        return self

    @torch.no_grad()
    def encode(self, samples: Tensor, frame_count: int) -> Tensor:
        """samples (L,) float32 at 16 kHz -> (frame_count, 1024 for HuBERT large).

        All of the sound is spread over ``frame_count`` frames, end point on end point. Gradients do not flow.
        Raises AudioError below 400 samples or when the samples are not finite.
        """
        _check_speech(samples, frame_count)
        if samples.shape[0] < HUBERT_KERNEL_SAMPLES:
            raise AudioError(f"{samples.shape[0]} samples of speech: HuBERT needs at least {HUBERT_KERNEL_SAMPLES}")
        sound = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
        total = (sound.shape[0] - HUBERT_KERNEL_SAMPLES) // HUBERT_STRIDE_SAMPLES + 1
        vectors = sound.new_empty(total, self.feature_size)
        for first in range(0, total, HUBERT_CHUNK_VECTORS):
            last = min(first + HUBERT_CHUNK_VECTORS, total)
            begin, end = max(first - self.context_vectors, 0), min(last + self.context_vectors, total)
            reach = HUBERT_KERNEL_SAMPLES - HUBERT_STRIDE_SAMPLES
            chunk = sound[begin * HUBERT_STRIDE_SAMPLES : end * HUBERT_STRIDE_SAMPLES + reach]
            vectors[first:last] = self.model(chunk[None]).last_hidden_state[0, first - begin : last - begin]
        return F.interpolate(vectors.T[None], size=frame_count, mode="linear", align_corners=True)[0].T.contiguous()


def load_hubert(path_or_id: str = "facebook/hubert-large-ls960-ft") -> nn.Module:
    """A ``transformers.HubertModel`` in evaluation mode, float32, from a folder or the Hugging Face hub.

    Only safetensors are opened, never pickled weights. Raises ConfigError without ``transformers``, CheckpointError when
    the weights cannot be had, are incomplete, or are another model's.
    """
    where = f"HuBERT weights {path_or_id!r}"
    _check_hubert_folder(Path(path_or_id), where)
    try:
        transformers = import_module("transformers")
    except ImportError as error:
        raise ConfigError('HuBERT needs the transformers package: pip install "dawn[hubert]"') from error
    try:
        with _quiet_transformers():
            model, info = transformers.HubertModel.from_pretrained(
                path_or_id, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "go online once, or give a folder that holds config.json and model.safetensors"
        raise CheckpointError(f"{where} cannot be loaded ({reason}): {remedy}") from error
    # Only the mask of the pre-training task may be absent: it is never used here.
    missing = sorted(key for key in info["missing_keys"] if key != "masked_spec_embed")
    if missing:
        raise CheckpointError(f"{where} lack {missing[0]!r}: give a complete HuBERT model")
    if info["mismatched_keys"]:
        key, stored, own = min(info["mismatched_keys"])
        raise CheckpointError(f"{where}: {key} is {tuple(stored)}, its config.json says {tuple(own)}: get both files again")
    return cast(nn.Module, model.float().eval())


def _check_hubert_folder(folder: Path, where: str) -> None:
    """Raises CheckpointError for a folder without safetensors, or a path of which nothing is there."""
    if not folder.is_dir():
        if folder.is_absolute() or len(folder.parts) > 2:  # a name of the hub is "owner/model"
            raise CheckpointError(f"{where}: there is no such folder; give one that holds config.json and model.safetensors")
        return
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return
    if any(folder.glob("*.bin")):
        name = repr(str(folder))
        turn = f"from transformers import HubertModel as H; H.from_pretrained({name}).save_pretrained({name})"
        raise CheckpointError(
            f"{where} are there as a pickle only (.bin), which can hold a program and is not opened; if you trust it, make"
            f' model.safetensors of it: python -c "{turn}"'
        )
    raise CheckpointError(f"{where}: the folder has no model.safetensors; give one that holds it and config.json")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars and tables on the terminal while weights are read; what is wrong with them is raised instead. The hub's own
    bar stays: the first download takes minutes."""
    hub, logging = import_module("huggingface_hub.utils"), import_module("transformers.utils.logging")
    verbosity, bar, hub_bar = logging.get_verbosity(), logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if hub_bar:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
