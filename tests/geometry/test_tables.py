"""Tables for figures: neighbours are counted as they lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from emolab.geometry.similarity import cosine_matrix, vector_agreement
from emolab.geometry.tables import emotion_cosines, layer_by_layer, neighbour_purity, pair_cosines
from emolab.vectors.vectors import vectors_from_means
from tests.made_means import make_means, orthogonal


@pytest.mark.parametrize(("topic", "nearest"), [(0.0, "condition"), (50.0, "query_id")])
def test_neighbours_share_what_sets_answers_apart(topic, nearest):
    """Emotions are orthogonal and large; topics nothing, or larger still."""
    means = make_means(8 * orthogonal(5, 3, 24), n_queries=8, topic=topic)
    found = neighbour_purity(means, k=3, n_permutations=40).pivot(index="layer", columns="by", values="purity")
    assert (found[nearest] > 0.9).all()
    null = neighbour_purity(means, k=3, n_permutations=40).set_index(["by", "layer"])
    assert null.loc["condition", "null_mean"].between(0.1, 0.25).all(), "one of six conditions by chance"
    assert (null.loc[nearest, "p"] < 0.05).all()


def test_cosines_are_those_of_the_vectors():
    vectors = vectors_from_means(make_means(orthogonal(5, 3, 24) + 1.0, n_queries=10, topic=1.0))
    data = emotion_cosines(vectors, part="specific").set_index(["layer", "emotion", "other"])["cosine"]
    expected = cosine_matrix(vectors, layer=2, part="specific")
    assert data[2, "joy", "fear"] == pytest.approx(expected.loc["joy", "fear"]) and len(data) == 3 * 25
    data = layer_by_layer(vectors).set_index(["emotion", "layer", "other"])["cosine"]
    fear = vectors.get("resid", emotion="fear").double()
    assert data["fear", 0, 2] == pytest.approx(torch.cosine_similarity(fear[0], fear[2], dim=0).item())
    assert len(data) == 5 * 3 * 3


def test_no_map_of_vectors_depends_on_their_lengths():
    """One emotion's vectors four times as long, as those of another model may be: directions are compared."""
    vectors = vectors_from_means(make_means(orthogonal(5, 3, 24) + 1.0, n_queries=10, topic=1.0))
    data = {site: x.clone() for site, x in vectors.data.items()}
    for x in data.values():
        x[vectors.emotions.index("joy")] *= 4
    long = replace(vectors, data=data)
    for table in (pair_cosines, emotion_cosines, layer_by_layer):
        plain = {"parts": ("whole",)} if table is pair_cosines else {}
        found, expected = table(long, **plain), table(vectors, **plain)
        np.testing.assert_allclose(found["cosine"], expected["cosine"], atol=1e-6)
    agreed = vector_agreement(long, vectors)
    np.testing.assert_allclose(agreed["cosine"], 1, atol=1e-6)
