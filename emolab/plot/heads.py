"""Figures of heads: maps by layer and head, cosines between heads, PCA beside UMAP."""

from __future__ import annotations

from math import ceil

import numpy as np
import pandas as pd
from matplotlib.artist import setp
from matplotlib.ticker import MaxNLocator

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.plot.style import INK, emotion_kwargs, finish, new_figure, theme, top_legend

# name: (label, lowest, highest value of the colours); None: from the data. Signed ones are symmetric about zero.
VALUES = {
    "norm": ("norm of the head's vector", 0.0, None),
    "contribution": ("share of the layer's attention vector", "signed", None),
    "direct": ("share of the last layer's vector written directly", "signed", None),
    "attribution": ("attribution: first-order estimate of the effect, nats", "signed", None),
    "split_half": ("split-half cosine", 0.0, 1.0),
    "probe": ("share recognised by nearest centroid", 0.0, 1.0),
    "effect": ("causal effect", "signed", None),
    "share": ("causal effect, share of the whole emotion", "signed", None),
}
_UNTESTED = "#DADADA"  # no colour of a scale, so that it is not read as zero
_TESTS = {"ablate": "direction ablated", "patch": "output patched in", "steer": "own vector added"}


def head_map(table: pd.DataFrame, value: str = "contribution", *, level: float = 0.05, model=None, seed=None):
    """One quantity of every head, layers upwards and heads sideways, one panel an emotion.

    >>> fig = head_map(maps, "split_half")
    >>> fig = head_map(effects, "share")

    table: from `emolab.heads.head_maps` (norm, contribution, direct, split_half, probe) or `emolab.head_effects`
    (effect, share, attribution, direct). Where it has a column q and effects are shown, a dot marks q below `level`.
    Signed quantities are red above zero and blue below, on one scale for all emotions. Heads that were not tested, and
    layers that have none, stay grey.
    """
    need_table(table, ("layer", "head", "emotion"), "emolab.heads.head_vectors.head_maps or emolab.head_effects")
    if value not in VALUES or value not in table:
        known = [v for v in VALUES if v in table]
        raise EmolabError(f"cannot show {value!r} of this table; it holds {', '.join(known) or 'no quantity of heads'}")
    emotions = order(table["emotion"])
    n_layers, n_heads = int(table["layer"].max()) + 1, int(table["head"].max()) + 1
    grids = {
        e: table[table["emotion"] == e].pivot(index="layer", columns="head", values=value)
        .reindex(index=range(n_layers), columns=range(n_heads)).to_numpy(float)
        for e in emotions
    }  # fmt: skip
    label, low, high = VALUES[value]
    if value == "probe" and "chance" in table:
        label += f" (chance {table['chance'].mean():.2f})"
    found = np.concatenate([g.ravel() for g in grids.values()])
    peak = float(np.nanmax(np.abs(found))) if np.isfinite(found).any() else 1.0
    signed = low == "signed"
    low, high = (-(peak or 1.0), peak or 1.0) if signed else (low, (peak or 1.0) if high is None else high)
    if value in ("effect", "share") and "test" in table:
        label += f" ({_TESTS.get(table['test'].iloc[0], '')}; {table['measure'].iloc[0]})"
    columns = min(5, len(emotions))
    with theme():
        rows = ceil(len(emotions) / columns)
        shape = {"width": max(0.45, columns / 5), "height": 1.0 + rows * 2.3}
        fig, axes = new_figure(rows, columns, **shape, grid={"sharex": True, "sharey": True})
        for ax, emotion in zip(axes.flat, emotions, strict=False):
            kind = {"cmap": "RdBu_r" if signed else "cividis", "vmin": low, "vmax": high}
            ax.set_facecolor(_UNTESTED)
            ax.imshow(grids[emotion], origin="lower", aspect="auto", interpolation="nearest", **kind)
            ax.set_title(emotion, color=INK)
            if "q" in table and value in ("effect", "share"):
                hit = table[(table["emotion"] == emotion) & (table["q"] < level)]
                strong = np.abs(hit[value]) > 0.6 * high
                colors = np.where(strong, "white", INK) if len(hit) else INK
                ax.scatter(hit["head"], hit["layer"], s=7, c=colors, linewidths=0)
        for ax in list(axes.flat)[len(emotions) :]:
            ax.set_visible(False)
        _grid_axes(axes, len(emotions))
        note = f"   · dot: q < {level:g}" if "q" in table and value in ("effect", "share") else ""
        fig.colorbar(axes.flat[0].images[0], ax=axes, location="bottom", shrink=0.5, aspect=40, label=label + note)
        keep = ["layer", "head", "emotion", value, *(["q"] if "q" in table else [])]
        params = {"value": value, "level": level}
        return _finish(fig, table[keep], table, "head_map", params, model, seed)


