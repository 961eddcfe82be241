"""Figures of causal tests: effects of single heads beside their controls, and emotion left as heads are ablated."""

from __future__ import annotations

from math import ceil

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from emolab.base.errors import EmolabError, need_number, need_table
from emolab.base.labels import order
from emolab.plot.heads import _TESTS, _finish
from emolab.plot.style import GREY, INK, emotion_kwargs, new_figure, theme, top_legend

_UNITS = {"words": "nats of emotion-word probability"}


def head_forest(table: pd.DataFrame, *, top: int = 5, level: float = 0.05, model=None, seed=None):
    """The heads with the largest effect on each emotion, with 95 % intervals and their controls.

    >>> fig = head_forest(effects)

    table: from `emolab.head_effects`, one test and one measure. Filled markers have q below `level`. Grey cross: the
    same change along a random direction of that head. Grey bar: mean of the other tested heads of its layer.
    """
    columns = "layer head emotion test measure effect lo hi q random_direction other_heads"
    need_table(table, columns.split(), "emolab.head_effects")
    need_number("top", top, 1, whole=True)
    for column in ("test", "measure"):
        if table[column].nunique() != 1:
            raise EmolabError(f"this table mixes {column} = {', '.join(table[column].unique())}; filter it to one")
    emotions = order(table["emotion"])
    columns = min(5, len(emotions))
    rows = ceil(len(emotions) / columns)
    chosen = []
    with theme():
        width, height = max(0.5, columns / 5), 1.3 + rows * (0.5 + 0.34 * top)
        fig, axes = new_figure(rows, columns, width=width, height=height)
        for ax, emotion in zip(axes.flat, emotions, strict=False):
            own = table[(table["emotion"] == emotion) & table["effect"].notna()]  # of the heads that were tested
            own = own.loc[own["effect"].abs().sort_values(ascending=False, kind="stable").index[:top]]
            chosen.append(own)
            ax.axvline(0, color=INK, linewidth=0.7)
            kwargs = emotion_kwargs(emotions)[emotion]
            for y, (row, sure) in enumerate(zip(own.itertuples(), own["q"] < level, strict=True)):
                ax.plot([row.lo, row.hi], [y, y], color=kwargs["color"], solid_capstyle="butt")
                face = kwargs["color"] if sure else "white"
                look = {
                    **kwargs,
                    "markerfacecolor": face,
                    "markeredgecolor": kwargs["color"] if face == "white" else INK,
                }
                ax.plot([row.effect], [y], linestyle="none", zorder=4, **look)
                ax.plot([row.random_direction], [y], "x", color="#6B6B6B", zorder=5, label="random direction")
                grey = {"color": "#6B6B6B", "zorder": 3, "markersize": 11}
                ax.plot([row.other_heads], [y], "|", label="other heads of the layer", **grey)
            ax.set_yticks(range(len(own)), [f"{r.layer}.{r.head}" for r in own.itertuples()])
            ax.set_ylim(len(own) - 0.5, -0.6)
            ax.set_title(emotion, color=INK)
            ax.grid(axis="y", visible=False)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=3, min_n_ticks=2))
            ax.margins(x=0.12)
        for ax in list(axes.flat)[len(emotions) :]:
            ax.set_visible(False)
        for row in range(rows):
            axes[row, 0].set_ylabel("layer.head")
        test, measure = table["test"].iloc[0], table["measure"].iloc[0]
        unit = _UNITS.get(measure, f"judge's probability ({measure})")
        handles = dict(zip(*axes[0, 0].get_legend_handles_labels()[::-1], strict=True))
        title = f"{_TESTS[test].capitalize()}: change in {unit}" + (" " if columns > 3 else "\n")
        title += f"(filled: q < {level:g}; each emotion has its own scale)"
        top_legend(fig, handles.values(), handles.keys(), 2, title=title)
        for ax in axes[-1]:
            ax.set_xlabel("effect")
        data = pd.concat(chosen)
        return _finish(fig, data, table, "head_forest", {"top": top, "level": level}, model, seed)


def ablation_curve(table: pd.DataFrame, *, model=None, seed=None):
    """Emotion kept against the number of heads changed: ranked heads, random heads, random directions.

    >>> fig = ablation_curve(curve)

    table: from `emolab.heads.ablation_curve`. 1 is the instructed run, 0 the neutral one; bands are 95 % bootstrap
    intervals over queries (and random sets of heads).
    """
    need_table(table, ("emotion", "order", "k", "kept", "lo", "hi"), "emolab.ablation_curve")
    emotions = [*order(e for e in table["emotion"] if e != "all"), *(["all"] if "all" in set(table["emotion"]) else [])]
    ks = sorted(table["k"].unique())
    columns = min(3, len(emotions))
    rows = ceil(len(emotions) / columns)
    params = table.attrs.get("about", {}).get("params", {})
    steer = params.get("test") == "steer"
    with theme():
        shape = {"width": max(0.5, columns / 3), "height": 1.2 + 2.1 * rows}
        fig, axes = new_figure(rows, columns, **shape, grid={"sharex": True, "sharey": True})
        for ax, emotion in zip(axes.flat, emotions, strict=False):
            look = {"color": INK, "marker": "o"} if emotion == "all" else emotion_kwargs(emotions)[emotion]
            styles = {
                "random_heads": {"color": GREY, "marker": ".", "label": "random heads of the same layers"},
                "random_direction": {"color": "#6B6B6B", "linestyle": ":", "label": "ranked heads, random directions"},
                "ranked": {**look, "label": "ranked heads"},
            }
            ax.axhline(1, color=INK, linewidth=0.6)
            ax.axhline(0, color=INK, linewidth=0.6)
            for name, style in styles.items():
                own = table[(table["emotion"] == emotion) & (table["order"] == name)].sort_values("k")
                x = [ks.index(k) for k in own["k"]]
                ax.fill_between(x, own["lo"], own["hi"], color=style["color"], alpha=0.22, linewidth=0)
                ax.plot(x, own["kept"], **style)
            ax.set_title("mean of all" if emotion == "all" else emotion, color=INK)
            ax.set_xticks(range(len(ks)), ks)
            ax.grid(axis="x", visible=False)
        for ax in list(axes.flat)[len(emotions) :]:
            ax.set_visible(False)
        for i in range(len(emotions)):
            ax = axes.flat[i]
            if i + columns >= len(emotions):
                ax.set_xlabel("heads whose vectors are added" if steer else "heads ablated")
                ax.tick_params(labelbottom=True)
            if i % columns == 0:
                ax.set_ylabel("emotion brought" if steer else "emotion kept")
        low, high = float(np.nanmin(table["lo"])), float(np.nanmax(table["hi"]))
        axes[0, 0].set_ylim(min(-0.08, max(low, -1) - 0.05), max(1.08, min(high, 2) + 0.05))
        handles = {}
        for ax in axes.flat:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                handles[label] = handle  # the last panel's: "all" is drawn in ink
        names = ["ranked heads", "random heads of the same layers", "ranked heads, random directions"]
        top_legend(fig, [handles[n] for n in names], names, 3)
        return _finish(fig, table, table, "ablation_curve", {}, model, seed)
