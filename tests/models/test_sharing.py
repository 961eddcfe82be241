"""What rows begin with in common is read once: never too much, never where it would not be the same."""

import functools
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import MistralConfig, MptConfig

from emolab.answers.generation import generate
from emolab.answers.logprobs import token_logprobs
from emolab.answers.writing import Writing
from emolab.models import sharing
from emolab.models.hooks import forward
from emolab.models.load import load_model
from emolab.models.prompts import encode, prompt_ids, render_prompts
from emolab.models.sharing import begin, read_on
from emolab.steering.along import read_along
from emolab.steering.steering import Steering
from emolab.vectors.activations import response_means
from tests import tiny

LEAD = "the old man and his dog sat by the cold sea and the rain was dark and "
PROMPTS = [LEAD + end for end in ("tell me about the park and the rain", "the sun", "how was the cold sea")]
TEXTS = ["it was warm", "good", "the dog and the cat went home in the dark"]


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tiny_llama, tiny_gpt2):
    """Rotary positions, and learned ones."""
    return {"llama": tiny_llama, "gpt2": tiny_gpt2}[request.param]


@pytest.fixture
def read(model, monkeypatch):
    """The shapes of what the plain model, or its body, reads from here on."""
    sharing._may_pad_inside(model, sharing.new_cache(model))  # tried once
    shapes, body = [], model.hf.base_model

    def watching(whole):
        @functools.wraps(whole)
        def counting(input_ids, **rest):
            shapes.append(tuple(input_ids.shape))
            return whole(input_ids, **rest)

        return counting

    monkeypatch.setattr(body, "forward", watching(body.forward))
    return shapes


def alone():
    """Inside, every row is read by itself."""
    return mock.patch.object(sharing, "SHARE_FROM", 10**6)


def test_the_rest_of_each_row_gives_what_the_whole_row_gives(model, read):
    batch = encode(model, PROMPTS, TEXTS)
    with torch.inference_mode():
        whole = forward(model, model.hf, batch, keep=3)
        read.clear()
        moved, past = begin(model, batch)
        n = past.get_seq_length()
        logits = read_on(model.hf, moved, past, keep=3).logits[:, -3:]
    ids = prompt_ids(model, PROMPTS)
    assert n == next(i for i in range(99) if len({row[i] for row in ids}) > 1) > 8
    assert read == [(1, n), (3, batch.input_ids.shape[1] - n)]
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)
    assert moved.attention_mask[:, :n].all() and not batch.attention_mask[:, :n].all(), "padding stands inside"
    for row, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True)):
        own = moved.input_ids[row][moved.attention_mask[row] == 1]
        assert torch.equal(own, encode(model, [prompt], [text]).input_ids[0])


@pytest.mark.parametrize(
    "n_rows, keep, left", [(1, 1, None), (3, 1, 1), (3, 2, 2), (3, 4, 4), (3, 10, 10), (3, 99, None)]
)
def test_neither_the_end_of_a_prompt_nor_what_is_asked_for_is_shared(tiny_llama, n_rows, keep, left):
    begun = begin(tiny_llama, encode(tiny_llama, PROMPTS[:1] * n_rows), keep=keep)
    assert (begun is None) == (left is None)
    if begun:
        assert begun[0].input_ids.shape[1] - begun[1].get_seq_length() == left


def test_what_texts_have_in_common_is_none_of_it(tiny_llama):
    batch = encode(tiny_llama, [PROMPTS[1]] * 3, TEXTS[2:] * 3)
    _, past = begin(tiny_llama, batch)
    assert past.get_seq_length() == len(prompt_ids(tiny_llama, PROMPTS[1:2])[0]) - 1


def test_means_are_the_same_and_cost_less(model, read):
    responses = pd.DataFrame({"condition": ["joy", "fear", "neutral"], "prompt": PROMPTS, "text": TEXTS})
    found = response_means(model, responses, sites=("resid", "attn", "mlp", "head", "neuron"))
    few = sum(rows * tokens for rows, tokens in read)
    read.clear()
    with alone():
        expected = response_means(model, responses, sites=("resid", "attn", "mlp", "head", "neuron"))
    assert few < 0.8 * sum(rows * tokens for rows, tokens in read)
    for site, values in expected.means.items():
        np.testing.assert_allclose(found.means[site], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.resid_norm, expected.resid_norm, rtol=1e-5)


