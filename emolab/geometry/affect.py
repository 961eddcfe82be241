"""Affect axes: how people's ratings of emotion words (valence, arousal, dominance) lie in the vectors of these words.

>>> texts = emolab.load_texts("frames")                                           # 16 frames around 64 nouns
>>> means = emolab.response_means(model, emolab.responses_from_texts(texts), sites=("resid",))   # doctest: +SKIP
>>> fit = affect_fit(means, word_embeddings(model, means.index["condition"].unique()))           # doctest: +SKIP
>>> axes = affect_axes(emolab.extract_vectors(model, responses))                                 # doctest: +SKIP
>>> steering = emolab.Steering(axes, {"valence": 1.0, "arousal": -0.5}, layers="late")           # doctest: +SKIP

Source: the circumplex (Russell 1980); axes by ridge from emotion vectors onto ratings, arXiv 2604.03147; the first
component of many emotion vectors against valence, arXiv 2604.07729. Ratings: `emolab.answers.texts.load_ratings`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from emolab.answers.texts import load_ratings
from emolab.base.errors import EmolabError, need_vectors, shown
from emolab.base.stats import expanded, ridge
from emolab.base.tables import noted, some_layers
from emolab.geometry.resampling import against_null, contrasts, counted, flat_layer, orders, query_groups, site_values
from emolab.models.model import Model
from emolab.models.prompts import text_ids
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.vectors import EmotionVectors

DIMENSIONS = ("valence", "arousal", "dominance")
_RIDGE = 1.0  # penalty, in mean squared norms of what it is fitted on: few labels, many dimensions
_FOLDS = 8
_LEAST = 12  # labels: with fewer a correlation says nothing
_COMPONENTS = 3  # among which the one that goes along with a rating most is looked for
_DRAWS = 500
_PERMUTATIONS = 200


def rated(labels: Sequence[str], ratings: pd.DataFrame | None = None) -> pd.DataFrame:
    """The ratings of these labels, in their order: a table with a column for each of valence, arousal, dominance.

    >>> rated(["joy", "grief"])["valence"].round(1).to_dict()
    {'joy': 8.1, 'grief': 1.9}

    ratings: a table with a column `word` and at least one of these three (any scale); default `load_ratings()`. Raises
    EmolabError for labels without a rating.
    """
    ratings = load_ratings() if ratings is None else ratings
    known = [name for name in DIMENSIONS if name in ratings]
    if "word" not in ratings or not known:
        raise EmolabError(
            f"ratings have the columns {', '.join(map(str, ratings))}; expected word, and valence, arousal or dominance"
        )
    by_word = ratings.drop_duplicates("word").set_index("word")[known].astype(float)
    missing = [label for label in labels if label not in by_word.index]
    if missing:
        raise EmolabError(
            f"there is no rating of {', '.join(map(repr, missing[:5]))} ({len(missing)} of {len(labels)} labels); give "
            "ratings= with these words, or leave them out"
        )
    return by_word.loc[list(labels)]


def word_embeddings(model: Model, words: Sequence[str]) -> Float[np.ndarray, "word d_model"]:
    """The mean input embedding of each word's tokens, with a space before it: what is there before the first layer.

    >>> word_embeddings(model, ["joy", "nostalgia"]).shape
    (2, 576)
    """
    table = model.hf.get_input_embeddings().weight.detach()
    encoded = text_ids(model, [f" {word}" for word in words])
    rows = [table[torch.tensor(ids, device=table.device)].float().mean(0) for ids in encoded]
    return torch.stack(rows).cpu().double().numpy()


def affect_axes(
    vectors: EmotionVectors,
    ratings: pd.DataFrame | None = None,
    *,
    dimensions: Sequence[str] = ("valence", "arousal"),
) -> EmotionVectors:
    """The direction in which vectors move per standard deviation of each rating, as vectors that `Steering` takes.

    >>> axes = affect_axes(vectors)  # doctest: +SKIP
    >>> pleasant = emolab.Steering(axes, {"valence": 1.0}, layers="late")  # doctest: +SKIP

    Multiple regression of the vectors of all labels on these ratings together, layer by layer and site by site: the
    valence axis is what changes with valence while arousal stays. Raises EmolabError for labels without a rating, and
    for fewer than twelve.
    """
    need_vectors(vectors)
    human = rated(vectors.emotions, ratings)
    unknown = [name for name in dimensions if name not in human]
    if unknown or not dimensions:
        raise EmolabError(
            f"dimensions are {shown(list(dimensions))}; expected some of {', '.join(map(str, human.columns))}"
        )
    _need_labels(len(human))
    z = human[list(dimensions)].to_numpy()
    z = (z - z.mean(0)) / z.std(0)
    slopes = torch.from_numpy(np.linalg.pinv(np.column_stack([np.ones(len(z)), z]))[1:])
    data = {site: torch.tensordot(slopes, x.double(), 1) for site, x in vectors.data.items()}
    meta = {key: value for key, value in vectors.meta.items() if key not in ("n_responses", "n_pairs", "breaking")}
    meta |= {"emotions": list(dimensions), "fitted_on": list(vectors.emotions)}
    meta["steps"] = [*vectors.meta.get("steps", []), f"axes of {', '.join(dimensions)} by regression"]
    return EmotionVectors(data, tuple(dimensions), vectors.resid_norm, meta)


def affect_fit(
    means: ResponseMeans,
    embeddings: Float[np.ndarray, "label d_model"] | None = None,
    ratings: pd.DataFrame | None = None,
    *,
    site: str = "resid",
    n_permutations: int = _PERMUTATIONS,
    seed: int = 0,
) -> pd.DataFrame:
    """How well people's ratings of a label can be read off its vector, layer by layer, with nulls.

    >>> fit = affect_fit(means, word_embeddings(model, labels))  # doctest: +SKIP
    >>> fit.query("method == 'ridge' and dimension == 'valence'")[["layer", "r", "null_hi", "p"]]  # doctest: +SKIP

    Vectors are those of the labels in `means` (less the mean over labels, question by question), at unit length. One
    row for each `layer`, `dimension` and `method`:

    - "ridge": rating predicted by ridge regression for labels that it was not fitted on (eight folds).
    - "ridge, other frames": the same, and the vectors that it is read off come from other frames (queries) as well.
    - "component": that of the first three principal components which goes along with the rating most (`component`).
    - "word embedding": "ridge" on `embeddings`, at layer -1: what the words themselves say, without any context.

    `r`, correlation with the ratings, with `lo` and `hi` (bootstrap over labels); `null` and `null_hi`, mean and 95th
    percentile under permuted ratings (of a component: of the best of three, too), and `p`. Raises EmolabError for
    labels without a rating, fewer than twelve labels, and fewer than two frames.
    """
    human, weights, folds, rng = _labels(means, ratings, seed)
    ordered = human.to_numpy()[orders(len(human), n_permutations, rng)]  # [order, label, dimension]
    halves = _halves(means.index, weights, rng)
    draws = rng.integers(0, len(human), (_DRAWS, len(human)))
    rows = []

    def add(layer: int, method: str, dimension: int, predictions: np.ndarray, component: int = 0) -> None:
        """predictions [order, label], each for its own order of the ratings."""
        r = _r(predictions, ordered[..., dimension])
        drawn = _r(predictions[0][draws], ordered[0, :, dimension][draws])
        interval = expanded(drawn, len(human))
        name = str(human.columns[dimension])
        rows.append((layer, name, method, r[0], *interval, *against_null(r[0], r[1:]), component))

    def fitted(layer: int, method: str, *pairs: tuple[np.ndarray, np.ndarray]) -> None:
        predictions = np.mean([_out_of_fold(train, test, ordered, folds) for train, test in pairs], axis=0)
        for dimension in range(human.shape[1]):
            add(layer, method, dimension, predictions[..., dimension])

    if embeddings is not None:
        words = _unit(np.asarray(embeddings, float) - np.mean(embeddings, 0))
        fitted(-1, "word embedding", (words, words))
    for layer in range(site_values(means, site).shape[1]):
        x = flat_layer(means, site, layer)
        whole, first, second = (_unit(w @ x) for w in (weights, *halves))
        fitted(layer, "ridge", (whole, whole))
        fitted(layer, "ridge, other frames", (first, second), (second, first))
        scores = _components(whole)
        for dimension in range(human.shape[1]):
            r = _r(scores, ordered[:, None, :, dimension])  # [order, component]
            best = np.abs(r).argmax(1)
            signed = scores[best] * np.sign(r[np.arange(len(r)), best])[:, None]
            add(layer, "component", dimension, signed, component=int(best[0]) + 1)
    columns = ["layer", "dimension", "method", "r", "lo", "hi", "null", "null_hi", "p", "component"]
    table = pd.DataFrame(rows, columns=columns)
    return noted(table, means.meta, n=counted(means.index), seed=seed, params={"site": site})


def affect_points(
    means: ResponseMeans,
    ratings: pd.DataFrame | None = None,
    *,
    layer: int,
    site: str = "resid",
    n_clusters: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """The map of the labels at one layer: each where the others say that it lies. One row per label.

    >>> points = affect_points(means, layer=18)  # doctest: +SKIP
    >>> emolab.plot.circumplex(points)  # doctest: +SKIP

    `label`; `valence`, `arousal` and `dominance`, as people rate it; `read_valence` and so on, the rating read off its
    vector by a ridge regression that was fitted on other labels; `component_1` and `component_2`, principal components
    of the unit vectors, turned so that they rise with valence and arousal; `cluster`, of k-means. attrs["r"]: r of what
    is read off with the ratings, and attrs["null_hi"] the 95th percentile with permuted ratings. attrs["clusters"]: how
    far clusters of one half of the frames are those of the other half (adjusted Rand index; 0 by chance).
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    human, weights, folds, rng = _labels(means, ratings, seed)
    (layer,) = some_layers(site_values(means, site).shape[1], layer)
    x = flat_layer(means, site, layer)
    whole, first, second = (_unit(w @ x) for w in (weights, *_halves(means.index, weights, rng)))
    ordered = human.to_numpy()[orders(len(human), _PERMUTATIONS, rng)]
    read = _out_of_fold(whole, whole, ordered, folds)
    r = _r(read.swapaxes(1, 2), ordered.swapaxes(1, 2))  # [order, dimension]
    scores = _components(whole)[:2]
    for score, dimension in zip(scores, human, strict=False):
        score *= np.sign(_r(score, human[dimension].to_numpy()))
    clusters, *of_halves = (KMeans(n_clusters, random_state=seed).fit_predict(x) for x in (whole, first, second))
    points = human.reset_index(names="label")
    points[[f"read_{dimension}" for dimension in human]] = read[0]
    points["component_1"], points["component_2"] = scores
    points["cluster"] = clusters
    points = noted(points, means.meta, n=counted(means.index), seed=seed, params={"site": site, "layer": layer})
    points.attrs["r"] = dict(zip(human, r[0].tolist(), strict=True))
    points.attrs["null_hi"] = dict(zip(human, np.quantile(r[1:], 0.95, axis=0).tolist(), strict=True))
    points.attrs["clusters"] = {"n": n_clusters, "rand": float(adjusted_rand_score(*of_halves))}
    return points


