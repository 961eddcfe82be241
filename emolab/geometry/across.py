"""Two models' maps of the same emotions: how alike they are, against chance and against one model with itself.

Coordinates are compared by cosines alone; the other measures take models of any width and depth.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from emolab.base.errors import EmolabError, need_number
from emolab.base.labels import NEUTRAL
from emolab.base.tables import noted, origin
from emolab.geometry.resampling import (
    contrasts,
    disjoint_sets,
    draw_weights,
    flat_layer,
    middle,
    need_part,
    orders,
    permuted_rows,
    query_groups,
    site_values,
)
from emolab.geometry.similarity import part_array, u_centred, unit_rows
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.controls import means_of
from emolab.vectors.vectors import EmotionVectors

_ALL_ORDERS = 720  # of six emotions
_QUERIES = 4  # two in each half
_Likeness = Callable[[np.ndarray, np.ndarray], np.ndarray]


def map_agreement(
    vectors: EmotionVectors,
    others: EmotionVectors,
    *,
    site: str = "resid",
    part: str = "specific",
    groups: pd.Series | None = None,
    n_splits: int = 100,
    n_permutations: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """How alike two models arrange the emotions that both have, by depth, beside a null and a ceiling.

    >>> table = map_agreement(ours, theirs, n_splits=20)
    >>> table[table["layer"].isna()].set_index("measure")[["value", "p", "halves", "ceiling"]]     # over all layers

    Each layer of `vectors` is set beside the one at the same relative depth of `others`. Measures:

    - "rsa": Spearman correlation of the cosines between emotions, all pairs (Kriegeskorte et al. 2008). Null: the
      emotions of one model permuted, in all ways for up to six, else in n_permutations.
    - "cka": unbiased linear CKA (as `cka`) of the answers to the queries that both models answered, each less the mean
      of all answers to its query. Null: conditions shuffled within each query, in one model.
    - "cosine": mean cosine of the vectors of the same emotion, where both models have equally many layers and d_model.
      It speaks of two forms of one model (tuned, merged, quantized); of models trained apart it is near its null, that
      of "rsa".

    Args:
        part: "specific", what tells emotions apart, or "whole".
        groups: Series query_id -> situation; halves then share no situation.

    Returns:
        One row a measure and layer: `measure, layer, other_layer, depth, value, null_mean, null_hi, p, halves,
        halves_lo, halves_hi, ceiling, ceiling_lo, ceiling_hi`; a measure's row without a layer is the mean over layers.
        null_hi: 95th percentile; p: the share of permutations that reach the value, the true order among them. halves:
        one model on half of the queries with the other on the other half, mean and middle 95 % of n_splits; ceiling:
        each model with itself in the same way, mean of the two. These two are to be compared: `value` has twice the
        queries (and of "cka" the same ones on both sides), and may lie above them. Vectors without response means have
        neither, nor "cka". `attrs["left_out"]` says why a measure is missing.

    Raises:
        EmolabError: fewer than three emotions in common, or a site that either lacks.
    """
    need_number("n_splits", n_splits, 1, whole=True)
    need_number("n_permutations", n_permutations, 1, whole=True)
    need_part(part)
    pair = (vectors, others)
    emotions = [emotion for emotion in vectors.emotions if emotion in others.emotions]
    if len(emotions) < 3:  # of two there is one cosine, and nothing to rank
        given = " with ".join(", ".join(one.emotions) for one in pair)
        raise EmolabError(f"a map needs three emotions that both models have; given are {given}")
    arrays = [part_array(one.select(emotions), site) for one in pair]  # [emotion, layer, d_model]
    likenesses, left_out = {"rsa": _rsa, "cosine": _mean_cosine}, {}
    if arrays[0].shape != arrays[1].shape:
        del likenesses["cosine"]
        shapes = " and ".join(f"{one.n_layers} layers of {one.d_model}" for one in pair)
        left_out["cosine"] = f"the models have {shapes} dimensions"
    n_layers, other_layers = (x.shape[1] for x in arrays)
    layers = [np.arange(n_layers), np.rint(np.linspace(0, other_layers - 1, n_layers)).astype(int)]
    at_depth = [x.take(chosen, 1).swapaxes(0, 1) for x, chosen in zip(arrays, layers, strict=True)]  # layers first
    ours, theirs = (_of_part(x, part) for x in at_depth)
    rng = np.random.default_rng(seed)
    every_order = _emotion_orders(len(emotions), n_permutations, rng)
    compared = {}
    for name, likeness in likenesses.items():
        null = np.stack([likeness(ours, theirs[:, order]) for order in every_order])
        compared[name] = {"value": likeness(ours, theirs), "null": null}
    n = f"{len(emotions)} emotions"
    if vectors.means is None or others.means is None:
        left_out["cka"] = "the means of the answers are not at hand"
    else:
        means = [means_of(one) for one in pair]
        halves = _halves(means, groups, n_splits, rng)
        drawn = [[_weights(one, half, emotions, part) for half in halves] for one in means]
        for name, likeness in likenesses.items():
            compared[name] |= _from_halves(means, drawn, layers, site, likeness)
        rows = _answered_by_both(means, emotions)
        n += f", {len(rows[0])} queries that both answered"
        if len(rows[0]) < _QUERIES:
            left_out["cka"] = f"{len(rows[0])} queries were answered under all of these conditions by both"
        else:
            names = pd.MultiIndex.from_product([rows[0].index, rows[0].columns], names=["query_id", "condition"])
            shuffled = permuted_rows(names.to_frame(index=False), n_permutations, rng)
            compared["cka"] = _cka(means, rows, layers, site, halves, np.vstack([np.arange(rows[0].size), shuffled]))
    named = [name for name in ("rsa", "cka", "cosine") if name in compared]
    table = pd.concat([_rows(name, compared[name], layers[1]) for name in named], ignore_index=True)
    table.attrs["left_out"] = left_out
    models = " and ".join(str(origin(one)["name"]) for one in pair)
    params = {"site": site, "part": part, "n_splits": n_splits, "n_permutations": n_permutations}
    return noted(table, models, n=n, seed=seed, params=params)


def _of_part(x: Float[np.ndarray, "... emotion d_model"], part: str) -> Float[np.ndarray, "... emotion d_model"]:
    """Of "specific" without the mean over these emotions, whatever else the vectors hold."""
    return x - x.mean(-2, keepdims=True) if part == "specific" else x


def _rsa(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman correlation of the cosines of all pairs of vectors; sets of them are [..., emotion, d_model]."""
    return np.clip((_ranks(first) * _ranks(second)).sum(-1), -1, 1)


