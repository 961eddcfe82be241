"""Figures of single heads: maps by layer and head, their effects beside controls, a map of all."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from scipy.optimize import linear_sum_assignment

from emolab.base.errors import EmolabError, need_number, need_table
from emolab.base.labels import head_name, order, styles
from emolab.base.stats import LEVEL
from emolab.plot.marks import color_bar, control_look, filled_keys, forest, heat, key, layer_axis, line, named_rows
from emolab.plot.panels import figure, grid, need_single
from emolab.plot.responses import GROUPS, bare_map
from emolab.plot.style import CONTROLS, GREY, INK, emotion_looks, look
from emolab.say.sentences import largest_row

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
TESTS = {"ablate": "direction ablated", "patch": "output patched in", "steer": "own vector added"}
_UNITS = {"words": "nats of emotion-word log-probability"}


@figure
def head_map(table: pd.DataFrame, value: str = "contribution", *, top: int = 3, title: str | None = None):
    """One quantity of every head, layers from left to right, one panel per emotion; the largest heads are named.

    >>> fig = head_map(maps, "split_half")
    >>> fig = head_map(effects, "share")

    table: from `heads.head_maps` (norm, contribution, direct, split_half, probe) or `emolab.head_effects` (effect,
    share, attribution, direct). Where it has a column q and effects are shown, a ring marks q < .05. Signed quantities
    are red above zero and blue below, on one scale for all emotions. Heads that were not tested, and layers that have
    none, stay grey.
    """
    need_table(table, ("layer", "head", "emotion"), "emolab.heads.head_vectors.head_maps or emolab.head_effects")
    if value not in VALUES or value not in table:
        known = [v for v in VALUES if v in table]
        raise EmolabError(f"cannot show {value!r} of this table; it holds {', '.join(known) or 'no quantity of heads'}")
    label = VALUES[value][0]
    if value == "probe" and "chance" in table:
        label += f" (chance {table['chance'].mean():.2f})"
    if value in ("effect", "share") and "test" in table:
        label += f" ({TESTS.get(table['test'].iloc[0], '')}; {table['measure'].iloc[0]})"
    n_heads = int(table["head"].max()) + 1
    panels = grid(order(table["emotion"]), height=max(7, 0.9 * n_heads), need=20, want=30, share="")
    ringed = "q" in table and value in ("effect", "share")
    for _, ax, rows in panels.each(table, "emotion"):
        head_cells(ax, rows, value, like=table)
        if ringed:
            ring(ax, rows[rows["q"] < LEVEL])
    panels.label("layer", "head")
    color_bar(panels.fig, label, *head_scale(table, value))
    keep = ["layer", "head", "emotion", value, *(["q"] if "q" in table else [])]
    largest = table[value].abs().groupby([table["layer"], table["head"]]).mean().nlargest(top)
    names = ", ".join(f"{head_name(layer, head)} {largest[layer, head]:.2f}" for layer, head in list(largest.index))
    return panels.finish(
        table[keep], title or f"{label.split(':')[0].split(' (')[0].capitalize()}: largest on average {names}",
        legend=[key(f"q < {LEVEL:g}", linestyle="", face="none")] if ringed else [],
        params={"value": value, "level": LEVEL},
    )  # fmt: skip  # fmt: skip


def head_cells(ax, own: pd.DataFrame, value: str, like: pd.DataFrame) -> None:
    """The heat map [head, layer] of one emotion, on the scale of the whole table."""
    matrix = own.pivot(index="head", columns="layer", values=value)
    matrix = matrix.reindex(index=range(int(like["head"].max()) + 1), columns=range(int(like["layer"].max()) + 1))
    heat(ax, matrix, *head_scale(like, value), up=True)


def head_scale(table: pd.DataFrame, value: str) -> tuple[tuple[float, float], str]:
    """Lowest and highest value of the colours, and their map."""
    _, low, high = VALUES[value]
    peak = float(table[value].abs().max())
    peak = peak if np.isfinite(peak) and peak > 0 else 1.0
    if low == "signed":
        return (-peak, peak), "RdBu_r"
    return (0.0, peak if high is None else float(high)), "cividis"


def ring(ax, heads: pd.DataFrame) -> None:
    """A ring around each of these heads."""
    ax.scatter(
        heads["layer"] + 0.5, heads["head"] + 0.5, s=1.6 * look().size, facecolors="none", edgecolors=INK, linewidths=1
    )


@figure
def head_forest(table: pd.DataFrame, *, top: int = 5, title: str | None = None):
    """The heads with the largest effects, one panel per emotion on one scale, with 95 % intervals and their controls.

    >>> fig = head_forest(effects)

    table: from `emolab.head_effects`, one test and one measure. Rows are the `top` heads by their largest effect on any
    emotion. Filled markers have q < .05. Cross: the same change along a random direction of that head. Bar: mean of the
    other tested heads of its layer.
    """
    columns = "layer head emotion test measure effect lo hi q random_direction other_heads"
    need_table(table, columns.split(), "emolab.head_effects")
    need_number("top", top, 1, whole=True)
    need_single(table, "test", "measure")
    tested = table[table["effect"].notna()]
    tested = tested.assign(name=[head_name(*head) for head in zip(tested["layer"], tested["head"], strict=True)])
    largest = tested["effect"].abs().groupby([tested["layer"], tested["head"]]).max().nlargest(top)
    heads = [head_name(*head) for head in largest.index]
    shown = tested[tested["name"].isin(heads)]
    looks = emotion_looks(table["emotion"])
    panels = grid(list(looks), height=1.8 * len(heads) + 1, need=14, want=30)
    random, others = CONTROLS["random"]["color"], CONTROLS["other"]["color"]
    for emotion, ax, rows in panels.each(shown, "emotion"):
        places = rows["name"].map(heads.index)
        ax.axvline(0, color=INK, linewidth=0.7)
        forest(ax, rows.rename(columns={"effect": "value"}), places, looks[emotion], filled=rows["q"] < LEVEL)
        ax.plot(rows["random_direction"], places + 0.24, "x", color=random, zorder=5)
        ax.plot(rows["other_heads"], places - 0.24, "|", color=others, markersize=0.8 * look().size, zorder=3)
        named_rows(ax, heads)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))
    panels.label("change")
    test, measure = table["test"].iloc[0], table["measure"].iloc[0]
    untested = "; no mark: not tested for that emotion" if len(shown) < len(heads) * len(looks) else ""
    if not title:
        first = largest_row(shown, shown["effect"].abs())
        change = f"({first['effect']:+.2f} [{first['lo']:.2f}, {first['hi']:.2f}])"
        title = f"{TESTS[test].capitalize()}: {first['name']} changes {first['emotion']} most {change}"
    return panels.finish(
        shown[list(table)],
        title,
        legend=[
            *filled_keys(f"q < {LEVEL:g}", "no difference from random was found"),
            key("random direction of that head", linestyle="", marker="x", color=random),
            key("other heads of its layer", linestyle="", marker="|", color=others),
        ],
        interval="bars: 95 % bootstrap over queries",
        note=f"Change in {_UNITS.get(measure, f'the judge’s probability ({measure})')}{untested}",
        params={"top": top, "level": LEVEL},
    )


@figure
def head_umap(points: pd.DataFrame, cosines: pd.DataFrame, *, largest: int = 4, title: str | None = None):
    """Heads' unit vectors on a map, marked by emotion, and the cosines behind it by layer.

    >>> fig = head_umap(heads.embed_heads(vectors), heads.head_cosines(vectors))

    points: from `heads.embed_heads`, one per head and emotion; size is the vector's norm, and the `largest` heads (at
    most 14) are named at their longest vector. Distances between clusters of a UMAP are no evidence.
    cosines: from `heads.head_cosines`: are vectors alike that share their head, or those that share their emotion? Band
    and lines: 95 % interval over heads; grey: 95 % of random directions.
    """
    need_table(points, ("layer", "head", "emotion", "norm", "x", "y", "trustworthiness"), "heads.embed_heads")
    need_table(cosines, ("layer", "alike", "cosine", "lo", "hi", "random"), "heads.head_cosines")
    need_number("largest", largest, 0, len(_AROUND), whole=True)
    names = [f"UMAP, trustworthiness {points['trustworthiness'].iloc[0]:.2f}", "within a layer"]
    panels = grid(names, height=20, need=24, want=40, share="")
    left, right = panels.axes.values()
    top, size = points["norm"].max(), look().size
    looks = styles(points["emotion"])
    mixed = np.random.default_rng(0).integers(0, 10, len(points))  # drawn in turns: no emotion lies over all others
    for turn, (emotion, (color, marker)) in product(range(10), looks.items()):
        own = points[(mixed == turn) & (points["emotion"] == emotion)]
        left.scatter(
            own["x"], own["y"], s=size * (0.4 + 5 * own["norm"] / top), color=color, alpha=0.85, marker=marker,
            edgecolors=INK, linewidths=0.2, rasterized=len(points) > 2000,
        )  # fmt: skip
    bare_map(left)
    _name_heads(left, points, list(points.groupby(["layer", "head"])["norm"].mean().nlargest(largest).index))
    null = cosines.groupby("layer", as_index=False)["random"].max()
    right.fill_between(null["layer"], -null["random"], null["random"], color=GREY, alpha=0.3, linewidth=0)
    right.axhline(0, color=INK, linewidth=0.6)
    for alike, bounds, settings in (
        ("head", "band", {"color": INK, "marker": "o", "label": "same head, other emotion"}),
        ("emotion", "whiskers", {"color": GROUPS["emotion"][0], "marker": "s", "label": "other head, same emotion"}),
        ("neither", "", control_look("other", label="other head, other emotion")),
    ):
        line(right, cosines[cosines["alike"] == alike], "layer", "cosine", settings, bounds=bounds)
    layer_axis(right, cosines)
    right.set(xlabel="layer", ylabel="mean cosine of two vectors")
    handles = [key(emotion, linestyle="", color=color, marker=marker) for emotion, (color, marker) in looks.items()]
    for share in (1.0, 0.25):
        handles.append(key(f"norm {share * top:.2g}", linestyle="", face="white"))
        handles[-1].set_markersize(np.sqrt(size * (0.4 + 5 * share)))
    mean = cosines.groupby("alike")["cosine"].mean()
    within = f"cosine {mean['head']:.2f} within a head, {mean.get('emotion', np.nan):.2f} within an emotion"
    by_head = mean["head"] > mean.get("emotion", -1.0)
    group = "by what each head does, not by emotion" if by_head else "by emotion, not by what each head does"
    return panels.finish(
        pd.concat([points.assign(panel="map"), cosines.assign(panel="cosines", emotion="all")], ignore_index=True),
        title or f"Heads group {group}: {within}",
        source=points, legend=[*handles, *right.get_legend_handles_labels()[0]], control="random directions (grey)",
        interval="band and lines: 95 % over heads", params={"largest": largest},
    )  # fmt: skip  # fmt: skip


# Where names may stand around a map, as shares of its width and height.
_AROUND = [(x, y) for x in (0.08, 0.92) for y in (0.12, 0.37, 0.63, 0.88)]
_AROUND += [(x, y) for x in (0.29, 0.5, 0.71) for y in (0.05, 0.95)]


def _name_heads(ax, points: pd.DataFrame, heads) -> None:
    """Name each head around the map, with a line to its longest vector; of the shortest lines no two cross."""
    low, high = points[["x", "y"]].min(), points[["x", "y"]].max()
    low, high = low - 0.2 * (high - low), high + 0.2 * (high - low)
    ax.set(xlim=(low["x"], high["x"]), ylim=(low["y"], high["y"]))
    longest = points.loc[points.groupby(["layer", "head"])["norm"].idxmax()].set_index(["layer", "head"])
    at = longest.loc[heads, ["x", "y"]].astype(float)
    places = np.array(_AROUND)
    distance = np.linalg.norm(((at - low) / (high - low)).to_numpy()[:, None] - places, axis=-1)
    for row, place in zip(*linear_sum_assignment(distance), strict=True):
        ax.annotate(
            head_name(*heads[row]), tuple(at.iloc[row]), tuple(places[place]), textcoords="axes fraction",
            ha="center", va="center", fontsize=look().small, gid="free",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": INK, "linewidth": 0.5},
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6},
        )  # fmt: skip
