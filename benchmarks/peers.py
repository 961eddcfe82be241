"""Vectors of five emotions against neutral, beside steering-vectors on the same texts: `python benchmarks/peers.py`.

steering-vectors needs transformers 4 and so an environment of its own: the first run makes it in benchmarks/.peers
(ignored by git) from benchmarks/peers.txt, some minutes and 1 GB; where that fails, as without a network, nothing is
measured. Both sides are processes that load the same saved model once and run in turn, each with its own clock around
the work; neither reads the other's packages. That both read the same is checked: steering-vectors' vectors are
emolab's of the last token. About 2 minutes on two cores after the environment is made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _harness import CUDA, HERE, arguments, measure_timed, plain_row, random_pair, ratios, record
from extraction import responses

HOME = HERE / ".peers"
PINS, WORKER = HERE / "peers.txt", HERE / "_peer_worker.py"
NOTE = (
    "emolab: one pass over each text, the mean over its 100 response tokens; all sites are the residual stream, the "
    "attention, the MLP and every head. steering-vectors 0.12.2: the residual stream of one token a text (its default, "
    "the last), neither a mean over tokens nor heads; `train_steering_vector` takes pairs of texts, so that the "
    'neutral texts run with every emotion: 10 texts a query, not 6. Its default batch is 1. "each text once" is not '
    "its training but its parts put together to run no text twice. It computes the logits of all tokens, which costs "
    "more the larger the vocabulary."
)


def peer_python() -> Path:
    """The Python of the peer's environment, made when it is not there or when the pins have changed."""
    python = HOME / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = HOME / "peers.txt"
    if not python.exists() or not done.exists() or done.read_bytes() != PINS.read_bytes():
        print("making the environment of steering-vectors in benchmarks/.peers: some minutes, once", flush=True)
        HOME.mkdir(exist_ok=True)
        (HOME / ".gitignore").write_text("*\n")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        torch_pin = next(line for line in PINS.read_text().splitlines() if line.startswith("torch=="))
        try:
            subprocess.run([sys.executable, "-m", "venv", str(HOME / "venv")], check=True, env=environment)
            subprocess.run([*pip, torch_pin], check=True, env=environment)  # alone: its build is then left as it is
            subprocess.run([*pip, "-r", str(PINS)], check=True, env=environment)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"peers.py skipped: no environment for steering-vectors could be made ({error})") from None
        done.write_bytes(PINS.read_bytes())
    return python


class Side:
    """A process that runs cases by name and says how long each took."""

    def __init__(self, python: Path | str, kind: str, folder: Path) -> None:
        environment = dict(os.environ)
        if kind != "emolab":
            environment.pop("PYTHONPATH", None)
        self.process = subprocess.Popen(
            [str(python), str(WORKER), kind, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.cuda = self._line().split()[1] == "True"

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker of peers.py ended with status {self.process.wait()}; its error stands above")
        return line

    def run(self, case: str) -> float:
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compared(folder: Path, python: Path, repeats: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of every case, and how far the two sides' vectors of the last token are apart, relative to their size."""
    sides = [Side(sys.executable, "emolab", folder), Side(python, "steering-vectors", folder)]
    ours, theirs = sides
    try:
        if ours.cuda != theirs.cuda:
            raise SystemExit("peers.py skipped: only one of the two environments has a torch that sees the GPU")
        for side in sides:
            side.run("check")
        a, b = np.load(folder / "emolab.npy"), np.load(folder / "peer.npy")
        cases = {
            "emolab, all sites and heads": lambda: ours.run("all"),
            "emolab, residual stream only": lambda: ours.run("resid"),
            "steering-vectors, batch 8": lambda: theirs.run("batch"),
            "steering-vectors, batch 1": lambda: theirs.run("default"),
            "steering-vectors, batch 8, each text once": lambda: theirs.run("once"),
        }
        return measure_timed(cases, repeats=repeats), float(np.abs(a - b).max() / np.abs(a).max())
    finally:
        for side in sides:
            side.close()


def main() -> None:
    a = arguments()
    python = peer_python()
    n_layers, d_model, queries = (4, 128, 2) if a.quick else (12, 256, 8)
    if CUDA and not a.quick:
        n_layers, d_model, queries = 16, 2048, 40
    for words in (4000,) if a.quick else (4000, 50_000):
        table = responses(6 * queries)
        emotions = [c for c in dict.fromkeys(table["condition"]) if c != "neutral"]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            model, tokenizer = random_pair(n_layers, d_model, words=words)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            del model
            data = {"rows": table.to_dict("records"), "emotions": emotions, "threads": torch.get_num_threads()}
            (folder / "texts.json").write_text(json.dumps(data), encoding="utf-8")
            seconds, apart = compared(folder, python, -(-a.repeats // 2))
        goals = dict.fromkeys(("steering-vectors, batch 8", "steering-vectors, batch 1"), (">=", 3))
        rows = ratios(seconds, against="emolab, all sites and heads", goals=goals)
        rows.append(plain_row("vectors of the last token, largest relative difference", apart, "", ("<=", 1e-3)))
        setting = f"{n_layers} layers, d {d_model}, vocabulary {words:,}, {queries} queries, 128 tokens"
        record("six conditions against steering-vectors", rows, setting=setting, note=NOTE)


if __name__ == "__main__":
    main()