def _ranks(x: Float[np.ndarray, "... emotion d_model"]) -> Float[np.ndarray, "... pair"]:
    """Ranks of the cosines of all pairs, centred and of length one; NaN where all are alike."""
    unit = unit_rows(x)
    i, j = np.triu_indices(x.shape[-2], 1)
    ranks = rankdata(np.round((unit @ unit.swapaxes(-1, -2))[..., i, j], 12), axis=-1)  # without the noise of rounding
    return unit_rows(ranks - ranks.mean(-1, keepdims=True))


def _mean_cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of like with like, mean over emotions; sets of vectors are [..., emotion, d_model]."""
    return np.clip((unit_rows(first) * unit_rows(second)).sum(-1), -1, 1).mean(-1)


def _emotion_orders(k: int, n: int, rng: np.random.Generator) -> Int[np.ndarray, "order emotion"]:
    """All orders of k labels, or where these are many n random ones; the first is the true one."""
    if math.factorial(k) <= _ALL_ORDERS:
        return np.array(list(permutations(range(k))))
    return orders(k, n, rng)


def _halves(means: Sequence[ResponseMeans], groups: pd.Series | None, n: int, rng: np.random.Generator) -> list:
    """Two sets of queries, n times, as columns of two tables [split, query]; the same for both models."""
    names = pd.unique(pd.concat([one.index["query_id"] for one in means]))
    numbers = query_groups(pd.DataFrame({"query_id": names}), groups)
    return [pd.DataFrame(half, columns=names) for half in disjoint_sets(numbers, n, rng)]


def _weights(
    means: ResponseMeans, half: pd.DataFrame, emotions: list[str], part: str
) -> Float[np.ndarray, "split emotion row"]:
    """What makes the emotions' vectors of one half of the queries out of the responses."""
    labels, weights = contrasts(means.index)
    drawn = draw_weights(weights, half[means.index["query_id"]].to_numpy(dtype=float))
    return _of_part(drawn[:, [labels.index(emotion) for emotion in emotions]], part)


def _from_halves(
    means: Sequence[ResponseMeans],
    drawn: Sequence[Sequence[np.ndarray]],
    layers: Sequence,
    site: str,
    likeness: _Likeness,
) -> dict[str, np.ndarray]:
    """`halves` and `ceiling` [split, layer] of a likeness of vectors."""
    between, within = [], []
    for place in zip(*layers, strict=True):
        (a, other_a), (b, other_b) = (
            [half @ flat_layer(one, site, layer) for half in weights]
            for one, weights, layer in zip(means, drawn, place, strict=True)
        )
        between.append(likeness(a, other_b))
        within.append((likeness(a, other_a) + likeness(b, other_b)) / 2)
    return {"halves": np.stack(between, 1), "ceiling": np.stack(within, 1)}


