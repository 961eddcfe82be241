"""The panel kit of all figures: a grid of panels, lines with one band, intervals, heat maps, and what stands around.

A figure function takes a table, draws into `grid(...)` with the functions below, and returns `finish(...)`. Sizes are
in em, the size of the text, so that one function serves a notebook, a column of 3.3 inches and slides: as many panels
stand side by side as fit, and `page` wraps, turns or thins out what would run into something else.

>>> panels = grid(emotions, height=9)
>>> for emotion, ax in panels.columns():
...     line(ax, table[table["emotion"] == emotion], "layer", "cosine", looks[emotion], band=True)
>>> return finish(panels, table, function="my_curve", source=table, title="...")
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from emolab.base.errors import EmolabError, need_table
from emolab.base.tables import about, span
from emolab.plot.page import BAR, Around, dress
from emolab.plot.style import CONTROLS, INK, PALE, SITES, UNITS, look, rc_settings, theme

P = ParamSpec("P")
T = TypeVar("T")


def figure(function: Callable[P, T]) -> Callable[P, T]:
    """A figure function, drawn in the theme that holds when it is called."""

    @functools.wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        with theme():
            return function(*args, **kwargs)

    return drawn


class EmolabFigure(Figure):
    """A matplotlib Figure outside pyplot's registry (so nothing is shown twice) that a notebook can still display.

    emolab_data: DataFrame, the plotted numbers. emolab_info: dict with function, title, model, n, seed, params,
    control and interval.
    """

    emolab_data: pd.DataFrame
    emolab_info: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.look = rc_settings(look())

    def draw(self, renderer) -> None:
        with mpl.rc_context(self.look):  # as when room was made for the words, wherever it is drawn
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100, facecolor="white")
        return buffer.getvalue()


class Grid:
    """A figure and its panels, one per (row, column); columns that do not fit side by side go on in blocks below."""

    def __init__(self, fig: EmolabFigure, axes: Any, columns: list[str], rows: list[str], heights: list[float]):
        self.fig, self.names, self.rows = fig, columns, rows
        self.heights = heights  # of the panels of each row, in em
        self.beside = beside = axes.shape[1]
        self.axes: dict[tuple[str, str], Axes] = {
            (row, column): axes[j // beside * len(rows) + i, j % beside]
            for i, row in enumerate(rows)
            for j, column in enumerate(columns)
        }
        for ax in set(axes.flat) - set(self.axes.values()):
            ax.remove()

    def columns(self, row: str | None = None) -> Iterator[tuple[str, Axes]]:
        """(name, panel) of one row, by default the first."""
        for name in self.names:
            yield name, self.axes[self.rows[0] if row is None else row, name]

    def missing(self) -> float:
        """Pixels by which the page is too low for panels of the wanted heights."""
        stacked = [ax for (_, column), ax in self.axes.items() if self.names.index(column) % self.beside == 0]
        wanted = sum(self.heights) * len(stacked) / len(self.rows) * look().em * self.fig.dpi
        return wanted - sum(ax.get_window_extent().height for ax in stacked)

    def label(self, x: str | None = None, y: Mapping[str, str] | str | None = None) -> None:
        """Names of the axes, once: x under the lowest panel of each column, y beside the first panel of each row."""
        for (row, column), ax in self.axes.items():
            j = self.names.index(column)
            if x is not None and row == self.rows[-1] and j + self.beside >= len(self.names):
                ax.set_xlabel(x)
            if y is not None and j % self.beside == 0:
                ax.set_ylabel(y if isinstance(y, str) else y[row])
            if ax.get_shared_x_axes().joined(ax, next(iter(self.axes.values()))):
                ax.tick_params(labelbottom=row == self.rows[-1] and j + self.beside >= len(self.names))
            if j % self.beside and ax.get_shared_y_axes().joined(ax, self.axes[row, self.names[0]]):
                ax.tick_params(labelleft=False)


def grid(
    columns: Sequence[Any],
    rows: Sequence[Any] = ("",),
    *,
    height: float = 10,
    need: float = 12.3,
    want: float = 22,
    share: str = "xy",
    ratios: Sequence[float] | None = None,
) -> Grid:
    """A grid of panels, its columns titled.

    height: of a panel, in em. need, want: the least width of a panel and what it takes where there is room. share:
    "x" for one x axis, "y" for one y axis in each row, "Y" for one in all panels. ratios: heights of the rows.
    """
    now = look()
    columns, rows = [str(c) for c in columns], [str(r) for r in rows]
    room = now.width / now.em
    beside = max(1, min(len(columns), int(room // need)))
    blocks = math.ceil(len(columns) / beside)
    beside = math.ceil(len(columns) / blocks)  # blocks as equal as can be
    width = min(room, max(33, beside * want))
    heights = [height * r for r in (ratios or [1] * len(rows))]
    total = blocks * (
        sum(heights) + 9 * len(rows)
    )  # more than titles and names take: the page shrinks to what it needs
    fig = EmolabFigure(figsize=(width * now.em, total * now.em), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(blocks * len(rows), beside, squeeze=False, height_ratios=heights * blocks)
    made = Grid(fig, axes, columns, rows, heights)
    first = made.axes[rows[0], columns[0]]
    for (row, _), ax in made.axes.items():
        if "x" in share and ax is not first:
            ax.sharex(first)
        lead = first if "Y" in share else made.axes[row, columns[0]]
        if "y" in share.lower() and ax is not lead:
            ax.sharey(lead)
    if any(columns):
        for name, ax in made.columns():
            ax.set_title(name)
    return made


def pieces(x: Sequence[float], tested: Iterable[float]) -> np.ndarray:
    """The number of the piece that each x lies on: a line ends where it would cross a dose that it was not tested at.

    >>> pieces([0, 0.5, 1.5, 4], tested=[0, 0.5, 1, 1.5, 2, 4])      # 1 lies between, and nothing near 1.5 to 4
    array([0, 0, 1, 2])

    Also where it would cross more than twice the usual distance of tested ones.
    """
    places, steps = np.unique(np.asarray(list(tested), dtype=float)), np.diff(np.asarray(x, dtype=float))
    if not len(steps):
        return np.zeros(len(x), dtype=int)
    skipped = np.diff(np.searchsorted(places, x)) > 1
    return np.concatenate([[0], np.cumsum(skipped | (steps > 2.001 * np.median(np.diff(places))))])


def line(
    ax: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    settings: Mapping[str, Any],
    *,
    tested: Iterable[float] | None = None,
    bounds: str = "",
) -> None:
    """One curve, broken where nothing was tested. bounds: "band", "bars" or "whiskers" draw its columns lo and hi.

    A panel holds one band at most, and bars of one series: what is laid over each other cannot be told apart.
    """
    rows = rows.dropna(subset=[y]).sort_values(x)
    if rows.empty:
        return
    part = pieces(rows[x].to_numpy(), rows[x] if tested is None else tested)
    names = ax.get_xlabel(), ax.get_ylabel()  # which seaborn replaces
    kept = {key: value for key, value in settings.items() if key not in ("marker", "label", "linestyle")}
    kept.setdefault("markersize", (0.45 if len(rows) <= 15 else 0.3) * look().size)
    sns.lineplot(
        rows.assign(piece=part), x=x, y=y, units="piece", estimator=None, errorbar=None, legend=False, ax=ax,
        marker=settings.get("marker"), linestyle=settings.get("linestyle", "-"),
        **{"markeredgecolor": settings.get("color"), "zorder": 3, **kept},
    )  # fmt: skip
    ax.set(xlabel=names[0], ylabel=names[1])
    if settings.get("label"):
        ax.lines[-1].set_label(settings["label"])
    if bounds == "band":
        for _, piece in rows.groupby(part):
            ax.fill_between(piece[x], piece["lo"], piece["hi"], color=settings["color"], alpha=0.22, linewidth=0)
    if bounds == "bars":
        bars(ax, rows[x], rows["lo"], rows["hi"], settings["color"])
    if bounds == "whiskers":
        ax.vlines(rows[x], rows["lo"], rows["hi"], color=settings["color"], linewidth=0.09 * look().size, zorder=2.2)


def bars(ax: Axes, at, lo, hi, color: str, *, across: bool = False, width: float = 0.5) -> None:
    """Intervals as pale bars thicker than a marker, so that a short one is seen behind it, too. across: sideways."""
    draw = ax.hlines if across else ax.vlines
    draw(at, lo, hi, color=color, linewidth=width * look().size, alpha=0.38, zorder=2)


def forest(ax: Axes, rows: pd.DataFrame, places: Sequence[float], settings: Mapping[str, Any], *, filled=None) -> None:
    """A marker per row at its value, on the pale bar of its interval lo to hi. filled: hollow where False."""
    bars(ax, list(places), rows["lo"], rows["hi"], settings["color"], across=True)
    filled = [True] * len(rows) if filled is None else list(filled)
    for value, place, full in zip(rows["value"], places, filled, strict=True):
        face = settings["color"] if full else "white"
        edge = INK if full else settings["color"]
        ax.plot(
            [value], [place], linestyle="none", marker=settings["marker"], markersize=0.5 * look().size, zorder=4,
            markerfacecolor=face, markeredgecolor=edge, markeredgewidth=0.5 if full else 1.2,
            color=settings["color"], label=settings.get("label"),
        )  # fmt: skip


def named_rows(ax: Axes, names: Sequence[str]) -> None:
    """Names along the y axis, the first above."""
    ax.set_yticks(range(len(names)), list(names))
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def heat(
    ax: Axes,
    matrix: pd.DataFrame,
    limits: tuple[float, float],
    *,
    cmap: str = "cividis",
    numbers: str = "",
    up: bool = False,
) -> None:
    """A heat map, its names from the matrix. numbers: a format such as ".2f", printed where it fits into the cells.

    up: the first row is the lowest, as layers are drawn. Cells without a value are grey.
    """
    values = matrix.astype(float)
    ax.set_facecolor(PALE)
    sns.heatmap(
        values, ax=ax, vmin=limits[0], vmax=limits[1], cmap=cmap, cbar=False, annot=bool(numbers), fmt=numbers or ".2f",
        annot_kws={"fontsize": look().small}, xticklabels=False, yticklabels=False, rasterized=values.size > 4000,
    )  # fmt: skip
    ax.set(xlabel="", ylabel="")
    for axis, names in ((ax.xaxis, values.columns), (ax.yaxis, values.index)):
        axis.set_ticks(np.arange(len(names)) + 0.5, [f"{name}" for name in names])
        axis.set_tick_params(length=0)
        if all(isinstance(name, int | np.integer) for name in names):  # layers or heads: some numbers are enough
            step = max(1, math.ceil(len(names) / 7))
            axis.set_ticks(np.arange(0, len(names), step) + 0.5, [f"{name}" for name in names[::step]])
    ax.tick_params(axis="y", rotation=0)
    if up:
        ax.set_ylim(0, len(values))
    ax.grid(False)
    ax.spines[:].set_visible(False)


def heat_room(columns: Sequence[str], rows: Sequence[str]) -> float:
    """The least width of a heat map in em: names that stand upright below it, and lie beside it."""
    return max(14.0, 1.5 * len(columns) + 0.62 * max(len(line) for name in rows for line in name.split("\n")))


def color_bar(
    fig: Figure,
    label: str,
    limits: tuple[float, float] = (0, 1),
    *,
    cmap: str = "cividis",
    null: float | None = None,
    under: Axes | None = None,
) -> None:
    """One colour bar under all panels, or under one. null: what says nothing, marked on the bar."""
    colors = ScalarMappable(Normalize(*limits), cmap)
    label = label if null is None else f"{label} (line: null {null:.2f})"
    if under is None:
        own = fig.add_axes((0.2, 0, 0.6, 0.1), label=BAR)  # the page finds its place
        bar = fig.colorbar(colors, cax=own, orientation="horizontal", label=label, ticks=MaxNLocator(4))
    else:
        bar = fig.colorbar(colors, ax=under, location="bottom", aspect=30, label=label, ticks=MaxNLocator(3))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    if null is not None:
        bar.ax.axvline(null, color=INK, linewidth=1.4)


def layer_axis(ax: Axes, n_layers: int) -> None:
    """Whole-numbered layers from left to right, counted from 0."""
    ax.set_xlim(-0.5, n_layers - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def log_axis(ax: Axes, axis: str = "y", ticks: Sequence[float] | None = None) -> None:
    """A logarithmic axis with plain numbers on it: 1, 2, 5 over up to three decades, powers of ten over more."""
    (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
    low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
    subs = (1, 2, 5) if high / low < 1e3 else (1,)
    on = ax.xaxis if axis == "x" else ax.yaxis
    on.set_major_locator(LogLocator(subs=subs, numticks=8) if ticks is None else FixedLocator(list(ticks)))
    on.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    on.set_minor_locator(NullLocator())


def control_look(name: str, **changes: Any) -> dict[str, Any]:
    """The one look of a control, thinner than what it is a control of."""
    return {"linewidth": 0.1 * look().size, "zorder": 2.5, **CONTROLS[name], **changes}


def level(ax: Axes, value: float, name: str) -> None:
    """A level line of a control that has no dose, such as unsteered text."""
    own = CONTROLS[name]
    ax.axhline(value, color=own["color"], linestyle=own["linestyle"], linewidth=0.1 * look().size, label=own["label"])


def key(label: str, *, marker: str = "o", color: str = INK, linestyle: Any = "-", face: str | None = None) -> Line2D:
    """An entry of the legend that no single line stands for."""
    return Line2D([], [], label=label, color=color, marker=marker, linestyle=linestyle, markerfacecolor=face or color)


def control_key(name: str, marker: str | None = None) -> Line2D:
    """The entry of a control in the legend."""
    own = CONTROLS[name]
    shape = own["marker"] if marker is None else marker
    return key(own["label"], marker=shape, color=own["color"], linestyle=own["linestyle"])


def tables_of(tables: Any, columns: Sequence[str], source: str) -> dict[str, pd.DataFrame]:
    """{panel title: table}, whether one table or several were given; EmolabError where one is not of `source`."""
    named: dict[str, Any] = tables if isinstance(tables, dict) and tables else {"": tables}
    for table in named.values():
        need_table(table, columns, source)
        if "head" in table and table["head"].notna().any():
            raise EmolabError("this table has one row per head; a curve over layers needs a site such as resid or attn")
    return named


def joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All panels' numbers in one table, with what the first one says of its origin."""
    found = pd.concat([t.assign(panel=title) if title else t for title, t in tables.items()], ignore_index=True)
    found.attrs = dict(next(iter(tables.values())).attrs)
    return found


