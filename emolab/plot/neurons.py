"""Figures of heads against neurons, and of attention against MLPs."""

from __future__ import annotations

from typing import Any

import pandas as pd

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.base.tables import about
from emolab.plot.heads import CURVE, CURVE_NOTE, curve, curve_keys, limit, most
from emolab.plot.marks import bars, key
from emolab.plot.panels import figure, grid, joined
from emolab.plot.responses import GROUPS
from emolab.plot.style import GREY, INK, LEVEL
from emolab.say.heads import adds, changed

_LOOKS: dict[str, dict[str, Any]] = {
    "attn": {"color": INK, "marker": "o"},
    "mlp": {"color": GROUPS["emotion"][0], "marker": "s"},
}
_SHIFTS = {"attn": -0.16, "mlp": 0.16}  # side by side in a band of layers


@figure
def heads_or_neurons(heads: pd.DataFrame, neurons: pd.DataFrame, *, title: str | None = None):
    """The curves of heads and of neurons side by side, mean over emotions, each beside its own random ones.

    >>> fig = heads_or_neurons(emolab.ablation_curve(..., test="steer"), emolab.neuron_effects(..., test="steer"))

    heads: from `emolab.ablation_curve`; neurons: from `emolab.neuron_effects`; of the same test. 1 is the instructed
    run, 0 the neutral one. Raises EmolabError for tables of two tests.
    """
    tables = {"heads": heads, "neurons": neurons}
    for name, function in (("heads", "emolab.ablation_curve"), ("neurons", "emolab.neuron_effects")):
        need_table(tables[name], CURVE, function)
        if changed(tables[name]) != name:
            raise EmolabError(f"{name} are a table of {changed(tables[name])}; expected one from {function}")
    tests = [str(about(table)["params"].get("test")) for table in tables.values()]
    if tests[0] != tests[1]:
        raise EmolabError(f"heads were tested by {tests[0]!r}, neurons by {tests[1]!r}; expected one test for both")
    means = {name: table[table["emotion"] == "all"] for name, table in tables.items()}
    panels = grid(list(means), height=13, want=34, share="y")
    ends = []
    for name, ax in panels.columns():
        curve(ax, means[name], {"color": INK, "marker": "o"})
        k, last = most(means[name])
        ends.append(f"{k:g} {name} {last['ranked']:.2f} (random ones {last[f'random_{name}']:.2f})")
    data = joined(means)
    limit(panels, data)
    emotion = f"emotion {'brought' if adds(neurons) else 'kept'}"
    panels.label(f"how many are {'added' if adds(neurons) else 'ablated'}", emotion)
    return panels.finish(
        data, title or f"{emotion.capitalize()}, mean of all: {', '.join(ends)}",
        source=neurons, legend=curve_keys("ones"), control="random ones of the same layers",
        interval="bars: 95 % bootstrap over queries", note=CURVE_NOTE, params={"site": None},
    )  # fmt: skip


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
