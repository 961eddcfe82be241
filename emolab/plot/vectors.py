"""Figures of vectors by layer: their length, their cosines, what they share, how reliable they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from emolab.base.errors import need_table
from emolab.base.labels import order
from emolab.base.tables import about
from emolab.geometry.tables import emotion_cosines, layer_by_layer, pair_cosines, vector_norms
from emolab.plot.marks import (
    bars,
    color_bar,
    control_key,
    control_look,
    heat,
    heat_room,
    key,
    layer_axis,
    line,
    log_axis,
    signed_scale,
)
from emolab.plot.panels import figure, grid, joined, tables_of
from emolab.plot.style import GREY, INK, PARTS, SITES, emotion_looks, look
from emolab.say.sentences import number, smallest_row, where_largest, where_smallest


@figure
def norms(vectors, *, site: str = "resid", title: str | None = None):
    """Length of each emotion vector by layer, beside the median length of the residual stream, and as a share of it.

    >>> fig = norms(vectors)

    vectors: EmotionVectors, or the table of `geometry.vector_norms`. Norms in units of the residual stream, on a log
    axis. The lower panel is what dose 1 with unit="residual" would be worth; imported vectors, which do not know that
    norm, have none. Raises EmolabError for site "head".
    """
    if not isinstance(vectors, pd.DataFrame):
        vectors = vector_norms(vectors, site=site)
    need_table(vectors, ("emotion", "layer", "norm", "resid_norm", "relative"), "geometry.vector_norms")
    known = vectors["resid_norm"].notna().any()
    rows = {"norm": "norm", "relative": "norm / residual norm"} if known else {"norm": "norm"}
    panels = grid([""], list(rows), height=11, want=50, share="x")
    for (row, _), ax in panels.axes.items():
        for label, settings in emotion_looks(vectors["emotion"]).items():
            line(ax, vectors[vectors["emotion"] == label], "layer", row, {**settings, "label": label})
        layer_axis(ax, vectors)
    top = panels.axes["norm", ""]
    if known:
        stream = {"color": GREY, "linestyle": "--", "label": "residual stream (median, neutral answers)"}
        line(top, vectors.drop_duplicates("layer"), "layer", "resid_norm", stream)
        panels.axes["relative", ""].set_ylim(bottom=0)
    log_axis(top)
    panels.label("layer", rows)
    if not title and known:
        share = vectors.groupby("layer")["relative"].mean()
        most = where_largest(share)
        title = f"Vectors are longest against the residual stream at layer {most}: {share[most]:.2f} of its norm"
    return panels.finish(vectors, title or f"Norm of the vectors by layer ({SITES.get(site, site)})")


@figure
def cosine_by_layer(vectors, *, site: str = "resid", part: str | None = None, title: str | None = None):
    """Cosine of every pair of emotions by layer: of the whole vectors, and beside them of their specific parts.

    >>> fig = cosine_by_layer(vectors, site="attn")
    >>> fig.emolab_data.query("pair == 'mean'")

    vectors: EmotionVectors, or the table of `geometry.pair_cosines`. part: None for both panels, or "whole" or
    "specific" for one. All pairs are thin lines; the nearest and the farthest, on average over layers, are named.
    Dashed: the null, 0 for whole vectors and -1/(k-1) for specific parts of k emotions, which sum to zero.
    """
    if not isinstance(vectors, pd.DataFrame):
        vectors = pair_cosines(vectors, site=site, parts=("whole", "specific") if part is None else (part,))
    need_table(vectors, ("part", "pair", "layer", "cosine"), "geometry.pair_cosines")
    data = vectors if part is None else vectors[vectors["part"] == part]
    parts = list(data["part"].unique())
    by_pair = data[data["pair"] != "mean"].groupby("pair")["cosine"].mean()
    k = round((1 + math.sqrt(1 + 8 * len(by_pair))) / 2)  # that have so many pairs
    looks = {"mean": {"color": INK, "linewidth": 0.2 * look().size, "label": "mean of all pairs"}}
    if by_pair.nunique() > 1:
        near, far = str(by_pair.idxmax()), str(by_pair.idxmin())
        looks[near] = {"color": "#D55E00", "label": f"nearest: {near}"}
        looks[far] = {"color": "#0072B2", "label": f"farthest: {far}"}
    panels = grid([f"{PARTS[p]}s" for p in parts], height=13, need=22, want=40, share="xY")
    for name, ax in zip(parts, panels.axes.values(), strict=True):
        own = data[data["part"] == name]
        for pair, curve in own.groupby("pair", sort=False):
            quiet = {"color": GREY, "linewidth": 0.06 * look().size, "alpha": 0.7}
            line(ax, curve, "layer", "cosine", looks.get(str(pair), quiet))
        null = -1 / (k - 1) if name == "specific" else 0.0
        ax.axhline(null, color=INK, linestyle="--", linewidth=1, label="null: unrelated directions")
        layer_axis(ax, own)
    panels.label("layer", "cosine")
    mean = data[data["pair"] == "mean"].groupby("part")["cosine"].mean()
    means = "; ".join(f"{PARTS[p]}s {number(mean[p])}" for p in parts)
    return panels.finish(data, title or f"Mean cosine between emotions over layers: {means}")


@figure
def cosine_map(vectors, layer: int = -1, *, site: str = "resid", part: str = "whole", title: str | None = None):
    """Cosine between all emotions at one layer, as a heat map.

    >>> fig = cosine_map(vectors, layer=3, part="specific")

    vectors: EmotionVectors, or the table of `geometry.emotion_cosines`. Colours run over what lies off the diagonal,
    which is 1 by definition and left blank; the null is marked on the colour bar. Raises EmolabError for a layer that
    does not exist.
    """
    return _cosine_maps(vectors, [layer], site, part, title)


@figure
def cosine_grid(
    vectors,
    *,
    site: str = "resid",
    part: str = "whole",
    layers: Sequence[int] | None = None,
    title: str | None = None,
):
    """Cosine between all emotions, one heat map per layer; as `cosine_map`, on one scale.

    >>> fig = cosine_grid(vectors, part="specific", layers=[0, 2, 5])

    layers: default at most six, evenly spread.
    """
    return _cosine_maps(vectors, layers, site, part, title)


def _cosine_maps(vectors, layers: Sequence[int] | None, site: str, part: str, title: str | None):
    if not isinstance(vectors, pd.DataFrame):
        vectors = emotion_cosines(vectors, site=site, part=part, layers=layers)
    need_table(vectors, ("layer", "emotion", "other", "cosine"), "geometry.emotion_cosines")
    params = about(vectors)["params"]
    site, part = params.get("site", site), params.get("part", part)
    layers, labels = sorted(set(vectors["layer"])), order(vectors["emotion"])
    off = vectors[vectors["emotion"] != vectors["other"]]
    scale = signed_scale(off["cosine"])
    null = -1 / (len(labels) - 1) if part == "specific" and len(labels) > 1 else 0.0
    one = len(layers) == 1
    panels = grid(
        [""] if one else [f"layer {layer}" for layer in layers],
        height=max(20 if one else 11, 0.95 * len(labels)),
        need=heat_room(labels, labels),
        want=44 if one else 30,
        share="",
    )
    for layer, ax in zip(layers, panels.axes.values(), strict=True):
        matrix = vectors[vectors["layer"] == layer].pivot(index="emotion", columns="other", values="cosine")
        matrix = matrix.loc[labels, labels].mask(np.eye(len(labels), dtype=bool))
        if len(labels) > 2 and not one:  # one triangle is enough, and leaves the panels quiet
            matrix = matrix.mask(np.triu(np.ones(matrix.shape, dtype=bool))).iloc[1:, :-1]
        heat(ax, matrix, *scale, numbers=".2f")
        ax.set_facecolor("white")
    color_bar(panels.fig, "cosine", *scale, null=null)
    mean = off.groupby(["emotion", "other"])["cosine"].mean()
    where = f"layer {layers[0]}" if one else f"layers {layers[0]} to {layers[-1]}"
    what = f"{PARTS.get(part, part)}s, {SITES.get(site, site)}, {where}"
    if not title and len(mean):
        near, far = (f"{a} and {b} ({mean[a, b]:.2f})" for a, b in (where_largest(mean), where_smallest(mean)))
        title = f"Nearest {near}, farthest {far}: {what}"
    return panels.finish(vectors, title or f"Cosine between emotions: {what}")


@figure
def layer_map(vectors, *, site: str = "resid", part: str = "whole", title: str | None = None):
    """Cosine of each emotion's vector between layers, one heat map per emotion.

    >>> fig = layer_map(vectors, site="attn")

    vectors: EmotionVectors, or the table of `geometry.layer_by_layer`. Layers run to the right and upwards.
    """
    if not isinstance(vectors, pd.DataFrame):
        vectors = layer_by_layer(vectors, site=site, part=part)
    need_table(vectors, ("emotion", "layer", "other", "cosine"), "geometry.layer_by_layer")
    scale = signed_scale(vectors.loc[vectors["layer"] != vectors["other"], "cosine"])
    panels = grid(order(vectors["emotion"]), height=11, want=20, share="")
    for _, ax, rows in panels.each(vectors, "emotion"):
        matrix = rows.pivot(index="layer", columns="other", values="cosine")
        heat(ax, matrix, *scale, up=True)
    panels.label("layer", "layer")
    color_bar(panels.fig, "cosine", *scale, null=0.0)
    next_layer = vectors[vectors["other"] == vectors["layer"] + 1].groupby("layer")["cosine"].mean()
    if not title and len(next_layer):
        i = where_smallest(next_layer)
        title = f"Vectors change most from layer {i} to {i + 1}: cosine {next_layer[i]:.2f}, mean over emotions"
    return panels.finish(vectors, title or "Cosine of each emotion's vector with itself at other layers")


@figure
def shared_energy_curve(tables, *, title: str | None = None):
    """Share of the vectors' energy that all emotions have in common, by layer, between its two yardsticks.

    >>> tables = {site: geometry.shared_energy(means, site=site) for site in ("resid", "attn")}
    >>> fig = shared_energy_curve(tables)

    tables: from `geometry.shared_energy`, one or {title: table}, one panel each. Band: 95 % interval over queries.
    """
    columns = ("layer", "share", "lo", "hi", "null_mean", "null_lo", "null_hi", "floor")
    tables = tables_of(tables, columns, "geometry.shared_energy")
    panels = grid([SITES.get(t, t) for t in tables], height=13, need=20, want=40, share="xY")
    shuffled = control_look("shuffled", marker=None, label="shuffled labels: nothing is specific (middle 95 %)")
    for table, ax in zip(tables.values(), panels.axes.values(), strict=True):
        shared = {"color": INK, "marker": "o", "label": "shared by all emotions"}
        line(ax, table, "layer", "share", shared, bounds="band")
        line(ax, table, "layer", "null_mean", shuffled)
        bars(ax, table["layer"], table["null_lo"], table["null_hi"], shuffled["color"], width=0.25)
        line(ax, table, "layer", "floor", {"color": INK, "linestyle": ":", "label": "orthogonal vectors, 1/k"})
        ax.set_ylim(0, 1.03)
        layer_axis(ax, table)
    panels.label("layer", "share of energy")
    shares = "; ".join(
        f"{SITES.get(name, name) or 'over layers'} {t['share'].mean():.2f}" for name, t in tables.items()
    )
    return panels.finish(
        joined(tables), title or f"Share of the vectors' energy common to all emotions, mean over layers: {shares}",
        interval="band: 95 % bootstrap over queries",
    )  # fmt: skip


@figure
def reliability_curve(tables, *, title: str | None = None):
    """Cosine between vectors from two halves of the queries, by layer, one panel per emotion.

    >>> parts = {p: geometry.split_half(means, part=p) for p in ("whole", "specific")}
    >>> fig = reliability_curve(parts)

    tables: from `geometry.split_half`, one or {title: table}; the last has a band, the middle 95 % of random halves,
    the others are dashed. Shuffled: 97.5 % of halves with the conditions shuffled within each query lie below.
    """
    columns = ("layer", "emotion", "cosine", "lo", "hi", "null_lo", "null_hi")
    tables = tables_of(tables, columns, "geometry.split_half")
    data, last = joined(tables), list(tables)[-1]
    looks = emotion_looks(data["emotion"])
    panels = grid(list(looks), height=9)
    for emotion, ax in panels.columns():
        for name, table in tables.items():
            own = table[table["emotion"] == emotion]
            if name == last:
                line(ax, own, "layer", "cosine", {"color": looks[emotion]["color"]}, bounds="band")
                line(ax, own, "layer", "null_hi", control_look("shuffled", marker=None))
            else:
                line(ax, own, "layer", "cosine", {"color": INK, "linestyle": "--"})
        ax.axhline(0, color=INK, linewidth=0.6)
        ax.set_ylim(min(-0.1, float(data["lo"].min()) - 0.05), 1.03)
        layer_axis(ax, data)
    panels.label("layer", "cosine between halves")
    names = {name: PARTS.get(name, name) or "vectors" for name in tables}
    if not title:
        low = smallest_row(data, data["cosine"])
        title = f"Halves of the questions agree least on {low['emotion']} at layer {low['layer']}: {low['cosine']:.2f}"
    return panels.finish(
        data,
        title,
        legend=[
            *(key(label, marker="", linestyle="--") for name, label in names.items() if name != last),
            key(names[last], marker="", color=GREY),
            control_key("shuffled", marker=""),
        ],
        control="shuffled labels",
        interval=f"band: middle 95 % of random halves{f' ({last})' if last else ''}",
    )


@figure
def agreement_curve(tables, *, title: str | None = None):
    """Cosine between two sets of vectors of the same emotions, by layer: one's own beside imported ones.

    >>> table = geometry.vector_agreement(ours, theirs, site="attn", part="specific")
    >>> fig = agreement_curve({"specific": table})

    tables: from `geometry.vector_agreement`, one or {title: table}. Black: the mean of the emotions, which are thin
    lines. Dashed: mean cosine between different emotions, what any emotion would give. Grey band: 95 % of random
    directions.
    """
    tables = tables_of(tables, ("layer", "emotion", "cosine", "mismatched", "random"), "geometry.vector_agreement")
    data = joined(tables)
    low = min(-0.2, float(data["cosine"].min()) - 0.05)
    panels = grid(list(tables), height=12, need=19, want=34, share="xY")
    for table, ax in zip(tables.values(), panels.axes.values(), strict=True):
        mean = table.groupby("layer", as_index=False)[["cosine", "mismatched", "random"]].mean()
        band = {"color": GREY, "alpha": 0.3, "linewidth": 0, "label": "95 % of random directions"}
        ax.fill_between(mean["layer"], -mean["random"], mean["random"], **band)
        for label, settings in emotion_looks(table["emotion"]).items():
            quiet = {**settings, "marker": None, "linewidth": 0.8, "alpha": 0.8, "label": label}
            line(ax, table[table["emotion"] == label], "layer", "cosine", quiet)
        line(ax, mean, "layer", "cosine", {"color": INK, "zorder": 5, "label": "mean of emotions"})
        different = {"color": INK, "linestyle": "--", "zorder": 4, "label": "different emotions"}
        line(ax, mean, "layer", "mismatched", different)
        ax.set_ylim(max(-1.03, low), 1.03)
        layer_axis(ax, table)
    panels.label("layer", "cosine")
    means = "; ".join(f"{name or 'over layers'} {table['cosine'].mean():.2f}" for name, table in tables.items())
    return panels.finish(data, title or f"Cosine of the same emotion in two sets of vectors, mean over layers: {means}")
