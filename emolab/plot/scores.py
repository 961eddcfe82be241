"""Figures of scored texts: do instructions work, and what does steering do as its dose grows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.base.stats import interval
from emolab.experiments.dose_response import collapse, dose_table
from emolab.experiments.headline import Instructed
from emolab.plot.style import (
    GREY,
    INK,
    emotion_grid,
    emotion_kwargs,
    finish,
    log_axis,
    new_figure,
    panel_title,
    text_on,
    theme,
    top_legend,
)

BROKEN = 100.0  # highest perplexity ratio shown
_TOLD = "#5B4A8A"
_ROWS = {
    "target": "share with target\nemotion on top",
    "adherence": "adherence /\nunsteered",
    "perplexity_ratio": "perplexity",
    "overall": "headline score\n(0 to 1)",
}
_CONTROLS = {
    "random": {"color": GREY, "linestyle": "-", "label": "random direction"},
    "shuffled": {"color": "#4F6D7A", "linestyle": "--", "label": "shuffled labels"},
    "other": {"color": "#7A6A4F", "linestyle": ":", "label": "another emotion's vector"},
}


def instruction_following(table: pd.DataFrame, *, model=None, seed: int | None = None):
    """Which emotion the judge reads in the answers to each instruction, and the share that hit, with 95 % intervals.

    >>> fig = instruction_following(instructed)

    table: scored responses with `query_id`, `condition` and p_<emotion> columns. Intervals over queries (Wilson).
    """
    need_table(table, ("query_id", "condition"), "emolab.score of responses")
    top = _top(table)
    judged = order(_probabilities(table))
    conditions = order(table["condition"])
    unknown = [c for c in conditions if c not in judged]
    if unknown:
        raise EmolabError(f"conditions {', '.join(unknown)} have no p_ column; the judge knows {', '.join(judged)}")
    share = np.array([[(top[table["condition"] == c] == j).mean() for j in judged] for c in conditions])
    hits = table.assign(hit=(top == table["condition"]).astype(float))
    rows = []
    for i, c in enumerate(conditions):
        by_query = hits[hits["condition"] == c].groupby("query_id")["hit"].mean().to_numpy()
        low, high = interval(by_query)
        for j, label in enumerate(judged):
            bounds = (low, high) if c == label else (np.nan, np.nan)
            rows.append((c, label, share[i, j], *bounds, len(by_query)))
    data = pd.DataFrame(rows, columns=["condition", "judged", "share", "low", "high", "n"])
    with theme():
        grid = {"gridspec_kw": {"width_ratios": [1.35, 1]}}
        fig, axes = new_figure(1, 2, width=1.0, height=0.9 + 0.5 * len(conditions), grid=grid)
        left, right = axes[0]
        image = left.imshow(share, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        left.grid(False)
        left.set_xticks(range(len(judged)), judged, rotation=30, ha="right", rotation_mode="anchor")
        left.set_yticks(range(len(conditions)), conditions)
        left.set(ylabel="instruction", title="Emotion read by the judge")
        text_on(left, share, dark=(0.6, 1.0), fmt="{:.2f}")
        fig.colorbar(image, ax=left, ticks=[0, 0.5, 1], label="share")
        for i, (c, kwargs) in enumerate(emotion_kwargs(conditions).items()):
            hit = data[(data.condition == c) & (data.judged == c)].iloc[0]
            right.plot([hit.low, hit.high], [i, i], color=kwargs["color"], solid_capstyle="butt")
            right.plot([hit.share], [i], linestyle="none", **kwargs)
        right.axvline(1 / len(judged), color=GREY, linestyle="--")
        note = {"color": "#6B6B6B", "fontsize": "small", "va": "center"}
        right.text(1 / len(judged) + 0.02, len(conditions) - 0.55, "chance", **note)
        right.set_yticks(range(len(conditions)), conditions)
        right.set(xlim=(0, 1.02), ylim=(len(conditions) - 0.4, -0.6), title="Share that hit")
        right.set_xlabel("share of answers (95 % interval)")
        n = int(table["query_id"].nunique())
        return finish(fig, data, function="instruction_following", model=model, n=f"{n} queries", seed=seed, params={})


def dose_response(
    table: pd.DataFrame,
    *,
    reference: Instructed = None,
    best: Mapping[str, float] | None = None,
    model=None,
    seed: int | None = None,
):
    """What steering does as its dose grows, one column an emotion (six side by side), with its controls.

    >>> fig = dose_response(scores, reference=instructed, best={"joy": 2.0})

    table: a scored sweep of one setting, as `emolab.experiments.dose_table` takes it, whose numbers these are.
    reference: scored answers under instruction, whose level is drawn, too; or only their median perplexity by emotion.
    Rows, as far as there are scores: share of texts whose top emotion is the target; adherence over that of unsteered
    texts; median perplexity over that of instructed answers (else unsteered texts), with the limit 1.5; the headline
    score. Bands are 95 % intervals over queries. Controls start from unsteered text, too. best: the frozen dose of each
    emotion. Shaded: doses from alpha* on, where texts are significantly less fluent (`collapse`).
    """
    data = dose_table(table, reference)
    emotions = order(data["emotion"])
    measures = [m for m in _ROWS if m in set(data["measure"])]
    data = data[data["measure"].isin(measures)]
    star = collapse(table, reference).set_index("emotion")["alpha_star"].dropna() if len(measures) > 1 else {}
    instructed = reference is not None or (table["control"] == "prompt").any()
    with theme():
        shape = {"least": 0.5, "base": 1.3, "each": 1.55, "sharex": "all"}
        fig, axes, side_by_side = emotion_grid(len(measures), len(emotions), **shape)
        looks = emotion_kwargs(emotions)
        for column, emotion in enumerate(emotions):
            for row, measure in enumerate(measures):
                ax = axes[row, column]
                _draw(ax, data[(data.emotion == emotion) & (data.measure == measure)], looks[emotion])
                if best and emotion in best:
                    ax.axvline(best[emotion], color=INK, linestyle=":", label="frozen dose")
                _dress(ax, measure, nbins=5 if side_by_side < 6 else 3)
                if emotion in star:
                    right = ax.get_xlim()[1]
                    ax.axvspan(
                        star[emotion], right, color=INK, alpha=0.09, linewidth=0, label="fluency collapsed (from α*)"
                    )
                    ax.set_xlim(right=right)
            panel_title(axes[0, column], emotion, side_by_side)
            axes[-1, column].set_xlabel("dose α")
        names = dict(_ROWS, perplexity_ratio=f"perplexity /\n{'instructed' if instructed else 'unsteered'}")
        for row, measure in enumerate(measures):
            for ax in axes[row, ::side_by_side]:
                ax.set_ylabel(names[measure])
        _legend(fig, axes)
        params = {"best": dict(best or {}), "alpha_star": dict(star)}
        n = f"{table['query_id'].nunique()} queries"
        return finish(fig, data, function="dose_response", model=model, n=n, seed=seed, params=params)


def _draw(ax, cells: pd.DataFrame, own: dict) -> None:
    curves = {name: rows.sort_values("alpha") for name, rows in cells.groupby("control")}
    plain = cells[(cells["control"] == "none") & (cells["alpha"] == 0)]
    if "none" in curves:
        rows = curves["none"]
        ax.fill_between(rows.alpha, rows.lo, rows.hi, color=own["color"], alpha=0.25, linewidth=0)
        ax.plot(rows.alpha, rows.value, label="emotion vector", zorder=3, **own)
    for name, look in _CONTROLS.items():
        if name in curves:  # unsteered text is where every control starts
            rows = pd.concat([curves[name], plain]).drop_duplicates("alpha").sort_values("alpha")
            ax.fill_between(rows.alpha, rows.lo, rows.hi, color=look["color"], alpha=0.2, linewidth=0)
            ax.plot(rows.alpha, rows.value, linewidth=1, **look)
    if "prompt" in curves and cells["measure"].iloc[0] != "perplexity_ratio":  # there it is the unit
        told = curves["prompt"].iloc[0]
        ax.axhspan(told.lo, told.hi, color=_TOLD, alpha=0.18, linewidth=0)
        ax.axhline(told.value, color=_TOLD, linewidth=1.2, linestyle=(0, (6, 2)), label="instructed, not steered")


def _dress(ax, measure: str, nbins: int) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(nbins=nbins, steps=[1, 2, 5, 10]))
    if measure in ("target", "overall"):
        ax.set_ylim(-0.03, 1.03)
    elif measure == "adherence":
        ax.axhline(1, color=INK, linewidth=0.6)
        ax.set_ylim(bottom=0)
    else:
        ax.axhline(1, color=INK, linewidth=0.6)
        ax.axhline(1.5, color=INK, linewidth=0.9, linestyle="-.", label="limit 1.5")
        ax.set_yscale("log")
        ax.set_ylim(top=min(ax.get_ylim()[1], BROKEN))  # beyond it a text is broken; how badly says nothing more
        log_axis(ax)


def _legend(fig, axes) -> None:
    handles = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = 4 if axes.shape[1] > 3 else 2
    top_legend(fig, handles.values(), handles.keys(), columns)


def _probabilities(table: pd.DataFrame) -> list[str]:
    found = [c[2:] for c in table.columns if c.startswith("p_")]
    if not found:
        raise EmolabError("no p_<emotion> columns; run emolab.score on the table first")
    return found


def _top(table: pd.DataFrame) -> pd.Series:
    columns = ["p_" + e for e in _probabilities(table)]
    if table[columns].isna().any(axis=None):
        raise EmolabError("the p_<emotion> columns hold missing values; score the whole table")
    return table[columns].idxmax(axis=1).str[2:]
