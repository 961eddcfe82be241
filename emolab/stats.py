"""Small statistics that several rooms share."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest, bootstrap


def interval(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Confidence interval of the mean of one value per query; NaN values are left out.

    >>> interval(np.array([1, 1, 1, 1]))          # four hits of four: not certainty
    (0.510..., 1.0)

    Shares of zeros and ones get Wilson's interval, which has a width also where all agree; other values a bootstrap
    over queries (percentiles).
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    if np.isin(values, (0, 1)).all():
        found = binomtest(int(values.sum()), len(values)).proportion_ci(level, method="wilson")
    elif np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    else:
        options = {"n_resamples": 2000, "method": "percentile", "confidence_level": level, "rng": seed}
        found = bootstrap((values,), np.mean, **options).confidence_interval
    return float(found.low), float(found.high)
