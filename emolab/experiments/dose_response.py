"""What steering does as its dose grows: curves with intervals, trend, collapse, and against its controls.

Tables are scored sweeps (`emolab.score(emolab.sweep(...))`) of one setting. Every query counts once, whatever its
seeds; queries of one situation are resampled together. Effects are measured on the logit of the judge's probability,
where 0.01 to 0.1 is as far as 0.9 to 0.99.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logit as _logit
from scipy.stats import rankdata

from emolab.base.errors import EmolabError
from emolab.base.labels import order
from emolab.base.stats import LEVEL, bh, bootstrap_ci, clusters_of, interval, sign_flip
from emolab.experiments.headline import (
    fluent_level,
    headline,
    is_hit,
    is_unsteered,
    one_setting,
    perplexity_column,
    sweep_about,
    target_p,
    with_instructed,
)
from emolab.steering.settings import HELD

_SHARES = ("target", "named", "refusal", "loop")  # of texts
MEASURES = (*_SHARES, "p_target", "adherence", "perplexity_ratio", "compression", "distinct2", "repetition", "overall")
CLIP = 1e-4  # probabilities nearer to 0 or 1 say nothing more on the logit scale
MARGIN = 0.1  # of fluency, which is 0..1
LOCAL = 1.0  # doses within which the slope at 0 is taken
_FLIPS = 8192


def logit(p):
    """log(p / (1 - p)), with p kept within 1e-4 and 1 - 1e-4.

    >>> logit([0.5, 1.0])
    array([0.   , 9.21])
    """
    return _logit(np.clip(np.asarray(p, dtype=float), CLIP, 1 - CLIP))


def dose_table(scored: pd.DataFrame, instructed: pd.DataFrame | None = None, *, seed: int = 0) -> pd.DataFrame:
    """Every measure at every dose with its 95 % interval: `emotion, control, alpha, measure, value, lo, hi, n`.

    >>> dose_table(scored, instructed).query("measure == 'target' and control == 'none'")

    Measures, as far as the table has them: shares of texts, with Wilson intervals, that have the target on top
    ("target"), that name it ("named"), that refuse or speak as a machine ("refusal"), that loop ("loop"); "p_target",
    the judge's probability; "adherence", mean over that of unsteered texts; "perplexity_ratio", median over that of the
    instructed answers (`headline` says which); means of "compression", "distinct2" and "repetition"; "overall", the
    headline score. Control "prompt" (alpha 0) is the instruction in place of steering, from rows of the table or from
    `instructed`. n: queries with a value; texts that the judge cannot read have none of its measures. Raises
    EmolabError as `headline`, and for mixed settings.
    """
    one_setting(scored)
    table = headline(with_instructed(scored, instructed), instructed)
    level, perplexity = fluent_level(table, instructed), perplexity_column(table)
    columns = {m: m for m in MEASURES} | {"p_target": "emotion_score", "perplexity_ratio": perplexity or "perplexity"}
    table["target"] = is_hit(table)
    shares = [m for m in _SHARES if m in table]
    table[shares] = table[shares].astype(float)  # where instructed answers lack one, True and False are objects
    clusters, tables = clusters_of(table), []
    for emotion in order(table["emotion"]):
        texts = table[table["emotion"] == emotion]
        measures = [m for m in MEASURES if columns[m] in texts and texts[columns[m]].notna().any()]
        wide = pd.concat({m: _wide(texts, columns[m]) for m in measures}, axis=1)  # [query, (measure, control, alpha)]
        over = pd.DataFrame({"nothing": 1.0}, index=wide.index)  # what values are divided by, query by query
        over["adherence"] = _base(texts, "adherence") if "adherence" in measures else np.nan
        over["perplexity_ratio"] = _reference(texts, perplexity, instructed, level["perplexity"][emotion])
        groups = clusters.loc[wide.index]
        cells = pd.DataFrame(list(wide.columns), columns=["measure", "control", "alpha"])
        cells["value"], cells["lo"], cells["hi"] = _ratios(wide, over, groups, seed)
        for i in cells.index[cells["measure"].isin(_SHARES)]:  # also where all queries agree an interval has a width
            cells.loc[i, ["lo", "hi"]] = interval(wide.iloc[:, i], clusters=groups, seed=seed)
        tables.append(cells.assign(emotion=emotion, n=wide.notna().sum().to_numpy()))
    return pd.concat(tables, ignore_index=True)[["emotion", "control", "alpha", "measure", "value", "lo", "hi", "n"]]


def dose_curves(table: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """{(emotion, control): value [query, dose]}; unsteered text is dose 0 of every control.

    >>> dose_curves(scored)["joy", "none"].mean()                      # the mean curve of joy, in logits

    Values are the table's column `value`, or else the logit of the target's probability. Queries without a value at
    some dose are left out. Raises EmolabError without unsteered rows or for mixed settings.
    """
    is_unsteered(table, needed=True)
    one_setting(table)
    table = table if "value" in table else table.assign(value=logit(target_p(table)))
    curves = {}
    for emotion in order(table["emotion"]):
        texts = table[table["emotion"] == emotion]
        wide = _wide(texts, "value").drop(columns="prompt", level=0, errors="ignore")
        for control in wide.columns.unique(0):
            curve = wide[control].copy()
            if 0.0 not in curve:
                curve.loc[:, 0.0] = _base(texts, "value")
            curves[emotion, control] = curve[sorted(curve)].dropna()
    return curves


def trend(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Does the target rise with the dose? One row per emotion and control: slope at 0, rank correlation, first drop.

    >>> trend(scored)[["emotion", "control", "slope", "minus_random", "spearman", "first_drop"]]

    table: as for `dose_curves`, which says what is raised.

    Returns:
        `slope`: units per dose, the least-squares line through the doses within 1 of 0, mean over queries.
        `minus_random`: the same less that of random directions, query by query. `spearman`: rank correlation of dose
        and value within each query, mean over queries. Each with `_lo, _hi`, its 95 % interval. `first_drop`: the
        lowest dose that lies significantly below some lower one; NaN where none does, which fewer than five situations
        cannot show. `n` queries. What cannot be had from these doses is NaN.
    """
    curves = dose_curves(table)
    clusters = clusters_of(table)
    rows = []
    for emotion in order(table["emotion"]):
        of_emotion = {control: curve for (name, control), curve in curves.items() if name == emotion}
        slopes = pd.DataFrame({control: _slopes(curve) for control, curve in of_emotion.items()})
        random = slopes["random"] if "random" in slopes else np.nan
        ranks = pd.DataFrame({control: _spearman(curve) for control, curve in of_emotion.items()})
        measures = {"slope": slopes, "minus_random": slopes.sub(random, axis=0), "spearman": ranks}
        values = pd.concat(measures, axis=1)
        groups = clusters.loc[values.index]
        bounds = bootstrap_ci(values, lambda x: np.nanmean(x, axis=0), clusters=groups, seed=seed)
        means = np.transpose(bounds).reshape(len(measures), len(of_emotion), 3)
        for i, (control, curve) in enumerate(of_emotion.items()):
            row: dict[str, Any] = {"emotion": emotion, "control": control}
            for measure, numbers in zip(measures, means[:, i], strict=True):
                row |= dict(zip((measure, f"{measure}_lo", f"{measure}_hi"), numbers, strict=True))
            rows.append(row | {"first_drop": _first_drop(curve, clusters, seed), "n": len(curve)})
    return pd.DataFrame(rows)


