"""Heads described: maps, cosines, embeddings, words, attention."""

import numpy as np
import pandas as pd
import pytest
import torch

from emolab.base.errors import EmolabError
from emolab.heads.attention import REGIONS, attention_pattern, attention_summary
from emolab.heads.attribution import emotion_tokens, readout, top_words, word_tokens
from emolab.heads.head_vectors import embed_heads, head_cosines, head_maps
from emolab.models.load import load_model
from emolab.models.prompts import encode
from emolab.models.sites import output_weights
from emolab.vectors.activations import response_means
from emolab.vectors.vectors import EmotionVectors, extract_vectors, vectors_from_means
from tests import tiny
from tests.planted import HEAD, JOY, LAYER, SAD, planted_model, planted_responses


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(planted_model(tmp_path_factory.mktemp("planted")), device="cpu")


@pytest.fixture(scope="module")
def responses(model):
    return planted_responses(model)


@pytest.fixture(scope="module")
def means(model, responses):
    return response_means(model, responses)


@pytest.fixture(scope="module")
def vectors(model, means):
    return vectors_from_means(means, W_O=output_weights(model))


def test_maps_name_the_planted_head(model, means, vectors):
    maps = head_maps(vectors, means, W_O=output_weights(model), n_splits=20)
    assert len(maps) == 2 * model.n_layers * model.n_heads
    for _, own in maps.groupby("emotion"):
        for value in ("norm", "direct"):
            top = own.loc[own[value].idxmax()]
            assert (top["layer"], top["head"]) == (LAYER, HEAD), value
        best = own[(own["layer"] == LAYER) & (own["head"] == HEAD)].iloc[0]
        assert best["contribution"] > 0.9 and best["split_half"] > 0.9 and best["probe"] == 1 and best["probe_p"] < 0.01
    summed = maps.groupby(["layer", "emotion"])["contribution"].sum()
    np.testing.assert_allclose(summed, 1, atol=1e-6)
    joy = vectors.get("head", emotion="joy", layer=0, head=1)
    row = maps.query("emotion == 'joy' and layer == 0 and head == 1")
    assert row["norm"].item() == pytest.approx(joy.norm().item(), rel=1e-5)


def test_maps_without_residual_vectors_or_heads(model, means, vectors):
    bare = EmotionVectors({"head": vectors.data["head"]}, vectors.emotions, vectors.resid_norm, vectors.meta)
    maps = head_maps(bare, means, W_O=output_weights(model), n_splits=4)
    assert maps["direct"].isna().all() and maps["contribution"].notna().all()
    no = EmotionVectors({"resid": vectors.data["resid"]}, vectors.emotions, vectors.resid_norm, vectors.meta)
    with pytest.raises(EmolabError, match='no site "head"'):
        head_maps(no, means, W_O=output_weights(model))
    with pytest.raises(EmolabError, match="under joy"):
        head_maps(vectors, means.select(means.index["condition"] != "joy"), W_O=output_weights(model))


def test_cosines_of_heads(vectors):
    table = head_cosines(vectors, emotion="joy")
    a, b = (vectors.get("head", emotion="joy", layer=i, head=j) for i, j in ((0, 1), (1, 3)))
    assert table.loc["0.1", "1.3"] == pytest.approx(torch.cosine_similarity(a, b, dim=0).item(), abs=1e-6)
    np.testing.assert_allclose(np.diag(table), 1)
    silent = EmotionVectors({"head": vectors.data["head"].clone()}, vectors.emotions, vectors.resid_norm, {})
    silent.data["head"][:, 0, 0] = 0
    assert head_cosines(silent, emotion="joy").loc["0.0"].isna().all()
    points = embed_heads(silent)
    assert not ((points["layer"] == 0) & (points["head"] == 0)).any()


def test_embedding_is_seeded_and_complete(vectors):
    table = embed_heads(vectors, seed=1)
    pd.testing.assert_frame_equal(table, embed_heads(vectors, seed=1))
    assert table.groupby("method").size().to_dict() == {"pca": 16, "umap": 16}
    assert table["trustworthiness"].between(0, 1).all()
    few = EmotionVectors({"head": vectors.data["head"][:1, :1, :2]}, ("joy",), vectors.resid_norm[:1], {})
    with pytest.raises(EmolabError, match="too few"):
        embed_heads(few)


# --- words ----------------------------------------------------------------------------------------------------------


def test_words_of_an_emotion_are_its_own(model, responses):
    tokens = emotion_tokens(model, responses)
    names = {e: set(model.tokenizer.convert_ids_to_tokens(ids)) for e, ids in tokens.items()}
    assert names == {"joy": {"happy", "glad", "bright"}, "sadness": {"sad", "dark", "cold"}}  # not "and", "was", "the"
    with pytest.raises(EmolabError, match="typical of joy"):
        emotion_tokens(model, responses.assign(text="the park was quiet"))


