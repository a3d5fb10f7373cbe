"""The HTTP service: what it refuses, what it says of itself, and its settings."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

from conftest import EXAMPLES, write_wav
from dawn.apps.server_settings import is_loopback
from dawn.apps.serving.app import create_app
from dawn.apps.serving.settings import ServeSettings, read_token, state_folder
from dawn.errors import ConfigError
from dawn.media import save_png
from dawn.pipeline import Dawn
from serving_client import BEGUN, PATIENCE_S, PORTRAIT, SPEECH, TOKEN, Server, film, refused, wait_for

# ---------------------------------------------------------------------------------------------------------- refusals


def test_bad_files_are_refused_at_once(server: Server, files: dict[str, bytes], tmp_path: Path) -> None:
    before = server.service.store.all()
    assert refused(server.send({**files, PORTRAIT: b"no picture"}), 400, "'portrait'")["type"] == "ImageError"
    assert refused(server.send({**files, SPEECH: b"\0" * 5000}), 400, "'speech'")["type"] == "AudioError"
    assert refused(server.send({**files, SPEECH: b""}), 400, "empty")["type"] == "AudioError"
    silent = write_wav(tmp_path / "s.wav", np.zeros(16000, np.int16), 16000).read_bytes()
    refused(server.send({**files, SPEECH: silent}), 400, "accept it: allow_silence=true")
    refused(server.send({PORTRAIT: files[PORTRAIT]}), 422, "'speech' is missing")
    refused(server.send({SPEECH: files[SPEECH]}), 422, "'portrait' is missing")
    refused(server.send({**files, "other": b"x"}), 400, "files")
    refused(server.send({PORTRAIT: files[PORTRAIT], "other": b"x"}), 422, "'other'")
    refused(server.client.post("/v1/generate", files={SPEECH: files[SPEECH]}, data={PORTRAIT: "text"}), 422, "portrait")
    refused(server.client.post("/v1/generate", json={}), 415, "multipart/form-data")
    for kind, status, part in (
        ("multipart/form-data; boundary=x", 422, "missing"),
        ("multipart/form-data", 400, "form"),
    ):
        refused(
            server.client.post("/v1/generate", content=b"--x\r\nnonsense", headers={"content-type": kind}), status, part
        )
    assert server.service.store.all() == before
    assert not list((server.settings.folder / "incoming").iterdir())


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("seed", -1, "seed"),
        ("seed", "x", "seed"),
        ("seed", 2**63, "seed"),
        ("guidance", 11, "guidance"),
        ("steps", 0, "steps"),
        ("blink", "nan", "blink"),
        ("still", 3, "still"),
        ("size", 100, "128"),
        ("frame", "round", "frame"),
        ("face", "left", "face"),
        ("colour", "red", "colour"),
        ("expression", 2.5, "expression"),
        ("seed", "1" * 2000, "form"),
    ],
)
def test_bad_options(server: Server, files: dict[str, bytes], field: str, value: Any, part: str) -> None:
    answer = server.send(files, **{field: value})
    refused(answer, 400 if part == "form" else 422, part)


def test_portrait_without_a_face_fails_in_its_turn(server: Server, files: dict[str, bytes], tmp_path: Path) -> None:
    save_png(tmp_path / "grey.png", np.full((96, 96, 3), 128, np.uint8))
    faceless = {**files, PORTRAIT: (tmp_path / "grey.png").read_bytes()}
    number = server.send(faceless).json()["id"]
    job = server.ended(number)
    assert job["state"] == "failed" and job["error"]["type"] == "NoFaceError"
    assert refused(server.client.get(f"/v1/jobs/{number}/result"), 409)["message"] == job["error"]["message"]
    assert not server.service.folder(number).exists()
    # Asked for as a stream, the same failure has a status of its own.
    refused(server.send(faceless, "/v1/generate?stream=1"), 400, "face")


@pytest.mark.parametrize(
    "number", ["..", "%2e%2e", "../../etc/passwd", "..%2f..%2fjobs.sqlite", "0" * 31, "G" * 32, "0" * 32 + "%00"]
)
def test_no_path_gets_out_of_the_folder(server: Server, number: str) -> None:
    for path in (f"/v1/jobs/{number}", f"/v1/jobs/{number}/result", f"/v1/jobs/{number}/motion"):
        assert server.client.get(path).status_code in (404, 422)
        assert server.client.delete(path).status_code in (404, 405, 422)


def test_names_of_uploads_are_not_used(server: Server, files: dict[str, bytes]) -> None:
    named = {PORTRAIT: ("../../../evil.png", files[PORTRAIT]), SPEECH: ("/etc/\0passwd\n.wav", files[SPEECH])}
    number = server.send(named).json()["id"]
    assert server.ended(number)["state"] == "done"
    assert {path.name for path in server.settings.folder.rglob("*")} >= {number, "out.mp4"}
    assert not [
        path for path in server.settings.folder.parent.rglob("*") if "evil" in path.name or "passwd" in path.name
    ]


def test_huge_upload_is_counted_as_it_comes(server: Server, files: dict[str, bytes]) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="portrait"; filename="p"\r\nContent-Type: image/png\r\n\r\n'

    def endless() -> Iterator[bytes]:
        yield head
        for _ in range(16):
            yield b"x" * (1 << 20)

    kind = {"content-type": "multipart/form-data; boundary=b"}
    refused(server.client.post("/v1/generate", content=endless(), headers=kind), 413, "8 MB")
    refused(server.client.post("/v1/generate", content=head + b"x" * (9 << 20), headers=kind), 413, "8 MB")
    assert not list((server.settings.folder / "incoming").iterdir())


def test_slow_upload(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall(BEGUN)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 408") and b"TooSlow" in answer
    assert server.client.get("/health").json()["queue_length"] == 0


def test_upload_that_breaks_off_leaves_nothing(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(BEGUN)
        wait_for(lambda: list((server.settings.folder / "incoming").iterdir()))
    wait_for(lambda: not list((server.settings.folder / "incoming").iterdir()))
    wait_for(lambda: server.service._reserved == 0)


def test_foreign_pages_are_refused_without_a_token(server: Server) -> None:
    refused(server.client.get("/v1/jobs", headers={"Host": "evil.example"}), 403, "evil.example")
    refused(server.client.get("/v1/jobs", headers={"Origin": "https://evil.example"}), 403, "evil.example")
    refused(server.client.get("/v1/jobs", headers={"Sec-Fetch-Site": "cross-site"}), 403)
    assert server.client.get("/v1/jobs", headers={"Origin": f"http://localhost:{server.port}"}).status_code == 200


def test_unknown_paths_and_methods(server: Server) -> None:
    refused(server.client.get("/v2"), 404)
    answer = server.client.put("/v1/jobs")
    refused(answer, 405, "PUT")
    refused(server.client.get("/v1/jobs", params={"limit": 0}), 422, "limit")


def test_a_fault_of_our_own_has_the_same_shape(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service.store, "all", lambda: 1 / 0)
    refused(server.client.get("/v1/jobs"), 500, "ZeroDivisionError")


# ------------------------------------------------------------------------------------------- description and figures


def test_metrics_and_health(server: Server, files: dict[str, bytes]) -> None:
    server.ended(server.send(files).json()["id"])
    wait_for(lambda: server.service.live is None)
    text = server.client.get("/metrics").text
    values = {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#")
    }
    jobs = server.service.store.all()
    assert values['dawn_jobs{state="done"}'] == sum(job.state == "done" for job in jobs)
    assert values["dawn_queue_length"] == 0 and values["dawn_model_loaded"] == 1
    assert values["dawn_first_picture_seconds_count"] >= 1
    assert values['dawn_stage_seconds_total{stage="decode"}'] > 0
    health = server.client.get("/health").json()
    assert health["status"] == "ok" and health["model_loaded"] and health["max_queue"] == 16


def test_docs_need_nothing_from_elsewhere(server: Server) -> None:
    page = server.client.get("/docs").text
    assert "<script" not in page and "http:" not in page and "https:" not in page and "src=" not in page
    description = server.client.get("/openapi.json").json()
    for path, methods in description["paths"].items():
        assert path in page
        for operation in methods.values():
            for code, answer in operation["responses"].items():
                schema = json.dumps(answer.get("content", {}).get("application/json", {}))
                assert code < "400" or code == "416" or path == "/health" or "ErrorAnswer" in schema
    form = description["paths"]["/v1/generate"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {
        "portrait",
        "speech",
        "seed",
        "steps",
        "guidance",
        "pose_scale",
        "blink",
        "still",
        "expression",
        "size",
        "frame",
        "face",
        "allow_silence",
    } <= set(form["properties"])


# ---------------------------------------------------------------------------------------------------------- settings


def test_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAWN_TOKEN", raising=False)
    assert read_token(ServeSettings()) is None
    with pytest.raises(ConfigError, match="other machines"):
        read_token(ServeSettings(host="0.0.0.0"))
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert read_token(ServeSettings(host="0.0.0.0", token_file=path)) == TOKEN
    monkeypatch.setenv("DAWN_TOKEN", "short")
    assert read_token(ServeSettings(token_file=path)) == TOKEN
    for settings in (ServeSettings(), ServeSettings(token_file=tmp_path / "none")):
        with pytest.raises(ConfigError) as error:
            read_token(settings)
        assert "\n" not in str(error.value)


def test_addresses_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Dawn) -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.com", "")))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder().is_relative_to(tmp_path) or state_folder().is_relative_to(Path.home())
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="data folder"):
        create_app(ServeSettings(data=tmp_path / "file" / "data"), tiny_model)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "jobs.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigError, match="cannot be read"):
        create_app(ServeSettings(data=tmp_path / "old"), tiny_model)


def test_the_examples_of_the_documentation(
    server: Server, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (EXAMPLES.parent / "docs" / "http.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") == 2
    (tmp_path / "portrait.png").write_bytes(files[PORTRAIT])
    (tmp_path / "speech.wav").write_bytes(files[SPEECH])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAWN_TOKEN", raising=False)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{server.port}"), names)
    assert len(film(tmp_path / "out.mp4", tmp_path)[0]) == len(film(tmp_path / "streamed.mp4", tmp_path)[0]) == 25
    fields = {f"--{name.replace('_', '-')}" for name in ServeSettings.model_fields}
    assert fields == set(re.findall(r"--[a-z-]+", text[text.index("\n| `--host") : text.index("## A film")]))
