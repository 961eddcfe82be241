"""What the claims are decided with: growth of drift, lines, interactions.

Statistics reduce values of queries [query, ...], so that `intervals` can draw the queries again. `clusters` is
query_id -> situation (`emolab.base.stats.clusters_of`), whole situations being drawn.

>>> intervals(pd.DataFrame(values, index=query_ids), lambda x: x.mean(0), clusters, seed=0).shape       # value, lo, hi
(5, 3)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from emolab.base.errors import EmolabError, need_table
from emolab.base.stats import bootstrap_ci

LINE_FITS = ("slope", "curvature", "r2", "r2_parabola", "asymmetry")
ADDITIVE_FITS = ("coefficient", "gain", "other", "joint", "share")
_EXPONENTS = np.linspace(0, 6, 121)


def intervals(
    wide: pd.DataFrame | pd.Series, statistic: Callable[[np.ndarray], Any], clusters: pd.Series, seed: int
) -> Float[np.ndarray, "*statistic 3"]:
    """A statistic of rows [query, ...] with its interval: value, lo and hi on the last axis."""
    return np.stack(bootstrap_ci(wide, statistic, clusters=clusters.loc[wide.index], seed=seed), -1)


def means(wide: pd.DataFrame, clusters: pd.Series, seed: int, **labels: Any) -> pd.DataFrame:
    """Mean and interval of each dose [query, dose], as rows `*labels, alpha, value, lo, hi, n`."""
    value, lo, hi = intervals(wide, lambda x: x.mean(0), clusters, seed).T
    return pd.DataFrame({**labels, "alpha": wide.columns, "value": value, "lo": lo, "hi": hi, "n": len(wide)})


def drift_and_slope(
    values: Float[np.ndarray, "query cell"], doses: Float[np.ndarray, " dose"], small: Bool[np.ndarray, " dose"]
) -> Float[np.ndarray, "2 control column"]:
    """Mean drift of each control at each dose, and last its log-log slope over the small ones; then the same of the
    first control less that of each. cell: control by dose.

    The slope is the exponent p of c dose**p, fitted by least squares on the drift itself, since a mean drift may be 0
    or below and then has no logarithm; sought from 0 to 6, so that a bound of 6 is none; NaN where nothing grows.
    """
    mean = values.reshape(len(values), values.shape[1] // len(doses), len(doses)).mean(0)
    near, powers = mean[:, small], doses[small] ** _EXPONENTS[:, None]
    scale = near @ powers.T / (powers**2).sum(1)  # [control, exponent]
    best = ((near[:, None] - scale[..., None] * powers) ** 2).sum(-1).argmin(1)
    grows = (scale[np.arange(len(scale)), best] > 0) & (small.sum() > 1)
    found = np.column_stack([mean, np.where(grows, _EXPONENTS[best], np.nan)])
    return np.stack([found, found[0] - found])


def fit_line(wide: pd.DataFrame, clusters: pd.Series, seed: int) -> Float[np.ndarray, "fit 3"]:
    """LINE_FITS of values [query, dose] with their intervals; see `emolab.comparisons.claims.linear`."""
    doses = wide.columns.to_numpy(dtype=float)
    bases = [np.vander(doses, n) for n in (2, 3)]  # highest power first
    solvers = [np.linalg.pinv(basis) for basis in bases]
    ends = [np.flatnonzero(doses == a) for a in (-np.abs(doses).max(), 0.0, np.abs(doses).max())]

    def statistic(values: np.ndarray) -> np.ndarray:
        mean = values.mean(0)
        fits = [solver @ mean for solver in solvers]
        left = [((mean - basis @ fit) ** 2).sum() for basis, fit in zip(bases, fits, strict=True)]
        r2 = 1 - np.array(left) / ((mean - mean.mean()) ** 2).sum()
        asymmetry = np.nan
        if all(map(len, ends)):
            low, zero, high = (mean[i[0]] for i in ends)
            asymmetry = (high + low - 2 * zero) / abs(high - low)
        return np.array([fits[0][0], fits[1][0], *r2, asymmetry])

    return intervals(wide, statistic, clusters, seed)


def pair_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `claim_runs.pair_runs` as seen from their target: its own dose, the other's, the pair and the kind.

    kind: "whole", "specific" or "random". Raises EmolabError without a random pair or without doses 0 and above.
    """
    columns = ("query_id", "scale", "first", "second", "a", "b", "part", "control", "target", "value")
    need_table(pairs, columns, "emolab.comparisons.claim_runs.pair_runs, with scale")
    first = pairs["target"] == pairs["first"]
    table = pairs.assign(own=pairs["a"].where(first, pairs["b"]), other=pairs["b"].where(first, pairs["a"]))
    table["kind"] = table["part"].where(table["control"] == "none", table["control"])
    table["pair"] = table["first"] + " + " + table["second"]
    if "random" not in set(table["kind"]) or table["own"].nunique() < 2 or table["own"].min() != 0:
        raise EmolabError("the pairs need a random one and every dose with every dose, 0 among them; see pair_runs")
    return table


def interactions(
    table: pd.DataFrame, clusters: pd.Series, seed: int
) -> tuple[Float[np.ndarray, "fit kinds sum 3"], list[str], list[tuple[str, str]]]:
    """ADDITIVE_FITS of every kind, then of every kind less the random one; with kinds and sums. See `claims`.

    A sum is a pair and its target, at the end ("all", "all"), the mean over all of them.
    """
    kinds = [*(k for k in table["kind"].unique() if k != "random"), "random"]
    sums = list(table[["pair", "target"]].drop_duplicates().itertuples(index=False, name=None))
    levels = np.array(sorted(table["own"].unique()))
    keys = ["kind", "pair", "target", "own", "other"]
    wide = table.groupby(["query_id", *keys])["value"].mean().unstack(keys)
    wide = wide[[(k, *s, a, b) for k in kinds for s in sums for a in levels for b in levels]].dropna()
    shape = (-1, len(kinds), len(sums), len(levels), len(levels))
    found = intervals(wide, partial(_interaction, shape=shape, levels=levels), clusters, seed)
    gain, share = (found[ADDITIVE_FITS.index(name)] for name in ("gain", "share"))
    share[~(gain[..., 1] > 0)] = np.nan  # a share of nothing: a ratio of two accidents
    return found, kinds, [*sums, ("all", "all")]


def _interaction(values: np.ndarray, shape: tuple[int, ...], levels: np.ndarray) -> np.ndarray:
    mean = values.reshape(shape).mean(0)  # [kind, sum, own, other]
    mean = np.concatenate([mean, mean.mean(1, keepdims=True)], 1)
    extra = mean[..., 1:, 1:] - mean[..., 1:, :1] - mean[..., :1, 1:] + mean[..., :1, :1]
    doses = np.outer(levels[1:], levels[1:])
    coefficient = (extra * doses).sum((-1, -2)) / (doses**2).sum()
    gain, other, both = (mean[..., i, j] - mean[..., 0, 0] for i, j in ((-1, 0), (0, -1), (-1, -1)))
    found = np.stack([coefficient, gain, other, both, coefficient * levels[-1] ** 2 / gain])
    return np.concatenate([found, found - found[:, -1:]], 1)
