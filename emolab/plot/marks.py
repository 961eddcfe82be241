"""What is drawn into a panel: lines, bars, intervals, heat maps, axes of layers, and the keys of a legend.

>>> line(ax, table[table["emotion"] == "joy"], "layer", "cosine", looks["joy"], bounds="bars")
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from emolab.plot.page import BAR
from emolab.plot.style import CONTROLS, INK, PALE, look

_LONGEST = 24  # characters of a name along an axis


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


def dose_curves(
    ax: Axes,
    rows: pd.DataFrame,
    vector: Mapping[str, Any],
    *,
    tested: Iterable[float],
    controls: Sequence[str] = ("random", "shuffled", "other"),
) -> None:
    """Values by dose: the vector's on bars, below them its controls', which start where text is unsteered."""
    steered = rows[rows["control"] == "none"]
    for name in controls:
        own = rows[rows["control"] == name]
        if len(own):
            own = pd.concat([steered[steered["alpha"] == 0], own]).drop_duplicates("alpha")
            line(ax, own, "alpha", "value", control_look(name), tested=tested, bounds="whiskers")
    line(ax, steered, "alpha", "value", vector, tested=tested, bounds="bars")


def bars(ax: Axes, at, lo, hi, color: str, *, across: bool = False, width: float = 0.5) -> None:
    """Intervals as pale bars thicker than a marker, so that a short one is seen behind it, too. across: sideways."""
    draw = ax.hlines if across else ax.vlines
    draw(at, lo, hi, color=color, linewidth=width * look().size, alpha=0.38, zorder=2)


def forest(ax: Axes, rows: pd.DataFrame, places: Iterable[float], settings: Mapping[str, Any], *, filled=None) -> None:
    """A marker per row at its value, on the pale bar of its interval lo to hi. filled: hollow where False."""
    places = list(places)
    bars(ax, places, rows["lo"], rows["hi"], settings["color"], across=True)
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
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def signed_scale(values: pd.Series | pd.DataFrame) -> tuple[tuple[float, float], str]:
    """Colours of cosines: their limits, as far from zero as values reach (1 where there are none), and their map."""
    sizes = np.abs(values.to_numpy(dtype=float))
    reach = max(0.05, float(np.nanmax(sizes))) if np.isfinite(sizes).any() else 1.0
    return (-reach, reach), "RdBu_r"


def heat(
    ax: Axes,
    matrix: pd.DataFrame,
    limits: tuple[float, float] = (0, 1),
    cmap: str = "cividis",
    *,
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
        axis.set_ticks(np.arange(len(names)) + 0.5, short(map(str, names)))
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
    return max(14.0, 1.5 * len(columns) + 0.62 * max(len(line) for name in short(rows) for line in name.split("\n")))


def short(names: Iterable[str]) -> list[str]:
    """Names for an axis: the end of a long one is cut, and a number tells apart what then agrees.

    >>> short(["joy", "calm " * 20, "calm " * 21])
    ['joy', 'calm calm calm calm cal…', 'calm calm calm calm… (2)']
    """
    shortened, cut = [], Counter()
    for name in names:
        parts = [" ".join(part.split()) for part in re.split(r"\n(?=\+ )", name)]  # a line per part of a mixture
        lines = [line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…" for line in parts]
        text = "\n".join(lines)
        cut[text] += text.endswith("…")
        shortened.append(text if cut[text] < 2 else f"{text[:-5]}… ({cut[text]})")
    return shortened


def color_bar(
    fig: Figure,
    label: str,
    limits: tuple[float, float] = (0, 1),
    cmap: str = "cividis",
    *,
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


def layer_axis(ax: Axes, table: pd.DataFrame) -> None:
    """The layers of a table from left to right, in whole numbers counted from 0."""
    ax.set_xlim(-0.5, int(table["layer"].max()) + 0.5)
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
    settings = CONTROLS[name]
    ax.axhline(value, **{key: settings[key] for key in ("color", "linestyle", "label")}, linewidth=0.1 * look().size)


def key(label: str, *, marker: str = "o", color: str = INK, linestyle: Any = "-", face: str | None = None) -> Line2D:
    """An entry of the legend that no single line stands for."""
    return Line2D([], [], label=label, color=color, marker=marker, linestyle=linestyle, markerfacecolor=face or color)


def control_key(name: str, *, marker: str | None = None, label: str | None = None) -> Line2D:
    """The entry of a control in the legend; marker "" where it is drawn as a line alone."""
    own = {**CONTROLS[name], **({} if marker is None else {"marker": marker})}
    return key(label or own["label"], marker=own["marker"], color=own["color"], linestyle=own["linestyle"])


def dose_keys(table: pd.DataFrame) -> list[Line2D]:
    """The legend of curves by dose: the vector, and the controls that the table holds; the instruction has no dose."""
    held = set(table["control"])
    keys = [key("emotion vector"), *(control_key(c) for c in ("random", "shuffled", "other", "shared") if c in held)]
    return keys + [control_key("prompt", marker="")] * ("prompt" in held)


def filled_keys(filled: str, hollow: str) -> list[Line2D]:
    """What filled and hollow markers of a forest say."""
    return [key(filled, linestyle=""), key(hollow, linestyle="", face="white")]


def names_beside(ax: Axes, x: Sequence[float], y: Sequence[float], names: Sequence[str]) -> None:
    """A name beside each point, none over another or over a point, with a line where it had to go further away.

    Of a finished figure: what is free depends on how large the panel came out.
    """
    fig, size = ax.figure, look().small
    renderer = fig.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]
    points = ax.transData.transform(np.column_stack([x, y]))
    texts = [ax.annotate(name, (a, b), fontsize=size, zorder=4) for name, a, b in zip(names, x, y, strict=True)]
    extents = [text.get_window_extent(renderer) for text in texts]
    sizes = np.array([(box.width, box.height) for box in extents])
    pixel = fig.dpi / 72
    dots = np.column_stack([points - 3 * pixel, points + 3 * pixel])
    inside = ax.get_window_extent(renderer)
    away = points - points.mean(0)
    taken = np.empty((0, 4))
    for i in np.argsort(-np.hypot(*away.T)):  # from the outside in: these have room
        outward = math.atan2(away[i, 1], away[i, 0])
        best: tuple[float, float, np.ndarray] | None = None
        for reach in np.array([0.35, 0.8, 1.4, 2.1, 3.0, 4.2, 5.6, 7.5, 10.0, 14.0]) * size * pixel:
            for turn in sorted(np.arange(-8, 8), key=abs):
                direction = np.array([math.cos(outward + turn * math.pi / 8), math.sin(outward + turn * math.pi / 8)])
                centre = points[i] + direction * (reach + 3 * pixel + sizes[i] / 2)
                box = np.concatenate([centre - sizes[i] / 2, centre + sizes[i] / 2])
                lost = _overlap(box, taken) + _overlap(box, dots)
                beyond = max(inside.x0 - box[0], inside.y0 - box[1], box[2] - inside.x1, box[3] - inside.y1, 0)
                cost = lost + 1e6 * (beyond > 0)
                if best is None or cost < best[0]:
                    best = (cost, reach, centre)
            if best is not None and best[0] == 0:
                break
        assert best is not None
        _, reach, centre = best
        taken = np.vstack([taken, np.concatenate([centre - sizes[i] / 2 - pixel, centre + sizes[i] / 2 + pixel])])
        texts[i].remove()
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
        ax.annotate(
            str(names[i]), (x[i], y[i]), tuple((centre - points[i]) / pixel), textcoords="offset points", ha="center",
            va="center", fontsize=size, zorder=4,
            arrowprops=line if reach > 0.8 * size * pixel else None,
        ).set_in_layout(False)  # fmt: skip


def _overlap(box: np.ndarray, others: np.ndarray) -> float:
    """The area that a box (left, bottom, right, top) shares with others."""
    wide = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    high = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return float((wide.clip(min=0) * high.clip(min=0)).sum())
