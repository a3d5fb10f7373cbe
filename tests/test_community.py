"""FID, FVD, LSE: the published networks' layout and preprocessing, files that are wrong, and figures that are known."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dawn.errors import CheckpointError
from dawn.research.evaluation.bench import EvalClip, Shown
from dawn.research.evaluation.community import files, syncnet
from dawn.research.evaluation.community.figures import clip_record, community_figures, embed
from dawn.research.evaluation.community.files import Community, load_community
from dawn.research.evaluation.community.inception import FIDInception, Mixed
from dawn.research.evaluation.community.mfcc import mel_bands, mfcc
from dawn.research.evaluation.community.syncnet import SyncNet, cut_faces, face_squares, lip_sync_error, score_of
from dawn.research.evaluation.records import Columns, Record
from dawn.research.evaluation.table import format_report
from eval_material import clip

NONE = Community(None, None, None, ("a note",))


@lru_cache
def layout(kind: type[nn.Module]) -> dict[str, tuple[int, ...]]:
    """Entries and shapes, without the counters of batch norms, which old files lack."""
    with torch.device("meta"):
        state = kind().state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(files.COUNTER)}


def constants(kind: type[nn.Module], value: float = 0.01) -> dict[str, Tensor]:
    """A state dict of the right layout that takes no room on disk."""
    return {key: torch.tensor(value).expand(shape) for key, shape in layout(kind).items()}


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_community(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------------- layout


def test_inception_has_the_published_entries() -> None:
    """94 convolutions with norms, and a classifier; 21,785,568 weights without it, as all Inception-v3s have."""
    shapes = layout(FIDInception)
    assert len(shapes) == 94 * 5 + 2
    weights = sum(
        math.prod(shape) for key, shape in shapes.items() if "running" not in key and not key.startswith("fc.")
    )
    assert weights == 21_785_568
    published = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5c.branch3x3dbl_3.bn.bias": (96,),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6d.branch7x7_3.conv.weight": (192, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_4.conv.weight": (192, 192, 7, 1),
        "Mixed_6c.branch7x7dbl_5.conv.weight": (192, 160, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch1x1.conv.weight": (320, 1280, 1, 1),
        "Mixed_7c.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert {key: shapes.get(key) for key in published} == published


def test_syncnet_has_the_published_entries() -> None:
    """The published file has 54,573,114 bytes."""
    shapes = layout(SyncNet)
    assert len(shapes) == 2 * (6 * 6 + 8)
    assert 0.999 < 4 * sum(map(math.prod, shapes.values())) / 54_573_114 < 1
    published = {
        "netcnnaud.0.weight": (64, 1, 3, 3),
        "netcnnaud.4.weight": (192, 64, 3, 3),
        "netcnnaud.8.bias": (384,),
        "netcnnaud.15.running_mean": (256,),
        "netcnnaud.18.weight": (512, 256, 5, 4),
        "netcnnaud.19.weight": (512,),
        "netfcaud.0.weight": (512, 512),
        "netfcaud.1.running_var": (512,),
        "netfcaud.3.weight": (1024, 512),
        "netcnnlip.0.weight": (96, 3, 5, 7, 7),
        "netcnnlip.4.weight": (256, 96, 1, 5, 5),
        "netcnnlip.14.bias": (256,),
        "netcnnlip.8.weight": (256, 256, 1, 3, 3),
        "netcnnlip.18.weight": (512, 256, 1, 6, 6),
        "netfclip.3.bias": (1024,),
    }
    assert {key: shapes.get(key) for key in published} == published


def test_syncnet_takes_its_published_input() -> None:
    network = SyncNet().eval()
    with torch.inference_mode():
        assert network.hear(torch.zeros(2, 1, 13, 20)).shape == (2, 1024)
        assert network.see(torch.zeros(1, 3, 5, 224, 224)).shape == (1, 1024)


# -------------------------------------------------------------------------------------------------------------- quirks


@pytest.fixture(scope="module")
def inception() -> FIDInception:
    torch.manual_seed(0)
    return FIDInception().eval().requires_grad_(False)


def test_averages_leave_the_padding_out(inception: FIDInception) -> None:
    """The corner of a constant stays that constant; with the padding counted it would be 4/9 of it."""
    averaging = [
        name for name, block in inception.named_children() if isinstance(block, Mixed) and block.pool == "average"
    ]
    assert averaging == ["Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b"]
    for name in averaging:
        assert torch.allclose(inception.get_submodule(name).pooled(torch.full((1, 2, 4, 4), 3.0)), torch.tensor(3.0)), (
            name
        )


def test_the_last_block_pools_by_the_maximum(inception: FIDInception) -> None:
    spot = torch.full((1, 1, 5, 5), -1.0)
    spot[0, 0, 1, 1] = 9.0
    expected = torch.full((5, 5), -1.0)
    expected[:3, :3] = 9.0
    assert torch.equal(inception.Mixed_7c.pooled(spot)[0, 0], expected)


def test_inception_input_is_resized_without_antialias_and_scaled(inception: FIDInception) -> None:
    """At a third of the size, bilinear sampling meets every third pixel alone."""
    pictures = torch.rand(1, 3, 3 * 299, 3 * 299, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    hook = inception.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        features = inception(pictures)
    hook.remove()
    assert torch.allclose(seen[0], 2 * pictures[..., 1::3, 1::3] - 1, atol=1e-5)
    assert features.shape == (1, 2048)


# --------------------------------------------------------------------------------------------------------------- sound


def test_mfcc_of_the_package() -> None:
    """First and last column of python_speech_features 0.6 with its defaults, for this sound of 16 bits."""
    steps = np.arange(1600)
    sound = np.round(8000 * np.sin(0.0002 * steps**2) + 1000 * np.cos(0.9 * steps))
    columns = mfcc((sound / 32768).astype(np.float32))
    assert columns.shape == (13, 9)
    first = [
        18.7091,
        19.069,
        -1.6453,
        22.544,
        11.5776,
        -42.1325,
        -18.7879,
        13.2593,
        -25.732,
        -31.6072,
        16.5268,
        7.9763,
        -21.6373,
    ]
    last = [
        21.2259,
        2.3462,
        -42.0969,
        -11.8082,
        32.474,
        14.1129,
        -17.4177,
        -15.7769,
        -1.1433,
        12.7034,
        11.679,
        -13.9231,
        -18.1059,
    ]
    assert np.allclose(columns[:, [0, -1]].T, [first, last], atol=1e-4)


def test_mfcc_properties() -> None:
    assert mel_bands().shape == (26, 257) and mel_bands().max() == 1
    assert mfcc(np.zeros(640, np.float32)).shape == (13, 3), "ends in a window that is filled up"
    silence = mfcc(np.zeros(16_000, np.float32))
    assert silence.shape == (13, 99) and np.allclose(silence[0], np.log(np.finfo(float).eps))
    assert np.allclose(silence[1:], 0, atol=1e-9), "all bands alike have no shape"
    noise = np.random.default_rng(0).normal(0, 0.05, 16_000).astype(np.float32)
    louder = mfcc(2 * noise) - mfcc(noise)
    assert np.allclose(louder[0], np.log(4), atol=1e-3), "energy of twice the amplitude"
    assert np.allclose(louder[1:], 0, atol=0.02), "but the same sound"


# --------------------------------------------------------------------------------------------------------------- crops


def boxed(corners: Sequence[tuple[float, float, float, float]], size: int) -> np.ndarray:
    """Landmarks (T, 478, 2) whose box is the given one in pixels."""
    points = np.zeros((len(corners), 478, 2), np.float32)
    points[:] = np.array([[(x0 + x1) / 2, (y0 + y1) / 2] for x0, y0, x1, y1 in corners])[:, None]
    points[:, 0] = [corner[:2] for corner in corners]
    points[:, 1] = [corner[2:] for corner in corners]
    return points / (size / 2) - 1


def test_squares_follow_the_box() -> None:
    """Half of the longer side is 30: 30 above, 54 below, 42 to either side of the centre; edges are rounded down."""
    corners = [(30.5, 20.5, 70.5, 80.5)] * 15
    assert (face_squares(boxed(corners, 100), 100) == [8, 20, 92, 104]).all()
    wide = [(20.5, 30.5, 80.5, 70.5)] * 15
    assert (face_squares(boxed(wide, 100), 100) == [8, 20, 92, 104]).all()


def test_squares_ignore_a_short_jump() -> None:
    corners = [(30.5, 20.5, 70.5, 80.5)] * 20
    corners[10] = (0.0, 0.0, 20.0, 20.0)
    assert (face_squares(boxed(corners, 100), 100) == [8, 20, 92, 104]).all()


def test_faces_are_bgr_and_grey_outside() -> None:
    frames = np.zeros((2, 100, 100, 3), np.uint8)
    frames[..., 0], frames[..., 1] = 200, 50
    faces = cut_faces(frames, np.array([[8, 20, 92, 104], [200, 0, 210, 10]]))
    assert faces.shape == (2, 3, 224, 224)
    assert faces[0, :, 100, 100].tolist() == [0, 50, 200]
    assert faces[0, :, 223, 100].tolist() == [110, 110, 110], "4 of 84 rows lie below the picture"
    assert (faces[0, 2, :212] == 200).all()
    assert (faces[1] == 110).all()


# ----------------------------------------------------------------------------------------------------------------- LSE


def test_score_of_equal_vectors() -> None:
    """At an offset of k, k of the 20 windows meet zeros, 2 away: averages are |k| / 10, their median 0.8."""
    vectors = torch.zeros(20, 4)
    vectors[:, 0] = 2
    score = score_of(vectors, vectors)
    assert score.distance == 0 and score.offset_frames == 0
    assert score.confidence == pytest.approx(0.8)


@pytest.mark.parametrize("late", [-15, -4, 0, 3, 15])
def test_score_finds_the_offset(late: int) -> None:
    vectors = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    score = score_of(vectors, vectors.roll(late, 0))
    assert score.offset_frames == late
    assert score.confidence > 2 and score.distance < 0.5


class Loudness(SyncNet):
    """Sees how bright every frame is, and hears how loud."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def see(self, faces: Tensor) -> Tensor:
        assert faces.shape[1:] == (3, 5, 224, 224)
        bright = faces[..., 80:120, 80:120].mean((1, 3, 4)) / 10
        return bright - bright.mean(1, keepdim=True)

    def hear(self, sound: Tensor) -> Tensor:
        assert sound.shape[1:] == (1, 13, 20)
        loud = sound[:, 0, 0].unflatten(1, (5, 4)).mean(2)
        return loud - loud.mean(1, keepdim=True)


