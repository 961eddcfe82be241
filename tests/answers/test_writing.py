"""How texts are written: the penalty counts what a row itself holds, so batches, caches and padding change nothing."""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import emolab
from emolab import Steering, Writing
from emolab.answers.decoding import _OwnTokens
from emolab.answers.generation import generate
from emolab.answers.logprobs import token_logprobs
from emolab.base.errors import EmolabError
from emolab.models import sharing
from emolab.models.hooks import forward
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from tests import chat_templates, tiny
from tests.answers.uncached import uncached

QUERIES = ["tell me about the park .", "how ?", "a dog and a cat in the rain", "did you feel sad today ?"]
OPENINGS = [
    "The best thing about a rainy Sunday with two small children is",
    "Hello",
    "A basil plant on the window sill of a kitchen needs light for as many hours as",
    "When the train came",
]
STRONG = Writing(repetition_penalty=1.5)


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gpt2"])
def model(request):
    """Its padding is a token that its texts are full of, as real models pad with their end token."""
    given = request.getfixturevalue(request.param)
    words = generate(given, QUERIES, writing=Writing(repetition_penalty=1), max_new_tokens=24)
    often = max(set(" ".join(words).split()), key=" ".join(words).split().count)
    tokenizer = copy.deepcopy(given.tokenizer)
    tokenizer.pad_token = often
    return load_model((given.hf, tokenizer))


def own(model, prompt, n, penalty):
    """What transformers writes, one row alone without padding."""
    ids = encode(model, [prompt]).input_ids
    config = GenerationConfig(
        max_new_tokens=n, do_sample=False, repetition_penalty=penalty, eos_token_id=model.eos_ids or None,
        pad_token_id=model.tokenizer.pad_token_id,
    )  # fmt: skip
    before, model.hf.generation_config = model.hf.generation_config, config
    try:
        found = model.hf.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    finally:
        model.hf.generation_config = before
    found = found[0, ids.shape[1] :].tolist()
    ends = [i for i, token in enumerate(found) if token in model.eos_ids]
    return model.tokenizer.decode(found[: min(ends, default=None)], skip_special_tokens=True).strip()


def test_a_single_row_is_that_of_transformers(model, monkeypatch):
    prompts, written = render_prompts(model, QUERIES), {}
    monkeypatch.setattr(type(model), "eos_ids", [])  # short texts would not tell them apart
    for penalty in (1.0, 1.1, 1.5):
        writing = Writing(repetition_penalty=penalty)
        written[penalty] = [generate(model, p, raw=True, writing=writing, max_new_tokens=20)[0] for p in prompts]
        assert written[penalty] == [own(model, prompt, 20, penalty) for prompt in prompts], penalty
    assert written[1.0] != written[1.1] != written[1.5]


def test_the_penalty_knows_no_padding_no_cache_and_no_neighbours(model, monkeypatch):
    """Single = batched = uncached = with prompts read once = beside rows that leave."""
    vectors = tiny.random_vectors(model, scale=0.5)
    doses = [None, Steering(vectors, {"joy": 1.0}), Steering(vectors, {"anger": -2.0}, site="attn")]
    rows = list(itertools.product(QUERIES, doses))
    written = {"writing": STRONG, "max_new_tokens": 20}
    alone = [generate(model, query, steering=s, **written)[0] for query, s in rows]
    queries, steerings = map(list, zip(*rows, strict=True))
    options = {"steering": steerings, **written}
    assert generate(model, queries, **options) == alone
    with uncached():
        assert generate(model, queries, **options) == alone
    assert generate(model, queries, **{**options, "writing": replace(STRONG, batch_size=5)}) == alone
    monkeypatch.setattr(sharing, "SHARE_FROM", 10**6)
    assert generate(model, queries, **options) == alone
    monkeypatch.undo()
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", list(range(3, model.hf.config.vocab_size, 6)))
    together = generate(model, queries, **options)
    assert together == [generate(model, q, steering=s, **written)[0] for q, s in rows] != alone
    assert len({len(text.split()) for text in together}) > 2, "rows end at different tokens"


def test_it_counts_each_own_token_once():
    ids = torch.tensor([[9, 9, 1, 2, 2], [0, 3, 3, 4, 9]])  # two of the first row are padding
    scores = torch.tensor([[1.0] * 10, [-1.0] * 10])
    found = _OwnTokens(2.0, torch.arange(4) >= torch.tensor([[2], [0]]), torch.tensor([7]))(ids, scores)
    expected = scores.clone()
    expected[0, [1, 2]] = 0.5
    expected[1, [0, 3, 4, 9]] = -2.0
    assert torch.equal(found, expected) and (scores[0] == 1).all()


