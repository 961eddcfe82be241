"""Purity: does the specific part of an emotion vector steer to its own emotion alone, and what does the base do?

The four parts are brought to equal norm at every layer, so that the strength of the push is no explanation:

    whole      the emotion vector
    specific   without what all emotions share
    base       what all emotions share, the same direction for every emotion
    random     Gaussian directions (three, taken in turn by the queries)

>>> from emolab import experiments
>>> table = experiments.part_purity(model, vectors, queries, alpha=1.0, site="attn")
>>> experiments.confusion(table)              # emotion steered x emotion read, by part
>>> experiments.purity(table)                 # target, leak to other emotions, emotional at all; and against the whole
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from emolab.answers.generation import generate
from emolab.answers.queries import query_table
from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import NEUTRAL, order
from emolab.base.stats import bootstrap_ci, clusters_of
from emolab.base.tables import noted
from emolab.judges.scoring import score
from emolab.models.model import Model
from emolab.steering.steering import Steering
from emolab.vectors.controls import random_like
from emolab.vectors.vectors import EmotionVectors, match_norm

PARTS = ("whole", "specific", "shared", "random")
UNSTEERED = "unsteered"
MEASURES = ("target", "leak", "emotional", "p_target", "p_leak", "p_emotional")
_RANDOM = 3
_BOOT = 1000


def part_purity(
    model: Model,
    vectors: EmotionVectors,
    queries: pd.DataFrame | Sequence[str] | str,
    *,
    alpha: float | Mapping[str, float] = 1.0,
    site: str = "resid",
    layers: str | Sequence[int] = "all",
    judge: Any = None,
    max_new_tokens: int = 80,
    batch_size: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Steer every query with every emotion's whole vector, its parts and random directions, at equal norm; then judge.

    Args:
        alpha: the dose, in units of the whole vector's norm; or one for each emotion, {"joy": 1.5, ...}.
        site: "resid", "attn" or "mlp". layers: "all" or layer numbers.
        judge: as `emolab.score` takes it; default the embedding judge.

    Returns:
        One row a text: `query_id, query, emotion, part, alpha, site, seed, text` and the judge's `p_<label>` and
        `top`. Part "unsteered" has one row for each query and emotion (one text a query).

    Raises:
        EmolabError: a single emotion, site "head" (parts of equal norm in each head are not so in their sum), a dose
            missing for an emotion, and as `Steering`.
    """
    if site == "head" or len(vectors.emotions) < 2:
        what = 'site "head"' if site == "head" else f"the single emotion {', '.join(vectors.emotions)}"
        raise EmolabError(f"parts of {what} cannot be compared; take resid, attn or mlp, and at least two emotions")
    queries = query_table(queries)
    doses = dict(alpha) if isinstance(alpha, Mapping) else dict.fromkeys(vectors.emotions, alpha)
    missing = [e for e in vectors.emotions if e not in doses]
    if missing:
        raise EmolabError(f"alpha has no dose for {missing[0]!r}; expected one for each emotion of the vectors")
    sources = equal_norm_parts(vectors, site, seed=seed)
    rows, steerings = [], []
    for emotion in vectors.emotions:
        for part, variants in {UNSTEERED: [None], **sources}.items():
            made = [None if v is None else Steering(v, {emotion: doses[emotion]}, site, layers) for v in variants]
            for i, query in enumerate(queries.to_dict("records")):
                dose = 0.0 if part == UNSTEERED else float(doses[emotion])
                drawn = seed + i % _RANDOM if part == "random" else -1
                rows.append((query["query_id"], query["query"], emotion, part, dose, site, drawn))
                steerings.append(made[i % len(made)])
    table = pd.DataFrame(rows, columns=["query_id", "query", "emotion", "part", "alpha", "site", "seed"])
    if "situation" in queries:
        table.insert(2, "situation", table["query_id"].map(queries.set_index("query_id")["situation"]))
    once = {(row[1], id(s)): i for i, (row, s) in enumerate(zip(rows, steerings, strict=True))}
    todo = list(once.values())
    texts = generate(
        model,
        [rows[i][1] for i in todo],
        steering=[steerings[i] for i in todo],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    found = dict(zip(once, texts, strict=True))
    table["text"] = [found[row[1], id(s)] for row, s in zip(rows, steerings, strict=True)]
    params = {"site": site, "layers": layers if isinstance(layers, str) else list(layers), "alpha": doses}
    return noted(score(table, judges=judge), vectors.meta, n=f"{len(queries)} queries", seed=seed, params=params)


def equal_norm_parts(vectors: EmotionVectors, site: str, *, seed: int = 0) -> dict[str, list[EmotionVectors]]:
    """{part: vectors of every emotion} at one site, each with the whole vector's norm at every layer; random has three.

    >>> parts = equal_norm_parts(vectors, "resid")
    >>> parts["shared"][0].get("resid").norm(dim=-1).allclose(vectors.get("resid").norm(dim=-1))
    True
    """
    whole = vectors.get(site)
    shared = vectors.part("shared").get(site).expand_as(whole)
    data = {"whole": whole, "specific": vectors.part("specific").get(site), "shared": shared}

    def like(x: torch.Tensor, part: str) -> EmotionVectors:
        data, meta = {site: match_norm(x, like=whole)}, {**vectors.meta, "part": part}
        return EmotionVectors(data, vectors.emotions, vectors.resid_norm, meta)

    one = EmotionVectors({site: whole}, vectors.emotions, vectors.resid_norm, vectors.meta)
    random = [random_like(one, seed=seed + i) for i in range(_RANDOM)]
    return {part: [like(x, part)] for part, x in data.items()} | {"random": random}


def confusion(table: pd.DataFrame) -> pd.DataFrame:
    """Share of texts by the emotion steered to and the emotion read (the judge's top label), for each part.

    Columns `part, emotion, judged, share, lo, hi`: 95 % bootstrap intervals over queries.
    """
    judged = _labels(table)
    rows = []
    for (part, emotion), cell in _cells(table):
        hits = np.stack([(cell["top"] == label).to_numpy(float) for label in judged], axis=1)
        value, low, high = _bootstrap(table, cell["query_id"], hits)
        rows += [(part, emotion, label, value[j], low[j], high[j]) for j, label in enumerate(judged)]
    result = pd.DataFrame(rows, columns=["part", "emotion", "judged", "share", "lo", "hi"])
    result.attrs = dict(table.attrs)
    return result


def purity(table: pd.DataFrame) -> pd.DataFrame:
    """How pure each part steers: over all emotions ("all") and for each one, with the difference from the whole vector.

    Measures: `target`, share of texts read as the emotion steered to; `leak`, as another emotion; `emotional`, as any
    emotion: not neutral. `p_target, p_leak, p_emotional`: the same as mean probabilities (p_emotional = 1 - p_neutral).

    Returns:
        Columns `part, emotion, measure, value, lo, hi, minus_whole, minus_whole_lo, minus_whole_hi`; 95 % bootstrap
        intervals over queries, of the difference query by query.
    """
    labels = _labels(table)
    if NEUTRAL not in labels:
        raise EmolabError(f"the judge knows {', '.join(labels)} without neutral; 'emotional at all' needs it")
    p = {label: table["p_" + label] for label in labels}
    own = np.select([table["emotion"] == e for e in labels], [p[e] for e in labels], np.nan)
    values = pd.DataFrame({"target": (table["top"] == table["emotion"]).astype(float), "p_target": own})
    values["emotional"] = (table["top"] != NEUTRAL).astype(float)
    values["p_emotional"] = 1 - p[NEUTRAL]
    values["leak"], values["p_leak"] = values.emotional - values.target, values.p_emotional - values.p_target
    whole = table[["query_id", "emotion", "part"]].join(values)
    rows = []
    for emotion in ["all", *order(table["emotion"])]:
        of = whole if emotion == "all" else whole[whole["emotion"] == emotion]
        wide = of.pivot_table(index="query_id", columns="part", values=list(MEASURES), aggfunc="mean")
        for part in [part for part in (UNSTEERED, *PARTS) if part in set(of["part"])]:
            a = np.stack([wide[m, part].to_numpy() for m in MEASURES], 1)
            b = (
                np.stack([wide[m, "whole"].to_numpy() for m in MEASURES], 1)
                if "whole" in set(of["part"])
                else a * np.nan
            )
            value, low, high = _bootstrap(table, pd.Series(wide.index), np.concatenate([a, a - b], 1))
            k = len(MEASURES)
            for j, measure in enumerate(MEASURES):
                d = j + k
                rows.append((part, emotion, measure, value[j], low[j], high[j], value[d], low[d], high[d]))
    columns = ["part", "emotion", "measure", "value", "lo", "hi", "minus_whole", "minus_whole_lo", "minus_whole_hi"]
    result = pd.DataFrame(rows, columns=columns)
    result.attrs = dict(table.attrs)
    return result


def _labels(table: pd.DataFrame) -> list[str]:
    need_table(table, ("query_id", "emotion", "part", "top"), "emolab.experiments.parts.part_purity")
    return order(c[2:] for c in table.columns if c.startswith("p_"))


def _cells(table: pd.DataFrame):
    for part in [part for part in (UNSTEERED, *PARTS) if part in set(table["part"])]:
        for emotion in order(table["emotion"]):
            yield (part, emotion), table[(table["part"] == part) & (table["emotion"] == emotion)]


def _bootstrap(table: pd.DataFrame, queries: pd.Series, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean and 95 % interval of each column, situations drawn with replacement; the same draws in every call."""
    return bootstrap_ci(values, lambda rows: rows.mean(0), clusters=queries.map(clusters_of(table)), n=_BOOT)
