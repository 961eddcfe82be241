"""What `import emolab` adds to a bare Python: `python benchmarks/startup.py`."""

from __future__ import annotations

import subprocess
import sys

from _harness import arguments, compare, record


def main() -> None:
    a = arguments()

    def run(code: str):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    loaded = "import emolab, sys; assert not {'torch', 'transformer_lens', 'pandas'} & set(sys.modules)"
    rows = compare({"python": run("pass"), "python, import emolab": run(loaded)}, against="python", repeats=a.repeats)
    added = rows[1]["median_s"] - rows[0]["median_s"]
    rows.append({"case": "added by import emolab", "value": round(added, 3), "unit": "s"})
    record("start", rows, setting="a new process", goal="0.3 s more, neither torch nor TransformerLens loaded")


if __name__ == "__main__":
    main()
