"""Peak memory is the process's own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from dawn.progress import peak_memory_mib

ASK = "from dawn.progress import peak_memory_mib; print(peak_memory_mib())"


def test_peak_memory_is_the_processs_own() -> None:
    before = peak_memory_mib()
    held = np.ones(800 << 17)  # 800 MiB
    after = peak_memory_mib()
    assert before is not None and after is not None and after > 800 and after >= before
    answer = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout
    assert float(answer) < 0.5 * held.nbytes / (1 << 20), "not what its parent has"
    del held
    assert (peak_memory_mib() or 0) > after - 20, "a peak stays"
