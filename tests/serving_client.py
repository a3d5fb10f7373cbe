"""The HTTP service in a thread, and a real client of it: what the tests of ``dawn.apps.serving`` share."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import uvicorn

from conftest import EXAMPLES, example_sound, write_wav
from dawn.apps.serving.app import create_app
from dawn.apps.serving.service import Service
from dawn.apps.serving.settings import ServeSettings

PATIENCE_S = 120.0
"""For anything that another busy process may slow down."""
TOKEN = "a-token-of-the-tests-0123456789"
PORTRAIT, SPEECH = "portrait", "speech"
BEGUN = (
    b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 100000\r\n\r\n--b\r\n"
)
"""An upload that does not go on."""


class Server:
    """The service in a thread of this process, and a client of it."""

    def __init__(self, model: Any, data: Path, **settings: Any) -> None:
        self.settings = ServeSettings(**{"port": 0, "data": data, **settings})
        self.app = create_app(self.settings, model)
        self.service: Service = self.app.state.service
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        config = uvicorn.Config(self.app, log_config=None, access_log=False, timeout_graceful_shutdown=2)
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()
        wait_for(lambda: self.uvicorn.started)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S)

    def stop(self) -> None:
        self.client.close()
        self.service.stopping = True
        self.uvicorn.should_exit = True
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        self.listener.close()

    def send(self, files: dict[str, Any], path: str = "/v1/generate", **fields: Any) -> Any:
        return self.client.post(path, files=files, data={key: str(value) for key, value in fields.items()})

    def ended(self, number: str) -> dict[str, Any]:
        return ended(self.client, number)


def wait_for(true: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    start = time.monotonic()
    while not (value := true()):
        assert time.monotonic() - start < patience_s, "waited too long"
        time.sleep(0.01)
    return value


def ended(client: Any, number: str) -> dict[str, Any]:
    """The job's last word."""

    def look() -> dict[str, Any] | None:
        answer = client.get(f"/v1/jobs/{number}").json()
        return answer if answer["state"] in ("done", "failed", "cancelled") else None

    return wait_for(look)


def refused(answer: Any, status: int, *parts: str) -> dict[str, str]:
    """Status, the one shape of errors, one line that has every part and no path of the server."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error"] and sorted(body["error"]) == ["message", "type"]
    message = body["error"]["message"]
    assert "\n" not in message and "/jobs/" not in message.replace("/v1/jobs/", "") and "incoming" not in message, (
        message
    )
    for part in parts:
        assert part in message, message
    return body["error"]


def inputs(folder: Path, speech_s: float = 1.0) -> dict[str, bytes]:
    """The example portrait and so much of the example recording, from the beginning again where it ends."""
    samples, rate_hz = example_sound()
    path = write_wav(folder / "speech.wav", np.resize(samples[rate_hz // 2 :], round(speech_s * rate_hz)), rate_hz)
    return {PORTRAIT: (EXAMPLES / "portrait.png").read_bytes(), SPEECH: path.read_bytes()}


@contextmanager
def serving(model: Any, data: Path, **settings: Any) -> Iterator[Server]:
    server = Server(model, data, **settings)
    try:
        yield server
    finally:
        server.stop()


def busy(server: Server, long_files: dict[str, bytes]) -> str:
    """A long job that is being decoded."""
    number = server.send(long_files).json()["id"]
    wait_for(
        lambda: server.service.live and server.service.live.job.id == number and server.service.live.stage == "decode"
    )
    return number


def film(data: bytes | Path, tmp_path: Path) -> tuple[list[Fraction], np.ndarray, list[np.ndarray]]:
    """Times of the pictures, sound (L,), pictures."""
    path = data if isinstance(data, Path) else tmp_path / f"{hashlib.sha256(data).hexdigest()}.mp4"
    if isinstance(data, bytes):
        path.write_bytes(data)
    with av.open(str(path)) as container:
        pictures = list(container.decode(video=0))
    with av.open(str(path)) as container:
        sound = list(container.decode(audio=0))
    assert sound[0].pts == 0
    times = [picture.pts * picture.time_base for picture in pictures]
    return times, np.concatenate([s.to_ndarray()[0] for s in sound]), [p.to_ndarray(format="rgb24") for p in pictures]
