"""Figures of scored sweeps over settings: which layers, which sites, mixtures of emotions, fading doses.

Shares are of texts whose top label is the target, intervals 95 % over queries, queries of one situation kept together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.base.stats import clusters_of, interval
from emolab.base.tables import span
from emolab.experiments.headline import is_hit, is_unsteered
from emolab.plot.style import (
    GREY,
    INK,
    emotion_kwargs,
    finish,
    layer_axis,
    name_ticks,
    new_figure,
    text_on,
    theme,
    top_legend,
)
from emolab.steering.settings import FIELDS, parse_mixture

_COLUMNS = 5  # small multiples in a row
_SAID = {"positions": "{} tokens", "fade": "half-life {}", "alpha": "dose {:g}", "layers": "layers {}"}
_RANDOM = {"color": GREY, "linewidth": 1, "label": "random direction"}
_CONTROLS = {"random": "random direction", "shuffled": "shuffled labels", "other": "other emotion's vector"}


def layer_curve(table: pd.DataFrame, *, model=None, seed: int | None = None):
    """What steering each single layer does: the share that hits the target by layer, one panel an emotion.

    >>> table = emolab.sweep(model, vectors, queries, alphas=(0, 4), grid={"layers": ["each", "all"]})
    >>> fig = layer_curve(emolab.score(table))

    table: a scored sweep at one dose. Grey: random directions of equal norm. Dashed: all layers at once, dotted:
    unsteered, where the table holds them. Raises EmolabError for a table without single layers or of several settings.
    """
    table = _scored(table, "layers")
    _one(table, but="layers")
    plain = is_unsteered(table)
    single = table[~plain & table["layers"].astype(str).str.fullmatch(r"\d+")]
    if not (single["control"] == "none").any():
        raise EmolabError('this table steers no single layer; sweep with grid={"layers": "each"}')
    together = table[~plain & (table["layers"] == "all") & (table["control"] == "none")]
    parts = {"single layer": single, "all layers at once": together, "unsteered": table[plain].assign(layers="")}
    parts = [_shares(rows, ["emotion", "layers", "control"]).assign(kind=kind) for kind, rows in parts.items()]
    data = pd.concat([rows for rows in parts if len(rows)], ignore_index=True)
    data["layer"] = pd.to_numeric(data["layers"], errors="coerce")
    emotions = order(single["emotion"])
    with theme():
        columns = min(len(emotions), _COLUMNS)
        shape = {"width": max(0.5, columns / _COLUMNS), "height": 0.9 + 2.2 * -(-len(emotions) // columns)}
        fig, axes = new_figure(-(-len(emotions) // columns), columns, **shape, grid={"sharex": True, "sharey": True})
        for ax in axes.ravel()[len(emotions) :]:
            ax.set_visible(False)
        for ax, (emotion, style) in zip(axes.ravel(), emotion_kwargs(emotions).items(), strict=False):
            own = data[data["emotion"] == emotion]
            for control, look in (("random", _RANDOM), ("none", {"label": "emotion vector", "zorder": 3, **style})):
                rows = own[own["layer"].notna() & (own["control"] == control)].sort_values("layer")
                _band(ax, rows["layer"], rows, look)
            for kind, dashes in (("all layers at once", "--"), ("unsteered", ":")):
                for level in own.loc[own["kind"] == kind, "value"]:
                    ax.axhline(level, color=INK, linestyle=dashes, linewidth=1, label=kind)
            layer_axis(ax, int(data["layer"].max()) + 1)
            ax.set(ylim=(-0.03, 1.03), title=emotion)
        for ax in axes[:, 0]:
            ax.set_ylabel("share with target on top")
        _legend(fig, axes[0, 0])
        return _finish(fig, data, table, "layer_curve", model, seed)


def site_map(table: pd.DataFrame, *, control: str = "random", model=None, seed: int | None = None):
    """What each setting does to each emotion: the share that hits the target, less that of the control.

    >>> grid = {"site": ["resid", "attn", "mlp"], "part": ["whole", "specific"]}
    >>> fig = site_map(emolab.score(emolab.sweep(model, vectors, queries, alphas=(0, 1), grid=grid)))

    One row a setting and dose, in the table's order, named by what differs (site, layers, part, op, dose, positions,
    heads, fade); one column an emotion, and their mean. Intervals of differences by Newcombe's method 10 (1998), from
    those of both shares. Raises EmolabError where a setting lacks the control.
    """
    table = _scored(table)
    table = table[~is_unsteered(table) & table["control"].isin(["none", control])]
    varying = [field for field in (*FIELDS, "alpha") if field in table and table[field].nunique() > 1]
    table = table.assign(setting=[_said(row, varying) for row in table[varying].itertuples(index=False)])
    settings, emotions = list(dict.fromkeys(table["setting"])), order(table["emotion"])
    clusters, rows = clusters_of(table), []
    for setting in settings:
        wide = table[table["setting"] == setting].pivot_table(
            index="query_id", columns=["emotion", "control"], values="hit"
        )
        lost = [e for e in emotions for c in ("none", control) if (e, c) not in wide]
        if lost:
            raise EmolabError(
                f"{setting or 'the table'} lacks texts of {lost[0]} with and without control {control!r}; sweep with "
                f'controls=("{control}",)'
            )
        hits = [wide.xs(c, axis=1, level="control")[emotions] for c in ("none", control)]
        hits = [h.assign(mean=h.mean(axis=1)) for h in hits]
        for name in [*emotions, "mean"]:
            (p, low, high), (q, below, above) = (_mean(h[name], clusters) for h in hits)
            bounds = (p - q - math.hypot(p - low, above - q), p - q + math.hypot(high - p, q - below))
            rows.append((setting, name, p - q, *bounds, len(wide)))
    data = pd.DataFrame(rows, columns=["setting", "emotion", "value", "low", "high", "n"])
    names = [*emotions, "mean"]
    cell = {c: data.pivot(index="setting", columns="emotion", values=c).loc[settings, names] for c in data.columns[2:5]}
    with theme():
        fig, axes = new_figure(1, 1, width=min(1.0, 0.3 + 0.12 * len(names)), height=1.3 + 0.5 * len(settings))
        ax = axes[0, 0]
        image = ax.imshow(cell["value"], vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
        for i, j in np.ndindex(len(settings), len(names)):
            value, low, high = (float(cell[c].to_numpy()[i, j]) for c in ("value", "low", "high"))
            ink = "white" if abs(value) > 0.6 else INK
            ax.text(j, i - 0.14, f"{value:+.2f}", ha="center", va="center", color=ink)
            ax.text(j, i + 0.22, f"{low:+.2f} to {high:+.2f}", ha="center", va="center", color=ink, fontsize="x-small")
        ax.axvline(len(emotions) - 0.5, color="white", linewidth=4)
        ax.set_xticks(range(len(names)), names)
        ax.set_yticks(range(len(settings)), settings if varying else [""])
        _bare(ax)
        ax.set_title(f"Share that hits the target, less that of the {_CONTROLS.get(control, control)}")
        fig.colorbar(image, ax=ax, ticks=[-1, 0, 1], shrink=0.8, label="difference")
        return _finish(fig, data, table, "site_map", model, seed, {"control": control})


def mixture_map(table: pd.DataFrame, *, model=None, seed: int | None = None):
    """Which emotions are read in texts steered with mixtures, and whether they stand in one text.

    >>> blends = ["anger", {"anger": 0.5, "joy": 0.5}, "joy"]
    >>> table = emolab.sweep(model, vectors, queries, alphas=(0, 1.5), emotions=blends, controls=("random", "prompt"))
    >>> fig = mixture_map(emolab.score(table))

    table: a scored sweep at one dose and setting. Heat maps: share of texts by top label, steered, told by an
    instruction ("prompt") and with random directions of equal norm, as far as the table holds them. Dots: how mixed
    single texts are, the smallest probability of a mixture's k emotions times k, averaged over texts: 1 where each text
    shows all alike, 0 where each shows one (or none), whatever the shares.
    """
    table = _scored(table)
    _one(table)
    judged = order(c[2:] for c in table.columns if c.startswith("p_"))
    table["kind"] = table["control"].mask(is_unsteered(table), "unsteered")
    names, clusters, rows = list(dict.fromkeys(table["emotion"])), clusters_of(table), []
    for (kind, name), cell in table.groupby(["kind", "emotion"], sort=False):
        wanted = [e for e, weight in parse_mixture(str(name)).items() if weight > 0]
        mixed = len(wanted) * cell[["p_" + e for e in wanted]].min(axis=1) if len(wanted) > 1 else cell["hit"] * np.nan
        mixed = mixed.groupby(cell["query_id"]).mean()
        spread = _mean(mixed, clusters)
        share = (cell["top"].to_numpy()[:, None] == np.array(judged)).mean(axis=0)
        for label, value in zip(judged, share, strict=True):
            rows.append((kind, name, label, value, *spread, len(mixed)))
    columns = ["kind", "mixture", "judged", "share", "mixed", "low", "high", "n"]
    data = pd.DataFrame(rows, columns=columns)
    kinds = [kind for kind in ("none", "prompt", "random") if kind in set(data["kind"])]
    with theme():
        shape = {"width": 1.0, "height": 1.5 + 0.36 * len(names)}
        grid = {"sharey": True, "gridspec_kw": {"width_ratios": [1.4] * len(kinds) + [1]}}
        fig, axes = new_figure(1, len(kinds) + 1, **shape, grid=grid)
        for ax, kind in zip(axes[0], kinds, strict=False):
            own = data[data["kind"] == kind].pivot(index="mixture", columns="judged", values="share")
            matrix = 100 * own.reindex(index=names, columns=judged).fillna(0).to_numpy()
            ax.imshow(matrix, vmin=0, vmax=100, cmap="cividis", aspect="auto")
            text_on(ax, matrix, dark=(60, 100), fmt="{:.0f}")
            name_ticks(ax, names, judged, rotation=30)
            ax.set_title({"none": "Steered", "prompt": "Instructed", "random": "Random directions"}[kind])
            _bare(ax)
        axes[0, 0].set_ylabel("mixture")
        image = axes[0, 0].images[0]
        fig.colorbar(image, ax=list(axes[0, : len(kinds)]), ticks=[0, 50, 100], label="% of texts", shrink=0.9)
        ax = axes[0, -1]
        for kind, label, marker, face, shift in (
            ("none", "steered", "o", INK, -0.15), ("prompt", "instructed", "s", "white", 0.15)
        ):  # fmt: skip
            own = data[(data["kind"] == kind) & data["mixed"].notna()].drop_duplicates("mixture")
            rows = [names.index(name) + shift for name in own["mixture"]]
            ax.hlines(rows, own["low"], own["high"], color=INK)
            if len(own):
                ax.plot(own["mixed"], rows, marker, color=INK, markerfacecolor=face, label=label)
        ax.set(xlim=(-0.05, 1.05), title="In one text")
        ax.set_xticks([0, 0.5, 1], ["one\nalone", "", "all\nalike"])
        ax.grid(axis="y", visible=False)
        if (data["mixed"].notna()).any():
            fig.legend(*ax.get_legend_handles_labels(), loc="outside lower right", ncols=2)
        return _finish(fig, data, table, "mixture_map", model, seed)


def fade_curve(table: pd.DataFrame, *, model=None, seed: int | None = None):
    """What a fading dose does: target, adherence and distinct word pairs against the half-life of the steering.

    >>> table = emolab.sweep(model, vectors, queries, alphas=(0, 3), grid={"fade": [None, 4, 8, 16]})
    >>> fig = fade_curve(emolab.score(table))

    table: a scored sweep at one dose. Thick: mean of all emotions with its interval; thin: each emotion; grey: random
    directions of equal norm; dotted: unsteered. The last point does not fade. A shorter half-life is also a smaller
    dose in sum, so that what it gains has to be held against a smaller dose that does not fade.
    """
    table = _scored(table, "fade")
    _one(table, but="fade")
    plain, known = is_unsteered(table), ("adherence", "distinct2")
    names = {"hit": "share with target on top", "adherence": "adherence (cosine)", "distinct2": "distinct word pairs"}
    measures = ["hit", *(m for m in known if m in table and table[m].notna().any())]
    steered, parts = table[~plain & table["control"].isin(["none", "random"])], []
    for measure in measures:
        for rows, by in ((steered, ["control", "fade"]), (steered, ["control", "fade", "emotion"]), (table[plain], [])):
            if len(rows):
                parts.append(_shares(rows, by, measure).assign(measure=measure))
    data = pd.concat(parts, ignore_index=True).fillna({"emotion": "mean", "control": "unsteered"})
    lives = sorted(steered["fade"].unique())
    place = {life: i for i, life in enumerate(lives)}
    emotions = order(steered["emotion"])
    with theme():
        fig, axes = new_figure(1, len(measures), width=max(0.5, len(measures) / 3), height=3.4)
        for ax, measure in zip(axes[0], measures, strict=True):
            own = data[data["measure"] == measure]
            for emotion, style in emotion_kwargs(emotions).items():
                rows = own[(own["emotion"] == emotion) & (own["control"] == "none")].sort_values("fade")
                look = {**style, "markersize": 4, "linewidth": 0.8, "label": emotion}
                ax.plot(rows["fade"].map(place), rows["value"], **look)
            mean = own[own["emotion"] == "mean"].sort_values("fade")
            rows = mean[mean["control"] == "random"]
            _band(ax, rows["fade"].map(place), rows, _RANDOM)
            rows = mean[mean["control"] == "none"]  # bars: a second band would hide the single emotions
            ax.vlines(rows["fade"].map(place), rows["low"], rows["high"], color=INK)
            ax.plot(rows["fade"].map(place), rows["value"], color=INK, zorder=3, label="mean of emotions")
            for level in own.loc[own["control"] == "unsteered", "value"]:
                ax.axhline(level, color=INK, linestyle=":", linewidth=1, label="unsteered")
            ax.set_xticks(range(len(lives)), ["none" if math.isinf(life) else f"{life:g}" for life in lives])
            ax.set(xlabel="half-life (tokens)", ylabel=names[measure], ylim=(-0.03, 1.03))
        _legend(fig, axes[0, 0])
        return _finish(fig, data, table, "fade_curve", model, seed)


def _scored(table: pd.DataFrame, *fields: str) -> pd.DataFrame:
    """The table with `hit`, 1 where the judge's top label is the target, and `top`, that label."""
    need_table(table, ("query_id", "emotion", "alpha", "control", *fields), "emolab.score(emolab.sweep(...))")
    table = table.assign(hit=is_hit(table))
    judged = [c for c in table.columns if c.startswith("p_")]
    return table.assign(top=table[judged].idxmax(axis=1).str[2:])


