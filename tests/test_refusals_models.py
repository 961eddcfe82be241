"""Models that do not fit what is asked of them: encoders, odd heads, small contexts, responses of others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emolab.base.errors import EmolabError
from emolab.comparisons.methods import build_methods
from emolab.models.load import load_model
from emolab.steering import head_edits
from tests import tiny
from tests.refusing import World, readable
from tests.test_refusals_runs import extract


@pytest.fixture(scope="module")
def world(tiny_llama, tiny_gpt2, tmp_path_factory):
    return World(tiny_llama, tiny_gpt2, tmp_path_factory.mktemp("refusals"))


def test_responses_of_the_same_model_in_another_dtype_are_its_own(world):
    made = world.responses.copy()
    made.attrs["emolab"] = {"model": "other name", "fingerprint": world.model.fingerprint}
    assert np.isfinite(extract(world, made).data["resid"].numpy()).all()


def test_an_encoder_is_no_model_that_continues_text(tmp_path):
    from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(tiny.tokenizer()), **shape)
    tiny.save(tmp_path, BertForMaskedLM(config), tiny.tokenizer())
    for given in (tmp_path, (BertLMHeadModel(config), tiny.tokenizer())):
        with pytest.raises(EmolabError, match="is an encoder .bert., which reads both ways") as caught:
            load_model(given)
        readable(str(caught.value))


def test_heads_of_two_widths_are_refused(world, monkeypatch):
    found = head_edits.head_weights
    narrow = lambda model, layer: found(model, layer)[:, :4] if layer == 1 else found(model, layer)  # noqa: E731
    monkeypatch.setattr(head_edits, "head_weights", narrow)
    with pytest.raises(EmolabError, match="differ in width .8 in layer 0, 4 in layer 1.") as caught:
        head_edits.HeadSpace(world.model, world.vectors)
    readable(str(caught.value))


def test_examples_that_do_not_fit_cost_no_other_method(world):
    given = {"max_new_tokens": 60, "progress": False}
    with pytest.warns(UserWarning, match="few_shot is left out: no example fits the context"):
        found = build_methods(world.model, world.vectors, world.responses, ("instruction", "few_shot"), **given)
    assert [method.name for method in found] == ["instruction"]
    with pytest.raises(EmolabError, match="no example fits the context"):
        build_methods(world.model, world.vectors, world.responses, ("few_shot",), **given)


def test_a_dose_too_large_for_half_precision_is_told(world):
    model = load_model((tiny.build(tiny.llama_config()).half(), tiny.tokenizer()))
    vectors = tiny.random_vectors(model)
    from emolab import Steering, generate

    assert torch.isfinite(vectors.data["resid"] * 1e5).all()
    with pytest.raises(EmolabError, match="not finite.*smaller dose"):
        generate(model, "tell me", steering=Steering(vectors, {"joy": 1e5}), max_new_tokens=2)
