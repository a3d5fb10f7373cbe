"""Edits of motion, and takes, which draw only what changed."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import dawn.engines.paper
from conftest import stacked
from dawn import media
from dawn.editing import edits, take
from dawn.editing.edits import (
    Region,
    add_blink,
    blend,
    blinks,
    changed_frames,
    lids,
    remove_blinks,
    scale_expression,
    scale_head,
)
from dawn.editing.take import HISTORY, Take
from dawn.engines.load import load_motion_space
from dawn.errors import ConfigError, MotionError, OutputError
from dawn.face.geometry import eye_aspect_ratio
from dawn.models.lite.motion_space import MotionSpace
from dawn.models.paper.bundle import PaperBundle
from dawn.pipeline import Dawn
from dawn.preprocess.tracker import FaceTracker
from dawn.rendering.draw import DECODE_BATCH
from dawn.structs import Face, Motion, Speech
from dawn.video import Video
from media_files import decoded
from test_paper_pipeline import SMALL, FakeHubert

Say = Callable[[int], Speech]
FRAMES = 60
MIDDLE = Region(0.8, 1.6)
INSIDE, CORE = slice(20, 40), slice(25, 35)
"""Frames of ``MIDDLE``, and those that are changed whole."""


def made_up(seed: int = 0, frames: int = FRAMES, preset: str = "lite-128", eyes: float = 0.0) -> Motion:
    """A head and a face that wander; upper faces move by ``eyes``."""
    rng = np.random.default_rng(seed)
    pose, expression = (rng.normal(0, 1, (frames, n)).cumsum(0).astype(np.float32) * 0.1 for n in (6, 24))
    expression[:, 16:] *= eyes
    blink = rng.normal(0, 0.01, (frames, 2)).astype(np.float32)
    return Motion(pose, blink, expression, info={"preset": preset, "seed": str(seed)})


@pytest.fixture(scope="module")
def space() -> MotionSpace:
    known = load_motion_space("lite-128")
    assert known is not None
    return known


def openness(space: MotionSpace, face: Face, motion: Motion) -> np.ndarray:
    """Mean eye aspect ratio of the driven shape, (T,)."""
    shapes = space.shapes(torch.from_numpy(motion.expression), torch.from_numpy(face.shape))
    return eye_aspect_ratio(shapes).mean(1).numpy()


# ------------------------------------------------------------------------------------------------------------- edits


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (Region(1, 1), "1 to 1 s: its start must lie before its end"),
        (Region(1.5, 1), "1.5 to 1 s"),
        (Region(-0.1, 1), "-0.1 to 1 s reaches outside: the motion lasts 0 to 2.4 s"),
        (Region(1, 2.5), "1 to 2.5 s reaches outside"),
        (Region(float("nan"), 1), "nan to 1 s: give two numbers"),
        (Region(0, float("inf")), "0 to inf s"),
    ],
)
def test_bad_regions(region: Region, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        region.frames(FRAMES)
    with pytest.raises(ConfigError):
        scale_head(made_up(), region, 0.5)


def test_regions_hold_the_frames_they_touch() -> None:
    assert Region(0, 2.4).frames(FRAMES) == slice(0, 60)
    assert Region(0.28, 0.56).frames(FRAMES) == slice(7, 14)
    assert Region(0.29, 0.57).frames(FRAMES) == slice(7, 15)
    assert Region(1.0, 1.001).frames(FRAMES) == slice(25, 26)


EDITS: dict[str, Callable[[Motion, Face], Motion]] = {
    "head": lambda motion, _: scale_head(motion, MIDDLE, 0.2),
    "expression": lambda motion, _: scale_expression(motion, MIDDLE, 1.7),
    "blink": lambda motion, face: add_blink(motion, 1.1, face),
    "no blink": lambda motion, face: remove_blinks(add_blink(motion, 1.1, face), MIDDLE),
    "blend": lambda motion, _: blend(motion, made_up(9), MIDDLE),
}


@pytest.mark.parametrize("name", EDITS)
def test_only_the_region_changes(name: str, portrait_face: Face) -> None:
    motion = made_up()
    kept = replace(motion, **{part: getattr(motion, part).copy() for part in ("pose", "blink", "expression")})
    after = EDITS[name](motion, portrait_face)
    changed = changed_frames(motion, after)
    assert changed[25:29].any() and not changed[:20].any() and not changed[40:].any()
    assert not changed_frames(motion, kept).any(), "the motion that was given is as it was"
    assert after.info == {"preset": "lite-128", "seed": "0", "edited": "true"}
    for part in ("pose", "blink", "expression"):
        assert getattr(after, part).dtype == np.float32 and np.isfinite(getattr(after, part)).all()


def test_head_is_scaled_about_its_way() -> None:
    motion = made_up()
    still = scale_head(motion, MIDDLE, 0).pose
    np.testing.assert_allclose(np.diff(still[CORE], 2, axis=0), 0, atol=1e-5)
    # The straight way leads from the frame before the region to the frame after it.
    share = (np.arange(25, 35) - 19)[:, None] / 21
    np.testing.assert_allclose(still[CORE], motion.pose[19] + share * (motion.pose[40] - motion.pose[19]), atol=1e-5)
    wild = scale_head(motion, MIDDLE, 3).pose
    np.testing.assert_allclose(wild[CORE] - still[CORE], 3 * (motion.pose[CORE] - still[CORE]), atol=1e-4)
    assert not changed_frames(motion, scale_head(motion, MIDDLE, 1)).any()
    whole = Region(0, FRAMES / 25)
    np.testing.assert_allclose(scale_head(motion, whole, 2).pose, 2 * motion.pose, rtol=1e-6)
    assert not scale_head(motion, whole, 0).pose.any(), "as the option still"
    assert np.array_equal(scale_head(motion, whole, 0).expression, motion.expression)


def test_edges_are_eased() -> None:
    """No step at the edges of a region that is larger than within: the weight grows and falls smoothly."""
    steady = replace(made_up(), expression=np.ones((FRAMES, 24), np.float32))
    gain = scale_expression(steady, MIDDLE, 0).expression[:, 0]
    assert (gain[CORE] == 0).all() and (np.diff(gain[18:25]) <= 0).all() and (np.diff(gain[35:42]) >= 0).all()
    assert np.abs(np.diff(gain)).max() < 0.3
    first = scale_expression(steady, Region(0, 1), 0).expression[:, 0]
    assert first[0] == 0 and first[24] > 0.5, "where the motion begins there is nothing to join"
    assert scale_expression(steady, Region(1, 1.04), 0).expression[25, 0] == 0, "one frame is changed whole"


def test_expression_and_lids_are_scaled_together() -> None:
    motion = made_up(eyes=1)
    after = scale_expression(motion, MIDDLE, 0.5)
    for part in ("expression", "blink"):
        np.testing.assert_allclose(getattr(after, part)[CORE], getattr(motion, part)[CORE] / 2, rtol=1e-6)
    assert np.array_equal(after.pose, motion.pose)


@pytest.mark.parametrize("factor", [-0.1, 3.01, float("nan"), float("inf")])
def test_factors_are_checked(factor: float) -> None:
    with pytest.raises(ConfigError, match=r"head motion x .*from 0 to 3"):
        scale_head(made_up(), MIDDLE, factor)
    with pytest.raises(ConfigError, match=r"expression x .*from 0 to 2"):
        scale_expression(made_up(), MIDDLE, factor)


def test_blend() -> None:
    motion, other = made_up(0, eyes=1), made_up(1, eyes=1)
    after = blend(motion, other, MIDDLE)
    assert np.array_equal(after.expression[CORE], other.expression[CORE])
    assert np.array_equal(after.blink[CORE], other.blink[CORE])
    # The head moves as the other's, from where ours was to where ours goes on.
    shift = after.pose[CORE] - other.pose[CORE]
    np.testing.assert_allclose(np.diff(shift, 2, axis=0), 0, atol=1e-5)
    apart = np.abs(other.pose[20] - motion.pose[19]).max()
    assert np.abs(after.pose[20] - after.pose[19]).max() < 0.5 * apart
    whole = blend(motion, other, Region(0, FRAMES / 25))
    assert not changed_frames(whole, other).any()
    for wrong in (made_up(1, 50), replace(other, space="flow-8"), replace(other, expression=other.expression[:, :7])):
        with pytest.raises(MotionError, match=r"the other motion has \d+ frames"):
            blend(motion, wrong, MIDDLE)


def test_dense_flow_can_be_blended_only(portrait_face: Face) -> None:
    flow, other = (replace(made_up(seed), space="flow-8") for seed in (0, 1))
    assert changed_frames(flow, blend(flow, other, MIDDLE)).sum() == 20
    for edit in ("head", "expression", "blink", "no blink"):
        with pytest.raises(MotionError, match="'flow-8' is dense flow"):
            EDITS[edit](flow, portrait_face)


def test_added_blinks_shut_the_eyes(space: MotionSpace, portrait_face: Face) -> None:
    motion = made_up()
    after = add_blink(motion, 1.1, portrait_face)
    before, now = openness(space, portrait_face, motion), openness(space, portrait_face, after)
    assert before[20:40].min() > 0.25 and now[27] < 0.07 and now[28] < 0.07
    assert np.flatnonzero(changed_frames(motion, after)).tolist() == list(range(25, 32)), "0.28 s, shut at 1.1 s"
    assert np.array_equal(after.expression[:, :16], motion.expression[:, :16]), "the lower face goes on"
    # The blink column says the same.
    fallen = now - before
    assert np.corrcoef(fallen[20:40], (after.blink - motion.blink).mean(1)[20:40])[0, 1] > 0.98
    np.testing.assert_allclose(after.blink[27], -portrait_face.blink, atol=1e-6)
    # Shut eyes stay shut, no deeper.
    twice = openness(space, portrait_face, add_blink(after, 1.1, portrait_face))
    np.testing.assert_allclose(twice[27:29], now[27:29], atol=1e-3)
    for at_s, changed in ((0, range(0, 5)), (2.39, range(57, 60))):
        edge = add_blink(motion, at_s, portrait_face)
        assert np.flatnonzero(changed_frames(motion, edge)).tolist() == list(changed)
    for at_s in (-0.01, 2.4, float("nan")):
        with pytest.raises(ConfigError, match=r"blink at .*from 0 to 2.4 s"):
            add_blink(motion, at_s, portrait_face)


def test_removed_blinks(space: MotionSpace, portrait_face: Face) -> None:
    motion = made_up(eyes=0.1)
    assert not changed_frames(motion, remove_blinks(motion, MIDDLE)).any(), "nothing to remove"
    blinking = add_blink(add_blink(motion, 1.1, portrait_face), 2.0, portrait_face)
    after = remove_blinks(blinking, MIDDLE)
    seen = openness(space, portrait_face, after)
    assert seen[:45].min() > 0.25 and seen[50] < 0.07, "only in the region"
    assert after.blink[:45].min() > -0.05
    assert np.array_equal(after.expression[:, :16], motion.expression[:, :16])
    np.testing.assert_allclose(after.expression[INSIDE], motion.expression[INSIDE], atol=0.3)
    asleep = motion
    for at_s in np.arange(0.8, 1.6, 0.04):
        asleep = add_blink(asleep, at_s, portrait_face)
    assert not changed_frames(asleep, remove_blinks(asleep, MIDDLE)).any(), "eyes that stay shut are no blink"


def test_blinks_are_deep_and_short() -> None:
    gap = np.zeros(100)
    gap[10:14], gap[30:34], gap[50:70], gap[90:] = -0.09, -0.01, -0.09, -0.09
    assert blinks(gap, 0.1).tolist() == [[10, 14]]
    gap[:3], gap[90:97] = -0.09, 0
    assert blinks(gap, 0.1).tolist() == [[0, 3], [10, 14], [97, 100]], "cut off by the motion's beginning or end"
    assert blinks(np.zeros(5), 0.1).tolist() == []


def test_what_opens_the_lids(space: MotionSpace) -> None:
    gap, opening = lids(space)
    np.testing.assert_allclose(opening @ gap, np.eye(2), atol=1e-6)
    assert not gap[:16].any() and not opening[:, :16].any()


def test_the_motion_space_has_to_be_known(space: MotionSpace, portrait_face: Face) -> None:
    for info in ({"preset": "my-own"}, {}):
        own = replace(made_up(), info=info)
        with pytest.raises(ConfigError, match="not shipped; give space="):
            add_blink(own, 1, portrait_face)
        assert changed_frames(own, add_blink(own, 1, portrait_face, space)).any()
    with pytest.raises(MotionError, match="7 coefficients, the motion space 24"):
        remove_blinks(replace(made_up(), expression=made_up().expression[:, :7]), MIDDLE, space)


def test_changed_frames() -> None:
    motion = made_up()
    for part in ("pose", "blink", "expression"):
        table = getattr(motion, part).copy()
        table[7, 0] = np.nextafter(table[7, 0], np.float32(9))
        assert np.flatnonzero(changed_frames(motion, replace(motion, **{part: table}))).tolist() == [7]
    with pytest.raises(MotionError, match="60 and 50 frames"):
        changed_frames(motion, made_up(0, 50))


def test_eyes_are_seen_to_shut_and_to_stay_open(portrait_path: Path, speech_path: Path) -> None:
    """With the shipped model, tracked again on the frames that it draws."""
    model = Dawn.from_pretrained("lite-128", "cpu")
    video = model(portrait_path, speech_path, seed=1)
    shut = video.with_motion(add_blink(video.motion, 0.4, video.face))
    opened = shut.with_motion(remove_blinks(shut.motion, Region(0, len(video) / 25)))
    seen = []
    with FaceTracker() as tracker:
        for each in (video, shut, opened):
            ((_, frame),) = each.frames(np.arange(len(video)) == 10)
            points = torch.from_numpy(tracker.detect(frame)[0].landmarks)
            seen.append(float(eye_aspect_ratio(points).mean()))
    assert seen[0] > 0.25 and seen[2] > 0.25 and seen[1] < 0.12, seen


# -------------------------------------------------------------------------------------------------------------- takes


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch, tiny_model: Dawn) -> list[int]:
    """First frames of the batches that the engine decodes, as they come."""
    starts: list[int] = []
    whole = tiny_model.engine.decode

    def counting(source: object, face: Face, motion: Motion, start: int, stop: int) -> object:
        starts.append(start)
        return whole(source, face, motion, start, stop)

    monkeypatch.setattr(tiny_model.engine, "decode", counting)
    return starts


@pytest.fixture
def video(prepared_once: None, tiny_model: Dawn, speech: Say) -> Video:
    return tiny_model("x.png", speech(44), seed=1)


@pytest.fixture
def full_video(prepared_once: None, tiny_model: Dawn, speech: Say, portrait_path: Path) -> Video:
    return tiny_model(media.read_image(portrait_path)[:460], speech(20), frame="full", size=256)


def drawn(this: Take) -> list[int]:
    return [index for index, _ in this.draw()]


def test_only_what_changed_is_drawn(video: Video, computed: list[int], tmp_path: Path) -> None:
    with Take(video, tmp_path) as this:
        assert (len(this), this.height, this.width, this.missing) == (44, 64, 64, 44)
        assert drawn(this) == list(range(44)) and sorted(computed) == list(range(0, 44, DECODE_BATCH))
        old = [this.frame(index) for index in range(44)]
        assert (np.stack(old) == stacked(video)).all() and drawn(this) == [] and this.missing == 0
        computed.clear()
        edited = scale_head(this.motion, Region(0.5, 0.9), 3)
        changed = this.change(edited)
        assert np.flatnonzero(changed).tolist() == list(range(12, 23)) and this.missing == 11
        assert drawn(this) == list(range(12, 23)) and sorted(computed) == [8, 16]
        new = np.stack([this.frame(index) for index in range(44)])
        assert (new == stacked(video.with_motion(edited))).all(), "as if drawn anew"
        same = (new == np.stack(old)).all((1, 2, 3))
        assert same[~changed].all() and not same[changed].all()


def test_full_frames(full_video: Video, computed: list[int], tmp_path: Path) -> None:
    with Take(full_video, tmp_path) as this:
        old = np.stack([frame.copy() for _, frame in this.draw()])
        assert old.shape == (20, full_video.height, full_video.width, 3) and full_video.height != full_video.width
        computed.clear()
        changed = this.change(scale_expression(this.motion, Region(0.36, 0.5), 0))
        assert drawn(this) == [9, 10, 11, 12] and computed == [8]
        new = np.stack([this.frame(index) for index in range(20)])
        assert (new == stacked(full_video.with_motion(this.motion))).all() and (new[~changed] == old[~changed]).all()


def test_drawing_may_be_given_up(video: Video, computed: list[int], tmp_path: Path) -> None:
    with Take(video, tmp_path) as this:
        for index, _ in this.draw():
            if index == 10:
                break
        assert this.missing == 33
        assert drawn(this) == list(range(11, 44))
        this.change(scale_head(this.motion, Region(0, 0.2), 0))
        begun = this.draw()
        assert next(begun)[0] == 0
        this.change(scale_head(this.motion, Region(1, 1.2), 0))
        assert list(begun) == [], "it would go on with a motion that is gone"
        assert drawn(this) == [1, 2, 3, 4, *range(25, 30)]
        assert (np.stack([this.frame(index) for index in range(44)]) == stacked(video.with_motion(this.motion))).all()


def test_changes_from_another_thread(video: Video, tmp_path: Path) -> None:
    """Whatever is drawn while the motion changes, what is kept in the end is the last motion's."""
    with Take(video, tmp_path) as this:

        def draw() -> None:
            while this.missing:
                list(this.draw())

        with ThreadPoolExecutor(2) as pool:
            drawing = [pool.submit(draw) for _ in range(2)]
            for step in range(12):
                this.change(scale_head(video.motion, Region(0.1 * step, 0.1 * step + 0.5), 3))
                next(this.draw(), None)
            for each in drawing:
                each.result()
        list(this.draw())
        assert (np.stack([this.frame(index) for index in range(44)]) == stacked(video.with_motion(this.motion))).all()


