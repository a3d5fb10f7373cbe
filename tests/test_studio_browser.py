"""The studio in headless Chromium, as a person uses it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import example_sound, three_faces, write_wav
from dawn.media.motion_json import load_motion

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
PATIENCE_S = 180
PATIENCE_MS = 1000.0 * PATIENCE_S
SERVER = """
import functools, json, signal, sys
import dawn.apps.studio.studio as run
signal.signal(signal.SIGINT, signal.default_int_handler)
run.Sessions = functools.partial(run.Sessions, leave_s=8, sweep_s=0.5)
sys.exit(run.studio(run.StudioSettings(**json.loads(sys.argv[1])), lambda line: print(line, flush=True)))
"""


class Server:
    """A studio in a process of its own, whose files lie in ``folder``."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        command = [sys.executable, "-c", SERVER, json.dumps({"port": 0, **settings})]
        environment = os.environ | {"TMPDIR": str(folder), "GRADIO_SHARE": "1", "GRADIO_ALLOWED_PATHS": "/"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.url = next((word for word in line.split() if word.startswith("http")), "")
        assert self.url, f"the studio did not start: {line!r}"

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.folder.glob(f"dawn-studio-*/pages/*/{pattern}"))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("gradio")
    server = Server(tmp_path_factory.mktemp("studio"), max_queue=1)
    yield server
    server.process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end, nothing may have been asked of another host, and no script may have failed."""
    contexts, hosts, failures = [], set(), []

    def open_page(url: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "://" in request.url else "inline"))
        page.on("websocket", lambda socket: hosts.add(socket.url.split("/")[2]))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert {host.split(":")[0] for host in hosts} <= {"127.0.0.1", "inline"}, hosts
    assert not failures


@pytest.fixture(scope="module")
def two_seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples, rate_hz = example_sound()
    return write_wav(tmp_path_factory.mktemp("speech") / "two.wav", samples[rate_hz // 4 :][: 2 * rate_hz], rate_hz)


def give(page: Any, portrait: Path | None, speech: Path | None, level: str = "ok") -> None:
    """Upload, and wait for what the page says of it."""
    for path, box, said in ((portrait, "#dawn-portrait", "#dawn-seen"), (speech, "#dawn-speech", "#dawn-heard")):
        if path is not None:
            page.set_input_files(f"{box} input[type=file]", str(path))
            page.wait_for_selector(f"{said} .dawn-{level}")


def video_of(page: Any) -> dict[str, float]:
    """Plays the video for a moment; its duration, width, and where it stands then."""
    page.wait_for_selector("#dawn-stage video")
    page.evaluate("document.querySelector('#dawn-stage video').play()")
    page.wait_for_function("document.querySelector('#dawn-stage video').currentTime > 0.3")
    return page.evaluate(
        "(({duration, videoWidth, currentTime}) => ({duration, videoWidth, currentTime}))"
        "(document.querySelector('#dawn-stage video'))"
    )


def download(page: Any, text: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.click(f"text={text}")
    path = folder / f"{time.monotonic_ns()}-{waiting.value.suggested_filename}"
    waiting.value.save_as(path)
    return path


def drawn(server: Server, page_folder: Path) -> np.ndarray:
    (path,) = page_folder.glob("take-*/.dawn-take-*")
    return np.fromfile(path, np.uint8).reshape(-1, 256, 256, 3)


def test_from_portrait_and_speech_to_an_edited_video(
    server: Server, opened: Callable[..., Any], portrait_path: Path, two_seconds: Path, tmp_path: Path
) -> None:
    page = opened(server.url)
    give(page, portrait_path, two_seconds)
    shown = page.locator("#dawn-portrait img")
    shown.wait_for()
    page.wait_for_function("document.querySelector('#dawn-portrait img').naturalWidth == 512")
    assert "shown-0" in shown.get_attribute("src")
    assert "2.0 seconds" in page.inner_text("#dawn-heard")
    page.click("#dawn-generate:not([disabled])")
    played = video_of(page)
    assert played["duration"] == pytest.approx(2.0, abs=0.05) and played["videoWidth"] == 256
    folder = server.files("take-*/.dawn-take-*")[-1].parent.parent
    before, motion = drawn(server, folder), load_motion(download(page, "Download motion", tmp_path))
    assert len(motion) == len(before) == 50 and page.locator("#dawn-redraw").is_disabled()

    canvas = page.locator("#dawn-timeline canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 70, steps=6)
    page.mouse.up()
    page.wait_for_function("document.querySelector('#dawn-to input').value > 1.2")
    start_s, stop_s = (float(page.input_value(f"#dawn-{name} input")) for name in ("from", "to"))
    assert start_s == pytest.approx(0.8, abs=0.06) and stop_s == pytest.approx(1.4, abs=0.06)
    page.click("[aria-label='Show less of the video, larger']")
    page.wait_for_selector(".dawn-pan:visible")
    page.click("[aria-label='Show more of the video']")
    page.wait_for_selector(".dawn-pan", state="hidden")
    page.locator("#dawn-head input[type=number]").fill("0")
    page.locator("#dawn-head input[type=number]").press("Tab")
    page.click("#dawn-apply")
    page.wait_for_selector("#dawn-edited .dawn-warning")
    page.click("#dawn-add-blink")
    page.click("#dawn-redraw:not([disabled])")
    page.wait_for_selector("#dawn-stage .dawn-working")
    assert video_of(page)["duration"] == pytest.approx(2.0, abs=0.05)
    after, edited = drawn(server, folder), load_motion(download(page, "Download motion", tmp_path))
    same = (edited.pose == motion.pose).all(1) & (edited.expression == motion.expression).all(1)
    assert 5 < (~same).sum() < 30
    assert np.array_equal(after[same], before[same]), "frames that were not edited are the same, bit by bit"
    assert (after[~same] != before[~same]).any((1, 2, 3)).mean() > 0.8
    assert download(page, "Download video", tmp_path).read_bytes()[4:8] == b"ftyp"
    page.click("#dawn-reroll:not([disabled])")
    page.wait_for_selector("#dawn-edited .dawn-warning")
    page.click("#dawn-undo:not([disabled])")
    page.wait_for_selector("#dawn-edited .dawn-warning", state="detached")
    page.fill("#dawn-to input", "0.1")
    page.click("#dawn-remove-blinks")
    page.wait_for_selector("#dawn-edited .dawn-error")
    assert "its start must lie before its end" in page.inner_text("#dawn-edited")


def test_previews_come_before_the_end_and_cancel_ends_it(
    server: Server, opened: Callable[..., Any], portrait_path: Path
) -> None:
    page = opened(server.url)
    give(page, portrait_path, None)
    page.click("text=9 seconds")
    page.wait_for_selector("#dawn-heard .dawn-ok")
    page.evaluate("""() => { window.seen = new Set(); new MutationObserver(() => {
        const image = document.querySelector('#dawn-stage img');
        if (image) window.seen.add(Number(image.dataset.frame));
    }).observe(document.querySelector('#dawn-stage'), {childList: true, subtree: true, attributes: true}); }""")
    page.click("#dawn-generate:not([disabled])")
    page.wait_for_function("window.seen.size > 2")
    assert "of 221 frames" in page.inner_text("#dawn-stage")
    page.click("#dawn-cancel")
    page.wait_for_selector("#dawn-stage .dawn-error")
    assert "cancelled; nothing unfinished was kept" in page.inner_text("#dawn-stage")
    assert max(page.evaluate("[...window.seen]")) < 221
    page.wait_for_selector("#dawn-generate:not([disabled])")
    assert page.locator("#dawn-cancel").is_disabled() and not page.locator("#dawn-stage video").count()


def test_who_comes_later_waits_and_too_many_are_refused(server: Server, opened: Callable[..., Any]) -> None:
    pages = [opened(server.url) for _ in range(3)]
    for page in pages:
        page.click("text=Astronaut")
        page.wait_for_selector("#dawn-seen .dawn-ok")
        page.click("text=9 seconds")
        page.wait_for_selector("#dawn-heard .dawn-ok")
    first, second, third = pages
    first.click("#dawn-generate:not([disabled])")
    first.wait_for_selector("#dawn-stage [aria-label='Composing the motion'], #dawn-stage img")
    second.click("#dawn-generate:not([disabled])")
    second.wait_for_function(
        "document.querySelector('#dawn-stage').innerText.includes('Waiting for the video before yours')"
    )
    second.wait_for_timeout(1000)
    third.click("#dawn-generate:not([disabled])")
    third.wait_for_selector("#dawn-stage .dawn-error")
    assert "many videos are waiting" in third.inner_text("#dawn-stage")
    for page in (second, first):
        page.click("#dawn-cancel")
        page.wait_for_selector("#dawn-stage .dawn-error")
        assert "cancelled" in page.inner_text("#dawn-stage")


def test_errors_are_one_line(server: Server, opened: Callable[..., Any], tmp_path: Path) -> None:
    page = opened(server.url)
    page.click("#dawn-generate:not([disabled])")
    page.wait_for_selector("#dawn-stage .dawn-error")
    assert "there is no portrait yet" in page.inner_text("#dawn-stage")
    Image.new("RGB", (300, 200), "gray").save(tmp_path / "grey.png")
    give(page, tmp_path / "grey.png", write_wav(tmp_path / "silent.wav", np.zeros(32000), 16000), "error")
    assert "no face was found in the portrait" in page.inner_text("#dawn-seen")
    assert "sound 'silent.wav' is silent throughout" in page.inner_text("#dawn-heard")
    page.click("#dawn-generate:not([disabled])")
    page.wait_for_function("document.querySelector('#dawn-stage').innerText.includes('no face was found')")
    assert "there is no portrait yet" not in page.inner_text("#dawn-stage")
    page.click("#dawn-portrait [aria-label='Remove Image']")
    page.wait_for_selector("#dawn-seen .dawn-error", state="detached")
    (tmp_path / "text.png").write_text("hello")
    give(page, tmp_path / "text.png", None, "error")
    assert "'text.png' is no picture that can be read" in page.inner_text("#dawn-seen")
    for message in page.locator(".dawn-error").all_inner_texts():
        assert str(server.folder) not in message and "Traceback" not in message


def test_several_faces_are_numbered(
    server: Server, opened: Callable[..., Any], portrait_path: Path, tmp_path: Path
) -> None:
    page = opened(server.url)
    give(page, three_faces(tmp_path, portrait_path), None)
    choices = page.locator("#dawn-face label")
    assert choices.count() == 3
    choices.nth(2).click()
    page.wait_for_function("document.querySelector('#dawn-seen').innerText.includes('number 3')")
    page.wait_for_function("document.querySelector('#dawn-portrait img').src.includes('shown-3')")


def test_camera_and_microphone(server: Server, opened: Callable[..., Any]) -> None:
    """Chromium's made-up devices: a picture without a face, and beeps."""
    page = opened(server.url, permissions=["camera", "microphone"])
    page.click("#dawn-portrait [aria-label='Capture from camera']")
    page.click("#dawn-portrait button:has-text('Click to Access Webcam')")
    page.wait_for_function("(document.querySelector('#dawn-portrait video') || {}).currentTime > 0.5")
    page.click("#dawn-portrait [aria-label='capture photo']")
    page.wait_for_selector("#dawn-seen .dawn-error")
    assert "no face was found" in page.inner_text("#dawn-seen")
    page.click("#dawn-speech [aria-label='Record audio']")
    page.click("#dawn-speech button:has-text('Record')")
    page.wait_for_timeout(2500)
    page.locator("#dawn-speech button:has-text('Stop'):visible").first.click()
    page.wait_for_selector("#dawn-heard .dawn-findings")
    assert "File" not in page.inner_text("#dawn-heard") and not page.locator("#dawn-heard .dawn-error").count()
    page.wait_for_selector("#dawn-heard details", state="attached")