def head_cosine_map(cosines: pd.DataFrame, *, emotion: str, cluster: bool = False, model=None, seed=None):
    """Cosines between the vectors of all heads for one emotion, by layer or (cluster=True) in order of likeness.

    >>> fig = head_cosine_map(head_cosines(vectors, emotion="joy"), emotion="joy")

    cosines: from `emolab.heads.head_cosines`. Clusters: average linkage on 1 - cosine. Lines part the layers.
    """
    need_table(cosines, (), "emolab.heads.head_vectors.head_cosines")
    if list(cosines.index) != list(cosines.columns):
        raise EmolabError("the table has other rows than columns; it comes from emolab.heads.head_vectors.head_cosines")
    names, values = list(cosines.index), cosines.to_numpy(float)
    place = np.arange(len(names))
    if cluster:
        from scipy.cluster.hierarchy import leaves_list, linkage
        from scipy.spatial.distance import squareform

        distance = 1 - np.nan_to_num(values)
        np.fill_diagonal(distance, 0)
        place = leaves_list(linkage(squareform((distance + distance.T) / 2, checks=False), "average"))
    names, values = [names[i] for i in place], values[np.ix_(place, place)]
    with theme():
        fig, axes = new_figure(1, 1, width=0.62, height=5.6)
        ax = axes[0, 0]
        image = ax.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        ax.grid(False)
        ax.spines[:].set_visible(False)
        if cluster or len(names) <= 12:
            step = ceil(len(names) / 40)
            ticks = range(0, len(names), step)
            for side, turn in ((ax.set_xticks, 90), (ax.set_yticks, 0)):
                side(ticks, [names[i] for i in ticks], rotation=turn, fontsize="x-small")
            what = "layer.head, alike beside alike" if cluster else "layer.head"
        else:
            layer = np.array([int(name.split(".")[0]) for name in names])
            starts = np.flatnonzero(np.diff(layer, prepend=-1))
            middles = [np.flatnonzero(layer == at).mean() for at in layer[starts]]
            step = ceil(len(starts) / 16)
            for start in starts[1:]:
                ax.axhline(start - 0.5, color=INK, linewidth=0.5)
                ax.axvline(start - 0.5, color=INK, linewidth=0.5)
            ax.set_xticks(middles[::step], layer[starts][::step])
            ax.set_yticks(middles[::step], layer[starts][::step])
            what = "layer, its heads in order"
        ax.set(xlabel=what, ylabel=what)
        ax.set_title(f"Cosine of heads' vectors: {emotion}", loc="center", pad=8)
        fig.colorbar(image, ax=ax, shrink=0.8, label="cosine", ticks=[-1, -0.5, 0, 0.5, 1])
        data = pd.DataFrame(
            {
                "head": np.repeat(names, len(names)),
                "other": np.tile(names, len(names)),
                "emotion": emotion,
                "cosine": values.ravel(),
            }
        )
        params = {"emotion": emotion, "cluster": cluster}
        return _finish(fig, data, cosines, "head_cosine_map", params, model, seed)


