"""``dawn plot``: panels that show something, from a video and from a motion file; refusals that leave nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dawn.apps.plot
from conftest import EXAMPLES, refused, three_faces
from dawn import media
from dawn.apps.plot import DPI, FPS, WIDTH_IN, draw, plot
from dawn.checkpoint import load_mean_face
from dawn.checks.traces import MAX_THUMBS, Thumbnails, Traces, trace_motion, trace_video
from dawn.errors import ConfigError
from dawn.face.geometry import apply_pose
from dawn.media.motion_json import save_motion
from dawn.structs import Motion, Speech

pytest.importorskip("matplotlib")
COEFFICIENTS = 12


def panels(path: Path) -> list[np.ndarray]:
    """What lies inside each panel's frame: the rows between long dark lines."""
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    dark = (image.max(2) < 60).sum(1) > 0.5 * image.shape[1]
    lines = np.flatnonzero(dark)
    inner = [image[a + 3 : b - 2] for a, b in pairwise(lines) if b - a > 60]
    return [part[:, 200 : int(0.8 * image.shape[1])] for part in inner]


@pytest.fixture(scope="module")
def motion() -> Motion:
    time = np.arange(60)[:, None] / FPS
    pose = np.concatenate((8 * np.sin(3 * time), 4 * np.cos(2 * time), -time, 0 * time, 0 * time, 0 * time), 1)
    wave = 0.5 * np.sin(8 * time + np.arange(COEFFICIENTS))
    return Motion(
        pose.astype(np.float32), np.repeat(-0.2 * (time > 1), 2, 1).astype(np.float32), wave.astype(np.float32)
    )


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.8 s of the example portrait that slides, black in the middle, with sound."""
    path = tmp_path_factory.mktemp("film") / "a film, $5.mp4"
    portrait = np.asarray(Image.open(EXAMPLES / "portrait.png").convert("RGB").resize((256, 256)))
    speech = Speech(np.sin(np.arange(12_800) / 10).astype(np.float32) * 0.5, 0.8)
    with media.VideoWriter(path, 256, 256, speech) as writer:
        for index in range(20):
            writer.write(np.roll(portrait, -index, 1) * np.uint8(not 8 <= index < 11))
    return path


def test_video(run: Callable, out: Path, film: Path) -> None:
    """All five panels have something in them, in the colours of the legend."""
    code, printed, errors = run("plot", film, "-o", out / "f.png")
    assert (code, printed, errors) == (0, f"{out / 'f.png'}\n", "")
    image = Image.open(out / "f.png")
    assert image.width == round(WIDTH_IN * DPI) and image.height == pytest.approx(8.4 * DPI, abs=DPI / 2)
    found = panels(out / "f.png")
    assert len(found) == 4, "sound, lips, head, eyes; the frames have no box"
    blue, vermilion, green = ([0, 114, 178], [213, 94, 0], [0, 158, 115])
    for panel, colours in zip(
        found, ([[85, 85, 85]], [blue], [blue, vermilion, green], [blue, vermilion]), strict=True
    ):
        for colour in colours:
            assert (np.abs(panel - colour).max(2) < 40).sum() > 100, colour
    # Where no face was found the three panels of the face are grey.
    for panel in found[1:]:
        shade = (np.abs(panel - 0xD0).max(2) < 3).mean(0) > 0.8
        assert shade.mean() == pytest.approx(3 / 20, abs=0.05)
    assert [path.name for path in out.iterdir()] == ["f.png"]


def test_traces_of_a_video(film: Path) -> None:
    made = trace_video(film)
    gone = np.isnan(made.pose[:, 0])
    assert list(np.flatnonzero(gone)) == [8, 9, 10] and made.pose.shape == (20, 3) and made.eyes.shape == (20, 2)
    assert made.lips is not None and np.nanmean(made.lips) == pytest.approx(0.12, abs=0.03)
    assert np.nanmean(made.pose, 0) == pytest.approx([1, 10, 3], abs=2.5)
    assert "0.80 s, 20 frames, 0 blinks, no face in 3 frames" in made.title
    assert made.seconds == pytest.approx(0.8, abs=0.05) and made.sound is not None


def test_legend_of_the_head_is_true() -> None:
    """Yaw + to the picture's left, pitch + down, roll + clockwise: where the nose goes, and the right eye corner."""
    nose, corner = 1, 263
    straight = apply_pose(load_mean_face(), torch.tensor([0, 0, 0, 0.6, 0, 0.0]))
    poses = torch.cat((10 * torch.eye(3), torch.tensor([0.6, 0, 0]).expand(3, 3)), 1)
    by_angle = [apply_pose(load_mean_face(), pose) for pose in poses]
    assert by_angle[0][nose, 0] < straight[nose, 0] and by_angle[1][nose, 1] > straight[nose, 1]
    assert straight[corner, 0] > 0 and by_angle[2][corner, 1] > straight[corner, 1]


def test_motion(run: Callable, out: Path, tmp_path: Path, motion: Motion, tiny_preset: Path) -> None:
    """Two panels without a preset that reads it, three with one."""
    path = tmp_path / "m.json"
    save_motion(motion, path)
    assert run("plot", path)[:2] == (0, f"{path}.png\n")
    assert run("plot", path, "-o", out / "three.png", "--preset", tiny_preset)[0] == 0
    two, three = panels(Path(f"{path}.png")), panels(out / "three.png")
    assert len(two) == 2 and len(three) == 3 and all(panel.std() > 5 for panel in two + three)