def test_word_tokens(model):
    assert word_tokens(model, {"joy": JOY, "sadness": SAD})["joy"] == sorted(model.tokenizer.convert_tokens_to_ids(JOY))
    with pytest.raises(EmolabError, match="of joy"):
        word_tokens(model, {"joy": ["zebra"]})
    with pytest.raises(EmolabError, match="list of words"):
        word_tokens(model, {"joy": "happy"})
    both = word_tokens(model, {"joy": ["happy", "sun"], "sadness": ["sun", "sad"]})
    assert model.tokenizer.convert_tokens_to_ids("sun") not in both["joy"] + both["sadness"]


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


def test_top_words_of_the_planted_head(model, vectors):
    words = top_words(model, vectors, site="head", heads=[(LAYER, HEAD)], n=4)
    raised = (
        words[(words["direction"] == "raised") & (words["part"] == "specific")].groupby("emotion")["token"].agg(set)
    )
    assert raised["joy"] == set(JOY) and raised["sadness"] == set(SAD)
    assert set(words[words["part"] == "shared"]["emotion"]) == {"shared"}
    lowered = words[(words["part"] == "specific") & (words["emotion"] == "joy") & (words["direction"] == "lowered")]
    assert set(lowered["token"]) == set(SAD) and (lowered["logit"] < 0).all()
    assert set(top_words(model, vectors)["layer"]) == {model.n_layers - 1}
    with pytest.raises(EmolabError, match="heads="):
        top_words(model, vectors, site="head")


# --- attention ------------------------------------------------------------------------------------------------------


def test_attention_shares(model, responses):
    heads = [(LAYER, HEAD), (0, 1)]
    table = attention_summary(model, responses, heads, n_queries=5)
    np.testing.assert_allclose(table.groupby(["layer", "head", "emotion"])["share"].sum(), 1, atol=1e-5)
    np.testing.assert_allclose(table.groupby(["layer", "head", "emotion"])["uniform"].sum(), 1, atol=1e-9)
    even = table[(table["layer"] == LAYER) & (table["head"] == HEAD)]  # its queries are zero: it attends evenly
    np.testing.assert_allclose(even["share"], even["uniform"], atol=1e-5)
    assert set(table["region"]) == set(REGIONS)
    share = table.set_index(["head", "emotion", "region"])["share"]
    assert share[1, "joy", "emotion word"] > 0 and share[1, "joy", "bos"] > 0
    other = attention_summary(model, responses, heads[::-1], n_queries=5)
    pd.testing.assert_frame_equal(
        table.sort_values(["layer", "head", "emotion", "region"]).reset_index(drop=True),
        other.sort_values(["layer", "head", "emotion", "region"]).reset_index(drop=True),
    )


def test_regions_are_where_the_words_stand(model):
    from emolab.heads.attention import _regions

    prompt = "<bos><system>Answer with joy.<user>how did joy feel ?<assistant>"
    batch = encode(model, [prompt], ["i was happy today ."])
    ids = batch.input_ids[0].tolist()
    row = pd.Series({"prompt": prompt, "query": "how did joy feel ?", "condition": "joy"})
    happy = model.tokenizer.convert_tokens_to_ids("happy")
    names = [REGIONS[i] for i in _regions(model, row, ids, len(ids) - 5, {happy})]
    words = model.tokenizer.convert_ids_to_tokens(ids)
    found = dict(zip([f"{w}{i}" for i, w in enumerate(words)], names, strict=True))
    assert list(found.values()) == (
        ["bos", "template", "instruction", "instruction", "emotion word", "instruction", "template"]
        + ["query"] * 5  # a query that names the emotion is no instruction
        + ["template", "answer: rest", "answer: rest", "answer: emotion words", "answer: rest", "answer: rest"]
    )


def test_patterns_and_errors(model, responses):
    row = responses.iloc[1]
    pattern = attention_pattern(model, row["prompt"], row["text"], layer=0, head=1)
    np.testing.assert_allclose(pattern.groupby("from_position")["weight"].sum(), 1, atol=1e-5)
    assert list(pattern.drop_duplicates("from_position")["next_token"])[:2] == row["text"].split()[:2]
    with pytest.raises(EmolabError, match="no head"):
        attention_summary(model, responses, [(9, 0)])
    with pytest.raises(EmolabError, match="instruction"):
        attention_summary(model, responses[responses["condition"] == "neutral"], [(0, 0)])
    with pytest.raises(EmolabError, match="no token"):
        attention_pattern(model, row["prompt"], "", layer=0, head=0)


def test_vectors_of_another_shape_of_model(tiny_gpt2):
    """No chat template, no BOS, absolute positions: all of it works there too."""
    responses = planted_responses(tiny_gpt2)
    vectors = extract_vectors(tiny_gpt2, responses)
    assert len(attention_summary(tiny_gpt2, responses, [(0, 0)], n_queries=3)) == 2 * len(REGIONS)
    assert len(top_words(tiny_gpt2, vectors, layer=0, n=2)) == (2 + 1 + 2) * 2 * 2
    assert tiny.WORDS  # the same vocabulary