def provenance(info: Mapping[str, Any]) -> str:
    """One line: model, site and layers, dose, n, seed, control and kind of interval, as far as they are known."""
    model, params, n = info.get("model") or {}, info.get("params") or {}, info.get("n")
    if isinstance(n, Mapping):  # answers per condition: one number where all agree
        counts = sorted(set(n.values()))
        n = (f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}") + " answers per condition"
    parts = [f"model {model['name']}" if model.get("name") else ""]
    site, layers = params.get("site"), params.get("layers", params.get("layer"))
    parts.append(SITES.get(site, f"site {site}") if isinstance(site, str) else "")
    if isinstance(layers, str | list | tuple | int):
        told = f"{layers}" if isinstance(layers, int) else span(layers)
        one = isinstance(layers, int) or (isinstance(layers, list | tuple) and len(layers) == 1)
        parts.append("all layers" if told == "all" else f"{'layer' if one else 'layers'} {told}")
    if params.get("part") in ("specific", "shared"):
        parts.append(f"{params['part']} part")
    alpha = params.get("alpha")
    parts.append(f"dose {float(alpha):g}" if isinstance(alpha, int | float | str) else "")
    parts.append(f"dose: {UNITS[params['unit']]}" if params.get("unit") in UNITS else "")
    parts.append("" if n is None else f"n = {n}")
    parts.append("" if info.get("seed") is None else f"seed {info['seed']}")
    parts.append(f"control: {info['control']}" if info.get("control") else "")
    parts.append(f"{info['interval']}" if info.get("interval") else "")
    return " · ".join(part for part in parts if part)