def _answered_by_both(means: Sequence[ResponseMeans], emotions: list[str]) -> list[pd.DataFrame]:
    """Places of the responses [query, condition] in either's means, of queries that have them all in both."""
    held = [set(one.index["condition"]) for one in means]
    conditions = [c for c in (*emotions, NEUTRAL) if c in held[0] & held[1]]
    tables = []
    for one in means:
        index = one.index.assign(place=range(len(one.index)))
        table = index.pivot_table(index="query_id", columns="condition", values="place", aggfunc="first")
        tables.append(table.reindex(columns=conditions).dropna().astype(int))
    shared = tables[0].index.intersection(tables[1].index)
    return [table.loc[shared] for table in tables]


def _cka(
    means: Sequence[ResponseMeans],
    rows: Sequence[pd.DataFrame],
    layers: Sequence,
    site: str,
    halves: Sequence[pd.DataFrame],
    orders: Int[np.ndarray, "draw row"],
) -> dict[str, np.ndarray]:
    """CKA of the responses in rows, with the other model's in other orders, and by other halves of the queries."""
    asked, k = rows[0].index, rows[0].shape[1]
    pairs = list(zip(*(half[asked].to_numpy() for half in halves), strict=True))
    splits = [[_rows_of(half, k, min(pair[0].sum(), pair[1].sum())) for half in pair] for pair in pairs]
    values, null, between, within = [], [], [], []
    for place in zip(*layers, strict=True):
        grams = [_gram(one, site, layer, r) for one, layer, r in zip(means, place, rows, strict=True)]
        a, b = (_unit_hsic(gram) for gram in grams)
        values.append((a * b).sum())
        null.append([(a * b[np.ix_(order, order)]).sum() for order in orders])
        cut = [[[_unit_hsic(gram[np.ix_(r, r)]) for r in split] for gram in grams] for split in splits]
        between.append([(a * other_b).sum() for (a, _), (_, other_b) in cut])
        within.append([((a * other_a).sum() + (b * other_b).sum()) / 2 for (a, other_a), (b, other_b) in cut])
    measured = {"value": values, "null": null, "halves": between, "ceiling": within}
    return {name: np.array(by_layer).T for name, by_layer in measured.items()}


def _rows_of(half: Bool[np.ndarray, " query"], k: int, n: int) -> Int[np.ndarray, " row"]:
    """The k rows of each of the first n queries of a half."""
    return (np.flatnonzero(half)[:n, None] * k + np.arange(k)).ravel()


def _gram(means: ResponseMeans, site: str, layer: int, rows: pd.DataFrame) -> Float[np.ndarray, "row row"]:
    """Inner products of the responses, each less the mean of those to its query."""
    x = site_values(means, site)[rows.to_numpy(), layer].astype(np.float64)  # [query, condition, d_model]
    x = (x - x.mean(1, keepdims=True)).reshape(rows.size, -1)
    return x @ x.T


def _unit_hsic(gram: Float[np.ndarray, "row row"]) -> Float[np.ndarray, "row row"]:
    """U-centred and of length one, so that the inner product of two is their CKA; NaN of too few rows, or of none."""
    if len(gram) < 4:
        return np.full_like(gram, np.nan)
    centred = u_centred(gram)
    size = np.sqrt((centred**2).sum())
    return centred / size if size > 0 else np.full_like(gram, np.nan)


def _rows(measure: str, compared: dict[str, np.ndarray], other_layers: np.ndarray) -> pd.DataFrame:
    """The table of one measure: its layers, and their mean.

    compared: `value` [layer], `null` [order, layer], and where they are known `halves` and `ceiling` [split, layer].
    """
    n = len(other_layers)
    arrays = [compared.get(name, np.full((1, n), np.nan)) for name in ("value", "null", "halves", "ceiling")]
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of what is NaN everywhere
        value, null, halves, ceiling = (np.append(x, np.nanmean(x, -1, keepdims=True), -1) for x in arrays)
        table = pd.DataFrame({"value": value, "null_mean": null.mean(0), "null_hi": np.quantile(null, 0.95, axis=0)})
        table["p"] = np.where(np.isnan(value), np.nan, (null >= value - 1e-12).mean(0))
        for name, draws in {"halves": halves, "ceiling": ceiling}.items():
            table[name] = np.nanmean(draws, 0)
            table[f"{name}_lo"], table[f"{name}_hi"] = middle(draws)
    places = pd.DataFrame({"layer": range(n), "other_layer": other_layers, "depth": np.linspace(0, 1, n)})
    table = places.astype({"layer": "Int64", "other_layer": "Int64"}).join(table, how="right")
    table.insert(0, "measure", measure)
    return table
