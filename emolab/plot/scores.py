"""Figures of scored texts: do instructions work, and what does steering do as its dose grows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from ..emotions import color, order
from ..errors import EmolabError
from ..stats import interval
from .style import GREY, INK, emotion_kwargs, finish, log_axis, new_figure, text_on, theme

_BOOT = 1000
BROKEN = 100.0  # highest perplexity ratio shown


def instruction_following(table: pd.DataFrame, *, model=None, seed: int | None = None):
    """Which emotion the judge reads in the answers to each instruction, and the share that hit, with 95 % intervals.

    >>> fig = instruction_following(scores)        # doctest: +SKIP

    table: scored responses with `query_id`, `condition` and p_<emotion> columns. Intervals over queries (Wilson).
    """
    _require(table, ("query_id", "condition"))
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
        left.set(ylabel="instruction", title="Emotion read by the judge, share of answers")
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
        right.set(xlim=(0, 1.02), ylim=(len(conditions) - 0.4, -0.6), title="Share that hit (95 % interval)")
        right.set_xlabel("share of answers")
        n = int(table["query_id"].nunique())
        return finish(fig, data, function="instruction_following", model=model, n=f"{n} queries", seed=seed, params={})


def dose_response(
    table: pd.DataFrame,
    *,
    best: Mapping[str, float] | None = None,
    reference: Mapping[str, float] | None = None,
    model=None,
    seed: int | None = None,
):
    """What steering does as its dose grows, one column an emotion, with its controls.

    >>> fig = dose_response(scores, best={"joy": 2.0}, reference={"joy": 7.1})       # doctest: +SKIP

    table: one row a text with `query_id`, `emotion` (steered towards), `alpha`, `control` ("none": the emotion vector;
    "random", "shuffled"; "prompt": instructed instead of steered) and p_<emotion> or `target` (0 or 1), and where known
    `adherence` and `perplexity_instructed` (else `perplexity`). One site, one set of layers and one part at a time.
    First row: share of texts whose top emotion is the target. Second: adherence over that of unsteered texts. Third:
    median perplexity over that of instructed answers (`reference`, or the "prompt" rows; else of unsteered texts), with
    the limit 1.5. Lines are estimates over queries, bands 95 % intervals over queries (shares: Wilson; else
    bootstrap); the grey band is the
    random direction of equal norm. best: the frozen dose of each emotion, marked.
    """
    _require(table, ("query_id", "emotion", "alpha", "control"))
    for column in ("site", "layers", "part"):
        kinds = sorted({str(v) for v in table[column].dropna()}) if column in table else []
        if len(kinds) > 1:
            raise EmolabError(f"this table mixes {column} = {', '.join(kinds[:5])}; filter it to one of them")
    if "target" not in table:
        table = table.assign(target=(_top(table) == table["emotion"]).astype(float))
    if "perplexity_instructed" in table:  # given the instruction: emotional text is not surprising for being emotional
        table = table.assign(perplexity=table["perplexity_instructed"])
    emotions = order(table["emotion"])
    measures = ["target"] + [m for m in ("adherence", "perplexity") if m in table and table[m].notna().any()]
    rows = [_curves(table[table["emotion"] == e], e, m, reference) for e in emotions for m in measures]
    data = pd.concat(rows, ignore_index=True)
    instructed = reference is not None or (table["control"] == "prompt").any()
    with theme():
        shape = {"width": max(0.5, len(emotions) / 5), "height": 1.1 + 1.7 * len(measures)}
        fig, axes = new_figure(len(measures), len(emotions), **shape, grid={"sharex": True, "sharey": "row"})
        for column, emotion in enumerate(emotions):
            for row, measure in enumerate(measures):
                ax = axes[row, column]
                own = data[(data.emotion == emotion) & (data.measure == measure)]
                _draw(ax, own, emotion)
                if best and emotion in best:
                    ax.axvline(best[emotion], color=INK, linestyle=":", label="frozen dose")
                _dress(ax, measure)
            axes[0, column].set_title(emotion, color=INK)
            axes[-1, column].set_xlabel("dose α")
        names = {"target": "share with target\nemotion on top", "adherence": "adherence /\nunsteered"}
        names["perplexity"] = f"perplexity /\n{'instructed' if instructed else 'unsteered'}"
        for row, measure in enumerate(measures):
            axes[row, 0].set_ylabel(names[measure])
        _legend(fig, axes)
        params = {"best": dict(best or {}), "bootstrap": _BOOT}
        n = f"{table['query_id'].nunique()} queries"
        return finish(fig, data, function="dose_response", model=model, n=n, seed=seed, params=params)


def _curves(table: pd.DataFrame, emotion: str, measure: str, reference: Mapping[str, float] | None) -> pd.DataFrame:
    """control, alpha, value, low, high of one emotion and measure. Every query counts once, whatever its seeds."""
    wide = table.pivot_table(index="query_id", columns=["control", "alpha"], values=measure, aggfunc="mean")
    values = wide.to_numpy(dtype=float)  # [query, control x alpha]
    keys = list(wide.columns)
    statistic = np.nanmedian if measure == "perplexity" else np.nanmean
    divisor: np.ndarray | float | None = None
    if measure == "perplexity" and reference is not None:
        if emotion not in reference:
            raise EmolabError(f"reference has no perplexity for {emotion}; it holds {', '.join(reference)}")
        divisor = float(reference[emotion])
    elif measure == "perplexity" and any(control == "prompt" for control, _ in keys):
        divisor = values[:, [i for i, (control, _) in enumerate(keys) if control == "prompt"]].mean(axis=1)
    elif measure != "target":
        if ("none", 0) not in keys:
            raise EmolabError(
                f'{measure} is shown over unsteered texts: {emotion} needs rows of control "none", alpha 0'
            )
        divisor = values[:, keys.index(("none", 0))]
    value, low, high = _bootstrap(values, statistic, divisor)
    if measure == "target":  # also where all queries agree an interval has a width
        low, high = np.array([interval(column) for column in values.T]).T
    curve = pd.DataFrame(keys, columns=["control", "alpha"]).assign(value=value, low=low, high=high)
    curve.insert(0, "measure", measure)
    curve.insert(0, "emotion", emotion)
    curve["n"] = np.isfinite(values).sum(axis=0)
    return curve[curve["control"] != "prompt"].sort_values(["control", "alpha"])


def _bootstrap(values: np.ndarray, statistic, divisor=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate and 95 % interval of each column of [query, column], queries drawn with replacement, seed fixed."""
    draws = np.random.default_rng(0).integers(0, len(values), size=(_BOOT, len(values)))

    def estimate(rows):  # [..., query] -> [..., column]
        found = statistic(values[rows], axis=-2)
        if isinstance(divisor, np.ndarray):
            return found / statistic(divisor[rows], axis=-1)[..., None]
        return found if divisor is None else found / divisor

    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # a draw without any value is a NaN
        low, high = np.nanquantile(estimate(draws), [0.025, 0.975], axis=0)
        return estimate(np.arange(len(values))), low, high


