"""A model in which one head was planted, its answers and vectors, and the tables of its tests, made once."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest

from emolab.heads.effects import head_effects
from emolab.heads.patching import HeadTest
from emolab.models.load import load_model
from emolab.models.sites import output_weights
from emolab.vectors.activations import response_means
from emolab.vectors.vectors import vectors_from_means
from tests.planted import JOY, SAD, planted_model, planted_responses

WORDS = {"joy": JOY, "sadness": SAD}


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gpt2"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    model = load_model(planted_model(tmp_path_factory.mktemp("planted")), device="cpu")
    responses = planted_responses(model)
    means = response_means(model, responses)
    W_O = output_weights(model)
    vectors = vectors_from_means(means, W_O=W_O)
    return SimpleNamespace(model=model, responses=responses, means=means, vectors=vectors, W_O=W_O)


@pytest.fixture(scope="session")
def effects_of(planted):
    """effects_of(op, screen=20): `head_effects` by words on five queries."""

    @cache
    def made(op: str, screen: int | None = 20):
        test = HeadTest(op, words=WORDS, n_queries=5)
        return head_effects(planted.model, planted.vectors, planted.responses, test=test, screen=screen)

    return lambda *asked: made(*asked).copy()
