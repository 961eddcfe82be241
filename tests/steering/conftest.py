"""What tests of steering share: two tiny models, random vectors of each, and a padded batch."""

import pytest

from emolab.models.prompts import encode
from tests import tiny

QUERIES = ["tell me about the park .", "how did you feel ?", "a dog and a cat in the rain"]


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gpt2"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def vectors(model):
    return tiny.random_vectors(model)


@pytest.fixture(scope="module")
def batch(model):
    return encode(model, QUERIES)
