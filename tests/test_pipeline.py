"""The product end to end, with a tiny model of random weights: what must hold whatever the weights are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dawn.engines.lite
import dawn.pipeline
from conftest import stacked
from dawn import media
from dawn.errors import ConfigError, MotionError, NoFaceError
from dawn.media.motion_json import load_motion, save_motion
from dawn.models.attention import chunks
from dawn.options import GenerateOptions
from dawn.pipeline import Dawn
from dawn.rendering.placement import Placement
from dawn.structs import FPS, Face, Motion, Speech
from media_files import decoded, noise

Say = Callable[[int], Speech]
pytestmark = pytest.mark.usefixtures("prepared_once")


def test_same_seed_same_frames(tiny_model: Dawn, speech: Say) -> None:
    first, second, other = (stacked(tiny_model("x.png", speech(12), seed=seed)) for seed in (3, 3, 4))
    assert first.shape == (12, 64, 64, 3) and first.dtype == np.uint8
    assert (first == second).all()
    assert (first != other).mean() > 0.05


@pytest.mark.parametrize("samples", [3200, 6401, 16_000, 16_639])
def test_frame_count_covers_the_sound(tiny_model: Dawn, speech: Say, samples: int) -> None:
    sound = Speech(speech(30).samples[:samples], samples / 16_000)
    video = tiny_model("x.png", sound)
    assert len(video) == len(video.motion) == sum(1 for _ in video) == math.ceil(samples / 640)


def test_every_part_has_a_say(tiny_model: Dawn, portrait_face: Face, speech: Say) -> None:
    """Sound, seed and each option change the motion, and only the part of it that they should."""
    base = tiny_model("x.png", speech(30)).motion
    louder = Speech(speech(30).samples * 0.2, 30 / FPS)
    assert np.abs(tiny_model("x.png", louder).motion.expression - base.expression).max() > 1e-3
    still = tiny_model("x.png", speech(30), still=True).motion
    assert not still.pose.any() and np.array_equal(still.blink, base.blink)
    unblinking = tiny_model("x.png", speech(30), blink=0).motion
    assert not unblinking.blink.any() and np.array_equal(unblinking.pose, base.pose)
    doubled = tiny_model("x.png", speech(30), pose_scale=2).motion
    np.testing.assert_allclose(doubled.pose, 2 * base.pose, rtol=1e-5)
    half = tiny_model("x.png", speech(30), expression=0.5).motion
    np.testing.assert_allclose(half.expression, base.expression / 2, rtol=1e-5)
    for option in ({"steps": 2}, {"guidance": 4.0}):
        assert np.abs(tiny_model("x.png", speech(30), **option).motion.expression - base.expression).max() > 1e-4
    assert np.abs(base.pose[0]).max() < 1e-6, "motion begins at the portrait's own pose"


def test_silence_rests_the_mouth_and_nothing_else(tiny_model: Dawn, speech: Say) -> None:
    samples = speech(60).samples.copy()
    samples[20 * 640 : 50 * 640] = 0
    motion = tiny_model("x.png", Speech(samples, 60 / FPS)).motion
    lower = tiny_model.bundle.motion.lower
    resting, speaking = motion.expression[30:40], motion.expression[:18]
    assert np.ptp(resting[:, lower], axis=0).max() < 1e-5 < 1e-3 < np.ptp(speaking[:, lower], axis=0).max()
    assert np.ptp(resting[:, lower.stop :], axis=0).max() > 1e-3, "the upper face lives on"
    assert np.ptp(motion.pose[30:40], axis=0).max() > 1e-3, "the head lives on"


@pytest.mark.parametrize("frames", [70, 64, 9])
def test_chunks_equal_the_whole(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Dawn, portrait_face: Face, speech: Say, frames: int
) -> None:
    import torch

    samples = torch.from_numpy(speech(frames).samples)
    features = tiny_model.engine.features(samples, frames)

    def generate() -> Motion:
        return tiny_model.engine.generate(features, samples, portrait_face, GenerateOptions(seed=1), lambda done: None)

    whole = generate()
    monkeypatch.setattr(dawn.engines.lite, "chunks", partial(chunks, size=16))
    parts = generate()
    for name in ("pose", "blink", "expression"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-4)
    # The test can fail: without context the chunks do not know each other.
    if frames > 16:
        monkeypatch.setattr(type(tiny_model.bundle.a2v), "reach_frames", 0)
        blind = generate()
        assert np.abs(blind.expression - whole.expression).max() > 1e-4


def test_saved_motion_renders_the_same(tiny_model: Dawn, speech: Say, tmp_path: Path) -> None:
    video = tiny_model("x.png", speech(20), seed=8)
    save_motion(video.motion, tmp_path / "m.json")
    again = load_motion(tmp_path / "m.json")
    assert again.info == {"preset": "tiny-64", "seed": "8"}
    assert (stacked(tiny_model("x.png", speech(20), motion=again)) == stacked(video)).all()
    longer = tiny_model("x.png", speech(25), motion=again)
    assert len(longer) == 25 and np.array_equal(longer.motion.pose[24], again.pose[19])
    assert len(tiny_model("x.png", speech(5), motion=again)) == 5


def test_motion_of_another_space_is_refused(tiny_model: Dawn, speech: Say) -> None:
    foreign = Motion(np.zeros((9, 6), np.float32), np.zeros((9, 2), np.float32), np.zeros((9, 7), np.float32))
    with pytest.raises(MotionError, match=r"7 coefficients.*needs 12"):
        tiny_model("x.png", speech(9), motion=foreign)


@pytest.mark.parametrize("workers", [1, 2])
def test_frames_are_decoded_as_they_are_read(
    workers: int, monkeypatch: pytest.MonkeyPatch, tiny_model: Dawn, speech: Say
) -> None:
    rendered: list[int] = []
    whole = tiny_model.bundle.lfg.redraw

    def counting(source: object, points: object) -> object:
        rendered.append(len(points))  # type: ignore[arg-type]
        return whole(source, points)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny_model.bundle.lfg, "redraw", counting)
    video = tiny_model("x.png", speech(100))
    monkeypatch.setattr(dawn.rendering.draw, "count_workers", lambda: workers)
    assert not rendered
    frames = iter(video)
    for _ in range(9):
        next(frames)
    ahead = workers if workers > 1 else 0
    assert 2 <= len(rendered) <= 2 + ahead and set(rendered) == {dawn.rendering.draw.DECODE_BATCH}


def test_workers_draw_the_same_frames(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Dawn, speech: Say, portrait_path: Path
) -> None:
    for options in ({}, {"size": 256}):
        video = tiny_model(media.read_image(portrait_path), speech(30), **options)
        made = []
        for workers in (1, 3):
            monkeypatch.setattr(dawn.rendering.draw, "count_workers", lambda workers=workers: workers)
            made.append(stacked(video).astype(int))
        assert np.abs(made[0] - made[1]).max() <= 1 and made[0].std() > 1


def test_wanted_frames_are_those_of_the_whole(
    tiny_model: Dawn, speech: Say, portrait_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit, whichever are wanted, and only their batches are computed."""
    image, whole = media.read_image(portrait_path), tiny_model.engine.decode
    starts: list[int] = []
    monkeypatch.setattr(tiny_model.engine, "decode", lambda *given: starts.append(given[3]) or whole(*given))
    for given in ({}, {"size": 128}, {"frame": "full", "size": 256}):
        video = tiny_model(image, speech(21), **given)
        frames = stacked(video)
        for wanted in ([20], [0, 9], [3, 4, 5], list(range(21)), []):
            starts.clear()
            found = list(video.frames(np.isin(np.arange(21), wanted)))
            assert [index for index, _ in found] == wanted and starts == sorted({index // 8 * 8 for index in wanted})
            assert all((frame == frames[index]).all() for index, frame in found)


def test_again_is_another_motion_of_the_same_portrait_and_sound(
    tiny_model: Dawn, speech_path: Path, portrait_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny_model("x.png", speech_path, seed=1, steps=2)
    fresh = tiny_model("x.png", speech_path, seed=5, steps=2)
    given = tiny_model("x.png", speech_path, motion=first.motion, steps=2)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("prepared twice")

    monkeypatch.setattr(dawn.rendering.placement, "prepare_face", never)
    monkeypatch.setattr(media, "read_speech", never)
    from_given = given.regenerate(seed=5)
    monkeypatch.setattr(tiny_model.engine, "features", never)
    for again in (first.regenerate(seed=5), from_given, from_given.regenerate(seed=3).regenerate(seed=5)):
        assert again.motion.info == {"preset": "tiny-64", "seed": "5"} and again.options == fresh.options
        assert (stacked(again) == stacked(fresh)).all() and again.face is first.face
    assert again.speech == given.speech
    assert set(again.watch.seconds) == {"audio in", "track", "audio features", "motion", "decode"}
    with pytest.raises(ConfigError, match="steps = 0"):
        first.regenerate(steps=0)


def test_features_of_long_speech_are_not_kept(tiny_model: Dawn, speech: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dawn.video, "KEPT_FEATURES", 9)
    sound = speech(10)
    first, fresh = (tiny_model("x.png", sound, seed=seed, steps=2) for seed in (1, 5))
    again = first.regenerate(seed=5)
    assert first._features is None and again._features is None
    assert (again.motion.expression == fresh.motion.expression).all()


def test_showing_another_motion(tiny_model: Dawn, speech: Say) -> None:
    video, other = (tiny_model("x.png", speech(12), seed=seed) for seed in (1, 2))
    shown = video.with_motion(other.motion)
    assert (stacked(shown) == stacked(other)).all() and shown.speech is video.speech
    assert (stacked(shown.regenerate(seed=1)) == stacked(video)).all()
    with pytest.raises(MotionError, match="9 frames, the video 12: give one of the same length"):
        video.with_motion(other.motion.at(slice(9)))
    with pytest.raises(MotionError, match=r"7 coefficients"):
        video.with_motion(replace(other.motion, expression=other.motion.expression[:, :7]))


def test_batch_size_does_not_matter(monkeypatch: pytest.MonkeyPatch, tiny_model: Dawn, speech: Say) -> None:
    video = tiny_model("x.png", speech(11))
    eights = stacked(video).astype(int)
    monkeypatch.setattr(dawn.rendering.draw, "DECODE_BATCH", 3)
    assert np.abs(stacked(video).astype(int) - eights).max() <= 1


def test_size(tiny_model: Dawn, speech: Say, portrait_path: Path) -> None:
    video = tiny_model(media.read_image(portrait_path), speech(5), size=256)
    large = stacked(video)
    assert large.shape == (5, 256, 256, 3) and video.full is not None
    assert video.comment.endswith("preset tiny-64, 64 px square at 256 px in the photograph")
    small = Placement(video.face, 32)
    assert small.describe(tiny_model.engine) == "preset tiny-64, 64 px reduced to 32 px"
    assert Placement(video.face, 64).describe(tiny_model.engine) == "preset tiny-64"
    with pytest.raises(ConfigError, match=r"size 100.*128, 256, 512"):
        tiny_model("x.png", speech(5), size=100)


def test_a_preset_says_what_side_is_shown(
    tiny_model: Dawn, speech: Say, portrait_path: Path, portrait_face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_model.config.model_copy(update={"shown_size_px": 128})
    monkeypatch.setattr(tiny_model.engine, "config", config)
    picture, sides = media.read_image(portrait_path), {"size": None, "frame": "crop"}
    assert tiny_model(picture, speech(3)).width == 128 and tiny_model(picture, speech(3), size=256).width == 256
    assert tiny_model(portrait_face, speech(3)).width == 64, "a face without its photograph"
    assert tiny_model.checked_size(**sides) == 128 and tiny_model.checked_size(None, "full") == 1280


def test_a_prepared_portrait_is_used_as_it_is(tiny_model: Dawn, speech: Say, portrait_face: Face) -> None:
    prepared, found = tiny_model(portrait_face, speech(9)), tiny_model("x.png", speech(9))
    assert prepared.face is portrait_face and (stacked(prepared) == stacked(found)).all()
    larger = replace(portrait_face, crop=np.zeros((128, 128, 3), np.uint8))
    for face, given in ((portrait_face, {"size": 256}), (portrait_face, {"frame": "full"}), (larger, {})):
        with pytest.raises(ConfigError, match="up to 64 px: give the picture"):
            tiny_model(face, speech(9), **given)


def test_written_video(tiny_model: Dawn, speech_path: Path, tmp_path: Path) -> None:
    video = tiny_model("x.png", speech_path, seed=2)
    assert video.save(tmp_path / "out.mp4") == tmp_path / "out.mp4"
    result = decoded(tmp_path / "out.mp4")
    assert len(result["times"]) == 21 == len(video)
    assert abs(float(result["audio_end"]) - 21 / FPS) < 1 / FPS
    shown = np.stack(result["pixels"]).astype(int)
    assert np.abs(shown - stacked(video)).mean() < 8
    import av

    with av.open(str(tmp_path / "out.mp4")) as container:
        assert "AI-generated" in container.metadata["comment"] and "tiny-64" in container.metadata["comment"]
    assert set(video.watch.seconds) == {"audio in", "track", "audio features", "motion", "decode", "video"}
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_options_are_checked(tiny_model: Dawn, speech: Say) -> None:
    for options, message in (
        ({"steps": 0}, "steps = 0"),
        ({"guidance": float("nan")}, "guidance = nan"),
        ({"sed": 1}, "sed = 1"),
        ({"seed": -1}, "seed = -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_model("x.png", speech(5), **options)
    with pytest.raises(ConfigError, match=r"device 'abacus'.*use auto or cpu"):
        dawn.engines.load.pick_device("abacus")


def driving_video(path: Path, portrait: Path, frames: int) -> Path:
    """The portrait shown through a window that wanders to the right and closes in: the face moves left and grows."""
    image = Image.open(portrait).convert("RGB")
    with media.VideoWriter(path, 256, 256) as writer:
        for index in range(frames):
            share = index / (frames - 1)
            side, x, y = 400 - 40 * share, 40 + 24 * share, 10.0
            window = image.resize((256, 256), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
            writer.write(np.asarray(window))
    return path


def test_drive(tiny_model: Dawn, portrait_path: Path, tmp_path: Path) -> None:
    video = tiny_model.drive("x.png", driving_video(tmp_path / "in.mp4", portrait_path, 24))
    assert len(video) == 24 and video.speech is None
    pose = video.motion.pose
    # Grown by 400 / 360; a face at 220 px of the picture's width goes from 0.45 to 0.433 of the window.
    grown = pose[-1, 3] - pose[0, 3]
    assert 0.6 * math.log(400 / 360) < grown < 1.2 * math.log(400 / 360)
    assert pose[-1, 4] < pose[0, 4]
    assert np.abs(pose[:, :3] - pose[:1, :3]).max() < 3, "the head does not turn"
    frames = stacked(video)
    assert frames.shape == (24, 64, 64, 3) and (frames[0] != frames[-1]).mean() > 0.05
    video.save(tmp_path / "out.mp4")
    assert decoded(tmp_path / "out.mp4")["samples"] is None
    with pytest.raises(ConfigError, match="another video's, not generated"):
        video.regenerate(seed=2)
    assert (stacked(video.with_motion(video.motion)) == frames).all()


def test_drive_without_a_face(tiny_model: Dawn, tmp_path: Path) -> None:
    with media.VideoWriter(tmp_path / "in.mp4", 64, 64) as writer:
        for index in range(3):
            writer.write(noise(64, 64, index))
    with pytest.raises(NoFaceError, match=r"in.mp4.*no face"):
        tiny_model.drive("x.png", tmp_path / "in.mp4")
