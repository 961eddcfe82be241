"""Figures of the effects of steering: against a control, and the queries that move the wrong way."""

from __future__ import annotations

from math import ceil

import pandas as pd
from matplotlib.ticker import MaxNLocator

from emolab.base.errors import EmolabError, need_number, need_table
from emolab.base.labels import order
from emolab.plot.style import GREY, INK, emotion_kwargs, finish, new_figure, theme, top_legend

_NAMES = {
    "p_target": "judge's probability of the target",
    "target": "share with the target on top",
    "overall": "headline score",
}
_CONTROLS = {
    "random": "a random direction",
    "shuffled": "shuffled labels",
    "other": "another emotion's vector",
    "prompt": "the instruction",
    "unsteered": "unsteered text",
}


def effect_forest(table: pd.DataFrame, *, level: float = 0.05, model=None, seed: int | None = None):
    """Steered minus control at every dose, one panel an emotion, with 95 % intervals over queries.

    >>> fig = effect_forest(emolab.experiments.dose_response.compare(scores, control="random"))

    table: from `emolab.experiments.compare`, one control and one measure. Filled markers have q below `level`
    (Benjamini-Hochberg over all cells of the table). Raises EmolabError for another table.
    """
    columns = ("emotion", "alpha", "difference", "lo", "hi", "q", "n", "control", "measure")
    need_table(table, columns, "emolab.experiments.dose_response.compare")
    need_number("level", level, 0, 1)
    for column in ("control", "measure"):
        if table[column].nunique() != 1:
            raise EmolabError(f"this table mixes {column} = {', '.join(table[column].unique())}; filter it to one")
    doses = sorted(table["alpha"].unique())
    measure, control = table["measure"].iloc[0], table["control"].iloc[0]
    with theme():
        fig, panels = _panels(table, height=0.6 + 0.24 * len(doses))
        for emotion, ax in panels.items():
            own = table[table["emotion"] == emotion]
            look = emotion_kwargs(panels)[emotion]
            ax.axvline(0, color=INK, linewidth=0.7)
            for row, filled in zip(own.itertuples(), own["q"] < level, strict=True):
                y = doses.index(row.alpha)
                ax.plot([row.lo, row.hi], [y, y], color=look["color"], solid_capstyle="butt")
                face = {"markerfacecolor": look["color"] if filled else "white"}
                edge = {"markeredgecolor": INK if filled else look["color"], "markeredgewidth": 0.4 if filled else 1.2}
                ax.plot([row.difference], [y], linestyle="none", zorder=4, **(look | face | edge))
            ax.set_yticks(range(len(doses)), [f"{dose:g}" for dose in doses])
            ax.set_ylim(-0.6, len(doses) - 0.4)
            ax.grid(axis="y", visible=False)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))
        _label(panels, "difference", "dose α")
        title = [f"Steered minus {_CONTROLS.get(control, control)}:", _NAMES.get(measure, measure)]
        title = (" " if len(panels) > 3 else "\n").join(title)
        fig.suptitle(f"{title} (filled: q < {level:g})", fontweight="bold")
        params = {"control": control, "measure": measure, "level": level}
        n = f"{table['n'].max()} queries"
        return finish(fig, table, function="effect_forest", model=model, n=n, seed=seed, params=params)


def wrong_way(table: pd.DataFrame, *, model=None, seed: int | None = None):
    """Share of queries whose target moved against the sign of the dose, beside a random direction.

    >>> fig = wrong_way(emolab.experiments.dose_response.wrong_way(scores))

    table: from `emolab.experiments.wrong_way`. Bars are 95 % intervals over queries (Wilson). A mean that rises can
    hide many queries that fall. Raises EmolabError for another table.
    """
    columns = ("emotion", "alpha", "share", "lo", "hi", "n", "random")
    need_table(table, columns, "emolab.experiments.dose_response.wrong_way")
    with theme():
        fig, panels = _panels(table, height=1.9)
        for emotion, ax in panels.items():
            own = table[table["emotion"] == emotion].sort_values("alpha")
            look = emotion_kwargs(panels)[emotion]
            ax.axhline(0.5, color=INK, linewidth=0.6)
            for side in (own[own["alpha"] < 0], own[own["alpha"] > 0]):  # nothing moves at dose 0
                ax.plot(side.alpha, side["random"], color=GREY, marker=".", label="random direction")
                ax.plot(side.alpha, side.share, label="emotion vector", zorder=3, **look)
            ax.errorbar(
                own.alpha, own.share, [own.share - own.lo, own.hi - own.share], fmt="none", ecolor=look["color"]
            )
            ax.set_ylim(-0.03, 1.03)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        _label(panels, "dose α", "share moved\nthe wrong way")
        drawn = list(panels.values())[-1].get_legend_handles_labels()
        handles = {label: handle for handle, label in zip(*drawn, strict=True)}
        top_legend(fig, handles.values(), handles.keys(), 2)
        n = f"{table['n'].max()} queries"
        return finish(fig, table, function="wrong_way", model=model, n=n, seed=seed, params={})


def _panels(table: pd.DataFrame, *, height: float):
    """Figure and {emotion: axes}, at most five in a row; height of one row in inches."""
    emotions = order(table["emotion"])
    columns = min(5, len(emotions))
    rows = ceil(len(emotions) / columns)
    shape = {"width": max(0.5, columns / 5), "height": 0.9 + rows * height}
    fig, axes = new_figure(rows, columns, **shape, grid={"sharex": True, "sharey": True})
    for ax in axes.flat[len(emotions) :]:
        ax.set_visible(False)
    panels = dict(zip(emotions, axes.flat, strict=False))
    for emotion, ax in panels.items():
        ax.set_title(emotion.replace(" + ", "\n+ "), color=INK)
    return fig, panels


def _label(panels, x: str, y: str) -> None:
    axes = list(panels.values())
    columns = min(5, len(axes))
    for i, ax in enumerate(axes):
        if i + columns >= len(axes):
            ax.set_xlabel(x)
            ax.tick_params(labelbottom=True)
        if i % columns == 0:
            ax.set_ylabel(y)