def test_one_frame(video: Video, computed: list[int], tmp_path: Path) -> None:
    with Take(video, tmp_path) as this:
        frame = this.frame(18)
        assert computed == [16] and this.missing == 36, "its whole batch is kept"
        frame[:] = 0
        assert this.frame(18).any() and computed == [16]
        for index in (-1, 44):
            with pytest.raises(ConfigError, match=f"frame {index}: the video has frames 0 to 43"):
                this.frame(index)


def test_undo(video: Video, tmp_path: Path) -> None:
    with Take(video, tmp_path) as this:
        assert not this.can_undo
        with pytest.raises(ConfigError, match="no change to take back"):
            this.undo()
        assert not this.change(this.motion).any() and not this.can_undo, "nothing changed, nothing to take back"
        list(this.draw())
        there = this.change(scale_head(this.motion, Region(0.5, 0.9), 3))
        list(this.draw())
        back = this.undo()
        assert (there == back).all() and this.missing == there.sum() and not this.can_undo
        assert this.motion is video.motion
        list(this.draw())
        assert (np.stack([this.frame(index) for index in range(44)]) == stacked(video)).all()
        for step in range(HISTORY + 3):
            this.change(scale_head(video.motion, Region(0.5, 0.9), step / 50))
        for _ in range(HISTORY):
            this.undo()
        assert not this.can_undo, "the history is bounded"


