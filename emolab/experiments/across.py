"""What steering does in two models, on one axis of doses: both curves, their random directions, and the difference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.base.stats import bootstrap_ci, clusters_of, interval
from emolab.base.tables import noted
from emolab.experiments.headline import is_hit, is_unsteered, one_setting, sweep_about

ALL = "all"  # the mean over the emotions of both, question by question
BEYOND = "beyond random"
_CELL = ["emotion", "control", "alpha"]


def model_doses(scored: Mapping[str, pd.DataFrame], *, seed: int = 0) -> pd.DataFrame:
    """Share of texts read as the target in two models at every dose, with random directions, and the difference.

    >>> table = model_doses({"plain": scored, "tuned": scored_of_the_tuned})                      # doctest: +SKIP
    >>> table.query("emotion == 'all' and alpha == 1")[["model", "control", "value", "lo", "hi"]]  # doctest: +SKIP

    scored: two scored sweeps by the name of their model, each of one setting and with doses in the unit "breaking":
    doses in lengths of vectors say nothing of another model.

    Returns:
        `model, emotion, control, alpha, value, lo, hi, n`, of the emotions that both have and of "all", their mean.
        Control "beyond random" is "none" less "random", question by question: a model that shows an emotion anyway
        shows it with any direction. Model "second - first" is the difference at a dose that both were given, paired
        in the questions that both answered. Intervals are 95 % over n questions, those of one situation kept together.

    Raises:
        EmolabError: not two tables, another unit, no emotion or no dose above 0 in common, the same query_id for two
            questions, and as `dose_table`.
    """
    if len(scored) != 2:
        raise EmolabError(f"{len(scored)} tables are given; expected two scored sweeps by the name of their model")
    for name, table in scored.items():
        _need_breaking(name, table)
    need_same_questions(scored)
    emotions = [order(table["emotion"]) for table in scored.values()]
    shared = [emotion for emotion in emotions[0] if emotion in emotions[1]]
    if not shared:
        raise EmolabError(f"the two sweeps have no emotion in common: {' with '.join(map(', '.join, emotions))}")
    wide = {name: _by_question(table, shared) for name, table in scored.items()}
    clusters = pd.concat([clusters_of(table) for table in scored.values()])
    clusters = clusters[~clusters.index.duplicated()]
    shares = [_shares(name, table, clusters, seed) for name, table in wide.items()]
    doses = pd.concat([*shares, _difference(wide, clusters, seed)], ignore_index=True)
    abouts = [sweep_about(table) for table in scored.values()]
    params = {key: x for key, x in abouts[0]["params"].items() if abouts[1]["params"].get(key) == x}
    n = f"{' and '.join(dict.fromkeys(str(len(table)) for table in wide.values()))} questions"
    return noted(doses, " and ".join(scored), n=n, seed=abouts[0]["seed"], params=params)


def breaking_dose(doses: pd.DataFrame) -> float:
    """The dose of `model_doses` at which two models are compared: of those that both were given the one nearest to 1.

    >>> breaking_dose(model_doses({"plain": scored, "tuned": scored_of_the_tuned}))              # doctest: +SKIP
    1.0
    """
    shared = doses[doses["model"] == doses["model"].unique()[2]]["alpha"]
    above = shared[shared > 0].to_numpy()
    return float(above[np.abs(above - 1).argmin()])


def need_same_questions(tables: Mapping[str, pd.DataFrame]) -> None:
    """EmolabError where a query_id of both tables stands for two different questions."""
    for table in tables.values():
        need_table(table, ("query_id", "query"), "emolab.sweep or emolab.collect_responses")
    first, second = (table.drop_duplicates("query_id").set_index("query_id")["query"] for table in tables.values())
    differs = [key for key in first.index.intersection(second.index) if first[key] != second[key]]
    if differs:
        raise EmolabError(
            f"query {differs[0]!r} is another question in {' than in '.join(tables)}; expected runs on one set of "
            "queries, or queries with ids of their own"
        )


def _need_breaking(name: str, table: pd.DataFrame) -> None:
    plain = is_unsteered(table, needed=True)
    one_setting(table)
    units = sorted(set(table.loc[~plain, "unit"])) if "unit" in table else ["unknown"]
    if units != ["breaking"]:
        raise EmolabError(
            f"the doses of {name} are in the unit {', '.join(map(repr, units)) or 'of nothing'}; two models compare in "
            'the unit "breaking" alone (emolab.find_breaking, or emolab study)'
        )


def _by_question(table: pd.DataFrame, emotions: list[str]) -> pd.DataFrame:
    """Share of hits [query, (emotion, control, alpha)], mean over seeds; unsteered text is dose 0 of every control."""
    table = table[table["emotion"].isin(emotions) & table["control"].isin(["none", "random"])]
    wide = table.assign(hit=is_hit(table)).pivot_table(index="query_id", columns=_CELL, values="hit")
    for emotion, control, alpha in list(wide.columns):
        if control == "random" and (emotion, "none", alpha) in wide:
            wide[emotion, BEYOND, alpha] = wide[emotion, "none", alpha] - wide[emotion, control, alpha]
    mean = wide.T.groupby(level=["control", "alpha"]).mean().T
    mean.columns = pd.MultiIndex.from_tuples([(ALL, *cell) for cell in mean.columns], names=_CELL)
    return pd.concat([wide, mean], axis=1)


def _shares(name: str, wide: pd.DataFrame, clusters: pd.Series, seed: int) -> pd.DataFrame:
    cells = wide.columns.to_frame(index=False).assign(value=wide.mean().to_numpy())
    cells[["lo", "hi"]] = [interval(values, clusters=clusters[wide.index], seed=seed) for _, values in wide.items()]
    cells.insert(0, "model", name)
    return cells.assign(n=wide.notna().sum().to_numpy())


def _difference(wide: Mapping[str, pd.DataFrame], clusters: pd.Series, seed: int) -> pd.DataFrame:
    """The second model less the first, where both were measured."""
    (name, first), (other, second) = wide.items()
    shared = first.columns.intersection(second.columns, sort=False)
    if not (shared.get_level_values("alpha") > 0).any():
        doses = " and ".join(", ".join(f"{x:g}" for x in table.columns.unique("alpha")) for table in wide.values())
        raise EmolabError(f"the two sweeps have no dose above 0 in common: {doses}")
    both = pd.concat([first[shared], second[shared]], axis=1)  # NaN where a question was put to one of them alone
    k = len(shared)

    def difference(rows: np.ndarray) -> np.ndarray:
        means = np.nanmean(rows, axis=0)
        return means[k:] - means[:k]

    value, lo, hi = bootstrap_ci(both, difference, clusters=clusters[both.index], seed=seed)
    answered = both.notna().to_numpy()
    n = (answered[:, :k] | answered[:, k:]).sum(0)
    cells = shared.to_frame(index=False).assign(value=value, lo=lo, hi=hi, n=n)
    cells.insert(0, "model", f"{other} - {name}")
    return cells