@pytest.mark.slow
def test_real_text_is_the_same_alone_and_in_company(smollm2, monkeypatch):
    """Padding is the end token, as it is in most real models: to count it would put off the end of all but the longest.

    Here both are the word "to", which comes soon in text."""
    tokenizer = copy.deepcopy(smollm2.tokenizer)
    tokenizer.pad_token = "Ġto"
    padded = load_model((smollm2.hf, tokenizer))
    monkeypatch.setattr(smollm2.hf.generation_config, "eos_token_id", tokenizer.pad_token_id)
    options = {"raw": True, "max_new_tokens": 16}
    together = generate(padded, OPENINGS * 3, **options)  # every prompt in three rows: read once
    assert together == together[:4] * 3
    assert together[:4] == [own(padded, prompt, 16, 1.1) for prompt in OPENINGS]
    with uncached():
        assert together[:4] == generate(padded, OPENINGS, **options)
    assert len({len(tokenizer(text).input_ids) for text in together}) > 2, "rows leave the batch"


def test_a_penalty_of_one_is_plain_greedy(smollm2):
    options = {"raw": True, "max_new_tokens": 24}
    text = generate(smollm2, OPENINGS[0], writing=Writing(repetition_penalty=1), **options)
    assert text == [own(smollm2, OPENINGS[0], 24, 1.0)] != generate(smollm2, OPENINGS[0], **options)


def test_perplexity_is_read_without_the_penalty(model):
    prompts = render_prompts(model, QUERIES[:1])
    text = generate(model, QUERIES[0], writing=STRONG, max_new_tokens=12)
    batch = encode(model, prompts, text)
    with torch.inference_mode():
        logp = forward(model, model.hf, batch, batch.input_ids.shape[1])[0].log_softmax(-1)
    ids = batch.input_ids[0, batch.prompt_len :]
    expected = logp[batch.prompt_len - 1 : -1].gather(1, ids[:, None])[:, 0]
    np.testing.assert_allclose(token_logprobs(model, prompts, text)[0], expected, rtol=1e-4)


def test_what_a_text_depends_on():
    greedy = Writing(top_p=0.5, seed=3, batch_size=8)
    assert greedy.settings() == Writing().settings() != Writing(repetition_penalty=1).settings()
    sampled = Writing(0.7, 0.9, 1, 5, batch_size=8)
    told = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.0, "seed": 5, "batch_size": 8}
    assert sampled.settings() == told
    worded = Writing(templates={"neutral": "{query}"})
    assert worded.settings() == Writing().settings() | {"templates": {"neutral": "{query}"}} and worded != Writing()
    assert sampled == Writing(0.7, 0.9, 1, 5) and len({sampled, worded, Writing()}) == 3
    assert repr(sampled) == "Writing(temperature=0.7, top_p=0.9, repetition_penalty=1, seed=5, batch_size=8)"
    assert repr(Writing()) == "Writing()"
    assert sampled.chunk(2) == Writing(0.7, 0.9, 1, 2005) and Writing().chunk(2) == Writing()


# Logits that are no numbers.


def broken(model, dtype=torch.float32):
    hf = copy.deepcopy(model.hf).to(dtype)
    next(p for name, p in hf.named_parameters() if name.endswith(("norm.weight", "ln_f.weight"))).data.fill_(torch.nan)
    return load_model((hf, model.tokenizer))