def test_reroll(video: Video, tiny_model: Dawn, speech: Say, tmp_path: Path) -> None:
    with Take(video, tmp_path) as this:
        list(this.draw())
        changed = this.reroll(Region(0.4, 1.2), 7)
        assert np.flatnonzero(changed).tolist() == list(range(10, 30)) and this.missing == 20
        other = tiny_model("x.png", speech(44), seed=7).motion
        assert np.array_equal(this.motion.expression[15:25], other.expression[15:25])
        list(this.draw())
        assert (np.stack([this.frame(index) for index in range(44)]) == stacked(video.with_motion(this.motion))).all()
        with pytest.raises(ConfigError, match="seed = -1"):
            this.reroll(Region(0.4, 1.2), -1)
        with pytest.raises(ConfigError, match="reaches outside"):
            this.reroll(Region(0.4, 9), 7)


def test_the_published_model_can_be_rerolled(
    prepared_once: None, speech: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dawn.engines.paper, "load_hubert", lambda name: FakeHubert())
    torch.manual_seed(0)
    model = Dawn(PaperBundle(SMALL).eval().requires_grad_(False), torch.device("cpu"))
    video = model("x.png", speech(20), seed=1, steps=1, sampler="dpm++")
    assert video.space is None
    with Take(video, tmp_path) as this:
        old = np.stack([frame for _, frame in this.draw()])
        changed = this.reroll(Region(0.2, 0.4), 2)
        assert np.flatnonzero(changed).tolist() == [5, 6, 7, 8, 9] and drawn(this) == [5, 6, 7, 8, 9]
        new = np.stack([this.frame(index) for index in range(20)])
        assert (new == stacked(video.with_motion(this.motion))).all() and (new[~changed] == old[~changed]).all()
        assert (new[changed] != old[changed]).any()


