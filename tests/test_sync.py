"""The sync judge: what it looks at, how distances become figures, and how the shipped one behaves."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dawn.checkpoint import load_mean_face, save_part
from dawn.config import SyncJudgeConfig
from dawn.errors import CheckpointError, InputError
from dawn.face.geometry import apply_pose
from dawn.measures import sync
from dawn.measures.sync import (
    ClipVectors,
    SyncScore,
    clip_distances,
    load_judge,
    pool_distances,
    score_clip,
    score_distances,
)
from dawn.media import read_speech
from dawn.models.audio.features import fit_to_frames
from dawn.models.judges.sync import LagDistances, SyncJudge, crop_mouths, lag_distances
from dawn.pipeline import Dawn
from dawn.research.evaluation import judge as judge_report
from dawn.structs import SPEECH_RATE_HZ, FloatArray, ImageArray, Speech

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = SyncJudgeConfig(mouth_size_px=16, widths=(4, 6, 8), sound_widths=(4, 6, 8), hidden=16, embedding=8)
FRAME = 640


@pytest.fixture(scope="module")
def judge() -> SyncJudge:
    torch.manual_seed(0)
    return SyncJudge(SMALL).eval().requires_grad_(False)


@dataclass(frozen=True)
class Clip:
    """A face that holds still, with moving noise for a picture."""

    person: str
    frames: ImageArray
    landmarks: FloatArray
    samples: FloatArray


def still_clip(frames: int, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    pose = torch.tensor([0.0, 0, 0, 0.6, 0, -0.1]).expand(frames, 6)
    landmarks = apply_pose(load_mean_face(), pose).numpy()
    pictures = rng.integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8)
    return Clip("a", pictures, landmarks, rng.normal(0, 0.1, frames * FRAME).astype(np.float32))


# --------------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("frame", [0, 9, 19])
def test_windows_see_and_hear_their_own_frames_only(judge: SyncJudge, frame: int) -> None:
    generator = torch.Generator().manual_seed(1)
    mouths, samples = (
        torch.rand(1, 20, 16, 16, generator=generator),
        torch.randn(1, 20 * FRAME, generator=generator) / 10,
    )
    seen, heard = judge(mouths, samples)
    assert seen.shape == (1, 16, 8) and heard.shape == (1, 14, 8)
    assert torch.allclose(seen.norm(dim=-1), torch.ones(1, 16)) and torch.allclose(
        heard.norm(dim=-1), torch.ones(1, 14)
    )
    mouths[0, frame] = 1 - mouths[0, frame]
    samples[0, frame * FRAME : (frame + 1) * FRAME] *= -0.3
    seen_then, heard_then = judge(mouths, samples)
    changed = (seen_then - seen).abs().amax(-1)[0] > 1e-5
    assert changed.nonzero().flatten().tolist() == [i for i in range(16) if i <= frame <= i + 4]
    changed = (heard_then - heard).abs().amax(-1)[0] > 1e-5
    assert changed.nonzero().flatten().tolist() == [i for i in range(14) if i <= frame <= i + 6]


def drawn_head(pose: torch.Tensor, size_px: int) -> ImageArray:
    """A smooth pattern that is fixed to the head: pictures (T, S, S, 3) for poses (T, 6) without yaw and pitch."""
    axis = (torch.arange(size_px) + 0.5) * 2 / size_px - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    out = []
    for _, _, roll, scale, px, py in pose.tolist():
        angle = torch.deg2rad(torch.tensor(roll))
        u = ((x - px) * angle.cos() + (y - py) * angle.sin()) / scale
        v = (-(x - px) * angle.sin() + (y - py) * angle.cos()) / scale
        out.append(128 + 60 * torch.sin(4 * u + 1) + 60 * torch.cos(5 * v))
    grey = torch.stack(out).round().clamp(0, 255).byte()
    return grey[..., None].expand(*grey.shape, 3).numpy()


def test_the_mouth_picture_holds_still_while_the_head_moves() -> None:
    mean_face = load_mean_face()
    time = torch.arange(24) / 12
    # Slow against the smoothing of pose.
    pose = torch.stack(
        (0 * time, 0 * time, 12 * time.sin(), 0.6 + 0.05 * time.cos(), 0.1 * time.sin(), -0.2 + 0.1 * time), -1
    )
    crops = crop_mouths(drawn_head(pose, 192), apply_pose(mean_face, pose), mean_face, 48)
    moved = (crops - crops[:1])[2:-2].abs()
    assert float(moved.mean()) < 0.01, float(moved.mean())
    assert float(crops[0].std()) > 0.1
    held = apply_pose(mean_face, pose[:1].expand(24, 6))
    unheld = crop_mouths(drawn_head(pose, 192), held, mean_face, 48)
    assert float((unheld - unheld[:1]).abs().mean()) > 0.05


def test_lips_move_within_the_mouth_picture() -> None:
    """Speech must not move the square: it follows rigid landmarks and the clip's median mouth."""
    clip, mean_face = still_clip(20), load_mean_face()
    talking = clip.landmarks.copy()
    talking[:8, [61, 291, 13, 14, 17, 0, 152], 1] += 0.1
    plain, other = (crop_mouths(clip.frames, points, mean_face, 32) for points in (clip.landmarks, talking))
    assert torch.equal(plain, other)


