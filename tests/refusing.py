"""What bad input is tried on: a tiny model with its responses, vectors and a scored sweep; what an error must be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import emolab
from emolab.base.errors import EmolabError
from emolab.judges.judges import FunctionJudge
from tests.planted import planted_responses
from tests.tiny import random_vectors

LABELS = ("joy", "sadness", "neutral")
LONGEST = 400  # characters of a message, paths left out


def judge(labels=LABELS, name="fixed") -> FunctionJudge:
    return FunctionJudge(lambda texts: np.tile(np.linspace(0.1, 0.6, len(labels)), (len(texts), 1)), labels, name)


def head_test(**options):
    return emolab.HeadTest(**{"n_queries": 2, "words": {"joy": ["happy"], "sadness": ["sad"]}} | options)


class World:
    """Everything that bad input may stand beside; made once, changed by no case."""

    def __init__(self, model, other, folder: Path) -> None:
        self.model, self.other, self.folder = model, other, folder
        self.judge = judge()

    @cached_property
    def responses(self) -> pd.DataFrame:
        return planted_responses(self.model)

    @cached_property
    def queries(self) -> pd.DataFrame:
        table = self.responses.drop_duplicates("query_id")[["query_id", "query", "emotion"]]
        split = ["train"] * (len(table) - 3) + ["heldout"] * 3
        return table.assign(situation="", split=split).reset_index(drop=True)

    @cached_property
    def means(self):
        return emolab.response_means(self.model, self.responses)

    @cached_property
    def vectors(self):
        return emolab.extract_vectors(self.model, None, sites=("resid", "attn", "mlp", "head"), means=self.means)

    @cached_property
    def foreign(self):
        """Vectors of another model."""
        return random_vectors(self.other, ("joy", "sadness"))

    @cached_property
    def scored(self) -> pd.DataFrame:
        rows = [
            (f"q{q}", "", "tell me", emotion, alpha, "resid", "all", "whole", "add", control, 0, "so it was")
            for emotion in ("joy", "sadness")
            for control in ("none", "random")
            for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0)
            for q in range(6)
            if alpha or control == "none"
        ]
        names = "query_id situation query emotion alpha site layers part op control seed text".split()
        table = pd.DataFrame(rows, columns=names)
        rng = np.random.default_rng(0)
        target = rng.uniform(0.1, 0.9, len(table))
        for label in ("joy", "sadness"):
            table[f"p_{label}"] = np.where(table["emotion"] == label, target, 0.05)
        table["p_neutral"] = 0.95 - target
        table["top"] = table["emotion"]
        return table.assign(adherence=0.6, adherence_shuffled=0.2, perplexity=5.0, distinct2=0.9, compression=0.6)

    def steering(self, doses=None, **options):
        return emolab.Steering(self.vectors, {"joy": 1.0} if doses is None else doses, **options)

    def generate(self, prompts="tell me about the park", **options):
        return emolab.generate(self.model, prompts, **{"max_new_tokens": 2} | options)

    def sweep(self, queries=None, **options):
        options = {"alphas": (0, 1), "controls": (), "max_new_tokens": 2} | options
        queries = self.queries if queries is None else queries
        return emolab.sweep(self.model, options.pop("vectors", self.vectors), queries, **options)

    def collect(self, queries=("tell me about the park",), **options):
        options = {"emotions": ("joy",), "max_new_tokens": 2} | options
        queries = list(queries) if isinstance(queries, tuple) else queries
        return emolab.collect_responses(self.model, queries, **options)

    def heads(self, **options):
        options = {"heads": [(0, 0)], "test": head_test()} | options
        vectors, responses = options.pop("vectors", self.vectors), options.pop("responses", self.responses)
        return emolab.head_effects(self.model, vectors, responses, **options)


Case = tuple[Callable[[World], object], str]


def each(call: Callable, rows: Iterable[tuple[object, str]]) -> list[Case]:
    """Cases of one call: call(world, given), and the pattern of its error, for each (given, pattern)."""
    return [(partial(call, given=given), pattern) for given, pattern in rows]


def table(cases: list[Case]) -> pytest.MarkDecorator:
    """A test of (call, pattern); each case is named after what its error says."""
    return pytest.mark.parametrize(("call", "pattern"), cases, ids=[pattern for _, pattern in cases])


def refused(call: Callable[[], object], pattern: str) -> None:
    """An EmolabError that fits the pattern and can be read by a person."""
    with pytest.raises(EmolabError) as caught:
        call()
    message = str(caught.value)
    assert re.search(pattern, message, re.DOTALL), message
    readable(message)


def readable(message: str) -> None:
    without_paths = re.sub(r"/\S+", "/", message)
    assert 15 < len(without_paths) < LONGEST and message.count("\n") < 4, message
    assert "Traceback" not in message and " object at 0x" not in message, message
    assert " " in message and not re.fullmatch(r"<?class .*", message), message
    assert not re.search(r"\b(Key|Type|Attribute|Index|Value)Error\b", message), message
