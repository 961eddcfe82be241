"""Statistics that several rooms share: one value per query, queries of one situation kept together.

Two questions about the same library are not two independent draws. Everything here takes `clusters` (the situation of
each query, from `clusters_of`) and resamples, or flips the sign of, whole clusters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import false_discovery_control, hmean, norm, permutation_test, t

from emolab.base.errors import EmolabError, need_number

LEVEL = 0.05  # below it a p or q counts as a difference that was found
_INSIDE = 0.95  # of every interval
_LOST = 0.2  # of the draws may lack a value; with a value in one cluster alone a quarter or more of them do


def interval(values: Any, *, clusters: Any = None, seed: int = 0) -> tuple[float, float]:
    """95 % confidence interval of the mean of one value per query; NaN values are left out.

    >>> interval([1, 1, 1, 1])          # four hits of four: not certainty
    (0.510..., 1.0)

    Shares of zeros and ones get Wilson's interval, which has a width also where all agree, with the effective number
    of queries in place of their number (Dean and Pagano 2015): n over the design effect of the clusters, and where all
    agree, so that none can be estimated, as if a cluster were one query. Other values get `bootstrap_ci`.
    """
    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values)
    codes, values = _codes(len(values), clusters)[known], values[known]
    k = len(np.unique(codes))
    if np.isin(values, (0, 1)).all() and k:
        return _wilson(values, codes)
    if k < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    _, low, high = bootstrap_ci(values, np.mean, clusters=codes, n=2000, seed=seed)
    return float(low), float(high)


def bootstrap_ci(
    values: Any,
    statistic: Callable[[np.ndarray], Any],
    *,
    clusters: Any = None,
    n: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic of values [query, ...] and its 95 % interval, queries (or whole clusters) drawn with replacement.

    >>> value, lo, hi = bootstrap_ci(table, lambda rows: np.nanmean(rows, axis=0))         # of every column at once

    statistic takes rows [query, ...], as many as a draw holds, and returns an array. Bounds are those of `expanded`.
    """
    need_number("n", n, 1, whole=True)
    values = np.asarray(values, dtype=float)
    codes = _codes(len(values), clusters)
    k = codes.max(initial=-1) + 1
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]) if k else []
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # a draw without any value is a NaN
        value = np.asarray(statistic(values), dtype=float)
        if k < 2 or not value.size:
            return value, np.full(value.shape, np.nan), np.full(value.shape, np.nan)
        draws = np.random.default_rng(seed).integers(0, k, size=(n, k))
        drawn = np.array([statistic(values[np.concatenate([members[i] for i in draw])]) for draw in draws], dtype=float)
    return value, *expanded(drawn, k)


