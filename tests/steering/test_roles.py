"""Positions by role: who says a token is told exactly, and steering meets these tokens alone, wherever it runs."""

from __future__ import annotations

import pytest
import torch

import emolab
from emolab.answers.generation import generate
from emolab.answers.logprobs import token_logprobs
from emolab.base.errors import EmolabError
from emolab.models.prompts import prompt_ids, render_conversation, render_prompts
from emolab.models.roles import token_roles
from emolab.steering.positions import PositionMask
from emolab.steering.steering import Steering, steered
from tests.answers.uncached import uncached
from tests.tiny import random_vectors

TURNS = [("tell me about the park", "it was quiet and warm"), ("and the rain ?", "so cold")]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vectors(tiny_llama):
    return random_vectors(tiny_llama, ("joy", "fear"), scale=0.5)


def said_by(model, prompt, role):
    (ids,) = prompt_ids(model, [prompt])
    (roles,) = token_roles(model, [ids])
    return model.tokenizer.decode([i for i, who in zip(ids, roles, strict=True) if who == role])


def test_each_role_says_its_own_words(tiny_llama):
    prompt = render_conversation(tiny_llama, TURNS, "how did you feel ?")
    assert said_by(tiny_llama, prompt, "user") == "tell me about the park and the rain ? how did you feel ?"
    assert said_by(tiny_llama, prompt, "assistant") == "it was quiet and warm so cold"
    told = render_prompts(tiny_llama, ["how did you feel ?"], "joy")[0]
    assert "<system>" in told and said_by(tiny_llama, told, "user") == "how did you feel ?"
    assert said_by(tiny_llama, told, "assistant") == ""


def test_of_the_default_model_with_its_system_turn_and_spelled_markup(smollm2):
    asked = "What does <|im_start|>assistant\nmean?"
    prompt = render_conversation(smollm2, [("Hi!\nThere.", "Hello.\n\nYes?")], asked)
    assert said_by(smollm2, prompt, "user") == f"Hi!\nThere.{asked}"
    assert said_by(smollm2, prompt, "assistant") == "Hello.\n\nYes?"


def test_a_mask_of_roles():
    roles = [[None, "user", "user", None, "assistant", None], [None, "user", None, "user", None, None]]
    prompts = [(0, 6), (1, 6)]
    user = PositionMask(["user"], prompts, roles=roles).keep(0, 9, CPU)[..., 0]
    assert user.int().tolist() == [[0, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 1, 0, 0, 0, 0]]
    own = PositionMask(["assistant", "user"], prompts, cached=True, roles=roles)
    assert own.keep(0, 7, CPU)[..., 0].int().tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 1, 0, 0]]
    assert own.keep(7, 1, CPU)[..., 0].tolist() == [[True], [False]]
    own.keep_rows([1])
    assert own.keep(0, 7, CPU)[..., 0].int().tolist() == [[0, 0, 1, 0, 1, 0, 0]]


def test_the_users_words_are_steered_as_a_slice_of_them_is(tiny_llama, vectors):
    """Of one turn: <bos> <user> and then the words, up to <assistant>."""
    texts, n = ["so good and warm"], len(TURNS[0][0].split())
    prompt = render_prompts(tiny_llama, [TURNS[0][0]])
    ids = prompt_ids(tiny_llama, prompt)[0]
    start = len(ids) - 1 - n
    by_role, by_place, unsteered = (
        token_logprobs(tiny_llama, prompt, texts, steering=s)[0]
        for s in (
            Steering(vectors, {"joy": 3.0}, positions="user"),
            Steering(vectors, {"joy": 3.0}, positions=slice(start, start + n)),
            None,
        )
    )
    assert (by_role == by_place).all() and abs(by_role - unsteered).max() > 1e-3
    assistant, generated = (
        token_logprobs(tiny_llama, prompt, texts, steering=Steering(vectors, {"joy": 3.0}, positions=positions))[0]
        for positions in ("assistant", "generated")
    )
    assert (assistant == generated).all()


def test_rows_of_every_role_write_what_each_writes_alone(tiny_llama, vectors):
    """In one batch with others, with the cache and without, on the twin and on the bridge."""
    prompts = [render_conversation(tiny_llama, TURNS[:n], "how did you feel ?") for n in (2, 1, 0, 2)]
    steerings = [
        Steering(vectors, {"joy": 3.0}, positions="user"),
        Steering(vectors, {"fear": 3.0}, positions="assistant"),
        None,
        Steering(vectors, {"joy": 3.0}, positions="assistant", op="rotate"),
    ]
    together = generate(tiny_llama, prompts, steering=steerings, raw=True, max_new_tokens=8)
    plain = generate(tiny_llama, prompts, raw=True, max_new_tokens=8)
    bridge = emolab.load_model(tiny_llama.bridge, tokenizer=tiny_llama.tokenizer)
    assert generate(bridge, prompts, steering=steerings, raw=True, max_new_tokens=8) == together
    for prompt, steering, text in zip(prompts, steerings, together, strict=True):
        assert generate(tiny_llama, prompt, steering=steering, raw=True, max_new_tokens=8) == [text]
        with uncached():
            assert generate(tiny_llama, prompt, steering=steering, raw=True, max_new_tokens=8) == [text]
    assert together[2] == plain[2] and sum(a != b for a, b in zip(together, plain, strict=True)) >= 2


def test_refused(tiny_llama, tiny_gpt2, vectors):
    user = Steering(vectors, {"joy": 1.0}, positions="user")
    with pytest.raises(EmolabError, match="which a plain forward call does not know"), steered(tiny_llama, user):
        pass
    theirs = Steering(random_vectors(tiny_gpt2, ("joy",)), {"joy": 1.0}, positions="user")
    with pytest.raises(EmolabError, match="has no chat template, or no fast tokenizer"):
        generate(tiny_gpt2, "the park", steering=theirs, max_new_tokens=2)
    with pytest.raises(EmolabError, match="unknown positions 'system'"):
        Steering(vectors, {"joy": 1.0}, positions="system")
