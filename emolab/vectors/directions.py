"""Other directions from the same responses: what emotion vectors must be compared with, at equal norm.

>>> from emolab.vectors.directions import pca_vectors, probe_vectors
>>> pca = pca_vectors(means)                                    # emolab.response_means(model, responses)
>>> emolab.generate(model, "Tell me about the park.", steering=emolab.Steering(pca, {"joy": 1.5}, site="attn"))

Both are EmotionVectors as long as the emotion vectors of the same means, layer by layer, so that doses compare.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

from emolab.base.errors import EmolabError, need_number
from emolab.base.labels import NEUTRAL
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.contrasts import contrast_weights, shared_queries
from emolab.vectors.vectors import EmotionVectors, match_norm, vectors_from_means


def pca_vectors(means: ResponseMeans, *, sites: Sequence[str] | None = None) -> EmotionVectors:
    """The first principal component of the paired differences emotion - neutral, one a query, at every layer and site.

    >>> pca_vectors(means, sites=("resid",)).get("resid", emotion="joy", layer=3).shape
    torch.Size([576])

    It points where the mean difference does and has its norm. Not centred, as in representation engineering
    (arXiv 2310.01405): where pairs differ in one way only, it is the mean difference. sites: of resid, attn, mlp;
    default those that `means` holds. Raises EmolabError where an emotion and neutral share no query, since then there
    are no pairs, and for site "head" (its vectors sum to those of attn: use these).
    """
    emotions = set(means.index["condition"]) - {NEUTRAL}
    if not all(shared_queries(means.index, emotion, [NEUTRAL]) for emotion in emotions):
        raise EmolabError("principal components need pairs: the same query under neutral and the emotion; use probes")

    def first(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        query = means.index["query_id"].to_numpy()[weights != 0]
        names = np.unique(query)
        pairs = np.where(query == names[:, None], weights[weights != 0], 0) @ x[weights != 0]
        return np.linalg.svd(pairs, full_matrices=False)[2][0]

    return _directions(means, sites, "pca", first)


def probe_vectors(means: ResponseMeans, *, sites: Sequence[str] | None = None, C: float = 1.0) -> EmotionVectors:
    """The weight vector of a logistic regression that reads the emotion against neutral, at every layer and site.

    >>> probe_vectors(means, sites=("attn",), C=0.1)

    Each coordinate is standardised, and the weight brought back to the units of the activations; it has the norm of the
    mean difference. What reads an emotion best is not what writes it best: a probe also weighs coordinates by how
    little else moves them. C: scikit-learn's inverse strength of the L2 penalty. sites as in `pca_vectors`.
    """
    need_number("C", C, 0)
    if not C:
        raise EmolabError("C is 0; expected a number above 0")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    def weight(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(weights)
        share = np.abs(weights[rows]) * len(rows) / 2  # every query, and either side, counts the same
        scaler = StandardScaler().fit(x[rows], sample_weight=share)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            probe = LogisticRegression(C=C, max_iter=2000)
            probe.fit(scaler.transform(x[rows]), weights[rows] > 0, sample_weight=share)
        return probe.coef_[0] / scaler.scale_

    return _directions(means, sites, "probe", weight, C=C)


def _directions(
    means: ResponseMeans, sites: Sequence[str] | None, method: str, find: Callable, C: float | None = None
) -> EmotionVectors:
    """`find(x [response, d_model], contrast weights)` at every layer, with the sign and norm of the mean difference."""
    sites = tuple(site for site in means.sites if site != "head") if sites is None else tuple(sites)
    if "head" in sites or not sites:
        raise EmolabError(f'{method} vectors are of resid, attn or mlp, not of {sites}; heads sum to "attn": use it')
    vectors = vectors_from_means(means, sites=sites)
    weights = {emotion: contrast_weights(means.index, emotion) for emotion in vectors.emotions}
    data = {}
    for site in vectors.sites:
        directions = np.zeros(vectors.data[site].shape)
        differences = np.zeros(vectors.data[site].shape)
        for layer in range(vectors.n_layers):
            x = means.means[site][:, layer].astype(np.float64)
            for e, emotion in enumerate(vectors.emotions):
                differences[e, layer] = weights[emotion] @ x
                direction = find(x, weights[emotion])
                directions[e, layer] = direction if direction @ differences[e, layer] >= 0 else -direction
        data[site] = match_norm(torch.from_numpy(directions), like=torch.from_numpy(differences))
    meta = {**vectors.meta, "method": method, "steps": [*vectors.meta.get("steps", []), method]}
    if C is not None:
        meta["C"] = C
    # Not the means: shuffled labels made of them would be a control of emotion vectors, not of these.
    return EmotionVectors(data, vectors.emotions, vectors.resid_norm, meta)
