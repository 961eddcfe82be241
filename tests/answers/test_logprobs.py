"""Log-probabilities behind shared prompts: the same numbers, with each prompt read once."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import Gemma2Config, MistralConfig

from emolab.answers.logprobs import next_token_kl, plan_texts, token_logprobs
from emolab.models import sharing
from emolab.models.load import load_model
from emolab.models.prompts import render_prompts
from emolab.steering.steering import Steering, steered
from tests import tiny

QUERIES = ["tell me about the park and the dog and the rain .", "how did you feel when it was cold and dark today ?"]
ANSWERS = ["the park was quiet today .", "we saw a dog .", "", "it was cold and dark and then so very good .", "sun"]


@pytest.fixture(scope="module", params=["llama", "gpt2", "mistral", "gemma2"])
def model(request, tiny_llama, tiny_gpt2):
    """Full attention, absolute positions, and windows that are shorter than the prompts."""
    if request.param in ("llama", "gpt2"):
        return {"llama": tiny_llama, "gpt2": tiny_gpt2}[request.param]
    kinds = {"mistral": MistralConfig, "gemma2": Gemma2Config}
    return load_model((tiny.build(kinds[request.param](sliding_window=6, **tiny.SHAPE)), tiny.tokenizer()))


@pytest.fixture
def rows(model):
    """Every answer behind each of two prompts, of different length, as in a sweep."""
    prompts = render_prompts(model, QUERIES)
    return [p for p in prompts for _ in ANSWERS], ANSWERS * 2


def same(a, b, atol=1e-5):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def test_shared_prompts_are_read_once_and_give_the_same_numbers(model, rows, monkeypatch):
    prompts, texts = rows
    alone = [token_logprobs(model, [p], [t])[0] for p, t in zip(prompts, texts, strict=True)]
    assert [len(x) for x in alone] == [6, 5, 0, 11, 1] * 2
    read = tiny.passes(model, monkeypatch)
    shared = token_logprobs(model, prompts, texts)
    longest = max(len(ids) for ids in model.tokenizer(prompts, add_special_tokens=False).input_ids)
    assert read == [(2, longest - 1), (10, 11)], "the prompts once, and behind them only what predicts the texts"
    same(shared, alone)
    monkeypatch.setattr(sharing, "SHARE_FROM", 10**6)
    same(token_logprobs(model, prompts, texts), alone)
    assert read[2:] == [(10, longest + 11)]


def test_batches_change_nothing(model, rows):
    whole = token_logprobs(model, *rows)
    for size in (1, 3, 7):
        same(token_logprobs(model, *rows, batch_size=size), whole)


def test_steering_of_what_is_generated_is_the_same_behind_shared_prompts(model, rows, monkeypatch):
    vectors = tiny.random_vectors(model, scale=0.3)
    joy, fade = Steering(vectors, {"joy": 1.0}), Steering(vectors, {"anger": 1.0}, site="attn", fade=3.0)
    steerings = [joy, None, fade, fade, joy, joy, None, joy, None, fade]
    prompts, texts = rows
    shared = token_logprobs(model, prompts, texts, steering=steerings)
    kl = next_token_kl(model, prompts, texts, steering=steerings)
    pairs = zip(prompts, texts, steerings, strict=True)
    alone = [token_logprobs(model, [p], [t], steering=s)[0] for p, t, s in pairs]
    same(shared, alone, 1e-4)
    monkeypatch.setattr(sharing, "SHARE_FROM", 10**6)
    for one, other in zip(kl, next_token_kl(model, prompts, texts, steering=steerings), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    assert not np.allclose(shared[0], token_logprobs(model, prompts[:1], texts[:1])[0])


def test_where_sharing_might_not_be_the_same_each_row_is_read_whole(tiny_llama, monkeypatch):
    prompts, texts = [render_prompts(tiny_llama, QUERIES[:1])[0]] * 5, ANSWERS
    everywhere = Steering(tiny.random_vectors(tiny_llama, scale=0.3), {"joy": 1.0}, positions="all")
    steered_alone = [token_logprobs(tiny_llama, prompts[:1], [t], steering=everywhere)[0] for t in texts]
    plain_alone = [token_logprobs(tiny_llama, prompts[:1], [t])[0] for t in texts]
    read = tiny.passes(tiny_llama, monkeypatch)
    same(token_logprobs(tiny_llama, prompts, texts, steering=everywhere), steered_alone)
    with steered(tiny_llama, everywhere):  # hooks on the bridge
        same(token_logprobs(tiny_llama, prompts, texts), steered_alone, 1e-4)
    handle = tiny_llama.hf.model.layers[0].register_forward_hook(lambda *_: None)  # somebody else's
    try:
        same(token_logprobs(tiny_llama, prompts, texts), plain_alone)
    finally:
        handle.remove()
    assert all(len(shape) == 2 and shape[0] == 5 for shape in read) and len(set(read)) == 1


def test_in_half_precision_sharing_is_off_by_rounding_only(tiny_llama_dir):
    model = load_model(tiny_llama_dir, dtype="bfloat16")
    prompts, texts = render_prompts(model, QUERIES[:1]) * 5, ANSWERS
    whole = load_model(tiny_llama_dir, dtype="float32")
    for one, other in zip(token_logprobs(model, prompts, texts), token_logprobs(whole, prompts, texts), strict=True):
        np.testing.assert_allclose(one, other, atol=0.3)


def test_texts_behind_one_prompt_are_planned_together(tiny_llama):
    a, b, lone = render_prompts(tiny_llama, [*QUERIES, "the sea was cold and dark and the sun was warm and good"])
    prompts = [a, b, lone, a, b, a, b, "<bos>", "<bos>"]
    plan = plan_texts(tiny_llama, prompts, ["sun"] * 9, batch_size=3)
    assert sorted(i for index in plan for i in index) == list(range(9))
    assert sorted(map(sorted, plan)) == [[0, 3, 5], [1, 4, 6], [2, 7, 8]], "short prompts are not worth a cache"
    assert plan_texts(tiny_llama, prompts[:2], ["sun"] * 2, batch_size=3) == [[0, 1]]
    assert plan_texts(tiny_llama, [], []) == []