def _one(table: pd.DataFrame, *, but: str = "") -> None:
    steered = table[~is_unsteered(table) & (table["control"] != "prompt")]
    for field in [f for f in (*FIELDS, "alpha") if f in table and f != but]:
        kinds = sorted({str(value) for value in steered[field]})
        if len(kinds) > 1:
            raise EmolabError(f"this table mixes {field} = {', '.join(kinds[:5])}; filter it to one of them")


def _shares(table: pd.DataFrame, by: list[str], measure: str = "hit") -> pd.DataFrame:
    """by..., value, low, high, n: mean over queries, each counted once whatever its rows."""
    clusters, rows = clusters_of(table), []
    for key, cell in table.groupby(by, sort=False) if by else [((), table)]:
        values = cell.groupby("query_id")[measure].mean()
        rows.append((*key, *_mean(values, clusters), int(values.notna().sum())))
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "n"])


def _mean(values: pd.Series, clusters: pd.Series) -> tuple[float, float, float]:
    """Mean of one value per query and its interval."""
    return (float(values.mean()), *interval(values, clusters=clusters[values.index]))


def _said(row, varying: Sequence[str]) -> str:
    row = [span(value) if field == "layers" else value for field, value in zip(varying, row, strict=True)]
    return " · ".join(_SAID.get(field, "{}").format(value) for field, value in zip(varying, row, strict=True))


def _band(ax, x, rows: pd.DataFrame, look: dict) -> None:
    if len(rows):
        ax.fill_between(x, rows["low"], rows["high"], color=look["color"], alpha=0.25, linewidth=0)
        ax.plot(x, rows["value"], **look)


def _legend(fig, ax) -> None:
    handles, labels = ax.get_legend_handles_labels()
    top_legend(fig, handles, labels, min(len(labels), 8 if fig.get_figwidth() > 6 else 2))


def _bare(ax) -> None:
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _finish(fig, data, table, function: str, model, seed, params=None):
    steered = table[~is_unsteered(table) & (table["control"] != "prompt")]
    same = {f: steered[f].iloc[0] for f in (*FIELDS, "alpha") if f in steered and steered[f].nunique() == 1}
    said = {f: v for f, v in same.items() if f in ("site", "alpha") or v not in (FIELDS[f], "all", math.inf)}
    n = ", ".join([f"{table['query_id'].nunique()} queries", *(_said([v], [f]) for f, v in said.items())])
    params = {f: str(v) for f, v in same.items()} | (params or {})
    return finish(fig, data, function=function, model=model, n=n, seed=seed, params=params)
