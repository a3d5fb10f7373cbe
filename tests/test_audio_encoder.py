"""Audio features: the spectrogram, the encoder, its windows, HuBERT's chunks."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import dawn
from conftest import save_hubert
from dawn.config import AudioConfig, parse
from dawn.engines.hubert import load_hubert
from dawn.errors import AudioError, CheckpointError, ConfigError
from dawn.models.audio import hubert as hubert_encoder
from dawn.models.audio.features import log_mel
from dawn.models.audio.hubert import HubertAudioEncoder
from dawn.models.audio.whisper import WhisperAudioEncoder, WhisperEncoder
from dawn.structs import FRAME_SAMPLES

ROOT = Path(__file__).parents[1]
SHIPPED_WEIGHTS = Path(dawn.__file__).parent / "weights" / "lite-128" / "audio.safetensors"
SHIPPED_FEATURES = ROOT / "tests" / "fixtures" / "whisper_tiny_1s.npz"
WINDOWS = {"window_s": 8.0, "overlap_s": 2.0}
SMALL = AudioConfig(width=64, depth=2, layers_used=(2,), **WINDOWS)


@lru_cache
def speech_like(seconds: float) -> Tensor:
    """(L,) gliding voice with three formants, syllables at 4 Hz and a pause every 3 s: a formula, the same anywhere."""
    t = np.arange(round(seconds * 16_000)) / 16_000
    pitch_hz = 120 + 25 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / 16_000
    formants_hz = (500 + 250 * np.sin(2.1 * t), 1500 + 600 * np.sin(3.3 * t + 1), 2600 + 300 * np.sin(1.7 * t))
    voice = np.zeros_like(t)
    for harmonic in range(1, 30):
        level = sum(np.exp(-(((harmonic * pitch_hz - f) / 180) ** 2)) for f in formants_hz)
        voice += (0.02 + level) * np.sin(harmonic * phase) / np.sqrt(harmonic)
    loudness = (0.55 - 0.45 * np.cos(2 * np.pi * 4 * t)) * (np.sin(2 * np.pi * t / 3) > -0.9)
    return torch.from_numpy((0.15 * voice * loudness).astype(np.float32))


def random_encoder(config: AudioConfig = SMALL) -> WhisperAudioEncoder:
    """An encoder with weights drawn from one seed."""
    encoder = WhisperAudioEncoder(config)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in encoder.named_parameters():
        scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.data += 1
    return encoder


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of two (T, D) arrays about their mean vector."""
    a, b = (a - a.mean(0)).flatten(), (b - b.mean(0)).flatten()
    return float(a @ b / (a.norm() * b.norm()))


# ------------------------------------------------------------------------------------------------------ spectrogram


