"""What a client of ``dawn serve`` waits for, and what the server keeps in memory.

    python benchmarks/serving.py [--preset P] [--seconds 10] [--repeats 3] [--jobs 50]

Times of a stream are the server's own, from the end of the upload. Jobs are of 1 s of speech and wait in the queue together.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

import httpx

from dawn import DEFAULT_PRESET

EXAMPLES = Path(__file__).parent.parent / "examples"
SHOWN = (("first_byte", "first byte"), ("first_picture", "first fragment with pictures"), ("total", "whole video"))


def inputs(seconds: float) -> dict[str, bytes]:
    """The example portrait, and so much of the example recording, from the beginning again where it ends."""
    with wave.open(str(EXAMPLES / "speech.wav")) as source:
        parameters, data = source.getparams(), source.readframes(source.getnframes())
    wanted = round(seconds * parameters.framerate) * parameters.sampwidth * parameters.nchannels
    made = io.BytesIO()
    with wave.open(made, "wb") as target:
        target.setparams(parameters)
        target.writeframes((data * (wanted // len(data) + 1))[:wanted])
    return {"portrait": (EXAMPLES / "portrait.png").read_bytes(), "speech": made.getvalue()}


def streamed(client: httpx.Client, files: dict[str, bytes]) -> dict[str, float]:
    """Seconds of one job whose film is followed to its end; ``client``: from the request's first byte to the film's first."""
    start = time.perf_counter()
    with client.stream("POST", "/v1/generate", params={"stream": 1}, files=files) as answer:
        if answer.is_error:
            sys.exit(answer.read().decode())
        number, chunks = answer.headers["x-dawn-job"], answer.iter_raw()
        size = len(next(chunks))
        waited = time.perf_counter() - start
        size += sum(map(len, chunks))
    timings = ended(client, number)["timings"]
    whole = len(client.get(f"/v1/jobs/{number}/result").content)
    return {
        **{key: timings[key] for key, _ in SHOWN},
        "client": waited,
        "stream_kb": size / 1e3,
        "file_kb": whole / 1e3,
    }


def ended(client: httpx.Client, number: str) -> dict[str, Any]:
    while (job := client.get(f"/v1/jobs/{number}").json())["state"] in ("queued", "running"):
        time.sleep(0.1)
    if job["state"] != "done":
        sys.exit(f"job {number}: {job['error']}")
    return job


def memory_mib(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes")) / (
        1 << 20
    )


def measure(client: httpx.Client, args: argparse.Namespace) -> None:
    """Print the table."""
    files = inputs(args.seconds)
    runs = [streamed(client, files) for _ in range(1 + args.repeats)]
    print(f"{args.seconds:g} s of speech          first run   median of the next {args.repeats}")
    for key, words in (*SHOWN, ("client", "first byte, as the client sees it")):
        print(f"  {words:<34} {runs[0][key]:6.2f} s   {statistics.median(run[key] for run in runs[1:]):6.2f} s")
    print(f"  stream {runs[0]['stream_kb']:.0f} kB, file {runs[0]['file_kb']:.0f} kB")
    files = inputs(1)
    ended(client, client.post("/v1/generate", files=files).json()["id"])
    before, start = memory_mib(client), time.perf_counter()
    jobs = [client.post("/v1/generate", files=files).raise_for_status().json()["id"] for _ in range(args.jobs)]
    queued, worst = memory_mib(client), before
    for number in jobs:
        ended(client, number)
        worst = max(worst, memory_mib(client))
    took = time.perf_counter() - start
    print(f"{args.jobs} jobs of 1 s: {took:.1f} s, {took / args.jobs:.2f} s a job")
    print(
        f"  memory of the server: {before:.0f} MiB before, {queued:.0f} with all in the queue, {worst:.0f} at most, "
        f"{memory_mib(client):.0f} after"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default=DEFAULT_PRESET)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = {"port": 0, "preset": args.preset, "data": Path(folder) / "data", "max-queue": args.jobs + 1}
        start = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "dawn.apps.cli.main",
            "serve",
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            try:
                assert server.stdout is not None
                greeting = server.stdout.readline().strip()
                print(f"{greeting}\nstarted in {time.perf_counter() - start:.1f} s")
                with httpx.Client(base_url=greeting.split()[2], timeout=600) as client:
                    print(f"  memory of the server: {memory_mib(client):.0f} MiB")
                    measure(client, args)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
