"""Ratings read off planted vectors: what is there is found, what is not is not, and the axis is the planted one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab import geometry
from emolab.answers.texts import load_ratings
from emolab.base.errors import EmolabError
from emolab.geometry.affect import rated
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.vectors import vectors_from_means
from tests import tiny

NOUNS = list(load_ratings().query("form == 'noun'")["word"])
D = 96


def planted(axes: np.ndarray, *, layers=2, n_frames=6, noise=1.0, seed=0) -> ResponseMeans:
    """Frame, plus valence and arousal along two axes (nothing at layer 0), plus each word's own, plus noise."""
    rng = np.random.default_rng(seed)
    human = rated(NOUNS).to_numpy()[:, :2]
    z = (human - human.mean(0)) / human.std(0)
    own = rng.normal(size=(len(NOUNS), layers, D)) * 0.3
    rows, index = [], []
    for frame in range(n_frames):
        place = 5 * rng.normal(size=(layers, D))
        for i, word in enumerate(NOUNS):
            x = place + own[i] + noise * rng.normal(size=(layers, D)) / np.sqrt(D)
            x[1:] += z[i] @ axes
            rows.append(x)
            index.append((f"f{frame}", word, word, 5))
    table = pd.DataFrame(index, columns=["query_id", "emotion", "condition", "n_tokens"])
    values = np.array(rows, np.float32)
    meta = {"fingerprint": "planted", "model": "planted", "corpus_hash": "planted", "token_rule": "response"}
    return ResponseMeans(table, {"resid": values}, np.ones((len(rows), layers), np.float32), meta)


@pytest.fixture(scope="module")
def axes():
    return np.linalg.qr(np.random.default_rng(1).normal(size=(D, 2)))[0].T * np.array([[3.0], [2.0]])


@pytest.fixture(scope="module")
def means(axes):
    return planted(axes)


def test_ratings_are_read_where_they_are_and_nowhere_else(means):
    words = np.random.default_rng(2).normal(size=(len(NOUNS), 20))
    fit = geometry.affect_fit(means, words, n_permutations=60)
    assert set(fit["method"]) == {"ridge", "ridge, other frames", "component", "word embedding"}
    at = fit.set_index(["layer", "dimension", "method"])
    for dimension in ("valence", "arousal"):
        for method in ("ridge", "ridge, other frames"):
            row = at.loc[(1, dimension, method)]
            assert row["r"] > 0.9 and row["lo"] < row["r"] < row["hi"] and row["p"] == pytest.approx(1 / 61)
        for key in ((0, dimension, "ridge"), (-1, dimension, "word embedding")):
            row = at.loc[key]
            assert row["r"] < 0.4 and abs(row["null"]) < 0.2 and row["p"] > 0.02
    best = at.loc[(1, "valence", "component")]
    assert best["component"] == 1 and best["r"] > 0.9
    assert at.loc[(0, "valence", "component")]["null"] > 0.1, "the best of three components is above zero by chance"


def test_a_label_is_never_read_by_its_own_rating(means):
    """Predictions of a fold do not change with the ratings in it."""
    ratings = load_ratings().query("form == 'noun'").copy()
    points = geometry.affect_points(means, ratings, layer=1)
    changed = ratings.assign(valence=ratings["valence"].where(ratings["word"] != "joy", 1.0))
    again = geometry.affect_points(means, changed, layer=1)
    joy, others = points["label"] == "joy", points["label"] != "joy"
    assert again.loc[joy, "read_valence"].item() == pytest.approx(points.loc[joy, "read_valence"].item(), abs=1e-9)
    assert not np.allclose(again.loc[others, "read_valence"], points.loc[others, "read_valence"])


def test_the_map_has_one_point_per_label(means):
    points = geometry.affect_points(means, layer=-1, n_clusters=4)
    assert list(points["label"]) == list(dict.fromkeys(means.index["condition"])) or set(points["label"]) == set(NOUNS)
    assert np.corrcoef(points["component_1"], points["valence"])[0, 1] > 0.9
    assert points["cluster"].nunique() == 4 and points.attrs["clusters"]["rand"] > 0.2
    assert points.attrs["r"]["valence"] > 0.9 > 0.4 > points.attrs["null_hi"]["valence"]
    by_chance = geometry.affect_points(means, layer=0, n_clusters=4)
    assert by_chance.attrs["r"]["valence"] < 0.4


def test_axes_are_those_that_were_planted_and_steering_takes_them(means, axes, tiny_llama):
    found = geometry.affect_axes(vectors_from_means(means))
    assert found.emotions == ("valence", "arousal") and found.meta["fitted_on"][0] in NOUNS
    for name, axis in zip(found.emotions, axes, strict=True):
        ours = found.get("resid", emotion=name, layer=1).numpy()
        assert ours @ axis / np.linalg.norm(ours) / np.linalg.norm(axis) > 0.93
        assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(axis), rel=0.1), "per standard deviation"
    vectors = tiny.random_vectors(tiny_llama, emotions=tuple(NOUNS[:14]))
    small = geometry.affect_axes(vectors)
    texts = emolab.generate(tiny_llama, "how ?", steering=emolab.Steering(small, {"valence": 9.0, "arousal": -3.0}))
    assert len(texts) == 1


def test_bad_input_is_one_clear_error(means):
    few = means.select(means.index["condition"].isin(NOUNS[:5]))
    for call, says in (
        (lambda: geometry.affect_fit(few), "there are vectors of 5 labels; affect axes need at least 12"),
        (lambda: rated(["joy", "zorbness"]), "there is no rating of 'zorbness' .1 of 2 labels."),
        (lambda: rated(["joy"], pd.DataFrame({"w": [1]})), "ratings have the columns w; expected word, and"),
        (lambda: geometry.affect_axes(vectors_from_means(means), dimensions=("joy",)), "expected some of valence"),
        (lambda: geometry.affect_points(means, layer=7), "no layer 7"),
        (lambda: geometry.affect_fit(means.select(means.index["query_id"] == "f0")), "at least two frames"),
    ):
        with pytest.raises(EmolabError, match=says):
            call()


def test_word_embeddings_are_the_means_of_the_words_tokens(tiny_llama):
    found = geometry.word_embeddings(tiny_llama, ["joy", "sun and rain"])
    table = tiny_llama.hf.get_input_embeddings().weight.detach().double()
    ids = [tiny_llama.tokenizer(f" {word}", add_special_tokens=False).input_ids for word in ("joy", "sun and rain")]
    np.testing.assert_allclose(found, torch.stack([table[i].mean(0) for i in ids]), rtol=1e-5, atol=1e-7)
