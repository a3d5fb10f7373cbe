"""What the tests share: a tiny preset with random weights, the example portrait, a short recording."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

# Before any network is imported: all calls check the shapes of their signatures.
jaxtyping.install_import_hook(["dawn.models", "dawn.diffusion"], "shapes.check")

import dawn
from dawn.apps.cli.main import main
from dawn.checkpoint import assemble
from dawn.config import A2VConfig, AudioConfig, LFGConfig, LitePresetConfig, MotionSpaceConfig, PBNetConfig
from dawn.models.lite.bundle import LiteBundle
from dawn.pipeline import Dawn
from dawn.rendering import placement
from dawn.structs import Face, ImageArray, Speech

EXAMPLES = Path(__file__).parent.parent / "examples"
COEFFICIENTS = 12
TINY = LitePresetConfig(
    name="tiny-64",
    lfg=LFGConfig(
        image_size_px=64,
        widths=(8, 12, 16),
        res_blocks=1,
        flow_width=8,
        flow_depth=2,
        flow_max_width=32,
        flow_head_width=16,
    ),
    motion=MotionSpaceConfig(lower=8, upper=4),
    audio=AudioConfig(width=64, depth=2, layers_used=(2,)),
    a2v=A2VConfig(
        audio_size=128,
        motion_size=COEFFICIENTS,
        source_size=COEFFICIENTS + 2,
        width=32,
        layers=2,
        heads=2,
        window_frames=4,
    ),
    pbnet=PBNetConfig(
        audio_size=128, width=32, layers=2, heads=2, latent_size=4, window_frames=6, latent_smoothing_frames=(1.0, 2.0)
    ),
)


def random_bundle(config: LitePresetConfig = TINY, seed: int = 0) -> LiteBundle:
    """Networks whose every part has an effect: nothing is left at zero, and motion moves the face visibly."""
    torch.manual_seed(seed)
    bundle = LiteBundle(config)
    for part in (bundle.a2v, bundle.pbnet):
        for parameter in part.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    space = bundle.motion
    mean_face = Path(dawn.__file__).parent / "assets" / "mean_face.safetensors"
    space.mean_face.copy_(load_file(mean_face)["mean_face"])
    space.basis.copy_(torch.randn_like(space.basis) * 0.01)
    space.encoder.copy_(torch.linalg.pinv(space.basis))
    space.pose_scale.copy_(torch.tensor([4.0, 3.0, 2.0, 0.03, 0.03, 0.03]))
    return bundle.eval()


def random_norms(network: torch.nn.Module) -> None:
    """Batch norms as if trained, so that folding them and leaving them out are seen."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)


def save_hubert(folder: Path, size: int, layers: int) -> Path:
    """A small random HuBERT of the large one's kind, as ``transformers`` saves it. Skips where that is missing."""
    transformers = pytest.importorskip("transformers")
    config = transformers.HubertConfig(
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * size,
        feat_extract_norm="layer",
        conv_dim=(size // 2,) * 7,
        conv_bias=True,
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        transformers.HubertModel(config).save_pretrained(folder)
    return folder


def write_preset(folder: Path, config: LitePresetConfig = TINY, seed: int = 0) -> Path:
    bundle = random_bundle(config, seed)
    assemble(config, {part: getattr(bundle, part) for part in config.PARTS}, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a preset with random weights, 64 px."""
    return write_preset(tmp_path_factory.mktemp("preset") / "tiny-64")


@pytest.fixture(scope="session")
def tiny_model(tiny_preset: Path) -> Dawn:
    return Dawn.from_pretrained(tiny_preset, "cpu")


@pytest.fixture(scope="session")
def portrait_path() -> Path:
    return EXAMPLES / "portrait.png"


@pytest.fixture(scope="session")
def portrait_face(tiny_model: Dawn, portrait_path: Path) -> Face:
    """The example portrait, prepared once."""
    return tiny_model.prepare(portrait_path)


@pytest.fixture
def prepared_once(monkeypatch: pytest.MonkeyPatch, portrait_face: Face) -> None:
    """Every model takes the prepared example portrait, whatever the picture: for tests of what comes after."""
    blank = np.zeros((64, 64, 3), np.uint8)
    monkeypatch.setattr(placement, "read_portrait", lambda given: given if isinstance(given, np.ndarray) else blank)
    monkeypatch.setattr(placement, "FaceTracker", lambda max_faces: nullcontext())
    monkeypatch.setattr(placement, "find_faces", lambda image, tracker: [])
    monkeypatch.setattr(placement, "choose_face", lambda faces, choice: None)
    monkeypatch.setattr(placement, "prepare_face", lambda *given, **named: portrait_face)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A form's portrait and 1 s of speech."""
    from serving_client import inputs  # here, as it needs the extra [serve]

    return inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def server(tiny_model: Dawn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The HTTP service with the tiny preset, small limits and a client."""
    from serving_client import serving

    with serving(tiny_model, tmp_path_factory.mktemp("serve") / "data", max_upload_mb=8, upload_timeout_s=2) as server:
        yield server


def example_sound() -> tuple[np.ndarray, int]:
    """Samples int16 and rate of the example recording."""
    with wave.open(str(EXAMPLES / "speech.wav")) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16), file.getframerate()


def write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


@pytest.fixture(scope="session")
def speech_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.83 s of the example recording: 21 frames, the last one begun but not filled."""
    samples, rate_hz = example_sound()
    part = samples[rate_hz // 2 :][: rate_hz * 83 // 100]
    return write_wav(tmp_path_factory.mktemp("speech") / "short.wav", part, rate_hz)


@pytest.fixture(scope="session")
def speech() -> Callable[[int], Speech]:
    """The first ``frames`` frames of noise that sounds different in every frame."""

    def make(frames: int) -> Speech:
        samples = np.random.default_rng(5).normal(0, 0.2, frames * 640).clip(-1, 1).astype(np.float32)
        return Speech(samples, frames / 25)

    return make


def stacked(frames: object) -> ImageArray:
    return np.stack(list(frames))  # type: ignore[call-overload]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder for results; a failed command must leave it empty."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tiny_preset: Path, out: Path) -> Callable[..., tuple[int, str, str]]:
    """Runs a command with the tiny preset; gives the exit code and what reached stdout and stderr, native code too."""

    def call(*arguments: object) -> tuple[int, str, str]:
        words = [str(word) for word in arguments]
        if words[0] in ("generate", "drive", "evaluate") and "--preset" not in words:
            words += ["--preset", str(tiny_preset)]
        if words[0] in ("generate", "drive") and not {"-o", "--output"} & set(words):
            words += ["-o", str(out / "out.mp4")]
        capfd.readouterr()
        code = main(words)
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return call


def refused(result: tuple[int, str, str], out: Path, *parts: str, code: int = 2) -> None:
    """Exit code, one line that has every part, nothing on stdout, nothing left behind."""
    assert result[0] == code, result
    assert result[1] == ""
    assert result[2].endswith("\n") and result[2].count("\n") == 1, result[2]
    assert result[2].startswith("error: ") or code == 130
    for part in parts:
        assert part in result[2], f"{part!r} is not in {result[2]!r}"
    assert not list(out.iterdir())


def three_faces(folder: Path, portrait: Path) -> Path:
    face = np.asarray(Image.open(portrait).convert("RGB").crop((90, 0, 350, 300)))
    Image.fromarray(np.tile(face, (1, 3, 1))).save(folder / "three.png")
    return folder / "three.png"
