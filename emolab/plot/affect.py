"""Figures of affect: the circumplex of many emotions, how well ratings are read off by layer, what axes do to texts."""

from __future__ import annotations

import warnings

import pandas as pd
from matplotlib.colors import Normalize

from emolab.base.errors import need_table
from emolab.plot.marks import color_bar, control_key, control_look, key, layer_axis, line, names_beside
from emolab.plot.panels import figure, grid
from emolab.plot.style import INK, look
from emolab.say.sentences import largest_row

# One look per axis and per way of reading it.
AXES = {"valence": ("#0072B2", "o"), "arousal": ("#D55E00", "s"), "dominance": ("#009E73", "^")}
_METHODS = {
    "ridge": {"color": "#0072B2", "marker": "o", "label": "read off by regression, other words"},
    "ridge, other frames": {"color": "#56B4E9", "marker": "D", "label": "the same, other frames as well"},
    "component": {"color": "#D55E00", "marker": "^", "label": "best of the first three components"},
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
    ax.axvline(points["read_valence"].mean(), color=INK, linewidth=0.6, zorder=1)
    ax.axhline(points["read_arousal"].mean(), color=INK, linewidth=0.6, zorder=1)
    ax.margins(0.08)
    ax.set(xlabel="valence, read off the vector", ylabel="arousal, read off the vector")
    color_bar(panels.fig, "valence, as people rate the word (1 to 9)", limits, "RdYlBu")
    r = points.attrs["r"]
    by_axis = " and ".join(f"{name} {r[name]:.2f}" for name in ("valence", "arousal") if name in r)
    fig = panels.finish(
        points, title or f"{len(points)} emotion words lie where people put them: r with their ratings {by_axis}",
        legend=[], control=f"ratings permuted: r up to {max(points.attrs['null_hi'].values()):.2f}",
        note="Each word is placed by the vectors of other words; lines cross at the mean",
    )  # fmt: skip
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
    panels = grid(table["dimension"].unique(), height=17, need=17, want=30, share="xy")
    for _, ax, own in panels.each(table, "dimension"):
        for method, settings in _METHODS.items():
            rows = own[own["method"] == method]
            null = control_look("shuffled", marker=None, color=settings["color"], label=None, alpha=0.6)
            line(ax, rows, "layer", "null_hi", null)
            line(ax, rows, "layer", "r", settings, bounds="band" if method == "ridge" else "")
        for r in own.loc[own["method"] == "word embedding", "r"]:
            ax.axhline(r, color=INK, linestyle=":", linewidth=0.1 * look().size)
        layer_axis(ax, table)
        ax.set_ylim(top=1)
    panels.label("layer", "r with people's ratings")
    handles = next(iter(panels.axes.values())).get_legend_handles_labels()[0]
    if (table["method"] == "word embedding").any():
        handles.append(key("input embedding of the word", marker="", linestyle=":"))
    handles.append(control_key("shuffled", marker="", label="ratings permuted, 95th percentile"))
    if not title:
        ridge = table[table["method"] == "ridge"].groupby("dimension", sort=False)
        best = [largest_row(rows, rows["r"]) for _, rows in ridge]
        parts = [f"{row['dimension']} {row['r']:.2f} (layer {row['layer']})" for row in best]
        title = f"People's ratings are read off the vectors of other words: {', '.join(parts)}"
    return panels.finish(
        table, title,
        legend=handles, control="ratings permuted", interval="95 % intervals over labels",
    )  # fmt: skip


@figure
def affect_shift(shifts: pd.DataFrame, *, title: str | None = None):
    """What steering along each axis changes in the texts, by dose: valence, arousal and the topic kept.

    >>> fig = affect_shift(experiments.affect_shifts(scored))  # doctest: +SKIP

    One panel per axis and measure; bars are 95 % intervals over queries, grey are random directions of equal norm.
    """
    need_table(shifts, ("emotion", "control", "alpha", "measure", "shift", "lo", "hi"), "experiments.affect_shifts")
    axes = shifts["emotion"].unique()
    panels = grid(shifts["measure"].unique(), axes, height=12, need=14, want=24, share="xy")
    moved = []
    for (axis, measure), ax in panels.axes.items():
        rows = shifts[(shifts["emotion"] == axis) & (shifts["measure"] == measure)]
        steered = rows[rows["control"] == "none"]
        line(ax, rows[rows["control"] == "random"], "alpha", "shift", control_look("random"), bounds="whiskers")
        color, marker = AXES.get(axis, (INK, "o"))
        line(ax, steered, "alpha", "shift", {"color": color, "marker": marker, "label": axis}, bounds="bars")
        ax.axhline(0, color=INK, linewidth=0.6)
        if measure == axis and len(steered):
            ends = steered.set_index("alpha")["shift"].sort_index().iloc[[0, -1]]
            moved.append(f"{axis} {ends.iloc[0]:+.2f} to {ends.iloc[-1]:+.2f}")
    panels.label("dose", {axis: f"steered along {axis}: shift" for axis in panels.rows})
    return panels.finish(
        shifts, title or f"Steering along an axis moves the texts' {', '.join(moved) or 'measures'}",
        control="random directions of equal norm", interval="95 % intervals over queries",
    )  # fmt: skip