def finish(
    panels: Grid,
    data: pd.DataFrame,
    *,
    source: Any,
    function: str,
    title: str,
    legend: Sequence[Any] | None = None,
    said: Mapping[str, Any] | None = None,
) -> EmolabFigure:
    """Attach numbers and origin, set title, legend and footer around the panels, and keep words off each other.

    source: the table or vectors that say who made them. legend: handles; default all labels of the panels, each once.
    said: control, interval, note (a line under the title) and params beyond those of the source.
    """
    fig, said = panels.fig, dict(said or {})
    note = said.pop("note", "")
    origin = about(source)
    params = {**origin["params"], **said.pop("params", {})}
    fig.emolab_data = data.reset_index(drop=True)
    fig.emolab_info = {"function": function, "title": title, **origin, "params": params, **said}
    if look().panel_letters:
        for letter, ax in zip("abcdefghijklmnopqrstuvwxyz", panels.axes.values(), strict=False):
            ax.set_title(f"{letter} {ax.get_title(loc='left')}".rstrip())
    handles: dict[str, Any] = {}  # one per label of all panels, in the order in which they were drawn
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    footer = provenance(fig.emolab_info) if look().footer else ""
    words = Around(title, note, footer, list(handles.values()) if legend is None else legend)
    dress(fig, words, panels.missing)
    return fig
