"""Intervals over queries."""

import numpy as np
import pytest

from emolab.stats import interval


def test_shares_get_wilsons_interval_also_where_all_agree():
    z = 1.959964
    low, high = interval(np.ones(13))
    assert high == pytest.approx(1.0) and low == pytest.approx(13 / (13 + z**2), abs=1e-4)
    assert interval(np.zeros(13)) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_other_values_get_a_bootstrap_that_holds_the_mean():
    values = np.random.default_rng(0).normal(2, 1, 40)
    low, high = interval(values)
    assert low < values.mean() < high and high - low == pytest.approx(4 * values.std() / 40**0.5, rel=0.25)
    assert interval(values) == (low, high)  # seeded


def test_missing_and_constant_values():
    assert interval(np.array([0.3, 0.3, np.nan])) == (0.3, 0.3)
    assert np.isnan(interval(np.array([np.nan]))).all()
