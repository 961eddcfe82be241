"""Figures of steered texts: by dose, by layer and setting, by part of the vector, and mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.base.stats import LEVEL
from emolab.base.tables import about
from emolab.experiments.shares import dose_summary, layer_shares, mixture_shares, setting_differences
from emolab.plot.marks import (
    color_bar,
    control_key,
    control_look,
    dose_curves,
    dose_keys,
    filled_keys,
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
from emolab.plot.panels import figure, grid, need_single
from emolab.plot.style import CONTROLS, GREY, INK, MEASURES, PARTS, emotion_looks, look
from emolab.say.sentences import number, upper, where_largest

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
        table = dose_summary(table, reference, best)
    held = [m for m in _ROWS if m in set(table["measure"])]
    chosen = held[:2] if measures is None else list(measures)
    unknown = [m for m in chosen if m not in held]
    if unknown:
        raise EmolabError(f"no measure {unknown[0]!r} in this table; it holds {', '.join(held)}")
    params, looks = about(table)["params"], emotion_looks(table["emotion"])
    star, best = params.get("alpha_star", {}), {**params.get("best", {}), **(best or {})}
    tested = table.loc[table["control"] != "prompt", "alpha"].unique()
    low, high = min(tested), max(tested)
    right = 1.04 * high - 0.04 * low
    panels = grid(list(looks), chosen, height=9, want=22)
    for (measure, emotion), ax in panels.axes.items():
        cells = table[(table["emotion"] == emotion) & (table["measure"] == measure)]
        if measure != "perplexity_ratio":  # there the instruction is the unit
            for value in cells.loc[cells["control"] == "prompt", "value"].head(1):
                level(ax, float(value), "prompt")
        dose_curves(ax, cells, looks[emotion], tested=tested)
        if emotion in best:
            ax.axvline(best[emotion], color=INK, linestyle=":", linewidth=1)
        _measured(ax, measure)
    for (_, emotion), ax in panels.axes.items():
        if emotion in star:
            ax.axvspan(star[emotion], right, facecolor="none", edgecolor="#BBBBBB", hatch="///", linewidth=0, zorder=0)
        ax.set_xlim(1.04 * low - 0.04 * high, right)
    over = params.get("perplexity_over", "reference")
    panels.label("dose", {m: MEASURES[m] for m in chosen} | {"perplexity_ratio": f"perplexity over {over}"})
    handles: list[Any] = dose_keys(table)
    if best:
        handles.append(key("frozen dose", marker="", linestyle=":"))
    if star:
        handles.append(Patch(facecolor="none", edgecolor="#999999", hatch="///", label="text breaks (from α*)"))
    return panels.finish(
        table, title or _risen(table, best),
        legend=handles, interval="bars: 95 % over queries (Wilson for shares)",
        params={"best": best, "alpha_star": star},
    )  # fmt: skip


def _risen(table: pd.DataFrame, best: Mapping[str, float]) -> str:
    """What the dose brings, as a sentence: at the frozen dose, else at the dose with the highest mean share."""
    shares = table[table["measure"] == "target"]
    steered = shares[(shares["control"] == "none") & (shares["alpha"] > 0)]
    if not len(steered):
        return "What steering does as its dose grows"
    if best:
        at = steered[steered["alpha"] == steered["emotion"].map(best)]
        return f"At its frozen dose steering brings {number(at['value'].mean())} of texts to the target"
    mean = steered.groupby("alpha")["value"].mean()
    dose = where_largest(mean)
    plain = shares[(shares["control"] == "none") & (shares["alpha"] == 0)]["value"].mean()
    random = shares[(shares["control"] == "random") & (shares["alpha"] == dose)]["value"]
    beside = f"unsteered {number(plain)}" + (f", random direction {number(random.mean())}" if len(random) else "")
    return f"Steering brings {number(mean.max())} of texts to the target at dose {dose:g} ({beside})"


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
def effect_forest(table: pd.DataFrame, *, title: str | None = None):
    """Steered minus control at every dose, one panel per emotion, with 95 % intervals over queries.

    >>> fig = effect_forest(experiments.compare(scores, control="random"))

    table: from `experiments.compare`, one control and one measure. Filled markers have q < .05 (Benjamini-Hochberg over
    all cells of the table). Raises EmolabError for another table.
    """
    columns = ("emotion", "alpha", "difference", "lo", "hi", "q", "n", "control", "measure")
    need_table(table, columns, "emolab.experiments.dose_response.compare")
    need_single(table, "control", "measure")
    doses, looks = sorted(table["alpha"].unique()), emotion_looks(table["emotion"])
    measure, control = table["measure"].iloc[0], table["control"].iloc[0]
    against = CONTROLS.get(control, {"label": control})["label"]
    panels = grid(list(looks), height=1.5 * len(doses) + 2, share="xy")
    for emotion, ax, rows in panels.each(table.rename(columns={"difference": "value"}), "emotion"):
        forest(ax, rows, rows["alpha"].map(doses.index), looks[emotion], filled=rows["q"] < LEVEL)
        ax.axvline(0, color=INK, linewidth=0.7)
        named_rows(ax, [f"{dose:g}" for dose in doses])
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))
    panels.label("difference", "dose")
    if not title:
        mean = table.groupby("alpha")["difference"].mean()
        dose = where_largest(mean)
        most = f"{number(mean[dose], signed=True)} at dose {dose:g}, mean over emotions"
        title = upper(f"{MEASURES.get(measure, measure)}: steered minus {against} {most}")
    data = table.copy()
    data.attrs["about"] = {**about(table), "n": f"{table['n'].max()} queries"}
    return panels.finish(
        data, title,
        legend=filled_keys(f"q < {LEVEL:g}", "no difference was found"), control=against,
        interval="bars: 95 % bootstrap over queries", params={"control": control, "measure": measure, "level": LEVEL},
    )  # fmt: skip


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
        table = layer_shares(table)
    looks, layers = emotion_looks(table["emotion"]), table["layer"].dropna()
    panels = grid(list(looks), height=11, want=26)
    for emotion, ax, rows in panels.each(table, "emotion"):
        single = rows[rows["layer"].notna()]
        random, steered = (single[single["control"] == control] for control in ("random", "none"))
        line(ax, random, "layer", "value", control_look("random"), tested=layers, bounds="whiskers")
        line(ax, steered, "layer", "value", looks[emotion], tested=layers, bounds="bars")
        for value in rows.loc[rows["kind"] == "unsteered", "value"]:
            level(ax, value, "unsteered")
        for value in rows.loc[rows["kind"] == "all layers at once", "value"]:
            ax.axhline(value, color=INK, linestyle="--", linewidth=1)
        layer_axis(ax, table)
        ax.set_ylim(-0.04, 1.04)
    panels.label("layer steered", MEASURES["target"])
    handles, kinds = [key("emotion vector"), control_key("random")], set(table["kind"])
    if "all layers at once" in kinds:
        handles.append(key("all layers at once, same dose in each", marker="", linestyle="--"))
    if "unsteered" in kinds:
        handles.append(control_key("unsteered", marker=""))
    if not title:
        mean = table[table["layer"].notna() & (table["control"] == "none")].groupby("layer")["value"].mean()
        best = where_largest(mean)
        title = f"One layer alone does most at layer {best:.0f}: {number(mean[best])} of texts read as the target"
    return panels.finish(table, title, legend=handles, interval="bars: 95 % Wilson over queries")


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
        table = setting_differences(table, control=control)
    settings = list(table["setting"].unique())
    looks = emotion_looks(e for e in table["emotion"] if e != "mean")
    control = about(table)["params"].get("control", control)
    against = CONTROLS.get(control, {"label": control})["label"]
    panels = grid([""], height=1.7 * len(settings) + 2, want=60)
    ax = panels.axes["", ""]
    ax.axvline(0, color=INK, linewidth=0.7)
    mean = table[table["emotion"] == "mean"].set_index("setting").loc[settings]
    forest(ax, mean, range(len(settings)), {"color": INK, "marker": "o"})
    spread = np.linspace(-0.24, 0.24, len(looks)) if len(looks) > 1 else [0.24]
    for shift, (emotion, settings_of) in zip(spread, looks.items(), strict=True):
        own = table[table["emotion"] == emotion].set_index("setting").loc[settings]
        places = np.arange(len(settings)) + shift + 0.08
        ax.plot(own["value"], places, linestyle="none", **settings_of, markersize=0.42 * look().size, zorder=5)
    named_rows(ax, [setting or "this setting" for setting in settings])
    ax.set_xlabel(f"{MEASURES['target']}, less {against}")
    handles = [key("mean of emotions", linestyle="")]
    handles += [key(e, linestyle="", color=x["color"], marker=x["marker"]) for e, x in looks.items()]
    ranked = mean.sort_values("value", kind="stable", ascending=False)
    best, least = ranked.iloc[0], ranked.iloc[-1]
    gain = number(best["value"], signed=True)
    verdict = f"{best.name or 'steering'} brings most texts to the target: {gain} over {against}"
    if len(mean) > 1 and not best["lo"] > least["hi"]:
        reach = f"{number(least['value'], signed=True)} to {gain}"
        verdict = f"no difference between settings was found: {reach} of the texts over {against}"
    return panels.finish(
        table, title or upper(verdict),
        legend=handles, control=against, interval="bars: 95 % of the mean (Newcombe)", params={"control": control},
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
        table = mixture_shares(table)
    judged, names = order(table["judged"]), list(table["mixture"].unique())
    kinds = {"none": "steered", "prompt": "instructed", "random": CONTROLS["random"]["label"]}
    kinds = {kind: name for kind, name in kinds.items() if kind in set(table["kind"])}
    lines = [name.replace(" + ", "\n+ ") for name in names]
    need = heat_room(judged, lines)
    panels = grid([*kinds.values(), "mixed within one text"], height=3.2 * len(names), need=need, want=24, share="")
    *maps, last = panels.axes.values()
    for kind, ax in zip(kinds, maps, strict=True):
        matrix = table[table["kind"] == kind].pivot(index="mixture", columns="judged", values="share")
        heat(ax, matrix.reindex(index=names, columns=judged).set_axis(lines), numbers=".2f")
        ax.set_xlabel("read by the judge")
    mixed = table[table["mixed"].notna()].drop_duplicates(["kind", "mixture"]).rename(columns={"mixed": "value"})
    instructed = {"color": CONTROLS["prompt"]["color"], "marker": CONTROLS["prompt"]["marker"]}
    for kind, shift, settings in (("none", -0.15, {"color": INK, "marker": "o"}), ("prompt", 0.15, instructed)):
        rows = mixed[mixed["kind"] == kind]
        if len(rows):
            forest(last, rows, rows["mixture"].map(names.index) + shift, settings)
    named_rows(last, short(lines))
    last.set(xlim=(-0.04, 1.04), xticks=(0.0, 0.5, 1.0), xlabel="0: one alone, 1: all alike")
    color_bar(panels.fig, "share of texts")
    mean = mixed.loc[mixed["kind"] == "none", "value"].mean()
    verdict = "What is read in texts steered with mixtures"
    if np.isfinite(mean):
        how = "one emotion at a time" if mean < 0.5 else "their emotions together"
        verdict = f"Texts steered with mixtures show {how} (mixed within one text: {number(mean)} of 1)"
    return panels.finish(
        table, title or verdict,
        legend=[key("steered", linestyle=""), *([control_key("prompt")] if "prompt" in kinds else [])],
        interval="bars: 95 % over queries",
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
    measures = ("target", "leak", "emotional")
    data = table[(table["emotion"] == "all") & table["measure"].isin(measures)]
    names = {"unsteered": "unsteered", **PARTS}
    parts = [p for p in names if p in set(data["part"])]
    panels = grid([MEASURES[m] for m in measures], height=1.6 * len(parts) + 1, need=17, want=32, share="xy")
    for measure, ax in zip(measures, panels.axes.values(), strict=True):
        for place, part in enumerate(parts):
            row = data[(data["part"] == part) & (data["measure"] == measure)]
            settings = {"color": INK if part in ("whole", "specific", "shared") else GREY, "marker": "o"}
            differs = part == "whole" or not (row["minus_whole_lo"].iloc[0] <= 0 <= row["minus_whole_hi"].iloc[0])
            forest(ax, row, [place], settings, filled=[differs])
        named_rows(ax, [names[p] for p in parts])
        ax.set_xlim(-0.05, 1.05)
    panels.label("share of texts")
    shares = data.pivot(index="part", columns="measure", values="value")
    verdict = "How purely each part steers"
    if {"whole", "specific"} <= set(parts):
        whole, specific = (
            f"{PARTS[p]}: target {number(shares.loc[p, 'target'])}, another emotion {number(shares.loc[p, 'leak'])}"
            for p in ("whole", "specific")
        )
        verdict = f"{upper(whole)}; {specific}"
    return panels.finish(
        data, title or verdict,
        legend=filled_keys("whole vector, or differs from it", "no difference from it was found"),
        control="random direction of equal norm", interval="bars: 95 % bootstrap over queries",
    )  # fmt: skip
