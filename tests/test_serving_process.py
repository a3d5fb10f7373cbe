"""``dawn serve`` as a process of its own: signals, crashes, load, and a browser that plays what it streams."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
httpx = pytest.importorskip("httpx")

from dawn.apps.serving.records import Job, JobOptions, Store  # noqa: E402
from dawn.apps.serving.server import serve  # noqa: E402
from dawn.apps.serving.service import MAX_ATTEMPTS, RESULT, STREAM, Service  # noqa: E402
from dawn.apps.serving.settings import ServeSettings  # noqa: E402
from dawn.errors import ConfigError, OutputError  # noqa: E402
from dawn.pipeline import Dawn  # noqa: E402
from serving_client import PATIENCE_S, ended, inputs, wait_for  # noqa: E402


class Process:
    """A server of its own, and a client of it."""

    def __init__(self, **settings: Any) -> None:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in {"port": 0, **settings}.items()]
        environment = {name: value for name, value in os.environ.items() if name != "DAWN_TOKEN"}
        command = [sys.executable, "-m", "dawn.apps.cli.main", "serve", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment | {"OMP_NUM_THREADS": "1"}
        )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline().strip()
        self.address = self.greeting.split()[2]
        self.client = httpx.Client(base_url=self.address, timeout=PATIENCE_S)

    def send(self, files: dict[str, bytes]) -> str:
        answer = self.client.post("/v1/generate", files=files)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def job(self, number: str) -> dict[str, Any]:
        return self.client.get(f"/v1/jobs/{number}").json()

    def end(self, number: int) -> int:
        self.client.close()
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None and self.process.stdout.read() == ""
        self.process.stdout.close()
        return code

    def memory_mib(self) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes")) / (
            1 << 20
        )


@contextmanager
def process(**settings: Any) -> Iterator[Process]:
    started = Process(**settings)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.end(signal.SIGKILL)


def lines(error: pytest.ExceptionInfo[BaseException]) -> int:
    return len(str(error.value).splitlines())


def test_refused_before_listening(tmp_path: Path, tiny_preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAWN_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises((ConfigError, OutputError), match=f"port {port}: in use") as error:
            serve(ServeSettings(port=port, preset=str(tiny_preset), data=tmp_path))
        assert lines(error) == 1
    with monkeypatch.context() as plain, pytest.raises(ConfigError, match=r"\.\[serve\]"):
        plain.setitem(sys.modules, "uvicorn", None)
        serve(ServeSettings(data=tmp_path))
    for settings, part in (
        ({"host": "0.0.0.0"}, "token"),
        ({"preset": "none"}, "preset"),
        ({"device": "none"}, "device"),
        ({"host": "no.such.host.invalid", "token_file": Path(__file__)}, "letters"),
    ):
        given = {"port": 0, "data": tmp_path, "preset": str(tiny_preset), **settings}
        with pytest.raises(ConfigError, match=part) as error:
            serve(ServeSettings(**given))
        assert lines(error) == 1


def test_job_that_ends_the_service_again_and_again(tiny_model: Dawn, tmp_path: Path) -> None:
    settings = ServeSettings(data=tmp_path / "data")
    store = Store(settings.folder)
    jobs = [
        Job(id=digit * 32, options=JobOptions(), state="running", received=time.time(), started=1.0, attempts=attempts)
        for digit, attempts in (("a", MAX_ATTEMPTS), ("b", 1), ("c", 1))
    ]
    for job in jobs:
        store.add(job)
        folder = settings.folder / "jobs" / job.id
        folder.mkdir(parents=True)
        for name in ("portrait", "speech", STREAM, RESULT, ".dawn-0.mp4")[2 if job.id[0] == "c" else 0 :]:
            (folder / name).write_bytes(b"x")
    for name in ("d" * 32, "holidays"):
        (settings.folder / "jobs" / name).mkdir()
    store.close()
    service = Service(settings, tiny_model)
    a, b, c = (service.store.get(job.id) for job in jobs)
    assert a and a.state == "failed" and a.error and str(MAX_ATTEMPTS) in a.error.message
    assert b and b.state == "queued" and b.started is None
    assert c and c.state == "failed" and c.error and "again" in c.error.message
    # Only what this service may have made itself is removed, should the folder be another's.
    assert sorted(path.name for path in (settings.folder / "jobs").iterdir()) == [b.id, "holidays"]
    assert sorted(path.name for path in service.folder(b.id).iterdir()) == ["portrait", "speech"]
    service.stop()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_politely(tiny_preset: Path, tmp_path: Path, number: int) -> None:
    (tmp_path / "long").mkdir()
    with process(preset=str(tiny_preset), data=tmp_path / "data") as server:
        assert server.greeting.startswith("dawn serve: http://127.0.0.1:") and "no token" in server.greeting
        job = server.send(inputs(tmp_path / "long", 120))
        wait_for(lambda: server.job(job)["stage"] == "decode")
        with httpx.stream("GET", f"{server.address}/v1/jobs/{job}/result?stream=1", timeout=PATIENCE_S) as film:
            assert film.status_code == 200
            assert server.end(number) == 0
    store = Store(tmp_path / "data")
    kept = store.get(job)
    store.close()
    assert kept and kept.state == "queued" and kept.attempts == 0
    assert sorted(path.name for path in (tmp_path / "data" / "jobs" / job).iterdir()) == ["portrait", "speech"]


@pytest.mark.slow
def test_killed_at_work_loses_nothing(tiny_preset: Path, tmp_path: Path) -> None:
    (tmp_path / "long").mkdir()
    settings = {"preset": str(tiny_preset), "data": tmp_path / "data"}
    with process(**settings) as server:
        before = server.send(inputs(tmp_path))
        assert ended(server.client, before)["state"] == "done"
        jobs = [server.send(inputs(tmp_path / "long", 30)), *(server.send(inputs(tmp_path)) for _ in range(3))]
        wait_for(lambda: server.job(jobs[0])["timings"]["first_picture"])
        server.end(signal.SIGKILL)
    assert (tmp_path / "data" / "jobs" / jobs[0] / STREAM).exists()
    with process(**settings) as server:
        assert server.job(before)["state"] == "done"
        for job in jobs:
            assert ended(server.client, job)["state"] == "done"
            assert server.client.get(f"/v1/jobs/{job}/result").status_code == 200
        assert server.end(signal.SIGTERM) == 0
    for job in jobs:
        assert sorted(path.name for path in (tmp_path / "data" / "jobs" / job).iterdir()) == ["motion.json", "out.mp4"]
    store = Store(tmp_path / "data")
    assert [found.attempts for job in jobs if (found := store.get(job))] == [2, 1, 1, 1]
    store.close()


@pytest.mark.slow
def test_fifty_jobs(tiny_preset: Path, tmp_path: Path, record_property: Any) -> None:
    files = inputs(tmp_path)
    with process(preset=str(tiny_preset), data=tmp_path / "data", max_queue=64) as server:
        first = server.memory_mib()
        # Threads and the allocator's arenas come with the first jobs that wait together; only what grows after them leaks.
        for job in [server.send(files) for _ in range(20)]:
            assert ended(server.client, job)["state"] == "done"
        before = server.memory_mib()
        jobs = [server.send(files) for _ in range(50)]
        assert {ended(server.client, job)["state"] for job in jobs} == {"done"}
        after = server.memory_mib()
        record_property("memory_mib", (first, before, after))
        assert after - before < 60


@pytest.mark.slow
def test_a_browser_plays_the_stream(tiny_preset: Path, tmp_path: Path) -> None:
    """<video src> of a job at work: it plays, for as long as the speech, before the job has ended."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("no Chromium here")
    (tmp_path / "long").mkdir()
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--autoplay-policy=no-user-gesture-required",
    ]
    with process(preset=str(tiny_preset), data=tmp_path / "data") as server, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(chromium), args=arguments)
        page = browser.new_page()
        page.goto(f"{server.address}/health")
        job = server.send(inputs(tmp_path / "long", 40))
        page.set_content(f"<video src='{server.address}/v1/jobs/{job}/result?stream=1' muted autoplay></video>")
        page.wait_for_function("document.querySelector('video').currentTime > 0.5", timeout=PATIENCE_S * 1000)
        assert server.job(job)["state"] == "running"
        page.evaluate("document.querySelector('video').playbackRate = 4")
        page.wait_for_function("document.querySelector('video').ended", timeout=PATIENCE_S * 1000)
        assert page.evaluate("document.querySelector('video').error") is None
        assert abs(page.evaluate("document.querySelector('video').currentTime") - 40) < 0.2
        assert server.job(job)["state"] == "done"
        browser.close()
