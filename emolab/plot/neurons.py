"""Figures of heads against neurons, and of attention against MLPs."""

from __future__ import annotations

import pandas as pd

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.base.tables import about
from emolab.plot.heads import CURVE, CURVE_SAID, changed, curve, curve_keys, limit, most
from emolab.plot.marks import bars, key
from emolab.plot.panels import figure, finish, grid, joined
from emolab.plot.responses import GROUPS
from emolab.plot.style import CONTROLS, GREY, INK

_LOOKS = {"attn": {"color": INK, "marker": "o"}, "mlp": {"color": GROUPS["emotion"][0], "marker": "s"}}
_NAMES = {"attn": "attention", "mlp": "MLP"}


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
    tables = {name: table[table["emotion"] == "all"] for name, table in tables.items()}
    panels = grid(list(tables), height=13, want=34, share="y")
    told = []
    for name, ax in panels.columns():
        curve(ax, tables[name], {"color": INK, "marker": "o"})
        k, last = most(tables[name])
        told.append(f"{k:g} {name} {last['ranked']:.2f} (random ones {last[f'random_{name}']:.2f})")
    data = joined(tables)
    limit(panels, data)
    what = "brought" if tests[0] == "steer" else "kept"
    panels.label(f"how many are {'added' if tests[0] == 'steer' else 'ablated'}", f"emotion {what}")
    return finish(
        panels, data, source=neurons, function="heads_or_neurons", legend=curve_keys("ones"),
        said={**CURVE_SAID, "control": "random ones of the same layers", "params": {"site": None}},
        title=title or f"Emotion {what}, mean of all: {', '.join(told)}",
    )  # fmt: skip


@figure
def sublayers(table: pd.DataFrame, *, level: float = 0.05, title: str | None = None):
    """Attention against MLP by layers: what each writes of the vector, and how much emotion goes or comes with it.

    >>> fig = sublayers(emolab.heads.sublayer_effects(model, vectors, responses))

    table: from `emolab.heads.sublayer_effects`. Above: the share of the last layer's vector that they write straight
    into it; whiskers at zero: 95 % of random directions of their lengths. Below: the effect of their shift over the way
    between neutral and instructed run, with 95 % intervals; filled markers have q below `level`, crosses are random
    directions of equal norm.
    """
    columns = "layers site emotion written random effect lo hi share random_direction q"
    need_table(table, columns.split(), "emolab.heads.sublayer_effects")
    emotions, bands = order(table["emotion"]), list(dict.fromkeys(table["layers"]))
    steer = about(table)["params"].get("test") == "steer"
    way = table["gap"] if steer else -table["gap"]
    ends = pd.concat([table["lo"] / way, table["hi"] / way], axis=1)
    data = table.assign(place=table["layers"].map(bands.index), random_share=table["random_direction"] / way)
    data = data.assign(lo_share=ends.min(axis=1), hi_share=ends.max(axis=1))
    rows = {"written": "share of the vector", "share": f"emotion {'brought' if steer else 'lost'}"}
    grey = CONTROLS["random"]["color"]
    panels = grid(emotions, list(rows), height=9, need=16, want=34)
    for (row, emotion), ax in panels.axes.items():
        ax.axhline(0, color=INK, linewidth=0.6)
        for shift, (site, settings) in zip((-0.16, 0.16), _LOOKS.items(), strict=True):
            own = data[(data["emotion"] == emotion) & (data["site"] == site)]
            own = own.assign(place=own["place"] + shift)
            if row == "written":
                bars(ax, own["place"], -own["random"], own["random"], GREY)
            else:
                bars(ax, own["place"], own["lo_share"], own["hi_share"], settings["color"])
                ax.plot(own["place"], own["random_share"], "x", color=grey, zorder=5)
            certain = (own["q"] < level) | (row == "written")
            for some, face in ((own[certain], settings["color"]), (own[~certain], "white")):
                ax.plot(
                    some["place"], some[row], linestyle="none", marker=settings["marker"], color=settings["color"],
                    markerfacecolor=face, zorder=4,
                )  # fmt: skip
        ax.set_xticks(range(len(bands)), bands)
        ax.set_xlim(-0.5, len(bands) - 0.5)
    panels.label("layers", rows)
    handles = [key(_NAMES[site], linestyle="", **own) for site, own in _LOOKS.items()]
    handles += [
        key("no difference from random was found", linestyle="", face="white"),
        key("random direction of equal norm (above: 95 % of them)", linestyle="", marker="x", color=grey),
    ]
    last = table[table["layers"] == bands[-1]].groupby("site")[["written", "share"]].mean()
    verb = "bring" if steer else "take away"
    told = [
        f"{name} write {last['written'][site]:.2f} of the vector, {verb} {last['share'][site]:.2f} of the emotion"
        for site, name in (("attn", "All attention layers"), ("mlp", "all MLPs"))
    ]
    said = {"interval": "bars: 95 % bootstrap over queries", "control": "random directions of equal norm (grey)"}
    return finish(
        panels, data, source=table, function="sublayers", legend=handles, said=said, title=title or "; ".join(told)
    )
