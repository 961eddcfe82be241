"""Tidy tables of vectors and responses for figures: norms, cosines of pairs and layers, what neighbours share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_vectors
from emolab.base.labels import order
from emolab.base.tables import about, noted, some_layers
from emolab.geometry.resampling import against_null, counted, flat_layer, permuted_rows, site_values
from emolab.geometry.similarity import cosines, part_array, tidy, unit_rows
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
    axes = {"emotion": vectors.emotions, "layer": range(vectors.n_layers)}
    columns = {"norm": length, "resid_norm": np.broadcast_to(stream, length.shape), "relative": length / stream}
    return _of(tidy(axes, columns), vectors, {"site": site})


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
    return _of(pd.concat(frames, ignore_index=True), vectors, {"site": site, "emotions": len(labels)})


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
    table = tidy({"layer": layers, "emotion": labels, "other": labels}, {"cosine": values})
    return _of(table, vectors, {"site": site, "part": _part(vectors, part), "layers": layers})


def layer_by_layer(vectors: EmotionVectors, *, site: str = "resid", part: str = "whole") -> pd.DataFrame:
    """Cosine of each emotion's vector at one layer with itself at another: `emotion, layer, other, cosine`.

    >>> layer_by_layer(vectors, part="specific").groupby(["layer", "other"])["cosine"].mean()
    """
    unit = unit_rows(part_array(vectors, site, part))
    cosine = np.clip(np.einsum("eld,emd->elm", unit, unit), -1.0, 1.0)
    layers = range(vectors.n_layers)
    table = tidy({"emotion": vectors.emotions, "layer": layers, "other": layers}, {"cosine": cosine})
    return _of(table, vectors, {"site": site, "part": _part(vectors, part)})


def neighbour_purity(
    means: ResponseMeans, *, site: str = "resid", k: int = 5, n_permutations: int = 200, seed: int = 0
) -> pd.DataFrame:
    """By what a response's neighbours are chosen, by layer: its question, or its emotion?

    >>> neighbour_purity(means).pivot(index="layer", columns="by", values="purity")

    One row per layer and label: `layer, by, purity, null_mean, null_hi, p`. purity: of the k nearest other responses
    (Euclidean distance), the share with the same question ("query_id") or condition ("condition"). For conditions
    neighbours are sought among answers to other questions, which share no words. Null: labels shuffled, conditions
    within each question, questions over all responses; mean and 95th percentile.
    """
    rng = np.random.default_rng(seed)
    codes = {by: pd.factorize(means.index[by])[0] for by in ("query_id", "condition")}
    query = codes["query_id"]
    shuffled = {"condition": codes["condition"][permuted_rows(means.index, n_permutations, rng)]}
    shuffled["query_id"] = np.array([rng.permutation(query) for _ in range(n_permutations)])
    rows = []
    for layer in range(site_values(means, site).shape[1]):
        x = flat_layer(means, site, layer)
        square = (x**2).sum(1)
        distance = square[:, None] + square - 2 * x @ x.T
        np.fill_diagonal(distance, np.inf)
        for by, code in codes.items():
            apart = distance if by == "query_id" else np.where(query[:, None] == query, np.inf, distance)
            near = np.argsort(apart, axis=1, kind="stable")[:, :k]
            purity = float((code[near] == code[:, None]).mean())
            null = (shuffled[by][:, near] == shuffled[by][:, :, None]).mean((1, 2))
            rows.append((layer, by, purity, *against_null(purity, null)))
    table = pd.DataFrame(rows, columns=["layer", "by", "purity", "null_mean", "null_hi", "p"])
    return noted(table, means.meta, n=counted(means.index), seed=seed, params={"site": site, "k": k})


def _part(vectors: EmotionVectors, part: str) -> str:
    """`vectors` may themselves be a part already."""
    return vectors.meta.get("part", "whole") if part == "whole" else part


def _of(table: pd.DataFrame, vectors: EmotionVectors, params: dict) -> pd.DataFrame:
    table.attrs["about"] = {**about(vectors), "params": params}
    return table
