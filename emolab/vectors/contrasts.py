"""Contrasts: the weight of each response in an emotion's vector, which is the sum of their means with these weights.

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
from jaxtyping import Float

from emolab.base.errors import EmolabError
from emolab.base.labels import NEUTRAL, order


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


def contrast_weights(index: pd.DataFrame, emotion: str) -> Float[np.ndarray, " response"]:
    """Weight of each response in an emotion's vector: EV = weights @ means.

    One for the emotion, spread over its responses, less one for the `baseline`, spread over its labels; so they sum to
    zero. Every query that occurs under both counts the same, however many responses it has, and within a query every
    label of the baseline; where no query does (`responses_from_texts` without topics), every response of a label
    counts the same.
    """
    against = baseline(index["condition"])
    index = index.reset_index(drop=True)
    condition = index["condition"]
    shared = shared_queries(index, emotion, against)
    under = (condition == emotion).to_numpy()
    baseline_rows = condition.isin(against).to_numpy()
    if shared:
        paired = index["query_id"].isin(shared).to_numpy()
        lone = int((under & ~paired).sum())
        if lone:
            other = "no neutral one" if against == [NEUTRAL] else "none under another label"
            warnings.warn(f"{lone} responses under {emotion} have {other} to the same query: left out", stacklevel=4)
        under = under & paired
        baseline_rows = baseline_rows & paired
    # Without shared queries all responses are one block.
    block = index["query_id"] if shared else pd.Series("", index=index.index)
    count = index.groupby([block, condition])["query_id"].transform("size").to_numpy()  # alike in block and label
    labels = condition.where(baseline_rows).groupby(block).transform("nunique").to_numpy()  # in the block
    n_blocks = max(1, len(shared))
    weights = np.zeros(len(index))
    weights[under] = 1 / (count[under] * n_blocks)
    weights[baseline_rows] -= 1 / (count[baseline_rows] * labels[baseline_rows] * n_blocks)
    return weights


def shared_queries(index: pd.DataFrame, emotion: str, against: Sequence[str]) -> set[str]:
    """Queries answered both under the emotion and under the baseline, or another label of it."""
    condition = index["condition"]
    query = index["query_id"]
    return set(query[condition == emotion]) & set(query[condition.isin([x for x in against if x != emotion])])
