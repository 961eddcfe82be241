"""Methods side by side: what each gives and what it costs, as a table and as a trade-off."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from emolab.base.errors import EmolabError, need_table
from emolab.plot.maps import finish_about
from emolab.plot.style import GREY, INK, new_figure, theme, top_legend

# Colours of petroff10 that no emotion has (nor a neighbour of one), and a marker each.
_STYLE = {
    "emotion vector": ("#832db6", "o", "-"),
    "pca": ("#3f90da", "s", (0, (2, 1.5))),
    "probe": ("#b9ac70", "D", "-"),
    "lora": ("#bd1f01", "^", "-"),
    "instruction": (INK, "*", ""),
    "few_shot": ("#a96b59", "P", ""),
    "random": ("#94a4a2", "X", "-"),
    "unsteered": ("#717581", "_", ""),
}
_NAMES = {"few_shot": "few-shot", "pca": "PCA", "lora": "LoRA", "random": "random direction"}
_COLUMNS = ("method", "at", "emotion", "dose", "measure", "value", "lo", "hi")
_SCORES = ("emotion", "adherence", "fluency", "overall")
_Y = {"emotion": "emotion: p of the target", "overall": "overall: emotion, adherence, fluency"}


def method_table(table: pd.DataFrame, *, at: str = "best", emotion: str = "all"):
    """What each method gives, with 95 % intervals, and what it takes, for display in a notebook.

    >>> method_table(table, at="equal damage")                       # doctest: +SKIP

    table: from `baselines.compare_methods`. at: "best" (each at its own best setting) or "equal damage" (unsteered text
    stands beside either). Best first. Returns a pandas Styler. Raises EmolabError for a place or emotion that the table
    does not hold.
    """
    need_table(table, _COLUMNS, "baselines.compare_methods")
    own = table[(table["emotion"] == emotion) & (table["at"] == at)]
    if own.empty:
        held = sorted(set(table["at"]) - {"tried"})
        raise EmolabError(f"no results for {emotion!r} at {at!r}; the table holds {', '.join(held)}, and emotion 'all'")
    if "unsteered" not in set(own["method"]):
        plain = (table["method"] == "unsteered") & (table["emotion"] == emotion) & (table["at"] == "best")
        own = pd.concat([own, table[plain]])
    values = own.pivot(index="method", columns="measure", values="value").sort_values("overall", ascending=False)
    told = own.assign(said=[f"{r.value:.2f} [{r.lo:.2f}, {r.hi:.2f}]" for r in own.itertuples()])
    shown = told.pivot(index="method", columns="measure", values="said").loc[values.index, [*_SCORES, "damage"]]
    facts = own.drop_duplicates("method").set_index("method").loc[values.index]
    shown = shown.rename(columns={"damage": "damage (nats)"})
    shown["set up (s)"] = facts["seconds"].map(lambda x: "" if np.isnan(x) else f"{x:.1f}")
    shown["tokens/s, relative"] = facts["speed"].map("{:.2f}".format)
    for column, title in (("can_dose", "any dose"), ("can_mix", "mixtures")):
        shown[title] = facts[column].map({True: "yes", False: "no"})
    colours = values[list(_SCORES)]
    shown = shown.rename_axis(columns=None)
    shown.index = [_NAMES.get(m, m) for m in shown.index]
    style = shown.style.background_gradient(
        cmap="cividis",
        gmap=colours.to_numpy(),
        axis=None,
        vmin=0,
        vmax=1,
        text_color_threshold=0.2,
        subset=list(_SCORES),
    )
    style.format(escape="html").format_index(escape="html", axis=0)
    style.set_properties(subset=None, **{"text-align": "right", "white-space": "nowrap"})
    whose = "All emotions" if emotion == "all" else escape(emotion)
    style.set_caption(f"{whose}, {at}: means with 95 % intervals over queries")
    return style


def tradeoff(table: pd.DataFrame, *, emotion: str = "all", model=None, seed: int | None = None):
    """What each method gives against what it changes: the emotion, and the overall score, over damage.

    >>> fig = tradeoff(table)                                        # doctest: +SKIP

    table: from `baselines.compare_methods`. Damage: 95th percentile of the next-token KL on neutral answers, nats, log
    scale. Lines: doses tried on the choosing queries. Filled markers: each method at its best setting, hollow ones: at
    equal damage, on held-out queries. Whiskers: 95 % intervals over queries. Grey line: unsteered text.
    """
    need_table(table, _COLUMNS, "baselines.compare_methods")
    own = table[table["emotion"] == emotion]
    if own.empty:
        raise EmolabError(f"no results for {emotion!r}; the table holds {', '.join(dict.fromkeys(table['emotion']))}")
    methods = [m for m in _STYLE if m in set(own["method"]) and m != "unsteered"]
    wide = own.pivot(index=["method", "at", "dose"], columns="measure", values=["value", "lo", "hi"]).reset_index()
    with theme():
        fig, axes = new_figure(1, 2, width=1.0, height=4.2, grid={"sharex": True, "sharey": True})
        for ax, measure in zip(axes[0], _Y, strict=True):
            for name in reversed(methods):  # the emotion vector on top
                _draw(ax, wide[wide["method"] == name], name, measure)
            plain = wide[(wide["method"] == "unsteered") & (wide["at"] == "best")]
            if len(plain):
                ax.axhline(plain["value", measure].iloc[0], color=GREY, linestyle=":", zorder=1)
            ax.set_xscale("log")
            low, high = ax.get_xlim()
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.set(ylim=(-0.03, 1.03), xlabel="damage: p95 of next-token KL (nats)", title=_Y[measure])
        axes[0, 0].set_ylabel("score")
        handles = [
            Line2D([], [], color=c, marker=m, linestyle=line, label=_NAMES.get(name, name))
            for name, (c, m, line) in _STYLE.items()
            if name in methods
        ]
        handles += [
            Line2D([], [], color=GREY, marker="o", markersize=9, linestyle="", label="best setting"),
            Line2D([], [], color=GREY, marker="o", markersize=9, linestyle="", mfc="white", label="equal damage"),
            Line2D([], [], color=GREY, linestyle=":", label="unsteered"),
        ]
        top_legend(fig, handles, [handle.get_label() for handle in handles], 5)
        # Without the times, which no second run gives again.
        data = own[own["measure"].isin([*_Y, "damage"])].drop(columns=["seconds", "speed"], errors="ignore")
        return finish_about(fig, data, table, "tradeoff", model=model, seed=seed, params={"emotion": emotion})


def _draw(ax, own: pd.DataFrame, name: str, measure: str) -> None:
    color, marker, line = _STYLE[name]
    tried = own[(own["at"] == "tried") & (own["value", "damage"] > 0)].sort_values("dose")
    if line:
        options = {"color": color, "linestyle": line, "marker": marker, "markersize": 3}
        above = 2.6 if line != "-" else 2.5  # dashes let the line below be seen
        ax.plot(tried["value", "damage"], tried["value", measure], zorder=above, **options)
        _whiskers(ax, tried, measure, color, 0.5)
    for at, face in (("best", color), ("equal damage", "white")):
        if at == "equal damage" and not line:  # without doses there is one point
            continue
        point = own[own["at"] == at]
        _whiskers(ax, point, measure, color, 1.0)
        ax.plot(
            point["value", "damage"], point["value", measure], marker, color=color, markerfacecolor=face,
            markersize={"*": 11, "s": 10}.get(marker, 8), markeredgecolor=color if face == "white" else INK, zorder=4,
        )  # fmt: skip


def _whiskers(ax, rows: pd.DataFrame, measure: str, color: str, strength: float) -> None:
    options = {"color": color, "alpha": 0.6 * strength, "linewidth": 1, "zorder": 2}
    ax.vlines(rows["value", "damage"], rows["lo", measure], rows["hi", measure], **options)
    ax.hlines(rows["value", measure], rows["lo", "damage"], rows["hi", "damage"], **options)
