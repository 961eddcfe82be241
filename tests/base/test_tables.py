"""What results carry beside their numbers, and numbers as JSON takes them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from emolab.base.storage import for_json
from emolab.base.tables import noted, origin, span
from tests import tiny


def test_who_made_it_is_said_alike_of_models_vectors_and_names(tiny_llama):
    known = {"name": tiny_llama.name, "revision": None, "fingerprint": tiny_llama.fingerprint}
    vectors = tiny.random_vectors(tiny_llama)
    assert origin(tiny_llama) == origin(known) == known
    assert origin(vectors) == origin(vectors.meta) and origin(vectors)["fingerprint"] == tiny_llama.fingerprint
    assert origin({"model": "x", "revision": 7}) == {"name": "x", "revision": "7", "fingerprint": None}
    assert origin("x") == {"name": "x", "revision": None, "fingerprint": None}
    with pytest.raises(TypeError, match="about"):
        origin(pd.DataFrame({"model": ["x"]}))
    table = noted(pd.DataFrame(), tiny_llama, n="3 queries", seed=1, params={"a": 1})
    assert table.attrs["about"] == {"model": known, "n": "3 queries", "seed": 1, "params": {"a": 1}}
    made_of_it = noted(pd.DataFrame(), table, seed=0, params={"b": 2})
    assert made_of_it.attrs["about"] == {"model": known, "n": "3 queries", "seed": 0, "params": {"a": 1, "b": 2}}
    assert noted(pd.DataFrame(), pd.DataFrame()).attrs["about"]["model"] == origin({})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(2 / 3), 0.6667),
        (np.array([[1.00004, np.nan], [np.inf, -2.5]]), [[1.0, None], [None, -2.5]]),
        (pd.Series([0.5, None]), [0.5, None]),
        ({"a": (1, True, None, "text"), 2: np.int64(3)}, {"a": [1, True, None, "text"], "2": 3}),
    ],
)
def test_values_as_json_takes_them(value, expected):
    found = for_json(value, decimals=4)
    assert found == expected and type(found) is type(expected)


def test_significant_digits():
    assert for_json([123456.0, 0.00123456, 7], digits=4) == [123500.0, 0.001235, 7]


def test_layers_in_a_row_are_named_by_their_ends():
    for layers, expected in (([3], "3"), ("3,4", "3,4"), ([3, 4, 5], "3-5"), ("3,5,6", "3,5,6"), ("late", "late")):
        assert span(layers) == expected
