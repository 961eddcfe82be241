"""Tidy tables of vectors and responses for figures: norms, cosines of pairs and layers, what neighbours share.

>>> vector_norms(vectors, site="attn").groupby("layer")["relative"].mean()
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_vectors
from emolab.base.labels import order
from emolab.base.tables import about, noted, some_layers
from emolab.geometry.resampling import counted, permuted_labels, site_values
from emolab.geometry.similarity import cosines, layer_cosines, part_array
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.vectors import EmotionVectors


def vector_norms(vectors: EmotionVectors, *, site: str = "resid") -> pd.DataFrame:
    """Length of each vector by layer: `emotion, layer, norm, resid_norm, relative`.

    >>> vector_norms(vectors).query("emotion == 'joy'").nlargest(1, "relative")

    resid_norm: median length of the residual stream on neutral answers; relative: norm over it. Both are NaN for
    imported vectors, which do not know it.
    """
    length = np.linalg.norm(part_array(vectors, site), axis=-1)  # [emotion, layer]
    stream = vectors.resid_norm.double().numpy()
    stream = np.where(stream > 0, stream, np.nan)
    k, n_layers = length.shape
    table = pd.DataFrame({"emotion": np.repeat(vectors.emotions, n_layers), "layer": np.tile(range(n_layers), k)})
    table = table.assign(norm=length.ravel(), resid_norm=np.tile(stream, k), relative=(length / stream).ravel())
    return _of(table, vectors, site=site)


def pair_cosines(
    vectors: EmotionVectors, *, site: str = "resid", parts: Sequence[str] = ("whole", "specific")
) -> pd.DataFrame:
    """Cosine of every pair of emotions by layer, and their mean: `part, pair, layer, cosine`.

    >>> pair_cosines(vectors, site="attn").query("pair == 'joy · sadness'")

    The specific parts of k emotions sum to zero, so that their mean cosine lies near -1/(k-1) whatever the model does.
    Raises EmolabError for a single emotion.
    """
    need_vectors(vectors)
    labels = order(vectors.emotions)
    if len(labels) < 2:
        raise EmolabError(f"a cosine needs two emotions; these vectors hold {', '.join(labels)}")
    place = {label: vectors.emotions.index(label) for label in labels}
    frames = []
    for part in parts:
        cosine = cosines(vectors, site=site, part=part)  # [layer, emotion, emotion]
        curves = {f"{a} · {b}": cosine[:, place[a], place[b]] for a, b in combinations(labels, 2)}
        curves["mean"] = np.mean(list(curves.values()), axis=0)
        for pair, values in curves.items():
            frames.append(pd.DataFrame({"part": part, "pair": pair, "layer": range(len(values)), "cosine": values}))
    return _of(pd.concat(frames, ignore_index=True), vectors, site=site, emotions=len(labels))


def emotion_cosines(
    vectors: EmotionVectors,
    *,
    site: str = "resid",
    part: str = "whole",
    layers: Sequence[int] | int | str | None = None,
) -> pd.DataFrame:
    """Cosine of all emotions with all, at some layers: `layer, emotion, other, cosine`.

    >>> emotion_cosines(vectors, part="specific", layers=[15])
    """
    need_vectors(vectors)
    layers = some_layers(vectors.n_layers, layers)
    labels = order(vectors.emotions)
    place = [vectors.emotions.index(label) for label in labels]
    values = cosines(vectors, site=site, part=part)[np.ix_(layers, place, place)]
    names = pd.MultiIndex.from_product([layers, labels, labels], names=["layer", "emotion", "other"])
    table = pd.DataFrame({"cosine": values.ravel()}, index=names).reset_index()
    return _of(table, vectors, site=site, part=_part(vectors, part), layers=layers)


def layer_by_layer(vectors: EmotionVectors, *, site: str = "resid", part: str = "whole") -> pd.DataFrame:
    """Cosine of each emotion's vector at one layer with itself at another: `emotion, layer, other, cosine`.

    >>> layer_by_layer(vectors, part="specific").groupby(["layer", "other"])["cosine"].mean()
    """
    need_vectors(vectors)
    values = layer_cosines(vectors, site=site, part=part)
    labels, n = list(vectors.emotions), vectors.n_layers
    names = pd.MultiIndex.from_product([labels, range(n), range(n)], names=["emotion", "layer", "other"])
    table = pd.DataFrame({"cosine": values.ravel()}, index=names).reset_index()
    return _of(table, vectors, site=site, part=_part(vectors, part))


def neighbour_purity(
    means: ResponseMeans, *, site: str = "resid", k: int = 5, n_permutations: int = 200, seed: int = 0
) -> pd.DataFrame:
    """By what a response's neighbours are chosen, by layer: its question, or its emotion?

    >>> neighbour_purity(means).pivot(index="layer", columns="by", values="purity")

    Of the k nearest other responses (Euclidean distance), the share with the same question ("query_id") or condition
    ("condition"). For conditions neighbours are sought among answers to other questions, which share no words.
    `null_mean, null_hi`: the same with labels shuffled (conditions within each question, questions over all responses),
    mean and 95th percentile.

    Returns:
        One row per layer and label: `layer, by, purity, null_mean, null_hi, p`.
    """
    values, rng = site_values(means, site), np.random.default_rng(seed)
    query, rows = pd.factorize(means.index["query_id"])[0], []
    codes = {"query_id": query, "condition": pd.factorize(means.index["condition"])[0]}
    names = {name: i for i, name in enumerate(pd.unique(means.index["condition"]))}
    shuffled = permuted_labels(means.index, n_permutations, rng)
    null_codes = {
        "query_id": np.array([rng.permutation(query) for _ in range(n_permutations)]),
        "condition": np.vectorize(names.get)(shuffled),
    }
    for layer in range(values.shape[1]):
        x = values[:, layer].reshape(len(values), -1).astype(np.float64)
        square = (x**2).sum(1)
        distance = square[:, None] + square - 2 * x @ x.T
        np.fill_diagonal(distance, np.inf)
        for by, code in codes.items():
            apart = distance if by == "query_id" else np.where(query[:, None] == query, np.inf, distance)
            near = np.argsort(apart, axis=1, kind="stable")[:, :k]
            purity = float((code[near] == code[:, None]).mean())
            null = (null_codes[by][:, near] == null_codes[by][:, :, None]).mean((1, 2))
            p = (1 + (null >= purity - 1e-12).sum()) / (1 + n_permutations)
            rows.append((layer, by, purity, float(null.mean()), float(np.quantile(null, 0.95)), float(p)))
    table = pd.DataFrame(rows, columns=["layer", "by", "purity", "null_mean", "null_hi", "p"])
    return noted(table, means.meta, n=counted(means.index), seed=seed, params={"site": site, "k": k})


def _part(vectors: EmotionVectors, part: str) -> str:
    """`vectors` may themselves be a part already."""
    return vectors.meta.get("part", "whole") if part == "whole" else part


def _of(table: pd.DataFrame, vectors: EmotionVectors, **params) -> pd.DataFrame:
    table.attrs["about"] = {**about(vectors), "params": params}
    return table
