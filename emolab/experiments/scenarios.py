"""Scenarios: does a model's state point to the emotion that a situation evokes, before it has written a word?

Source: arXiv 2604.07729 (implicit emotion scenarios), there without random directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_number, need_table
from emolab.base.stats import clusters_of, interval
from emolab.base.tables import about, noted
from emolab.experiments.amounts import last_projections
from emolab.judges.feeling_words import emotion_spans
from emolab.models.model import Model
from emolab.vectors.controls import beside_random
from emolab.vectors.vectors import EmotionVectors


def scenario_ranks(
    model: Model,
    queries: pd.DataFrame,
    vectors: EmotionVectors,
    *,
    site: str = "resid",
    layers: str | Sequence[int] = "all",
    seed: int = 0,
) -> pd.DataFrame:
    """Where an emotion that a situation evokes and does not name ranks among all, before the model has written a word.

    >>> queries = emolab.load_queries("general", split="heldout")
    >>> ranks = scenario_ranks(model, queries[queries["emotion"] == "joy"].head(2), vectors, layers=[20])
    >>> rank_curve(ranks)

    The prompt's last token is projected on each vector's specific part (`last_projections`), in standard deviations
    over the scenarios; rank 1 points most along the emotion that the situation evokes.

    Args:
        queries: with `emotion`, the one that each evokes; those of emotions without a vector, such as neutral ones, are
            left out, and those that name theirs (its forms, and words such as "furious" or "tears").

    Returns:
        One row a query, layer and control ("none", "random"): `query_id, situation, target, rank`.

    Raises:
        EmolabError: no query that is left, and as `last_projections`.
    """
    need_table(queries, ("query_id", "query", "emotion"), 'emolab.load_queries("general")')
    evoked = queries[queries["emotion"].isin(vectors.emotions)]
    evoked = evoked[[not emotion_spans(q, (e,)) for q, e in evoked[["query", "emotion"]].to_numpy()]]
    if evoked.empty:
        raise EmolabError(
            f"no query evokes one of {', '.join(vectors.emotions)} without naming it; expected a column emotion"
        )
    directions = beside_random(vectors.part("specific"), seed=seed)
    table = last_projections(model, evoked, directions, site=site, layers=layers)
    by = table.groupby(["layer", "emotion"])["projection"]
    table["score"] = (table["projection"] - by.transform("mean")) / by.transform("std").clip(lower=1e-12)
    table["control"] = np.where(table["emotion"].isin(vectors.emotions), "none", "random")
    ranks = table.groupby(["query_id", "layer", "control"])["score"].rank(ascending=False, method="first").astype(int)
    table = table.assign(target=table["query_id"].map(evoked.set_index("query_id")["emotion"]), rank=ranks)
    of_target = table["emotion"].str.removeprefix("random ") == table["target"]
    columns = ["query_id", *(["situation"] if "situation" in queries else []), "target", "layer", "control", "rank"]
    ranks = table.loc[of_target, columns].reset_index(drop=True)
    params = {"site": site, "part": "specific", "k": len(vectors.emotions)}
    return noted(ranks, vectors, n=f"{len(evoked)} situations that name no emotion", seed=seed, params=params)


def rank_curve(ranks: pd.DataFrame, *, top: int = 1) -> pd.DataFrame:
    """The share of scenarios whose emotion ranks among the first, by layer, beside random directions.

    >>> rank_curve(scenario_ranks(model, queries, vectors), top=2)                        # doctest: +SKIP

    top: 1 counts those that rank first. Columns: `layer`, `control`, `value` with its 95 % interval `lo, hi` (over
    situations). `attrs["chance"]` is the share of one in all emotions, `top` times.
    """
    need_table(ranks, ("query_id", "target", "layer", "control", "rank"), "scenario_ranks")
    need_number("top", top, 1, whole=True)
    clusters, rows = clusters_of(ranks), []
    for (control, layer), cell in ranks.groupby(["control", "layer"], sort=False):
        hits = (cell.set_index("query_id")["rank"] <= top).astype(float)
        rows.append((layer, control, hits.mean(), *interval(hits, clusters=clusters[hits.index])))
    curve = pd.DataFrame(rows, columns=["layer", "control", "value", "lo", "hi"])
    curve = noted(curve, ranks, params={"top": top})
    curve.attrs["chance"] = min(1.0, top / about(ranks)["params"].get("k", ranks["target"].nunique()))
    return curve
