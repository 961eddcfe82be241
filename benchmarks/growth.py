"""How cost grows with layers, texts, rows and doses, in one figure: `python benchmarks/growth.py`.

Four sweeps over one quantity each, on the default model, all points of a sweep measured in turn; docs/cost_growth.svg
and .png show the median and the range of rounds, a straight line through the medians and its slope, the cost of one
more. Layers are those of models of the same shape and random weights. Minutes on two cores.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from _harness import (
    PAGE,
    RUN,
    arguments,
    directions,
    loaded,
    machine,
    measure,
    plain_row,
    questions,
    record,
    told_machine,
)
from extraction import answers
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM

import emolab
from emolab import Setting, Writing
from emolab.models.model import Model
from emolab.plot.style import GREY, INK, theme

NEW = 24
UNITS = {"layers": "layer", "texts": "text", "rows of a batch": "row", "doses": "dose"}


def shallower(model: Model, n: int) -> Model:
    """A model of the same shape with n layers, of random weights."""
    config = copy.deepcopy(model.hf.config)
    config.num_hidden_layers, config.layer_types = n, None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(config, dtype=model.dtype).eval()
    return emolab.load_model((hf, model.tokenizer))


def reading(model: Model, table: pd.DataFrame) -> Callable[[], object]:
    return lambda: emolab.response_means(model, table, batch_size=24)


def writing(model: Model, n: int, new: int) -> Callable[[], object]:
    asked, one = list(questions(n, model.name != "smollm2")["query"]), Writing(batch_size=n)
    return lambda: emolab.generate(model, asked, max_new_tokens=new, writing=one)


def sweeping(model: Model, n: int, new: int) -> Callable[[], object]:
    at = emolab.at(directions(model), Setting(site="attn", layers="late"), ["joy"])
    asked, alphas = questions(8, model.name != "smollm2"), tuple(0.2 * i for i in range(1, n + 1))
    return lambda: emolab.sweep(model, at, asked, alphas=alphas, controls=(), max_new_tokens=new)


def panels(quick: bool) -> dict[str, dict[int, Callable[[], object]]]:
    """{quantity: {its value: a case}}."""
    model, new = loaded("float32", quick), 4 if quick else NEW
    depths, texts = ((1, 2), (6, 12)) if quick else ((5, 10, 20, 30), (12, 24, 48, 96))
    rows, doses = ((1, 2), (1, 2)) if quick else ((1, 8, 16, 32, 64), (1, 2, 4, 8, 12))
    table = answers(model, max(texts))
    plain = pd.DataFrame(table.head(24))
    plain.attrs = {}  # whose answers they are plays no part here
    return {
        "layers": {n: reading(shallower(model, n), plain) for n in depths},
        "texts": {n: reading(model, table.head(n)) for n in texts},
        "rows of a batch": {n: writing(model, n, new) for n in rows},
        "doses": {n: sweeping(model, n, new) for n in doses},
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
            ax.set(xlabel=quantity, ylabel="seconds", title=title)
            ax.set_xlim(0, 1.05 * ends[1])
            ax.set_ylim(0, 1.15 * of["high"].max())
            place = {"transform": ax.transAxes, "ha": "right", "va": "bottom"}
            ax.text(0.98, 0.05, work[quantity], fontsize="small", color=INK, **place)
        axes[0, 0].legend(loc="upper left")
        fig.supxlabel(footer, x=0.005, ha="left", color="#6B6B6B", fontsize=7)
    return fig


def main() -> None:
    a = arguments()
    emolab.set_progress(False)
    table = measured(a.quick, min(a.repeats, 3))
    work = {
        "layers": "extraction, all sites and heads,\n24 answers, random weights",
        "texts": "extraction, all sites and heads,\nanswers of up to 40 tokens",
        "rows of a batch": f"writing, {NEW} tokens a row",
        "doses": f"a sweep, 8 questions a dose,\n{NEW} tokens each",
    }
    footer = f"SmolLM2 in float32. {RUN[:10]}.\n{told_machine(machine())}"
    rows = []
    for quantity, of in table.groupby("quantity", sort=False):
        for row in of.itertuples():
            rows.append(plain_row(f"{quantity}: {row.n}", round(row.median, 4), f"s [{row.low:.3f}, {row.high:.3f}]"))
        rows.append(plain_row(f"{quantity}: one more {UNITS[quantity]}", round(1000 * slope(of)[0], 3), "ms"))
        straight = np.polyval(slope(of), of["n"])
        off = float(np.abs(of["median"] - straight).max() / of["median"].max())
        rows.append(plain_row(f"{quantity}: farthest from the line", round(off, 3), "of the largest", ("<=", 0.1)))
    record("growth of cost", rows, setting="float32")
    fig = draw(table, footer, work)
    if not a.quick:
        for kind in ("svg", "png"):
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            fig.savefig(PAGE.with_name(f"cost_growth.{kind}"), dpi=120, facecolor="white", metadata=metadata)


if __name__ == "__main__":
    main()
