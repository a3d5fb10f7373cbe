"""``dawn batch``: what is made, what is left alone, what is refused before any work."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dawn.video
from conftest import example_sound, refused, write_wav
from dawn.apps.batch import jobs as batch_jobs
from dawn.apps.batch import work
from dawn.apps.batch.batch import run_batch
from dawn.apps.batch.journal import Journal
from dawn.errors import ConfigError, InputError, OutputError
from dawn.pipeline import Dawn
from media_files import decoded

Batch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Seeds of the videos that were begun, and "load" for every model that was loaded."""
    made: list[Any] = []
    call, load = Dawn.__call__, Dawn.from_pretrained

    def recording(self: Dawn, *inputs: Any, **options: Any) -> Any:
        made.append(options.get("seed", 0))
        return call(self, *inputs, **options)

    monkeypatch.setattr(Dawn, "__call__", recording)
    monkeypatch.setattr(Dawn, "from_pretrained", lambda *given: (made.append("load"), load(*given))[1])
    work._model.cache_clear()
    return made


@pytest.fixture
def folder(tmp_path: Path, portrait_path: Path) -> Path:
    """Of the CSV: anna.png, hello.wav (5 frames)."""
    (tmp_path / "anna.png").write_bytes(portrait_path.read_bytes())
    samples, rate_hz = example_sound()
    write_wav(tmp_path / "hello.wav", samples[rate_hz // 2 :][: rate_hz // 5], rate_hz)
    return tmp_path


@pytest.fixture
def batch(run: Callable, folder: Path, out: Path, tiny_preset: Path) -> Batch:
    """Runs ``dawn batch`` on the lines of a CSV."""

    def call(lines: str, *arguments: object) -> tuple[int, str, str]:
        (folder / "jobs.csv").write_text(lines, encoding="utf-8")
        return run("batch", folder / "jobs.csv", "-o", out, "--preset", tiny_preset, *arguments)

    return call


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


THREE = "portrait,speech,seed,output\nanna.png,hello.wav,1,\nanna.png,{},2,\nanna.png,hello.wav,3,third.mp4\n"


@pytest.mark.usefixtures("prepared_once")
def test_bad_row_in_the_middle_and_resume(batch: Batch, out: Path, folder: Path, calls: list[Any]) -> None:
    code, printed, errors = batch(THREE.format("gone.wav"))
    assert (code, errors) == (2, "") and calls == ["load", 1, 2, 3]
    assert names(out) == ["anna-hello.mp4", "jobs.jsonl", "third.mp4"] and len(decoded(out / "third.mp4")["times"]) == 5
    rows = [line.split() for line in printed.splitlines()]
    assert [row[:3] for row in rows[1:4]] == [
        ["2", "anna-hello.mp4", "done"],
        ["3", "anna-gone.mp4", "failed"],
        ["4", "third.mp4", "done"],
    ]
    assert "gone.wav' does not exist" in printed.splitlines()[2]
    assert printed.splitlines()[-1] == "3 rows: 2 done, 1 failed"
    records = [json.loads(line) for line in (out / "jobs.jsonl").read_text().splitlines()]
    assert [(r["state"], r["frames"], r["error"] is None) for r in records] == [
        ("done", 5, True),
        ("failed", 0, False),
        ("done", 5, True),
    ]
    assert records[0]["seconds"] > 0 and len({r["digest"] for r in records}) == 3

    calls.clear()
    code, printed, _ = batch(THREE.format("gone.wav"))
    assert code == 2 and calls == []
    assert printed.splitlines()[-1].startswith("3 rows: 2 already there, 1 failed before; --retry-failed")
    assert batch(THREE.format("gone.wav"), "--retry-failed")[0] == 2 and calls == [2]
    calls.clear()
    (folder / "gone.wav").write_bytes((folder / "hello.wav").read_bytes())  # that is a change too
    assert batch(THREE.format("gone.wav"), "--quiet") == (0, "", "") and calls == [2]
    calls.clear()
    (out / "third.mp4").unlink()
    assert batch(THREE.format("gone.wav"))[0] == 0 and calls == [3]


@pytest.mark.usefixtures("prepared_once")
def test_only_what_changed_runs_again(
    batch: Batch, out: Path, folder: Path, tiny_preset: Path, calls: list[Any], run: Callable
) -> None:
    assert batch("portrait,speech,seed\nanna.png,hello.wav,1\nanna.png,hello.wav,2\n")[0] == 0
    assert names(out) == ["anna-hello-2.mp4", "anna-hello.mp4", "jobs.jsonl"]
    calls.clear()
    code, printed, _ = batch(
        "portrait,speech,seed,pose-scale\nanna.png,hello.wav,1,\nanna.png,hello.wav,2,1.5\n", "--json"
    )
    assert code == 0 and calls == [2]
    assert [(row["row"], row["kept"]) for row in json.loads(printed)] == [(2, True), (3, False)]
    calls.clear()
    os.utime(folder / "anna.png", ns=(1, 1))
    assert batch("portrait,speech,seed,pose-scale\nanna.png,hello.wav,1,\nanna.png,hello.wav,2,1.5\n")[0] == 0
    assert calls == [1, 2]
    calls.clear()
    moved = folder.rename(folder.with_name(f"{folder.name}-moved"))  # the whole project elsewhere: nothing has changed
    done = run_batch(moved / "jobs.csv", moved / "out", str(tiny_preset))
    moved.rename(folder)
    assert calls == [] and all(result.kept for result in done)


@pytest.mark.usefixtures("prepared_once")
def test_options_reach_the_model(
    batch: Batch, out: Path, tiny_preset: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    seen: list[dict[str, Any]] = []

    def stop(self: Dawn, *inputs: Any, **options: Any) -> Any:
        seen.append(options)
        raise RuntimeError("the moon\nis full")

    monkeypatch.setattr(Dawn, "__call__", stop)
    (folder / "own").symlink_to(tiny_preset)
    header = "\ufeffportrait,speech,size,frame,face,still,expression,blink,steps,guidance,preset,allow_silence\n"
    code, printed, _ = batch(
        header + 'anna.png,hello.wav,128,full,2,yes,0.5,0,3,1.5,own,1\n\n"anna.png",hello.wav' + "," * 10
    )
    assert (
        code == 2 and "unexpected RuntimeError: the moon is full" in printed and "\n    4  anna-hello-2.mp4" in printed
    )
    assert seen[0] == {
        "size": 128,
        "frame": "full",
        "face": 2,
        "motion": None,
        "allow_silence": True,
        "still": True,
        "expression": 0.5,
        "blink": 0.0,
        "steps": 3,
        "guidance": 1.5,
    }
    assert seen[1] == {"size": None, "frame": "crop", "face": None, "motion": None, "allow_silence": False}


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ("", ["empty"]),
        ("\n", ["row 1", "'portrait'"]),
        ("portrait,speech\n", ["no rows"]),
        ("portrait;speech\na;b\n", ["row 1", "portrait;speech", "commas"]),
        ("portrait,speech,sed\na,b,1\n", ["row 1", "'sed'", "seed"]),
        ("portrait,speech,seed,seed\na,b,1,2\n", ["row 1", "'seed'", "twice"]),
        ("portrait,speech\na,b\na,b,c\n", ["row 3", "3 cells"]),
        ("portrait,speech\na,b\n,b\n", ["row 3", "column portrait"]),
        ("portrait,speech,seed\na,b,1\na,b,x\n", ["row 3", "seed", "'x'"]),
        ("portrait,speech,blink\na,b,nan\n", ["row 2", "blink"]),
        ("portrait,speech,face\na,b,small\n", ["row 2", "face"]),
        ("portrait,speech,frame\na,b,half\n", ["row 2", "frame", "half"]),
        ("portrait,speech,preset\na,b,best\n", ["row 2", "column preset", "best"]),
        ('portrait,speech\na,"b\nc"\n', ["row 2", "column speech", "control"]),
        ('portrait,speech\na,"b\n', ["not a CSV"]),
        ("portrait,speech,output\na,b,c.mp4\nd,e,./C.mp4\n", ["row 3", "column output", "row 2"]),
        ("portrait,speech,output\na,b,c.avi\n", ["row 2", "column output", ".mp4"]),
        ("portrait,speech,output\na,b,../c.mp4\n", ["row 2", "column output", "../c.mp4", "not inside"]),
        ("portrait,speech,output\na,b,x/../../c.mp4\n", ["row 2", "not inside"]),
        ("portrait,speech,output\na,b,/c.mp4\n", ["row 2", "not inside"]),
        ("portrait,speech,output\na,b,..\\c.mp4\n", ["row 2", "not inside"]),
        ("portrait,speech,output\na,out/b.mp4,b.mp4\n", ["row 2", "is an input of row 2"]),
    ],
)
def test_refused_before_any_work(batch: Batch, out: Path, calls: list[Any], lines: str, parts: list[str]) -> None:
    refused(batch(lines), out, "jobs.csv", *parts)
    assert calls == []


def test_link_out_of_the_folder(batch: Batch, out: Path, folder: Path) -> None:
    (out / "away").symlink_to(folder)
    code, _, errors = batch("portrait,speech,output\na,b,away/c.mp4\n")
    assert code == 2 and "not inside" in errors and names(out) == ["away"]


def test_large_and_foreign_tables(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = folder / "jobs.csv"
    table.write_bytes("portrait,speech\na,b\nJürgen,b\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"line 3: not UTF-8"):
        run_batch(table, out)
    table.write_text("portrait,speech\n" + "a,b\n" * 4)
    monkeypatch.setattr(batch_jobs, "MAX_ROWS", 3)
    with pytest.raises(InputError, match="4 rows, more than 3"):
        run_batch(table, out)
    monkeypatch.setattr(batch_jobs, "MAX_CSV_BYTES", 16)
    with pytest.raises(InputError, match="more than 16; split"):
        run_batch(table, out)
    with pytest.raises(ConfigError, match="device 'abacus'"):
        monkeypatch.undo()
        run_batch(table, out, device="abacus")
    assert not names(out)


@pytest.mark.usefixtures("prepared_once")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(batch: Batch, out: Path, monkeypatch: pytest.MonkeyPatch, calls: list[Any], number: int) -> None:
    whole = dawn.video.draw_frames

    def render(*arguments: Any) -> Any:
        for index, frame in enumerate(whole(*arguments)):
            if calls[-1] == 3 and index == 3:
                os.kill(os.getpid(), number)
            yield frame

    lines = THREE.format("hello.wav")
    with monkeypatch.context() as patch:
        patch.setattr(dawn.video, "draw_frames", render)
        inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            code, printed, errors = batch(lines)
        finally:
            signal.signal(signal.SIGINT, inherited)
    assert (code, printed) == (130, "") and errors.count("\n") == 1
    assert names(out) == ["anna-hello-2.mp4", "anna-hello.mp4", "jobs.jsonl"]
    calls.clear()
    code, printed, _ = batch(lines)
    assert code == 0 and calls == [3] and printed.endswith("3 rows: 2 already there, 1 done\n")


@pytest.mark.usefixtures("prepared_once")
def test_damaged_journal(batch: Batch, out: Path, calls: list[Any]) -> None:
    lines = THREE.format("hello.wav")
    assert batch(lines)[0] == 0
    journal = out / "jobs.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(b'{"x": 1}\n\xff\xfe\n[]\n' + whole[:-20])  # cut off within the last line
    calls.clear()
    code, _, errors = batch(lines)
    assert code == 0 and calls == [3] and errors.count("damaged line") == 4
    assert journal.read_bytes().endswith(b"}\n")
    calls.clear()
    assert batch(lines)[0] == 0 and calls == []


def test_one_run_at_a_time(folder: Path, out: Path) -> None:
    pytest.importorskip("fcntl")
    with Journal(out), pytest.raises(OutputError, match="another dawn batch"), Journal(out):
        pass
    with Journal(out):
        pass
    (folder / "file").touch()
    with pytest.raises(OutputError, match="not a folder"), Journal(folder / "file" / "x"):
        pass


# ---------------------------------------------------------------------------------------------------------------- Ray


class RayError(Exception):
    pass


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """As much of Ray as is used, in this process. ``fate``: what becomes of row n instead of being run."""
    state = SimpleNamespace(fate={}, options={}, address=None, down=0, gpus=0)
    module = ModuleType("ray")

    def remote(**options: Any) -> Callable:
        state.options = options
        return lambda task: SimpleNamespace(remote=lambda *given: (task, given, object()))

    def get(reference: tuple[Callable, tuple, object]) -> Any:
        task, given, _ = reference
        fate = state.fate.get(given[0].number, task)
        if isinstance(fate, BaseException):
            raise fate
        return fate(*given)

    def init(address: str, **_: Any) -> None:
        if address == "nowhere:1":
            raise ConnectionError("nobody answers\nat all")
        state.address = address

    def shutdown() -> None:
        state.down += 1

    module.__dict__.update(
        init=init,
        remote=remote,
        get=get,
        shutdown=shutdown,
        exceptions=SimpleNamespace(RayError=RayError),
        wait=lambda waiting, num_returns: (waiting[-num_returns:], waiting[:-num_returns]),
        cluster_resources=lambda: {"GPU": state.gpus} if state.gpus else {},
    )
    monkeypatch.setitem(sys.modules, "ray", module)
    return state


@pytest.mark.usefixtures("prepared_once")
def test_ray_rows(batch: Batch, out: Path, fake_ray: SimpleNamespace, calls: list[Any]) -> None:
    fake_ray.fate[3] = RayError("worker died\nof cold")
    code, printed, errors = batch(THREE.format("hello.wav"), "--ray", "10.0.0.1:6379")
    assert (
        (code, errors) == (2, "")
        and "the worker failed: worker died of cold" in printed
        and "2 done, 1 failed" in printed
    )
    assert fake_ray.address == "10.0.0.1:6379" and fake_ray.down == 1
    assert fake_ray.options == {"max_retries": 3, "num_cpus": 1, "num_gpus": 0}
    assert names(out) == ["anna-hello.mp4", "jobs.jsonl", "third.mp4"]
    fake_ray.fate.clear()
    assert batch(THREE.format("hello.wav"), "--retry-failed")[0] == 0 and calls == ["load", 3, 1, 2]


@pytest.mark.usefixtures("prepared_once")
def test_ray_misfortunes(batch: Batch, out: Path, fake_ray: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise RayError("gone")

    lines = THREE.format("hello.wav")
    for words, parts in (
        (("nowhere:1",), ["no Ray cluster", "nobody answers"]),
        (("a:1", "--device", "cuda"), ["none"]),
        (("a:1", "--device", "cuda:1"), ["cuda:1"]),
    ):
        code, printed, errors = batch(lines, "--ray", *words)
        assert code == 2 and not printed and errors.count("\n") == 1 and all(part in errors for part in parts)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["ray"], "wait", lost)
        code, printed, errors = batch(lines, "--ray", "a:1")
        assert (code, printed) == (2, "") and "the cluster is lost (gone)" in errors and names(out) == ["jobs.jsonl"]
    fake_ray.gpus = 2
    fake_ray.fate[2] = KeyboardInterrupt()  # row 2 is the last that this Ray gives back
    assert batch(lines, "--ray", "a:1")[0] == 130
    assert names(out) == ["anna-hello-2.mp4", "jobs.jsonl", "third.mp4"] and fake_ray.options["num_gpus"] == 1
    done = json.loads((out / "jobs.jsonl").read_text().splitlines()[0])
    fake_ray.fate[2] = lambda job, digest, path, device: work.Result(**{**done, "row": 2, "output": job.output})
    code, printed, _ = batch(lines, "--ray", "a:1")
    assert code == 2 and "shared file system" in printed
    monkeypatch.setitem(sys.modules, "ray", None)
    (out / "jobs.jsonl").unlink()
    code, _, errors = batch(lines, "--ray", "local")
    assert code == 2 and "pip install -e '.[ray]'" in errors


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_real_ray_loses_no_row(folder: Path, out: Path, tiny_preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers of a local Ray, with the real tracker; one is killed while it works on a row."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [*sys.path])))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    init = ray.init
    monkeypatch.setattr(ray, "init", lambda **options: init(num_cpus=2, **options))
    samples, rate_hz = example_sound()
    write_wav(folder / "long.wav", np.resize(samples, 8 * rate_hz), rate_hz)
    (folder / "jobs.csv").write_text(
        "portrait,speech,seed\n" + "".join(f"anna.png,long.wav,{n}\n" for n in range(4)) + "anna.png,gone.wav,0\n"
    )
    killed: list[int] = []

    def kill() -> None:
        import psutil

        until = time.monotonic() + 300
        while not killed and time.monotonic() < until:
            time.sleep(0.05)
            # A file in the folder of unfinished rows: somebody is at work.
            if list(out.glob(".dawn-*/.dawn-*.mp4")):
                for process in psutil.Process().children(recursive=True):
                    if not killed and " ".join(process.cmdline()).startswith(
                        "ray::make"
                    ):  # Ray's title of a busy worker
                        process.kill()
                        killed.append(process.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    results = run_batch(folder / "jobs.csv", out, str(tiny_preset), "cpu", ray_address="local")
    thread.join(10)
    assert killed
    assert [result.state for result in results] == ["done"] * 4 + ["failed"], results
    assert names(out) == ["anna-long-2.mp4", "anna-long-3.mp4", "anna-long-4.mp4", "anna-long.mp4", "jobs.jsonl"]
    assert {len(decoded(out / result.output)["times"]) for result in results[:4]} == {200}
    assert all(
        result.kept for result in run_batch(folder / "jobs.csv", out, str(tiny_preset), "cpu", ray_address="local")
    )