def expanded(draws: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of a 95 % interval from draws [draw, ...] of k clusters: percentiles, widened for few of them.

    >>> [float(np.round(expanded(np.arange(1001.0), k)[1])) for k in (4, 1000)]         # not 975
    [1000.0, 975.0]

    By the t distribution (Hesterberg 2015, "expanded percentiles"): plain ones are too narrow, with 8 queries by a
    fifth. NaN for one cluster, or where more than a fifth of the draws are NaN.
    """
    draws = np.asarray(draws, dtype=float)
    if k < 2:
        nothing = np.full(draws.shape[1:], np.nan)[()]  # a number where a draw is one
        return nothing, nothing
    tail = norm.cdf(-np.sqrt(k / (k - 1)) * t.ppf((1 + _INSIDE) / 2, k - 1))
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # all draws are NaN
        bounds = np.nanquantile(draws, [tail, 1 - tail], axis=0)
    low, high = np.where(np.isnan(draws).mean(0) > _LOST, np.nan, bounds)
    return low, high


def sign_flip(
    differences: Any, *, clusters: Any = None, n: int = 10_000, seed: int = 0, alternative: str = "two-sided"
) -> Any:
    """p that differences [query, ...] are as likely up as down: their sum, against signs flipped cluster by cluster.

    >>> sign_flip([0.2, 0.1, 0.3, 0.2, 0.1])           # exact: 2 of the 32 ways of flipping are as extreme
    0.0625

    All 2**k flips of k clusters where these are at most n, else n random ones. alternative: "greater", "less" or
    "two-sided". NaN differences are left out; without any, p is NaN. A number for one column, else an array.
    """
    differences = np.asarray(differences, dtype=float)
    codes = _codes(len(differences), clusters)
    sums = np.zeros((max(2, codes.max(initial=-1) + 1), *differences.shape[1:]))  # a cluster of zeros changes no p
    np.add.at(sums, codes, np.nan_to_num(differences))
    flipped = permutation_test(
        (sums,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=n,
        batch=max(1, 2**23 // max(1, sums.size)),
        alternative=alternative,
        axis=0,
        rng=seed,
    )
    p = np.where(np.isfinite(differences).any(0), flipped.pvalue, np.nan)
    return float(p) if differences.ndim == 1 else p


def least_p(k: int, *, sides: int = 2) -> float:
    """The least p that `sign_flip` can give over k clusters: that of the one way, or two, which are most extreme.

    >>> least_p(5), least_p(5, sides=1)
    (0.0625, 0.03125)
    """
    return sides * 0.5**k


def bh(p: Any) -> np.ndarray:
    """Benjamini-Hochberg over all cells of p; NaN cells are no tests and stay NaN.

    >>> bh([0.01, 0.04, np.nan, 0.03])
    array([0.03, 0.04,  nan, 0.04])
    """
    p = np.array(p, dtype=float)
    known = np.isfinite(p)
    p[known] = false_discovery_control(p[known], method="bh") if known.any() else p[known]
    return p


def ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> Any:
    """scikit-learn's ridge regression, fitted; penalty in mean squared norms of x, so that its scale does not count.

    >>> ridge(np.array([[1.0], [2.0], [3.0]]), np.array([2.0, 4.0, 6.0]), 1e-9).predict([[4.0]]).round(6)
    array([8.])
    """
    from sklearn.linear_model import Ridge

    return Ridge(penalty * np.square(x - x.mean(0)).sum() / len(x)).fit(x, y)


def harmonic(*parts: Any) -> np.ndarray:
    """Harmonic mean of scores 0..1, element by element: 0 where any part is 0, NaN where any is NaN (AxBench's rule).

    >>> harmonic([1, 1, 0], [0.5, 1, 1])
    array([0.667, 1.   , 0.   ])
    """
    return np.asarray(hmean(np.broadcast_arrays(*(np.asarray(part, dtype=float) for part in parts)), axis=0))


def clusters_of(table: pd.DataFrame) -> pd.Series:
    """query_id -> situation, or the query_id itself where a query has none: what is resampled as one.

    >>> clusters = clusters_of(scored).loc[differences.index]
    >>> bootstrap_ci(differences, np.nanmean, clusters=clusters), sign_flip(differences, clusters=clusters)

    Raises EmolabError where one query stands in two situations.
    """
    if "query_id" not in table:
        raise EmolabError("the table lacks query_id; it comes from a sweep or from responses")
    queries = table["query_id"]
    situations = table["situation"] if "situation" in table else pd.Series("", index=table.index)
    known = situations.notna() & (situations != "")
    pairs = pd.DataFrame({"query_id": queries, "cluster": situations.where(known, queries)}).drop_duplicates()
    twice = pairs["query_id"].duplicated()
    if twice.any():
        raise EmolabError(f"query {pairs.loc[twice, 'query_id'].iloc[0]!r} stands in two situations; expected one")
    return pairs.set_index("query_id")["cluster"]


def _codes(n: int, clusters: Sequence | None) -> Int[np.ndarray, " query"]:
    if clusters is None:
        return np.arange(n)
    codes = pd.factorize(np.asarray(clusters))[0]
    if len(codes) != n:
        raise EmolabError(f"clusters are {len(codes)} for {n} values; expected one name for each value (clusters_of)")
    if (codes < 0).any():
        raise EmolabError("clusters hold missing names; expected one name for each value (clusters_of)")
    return codes


def _wilson(hits: Float[np.ndarray, " query"], codes: np.ndarray) -> tuple[float, float]:
    n, share, sizes = len(hits), hits.mean(), np.bincount(codes)
    sizes = sizes[sizes > 0]
    k = len(sizes)
    if k == n:
        effective = n
    elif share in (0, 1) or k == 1:
        effective = n**2 / (sizes**2).sum()
    else:
        between = (np.bincount(codes, hits - share) ** 2).sum() / n**2 * k / (k - 1)  # variance of the share
        effective = min(n, 1 + share * (1 - share) / between) if between else n
    z = norm.ppf((1 + _INSIDE) / 2) ** 2 / effective
    centre, half = (share + z / 2) / (1 + z), np.sqrt(z * share * (1 - share) + z**2 / 4) / (1 + z)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
