"""Geometry against cases whose answer is known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from emolab.answers.responses import responses_from_texts
from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS
from emolab.geometry import projections, similarity
from emolab.geometry.resampling import (
    contrasts,
    disjoint_sets,
    draw_weights,
    grams,
    label_weights,
    permuted_labels,
    query_groups,
)
from emolab.models.sites import output_weights
from emolab.vectors.activations import response_means
from emolab.vectors.vectors import extract_vectors, vectors_from_means
from tests.made_means import LABELS, make_index, make_means, make_vectors, orthogonal

PLACES = pd.Series({f"q{i}": f"place {i // 2}" for i in range(12)})


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(1)
    return make_means(orthogonal(5, 3, 24) + rng.normal(size=(1, 3, 24)), heads=4)


def test_cosines_are_those_of_torch(made):
    vectors = vectors_from_means(made)
    ev = vectors.get("resid").double()
    matrix = similarity.cosine_matrix(vectors, layer=1)
    assert matrix.loc["joy", "fear"] == pytest.approx(torch.cosine_similarity(ev[3, 1], ev[2, 1], dim=0).item())
    assert list(matrix.index) == list(matrix.columns) == list(EMOTIONS)
    np.testing.assert_allclose(np.diag(matrix), 1)
    last, same = (similarity.cosine_matrix(vectors, layer=layer) for layer in (-1, 2))
    pd.testing.assert_frame_equal(last, same)
    specific = similarity.cosines(make_vectors(orthogonal(5, 2, 8)), part="specific")
    np.testing.assert_allclose(specific[:, 0, 1], -1 / 4)  # centred orthogonal vectors: a regular simplex


def at_attn(x, emotions=("anger", "joy")):
    return make_vectors(x, emotions, "attn")


def test_agreement_is_the_cosine_of_like_with_like_beside_unlike():
    e = np.eye(4)
    ours = at_attn(np.stack([[e[0], e[0]], [e[1], e[1]]]))
    theirs = at_attn(np.stack([[3 * e[1], e[2]], [2 * e[0], e[0]], [e[3], e[0] + e[1]]]), ("joy", "anger", "calm"))
    table = similarity.vector_agreement(ours, theirs, site="attn").set_index(["emotion", "layer"])
    assert table["cosine"].to_dict() == {("anger", 0): 1, ("anger", 1): 1, ("joy", 0): 1, ("joy", 1): 0}
    assert table["mismatched"].to_dict() == {("anger", 0): 0, ("anger", 1): 0, ("joy", 0): 0, ("joy", 1): 0}
    assert (table["random"] == 0.98).all()
    specific = similarity.vector_agreement(ours, theirs, site="attn", part="specific").set_index(["emotion", "layer"])
    np.testing.assert_allclose(specific.loc["anger", "mismatched"].loc[0], -5 / 26**0.5)
    lone = similarity.vector_agreement(ours, at_attn(theirs.get("attn")[:1], ("joy",)), site="attn")
    assert list(lone["emotion"].unique()) == ["joy"] and lone["mismatched"].isna().all()
    shifted = at_attn(ours.get("attn") + 5 * torch.tensor(e[3]))
    assert similarity.vector_agreement(ours, shifted, site="attn")["cosine"].max() < 0.2
    agreement = similarity.vector_agreement(ours, shifted, site="attn", part="specific")
    np.testing.assert_allclose(agreement["cosine"], 1, atol=1e-6)


def test_agreement_needs_something_in_common():
    ours = at_attn(np.ones((2, 3, 4)))
    for other in (
        at_attn(np.ones((2, 3, 4)), ("calm", "hope")),
        at_attn(np.ones((2, 2, 4))),
        at_attn(np.ones((2, 3, 5))),
    ):
        with pytest.raises(EmolabError, match="cannot compare"):
            similarity.vector_agreement(ours, other, site="attn")
    with pytest.raises(EmolabError, match="no site 'resid'"):
        similarity.vector_agreement(ours, ours)
    with pytest.raises(EmolabError, match='part must be "whole" or "specific"'):
        similarity.vector_agreement(ours, ours, site="attn", part="shared")


def _hsic(k, m):
    """The unbiased estimator as Song et al. 2012 write it (equation 5)."""
    n, k, m = len(k), k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
    return (np.trace(k @ m) + one) / (n * (n - 3))


def test_cka_of_a_rotated_and_scaled_copy_is_one_and_of_noise_zero():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 20))
    rotation, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    noise = rng.normal(size=(60, 20))
    means = make_means(np.zeros((5, 4, 20)), n_queries=10)
    means.means["resid"] = np.stack([x, 7 * x @ rotation + 5, noise, x + 0.5 * noise], axis=1).astype(np.float32)
    found = similarity.cka(means)
    assert found.loc[0, 1] == pytest.approx(1, abs=1e-5) and np.diag(found) == pytest.approx(1)
    assert abs(found.loc[0, 2]) < 0.1 < 0.5 < found.loc[0, 3] < 1
    grams = [y @ y.T for y in means.means["resid"].astype(np.float64).transpose(1, 0, 2)]
    expected = _hsic(grams[0], grams[3]) / np.sqrt(_hsic(grams[0], grams[0]) * _hsic(grams[3], grams[3]))
    assert found.loc[0, 3] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("planted", "share"),
    [
        (np.ones((5, 2, 12)), 1.0),  # identical
        (orthogonal(5, 2, 12), 1 / 5),  # orthogonal, equal norm
        (orthogonal(5, 2, 12) - orthogonal(5, 2, 12).mean(0), 0.0),  # sum to zero
    ],
)
def test_shared_energy_exactly(planted, share):
    found = similarity.shared_energy(make_means(planted, noise=0), n_permutations=50)
    np.testing.assert_allclose(found[["share", "lo", "hi"]], share, atol=1e-6)
    assert (found["floor"] == 0.2).all() and list(found["layer"]) == [0, 1]


def test_shared_energy_null_tells_specific_vectors_from_a_shared_one(made):
    shared = make_means(np.full((5, 2, 12), 2.0), noise=1.0, seed=3)
    found = similarity.shared_energy(shared, n_permutations=99)
    assert (found["p"] > 0.05).all() and (found["null_mean"] > 0.9).all()
    planted = similarity.shared_energy(made, n_permutations=99)
    assert (planted["p"] == 0.01).all() and (planted["share"] < planted["null_lo"]).all()
    ev = vectors_from_means(made).get("resid").double()
    expected = 5 * ev.mean(0).norm(dim=-1) ** 2 / (ev.norm(dim=-1) ** 2).sum(0)
    np.testing.assert_allclose(planted["share"], expected, rtol=1e-5)
    pd.testing.assert_frame_equal(planted, similarity.shared_energy(made, n_permutations=99))  # same seed, same table


def test_shared_energy_by_head_is_that_of_the_head_vectors(made):
    W_O = torch.randn(3, 4, 6, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = similarity.shared_energy(made, site="head", W_O=W_O, n_permutations=9)
    ev = vectors_from_means(made, W_O=W_O, sites=("head",)).get("head").double()
    expected = 5 * ev.mean(0).norm(dim=-1) ** 2 / (ev.norm(dim=-1) ** 2).sum(0)
    np.testing.assert_allclose(found["share"].to_numpy().reshape(3, 4), expected, rtol=1e-4)


def test_denoise_takes_out_what_neutral_answers_vary_in():
    """One direction holds nearly all of the variance of neutral answers; vectors lose just that."""
    rng = np.random.default_rng(0)
    planted = rng.normal(size=(5, 2, 8))
    means = make_means(planted, n_queries=40, noise=0.01, topic=0)
    wild = rng.normal(size=(40, 1)) * 5
    means.means["resid"][:, :, 0] += np.repeat(wild, len(LABELS), axis=0)  # topic along axis 0, the same in all answers
    vectors = vectors_from_means(means)
    clean = similarity.denoise(vectors, means)
    assert clean.meta["denoised"] == {"resid": [1, 1]} and "denoised 0.5" in clean.meta["steps"]
    before, after = vectors.get("resid"), clean.get("resid")
    assert after[..., 0].abs().max() < 0.02
    torch.testing.assert_close(after[..., 1:], before[..., 1:], atol=0.02, rtol=0)
    assert torch.equal(similarity.denoise(vectors, means, variance=0).get("resid"), before)
    twice = similarity.denoise(clean, means)
    torch.testing.assert_close(twice.get("resid"), after, atol=1e-5, rtol=1e-5)


def test_everything_runs_on_a_real_model_with_texts_of_ones_own(tiny_gpt2):
    texts = {
        "neutral": ["it was a road", "the house was quiet", "a walk", "the park"],
        "joy": ["happy and glad", "so good !", "bright today", "the sun"],
        "dread": ["dark rain", "the cold sea", "bad rain", "i feel it"],
    }
    responses = responses_from_texts(texts)
    means = response_means(tiny_gpt2, responses)
    vectors = extract_vectors(tiny_gpt2, None, means=means, sites=means.sites)
    W_O = output_weights(tiny_gpt2)
    assert similarity.cka(means, site="head").shape == (2, 2)
    assert len(similarity.shared_energy(means, site="head", W_O=W_O, n_permutations=20)) == 2 * 4
    assert "12 texts" in similarity.shared_energy(means, n_permutations=9).attrs["about"]["n"]
    clean = similarity.denoise(vectors, means, W_O=W_O)
    assert clean.sites == vectors.sites and "head" not in similarity.denoise(vectors, means).sites
    points = projections.embed(means, methods=("pca",), layers=[-1])
    assert len(projections.embed_scores(means, points, n_permutations=20)) == 2


# Weights of resampled vectors


def test_weights_give_the_vectors(made):
    emotions, weights = contrasts(made.index)
    x = made.means["resid"][:, 1].astype(np.float64)
    np.testing.assert_allclose(weights @ x, vectors_from_means(made).get("resid", layer=1), atol=1e-5)
    half = query_groups(made.index) < 6
    drawn = draw_weights(weights, half[None].astype(float))[0]
    np.testing.assert_allclose(drawn @ x, vectors_from_means(made.select(half)).get("resid", layer=1), atol=1e-5)
    _, gram = [(layer, g) for layer, _, g in grams(made, "resid")][1]
    np.testing.assert_allclose(weights @ gram @ weights.T, (weights @ x) @ (weights @ x).T, rtol=1e-8)


@pytest.mark.parametrize("repeats", [1, 2])
def test_permuted_labels_stay_within_queries_and_weights_follow(repeats):
    index = pd.concat([make_index(5), *[make_index(2)] * (repeats - 1)], ignore_index=True)
    labels = permuted_labels(index, 7, np.random.default_rng(0))
    counts = index.groupby("query_id")["condition"].value_counts()
    for row in labels:
        again = index.assign(condition=row)
        assert again.groupby("query_id")["condition"].value_counts().sort_index().equals(counts.sort_index())
    np.testing.assert_allclose(
        label_weights(index, labels)[3], contrasts(index.assign(condition=labels[3]))[1], atol=1e-15
    )
    kept = permuted_labels(index, 3, np.random.default_rng(0), keep_neutral=True)
    neutral = index["condition"].to_numpy() == "neutral"
    assert (kept[:, neutral] == "neutral").all() and not (kept[:, ~neutral] == "neutral").any()


def test_unpaired_texts_are_one_pool():
    index = pd.DataFrame({"query_id": list("abcdef"), "condition": ["neutral", "joy"] * 3})
    labels = permuted_labels(index, 20, np.random.default_rng(0))
    assert len({tuple(row) for row in labels}) > 5
    np.testing.assert_allclose(
        label_weights(index, labels)[0], contrasts(index.assign(condition=labels[0]))[1], atol=1e-15
    )


def test_groups_stay_together():
    index = make_index(8)
    place = pd.Series({f"q{i}": f"place {i // 2}" for i in range(8)})
    groups = query_groups(index, place)
    first, second = disjoint_sets(groups, 20, np.random.default_rng(0))
    for a, b in zip(first, second, strict=True):
        assert not set(groups[a]) & set(groups[b]) and a.sum() == b.sum() == 24


# Maps in two dimensions


def test_silhouette_is_that_of_scikit_learn_and_p_knows_labels(made):
    from sklearn.metrics import silhouette_score

    points = projections.embed(made, methods=("pca",), layers=[0, 2])
    scores = projections.embed_scores(made, points, n_permutations=99).set_index(["layer", "method"])
    x = made.means["resid"][:, 2].astype(np.float64)
    assert scores.loc[(2, "full"), "silhouette"] == pytest.approx(
        silhouette_score(x, made.index["condition"]), abs=1e-6
    )
    xy = points.query("layer == 2")[["x", "y"]]
    assert scores.loc[(2, "pca"), "silhouette"] == pytest.approx(
        silhouette_score(xy, made.index["condition"]), abs=1e-6
    )
    assert scores.loc[(2, "full"), "p"] == 0.01 and scores.loc[(2, "full"), "trustworthiness"] == 1
    blank = make_means(np.zeros((5, 1, 24)), seed=5)
    found = projections.embed_scores(blank, projections.embed(blank, methods=("pca",)), n_permutations=99)
    assert (found["p"] > 0.05).all()


def test_pca_is_that_of_scikit_learn(made):
    from sklearn.decomposition import PCA

    points = projections.embed(made, methods=("pca",), layers=[1])
    expected = PCA(2).fit_transform(made.means["resid"][:, 1].astype(np.float64))
    np.testing.assert_allclose(np.abs(points[["x", "y"]]), np.abs(expected), atol=1e-6)
    assert list(points["condition"]) == list(made.index["condition"])


@pytest.mark.slow
def test_umap_repeats_itself_and_takes_few_responses(made):
    first, second = (projections.embed(made, methods=("umap",), layers=[0], seed=1) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert np.isfinite(projections.embed(made.select(np.arange(6)), layers=[0])[["x", "y"]]).all(axis=None)


@pytest.mark.slow
def test_umap_leaves_torch_its_threads():
    """In a process of its own, since numba sets them once."""
    code = """
