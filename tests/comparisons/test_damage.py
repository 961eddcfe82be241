"""Next-token KL: exactly zero without a change, right against a direct computation, and the dose that reaches it."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from emolab.answers.logprobs import next_token_kl, p95_kl
from emolab.base.errors import EmolabError
from emolab.comparisons.damage import dose_at_damage
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from emolab.steering.steering import Steering, steered
from tests import tiny

QUERIES = ["tell me about the park .", "how did you feel about the dog and the rain ?", "the sea ?"]
TEXTS = ["the park was quiet today .", "we saw a dog .", "it was cold and dark and then so very good ."]


def logprobs(model, prompt: str, text: str) -> np.ndarray:
    """[token, vocab] of one row, from the bridge."""
    batch = encode(model, [prompt], [text])
    n = int(batch.response_mask.sum())
    with torch.no_grad():
        logits = model(batch.input_ids, attention_mask=batch.attention_mask)[0, -n - 1 : -1]
    return logits.double().log_softmax(-1).numpy()


def kl(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    return (np.exp(new) * (new - old)).sum(-1)


def test_no_change_is_exactly_zero(tiny_llama):
    vectors, prompts = tiny.random_vectors(tiny_llama), render_prompts(tiny_llama, QUERIES)
    lengths = [len(tiny_llama.tokenizer(t, add_special_tokens=False).input_ids) for t in TEXTS]
    for options in ({}, {"steering": Steering(vectors, {"joy": 0.0})}, {"other": tiny_llama, "other_prompts": prompts}):
        found = next_token_kl(tiny_llama, prompts, TEXTS, **options)
        assert [len(x) for x in found] == lengths
        assert all((x == 0).all() for x in found)


def test_steering_is_measured_as_changed_from_plain(tiny_llama):
    vectors, prompts = tiny.random_vectors(tiny_llama, scale=0.3), render_prompts(tiny_llama, QUERIES)
    steering = Steering(vectors, {"joy": 2.0}, positions="all")
    found = next_token_kl(tiny_llama, prompts, TEXTS, steering=steering)
    for prompt, text, values in zip(prompts, TEXTS, found, strict=True):
        plain = logprobs(tiny_llama, prompt, text)
        with steered(tiny_llama, steering):
            new = logprobs(tiny_llama, prompt, text)
        np.testing.assert_allclose(values, kl(new, plain), rtol=1e-3, atol=1e-5)
        assert np.abs(kl(plain, new) - values).max() > 1e-2, "the other direction is another number"


def test_prompts_and_models_are_measured_too(tiny_llama):
    prompts, told = (render_prompts(tiny_llama, QUERIES, c) for c in ("neutral", "joy"))
    for text, old, new, values in zip(
        TEXTS, prompts, told, next_token_kl(tiny_llama, prompts, TEXTS, other_prompts=told), strict=True
    ):
        expected = kl(logprobs(tiny_llama, new, text), logprobs(tiny_llama, old, text))
        np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-5)
        assert values.min() > 0
    changed = copy.deepcopy(tiny_llama.hf)
    with torch.no_grad():
        changed.lm_head.weight.mul_(0.9)
    other = load_model((changed, tiny_llama.tokenizer))
    values = next_token_kl(tiny_llama, prompts, TEXTS, other=other)[1]
    expected = kl(logprobs(other, prompts[1], TEXTS[1]), logprobs(tiny_llama, prompts[1], TEXTS[1]))
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-5)


def test_batches_change_nothing(tiny_llama, tiny_gpt2):
    for model in (tiny_llama, tiny_gpt2):
        vectors = tiny.random_vectors(model, scale=0.3)
        rows = [Steering(vectors, {"joy": 0.5}), None, Steering(vectors, {"anger": 1.0}, site="attn")] * 2
        prompts, texts = render_prompts(model, QUERIES) * 2, TEXTS * 2  # the same texts twice, as in a grid of doses
        together = next_token_kl(model, prompts, texts, steering=rows)
        for values, prompt, text, steering in zip(together, prompts, texts, rows, strict=True):
            [alone] = next_token_kl(model, [prompt], [text], steering=steering)
            np.testing.assert_allclose(values, alone, rtol=1e-3, atol=1e-5)
        assert together[1].max() < 1e-6 < together[0].min()


def test_damage_grows_with_the_dose_and_reaches_a_target(tiny_llama):
    vectors, prompts = tiny.random_vectors(tiny_llama, scale=0.2), render_prompts(tiny_llama, QUERIES)

    def damage(dose: float) -> float:
        return p95_kl(next_token_kl(tiny_llama, prompts, TEXTS, steering=Steering(vectors, {"joy": dose})))

    grown = [damage(dose) for dose in (0, 0.05, 0.1, 0.2, 0.4)]
    assert grown[0] == 0 and (np.diff(grown) > 0).all()
    dose, found = dose_at_damage(damage, grown[2], start=1.0, tolerance=0.01)
    assert dose == pytest.approx(0.1, rel=0.02) and found == pytest.approx(grown[2], rel=0.01)


def test_texts_without_tokens_or_without_anything_before_them(tiny_llama, tiny_gpt2):
    assert [len(x) for x in next_token_kl(tiny_llama, ["<bos>"] * 2, ["", "the sea"])] == [0, 2]
    found = next_token_kl(tiny_gpt2, ["", "the sea"], ["the park was", "was"])
    assert np.isnan(found[0][0]) and (found[0][1:] == 0).all() and len(found[0]) == 3 and found[1].tolist() == [0.0]


def test_models_of_other_vocabularies_are_refused(tiny_llama):
    larger = load_model((tiny.build(tiny.llama_config(vocab_size=200)), tiny.tokenizer()))
    with pytest.raises(EmolabError, match="vocabular"):
        next_token_kl(tiny_llama, ["<bos>"], ["a"], other=larger)


def test_p95_is_over_all_tokens():
    kls = [np.arange(50.0), np.arange(50.0, 101.0), np.array([np.nan]), np.empty(0)]
    assert p95_kl(kls) == 95
    assert math.isnan(p95_kl([])) and math.isnan(p95_kl([np.array([np.nan])]))


@pytest.mark.parametrize("start", [1e-3, 1.0, 2.0, 500.0])
def test_the_dose_of_a_damage_is_found_from_anywhere(start):
    calls = []

    def damage(dose: float) -> float:
        calls.append(dose)
        return 0.3 * dose**2

    dose, found = dose_at_damage(damage, 1.2, start=start, tolerance=0.001)
    assert dose == pytest.approx(2.0, rel=0.001) and found == 0.3 * dose**2
    assert len(calls) == len(set(calls)) < 16, "no dose is measured twice"


def test_damage_out_of_reach_is_said():
    with pytest.raises(EmolabError, match="out of reach"):
        dose_at_damage(lambda dose: min(dose, 3.0), 4.0)
    with pytest.raises(EmolabError, match="not a number"):
        dose_at_damage(lambda dose: math.nan, 1.0)
    for target in (0.0, -1.0, math.nan):
        with pytest.raises(EmolabError, match="positive"):
            dose_at_damage(lambda dose: dose, target)
