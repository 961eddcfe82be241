"""Contrasts: the weight of each response in an emotion's vector, and the vectors as sums with these weights.

>>> index = pd.DataFrame({"query_id": ["a", "a", "b", "b"], "condition": ["neutral", "joy", "neutral", "joy"]})
>>> contrast_weights(index, "joy").tolist()
[-0.5, 0.5, -0.5, 0.5]
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.activations import ResponseMeans, check_sites
from emolab.emotions import NEUTRAL, order
from emolab.errors import EmolabError


def mean_differences(
    means: ResponseMeans,
    W_O: Float[Tensor, "layer head d_head d_model"] | None,
    sites: Sequence[str] | None,
) -> tuple[dict[str, Float[Tensor, "emotion layer ..."]], tuple[str, ...], Float[Tensor, " layer"], dict]:
    """Data, emotions, resid_norm and provenance of `emolab.vectors.vectors_from_means`, in float64."""
    sites = check_sites(sites or [site for site in means.sites if site != "head" or W_O is not None])
    missing = [site for site in sites if site not in means.means]
    if missing or ("head" in sites and W_O is None):
        what = f"the means hold no site {missing[0]!r}" if missing else "site 'head' needs W_O"
        raise EmolabError(f"{what}; use response_means(..., sites=...) and output_weights(model)")
    condition = means.index["condition"].to_numpy()
    emotions = tuple(e for e in order(condition) if e != NEUTRAL)
    if NEUTRAL not in condition or not emotions:
        raise EmolabError(f"these responses are {', '.join(order(condition))}; a vector needs neutral and an emotion")
    weights = np.stack([contrast_weights(means.index, emotion) for emotion in emotions])
    rows = np.flatnonzero(weights.any(0))
    data = {}
    for site in sites:
        # Layer by layer: a float64 copy of all layers would triple the memory.
        layers = [means.means[site][rows, layer].astype(np.float64) for layer in range(means.means[site].shape[1])]
        data[site] = torch.from_numpy(np.stack([np.tensordot(weights[:, rows], x, 1) for x in layers], axis=1))
    if W_O is not None and "head" in sites:
        data["head"] = torch.einsum("elhd,lhdm->elhm", data["head"], W_O.to("cpu", torch.float64))
    resid_norm = torch.from_numpy(np.median(means.resid_norm[condition == NEUTRAL], axis=0))
    counts = {str(label): int((condition == label).sum()) for label in order(condition)}
    meta = {**means.meta, "sites": list(sites), "emotions": list(emotions), "n_responses": counts, "part": "whole"}
    meta["resid_norm"] = [round(float(x), 6) for x in resid_norm]
    meta["n_pairs"] = {emotion: len(_shared_queries(means.index, emotion)) for emotion in emotions}  # 0: unpaired
    return data, emotions, resid_norm, meta


def contrast_weights(index: pd.DataFrame, emotion: str) -> Float[np.ndarray, " response"]:
    """Weight of each response in an emotion's vector: EV = weights @ means.

    Positive under the emotion, negative under neutral, zero elsewhere; either side sums to one in size. Every query
    that occurs under both counts the same, however many responses it has; where no query does
    (`responses_from_texts`), every response of a side counts the same.
    """
    condition, shared = index["condition"], _shared_queries(index, emotion)
    weights = np.zeros(len(index))
    for label, sign in ((emotion, 1.0), (NEUTRAL, -1.0)):
        rows = (condition == label).to_numpy()
        if shared:
            paired = rows & index["query_id"].isin(shared).to_numpy()
            if label == emotion and paired.sum() < rows.sum():
                lone = rows.sum() - paired.sum()
                warnings.warn(
                    f"{lone} responses under {emotion} have no neutral one to the same query: left out", stacklevel=4
                )
            count = index["query_id"][paired].map(index["query_id"][paired].value_counts()).to_numpy()
            weights[paired] = sign / (count * len(shared))
        else:
            weights[rows] = sign / rows.sum()
    return weights


def _shared_queries(index: pd.DataFrame, emotion: str) -> set[str]:
    """Queries answered both under the emotion and under neutral."""
    condition, query = index["condition"], index["query_id"]
    return set(query[condition == emotion]) & set(query[condition == NEUTRAL])
