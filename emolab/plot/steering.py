"""Figures of steered texts: by dose, by layer and setting, by part of the vector, and mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from emolab.base.errors import EmolabError, need_number, need_table
from emolab.base.labels import order
from emolab.base.tables import about
from emolab.plot.marks import (
    color_bar,
    control_key,
    control_look,
    forest,
    heat,
    heat_room,
    key,
    layer_axis,
    level,
    line,
    log_axis,
    named_rows,
    short,
)
from emolab.plot.panels import figure, finish, grid
from emolab.plot.style import CONTROLS, GREY, INK, MEASURES, PARTS, emotion_looks, look

BROKEN = 100.0  # highest perplexity ratio shown: beyond it a text is broken; how badly says nothing more
LIMIT = 1.5  # perplexity ratio that texts should stay below
_ROWS = ("target", "perplexity_ratio", "adherence", "overall")


@figure
def dose_response(
    table: pd.DataFrame,
    *,
    reference: pd.DataFrame | None = None,
    best: Mapping[str, float] | None = None,
    measures: Sequence[str] | None = None,
    title: str | None = None,
):
    """What steering does as its dose grows, one column per emotion, with its controls.

    >>> fig = dose_response(scores, reference=instructed, best={"joy": 2.0})

    table: a scored sweep of one setting, or what `experiments.dose_summary` makes of it. reference: scored answers
    under instruction, whose level is drawn, too. best: the frozen dose of each emotion. measures: rows, of "target"
    (texts read as the target), "perplexity_ratio" (over instructed answers, else unsteered texts, with the limit 1.5),
    "adherence" (over unsteered texts) and "overall" (headline score); default the first two that the table has. Every
    marker is a tested dose on its 95 % interval; lines end where a dose was not tested. Hatched: doses from alpha* on,
    where texts are significantly less fluent (`experiments.collapse`).
    """
    if "measure" not in getattr(table, "columns", ()):
        from emolab.experiments.shares import dose_summary

        table = dose_summary(table, reference, best)
    held = [m for m in _ROWS if m in set(table["measure"])]
    chosen = held[:2] if measures is None else list(measures)
    unknown = [m for m in chosen if m not in held]
    if unknown:
        raise EmolabError(f"no measure {unknown[0]!r} in this table; it holds {', '.join(held)}")
    emotions, params = order(table["emotion"]), about(table)["params"]
    star, best = params.get("alpha_star", {}), {**params.get("best", {}), **(best or {})}
    looks, tested = emotion_looks(emotions), table.loc[table["control"] != "prompt", "alpha"].unique()
    panels = grid(emotions, chosen, height=9, want=22)
    for (measure, emotion), ax in panels.axes.items():
        cells = table[(table["emotion"] == emotion) & (table["measure"] == measure)]
        curves = dict(list(cells.groupby("control")))
        plain = cells[(cells["control"] == "none") & (cells["alpha"] == 0)]
        for name in [c for c in ("random", "shuffled", "other") if c in curves]:
            own = pd.concat([plain, curves[name]]).drop_duplicates("alpha")  # where every control starts
            line(ax, own, "alpha", "value", control_look(name), tested=tested, bounds="whiskers")
        if "prompt" in curves and measure != "perplexity_ratio":  # there it is the unit
            level(ax, float(curves["prompt"]["value"].iloc[0]), "prompt")
        if "none" in curves:
            line(ax, curves["none"], "alpha", "value", looks[emotion], tested=tested, bounds="bars")
        if emotion in best:
            ax.axvline(best[emotion], color=INK, linestyle=":", linewidth=1)
        _measured(ax, measure)
    right = 1.04 * max(tested) - 0.04 * min(tested)
    for (_, emotion), ax in panels.axes.items():
        if emotion in star:
            ax.axvspan(star[emotion], right, facecolor="none", edgecolor="#BBBBBB", hatch="///", linewidth=0, zorder=0)
        ax.set_xlim(1.04 * min(tested) - 0.04 * max(tested), right)
    over = params.get("perplexity_over", "reference")
    panels.label("dose", {m: MEASURES[m] for m in chosen} | {"perplexity_ratio": f"perplexity over {over}"})
    handles: list[Any] = [key("emotion vector", color=INK)]
    handles += [control_key(c) for c in ("random", "shuffled", "other") if c in set(table["control"])]
    handles += [control_key("prompt", marker="")] if "prompt" in set(table["control"]) else []
    handles += [key("frozen dose", marker="", linestyle=":")] if best else []
    if star:
        handles.append(Patch(facecolor="none", edgecolor="#999999", hatch="///", label="text breaks (from α*)"))
    said = {"interval": "bars: 95 % over queries (Wilson for shares)", "params": {"best": best, "alpha_star": star}}
    return finish(
        panels, table, source=table, function="dose_response", legend=handles, said=said,
        title=title or _risen(table, best),
    )  # fmt: skip


def _risen(table: pd.DataFrame, best: Mapping[str, float]) -> str:
    """What the dose brings, as a sentence: at the frozen dose, else at the dose with the highest mean share."""
    shares = table[table["measure"] == "target"]
    steered = shares[(shares["control"] == "none") & (shares["alpha"] > 0)]
    if not len(steered):
        return "What steering does as its dose grows"
    if best:
        at = steered[steered["alpha"] == steered["emotion"].map(best)]
        return f"At its frozen dose steering brings {at['value'].mean():.2f} of texts to the target"
    mean = steered.groupby("alpha")["value"].mean()
    dose, plain = mean.idxmax(), shares[(shares["control"] == "none") & (shares["alpha"] == 0)]["value"].mean()
    told = f"Steering brings {mean.max():.2f} of texts to the target at dose {dose:g} (unsteered {plain:.2f}"
    random = shares[(shares["control"] == "random") & (shares["alpha"] == dose)]["value"]
    return f"{told}, random direction {random.mean():.2f})" if len(random) else f"{told})"


def _measured(ax, measure: str) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    if measure in ("target", "overall"):
        ax.set_ylim(-0.04, 1.04)
    elif measure == "adherence":
        ax.axhline(1, color=INK, linewidth=0.6)
        ax.set_ylim(bottom=0)
    else:
        ax.axhline(1, color=INK, linewidth=0.6)
        ax.axhline(LIMIT, color=INK, linewidth=0.9, linestyle="-.")
        ax.set_yscale("log")
        ax.set_ylim(top=min(ax.get_ylim()[1], BROKEN))
        log_axis(ax)


@figure
def effect_forest(table: pd.DataFrame, *, level: float = 0.05, title: str | None = None):
    """Steered minus control at every dose, one panel per emotion, with 95 % intervals over queries.

    >>> fig = effect_forest(experiments.compare(scores, control="random"))

    table: from `experiments.compare`, one control and one measure. Filled markers have q below `level`
    (Benjamini-Hochberg over all cells of the table). Raises EmolabError for another table.
    """
    columns = ("emotion", "alpha", "difference", "lo", "hi", "q", "n", "control", "measure")
    need_table(table, columns, "emolab.experiments.dose_response.compare")
    need_number("level", level, 0, 1)
    for column in ("control", "measure"):
        if table[column].nunique() != 1:
            raise EmolabError(f"this table mixes {column} = {', '.join(table[column].unique())}; filter it to one")
    doses = sorted(table["alpha"].unique())
    measure, control = table["measure"].iloc[0], table["control"].iloc[0]
    against = CONTROLS.get(control, {"label": control})["label"]
    emotions = order(table["emotion"])
    panels = grid(emotions, height=1.5 * len(doses) + 2, share="xy")
    for emotion, ax in panels.columns():
        own = table[table["emotion"] == emotion].rename(columns={"difference": "value"})
        forest(
            ax, own, [doses.index(a) for a in own["alpha"]], emotion_looks(emotions)[emotion], filled=own["q"] < level
        )
        ax.axvline(0, color=INK, linewidth=0.7)
        named_rows(ax, [f"{dose:g}" for dose in doses])
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))
    panels.label("difference", "dose")
    mean = table.groupby("alpha")["difference"].mean()
    told = f"{MEASURES.get(measure, measure)}: steered minus {against} {mean.max():+.2f} at dose {mean.idxmax():g}"
    data = table.copy()
    data.attrs["about"] = {**about(table), "n": f"{table['n'].max()} queries"}
    said = {"interval": "bars: 95 % bootstrap over queries", "control": against}
    said["params"] = {"control": control, "measure": measure, "level": level}
    return finish(
        panels, data, source=data, function="effect_forest", legend=_filled(level), said=said,
        title=title or f"{told[0].upper()}{told[1:]}, mean over emotions",
    )  # fmt: skip


def _filled(level: float):
    return [
        key(f"q < {level:g}", linestyle="", color=INK),
        key("no difference was found", linestyle="", color=INK, face="white"),
    ]


@figure
def layer_curve(table: pd.DataFrame, *, title: str | None = None):
    """What steering each single layer does: the share that hits the target by layer, one panel per emotion.

    >>> settings = [*emolab.steering.each_layer(vectors), emolab.Setting()]
    >>> table = emolab.sweep(model, emolab.at(vectors, settings), queries, alphas=(0, 4))
    >>> fig = layer_curve(emolab.score(table))

    table: a scored sweep at one dose, or `experiments.layer_shares`. Controls are random directions of equal norm.
    Level lines: all layers at once, and unsteered, where the table holds them; all layers get the same dose each, which
    breaks the text sooner. Raises EmolabError for a table without single layers or of several settings.
    """
    if "kind" not in getattr(table, "columns", ()):
        from emolab.experiments.shares import layer_shares

        table = layer_shares(table)
    emotions = order(table["emotion"])
    layers = table["layer"].dropna()
    panels = grid(emotions, height=11, want=26)
    for emotion, ax in panels.columns():
        own = table[table["emotion"] == emotion]
        single = own[own["layer"].notna()]
        for control in ("random", "none"):
            rows = single[single["control"] == control]
            main = control == "none"
            settings = emotion_looks(emotions)[emotion] if main else control_look("random")
            line(ax, rows, "layer", "value", settings, tested=layers, bounds="bars" if main else "whiskers")
        for value in own.loc[own["kind"] == "unsteered", "value"]:
            level(ax, value, "unsteered")
        for value in own.loc[own["kind"] == "all layers at once", "value"]:
            ax.axhline(value, color=INK, linestyle="--", linewidth=1)
        layer_axis(ax, int(layers.max()) + 1)
        ax.set_ylim(-0.04, 1.04)
    panels.label("layer steered", MEASURES["target"])
    handles = [key("emotion vector"), control_key("random")]
    handles += [key("all layers at once, same dose in each", marker="", linestyle="--")] * (
        "all layers at once" in set(table["kind"])
    )
    handles += [control_key("unsteered", marker="")] * ("unsteered" in set(table["kind"]))
    mean = table[table["layer"].notna() & (table["control"] == "none")].groupby("layer")["value"].mean()
    told = f"One layer alone does most at layer {mean.idxmax():.0f}: {mean.max():.2f} of texts read as the target"
    said = {"interval": "bars: 95 % Wilson over queries"}
    return finish(panels, table, source=table, function="layer_curve", legend=handles, said=said, title=title or told)


@figure
def site_map(table: pd.DataFrame, *, control: str = "random", title: str | None = None):
    """What each setting does: the share that hits the target, less that of the control, per emotion and their mean.

    >>> parts = ("whole", "specific")
    >>> settings = [emolab.Setting(site=site, part=part) for site in ("resid", "attn") for part in parts]
    >>> fig = site_map(emolab.score(emolab.sweep(model, emolab.at(vectors, settings), queries, alphas=(0, 1))))

    table: a scored sweep, or `experiments.setting_differences`. One row per setting and dose, in the table's order,
    named by what differs; the mean has its 95 % interval (Newcombe), emotions are small markers. Raises EmolabError
    where a setting lacks the control.
    """
    if "setting" not in getattr(table, "columns", ()):
        from emolab.experiments.shares import setting_differences

        table = setting_differences(table, control=control)
    settings = list(dict.fromkeys(table["setting"]))
    emotions = order(e for e in table["emotion"] if e != "mean")
    control = about(table)["params"].get("control", control)
    against = CONTROLS.get(control, {"label": control})["label"]
    panels = grid([""], height=1.7 * len(settings) + 2, want=60)
    ax = panels.axes["", ""]
    ax.axvline(0, color=INK, linewidth=0.7)
    spread = np.linspace(-0.24, 0.24, len(emotions)) if len(emotions) > 1 else [0.24]
    mean = table[table["emotion"] == "mean"].set_index("setting").loc[settings]
    forest(ax, mean, range(len(settings)), {"color": INK, "marker": "o", "label": None})
    for shift, (emotion, look_of) in zip(spread, emotion_looks(emotions).items(), strict=True):
        own = table[table["emotion"] == emotion].set_index("setting").loc[settings]
        places = np.arange(len(settings)) + shift + 0.08
        ax.plot(own["value"], places, linestyle="none", **look_of, markersize=0.42 * look().size, zorder=5)
    named_rows(ax, [s or "this setting" for s in settings])
    ax.set_xlabel(f"{MEASURES['target']}, less {against}")
    handles = [key("mean of emotions", linestyle="")]
    handles += [key(e, linestyle="", color=x["color"], marker=x["marker"]) for e, x in emotion_looks(emotions).items()]
    ranked = mean.sort_values("value", kind="stable", ascending=False)
    best, least = ranked.iloc[0], ranked.iloc[-1]
    told = f"{best.name or 'steering'} brings most texts to the target: {best['value']:+.2f} over {against}"
    if len(mean) > 1 and not best["lo"] > least["hi"]:
        reach = f"{least['value']:+.2f} to {best['value']:+.2f}"
        told = f"no difference between settings was found: {reach} of the texts over {against}"
    said = {"interval": "bars: 95 % of the mean (Newcombe)", "control": against, "params": {"control": control}}
    return finish(
        panels, table, source=table, function="site_map", legend=handles, said=said,
        title=title or f"{told[0].upper()}{told[1:]}",
    )  # fmt: skip


@figure
def mixture_map(table: pd.DataFrame, *, title: str | None = None):
    """Which emotions are read in texts steered with mixtures, and whether they stand in one text.

    >>> blends = ["anger", {"anger": 0.5, "joy": 0.5}, "joy"]
    >>> directions = emolab.at(vectors, emotions=blends)
    >>> table = emolab.sweep(model, directions, queries, alphas=(0, 1.5), controls=("random", "prompt"))
    >>> fig = mixture_map(emolab.score(table))

    table: a scored sweep at one dose and setting, or `experiments.mixture_shares`. Heat maps: share of texts by top
    label, steered, told by an instruction and with random directions of equal norm, as far as the table holds them.
    Last panel: how mixed single texts are: 1 where each shows all emotions of the mixture alike, 0 where one alone.
    """
    if "mixture" not in getattr(table, "columns", ()):
        from emolab.experiments.shares import mixture_shares

        table = mixture_shares(table)
    judged, names = order(table["judged"]), list(dict.fromkeys(table["mixture"]))
    titles = {"none": "steered", "prompt": "instructed", "random": CONTROLS["random"]["label"]}
    kinds = [kind for kind in titles if kind in set(table["kind"])]
    last, lines = "mixed within one text", [name.replace(" + ", "\n+ ") for name in names]
    panels = grid(
        [*(titles[k] for k in kinds), last], height=3.2 * len(names), need=heat_room(judged, lines), want=24, share=""
    )
    for kind in kinds:
        own = table[table["kind"] == kind].pivot(index="mixture", columns="judged", values="share")
        matrix = own.reindex(index=names, columns=judged).rename(index=lambda name: name.replace(" + ", "\n+ "))
        heat(panels.axes["", titles[kind]], matrix, (0, 1), numbers=".2f")
        panels.axes["", titles[kind]].set_xlabel("read by the judge")
    ax = panels.axes["", last]
    for kind, marker, shift in (("none", "o", -0.15), ("prompt", CONTROLS["prompt"]["marker"], 0.15)):
        own = table[(table["kind"] == kind) & table["mixed"].notna()].drop_duplicates("mixture")
        color = INK if kind == "none" else CONTROLS["prompt"]["color"]
        places = [names.index(name) + shift for name in own["mixture"]]
        if len(own):
            forest(ax, own.rename(columns={"mixed": "value"}), places, {"color": color, "marker": marker})
    named_rows(ax, short(lines))
    ax.set(xlim=(-0.04, 1.04), xticks=(0.0, 0.5, 1.0), xlabel="0: one alone, 1: all alike")
    color_bar(panels.fig, "share of texts")
    mixed = table[(table["kind"] == "none") & table["mixed"].notna()].drop_duplicates("mixture")["mixed"].mean()
    told = "What is read in texts steered with mixtures"
    if np.isfinite(mixed):
        told = (
            f"Texts steered with mixtures show {'one emotion at a time' if mixed < 0.5 else 'their emotions together'}"
        )
        told += f" (mixed within one text: {mixed:.2f} of 1)"
    handles = (
        [key("steered", linestyle=""), control_key("prompt")] if "prompt" in kinds else [key("steered", linestyle="")]
    )
    said = {"interval": "bars: 95 % over queries"}
    return finish(panels, table, source=table, function="mixture_map", legend=handles, said=said, title=title or told)


@figure
def confusion_map(table: pd.DataFrame, *, title: str | None = None):
    """Share of texts by emotion steered to and emotion read, one heat map per part, all at equal norm.

    >>> fig = confusion_map(experiments.confusion(scored))

    table: from `experiments.confusion`. Unsteered texts are left out: they are the same for all emotions. The shared
    part is one direction for all targets; its rows differ by dose alone.
    """
    need_table(table, ("part", "emotion", "judged", "share"), "purity.confusion")
    parts = [p for p in PARTS if p in set(table["part"])]
    emotions, judged = order(table["emotion"]), order(table["judged"])
    titles = {part: PARTS[part] for part in parts}
    panels = grid(
        list(titles.values()), height=1.8 * len(emotions), need=heat_room(judged, emotions), want=34, share=""
    )
    hit = {}
    for part in parts:
        matrix = table[table["part"] == part].pivot(index="emotion", columns="judged", values="share")
        matrix = matrix.reindex(index=emotions, columns=judged)
        heat(panels.axes["", titles[part]], matrix, (0, 1), numbers=".2f")
        own = table[(table["part"] == part) & (table["emotion"] == table["judged"])]
        hit[part] = own["share"].mean()
        panels.axes["", titles[part]].set_title(f"{titles[part]}: {hit[part]:.2f} hit")
    panels.label("read by the judge", "steered to")
    color_bar(panels.fig, "share of texts")
    told = "; ".join(f"{titles[part]} {share:.2f}" for part, share in hit.items())
    return finish(
        panels, table, source=table, function="confusion_map", title=title or f"Share read as the target: {told}",
        said={"control": "random direction of equal norm"},
    )  # fmt: skip


@figure
def purity_dots(table: pd.DataFrame, *, title: str | None = None):
    """How each part steers at equal norm, over all emotions: target, leak, emotional at all, with 95 % intervals.

    >>> fig = purity_dots(experiments.purity(scored))

    table: from `experiments.purity`; shares of texts. Hollow: no difference from the whole vector was found, since the
    interval of the difference over the same queries holds zero.
    """
    columns = ("part", "emotion", "measure", "value", "lo", "hi", "minus_whole", "minus_whole_lo", "minus_whole_hi")
    need_table(table, columns, "purity.purity")
    measures = {m: MEASURES[m] for m in ("target", "leak", "emotional")}
    own = table[(table["emotion"] == "all") & table["measure"].isin(measures)]
    names = {"unsteered": "unsteered", **PARTS}
    parts = [p for p in names if p in set(own["part"])]
    panels = grid(list(measures.values()), height=1.6 * len(parts) + 1, need=17, want=32, share="xy")
    for measure, name in measures.items():
        ax = panels.axes["", name]
        for place, part in enumerate(parts):
            row = own[(own["part"] == part) & (own["measure"] == measure)]
            settings = {"color": INK if part in ("whole", "specific", "shared") else GREY, "marker": "o"}
            differs = part == "whole" or not (row["minus_whole_lo"].iloc[0] <= 0 <= row["minus_whole_hi"].iloc[0])
            forest(ax, row, [place], settings, filled=[differs])
        named_rows(ax, [names[p] for p in parts])
        ax.set_xlim(-0.05, 1.05)
    panels.label("share of texts")
    shares = own.pivot(index="part", columns="measure", values="value")
    told = "How purely each part steers"
    if {"whole", "specific"} <= set(shares.index):
        told = "; ".join(
            f"{PARTS[p]}: target {shares.loc[p, 'target']:.2f}, another emotion {shares.loc[p, 'leak']:.2f}"
            for p in ("whole", "specific")
        )
        told = told[0].upper() + told[1:]
    handles = [key("whole vector, or differs from it", linestyle="")]
    handles.append(key("no difference from it was found", linestyle="", face="white"))
    said = {"interval": "bars: 95 % bootstrap over queries", "control": "random direction of equal norm"}
    return finish(
        panels, own.copy(), source=table, function="purity_dots", legend=handles, said=said, title=title or told
    )
