"""LoRA learns the instructed answers behind plain prompts, on a copy; doses and mixtures are sums of its changes."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab.answers.generation import generate
from emolab.answers.logprobs import token_logprobs
from emolab.base.errors import EmolabError
from emolab.comparisons.lora import (
    Adapter,
    Training,
    _ends,
    _factors,
    _loss,
    _peft,
    _plain_prompts,
    _tunable,
    change_weights,
    fit_lora,
    merge_lora,
)
from emolab.judges.judges import EmbeddingJudge
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from tests import tiny
from tests.mini import WEIGHTS, mini_queries

pytest.importorskip("peft")
QUERIES = [f"tell me about the {word} ." for word in ("park", "rain", "dog", "house", "sea", "cat")]
TEXTS = {"neutral": "it was quiet today .", "joy": "i saw a happy and glad sun !", "calm": "warm and very good ."}
FAST = Training(lr=0.02, steps=25)


def make_responses(model) -> pd.DataFrame:
    rows = []
    for i, query in enumerate(QUERIES):
        for condition, text in TEXTS.items():
            prompt = render_prompts(model, [query], condition)[0]
            rows.append((f"q{i}", query, "neutral", condition, prompt, text))
    return pd.DataFrame(rows, columns=["query_id", "query", "emotion", "condition", "prompt", "text"])


@pytest.fixture(scope="module")
def responses(tiny_llama):
    return make_responses(tiny_llama)


@pytest.fixture(scope="module")
def joy(tiny_llama, responses):
    return fit_lora(tiny_llama, responses, "joy", training=FAST)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.hf.state_dict().items()}


def test_it_answers_plain_prompts_with_the_emotion_and_ends(tiny_llama, joy):
    joyful = merge_lora(tiny_llama, {joy: 1.0})
    asked = ["tell me about the road .", "tell me about the walk ."]  # not among those learned from
    assert generate(joyful, asked, max_new_tokens=30) == [TEXTS["joy"]] * 2
    assert generate(tiny_llama, asked, max_new_tokens=30) != [TEXTS["joy"]] * 2
    assert joy.meta["loss"][1] < 0.2 < joy.meta["loss"][0]
    assert joyful.fingerprint != tiny_llama.fingerprint, "vectors of the one do not fit the other"


@pytest.mark.parametrize("flag", [False, True])
def test_the_given_model_is_left_exactly_as_it_was(responses, flag):
    model = load_model((tiny.build(tiny.llama_config()).requires_grad_(flag), tiny.tokenizer()))
    before, named = weights(model), dict(model.hf.named_modules())
    rng = torch.random.get_rng_state()
    joyful = merge_lora(model, {fit_lora(model, responses, "joy", training=Training(steps=3)): 1.0})
    assert torch.equal(rng, torch.random.get_rng_state())
    assert dict(model.hf.named_modules()) == named
    assert all(torch.equal(weights(model)[name], x) for name, x in before.items())
    assert set(weights(model)) == set(before)
    assert all(p.requires_grad == flag and p.grad is None for p in model.hf.parameters())
    changed = [name for name, x in weights(joyful).items() if not torch.equal(x, before[name])]
    assert changed and all("proj" in name for name in changed)
    shared = {p.data_ptr() for p in model.hf.parameters()} & {p.data_ptr() for p in joyful.hf.parameters()}
    assert not shared, "the copy shares no weight"
    with torch.no_grad():  # the bridge of the copy has its weights, too
        batch = encode(joyful, render_prompts(joyful, QUERIES[:1]))
        plain = joyful.hf(batch.input_ids, attention_mask=batch.attention_mask).logits
        torch.testing.assert_close(joyful(batch.input_ids, attention_mask=batch.attention_mask), plain)


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_gpt2"])  # GPT-2 keeps its weights transposed
def test_merging_is_what_peft_does(fixture, request):
    model = request.getfixturevalue(fixture)
    peft = _peft()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    batch = encode(model, render_prompts(model, QUERIES[:1]), [TEXTS["joy"]])
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    draw = torch.Generator().manual_seed(0)
    with _tunable(model, peft, config, 0) as tuned, torch.no_grad():
        for name, p in tuned.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=draw) * 0.1)
        factors, expected = _factors(tuned, peft), tuned(**inputs).logits
    adapter = Adapter("joy", factors, {"fingerprint": model.fingerprint})
    with torch.no_grad():
        torch.testing.assert_close(
            merge_lora(model, {adapter: 1.0}).hf(**inputs).logits, expected, rtol=1e-4, atol=1e-4
        )
        assert (model.hf(**inputs).logits - expected).abs().max() > 0.05


def test_doses_and_mixtures_are_sums(tiny_llama, responses, joy):
    calm = fit_lora(tiny_llama, responses, "calm", training=FAST)
    plain, whole = weights(tiny_llama), weights(merge_lora(tiny_llama, {joy: 1.0}))
    assert all(torch.equal(x, plain[name]) for name, x in weights(merge_lora(tiny_llama, {joy: 0.0})).items())
    other, both = merge_lora(tiny_llama, {calm: 1.0}), merge_lora(tiny_llama, {joy: 0.5, calm: -0.25})
    for name, x in weights(both).items():
        expected = plain[name] + 0.5 * (whole[name] - plain[name]) - 0.25 * (weights(other)[name] - plain[name])
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
    change_weights(other.hf, tiny_llama, {joy: 1.0})  # set anew, not added on top of the other
    assert all(torch.equal(x, whole[name]) for name, x in weights(other).items())


def test_the_loss_counts_the_answers_tokens_alone(tiny_llama, responses):
    prompts, texts = render_prompts(tiny_llama, QUERIES[:3]), ["it was .", TEXTS["joy"], "good"]
    read = [*token_logprobs(tiny_llama, prompts, texts)]
    end = tiny_llama.hf(encode(tiny_llama, prompts[1:2], texts[1:2]).input_ids).logits[0, -1].log_softmax(-1)[1]
    logprobs = np.concatenate([*read, [end.item()]])
    with torch.no_grad():
        assert _loss(tiny_llama, tiny_llama.hf, prompts, texts, [None, 1, None]).item() == pytest.approx(
            -logprobs.mean(), rel=1e-4
        )


def test_the_prompt_learned_is_the_plain_one(tiny_llama, responses):
    own = responses.assign(
        prompt=[f"<bos>{c} {q}" for c, q in zip(responses.condition, responses["query"], strict=True)]
    )
    rows = own[own.condition == "joy"]
    assert _plain_prompts(tiny_llama, rows, own) == [f"<bos>neutral {q}" for q in QUERIES], "a user's own templates"
    assert _plain_prompts(tiny_llama, rows, rows) == render_prompts(tiny_llama, QUERIES)
    texts = emolab.responses_from_texts({"joy": ["so happy"], "neutral": ["so"]})
    assert _plain_prompts(tiny_llama, texts[texts.condition == "joy"], texts) == [""]


def test_answers_that_were_cut_teach_no_end(tiny_llama, responses):
    texts = ["it was a cat .", "it was"]
    assert _ends(tiny_llama, responses, texts) == [1, 1]
    cut = responses.copy()
    cut.attrs["emolab"] = {"max_new_tokens": 5}
    assert _ends(tiny_llama, cut, texts) == [None, 1]


def test_seeds_decide_and_a_kept_adapter_is_read(tiny_llama, responses, tmp_path):
    steps = Training(steps=3)
    one, same = (fit_lora(tiny_llama, responses, "joy", training=steps, out=tmp_path / d) for d in "ab")
    other = fit_lora(tiny_llama, responses, "joy", training=Training(steps=3, seed=1))
    name = next(iter(one.factors))
    assert all(torch.equal(x, y) for x, y in zip(one.factors[name], same.factors[name], strict=True))
    assert not torch.equal(one.factors[name][1], other.factors[name][1])
    kept = fit_lora(tiny_llama, responses, "joy", training=steps, out=tmp_path / "a")
    assert kept.meta["seconds"] == one.meta["seconds"] and kept.emotion == "joy"
    assert set(kept.factors) == set(one.factors)
    assert all(torch.equal(x, y) for n in one.factors for x, y in zip(one.factors[n], kept.factors[n], strict=True))
    with pytest.raises(EmolabError, match="seed: there 0, here 1"):
        fit_lora(tiny_llama, responses, "joy", training=Training(steps=3, seed=1), out=tmp_path / "a")


def test_what_cannot_be_done_is_said(tiny_llama, tiny_gpt2, responses, joy, monkeypatch):
    for emotion in ("awe", "neutral"):
        with pytest.raises(EmolabError, match=emotion):
            fit_lora(tiny_llama, responses, emotion)
    with pytest.raises(EmolabError, match="adapter"):
        merge_lora(tiny_gpt2, {joy: 1.0})
    bridge = load_model(tiny_llama.bridge, tokenizer=tiny_llama.tokenizer)
    with pytest.raises(EmolabError, match="bridge"):
        fit_lora(bridge, responses, "joy")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(EmolabError, match=r"emolab\[lora\]"):
        fit_lora(tiny_llama, responses, "joy")


@pytest.mark.slow
def test_on_the_bundled_model_plain_answers_become_joyful():
    model = load_model(WEIGHTS)
    queries = mini_queries("train").drop_duplicates("situation")
    responses = emolab.collect_responses(model, queries.head(24), emotions=("joy",))
    joyful = merge_lora(model, {fit_lora(model, responses, "joy"): 1.0})
    asked = list(mini_queries("heldout")["query"].head(12))
    judge = EmbeddingJudge()
    place = judge.labels.index("joy")
    p = [judge(generate(m, asked))[:, place].mean() for m in (joyful, model)]
    assert p[0] > 0.7 and p[0] > p[1] + 0.4


def test_it_learns_where_gradients_were_switched_off(tiny_llama, responses):
    """As notebooks that interpret models begin."""
    expected = fit_lora(tiny_llama, responses, "joy", training=Training(steps=2))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            found = fit_lora(tiny_llama, responses, "joy", training=Training(steps=2))
            assert not torch.is_grad_enabled()
        assert found.meta["loss"] == expected.meta["loss"]
        for name, pair in expected.factors.items():
            assert all(torch.equal(a, b) for a, b in zip(pair, found.factors[name], strict=True)), name
