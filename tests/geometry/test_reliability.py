"""Reliability against planted directions, and no leakage between queries."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from emolab.base.errors import EmolabError
from emolab.geometry import reliability
from emolab.geometry.reliability import probe_accuracy, split_half, word_accuracy
from emolab.vectors.vectors import vectors_from_means
from tests.made_means import LABELS, make_means, orthogonal


@pytest.fixture(scope="module")
def made():
    return make_means(orthogonal(5, 2, 24), n_queries=20, topic=1.0, heads=3)


def shuffled(means, seed=0):
    rng = np.random.default_rng(seed)
    labels = means.index.groupby("query_id")["condition"].transform(lambda c: rng.permutation(c.to_numpy()))
    means = means.select(np.arange(len(means)))
    means.index = means.index.assign(condition=labels)
    return means


@pytest.mark.parametrize("part", ["whole", "specific"])
def test_planted_directions_agree_and_shuffled_labels_do_not(made, part):
    strong = make_means(orthogonal(5, 2, 24, size=10.0), n_queries=20)
    found = split_half(strong, part=part, n_splits=50)
    assert len(found) == 10 and (found["cosine"] > 0.9).all() and (found["lo"] > found["null_hi"]).all()
    low = np.mean([split_half(shuffled(made, seed), part=part, n_splits=20)["cosine"].mean() for seed in range(5)])
    assert abs(low) < 0.2
    assert (found["lo"] <= found["cosine"]).all() and (found["cosine"] <= found["hi"]).all()


def test_split_half_is_what_theory_says():
    """Signal s^2 against noise 2 d / (n / 2) in each half: the cosine is s^2 / (s^2 + 2 d / (n / 2))."""
    found = split_half(make_means(orthogonal(5, 8, 24, size=4.0), n_queries=20, topic=5.0), n_splits=50)
    assert found["cosine"].mean() == pytest.approx(16 / (16 + 2 * 24 / 10), abs=0.03)


def test_split_half_without_noise_is_one():
    found = split_half(make_means(orthogonal(5, 1, 8), noise=0), n_splits=10)
    np.testing.assert_allclose(found[["cosine", "lo", "hi"]], 1, atol=1e-6)


def test_split_half_equals_vectors_of_the_halves(made):
    """One split, done by hand."""
    from emolab.geometry.resampling import disjoint_sets, query_groups

    found = split_half(made, n_splits=1, seed=4).query("layer == 1 and emotion == 'joy'")["cosine"].item()
    first, second = disjoint_sets(query_groups(made.index), 1, np.random.default_rng(4))
    a, b = (
        vectors_from_means(made.select(x[0])).get("resid", emotion="joy", layer=1).double() for x in (first, second)
    )
    assert found == pytest.approx(torch.cosine_similarity(a, b, dim=0).item(), abs=1e-6)


def test_split_half_by_head_is_that_of_head_vectors(made):
    W_O = torch.randn(2, 3, 8, 24, generator=torch.Generator().manual_seed(0))
    found = split_half(made, site="head", W_O=W_O, n_splits=20)
    assert len(found) == 2 * 3 * 5 and found["head"].max() == 2
    # Planted directions 0 to 4 lie in head 0's dimensions; the other heads hold noise.
    assert found.query("head == 0")["cosine"].min() > 0.8 and found.query("head > 0")["cosine"].abs().mean() < 0.3


@pytest.mark.parametrize("probe", reliability.PROBES)
def test_probes_read_planted_emotions_and_nothing_from_random_labels(made, probe):
    other = make_means(orthogonal(5, 2, 24), n_queries=15, topic=1.0, seed=9, prefix="new")
    found = probe_accuracy(made, test=other, probes=(probe,), n_permutations=99)
    every = found.query("emotion == 'all'")
    assert (every["accuracy"] > 0.5).all() and (every["p"] == 0.01).all()
    np.testing.assert_allclose(every["chance"], 1 / 6, atol=0.02)
    assert (found["lo"] <= found["accuracy"]).all() and (found["accuracy"] <= found["hi"]).all()
    own = found.query("layer == 0 and emotion != 'all'")
    assert own["accuracy"].mean() == pytest.approx(every["accuracy"].iloc[0]) and set(own["n"]) == {15}
    null = probe_accuracy(shuffled(made), probes=(probe,), n_permutations=99).query("emotion == 'all'")
    assert (null["accuracy"] < 0.3).all() and (null["p"] > 0.01).all()


def test_topics_do_not_leak_through_cross_validation():
    """The label is a property of the query alone: only a probe that had seen the query could tell it."""
    means = make_means(np.zeros((1, 1, 30)), n_queries=24, labels=("neutral", "joy"), noise=0.1, topic=5.0)
    rng = np.random.default_rng(0)
    odd = dict(zip(means.index["query_id"].unique(), rng.permutation(24) % 2, strict=True))
    means.index["condition"] = np.where(means.index["query_id"].map(odd) == 1, "joy", "neutral")
    every = probe_accuracy(means, n_permutations=19).query("emotion == 'all'")
    assert (every["accuracy"] < 0.75).all()  # with leakage it would be 1


def test_groups_are_held_out_whole(made):
    place = pd.Series({f"q{i}": f"place {i % 5}" for i in range(20)})
    folds = reliability._folds(made.index, None, place)
    where = made.index["query_id"].map(place)
    assert len(folds) == 5
    assert all(not set(where.iloc[fit]) & set(where.iloc[read]) for fit, read in folds)
    assert sorted(np.concatenate([read for _, read in folds])) == list(range(len(made)))
    other = make_means(orthogonal(5, 2, 24), n_queries=4, prefix="new")
    both = pd.concat([place, pd.Series({f"new{i}": "place 0" for i in range(4)})])
    with pytest.raises(EmolabError, match="1 queries or groups are in both"):
        probe_accuracy(made, test=other, groups=both)


def test_scaling_is_fitted_on_the_training_rows_alone(made, monkeypatch):
    from sklearn.preprocessing import StandardScaler

    seen = []
    fit = StandardScaler.fit
    monkeypatch.setattr(StandardScaler, "fit", lambda self, X, *a, **k: (seen.append(len(X)), fit(self, X, *a, **k))[1])
    probe_accuracy(made, probes=("centroid",), n_permutations=9)
    assert set(seen) == {96}  # four fifths of 120


def test_a_rotation_changes_no_probe():
    """More dimensions than responses: the principal components inside the fold leave the guesses as they are."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    wide = make_means(orthogonal(5, 1, 200, size=6.0), n_queries=10, seed=1)
    folds = reliability._folds(wide.index, None, None)
    x, y = wide.means["resid"][:, 0].astype(np.float64), wide.index["condition"].to_numpy(dtype=object)
    guess = reliability._predict("logistic", x, x, y, folds)
    plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    for fit, read in folds:
        same = guess[read] == plain.fit(x[fit], y[fit].astype(str)).predict(x[read])
        assert same.mean() > 0.95


