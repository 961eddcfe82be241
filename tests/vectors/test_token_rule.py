"""Which tokens count: position 0 never, the rest by one rule, and from each text's own start on."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab.answers.responses import responses_from_texts
from emolab.base.errors import EmolabError, MismatchError
from emolab.base.labels import NEUTRAL_QUERY
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from emolab.vectors.activations import ResponseMeans, response_means
from emolab.vectors.controls import means_of
from emolab.vectors.token_rule import rule_name, token_pieces
from emolab.vectors.vectors import extract_vectors
from emolab.widgets import token_projections, token_view
from tests import tiny
from tests.widgets.test_token_view import parts

TEXTS = {
    "neutral": ["the cat and the dog saw a house today .", "it was a road , and then rain ."],
    "joy": ["it was a bright and warm walk in the park , so good !", "she was glad and happy , so good ."],
}
RULES = {
    "response": lambda n: range(n),
    "last": lambda n: [n - 1],
    "from:8": lambda n: range(7, n),
    "from:1": lambda n: range(n),
}


def sunk(model, size=3000.0):
    """The model with a massive activation at position 0, the same for all texts, as in GPT-2, Qwen and SmolLM 2."""
    hf = copy.deepcopy(model.hf)
    with torch.no_grad():
        hf.transformer.wpe.weight[0, 3] = size
    return load_model((hf, copy.deepcopy(model.tokenizer)))


def states(model, prompt, text):
    """Residual stream behind every block but the last at the text's own tokens, float64 [layer, token, d_model]."""
    batch = encode(model, [prompt], [text])
    with torch.inference_mode():
        hidden = model.hf(batch.input_ids, output_hidden_states=True).hidden_states
    return torch.stack(hidden[1:-1])[:, 0, batch.response_mask[0]].double()


