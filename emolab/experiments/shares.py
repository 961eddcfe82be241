"""Tables behind the figures of sweeps over settings: by layer, by setting against a control, mixtures.

Shares are of texts whose top label is the target, intervals `lo, hi` 95 % over queries, queries of one situation kept
together. Every table says in its attrs which setting it is of (`emolab.base.tables.about`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.base.stats import clusters_of, interval
from emolab.base.tables import about, span
from emolab.experiments.dose_response import collapse, dose_table
from emolab.experiments.headline import is_hit, is_unsteered, judged_labels, one_setting, read_labels, sweep_about
from emolab.judges.judges import UNREAD
from emolab.steering.settings import FIELDS, parse_mixture

_ALL = (*FIELDS, "alpha")
_SAID = {"positions": "{} tokens", "fade": "half-life {}", "alpha": "dose {:g}"}
_SAID |= {"layers": "layers {}", "when": "when {}"}


def dose_summary(
    scored: pd.DataFrame, instructed: pd.DataFrame | None = None, best: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """`dose_table` of a scored sweep; its attrs hold the setting, the first dose that breaks the text, and the best.

    >>> dose_summary(scored, instructed).attrs["about"]["params"]["alpha_star"]
    {'joy': 2.0}
    """
    table = dose_table(scored, instructed)
    star: dict[str, float] = {}
    if not set(table["measure"]) <= {"target", "p_target"}:
        broken = collapse(scored, instructed).dropna(subset=["alpha_star"])
        star = dict(zip(broken["emotion"], broken["alpha_star"], strict=True))
    over = "instructed" if instructed is not None or (scored["control"] == "prompt").any() else "unsteered"
    table.attrs["about"] = sweep_about(scored, alpha_star=star, best=dict(best or {}), perplexity_over=over)
    return table


def instruction_shares(scored: pd.DataFrame) -> pd.DataFrame:
    """What the judge reads in the answers to each instruction: `condition, judged, share, lo, hi, n`.

    >>> instruction_shares(emolab.score(responses)).query("condition == judged")

    The interval (Wilson, over queries) is that of the share that hit, NaN elsewhere; texts that the judge could not
    read count neither way. Raises EmolabError for conditions that the judge does not know.
    """
    need_table(scored, ("query_id", "condition"), "emolab.score of responses")
    scored = scored.assign(top=read_labels(scored))
    judged = order(judged_labels(scored))
    conditions = order(scored["condition"])
    unknown = [c for c in conditions if c not in judged]
    if unknown:
        raise EmolabError(f"conditions {', '.join(unknown)} have no p_ column; the judge knows {', '.join(judged)}")
    rows = []
    for condition in conditions:
        texts = scored[(scored["condition"] == condition) & (scored["top"] != UNREAD)]
        by_query = (texts["top"] == condition).astype(float).groupby(texts["query_id"]).mean()
        hit_bounds = interval(by_query)
        for label in judged:
            bounds = hit_bounds if condition == label else (np.nan, np.nan)
            rows.append((condition, label, float((texts["top"] == label).mean()), *bounds, len(by_query)))
    shares = pd.DataFrame(rows, columns=["condition", "judged", "share", "lo", "hi", "n"])
    shares.attrs["about"] = about(scored)
    return shares


def layer_shares(scored: pd.DataFrame) -> pd.DataFrame:
    """Share of hits of each single layer, of all layers at once and unsteered, and of each control.

    >>> layer_shares(scored).query("control == 'none'").pivot(index="layer", columns="emotion", values="value")

    scored: a sweep at one dose of every single layer (`emolab.steering.each_layer`). Columns `emotion, layers,
    control, value, lo, hi, n, kind, layer`. Raises EmolabError without single layers, or for several settings.
    """
    table = _with_hits(scored, "layers")
    one_setting(table, [field for field in _ALL if field != "layers"])
    plain = is_unsteered(table)
    single = table[~plain & table["layers"].astype(str).str.fullmatch(r"\d+")]
    if not (single["control"] == "none").any():
        raise EmolabError(
            "this table steers no single layer; sweep emolab.at(vectors, emolab.steering.each_layer(vectors))"
        )
    together = table[~plain & (table["layers"] == "all") & (table["control"] == "none")]
    kinds = {"single layer": single, "all layers at once": together, "unsteered": table[plain].assign(layers="")}
    parts = [_shares(texts).assign(kind=kind) for kind, texts in kinds.items() if len(texts)]
    shares = pd.concat(parts, ignore_index=True)
    shares["layer"] = pd.to_numeric(shares["layers"], errors="coerce")
    shares.attrs["about"] = sweep_about(table)
    return shares


def setting_differences(scored: pd.DataFrame, *, control: str = "random") -> pd.DataFrame:
    """Share of hits of each setting and dose less that of its control: `setting, emotion, value, lo, hi, n`.

    >>> setting_differences(scored).query("emotion == 'mean'").sort_values("value")

    Settings are named by what differs, in the table's order. Intervals by Newcombe's method 10 (1998), from those of
    both shares. Raises EmolabError where a setting lacks the control.
    """
    table = _with_hits(scored)
    table = table[~is_unsteered(table) & table["control"].isin(["none", control])]
    varying = [field for field in _ALL if field in table and table[field].nunique() > 1]
    table = table.assign(setting=[_name(row, varying) for row in table[varying].itertuples(index=False)])
    emotions, clusters, rows = order(table["emotion"]), clusters_of(table), []
    for setting in dict.fromkeys(table["setting"]):
        texts = table[table["setting"] == setting]
        wide = texts.pivot_table(index="query_id", columns=["emotion", "control"], values="hit")
        lost = [e for e in emotions for c in ("none", control) if (e, c) not in wide]
        if lost:
            raise EmolabError(
                f"{setting or 'the table'} lacks texts of {lost[0]} with and without control {control!r}; sweep with "
                f'controls=("{control}",)'
            )
        steered, other = (wide.xs(c, axis=1, level="control")[emotions] for c in ("none", control))
        steered, other = (hits.assign(mean=hits.mean(axis=1)) for hits in (steered, other))
        for name in [*emotions, "mean"]:
            p, low, high = _mean(steered[name], clusters)
            q, below, above = _mean(other[name], clusters)
            lo = p - q - math.hypot(p - low, above - q)
            hi = p - q + math.hypot(high - p, q - below)
            rows.append((setting, name, p - q, lo, hi, len(wide)))
    differences = pd.DataFrame(rows, columns=["setting", "emotion", "value", "lo", "hi", "n"])
    differences.attrs["about"] = sweep_about(table, control=control)
    return differences


def mixture_shares(scored: pd.DataFrame) -> pd.DataFrame:
    """What is read in texts steered with mixtures, and how mixed single texts are.

    >>> mixture_shares(scored).query("kind == 'none' and judged == 'joy'")

    One row per kind ("none", "prompt", "random", "unsteered"), mixture and label: `kind, mixture, judged, share, mixed,
    lo, hi, n`. mixed: the smallest probability of a mixture's k emotions times k, averaged over texts: 1 where each
    text shows all alike, 0 where each shows one (or none), whatever the shares. Raises EmolabError for several
    settings.
    """
    table = _with_hits(scored)
    one_setting(table, _ALL)
    table = table.assign(top=read_labels(table), kind=table["control"].mask(is_unsteered(table), "unsteered"))
    judged = order(judged_labels(table))
    clusters, rows = clusters_of(table), []
    for (kind, name), cell in table.groupby(["kind", "emotion"], sort=False):
        wanted = [e for e, weight in parse_mixture(str(name)).items() if weight > 0]
        mixed = len(wanted) * cell[["p_" + e for e in wanted]].min(axis=1) if len(wanted) > 1 else cell["hit"] * np.nan
        mixed = mixed.groupby(cell["query_id"]).mean()
        mean_and_bounds = _mean(mixed, clusters)
        for label in judged:
            rows.append((kind, name, label, (cell["top"] == label).mean(), *mean_and_bounds, len(mixed)))
    shares = pd.DataFrame(rows, columns=["kind", "mixture", "judged", "share", "mixed", "lo", "hi", "n"])
    shares.attrs["about"] = sweep_about(table)
    return shares


def _with_hits(scored: pd.DataFrame, *fields: str) -> pd.DataFrame:
    """The table with `hit`, 1 where the judge's top label is the target."""
    need_table(scored, ("query_id", "emotion", "alpha", "control", *fields), "emolab.score(emolab.sweep(...))")
    return scored.assign(hit=is_hit(scored))


def _shares(table: pd.DataFrame) -> pd.DataFrame:
    """emotion, layers, control, value, lo, hi, n: share of hits, every query counted once whatever its rows."""
    clusters, rows = clusters_of(table), []
    for key, cell in table.groupby(["emotion", "layers", "control"], sort=False):
        values = cell.groupby("query_id")["hit"].mean()
        rows.append((*key, *_mean(values, clusters), int(values.notna().sum())))
    return pd.DataFrame(rows, columns=["emotion", "layers", "control", "value", "lo", "hi", "n"])


def _mean(values: pd.Series, clusters: pd.Series) -> tuple[float, float, float]:
    """Mean of one value per query and its interval."""
    return (float(values.mean()), *interval(values, clusters=clusters[values.index]))


def _name(row: Sequence[Any], varying: Sequence[str]) -> str:
    values = {field: span(x) if field == "layers" else x for field, x in zip(varying, row, strict=True)}
    return " · ".join(_SAID.get(field, "{}").format(value) for field, value in values.items() if value != "")
