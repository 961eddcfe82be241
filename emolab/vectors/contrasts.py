"""Contrasts: the weight of each response in an emotion's vector, and the vectors as sums with these weights.

>>> index = pd.DataFrame({"query_id": ["a", "a", "b", "b"], "condition": ["neutral", "joy", "neutral", "joy"]})
>>> contrast_weights(index, "joy").tolist()
[-0.5, 0.5, -0.5, 0.5]

Where no label is neutral, an emotion is set against the mean of all labels, itself included:

>>> contrast_weights(index.assign(condition=["joy", "fear", "joy", "fear"]).head(2), "joy")
Traceback (most recent call last):
...
emolab.base.errors.EmolabError: these responses are fear, joy; a vector needs neutral and an emotion, or three labels
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError
from emolab.base.labels import NEUTRAL, order
from emolab.vectors.activations import ResponseMeans, check_sites


def baseline(conditions: Iterable[str]) -> list[str]:
    """The labels whose mean every emotion is set against: neutral, or where there is none, all of at least three.

    >>> baseline(["joy", "fear", "anger"]), baseline(["joy", "neutral"])
    (['anger', 'fear', 'joy'], ['neutral'])
    """
    labels = order(conditions)
    if NEUTRAL in labels and len(labels) > 1:
        return [NEUTRAL]
    if NEUTRAL in labels or len(labels) < 3:
        raise EmolabError(
            f"these responses are {', '.join(labels)}; a vector needs neutral and an emotion, or three labels"
        )
    return labels


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
    against = baseline(condition)
    emotions = tuple(e for e in order(condition) if e != NEUTRAL)
    weights = np.stack([contrast_weights(means.index, emotion) for emotion in emotions])
    rows = np.flatnonzero(weights.any(0))
    data = {}
    for site in sites:
        # Layer by layer: a float64 copy of all layers would triple the memory.
        layers = [means.means[site][rows, layer].astype(np.float64) for layer in range(means.means[site].shape[1])]
        data[site] = torch.from_numpy(np.stack([np.tensordot(weights[:, rows], x, 1) for x in layers], axis=1))
    if W_O is not None and "head" in sites:
        data["head"] = torch.einsum("elhd,lhdm->elhm", data["head"], W_O.to("cpu", torch.float64))
    resid_norm = torch.from_numpy(np.median(means.resid_norm[np.isin(condition, against)], axis=0))
    counts = {str(label): int((condition == label).sum()) for label in order(condition)}
    meta = {**means.meta, "sites": list(sites), "emotions": list(emotions), "n_responses": counts, "part": "whole"}
    meta["baseline"] = NEUTRAL if against == [NEUTRAL] else f"mean of {len(against)} labels"
    meta["resid_norm"] = [round(float(x), 6) for x in resid_norm]
    meta["n_pairs"] = {e: len(_shared_queries(means.index, e, against)) for e in emotions}  # 0: unpaired
    return data, emotions, resid_norm, meta


def contrast_weights(index: pd.DataFrame, emotion: str) -> Float[np.ndarray, " response"]:
    """Weight of each response in an emotion's vector: EV = weights @ means.

    One for the emotion, spread over its responses, less one for the `baseline`, spread over its labels; so they sum to
    zero. Every query that occurs under both counts the same, however many responses it has, and within a query every
    label of the baseline; where no query does (`responses_from_texts` without topics), every response of a label
    counts the same.
    """
    against = baseline(index["condition"])
    index = index.reset_index(drop=True)
    condition, shared = index["condition"], _shared_queries(index, emotion, against)
    mine, theirs = (condition == emotion).to_numpy(), condition.isin(against).to_numpy()
    if shared:
        paired = index["query_id"].isin(shared).to_numpy()
        lone = int((mine & ~paired).sum())
        if lone:
            other = "no neutral one" if against == [NEUTRAL] else "none under another label"
            warnings.warn(f"{lone} responses under {emotion} have {other} to the same query: left out", stacklevel=4)
        mine, theirs = mine & paired, theirs & paired
    # Without shared queries all responses are one block.
    block = index["query_id"] if shared else pd.Series("", index=index.index)
    count = index.groupby([block, condition])["query_id"].transform("size").to_numpy()  # alike in block and label
    labels = condition.where(theirs).groupby(block).transform("nunique").to_numpy()  # of the baseline, in the block
    weights = np.zeros(len(index))
    weights[mine] = 1 / (count[mine] * max(1, len(shared)))
    weights[theirs] -= 1 / (count[theirs] * labels[theirs] * max(1, len(shared)))
    return weights


def _shared_queries(index: pd.DataFrame, emotion: str, against: Sequence[str]) -> set[str]:
    """Queries answered both under the emotion and under the baseline, or another label of it."""
    condition, query = index["condition"], index["query_id"]
    return set(query[condition == emotion]) & set(query[condition.isin([x for x in against if x != emotion])])
