"""A small study that is killed again and again, for tests/test_survival.py; what happened is printed as JSON.

One process imports everything and forks every start, so that none waits for imports.

`python -m tests.survival kill FOLDER SEED`: the undisturbed run is in FOLDER/plain; FOLDER/timed was killed at random
times, FOLDER/writes at random writes: before one, with half of the temporary file on disk, and right after it took the
old one's place. `python -m tests.survival interrupt FOLDER 0`: Ctrl-C in every stage of `emolab study`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import emolab
from emolab.experiments import selection
from emolab.judges import judges
from emolab.plot import save
from emolab.studies import cli, pipeline
from tests import oracle, tiny

torch.set_num_threads(1)
EMOTIONS = ("fear", "joy")
TIMED, WRITES = 8, 15


def figures(out: Path) -> None:
    """Two of the figures: all would take as long as the rest of the study."""
    from emolab import plot

    vectors = emolab.EmotionVectors.load(out / "vectors.safetensors")
    for name, draw in (("norms", plot.norms), ("cosine_by_layer", plot.cosine_by_layer)):
        plot.save_figure(draw(vectors), name, caption=name, alt=name, directory=out / "figures")


def light() -> None:
    """Whatever takes time and is not what is tested here: a sentence encoder, many doses, sharp figures."""
    judges.embed, save.DPI, save.SHOWN_DPI = oracle.embed, 40, 40
    pipeline.run_figures = figures


def study(model: emolab.Model, out: Path) -> None:
    search = selection.Search(windows=("late",), rounds=(selection.Round(1, (1.0,), 1),), doses=(1.0, 2.0))
    plan = pipeline.Plan((4, 2, 3), max_new_tokens=20, search=search, n_claims=2, methods=("instruction",))
    pipeline.study(model, out=out, queries=oracle.queries(12, 4), emotions=EMOTIONS, plan=plan)


def start(model: emolab.Model, out: Path, on_write=None) -> int:
    """The number of a forked process that runs the study. on_write(path, replace): in place of os.replace."""
    child = os.fork()
    if child:
        return child
    try:
        if on_write:
            replace = os.replace
            os.replace = lambda a, b: on_write(Path(a), Path(b), lambda: replace(a, b))
        study(model, out)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def end(child: int) -> bool:
    """Whether it was killed; it must not have failed."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"a start ended with code {code}"
    return code != 0


def at_times(model, out: Path, seconds: float, draw: random.Random) -> list[float]:
    """Killed after random times that together are a little longer than the undisturbed run."""
    found = []
    for _ in range(TIMED):
        delay = draw.uniform(0.3, 1.7) * seconds / TIMED
        child = start(model, out)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        if end(child):
            found.append(round(delay, 2))
    assert not end(start(model, out))
    return found


def at_writes(model, out: Path, writes: list[str], draw: random.Random) -> list[str]:
    """Killed at random ones of these writes, each in one of three ways."""
    found = []
    for number, at in enumerate(sorted(draw.sample(range(len(writes)), min(WRITES, len(writes))))):
        way = ("before", "half", "after")[number % 3]

        def on_write(temporary, path, replace, name=writes[at], way=way):
            hit = path.relative_to(out).as_posix() == name
            if hit and way == "half":
                os.truncate(temporary, temporary.stat().st_size // 2)
            if hit and way != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            replace()
            if hit:
                os.kill(os.getpid(), signal.SIGKILL)

        if end(start(model, out, on_write)):
            found.append(f"{way} {writes[at]}")
    assert not end(start(model, out))
    return found


def kill(folder: Path, seed: int) -> dict:
    model, draw = emolab.load_model(oracle.talker()), random.Random(seed)
    log, begin = folder / "writes.txt", time.perf_counter()

    def note(temporary, path, replace):
        with log.open("a") as file:
            file.write(path.relative_to(folder / "plain").as_posix() + "\n")
        replace()

    assert not end(start(model, folder / "plain", note))
    seconds = time.perf_counter() - begin
    # Each file once, for a start stops at the first write of that name; owners' notes are written before anything.
    writes = [name for name in dict.fromkeys(log.read_text().splitlines()) if not Path(name).name.startswith(".")]
    told = {"seconds": round(seconds, 1), "timed": at_times(model, folder / "timed", seconds, draw)}
    return told | {"writes": at_writes(model, folder / "writes", writes, draw)}


def interrupt(folder: Path, seed: int) -> list[dict]:
    """Ctrl-C right after each stage has said that it is done, so in the next one: stage, code, seconds, last words."""
    tiny.save(folder / "talker", *oracle.talker())
    rows = oracle.queries(12, 4).drop(columns="query_id").to_dict("records")
    (folder / "queries.json").write_text(json.dumps({"queries": rows}))
    command = ["study", "--model", folder / "talker", "--queries", folder / "queries.json", "--out", folder / "run"]
    # In a forked process torch cannot change the dtype of weights in a thread, as reading them does.
    command += ["--n-queries", 4, 2, 3, "--emotions", *EMOTIONS, "--methods", "instruction", "--dtype", "float32"]
    found = []
    for stage in ("load", "vectors", "selection", "sweep", "claims", "analysis", None):
        read, write = os.pipe()
        if not (child := os.fork()):
            os.dup2(write, 1)
            os.dup2(write, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # where this was started in the background
            os._exit(cli.main(list(map(str, command))))
        os.close(write)
        with open(read, encoding="utf-8", newline="\n") as lines:
            said = []
            for line in lines:
                said.append(line)
                if stage and line.startswith(f"{stage}: "):
                    break
            time.sleep(0.3 if stage else 0)
            begin = time.perf_counter()
            if stage:
                os.kill(child, signal.SIGINT)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            seconds = time.perf_counter() - begin
            told = [line for line in [*said, *lines] if line.strip()]
        found.append({"stage": stage, "code": code, "seconds": seconds, "told": [line.strip() for line in told[-2:]]})
    return found


if __name__ == "__main__":
    light()
    what = {"kill": kill, "interrupt": interrupt}[sys.argv[1]]
    print(json.dumps(what(Path(sys.argv[2]).resolve(), int(sys.argv[3]))))
