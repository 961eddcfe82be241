"""Figures of affect: the circumplex of many emotions, how well ratings are read off by layer, what axes do to texts.

>>> fig = emolab.plot.circumplex(emolab.geometry.affect_points(means, layer=18))  # doctest: +SKIP
"""

from __future__ import annotations

import warnings

import pandas as pd
from matplotlib.colors import Normalize

from emolab.base.errors import need_table
from emolab.plot.marks import color_bar, control_key, control_look, key, layer_axis, line, names_beside
from emolab.plot.panels import figure, finish, grid
from emolab.plot.style import INK, look

# One look per axis and per way of reading it.
AXES = {"valence": ("#0072B2", "o"), "arousal": ("#D55E00", "s"), "dominance": ("#009E73", "^")}
_METHODS = {
    "ridge": ("#0072B2", "o", "-", "read off by regression, other words"),
    "ridge, other frames": ("#56B4E9", "D", "-", "the same, other frames as well"),
    "component": ("#D55E00", "^", "-", "best of the first three components"),
}


@figure
def circumplex(points: pd.DataFrame, *, title: str | None = None):
    """Every label where the other labels say that it lies: valence from left to right, arousal from below.

    >>> fig = circumplex(geometry.affect_points(means, layer=18))  # doctest: +SKIP

    Places are ratings read off the vectors by a regression that was fitted on other labels, on the scale of the human
    ratings; colours are the human valence. Lines lead from a name to its point where they are apart.
    """
    need_table(points, ("label", "valence", "read_valence", "read_arousal"), "geometry.affect_points")
    panels = grid([""], height=40, want=66)
    ax = panels.axes["", ""]
    limits = (1.0, 9.0)
    ax.scatter(
        points["read_valence"], points["read_arousal"], c=points["valence"], cmap="RdYlBu", norm=Normalize(*limits),
        s=3.2 * look().size, edgecolors=INK, linewidths=0.4, zorder=3,
    )  # fmt: skip
    for draw, name in ((ax.axvline, "read_valence"), (ax.axhline, "read_arousal")):
        draw(points[name].mean(), color=INK, linewidth=0.6, zorder=1)
    ax.margins(0.08)
    ax.set(xlabel="valence, read off the vector", ylabel="arousal, read off the vector")
    color_bar(panels.fig, "valence, as people rate the word (1 to 9)", limits, cmap="RdYlBu")
    r, null = points.attrs["r"], points.attrs["null_hi"]
    told = " and ".join(f"{name} {r[name]:.2f}" for name in ("valence", "arousal") if name in r)
    told = f"{len(points)} emotion words lie where people put them: r with their ratings {told}"
    said = {
        "control": f"ratings permuted: r up to {max(null.values()):.2f}",
        "note": "Each word is placed by the vectors of other words; lines cross at the mean",
    }
    fig = finish(panels, points, source=points, function="circumplex", legend=[], said=said, title=title or told)
    with warnings.catch_warnings(action="ignore"):  # of letters that no font has, which drawing tells once
        names_beside(ax, *(points[column].tolist() for column in ("read_valence", "read_arousal", "label")))
    return fig


@figure
def affect_curve(table: pd.DataFrame, *, title: str | None = None):
    """How well ratings are read off vectors, layer by layer, one panel per rating, with permuted ratings beside.

    >>> fig = affect_curve(geometry.affect_fit(means, geometry.word_embeddings(model, labels)))  # doctest: +SKIP

    The band is the 95 % interval over labels. Dashed, in the colour of the method: the 95th percentile with permuted
    ratings. Dotted: what the input embeddings of the words give, before any layer.
    """
    need_table(table, ("layer", "dimension", "method", "r", "lo", "hi", "null_hi"), "geometry.affect_fit")
    dimensions = list(dict.fromkeys(table["dimension"]))
    panels = grid(dimensions, height=17, need=17, want=30, share="xy")
    for dimension, ax in panels.columns():
        for method, (color, marker, style, label) in _METHODS.items():
            rows = table[(table["dimension"] == dimension) & (table["method"] == method)]
            line(
                ax, rows, "layer", "null_hi", control_look("shuffled", marker=None, color=color, label=None, alpha=0.6)
            )
            settings = {"color": color, "marker": marker, "linestyle": style, "label": label}
            line(ax, rows, "layer", "r", settings, bounds="band" if method == "ridge" else "")
        words = table[(table["dimension"] == dimension) & (table["method"] == "word embedding")]
        for r in words["r"]:
            ax.axhline(r, color=INK, linestyle=":", linewidth=0.1 * look().size)
        layer_axis(ax, int(table["layer"].max()) + 1)
        ax.set_ylim(top=1)
    panels.label("layer", "r with people's ratings")
    best = table[table["method"] == "ridge"]
    best = best.loc[best.groupby("dimension", sort=False)["r"].idxmax()]
    parts = [f"{d} {r:.2f} (layer {layer})" for d, r, layer in best[["dimension", "r", "layer"]].to_numpy()]
    told = f"People's ratings are read off the vectors of other words: {', '.join(parts)}"
    handles = [*panels.axes["", panels.names[0]].get_legend_handles_labels()[0]]
    if (table["method"] == "word embedding").any():
        handles.append(key("input embedding of the word", marker="", linestyle=":"))
    handles.append(control_key("shuffled", marker=""))
    handles[-1].set_label("ratings permuted, 95th percentile")
    said = {"control": "ratings permuted", "interval": "95 % intervals over labels"}
    return finish(panels, table, source=table, function="affect_curve", legend=handles, said=said, title=title or told)


@figure
def affect_shift(shifts: pd.DataFrame, *, title: str | None = None):
    """What steering along each axis changes in the texts, by dose: valence, arousal and the topic kept.

    >>> fig = affect_shift(experiments.affect_shifts(scored))  # doctest: +SKIP

    One panel per axis and measure; bars are 95 % intervals over queries, grey are random directions of equal norm.
    """
    need_table(shifts, ("emotion", "control", "alpha", "measure", "shift", "lo", "hi"), "experiments.affect_shifts")
    axes, measures = list(dict.fromkeys(shifts["emotion"])), list(dict.fromkeys(shifts["measure"]))
    panels = grid(measures, [f"steered along {axis}" for axis in axes], height=12, need=14, want=24, share="xy")
    for row, axis in zip(panels.rows, axes, strict=True):
        for measure, ax in panels.columns(row):
            rows = shifts[(shifts["emotion"] == axis) & (shifts["measure"] == measure)]
            random = rows[rows["control"] == "random"]
            line(ax, random, "alpha", "shift", control_look("random"), bounds="whiskers")
            color, marker = AXES.get(axis, (INK, "o"))
            settings = {"color": color, "marker": marker, "label": axis}
            line(ax, rows[rows["control"] == "none"], "alpha", "shift", settings, bounds="bars")
            ax.axhline(0, color=INK, linewidth=0.6)
    panels.label("dose", {row: f"{row}: shift" for row in panels.rows})
    told = []
    for axis in axes:
        own = shifts[(shifts["emotion"] == axis) & (shifts["measure"] == axis) & (shifts["control"] == "none")]
        if len(own):
            ends = own.set_index("alpha")["shift"].sort_index().iloc[[0, -1]]
            told.append(f"{axis} {ends.iloc[0]:+.2f} to {ends.iloc[-1]:+.2f}")
    said = {"control": "random directions of equal norm", "interval": "95 % intervals over queries"}
    title = title or f"Steering along an axis moves the texts' {', '.join(told) or 'measures'}"
    return finish(panels, shifts, source=shifts, function="affect_shift", said=said, title=title)
