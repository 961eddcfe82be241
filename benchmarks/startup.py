"""What `import emolab` adds to a bare Python: `python benchmarks/startup.py`, some seconds.

`--targets` times `make figures` and `make test` instead, once each, after set-up: about ten minutes, and worth
something on an idle machine only. The notebook runner prints each notebook's seconds, pytest the tests'.
"""

from __future__ import annotations

import subprocess
import sys
import time

from _harness import HERE, arguments, measure, plain_row, ratios, record

HEAVY = "torch", "transformer_lens", "transformers", "numpy", "pandas", "matplotlib", "sklearn", "umap"


def loaded() -> list[str]:
    """Which of the heavy packages `import emolab` loads."""
    code = f"import sys, emolab; print(*[m for m in {HEAVY} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def imports(repeats: int) -> None:
    def run(code: str):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    seconds = measure({"python": run("pass"), "python, import emolab": run("import emolab")}, repeats=4 * repeats)
    rows = ratios(seconds, against="python")
    added = rows[1]["median_s"] - rows[0]["median_s"]
    rows.append(plain_row("added by import emolab", round(added, 3), "s", ("<=", 0.3)))
    rows.append(plain_row(f"heavy packages loaded, of {', '.join(HEAVY)}", len(loaded()), "", ("<=", 0)))
    record("start", rows, setting="a new process")


def targets() -> None:
    rows = []
    for target, minutes in (("figures", 5), ("test", 6)):
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
        imports(a.repeats)


if __name__ == "__main__":
    main()
