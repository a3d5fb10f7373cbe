"""The studio without a browser: settings, files, jobs, and what one page can do."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import example_sound, three_faces, write_wav
from dawn import media
from dawn.apps import surfaces
from dawn.apps.studio import words
from dawn.apps.studio.drawing import jpeg_url
from dawn.apps.studio.job import CANCELLED, Job, Progress
from dawn.apps.studio.loading import Loader
from dawn.apps.studio.session import Session
from dawn.apps.studio.sessions import PREFIX, Sessions
from dawn.apps.studio.settings import AUTH_VARIABLE, StudioSettings, accounts
from dawn.apps.studio.studio import HEADERS, Guard, free_port, refusal, studio
from dawn.checks.findings import Finding
from dawn.config import parse
from dawn.errors import ConfigError, InputError
from dawn.media.motion_json import load_motion
from dawn.options import FULL_SIZE_PX, option
from dawn.pipeline import Dawn

WAIT_S = 120


# ----------------------------------------------------------------------------------------------------------- settings


def test_an_open_address_needs_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(AUTH_VARIABLE, raising=False)
    for host in ("127.0.0.1", "localhost", "::1"):
        assert accounts(StudioSettings(host=host)) == []
    for host in ("0.0.0.0", "192.168.1.2", "studio.example", "::"):
        with pytest.raises(ConfigError, match="`auth=user:password`"):
            accounts(StudioSettings(host=host))
    assert accounts(StudioSettings(host="0.0.0.0", auth="ann:a:b")) == [("ann", "a:b")]
    monkeypatch.setenv(AUTH_VARIABLE, "bob:secret")
    assert accounts(StudioSettings(host="0.0.0.0")) == [("bob", "secret")]
    users = tmp_path / "users.txt"
    users.write_text("ann:one\n\nbob:two\n")
    assert accounts(StudioSettings(auth_file=users)) == [("ann", "one"), ("bob", "two")]


@pytest.mark.parametrize("text", ["hunter2", ":hunter2", "hunter2:", ""])
def test_a_wrong_user_is_refused_and_not_repeated(text: str, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text(text)
    with pytest.raises(ConfigError) as refused:
        accounts(StudioSettings(auth_file=users))
    assert "hunter2" not in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        accounts(StudioSettings(auth=text))
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(StudioSettings(auth="ann:hunter2"))


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"max_queue": 0}, {"keep_hours": 0}, {"hots": "x"}, {"max_seconds": 1e9}]
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        parse(StudioSettings, wrong, "studio")


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)) as refused:
            free_port("127.0.0.1", port)
        assert "\n" not in str(refused.value)
        with pytest.raises(ConfigError, match=str(port)):
            studio(StudioSettings(port=port))
    assert 0 < free_port("127.0.0.1", 0) < 65536


@pytest.mark.slow
def test_the_page_opens_before_torch_is_loaded() -> None:
    code = "import sys, dawn.apps.studio.studio, dawn.apps.studio.page"
    code += "; assert 'torch' not in sys.modules, 'torch delays the page'"
    pytest.importorskip("gradio")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_plain_install_needs_no_gradio() -> None:
    code = "import sys; sys.modules['gradio'] = None; import dawn.apps.studio.studio, dawn.apps.studio.session"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_all_assets_are_packaged() -> None:
    root = Path(__file__).parent.parent
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["dawn"]
    package = root / "src" / "dawn"
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    assets = list((package / "apps" / "studio" / "assets").iterdir())
    assert len(assets) >= 8
    assert set(assets) <= packaged
    assert sum(path.stat().st_size for path in assets) < 400_000


def test_answers_forbid_other_addresses() -> None:
    sent: list[dict[str, object]] = []

    async def page(scope: object, receive: object, send: Callable[..., object]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})  # type: ignore[misc]

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    asyncio.run(Guard(page, refusal, HEADERS)({"type": "http", "path": "/"}, None, send))
    headers = dict(sent[0]["headers"])  # type: ignore[call-overload]
    assert sent[0]["status"] == 200 and headers[b"a"] == b"b"
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert b"http" not in headers[b"content-security-policy"]
    sent.clear()
    foreign = {"type": "http", "path": "/gradio_api/file=https://example.org/x"}
    asyncio.run(Guard(page, refusal, HEADERS)(foreign, None, send))
    assert sent[0]["status"] == 403


# --------------------------------------------------------------------------------------------------------------- words


def test_what_comes_from_outside_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>.png"
    bad = Finding("file", None, "", "error", f"'{evil}' is no picture")
    for html in (words.line(evil), words.findings([bad], ""), words.failed(evil), words.finished(evil, evil, 1, 2, 2)):
        assert "<img src=x" not in html and "&lt;img" in html


def test_findings_in_words() -> None:
    fine, soft = Finding("duration", 2.0, "s"), Finding("snr", 9.0, "dB", "warning", "record nearer to the mouth")
    assert "All is well" in words.findings([fine], "All is well")
    html = words.findings([fine, soft], "All is well")
    assert "All is well" not in html and "record nearer" in html and "dawn-warning" in html and "Duration" in html
    assert words.clock(65.4) == "1:05" and words.clock(-1) == "0:00"


def test_progress_in_words() -> None:
    html = words.working(Progress("decode", 30, 120, 42.0), "data:x")
    for part in ("Drawing the frames", "30 of 120 frames", "0:42 left", 'aria-valuenow="25"', 'src="data:x"'):
        assert part in html
    assert "dawn-unknown" in words.working(words.WAITING, None)
    html = words.changes([5, 6, 9], 100)
    assert "3 of 100 frames" in html and "between 0.20 and 0.40 s" in html
    assert "0 of" not in words.changes([], 100)


# ---------------------------------------------------------------------------------------------------------------- jobs


def test_a_job_reports_and_ends() -> None:
    go, frame = threading.Event(), np.zeros((4, 4, 3), np.uint8)

    def work(job: Job) -> None:
        job.report("decode", 1, 10, frame)
        job.report("decode", 5, 10)
        go.wait(WAIT_S)

    job = Job(work)
    job.start()
    while job.progress.done < 5:
        time.sleep(0.01)
    assert not job.ended and job.progress.frame is frame and job.progress.left_s is not None
    go.set()
    assert job.wait(WAIT_S) and job.error is None


def test_a_job_can_be_cancelled_and_fails_in_one_line() -> None:
    def endless(job: Job) -> None:
        while True:
            job.report("decode", 1, 2)

    job = Job(endless)
    job.start()
    job.cancel()
    assert job.wait(WAIT_S) and job.error == CANCELLED

    def broken(job: Job) -> None:
        raise (InputError("no such file") if job is jobs[0] else ValueError("odd"))

    jobs = [Job(broken), Job(broken)]
    for job in jobs:
        job.start()
        job.wait(WAIT_S)
    assert jobs[0].error == "no such file" and jobs[1].error == "unexpected ValueError: odd"
    jobs[0].cancel()
    jobs[0].report("decode", 1, 2)


# --------------------------------------------------------------------------------------------------------------- files


class Pretender:
    """In place of a session."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.busy, self.closed = folder, False, False

    def close(self) -> None:
        self.closed = True