@pytest.mark.parametrize("late", [0, 3, -2])
def test_lips_and_sound_meet_frame_by_frame(late: int) -> None:
    """Frames as bright as the sound is loud, the sound moved: more windows than a batch holds, and the median at the ends."""
    rng = np.random.default_rng(0)
    bright = rng.integers(0, 100, 60)
    frames = np.broadcast_to(bright[:, None, None, None], (60, 64, 64, 3)).astype(np.uint8)
    loud = np.repeat(np.exp(np.roll(bright, late) / 20), 640)
    samples = (rng.normal(0, 1, 60 * 640) * loud / 1000).astype(np.float32)
    score = lip_sync_error(Loudness(), frames, boxed([(20.0, 20.0, 44.0, 44.0)] * 60, 64), samples)
    assert score is not None and score.offset_frames == late
    assert score.confidence > 1


def test_no_score_where_there_is_too_little() -> None:
    landmarks = boxed([(20.0, 20.0, 44.0, 44.0)] * 30, 64)
    frames = np.zeros((30, 64, 64, 3), np.uint8)
    sound = np.ones(30 * 640, np.float32) / 9
    assert lip_sync_error(Loudness(), frames, landmarks, sound) is not None
    assert lip_sync_error(Loudness(), frames, landmarks, 0 * sound) is None
    assert lip_sync_error(Loudness(), frames, landmarks, sound[:0]) is None
    assert lip_sync_error(Loudness(), frames, landmarks, sound[: 20 * 640]) is None
    assert lip_sync_error(Loudness(), frames[:20], landmarks[:20], sound) is None


