"""PCA and probe directions find what was planted, are as long as the emotion vectors, and say what they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from emolab.base.errors import EmolabError
from emolab.experiments.sweeps import vectors_identity
from emolab.steering.steering import Steering
from emolab.vectors.activations import ResponseMeans
from emolab.vectors.controls import shuffled_like
from emolab.vectors.directions import pca_vectors, probe_vectors
from emolab.vectors.vectors import vectors_from_means
from tests.made_means import META, make_means, orthogonal

LABELS = ("neutral", "joy", "calm")  # one of the five, and one that is not


def cosine(a, b) -> np.ndarray:
    a, b = (np.asarray(x, dtype=float) for x in (a, b))
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def by_hand(rows: list[tuple[str, str, list[float]]]) -> ResponseMeans:
    index = pd.DataFrame([(q, "neutral", c, 3) for q, c, _ in rows], columns=["query_id", "emotion", "condition", "n"])
    x = np.array([x for *_, x in rows], dtype=np.float32)[:, None, :]
    return ResponseMeans(index, {"resid": x}, np.ones((len(rows), 1), np.float32), dict(META))


@pytest.mark.parametrize("find", [pca_vectors, probe_vectors])
def test_planted_directions_are_found_at_the_norm_of_the_emotion_vectors(find):
    planted = orthogonal(2, n_layers=3, d=24)
    means = make_means(planted, n_queries=40, noise=0.7, topic=1.0, labels=LABELS)
    means.means["attn"] = means.means["resid"][:, ::-1] * 2
    found, plain = find(means), vectors_from_means(means)
    assert found.emotions == ("joy", "calm") and found.sites == ("resid", "attn")
    for site in found.sites:
        assert cosine(found.get(site), plain.get(site)).min() > 0.5, "the sign is that of the mean difference"
        torch.testing.assert_close(found.get(site).norm(dim=-1), plain.get(site).norm(dim=-1))
    truth = np.stack([planted[0], planted[1]])
    assert cosine(found.get("resid"), truth).min() > 0.7
    assert np.abs(cosine(found.get("resid"), truth[::-1])).max() < 0.3
    assert torch.equal(found.resid_norm, plain.resid_norm)


def test_pca_is_the_leading_axis_of_the_paired_differences_and_topics_cancel():
    means = make_means(orthogonal(2, 1, 10, size=1.0), n_queries=9, noise=1.0, topic=300.0, labels=LABELS)
    x = means.means["resid"][:, 0].astype(float).reshape(9, 3, 10)  # query by query: neutral, joy, calm
    found = pca_vectors(means)
    for e in (0, 1):
        pairs = x[:, e + 1] - x[:, 0]
        axis = np.linalg.eigh(pairs.T @ pairs)[1][:, -1]
        assert cosine(found.get("resid")[e, 0], axis * np.sign(axis @ pairs.mean(0))) > 1 - 1e-6


def test_pca_follows_what_pairs_share_not_how_they_differ():
    shared, varies = np.array([3.0, 0, 0]), np.array([0, 2.0, 0])
    rows = []
    for q in range(6):
        topic = np.full(3, 10.0 * q)
        rows += [(f"q{q}", "neutral", topic), (f"q{q}", "joy", topic + shared + varies * (-1) ** q)]
    assert cosine(pca_vectors(by_hand(rows)).get("resid")[0, 0], shared) > 1 - 1e-6


def test_a_query_with_two_answers_counts_once():
    rows = [("a", "neutral", [0, 0, 1]), ("b", "neutral", [0, 1, 0]), ("b", "joy", [1, 4, 0])]
    twice = by_hand([*rows, ("a", "joy", [2, 1, 1]), ("a", "joy", [4, 1, 1])])
    once = by_hand([*rows, ("a", "joy", [3, 1, 1])])
    torch.testing.assert_close(pca_vectors(twice).get("resid"), pca_vectors(once).get("resid"))


def test_probe_prefers_the_quiet_coordinate_and_knows_no_units():
    rng = np.random.default_rng(0)
    rows = []
    for q in range(40):
        for label in ("neutral", "joy"):
            shift = 1.0 if label == "joy" else 0.0
            rows.append((f"q{q}", label, [shift + rng.normal() * 0.5, shift + rng.normal() * 5, rng.normal()]))
    means = by_hand(rows)
    found, difference = probe_vectors(means).get("resid")[0, 0], vectors_from_means(means).get("resid")[0, 0]
    assert abs(found[0]) > 3 * abs(found[1]), "the mean difference moves both"
    assert abs(difference[0]) < 3 * abs(difference[1])
    units = np.array([1000.0, 1.0, 0.01], dtype=np.float32)
    scaled = probe_vectors(dataclasses.replace(means, means={"resid": means.means["resid"] * units}))
    assert cosine(scaled.get("resid")[0, 0], found.numpy() / units) > 1 - 1e-6, "standardised, and brought back"
    weak = probe_vectors(means, C=1e-3)
    assert weak.meta["C"] == 1e-3 and cosine(weak.get("resid")[0, 0], found) < 0.9999


def test_texts_without_pairs_have_probes_but_no_pca():
    rows = [(f"t{i}", label, [i % 3, float(label == "joy"), 0]) for i, label in enumerate(["joy", "neutral"] * 6)]
    means = by_hand(rows)
    assert cosine(probe_vectors(means).get("resid")[0, 0], [0, 1, 0]) > 0.9
    with pytest.raises(EmolabError, match="same query"):
        pca_vectors(means)


def test_meta_is_honest_and_no_one_takes_them_for_emotion_vectors():
    means = make_means(orthogonal(2, 2, 8), labels=LABELS)
    plain = vectors_from_means(means)
    for find, name in ((pca_vectors, "pca"), (probe_vectors, "probe")):
        found = find(means, sites=("resid",))
        assert found.meta["method"] == name and found.meta["part"] == "whole"
        assert {k: found.meta[k] for k in ("corpus_hash", "fingerprint", "n_pairs")} == {
            k: plain.meta[k] for k in ("corpus_hash", "fingerprint", "n_pairs")
        }
        same = vectors_identity(found) == vectors_identity(plain)
        assert not same, "else a sweep would go on with the texts of the other"
        with pytest.raises(EmolabError, match="means"):
            shuffled_like(found)
        assert Steering(found, {"calm": 1.0}).table().shape == (2, 8)
        with pytest.raises(EmolabError, match="attn"):
            find(means, sites=("head",))
    assert "method" not in plain.meta
