"""Figures of responses: maps in two dimensions, probes, what judges read in instructed answers, and how they agree."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order, styles
from emolab.base.tables import about
from emolab.experiments.shares import instruction_shares
from emolab.plot.marks import (
    color_bar,
    control_key,
    control_look,
    forest,
    heat,
    heat_room,
    key,
    layer_axis,
    line,
    named_rows,
    short,
)
from emolab.plot.panels import figure, grid
from emolab.plot.style import GREY, INK, emotion_looks, look
from emolab.say.sentences import largest_row, upper, where_largest

METHODS = {"pca": "PCA", "umap": "UMAP"}
# By what answers differ: colour and marker.
GROUPS = {"question": (INK, "s"), "emotion": ("#832db6", "o")}
_TEXTUAL = {"length": ("#b9ac70", "v"), "tense": ("#3f90da", "^"), "person": ("#a96b59", "D")}
_PROBES = {"centroid": "nearest centroid", "logistic": "logistic"}


@figure
def response_map(points: pd.DataFrame, scores: pd.DataFrame, *, title: str | None = None):
    """Responses coloured by condition, one column per layer, PCA above UMAP, with what each map is worth.

    >>> points = geometry.embed(means)
    >>> fig = response_map(points, geometry.embed_scores(means, points))

    Under each map: trustworthiness (are neighbours on the map neighbours in the full space?). The title tells how far
    conditions are apart in all dimensions, where no map can flatter it. Raises EmolabError where scores are missing.
    """
    need_table(points, ("layer", "method", "condition", "x", "y"), "geometry.embed")
    need_table(scores, ("layer", "method", "trustworthiness", "silhouette", "p"), "geometry.embed_scores")
    layers, methods = sorted(points["layer"].unique()), [m for m in METHODS if m in set(points["method"])]
    lookup = scores.set_index(["layer", "method"])
    missing = [(int(a), m) for a in layers for m in methods if (a, m) not in lookup.index]
    if missing:
        raise EmolabError(f"scores lack layer {missing[0][0]}, {missing[0][1]}; use embed_scores of these points")
    panels = grid([f"layer {layer}" for layer in layers], methods, height=13, need=14, want=24, share="")
    for (method, layer), ax in zip(product(methods, layers), panels.axes.values(), strict=True):
        scatter(ax, points[(points["layer"] == layer) & (points["method"] == method)], "condition")
        ax.set_xlabel(f"trust {lookup.loc[(layer, method), 'trustworthiness']:.2f}", fontsize=look().small)
    panels.label(y=METHODS)
    space = scores[scores["method"] == "full"] if (scores["method"] == "full").any() else scores
    return panels.finish(
        points.merge(scores, on=["layer", "method"], how="left"), title or _apart(space),
        source=points, control="labels shuffled within questions",
        note=f"Permutation p of the silhouette: at most {space['p'].max():.2g} at these layers",
        params={"n_permutations": about(scores)["params"].get("n_permutations")},
    )  # fmt: skip


def _apart(space: pd.DataFrame) -> str:
    """How far conditions are apart at most, as a sentence."""
    best = largest_row(space, space["silhouette"])
    where = "in all dimensions" if best["method"] == "full" else f"on the {METHODS[best['method']]}"
    if best["silhouette"] < 0.1:
        return f"Answers do not group by condition: silhouette at most {best['silhouette']:.2f} {where}"
    return f"Conditions are furthest apart at layer {best['layer']}: silhouette {best['silhouette']:.2f} {where}"


def scatter(ax, points: pd.DataFrame, by: str, *, palette: dict[str, Any] | None = None) -> None:
    """Points of a map, coloured by a column; a map has no scales. palette: in place of the looks of emotions."""
    looks = {} if palette else styles(points[by])
    labels = list(palette or looks)
    sns.scatterplot(
        points, x="x", y="y", hue=by, style=by, hue_order=labels, style_order=labels,
        palette=palette or {label: color for label, (color, _) in looks.items()},
        markers={label: marker for label, (_, marker) in looks.items()} or dict.fromkeys(labels, "o"),
        s=1.3 * look().size, alpha=0.85, edgecolor=INK, linewidth=0.2, legend=False, ax=ax,
        rasterized=len(points) > 2000,
    )  # fmt: skip
    for label, (color, marker) in looks.items():
        ax.scatter([], [], color=color, marker=marker, label=label, edgecolors=INK, linewidths=0.2)
    bare_map(ax)


def bare_map(ax) -> None:
    """A frame without scales: on a map distances are in no units."""
    ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
    ax.grid(False)
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color("#C8C8C8")
    ax.margins(0.06)


@figure
def probe_curve(table: pd.DataFrame, *, words: pd.DataFrame | None = None, title: str | None = None):
    """Accuracy on held-out queries by layer: all conditions, and below it each condition.

    >>> fig = probe_curve(geometry.probe_accuracy(means, test=heldout))

    words: from `geometry.word_accuracy`, drawn as a line: what the words of the answers tell without any model. The
    last probe of the table has the band, the 95 % interval over queries, and the lower panel.
    """
    columns = ("layer", "probe", "emotion", "accuracy", "lo", "hi", "chance", "p")
    need_table(table, columns, "geometry.probe_accuracy")
    *others, probe = table["probe"].unique()
    every = table[table["emotion"] == "all"]
    own = table[(table["probe"] == probe) & (table["emotion"] != "all")]
    labels = order(own["emotion"])
    panels = grid([""], ["all", "each"], height=13, want=60, share="", ratios=[1, max(0.4, 0.13 * len(labels))])
    top, low = panels.axes.values()
    for name in [*others, probe]:
        settings = {"color": INK, "marker": "o"} if name == probe else {"color": "#3f90da", "marker": "s"}
        settings["label"] = f"{_PROBES.get(name, name)} probe"
        line(top, every[every["probe"] == name], "layer", "accuracy", settings, bounds="band" if name == probe else "")
    chance = every.groupby("layer", as_index=False)[["chance"]].mean()
    line(top, chance, "layer", "chance", control_look("shuffled", marker=None, label="chance (shuffled labels)"))
    beside = f"chance: {chance['chance'].mean():.2f}"
    if words is not None:
        alone = float(words.loc[words["emotion"] == "all", "accuracy"].iloc[0])
        beside = f"the words alone: {alone:.2f}"
        top.axhline(alone, color="#a96b59", linestyle="-.", label="words of the answers alone")
    top.set(ylim=(-0.03, 1.03), ylabel="accuracy, held-out queries")
    layer_axis(top, table)
    matrix = own.pivot(index="emotion", columns="layer", values="accuracy").loc[labels]
    heat(low, matrix.reindex(columns=range(int(table["layer"].max()) + 1)))
    color_bar(panels.fig, f"share recognised ({_PROBES.get(probe, probe)} probe)")
    low.set_xlabel("layer")
    curve = every[every["probe"] == probe].set_index("layer")["accuracy"]
    if not title:
        best = where_largest(curve)
        title = f"Probes read the condition best at layer {best}: {curve[best]:.2f} of held-out answers ({beside})"
    return panels.finish(
        table if words is None else pd.concat([table, words], ignore_index=True), title,
        source=table, control="shuffled labels", interval="band: 95 % over queries",
        note=f"Permutation p ≤ {every['p'].max():.2g} at every layer",
    )  # fmt: skip


@figure
def confound_curve(table: pd.DataFrame, *, title: str | None = None):
    """How much of the answers' activations question, emotion, length, tense and person explain, each alone, by layer.

    >>> fig = confound_curve(geometry.confounds(means, responses))

    Adjusted share of variance, each dimension standardised so that outlier coordinates do not decide; 0 is what a
    factor without meaning gives. Factors overlap, so that shares do not sum to one. Dashed: the 95th percentile of
    shuffled rows, in the colour of the factor.
    """
    need_table(table, ("layer", "factor", "explained", "null_hi"), "geometry.confounds")
    panels = grid([""], height=16, want=60)
    ax = panels.axes["", ""]
    for factor, (color, marker) in {**GROUPS, **_TEXTUAL}.items():
        own = table[table["factor"] == factor]
        settings = {"color": color, "marker": marker, "label": factor}
        if factor in _TEXTUAL:
            settings |= {"linewidth": 0.1 * look().size, "markersize": 0.25 * look().size}
        line(ax, own, "layer", "null_hi", control_look("shuffled", marker=None, color=color, label=None, alpha=0.6))
        line(ax, own, "layer", "explained", settings)
    ax.axhline(0, color=INK, linewidth=0.6)
    layer_axis(ax, table)
    panels.label("layer", "share explained (adjusted R²)")
    mean = table.groupby("factor")["explained"].mean().dropna().sort_values(ascending=False)
    shares = ", ".join(f"{factor} {share:.0f} %" for factor, share in (100 * mean).items())
    shuffled = control_key("shuffled", marker="", label="shuffled, 95th percentile")
    return panels.finish(
        table, title or f"Mean share of the answers' activations that each factor explains: {shares or 'unknown'}",
        legend=[*ax.get_legend_handles_labels()[0], shuffled],
        control="rows shuffled (within questions, but for question)",
        note="Each factor alone; every dimension standardised",
    )  # fmt: skip


@figure
def instruction_following(table: pd.DataFrame, *, title: str | None = None):
    """Which emotion the judge reads in the answers to each instruction, and the share that hit, with 95 % intervals.

    >>> fig = instruction_following(instructed)

    table: scored responses with `query_id`, `condition` and p_<emotion> columns, or `experiments.instruction_shares`.
    """
    if "judged" not in getattr(table, "columns", ()):
        table = instruction_shares(table)
    looks, judged = emotion_looks(table["condition"]), order(table["judged"])
    conditions = list(looks)
    matrix = table.pivot(index="condition", columns="judged", values="share").loc[conditions, judged]
    hits = table[table["condition"] == table["judged"]].set_index("condition").loc[conditions, ["share", "lo", "hi"]]
    names = ["read by the judge", "share that hit"]
    panels = grid(names, height=1.9 * len(conditions), need=max(22, heat_room(judged, conditions)), want=40, share="")
    left, right = panels.axes.values()
    heat(left, matrix, numbers=".2f")
    left.set_ylabel("instruction")
    for i, (condition, settings) in enumerate(looks.items()):
        forest(right, hits.loc[[condition]].rename(columns={"share": "value"}), [i], settings)
    right.axvline(1 / len(judged), color=GREY, linestyle="--")
    named_rows(right, short(conditions))
    right.set(xlim=(0, 1.03), xlabel="share of answers")
    share = hits["share"]
    best, worst = f"{share.idxmax()} ({share.max():.2f})", f"{share.idxmin()} ({share.min():.2f})"
    return panels.finish(
        table, title or f"Instructions are followed best for {best}, least for {worst}",
        legend=[key(f"chance, 1/{len(judged)}", marker="", color=GREY, linestyle="--")],
        interval="bars: 95 % Wilson over queries",
    )  # fmt: skip


@figure
def judge_agreement(table: pd.DataFrame, *, title: str | None = None):
    """How often every two judges name the same emotion, beyond chance: Cohen's kappa with its 95 % interval.

    >>> fig = judge_agreement(judges.agreement(scored))

    table: from `judges.agreement`. 0 is chance (or worse), 1 the same; an interval from 1 to 1 says that no text of the
    sample told the judges apart, not that none could.
    """
    need_table(table, ("judge_a", "judge_b", "kappa", "lo", "hi", "n"), "calibration.agreement")
    table = table.reset_index(drop=True)
    pairs = (table["judge_a"] + " and " + table["judge_b"]).str.replace("_", " ")
    known = table[np.isfinite(table["kappa"])]
    panels = grid([""], height=2.2 * len(table) + 1, want=46)
    ax = panels.axes["", ""]
    forest(ax, known.rename(columns={"kappa": "value"}), known.index, {"color": INK, "marker": "o"})
    for place, (kappa, hi) in enumerate(zip(table["kappa"], table["hi"], strict=True)):
        text, x = (f"{kappa:.2f}", hi) if np.isfinite(kappa) else ("no kappa", 0.0)
        ax.annotate(text, (x, place), (4, 0), textcoords="offset points", va="center", fontsize=look().small)
    ax.axvline(0, color=INK, linewidth=0.7)
    named_rows(ax, list(pairs))
    ax.set(xlim=(min([-0.1, *(known["lo"] - 0.05)]), 1.25), xlabel="Cohen's kappa", xticks=[0, 0.5, 1])
    verdict = "No two judges can be compared"
    if len(known):
        best: Any = known["kappa"].idxmax()
        verdict = f"{upper(pairs[best])} agree most (kappa {known['kappa'][best]:.2f})"
    table.attrs["about"] = {**about(table), "n": f"{table['n'].iloc[0]} texts"}
    return panels.finish(table, title or verdict, interval="bars: 95 % bootstrap over texts")
