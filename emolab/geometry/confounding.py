"""Confounds: how much of the maps is length, tense or person, and what is left of the vectors without these.

Answers under an emotion also get longer, turn to the past, or speak of "I"; the difference of their means holds that,
too. Tense and person are told by rules for English (`emolab.judges.grammar`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from emolab.base.errors import EmolabError, MismatchError, need_number, need_table
from emolab.base.tables import noted
from emolab.geometry.resampling import (
    against_null,
    contrasts,
    counted,
    flat_layer,
    grams,
    orders,
    permuted_rows,
    site_values,
)
from emolab.judges.grammar import past_share, person_shares
from emolab.judges.words import words_of
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.vectors import EmotionVectors, vectors_from_means

# What of `text_features` each factor is.
FEATURES = {"length": ["n_tokens"], "tense": ["past"], "person": ["first_person", "second_person"]}
FACTORS = ("question", "emotion", *FEATURES)


def text_features(responses: pd.DataFrame) -> pd.DataFrame:
    """What a text has beside its emotion, in the order of the table: `n_tokens, past, first_person, second_person`.

    >>> text_features(responses).groupby(responses["condition"])["first_person"].mean()

    n_tokens: the length in tokens, or in words where the table does not know it. past: the share of past forms among
    the verbs whose tense can be told, NaN without one. first_person, second_person: the share of words such as I, my,
    us, and you, your.
    """
    need_table(responses, ("text",), "collect_responses or responses_from_texts")
    texts = responses["text"]
    known = "n_tokens" in responses and responses["n_tokens"].notna().all()
    lengths = responses["n_tokens"] if known else pd.Series([len(words_of(text)) for text in texts], responses.index)
    persons = np.array([person_shares(text) for text in texts])
    return pd.DataFrame(
        {
            "n_tokens": lengths.astype(float),
            "past": [past_share(text) for text in texts],
            "first_person": persons[:, 0],
            "second_person": persons[:, 1],
        },
        index=responses.index,
    )


def confounds(
    means: ResponseMeans, responses: pd.DataFrame, *, site: str = "resid", n_permutations: int = 200, seed: int = 0
) -> pd.DataFrame:
    """How much of the answers' mean activations each factor explains alone, by layer.

    >>> table = confounds(means, responses)
    >>> table.query("factor == 'tense'").nlargest(1, "explained")

    Adjusted R-squared, 1 - (1 - R2) (n - 1) / (n - p - 1), over all dimensions, each standardised, so that a few
    outlier coordinates do not decide; 0 is what a factor without meaning gives. "question" and "emotion" (the
    condition) are groups; "length", "tense" and "person" are linear in `text_features` (a text without a value counts
    as average). Factors overlap, so that shares do not sum to one. Null: the same with rows shuffled, within each
    question, or for "question" over all rows.

    Returns:
        One row per layer and factor: `layer, factor, explained, null_mean, null_hi` (95th percentile), `p`. Where no
        query has two answers there is no factor "question"; `explained` is NaN for a feature that all texts share.

    Raises:
        EmolabError: responses that are not those of the means; fewer than four answers.
    """
    need_number("n_permutations", n_permutations, 1, whole=True)
    features, values = _features(means, responses), site_values(means, site)
    if len(values) < 4:
        raise EmolabError(f"{len(values)} answers cannot tell factors apart; expected at least four")
    rng = np.random.default_rng(seed)
    within = np.vstack([np.arange(len(values)), permuted_rows(means.index, n_permutations, rng)])
    anywhere = orders(len(values), n_permutations, rng)
    designs = {"question": _groups(means.index["query_id"]), "emotion": _groups(means.index["condition"])}
    designs |= {factor: features[columns].to_numpy() for factor, columns in FEATURES.items()}
    bases = {factor: _basis(design - design.mean(0)) for factor, design in designs.items()}
    if means.index["query_id"].is_unique:
        bases.pop("question")
    table = []
    for layer in range(values.shape[1]):
        gram = _standard_gram(flat_layer(means, site, layer))
        for factor, basis in bases.items():
            explained, *null = _explained(gram, basis, anywhere if factor == "question" else within)
            table.append((layer, factor, explained, *against_null(explained, null)))
    columns = ["layer", "factor", "explained", "null_mean", "null_hi", "p"]
    params = {"site": site, "n_permutations": n_permutations}
    return noted(pd.DataFrame(table, columns=columns), means.meta, n=counted(means.index), seed=seed, params=params)


def without_confounds(
    means: ResponseMeans,
    responses: pd.DataFrame,
    *,
    factors: Sequence[str] = tuple(FEATURES),
    site: str = "resid",
    W_O: Float[Tensor, "layer head d_head d_model"] | None = None,
    n_permutations: int = 200,
    seed: int = 0,
) -> tuple[EmotionVectors, pd.DataFrame]:
    """Emotion vectors after length, tense and person are taken out of the activations, and what that changed.

    >>> vectors, taken = without_confounds(means, responses, factors=["tense"])
    >>> taken.groupby("emotion")[["cosine", "kept"]].mean()
    >>> steering = emolab.Steering(vectors, {"joy": 1.5})

    As in an analysis of covariance: how activations move with the features is fitted to what is left of both after the
    means of each question and of each condition, so that the slope holds no emotion; then the features of all answers
    are set to their mean. It takes out what is linear in these features, no more, and nothing of a feature that does
    not vary within conditions. Where a feature is a way of telling the emotion ("I am so glad"), that goes, too: what
    is gone is an upper bound of what was not emotion.

    Args:
        factors: any of "length", "tense", "person".
        site: of the table. The vectors have all sites of the means, "head" where W_O is given
            (`emolab.models.output_weights(model)`).

    Returns:
        The vectors (`meta["without"]` names the factors; `means` holds the changed activations), and a table, one row
        per layer (head) and emotion: `layer, head, emotion, cosine` (of the vector with and without), `kept` (the share
        of its energy that is left), `null_cosine, null_kept` (mean of the same with features shuffled over all rows),
        `null_lo` (5th percentile of kept) and `p` (that shuffled features take out as much).

    Raises:
        EmolabError: responses that are not those of the means, or an unknown factor.
    """
    need_number("n_permutations", n_permutations, 1, whole=True)
    factors = [factors] if isinstance(factors, str) else list(factors)
    wrong = [factor for factor in factors if factor not in FEATURES]
    if wrong or not factors:
        raise EmolabError(f"unknown factor {wrong[:1]}; expected some of {', '.join(FEATURES)}")
    columns = [column for factor in factors for column in FEATURES[factor]]
    features = _features(means, responses)[columns].to_numpy()
    apart = _apart(means.index)
    changed = {name: _without(x, features, apart) for name, x in means.means.items()}
    vectors = vectors_from_means(dataclasses.replace(means, means=changed), W_O=W_O)
    vectors.meta["without"] = factors
    emotions, weights = contrasts(means.index)
    shuffled = features[orders(len(features), n_permutations, np.random.default_rng(seed))]
    # An adjusted vector is a sum of the same means with other weights.
    adjusted = np.stack([weights - (weights @ x) @ _slopes(x, apart) for x in shuffled])
    table = []
    for layer, head, gram in grams(means, site, W_O):
        whole = np.einsum("er,rs,es->e", weights, gram, weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            between = np.einsum("der,er->de", adjusted, weights @ gram) / whole
            kept = np.einsum("der,der->de", adjusted @ gram, adjusted) / whole
            cosine = between / np.sqrt(kept)
        p = (1 + (kept[1:] <= kept[0] + 1e-12).sum(0)) / (1 + n_permutations)
        for e, emotion in enumerate(emotions):
            null = cosine[1:, e].mean(), kept[1:, e].mean(), np.quantile(kept[1:, e], 0.05)
            table.append((layer, head, emotion, cosine[0, e], kept[0, e], *null, p[e]))
    names = ["layer", "head", "emotion", "cosine", "kept", "null_cosine", "null_kept", "null_lo", "p"]
    params = {"site": site, "factors": factors, "n_permutations": n_permutations}
    taken = pd.DataFrame(table, columns=names).astype({"head": "Int64"})
    return vectors, noted(taken, means.meta, n=counted(means.index), seed=seed, params=params)


def _features(means: ResponseMeans, responses: pd.DataFrame) -> pd.DataFrame:
    """Standardised features of the responses, 0 where a text has no value; MismatchError for other responses."""
    need_table(responses, ("query_id", "condition", "text"), "collect_responses or responses_from_texts")
    if any(list(responses[column]) != list(means.index[column]) for column in ("query_id", "condition")):
        raise MismatchError("the means are of other responses than those given; pass the table that they came from")
    features = text_features(responses)
    size = features.std(ddof=0)
    return ((features - features.mean()) / size.where(size > 0, 1.0)).fillna(0.0)


def _groups(labels: pd.Series) -> Float[np.ndarray, "row group"]:
    """One column per label: 1 in its rows."""
    return np.eye(labels.nunique())[pd.factorize(labels)[0]]


def _basis(design: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row rank"]:
    """Orthonormal directions that the columns span."""
    u, size, _ = np.linalg.svd(design, full_matrices=False)
    return u[:, size > 1e-9 * max(1.0, size.max(initial=0))]


def _standard_gram(x: Float[np.ndarray, "row d"]) -> Float[np.ndarray, "row row"]:
    """Inner products of the rows, each dimension centred and of unit variance; of trace 1."""
    x = x - x.mean(0)
    size = x.std(0)
    x = x / np.where(size > 1e-9 * size.max(), size, np.inf)
    gram = x @ x.T
    return gram / max(np.trace(gram), 1e-300)


def _explained(
    gram: Float[np.ndarray, "row row"], basis: Float[np.ndarray, "row rank"], orders: Int[np.ndarray, "draw row"]
) -> Float[np.ndarray, " draw"]:
    """Adjusted share of the trace in the span of the basis, its rows in each order; NaN for a basis of nothing."""
    n, rank = basis.shape
    if not rank:
        return np.full(len(orders), np.nan)
    share = np.array([((gram @ moved) * moved).sum() for moved in (basis[o] for o in orders)])
    return 1 - (1 - share) * (n - 1) / (n - rank - 1)


def _apart(index: pd.DataFrame) -> Float[np.ndarray, "row row"]:
    """The projection onto what is left after the means of each question and condition."""
    groups = ["condition"] if index["query_id"].is_unique else ["condition", "query_id"]
    basis = _basis(np.hstack([_groups(index[column]) for column in groups]))
    return np.eye(len(index)) - basis @ basis.T


def _slopes(features: Float[np.ndarray, "row feature"], apart: np.ndarray) -> Float[np.ndarray, "feature row"]:
    """What makes activations into their slopes on the features; 0 for one that only questions and conditions vary."""
    left = apart @ features
    varies = np.linalg.norm(left, axis=0) > 1e-6 * np.sqrt(len(left))
    return np.linalg.pinv(np.where(varies, left, 0.0), rcond=1e-6)


def _without(
    values: Float[np.ndarray, "row layer ..."], features: np.ndarray, apart: np.ndarray
) -> Float[np.ndarray, "row layer ..."]:
    """The activations with the features set to their mean, layer by layer: a float64 copy of all would be large."""
    fit = features @ _slopes(features, apart)  # features are centred
    return np.stack(
        [x - np.tensordot(fit, x.astype(np.float64), 1).astype(x.dtype) for x in np.moveaxis(values, 1, 0)], axis=1
    )
