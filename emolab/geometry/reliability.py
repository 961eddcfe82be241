"""Reliability: would other queries have given the same vectors, and do activations tell emotions apart on new queries?

Queries, never single responses, are split, drawn and held out; `groups` keeps a situation's queries together:
`groups=queries.set_index("query_id")["situation"]`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, need_number
from emolab.base.labels import order
from emolab.base.stats import expanded
from emolab.base.tables import noted
from emolab.geometry.resampling import (
    bootstrap_counts,
    contrasts,
    counted,
    disjoint_sets,
    draw_weights,
    grams,
    label_weights,
    middle,
    need_part,
    permuted_labels,
    query_groups,
    site_values,
)
from emolab.vectors.activations import ResponseMeans

PROBES = ("centroid", "logistic")
_COLUMNS = ["layer", "head", "probe", "emotion", "accuracy", "lo", "hi", "chance", "p", "n"]


def split_half(
    means: ResponseMeans,
    *,
    site: str = "resid",
    W_O: Float[Tensor, "layer head d_head d_model"] | None = None,
    part: str = "whole",
    groups: pd.Series | None = None,
    n_splits: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine between an emotion's vectors from two random halves of the queries, by layer (and head).

    >>> split_half(means, part="specific").groupby("layer")["cosine"].min()

    Args:
        W_O: `emolab.models.output_weights(model)`, for site "head".
        part: "whole", or "specific": the harder test, since a shared part alone makes whole vectors agree.
        groups: Series query_id -> situation; halves then share no situation.

    Returns:
        One row a layer (head) and emotion: `layer, head, emotion, cosine` (mean over the splits), `lo, hi` (95 % of the
        splits: the spread over halves, which is wider than the error of the mean), `null_lo, null_hi` (95 % with the
        conditions shuffled within each query). A half has half of the queries, so all of them agree better than this.

    Raises:
        EmolabError: fewer than two queries or groups, or no baseline.
    """
    need_number("n_splits", n_splits, 1, whole=True)
    rng = np.random.default_rng(seed)
    emotions, weights = contrasts(means.index)
    need_part(part)
    if part == "specific" and len(emotions) < 2:
        raise EmolabError(f'part "specific" tells emotions apart; there is only {", ".join(emotions)}')
    halves = [half.astype(float) for half in disjoint_sets(query_groups(means.index, groups), n_splits, rng)]
    shuffled = label_weights(means.index, permuted_labels(means.index, n_splits, rng))
    first, second = (draw_weights(weights, half, part=part) for half in halves)
    null_first, null_second = (draw_weights(shuffled, half, part=part) for half in halves)
    rows = []
    for layer, head, gram in grams(means, site, W_O):
        cosine, null = _cosine(first, second, gram), _cosine(null_first, null_second, gram)  # [split, emotion]
        for emotion, values, by_chance in zip(emotions, cosine.T, null.T, strict=True):
            rows.append((layer, head, emotion, _mean(values), *middle(values), *middle(by_chance)))
    columns = ["layer", "head", "emotion", "cosine", "lo", "hi", "null_lo", "null_hi"]
    table = pd.DataFrame(rows, columns=columns).astype({"head": "Int64"})
    params = {"site": site, "part": part, "n_splits": n_splits}
    return noted(table, means.meta, n=counted(means.index), seed=seed, params=params)


