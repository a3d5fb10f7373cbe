"""How long a person waits for ``dawn studio``: from the command to the page, and from Generate to a picture and to the video.

    python benchmarks/studio.py [--runs 3] [--seconds 10] [--size 256] [--chromium /usr/bin/chromium]

Each run is a new process and a new page in a headless Chromium that has been started before. Needs playwright.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

EXAMPLES = Path(__file__).parent.parent / "examples"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 600_000
STAGES = (
    "command to its address",
    "command to the page, portrait and speech can be given",
    "command to Generate, model loaded",
    "portrait dropped to face drawn",
    "Generate to the first preview",
    "Generate to the finished video",
)


def speech_of(seconds: float, path: Path) -> Path:
    """The example recording, over again or cut, as a file of so many seconds."""
    with wave.open(str(EXAMPLES / "speech.wav")) as source:
        parameters, samples = source.getparams(), source.readframes(source.getnframes())
    wanted = 2 * round(seconds * parameters.framerate)
    with wave.open(str(path), "wb") as target:
        target.setparams(parameters)
        target.writeframes((samples * (wanted // len(samples) + 1))[:wanted])
    return path


def run(browser: Any, speech: Path, size: int) -> list[float]:
    """Seconds of every stage."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "dawn.apps.cli.main", "studio", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        seconds = [time.perf_counter() - start]
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(address)
        page.wait_for_selector("#dawn-portrait input[type=file]", state="attached")
        page.wait_for_selector("#dawn-speech input[type=file]", state="attached")
        seconds.append(time.perf_counter() - start)
        page.wait_for_selector("#dawn-generate:not([disabled])")
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        page.set_input_files("#dawn-portrait input[type=file]", str(EXAMPLES / "portrait.png"))
        page.wait_for_selector("#dawn-seen .dawn-ok")
        seconds.append(time.perf_counter() - start)
        page.set_input_files("#dawn-speech input[type=file]", str(speech))
        page.wait_for_selector("#dawn-heard .dawn-ok")
        page.click("#dawn-settings button")
        page.click("#dawn-size input")
        page.click(f"[role=option]:has-text('{size} px')")
        start = time.perf_counter()
        page.click("#dawn-generate")
        page.wait_for_selector("#dawn-stage img")
        seconds.append(time.perf_counter() - start)
        page.wait_for_function("(document.querySelector('#dawn-stage video') || {}).readyState > 1")
        seconds.append(time.perf_counter() - start)
        page.close()
        return seconds
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--size", type=int, default=256, choices=(128, 256, 512))
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        speech = speech_of(args.seconds, Path(folder) / "speech.wav")
        browser = playwright.chromium.launch(executable_path=args.chromium, args=ARGUMENTS)
        runs = [run(browser, speech, args.size) for _ in range(args.runs)]
        browser.close()
    print(f"{args.seconds:g} s of speech, {args.size} px, {args.runs} runs: median (least to most), seconds")
    for name, seconds in zip(STAGES, zip(*runs, strict=True), strict=True):
        print(f"  {name:58} {statistics.median(seconds):6.1f}   ({min(seconds):.1f} to {max(seconds):.1f})")


if __name__ == "__main__":
    main()
