"""Side-by-side timings: what every benchmark shares. Claims are ratios, measured in turn in one run.

>>> seconds = measure({"plain": f, "hooked": g}, repeats=5)        # each f, g is a call without arguments
>>> rows = ratios(seconds, against="plain", goals={"hooked": ("<=", 1.1)})
>>> record("extraction", rows, setting="float32, batch 8")              # into results.json and docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import operator
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

import emolab
from emolab import EmotionVectors
from emolab.base.storage import write_json
from emolab.models.model import Model

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.json", HERE.parent / "docs" / "benchmarks.md"
RUN = datetime.datetime.now().isoformat(timespec="seconds")
CUDA = torch.cuda.is_available()
_settings = {"write": True}  # by `record`; not with --quick
_COMPARE = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}


def arguments(*flags: str) -> argparse.Namespace:
    """The options of every script; flags are further ones that are either there or not."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5, help="rounds; some scripts take fewer")
    parser.add_argument("--quick", action="store_true", help="a toy model, two rounds, nothing written")
    parser.add_argument("--threads", type=int, default=0, help="default: as torch chooses (OMP_NUM_THREADS)")
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    found = parser.parse_args()
    if found.threads:
        torch.set_num_threads(found.threads)
    if found.quick:
        found.repeats, _settings["write"] = 2, False
    return found


def measure(cases: dict[str, Callable[[], object]], *, repeats: int) -> dict[str, list[float]]:
    """Seconds of every case in each of `repeats` rounds, after one warm-up round that is not counted.

    A round runs all cases once. Each case goes first in its turn, and every second round runs backwards, so that none
    gains from its place; a slow minute of the machine hits all cases of its round.
    """
    return measure_timed({name: _timed(case) for name, case in cases.items()}, repeats=repeats)


def measure_timed(cases: dict[str, Callable[[], float]], *, repeats: int) -> dict[str, list[float]]:
    """As `measure`, for cases that take their own time, in another process."""
    names, seconds = list(cases), {name: [] for name in cases}
    for turn in range(repeats + 1):
        first = turn % len(names)
        for name in (names[first:] + names[:first])[:: -1 if turn % 2 else 1]:
            found = cases[name]()
            if turn:
                seconds[name].append(found)
    return seconds


