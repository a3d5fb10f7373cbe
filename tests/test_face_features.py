"""SFace: shapes, gradients, alignment, the file on disk; numbers against onnxruntime where the weights are at hand."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dawn.errors import CheckpointError
from dawn.measures.sface import default_sface_path, load_sface
from dawn.models.judges import sface as ff

SHAPES = [(64, 112), (128, 56), (256, 28), (512, 14), (1024, 7)]


@pytest.fixture(scope="module")
def network() -> ff.SFace:
    torch.manual_seed(0)
    return ff.SFace().eval()


@pytest.fixture(scope="module")
def converter() -> ModuleType:
    path = Path(__file__).parents[1] / "tools" / "convert_sface.py"
    spec = importlib.util.spec_from_file_location("convert_sface", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rotated(points: torch.Tensor, degrees: float, scale: float, shift: tuple[float, float]) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    return scale * points @ turn.T + torch.tensor(shift)


def landmarks_at(five: torch.Tensor) -> torch.Tensor:
    """(B, 5, 2) -> (B, 478, 2) whose five points are exactly these, all other landmarks far off."""
    points = torch.full((len(five), 478, 2), 99.0)
    for position, pair in enumerate(ff.FIVE_POINTS):
        points[:, list(pair)] = five[:, None, position]
    return points


def template_units(size_px: int) -> torch.Tensor:
    """The template's points as crop units of a picture of which they are pixel indices."""
    return (torch.tensor(ff.ARCFACE_POINTS_PX)[None] + 0.5) * 2 / size_px - 1


def test_shapes(network: ff.SFace) -> None:
    faces = torch.rand(2, 3, 112, 112) * 255
    maps = network.features(faces)
    assert [tuple(m.shape) for m in maps] == [(2, c, s, s) for c, s in SHAPES]
    assert network(faces).shape == (2, 128)
    assert torch.equal(network(faces), network.embed(maps[-1]))


def test_layers_in_any_order_and_no_deeper_than_needed(network: ff.SFace) -> None:
    faces = torch.rand(1, 3, 112, 112) * 255
    everything = network.features(faces)
    ran: list[int] = []
    hooks = [s.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, s in enumerate(network.stages)]
    picked = network.features(faces, (2, 0))
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1, 2]
    assert torch.equal(picked[0], everything[2]) and torch.equal(picked[1], everything[0])
    assert torch.equal(network.features(faces, [-1])[0], everything[4])
    assert network.features(faces, ()) == []
    with pytest.raises(IndexError):
        network.features(faces, (5,))


def test_gradient_reaches_image_and_landmarks(network: ff.SFace) -> None:
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    points = landmarks_at(template_units(112)).requires_grad_()
    maps = network.features(ff.align_to_arcface(images, points), (0, 1))
    torch.stack([m.square().mean() for m in maps]).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert points.grad is not None and points.grad[:, 33].abs().sum() > 0
    assert points.grad[:, 200].abs().sum() == 0


def test_five_points_image_left_first() -> None:
    """Landmark i sits at (i, -i): the subject's right eye (33, 133), which is image left, comes first."""
    index = torch.arange(478.0)
    found = ff.five_points(torch.stack((index, -index), 1)[None])
    assert found[0, :, 0].tolist() == [83.0, 312.5, 1.0, 61.0, 291.0]
    assert torch.equal(found[..., 1], -found[..., 0])


def test_similarity_is_recovered() -> None:
    torch.manual_seed(0)
    source = torch.randn(3, 5, 2)
    target = rotated(source, 25.0, 1.7, (4.0, -3.0))
    matrix, shift = ff.fit_similarity(source, target)
    angle = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]).rad2deg()
    assert angle == pytest.approx(torch.full((3,), 25.0), abs=1e-3)
    assert matrix.det().sqrt() == pytest.approx(torch.full((3,), 1.7), abs=1e-3)
    assert shift == pytest.approx(torch.tensor([[4.0, -3.0]] * 3), abs=1e-3)


def test_similarity_is_least_squares() -> None:
    torch.manual_seed(1)
    source, target = torch.randn(1, 5, 2), torch.randn(1, 5, 2)

    def cost(matrix: torch.Tensor, shift: torch.Tensor) -> float:
        return float((source @ matrix.transpose(1, 2) + shift[:, None] - target).square().sum())

    matrix, shift = ff.fit_similarity(source, target)
    best = cost(matrix, shift)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    for step in (1e-2, -1e-2):
        assert cost(matrix + step * torch.eye(2), shift) > best
        assert cost(matrix + step * turn, shift) > best
        assert cost(matrix, shift + step) > best


def test_points_that_coincide_stay_finite() -> None:
    faces = ff.align_to_arcface(torch.rand(1, 3, 32, 32), torch.zeros(1, 478, 2))
    assert faces.isfinite().all()