def test_probe_by_head(made):
    found = probe_accuracy(made, site="head", probes=("centroid",), n_permutations=99).query("emotion == 'all'")
    assert len(found) == 6 and found.query("head == 0")["accuracy"].min() > found.query("head > 0")["accuracy"].max()


def test_words_alone():
    rows = [(f"q{q}", c, f"the {c} of place {q}") for q in range(10) for c in LABELS]
    told = pd.DataFrame(rows, columns=["query_id", "condition", "text"])
    every = word_accuracy(told, n_permutations=99).iloc[0]
    assert every.accuracy == 1 and every.p == 0.01
    silent = told.assign(text=told["query_id"])
    assert word_accuracy(silent, n_permutations=99).iloc[0].accuracy == pytest.approx(1 / 6)
    with pytest.raises(EmolabError, match="in both sets"):
        word_accuracy(told, test=told)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: split_half(m, site="attn"), "no site 'attn'"),
        (lambda m: split_half(m.select(np.arange(6))), "two queries"),
        (lambda m: probe_accuracy(m, probes=("forest",)), "forest"),
        (lambda m: probe_accuracy(m.select(np.arange(6))), "two queries"),
        (lambda m: split_half(m.select(m.index["condition"].isin(["joy", "fear"]))), "neutral and an emotion"),
    ],
)
def test_bad_input_is_named(made, call, message):
    with pytest.raises(EmolabError, match=message):
        call(made)


def test_few_queries_and_one_layer_work():
    small = make_means(orthogonal(2, 1, 6), n_queries=2, labels=("neutral", "joy", "calm"))
    assert len(split_half(small, n_splits=5)) == 2
    assert len(probe_accuracy(small, n_permutations=9)) == 2 * 4
