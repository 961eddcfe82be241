"""Two models side by side: how alike their maps are by depth, and what steering does in both."""

from __future__ import annotations

import pandas as pd
from matplotlib.patches import Patch

from emolab.base.errors import need_table
from emolab.base.tables import about
from emolab.experiments.across import ALL, breaking_dose
from emolab.plot.marks import control_key, control_look, key, line
from emolab.plot.panels import figure, grid
from emolab.plot.style import GREY, INK, MEASURES, SITES, look

MAPS = {"rsa": "RSA of the maps", "cka": "CKA of the answers", "cosine": "cosine of vectors"}
_MODELS = ({"color": "#0072B2", "marker": "o"}, {"color": "#D55E00", "marker": "s"})
_CEILING = "#009E73"
_BREAKS = 1.0  # the dose at which text breaks


@figure
def two_models(maps: pd.DataFrame, doses: pd.DataFrame, *, title: str | None = None):
    """Likeness of two models' maps by relative depth, and the share of texts read as the target by dose.

    >>> fig = two_models(geometry.map_agreement(vectors, tuned), experiments.model_doses(scored))  # doctest: +SKIP

    One panel per measure of likeness. Solid: all questions; dashed: permuted labels, 95th percentile. With markers: one
    model on half of the questions with the other on the other half; to be compared with the band, each model with
    itself in the same way (mean and middle 95 % of the splits). In the last panel both models' texts, mean over
    emotions, with 95 % intervals, and hollow their random directions; text breaks at dose 1.
    """
    need_table(maps, ("measure", "layer", "depth", "value", "null_hi", "halves", "ceiling"), "geometry.map_agreement")
    need_table(doses, ("model", "emotion", "control", "alpha", "value", "lo", "hi"), "experiments.model_doses")
    models = dict(zip(doses["model"].unique(), _MODELS, strict=False))  # the third is their difference
    measures = [measure for measure in MAPS if measure in set(maps["measure"])]
    panels = grid([*(MAPS[m] for m in measures), "steered"], height=13, need=16, want=24, share="")
    *likeness, steered = panels.axes.values()
    width = 0.1 * look().size
    for measure, ax in zip(measures, likeness, strict=True):
        rows = maps[(maps["measure"] == measure) & maps["layer"].notna()]
        band = rows.assign(lo=rows["ceiling_lo"], hi=rows["ceiling_hi"])
        line(ax, band, "depth", "ceiling", {"color": _CEILING, "marker": None, "linewidth": width}, bounds="band")
        line(ax, rows, "depth", "null_hi", control_look("shuffled", marker=None, label=None))
        line(ax, rows, "depth", "halves", {"color": INK, "marker": "o", "linewidth": width, "markersize": 2.5 * width})
        line(ax, rows, "depth", "value", {"color": INK, "marker": None, "linewidth": 2 * width})
        ax.axhline(0, color=INK, linewidth=0.6)
        lowest = min([-0.05, *rows[["value", "halves", "ceiling_lo"]].min().dropna()])
        ax.set(xlim=(0, 1), ylim=(lowest - 0.05, 1.04), xlabel="relative depth", ylabel="likeness")
    shown = doses[(doses["emotion"] == ALL) & (doses["alpha"] >= 0)]
    for name, settings in models.items():
        curves = dict(list(shown[shown["model"] == name].groupby("control")))
        plain = curves["none"][curves["none"]["alpha"] == 0]  # where the control starts
        random = pd.concat([plain, curves["random"]]) if "random" in curves else plain
        hollow = control_look("random", marker=settings["marker"], label=None, markerfacecolor="white")
        line(steered, random, "alpha", "value", hollow, bounds="whiskers")
        line(steered, curves["none"], "alpha", "value", {**settings, "label": name}, bounds="bars")
    steered.axvline(_BREAKS, color=INK, linestyle=":", linewidth=1)
    steered.set(ylim=(-0.04, 1.04), xlabel="dose (1 breaks the text)", ylabel=MEASURES["target"])
    within = [Patch(facecolor=_CEILING, alpha=0.4, label="halves: each model with itself")]
    handles = [
        key("all questions", marker=""),
        key("halves: one model with the other"),
        *(within if maps["ceiling"].notna().any() else []),
        control_key("shuffled", marker="", label="permuted labels"),
        *(key(name, **settings) for name, settings in models.items()),
        key("random direction", color=GREY, face="white"),
    ]
    of = about(maps)
    site = SITES.get(of["params"].get("site"), "site not known")
    return panels.finish(
        pd.concat([maps.assign(panel="maps"), doses.assign(panel="doses")], ignore_index=True),
        title or _verdict(maps, doses, list(models)),
        source=doses, legend=handles, control="permuted labels, random directions of equal norm",
        interval="95 % intervals over questions",
        note=f"Maps: {of['params'].get('part', '')} vectors, {site}, {of['n']}",
    )  # fmt: skip


def _verdict(maps: pd.DataFrame, doses: pd.DataFrame, names: list[str]) -> str:
    rsa = maps[(maps["measure"] == "rsa") & maps["layer"].isna()].iloc[0]
    alike = f"Maps of {names[0]} and {names[1]}: RSA {rsa['value']:.2f} (permuted labels {rsa['null_hi']:.2f})"
    dose = breaking_dose(doses)
    at_dose = doses[(doses["emotion"] == ALL) & (doses["control"] == "none") & (doses["alpha"] == dose)]
    first, second = at_dose.set_index("model")["value"][names]
    return f"{alike}; steered at dose {dose:g}, {first:.2f} and {second:.2f} of texts are read as the target"