import torch
from emolab.geometry.projections import embed
from tests.made_means import make_means, orthogonal
torch.set_num_threads(1)
embed(make_means(orthogonal(5, 2, 8), n_queries=4), methods=("umap",), layers=[0])
print(torch.get_num_threads())
"""
    threads = {name: "2" for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    options = {"cwd": Path(__file__).parents[2], "env": os.environ | threads}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **options)
    assert done.stdout.split()[-1] == "1"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: similarity.cka(m.select([0, 1, 2])), "four responses"),
        (lambda m: similarity.shared_energy(m, site="head"), "W_O"),
        (lambda m: similarity.denoise(vectors_from_means(m), m, variance=2), "variance is 2; expected"),
        (lambda m: similarity.denoise(vectors_from_means(m), m.select(np.arange(12))), "2 neutral responses"),
        (lambda m: query_groups(m.index, PLACES.drop("q7")), "lack 'q7'"),
        (lambda m: query_groups(m.index, PLACES.map(lambda _: "")), "empty names"),
        (
            lambda m: projections.embed_scores(
                m.select(np.arange(60)), projections.embed(m, methods=("pca",), layers=[0]).iloc[12:]
            ),
            "same means",
        ),
    ],
)
def test_bad_input_is_named(made, call, message):
    with pytest.raises(EmolabError, match=message):
        call(made)
