"""Confounds: planted features are found, taken out, and nothing else is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from emolab.base.errors import EmolabError, MismatchError
from emolab.geometry.confounding import confounds, text_features, without_confounds
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.vectors import vectors_from_means
from tests.made_means import LABELS, META, make_index, make_means, orthogonal

# The texts of one query in order of conditions: the share of past forms is 0, 1, 0.5, ...
TENSES = ["It is here.", "It was here.", "It is here, it was here."]


def answers(index: pd.DataFrame, pasts: np.ndarray) -> pd.DataFrame:
    """A text per row whose past share is 0, 1 or 0.5, all of one length and person."""
    return index[["query_id", "condition"]].assign(text=[TENSES[past] for past in pasts], n_tokens=7)


def shares(means, responses, **options) -> pd.DataFrame:
    return confounds(means, responses, n_permutations=40, **options).set_index(["layer", "factor"])


def test_features_of_texts():
    texts = ["I'm glad and I walked.", "You put it there", ""]
    table = text_features(pd.DataFrame({"text": texts}, index=[3, 1, 2]))
    assert list(table.index) == [3, 1, 2] and table["n_tokens"].tolist() == [5, 4, 0]
    np.testing.assert_allclose(table["past"], [1 / 2, np.nan, np.nan])
    np.testing.assert_allclose(table["first_person"], [2 / 6, 0, np.nan])
    np.testing.assert_allclose(table["second_person"], [0, 1 / 4, np.nan])
    known = pd.DataFrame({"text": texts, "n_tokens": [9, 8, 0]})
    assert text_features(known)["n_tokens"].tolist() == [9, 8, 0]
    assert text_features(known.assign(n_tokens=[9, None, 0]))["n_tokens"].tolist() == [5, 4, 0]


def test_shares_are_those_of_a_regression_by_hand():
    rng = np.random.default_rng(0)
    index = make_index(6)
    x = rng.normal(size=(36, 2, 8)) * np.array([1, 1, 1, 1, 1, 1, 1, 1e4])  # an outlier coordinate counts as any other
    x[..., 3] = 5.0  # and one without variance not at all
    past = rng.integers(0, 3, 36)
    means = ResponseMeans(index, {"resid": x.astype(np.float32)}, np.ones((36, 2)), META)
    found = shares(means, answers(index, past))
    r2 = [np.corrcoef(np.array([0, 1, 0.5])[past], x[:, 1, d])[0, 1] ** 2 for d in range(8) if d != 3]
    assert found.loc[(1, "tense"), "explained"] == pytest.approx(1 - (1 - np.mean(r2)) * 35 / 34, abs=1e-5)
    z = (x[:, 0] - x[:, 0].mean(0)) / np.where(x[:, 0].std(0) > 0, x[:, 0].std(0), 1)
    between = sum(6 * z[index["condition"] == c].mean(0) ** 2 for c in LABELS).sum() / (z**2).sum()
    assert found.loc[(0, "emotion"), "explained"] == pytest.approx(1 - (1 - between) * 35 / 30, abs=1e-5)
    assert found.loc[(0, "length"), "explained"] != found.loc[(0, "length"), "explained"], "all are of one length"


def test_what_is_planted_explains():
    """Layer 0: questions alone. Layer 1: emotions alone. Layer 2: tense alone."""
    index, rng = make_index(10), np.random.default_rng(1)
    past = rng.integers(0, 3, 60)
    x = 0.3 * rng.normal(size=(60, 3, 20))
    x[:, 0] += np.repeat(rng.normal(size=(10, 20)), 6, axis=0)
    x[:, 1] += np.tile(rng.normal(size=(6, 20)), (10, 1))
    x[:, 2] += np.array([0, 1, 0.5])[past][:, None] * rng.choice([-3, 3], 20)
    means = ResponseMeans(index, {"resid": x.astype(np.float32)}, np.ones((60, 3)), META)
    found = shares(means, answers(index, past))
    for layer, factor in enumerate(("question", "emotion", "tense")):
        own = found.loc[layer, "explained"].drop(["length", "person"])
        assert own[factor] > 0.8 and found.loc[(layer, factor), "p"] < 0.05, own
        assert (own.drop(factor) < 0.2).all(), own
        assert found.loc[(layer, factor), "null_hi"] < 0.2
    assert found["null_mean"].dropna().between(-0.2, 0.05).all(), "adjusted: no factor explains by its size"


def test_what_texts_carry_leaves_the_vectors_and_emotion_stays():
    """Joy is told in the past, which has a direction of its own: its vector leans there, and is turned back."""
    emotions = orthogonal(5, 2, 16)
    means = make_means(emotions, n_queries=20, noise=0.01)
    rng = np.random.default_rng(0)
    past = np.where(means.index["condition"] == "joy", 1, np.where(rng.random(120) < 0.2, 1, 0))
    past = np.where(rng.random(120) < 0.2, 2, past)
    x = means.means["resid"] + np.array([0, 1, 0.5])[past][:, None, None] * 8 * np.eye(16)[10]
    told = dataclasses.replace(means, means={"resid": x.astype(np.float32)})
    responses = answers(means.index, past)
    vectors, taken = without_confounds(told, responses, n_permutations=40)
    planted, leaning = emotions[3, 0], vectors_from_means(told).get("resid", emotion="joy", layer=0).numpy()
    turned = vectors.get("resid", emotion="joy", layer=0).numpy()
    assert leaning @ planted / np.linalg.norm(leaning) / np.linalg.norm(planted) < 0.7
    np.testing.assert_allclose(turned, planted, atol=0.05)
    assert vectors.meta["without"] == ["length", "tense", "person"] and vectors.means is not None
    joy = taken.set_index(["layer", "emotion"]).loc[(0, "joy")]
    cosine = turned @ leaning / np.linalg.norm(turned) / np.linalg.norm(leaning)
    assert joy["cosine"] == pytest.approx(cosine, abs=1e-4)
    assert joy["kept"] == pytest.approx(turned @ turned / (leaning @ leaning), abs=1e-4)
    assert joy["p"] < 0.05 and joy["null_kept"] > 0.8 > joy["kept"]
    only, rest = without_confounds(told, responses, factors="length", n_permutations=3)
    assert (rest["kept"] - 1).abs().max() < 1e-6, "one length: nothing to take out"
    np.testing.assert_allclose(only.get("resid"), vectors_from_means(told).get("resid"), atol=1e-5)


def test_a_feature_that_is_the_condition_cannot_be_told_from_it():
    means = make_means(orthogonal(5, 1, 16), n_queries=6)
    past = (means.index["condition"] == "joy").to_numpy().astype(int)
    _, taken = without_confounds(means, answers(means.index, past), factors=["tense"], n_permutations=3)
    assert taken["kept"].tolist() == pytest.approx([1] * 5)


def test_heads_and_texts_without_queries():
    means = make_means(orthogonal(5, 2, 16), n_queries=6, heads=4, topic=0.0)
    past = np.random.default_rng(0).integers(0, 3, 36)
    W_O = torch.ones(2, 4, 4, 16)
    vectors, taken = without_confounds(means, answers(means.index, past), site="head", W_O=W_O, n_permutations=3)
    assert vectors.sites == ("resid", "head") and len(taken) == 2 * 4 * 5
    lone = means.index.assign(query_id=[f"r{i}" for i in range(36)])
    alone = dataclasses.replace(means, index=lone)
    found = shares(alone, answers(lone, past))
    assert "question" not in found.index.get_level_values("factor")
    assert (found.loc[0, "explained"]["emotion"]) > 0.1
    _, taken = without_confounds(alone, answers(lone, past), n_permutations=3)
    assert taken["kept"].between(0.5, 1.5).all()


def test_refusals():
    means = make_means(orthogonal(5, 1, 16), n_queries=2)
    responses = answers(means.index, np.zeros(12, int))
    with pytest.raises(MismatchError, match="of other responses"):
        confounds(means, responses.iloc[::-1])
    with pytest.raises(EmolabError, match=r"unknown factor \['tone'\]; expected some of length, tense, person"):
        without_confounds(means, responses, factors=["tense", "tone"])
    with pytest.raises(EmolabError, match="3 answers cannot"):
        confounds(means.select([0, 1, 2]), responses.head(3))