@pytest.mark.parametrize("size_px", [128, 256, 512])
def test_the_size_of_the_pictures_hardly_matters(size_px: int) -> None:
    mean_face = load_mean_face()
    pose = torch.tensor([[0.0, 0, 5, 0.6, 0.05, -0.2]]).expand(3, 6)
    points = apply_pose(mean_face, pose)
    base, other = (crop_mouths(drawn_head(pose, size), points, mean_face, 48) for size in (192, size_px))
    assert float((base - other).abs().max()) < 0.02


def test_sound_is_cut_or_padded_to_whole_frames() -> None:
    assert torch.equal(fit_to_frames(torch.ones(3 * FRAME + 5), 3), torch.ones(3 * FRAME))
    assert fit_to_frames(torch.ones(2 * FRAME), 3).sum() == 2 * FRAME


# --------------------------------------------------------------------------------------------------------- the figures


def walk(steps: int, seed: int) -> torch.Tensor:
    """Unit vectors (steps, 8), each different."""
    return F.normalize(torch.randn(steps, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("lag", [-10, -3, 0, 1, 7, 10])
def test_the_offset_says_how_late_the_sound_is(lag: int) -> None:
    speech = walk(60, 0)
    seen = speech[15:41]  # 30 frames
    heard = speech[16 - lag : 40 - lag]  # what is said at frame t is heard at t + lag
    table = lag_distances(seen, heard)
    assert table.counts[10] == 24 and table.counts[0] == table.counts[20] == 15
    score = score_distances(table)
    assert score.offset_frames == lag
    assert score.distance == pytest.approx(0, abs=1e-5)
    assert 1 < score.confidence < 1.7


def test_confidence_is_the_median_less_the_smallest() -> None:
    sums, counts = np.zeros(21), np.zeros(21, int)
    sums[[4, 10, 11, 20]], counts[[4, 10, 11, 20]] = (12, 3, 6, 28), (10, 6, 6, 20)
    assert score_distances(LagDistances(sums, counts)) == SyncScore(pytest.approx(0.6), pytest.approx(0.5), 0)


def test_pooling_averages_over_windows_and_not_over_clips() -> None:
    long, short = lag_distances(walk(56, 1), walk(54, 2)), lag_distances(walk(16, 3), walk(14, 4))
    whole = pool_distances([long, short])
    assert np.array_equal(whole.counts, long.counts + short.counts)
    mean = (54 * long.sums[10] / 54 + 14 * short.sums[10] / 14) / (54 + 14)
    assert whole.sums[10] / whole.counts[10] == pytest.approx(mean)
    with pytest.raises(InputError, match="no clips"):
        pool_distances([])


def test_short_clips_leave_far_lags_out() -> None:
    table = lag_distances(walk(11, 0), walk(9, 1))  # 15 frames
    assert table.counts.tolist() == [0] * 5 + [5, 6, 7, 8, 9, 9, 9, 8, 7, 6, 5] + [0] * 5
    with pytest.raises(InputError, match=r"14 frames.*15"):
        lag_distances(walk(10, 0), walk(8, 1))


def test_shifted_vectors_equal_shifted_sound(judge: SyncJudge) -> None:
    clip = still_clip(34)
    whole = sync.embed(judge, clip.frames, clip.landmarks, clip.samples)
    late = clip_distances(judge, clip.frames[4:], clip.landmarks[4:], clip.samples[: -4 * FRAME])
    early = clip_distances(judge, clip.frames[:-3], clip.landmarks[:-3], clip.samples[3 * FRAME :])
    for shift, direct in ((4, late), (-3, early)):
        table = lag_distances(*judge_report.shifted(whole, shift))
        assert np.array_equal(table.counts, direct.counts)
        assert np.allclose(table.sums, direct.sums, atol=1e-4)


def test_long_clips_are_looked_at_piece_by_piece(judge: SyncJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = still_clip(33)
    whole = clip_distances(judge, clip.frames, clip.landmarks, clip.samples)
    monkeypatch.setattr(sync, "EMBED_FRAMES", 7)
    assert np.allclose(whole.sums, clip_distances(judge, clip.frames, clip.landmarks, clip.samples).sums, atol=1e-4)


def test_what_cannot_be_judged_is_refused(judge: SyncJudge) -> None:
    clip = still_clip(20)
    for frames, landmarks, samples, reason in (
        (clip.frames[:14], clip.landmarks[:14], clip.samples, "14 frames"),
        (clip.frames, clip.landmarks[:19], clip.samples, "19"),
        (clip.frames, clip.landmarks, clip.samples[:0], "no sound"),
        (clip.frames, clip.landmarks, 0 * clip.samples, "no sound"),
    ):
        with pytest.raises(InputError, match=reason):
            score_clip(judge, frames, landmarks, samples)
    assert 0 <= score_clip(judge, clip.frames, clip.landmarks, clip.samples).distance <= 2


# ----------------------------------------------------------------------------------------------------- judging the judge


def made_up(monkeypatch: pytest.MonkeyPatch, agreement: float, lag: int = 0) -> list[Clip]:
    """Eight clips of two people whose vectors agree so far; a stand-in for ``embed`` reads them."""
    vectors = []
    for index in range(8):
        speech, other = walk(60, index), walk(60, 100 + index)
        heard = F.normalize(agreement * speech + (1 - agreement) * other, dim=1)
        vectors.append(ClipVectors(speech[15:41], heard[16 - lag : 40 - lag]))
    clips = [
        Clip(
            "ab"[i % 2],
            np.zeros((30, 1, 1, 3), np.uint8),
            np.zeros((30, 478, 3), np.float32),
            np.full(30 * FRAME, float(i + 1), np.float32),
        )
        for i in range(8)
    ]
    monkeypatch.setattr(judge_report, "embed", lambda judge, frames, landmarks, samples: vectors[int(samples[0]) - 1])
    return clips


def test_a_good_judge_is_found_good(judge: SyncJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = judge_report.validate_judge(judge, made_up(monkeypatch, 0.6))
    assert all(values["value"] == 1 for name, values in rows.items() if "right" in name)
    assert sum("right" in name for name in rows) == 2 * len(judge_report.SHIFTS_MS) + 6
    found = {
        name: (values["value"], values["control"])
        for name, values in rows.items()
        if name.startswith("sound") and "offset" in name
    }
    assert len(found) == 10 and all(value == true for value, true in found.values())
    assert found["sound +200 ms: offset, pooled"] == (5, 5) and found["sound -400 ms: offset, pooled"] == (-10, -10)
    assert rows["in sync: confidence, pooled"]["value"] > 4 * rows["another's sound: confidence, pooled"]["value"]
    assert rows["in sync: offset within 1 frame"]["value"] == 1


def test_a_judge_that_hears_nothing_is_found_out(judge: SyncJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = judge_report.validate_judge(judge, made_up(monkeypatch, 0.0))
    right = [values["value"] for name, values in rows.items() if "right" in name]
    assert 0.3 < np.mean(right) < 0.7
    assert rows["in sync: confidence, pooled"]["value"] < 0.2


def test_a_judge_with_an_offset_is_found_out(judge: SyncJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = judge_report.validate_judge(judge, made_up(monkeypatch, 0.6, lag=3))
    assert rows["in sync: offset, pooled"]["value"] == 3
    assert rows["in sync: offset within 1 frame"]["value"] == 0
    assert rows["sound -120 ms: right"]["value"] == 0


def test_too_few_clips_are_refused(judge: SyncJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="at least 3"):
        judge_report.validate_judge(judge, made_up(monkeypatch, 0.5)[:2])


# ------------------------------------------------------------------------------------------------------------- weights


def test_a_trained_judge_is_read_with_its_configuration(judge: SyncJudge, tmp_path: Path) -> None:
    save_part(tmp_path, "sync", judge, SMALL, half=True)
    again = load_judge(tmp_path / "sync.safetensors")
    assert again.config == SMALL and not again.training
    assert all(torch.equal(value.half(), again.state_dict()[key].half()) for key, value in judge.state_dict().items())
    (tmp_path / "sync.json").unlink()
    with pytest.raises(CheckpointError, match="another model"):
        load_judge(tmp_path / "sync.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        load_judge(tmp_path / "nothing.safetensors")


def test_the_shipped_judge_is_small_and_whole() -> None:
    path = Path(str(files("dawn").joinpath(sync.SHIPPED_JUDGE)))
    assert path.stat().st_size < 1_500_000
    assert {value.dtype for value in load_file(path).values()} <= {torch.float16, torch.int64}
    assert load_judge().config == SyncJudgeConfig()


@pytest.mark.slow
def test_the_shipped_judge_hears_the_sound_that_a_video_was_made_from() -> None:
    """Generated lips at 128 px: in sync with their own sound, found out when it is late, unsure of the sound backwards."""
    model = Dawn.from_pretrained("lite-128", device="cpu")
    sound = read_speech(EXAMPLES / "speech.wav").samples[: 5 * SPEECH_RATE_HZ]
    video = model(EXAMPLES / "portrait.png", Speech(sound, 5.0), seed=1)
    frames = np.stack(list(video))
    landmarks = np.asarray(model.landmarks(video.face, video.motion, 0, len(frames)))
    judge = load_judge()
    true = score_clip(judge, frames, landmarks, sound)
    late = score_clip(judge, frames[5:], landmarks[5:], sound[: -5 * FRAME])
    wrong = score_clip(judge, frames, landmarks, sound[::-1].copy())
    assert abs(true.offset_frames) <= 1 and abs(late.offset_frames - 5) <= 1
    assert true.confidence > 2 * wrong.confidence, (true, wrong)
    assert true.distance < wrong.distance
