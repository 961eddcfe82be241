"""Maps of responses in two dimensions, PCA beside UMAP, and emotions beside people's ratings of their words."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order, styles
from emolab.plot.maps import about, finish_about
from emolab.plot.style import INK, STYLES, new_figure, side_legend, theme, top_legend

_NAMES = {"pca": "PCA", "umap": "UMAP"}


def response_map(points: pd.DataFrame, scores: pd.DataFrame, *, model=None, seed: int | None = None):
    """Responses coloured by condition, one column a layer, PCA above UMAP, with what each map is worth.

    >>> points = geometry.embed(means)
    >>> fig = response_map(points, geometry.embed_scores(means, points))

    Under each map: trustworthiness, silhouette of the conditions on it, and p of that silhouette under shuffled labels;
    under the first also the silhouette in all dimensions. Raises EmolabError where scores of a map are missing.
    """
    need_table(points, ("layer", "method", "condition", "x", "y"), "embedding.embed")
    need_table(scores, ("layer", "method", "trustworthiness", "silhouette", "p"), "embedding.embed_scores")
    layers, methods = sorted(points["layer"].unique()), [m for m in _NAMES if m in set(points["method"])]
    lookup = scores.set_index(["layer", "method"])
    missing = [(int(a), m) for a in layers for m in methods if (a, m) not in lookup.index]
    if missing:
        raise EmolabError(f"scores lack layer {missing[0][0]}, {missing[0][1]}; use embed_scores of these points")
    with theme():
        width = min(1.0, max(0.5, len(layers) / 4))
        fig, axes = new_figure(len(methods), len(layers), width=width, height=0.9 + 2.75 * len(methods))
        for column, layer in enumerate(layers):
            for row, method in enumerate(methods):
                ax = axes[row, column]
                cell = points[(points["layer"] == layer) & (points["method"] == method)]
                _scatter(ax, cell, size=14)
                s = lookup.loc[(layer, method)]
                said = [f"trustworthiness {s.trustworthiness:.2f}", f"silhouette {s.silhouette:.2f}, p = {s.p:.3f}"]
                if row == 0 and (layer, "full") in lookup.index:
                    said.append(f"in all dimensions {lookup.loc[(layer, 'full')].silhouette:.2f}")
                ax.set_xlabel("\n".join(said), fontsize="small")
            axes[0, column].set_title(f"layer {layer}")
        for row, method in enumerate(methods):
            axes[row, 0].set_ylabel(_NAMES[method], fontweight="bold")
        _legend(fig, axes[0, 0])
        data = points.merge(scores, on=["layer", "method"], how="left")
        params = {"n_permutations": about(scores)["params"].get("n_permutations")}
        return finish_about(fig, data, points, "response_map", model=model, seed=seed, params=params)


def trajectory_map(points: pd.DataFrame, *, model=None, seed: int | None = None):
    """The path of each condition through the layers (medians), over the responses of all layers on one map.

    >>> fig = trajectory_map(geometry.trajectory(means))

    Numbers are layers. An illustration: on a UMAP neither lengths nor distances between paths are evidence.
    """
    need_table(points, ("layer", "method", "condition", "x", "y"), "embedding.trajectory")
    methods = [m for m in _NAMES if m in set(points["method"])]
    last = int(points["layer"].max())
    trust = points.attrs.get("trustworthiness", {})
    paths = points.groupby(["method", "condition", "layer"], as_index=False)[["x", "y"]].median()
    marked = sorted({0, last // 2, last})
    with theme():
        fig, axes = new_figure(1, len(methods), width=1.0 if len(methods) > 1 else 0.6, height=4.6)
        for ax, method in zip(axes[0], methods, strict=True):
            _scatter(ax, points[points["method"] == method], size=5, alpha=0.15, label=False)
            for label, (color, marker) in styles(order(points["condition"])).items():
                path = paths[(paths["method"] == method) & (paths["condition"] == label)].sort_values("layer")
                ax.plot(path.x, path.y, color="white", linewidth=3.2, zorder=3)
                line = {"color": color, "marker": marker, "markeredgecolor": INK, "markeredgewidth": 0.4}
                ax.plot(path.x, path.y, label=label, zorder=4, **line)
                for _, step in path[path["layer"].isin(marked)].iterrows():
                    ax.annotate(
                        f"{int(step.layer)}", (step.x, step.y), xytext=(4, 4), textcoords="offset points",
                        fontsize="small", color=INK, zorder=5, fontweight="bold",
                        bbox={"facecolor": "white", "alpha": 0.6, "linewidth": 0, "pad": 0.4},
                    )  # fmt: skip
            said = f", trustworthiness {trust[method]:.2f}" if method in trust else ""
            ax.set_title(f"{_NAMES[method]}{said}")
            ax.set_xlabel("distances between paths are no evidence" if method == "umap" else "component 1")
        axes[0, 0].set_ylabel("component 2" if methods[0] == "pca" else "")
        _legend(fig, axes[0, 0])
        paths = paths.assign(trustworthiness=paths["method"].map(trust))
        return finish_about(fig, paths, points, "trajectory_map", model=model, seed=seed)


def affect_plane(plane: pd.DataFrame, *, model=None, seed: int | None = None):
    """The first two components of the specific vectors, and each beside the ratings it may stand for.

    >>> fig = affect_plane(geometry.affect_plane(vectors, layer=3))
    """
    from emolab.geometry.projections import affect_scores

    scores = affect_scores(plane).set_index(["component", "rating"])
    explained = plane.attrs.get("explained", [np.nan, np.nan])
    params = about(plane)["params"]
    n = int(plane["valence"].notna().sum())
    with theme():
        fig, axes = new_figure(1, 3, width=1.0, height=3.9)
        pairs = [("pc1", "pc2"), ("valence", "pc1"), ("arousal", "pc2")]
        for ax, (x, y) in zip(axes[0], pairs, strict=True):
            for label, (color, marker) in styles(plane["emotion"]).items():
                row = plane[plane["emotion"] == label].iloc[0]
                ax.plot(row[x], row[y], marker, color=color, markeredgecolor=INK, markeredgewidth=0.4, label=label)
            names = {"pc1": f"PC1 ({explained[0]:.0%})", "pc2": f"PC2 ({explained[1]:.0%})"}
            ratings = params.get("ratings", "")
            ax.set(xlabel=names.get(x, f"{x} ({ratings})" if ratings else x), ylabel=names[y])
            ax.margins(0.2)
            if x in ("valence", "arousal"):
                r, p = scores.loc[(y, x), ["r", "p"]]
                if ratings:
                    ax.set_xlim(0.7, 9.3)
                ax.set_title(f"r = {r:.2f}, p = {p:.2f}")
            else:
                ax.axhline(0, color=INK, linewidth=0.6)
                ax.axvline(0, color=INK, linewidth=0.6)
                ax.set_title(f"Specific, layer {params.get('layer', '?')} ({params.get('site', '?')})")
        side_legend(fig, *axes[0, 0].get_legend_handles_labels())
        fig.suptitle(
            f"Warning: n = {n} words. An illustration, no test: the signs were chosen to fit, and the least p is "
            f"{_least_p(n)}.",
            fontsize="small",
            color="#B00020",
            x=0.5,
        )
        return finish_about(fig, plane.copy(), plane, "affect_plane", model=model, seed=seed)


def _least_p(n: int) -> str:
    from math import factorial

    return f"{1 / factorial(n):.1g}" if n >= 3 else "1"


def _scatter(ax, cell: pd.DataFrame, *, size: float, alpha: float = 0.8, label: bool = True) -> None:
    for name, (color, marker) in styles(order(cell["condition"])).items():
        own = cell[cell["condition"] == name]
        ax.scatter(
            own.x, own.y, s=size, color=color, marker=marker, alpha=alpha, linewidths=0.2, edgecolors=INK,
            label=name if label else None, rasterized=len(cell) > 2000,
        )  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color("#C8C8C8")


def _legend(fig, ax) -> None:
    handles, labels = ax.get_legend_handles_labels()
    letters = sum(len(label) + 6 for label in labels)
    rows = -(-letters // round(100 * fig.get_figwidth() / STYLES["notebook"][0]))  # a full width holds about a hundred
    top_legend(fig, handles, labels, -(-len(labels) // rows), handletextpad=0.3, columnspacing=1.2)