def collapse(scored: pd.DataFrame, instructed: pd.DataFrame | None = None, *, seed: int = 0) -> pd.DataFrame:
    """alpha*: the first positive dose at which texts are less fluent than unsteered ones, by more than a margin.

    >>> collapse(scored, instructed).set_index("emotion")["alpha_star"]            # NaN: not within these doses

    One row an emotion: `emotion, alpha_star, measure` ("fluency"), `difference, lo, hi, q, n` at alpha_star (NaN: at
    the dose with the smallest q), and `random_alpha_star`, the same of the random direction. difference:
    `fluency_score` of `headline`, steered minus unsteered text of the same query; one-sided sign flips that it fell by
    more than 0.1, Benjamini-Hochberg over an emotion's positive doses, q < .05.
    """
    one_setting(scored)
    table = headline(scored, instructed)
    clusters = clusters_of(table)
    rows = []
    for emotion in order(table["emotion"]):
        texts = table[table["emotion"] == emotion]
        drops, q, star = _drops(texts, "none", clusters, seed)
        at_dose = (np.nan, np.nan, np.nan, np.nan, 0)  # difference, lo, hi, q, n
        if np.isfinite(q).any():
            dose = star if np.isfinite(star) else drops.columns[int(np.nanargmin(q))]
            change = drops[dose].dropna()
            bounds = bootstrap_ci(change, np.mean, clusters=clusters.loc[change.index], seed=seed)
            at_dose = (*map(float, bounds), float(q[drops.columns.get_loc(dose)]), len(change))
        rows.append((emotion, star, "fluency", *at_dose, _drops(texts, "random", clusters, seed)[2]))
    columns = ["emotion", "alpha_star", "measure", "difference", "lo", "hi", "q", "n", "random_alpha_star"]
    return pd.DataFrame(rows, columns=columns)