def test_aligned_picture_is_left_alone() -> None:
    image = torch.rand(1, 3, 112, 112)
    faces = ff.align_to_arcface(image, landmarks_at(template_units(112)))
    assert (faces / 255 - image).abs().max() < 1e-3


@pytest.mark.parametrize("size", [(160, 160), (128, 200)])
def test_align_undoes_a_known_similarity(size: tuple[int, int]) -> None:
    """A picture of two linear ramps says where every output pixel was read: x in red, y in green."""
    height, width = size
    x = (torch.arange(width) + 0.5) / width
    y = (torch.arange(height) + 0.5) / height
    image = torch.stack((x.expand(height, width), y[:, None].expand(height, width), torch.zeros(height, width)))[None]

    def place(points: torch.Tensor) -> torch.Tensor:
        return rotated(points, 12.0, 0.7, (50.0, 25.0)) / torch.tensor([width, height])

    units = place(torch.tensor(ff.ARCFACE_POINTS_PX))[None] * 2 - 1
    faces = ff.align_to_arcface(image, landmarks_at(units))[0] / 255
    assert faces[:2, 80, 30] == pytest.approx(place(torch.tensor([[30.0, 80.0]]))[0], abs=1e-3)


def test_load_round_trip_and_frozen(network: ff.SFace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAWN_CACHE", str(tmp_path))
    save_file(network.state_dict(), tmp_path / "sface.safetensors")
    loaded = load_sface()
    faces = torch.rand(1, 3, 112, 112) * 255
    assert torch.equal(loaded(faces), network(faces))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_load_refuses(tmp_path: Path) -> None:
    path = tmp_path / "sface.safetensors"
    with pytest.raises(CheckpointError, match=r"tools/fetch_models\.py sface"):
        load_sface(path)
    path.write_bytes(b"not weights")
    with pytest.raises(CheckpointError):
        load_sface(path)
    save_file({"head.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError):
        load_sface(path)


def _message(number: int, payload: bytes) -> bytes:
    assert len(payload) < 128
    return bytes([number << 3 | 2, len(payload)]) + payload


def _initializer(name: str, kind: int, dims: list[int], raw: bytes) -> bytes:
    head = b"".join(bytes([1 << 3, d]) for d in dims) + bytes([2 << 3, kind])
    return _message(5, head + _message(8, name.encode()) + _message(9, raw))


def test_converter_reads_and_dequantises(converter: ModuleType) -> None:
    scales, zeros = struct.pack("<4f", 0.5, 2.0, 1.0, 10.0), bytes([0, 0, 1, 255])
    tensors = _initializer("w_quantized", 3, [2, 3], bytes([1, 2, 255, 4, 5, 6]))
    tensors += _initializer("w_scales", 1, [2, 2], scales) + _initializer("w_zero_point", 3, [2, 2], zeros)
    arrays = converter.read_initializers(_message(7, tensors))
    assert arrays["w_quantized"].dtype == np.int8 and arrays["w_quantized"][0, 2] == -1
    expected = torch.tensor([[0.5, 1.0, -2.0], [3.0, 4.0, 70.0]], dtype=torch.float64)
    assert torch.equal(converter._dequantised(arrays, "w"), expected), "blocks of 2, the last one short"


def test_converter_refuses(converter: ModuleType) -> None:
    with pytest.raises(CheckpointError, match="not SFace"):
        converter.convert(b"")
    with pytest.raises(CheckpointError, match="readable"):
        converter.convert(_message(7, b"\x2a\x7f short"))


def test_numbers_of_the_published_network() -> None:
    """Values computed with onnxruntime from the published file; float16 weights leave a difference of about 0.001."""
    if not default_sface_path().is_file():
        pytest.skip("SFace weights not in the cache (python tools/fetch_models.py sface)")
    channel, row, column = np.meshgrid(np.arange(3), np.arange(112), np.arange(112), indexing="ij")
    wave = 127.5 * (1 + np.sin(0.1 * row * (channel + 1) + 0.07 * column))
    network = load_sface()
    maps = network.features(torch.from_numpy(wave)[None].float())
    expected = [
        (-0.1544, 0.5630, 0.8153, 0.5803),
        (0.1495, -0.1014, 0.3951, 0.4676),
        (0.6623, 0.4176, -0.1082, -0.2872),
        (0.3724, 0.5137, -0.0350, 0.6785),
        (0.0519, 0.0066, 1.2492, 0.2895),
    ]
    for stage, values in zip(maps, expected, strict=True):
        middle = stage.shape[-1] // 2
        assert stage[0, :4, middle, middle].numpy() == pytest.approx(np.array(values), abs=0.01)
    embedding = network.embed(maps[-1])[0, :6].numpy()
    assert embedding == pytest.approx(np.array([0.0834, 0.1393, 0.3930, 0.3087, -0.5643, -0.2604]), abs=0.01)
