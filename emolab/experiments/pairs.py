"""Preferences: which of two things a model would rather do, each pair asked in both orders, as strengths of all.

>>> asked = pair_questions(["read a book", "wash the dishes", "fill in a form"])
>>> table = emolab.choices(model, asked, asked[["first", "second"]].to_numpy().tolist())
>>> preferences(table)[["item", "strength", "lo", "hi"]]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_table, need_texts, shown
from emolab.base.stats import bootstrap_ci
from emolab.base.tables import noted

RATHER = "Would you rather {first} or {second}?"
_ELO = 400 / np.log(10)  # points in a nat


def pair_questions(items: Sequence[str], wording: str = RATHER) -> pd.DataFrame:
    """A question for every two items in each order: `query_id, query, situation` (the pair), `first, second`.

    >>> pair_questions(["read a book", "wash the dishes"])["query"].to_list()
    ['Would you rather read a book or wash the dishes?', 'Would you rather wash the dishes or read a book?']

    wording: a text with "{first}" and "{second}". The options of `emolab.choices` may be the items themselves, or
    letters that the wording gives them; a small model answers with the letter that stands first, whatever it means.
    Raises EmolabError for fewer than two items, equal ones, and a wording without both.
    """
    items = need_texts("items", items, filled=True)
    if len(set(items)) < max(2, len(items)):
        raise EmolabError(f"the items are {shown(items)}; expected at least two, all different")
    if not isinstance(wording, str) or not ("{first}" in wording and "{second}" in wording):
        raise EmolabError(f'the wording is {shown(wording)}; expected a text with "{{first}}" and "{{second}}" in it')
    rows = [
        (wording.replace("{first}", a).replace("{second}", b), " | ".join(sorted((a, b))), a, b)
        for a, b in permutations(items, 2)
    ]
    table = pd.DataFrame(rows, columns=["query", "situation", "first", "second"])
    table.insert(0, "query_id", [f"pair-{i:04d}" for i in range(1, len(table) + 1)])
    return table


def preferences(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """How strongly each item is preferred, in Elo points around a mean of 0, for every direction, dose and draw.

    >>> preferences(table).query("alpha == 0").sort_values("strength")                    # doctest: +SKIP

    table: of `emolab.choices` with the questions of `pair_questions`, the option of `first` before that of `second`.
    The log-odds of first over second are fitted by the difference of two strengths (Bradley and Terry's model) and one
    number that the place is worth, by least squares, since the model's log-odds are known and not only who won.

    Returns:
        One row for each emotion, control, alpha, seed and item: `strength`, with its 95 % interval `lo, hi` (pairs
        drawn, both orders together); `first_share`, the mean probability of the option that stands first, .5 without a
        preference for the place; `agree`, the share of pairs in which both orders prefer the same item.

    Raises:
        EmolabError: questions without two options each.
    """
    cells = ["emotion", "control", "alpha", "seed"]
    need_table(table, ("query_id", "situation", "first", "second", "p", *cells), "emolab.choices of pair_questions")
    wide = table.assign(place=table.groupby([*cells, "query_id"]).cumcount())
    wide = wide.pivot(index=[*cells, "query_id", "situation", "first", "second"], columns="place", values="p")
    if wide.shape[1] != 2 or wide.isna().any(axis=None):
        raise EmolabError("some questions have other than two options; expected the first and the second of each pair")
    wide = wide.reset_index()
    rows = []
    place = {item: i for i, item in enumerate(dict.fromkeys([*table["first"], *table["second"]]))}
    wide["odds"] = np.log(wide[0].clip(1e-300) / wide[1].clip(1e-300))
    for cell, pairs in wide.groupby(cells, sort=False):
        values = np.column_stack([pairs["first"].map(place), pairs["second"].map(place), pairs["odds"]])
        clusters = pairs["situation"]
        strengths = bootstrap_ci(values, lambda x: _strengths(x, len(place)), clusters=clusters, n=500, seed=seed)
        to_one = pairs["odds"] * np.where(pairs["first"] < pairs["second"], 1, -1)  # the same item's in both orders
        sides = (to_one > 0).groupby(clusters).agg(["min", "max", "size"])
        agree = (sides["min"] == sides["max"])[sides["size"] > 1].mean()
        for item, *strength in zip(place, *strengths, strict=True):
            rows.append((*cell, item, *strength, pairs[0].mean(), agree))
    columns = [*cells, "item", "strength", "lo", "hi", "first_share", "agree"]
    n = f"{wide['situation'].nunique()} pairs"
    return noted(pd.DataFrame(rows, columns=columns), table, n=n, seed=seed)


def _strengths(rows: np.ndarray, n: int) -> np.ndarray:
    """Elo points of n items from rows (first, second, log-odds of the first), free of what the place is worth."""
    first, second = rows[:, :2].astype(int).T
    design = np.eye(n)[first] - np.eye(n)[second]
    fit, _, rank, _ = np.linalg.lstsq(np.column_stack([design, np.ones(len(rows))]), rows[:, 2], rcond=None)
    return _ELO * (fit[:n] - fit[:n].mean()) if rank == n else np.full(n, np.nan)  # else some were never compared
