"""The whole path on a base model: Llama-shaped, grouped-query attention, 512 tokens, no chat template, no comforts."""

from __future__ import annotations

import warnings

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import emolab
from emolab.answers.generation import generate
from emolab.answers.responses import collect_responses, responses_from_texts
from emolab.base.errors import EmolabError
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from emolab.steering.steering import Steering
from emolab.vectors.activations import response_means
from emolab.vectors.vectors import extract_vectors
from tests import families, tiny


def story(directory, *, bos: bool, eos: bool = True):
    """Directory with a byte-level BPE of 512 tokens, with or without BOS, EOS; never a pad token."""
    special = [t for t, on in (("<s>", bos), ("</s>", eos)) if on]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    lines = families.TEXT.splitlines() * 2 + ["Lily wanted to help Tom, so they went to the garden and found a frog."]
    options = {"special_tokens": special, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    core.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=512, show_progress=False, **options))
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tok = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>" if bos else None, eos_token="</s>" if eos else None
    )
    ids = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": None}
    return tiny.save(directory, tiny.build(tiny.llama_config(vocab_size=512, **ids)), tok)


ASKED = ["Once upon a time there was a dog.", "Tom was afraid.", "How did you feel?", "It rained."]


@pytest.mark.parametrize("bos, eos", [(True, True), (False, True), (False, False)])
def test_the_whole_path_on_a_story_model(bos, eos, tmp_path):
    model = load_model(story(tmp_path / "m", bos=bos, eos=eos), device="cpu")
    assert bool(model.start_ids) == bos and not model.tokenizer.chat_template and len(model.tokenizer) <= 512
    assert render_prompts(model, ASKED[:1], "joy") == ["<s>" * bos + f"Answer with joy. {ASKED[0]}\n"]
    first = encode(model, ["", "Tom"], ["Lily", " was"])
    assert first.attention_mask.sum(1).tolist()[0] == bos + first.response_mask.sum(1).tolist()[0]
    options = {"max_new_tokens": 10, "out": tmp_path}
    responses = collect_responses(model, ASKED, emotions=("joy", "fear"), **options)
    assert len(responses) == 12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a random model may answer nothing here and there
        vectors = extract_vectors(model, responses, sites=("resid", "attn", "mlp", "head"))
    steering = Steering(vectors, {"joy": 2.0, "fear": -1.0})
    texts = generate(model, ASKED, steering=steering, max_new_tokens=10)
    assert len(texts) == 4 and texts != generate(model, ASKED, max_new_tokens=10)
    table = emolab.sweep(model, vectors, ASKED[:2], alphas=(0, 1), controls=("random",), max_new_tokens=6, out=tmp_path)
    assert len(table) and table["text"].map(type).eq(str).all()


def test_answers_that_never_stop_and_answers_that_are_empty(tmp_path):
    model = load_model(story(tmp_path, bos=True), device="cpu")
    tok, config = model.tokenizer, model.hf.generation_config
    config.eos_token_id = model.hf.config.eos_token_id = tok.eos_token_id = None
    assert model.eos_ids == []
    free = collect_responses(model, ASKED, emotions=("joy",), max_new_tokens=8)
    assert free["text"].str.len().gt(0).all()
    batch = encode(model, list(free["prompt"]))
    first = model.hf(batch.input_ids, attention_mask=batch.attention_mask).logits[:, -1].argmax(-1)
    # Every answer that begins as the first one is now empty: one pair in four at least.
    config.eos_token_id = int(first[0])
    some = collect_responses(model, ASKED, emotions=("joy",), max_new_tokens=8)
    assert list(some["text"] == "") == (first == first[0]).tolist() and (some["n_tokens"] == 0).sum() in range(1, 8)
    lone = pytest.warns(UserWarning, match="have no neutral one to the same query")
    with lone, pytest.warns(UserWarning, match="hold no token and were left out"):
        vectors = extract_vectors(model, some)
    complete = some.groupby("query_id")["n_tokens"].min().gt(0)
    assert vectors.meta["n_pairs"] == {"joy": int(complete.sum())}
    kept = some[some["query_id"].map(complete)]
    expected = extract_vectors(model, kept)
    torch.testing.assert_close(vectors.get("resid"), expected.get("resid"), atol=1e-5, rtol=1e-4)
    config.eos_token_id = sorted(set(first.tolist()))
    none = collect_responses(model, ASKED, emotions=("joy",), max_new_tokens=8)
    assert none["text"].eq("").all() and none["n_tokens"].eq(0).all()
    with pytest.raises(EmolabError, match="no text under joy, neutral holds a token"):
        extract_vectors(model, none)
    swept = emolab.sweep(model, vectors, ASKED[:1], alphas=(0,), controls=(), max_new_tokens=4)
    assert swept["text"].eq("").all()


def test_prompts_beyond_the_context_are_refused(tmp_path):
    model = load_model(story(tmp_path, bos=False), device="cpu")
    long = "Tom was sad. " * 60
    for call in (
        lambda: generate(model, ["Tom", long]),
        lambda: collect_responses(model, [long], emotions=("joy",)),
        lambda: response_means(model, responses_from_texts({"joy": [long], "neutral": ["Tom"]})),
    ):
        with pytest.raises(EmolabError, match=r"does not fit .* \(128\); shorten"):
            call()
