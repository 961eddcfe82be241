"""How cost grows with layers, heads, responses and grid size, in one figure: `python benchmarks/growth.py`.

Four sweeps over one quantity each, all points of a sweep measured in turn; docs/cost_growth.svg and .png show the
median and the range of rounds, a straight line through the medians and its slope, the cost of one more. About 2 minutes
on two cores.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import pandas as pd
from _harness import CUDA, PAGE, RUN, arguments, machine, measure, plain_row, random_model, record, told_machine
from extraction import responses
from matplotlib.figure import Figure
from steering import NEW, grid

from emolab import Writing, generate, response_means
from emolab.plot.style import GREY, INK, theme

BATCH = 8
DTYPE, LAYERS, D_MODEL = ("bfloat16", 16, 2048) if CUDA else ("float32", 12, 256)
UNITS = {"layers": "layer", "heads": "head a layer", "responses": "response", "steerings in one batch": "steering"}

AXES = {"heads": "heads a layer, d_model the same"}


def extracting(model, n: int):
    table = responses(n)
    return lambda: response_means(model, table, batch_size=BATCH)


def writing(model, n: int):
    prompts, steerings = grid(model, n)
    writing = Writing(batch_size=n)
    return lambda: generate(model, prompts, steering=steerings, max_new_tokens=NEW, writing=writing)


def panels(quick: bool) -> dict[str, dict[int, Callable[[], object]]]:
    """{quantity: {its value: a case}}."""
    few = 8 if quick else 48
    layers, d_model = (2, 64) if quick else (LAYERS, D_MODEL)
    base = random_model(layers, d_model, dtype=DTYPE)
    depth = (1, 2) if quick else (3, 6, 12, 24)
    heads = (1, 2, 4) if quick else (2, 4, 8, 16)
    number = (8, 16) if quick else (12, 24, 48, 96)
    cells = (1, 4) if quick else (1, 4, 9, 18, 36, 72)
    return {
        "layers": {n: extracting(random_model(n, d_model, dtype=DTYPE), few) for n in depth},
        "heads": {n: extracting(random_model(layers, d_model, dtype=DTYPE, heads=n), few) for n in heads},
        "responses": {n: extracting(base, n) for n in number},
        "steerings in one batch": {n: writing(base, n) for n in cells},
    }


def measured(quick: bool, repeats: int) -> pd.DataFrame:
    rows = []
    for quantity, cases in panels(quick).items():
        for n, found in measure(cases, repeats=repeats).items():
            rows.append((quantity, n, statistics.median(found), min(found), max(found)))
    return pd.DataFrame(rows, columns=["quantity", "n", "median", "low", "high"])


def slope(of: pd.DataFrame) -> tuple[float, float]:
    """Least squares through the medians: seconds for one more, and for none."""
    return tuple(np.polyfit(of["n"], of["median"], 1))


def draw(table: pd.DataFrame, footer: str, work: dict[str, str]):
    with theme():
        fig = Figure(figsize=(9.6, 6.4), layout="constrained")
        axes = fig.subplots(2, 2)
        for ax, (quantity, of) in zip(axes.flat, table.groupby("quantity", sort=False), strict=True):
            more, none = slope(of)
            ends = np.array([of["n"].min(), of["n"].max()])
            ax.plot(ends, none + more * ends, color=GREY, linewidth=1, label="straight line")
            spread = [of["median"] - of["low"], of["high"] - of["median"]]
            ax.errorbar(of["n"], of["median"], spread, color=INK, fmt="o", capsize=3, label="median, range of rounds")
            title = f"{1000 * more:.3g} ms for one more {UNITS[quantity]}"
            ax.set(xlabel=AXES.get(quantity, quantity), ylabel="seconds", title=title)
            ax.set_xlim(0, 1.05 * ends[1])
            ax.set_ylim(0, 1.15 * of["high"].max())
            place = {"transform": ax.transAxes, "ha": "right", "va": "bottom"}
            ax.text(0.98, 0.05, work[quantity], fontsize="small", color=INK, **place)
        axes[0, 0].legend(loc="upper left")
        fig.supxlabel(footer, x=0.005, ha="left", color="#6B6B6B", fontsize=7)
    return fig


def main() -> None:
    a = arguments()
    table = measured(a.quick, min(a.repeats, 3))
    passes = f"extraction, all sites and heads,\n{8 if a.quick else 48} responses of 128 tokens"
    work = dict.fromkeys(("layers", "heads"), passes)
    work |= {
        "responses": "extraction, all sites and heads,\n128 tokens each",
        "steerings in one batch": f"one prompt of 32 tokens,\n{NEW} new tokens a steering",
    }
    model = f"{LAYERS} layers, d {D_MODEL}, {DTYPE}"
    footer = f"Random Llama, {model} where not varied, batch {BATCH}. {RUN[:10]}.\n{told_machine(machine())}"
    rows = []
    for quantity, of in table.groupby("quantity", sort=False):
        for row in of.itertuples():
            rows.append(plain_row(f"{quantity}: {row.n}", round(row.median, 4), f"s [{row.low:.3f}, {row.high:.3f}]"))
        rows.append(plain_row(f"{quantity}: one more {UNITS[quantity]}", round(1000 * slope(of)[0], 3), "ms"))
    record("growth of cost", rows, setting=f"{model} where not varied, batch {BATCH}")
    fig = draw(table, footer, work)
    if not a.quick:
        for kind in ("svg", "png"):
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            fig.savefig(PAGE.with_name(f"cost_growth.{kind}"), dpi=120, facecolor="white", metadata=metadata)


if __name__ == "__main__":
    main()