def test_traces_of_a_motion(motion: Motion, tiny_preset: Path, tiny_model: dawn.pipeline.Dawn) -> None:  # type: ignore[name-defined]
    bare = trace_motion(motion, "m")
    assert bare.lips is None and (bare.eyes == motion.blink).all() and "change" in bare.labels["eyes"]
    still = Motion(motion.pose, motion.blink, 0 * motion.expression, info={"preset": str(tiny_preset)})
    named = trace_motion(still, "m")
    assert named.lips is not None and np.ptp(named.lips) < 1e-6, "without expression the mean face is still"
    moved = trace_motion(motion, "m", str(tiny_preset))
    space = tiny_model.bundle.motion
    frame = space.shapes(torch.from_numpy(motion.expression[30:31]), space.mean_face).numpy()[0]
    eyes = np.linalg.norm(frame[33] - frame[263])
    gap = np.mean([np.linalg.norm(frame[a] - frame[b]) for a, b in ((82, 87), (13, 14), (312, 317))])
    assert moved.lips is not None and moved.lips[30] == pytest.approx(gap / eyes, rel=0.01)


def test_thumbnails_stay_few_and_even() -> None:
    thumbs = Thumbnails()
    for index in range(3 * MAX_THUMBS + 7):
        thumbs.offer(index, np.full((16, 32, 3), index % 256, np.uint8))
        assert len(thumbs.kept) < MAX_THUMBS
    indices = [index for index, _ in thumbs.kept]
    assert len(indices) >= MAX_THUMBS // 2 and set(np.diff(indices)) == {thumbs.step} and indices[0] == 0
    assert all(image.shape == (160, 320, 3) and image[0, 0, 0] == index % 256 for index, image in thumbs.kept)


@pytest.mark.parametrize(("frames", "aspect"), [(1, 1.0), (3, 0.5), (200, 1.78)])
def test_frames_lie_on_the_axis_without_overlap(frames: int, aspect: float) -> None:
    picture = np.zeros((160, round(160 * aspect), 3), np.uint8)
    made = Traces(
        "t",
        np.zeros((frames, 3)),
        np.ones((frames, 2)),
        dawn.checks.traces.LABELS,
        np.zeros(frames),
        frames=tuple((index, picture) for index in range(frames)),
    )
    figure = draw(made, dawn.apps.plot._figure_class())
    first = figure.axes[0]
    edges = [image.get_extent()[:2] for image in first.images]
    assert edges and all(a[1] <= b[0] for a, b in pairwise(edges))
    assert all(axes.get_xlim() == (0, frames / FPS) for axes in figure.axes)
    if frames > 100:
        assert edges[0][0] >= 0 and edges[-1][1] <= frames / FPS and len(edges) >= 5
        box = first.get_window_extent()
        wide = (edges[0][1] - edges[0][0]) * FPS / frames * box.width
        assert wide / box.height == pytest.approx(aspect, rel=0.02), "frames are not stretched"


def test_refusals(run: Callable, out: Path, tmp_path: Path, motion: Motion, film: Path, tiny_preset: Path) -> None:
    path = tmp_path / "m.json"
    save_motion(motion, path)
    text = tmp_path / "text.mp4"
    text.write_text("words " * 99)
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    with media.VideoWriter(tmp_path / "grey.mp4", 64, 64) as writer:
        for _ in range(3):
            writer.write(np.full((64, 64, 3), 90, np.uint8))
    picture = out / "p.png"
    refused(run("plot", tmp_path / "gone.mp4", "-o", picture), out, "gone.mp4", "does not exist")
    refused(run("plot", text, "-o", picture), out, "text.mp4", "no video")
    refused(run("plot", three_faces(tmp_path, EXAMPLES / "portrait.png"), "-o", picture), out, "three.png")
    refused(run("plot", tmp_path / "grey.mp4", "-o", picture), out, "no face was found in any of 3 frames")
    refused(run("plot", wrong, "-o", picture), out, "wrong.json", "not a motion file")
    refused(run("plot", path, "-o", out / "p.jpg"), out, "must end in .png")
    refused(run("plot", path, "-o", picture, "--preset", "lite-128"), out, "lite-128", "does not read 12 coefficients")
    refused(run("plot", film, "-o", picture, "--preset", tiny_preset), out, "leave it out")


def test_a_failure_leaves_nothing(out: Path, tmp_path: Path, motion: Motion, monkeypatch: pytest.MonkeyPatch) -> None:
    save_motion(motion, tmp_path / "m.json")
    (out / "old.png").write_bytes(b"old")
    figure = dawn.apps.plot._figure_class()

    def fails(self: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("full")

    monkeypatch.setattr(figure, "savefig", fails)
    with pytest.raises(RuntimeError):
        plot(tmp_path / "m.json", out / "old.png")
    assert [path.read_bytes() for path in out.iterdir()] == [b"old"]


def test_matplotlib_is_an_extra(monkeypatch: pytest.MonkeyPatch, run: Callable, out: Path, film: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(run("plot", film, "-o", out / "p.png"), out, "pip install -e '.[plot]'")
    with pytest.raises(ConfigError):
        dawn.apps.plot._figure_class()


def test_no_backend_is_chosen(out: Path, tmp_path: Path, motion: Motion) -> None:
    save_motion(motion, tmp_path / "m.json")
    loaded = "matplotlib.pyplot" in sys.modules
    plot(tmp_path / "m.json", out / "p.png")
    assert ("matplotlib.pyplot" in sys.modules) == loaded
