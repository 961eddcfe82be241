"""Weak scaling over the workers of a Dask cluster, the cost of a task, and what both mean for many workers.

`python benchmarks/scaling.py` measures on 1 and 2 local workers, records it, and draws docs/scaling.svg and .png. Twice
the workers get twice the queries, so that at best the time stays. All beyond two workers is a projection: no more were
run.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from _harness import arguments, record
from distributed import Client, LocalCluster
from distributed.protocol.pickle import dumps

import emolab
from emolab import EmotionVectors, Steering, Writing, collect_responses
from emolab.answers.jobs import Store, run_jobs
from emolab.base.storage import atomic
from emolab.models.workers import run_chunks

WORKERS, PROJECTED = (1, 2), (8, 64, 512)
LONG = (10.0, 60.0)  # seconds of work in a task, beside mini's: models of billions of parameters take as long
SIZE = 48  # texts in a task: eight queries under six conditions
SWEEP = 256  # texts in a task of a sweep
ROOT = Path(__file__).parent.parent
DOCS, MINI = ROOT / "docs", ROOT / "tests" / "mini"  # the toy model: what is measured is the work around a model


def main() -> None:
    a = arguments()
    torch.set_num_threads(1)  # workers compute with as many threads as this process
    model = emolab.load_model(MINI / "weights", device="cpu")
    tasks, empty = (2, 40) if a.quick else (6, 400)
    seconds: dict[int, list[float]] = {}
    costs: dict[str, dict[int, float]] = {"empty task": {}, "task of 48 answers without the model's work": {}}
    for workers in [w for w in WORKERS if w <= (os.cpu_count() or 1)]:
        options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": None}
        with LocalCluster(**options) as cluster, Client(cluster) as client, emolab.workers(client):
            client.wait_for_workers(workers)
            run(model, nothing, 20 * workers)  # every worker reads the model
            run(model, answer, workers)
            seconds[workers] = [asking(model, tasks * workers) for _ in range(min(a.repeats, 5))]
            costs["empty task"][workers] = run(model, nothing, empty) / empty
            costs["task of 48 answers without the model's work"][workers] = keeping(model, empty) / empty
    base = statistics.median(seconds[1])
    rows = [
        {"case": f"{w} workers", "median_s": round(statistics.median(found), 4), "against": "1 workers"}
        | {"ratio": round(statistics.median(found) / base, 3)}
        | {"ratio_min": round(min(found) / base, 3), "ratio_max": round(max(found) / base, 3)}
        for w, found in seconds.items()
    ]
    record("weak scaling: answers", rows, setting=f"mini, {tasks} tasks of {SIZE} texts a worker", goal="1 x")
    rows = [
        {"case": f"{what}, {w} workers", "value": round(1000 * cost, 2), "unit": "ms"}
        for what, found in costs.items()
        for w, cost in found.items()
    ]
    rows += [{"case": what, "value": round(n / 1024, 1), "unit": "KiB"} for what, n in traffic(model).items()]
    record("cost of a task", rows, setting="mini, one client and scheduler on this machine")
    cost = max(cost for found in costs.values() for cost in found.values())
    measured = pd.DataFrame(
        [(w, base / statistics.median(t), base / max(t), base / min(t)) for w, t in seconds.items()],
        columns=["workers", "efficiency", "lo", "hi"],
    )
    lines = {t: projection(t, cost) for t in (base / tasks, *LONG)}
    rows = []
    for t, line in lines.items():
        what = f"tasks of {t:.0f} s" if t in LONG else "tasks of mini"
        for w in PROJECTED:
            rows.append({"case": f"{w} workers, {what}", "value": round(line[w], 3), "unit": "of the ideal"})
    record("projection, not measured: efficiency", rows, setting="workers on machines of their own, one client")
    draw(measured, lines, cost)


def projection(task: float, cost: float) -> dict[int, float]:
    """{workers: efficiency}: each worker takes `task` and `cost` seconds a task; the client, for all, `cost` a task.

    Whichever is slower sets the pace, so that efficiency falls from (task + cost) / cost workers on.
    """
    return {w: task / max(task + cost, w * cost) for w in sorted({*(2 ** (i / 8) for i in range(73)), *PROJECTED})}


def run(model, function, n: int) -> float:
    """Seconds for n tasks through the path that all go."""
    start = time.perf_counter()
    assert sum(map(len, run_chunks(model, function, [(i,) for i in range(n)]))) == n
    return time.perf_counter() - start


def nothing(model, number: int) -> int:
    return number


def answer(model, number: int) -> int:
    time.sleep(0.5)  # so that no worker takes them all
    return len(emolab.generate(model, "Tell me about the park.", max_new_tokens=2))


def unwritten(model, prompts: list[str]) -> list[str]:
    return ["It was a quiet day, and I walked home along the river before the rain came. " * 3] * len(prompts)


def keeping(model, tasks: int) -> float:
    """Seconds for so many tasks of texts that cost nothing, written to disk as they come."""
    prompts = [f"Tell me about the park. {i}" for i in range(tasks * SIZE)]
    plan = [range(start, start + SIZE) for start in range(0, len(prompts), SIZE)]
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        run_jobs(model, unwritten, prompts, plan, name="texts", store=Store(Path(out, "texts.parquet"), {}))
        return time.perf_counter() - start


def asking(model, tasks: int) -> float:
    """Seconds to collect the answers of so many tasks, written to disk as they come."""
    known = emolab.load_queries(MINI / "queries.json", split="train")
    queries = known.iloc[[i % len(known) for i in range(tasks * SIZE // 6)]]
    queries = queries.assign(query_id=[f"q-{i:05d}" for i in range(len(queries))])
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        found = collect_responses(model, queries, out=out, writing=Writing(batch_size=SIZE))
        assert len(found) == tasks * SIZE
        return time.perf_counter() - start


def traffic(model) -> dict[str, int]:
    """Bytes that travel for a chunk of a sweep, and once to every worker."""
    draw = torch.Generator().manual_seed(0)
    data = {"attn": torch.randn(5, model.n_layers, model.d_model, generator=draw)}
    vectors = EmotionVectors(data, emolab.EMOTIONS, torch.ones(model.n_layers), {"fingerprint": model.fingerprint})
    prompt = emolab.models.prompts.render_prompts(model, ["Tell me about the park."])[0]
    steerings = [Steering(vectors, {e: dose}, site="attn") for e in vectors.emotions for dose in (1.0, 2.0)]
    jobs = [(prompt + str(i), i % len(steerings), Writing()) for i in range(SWEEP)]
    texts = [f"{i} " + unwritten(model, [prompt])[0] for i in range(SWEEP)]
    return {
        f"sent for a chunk of a sweep ({SWEEP} texts)": len(dumps((unwritten, (jobs,)))),
        "returned for it": len(dumps(texts)),
        "sent once: 5 vectors of one site": len(dumps(steerings)),
    }


def draw(measured: pd.DataFrame, lines: dict[float, dict[int, float]], cost: float) -> None:
    """docs/scaling.svg and .png: points are measured, dashed lines are not."""
    from matplotlib.figure import Figure

    from emolab.plot import theme

    colours = ("#0072B2", "#D55E00", "#009E73")
    with theme("notebook"):
        fig = Figure(figsize=(7.6, 4.2), layout="constrained")
        ax = fig.subplots()
        ax.axvspan(WORKERS[-1] * 1.25, 800, color="#F4F4F4", zorder=0)
        for (task, line), colour, marker in zip(lines.items(), colours, "osD", strict=True):
            x = [w for w in line if w >= WORKERS[-1]]
            label = f"projection: tasks of {task:.2g} s" + (" (mini's here)" if task not in LONG else "")
            ax.plot(x, [line[w] for w in x], "--", color=colour, label=label)
            ax.plot(PROJECTED, [line[w] for w in PROJECTED], marker, color=colour, mfc="white")
        span = [measured["efficiency"] - measured["lo"], measured["hi"] - measured["efficiency"]]
        points = {"fmt": "ko", "capsize": 3, "label": "measured, mini", "zorder": 5}
        ax.errorbar(measured["workers"], measured["efficiency"], yerr=span, **points)
        ax.set_xscale("log", base=2)
        ticks = (*WORKERS, *PROJECTED)
        ax.set_xticks(ticks, [str(w) for w in ticks])
        ax.set_xlim(0.8, 700)
        ax.set_ylim(0, 1.15)
        ax.text(WORKERS[-1] * 1.4, 1.08, "projection: not measured", style="italic", color="#555555")
        ax.set_xlabel("workers (as many times the queries)")
        ax.set_ylabel("efficiency (1: the time stays)")
        ax.set_title(f"Weak scaling on Dask; a task costs client and scheduler {1000 * cost:.1f} ms")
        ax.legend(loc="lower left")
        for suffix, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 150})):
            with atomic(DOCS / f"scaling.{suffix}") as path:
                fig.savefig(path, format=suffix, **options)


if __name__ == "__main__":
    main()
