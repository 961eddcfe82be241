"""Figures of many heads or neurons at once, and of attention against MLPs: what they bring, or what is kept without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.base.stats import LEVEL
from emolab.base.tables import about
from emolab.plot.marks import bars, control_key, control_look, key, line
from emolab.plot.panels import Grid, figure, grid, joined
from emolab.plot.responses import GROUPS
from emolab.plot.style import GREY, INK, emotion_looks
from emolab.say.heads import adds, changed

_LOOKS: dict[str, dict[str, Any]] = {
    "attn": {"color": INK, "marker": "o"},
    "mlp": {"color": GROUPS["emotion"][0], "marker": "s"},
}
_CURVE = ("emotion", "order", "k", "kept", "lo", "hi")
_NOTE = "1: instructed, 0: not instructed"
_SHIFTS = {"attn": -0.16, "mlp": 0.16}  # side by side in a band of layers


@figure
def ablation_curve(table: pd.DataFrame, *, title: str | None = None):
    """Emotion kept against the number of heads (or neurons) changed: ranked ones, random ones, random directions.

    >>> fig = ablation_curve(curve)

    table: from `emolab.ablation_curve` or `emolab.neuron_effects`. 1 is the instructed run, 0 the neutral one; bars are
    95 % bootstrap intervals over queries (and random sets of heads), cut where they leave the panel.
    """
    need_table(table, _CURVE, "emolab.ablation_curve or emolab.neuron_effects")
    emotions = [*order(e for e in table["emotion"] if e != "all"), *(["all"] if "all" in set(table["emotion"]) else [])]
    what, steer = changed(table), adds(table)
    looks = {**emotion_looks(emotions), "all": {"color": INK, "marker": "o"}}
    panels = grid(emotions, height=11, want=26)
    for emotion, ax, rows in panels.each(table, "emotion"):
        _curve(ax, rows, looks[emotion])
        ax.set_title("mean of all" if emotion == "all" else emotion)
    _limit(panels, table)
    added = {"heads": "heads whose vectors are added", "neurons": "neurons whose shifts are added"}[what]
    panels.label(added if steer else f"{what} ablated", f"emotion {'brought' if steer else 'kept'}")
    k, last = _most(table[table["emotion"] == emotions[-1]])
    verb = "brings" if steer else "leaves"
    change = f"{'Adding' if steer else 'Ablating'} {k:g} ranked {what} {verb} {last.get('ranked', np.nan):.2f} of the "
    change += f"emotion, random {what} {last.get(f'random_{what}', np.nan):.2f}"
    return panels.finish(
        table, title or change, legend=_curve_keys(what), interval="bars: 95 % bootstrap over queries", note=_NOTE
    )


@figure
def heads_or_neurons(heads: pd.DataFrame, neurons: pd.DataFrame, *, title: str | None = None):
    """The curves of heads and of neurons side by side, mean over emotions, each beside its own random ones.

    >>> fig = heads_or_neurons(emolab.ablation_curve(..., test="steer"), emolab.neuron_effects(..., test="steer"))

    heads: from `emolab.ablation_curve`; neurons: from `emolab.neuron_effects`; of the same test. 1 is the instructed
    run, 0 the neutral one. Raises EmolabError for tables of two tests.
    """
    tables = {"heads": heads, "neurons": neurons}
    for name, function in (("heads", "emolab.ablation_curve"), ("neurons", "emolab.neuron_effects")):
        need_table(tables[name], _CURVE, function)
        if changed(tables[name]) != name:
            raise EmolabError(f"{name} are a table of {changed(tables[name])}; expected one from {function}")
    tests = [str(about(table)["params"].get("test")) for table in tables.values()]
    if tests[0] != tests[1]:
        raise EmolabError(f"heads were tested by {tests[0]!r}, neurons by {tests[1]!r}; expected one test for both")
    means = {name: table[table["emotion"] == "all"] for name, table in tables.items()}
    panels = grid(list(means), height=13, want=34, share="y")
    ends = []
    for name, ax in panels.columns():
        _curve(ax, means[name], {"color": INK, "marker": "o"})
        k, last = _most(means[name])
        ends.append(f"{k:g} {name} {last['ranked']:.2f} (random ones {last[f'random_{name}']:.2f})")
    data = joined(means)
    _limit(panels, data)
    emotion = f"emotion {'brought' if adds(neurons) else 'kept'}"
    panels.label(f"how many are {'added' if adds(neurons) else 'ablated'}", emotion)
    return panels.finish(
        data, title or f"{emotion.capitalize()}, mean of all: {', '.join(ends)}",
        source=neurons, legend=_curve_keys("ones"), control="random ones of the same layers",
        interval="bars: 95 % bootstrap over queries", note=_NOTE, params={"site": None},
    )  # fmt: skip  # fmt: skip


def _most(own: pd.DataFrame) -> tuple[int, pd.Series]:
    """The largest number that was changed, and what is then kept, by order."""
    k = own["k"].max()
    return k, own[own["k"] == k].set_index("order")["kept"]


def _curve(ax, own: pd.DataFrame, main: dict[str, Any]) -> None:
    """What is kept by the number changed, in one panel: its controls, and the ranked ones above."""
    ks = sorted(own["k"].unique())
    own = own.assign(place=own["k"].map({k: i for i, k in enumerate(ks)}))
    ax.axhline(1, color=INK, linewidth=0.6)
    ax.axhline(0, color=INK, linewidth=0.6)
    for name, shift, settings, bounds in (
        (f"random_{changed(own)}", -0.12, control_look("random"), "whiskers"),
        ("random_direction", 0.12, control_look("shuffled"), "whiskers"),
        ("ranked", 0.0, main, "bars"),
    ):
        rows = own[own["order"] == name]
        rows = rows.assign(place=rows["place"] + shift * (rows["k"] > 0))
        line(ax, rows, "place", "kept", settings, tested=rows["place"], bounds=bounds)
    ax.set_xticks(range(len(ks)), [f"{k:g}" for k in ks])
    ax.set_xlim(-0.3, len(ks) - 0.7)


def _curve_keys(what: str) -> list[Any]:
    """The legend of such panels."""
    return [
        key(f"ranked {what}"),
        control_key("random", label=f"random {what} of the same layers"),
        control_key("shuffled", label=f"ranked {what}, random directions"),
    ]


def _limit(panels: Grid, table: pd.DataFrame) -> None:
    """Panels as high as what is kept, however wide its intervals."""
    low, high = (x if np.isfinite(x) else 0.0 for x in (table["kept"].min(), table["kept"].max()))
    for ax in panels.axes.values():
        ax.set_ylim(min(-0.15, low - 0.1), max(1.25, high + 0.1))


@figure
def sublayers(table: pd.DataFrame, *, title: str | None = None):
    """Attention against MLP by layers: what each writes of the vector, and how much emotion goes or comes with it.

    >>> fig = sublayers(emolab.heads.sublayer_effects(model, vectors, responses))

    table: from `emolab.heads.sublayer_effects`. Above: the share of the last layer's vector that they write straight
    into it; whiskers at zero: 95 % of random directions of their lengths. Below: the effect of their shift over the way
    between neutral and instructed run, with 95 % intervals; filled markers have q < .05, crosses are random directions
    of equal norm.
    """
    columns = "layers site emotion written random effect lo hi share random_direction q"
    need_table(table, columns.split(), "emolab.heads.sublayer_effects")
    bands = list(table["layers"].unique())
    steer = adds(table)
    way = table["gap"] if steer else -table["gap"]
    ends = pd.concat([table["lo"] / way, table["hi"] / way], axis=1)
    data = table.assign(
        place=table["layers"].map(bands.index),
        random_share=table["random_direction"] / way,
        lo_share=ends.min(axis=1),
        hi_share=ends.max(axis=1),
    )
    measures = {"written": "share of the vector", "share": f"emotion {'brought' if steer else 'lost'}"}
    panels = grid(order(table["emotion"]), list(measures), height=9, need=16, want=34)
    for (measure, emotion), ax in panels.axes.items():
        ax.axhline(0, color=INK, linewidth=0.6)
        for site, settings in _LOOKS.items():
            rows = data[(data["emotion"] == emotion) & (data["site"] == site)]
            at = rows["place"] + _SHIFTS[site]
            if measure == "written":
                bars(ax, at, -rows["random"], rows["random"], GREY)
            else:
                bars(ax, at, rows["lo_share"], rows["hi_share"], settings["color"])
                ax.plot(at, rows["random_share"], "x", color=GREY, zorder=5)
            certain = (rows["q"] < LEVEL) | (measure == "written")
            for some, face in ((certain, settings["color"]), (~certain, "white")):
                ax.plot(at[some], rows[measure][some], linestyle="none", **settings, markerfacecolor=face, zorder=4)
        ax.set_xticks(range(len(bands)), bands)
        ax.set_xlim(-0.5, len(bands) - 0.5)
    panels.label("layers", measures)
    last = table[table["layers"] == bands[-1]].groupby("site")[["written", "share"]].mean()
    verb = "bring" if steer else "take away"
    totals = [
        f"{name} write {last['written'][site]:.2f} of the vector, {verb} {last['share'][site]:.2f} of the emotion"
        for site, name in (("attn", "All attention layers"), ("mlp", "all MLPs"))
    ]
    return panels.finish(
        data,
        title or "; ".join(totals),
        legend=[
            key("attention", linestyle="", **_LOOKS["attn"]),
            key("MLP", linestyle="", **_LOOKS["mlp"]),
            key("no difference from random was found", linestyle="", face="white"),
            key("random direction of equal norm (above: 95 % of them)", linestyle="", marker="x", color=GREY),
        ],
        interval="bars: 95 % bootstrap over queries",
        control="random directions of equal norm (grey)",
    )