def test_a_telephone_is_wide_enough(server: Server, opened: Callable[..., Any], two_seconds: Path) -> None:
    page = opened(server.url, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page.tap("text=Astronaut")
    page.wait_for_selector("#dawn-seen .dawn-ok")
    give(page, None, two_seconds)
    page.tap("#dawn-settings button")
    page.tap("#dawn-generate:not([disabled])")
    page.wait_for_selector("#dawn-stage video")
    page.wait_for_selector("#dawn-motion canvas")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for control in page.locator("button:visible, input:visible, canvas:visible, video:visible, a:visible").all():
        box = control.bounding_box()
        if box and box["width"]:
            assert box["x"] >= -1 and box["x"] + box["width"] <= 361, control.evaluate("e => e.outerHTML.slice(0, 200)")
    canvas = page.locator("#dawn-timeline canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    touch = functools.partial(page.context.new_cdp_session(page).send, "Input.dispatchTouchEvent")
    y = box["y"] + box["height"] / 2
    touch({"type": "touchStart", "touchPoints": [{"x": box["x"] + 60, "y": y}]})
    for x in range(70, 200, 10):
        touch({"type": "touchMove", "touchPoints": [{"x": box["x"] + x, "y": y}]})
    touch({"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("document.querySelector('#dawn-from input').value > 0.2")
    page.fill("#dawn-from input", "0.4")
    page.fill("#dawn-to input", "0.8")
    page.press("#dawn-to input", "Tab")
    page.wait_for_function("document.querySelector('.dawn-where').innerText.includes('0.40 to 0.80')")


def test_files_of_a_closed_page_go_and_others_stay(
    server: Server, opened: Callable[..., Any], portrait_path: Path
) -> None:
    first, second = opened(server.url), opened(server.url)
    for page in (first, second):
        give(page, portrait_path, None)
    before = set(server.files("input-*/portrait.png"))
    first.click("text=9 seconds")
    first.wait_for_selector("#dawn-heard .dawn-ok")
    finished = len(server.files("result-*/dawn-video.mp4"))
    first.click("#dawn-generate:not([disabled])")
    first.wait_for_selector("#dawn-stage img")
    first.close()
    deadline = time.monotonic() + PATIENCE_S
    while len(set(server.files("input-*/portrait.png")) & before) >= len(before) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = set(server.files("input-*/portrait.png")) & before
    assert 1 <= len(left) < len(before)
    second.wait_for_selector("#dawn-generate:not([disabled])")
    second.click("text=3 seconds")
    second.wait_for_selector("#dawn-heard .dawn-ok")
    assert len(server.files("result-*/dawn-video.mp4")) <= finished, "what a closed page had begun was not finished"
    second.click("#dawn-generate:not([disabled])")
    second.wait_for_selector("#dawn-stage video")


def test_an_unknown_preset_ends_it_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "dawn.apps.cli.main", "studio", "--port", "0", "--preset", "no-such-preset"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1 and "no-such-preset" in ended.stderr
    assert not list(tmp_path.glob("dawn-studio-*"))


def test_the_wall_and_a_clean_end(opened: Callable[..., Any], browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    server = Server(tmp_path, auth="ann:secret", max_upload_mb=1, preset="lite-128")
    try:
        page = opened(server.url)
        page.wait_for_selector("input[type=password]")
        assert not page.locator("#dawn-generate").count()
        for path in ("config", "gradio_api/info", "gradio_api/upload", "gradio_api/file=/etc/hostname"):
            answer = page.request.get(server.url + path)
            assert answer.status in (401, 403, 404, 405), (path, answer.status)
        for password, status in (("wrong", 400), ("secret", 200)):
            page.fill("input[type=text]", "ann")
            page.fill("input[type=password]", password)
            with page.expect_response("**/login") as answer:
                page.keyboard.press("Enter")
            assert answer.value.status == status
        page.wait_for_selector("#dawn-generate:not([disabled])")
        for path in ("/etc/hostname", str(tmp_path.parent), "https://example.org/"):
            assert page.request.get(f"{server.url}gradio_api/file={path}").status in (403, 404)
        big = page.request.post(
            f"{server.url}gradio_api/upload",
            multipart={"files": {"name": "big.png", "mimeType": "image/png", "buffer": b"\0" * (2 << 20)}},
        )
        assert big.status == 413
        page.click("text=Astronaut")
        page.wait_for_selector("#dawn-seen .dawn-ok")
        assert server.files("input-*/portrait.jpg")
        assert server.stop() == 0
        assert not list(tmp_path.glob("dawn-studio-*"))
    finally:
        server.process.kill()