def compare(scored: pd.DataFrame, *, control: str = "random", measure: str = "p_target", seed: int = 0) -> pd.DataFrame:
    """Steered minus control at equal dose: `emotion, alpha, difference, lo, hi, p, q, n, control, measure`.

    >>> compare(scored, control="shuffled", measure="target")

    Query by query. control: any that the table holds, at the same dose; "prompt" (the instruction) and "unsteered"
    stand against every dose. measure: "p_target", "target" (it is on top), or a column of numbers, such as "overall"
    of `headline`. p from sign flips, two-sided; q after Benjamini-Hochberg over all rows. Raises EmolabError for a
    control or measure that the table does not hold.
    """
    one_setting(scored)
    table = scored.assign(p_target=target_p(scored), target=is_hit(scored))
    controls = sorted({*table["control"], *(["unsteered"] if is_unsteered(table).any() else [])} - {"none"})
    if control not in controls:
        raise EmolabError(f"no control {control!r} in this table; it holds {', '.join(controls) or 'none'}")
    if measure not in table or not pd.api.types.is_numeric_dtype(table[measure]):
        raise EmolabError(f"no measure {measure!r} of numbers in this table; expected p_target, target or a column")
    differences = {}
    for emotion in order(table["emotion"]):
        texts = table[table["emotion"] == emotion]
        wide, base = _wide(texts, measure), _base(texts, measure)
        for alpha in [alpha for c, alpha in wide.columns if c == "none" and alpha != 0]:
            beside = (control, 0.0 if control == "prompt" else alpha)
            if control == "unsteered" or beside in wide:
                differences[emotion, alpha] = wide["none", alpha] - (base if control == "unsteered" else wide[beside])
    values = pd.DataFrame(differences, index=table["query_id"].unique(), dtype=float)
    clusters = clusters_of(table).loc[values.index]
    effects = pd.DataFrame(list(differences), columns=["emotion", "alpha"])
    bounds = bootstrap_ci(values, lambda rows: np.nanmean(rows, axis=0), clusters=clusters, seed=seed)
    effects["difference"], effects["lo"], effects["hi"] = bounds
    effects["p"] = sign_flip(values, clusters=clusters, seed=seed)
    effects.attrs["about"] = sweep_about(scored)
    n = values.notna().sum().to_numpy()
    return effects.assign(q=bh(effects["p"]), n=n, control=control, measure=measure)


def _wide(texts: pd.DataFrame, column: str) -> pd.DataFrame:
    """[query, (control, alpha)], mean over seeds; unsteered rows beside a clamp or cap are no dose of it."""
    if "op" in texts and texts["op"].isin(HELD).any():
        texts = texts[~is_unsteered(texts)]
    means = texts.groupby(["query_id", "control", "alpha"])[column].mean()
    return means.unstack(["control", "alpha"]).sort_index(axis=1)


def _base(texts: pd.DataFrame, column: str) -> pd.Series:
    """What the unsteered text of each query has."""
    return texts[is_unsteered(texts)].groupby("query_id")[column].mean()


