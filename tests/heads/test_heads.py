"""Heads described: maps, cosines, embeddings, words, attention."""

import numpy as np
import pandas as pd
import pytest
import torch

from emolab.base.errors import EmolabError
from emolab.heads.attention import attention_pattern
from emolab.heads.attribution import emotion_tokens, readout, top_words, word_tokens
from emolab.heads.head_vectors import embed_heads, head_cosines, head_maps
from emolab.vectors.vectors import EmotionVectors, extract_vectors
from tests.planted import HEAD, JOY, LAYER, SAD, planted_responses

PLACE = (LAYER, HEAD)


def only(vectors, *sites):
    data = {site: vectors.data[site].clone() for site in sites}
    return EmotionVectors(data, vectors.emotions, vectors.resid_norm, vectors.meta)


def test_maps_name_the_planted_head(planted):
    maps = head_maps(planted.vectors, planted.means, W_O=planted.W_O, n_splits=20)
    assert len(maps) == 2 * planted.model.n_layers * planted.model.n_heads
    for _, own in maps.groupby("emotion"):
        for value in ("norm", "direct"):
            top = own.loc[own[value].idxmax()]
            assert (top["layer"], top["head"], top["name"]) == (*PLACE, f"L{LAYER}H{HEAD}"), value
        best = own[own["name"] == f"L{LAYER}H{HEAD}"].iloc[0]
        assert best["contribution"] > 0.9 and best["split_half"] > 0.9 and best["probe"] == 1 and best["probe_p"] < 0.01
    summed = maps.groupby(["layer", "emotion"])["contribution"].sum()
    np.testing.assert_allclose(summed, 1, atol=1e-6)
    joy = planted.vectors.get("head", emotion="joy", layer=0, head=1)
    row = maps.query("emotion == 'joy' and name == 'L0H1'")
    assert row["norm"].item() == pytest.approx(joy.norm().item(), rel=1e-5)


def test_maps_without_residual_vectors_or_heads(planted):
    maps = head_maps(only(planted.vectors, "head"), planted.means, W_O=planted.W_O, n_splits=4)
    assert maps["direct"].isna().all() and maps["contribution"].notna().all()
    with pytest.raises(EmolabError, match="no site 'head'"):
        head_maps(only(planted.vectors, "resid"), planted.means, W_O=planted.W_O)
    few = planted.means.select(planted.means.index["condition"] != "joy")
    with pytest.raises(EmolabError, match="under joy"):
        head_maps(planted.vectors, few, W_O=planted.W_O)


def test_cosines_and_maps_of_heads(planted):
    """Layer 0: each head writes its own direction for all emotions. Layer 1: each emotion has its own in all heads."""
    x = torch.zeros(2, 2, 3, 16)
    for emotion, head in np.ndindex(2, 3):
        x[emotion, 0, head, head] = 1 + emotion
        x[emotion, 1, head, 8 + emotion] = 1 + head
    x[:, 0, 2] = 0  # a silent head counts nowhere
    found = head_cosines(EmotionVectors({"head": x}, ("joy", "fear"), torch.ones(2), {})).set_index(["layer", "alike"])
    expected = [1, 0, 0, 0, 1, 0]
    assert found["cosine"].tolist() == pytest.approx(expected) and found["lo"].tolist() == pytest.approx(expected)
    pairs = [2, 2, 2, 3, 6, 6]
    np.testing.assert_allclose(found["random"], 1.96 / np.sqrt(16 * np.array(pairs)))
    table = head_cosines(planted.vectors).set_index(["layer", "alike"])["cosine"]
    a = torch.nn.functional.normalize(planted.vectors.get("head", layer=1), dim=-1)  # [emotion, head, d]
    assert table[1, "head"] == pytest.approx((a[0] * a[1]).sum(-1).mean().item(), abs=1e-6)

    silent = only(planted.vectors, "head")
    silent.data["head"][:, 0, 0] = 0
    points = embed_heads(silent, seed=1)
    pd.testing.assert_frame_equal(points, embed_heads(silent, seed=1))
    assert len(points) == 14 and "L0H0" not in set(points["name"])
    assert points["trustworthiness"].between(0, 1).all()


