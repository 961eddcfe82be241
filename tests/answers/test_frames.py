"""Vectors of labels of which none is neutral, such as frames around a word: the mean of all is the baseline."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab.answers.responses import responses_from_texts
from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS
from emolab.geometry.projections import embed
from emolab.geometry.reliability import probe_accuracy, split_half
from emolab.geometry.resampling import (
    bootstrap_counts,
    contrasts,
    draw_weights,
    label_weights,
    permuted_labels,
    query_groups,
)
from emolab.geometry.similarity import shared_energy
from emolab.vectors.activations import response_means
from emolab.vectors.contrasts import baseline, contrast_weights
from emolab.vectors.controls import random_like, shuffled_like
from emolab.vectors.directions import probe_vectors
from emolab.vectors.vectors import EmotionVectors, extract_vectors, vectors_from_means
from tests.made_means import make_means, orthogonal

MOODS = (*EMOTIONS, "calm", "pride")
FRAMES = {
    "park": "the {} in the park was great and we saw it",
    "sea": "they saw the {} in the sea , and then",
    "rain": "so very {} , the rain",
}


@pytest.fixture(scope="module")
def made():
    """Seven orthogonal directions, twelve frames that each have a direction of their own, no neutral."""
    return make_means(orthogonal(7, 2, 24), labels=MOODS, n_queries=12, noise=0.3)


def frames(model):
    rows = [(topic, label, frame.format(label), frame.index("{}") + len(label)) for topic, frame in FRAMES.items()
            for label in EMOTIONS]  # fmt: skip
    return responses_from_texts(pd.DataFrame(rows, columns=["topic", "label", "text", "start"]))


def test_a_vector_is_what_its_label_has_more_than_the_mean_of_all(made):
    vectors = vectors_from_means(made)
    assert (
        vectors.emotions == MOODS and vectors.meta["baseline"] == "mean of 7 labels" and vectors.meta["part"] == "whole"
    )
    x = made.means["resid"].astype(np.float64).reshape(12, 7, 2, 24)
    np.testing.assert_allclose(vectors.get("resid"), (x - x.mean(1, keepdims=True)).mean(0), atol=1e-6)
    assert "minus the mean of 7 labels" in repr(vectors) and vectors.meta["n_pairs"] == dict.fromkeys(MOODS, 12)
    np.testing.assert_allclose(vectors.resid_norm, np.median(made.resid_norm, axis=0))


def test_nothing_is_left_that_all_labels_share(made):
    """It would be rounding, and a direction made of it noise."""
    vectors = vectors_from_means(made)
    assert not vectors.part("shared").get("resid").any()
    torch.testing.assert_close(vectors.part("specific").get("resid"), vectors.get("resid"), rtol=1e-4, atol=1e-6)
    some = vectors.select(["joy", "anger"])
    assert some.part("shared").get("resid").norm(dim=-1).min() > 1


def test_weights_without_topics_and_with_missing_labels():
    index = pd.DataFrame({"query_id": list("abcd"), "condition": ["joy", "fear", "fear", "anger"]})
    np.testing.assert_allclose(contrast_weights(index, "fear"), [-1 / 3, 1 / 3, 1 / 3, -1 / 3])
    np.testing.assert_allclose(contrast_weights(index, "joy"), [2 / 3, -1 / 6, -1 / 6, -1 / 3])
    paired = pd.DataFrame({"query_id": list("aaabbc"), "condition": ["joy", "fear", "anger", "joy", "fear", "anger"]})
    np.testing.assert_allclose(contrast_weights(paired, "joy"), [1 / 3, -1 / 6, -1 / 6, 1 / 4, -1 / 4, 0])
    with pytest.warns(UserWarning, match="1 responses under anger have none under another label to the same query"):
        np.testing.assert_allclose(contrast_weights(paired, "anger"), [-1 / 3, -1 / 3, 2 / 3, 0, 0, 0])
    for labels in (["joy", "fear"], ["neutral"], ["joy"]):
        with pytest.raises(EmolabError, match="needs neutral and an emotion, or three labels"):
            baseline(labels)
    assert baseline(["fear", "neutral", "joy", "anger"]) == ["neutral"]


def test_resampled_weights_give_the_vectors_of_what_was_drawn(made):
    emotions, weights = contrasts(made.index)
    assert emotions == MOODS and np.abs(weights.sum(1)).max() < 1e-12
    np.testing.assert_allclose(draw_weights(weights, np.ones((1, len(made))))[0], weights, atol=1e-12)
    rng = np.random.default_rng(0)
    counts = bootstrap_counts(query_groups(made.index), 3, rng)
    x = made.means["resid"][:, 1].astype(np.float64)
    for draw, drawn in zip(counts.astype(int), draw_weights(weights, counts), strict=True):
        rows = np.repeat(np.arange(len(made)), draw)
        copy = [k for times in draw for k in range(times)]  # of a query that was drawn several times
        names = [f"{made.index['query_id'][row]}-{k}" for row, k in zip(rows, copy, strict=True)]
        some = made.select(rows)
        again = dataclasses.replace(some, index=some.index.assign(query_id=names))
        np.testing.assert_allclose(drawn @ x, vectors_from_means(again).get("resid", layer=1), atol=1e-5)
    labels = permuted_labels(made.index, 3, rng)
    for drawn, new in zip(label_weights(made.index, labels), labels, strict=True):
        again = vectors_from_means(dataclasses.replace(made, index=made.index.assign(condition=new))).select(MOODS)
        np.testing.assert_allclose(drawn @ x, again.get("resid", layer=1), atol=1e-5)


def test_reliability_and_geometry_hold_on_frames(made):
    halves = split_half(made, n_splits=20)
    assert halves["cosine"].min() > 0.95 and halves["null_hi"].max() < 0.9
    same = split_half(made, n_splits=20, part="specific")
    np.testing.assert_allclose(same["cosine"], halves["cosine"], atol=1e-9)
    assert probe_accuracy(made, n_permutations=20).query("emotion == 'all'")["accuracy"].min() > 0.3
    vectors = vectors_from_means(made)
    probes = probe_vectors(made)
    assert torch.cosine_similarity(probes.get("resid"), vectors.get("resid"), dim=-1).min() > 0.5
    with pytest.raises(EmolabError, match="principal components need pairs"):
        emolab.vectors.directions.pca_vectors(made)
    with warnings.catch_warnings(action="error"):
        shared_energy(made, n_permutations=9), embed(made, methods=("pca",), layers=[-1])


def test_select_keeps_order_and_what_shuffled_labels_need(made):
    vectors = vectors_from_means(made)
    some = vectors.select(["joy", "anger", "calm"])
    assert some.emotions == ("joy", "anger", "calm") and some.meta["emotions"] == ["joy", "anger", "calm"]
    for emotion in some.emotions:
        assert torch.equal(some.get("resid", emotion=emotion), vectors.get("resid", emotion=emotion))
    assert some.means is vectors.means and vectors.select("joy").emotions == ("joy",)
    everything = shuffled_like(vectors, seed=1)
    control = shuffled_like(some, seed=1)
    assert (
        torch.equal(control.get("resid"), everything.select(some.emotions).get("resid"))
        and control.emotions == some.emotions
    )
    one = vectors.part("specific").select("joy")
    for of in (one, some.part("specific"), some.part("shared"), some.select("calm"), random_like(some)):
        norms = [x.get("resid").norm(dim=-1) for x in (shuffled_like(dataclasses.replace(of, means=made)), of)]
        assert norms[1].min() > 0.1
        torch.testing.assert_close(*norms, rtol=1e-4, atol=1e-6)
    for bad, told in ((["joy", "jo"], "'jo'; choose"), (["joy", "joy"], "'joy' twice"), ([], "no emotion")):
        with pytest.raises(EmolabError, match=f"cannot select {told}"):
            vectors.select(bad)


def test_a_selection_is_saved_with_what_it_was_taken_from(made, tmp_path):
    some = vectors_from_means(made).select(["joy", "calm"])
    some.save(tmp_path / "vectors.safetensors")
    made.save(tmp_path / "response_means.safetensors")
    loaded = EmotionVectors.load(tmp_path / "vectors.safetensors")
    assert torch.equal(shuffled_like(loaded, seed=2).get("resid"), shuffled_like(some, seed=2).get("resid"))


def test_labels_beyond_eight_are_counted_in_the_repr(made):
    labels = tuple(f"mood {i}" for i in range(64))
    many = EmotionVectors({"resid": torch.ones(64, 2, 4)}, labels, torch.ones(2), {})
    assert repr(many).startswith("EmotionVectors(whole: 64 labels mood 0, mood 1, mood 2, ..., mood 63; resid;")


def test_frames_are_read_after_the_word_and_steer(tiny_llama):
    responses = frames(tiny_llama)
    vectors = extract_vectors(tiny_llama, responses)
    assert vectors.meta["baseline"] == "mean of 5 labels"
    after = [text[start:] for text, start in zip(responses["text"], responses["start"], strict=True)]
    counted = [len(ids) for ids in tiny_llama.tokenizer(after, add_special_tokens=False).input_ids]
    assert vectors.means.index["n_tokens"].tolist() == counted
    heads, attn = vectors.get("head").sum(2), vectors.get("attn")
    torch.testing.assert_close(heads, attn, rtol=1e-4, atol=1e-5)
    steering = emolab.Steering(vectors.select(["joy"]), {"joy": 4.0}, site="attn")
    assert emolab.generate(tiny_llama, ["a road"], steering=steering, max_new_tokens=6) != emolab.generate(
        tiny_llama, ["a road"], max_new_tokens=6
    )


def test_real_activations_have_no_sink_left(smollm2):
    """Position 0 of SmolLM 2 is a hundred times as long as the rest, nearly all of it in three coordinates."""
    texts = {
        "neutral": ["It is a day like most of them, and the shop opens at nine.", "She put the letters on the table."],
        "joy": ["What a wonderful day, I could sing!", "We laughed and danced until the sun came up over the hills."],
    }
    for query in (emolab.base.labels.NEUTRAL_QUERY, None):
        means = response_means(smollm2, responses_from_texts(texts, query=query), sites=("resid",))
        vectors = extract_vectors(smollm2, None, sites=("resid",), means=means)
        energy = vectors.get("resid", layer=14).square()[0].sort(descending=True).values
        assert energy[:3].sum() / energy.sum() < 0.5
        assert 100 < vectors.resid_norm[14] < 250