def test_files_of_closed_and_unused_pages_go(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(Pretender, keep_s=1000, leave_s=0, sweep_s=1000)  # type: ignore[arg-type]
    one, two = sessions.of("one"), sessions.of("two")
    assert sessions.of("one") is one and one.folder != two.folder and sessions.root in one.folder.parents
    assert sessions.root.stat().st_mode & 0o077 == 0
    sessions.left("one")
    sessions.left("nobody")
    sessions.seen("one")
    sessions.sweep()
    assert not one.closed  # type: ignore[attr-defined]
    sessions.left("one")
    time.sleep(0.01)
    sessions.sweep()
    assert one.closed and not two.closed  # type: ignore[attr-defined]
    assert sessions.of("one") is not one
    sessions._keep_s = -1.0
    two.busy = True  # type: ignore[misc]
    sessions.sweep()
    assert not two.closed  # type: ignore[attr-defined]
    two.busy = False  # type: ignore[misc]
    sessions.sweep()
    assert two.closed  # type: ignore[attr-defined]
    upload = sessions.root / "hash" / "voice.wav"
    upload.parent.mkdir()
    upload.write_bytes(b"x")
    time.sleep(0.01)
    sessions.sweep()
    assert not upload.exists()
    for wrong in (
        "/etc/hostname",
        "https://example.org/a.png",
        str(two.folder / "a.png"),
        str(sessions.root / "alive"),
        str(sessions.root / "x" / ".." / "pages" / "y"),
    ):
        assert not sessions.upload(wrong).exists() and sessions.root in sessions.upload(wrong).parents
    assert sessions.upload(str(upload)) == upload
    sessions.close()
    assert not sessions.root.exists()


def test_what_a_killed_studio_left_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, age_s in (("dead", 90_000), ("alive", 10)):
        folder = tmp_path / f"{PREFIX}{name}"
        folder.mkdir()
        (folder / "alive").touch()
        os.utime(folder / "alive", (time.time() - age_s,) * 2)
    Sessions(Pretender, 1000).close()  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == [f"{PREFIX}alive"]


# ------------------------------------------------------------------------------------------------------------- session


@pytest.fixture(scope="module")
def loader(tiny_model: Dawn) -> Loader:
    """A loader that has the tiny model already."""
    loader = Loader("tiny-64", "cpu")
    loader._model = tiny_model
    loader._ready.set()
    return loader


@pytest.fixture
def session(tmp_path: Path, loader: Loader, tiny_preset: Path) -> Iterator[Session]:
    folder = tmp_path / "root" / "pages" / "page"
    folder.mkdir(parents=True)
    session = Session(folder, loader, StudioSettings(preset=str(tiny_preset), max_seconds=20))
    yield session
    session.close()
    assert not folder.exists()


def made(session: Session, portrait: Path, speech: Path, **options: object) -> Session:
    session.take_portrait(portrait)
    session.take_speech(speech)
    job = session.generate(size=128, **options)
    assert job.wait(WAIT_S) and job.error is None, job.error
    return session


def frames_of(path: Path) -> list[np.ndarray]:
    with media.VideoReader(path) as reader:
        return list(reader)


def test_a_portrait_is_looked_at(session: Session, portrait_path: Path, tmp_path: Path) -> None:
    found = session.take_portrait(portrait_path)
    assert portrait_path.exists(), "a file that is no upload is copied"
    assert (found.faces, found.face) == (1, 1) and all(finding.level != "error" for finding in found.findings)
    assert found.shown is not None
    with Image.open(found.shown) as shown, Image.open(portrait_path) as original:
        assert shown.size == original.size
        light, before = np.asarray(shown.convert("L"), int), np.asarray(original.convert("L"), int)
    assert light[-40:].mean() < 0.7 * before[-40:].mean(), "outside of the square it is darker"
    face = (slice(70, 110), slice(210, 240))
    assert abs(light[face].mean() - before[face].mean()) < 25, "inside of it is not"
    assert jpeg_url(np.zeros((900, 30, 3), np.uint8)).startswith("data:image/jpeg;base64,")


def test_uploads_are_moved_and_replaced_ones_removed(session: Session, portrait_path: Path) -> None:
    upload = session.folder.parent.parent / "hash" / "me & you.png"
    upload.parent.mkdir()
    upload.write_bytes(portrait_path.read_bytes())
    first = session.take_portrait(upload)
    assert not upload.exists() and first.path.exists() and first.path.name == "me & you.png"
    second = session.take_portrait(portrait_path)
    assert second.path.exists() and not first.path.parent.exists()
    session.drop_portrait()
    assert not second.path.parent.exists()
    with pytest.raises(InputError, match="choose it again"):
        session.take_portrait(upload)


def test_which_face(session: Session, portrait_path: Path, tmp_path: Path) -> None:
    found = session.take_portrait(three_faces(tmp_path, portrait_path))
    assert found.faces == 3 and found.face in (1, 2, 3)
    chosen = session.choose_face(3)
    assert chosen.face == 3 and chosen.shown != found.shown
    assert session.choose_face(1).face == 1


def test_unusable_files_give_the_line_of_the_command_line(
    session: Session, portrait_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no portrait"):
        session.generate(size=128)
    Image.new("RGB", (300, 300), "gray").save(tmp_path / "grey.png")
    found = session.take_portrait(tmp_path / "grey.png")
    assert found.shown is not None and [finding.level for finding in found.findings] == ["error"]
    (tmp_path / "text.png").write_text("hello")
    found = session.take_portrait(tmp_path / "text.png")
    assert found.shown is None and "no picture" in found.findings[0].advice
    assert str(session.folder) not in session.in_short(found.findings[0].advice)
    with pytest.raises(InputError, match="no speech"):
        session.generate(size=128)
    heard = session.take_speech(write_wav(tmp_path / "silent.wav", np.zeros(16000), 16000))
    assert heard.speech is None and "silent throughout" in heard.findings[0].advice
    with pytest.raises(InputError, match="no picture"):
        session.generate(size=128)
    session.take_portrait(portrait_path)
    with pytest.raises(InputError, match="silent throughout"):
        session.generate(size=128)
    samples, rate_hz = example_sound()
    long = session.take_speech(write_wav(tmp_path / "long.wav", np.tile(samples, 3), rate_hz))
    assert long.speech is None and "20 s" in long.findings[0].advice
    with pytest.raises(InputError, match="no video"):
        session.redraw()
    with pytest.raises(InputError, match="no video"):
        session.view()


def test_generate_edit_and_redraw(session: Session, portrait_path: Path, speech_path: Path) -> None:
    made(session, portrait_path, speech_path, seed=3)
    assert session.result is not None and session.take is not None
    frames = session.result.frames
    assert (frames, session.result.width, session.result.height) == (21, 128, 128)
    assert len(load_motion(session.result.motion)) == frames and not session.changed.any()
    before = [session.take.frame(i) for i in range(frames)]
    session.strengths(0.32, 0.6, 0.0, 1.5)
    changed = session.changed
    assert changed[8:15].any() and not changed[:8].any() and not changed[15:].any()
    view = json.loads(json.dumps(session.view()))
    assert view["changed"] == [[int(changed.argmax()), int(21 - changed[::-1].argmax())]] and view["drawn"] is not None
    assert all(len(view["curves"][name]) == frames for name in ("yaw", "pitch", "roll", "eyes", "lips"))
    assert max(view["wave"]["high"]) == 1.0 or min(view["wave"]["low"]) == -1.0
    old = session.result.video
    assert session.take.missing == changed.sum()
    job = session.redraw()
    assert job.wait(WAIT_S) and job.error is None
    assert not session.changed.any() and not old.exists() and session.result.video.exists()
    for i in range(frames):
        same = np.array_equal(before[i], session.take.frame(i))
        assert same or changed[i], f"frame {i} was not edited"
    assert any(not np.array_equal(before[i], session.take.frame(i)) for i in np.flatnonzero(changed))
    assert len(frames_of(session.result.video)) == frames


def test_blinks_rerolls_and_undo(session: Session, portrait_path: Path, speech_path: Path) -> None:
    made(session, portrait_path, speech_path)
    assert session.take is not None
    start = session.take.motion
    session.add_blink(0.4)
    assert session.changed.any() and session.take.motion.blink[10].max() < start.blink[10].min()
    session.undo()
    assert not session.changed.any()
    session.add_blink(0.4)
    session.remove_blinks(0.0, 0.84)
    session.undo()
    session.undo()
    with pytest.raises(ConfigError):
        session.undo()
    job = session.reroll(0.2, 0.6, 9)
    assert job.wait(WAIT_S) and job.error is None
    assert session.changed[7:13].any() and not session.changed[:5].any() and not session.changed[15:].any()
    for wrong in ((0.6, 0.2), (0.0, 99.0), (float("nan"), 0.5)):
        with pytest.raises(ConfigError, match="region"):
            session.strengths(*wrong, 0.5, 1.0)
    job = session.reroll(0.6, 0.2, 9)
    assert job.wait(WAIT_S) and job.error is not None and "region" in job.error


def test_cancel_keeps_the_last_video(
    session: Session, portrait_path: Path, speech_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(session, portrait_path, speech_path)
    assert session.result is not None
    first, folders = session.result.video, {path.name for path in session.folder.glob("result-*")}
    begun, go = threading.Event(), threading.Event()
    draw = session._draw

    def slow(take: object, job: Job) -> None:
        begun.set()
        go.wait(WAIT_S)
        draw(take, job)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "_draw", slow)
    job = session.generate(size=128, seed=5)
    assert begun.wait(WAIT_S) and session.busy
    for refused in (lambda: session.generate(size=128), lambda: session.add_blink(0.4), session.redraw):
        with pytest.raises(InputError, match="wait for it"):
            refused()
    job.cancel()
    go.set()
    session.cancel()
    assert job.error == CANCELLED and session.cancelled
    assert session.result.video == first and first.exists()
    assert {path.name for path in session.folder.glob("result-*")} == folders
    assert len(list(session.folder.rglob(".dawn-take-*"))) == 1
    monkeypatch.setattr(session, "_draw", draw)
    job = session.generate(frame="full", seed=5)
    assert job.wait(WAIT_S) and job.error is None and session.result.width == 512 and not session.cancelled


def test_one_video_at_a_time(session: Session, loader: Loader, portrait_path: Path, speech_path: Path) -> None:
    session.take_portrait(portrait_path)
    session.take_speech(speech_path)
    with loader.turn:
        job = session.generate(size=128)
        assert not job.wait(0.5) and job.progress.stage == "wait"
        session.cancel()
        assert job.error == CANCELLED


def test_a_model_that_cannot_be_loaded_is_one_line() -> None:
    loader = Loader("no-such-preset", "cpu")
    loader.start()
    with pytest.raises(ConfigError, match="no-such-preset"):
        loader.get()


# ------------------------------------------------------------------------------------------------------------ controls


@pytest.fixture(scope="module")
def controls() -> dict[str, Any]:
    """The page's controls by the name of their option."""
    pytest.importorskip("gradio")
    from dawn.apps.studio.layout import CONTROLS, build

    _, parts = build(StudioSettings())
    return {name: getattr(parts, name) for name in CONTROLS}


def test_controls_are_made_of_the_declarations(controls: dict[str, Any]) -> None:
    assert set(controls) | {"face"} == surfaces.PAGE.has
    for name, control in controls.items():
        told = option(name)
        assert control.label == told.control.label
        if name != "size":
            assert str(control.info).lower().startswith(told.words.lower()) and control.value == told.default
            assert told.default is not None or told.limits in str(control.info)
        if hasattr(control, "step") and told.default is not None and told.high is not None:
            assert (control.minimum, control.maximum) == (told.low, told.high)


def test_a_preset_keeps_its_own_guidance(
    controls: dict[str, Any], tiny_model: Dawn, portrait_path: Path, speech: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the page asks for when nobody touched it, of a preset whose guidance is another than the usual one."""
    from dawn.apps.studio.layout import asked, sizes

    untouched = [control.value for control in controls.values()]
    assert asked(*untouched) == {}
    own = tiny_model.config.sampler.model_copy(update={"guidance": 3.0, "steps": 2})
    monkeypatch.setattr(tiny_model.engine, "config", tiny_model.config.model_copy(update={"sampler": own}))
    sound, face = speech(16), tiny_model.prepare(portrait_path)
    plain = tiny_model(face, sound, **asked(*untouched)).motion.expression
    assert (plain == tiny_model(face, sound, guidance=3.0, steps=2).motion.expression).all()
    values = dict(zip(controls, untouched, strict=True)) | {"guidance": 1.75, "size": 128, "seed": None, "blink": 0}
    turned = asked(*values.values())
    assert turned == {"guidance": 1.75, "size": 128, "blink": 0}
    assert (plain != tiny_model(face, sound, guidance=1.75).motion.expression).any()
    assert asked(*(values | {"frame": "full", "size": sizes("full")["value"]}).values())["size"] == FULL_SIZE_PX
    typed = asked(*(values | {"guidance": "2.5", "steps": " 8 ", "size": "", "blink": 1}).values())
    assert typed == {"guidance": 2.5, "steps": 8}
    with pytest.raises(ConfigError, match=r"`steps=many`: give a number"):
        asked(*(values | {"steps": "many"}).values())


def test_the_page_calls_options_as_its_controls_do() -> None:
    shown = words.line("2 faces were found: choose one with `face=N`; or see `allow_silence=True`", "error")
    assert "choose one with “Which face”</span>" in shown and "allow" not in shown
    assert "“Head motion”" in words.failed("the head moves far: see `pose_scale`")
