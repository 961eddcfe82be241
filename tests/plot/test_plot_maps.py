"""Figures of geometry and reliability: the numbers they carry, and that nothing lies over anything else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS
from emolab.experiments.parts import confusion
from emolab.experiments.parts import purity as purity_of
from emolab.geometry import projections, reliability, similarity
from emolab.plot import curves, maps, points, purity
from emolab.plot.style import theme
from emolab.vectors.vectors import vectors_from_means
from tests.experiments.test_purity import scored
from tests.made_means import make_means, orthogonal


@pytest.fixture(scope="module")
def means():
    return make_means(orthogonal(5, 3, 24) + 1.0, n_queries=10, topic=1.0)


@pytest.fixture(scope="module")
def vectors(means):
    return vectors_from_means(means)


@pytest.fixture(scope="module")
def figures(means, vectors):
    """Every figure once."""
    found = projections.embed(means, methods=("pca",), layers=[0, 2])
    umap = found.assign(method="umap")  # a stand-in: fitting one takes seconds
    both = pd.concat([found, umap], ignore_index=True)
    scores = projections.embed_scores(means, both, n_permutations=19)
    path = projections.trajectory(means, methods=("pca",))
    probes = reliability.probe_accuracy(means, n_permutations=19)
    texts = means.index.assign(text=[f"{c} {q}" for q, c in means.index[["query_id", "condition"]].to_numpy()])
    shared = similarity.shared_energy(means, n_permutations=19)
    return {
        "cosine_grid": maps.cosine_grid(vectors, part="specific"),
        "layer_map": maps.layer_map(vectors),
        "cka_map": maps.cka_map(similarity.cka(means)),
        "response_map": points.response_map(both, scores),
        "trajectory_map": points.trajectory_map(path),
        "affect_plane": points.affect_plane(projections.affect_plane(vectors, layer=1)),
        "shared_energy_curve": curves.shared_energy_curve({"resid": shared, "again": shared}),
        "reliability_curve": curves.reliability_curve(reliability.split_half(means, n_splits=9)),
        "convergence_curve": curves.convergence_curve(reliability.convergence(means, n_draws=9)),
        "probe_curve": curves.probe_curve(probes, words=reliability.word_accuracy(texts, n_permutations=19)),
        "denoise_curve": curves.denoise_curve(similarity.denoise_effect(vectors, similarity.denoise(vectors, means))),
        "confusion_map": purity.confusion_map(confusion(scored())),
        "purity_dots": purity.purity_dots(purity_of(scored())),
    }


NAMES = (
    "cosine_grid layer_map cka_map response_map trajectory_map affect_plane shared_energy_curve "
    "reliability_curve convergence_curve probe_curve denoise_curve confusion_map purity_dots"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_where_it_comes_from(figures, name):
    fig = figures[name]
    assert fig.emolab_info["function"] == name and fig.emolab_info["model"]["name"] == "made"
    assert "model made" in fig.get_supxlabel() and len(fig.emolab_data)


@pytest.mark.parametrize("name", NAMES)
def test_legends_lie_inside_the_figure_and_beside_the_axes(figures, name):
    fig = figures[name]
    fig.canvas.draw()
    renderer = fig.canvas.get_renderer()
    for legend in fig.legends:
        box = legend.get_window_extent(renderer)
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= fig.bbox.x1 + 1 and box.y1 <= fig.bbox.y1 + 1
        assert not any(box.overlaps(ax.get_window_extent(renderer)) for ax in fig.axes if ax.get_visible())


def test_cosine_grid_and_layer_map_numbers(figures, vectors):
    data = figures["cosine_grid"].emolab_data.set_index(["layer", "emotion", "other"])["cosine"]
    expected = similarity.cosine_matrix(vectors, layer=2, part="specific")
    assert data[2, "joy", "fear"] == pytest.approx(expected.loc["joy", "fear"]) and len(data) == 3 * 25
    data = figures["layer_map"].emolab_data.set_index(["emotion", "layer", "other"])["cosine"]
    assert data["fear", 0, 2] == pytest.approx(similarity.layer_cosines(vectors)[2, 0, 2])
    for name in ("cosine_grid", "layer_map"):
        images = [image for ax in figures[name].axes for image in ax.images]
        assert images and all(i.get_clim() == (-1, 1) and i.get_cmap().name == "RdBu_r" for i in images)
    assert figures["cka_map"].axes[0].images[0].get_cmap().name == "cividis"


def test_response_map_prints_what_it_is_worth(figures, means):
    fig = figures["response_map"]
    said = fig.axes[0].get_xlabel()
    row = fig.emolab_data.query("layer == 0 and method == 'pca'").iloc[0]
    assert f"{row.trustworthiness:.2f}" in said and f"{row.silhouette:.2f}" in said and f"p = {row.p:.3f}" in said
    found = projections.embed(means, methods=("pca",), layers=[1])
    with pytest.raises(EmolabError, match="scores lack layer 1"):
        points.response_map(found, projections.embed_scores(means, found, n_permutations=9).query("method == 'full'"))


def test_trajectory_and_affect_say_what_they_are_not(figures, means):
    umap = projections.trajectory(means, methods=("pca",)).assign(method="umap")
    assert "no evidence" in points.trajectory_map(umap).axes[0].get_xlabel()
    warning = figures["affect_plane"].get_suptitle()
    assert "n = 5" in warning and "0.008" in warning


def test_curves_carry_their_tables(figures):
    shared = figures["shared_energy_curve"]
    assert set(shared.emolab_data["panel"]) == {"resid", "again"} and len(shared.emolab_data) == 6
    probe = figures["probe_curve"].emolab_data
    assert set(probe["probe"]) == {"centroid", "logistic", "words"}
    notes = [text.get_text() for text in figures["probe_curve"].axes[0].texts]
    assert any("p ≤ 0.05" in note for note in notes)
    chance = next(line for line in figures["probe_curve"].axes[0].get_lines() if "chance" in line.get_label())
    np.testing.assert_allclose(chance.get_ydata(), 1 / 6, atol=0.03)


def test_heads_are_refused_where_a_curve_needs_layers(means):
    table = similarity.shared_energy(means, n_permutations=9).assign(head=0)
    with pytest.raises(EmolabError, match="one row a head"):
        curves.shared_energy_curve(table)


def test_confusion_map_numbers(figures):
    data = figures["confusion_map"].emolab_data.set_index(["part", "emotion", "judged"])["share"]
    assert data["whole", "joy", "joy"] == 1 and data["shared", "joy", "joy"] == 0
    titles = [ax.get_title(loc="left") for ax in figures["confusion_map"].axes]
    assert "Whole vector: target 1.00, other 0.00" in titles
    assert "Shared: target 0.00, other 1.00" in titles


def test_one_layer_and_other_labels(means):
    one = make_means(orthogonal(2, 1, 6), n_queries=4, labels=("neutral", "calm", "envy"))
    vectors = vectors_from_means(one)
    with theme("print"):
        assert maps.cosine_grid(vectors).get_figwidth() < 7
    maps.layer_map(vectors)
    curves.reliability_curve(reliability.split_half(one, n_splits=3)).canvas.draw()
    curves.probe_curve(reliability.probe_accuracy(one, n_permutations=3)).canvas.draw()
    assert set(EMOTIONS).isdisjoint(vectors.emotions)
