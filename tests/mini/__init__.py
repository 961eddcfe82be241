"""A toy chat model of 3.5 million parameters, for tests: the grammar of its texts, its training and its weights.

>>> from tests.mini import WEIGHTS, mini_queries
>>> model, queries = emolab.load_model(WEIGHTS), mini_queries("train")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from emolab.judges.judges import LexiconJudge

WEIGHTS = Path(__file__).parent / "weights"
QUERIES = Path(__file__).with_name("queries.json")


def mini_queries(split: str | None = None) -> pd.DataFrame:
    """Its query set, "train" or "heldout" or all: topics and phrasings that its grammar knows, all neutral."""
    from emolab.answers.queries import load_queries

    return load_queries(QUERIES, split=split)


def mini_lexicon() -> LexiconJudge:
    """Words that its grammar gives to one emotion and to nothing else."""
    from emolab.judges.judges import LexiconJudge
    from tests.mini.corpus import emotion_words

    return LexiconJudge(emotion_words())