def _labels(
    means: ResponseMeans, ratings: pd.DataFrame | None, seed: int
) -> tuple[pd.DataFrame, np.ndarray, list[np.ndarray], np.random.Generator]:
    """The labels' ratings, the weight of each response in their vectors, folds of the labels, and what drew these."""
    labels, weights = contrasts(means.index)
    human = rated(labels, ratings)
    _need_labels(len(human))
    rng = np.random.default_rng(seed)
    return human, weights, np.array_split(rng.permutation(len(human)), _FOLDS), rng


def _need_labels(n: int) -> None:
    if n < _LEAST:
        raise EmolabError(f"there are vectors of {n} labels; affect axes need at least {_LEAST}, better fifty")


def _halves(index: pd.DataFrame, weights: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The weights of each response in the vectors of one half of the queries, and of the other."""
    query = query_groups(index)
    queries = rng.permutation(np.unique(query))
    if len(queries) < 2:
        raise EmolabError("all labels stand in one frame; affect axes need at least two frames (queries)")
    half = np.isin(query, queries[: len(queries) // 2])
    return [weights * half, weights * ~half]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-30)


def _components(vectors: Float[np.ndarray, "label d"]) -> Float[np.ndarray, "component label"]:
    """The scores of the first principal components of unit vectors: by direction, so that no label counts for more."""
    u, s, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    return (u[:, :_COMPONENTS] * s[:_COMPONENTS]).T


def _out_of_fold(
    train: Float[np.ndarray, "label d"],
    test: Float[np.ndarray, "label d"],
    ordered: Float[np.ndarray, "order label dimension"],
    folds: list[np.ndarray],
) -> Float[np.ndarray, "order label dimension"]:
    """Ratings predicted for the labels of each fold, by a ridge regression on the labels of the others."""
    predictions = np.empty_like(ordered)
    for fold in folds:
        others = np.setdiff1d(np.arange(len(train)), fold)
        y = ordered[:, others].swapaxes(0, 1).reshape(len(others), -1)
        read = ridge(train[others], y, _RIDGE).predict(test[fold])
        predictions[:, fold] = read.reshape(len(fold), len(ordered), -1).swapaxes(0, 1)
    return predictions


def _r(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlations along the last axis; 0 where one side does not vary."""
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return (a * b).sum(-1) / np.where(size, size, 1)
