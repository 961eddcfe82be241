"""Resampling of emotion vectors without running a model: halves, bootstraps and permuted labels as weights.

An emotion vector is `weights @ means` (`contrast_weights`), so a cosine or norm of resampled vectors is
made of `weights @ gram @ weights`, where `gram` holds the inner products of the responses at one layer (and head). A
thousand draws cost a few matrix products, and heads need no vectors in d_model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from emolab.base.errors import EmolabError, MismatchError
from emolab.base.labels import NEUTRAL, order
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.contrasts import baseline, contrast_weights


def contrasts(index: pd.DataFrame) -> tuple[tuple[str, ...], Float[np.ndarray, "emotion row"]]:
    """Emotions, and the weight of each response in their vectors.

    Raises EmolabError without a baseline (`vectors.contrasts.baseline`).
    """
    if not isinstance(index, pd.DataFrame):  # of a path, say, where the means themselves belong
        raise EmolabError("these are no response means; expected ResponseMeans (response_means or ResponseMeans.load)")
    baseline(index["condition"])  # says what is missing
    emotions = tuple(e for e in order(index["condition"]) if e != NEUTRAL)
    return emotions, np.stack([contrast_weights(index, emotion) for emotion in emotions])


def need_part(part: str) -> None:
    """EmolabError unless part is "whole" or "specific"."""
    if part not in ("whole", "specific"):
        raise EmolabError(f'part must be "whole" or "specific", not {part!r}')


def draw_weights(
    weights: np.ndarray, counts: np.ndarray, *, part: str = "whole"
) -> Float[np.ndarray, "draw emotion row"]:
    """The weights [emotion, row] or [draw, emotion, row] when response r counts `counts[draw, r]` times.

    Either side of each contrast, emotion and baseline, is brought back to the sum that it had; NaN where a draw holds
    nothing of it. part "specific": without the mean over emotions.
    """
    drawn = weights * counts[:, None, :]
    up, down = drawn.clip(min=0), drawn.clip(max=0)
    size = weights.clip(min=0).sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = size * (up / up.sum(-1, keepdims=True) - down / down.sum(-1, keepdims=True))
    return drawn if part == "whole" else drawn - drawn.mean(1, keepdims=True)


def label_weights(index: pd.DataFrame, labels: np.ndarray) -> Float[np.ndarray, "draw emotion row"]:
    """The weights under other labels [draw, row] that are permutations of the true ones within each query."""
    _, weights = contrasts(index)
    query, condition = _blocks(index), index["condition"].to_numpy(dtype=object)
    names = np.unique(condition.astype(str))
    code = np.searchsorted(names, condition.astype(str))
    # A response's weight depends on its query and label alone; permuting within queries keeps all counts.
    by_label = np.zeros((len(weights), query.max() + 1, len(names)))
    by_label[:, query, code] = weights
    return by_label[:, query, np.searchsorted(names, labels.astype(str))].swapaxes(0, 1)


def permuted_labels(index: pd.DataFrame, n: int, rng: np.random.Generator, *, keep_neutral: bool = False) -> np.ndarray:
    """Conditions [draw, row] shuffled within each query, or over all texts where there are no queries."""
    return index["condition"].to_numpy(dtype=object)[permuted_rows(index, n, rng, keep_neutral=keep_neutral)]


def permuted_rows(
    index: pd.DataFrame, n: int, rng: np.random.Generator, *, keep_neutral: bool = False
) -> Int[np.ndarray, "draw row"]:
    """Positions of all responses, shuffled within each query, or as one where there are no queries."""
    query = _blocks(index)
    rows = np.flatnonzero(index["condition"] != NEUTRAL) if keep_neutral else np.arange(len(index))
    rows = rows[np.argsort(query[rows], kind="stable")]
    result = np.tile(np.arange(len(index)), (n, 1))
    for draw in range(n):  # sorting by (query, random number) shuffles within queries
        result[draw, rows] = rows[np.lexsort((rng.random(len(rows)), query[rows]))]
    return result


def orders(n: int, n_permutations: int, rng: np.random.Generator) -> Int[np.ndarray, "order place"]:
    """The true order of n things, and behind it permuted ones."""
    return np.stack([np.arange(n), *(rng.permutation(n) for _ in range(n_permutations))])


def query_groups(index: pd.DataFrame, groups: pd.Series | None = None) -> Int[np.ndarray, " row"]:
    """A number for each response's query, or for the group of its query: `groups` is a Series query_id -> situation.

    Raises EmolabError for queries that `groups` does not name, or names more than once.
    """
    names = index["query_id"]
    if groups is not None:
        groups = pd.Series(groups)
        lost = sorted(set(names) - set(groups.index))
        if lost or groups.index.has_duplicates:
            problem = f"lack {lost[0]!r} and {len(lost) - 1} more" if lost else "name a query_id twice"
            raise EmolabError(f'groups {problem}; pass queries.set_index("query_id")["situation"] of all the queries')
        names = names.map(groups)
        if names.isna().any() or (names == "").any():
            raise EmolabError("groups hold empty names; leave groups out, then every query is its own group")
    return pd.factorize(names)[0]


def bootstrap_counts(
    groups: Int[np.ndarray, " row"], n: int, rng: np.random.Generator
) -> Float[np.ndarray, "draw row"]:
    """How often each response counts when groups are drawn with replacement."""
    k = groups.max() + 1
    return rng.multinomial(k, np.full(k, 1 / k), size=n)[:, groups].astype(float)


def disjoint_sets(
    groups: Int[np.ndarray, " row"], n: int, rng: np.random.Generator
) -> tuple[Bool[np.ndarray, "draw row"], Bool[np.ndarray, "draw row"]]:
    """Two random sets of responses that share no group, each of half of the groups."""
    k = int(groups.max()) + 1
    size = k // 2
    if not size:
        raise EmolabError("reliability needs two queries (or groups of them) at least")
    turn = np.argsort(rng.random((n, k)), axis=1)  # each group's place in a random order
    return (turn < size)[:, groups], ((turn >= size) & (turn < 2 * size))[:, groups]


def grams(
    means: ResponseMeans, site: str, W_O: torch.Tensor | None = None
) -> Iterator[tuple[int, int | None, Float[np.ndarray, "row row"]]]:
    """Layer, head (None but for site "head") and inner products of the centred responses, float64.

    Weights of a contrast sum to zero, so centring changes nothing but the rounding. Raises EmolabError for a site that
    the means do not hold, and for site "head" without W_O (`emolab.models.output_weights(model)`).
    """
    values = site_values(means, site)
    if site != "head":
        W_O = None
    elif W_O is None:
        raise EmolabError('site "head" needs W_O; pass emolab.models.output_weights(model)')
    elif tuple(W_O.shape[:3]) != values.shape[1:]:
        shapes = f"{tuple(W_O.shape[:3])}, the means {values.shape[1:]}"
        raise MismatchError(f"W_O has layers, heads and d_head {shapes}; pass emolab.models.output_weights(model)")
    for layer in range(values.shape[1]):
        x = values[:, layer].astype(np.float64)
        x = x - x.mean(0)
        if W_O is None:
            yield layer, None, x @ x.T
            continue
        for head in range(x.shape[1]):
            w = W_O[layer, head].to("cpu", torch.float64).numpy()
            yield layer, head, x[:, head] @ (w @ w.T) @ x[:, head].T


def site_values(means: ResponseMeans, site: str) -> Float[np.ndarray, "row layer ..."]:
    """The means of one site; EmolabError where they are not held."""
    if site not in means.means:
        raise EmolabError(f"these means hold no site {site!r}, but {', '.join(means.sites)}; collect with sites=")
    return means.means[site]


def flat_layer(means: ResponseMeans, site: str, layer: int) -> Float[np.ndarray, "row d"]:
    """The means of one site at one layer, in float64; of site "head" all heads side by side."""
    values = site_values(means, site)
    return values[:, layer].reshape(len(values), -1).astype(np.float64)


def middle(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of draws [draw, ...]; NaN draws are left out, and all-NaN gives NaN."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        low, high = np.nanquantile(np.asarray(draws, dtype=float), (0.025, 0.975), axis=0)
    return low, high


def against_null(value: float, null: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean and 95th percentile of permuted values; p, the share that reach the true one, itself among them.

    >>> against_null(2.0, [1.0, 1.0, 1.0])
    (1.0, 1.0, 0.25)
    """
    null = np.asarray(null)
    p = (1 + (null >= value - 1e-12).sum()) / (1 + len(null))
    return float(null.mean()), float(np.quantile(null, 0.95)), float(p)


def counted(index: pd.DataFrame) -> str:
    """How many answers there are to how many queries, in words."""
    if index["query_id"].is_unique:
        return f"{len(index)} texts"
    return f"{len(index)} answers to {index['query_id'].nunique()} queries"


def _blocks(index: pd.DataFrame) -> Int[np.ndarray, " row"]:
    """Within what labels may be exchanged: each query's answers, or all texts where every query has one."""
    query = pd.factorize(index["query_id"])[0]
    return query if len(query) and np.bincount(query).max() > 1 else np.zeros(len(index), int)
