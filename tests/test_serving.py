"""The HTTP service as a client meets it: jobs, films, cancellation, the queue, restarts."""

from __future__ import annotations

import socket
import sqlite3
import stat
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
httpx = pytest.importorskip("httpx")

from dawn.apps.serving import service as service_module  # noqa: E402
from dawn.apps.serving.service import Service  # noqa: E402
from dawn.errors import ConfigError  # noqa: E402
from dawn.media.motion_json import load_motion  # noqa: E402
from dawn.pipeline import Dawn  # noqa: E402
from serving_client import (  # noqa: E402
    BEGUN,
    PATIENCE_S,
    PORTRAIT,
    SPEECH,
    TOKEN,
    Server,
    busy,
    film,
    inputs,
    refused,
    serving,
    wait_for,
)


@pytest.fixture(scope="module")
def long_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Long enough to be caught at work."""
    return inputs(tmp_path_factory.mktemp("long"), 70)


# ---------------------------------------------------------------------------------------------------- the whole path


def test_generate_watch_fetch_remove(server: Server, files: dict[str, bytes], tmp_path: Path) -> None:
    answer = server.send(files, seed=7, size=128, pose_scale=0.5)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert job["state"] in ("queued", "running") and job["options"]["seed"] == 7 and job["options"]["pose_scale"] == 0.5
    done = server.ended(job["id"])
    assert done["state"] == "done" and done["error"] is None and done["done"] == done["total"] == done["frames"] == 25
    timings = done["timings"]
    assert 0 <= timings["queued"] <= timings["first_byte"] <= timings["first_picture"] <= timings["total"]
    assert {"track", "motion", "decode", "video"} <= set(timings["stages"])

    result = server.client.get(done["links"]["result"])
    assert result.status_code == 200 and result.headers["content-type"] == "video/mp4"
    times, sound, pictures = film(result.content, tmp_path)
    assert times == [Fraction(i, 25) for i in range(25)] and pictures[0].shape == (128, 128, 3)
    assert abs(len(sound) - 48000) < 2048
    part = server.client.get(done["links"]["result"], headers={"Range": "bytes=100-199"})
    assert part.status_code == 206 and part.content == result.content[100:200]
    assert server.client.get(done["links"]["stream"]).content == result.content

    (tmp_path / "motion.json").write_bytes(server.client.get(done["links"]["motion"]).content)
    motion = load_motion(tmp_path / "motion.json")
    assert len(motion) == 25 and motion.info["seed"] == "7"

    listed = server.client.get("/v1/jobs", params={"limit": 1}).json()["jobs"]
    assert [entry["id"] for entry in listed] == [job["id"]]
    folder = server.service.folder(job["id"])
    assert sorted(path.name for path in folder.iterdir()) == ["motion.json", "out.mp4"]
    assert server.client.delete(done["links"]["self"]).status_code == 204
    assert not folder.exists()
    refused(server.client.get(done["links"]["self"]), 404, job["id"])


def test_stream_is_the_film_at_its_time(server: Server, files: dict[str, bytes], tmp_path: Path) -> None:
    with server.client.stream("POST", "/v1/generate", params={"stream": 1}, files=files, data={"seed": "3"}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"] == "video/mp4"
        number = answer.headers["x-dawn-job"]
        streamed = b"".join(answer.iter_raw())
    job = server.ended(number)
    assert job["state"] == "done"
    whole = server.client.get(f"/v1/jobs/{number}/result").content
    assert b"moof" in streamed and b"moof" not in whole
    assert whole.index(b"moov") < whole.index(b"mdat")
    (times, sound, pictures), (whole_times, whole_sound, whole_pictures) = (
        film(streamed, tmp_path),
        film(whole, tmp_path),
    )
    assert times == whole_times == [Fraction(i, 25) for i in range(25)]
    assert all((one == other).all() for one, other in zip(pictures, whole_pictures, strict=True))
    # The sound's first block is a fade-in; all that follows is the same, at the same time, but for the noise that AAC decoders
    # put in: moved by a single sample it would be 20 times as far off.
    error, moved = (np.square(whole_sound[2048:40000] - sound[2048 + step : 40000 + step]).mean() for step in (0, 1))
    assert error < moved / 20
    with av.open(str(next(tmp_path.glob("*.mp4")))) as container:
        assert "AI-generated" in container.metadata["comment"]


def test_several_follow_one_job(server: Server, files: dict[str, bytes]) -> None:
    number = server.send(files).json()["id"]
    heard: list[bytes] = []

    def follow() -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=PATIENCE_S) as client:
            heard.append(client.get(f"/v1/jobs/{number}/result", params={"stream": 1}).content)

    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert server.ended(number)["state"] == "done"
    whole = server.client.get(f"/v1/jobs/{number}/result").content
    films = [data for data in heard if b"moof" in data]
    assert len(heard) == 3 and len(set(films)) <= 1 and all(data == whole for data in heard if data not in films)


def test_growing_film_plays_before_it_ends(server: Server, long_files: dict[str, bytes], tmp_path: Path) -> None:
    with server.client.stream("POST", "/v1/generate", params={"stream": 1}, files=long_files) as answer:
        number, data = answer.headers["x-dawn-job"], b""
        chunks = answer.iter_raw()
        while data.count(b"moof") < 4:
            data += next(chunks)
        job = server.client.get(f"/v1/jobs/{number}").json()
        assert job["state"] == "running" and job["stage"] == "decode" and 0 < job["done"] < job["total"]
        times, sound, _ = film(data, tmp_path)
        assert len(times) >= 8 and times == [Fraction(i, 25) for i in range(len(times))]
        assert abs(len(sound) / 48000 - len(times) / 25) < 0.2
    # The only client has gone away: nobody waits for this film.
    assert server.ended(number)["state"] == "cancelled"
    wait_for(lambda: not server.service.folder(number).exists())


def test_follower_that_leaves_does_no_harm(server: Server, long_files: dict[str, bytes]) -> None:
    number = busy(server, long_files)
    with server.client.stream("GET", f"/v1/jobs/{number}/result", params={"stream": 1}) as answer:
        next(answer.iter_raw())
    time.sleep(0.2)
    assert server.client.get(f"/v1/jobs/{number}").json()["state"] == "running"
    assert server.client.delete(f"/v1/jobs/{number}").json()["state"] == "cancelled"


def test_owner_that_leaves_the_queue(server: Server, files: dict[str, bytes], long_files: dict[str, bytes]) -> None:
    running = busy(server, long_files)
    request = httpx.Request("POST", server.client.base_url.join("/v1/generate?stream=1"), files=files)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        lines = [f"{key}: {value}" for key, value in request.headers.items()]
        connection.sendall(
            "\r\n".join(["POST /v1/generate?stream=1 HTTP/1.1", *lines, "", ""]).encode() + request.read()
        )
        waiting = wait_for(lambda: server.service.store.queued())[0].id
    assert server.ended(waiting)["state"] == "cancelled"
    assert server.client.delete(f"/v1/jobs/{running}").json()["state"] == "cancelled"


# ------------------------------------------------------------------------------------------------------ cancellation


def test_cancel_running_and_queued(server: Server, files: dict[str, bytes], long_files: dict[str, bytes]) -> None:
    running = busy(server, long_files)
    waiting = server.send(files).json()
    assert waiting["state"] == "queued" and waiting["position"] == 1
    refused(server.client.get(waiting["links"]["result"]), 409, "queued")
    refused(server.client.get(f"/v1/jobs/{running}/motion"), 409, "running")
    with server.client.stream("GET", f"/v1/jobs/{running}/result", params={"stream": 1}) as followed:
        chunks = followed.iter_raw()
        next(chunks)
        assert server.client.delete(waiting["links"]["self"]).json()["state"] == "cancelled"
        assert server.client.delete(f"/v1/jobs/{running}").json()["state"] == "cancelled"
        with pytest.raises(httpx.RemoteProtocolError):  # broken off, so that nobody takes it for the whole film
            list(chunks)
    wait_for(lambda: server.service.live is None)
    for number in (running, waiting["id"]):
        assert not server.service.folder(number).exists()
        refused(server.client.get(f"/v1/jobs/{number}/result"), 409, "cancelled")
        assert server.client.delete(f"/v1/jobs/{number}").status_code == 204
    after = server.send(files).json()["id"]
    assert server.ended(after)["state"] == "done"


# --------------------------------------------------------------------------------------- queue, token, stop, restart


def test_full_queue_token_stop_and_restart(
    tiny_model: Dawn,
    files: dict[str, bytes],
    long_files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAWN_TOKEN", TOKEN)
    with serving(tiny_model, tmp_path / "data", max_queue=1) as server:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": "Bearer é".encode()},
        ):
            for asked in ("GET /v1/jobs", "POST /v1/generate", "GET /metrics", f"DELETE /v1/jobs/{'0' * 32}"):
                answer = server.client.request(*asked.split(), headers=headers)
                refused(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/docs", "/openapi.json"):
            assert server.client.get(path).status_code == 200
        server.client.headers["Authorization"] = f"Bearer {TOKEN}"
        running = busy(server, long_files)
        waiting = server.send(files, seed=5).json()["id"]
        answer = server.send(files)
        refused(answer, 429, "1 jobs wait")
        assert int(answer.headers["retry-after"]) >= 1
        server.service.stopping = True
        refused(server.client.get("/v1/jobs"), 503)
        assert server.client.get("/health").status_code == 503
    monkeypatch.delenv("DAWN_TOKEN")
    folder = tmp_path / "data"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in (folder / "jobs" / running).iterdir()) == [PORTRAIT, SPEECH]
    with serving(tiny_model, folder) as server:
        first = server.client.get(f"/v1/jobs/{running}").json()
        assert first["state"] in ("queued", "running")
        assert server.client.delete(f"/v1/jobs/{running}").json()["state"] == "cancelled"
        assert server.ended(waiting)["state"] == "done"
        with pytest.raises(ConfigError, match="another dawn serve"):
            Service(server.settings, tiny_model)


def test_unanswered_upload_holds_a_place(tiny_model: Dawn, files: dict[str, bytes], tmp_path: Path) -> None:
    with serving(tiny_model, tmp_path / "data", max_queue=1, upload_timeout_s=60) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(BEGUN)
            wait_for(lambda: server.service._reserved)
            refused(server.send(files), 429)
        wait_for(lambda: not server.service._reserved)
        assert server.send(files).status_code == 202


def test_full_disk_fails_the_job_only(server: Server, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, data: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(service_module.GrowingFile, "write", full)
        job = server.ended(server.send(files).json()["id"])
    assert job["state"] == "failed" and job["error"]["type"] == "OutputError" and "no space" in job["error"]["message"]
    assert str(server.settings.folder) not in job["error"]["message"]
    assert server.ended(server.send(files).json()["id"])["state"] == "done"


def test_full_disk_refuses_uploads_and_keeps_records(
    server: Server, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def unwritable(job: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    before = server.service.store.all()
    with monkeypatch.context() as broken:
        broken.setattr("dawn.apps.serving.uploads.shutil.copyfileobj", full)
        refused(server.send(files), 507, "no space")
    number = server.send(files).json()["id"]
    with monkeypatch.context() as broken:
        broken.setattr(server.service.store, "_write", unwritable)
        refused(server.send(files), 507, "disk is full")
        assert server.ended(number)["state"] == "done"
    assert [job.id for job in server.service.store.all()] == [*(job.id for job in before), number]
    folders = [path.name for name in ("incoming", "jobs") for path in (server.settings.folder / name).iterdir()]
    assert set(folders) <= {job.id for job in server.service.store.all()}
    server.service.sweep()
    kept = server.service.store._table.execute("SELECT record FROM jobs WHERE id = ?", (number,)).fetchone()[0]
    assert '"state":"done"' in kept


def test_old_jobs_are_removed(tiny_model: Dawn, files: dict[str, bytes], tmp_path: Path) -> None:
    with serving(tiny_model, tmp_path / "data", keep_hours=1) as server:
        old, new = (server.send(files).json()["id"] for _ in range(2))
        for number in (old, new):
            server.ended(number)
        server.service.store.change(old, finished=time.time() - 3601)
        server.service.sweep()
        assert server.client.get(f"/v1/jobs/{old}").status_code == 404
        assert server.client.get(f"/v1/jobs/{new}").status_code == 200
        assert [path.name for path in (server.settings.folder / "jobs").iterdir()] == [new]