def numpy_log_mel(samples: np.ndarray, peak: float | None) -> np.ndarray:
    """Whisper's log-mel by plain matrix DFT in float64, written apart from the library."""
    padded = np.pad(samples.astype(np.float64), 200, mode="reflect")
    window = np.sin(np.pi * np.arange(400) / 400) ** 2
    frames = np.stack([padded[i * 160 : i * 160 + 400] * window for i in range(len(samples) // 160)])
    bins = np.arange(201)
    power = np.abs(frames @ np.exp(-2j * np.pi * np.outer(np.arange(400), bins) / 400)) ** 2
    # Slaney: 1 kHz is mel 15, 200 / 3 Hz a mel below; above, ln(6.4) / 27 a mel.
    mel = np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), 82)
    hz = np.where(mel < 15, 200 / 3 * mel, 1000 * 6.4 ** ((mel - 15) / 27))
    bands = [
        np.interp(bins * 40.0, hz[m : m + 3], [0, 1, 0], left=0, right=0) * 2 / (hz[m + 2] - hz[m]) for m in range(80)
    ]
    log_power = np.log10(np.maximum(np.array(bands) @ power.T, 1e-10))
    return (np.maximum(log_power, (log_power.max() if peak is None else peak) - 8) + 4) / 4


@pytest.mark.parametrize("peak", [None, 2.0])
def test_log_mel_matches_independent_numpy(peak: float | None) -> None:
    sound = speech_like(1.0)
    ours = log_mel(sound[None], peak)[0].numpy()
    theirs = numpy_log_mel(sound.numpy(), peak)
    assert ours.shape == (80, 100)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert np.abs(ours - theirs).mean() < 1e-5


def test_log_mel_of_a_piece_with_edges_is_a_piece_of_the_whole() -> None:
    sound = speech_like(2.0)[None]
    whole = log_mel(sound, 2.0)
    piece = log_mel(sound[:, 16_000 - 200 : 24_000 + 200], 2.0, edges=True)
    torch.testing.assert_close(piece, whole[..., 100:150], atol=1e-5, rtol=0)


def test_log_mel_takes_one_peak_a_recording() -> None:
    sound = torch.stack([speech_like(0.5), 0.1 * speech_like(0.5)])
    both = log_mel(sound, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(both[1:], log_mel(sound[1:], 0.0))
    assert both[0].min() >= (2 - 8 + 4) / 4 and both[1].min() >= (0 - 8 + 4) / 4


def test_log_mel_refuses_a_click() -> None:
    with pytest.raises(AudioError, match="200 samples"):
        log_mel(torch.zeros(1, 200))


# ---------------------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("columns", [1, 2, 99, 100])
def test_encoder_shapes(columns: int) -> None:
    encoder = WhisperEncoder(width=64, depth=2)
    mel = torch.randn(2, 80, columns)
    assert encoder(mel).shape == (2, (columns + 1) // 2, 64)
    states = encoder(mel, (0, 2, 1))
    assert states.shape == (2, (columns + 1) // 2, 192)
    torch.testing.assert_close(states[..., 64:128], encoder(mel))


def test_encoder_refuses_more_than_its_positions() -> None:
    with pytest.raises(ConfigError, match="30 s"):
        WhisperEncoder(width=64, depth=1)(torch.zeros(1, 80, 3001))


def test_state_dict_saves_and_loads_strictly(tmp_path: Path) -> None:
    encoder, other = random_encoder(), WhisperAudioEncoder(SMALL)
    save_file(encoder.state_dict(), tmp_path / "audio.safetensors")
    other.load_state_dict(load_file(tmp_path / "audio.safetensors"), strict=True)
    assert not any("positions" in key for key in other.state_dict())
    sound = speech_like(1.0)
    assert torch.equal(encoder.encode(sound, 25), other.encode(sound, 25))


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 100},
        {"layers_used": ()},
        {"layers_used": (5,)},
        {"window_s": 0.05},
        {"window_s": 31.0},
        {"overlap_s": 5.0},
        {"overlap_s": 0.03},
    ],
)
def test_config_names_the_field(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        parse(AudioConfig, changes, "audio")


# ---------------------------------------------------------------------------------------------------------- windows


class LocalEncoder(WhisperEncoder):
    """Stands for the network where only the windows are tested: each vector is two columns of the spectrogram."""

    def forward(self, mel: Tensor, layers: tuple[int, ...] | None = None) -> Tensor:
        pairs = mel.transpose(1, 2).reshape(mel.shape[0], mel.shape[2] // 2, 160)
        return F.pad(pairs, (0, self.conv1.out_channels - 160))


@pytest.mark.parametrize("peak", [None, 2.0])
@pytest.mark.parametrize("frames", [1, 199, 200, 201, 349, 350, 351, 500])
def test_windows_put_every_vector_in_its_place(frames: int, peak: float | None) -> None:
    config = AudioConfig(width=192, depth=0, layers_used=(0,), peak=peak, **WINDOWS)
    encoder = WhisperAudioEncoder(config)
    encoder.encoder = LocalEncoder(192, 0)
    sound = speech_like(20.0)[: frames * FRAME_SAMPLES]
    features = encoder.encode(sound, frames).view(2 * frames, 192)[:, :160]
    whole = log_mel(sound[None], peak)[0].T.reshape(2 * frames, 160)
    torch.testing.assert_close(features, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("samples", [1, 639, 640, 10_000, 200_000])
def test_frame_count_is_exact_and_the_end_is_silence(samples: int) -> None:
    encoder, sound = random_encoder(), speech_like(13.0)[:samples]
    features = encoder.encode(sound, 30)
    assert features.shape == (30, encoder.feature_size) == (30, 128)
    padded = F.pad(sound, (0, max(0, 30 * FRAME_SAMPLES - samples)))
    assert torch.equal(features, encoder.encode(padded, 30))


def test_more_sound_leaves_earlier_windows_alone() -> None:
    encoder, sound = random_encoder(), speech_like(20.0)
    short, long = encoder.encode(sound[: 14 * 16_000], 350), encoder.encode(sound, 500)
    # 14 s are the windows 0-8 s and 6-14 s; a third, from 12 s, comes with the rest. The last window alone knows
    # the end, even when it is whole: the sound is mirrored there for half an analysis frame.
    assert torch.equal(short[:150], long[:150])
    torch.testing.assert_close(short[150:300], long[150:300], atol=1e-3, rtol=0)


def test_windows_of_a_random_network_follow_one_pass_without_seams() -> None:
    windowed, one_pass = random_encoder(), random_encoder(SMALL.model_copy(update={"window_s": 20.0}))
    for encoder in (windowed, one_pass):
        # Positions restart in each window by design; here they would hide the sound from a random network.
        encoder.encoder.positions.zero_()
    sound = speech_like(20.0)
    ours, whole = (encoder.encode(sound, 500).view(1000, 64) for encoder in (windowed, one_pass))
    # Measured 0.86: random attention looks everywhere, so a window's own mean remains; real weights do better.
    assert correlation(ours, whole) > 0.8
    assert_no_seams(ours)


def assert_no_seams(vectors: Tensor) -> None:
    """Change from vector to vector (1000, D) inside the cross-fades is not larger than elsewhere."""
    change = vectors.diff(dim=0).norm(dim=1)
    fading = torch.zeros(len(change), dtype=torch.bool)
    for start in (300, 600):
        fading[start - 1 : start + 101] = True
    assert change[fading].mean() < 1.2 * change[~fading].mean()
    assert change[fading].max() < 1.2 * change[~fading].max()


def test_silence_is_finite_and_steady() -> None:
    features = random_encoder().encode(torch.zeros(16_000), 25)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(torch.zeros(0), 1), (torch.zeros(1, 640), 1), (torch.zeros(640), 0), (torch.full((640,), torch.nan), 1)],
)
def test_nothing_to_encode_is_refused(samples: Tensor, frames: int) -> None:
    with pytest.raises(AudioError):
        random_encoder().encode(samples, frames)
    with pytest.raises(AudioError):
        HubertAudioEncoder(MeanHubert()).encode(samples, frames)


def test_shipped_weights_give_the_stored_features() -> None:
    encoder = WhisperAudioEncoder(AudioConfig(layers_used=(2, 3, 4), **WINDOWS))
    encoder.load_state_dict(load_file(SHIPPED_WEIGHTS), strict=True)
    features = encoder.encode(speech_like(1.0), 25)
    stored = np.load(SHIPPED_FEATURES)["features"]
    np.testing.assert_allclose(features[::4, ::16].numpy(), stored, atol=2e-3 * np.abs(stored).max())


def test_shipped_weights_have_no_seams() -> None:
    config = AudioConfig(layers_used=(3,), **WINDOWS)
    windowed, one_pass = WhisperAudioEncoder(config), WhisperAudioEncoder(config.model_copy(update={"window_s": 20.0}))
    for encoder in (windowed, one_pass):
        encoder.load_state_dict(load_file(SHIPPED_WEIGHTS), strict=True)
    sound = speech_like(20.0)
    ours, whole = (encoder.encode(sound, 500).view(1000, 384) for encoder in (windowed, one_pass))
    assert correlation(ours, whole) > 0.8
    assert_no_seams(ours)


# ----------------------------------------------------------------------------------------------------------- HuBERT


class MeanHubert(nn.Module):
    """Stands for HuBERT with its framing alone: vector k is the mean of samples 320 k to 320 k + 400."""

    config = SimpleNamespace(hidden_size=2)

    def forward(self, sound: Tensor) -> SimpleNamespace:
        mean = sound.unfold(1, 400, 320).mean(-1)
        return SimpleNamespace(last_hidden_state=torch.stack([mean, -mean], dim=-1))


@pytest.mark.parametrize("context_s", [0.0, 0.4])
@pytest.mark.parametrize("samples", [400, 719, 720, 16_000, 16_080, 40_000])
def test_hubert_chunks_equal_one_pass(monkeypatch: pytest.MonkeyPatch, samples: int, context_s: float) -> None:
    sound, frames = speech_like(2.5)[:samples] + 0.1, max(1, samples // FRAME_SAMPLES)
    whole = HubertAudioEncoder(MeanHubert(), context_s).encode(sound, frames)
    monkeypatch.setattr(hubert_encoder, "HUBERT_CHUNK_VECTORS", 7)
    chunked = HubertAudioEncoder(MeanHubert(), context_s).encode(sound, frames)
    assert whole.shape == (frames, 2)
    torch.testing.assert_close(chunked, whole)


def test_hubert_grid_ends_on_the_end_points() -> None:
    sound = speech_like(1.0)
    scaled = (sound - sound.mean()) / sound.std(correction=0)
    vectors = scaled.unfold(0, 400, 320).mean(-1).numpy()
    wanted = np.interp(np.linspace(0, len(vectors) - 1, 25), np.arange(len(vectors)), vectors)
    ours = HubertAudioEncoder(MeanHubert()).encode(sound, 25)[:, 0].numpy()
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_hubert_refuses_a_click_and_a_negative_context() -> None:
    with pytest.raises(AudioError, match="399 samples"):
        HubertAudioEncoder(MeanHubert()).encode(torch.ones(399), 1)
    with pytest.raises(ConfigError, match="context_s -1"):
        HubertAudioEncoder(MeanHubert(), -1)


def test_hubert_without_transformers_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"\.\[hubert\]"):
        load_hubert("anywhere")


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a small random HuBERT. Skipped without ``transformers``."""
    return save_hubert(tmp_path_factory.mktemp("hubert"), 32, 2)


def copied(hubert: Path, folder: Path, change: Callable[[dict[str, Tensor]], object] = lambda weights: None) -> str:
    """The same model in another folder, its weights changed."""
    weights = load_file(hubert / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(hubert / "config.json", folder)
    return str(folder)


def test_hubert_of_transformers(hubert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = HubertAudioEncoder(load_hubert(str(hubert))).train()
    assert capfd.readouterr() == ("", ""), "reading weights is no news"
    features = encoder.encode(speech_like(3.0), 75)
    assert features.shape == (75, 32) == (75, encoder.feature_size) and features.dtype == torch.float32
    assert torch.equal(features, encoder.encode(speech_like(3.0), 75)), "drop-out must stay off"
    assert correlation(features, encoder.encode(speech_like(3.0).flip(0), 75)) < 0.9, "the sound has a say"


def test_hubert_chunks_with_context_follow_one_pass(hubert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 s at once and in chunks of 3 s: attention reaches everywhere, so a chunk knows less, but not at its seams."""
    sound, model = speech_like(8.0), load_hubert(str(hubert))
    whole = HubertAudioEncoder(model).encode(sound, 200)
    monkeypatch.setattr(hubert_encoder, "HUBERT_CHUNK_VECTORS", 150)
    near, bare = (HubertAudioEncoder(model, context_s).encode(sound, 200) for context_s in (2.0, 0.0))
    spread = (whole - whole.mean(0)).norm(dim=1).mean()
    off_near, off_bare = ((made - whole).norm(dim=1) / spread for made in (near, bare))
    seam = slice(
        73, 77
    )  # the first seam is at frame 75; measured 0.016 near it and at most 0.018, without context 0.34
    assert off_near.max() < 0.03
    assert off_bare[seam].max() > 5 * off_near[seam].max()


def test_hubert_in_half_precision_computes_in_float32(hubert: Path, tmp_path: Path) -> None:
    def halve(weights: dict[str, Tensor]) -> None:
        weights.update({key: value.half() for key, value in weights.items()})

    model = load_hubert(copied(hubert, tmp_path, halve))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    made, true = (HubertAudioEncoder(m).encode(speech_like(1.0), 25) for m in (model, load_hubert(str(hubert))))
    torch.testing.assert_close(made, true, atol=0.02, rtol=0)


def test_incomplete_and_foreign_huberts_are_refused(
    hubert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def cut(weights: dict[str, Tensor]) -> None:
        weights.pop(next(key for key in weights if "layers.1.attention.q_proj.weight" in key))

    def narrow(weights: dict[str, Tensor]) -> None:
        weights["encoder.layer_norm.bias"] = torch.zeros(8)

    capfd.readouterr()
    with pytest.raises(CheckpointError, match="q_proj"):
        load_hubert(copied(hubert, tmp_path, cut))
    with pytest.raises(CheckpointError, match=r"encoder\.layer_norm\.bias is \(8,\), its config\.json says \(32,\)"):
        load_hubert(copied(hubert, tmp_path, narrow))
    (tmp_path / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_hubert(str(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_hubert_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder; give one"):
        load_hubert(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match=r"no model\.safetensors; give one"):
        load_hubert(str(tmp_path))


def test_hubert_of_the_hub_offline_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True, raising=False)  # transformers 4 keeps its own
    with pytest.raises(CheckpointError, match="go online once, or give a folder") as caught:
        load_hubert("nobody/hubert-of-no-name")
    assert "\n" not in str(caught.value) and "nobody/hubert-of-no-name" in str(caught.value)


class Trap:
    """Leaves a trace if it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.mkdir, (self.trace,)  # type: ignore[return-value]


def test_pickled_huberts_are_not_opened(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(CheckpointError, match=r"pickle only.*save_pretrained") as caught:
        load_hubert(str(folder))
    assert "\n" not in str(caught.value) and not trace.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert trace.exists(), "the trap does not work"
