"""Choices made before the report: which queries serve which purpose, and on which setting and dose to freeze.

>>> extract, choosing, report = split_queries(load_queries("general"), (40, 20, 26))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emolab.errors import EmolabError, need_number
from emolab.experiments import sweep
from emolab.models import Model
from emolab.queries import query_table, spread
from emolab.scored import headline
from emolab.scoring import kept_score
from emolab.storage import write_json
from emolab.vectors import EmotionVectors

SELECTION_ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
ROUND_ONE = 6  # queries that choose between settings
AS_GOOD = 0.98  # of the best score: what six queries cannot tell from it


def split_queries(queries: pd.DataFrame, sizes: tuple[int, int, int]) -> list[pd.DataFrame]:
    """Queries to extract from, to choose with and to report on; the first two share no situation."""
    queries = query_table(queries, ("query_id", "query", "emotion", "situation", "split"))
    if len(sizes) != 3:
        raise EmolabError(f"n_queries are {sizes}; expected three numbers: to extract, to choose and to report")
    for size in sizes:
        need_number("one of n_queries", size, 1, whole=True)
    lone = queries["situation"] == ""  # a user's queries: each its own situation
    queries = queries.assign(situation=queries["situation"].mask(lone, queries["query_id"]))
    train, heldout = (spread(queries[queries["split"] == s]) for s in ("train", "heldout"))
    n_extract, n_select, n_report = sizes
    situations = train["situation"].iloc[:n_extract]
    extract = train.iloc[:n_extract]
    select = train[~train["situation"].isin(situations)].iloc[:n_select]
    if len(extract) < n_extract or len(select) < 1 or not len(heldout):
        raise EmolabError(
            f"{len(train)} training and {len(heldout)} held-out queries are too few for {sizes}; both splits are "
            "needed, and training situations left over for choosing the dose: use a larger set or smaller n_queries"
        )
    return [extract, select, heldout.iloc[:n_report]]


def choose(tried: pd.DataFrame, instructed: pd.DataFrame) -> pd.DataFrame:
    """The dose of each setting and emotion, by the harmonic mean of emotion, adherence and fluency (`headline`).

    tried: scored texts of a sweep. instructed: scored answers to the same queries under instruction. Of the doses that
    score within 5 % of the best the middle one is taken: the edge of a plateau would not hold on other queries. One row
    a setting and emotion: `site, layers, part, emotion, alpha, score, target, adherence, fluency`, means over texts.
    """
    keys = ["site", "layers", "part", "emotion"]
    scores = {"overall": "score", "emotion_score": "target", "adherence_score": "adherence", "fluency_score": "fluency"}
    steered = headline(tried, instructed).query("alpha != 0").groupby([*keys, "alpha"], sort=False)
    # NaN: empty texts, which are no fluent ones
    cells = steered[list(scores)].mean().fillna(0).rename(columns=scores).reset_index()
    rows = []
    for _, doses in cells.groupby(keys, sort=False):
        doses = doses.sort_values("alpha")
        plateau = doses[doses["score"] >= 0.95 * doses["score"].max()]
        rows.append(plateau.iloc[len(plateau) // 2])
    return pd.DataFrame(rows).reset_index(drop=True)


def select(
    model: Model,
    vectors: EmotionVectors,
    queries: pd.DataFrame,
    responses: pd.DataFrame,
    *,
    judge: Any,
    out: Path,
    progress: bool,
    client: Any = None,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Site, layers and part on some training queries, then with these each emotion's dose on all of the queries."""
    read = {"judges": judge, "model": model, "client": client, "progress": progress}
    told = responses.assign(emotion=responses["condition"])
    instructed = kept_score(told, out / "instructed_scores.parquet", **read)

    def tried(queries, grid, folder):
        options = {"controls": (), "progress": progress, "client": client}
        table = sweep(model, vectors, queries, alphas=(0.0, *SELECTION_ALPHAS), grid=grid, out=folder, **options)
        return choose(kept_score(table, folder / "scores.parquet", **read), instructed)

    late = list(range(model.n_layers // 2, model.n_layers))
    grid = {"site": ["attn", "resid"], "layers": ["all", late], "part": ["whole", "specific"]}
    first = tried(queries.head(ROUND_ONE), grid, out / "settings")
    means = first.groupby(["site", "layers", "part"], sort=False)["score"].mean()
    # As good as the best: the first of them, since the list begins with the paper's own setting.
    site, layers, part = means.index[np.flatnonzero(means >= AS_GOOD * means.max())[0]]
    setting = {"site": site, "layers": "all" if layers == "all" else late, "part": part}
    second = tried(queries, {key: [value] for key, value in setting.items()}, out / "doses")
    rounds = {"settings": first.to_dict("records"), "doses": second.to_dict("records")}
    write_json(out / "choice.json", {"setting": setting, **rounds})
    return setting, dict(zip(second["emotion"], map(float, second["alpha"]), strict=True))