@pytest.mark.parametrize("writing", [Writing(), Writing(temperature=1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_that_computes_no_numbers_writes_no_text(model, writing, dtype):
    advice = "load it with dtype='bfloat16'" if dtype == torch.float16 else "its weights are damaged"
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(EmolabError, match=rf"the logits of .* are not finite .*in {name}; {advice}"):
        generate(broken(model, dtype), QUERIES, writing=writing, max_new_tokens=4)
    with pytest.raises(EmolabError, match="not finite"):
        emolab.collect_responses(broken(model), QUERIES, emotions=("joy",), writing=writing)


def test_only_rows_that_still_write_must_have_numbers():
    ids, scores = torch.tensor([[1, 5, 7], [1, 5, 6]]), torch.zeros(2, 10)
    rule = _OwnTokens(1.0, torch.ones(2, 2, dtype=torch.bool), torch.tensor([7]))
    scores[0] = torch.nan  # behind its end
    assert torch.equal(rule(ids, scores), torch.zeros(2, 10))
    masked = torch.full((2, 10), -torch.inf)
    masked[:, 3] = 0.0
    assert torch.equal(rule(ids, masked), masked), "tokens that can never come are no fault"
    scores[1, 4] = torch.inf
    assert not rule.failed
    rule(ids, scores)
    assert rule.failed


# The output head reads its input without gaps.


def test_the_head_reads_no_gaps(model):
    """With gaps, matmul copies the whole weight for each row: three times as long in bfloat16."""
    batch = encode(model, render_prompts(model, QUERIES))
    for runner in (model.hf, model.bridge.original_model):
        seen = []
        handle = runner.get_output_embeddings().register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[0].is_contiguous())
        )
        try:
            with torch.inference_mode():
                for keep in (1, 3):
                    forward(model, runner, batch, keep)
        finally:
            handle.remove()
        assert seen == [True, True]
    assert load_model((model.hf, model.tokenizer)).hf is model.hf
    assert len(model.hf.get_output_embeddings()._forward_pre_hooks) == 1, "loaded twice, still once"


# Reasoning.


def test_a_template_whose_model_chooses_a_channel_is_given_the_final_one(tiny_llama):
    harmony = load_model((tiny_llama.hf, tiny.tokenizer(chat=chat_templates.HARMONY)))
    with pytest.warns(UserWarning, match="<.channel.>final"):
        assert render_prompts(harmony, ["tell me"])[0].endswith("<|start|>assistant<|channel|>final<|message|>")


def test_reasoning_in_a_prompt_or_an_answer_is_told(tiny_llama, smollm2, monkeypatch):
    with pytest.warns(UserWarning, match="a prompt or an answer of .* opens a block of reasoning") as told:
        generate(tiny_llama, ["tell me <think>\n", "tell me"], raw=True, max_new_tokens=2)
    assert len(told) == 1 and told[0].filename == __file__
    for opening in ("<think>", "\n[THINK]", "<|channel|>analysis<|message|>"):
        words = copy.deepcopy(smollm2.tokenizer)
        words.add_special_tokens({"additional_special_tokens": [opening.strip()]})  # which no decoded answer shows
        model, ids = load_model((smollm2.hf, words)), words(f"{opening}well", return_tensors="pt").input_ids
        monkeypatch.setattr("emolab.answers.generation.write", lambda *_, ids=ids: ids)
        with pytest.warns(UserWarning, match="opens a block of reasoning") as told:
            generate(model, QUERIES[:2], max_new_tokens=2, writing=Writing(batch_size=1))
        assert len(told) == 1, opening
    ids = words("I think <b>this</b>", return_tensors="pt").input_ids
    monkeypatch.setattr("emolab.answers.generation.write", lambda *_: ids)
    assert generate(model, "Hi") == ["I think <b>this</b>"]


@pytest.mark.parametrize(
    "opening, closing",
    [
        ("<think>", "</think>"), ("<|think|>", "<|/think|>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"),
        ("<seed:think>", "</seed:think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<reasoning>", "</reasoning>"), ("<Thinking>", "</Thinking>"),
    ],
)  # fmt: skip
def test_whatever_opens_a_block_of_reasoning_is_closed(tiny_llama, opening, closing):
    model = load_model((tiny_llama.hf, tiny.tokenizer(chat=tiny.CHAT + opening)))
    for condition in ("neutral", "joy"):
        with pytest.warns(UserWarning, match=f"ends in '{re.escape(opening)}'.*reasons before it answers"):
            prompts = render_prompts(model, ["tell me", "how ?"], condition)
        plain = render_prompts(tiny_llama, ["tell me", "how ?"], condition)
        assert prompts == [f"{prompt}{opening}\n\n{closing}\n\n" for prompt in plain]


# Progress.


def test_a_bar_moves_with_every_token(tiny_llama, bars):
    threes, twos = Writing(batch_size=3), Writing(batch_size=2)
    emolab.collect_responses(tiny_llama, QUERIES, emotions=("joy",), max_new_tokens=3, writing=threes)
    joy = Steering(tiny.random_vectors(tiny_llama), {"joy": 1.0})
    emolab.sweep(tiny_llama, joy, QUERIES, alphas=(0, 1), controls=(), max_new_tokens=3, writing=twos)
    shown = {bar.desc: bar for bar in bars if bar.shown}
    assert {desc: sum(bar.moves) for desc, bar in shown.items()} == {"responses": 8, "sweep": 8}
    assert max(max(bar.moves) for bar in shown.values()) < 3, "not by whole batches"
