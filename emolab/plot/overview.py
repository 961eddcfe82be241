"""The figure of one study at a glance: by what answers group, where vectors change, and which heads carry them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import head_name
from emolab.base.stats import LEVEL
from emolab.plot.heads import VALUES, head_cells, head_scale, ring
from emolab.plot.marks import color_bar, control_look, heat, layer_axis, line, signed_scale
from emolab.plot.panels import figure, grid
from emolab.plot.responses import GROUPS, METHODS, scatter
from emolab.say.sentences import largest_row

_BY = {"query_id": "question", "condition": "emotion"}


@figure
def signature(
    points: pd.DataFrame,
    purity: pd.DataFrame,
    layers: pd.DataFrame,
    effects: pd.DataFrame,
    *,
    value: str = "effect",
    title: str | None = None,
):
    """Where emotions diverge, in one figure of four parts.

    >>> points = geometry.embed(means, layers=[0, 15, 29], methods=("umap",))
    >>> fig = plot.signature(points, geometry.neighbour_purity(means), geometry.layer_by_layer(vectors), effects)

    points: (a) maps of answers, one column per layer, coloured by question above and by emotion below.
    purity: (b) the share of neighbours with the same question, and with the same emotion among other questions, by
    layer, beside shuffled labels (grey lines: their 95th percentile).
    layers: (c) cosine of a vector with itself at other layers, mean over emotions.
    effects: (d) `value` of every head (`emolab.head_effects`), mean over emotions; rings: q < .05 for any.
    """
    need_table(points, ("query_id", "condition", "layer", "method", "x", "y"), "geometry.embed")
    need_table(purity, ("layer", "by", "purity", "null_hi"), "geometry.neighbour_purity")
    need_table(layers, ("emotion", "layer", "other", "cosine"), "geometry.layer_by_layer")
    need_table(effects, ("layer", "head", "emotion", "q", value), "emolab.head_effects")
    shown = sorted(points["layer"].unique())
    if len(shown) != 3:
        raise EmolabError(
            f"the maps are of {len(shown)} layers; expected three, geometry.embed(means, layers=[0, 15, 29])"
        )
    method = "umap" if (points["method"] == "umap").any() else "pca"
    names = [f"layer {layer}" for layer in shown]
    panels = grid(names, ["question", "emotion", "measured"], height=11, need=15, want=28, share="", ratios=[1, 1, 1.1])
    maps = points[points["method"] == method]
    questions = list(maps["query_id"].unique())
    colors = dict(zip(questions, sns.color_palette("husl", len(questions)), strict=True))
    for layer, name in zip(shown, names, strict=True):
        own = maps[maps["layer"] == layer]
        scatter(panels.axes["question", name], own, "query_id", palette=colors)
        scatter(panels.axes["emotion", name], own, "condition")
    for row in ("question", "emotion"):
        for name in names[:: panels.beside]:
            panels.axes[row, name].set_ylabel(f"{METHODS[method]} by {row}")
    panels.axes["question", names[0]].set_title(f"a {names[0]}")
    left, middle, right = (panels.axes["measured", name] for name in names)
    _purities(left, purity)
    between = layers.groupby(["layer", "other"])["cosine"].mean().unstack("other")
    off = between.mask(np.eye(len(between), dtype=bool))
    cosines = signed_scale(off)
    heat(middle, off, *cosines, up=True)
    middle.set(title="c vectors, layer by layer", xlabel="layer", ylabel="layer")
    color_bar(panels.fig, "cosine", *cosines, under=middle)
    heads = effects.groupby(["layer", "head"], as_index=False).agg({value: "mean", "q": "min"})
    head_cells(right, heads, value, like=heads)
    ring(right, heads[heads["q"] < LEVEL])
    right.set(title="d heads", xlabel="layer", ylabel="head")
    color_bar(panels.fig, VALUES[value][0].split(":")[0], *head_scale(heads, value), under=right)
    data = purity.assign(part="purity")
    data = pd.concat([data, heads.assign(part="heads"), maps.assign(part="maps")], ignore_index=True)
    if not title:
        title = _grouping(purity)
        if heads[value].notna().any():
            largest = largest_row(heads, heads[value].abs())
            title += f"; largest head {head_name(int(largest['layer']), int(largest['head']))} ({largest[value]:+.2f})"
    return panels.finish(
        data, title,
        source=points, control="shuffled labels",
        note=f"Rings: heads with q < {LEVEL:g}. Distances between groups on a map are no evidence; the curves are.",
        params={"value": value, "level": LEVEL},
    )  # fmt: skip


def _purities(ax, purity: pd.DataFrame) -> None:
    for by, word in _BY.items():
        own, (color, marker) = purity[purity["by"] == by], GROUPS[word]
        line(ax, own, "layer", "purity", {"color": color, "marker": marker, "label": f"neighbours by {word}"})
        line(ax, own, "layer", "null_hi", control_look("shuffled", marker=None, color=color))
    layer_axis(ax, purity)
    ax.set(ylim=(-0.03, 1.03), title="b neighbours alike", xlabel="layer", ylabel="share")


def _grouping(purity: pd.DataFrame) -> str:
    """Where neighbours are alike most, as a sentence."""
    groups = []
    for by, word in _BY.items():
        own = purity[purity["by"] == by]
        above = own["purity"] - own["null_hi"]
        most = largest_row(own, above)
        where = f"by {word} most at layer {most['layer']} ({most['purity']:.2f})"
        groups.append(where if above.max() > 0 else f"not by {word}")
    return f"Answers group {' and '.join(groups)}"
