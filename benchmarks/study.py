"""How long the quick study takes, and how much memory: `python benchmarks/study.py`, some minutes. Unix only."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time

from _harness import arguments, plain_row, record


def main() -> None:
    a = arguments()
    if a.quick:
        return  # there is no smaller one
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "emolab", "study", "--quick", "--out", out]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        minutes = (time.perf_counter() - start) / 60
    unit = 2**30 if sys.platform == "darwin" else 2**20
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
    rows = [
        plain_row("minutes", round(minutes, 2), "min", ("<=", 5)),
        plain_row("highest memory", round(peak, 2), "GiB", ("<=", 2.5)),
    ]
    record("quick study", rows, setting="`emolab study --quick`, once, with the start of Python")


if __name__ == "__main__":
    main()