def _draw(ax, curve: pd.DataFrame, emotion: str) -> None:
    controls = {name: rows.sort_values("alpha") for name, rows in curve.groupby("control")}
    if "random" in controls:
        rows = controls["random"]
        ax.fill_between(rows.alpha, rows.low, rows.high, color=GREY, alpha=0.3, linewidth=0, label="random direction")
        ax.plot(rows.alpha, rows.value, color=GREY, linewidth=1)
    if "shuffled" in controls:
        rows = controls["shuffled"]
        ax.plot(rows.alpha, rows.value, color=INK, linestyle="--", linewidth=1, label="shuffled labels")
    if "none" in controls:
        rows = controls["none"]
        ax.fill_between(rows.alpha, rows.low, rows.high, color=color(emotion), alpha=0.25, linewidth=0)
        ax.plot(rows.alpha, rows.value, label="emotion vector", zorder=3, **emotion_kwargs([emotion])[emotion])


def _dress(ax, measure: str) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    if measure == "target":
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
    for ax in axes[:, 0]:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))


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


def _require(table: pd.DataFrame, columns) -> None:
    missing = [c for c in columns if c not in table]
    if missing or not len(table):
        what = f"lacks {', '.join(missing)}" if missing else "is empty"
        raise EmolabError(f"the table {what}; it needs {', '.join(columns)} and the judge's columns")
