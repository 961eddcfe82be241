"""Two models side by side: how alike their maps are by depth, and what steering does in both.

>>> fig = emolab.plot.two_models(maps, doses)                                                  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from emolab.base.errors import need_table
from emolab.base.tables import about
from emolab.experiments.across import ALL, breaking_dose
from emolab.plot.marks import control_look, key, line
from emolab.plot.panels import figure, finish, grid
from emolab.plot.style import CONTROLS, GREY, INK, MEASURES, SITES, look

MAPS = {"rsa": "RSA of the maps", "cka": "CKA of the answers", "cosine": "cosine of vectors"}
_MODELS = (("#0072B2", "o"), ("#D55E00", "s"))
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
    names = list(dict.fromkeys(doses["model"]))[:2]
    measures = [measure for measure in MAPS if measure in set(maps["measure"])]
    panels = grid([*(MAPS[m] for m in measures), "steered"], height=13, need=16, want=24, share="")
    layers = maps[maps["layer"].notna()]
    width = 0.1 * look().size
    for measure in measures:
        rows, ax = layers[layers["measure"] == measure], panels.axes["", MAPS[measure]]
        band = rows.assign(lo=rows["ceiling_lo"], hi=rows["ceiling_hi"])
        line(ax, band, "depth", "ceiling", {"color": _CEILING, "marker": None, "linewidth": width}, bounds="band")
        line(ax, rows, "depth", "null_hi", control_look("shuffled", marker=None, label=None))
        line(ax, rows, "depth", "halves", {"color": INK, "marker": "o", "linewidth": width, "markersize": 2.5 * width})
        line(ax, rows, "depth", "value", {"color": INK, "marker": None, "linewidth": 2 * width})
        ax.axhline(0, color=INK, linewidth=0.6)
        lowest = np.nanmin(rows[["value", "halves", "ceiling_lo"]].to_numpy(dtype=float))
        ax.set(xlim=(0, 1), ylim=(min(-0.1, lowest - 0.05), 1.04), xlabel="relative depth", ylabel="likeness")
    ax = panels.axes["", "steered"]
    shown = doses[(doses["emotion"] == ALL) & (doses["alpha"] >= 0)]
    for name, (color, marker) in zip(names, _MODELS, strict=True):
        own = shown[shown["model"] == name]
        steered, random = (own[own["control"] == control] for control in ("none", "random"))
        random = pd.concat([steered[steered["alpha"] == 0], random])  # where the control starts
        hollow = control_look("random", marker=marker, label=None, markerfacecolor="white")
        line(ax, random, "alpha", "value", hollow, bounds="whiskers")
        line(ax, steered, "alpha", "value", {"color": color, "marker": marker, "label": name}, bounds="bars")
    ax.axvline(_BREAKS, color=INK, linestyle=":", linewidth=1)
    ax.set(ylim=(-0.04, 1.04), xlabel="dose (1 breaks the text)", ylabel=MEASURES["target"])
    handles: list[Any] = [key("all questions", marker=""), key("halves: one model with the other")]
    if maps["ceiling"].notna().any():
        handles.append(Patch(facecolor=_CEILING, alpha=0.4, label="halves: each model with itself"))
    handles.append(key("permuted labels", marker="", color=CONTROLS["shuffled"]["color"], linestyle="--"))
    handles += [key(name, color=color, marker=marker) for name, (color, marker) in zip(names, _MODELS, strict=True)]
    handles.append(key("random direction", color=GREY, face="white"))
    said = {"control": "permuted labels, random directions of equal norm", "interval": "95 % intervals over questions"}
    of = about(maps)
    site = SITES.get(of["params"].get("site"), "site not known")
    said["note"] = f"Maps: {of['params'].get('part', '')} vectors, {site}, {of['n']}"
    data = pd.concat([maps.assign(panel="maps"), doses.assign(panel="doses")], ignore_index=True)
    return finish(
        panels, data, source=doses, function="two_models", legend=handles, said=said,
        title=title or _found(maps, doses, names),
    )  # fmt: skip


def _found(maps: pd.DataFrame, doses: pd.DataFrame, names: list[str]) -> str:
    rsa = maps[(maps["measure"] == "rsa") & maps["layer"].isna()].iloc[0]
    told = f"Maps of {names[0]} and {names[1]}: RSA {rsa['value']:.2f} (permuted labels {rsa['null_hi']:.2f})"
    dose = breaking_dose(doses)
    at = doses[(doses["emotion"] == ALL) & (doses["control"] == "none") & (doses["alpha"] == dose)]
    shares = [at.set_index("model")["value"][name] for name in names]
    return f"{told}; steered at dose {dose:g}, {shares[0]:.2f} and {shares[1]:.2f} of texts are read as the target"