# --------------------------------------------------------------------------------------------------------------- files


def test_files_are_loaded(tmp_path: Path) -> None:
    """The first as torch writes it, the second as it wrote before 2020; counters may be there or not."""
    inception = constants(FIDInception) | {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(7)}
    torch.save(inception, tmp_path / files.INCEPTION.name)
    torch.save(constants(SyncNet, 0.02), tmp_path / files.SYNCNET.name, _use_new_zipfile_serialization=False)
    found = load_community(tmp_path)
    assert found.inception is not None and found.syncnet is not None and found.i3d is None
    for network, value in ((found.inception, 0.01), (found.syncnet, 0.02)):
        assert not network.training and not any(p.requires_grad for p in network.parameters())
        assert all(bool((p == np.float32(value)).all()) for p in network.parameters())
    assert any("no FVD: i3d_torchscript.pt is not in" in note and "get it from" in note for note in found.notes)
    assert any(
        note.startswith("FID: pt_inception") and "not the published file byte for byte" in note for note in found.notes
    )


def test_safetensors_do_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = (tmp_path / files.SYNCNET.name).with_suffix(".safetensors")
    save_file({key: value.half().contiguous() for key, value in constants(SyncNet).items()}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(files, "SYNCNET", files.SYNCNET._replace(sha256=sha256))
    found = load_community(tmp_path)
    assert found.syncnet is not None and found.syncnet.netfclip[3].bias.dtype == torch.float32
    assert f"LSE-C and LSE-D: {path.name}, the published file" in found.notes


def test_missing_files(tmp_path: Path) -> None:
    assert "not a folder" in refusal(tmp_path / "nowhere")
    assert "none of pt_inception" in refusal(tmp_path)


def _foreign(path: Path) -> None:
    torch.save(constants(SyncNet), path)


def _lacking(path: Path) -> None:
    torch.save({key: value for key, value in constants(FIDInception).items() if key != "fc.bias"}, path)


def _other_size(path: Path) -> None:
    torch.save(constants(FIDInception) | {"fc.weight": torch.zeros(1).expand(1000, 2048)}, path)


def _infinite(path: Path) -> None:
    torch.save(constants(FIDInception) | {"Conv2d_1a_3x3.bn.bias": torch.full((32,), math.inf)}, path)


def _truncated(path: Path) -> None:
    torch.save(constants(FIDInception), path)
    path.write_bytes(path.read_bytes()[:-5000])


def _nested(path: Path) -> None:
    torch.save({"state_dict": constants(FIDInception)}, path)


def _text(path: Path) -> None:
    path.write_text("<html>404</html>")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


class Code:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def _code(path: Path) -> None:
    torch.save({"fc.bias": Code()}, path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (_foreign, "missing Conv2d_1a_3x3"),
        (_lacking, "missing fc.bias"),
        (_other_size, r"fc.weight is (1000, 2048)"),
        (_infinite, "not finite"),
        (_truncated, "not a readable checkpoint"),
        (_nested, "no named weights"),
        (_text, "not a readable checkpoint"),
        (_empty, "not a readable checkpoint"),
        (_code, "more than tensors"),
    ],
)
def test_wrong_files_are_refused(
    write: Callable[[Path], None], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / files.INCEPTION.name
    write(path)
    message = refusal(tmp_path)
    assert str(path) in message and reason in message
    assert not Path("ran").exists()


def test_damaged_safetensors_and_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = (tmp_path / files.SYNCNET.name).with_suffix(".safetensors")
    path.write_bytes(b"\x10" * 64)
    assert "not a safetensors file" in refusal(tmp_path)
    monkeypatch.setattr(files, "MAX_BYTES", 63)
    assert "64 bytes is more than 63" in refusal(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- rows


class TinyI3D(nn.Module):
    """Takes what the published file takes; two numbers a window."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert rescale and resize and return_features and x.size(1) == 3
        return torch.stack((x.mean((1, 2, 3, 4)), x[:, 0].mean((1, 2, 3))), 1) / 255


def test_only_the_published_torchscript_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / files.I3D.name
    torch.jit.script(TinyI3D()).save(str(path))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
    assert "only the published file is loaded" in refusal(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(files, "I3D", files.I3D._replace(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    found = load_community(tmp_path)
    assert found.i3d is not None and "FVD: i3d_torchscript.pt, the published file" in found.notes
    assert embed(found, np.full((40, 8, 8, 3), 51, np.uint8))["FVD16"] == pytest.approx(np.full((2, 2), 0.2))
    path.write_bytes(b"no archive")
    monkeypatch.setattr(files, "I3D", files.I3D._replace(sha256=hashlib.sha256(b"no archive").hexdigest()))
    assert "cannot read it" in refusal(tmp_path)


def shown(clip: EvalClip, frames: np.ndarray | None = None) -> Shown:
    frames = clip.frames if frames is None else frames
    return Shown(frames, clip.landmarks, np.ones(len(clip), bool))


def record(networks: Community, clip: EvalClip, frames: np.ndarray | None = None) -> Record:
    return clip_record(networks, shown(clip, frames), clip, embed(networks, clip.frames))


def test_fid_by_the_network(inception: FIDInception) -> None:
    """Random weights: 0 against the same pictures, more against others; a repeated frame has the features of the first."""
    networks = replace(NONE, inception=inception)
    true = replace(clip("a", "a"), frames=clip("a", "a").frames[:2])
    features = embed(networks, true.frames)
    columns: Columns = {
        "same": [clip_record(networks, shown(true, true.frames.copy()), true, features)],
        "still": [clip_record(networks, shown(true, np.repeat(true.frames[:1], 2, 0)), true, features)],
        "real": [clip_record(networks, shown(true), true, features)],
    }
    assert columns["still"][0]["FID"].shape == (2, 2048)
    assert np.allclose(columns["still"][0]["FID"], columns["same"][0]["FID"][:1], atol=1e-4)
    rows, notes = community_figures(networks, columns)
    line = rows["community"]["FID"]
    assert line["better"] == "lower" and line["values"].keys() == {"same", "still"}, "of the true frames none"
    assert 0 <= line["values"]["same"]["value"] < 1e-6
    spread = columns["same"][0]["FID"]
    away = ((spread.mean(0) - spread[0]) ** 2).sum() + spread.var(0, ddof=1).sum()
    assert line["values"]["still"]["value"] == pytest.approx(away, rel=1e-2), "no variance of its own"
    assert any(note.startswith("FID: of 2 frames;") for note in notes)


def test_rows_have_the_form_of_the_table() -> None:
    """Three clips; FVD of two numbers a window against the formula; errors with intervals; what is missing is absent."""
    networks = replace(NONE, i3d=TinyI3D(), syncnet=Loudness())
    clips = [_long_clip(seed) for seed in range(3)]
    columns: Columns = {
        "made": [record(networks, c, 255 - c.frames) for c in clips],
        "real": [record(networks, c) for c in clips],
    }
    rows, notes = community_figures(networks, columns)
    group = rows["community"]
    assert list(group) == ["FVD16", "LSE-C", "LSE-D"]
    assert set(group["FVD16"]["values"]) == {"made"} and set(group["LSE-C"]["values"]) == {"made", "real"}
    real = np.concatenate([embed(networks, c.frames)["FVD16"] for c in clips])
    assert real.shape == (3, 2)
    # Of inverted windows the features are 1 - f: other means, the same covariance.
    expected = ((real.mean(0) - (1 - real).mean(0)) ** 2).sum()
    assert group["FVD16"]["values"]["made"] == {"value": pytest.approx(expected, abs=1e-9)}
    for name in ("LSE-C", "LSE-D"):
        for column in columns:
            found = group[name]["values"][column]
            low, high = found["interval"]
            assert low <= found["value"] <= high
            assert found["value"] == pytest.approx(np.mean([r[name][0] for r in columns[column]]))
    assert "a note" in notes and "no FVD32: under 2 windows of 32 frames" in notes
    assert any(note.startswith("FVD16: of 3 windows of 16 frames") for note in notes)
    assert any(note.startswith("LSE-C, LSE-D: means of 3 clips") for note in notes)
    head = {"preset": "p", "clips": 3, "frames": 90, "people": 1, "size_px": 64, "clip_px": 64, "seconds": 1.0}
    text = format_report({**head, "columns": dict.fromkeys(columns, ""), "rows": rows, "long": None, "notes": notes})
    assert "FVD16" in text and "LSE-C" in text


def _long_clip(seed: int) -> EvalClip:
    """30 frames, each of one brightness, with sound."""
    rng = np.random.default_rng(seed)
    frames = np.broadcast_to(rng.integers(0, 256, (30, 1, 1, 3)), (30, 64, 64, 3)).astype(np.uint8)
    samples = rng.normal(0, 0.1, 30 * 640).astype(np.float32)
    return replace(clip("c", "c"), frames=frames, landmarks=boxed([(20.0, 20.0, 44.0, 44.0)] * 30, 64), samples=samples)


def test_nothing_there_gives_nothing() -> None:
    rows, notes = community_figures(NONE, {"made": [record(NONE, clip("a", "a"), np.zeros((16, 64, 64, 3), np.uint8))]})
    assert rows == {} and notes == ["a note"]
    only = replace(NONE, syncnet=Loudness())
    assert record(only, clip("a", "a")) == {}, "16 frames are too short"
    assert syncnet.MIN_FRAMES == 21
