"""Intervals and tests over queries: against known answers, and against what they promise."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, false_discovery_control

from emolab import EmolabError
from emolab.base.stats import bh, bootstrap_ci, clusters_of, expanded, harmonic, interval, sign_flip

pytestmark = pytest.mark.filterwarnings("error")  # degenerate input gives NaN or an error, never a warning


def mean(rows):
    return np.nanmean(rows, axis=0)


def test_shares_get_wilsons_interval_also_where_all_agree():
    z = 1.959964
    low, high = interval(np.ones(13))
    assert high == pytest.approx(1.0) and low == pytest.approx(13 / (13 + z**2), abs=1e-4)
    assert interval(np.zeros(13)) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    for hits in (3, 9):
        found = binomtest(hits, 13).proportion_ci(method="wilson")
        assert interval([1] * hits + [0] * (13 - hits)) == pytest.approx((found.low, found.high))


def test_other_values_get_a_bootstrap_that_holds_the_mean():
    values = np.random.default_rng(0).normal(2, 1, 40)
    low, high = interval(values)
    assert low < values.mean() < high and high - low == pytest.approx(4 * values.std() / 40**0.5, rel=0.25)
    assert interval(values) == (low, high)  # seeded


@pytest.mark.parametrize("values", [np.repeat([0, 1, 1, 1, 0, 1, 1, 1], 3), np.random.default_rng(1).normal(size=24)])
def test_copies_of_a_query_are_no_new_queries(values):
    """Each of 8 queries three times, as a cluster, says what 8 queries say; without clusters, more than is known."""
    values = np.sort(values).reshape(8, 3)[:, [0, 0, 0]]
    clusters = np.repeat(list("abcdefgh"), 3)
    once, copies = interval(values[:, 0]), interval(values.ravel(), clusters=clusters)
    naive = interval(values.ravel())
    assert copies == pytest.approx(once, abs=1e-9)
    assert np.ptp(naive) < 0.75 * np.ptp(copies)
    assert interval(values.ravel(), clusters=np.arange(24)) == naive


def test_all_of_five_situations_agreeing_is_not_fifteen_independent_hits():
    assert interval(np.ones(15), clusters=np.repeat(range(5), 3)) == pytest.approx(interval(np.ones(5)))


def test_bootstrap_takes_any_statistic_of_the_rows():
    values = np.random.default_rng(0).normal(size=(30, 2)) + [0, 5]
    value, low, high = bootstrap_ci(values, lambda rows: np.median(rows, axis=0) / 2)
    assert value == pytest.approx(np.median(values, axis=0) / 2) and (low < value).all() and (value < high).all()
    value, low, high = bootstrap_ci(values, lambda rows: np.corrcoef(rows.T)[0, 1])
    assert value.shape == low.shape == () and -1 <= low < value < high <= 1
    again, other = bootstrap_ci(values, mean, seed=3), bootstrap_ci(values, mean, seed=4)
    assert np.array_equal(bootstrap_ci(values, mean, seed=3), again) and not np.array_equal(again, other)


@pytest.mark.parametrize(("queries", "copies"), [(8, 1), (12, 3)])
def test_interval_covers_the_truth_as_often_as_it_says(queries, copies):
    """2000 studies whose truth is 0, of few queries, independent or three to a situation that they share."""
    rng = np.random.default_rng(0)
    shared = np.repeat(rng.normal(size=(queries, 2000)), copies, axis=0)
    values = shared + 0.5 * rng.normal(size=shared.shape)
    clusters = np.repeat(np.arange(queries), copies)

    def covered(clusters):
        _, low, high = bootstrap_ci(values, mean, clusters=clusters, n=600)
        return ((low < 0) & (0 < high)).mean()

    assert 0.93 < covered(clusters) < 0.97
    if copies > 1:
        assert covered(None) < 0.85


def test_missing_and_constant_values():
    assert interval(np.array([0.3, 0.3, np.nan])) == (0.3, 0.3)
    for nothing in ([], [np.nan], [0.3], [0.3, np.nan]):  # one value has no interval
        assert np.isnan(interval(nothing)).all()
    assert np.isnan(interval([0.2, 0.3], clusters=["a", "a"])).all()
    values = np.array([[1.0, np.nan, np.nan], [2, 4, np.nan], [3, np.nan, np.nan], [2, np.nan, np.nan]])
    value, low, high = bootstrap_ci(values, mean)
    assert value.tolist()[:2] == [2, 4] and np.isnan(value[2])
    assert np.isfinite([low[0], high[0]]).all() and np.isnan([*low[1:], *high[1:]]).all()
    assert np.isnan(bootstrap_ci(values[:1], mean)[1][0]) and np.isnan(bootstrap_ci(np.zeros((0, 2)), mean)).all()


def test_sign_flip_is_exact_for_few_queries():
    x = np.array([0.9, 0.4, -0.1, 0.5, 0.3, 0.2])
    sums = np.array(list(product([1, -1], repeat=6))) @ x
    more, less = (sums >= x.sum() - 1e-9).mean(), (sums <= x.sum() + 1e-9).mean()
    assert sign_flip(x, alternative="greater") == pytest.approx(more)
    assert sign_flip(x, alternative="less") == pytest.approx(less)
    assert sign_flip(x) == pytest.approx((np.abs(sums) >= x.sum() - 1e-9).mean())
    assert sign_flip(-x) == pytest.approx(sign_flip(x))
    assert sign_flip([0.2, 0.1, 0.3, 0.2, 0.1]) == 2 / 32


def test_sign_flip_flips_whole_clusters():
    x, clusters = np.array([0.2, 0.3, -0.4, 0.6]), ["a", "a", "b", "c"]
    sums = np.array(list(product([1, -1], repeat=3))) @ [0.5, -0.4, 0.6]
    assert sign_flip(x, clusters=clusters, alternative="greater") == (sums >= 0.7 - 1e-9).mean() == 2 / 8
    assert sign_flip(np.abs(x), clusters=clusters) == 2 / 8 and sign_flip(np.abs(x)) == 2 / 16


def test_sign_flip_by_chance_agrees_with_all_flips_and_takes_columns():
    x = np.random.default_rng(0).normal(0.4, 1, (13, 3))
    every, some = sign_flip(x), sign_flip(x, n=4000, seed=1)  # 2 ** 13 are more than 4000
    assert every.shape == (3,) and not np.array_equal(every, some)
    np.testing.assert_allclose(every, some, atol=0.03)
    assert sign_flip(x[:, 0]) == every[0] and isinstance(sign_flip(x[:, 0]), float)


def test_sign_flip_without_evidence():
    assert sign_flip([0.7]) == 1 and sign_flip([0.7], alternative="greater") == 0.5  # one query is no evidence
    assert sign_flip([0.0, 0, 0]) == 1 and np.isnan(sign_flip([np.nan])) and np.isnan(sign_flip([]))
    assert sign_flip([0.2, np.nan, 0.1, 0.3, 0.2, 0.1]) == 2 / 32
    assert np.isnan(sign_flip([[1.0, np.nan]] * 4)).tolist() == [False, True]


def test_bh_is_scipys_and_leaves_out_what_is_no_test():
    p = np.random.default_rng(0).uniform(size=20) ** 2
    np.testing.assert_allclose(bh(p), false_discovery_control(p))
    holes = np.insert(p, [3, 20], np.nan)
    np.testing.assert_allclose(bh(holes)[~np.isnan(holes)], bh(p))
    assert np.isnan(bh([np.nan])).all() and bh([]).size == 0


def test_harmonic():
    found = harmonic([1, 1, 0, 0.5, np.nan], [0.5, 1, 1, 0.5, 1], 1)
    assert found[:4] == pytest.approx([0.75, 1, 0, 0.6]) and np.isnan(found[4])
    assert harmonic([0.0, 0.0], [0.0, 1.0]).tolist() == [0, 0]


def test_clusters_of_a_table():
    table = pd.DataFrame({"query_id": ["a", "b", "c", "d", "a"], "situation": ["park", "park", "", None, "park"]})
    assert clusters_of(table).to_dict() == {"a": "park", "b": "park", "c": "c", "d": "d"}
    assert clusters_of(table[["query_id"]]).to_dict() == {k: k for k in "abcd"}
    with pytest.raises(EmolabError, match="'a' stands in two situations"):
        clusters_of(table.assign(situation=list("vwxyz")))
    with pytest.raises(EmolabError, match="lacks query_id"):
        clusters_of(table[["situation"]])


@pytest.mark.parametrize(("clusters", "message"), [(["a"], "are 1 for 2 values"), (["a", None], "missing names")])
def test_clusters_must_fit(clusters, message):
    with pytest.raises(EmolabError, match=message):
        sign_flip([0.1, 0.2], clusters=clusters)


def test_one_cluster_has_no_interval_of_numbers_either():
    """A number where a draw is one: an array without axes would make a table's column one of objects."""
    for draws, k in ((np.arange(20.0), 1), (np.arange(20.0), 5)):
        low, high = expanded(draws, k)
        assert pd.DataFrame({"lo": [low], "hi": [high]}).dtypes.tolist() == [float, float]
    assert np.isnan(expanded(np.ones((5, 3)), 1)).tolist() == [[True] * 3] * 2
