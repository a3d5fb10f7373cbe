"""Five minutes of speech in the memory of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dawn
from conftest import example_sound, write_wav

SHIPPED = Path(dawn.__file__).parent / "weights" / "lite-128"
MEASURE = """
import sys
from dawn.apps.cli.main import main
from dawn.progress import peak_memory_mib
code = main(sys.argv[1:])
print("PEAK", round(peak_memory_mib()))
sys.exit(code)
"""


def peak_memory(portrait: Path, speech: Path, out: Path, preset: Path) -> int:
    """Peak resident memory of one ``dawn generate`` in a process of its own, MiB.

    glibc is told to hand large blocks back at once: what is measured is what the program holds, not how it cut up the heap.
    """
    arguments = ["generate", str(portrait), str(speech), "-o", str(out), "--preset", str(preset), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(2**20)},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("PEAK")[1])


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_memory_does_not_grow_with_length(
    tiny_preset: Path, portrait_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = SHIPPED if (SHIPPED / "config.json").is_file() else tiny_preset
    samples, rate_hz = example_sound()
    peaks = {}
    for minutes in (1, 5):
        sound = write_wav(tmp_path / f"{minutes}.wav", np.resize(samples, minutes * 60 * rate_hz), rate_hz)
        out = tmp_path / f"{minutes}.mp4"
        peaks[minutes] = peak_memory(portrait_path, sound, out, preset)
        assert out.stat().st_size > minutes * 50_000
        out.unlink()
    with capsys.disabled():
        sys.stdout.write(f"\npeak memory in MiB by minutes of speech: {peaks}\n")
    assert peaks[5] < 1.06 * peaks[1], peaks