def head_umap(table: pd.DataFrame, *, largest: int = 4, model=None, seed=None):
    """Heads' unit vectors: PCA beside UMAP, coloured by emotion (above) and by layer (below).

    >>> fig = head_umap(embed_heads(vectors))

    table: from `emolab.heads.embed_heads`. Size is the vector's norm; the `largest` heads are named, layer.head, beside
    their longest vector. Trustworthiness says how far neighbours on the map are neighbours; distances between clusters
    of a UMAP are no evidence.
    """
    columns = ("layer", "head", "emotion", "norm", "method", "x", "y", "trustworthiness")
    need_table(table, columns, "emolab.heads.head_vectors.embed_heads")
    methods = [m for m in ("pca", "umap") if (table["method"] == m).any()]
    emotions = order(table["emotion"])
    loud = table[table["method"] == methods[0]].groupby(["layer", "head"])["norm"].mean().nlargest(largest).index
    with theme():
        fig, axes = new_figure(2, len(methods), width=0.5 * len(methods), height=8.2)
        for column, method in enumerate(methods):
            own = table[table["method"] == method]
            size = 10 + 120 * (own["norm"] / own["norm"].max())
            for emotion, kwargs in emotion_kwargs(emotions).items():
                is_it = own["emotion"] == emotion
                look = {"color": kwargs["color"], "marker": kwargs["marker"], "edgecolors": INK, "linewidths": 0.3}
                axes[0, column].scatter(
                    own["x"][is_it], own["y"][is_it], s=size[is_it], label=emotion, alpha=0.85, **look
                )
            axes[1, column].scatter(
                own["x"], own["y"], s=size, c=own["layer"], cmap="cividis", edgecolors=INK, linewidths=0.3
            )
            _name_heads(axes[1, column], own, loud)
            trust = own["trustworthiness"].iloc[0]
            axes[0, column].set_title(f"{method.upper()}, trustworthiness {trust:.2f}")
            for ax in axes[:, column]:
                ax.set_xticks([])
                ax.set_yticks([])
                ax.margins(0.08)
            for row in (0, 1):
                axes[row, column].set(xlabel=f"{method.upper()} 1", ylabel=f"{method.upper()} 2")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        legend = top_legend(fig, handles, labels, min(6, len(labels)))
        for handle in filter(None, legend.legend_handles):
            setp(handle, sizes=[40])
        points = axes[1, 0].collections[0]
        bar = fig.colorbar(points, ax=axes[1, :], location="bottom", shrink=0.5, aspect=40, label="layer")
        bar.locator = MaxNLocator(integer=True)
        return _finish(fig, table, table, "head_umap", {"largest": largest}, model, seed)


def _name_heads(ax, points: pd.DataFrame, heads) -> None:
    """Label each head at its longest vector, beside the points and clear of the other labels."""
    low, span = points[["x", "y"]].min(), points[["x", "y"]].max() - points[["x", "y"]].min()
    taken: list[np.ndarray] = []
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": INK, "linewidth": 0.5}
    for layer, head in heads:
        own = points[(points["layer"] == layer) & (points["head"] == head)]
        at = own.loc[own["norm"].idxmax(), ["x", "y"]].astype(float)
        place = ((at - low) / span).to_numpy() + (0.08, 0.09)
        while any(abs(place[0] - x) < 0.1 and abs(place[1] - y) < 0.075 for x, y in taken):
            place = place + (0, 0.075)
        taken.append(place)
        line = {"arrowstyle": "-", "color": INK, "linewidth": 0.6}
        text = tuple(low + place * span)
        ax.annotate(f"{layer}.{head}", tuple(at), text, fontsize="small", ha="center", bbox=box, arrowprops=line)


def _grid_axes(axes, n: int) -> None:
    rows, columns = axes.shape
    for i, ax in enumerate(axes.flat):
        ax.grid(False)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        if i % columns == 0:
            ax.set_ylabel("layer")
        if i + columns >= n:
            ax.set_xlabel("head")
            ax.tick_params(labelbottom=True)


def _finish(fig, data, table, function, params, model, seed):
    """The provenance that the table brings, unless the caller names another."""
    about = table.attrs.get("about", {})
    seed = about.get("seed") if seed is None else seed
    params = {**about.get("params", {}), **params}
    return finish(
        fig, data, function=function, model=model or about.get("model"), n=about.get("n"), seed=seed, params=params
    )
