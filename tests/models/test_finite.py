"""What is not finite is said at once, with its precision and layer, wherever a model is read or asked to write."""

from __future__ import annotations

import copy

import pandas as pd
import pytest
import torch

import emolab
from emolab import heads
from emolab.answers.logprobs import next_token_kl, token_logprobs
from emolab.base.errors import EmolabError
from emolab.comparisons.lora import fit_lora
from emolab.judges.judges import LexiconJudge
from emolab.judges.model_judges import SelfReportJudge
from emolab.models.load import load_model
from emolab.models.prompts import render_prompts
from emolab.widgets.tokens import token_projections

QUERIES = ["tell me about the park .", "how ?"]
TEXTS = ["it was a dog .", "the sun"]
TEST = emolab.HeadTest(words={"joy": ["happy"]}, n_queries=1)
JUDGE = LexiconJudge({"joy": {"sun"}})


def logits_alone(hf):
    hf.model.norm.weight.data.fill_(torch.nan)


def layer_1(hf):
    hf.model.layers[1].mlp.down_proj.weight.data.fill_(torch.inf)


def layer_1_in_half(hf):
    hf.half().model.layers[1].mlp.down_proj.weight.data.mul_(1e6)


BROKEN = {
    logits_alone: r"\(activations are\) in float32; its weights are damaged",
    layer_1: r"from layer 1 on\)? in float32; its weights are damaged",
    layer_1_in_half: r"from layer 1 on\)? in float16; load it with dtype='bfloat16'",
}
READS = {
    "generate": lambda w: emolab.generate(w.model, QUERIES, max_new_tokens=2),
    "collect_responses": lambda w: emolab.collect_responses(w.model, QUERIES, emotions=("joy",), max_new_tokens=2),
    "token_logprobs": lambda w: token_logprobs(w.model, w.prompts, TEXTS),
    "next_token_kl": lambda w: next_token_kl(w.model, w.prompts, TEXTS),
    "score": lambda w: emolab.score(pd.DataFrame({"text": TEXTS, "query": QUERIES}), judges=JUDGE, model=w.model),
    "self-report": lambda w: SelfReportJudge(w.model)(TEXTS),
    "extract_vectors": lambda w: emolab.extract_vectors(w.model, w.responses),
    "attention_pattern": lambda w: heads.attention_pattern(w.model, w.prompts[0], TEXTS[0], layer=2, head=1),
    "token_projections": lambda w: token_projections(w.model, TEXTS[0], w.vectors),
    "head_effects": lambda w: emolab.head_effects(w.model, w.vectors, w.responses, test=TEST),
}
# What does not ask for logits, and may go on where these alone are broken.
NO_LOGITS = ("extract_vectors", "attention_pattern", "token_projections")


class World:
    def __init__(self, whole, damage):
        asked = emolab.collect_responses(whole, QUERIES, emotions=("joy",), max_new_tokens=4, pairing="all")
        self.responses = asked.assign(text=["so happy", "it was a dog", "glad and bright", "the sun"])
        self.vectors = emolab.extract_vectors(whole, self.responses, sites=("resid", "head"))
        hf = copy.deepcopy(whole.hf)
        damage(hf)
        self.model = load_model((hf, whole.tokenizer))
        self.model.fingerprint = whole.fingerprint  # vectors that fit
        self.prompts = render_prompts(whole, QUERIES)


@pytest.fixture(scope="module", params=BROKEN, ids=lambda damage: damage.__name__)
def world(request, tiny_llama):
    world = World(tiny_llama, request.param)
    world.says, world.logits_alone = BROKEN[request.param], request.param is logits_alone
    return world


@pytest.mark.parametrize("read", READS)
def test_every_reading_says_so(world, read):
    if world.logits_alone and read in NO_LOGITS:
        READS[read](world)
        return
    with pytest.raises(EmolabError, match=rf"are not finite.*{world.says}") as error:
        READS[read](world)
    assert len(str(error.value).splitlines()) == 1


def test_steering_alone_is_blamed_where_it_is_to_blame(tiny_llama, world):
    steering = emolab.Steering(world.vectors, {"joy": 1.0}, layers=[2])
    if not world.logits_alone:
        with pytest.raises(EmolabError, match="steered act.* at resid of layer 2 in .*; (its weights|load it)"):
            emolab.generate(world.model, QUERIES, steering=steering, max_new_tokens=1)
    strong = emolab.Steering(world.vectors, {"joy": 1e38})
    with pytest.raises(EmolabError, match="not finite .*in float32; use a smaller dose"):
        emolab.generate(tiny_llama, QUERIES, steering=strong, max_new_tokens=1)
    with pytest.raises(EmolabError, match="not finite .*in float32; use a smaller dose"):
        token_logprobs(tiny_llama, world.prompts, TEXTS, steering=strong)


def test_words_of_a_vector_and_adapters(tiny_llama, world):
    with pytest.raises(EmolabError, match="the loss became nan"):
        fit_lora(world.model, world.responses, "joy")
    if world.logits_alone:
        with pytest.raises(EmolabError, match="the logits .* are not finite"):
            heads.top_words(world.model, world.vectors)