def _timed(case: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        gc.collect()
        _wait()
        start = time.perf_counter()
        case()
        _wait()
        return time.perf_counter() - start

    return run


def _wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def ratios(
    seconds: dict[str, list[float]],
    *,
    against: str,
    goals: dict[str, tuple[str, float]] | None = None,
    speed: bool = False,
) -> list[dict]:
    """One row a case: median, lowest and highest seconds, and their ratio to `against` in the same round.

    The ratio is the median over rounds of case / reference, of reference / case with speed=True (above 1 is faster).
    goals: {case: ("<=", 1.1)} for the ratio.
    """
    rows = []
    for name, found in seconds.items():
        pairs = list(zip(found, seconds[against], strict=True))
        each = [b / a if speed else a / b for a, b in pairs]
        row = {
            "case": name,
            "median_s": round(statistics.median(found), 4),
            "min_s": round(min(found), 4),
            "max_s": round(max(found), 4),
            "rounds": len(found),
            "ratio": round(statistics.median(each), 3),
            "ratio_min": round(min(each), 3),
            "ratio_max": round(max(each), 3),
            "of": "speed" if speed else "time",
            "against": against,
        }
        rows.append(row | judged(statistics.median(each), (goals or {}).get(name)))
    return rows


def plain_row(case: str, value: float, unit: str, goal: tuple[str, float] | None = None) -> dict:
    """A row that is a number with a unit and no ratio of times."""
    return {"case": case, "value": value, "unit": unit} | judged(value, goal)


def judged(value: float, goal: tuple[str, float] | None) -> dict:
    return {} if goal is None else {"goal": f"{goal[0]} {goal[1]:g}", "met": bool(_COMPARE[goal[0]](value, goal[1]))}


def loaded(dtype: str, quick: bool = False) -> Model:
    """The default model, or with --quick the tests' toy, which runs every script in seconds."""
    return emolab.load_model(HERE.parent / "tests" / "mini" / "weights" if quick else "smollm2", dtype=dtype)


def questions(n: int, quick: bool = False) -> pd.DataFrame:
    """n everyday questions, in turn from the beginning where there are not so many."""
    known = emolab.load_queries(HERE.parent / "tests" / "mini" / "queries.json" if quick else "everyday")
    asked = known.iloc[[i % len(known) for i in range(n)]].reset_index(drop=True)
    return asked.assign(query_id=[f"q{i:03d}" for i in range(n)])


def directions(model: Model) -> EmotionVectors:
    """The vectors that come with the default model; for any other, random ones of a tenth of its residual stream."""
    if model.name == "smollm2":
        return emolab.load_vectors("smollm2")
    draw = torch.Generator().manual_seed(0)
    data = {site: torch.randn(5, model.n_layers, model.d_model, generator=draw) * 0.1 for site in ("resid", "attn")}
    return EmotionVectors(data, emolab.EMOTIONS, torch.ones(model.n_layers), {"fingerprint": model.fingerprint})


def machine() -> dict:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    gpu = torch.cuda.get_device_name() if CUDA else None
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return {"cpu": cpu, "cores": cores, "threads": threads, "gpu": gpu, "versions": emolab.versions()}


def told_machine(m: dict) -> str:
    return f"{m['gpu'] or m['cpu']}, cores: {m['cores']}, threads: {m['threads']}; {m['versions']}"


def record(
    name: str, rows: list[dict], *, setting: str, note: str = "", goal: str = "", script: str | None = None
) -> None:
    """Print the rows and, unless --quick, put them into results.json and the page in docs/.

    goal: in words, where rows have none of their own (`ratios`, `plain_row`). What an earlier run of the same script
    found is taken out, so that no row outlives its setting, nor a setting its script.
    """
    note = " ".join(part for part in (note, goal and f"Goal: {goal}.") if part)
    width = max(len(row["case"]) for row in rows)
    print(f"\n{name}: {setting}" + (f"\n  ({note})" if note else ""))
    for row in rows:
        print(f"  {row['case']:<{width}}  {_told(row)}{_goal(row)}", flush=True)
    if not _settings["write"]:
        return
    script = script or Path(sys.argv[0]).name
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    found = [x for x in found if x["script"] != script or x["run"] == RUN]
    found = [x for x in found if x["script"] == script or (HERE / x["script"].split()[0]).exists()]
    entry = {"name": name, "setting": setting, "note": note, "script": script, "run": RUN, "machine": machine()}
    found.append(entry | {"load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None, "rows": rows})
    found.sort(key=lambda x: x["script"])  # stable: within a script as it ran
    write_json(RESULTS, found)
    PAGE.write_text(page(found), encoding="utf-8")


def _told(row: dict) -> str:
    if "ratio" not in row:
        return f"{row['value']:g} {row['unit']}"
    spread = f"[{row['ratio_min']:.2f}, {row['ratio_max']:.2f}]"
    return f"{row['ratio']:.2f} x the {row.get('of', 'time')} {spread}, {row['median_s']:.3f} s"


def _goal(row: dict) -> str:
    return f"  (goal {row['goal']}: {'met' if row['met'] else 'not met'})" if "goal" in row else ""


WHERE_TIME_GOES = """\
## Where the time goes

By torch's profiler, on this model: writing is matrix products, in float32 at the processor's peak, so that only fewer
tokens make it faster. In bfloat16, whose products take a third of that, attention over what was written costs a third
of what they do. What helped: what prompts begin with is read once (the system turn, a prompt that texts share), in
writing, extraction and scores; the input of the output head has no gaps. What did not: larger batches of texts to
score, which are slower, and attention that groups heads, which transformers does by itself. A score reads every text
twice, after the plain prompt and after the instruction; the products of that alone take more than half as long as
writing. A loop that scores in the same way pays it, too, so a grid gains less than its writing does. Most of
`load_model` is the import of transformers and TransformerLens.""".splitlines()


def page(results: list[dict]) -> str:
    """docs/benchmarks.md."""
    lines = [
        "# Benchmarks", "",
        "What emolab costs on the default model, SmolLM2 of 135 million parameters, beside what one would run",
        "instead. A figure with brackets is a ratio of two cases that were measured in turn in one run: the median",
        "over rounds, with the lowest and the highest round in brackets. Times depend on the machine, ratios much",
        "less. `make bench` measures all of it again and rewrites this page.", "",
        "Work on a cluster is measured with `mini`, the toy model of the tests (`tests/mini`), since it is the work",
        "around a model.", "",
    ]  # fmt: skip
    for told in dict.fromkeys(told_machine(x["machine"]) for x in results):
        lines.append(f"Machine: {told}.")
    lines += ["", "## Goals", "", "| what | against | measured | goal | met |", "|---|---|---|---|---|"]
    for x in results:
        for row in x["rows"]:
            if "goal" in row:
                what = f"{x['name']}, {row['case']}; {x['setting']}"
                met = "yes" if row["met"] else "**no**"
                lines.append(f"| {what} | {row.get('against', '')} | {_told(row)} | {row['goal']} | {met} |")
    lines += ["", *WHERE_TIME_GOES]
    if any(x["script"] == "growth.py" for x in results):
        lines += ["", "## How cost grows", "", "![Seconds against layers, texts, rows and doses](cost_growth.png)"]
    for x in results:
        load = "" if x["load"] is None else f", load {x['load']:g}"
        lines += ["", f"## {x['name']}: {x['setting']}", "", f"`benchmarks/{x['script']}`, {x['run']}{load}", ""]
        lines += [x["note"], ""] if x["note"] else []
        lines += ["| case | measured | against |", "|---|---|---|"]
        lines += [f"| {row['case']} | {_told(row)} | {row.get('against', '')} |" for row in x["rows"]]
    return "\n".join(lines) + "\n"


def readme_line(results: list[dict]) -> str:
    """The figures for the README, from results.json."""
    rows = {(x["name"], row["case"]): row for x in results for row in x["rows"]}
    grid = rows["a grid, written and scored", "emolab"]["ratio"]
    writing = rows["writing beside Hugging Face in bfloat16", "emolab, bfloat16"]["ratio"]
    return (
        f"On SmolLM2 and two cores, a grid of settings is written and scored {grid:.1f} times as fast as by a loop "
        f"over Hugging Face's `generate` with a hook, and a batch is written at {writing:.2f} times its speed "
        "([benchmarks](docs/benchmarks.md))."
    )