def probe_accuracy(
    means: ResponseMeans,
    *,
    test: ResponseMeans | None = None,
    site: str = "resid",
    groups: pd.Series | None = None,
    probes: Sequence[str] = PROBES,
    n_permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy of reading the condition from activations on queries that the probe has not seen, by layer (and head).

    >>> probe_accuracy(means, test=heldout).query("emotion == 'all'")

    With `test`, probes are fitted on `means` and read `test`, which must hold other queries. Without, five-fold
    cross-validation with whole groups held out. Standardisation is part of the fit. Site "head" reads each head's z.
    Layers that lack the site, whose means are zero, are left out. A high accuracy may come from the words of the
    responses: set it beside `word_accuracy`.

    Args:
        groups: Series query_id -> situation; without it every query is a group.
        probes: "centroid" (nearest class mean) and "logistic" (multinomial, L2).

    Returns:
        One row a layer (head), probe and emotion, and one with emotion "all": `layer, head, probe, emotion, accuracy,
        lo, hi, chance, p, n`. For one emotion, accuracy is the share of its answers that are recognised. `lo, hi`: 95 %
        bootstrap interval over groups. `chance`: mean accuracy of the same guesses with the conditions shuffled within
        each query; p: the share of such shufflings that reach the accuracy (exact with `test`; in cross-validation an
        approximation, since folds train on each other).

    Raises:
        EmolabError: a query (or group) in both sets, other layers or conditions in `test`, or fewer than two groups.
    """
    unknown = [probe for probe in probes if probe not in PROBES]
    if unknown or not len(probes):
        raise EmolabError(f"unknown probe {unknown[:1]}; expected {' and/or '.join(PROBES)}")
    values = site_values(means, site)
    tested = values if test is None else site_values(test, site)
    if tested.shape[1:] != values.shape[1:]:
        raise EmolabError(
            f"test has layers and dimensions {tested.shape[1:]}, the means {values.shape[1:]}; two models?"
        )
    folds = _folds(means.index, None if test is None else test.index, groups)
    index = means.index if test is None else test.index
    labels = order(means.index["condition"])
    if len(labels) < 2:
        raise EmolabError(f"all responses are {labels[0]}; a probe needs two conditions")
    accuracy = _accuracy(index, groups, n_permutations, seed)
    conditions = means.index["condition"].to_numpy(dtype=object)
    heads = range(values.shape[2]) if site == "head" else [None]
    rows = []
    for layer, head in product(range(values.shape[1]), heads):
        here = (slice(None), layer) if head is None else (slice(None), layer, head)
        if not values[here].any():  # a hybrid model's layer without this site
            continue
        for probe in probes:
            train, read = values[here].astype(np.float64), tested[here].astype(np.float64)
            guess = _predict(probe, train, read, conditions, folds)
            rows += [(layer, head, probe, emotion, *accuracy(guess, emotion)) for emotion in ["all", *labels]]
    table = pd.DataFrame(rows, columns=_COLUMNS).astype({"head": "Int64"})
    params = {"site": site, "n_permutations": n_permutations, "held_out": "test" if test is not None else "5 folds"}
    return noted(table, means.meta, n=f"{counted(index)}, held out", seed=seed, params=params)


def word_accuracy(
    responses: pd.DataFrame,
    *,
    test: pd.DataFrame | None = None,
    groups: pd.Series | None = None,
    n_permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """The baseline of `probe_accuracy`: the same reading from the words of the responses, without any model.

    >>> word_accuracy(responses, test=heldout_responses).query("emotion == 'all'")

    Logistic regression on word counts. Responses are what an emotional model wrote, so their words alone may tell the
    emotion; only what a layer reads beyond this is more than its words. Same columns; `layer` and `head` are missing.
    """
    index = responses if test is None else test
    train, tested = (table["text"].to_numpy(dtype=object) for table in (responses, index))
    labels = responses["condition"].to_numpy(dtype=object)
    guess = _predict("words", train, tested, labels, _folds(responses, test, groups))
    accuracy = _accuracy(index, groups, n_permutations, seed)
    rows = [(pd.NA, pd.NA, "words", emotion, *accuracy(guess, emotion)) for emotion in ["all", *order(labels)]]
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"layer": "Int64", "head": "Int64"})


def _cosine(a: np.ndarray, b: np.ndarray, gram: np.ndarray) -> Float[np.ndarray, "draw emotion"]:
    def inner(u, v):
        return np.einsum("ber,ber->be", u, v)

    ga, gb = a @ gram, b @ gram
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(inner(ga, b) / np.sqrt(inner(ga, a) * inner(gb, b)), -1, 1)


def _mean(values: np.ndarray) -> float:
    """NaN draws are left out, and all-NaN gives NaN."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        return float(np.nanmean(values))


def _folds(index: pd.DataFrame, tested: pd.DataFrame | None, groups: pd.Series | None) -> list:
    """[(training rows, tested rows)]; no query or group is in both."""
    if tested is None:
        from sklearn.model_selection import GroupKFold

        numbers = query_groups(index, groups)
        k = int(numbers.max()) + 1
        if k < 2:
            raise EmolabError("cross-validation needs two queries (or groups of them) at least")
        return list(GroupKFold(n_splits=min(5, k)).split(numbers, groups=numbers))
    numbers = query_groups(pd.concat([index, tested], ignore_index=True), groups)
    seen = set(numbers[: len(index)]) & set(numbers[len(index) :])
    extra = sorted(set(tested["condition"]) - set(index["condition"]))
    if seen or extra:
        what = f"{len(seen)} queries or groups are in both sets" if seen else f"nothing was fitted on {extra[0]!r}"
        raise EmolabError(f"{what}; a probe is read on responses to other queries, under the same conditions")
    return [(np.arange(len(index)), np.arange(len(tested)))]


def _predict(probe: str, train: np.ndarray, tested: np.ndarray, labels: np.ndarray, folds) -> np.ndarray:
    """The condition read from each tested response; everything fitted is fitted on the fold's training rows."""
    from sklearn.decomposition import PCA
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestCentroid
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    guess = np.empty(len(tested), dtype=object)
    for fit, read in folds:
        model = NearestCentroid() if probe == "centroid" else LogisticRegression(max_iter=2000)
        steps: list[Any] = [CountVectorizer(token_pattern=r"\S+") if probe == "words" else StandardScaler()]
        if probe != "words" and train.shape[1] > len(fit):
            steps.append(
                PCA(svd_solver="full")
            )  # a rotation into the span of the training rows: the same probe, sooner
        pipeline = make_pipeline(*steps, model)
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # one response a class
            warnings.filterwarnings("ignore", "self.within_class_std_dev_", UserWarning)  # a head that writes nothing
            pipeline.fit(train[fit], labels[fit].astype(str))
        guess[read] = pipeline.predict(tested[read])
    return guess


def _accuracy(
    index: pd.DataFrame, groups: pd.Series | None, n_permutations: int, seed: int
) -> Callable[[np.ndarray, str], tuple]:
    """A function from guesses [row] and an emotion, or "all", to (accuracy, lo, hi, chance, p, n)."""
    rng = np.random.default_rng(seed)
    truth = index["condition"].to_numpy(dtype=object)
    shuffled = permuted_labels(index, n_permutations, rng)
    members = query_groups(index, groups)
    counts = bootstrap_counts(members, 1000, rng)

    def accuracy(guess: np.ndarray, emotion: str) -> tuple:
        mine = np.ones(len(truth), bool) if emotion == "all" else truth == emotion
        if not mine.any():
            return (np.nan, np.nan, np.nan, np.nan, np.nan, 0)
        hit = (guess == truth) & mine
        share = hit.sum() / mine.sum()
        null = ((shuffled == guess) & ((shuffled == emotion) | (emotion == "all"))).sum(1) / mine.sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            low, high = expanded((counts * hit).sum(1) / (counts * mine).sum(1), members.max() + 1)
        p = (1 + (null >= share - 1e-12).sum()) / (1 + len(null))
        return share, low, high, null.mean(), p, int(mine.sum())

    return accuracy
