"""Purity: does the specific part of an emotion vector steer to its own emotion alone, and what does the shared part do?

The four parts are brought to equal norm at every layer, so that the strength of the push is no explanation:

    whole      the emotion vector
    specific   without what all emotions share
    shared     what all emotions share, the same direction for every emotion
    random     Gaussian directions (three, taken in turn by the queries)

>>> from emolab import Setting, experiments
>>> table = experiments.part_purity(model, vectors, queries, alpha=1.0, setting=Setting(site="attn"))
>>> experiments.purity(table)                 # target, leak to other emotions, emotional at all; and against the whole
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from emolab.answers.generation import generate
from emolab.answers.queries import query_table
from emolab.base.calls import once
from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import NEUTRAL, order
from emolab.base.stats import bootstrap_ci, clusters_of
from emolab.base.tables import noted
from emolab.experiments.headline import judged_labels
from emolab.judges.scoring import score
from emolab.models.model import Model
from emolab.steering.settings import Setting
from emolab.steering.steering import at
from emolab.vectors.controls import drawn_like
from emolab.vectors.vectors import EmotionVectors, match_norm

PARTS = ("whole", "specific", "shared", "random")
UNSTEERED = "unsteered"
MEASURES = ("target", "leak", "emotional", "p_target", "p_leak", "p_emotional")


def part_purity(
    model: Model,
    vectors: EmotionVectors,
    queries: pd.DataFrame | Sequence[str] | str,
    *,
    alpha: float | Mapping[str, float] = 1.0,
    setting: Setting = Setting(),
    judge: Any = None,
    max_new_tokens: int = 80,
    seed: int = 0,
) -> pd.DataFrame:
    """Steer every query with every emotion's whole vector, its parts and random directions, at equal norm; then judge.

    Args:
        alpha: the dose of the whole vector, in the setting's unit; or one for each emotion, {"joy": 1.5, ...}.
        setting: where to steer; its part plays no role.
        judge: as `emolab.score` takes it; default the embedding judge.

    Returns:
        One row a text: `query_id, query, emotion, part, alpha, site, seed, text` and the judge's `p_<label>` and
        `top`. Part "unsteered" has one row for each query and emotion (one text a query).

    Raises:
        EmolabError: a single emotion, site "head" (parts of equal norm in each head are not so in their sum), a dose
            missing for an emotion, and as `Steering`.
    """
    if setting.site == "head":
        raise EmolabError('parts of site "head" cannot be compared; take resid, attn or mlp')
    if len(vectors.emotions) < 2:
        alone = ", ".join(vectors.emotions)
        raise EmolabError(f"parts of the single emotion {alone} cannot be compared; take two or more")
    queries = query_table(queries)
    doses = dict(alpha) if isinstance(alpha, Mapping) else dict.fromkeys(vectors.emotions, alpha)
    missing = [e for e in vectors.emotions if e not in doses]
    if missing:
        raise EmolabError(f"alpha has no dose for {missing[0]!r}; expected one for each emotion of the vectors")
    setting = replace(setting, part="whole")
    # Every part is as long as the whole vector, for which breaking alphas were found.
    in_vectors = [at(vectors, setting, [{e: doses[e]}])[0].in_vectors() for e in vectors.emotions]
    setting = replace(setting, unit="vector") if setting.unit == "breaking" else setting
    parts = equal_norm_parts(vectors, setting.site, seed=seed)
    rows, steerings = [], []
    for mixture in in_vectors:
        (emotion,) = mixture
        variants: dict[str, list] = {UNSTEERED: [(-1, None)]}
        for part, by_seed in parts.items():
            variants[part] = [(number, at(v, setting, [mixture])[0]) for number, v in by_seed.items()]
        for part, made in variants.items():
            dose = 0.0 if part == UNSTEERED else float(doses[emotion])
            for i, query in enumerate(queries.to_dict("records")):
                number, steering = made[i % len(made)]
                rows.append((query["query_id"], query["query"], emotion, part, dose, setting.site, number))
                steerings.append(steering)
    table = pd.DataFrame(rows, columns=["query_id", "query", "emotion", "part", "alpha", "site", "seed"])
    if "situation" in queries:
        table.insert(2, "situation", table["query_id"].map(queries.set_index("query_id")["situation"]))
    table["text"] = once(  # unsteered text is the same for every emotion
        list(zip(table["query"], steerings, strict=True)),
        lambda asked: generate(
            model,
            [query for query, _ in asked],
            steering=[steering for _, steering in asked],
            max_new_tokens=max_new_tokens,
        ),
    )
    layers = setting.layers if isinstance(setting.layers, str) else list(setting.layers)
    params = {"site": setting.site, "layers": layers, "alpha": doses}
    return noted(score(table, judges=judge), vectors.meta, n=f"{len(queries)} queries", seed=seed, params=params)


def equal_norm_parts(vectors: EmotionVectors, site: str, *, seed: int = 0) -> dict[str, dict[int, EmotionVectors]]:
    """{part: {seed: vectors}} at one site, of the whole vector's norm at every layer; seed -1 but for random, of three.

    >>> parts = equal_norm_parts(vectors, "resid")
    >>> parts["shared"][-1].get("resid").norm(dim=-1).allclose(vectors.get("resid").norm(dim=-1))
    True
    """
    whole = vectors.get(site)
    at_site = replace(vectors, data={site: whole}, means=None)
    parts = {}
    for part in ("whole", "specific", "shared"):
        x = vectors.part(part).get(site).expand_as(whole)
        meta = {**vectors.meta, "part": part}
        parts[part] = {-1: replace(at_site, data={site: match_norm(x, like=whole)}, meta=meta)}
    return parts | {"random": drawn_like(at_site, "random", seed=seed)}


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
    p_target = np.select([table["emotion"] == e for e in labels], [p[e] for e in labels], np.nan)
    every = table[["query_id", "emotion", "part"]].assign(
        target=(table["top"] == table["emotion"]).astype(float),
        emotional=(table["top"] != NEUTRAL).astype(float),
        p_target=p_target,
        p_emotional=1 - p[NEUTRAL],
    )
    every["leak"], every["p_leak"] = every["emotional"] - every["target"], every["p_emotional"] - every["p_target"]
    rows = []
    for emotion in ["all", *order(table["emotion"])]:
        chosen = every if emotion == "all" else every[every["emotion"] == emotion]
        wide = chosen.pivot_table(index="query_id", columns="part", values=list(MEASURES)).swaplevel(axis=1)
        parts = wide.columns.unique(0)
        for part in [part for part in (UNSTEERED, *PARTS) if part in parts]:
            shares = wide[part][list(MEASURES)].to_numpy()
            whole = wide["whole"][list(MEASURES)].to_numpy() if "whole" in parts else np.full_like(shares, np.nan)
            bounds = _bootstrap(table, pd.Series(wide.index), np.stack([shares, shares - whole], axis=1))
            for measure, (value, minus_whole) in zip(MEASURES, np.stack(bounds).T, strict=True):
                rows.append((part, emotion, measure, *value, *minus_whole))
    columns = ["part", "emotion", "measure", "value", "lo", "hi", "minus_whole", "minus_whole_lo", "minus_whole_hi"]
    result = pd.DataFrame(rows, columns=columns)
    result.attrs = dict(table.attrs)
    return result


def _labels(table: pd.DataFrame) -> list[str]:
    need_table(table, ("query_id", "emotion", "part", "top"), "emolab.experiments.part_purity")
    return order(judged_labels(table))


def _bootstrap(table: pd.DataFrame, queries: pd.Series, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean and 95 % interval of each column, situations drawn with replacement; the same draws in every call."""
    return bootstrap_ci(values, lambda rows: rows.mean(0), clusters=queries.map(clusters_of(table)))
