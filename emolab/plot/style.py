"""How figures look: three sizes of one theme, one colour and marker for each emotion, a footer with the provenance."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from emolab.base.errors import EmolabError
from emolab.base.labels import styles

# name -> (width of a full-width figure in inches, font size in points). Print: two columns of a journal, 8 pt.
STYLES = {"notebook": (9.6, 10.0), "print": (7.0, 8.0), "slides": (13.0, 15.0)}
PER_ROW = 6  # panels side by side that are still wide enough to read
GREY = "#8A8A8A"
INK = "#333333"
_current: ContextVar[str] = ContextVar("emolab_style", default="notebook")

# Equal bytes on every machine: the font that ships with matplotlib, a fixed salt for the SVG's ids, text kept as text.
FIXED: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "emolab",
    "svg.fonttype": "none",
    "axes.unicode_minus": True,
    "text.parse_math": False,  # a label may hold a dollar sign
}


@contextmanager
def theme(style: str | None = None) -> Iterator[None]:
    """Draw the figures made inside in one of three sizes: "notebook" (the default), "print" or "slides".

    >>> with theme("print"):
    ...     fig = plot.norms(vectors)

    matplotlib's settings are as before on leaving. Raises EmolabError for a style that does not exist.
    """
    style = style or _current.get()
    if style not in STYLES:
        raise EmolabError(f"unknown style {style!r}; there are {', '.join(STYLES)}")
    token = _current.set(style)
    size = STYLES[style][1]
    rc = sns.axes_style("whitegrid") | {
        "font.size": size,
        "axes.titlesize": size,
        "axes.labelsize": size,
        "xtick.labelsize": 0.9 * size,
        "ytick.labelsize": 0.9 * size,
        "legend.fontsize": 0.9 * size,
        "figure.titlesize": 1.1 * size,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.linewidth": 0.06 * size,
        "grid.color": "#E3E3E3",
        "axes.edgecolor": INK,
        "lines.linewidth": 0.16 * size,
        "lines.markersize": 0.5 * size,
        "legend.frameon": False,
        "image.cmap": "cividis",
    }
    try:
        settings: dict[Any, Any] = {**rc, **FIXED}
        with mpl.rc_context(settings):
            yield
    finally:
        _current.reset(token)


class EmolabFigure(Figure):
    """A matplotlib Figure outside pyplot's registry (so nothing is shown twice) that a notebook can still display.

    emolab_data: DataFrame, the plotted numbers. emolab_info: dict with function, model, n, seed, params.
    """

    emolab_data: pd.DataFrame
    emolab_info: dict[str, Any]

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100, facecolor="white")
        return buffer.getvalue()


def new_figure(rows: int, columns: int, *, width: float, height: float, grid: Mapping[str, Any] | None = None):
    """Figure and array of axes. width: share of the full width; height in inches at the notebook's size."""
    full, _ = STYLES[_current.get()]
    scale = full / STYLES["notebook"][0]
    fig = EmolabFigure(figsize=(full * width, height * scale), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(rows, columns, squeeze=False, **(grid or {}))
    return fig, axes


def emotion_grid(n_rows: int, n: int, *, least: float, base: float, each: float, sharex: str):
    """Figure, axes[row, emotion], and how many emotions stand side by side: at most six, then they go on below.

    least: width of a figure of few emotions; base and each: height of titles and legend, and of each row. Rows share
    their y axis over all blocks; sharex as in `plt.subplots`, "all" or "row".
    """
    blocks = -(-n // PER_ROW)
    columns = -(-n // blocks)
    width, height = min(1.0, max(least, columns / 5)), base + blocks * each * n_rows + 0.4 * (blocks - 1)
    grid = {"sharex": sharex, "sharey": "row"} if blocks == 1 else {}
    fig, axes = new_figure(blocks * n_rows, columns, width=width, height=height, grid=grid)
    for (row, column), ax in np.ndenumerate(axes) if blocks > 1 else ():
        first, lowest = axes[row % n_rows, 0], (row + 1) % n_rows == 0
        if ax is not first:
            ax.sharey(first)
        if sharex == "row" and ax is not first or sharex == "all" and ax is not axes[0, 0]:
            ax.sharex(first if sharex == "row" else axes[0, 0])
        ax.tick_params(labelleft=column == 0, labelbottom=lowest or sharex == "row")
    axes = axes.reshape(blocks, n_rows, columns).transpose(1, 0, 2).reshape(n_rows, -1)
    for ax in axes[:, n:].flat:
        ax.remove()
    return fig, axes[:, :n], columns


def panel_title(ax: Axes, label: str, side_by_side: int) -> None:
    """The name of an emotion, or of a mixture, over a panel; smaller where it would run into the next one."""
    long = max(map(len, label.split(" + "))) > (18 if side_by_side < 6 else 13)
    ax.set_title(label.replace(" + ", "\n+ "), color=INK, fontsize="small" if long else None)


def describe(model: object) -> dict[str, str | None] | None:
    """name, revision and fingerprint of a model: a name, an emolab Model, a mapping (vectors.meta), or None."""
    if model is None:
        return None
    if isinstance(model, str):
        return {"name": model, "revision": None, "fingerprint": None}
    get = model.get if isinstance(model, Mapping) else lambda key: None if key == "model" else getattr(model, key, None)
    found = {"name": get("name") or get("model"), "revision": get("revision"), "fingerprint": get("fingerprint")}
    return {key: None if value is None else str(value) for key, value in found.items()}


def finish(fig: EmolabFigure, data: pd.DataFrame, *, function: str, model: Any, n: Any, seed: int | None, params: dict):
    """Attach the numbers and where they come from, and print the latter in a small footer."""
    fig.emolab_data = data.reset_index(drop=True)
    fig.emolab_info = {"function": function, "model": describe(model), "n": n, "seed": seed, "params": params}
    fig.supxlabel(
        provenance(fig.emolab_info), x=0.005, ha="left", color="#6B6B6B", fontsize=0.75 * STYLES[_current.get()][1]
    )
    return fig


def provenance(info: Mapping[str, Any]) -> str:
    """One line: model, n, seed, as far as they are known."""
    model, n, seed = info.get("model"), info.get("n"), info.get("seed")
    if isinstance(n, Mapping):  # answers per condition: one number where all agree
        counts = sorted(set(n.values()))
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        n += " answers per condition"
    parts = [f"model {model['name']}" if model and model.get("name") else "", "" if n is None else f"n = {n}"]
    return " · ".join([p for p in parts if p] + ([] if seed is None else [f"seed {seed}"]))


def emotion_kwargs(labels) -> dict[str, dict[str, Any]]:
    """Line settings of each label; a thin dark outline keeps the light colours readable on white."""
    return {
        label: {"color": color, "marker": marker, "markeredgecolor": INK, "markeredgewidth": 0.4}
        for label, (color, marker) in styles(labels).items()
    }


def top_legend(fig: EmolabFigure, handles, labels, columns: int, **look: Any):
    """A legend above, in so many columns, or in as many as fit into the figure's width."""
    handles, labels = list(handles), list(labels)
    while True:
        legend = fig.legend(handles, labels, loc="outside upper center", ncols=columns, **look)
        if columns == 1 or legend.get_window_extent().width <= fig.bbox.width:
            return legend
        legend.remove()
        columns -= 1


def side_legend(fig: EmolabFigure, handles, labels) -> None:
    """A legend on the right, in as many columns as it takes to be no higher than the figure."""
    lines = sum(1 + label.count("\n") for label in labels)
    fit = max(1, int(fig.get_figheight() * 72 / (1.6 * STYLES[_current.get()][1])))
    fig.legend(handles, labels, loc="outside right center", ncols=-(-lines // fit))


def name_ticks(ax: Axes, rows, columns, *, rotation: float) -> None:
    """Names along both axes of a heat map; upright and smaller where there are more than twelve."""
    many = len(columns) > 12
    slanted = {"rotation": rotation, "ha": "right", "rotation_mode": "anchor"}
    turn: dict[str, Any] = {"rotation": 90} if many else slanted
    size: dict[str, Any] = {"fontsize": "x-small"} if many or len(rows) > 12 else {}
    ax.set_xticks(range(len(columns)), columns, **turn, **size)
    ax.set_yticks(range(len(rows)), rows, **size)


def layer_axis(ax: Axes, n_layers: int) -> None:
    """Whole-numbered layers, counted from 0."""
    ax.set_xlabel("layer")
    ax.set_xlim(-0.3, n_layers - 0.7)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def log_axis(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers on it: 1, 2, 5 over up to three decades, powers of ten over more."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    subs = (1, 2, 5) if high / low < 1e3 else (1,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def text_on(ax: Axes, matrix, *, dark: tuple[float, float], fmt: str) -> None:
    """Print the values of a heat map; white where the value lies outside `dark` (low, high), else ink.

    More than nine columns are left without numbers, which would run into each other.
    """
    if matrix.shape[1] > 9:
        return
    for (row, column), value in _entries(matrix):
        color = INK if dark[0] <= value <= dark[1] else "white"
        ax.text(column, row, fmt.format(value), ha="center", va="center", color=color, fontsize="small")


def _entries(matrix):
    for row in range(matrix.shape[0]):
        for column in range(matrix.shape[1]):
            yield (row, column), float(matrix[row, column])