def test_steered_texts_and_their_probabilities_are_the_same(model):
    vectors = tiny.random_vectors(model, scale=0.5)
    steerings = [Steering(vectors, {"joy": 1.0}, fade=3.0), None, Steering(vectors, {"anger": -2.0}, site="attn")]
    options = {"steering": steerings, "raw": True, "max_new_tokens": 12}
    for writing in (Writing(), Writing(repetition_penalty=1.5)):
        together = generate(model, PROMPTS, writing=writing, **options)
        with alone():
            assert together == generate(model, PROMPTS, writing=writing, **options)
        pairs = zip(PROMPTS, steerings, strict=True)
        one = {"raw": True, "max_new_tokens": 12, "writing": writing}
        assert together == [generate(model, [p], steering=s, **one)[0] for p, s in pairs]
    found = token_logprobs(model, PROMPTS, TEXTS, steering=steerings)
    with alone():
        for a, b in zip(found, token_logprobs(model, PROMPTS, TEXTS, steering=steerings), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_tokens_are_read_along_vectors_as_before(model):
    vectors, batch = tiny.random_vectors(model), encode(model, PROMPTS, TEXTS)
    options = {"site": "resid", "layers": [0, 1], "n": 4}
    found = read_along(model, vectors, batch, **options)
    with alone():
        for a, b in zip(found, read_along(model, vectors, batch, **options), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_where_somebody_has_hooked_the_model_each_row_is_read_by_itself(model):
    handle = model.hf.get_input_embeddings().register_forward_hook(lambda *_: None)
    try:
        assert begin(model, encode(model, PROMPTS)) is None, "a hook may change rows one by one"
    finally:
        handle.remove()
    assert begin(model, encode(model, PROMPTS)) is not None


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(MistralConfig(sliding_window=6, **tiny.SHAPE), id="a window slides, and counts padding"),
        pytest.param(
            MptConfig(vocab_size=tiny.SHAPE["vocab_size"], d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
            id="distances are counted, not given",
        ),
    ],
)
def test_padding_stands_inside_only_where_that_changes_nothing(config):
    model = load_model((tiny.build(config), tiny.tokenizer()))
    assert begin(model, encode(model, PROMPTS)) is None
    assert begin(model, encode(model, PROMPTS[:1] * 2)) is not None, "rows of one length have no padding"


def test_what_padding_does_is_tried_and_not_believed(tiny_llama_dir):
    model = load_model(tiny_llama_dir)
    plain, counted = model.hf.forward, []

    @functools.wraps(plain)
    def counting_positions(input_ids, position_ids=None, **rest):
        counted.append(position_ids)
        return plain(input_ids, **rest)  # counts padding as tokens, and takes positions without using them

    with mock.patch.object(model.hf, "forward", counting_positions):
        assert begin(model, encode(model, PROMPTS)) is None and counted
    assert model._pads_inside is False
    assert begin(load_model(tiny_llama_dir), encode(model, PROMPTS)) is not None


@pytest.mark.slow
def test_on_real_text_the_system_turn_is_read_once(smollm2):
    queries = ["How was your day?", "Tell me about the train that you took this morning, and who sat beside you."]
    batch = encode(smollm2, render_prompts(smollm2, queries))
    moved, past = begin(smollm2, batch)
    assert "SmolLM" in smollm2.tokenizer.decode(moved.input_ids[0, : past.get_seq_length()])
    together = generate(smollm2, queries, max_new_tokens=20)
    with alone():
        assert together == generate(smollm2, queries, max_new_tokens=20)


@pytest.mark.slow
def test_in_half_precision_rounding_is_no_reason_against_it():
    model = load_model("smollm2", dtype="bfloat16")
    assert begin(model, encode(model, render_prompts(model, ["How was your day?", "Tell me about the sea."])))