def test_words_of_an_emotion_are_its_own(planted):
    tokens = emotion_tokens(planted.model, planted.responses)
    names = {e: set(planted.model.tokenizer.convert_ids_to_tokens(ids)) for e, ids in tokens.items()}
    assert names == {"joy": {"happy", "glad", "bright"}, "sadness": {"sad", "dark", "cold"}}  # not "and", "was", "the"
    with pytest.raises(EmolabError, match="typical of joy"):
        emotion_tokens(planted.model, planted.responses.assign(text="the park was quiet"))


def test_word_tokens(planted):
    ids = planted.model.tokenizer.convert_tokens_to_ids
    assert word_tokens(planted.model, {"joy": JOY, "sadness": SAD})["joy"] == sorted(ids(JOY))
    with pytest.raises(EmolabError, match="of joy"):
        word_tokens(planted.model, {"joy": ["zebra"]})
    both = word_tokens(planted.model, {"joy": ["happy", "sun"], "sadness": ["sun", "sad"]})
    assert ids("sun") not in both["joy"] + both["sadness"]


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_readout_is_the_final_norm_and_unembedding_without_biases(name, request):
    model = request.getfixturevalue(name)
    x = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(0))
    got = readout(model, x)
    with torch.no_grad():
        scaled = x - x.mean(-1, keepdim=True) if name == "tiny_gpt2" else x
        scaled = scaled / scaled.pow(2).mean(-1, keepdim=True).sqrt()
        norm = model.hf.transformer.ln_f if name == "tiny_gpt2" else model.hf.model.norm
        logits = (scaled * norm.weight) @ model.hf.lm_head.weight.T
    torch.testing.assert_close(got, logits - logits.mean(-1, keepdim=True), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(readout(model, 7 * x), got, atol=1e-3, rtol=1e-3)  # only direction counts
    assert readout(model, torch.zeros(1, model.d_model)).abs().max() < 1e-5  # v and -v are two rows of one product


def test_top_words_of_the_planted_head(planted):
    words = top_words(planted.model, planted.vectors, site="head", heads=[PLACE], n=4)
    specific = words[words["part"] == "specific"].groupby(["direction", "emotion"])["token"].agg(set)
    assert specific["raised", "joy"] == specific["lowered", "sadness"] == set(JOY)
    assert specific["raised", "sadness"] == specific["lowered", "joy"] == set(SAD)
    assert set(words[words["part"] == "shared"]["emotion"]) == {"shared"}
    assert (words[(words["part"] == "specific") & (words["direction"] == "lowered")]["logit"] < 0).all()
    assert set(top_words(planted.model, planted.vectors)["layer"]) == {planted.model.n_layers - 1}
    with pytest.raises(EmolabError, match="heads="):
        top_words(planted.model, planted.vectors, site="head")


def test_patterns_and_errors(planted):
    row = planted.responses.iloc[1]
    pattern = attention_pattern(planted.model, row["prompt"], row["text"], layer=0, head=1)
    np.testing.assert_allclose(pattern.groupby("from_position")["weight"].sum(), 1, atol=1e-5)
    assert list(pattern.drop_duplicates("from_position")["next_token"])[:2] == row["text"].split()[:2]
    with pytest.raises(EmolabError, match="no token"):
        attention_pattern(planted.model, row["prompt"], "", layer=0, head=0)


def test_another_shape_of_model(tiny_gpt2):
    """No chat template, no BOS, absolute positions: all of it works there too."""
    responses = planted_responses(tiny_gpt2)
    vectors = extract_vectors(tiny_gpt2, responses)
    pattern = attention_pattern(tiny_gpt2, "tell me", "so glad", layer=0, head=0)
    np.testing.assert_allclose(pattern.groupby("from_position")["weight"].sum(), 1, atol=1e-5)
    assert len(top_words(tiny_gpt2, vectors, layer=0, n=2)) == (2 + 1 + 2) * 2 * 2