def test_a_sink_at_position_0_changes_nothing(tiny_gpt2):
    """Words of two groups, their lengths exchanged: where the sink counts, vectors measure lengths (cosine -.99)."""
    model = sunk(tiny_gpt2)
    short = ["happy dog in the sun", "glad cat", "bright sun"]
    long = ["a house in the road and then a house in the road and then a house"] * 2
    tail = " and then the road was quiet and very cold so it was"

    def vectors(joy, neutral):
        return extract_vectors(model, responses_from_texts({"joy": joy, "neutral": neutral}))

    found = vectors(short, long), vectors([x + tail for x in short], [x[:20] for x in long])
    assert torch.cosine_similarity(*(v.get("resid", emotion="joy")[0] for v in found), dim=-1) > -0.5
    plain = vectors(short, long)
    for v in (*found, plain):
        assert v.resid_norm.max() < 100, "the sink is 3,000 long"
        energy = v.get("resid").square()[0, 0].sort(descending=True).values
        assert energy[:3].sum() / energy.sum() < 0.9
    norms = [states(model, "", x)[:, 1:].norm(dim=-1).mean(1) for x in long]
    np.testing.assert_allclose(plain.resid_norm[:-1], torch.stack(norms).median(0).values, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_tokens_that_a_rule_names_are_averaged(rule, kind, request):
    model = request.getfixturevalue(f"tiny_{kind}")
    for responses in (responses_from_texts(TEXTS), responses_from_texts(TEXTS, query=None)):
        means = response_means(model, responses, sites=("resid",), tokens=rule)
        assert means.meta["token_rule"] == rule
        for row, text in enumerate(responses["text"]):
            chat = model.tokenizer.chat_template and responses["prompt"].isna().all()
            prompt = emolab.models.prompts.render_prompts(model, [emolab.base.labels.NEUTRAL_QUERY])[0] if chat else ""
            x = states(model, prompt, text)
            own = [i for i in RULES[rule](x.shape[1]) if i or prompt or model.start_ids]
            np.testing.assert_allclose(means.means["resid"][row, :-1], x[:, own].mean(1), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(means.resid_norm[row, :-1], x[:, own].norm(dim=-1).mean(1), rtol=1e-5)
            assert means.index["n_tokens"][row] == len(own)


def content(tokens: list[str]) -> list[bool]:
    return [len(token.strip()) > 3 for token in tokens]


def test_a_function_gets_the_pieces_of_the_text(tiny_llama):
    seen = []

    def rule(tokens):
        seen.append(tokens)
        return content(tokens)

    responses = responses_from_texts(TEXTS, query=None)
    means = response_means(tiny_llama, responses, sites=("resid",), tokens=rule)
    assert ["".join(x) for x in seen] == list(responses["text"]) and seen[0][:3] == ["the", " cat", " and"]
    assert seen == token_pieces(tiny_llama, list(responses["text"]))
    for row, text in enumerate(responses["text"]):
        x = states(tiny_llama, "", text)[:, content(seen[row])]
        np.testing.assert_allclose(means.means["resid"][row, :-1], x.mean(1), rtol=1e-4, atol=1e-5)
    assert means.index["n_tokens"].tolist() == [sum(content(x)) for x in seen]


def test_start_counts_from_a_character_on(tiny_llama):
    responses = responses_from_texts(
        pd.DataFrame([(label, t, 5 + i) for label, x in TEXTS.items() for i, t in enumerate(x)],
                     columns=["label", "text", "start"])
    )  # fmt: skip
    means = response_means(tiny_llama, responses, sites=("resid",))
    assert means.index["n_tokens"].tolist() == [8, 7, 12, 7]  # "the c|at": a token that began before is left out
    prompt = emolab.models.prompts.render_prompts(tiny_llama, [emolab.base.labels.NEUTRAL_QUERY])[0]
    x = states(tiny_llama, prompt, TEXTS["neutral"][0])[:, 2:]
    np.testing.assert_allclose(means.means["resid"][0, :-1], x.mean(1), rtol=1e-4, atol=1e-5)
    both = response_means(tiny_llama, responses, sites=("resid",), tokens="from:5")
    assert both.index["n_tokens"].tolist() == [6, 5, 10, 5]
    hashes = {means.meta["corpus_hash"], response_means(
        tiny_llama, responses.drop(columns="start"), sites=("resid",)
    ).meta["corpus_hash"]}  # fmt: skip
    assert len(hashes) == 2
    for start, told in ((99, "99; expected .* from 0 to 31"), (-1, "-1"), (2.5, "2.5"), (None, "nan|None")):
        with pytest.raises(EmolabError, match=f"start of row 1 \\(neutral\\) is {told}"):
            response_means(tiny_llama, responses.assign(start=[0, start, 0, 0]))


def test_texts_that_are_too_short_are_left_out_and_counted(tiny_llama):
    more = {
        **TEXTS,
        "joy": [*TEXTS["joy"], "happy !", "glad ."],
        "fear": ["dark", "the cold dark sea , i feel it in rain"],
    }
    with pytest.warns(
        UserWarning, match=r"3 of 8 responses hold no token .*'from:8'.* left out: fear 1, joy 2$"
    ) as told:
        means = response_means(tiny_llama, responses_from_texts(more), sites=("resid",), tokens="from:8")
    assert len(told) == 1 and len(means) == 5
    with pytest.raises(EmolabError, match="no text under fear, joy holds a token that counts"):
        short = responses_from_texts({**more, "joy": ["happy !"], "fear": ["dark"]})
        response_means(tiny_llama, short, sites=("resid",), tokens="from:8")


def test_a_text_that_is_position_0_alone_is_named(tiny_gpt2, tiny_llama):
    texts = {**TEXTS, "joy": ["happy", *TEXTS["joy"]]}
    for rule in ("response", "last"):
        with pytest.raises(EmolabError, match=r"row 2 \(joy, 'happy'\) has no token that counts but its first"):
            response_means(tiny_gpt2, responses_from_texts(texts), tokens=rule)
    behind = responses_from_texts(texts).assign(prompt="tell me .")
    assert response_means(tiny_gpt2, behind, sites=("resid",)).index["n_tokens"][2] == 1
    bare = responses_from_texts(texts, query=None)
    assert response_means(tiny_llama, bare, sites=("resid",)).index["n_tokens"][2] == 1, "BOS is there"


def test_texts_beyond_the_context_are_all_named_cut_or_left_out(tiny_llama, tmp_path):
    long = {**TEXTS, "joy": [TEXTS["joy"][0], "so good ! " * 60], "fear": ["dark", "dark , cold . " * 50]}
    with pytest.raises(EmolabError, match=r"row 3 \(joy, 'so good .* does not fit .* \(128\); shorten .* or 'drop'$"):
        response_means(tiny_llama, responses_from_texts({**long, "fear": ["dark"]}))
    responses = responses_from_texts(long)
    with pytest.raises(EmolabError, match=r"row 3 \(joy.* or give too_long='cut' or 'drop'; nor do rows 5 \(fear\)$"):
        extract_vectors(tiny_llama, responses)
    dropped = response_means(tiny_llama, responses, sites=("resid",), too_long="drop", out=tmp_path)
    short = responses_from_texts({**TEXTS, "joy": TEXTS["joy"][:1], "fear": ["dark"]})
    expected = response_means(tiny_llama, short, sites=("resid",))
    np.testing.assert_allclose(dropped.means["resid"], expected.means["resid"], atol=1e-5)
    assert dropped.meta["too_long"] == f"drop: 2 of {len(responses)} texts" and "too_long" not in expected.meta
    cut = response_means(tiny_llama, responses, sites=("resid",), too_long="cut", out=tmp_path)  # not those kept there
    assert cut.meta["too_long"] == f"cut: 2 of {len(responses)} texts" and len(cut) == len(responses)
    lead = encode(tiny_llama, render_prompts(tiny_llama, [NEUTRAL_QUERY])).prompt_len
    assert cut.index["n_tokens"].tolist()[3::2] == [128 - lead] * 2
    words = ("so good ! " * 60).split()[: 128 - lead]
    by_hand = responses_from_texts({**long, "joy": [TEXTS["joy"][0], " ".join(words)], "fear": ["dark"]})
    np.testing.assert_allclose(
        cut.means["resid"][3], response_means(tiny_llama, by_hand, sites=("resid",)).means["resid"][3], atol=1e-5
    )
    vectors = extract_vectors(tiny_llama, responses, sites=("resid",), too_long="cut")
    assert vectors.meta["too_long"] == cut.meta["too_long"]
    with pytest.raises(EmolabError, match="no text under fear fits .* give shorter ones, or too_long='cut'"):
        response_means(tiny_llama, responses_from_texts({**long, "fear": long["fear"][1:]}), too_long="drop")
    with pytest.raises(EmolabError, match=r"prompt of row 0 .* leaves no room"):
        response_means(tiny_llama, responses.assign(prompt="park " * 130), too_long="cut")
    with pytest.raises(EmolabError, match="too_long is 'shorten'; expected 'refuse', 'cut'"):
        response_means(tiny_llama, responses, too_long="shorten")


def nth(n):
    return lambda tokens: [i == n for i in range(len(tokens))]


def test_rules_have_names_that_tell_them_apart():
    names = [rule_name(x) for x in ("response", "last", "from:8", "from:10", content, nth(2), nth(3))]
    assert len(set(names)) == 7 and names[:3] == ["response", "last", "from:8"]
    assert names[4].startswith("tests.vectors.test_token_rule.content (") and rule_name(nth(2)) == names[5]
    assert "source unknown" in rule_name(functools.partial(content))
    for bad in ("first", "from:0", "from:", "from:2.5", 8, None, ["response"]):
        with pytest.raises(EmolabError, match="expected 'response', 'last', 'from:8'"):
            rule_name(bad)


def test_a_function_must_answer_for_each_token(tiny_llama):
    for rule in (lambda t: [True], lambda t: True, lambda t: [1] * len(t), lambda t: ["yes"] * len(t)):
        with pytest.raises(EmolabError, match="the token rule returned"):
            response_means(tiny_llama, responses_from_texts(TEXTS), tokens=rule)


def test_kept_means_of_another_rule_are_refused(tiny_llama, tmp_path):
    responses = responses_from_texts(TEXTS)
    vectors = extract_vectors(tiny_llama, responses, sites=("resid",), tokens="last", out=tmp_path)
    assert vectors.meta["token_rule"] == "last" and "tokens: last" in repr(vectors)
    means = ResponseMeans.load(tmp_path / "response_means.safetensors")
    assert torch.equal(extract_vectors(tiny_llama, responses, sites=("resid",), tokens="last", means=means).get(),
                       vectors.get())  # fmt: skip
    for rule in ("response", "from:2", content):
        with pytest.raises(MismatchError, match="the means are of other tokens .token_rule 'last', not"):
            extract_vectors(tiny_llama, None, sites=("resid",), tokens=rule, means=means)
    loaded = emolab.EmotionVectors.load(tmp_path / "vectors.safetensors")
    assert len(means_of(loaded)) == 4
    extract_vectors(tiny_llama, responses, sites=("resid",), tokens="from:3").means.save(
        tmp_path / "response_means.safetensors"
    )
    with pytest.raises(EmolabError, match="need the response means of these vectors"):
        means_of(loaded)


def test_the_token_view_shows_no_number_at_position_0(tiny_gpt2):
    model, text = sunk(tiny_gpt2), "the park was quiet"
    vectors = tiny.random_vectors(model)
    table = token_projections(model, text, vectors)
    assert table.groupby("position")["cosine"].apply(lambda x: x.isna().all()).tolist() == [True, False, False, False]
    assert table["projection"].abs().max() < 300
    behind = token_projections(model, text, vectors, prompt="tell me")
    assert behind.notna().all(axis=None)
    for measure in ("cosine", "projection"):
        data, numbers, spans = parts(token_view(model, text, vectors, measure=measure))
        assert (numbers[..., 0] == -128 * data["step"]).all() and data["limit"] < 300
        assert spans[0] == ("position 0", "", "the") and all("rgba" in style for _, style, _ in spans[1:])
    with pytest.raises(EmolabError, match="no token but its first, at position 0"):
        token_projections(model, "park", vectors)
