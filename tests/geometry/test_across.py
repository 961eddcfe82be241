"""Two models' maps: exact where both are known, and nothing found where they have nothing in common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS
from emolab.geometry import across, cka, map_agreement
from emolab.vectors.vectors import EmotionVectors, vectors_from_means
from tests import oracle
from tests.made_means import make_vectors

MEASURES = ["rsa", "cka", "cosine"]


def made(x, emotions=("anger", "fear", "joy")) -> EmotionVectors:
    return make_vectors(np.asarray(x, float), emotions)


def planted(seed=0, turn=None, **options) -> EmotionVectors:
    """Vectors of the same planted answers; turn: a matrix that answers are multiplied with."""
    means, _ = oracle.planted_means(**{"n_queries": 8, "n_layers": 2, "d_model": 16, "seed": seed, **options})
    values = means.means["resid"]
    values = values if turn is None else (values @ turn).astype(np.float32)
    meta = {**means.meta, "model": f"planted {seed}"}
    return vectors_from_means(replace(means, means={"resid": values}, meta=meta), sites=("resid",))


def over_layers(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["layer"].isna()].set_index("measure")


def turned(d: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(5).normal(size=(d, d)))[0]


def test_a_model_is_like_itself():
    vectors = planted()
    for part in ("specific", "whole"):
        table = map_agreement(vectors, vectors, part=part, n_splits=6, n_permutations=19)
        assert list(dict.fromkeys(table["measure"])) == MEASURES and table.attrs["left_out"] == {}
        np.testing.assert_allclose(table["value"], 1, atol=1e-9)
        np.testing.assert_array_equal(table["halves"], table["ceiling"])
        assert (table["other_layer"].dropna() == table["layer"].dropna()).all()
        assert list(table["depth"].dropna()) == [0, 1] * 3
    means = over_layers(table)
    assert means["p"].to_dict() == {"rsa": 1 / 120, "cka": 1 / 20, "cosine": 1 / 120}, "the true order is one of them"
    assert table.attrs["about"]["n"] == "5 emotions, 8 queries that both answered"


def test_turned_and_scaled_space_is_the_same_map_but_for_cosines():
    plain, other = planted(noise=0.0), planted(noise=0.0, turn=3 * turned(16))
    table = map_agreement(plain, other, n_splits=6, n_permutations=19)
    means = over_layers(table)
    np.testing.assert_allclose(means.loc[["cka"], ["value", "halves", "ceiling"]], 1, atol=1e-4)
    assert abs(means["value"]["cosine"]) < 0.4 and means["p"]["cosine"] > 0.05
    np.testing.assert_allclose(means.loc["cosine", "ceiling"], 1, atol=1e-6)  # each in its own space


def test_nothing_in_common_is_within_the_null():
    rng = np.random.default_rng(0)
    pairs = [map_agreement(*(made(rng.normal(size=(5, 1, 8)), EMOTIONS) for _ in "ab")) for _ in range(60)]
    p = pd.concat(map(over_layers, pairs))["p"].groupby("measure")
    assert (p.apply(lambda x: (x <= 0.05).mean()) < 0.15).all() and p.mean().between(0.35, 0.65).all()


def test_answers_whose_conditions_are_shuffled_have_nothing_in_common():
    one = planted(noise=1.0)
    rows = np.random.default_rng(3).permuted(np.arange(len(one.means)).reshape(-1, 6), axis=1).ravel()
    other = replace(one.means, means={"resid": one.means.means["resid"][rows]})
    table = map_agreement(one, vectors_from_means(other, sites=("resid",)), n_splits=2, n_permutations=99)
    row = over_layers(table).loc["cka"]
    assert row["p"] > 0.05 and row["null_mean"] < row["null_hi"] < 0.3 and row["value"] < row["null_hi"]


def test_the_null_of_three_emotions_by_hand():
    """Cosines in the orders 3 1 2 and 3 2 1: Spearman 0.5; the six orders give 1, 0.5 twice, -0.5 twice and -1."""
    first, second = (made([[[np.cos(x), np.sin(x)]] for x in np.radians(a)]) for a in ((0, 20, 70), (0, 20, -30)))
    row = over_layers(map_agreement(first, second, part="whole")).loc["rsa"]
    assert row["value"] == pytest.approx(0.5) and row["null_mean"] == pytest.approx(0)
    assert row["null_hi"] == pytest.approx(0.5 + 0.75 * 0.5), "between the fifth and the sixth, as numpy's quantile"
    assert row["p"] == 0.5, "three of six orders reach it"
    assert over_layers(map_agreement(first, first, part="whole"))["p"]["rsa"] == pytest.approx(1 / 6)


def test_the_null_of_the_cosine_by_hand():
    """Three unit vectors: the true order gives 1, each of three swaps 1/3, both turns 0."""
    table = map_agreement(made(np.eye(3)[:, None]), made(2 * np.eye(3)[:, None]), part="whole")
    row = over_layers(table).loc["cosine"]
    assert row["value"] == pytest.approx(1) and row["null_mean"] == pytest.approx(1 / 3)
    assert row["p"] == pytest.approx(1 / 6)
    assert over_layers(table)["value"].isna()["rsa"], "all cosines are 0: there is nothing to rank"


def test_cka_is_that_of_answers_less_their_query():
    """As `cka` between two layers of one model, one from either."""
    one, other = planted(0), planted(0, noise=1.0)
    values = [x.means.within_queries().means["resid"][:, 1] for x in (one, other)]
    beside = replace(one.means, means={"resid": np.stack(values, 1)})
    table = map_agreement(one, other, n_splits=2, n_permutations=1)
    found = table[(table["measure"] == "cka") & (table["layer"] == 1)]["value"].item()
    assert found == pytest.approx(cka(beside).loc[0, 1], abs=1e-6) and 0.2 < found < 0.98


def test_layers_are_set_beside_those_at_the_same_depth():
    deep, flat = planted(0, n_layers=5), planted(0, n_layers=3, d_model=24)
    table = map_agreement(deep, flat, n_splits=2, n_permutations=3)
    rsa = table[table["measure"] == "rsa"].dropna(subset=["layer"])
    assert rsa["other_layer"].tolist() == [0, 0, 1, 2, 2] and rsa["depth"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert set(table["measure"]) == {"rsa", "cka"}
    assert table.attrs["left_out"] == {"cosine": "the models have 5 layers of 16 and 3 layers of 24 dimensions"}


def test_only_emotions_that_both_have_count():
    x = np.random.default_rng(0).normal(size=(4, 2, 6))
    whole, fewer = made(x, ("anger", "calm", "fear", "joy")), made(x[[0, 2, 3]] + 5)
    for part in ("specific", "whole"):
        pair = [map_agreement(one, fewer, part=part) for one in (whole, whole.select(["anger", "fear", "joy"]))]
        pd.testing.assert_frame_equal(*pair)
    assert map_agreement(whole, fewer)["value"].tolist() == pytest.approx([1] * 6), "what they share is taken away"


def test_without_answers_there_is_no_ceiling_and_with_others_no_cka():
    x = np.random.default_rng(0).normal(size=(3, 2, 6))
    table = map_agreement(made(x), made(x))
    assert table[["halves", "ceiling", "ceiling_lo", "ceiling_hi"]].isna().all(axis=None)
    assert table.attrs["left_out"] == {"cka": "the means of the answers are not at hand"}
    ours, theirs = planted(0), planted(0)
    theirs.means.index["query_id"] = "other " + theirs.means.index["query_id"]
    table = map_agreement(ours, theirs, n_splits=4)
    assert table.attrs["left_out"] == {"cka": "0 queries were answered under all of these conditions by both"}
    assert table[["halves", "ceiling"]].notna().all(axis=None) and (table["value"] > 0.999).all()


def test_many_labels_are_permuted_at_random():
    drawn = across._emotion_orders(7, 30, np.random.default_rng(0))
    assert len(drawn) == 31 and drawn[0].tolist() == list(range(7))
    assert len(across._emotion_orders(6, 30, None)) == 720


def test_two_emotions_are_no_map():
    vectors = made(np.ones((3, 2, 4)))
    two = made(np.ones((3, 2, 4)), ("anger", "joy", "calm"))
    with pytest.raises(
        EmolabError, match="three emotions that both models have; given are anger, fear, joy with anger"
    ):
        map_agreement(vectors, two)
    with pytest.raises(EmolabError, match='part must be "whole" or "specific"'):
        map_agreement(vectors, vectors, part="shared")