def _reference(texts: pd.DataFrame, perplexity: str | None, instructed: pd.DataFrame | None, level: float):
    """What perplexities are divided by: instructed answers to the same queries, their level, or unsteered texts."""
    prompted = texts[texts["control"] == "prompt"]
    if perplexity is None:
        return level
    if len(prompted):
        return prompted.groupby("query_id")[perplexity].mean()
    return _base(texts, perplexity) if instructed is None else level


def _ratios(wide: pd.DataFrame, over: pd.DataFrame, clusters: pd.Series, seed: int):
    """Mean (perplexity: median) of each column over that of its divisor, which is drawn along with it."""
    names, k = wide.columns.get_level_values(0), wide.shape[1]
    median = np.array([*names, *over]) == "perplexity_ratio"
    divisor = k + np.array([over.columns.get_loc(m if m in over else "nothing") for m in names])
    both = np.column_stack([wide, over])
    middle = np.nanmedian if np.isnan(both[:, median]).any() else np.median  # which is ten times as fast

    def statistic(rows):
        means = np.nanmean(rows, axis=0)
        means[median] = middle(rows[:, median], axis=0)
        return means[:k] / np.where(means > 0, means, np.nan)[divisor]

    return bootstrap_ci(both, statistic, clusters=clusters, seed=seed)


def _drops(texts: pd.DataFrame, control: str, clusters: pd.Series, seed: int):
    """Change from the unsteered text [query, positive alpha], the q that it fell by more than MARGIN, and alpha*."""
    wide = _wide(texts, "fluency_score")
    doses = [float(alpha) for c, alpha in wide.columns if c == control and float(alpha) > 0]
    if not doses:
        return pd.DataFrame(index=wide.index), np.array([]), np.nan
    drops = wide[control][doses].sub(_base(texts, "fluency_score"), axis=0)
    q = bh(sign_flip(drops + MARGIN, clusters=clusters.loc[drops.index], alternative="less", seed=seed))
    return drops, q, next((dose for dose, x in zip(doses, q, strict=True) if x < LEVEL), np.nan)


def _slopes(curve: pd.DataFrame) -> pd.Series:
    """Least-squares slope of each query through the doses within LOCAL of 0; NaN where 0 is the only one."""
    doses = [a for a in curve.columns.astype(float) if abs(a) <= LOCAL]
    if len(doses) < 2 or curve.empty:
        return pd.Series(np.nan, curve.index)
    return pd.Series(np.polyfit(doses, curve[doses].to_numpy().T, 1)[0], curve.index)


def _spearman(curve: pd.DataFrame) -> pd.Series:
    """Rank correlation of dose and value for each query; NaN where a query does not change."""
    ranks = rankdata(curve, axis=1) - (curve.shape[1] + 1) / 2
    doses = np.arange(curve.shape[1]) - (curve.shape[1] - 1) / 2
    with np.errstate(invalid="ignore"):
        return pd.Series(ranks @ doses / np.sqrt((ranks**2).sum(1) * (doses @ doses)), curve.index)


def _first_drop(curve: pd.DataFrame, clusters: pd.Series, seed: int) -> float:
    """The lowest dose that lies significantly below some lower dose; NaN where none does.

    Sign flips of whole clusters, one-sided, against the largest drop of all pairs of doses in each flip (Westfall and
    Young's max-T): the chance to find any drop in a curve that has none is 5 %, however many doses there are.
    """
    values, doses = curve.to_numpy(), curve.columns.to_numpy()
    if values.size == 0 or len(doses) < 2:
        return np.nan
    low, high = np.triu_indices(len(doses), 1)
    changes = pd.DataFrame(values[:, high] - values[:, low])
    sums = changes.groupby(clusters.loc[curve.index].to_numpy()).sum().to_numpy()
    sums = sums / np.sqrt((sums**2).sum(0)).clip(1e-12)  # the same under every flip
    k = len(sums)
    if 2**k <= _FLIPS:
        flips = 1 - 2.0 * (np.arange(2**k)[:, None] >> np.arange(k) & 1)  # the first flips nothing
    else:
        flips = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_FLIPS, k))
        flips[0] = 1
    drops = flips @ sums
    p = (drops.min(1)[:, None] <= drops[0] + 1e-9).mean(0)
    return min(doses[high[p < LEVEL]], default=np.nan)
