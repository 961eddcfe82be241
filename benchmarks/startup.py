"""What `import emolab` adds to a bare Python, and `load_model` to PyTorch: `python benchmarks/startup.py`, a minute.

`--targets` times `make figures` and `make test` instead, once each, after set-up: a quarter of an hour, and worth
something on an idle machine only. The notebook runner prints each notebook's seconds, pytest the tests'.
"""

from __future__ import annotations

import subprocess
import sys
import time

from _harness import HERE, arguments, measure, plain_row, ratios, record

HEAVY = "torch", "transformer_lens", "transformers", "numpy", "pandas", "matplotlib", "sklearn", "umap"
LOAD = "import emolab; emolab.load_model('smollm2')"


def heavy() -> list[str]:
    """Which of the heavy packages `import emolab` loads."""
    code = f"import sys, emolab; print(*[m for m in {HEAVY} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def starts(repeats: int, quick: bool) -> None:
    def run(code: str):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    seconds = measure({"python": run("pass"), "import emolab": run("import emolab")}, repeats=4 * repeats)
    rows = ratios(seconds, against="python")
    added = rows[1]["median_s"] - rows[0]["median_s"]
    rows.append(plain_row("added by import emolab", round(added, 3), "s", ("<=", 0.05)))
    rows.append(plain_row(f"heavy packages loaded, of {', '.join(HEAVY)}", len(heavy()), "", ("<=", 0)))
    record("start", rows, setting="a new process")
    if quick:
        return
    seconds = measure({"import torch": run("import torch"), "load_model": run(LOAD)}, repeats=repeats)
    rows = ratios(seconds, against="import torch")
    added = rows[1]["median_s"] - rows[0]["median_s"]
    rows.append(plain_row("added by load_model('smollm2')", round(added, 2), "s", ("<=", 3)))
    record("start with the default model", rows, setting="a new process")


def targets() -> None:
    rows = []
    for target, minutes in (("figures", 8), ("test", 5)):
        start = time.perf_counter()
        done = subprocess.run(["make", target], cwd=HERE.parent)
        if done.returncode:
            raise SystemExit(f"make {target} failed; its time would say nothing")
        rows.append(plain_row(f"make {target}", round((time.perf_counter() - start) / 60, 2), "min", ("<=", minutes)))
    record("make", rows, setting="after set-up, once each", script="startup.py --targets")


def main() -> None:
    a = arguments("--targets")
    if a.targets:
        targets()
    else:
        starts(a.repeats, a.quick)


if __name__ == "__main__":
    main()