def test_saved_takes_are_the_video(prepared_once: None, tiny_model: Dawn, speech_path: Path, tmp_path: Path) -> None:
    video = tiny_model("x.png", speech_path, seed=2)
    (tmp_path / "kept").mkdir()
    with Take(video, tmp_path / "kept") as this:
        next(this.draw())
        assert this.save(tmp_path / "a.mp4") == tmp_path / "a.mp4" and this.missing == 0
    video.save(tmp_path / "b.mp4")
    first, second = (decoded(tmp_path / name) for name in ("a.mp4", "b.mp4"))
    assert (np.stack(first["pixels"]) == np.stack(second["pixels"])).all() and len(first["pixels"]) == 21
    assert np.array_equal(first["samples"], second["samples"])
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["comment"] == video.comment and "AI-generated" in video.comment


def test_nothing_is_left(video: Video, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Take(video, tmp_path) as this:
        assert len(list(tmp_path.iterdir())) == 1 and next(tmp_path.iterdir()).stat().st_size == 44 * 64 * 64 * 3
        begun = this.draw()
        next(begun)
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    this.close()
    for use in (
        lambda: list(this.draw()),
        lambda: list(begun),
        lambda: this.frame(0),
        lambda: this.change(video.motion),
        lambda: this.save(tmp_path / "a.mp4"),
        lambda: this.reroll(Region(0, 1), 3),
    ):
        with pytest.raises(ConfigError, match="closed"):
            use()
    dropped = Take(video, tmp_path)
    assert list(tmp_path.iterdir())
    del dropped
    assert not list(tmp_path.iterdir()), "a take that is dropped goes too"


def test_wrong_motion_changes_nothing(video: Video, tmp_path: Path) -> None:
    with Take(video, tmp_path) as this:
        for wrong, message in ((made_up(0, 44), "needs 12"), (video.motion.at(slice(9)), "has 9 frames, the video 44")):
            with pytest.raises(MotionError, match=message):
                this.change(wrong)
        assert this.motion is video.motion and not this.can_undo


def test_room_on_the_disk(video: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(take.SPARE_BYTES + 44 * 64 * 64 * 3 - 1))
    with pytest.raises(OutputError, match=r"they take 1 MB, and 68 are free; free some"):
        Take(video, tmp_path)
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(take.os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="no space is left"):
        Take(video, tmp_path)
    with pytest.raises(OutputError, match="the folder does not exist"):
        Take(video, tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_eyes_of_any_preset_can_be_edited(video: Video, tmp_path: Path) -> None:
    """``Video.space`` knows the coefficients of presets that are not shipped."""
    with pytest.raises(ConfigError, match="'tiny-64'"):
        add_blink(video.motion, 1, video.face)
    with Take(video, tmp_path) as this:
        assert this.change(add_blink(this.motion, 1, video.face, this.video.space)).sum() == len(edits.BLINK_COURSE)
